"""The registry of federated methods, and how both machines are built from options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from blackbox.federation.coordinator import Federation
from blackbox.federation.options import FederationOptions
from blackbox.federation.participant import Participant
from blackbox.federation.payloads import (
    Invitation,
)
from blackbox.recipes.slices import WHOLE, Slicer
from blackbox.registry import Registry
from blackbox.rng import Key
from blackbox.space import Space

F = TypeVar("F", bound=type[Federation[Any]])
FEDERATED: Registry[Federation[Any]] = Registry("federated method", "blackbox.federation.methods")
registry, lookup, resolve_options = FEDERATED.all, FEDERATED.lookup, FEDERATED.resolve_options


def federated(name: str) -> Callable[[F], F]:
    """Register a federated method. The class needs `Options`, `Participant` and a docstring that names its source."""

    def register(cls: F) -> F:
        FEDERATED.register(name, cls, ("Options", "Participant"))
        return cls

    return register


def build(
    name: str, space: Space, options: FederationOptions | Mapping[str, Any], key: Key, slicer: Slicer = WHOLE
) -> Federation[Any]:
    """Build a coordinator. `options` may be raw or resolved; `slicer` computes the parts of its large sums."""
    raw = options.model_dump() if isinstance(options, FederationOptions) else options
    coordinator = lookup(name)(space, resolve_options(name, space, raw), key)
    coordinator.slicer = slicer
    return coordinator


def accept(
    invitation: Invitation | Mapping[str, Any],
    *,
    client: str,
    weight: float = 1.0,
    secret: bytes,
    slicer: Slicer = WHOLE,
) -> Participant[Any, Any]:
    """Build the participant that an invitation asks for; see `Participant` for the other parameters.

    `slicer` computes the parts of its large sums.
    """
    told = invitation if isinstance(invitation, Invitation) else Invitation.from_json(invitation)
    space = Space.from_json(told.space)
    options = resolve_options(told.method, space, told.options)
    key = Key.from_hex(told.key)
    participant = lookup(told.method).Participant(
        space, options, key, client=client, weight=weight, secret=secret, terms=told.terms
    )
    participant.slicer = slicer
    return participant

"""The registry of federated methods, and both machines made from what people write."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

from blackbox.errors import (
    FieldError,
    IncompatibleProblem,
    InvalidOptions,
    UnknownAlgorithm,
    nearest,
)
from blackbox.federation.coordinator import Federation
from blackbox.federation.options import FederationOptions
from blackbox.federation.participant import Participant
from blackbox.federation.payloads import (
    Invitation,
)
from blackbox.options import parse_options
from blackbox.rng import Key
from blackbox.space import Space
from blackbox.validation import invalid, pointer

F = TypeVar("F", bound=type[Federation[Any]])
_registered: dict[str, type[Federation[Any]]] = {}


def federated(name: str) -> Callable[[F], F]:
    """Register a federated method. The class needs `Options`, `Participant` and a docstring that names its source."""

    def register(cls: F) -> F:
        missing = [part for part in ("Options", "Participant") if not hasattr(cls, part)]
        if missing or not cls.__doc__:
            raise TypeError(f"{cls.__name__} lacks {', '.join(missing) or 'a docstring that names its source'}")
        if name in _registered and _registered[name].__qualname__ != cls.__qualname__:
            raise ValueError(f'the name "{name}" is taken by {_registered[name].__qualname__}')
        cls.name = name
        _registered[name] = cls
        return cls

    return register


@lru_cache(maxsize=1)
def _load() -> None:
    package = importlib.import_module("blackbox.federation.methods")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    for entry in entry_points(group="blackbox.federation.methods"):
        entry.load()


def registry() -> Mapping[str, type[Federation[Any]]]:
    """Every federated method by name: the built-in ones and those of installed packages (entry points)."""
    _load()
    return dict(sorted(_registered.items()))


def lookup(name: str) -> type[Federation[Any]]:
    """The class of that name.

    Raises
    ------
    UnknownAlgorithm
        Naming the nearest known one.
    """
    known = registry()
    if name not in known:
        raise UnknownAlgorithm(f'there is no federated method "{name}"', hint=nearest(name, known))
    return known[name]


def resolve_options(name: str, space: Space, raw: Mapping[str, Any]) -> FederationOptions:
    """Validate `raw` for the method and the space, and fill in every default.

    Raises
    ------
    UnknownAlgorithm, InvalidOptions
    IncompatibleProblem
        If the space has parameters that are not real, or a region.
    """
    cls = lookup(name)
    if foreign := space.kinds - {"real"}:
        raise IncompatibleProblem(f"{name} takes real parameters, the space has {', '.join(sorted(foreign))}")
    if space.domain == "convex":
        raise IncompatibleProblem(f"{name} takes free and bounded parameters, the space has a region")
    resolved: FederationOptions = cls.resolve(parse_options(cls.Options, dict(raw)), space)
    privacy = resolved.privacy
    if privacy is not None:
        travel = {n for phase in cls(space, resolved, Key.from_seed(0)).phases for n in phase.payload}
        faults = [
            FieldError(pointer("privacy", "clip", n), "missing", "is required: this vector travels")
            for n in sorted(travel - set(privacy.clip))
        ] + [
            FieldError(pointer("privacy", "clip", n), "unknown_vector", f"no such vector; {nearest(n, travel)}")
            for n in sorted(set(privacy.clip) - travel)
        ]
        faults += [
            FieldError(pointer("privacy", "clip", n), "greater_than", f"must be positive and finite, got {c}")
            for n, c in privacy.clip.items()
            if not 0 < c < math.inf
        ]
        if faults:
            raise invalid(InvalidOptions, faults)
    return resolved


def build(name: str, space: Space, options: FederationOptions | Mapping[str, Any], key: Key) -> Federation[Any]:
    """A coordinator. `options` may be raw or resolved."""
    raw = options.model_dump() if isinstance(options, FederationOptions) else options
    return lookup(name)(space, resolve_options(name, space, raw), key)


def accept(
    invitation: Invitation | Mapping[str, Any], *, client: str, weight: float = 1.0, secret: bytes
) -> Participant[Any, Any]:
    """The participant that an invitation asks for; see `Participant` for the other parameters."""
    told = invitation if isinstance(invitation, Invitation) else Invitation.from_json(invitation)
    space = Space.from_json(told.space)
    options = resolve_options(told.method, space, told.options)
    participant = lookup(told.method).Participant
    return participant(
        space, options, Key.from_hex(told.key), client=client, weight=weight, secret=secret, terms=told.terms
    )

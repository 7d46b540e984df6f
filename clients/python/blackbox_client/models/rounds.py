"""Federated rounds, as a participant sees them.

Invitations, broadcasts and updates are interpreted where the participant's half of an algorithm runs
(`blackbox_client.participant`, which reads their `raw`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from blackbox_client.models.model import Json, Model
from blackbox_client.models.studies import Progress


@dataclass(frozen=True, slots=True)
class HostedPlace(Model):
    """The study in which the trials of a hosted participant are asked and told."""

    study: str
    links: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Invitation(Model):
    """All that a participant's half of an algorithm is made from: its name (`method`), options, space, noise."""

    method: str = ""
    options: Json = field(default_factory=dict)
    space: Json = field(default_factory=dict)
    key: str = ""
    noise: str = ""


@dataclass(frozen=True, slots=True)
class Joined(Model):
    """A participant's place: the `token` that its calls show, and the `invitation`, whose digest is `terms`."""

    token: str
    client: str = ""
    hosted: HostedPlace | None = None
    invitation: Invitation = field(default_factory=Invitation)
    terms: str = ""
    study: Progress = field(default_factory=Progress)
    links: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Left(Model):
    """The study after a participant has left."""

    study: Progress = field(default_factory=Progress)


@dataclass(frozen=True, slots=True)
class Broadcast(Model):
    """The data that all participants of a phase work on.

    Attributes
    ----------
    terms : digest of the invitation.
    step, round, phase : which phase it is: counted through, and by its round and name.
    version : of the common point.
    vectors : by name: ``{"sha256", "dtype", "length", "href"}``; `protocol.base` fetches one by its sha256.
    """

    step: int
    terms: str = ""
    round: int = 0
    phase: str = ""
    version: int = 0
    vectors: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OpenPhase(Model):
    """The phase that is open.

    Attributes
    ----------
    step : phases that have closed.
    broadcast : what participants work on; None until enough have joined.
    invited, contributed : whether the caller (if it showed its token) is wanted in this phase, and has contributed.
    joined, received, need : participants; contributions so far, and how many close the phase.
    declined : participants that have no value to learn from in this phase, and are not waited for.
    closes_at : when it closes with what has arrived.
    metrics : numbers of the algorithm.
    """

    state: str = ""
    reason: str | None = None
    step: int = 0
    broadcast: Broadcast | None = None
    invited: bool = False
    contributed: bool = False
    joined: int = 0
    received: int = 0
    need: int = 0
    declined: int = 0
    closes_at: datetime | None = None
    metrics: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClosedPhase(Model):
    """A closed phase: contributions counted, reason and time of closing, digest of the state after it."""

    phase: str = ""
    counted: int = 0
    why: str = ""
    closed_at: datetime | None = None
    digest: str = ""


@dataclass(frozen=True, slots=True)
class PastRound(Model):
    """A round of which at least one phase has closed; ``AGGREGATED`` once all have, else ``OPEN``."""

    round: int = 0
    state: str = ""
    phases: tuple[ClosedPhase, ...] = ()


@dataclass(frozen=True, slots=True)
class Contributed(Model):
    """The outcome: ``applied``, ``held``, ``late``, ``declined`` or ``duplicate``; whether the contribution is used."""

    outcome: str = ""
    counted: bool = False
    received: int = 0
    need: int = 0
    study: Progress = field(default_factory=Progress)


@dataclass(frozen=True, slots=True)
class Updates(Model):
    """Updates of the common point, oldest first, and the version to go on after."""

    updates: tuple[Json, ...] = ()
    next_after: int = 0

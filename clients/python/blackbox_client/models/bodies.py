"""Types of the bodies and queries of requests; the item of a tell is `results.Result`.

These are names and types only. A member is explained where it is a parameter: `Client.create_study`, `StudyHandle.ask`,
and so on; the server checks ranges and says what it does not like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Required, TypeAlias, TypedDict

from blackbox_client.models.results import Result

Direction: TypeAlias = Literal["minimize", "maximize"]
Encoding: TypeAlias = Literal["values", "seed"]
ExportFormat: TypeAlias = Literal["ndjson"]
NonFinitePolicy: TypeAlias = Literal["reject", "infeasible"]
Noise: TypeAlias = Literal["auto", "none", "present"]
View: TypeAlias = Literal["observed", "recommended", "proposed"]
StartPolicy: TypeAlias = Literal["evaluate", "skip"]
DuplicatesPolicy: TypeAlias = Literal["auto", "evaluate", "reuse"]


# ---- studies


class AlgorithmChoice(TypedDict, total=False):
    """The name of an algorithm, or ``"auto"``, and those of its options that shall not have their defaults."""

    name: str
    options: Mapping[str, Any]


class Budget(TypedDict, total=False):
    """Limits at which a study ends: results, cost in USD as it was told, a time with its zone."""

    evaluations: int | None
    max_cost: float | None
    deadline: datetime | str | None


class LeaseDefaults(TypedDict, total=False):
    """Durations of leases in seconds, and the number of failures and of lapsed leases that end a trial."""

    default_seconds: float | Literal["auto"]
    max_seconds: float
    max_attempts: int
    max_lost: int


class Parallelism(TypedDict, total=False):
    """The largest number of leases at a time, and the evaluations that will be made at a time."""

    max_leased: int
    workers: int | None


class Rounds(TypedDict, total=False):
    """Rules of a federated study: participants needed, longest duration of a phase, contributions kept in the log."""

    min_joined: int
    deadline_seconds: float | None
    keep: Literal["all", "open"]


class StudySpec(TypedDict, total=False):
    """A new study."""

    name: Required[str]
    space: Required[Mapping[str, Any]]
    direction: Direction
    algorithm: AlgorithmChoice
    budget: Budget
    target: float | None
    lease: LeaseDefaults
    parallelism: Parallelism
    rounds: Rounds
    start: StartPolicy
    duplicates: DuplicatesPolicy
    seed: str
    noise: Noise
    non_finite: NonFinitePolicy
    require_lease: bool
    labels: Mapping[str, str]


class Edit(TypedDict, total=False):
    """Changes of a study; each member replaces the one that was there."""

    budget: Budget
    labels: Mapping[str, str]
    lease: LeaseDefaults
    parallelism: Parallelism


class Fork(TypedDict, total=False):
    """A fork of a study."""

    name: str
    step: int
    algorithm: Mapping[str, Any] | str


class Reason(TypedDict, total=False):
    """A reason, for the log."""

    reason: str


class Nothing(TypedDict):
    """An empty object."""


# ---- ask and tell


class Ask(TypedDict, total=False):
    """Trials to lease."""

    count: int
    worker: str
    lease_seconds: float | Literal["auto"]
    wait_seconds: float
    resume: bool
    encoding: Encoding


class Tell(TypedDict, total=False):
    """Results, and perhaps the next ask."""

    results: Required[Sequence[Result]]
    worker: str
    ask: Ask


class Heartbeat(TypedDict, total=False):
    """Leases to renew."""

    leases: Required[Sequence[str]]
    extend_seconds: float


class InterimReport(TypedDict, total=False):
    """An interim value: how far the evaluation has got (`step`), and its value there."""

    lease: str
    step: int
    value: Any


class Enqueued(TypedDict, total=False):
    """A point to evaluate; one with a value, or infeasible, is imported as finished."""

    params: Required[Mapping[str, Any]]
    value: Any
    status: Literal["completed", "infeasible"]
    source: str
    info: Mapping[str, Any]


class Enqueue(TypedDict):
    """Points to evaluate, or finished ones."""

    trials: Sequence[Enqueued]


# ---- federated rounds


class Join(TypedDict, total=False):
    """A participant; if hosted, the server runs its half of the algorithm, with this weight in means."""

    client: Required[str]
    hosted: bool
    weight: float


class Privacy(TypedDict, total=False):
    """The clipping and the noise that a contribution was given."""

    clip: Required[Mapping[str, float]]
    noise: Required[float]


class Contribution(TypedDict, total=False):
    """One participant's update for one phase; a vector is a list of numbers, or base64 of little-endian float32."""

    terms: Required[str]
    client: Required[str]
    round: Required[int]
    phase: Required[str]
    weight: Required[float]
    vectors: Required[Mapping[str, Sequence[float] | str]]
    evaluations: Required[int]
    privacy: Privacy | None


class Decline(TypedDict, total=False):
    """Nothing to contribute to a phase; `error` is the type of the evaluator's last error, no message."""

    phase: Required[str]
    error: str | None


# ---- keys


class NewKey(TypedDict, total=False):
    """A key to make."""

    scopes: Required[Sequence[str]]
    name: str
    project: str
    expires_seconds: float


# ---- queries


class PageQuery(TypedDict, total=False):
    """A page of a list: its position and its size."""

    limit: int
    cursor: str


class TrialsQuery(PageQuery, total=False):
    """Trials of some states, separated by commas."""

    state: str


class BestQuery(TypedDict, total=False):
    """A view of the best points, and their number."""

    view: View
    k: int


class EventsQuery(TypedDict, total=False):
    """A part of the log; `types` are separated by commas."""

    after: int | str
    limit: int
    wait_seconds: float
    types: str


class ExportQuery(TypedDict, total=False):
    """The form of an export, and what to leave out."""

    format: ExportFormat
    after_seq: int | str


class RoundQuery(TypedDict, total=False):
    """How long to hold the answer until the open phase is after a step."""

    after_step: int
    wait_seconds: float


class UpdatesQuery(TypedDict, total=False):
    """A part of the updates of the common point."""

    after: int
    limit: int

"""A study, its log and its best points, as the server describes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from blackbox_client.models.model import Json, Model, Tagged, inline
from blackbox_client.models.trials import Trial

ENDED = frozenset({"COMPLETED", "CANCELLED", "FAILED"})
"""Study states in which nothing is handed out any more."""


@dataclass(frozen=True, slots=True)
class Chosen(Model):
    """The algorithm of a study.

    Attributes
    ----------
    requested, resolved : its name as it was requested, perhaps ``auto``, and the one that runs.
    reason : why ``auto`` chose it; None where it was named.
    options : all options, with defaults filled in.
    popsize : results per step, if the options determine it.
    """

    requested: str = ""
    resolved: str = ""
    reason: str | None = None
    options: Json = field(default_factory=dict)
    popsize: int | None = None


@dataclass(frozen=True, slots=True)
class BudgetStatus(Model):
    """The limits of a study, and what it has used of them.

    Attributes
    ----------
    evaluations, max_cost, deadline : the limits; None: no limit.
    used, cost : evaluations spent and cost (in USD) so far.
    late : those of the evaluations whose results came too late for the algorithm; they count for the best point.
    leased : evaluations under way.
    remaining : evaluations neither spent nor leased.
    steps_affordable : whole steps that the remaining evaluations suffice for.
    """

    evaluations: int | None = None
    max_cost: float | None = None
    deadline: datetime | None = None
    used: int = 0
    late: int = 0
    cost: float = 0.0
    leased: int = 0
    remaining: int | None = None
    steps_affordable: int | None = None


@dataclass(frozen=True, slots=True)
class LeaseTerms(Model):
    """The rules of leases: durations in seconds (``default_seconds`` may be ``"auto"``), and attempts allowed."""

    default_seconds: Any = "auto"
    max_seconds: float | None = None
    max_attempts: int | None = None
    max_lost: int | None = None


@dataclass(frozen=True, slots=True)
class ParallelismTerms(Model):
    """The largest number of leases at a time, and the evaluations that were expected at a time."""

    max_leased: int | None = None
    workers: int | None = None


@dataclass(frozen=True, slots=True)
class HostedAs(Model):
    """The federated study of a hosted participant, its name there, and its share in means."""

    study: str
    client: str = ""
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class TrialCounts(Model):
    """Trials of a study: how many were ever made, are queued, are leased."""

    made: int = 0
    queued: int = 0
    leased: int = 0


@dataclass(frozen=True, slots=True)
class BestValue(Model):
    """The best value told so far, and its trial."""

    trial: str = ""
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Progress(Model):
    """The state of a study in short, which comes with every ask and tell."""

    state: str = ""
    reason: str | None = None
    step: int | None = None
    used: int | None = None
    late: int | None = None
    leased: int | None = None
    remaining: int | None = None
    best: BestValue | None = None

    @property
    def ended(self) -> bool:
        """Whether the study has ended: no more trials are handed out."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True)
class Study(Tagged):
    """A study: its spec with everything decided, and where it stands.

    Attributes
    ----------
    reason : why it is in this state, if there is a reason.
    parent : the study it was forked from.
    hosted : set where it is a hosted participant of a federated study.
    step : how many steps of the algorithm have closed.
    epoch : how often its past was changed (by `invalidate`).
    seq : number of the last event.
    warnings : about the spec, or about a change of release.
    """

    id: str
    name: str = ""
    project: str = ""
    state: str = ""
    reason: str | None = None
    created_at: datetime | None = None
    spec_hash: str = ""
    parent: str | None = None
    hosted: HostedAs | None = None
    direction: str = "minimize"
    space: Json = field(default_factory=dict)
    algorithm: Chosen = Chosen()
    budget: BudgetStatus = BudgetStatus()
    target: float | None = None
    lease: LeaseTerms = LeaseTerms()
    parallelism: ParallelismTerms = ParallelismTerms()
    start: str = "evaluate"
    duplicates: str = "auto"
    seed: str = "0"
    noise: str = "auto"
    non_finite: str = "reject"
    require_lease: bool = False
    labels: Json = field(default_factory=dict)
    step: int = 0
    epoch: int = 0
    seq: int = 0
    trials: TrialCounts = TrialCounts()
    best: BestValue | None = None
    warnings: tuple[str, ...] = ()
    links: Json = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether the study has ended: no more trials are handed out."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True)
class Snapshot(Model):
    """A state that was stored: after which step, and its size in bytes."""

    step: int | None = None
    bytes: int | None = None


# ---- the log


@dataclass(frozen=True, slots=True)
class Event(Model):
    """One line of a study's log; what `data` holds depends on `type`."""

    seq: int
    type: str = ""
    at: datetime | None = None
    data: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EventPage(Model):
    """Some events, and the sequence number to go on after."""

    next_after: int
    events: tuple[Event, ...] = ()


# ---- the best points


@dataclass(frozen=True, slots=True)
class Estimate(Model):
    """An estimate of the value of a point: mean and standard error, and the number of told values they rest on."""

    mean: float | None = None
    n: int | None = None
    stderr: float | None = None


@dataclass(frozen=True, slots=True)
class BestItem(Model):
    """One of the best points.

    Attributes
    ----------
    id : of its trial; empty for a point that was not evaluated.
    value : as it was told, of one evaluation.
    estimate : where several points are compared by their mean values, and of a recommended point under noise.
    step : in which its trial was asked; of a recommended point, the step that recommends it.
    payload : data of the algorithm beside a recommended point.
    trial : the trial with all its fields, if there is a single best one.
    """

    id: str = ""
    params: Json = field(default_factory=dict)
    value: float | None = None
    estimate: Estimate | None = None
    step: int | None = None
    payload: Any = None
    trial: Trial | None = field(default=None, metadata=inline("number"))


@dataclass(frozen=True, slots=True)
class Best(Tagged):
    """The best points of a view: ``observed``, ``recommended`` or ``proposed``; `note` says how to read them."""

    view: str = ""
    items: tuple[BestItem, ...] = ()
    note: str = ""

    @property
    def params(self) -> Json:
        """Parameters of the first item; empty while there is none."""
        return self.items[0].params if self.items else {}

    @property
    def value(self) -> float | None:
        """Value of the first item; None while there is none."""
        return self.items[0].value if self.items else None


# ---- health


@dataclass(frozen=True, slots=True)
class HealthItem(Model):
    """Something that the owner of a study should know.

    Attributes
    ----------
    code : a stable word, such as ``evaluations_fail``; the server's page lists them.
    sentence : what is seen.
    evidence : the numbers behind it, by name.
    action : what to do about it.
    """

    code: str = ""
    sentence: str = ""
    evidence: Json = field(default_factory=dict)
    action: str = ""


@dataclass(frozen=True, slots=True)
class Health(Model):
    """The health of a study; no `items` mean that all is well."""

    items: tuple[HealthItem, ...] = ()

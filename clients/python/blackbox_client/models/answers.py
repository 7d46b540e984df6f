"""Answers to the calls of a worker, and to changes of trials."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from blackbox_client.errors import AnsweredWithError
from blackbox_client.models.model import Json, Model, wire
from blackbox_client.models.studies import Progress
from blackbox_client.models.trials import Trial


@dataclass(frozen=True, slots=True)
class AskAnswer(Model):
    """Leased trials, and when there are fewer than asked for, why (`reason`) and when to come back.

    With the reason ``algorithm_changed``, which only comes along with a tell, `problem` says what to do.
    """

    trials: tuple[Trial, ...] = ()
    granted: int = 0
    requested: int | None = None
    reason: str | None = None
    retry_after_seconds: float | None = None
    problem: AnsweredWithError | None = None
    study: Progress = field(default_factory=Progress)


@dataclass(frozen=True, slots=True)
class Outcome(Model):
    """The outcome of one item of a tell.

    `outcome` is ``applied``, ``injected``, ``requeued``, ``released``, ``duplicate``, ``late_recorded`` or
    ``rejected``; a rejected item carries its `problem`. `state` is that of the trial where it is not plainly
    completed; `attempt` and `attempts_left` are there for an evaluation that failed.
    """

    trial: str = ""
    outcome: str = ""
    best_so_far: bool = False
    state: str = ""
    attempt: int | None = None
    attempts_left: int | None = None
    problem: AnsweredWithError | None = None


@dataclass(frozen=True, slots=True)
class TellAnswer(Model):
    """The outcomes of a tell, and the trials that were asked for along with it."""

    outcomes: tuple[Outcome, ...] = field(default=(), metadata=wire("results"))
    applied: int = 0
    study: Progress = field(default_factory=Progress)
    ask: AskAnswer | None = None

    @property
    def outcome(self) -> Outcome:
        """The outcome of a tell of one item.

        Raises
        ------
        ValueError
            If there is not exactly one.
        """
        if len(self.outcomes) != 1:
            raise ValueError(f"expected the outcome of one result, got {len(self.outcomes)}; read .outcomes")
        return self.outcomes[0]

    @property
    def rejected(self) -> tuple[Outcome, ...]:
        """The items the server did not take."""
        return tuple(outcome for outcome in self.outcomes if outcome.outcome == "rejected")


@dataclass(frozen=True, slots=True)
class LeaseDirective(Model):
    """The answer of a heartbeat about one lease: ``continue``, or ``abandon`` and the `problem` of an unknown token."""

    token: str
    directive: str = "continue"
    expires_at: datetime | None = None
    problem: AnsweredWithError | None = None


@dataclass(frozen=True, slots=True)
class HeartbeatAnswer(Model):
    """A directive for each lease."""

    leases: tuple[LeaseDirective, ...] = ()


@dataclass(frozen=True, slots=True)
class ReportAnswer(Model):
    """The answer to an interim report, which also extends the lease."""

    directive: str = "continue"
    lease_expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Queued(Outcome):
    """A point that was queued, with its `state`, or imported, with its `outcome`; a rejected one has no `id`."""

    id: str | None = None
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Invalidated(Model):
    """A result that was taken back: the number of results (0: it was taken back before), and the study's new epoch."""

    trial: str = ""
    invalidated: int = 0
    epoch: int | None = None


@dataclass(frozen=True, slots=True)
class Quarantined(Model):
    """A worker whose results were taken back.

    Attributes
    ----------
    invalidated : how many results were taken back, by study.
    skipped : why nothing could be taken back, by study: federated ones and their hosted participants.
    """

    worker: str = ""
    invalidated: Json = field(default_factory=dict)
    skipped: Json = field(default_factory=dict)

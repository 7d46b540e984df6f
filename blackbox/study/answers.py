"""What evaluators ask of a study of trials and what it answers, and what its transactions come to on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blackbox.records import Pending
from blackbox.study import log
from blackbox.study.leases import Lease
from blackbox.study.open_step import OpenStep
from blackbox.study.rows import StudyRow
from blackbox.study.settling import Outcome


@dataclass(frozen=True, slots=True)
class AskRequest:
    """What an ask wants; see `TrialStudy.ask`."""

    worker: str = "anonymous"
    count: int = 1
    lease_seconds: float | None = None
    key: str | None = None
    resume: bool = False


@dataclass(frozen=True, slots=True)
class AskAnswer:
    """The answer to an ask.

    Attributes
    ----------
    leases : what was granted.
    reason : why it is less than requested, or None: parallelism_cap, budget_exhausted, sequential_method,
        all_members_in_flight, worker_backed_off, between_rounds, paused, completed, cancelled, study_failed.
    retry_after : seconds after which asking again may help.
    row : the study's row after it.
    """

    leases: tuple[Lease, ...]
    requested: int
    reason: str | None
    retry_after: float | None
    row: StudyRow


@dataclass(frozen=True, slots=True)
class TellAnswer:
    """The answer to a tell.

    Attributes
    ----------
    outcomes : one per report, in their order.
    row : the study's row after it.
    asked : the answer to the ask that came along; None when nothing was asked, or when a step has to close before
        something can be granted: ask again then.
    n_closed : steps that this tell closed.
    """

    outcomes: tuple[Outcome, ...]
    row: StudyRow
    asked: AskAnswer | None = None
    n_closed: int = 0


# Instead of granting an ask: each comes before anything was changed ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class PointsMissing:
    """A grant needs points that were not computed yet: compute them, then ask again.

    Attributes
    ----------
    lanes : of the open step, those without a point.
    pending, asks : what is in flight, and the row's counter then, for methods that look at it.
    """

    open_step: OpenStep
    lanes: Sequence[int]
    pending: Pending
    asks: int


@dataclass(frozen=True, slots=True)
class StepUnknown:
    """The step that is open in the row has not been seen here: read it, then ask again."""


@dataclass(frozen=True, slots=True)
class Stalled:
    """Nothing is out and nothing can be handed out (every member has failed for good): close the step as it is."""


Grant = AskAnswer | PointsMissing | StepUnknown | Stalled
"""What granting one ask inside a transaction comes to."""


# Done in a transaction ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StepsClosed:
    """Steps that a transaction closed.

    Attributes
    ----------
    row : the study's row after them.
    open_step : the step that is open now.
    n_steps : how many were closed.
    snapshot : whether the state was stored.
    """

    row: StudyRow
    open_step: OpenStep
    n_steps: int
    snapshot: bool


@dataclass(frozen=True, slots=True)
class Settled:
    """What a tell's transaction did.

    Attributes
    ----------
    outcomes : one per report.
    row : the study's row after it.
    seconds : how long the evaluations took that came to an end.
    due : the results after the last closed step, if enough are in to close one; None if not.
    closed : steps closed in the same transaction.
    asked : the answer to the ask that came along, if it could be granted.
    """

    outcomes: tuple[Outcome, ...]
    row: StudyRow
    seconds: list[float]
    due: list[log.LoggedResult] | None
    closed: StepsClosed | None
    asked: AskAnswer | None

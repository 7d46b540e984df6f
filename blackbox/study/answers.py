"""Requests and answers of a study of trials or of rounds, and the intermediate results of its transactions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blackbox.federation import Broadcast
from blackbox.records import Pending
from blackbox.study import log
from blackbox.study.leases import Lease
from blackbox.study.open_step import OpenStep
from blackbox.study.rows import StudyRow
from blackbox.study.settling import Outcome


@dataclass(frozen=True, slots=True)
class AskRequest:
    """The arguments of one ask; see `TrialStudy.ask`."""

    worker: str = "anonymous"
    count: int = 1
    lease_seconds: float | None = None
    key: str | None = None
    resume: bool = False
    more: bool = False
    """Whether this is the rest of an ask, whose key has leases already."""


@dataclass(frozen=True, slots=True)
class AskAnswer:
    """The answer to an ask.

    Attributes
    ----------
    leases : the granted leases.
    requested : how many were asked for.
    reason : why fewer were granted than requested, or None: parallelism_cap, budget_exhausted, sequential_method,
        all_members_in_flight, worker_backed_off, between_rounds, space_exhausted, paused, completed, cancelled,
        study_failed.
    retry_after : seconds after which asking again may help, or None.
    row : the study's row after the ask.
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
    outcomes : one per report, in the order of the reports.
    row : the study's row after the tell.
    asked : the answer to the ask in the same request; None when nothing was asked, or when a step has to close before
        anything can be granted: ask again then.
    n_closed : steps that this tell closed.
    """

    outcomes: tuple[Outcome, ...]
    row: StudyRow
    asked: AskAnswer | None = None
    n_closed: int = 0


# Results of an ask that granted nothing yet and changed nothing -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PointsMissing:
    """The grant needs points that have not been computed: compute them, then ask again.

    Attributes
    ----------
    open_step : the step that the points belong to.
    lanes : lanes of that step without a point.
    pending, asks : trials in flight and the row's `asks` at that moment, for methods that depend on them.
    """

    open_step: OpenStep
    lanes: Sequence[int]
    pending: Pending
    asks: int


@dataclass(frozen=True, slots=True)
class StepUnknown:
    """This process does not know the open step of the row: read it, then ask again."""


@dataclass(frozen=True, slots=True)
class Stalled:
    """Nothing is leased and nothing can be granted (every member has failed for good): close the step as it is."""


@dataclass(frozen=True, slots=True)
class Reused:
    """Points were answered from the archive, which may close steps: advance, then ask for the rest.

    Attributes
    ----------
    granted : the leases that were granted beside them.
    n_reused : how many points were answered.
    """

    granted: AskAnswer
    n_reused: int


Grant = AskAnswer | PointsMissing | StepUnknown | Stalled | Reused
"""The result of trying to grant one ask inside a transaction."""


# Results of a transaction ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StepsClosed:
    """Steps that a transaction closed.

    Attributes
    ----------
    row : the study's row after closing them.
    open_step : the step that is open now.
    n_steps : number of closed steps.
    snapshot : whether a snapshot was stored.
    """

    row: StudyRow
    open_step: OpenStep
    n_steps: int
    snapshot: bool


@dataclass(frozen=True, slots=True)
class Settled:
    """The effects of a tell's transaction.

    Attributes
    ----------
    outcomes : one per report.
    row : the study's row afterwards.
    seconds : durations of the evaluations that ended, from lease to result.
    due : the results after the last closed step, if they suffice to close another one; otherwise None.
    closed : steps closed in the same transaction, or None.
    asked : the answer to the ask in the same request, if it could be granted.
    """

    outcomes: tuple[Outcome, ...]
    row: StudyRow
    seconds: list[float]
    due: list[log.LoggedResult] | None
    closed: StepsClosed | None
    asked: AskAnswer | None


@dataclass(frozen=True, slots=True)
class OpenPhase:
    """The open phase.

    Attributes
    ----------
    row : the study's row.
    broadcast : None while too few have joined, or the study is not active.
    invited : whether the participant that asked is wanted in this phase: it takes part in the round, and has not
        declined the phase; None without a participant.
    contributed : whether its contribution to this phase was received.
    joined, received, need : number of participants, of contributions that count now, and of those that close the phase.
    declined : name -> type of its error, of the participants that have nothing to contribute to this phase.
    closes_at : when the phase closes with the contributions so far (seconds since the epoch), or None.
    """

    row: StudyRow
    broadcast: Broadcast | None
    invited: bool | None
    contributed: bool
    joined: int
    received: int
    need: int
    declined: Mapping[str, str | None]
    closes_at: float | None


@dataclass(frozen=True, slots=True)
class ContributeAnswer:
    """The answer to a contribution, or to its refusal.

    Attributes
    ----------
    outcome : applied (it counts in the open phase), held (it counts in a later one), late (recorded, not used),
        declined (noted that there is none), or duplicate (this participant had contributed to this phase, or declined
        it; what came first stands).
    counted : whether it was or will be used.
    received, need : number of contributions to the open phase, and of those that close it.
    row : the study's row afterwards.
    """

    outcome: str
    counted: bool
    received: int
    need: int
    row: StudyRow

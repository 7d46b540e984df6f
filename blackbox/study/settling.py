"""The rules of told results: each is settled on its own, and all changes of a tell are written at once.

A final transition, its place in the log and the study's counters are one transaction, so two tells cannot both win.
"""

from __future__ import annotations

import hmac
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from blackbox.errors import (
    BlackboxError,
    FieldError,
    InvalidInput,
    LeaseUnknown,
    NonFiniteValue,
    TrialNotFound,
)
from blackbox.study.health import Tally
from blackbox.study.leases import Kind, Lease, LeaseChanged, is_stale, read_token
from blackbox.study.ledger import close_trial, end_if_spent, finish, improves, lost, may_end, spend, spent, uncount
from blackbox.study.log import LoggedResult
from blackbox.study.recommending import replicate_due
from blackbox.study.rows import (
    CANCELLED,
    COMPLETED,
    FAILED,
    INFEASIBLE,
    OPEN_STATES,
    PAUSED,
    QUEUED,
    REPLICATE,
    STOPPED,
    SUPERSEDED,
    EventRow,
    LateRow,
    PointRow,
    StudyRow,
    TrialRow,
    Tx,
)
from blackbox.study.spec import StudySpec

Status = Literal["completed", "infeasible", "failed", "stopped", "released"]

NON_FINITE_HINT = (
    'If the point cannot be evaluated send {"status":"infeasible"}; if your evaluator broke send {"status":"failed"}; '
    'or create the study with "non_finite":"infeasible".'
)


@dataclass(frozen=True, slots=True)
class Report:
    """One told result, as received.

    Attributes
    ----------
    trial : number of the trial; None for a point the study did not choose (then `vector` and `params` are set).
    token : the lease token, or None if the study does not require it.
    status : outcome of the evaluation.
    value : the objective as the user sees it (not sign-flipped).
    extra : other told fields: stderr, n, cost, info, error, reason, ...
    retryable : for a failure, whether another attempt may help.
    vector, params, source : internal point (float64 bytes), parameters (JSON) and origin of an injected point.
    """

    trial: int | None = None
    token: str | None = None
    status: Status = "completed"
    value: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    retryable: bool = True
    vector: bytes | None = None
    params: str | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one report.

    Attributes
    ----------
    trial : number of the trial, also of an injected point.
    outcome : applied, injected, requeued, released, duplicate, late_recorded or rejected.
    state : of the trial afterwards.
    attempt, attempts_left : the attempt that the report is about, and how many retryable failures are left.
    best_so_far : whether the value is the best of the study.
    error : why it was rejected.
    """

    trial: int | None
    outcome: str
    state: str | None = None
    attempt: int | None = None
    attempts_left: int | None = None
    best_so_far: bool = False
    error: BlackboxError | None = None


class Settlement:
    """Settles the results of one tell: reads all of their trials at once, and writes all changes at once.

    Parameters
    ----------
    row : the study's row, changed in place; the caller writes it.
    numbers : numbers of the trials that the reports are about.
    leased : the leases among them that the caller remembers; changed in place.
    lacks : the told field that a completed result with this `extra` lacks, see `Algorithm.lacks`; None: nothing.
    oldest : the first step whose results the algorithm takes, see `Algorithm.oldest`.
    """

    def __init__(
        self,
        tx: Tx,
        row: StudyRow,
        spec: StudySpec,
        secret: bytes,
        kind: Kind,
        numbers: Sequence[int],
        leased: Mapping[int, Lease],
        lacks: Callable[[Mapping[str, Any]], FieldError | None] | None = None,
        oldest: Callable[[], int] = lambda: 0,
        *,
        worker: str | None,
        now: float,
    ) -> None:
        self.tx, self.row, self.spec, self.secret, self.kind, self.lacks = tx, row, spec, secret, kind, lacks
        self.worker, self.now = worker, now
        unknown = [number for number in numbers if number not in leased] if leased else numbers
        self.trials = tx.trials(row.id, unknown) if unknown else {}
        self.trials.update((number, lease.trial) for number, lease in leased.items())
        self._leased, self._oldest = leased, oldest
        self._revived = False
        self._may_end = may_end(spec)
        self._waiting = row.waiting
        self._tally = Tally.take(row)
        self.changed: dict[int, TrialRow] = {}
        """Existing trials that a report has changed, by number."""

    def settle(self, report: Report) -> Outcome:
        """Apply one report. Never raises for an invalid report: the outcome says what is wrong with it."""
        try:
            report = _checked(report, self.spec)
            lack = self.lacks(report.extra) if self.lacks and report.status in ("completed", "stopped") else None
            if lack is not None:
                name = lack.pointer[1:]
                raise InvalidInput(
                    f"the study's method needs {name} beside the value: {lack.message}",
                    hint=f'send {{"value": ..., "{name}": ...}}',
                    errors=[lack],
                )
            if report.trial is None:
                return self._inject(report)
            trial = self.trials.get(report.trial)
            if trial is None:
                raise TrialNotFound(
                    f"study {self.row.id} has no trial t_{report.trial}; its newest is t_{self.row.trials}",
                    hint="tell the `id` of a trial that ask gave out",
                )
            attempt = self._attempt(report, trial)
            if trial.state not in OPEN_STATES:
                return self._late(trial, report, attempt)
            if report.status in ("released", "failed"):
                return self._give_back(trial, report, attempt)
            return self._apply(trial, report, attempt)
        except BlackboxError as error:
            return Outcome(report.trial, "rejected", error=error)

    def write(self, *, look_for_noise: bool) -> None:
        """Write the trials that changed, and put what was counted on the study's row.

        Parameters
        ----------
        look_for_noise : queue the best point for another evaluation, if it is time; see `recommending.replicate_due`.

        Raises
        ------
        LeaseChanged
            If a remembered lease is out of date. The transaction must be rolled back.
        """
        known = [trial for number, trial in self.changed.items() if number in self._leased]
        others = [trial for number, trial in self.changed.items() if number not in self._leased]
        if others:
            self.tx.put_trials(others)
        if known and not self.tx.put_leased(known):
            raise LeaseChanged(f"leases of {self.row.id} have changed")
        if look_for_noise and replicate_due(self.row, self.spec, self._tally):
            self._replicate()
        self._tally.store(self.row)

    def _replicate(self) -> None:
        best = self.row.best_trial or 0
        trial, point = self.tx.trial(self.row.id, best), self.tx.points(self.row.id, [best])[best]
        if trial is None or trial.value is None:
            return
        self.row.trials += 1
        self.row.queued += 1
        number = self.row.trials
        # Under the step of the best trial, because the base of a recipe is kept for open trials of its step.
        again = TrialRow(self.row.id, number, trial.step, -number, asked_at=self.now, source=REPLICATE)
        self.tx.insert_trials([again], [replace(point, number=number)])
        self._tally.replicate = (number, trial.value, self._tally.results)

    def logged(self) -> list[LoggedResult] | None:
        """The results that were put in the log, by seq, with their points.

        None if some points are missing: those of injected points, and of leases that the caller did not remember; or if
        a result was moved in the log.
        """
        if self._revived:
            return None
        told = [self._leased[n] for n, trial in self.changed.items() if trial.seq is not None and n in self._leased]
        if len(told) != self.row.waiting - self._waiting:
            return None
        return sorted(((lease.trial, lease.point) for lease in told), key=lambda pair: pair[0].seq or 0)

    def seconds(self, outcomes: Sequence[Outcome]) -> list[float]:
        """Durations of the evaluations that ended with these outcomes."""
        applied = [self.trials[o.trial] for o in outcomes if o.outcome == "applied" and o.trial is not None]
        return [self.now - trial.leased_at for trial in applied if trial.leased_at is not None]

    def _attempt(self, report: Report, trial: TrialRow) -> int:
        """The attempt that a report is about.

        Raises
        ------
        LeaseUnknown
            If the token is missing, or not one of this trial.
        """
        if report.token is None:
            if self.spec.require_lease:
                raise LeaseUnknown(
                    f"this study wants the lease token with every result, t_{trial.number} came without one",
                    hint='add "lease": the `lease.token` of the ask answer',
                )
            return trial.attempt
        lease = self._leased.get(trial.number)
        if lease is not None and hmac.compare_digest(lease.token.encode(), report.token.encode()):
            return trial.attempt
        number, attempt = read_token(self.secret, report.token)
        if number != trial.number or attempt > trial.attempt:
            raise LeaseUnknown(
                f"the lease token is for t_{number}, the result for t_{trial.number}",
                hint="send each result with the token of its own trial",
            )
        return attempt

    def _apply(self, trial: TrialRow, report: Report, attempt: int) -> Outcome:
        """Apply a result for an open trial, whoever holds it now."""
        state = {"completed": COMPLETED, "infeasible": INFEASIBLE, "stopped": STOPPED}[report.status]
        uncount(self.row, trial)
        trial.worker = self.worker or trial.worker
        trial.extra = _dumped(report.extra)
        close_trial(self.row, trial, state, None if state == INFEASIBLE else report.value, self.now)
        best = improves(self.row, self.spec, trial)
        self._tally.told(trial, report.extra, None if trial.leased_at is None else self.now - trial.leased_at)
        self.changed[trial.number] = trial
        self._spend(report)
        return Outcome(trial.number, "applied", state, attempt, best_so_far=best)

    def _give_back(self, trial: TrialRow, report: Report, attempt: int) -> Outcome:
        """Requeue or close an open trial that was released or whose evaluation failed."""
        left = self.spec.lease.max_attempts - trial.failures
        if attempt < trial.attempt or (trial.state == QUEUED and (trial.attempt or report.status == "released")):
            # Somebody else holds it, or it was given back already: the report changes nothing.
            return Outcome(trial.number, "duplicate", trial.state, attempt, left)
        failed = report.status == "failed"
        if failed:
            trial.failures += 1
            left -= 1
            trial.extra = _dumped(report.extra)
            self._tally.attempt_failed(report.extra.get("error"), self.worker)
        uncount(self.row, trial)
        self.changed[trial.number] = trial
        if failed and (not report.retryable or left <= 0):
            close_trial(self.row, trial, FAILED, None, self.now)
            self._tally.trial_failed()
            self._spend(report)  # a budget that is spent ends the study; there is nothing to resume
            if (broken := self._tally.broken()) is not None:
                finish(self.tx, self.row, PAUSED, broken, self.now)
            return Outcome(trial.number, "applied", FAILED, attempt, 0)
        if failed:
            spend(self.row)
            self._spend(report)
        trial.until, trial.worker, trial.ask_key = None, None, None
        if is_stale(trial, self.row, self.kind):
            trial.state = SUPERSEDED
        else:
            trial.state = QUEUED
            self.row.queued += 1
        return Outcome(trial.number, "requeued" if failed else "released", trial.state, attempt + 1, left)

    def _late(self, trial: TrialRow, report: Report, attempt: int) -> Outcome:
        """Record a result for a closed trial, unless it is a repetition.

        The first answer of an evaluator holds; what is told afterwards is kept beside it. A trial that a timer or a
        failure has closed has no answer yet, so that its first value counts.
        """
        withdrawn = trial.state in (SUPERSEDED, CANCELLED)
        if report.status == "released":
            if withdrawn and attempt == trial.attempt:
                self._came_back(trial)
            return Outcome(trial.number, "duplicate", trial.state, attempt)
        said = {COMPLETED: "completed", INFEASIBLE: "infeasible", STOPPED: "stopped", FAILED: "failed"}.get(trial.state)
        if trial.seq is not None and (withdrawn or trial.value is not None):
            said = "completed" if trial.value is not None else "infeasible"
            said = "stopped" if trial.state == STOPPED else said
        if said == report.status and trial.value == (report.value if report.status != "infeasible" else None):
            return Outcome(trial.number, "duplicate", trial.state, attempt)
        answered = trial.seq is not None and (trial.state != FAILED or trial.value is not None)
        if not answered and trial.state == FAILED and report.status != "failed":
            return self._revive(trial, report, attempt)
        self._charge(trial)
        if attempt == trial.attempt:
            self._came_back(trial)
        if answered or report.status not in ("completed", "infeasible"):
            trial.failures += report.status == "failed" and not answered
            return self._beside(trial, report, attempt)
        self.row.seq += 1
        self.row.waiting += 1
        trial.value = report.value if report.status == "completed" else None
        trial.seq, trial.told_at, trial.extra = self.row.seq, self.now, _dumped(report.extra)
        trial.worker = self.worker or trial.worker
        best = trial.state == SUPERSEDED and improves(self.row, self.spec, trial)
        self._tally.told(trial, report.extra, None if trial.leased_at is None else self.now - trial.leased_at)
        self.changed[trial.number] = trial
        self._spend(report)
        return Outcome(trial.number, "late_recorded", trial.state, attempt, best_so_far=best)

    def _revive(self, trial: TrialRow, report: Report, attempt: int) -> Outcome:
        """Take the first answer for a FAILED trial: told to the algorithm if it still takes it, and a candidate for the
        best in any case.

        The failure was never told, except to a sequential algorithm; so its place in the log may become an event, and
        the result gets one at the end: a replay of the closed steps computes what they did.
        """
        row, before = self.row, trial.seq or 0
        consumed = before <= row.upto_seq
        late = (self.kind == "sequential" and consumed) or (trial.lane >= 0 and trial.step < self._oldest())
        if not lost(trial):
            self._charge(trial, late)
        elif late:
            row.late += 1  # the evaluation was counted when its leases had lapsed
        if late:
            trial.value = report.value if report.status == "completed" else None
            outcome = self._beside(trial, report, attempt)
            return replace(outcome, best_so_far=improves(row, self.spec, trial))
        facts = json.dumps({"trial": f"t_{trial.number}", **json.loads(trial.extra or "{}")}, sort_keys=True)
        row.seq += 1
        row.waiting += consumed
        trial.state = {"completed": COMPLETED, "infeasible": INFEASIBLE}.get(report.status, STOPPED)
        trial.value = None if report.status == "infeasible" else report.value
        trial.seq, trial.extra, trial.worker = row.seq, _dumped(report.extra), self.worker or trial.worker
        self.tx.put_trial(trial)
        self.tx.insert_event(EventRow(row.id, before, "trial.failed", trial.told_at or self.now, facts))
        trial.told_at = self.now
        self.changed[trial.number] = trial
        self._revived = True
        best = improves(row, self.spec, trial)
        self._spend(report)
        return Outcome(trial.number, "applied", trial.state, attempt, best_so_far=best)

    def _beside(self, trial: TrialRow, report: Report, attempt: int) -> Outcome:
        """Log a result beside what the trial's row has."""
        self.row.seq += 1
        extra = _dumped(report.extra)
        self.tx.insert_late(
            LateRow(self.row.id, self.row.seq, trial.number, self.worker, self.now, report.value, extra)
        )
        self.changed[trial.number] = trial
        self._spend(report)
        return Outcome(trial.number, "late_recorded", trial.state, attempt)

    def _charge(self, trial: TrialRow, late: bool = True) -> None:
        """Count an evaluation of a closed trial, unless each lease of the trial is counted already."""
        counted = spent(trial)
        if trial.seq is not None and counted < trial.attempt:
            beside = self.tx.late(self.row.id, trial.seq, 1000)
            counted += sum(value.number == trial.number for value in beside)
        if counted < max(1, trial.attempt):
            spend(self.row, late=late)

    def _came_back(self, trial: TrialRow) -> None:
        """Note that the evaluation of a withdrawn trial is not out any more."""
        if trial.until is not None:
            if trial.state == SUPERSEDED and trial.seq is None:
                self.row.withdrawn = max(0, self.row.withdrawn - 1)
            trial.until = None
            self.changed[trial.number] = trial

    def _inject(self, report: Report) -> Outcome:
        """Insert a point that the study did not choose with its value: told to algorithms that take such points."""
        row = self.row
        row.trials += 1
        number = row.trials
        trial = TrialRow(row.id, number, row.step, -number, asked_at=self.now, worker=self.worker)
        trial.source, trial.extra = report.source or "injected", _dumped(report.extra)
        row.seq += 1
        row.waiting += 1
        trial.state = {"completed": COMPLETED, "infeasible": INFEASIBLE}.get(report.status, STOPPED)
        trial.value, trial.seq, trial.told_at = report.value, row.seq, self.now
        best = improves(row, self.spec, trial)
        self.tx.insert_trials([trial], [PointRow(row.id, number, report.vector, None, report.params)])
        return Outcome(number, "injected", trial.state, best_so_far=best)

    def _spend(self, report: Report) -> None:
        """Add up the cost, and complete the study if its target or budget is reached."""
        if "cost" in report.extra:
            cost = report.extra["cost"]
            usd = cost.get("usd") if isinstance(cost, Mapping) else None
            if isinstance(usd, int | float) and not isinstance(usd, bool) and math.isfinite(usd) and usd > 0:
                self.row.cost = min(self.row.cost + usd, sys.float_info.max)
        if self._may_end:
            end_if_spent(self.tx, self.row, self.spec, self.now, self._tally)


def _checked(report: Report, spec: StudySpec) -> Report:
    """The report with a finite value; a non-finite one is rejected or becomes infeasible, as the study says."""
    if report.status not in ("completed", "stopped"):
        return report
    if report.value is None:
        raise NonFiniteValue(
            f'a result with status "{report.status}" needs a value',
            hint='send {"value": 0.5}, or a status of "infeasible", "failed" or "released"',
            errors=[FieldError("/value", "missing", "no value")],
        )
    if math.isfinite(report.value):
        return report
    if spec.non_finite == "infeasible":
        reason = {**report.extra, "reason": f"value was {report.value}"}
        return replace(report, status="infeasible", value=None, extra=reason)
    raise NonFiniteValue(
        f"value is {report.value}, expected a finite number",
        hint=NON_FINITE_HINT,
        errors=[FieldError("/value", "non_finite", f"got {report.value}")],
    )


def _dumped(extra: Mapping[str, Any]) -> str | None:
    return json.dumps(extra, sort_keys=True) if extra else None

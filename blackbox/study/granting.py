"""Granting one ask inside a transaction: claimed trials, new lanes, and the reason if there are no more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from blackbox.records import NOTHING_PENDING, Pending
from blackbox.study import leases, ledger, log
from blackbox.study.answers import AskAnswer, AskRequest, Grant, PointsMissing, Reused, Stalled, StepUnknown
from blackbox.study.evaluators import CircuitBreaker, Durations
from blackbox.study.known import Known
from blackbox.study.leases import Lease
from blackbox.study.open_step import OpenStep
from blackbox.study.pace import Pace
from blackbox.study.reading import RecordedStudy
from blackbox.study.repeats import REUSED_AT_ONCE, REUSED_IN_A_WORK, Repeats
from blackbox.study.rows import (
    ACTIVE,
    CANCELLED,
    COMPLETED,
    FAILED,
    LEASED,
    PAUSED,
    UNTOLD,
    PointRow,
    StudyRow,
    TrialRow,
    Tx,
)

EXHAUSTED = "space_exhausted"
"""Reason of a study that ends, and of an empty answer, when every point of a finite space was told or is out."""
REASONS = {PAUSED: "paused", COMPLETED: "completed", CANCELLED: "cancelled", FAILED: "study_failed"}
"""Reason of an empty answer, by state of the study."""


class Granter:
    """Grants the asks of one open study.

    Parameters
    ----------
    study : the study.
    known : remembers granted leases and knows the open step.
    pace : says whether missing points may be computed inside the transaction.

    Attributes
    ----------
    durations : evaluation times, which determine the duration of leases.
    breaker : backs off workers that keep failing.
    """

    def __init__(self, study: RecordedStudy, known: Known, pace: Pace) -> None:
        self._study, self._known, self._pace = study, known, pace
        self.durations = Durations()
        self.repeats = Repeats(study, known)
        self.breaker = CircuitBreaker()

    def lease_seconds(self, requested: float | None) -> float:
        """Duration of a lease: the requested one, the study's, or three times the 95th percentile of evaluations."""
        limits = self._study.spec.lease
        if requested is not None:
            return min(requested, limits.max_seconds)
        if limits.default_seconds != "auto":
            return min(limits.default_seconds, limits.max_seconds)
        return min(self.durations.lease_seconds, limits.max_seconds)

    def grant(self, tx: Tx, row: StudyRow, request: AskRequest, now: float, n_reused: int = 0) -> Grant:
        """Grant one ask. With `AskAnswer` and `Reused` the row was written; with any other result nothing was changed.

        Parameters
        ----------
        row : the study's row in this transaction; changed in place.
        now : seconds since the epoch.
        n_reused : values that were taken from the archive for this ask.
        """
        study, worker, count, key = self._study, request.worker, request.count, request.key
        ledger.end_if_spent(tx, row, study.spec, now)
        if row.state != ACTIVE:
            tx.put_study(row)
            ended = EXHAUSTED if row.reason == EXHAUSTED else REASONS[row.state]
            return AskAnswer((), count, ended, 5.0 if row.state == PAUSED else None, row)
        step = self._known.step_of(row)
        if step is None and study.kind == "members":
            # A member's next point may come from a state that is a few results old.
            committed = self._known.committed
            step = committed if committed is not None and committed.epoch == row.epoch else None
        if step is None:
            return StepUnknown()
        if held := self.breaker.backoff(worker, now):
            tx.put_study(row)
            return AskAnswer((), count, "worker_backed_off", held, row)
        asked_under = None if request.more else key
        claim = leases.claim(
            tx, row, study.spec, study.kind, worker=worker, count=count, now=now, key=asked_under, resume=request.resume
        )
        lanes: Sequence[int] = ()
        reason = claim.reason
        reuse = untold = False
        if claim.n_new:
            reuse = self.repeats.reusable(tx, row)
            left = self.repeats.left()
            if reuse and left <= row.leased and not (claim.live or claim.lapsed or claim.queued):
                if left <= 0:
                    ledger.finish(tx, row, COMPLETED, EXHAUSTED, now)
                tx.put_study(row)
                return AskAnswer((), count, EXHAUSTED, 1.0 if left else None, row)
            untold = reuse and n_reused >= REUSED_AT_ONCE
            pending = self._pending(tx, row, step)
            if not untold:
                n = claim.n_new
                if reuse and study.kind == "members":
                    n = max(n, REUSED_IN_A_WORK)
                elif reuse:
                    n = max(n, min(REUSED_IN_A_WORK, step.algorithm.need(step.state) - row.waiting))
                lanes = step.algorithm.lanes(step.state, pending, n)
            if len(lanes) < claim.n_new and not untold:
                reason = "sequential_method" if study.kind == "sequential" else "all_members_in_flight"
                if not lanes and not (claim.live or claim.lapsed or claim.queued) and row.leased + row.queued == 0:
                    return Stalled()
            if (missing := self._missing(row, step, lanes, pending)) is not None:
                return missing
        seconds = self.lease_seconds(request.lease_seconds)
        trials = leases.apply_claim(tx, row, claim, worker=worker, now=now, seconds=seconds, key=key)
        points = tx.points(study.id, [trial.number for trial in trials]) if trials else {}
        made: list[TrialRow] = []
        if lanes:
            made = self._insert(tx, row, step, lanes, points, request, now, seconds, claim.n_new, reuse)
        elif untold:
            made = self._insert_untold(tx, row, points, request, now, seconds, claim.n_new)
            reason = reason or EXHAUSTED
        trials += [trial for trial in made if trial.state == LEASED]
        row.asks += 1
        if claim.lost:
            ledger.end_if_spent(tx, row, study.spec, now)
        tx.put_study(row)
        granted = tuple(
            Lease(trial, points[trial.number], leases.token(study.head.secret, trial.number, trial.attempt))
            for trial in trials
        )
        self._known.remember_leases(granted)
        full = len(granted) >= count
        answer = AskAnswer(granted, count, None if full else reason, None if full else 1.0, row)
        n_answered = sum(trial.state != LEASED for trial in made) if reuse else 0
        return Reused(answer, n_answered) if n_answered else answer

    def _missing(self, row: StudyRow, step: OpenStep, lanes: Sequence[int], pending: Pending) -> PointsMissing | None:
        """The points that must be computed outside before these lanes can be granted; None if there are none."""
        old = self._study.traits.uses_pending and step.asks != row.asks
        lacking = lanes if old else [lane for lane in lanes if lane not in step.points]
        if not lacking:
            return None
        missing = PointsMissing(step, lacking, pending, row.asks)
        return missing if old or not self._add_at_once(missing) else None

    def _add_at_once(self, missing: PointsMissing) -> bool:
        """Compute points inside the transaction, if the algorithm is fast; its errors are left to be raised outside."""
        step, lanes = missing.open_step, missing.open_step.lanes_to_compute(missing.lanes)
        if not self._pace.may_ask(len(lanes)):
            return False
        try:
            if not step.points:
                step.blobs = step.vectors()
            step.points.update(zip(lanes, step.compute(lanes, missing.pending), strict=True))
        except Exception:
            return False
        return True

    def _insert(
        self,
        tx: Tx,
        row: StudyRow,
        step: OpenStep,
        lanes: Sequence[int],
        stored: dict[int, PointRow],
        request: AskRequest,
        now: float,
        seconds: float,
        n: int,
        reuse: bool,
    ) -> list[TrialRow]:
        """Insert trials for lanes whose points are known; adds the points to `stored` and returns the trials.

        The first n are leased; with `reuse` those are answered instead whose point was told before.
        """
        study = self._study.id
        trials: list[TrialRow] = []
        points: list[PointRow] = []
        for lane in lanes:
            if n == 0:
                break
            row.trials += 1
            ready = step.points[lane]
            trial = TrialRow(study, row.trials, step.state.step, lane, ready.replicate, asked_at=now)
            told = self.repeats.find(ready.params) if reuse and not ready.replicate else None
            if told is None:
                leases.lease_to(trial, worker=request.worker, now=now, seconds=seconds, key=request.key)
                row.leased += 1
                n -= 1
            else:
                ledger.reuse(row, trial, told.value, now)
                trial.worker, trial.extra = told.worker, told.extra_of_copy()
            point = PointRow(study, row.trials, ready.vector, ready.recipe, ready.params, ready.note, ready.payload)
            trials.append(trial)
            points.append(point)
            stored[trial.number] = point
        if not step.blobs_stored:
            for name, place, content in step.blobs:
                tx.put_blob(study, name, place, content)
        tx.insert_trials(trials, points)
        if self._study.kind == "group":
            row.lanes = max(row.lanes, trials[-1].lane + 1)
        return trials

    def _insert_untold(
        self,
        tx: Tx,
        row: StudyRow,
        stored: dict[int, PointRow],
        request: AskRequest,
        now: float,
        seconds: float,
        n: int,
    ) -> list[TrialRow]:
        """Insert and lease trials for at most n points that nobody has told; adds the points to `stored`."""
        trials, points = [], []
        for vector, params in self.repeats.untold(tx, row, n):
            row.trials += 1
            trial = TrialRow(row.id, row.trials, row.step, -row.trials, asked_at=now, source=UNTOLD)
            leases.lease_to(trial, worker=request.worker, now=now, seconds=seconds, key=request.key)
            row.leased += 1
            trials.append(trial)
            points.append(PointRow(row.id, row.trials, vector, None, params))
            stored[trial.number] = points[-1]
        if trials:
            tx.insert_trials(trials, points)
        return trials

    def _pending(self, tx: Tx, row: StudyRow, step: OpenStep) -> Pending:
        """The queued and leased trials, as far as the algorithm looks at them."""
        study = self._study
        if study.kind == "group" and not study.traits.uses_pending:
            nothing = NOTHING_PENDING
            return Pending(nothing.step, nothing.lane, nothing.note, nothing.points, row.lanes)
        trials = [trial for trial in tx.open_trials(study.id) if trial.lane >= 0]
        trials.sort(key=lambda trial: (trial.step, trial.lane))
        points = None
        note = np.empty((len(trials), 0), dtype=np.int64)
        if study.traits.uses_pending:
            stored = tx.points(study.id, [trial.number for trial in trials])
            points = log.points_of([stored[trial.number] for trial in trials], study.space.dim, study.traits.encoding)
            note = points.note
        return Pending(
            np.array([trial.step for trial in trials], dtype=np.int64),
            np.array([trial.lane for trial in trials], dtype=np.int64),
            note,
            points,
            row.lanes,
            tx.lanes_at(study.id, step.state.step),
        )

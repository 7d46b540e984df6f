"""Recording closed steps inside a transaction: their records, the new row, and the cleanup of what they needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from blackbox.algorithm import Algorithm
from blackbox.study import history, ledger, log
from blackbox.study.answers import StepsClosed
from blackbox.study.known import Known
from blackbox.study.open_step import OpenStep, position_of
from blackbox.study.pace import Pace
from blackbox.study.reading import RecordedStudy
from blackbox.study.rows import COMPLETED, FAILED, SnapshotRow, StepRow, StudyRow, Tx


class Closer:
    """Closes the steps of one open study.

    Parameters
    ----------
    study : the study.
    known : is told of every step that is opened.
    pace : says whether steps may be computed inside the transaction, and when a snapshot is due.
    """

    def __init__(self, study: RecordedStudy, known: Known, pace: Pace) -> None:
        self._study, self._known, self._pace = study, known, pace

    def due(self, row: StudyRow) -> bool:
        """Whether a step of this row may close: enough results are waiting, or the open step is not known here."""
        if self._study.stuck:
            return False
        step = self._known.step_of(row)
        return step is None or 0 < row.waiting >= step.algorithm.need(step.state)

    def oldest(self, row: StudyRow) -> int:
        """The first step whose results the algorithm takes, as far as it is known here."""
        step = self._known.step_of(row)
        if step is not None:
            return step.algorithm.oldest(step.state)
        return row.step if self._study.kind == "group" else 0

    def stand(self, tx: Tx, row: StudyRow, last: log.ClosedStep) -> bool:
        """Whether all results that the closed steps consumed are where they were: a failure may have become a value."""
        return len(tx.told(row.id, row.upto_seq, last.upto_seq)) == last.consumed

    def close_at_once(
        self, tx: Tx, row: StudyRow, results: Sequence[log.LoggedResult], now: float
    ) -> StepsClosed | None:
        """Close the steps that these results complete in the same transaction, if the algorithm is fast.

        Exceptions of the algorithm are left for `advance` to raise again: a received result must be stored.
        """
        step = self._known.step_of(row)
        if step is None or row.state == FAILED:
            return None
        if not self._pace.may_close(len(results) / step.algorithm.need(step.state)):
            return None
        try:
            closed = log.advance(step.algorithm, step.state, results, self._study.maximize)
        except Exception:
            return None
        if not closed:
            return None
        self._pace.closed_at_once()
        return self.close(tx, row, step.algorithm, closed, now)

    def close(
        self, tx: Tx, row: StudyRow, algorithm: Algorithm[Any, Any], closed: Sequence[log.ClosedStep], now: float
    ) -> StepsClosed:
        """Record closed steps and update the row, which the caller writes."""
        study, last = self._study.id, closed[-1]
        state, step = last.state, last.step + 1
        results = self._known.results(row)
        records = []
        for item in closed:
            row.seq += 1
            records.append(StepRow(study, item.step, item.upto_seq, item.why, item.digest, row.seq, now, item.told))
        tx.insert_steps(records)
        row.step, row.upto_seq, row.lanes = step, last.upto_seq, 0
        row.waiting -= last.consumed
        oldest = self._withdraw(tx, row, algorithm, state)
        if self._study.traits.encoding == "recipe":
            self._drop_bases(tx, row)
        snapshot = self._pace.snapshot_due(closed[0].step, step)
        if snapshot:
            tx.insert_snapshot(SnapshotRow(study, row.epoch, step, last.encoded))
            tx.keep_snapshots(study, row.epoch, history.worth_keeping(tx.snapshot_steps(study, row.epoch)))
        stop = algorithm.stopped(state)
        if stop is not None:
            ledger.finish(tx, row, COMPLETED, stop.reason, now)
        opened = OpenStep(position_of(row), self._study.algorithm(row), state)
        self._known.steps_closed(row, opened, None if results is None else results[last.consumed :], oldest)
        return StepsClosed(row, opened, len(closed), snapshot)

    def _withdraw(self, tx: Tx, row: StudyRow, algorithm: Algorithm[Any, Any], state: Any) -> int | None:
        """Withdraw queued trials of closed steps, and leases whose results the algorithm no longer accepts.

        Returns the first step whose leases stay valid, or None if no lease was withdrawn.
        """
        if self._study.kind != "group" or not row.leased + row.queued:
            return None
        oldest = algorithm.oldest(state)
        queued, leased = tx.supersede(self._study.id, row.step if row.queued else 0, oldest)
        row.queued -= queued
        row.leased -= leased
        row.withdrawn += leased
        return oldest if leased else None

    def _drop_bases(self, tx: Tx, row: StudyRow) -> None:
        """Drop the vectors that are named neither by an open trial nor by the best one."""
        study = self._study.id
        steps = {trial.step for trial in tx.open_trials(study)}
        best = tx.trial(study, row.best_trial) if row.best_trial is not None else None
        if best is not None:
            steps.add(best.step)
        # Vectors of the step just closed stay for workers that hold a lease of it and have yet to fetch them.
        steps |= {row.step - 1, row.step}
        tx.drop_blobs(study, row.step - 1, steps | {log.factor_key(step) for step in steps})

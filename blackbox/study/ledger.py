"""Bookkeeping of a study's row: its counters, the sequence of its log, its best trial, its end.

Functions of one transaction. Every change of trials goes through these, so that counters and log agree with the rows.
"""

from __future__ import annotations

import json
from typing import Any

from blackbox.errors import StudyNotFound
from blackbox.study.health import Tally
from blackbox.study.rows import (
    ACTIVE,
    COMPLETED,
    ENQUEUED,
    FAILED,
    INFEASIBLE,
    LEASED,
    QUEUED,
    REPLICATE,
    REUSED,
    START,
    STOPPED,
    UNTOLD,
    EventRow,
    StudyRow,
    TrialRow,
    Tx,
)
from blackbox.study.spec import StudySpec

LOST = "lost"
"""Type of the error of a trial whose leases lapsed too often."""
PAID_SOURCES = (START, ENQUEUED, REPLICATE, UNTOLD)
"""Sources of points that the algorithm did not choose and the study evaluates all the same."""


def locked(tx: Tx, study: str) -> StudyRow:
    """The study's row, to be changed in this transaction.

    Raises
    ------
    StudyNotFound
        If the study does not exist (any more).
    """
    row = tx.study(study)
    if row is None:
        raise StudyNotFound(f"there is no study {study}")
    return row


def log_event(tx: Tx, row: StudyRow, kind: str, now: float, **facts: Any) -> None:
    """Append an event of the study itself to its log."""
    row.seq += 1
    tx.insert_event(EventRow(row.id, row.seq, kind, now, json.dumps(facts, sort_keys=True)))


def finish(tx: Tx, row: StudyRow, state: str, reason: str, now: float) -> None:
    """End (or pause) an active study and log the reason; a study that is not active is left as it is."""
    if row.state == ACTIVE:
        row.state, row.reason = state, reason
        log_event(tx, row, f"study.{state.lower()}", now, reason=reason)


def uncount(row: StudyRow, trial: TrialRow) -> None:
    """Subtract an open trial from the study's counters."""
    if trial.state == QUEUED:
        row.queued -= 1
    elif trial.state == LEASED:
        row.leased -= 1


def spend(row: StudyRow, *, late: bool = False) -> None:
    """Count one evaluation that was made: it was paid for, whatever came of it.

    Results, failed attempts and the values that come too late count one each; so does a trial that fails because its
    leases lapsed. Released leases, points with their values (injected, copied into a fork) and values taken from the
    archive cost nothing.

    A lease that has lapsed stands in nobody's way, so its evaluation is granted again; if its value comes after all, it
    counts too. So `used` exceeds a budget by at most the number of lapsed leases.
    """
    row.used += 1
    row.late += late


def lost(trial: TrialRow) -> bool:
    """Whether a trial is FAILED only because its leases lapsed: a timer's word, not an evaluator's."""
    if trial.state != FAILED or not trial.extra or trial.lost == 0:
        return False
    error = json.loads(trial.extra).get("error")
    return isinstance(error, dict) and error.get("type") == LOST


def spent(trial: TrialRow) -> int:
    """Number of evaluations that a trial's row accounts for; values told beside its result are counted with the log."""
    if trial.source == REUSED or (trial.lane < 0 and trial.source not in PAID_SOURCES):
        return 0
    told = trial.seq is not None and (trial.state != FAILED or lost(trial))
    return trial.failures + told


def close_trial(row: StudyRow, trial: TrialRow, state: str, value: float | None, now: float) -> None:
    """Give a trial its final state and its place in the log. The caller has subtracted it with `uncount`."""
    row.seq += 1
    row.waiting += 1
    spend(row)
    trial.state, trial.value, trial.seq, trial.told_at, trial.until = state, value, row.seq, now, None


def reuse(row: StudyRow, trial: TrialRow, value: float | None, now: float) -> None:
    """Close a new trial with the value of an earlier one of the same point (None: infeasible), which costs nothing."""
    row.seq += 1
    row.waiting += 1
    trial.state, trial.source = INFEASIBLE if value is None else COMPLETED, REUSED
    trial.value, trial.seq, trial.told_at = value, row.seq, now


def improves(row: StudyRow, spec: StudySpec, trial: TrialRow) -> bool:
    """Record a trial as the best one if it is better than the best so far; returns whether it was."""
    if trial.value is None or trial.state == STOPPED:
        return False
    sign = 1.0 if spec.direction == "minimize" else -1.0
    if row.best_value is not None and sign * trial.value >= sign * row.best_value:
        return False
    row.best_trial, row.best_value = trial.number, trial.value
    return True


def may_end(spec: StudySpec) -> bool:
    """Whether the study has a target or a limit that could complete it, apart from its algorithm."""
    budget = spec.budget
    limits = (spec.target, budget.evaluations, budget.max_cost, budget.deadline)
    return any(limit is not None for limit in limits)


def end_if_spent(tx: Tx, row: StudyRow, spec: StudySpec, now: float, tally: Tally | None = None) -> None:
    """Complete the study if its target, its budget of evaluations or cost, or its deadline is reached.

    Parameters
    ----------
    tally : what was counted, if that is not on the row yet.
    """
    if spec.target is not None and row.best_value is not None:
        sign = 1.0 if spec.direction == "minimize" else -1.0
        if sign * row.best_value <= sign * spec.target:
            finish(tx, row, COMPLETED, "target", now)
    if spec.budget.evaluations is not None and row.used >= spec.budget.evaluations:
        tally = tally or Tally.of(row)
        if tally.only_failures and row.best_trial is None:
            finish(tx, row, FAILED, tally.verdict(f"the budget is spent: {tally.failing} evaluations"), now)
        finish(tx, row, COMPLETED, "budget", now)
    if spec.budget.max_cost is not None and row.cost >= spec.budget.max_cost:
        finish(tx, row, COMPLETED, "max_cost", now)
    if spec.budget.deadline is not None and now >= spec.budget.deadline.timestamp():
        finish(tx, row, COMPLETED, "deadline", now)

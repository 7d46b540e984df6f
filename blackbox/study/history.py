"""A study's past, as functions of one transaction: reading segments of the log, and copying it into a fork."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from blackbox.study import ledger, log
from blackbox.study.health import Tally
from blackbox.study.rows import (
    CANCELLED,
    REUSED,
    STOPPED,
    SUPERSEDED,
    VALUED,
    LateRow,
    PointRow,
    SnapshotRow,
    StepRow,
    StudyHead,
    StudyRow,
    TrialRow,
    Tx,
)

MAX_SEQ = 2**62


def results(tx: Tx, study: str, after_seq: int, upto_seq: int) -> list[log.LoggedResult]:
    """Told results with seq in (after_seq, upto_seq] and their points, in log order."""
    trials = tx.told(study, after_seq, upto_seq)
    points = tx.points(study, [trial.number for trial in trials]) if trials else {}
    return [(trial, points[trial.number]) for trial in trials]


def newest(tx: Tx, row: StudyRow, n: int) -> list[log.LoggedResult]:
    """The newest valid results with values, at most n, and the best one; in log order.

    Step records and events share the sequence of results, so up to twice n numbers of it are looked at.
    """
    trials = [
        trial for trial in tx.told(row.id, max(0, row.seq - 2 * n), row.seq) if trial.value is not None
        and not trial.invalid and trial.state != STOPPED
    ][-n:]  # fmt: skip
    if row.best_trial is not None and all(trial.number != row.best_trial for trial in trials):
        best = tx.trial(row.id, row.best_trial)
        trials = trials if best is None else [best, *trials]
    points = tx.points(row.id, [trial.number for trial in trials])
    return [(trial, points[trial.number]) for trial in trials if points[trial.number].vector is not None]


def waiting(tx: Tx, study: str, after_seq: int) -> tuple[StudyRow | None, list[log.LoggedResult]]:
    """The study's row (None if it was deleted) and every result after a place in the log."""
    return tx.study(study), results(tx, study, after_seq, MAX_SEQ)


def segment(tx: Tx, study: str, first: int, before: int) -> tuple[list[StepRow], list[log.LoggedResult]]:
    """Records of the steps first .. before - 1, and the results they consumed or passed over, in log order."""
    steps = tx.steps(study, first, before)
    if not steps:
        return [], []
    earlier = tx.steps(study, first - 1, first) if first else []
    return steps, results(tx, study, earlier[0].upto_seq if earlier else 0, steps[-1].upto_seq)


def worth_keeping(steps: Sequence[int]) -> list[int]:
    """The steps of the two newest snapshots, and of older ones at exponentially growing distances."""
    kept: list[int] = []
    for step in sorted(steps, reverse=True):
        if len(kept) < 2 or kept[0] - step >= 2 * (kept[0] - kept[-1]):
            kept.append(step)
    return kept


def copy(
    tx: Tx,
    parent: str,
    head: StudyHead,
    at: int,
    stream: int | None,
    seen: StudyRow,
    maximize: bool,
    rebuilt: Mapping[int, bytes],
    snapshot: SnapshotRow | None,
) -> None:
    """Insert the rows of a fork: with a stream the log itself, without one the parent's results as injected points.

    Parameters
    ----------
    parent, head : id of the parent, and the head of the fork.
    at : the step at which it branches.
    stream : the noise stream of the fork; None: another algorithm starts anew.
    seen : the parent's row.
    maximize : whether larger values are better.
    rebuilt : points of recipes as numbers, for a fork without a stream; a result whose point is missing is left out.
    snapshot : of a state of the parent at or before `at`, if there is one.
    """
    records = tx.steps(parent, 0, at)
    last, upto = (records[-1].seq, records[-1].upto_seq) if records else (0, 0)
    if stream is None:
        upto = 0  # another algorithm has consumed nothing yet
    row = StudyRow(head.id)
    Tally.of(seen).of_fork().store(row)
    trials: list[TrialRow] = []
    points: list[PointRow] = []
    numbers: dict[int, int] = {}
    copied = results(tx, parent, 0, seen.seq if stream is None else last)
    late = [] if stream is None else [row for row in tx.late(parent, 0, MAX_SEQ) if row.seq <= last]
    for trial, point in [*copied, *_without_result(tx, parent, late, {trial.number for trial, _ in copied})]:
        if stream is None and point.vector is None and trial.number not in rebuilt:
            continue
        if stream is None and trial.source == REUSED:
            continue  # it says nothing that the trial it copies does not say
        row.trials += 1
        numbers[trial.number] = row.trials
        moved = replace(trial, study=head.id, number=row.trials, ask_key=None)
        if stream is None:
            row.seq += 1
            moved.seq, moved.step, moved.lane, moved.source = row.seq, 0, -row.trials, f"fork of {parent}"
        elif trial.lane < 0:
            moved.lane = -row.trials
        row.waiting += (moved.seq or 0) > upto
        trials.append(moved)
        points.append(replace(point, study=head.id, number=row.trials))
        if trial.number in rebuilt:
            points[-1] = replace(points[-1], vector=rebuilt[trial.number], recipe=None, note=b"")
    if stream is not None:
        row.step, row.seq, row.upto_seq, row.epoch = at, last, upto, seen.epoch
        lineage = [entry for entry in json.loads(seen.lineage) if entry[0] < at]
        row.lineage = json.dumps([*lineage, [at, stream]], separators=(",", ":"))
        counted = [t for t in trials if t.seq is not None and not t.invalid]
        row.late = sum(t.state in (SUPERSEDED, CANCELLED) for t in counted) + len(late)
        row.used = sum(ledger.spent(t) for t in counted) + len(late)
    sign = -1.0 if maximize else 1.0
    valued = [(sign * t.value, t.number) for t in trials if t.value is not None and _can_be_best(t)]
    best = trials[min(valued)[1] - 1] if valued else None
    if best is not None:
        row.best_trial, row.best_value = best.number, best.value
    tx.insert_study(head, row)
    if trials:
        tx.insert_trials(trials, points)
    if stream is None:
        return
    tx.insert_steps([replace(record, study=head.id) for record in records])
    for event in tx.events(parent, 0, last):
        if event.seq <= last:
            tx.insert_event(replace(event, study=head.id))
    for value in late:
        tx.insert_late(replace(value, study=head.id, number=numbers[value.number]))
    if snapshot is not None:
        tx.insert_snapshot(replace(snapshot, study=head.id, epoch=row.epoch))
    needed = {at} if best is None else {at, best.step}
    for trial, point in zip(trials, points, strict=True):
        if trial.step not in needed or point.recipe is None:
            continue
        base = json.loads(point.recipe)["base"]
        for name in log.named_blobs(point):
            blob = tx.blob(parent, name)
            if blob is not None:
                tx.put_blob(head.id, name, trial.step if name == base else log.factor_key(trial.step), blob)


def _without_result(tx: Tx, study: str, late: Sequence[LateRow], known: set[int]) -> list[log.LoggedResult]:
    """Withdrawn trials with late values but, up to that point of the log, no result of their own; as they were then."""
    numbers = sorted({row.number for row in late} - known)
    points = tx.points(study, numbers) if numbers else {}
    return [
        (replace(trial, seq=None, value=None, told_at=None, extra=None), points[number])
        for number, trial in sorted(tx.trials(study, numbers).items())
    ]


def stderr(extra: str | None) -> float:
    """The told standard error of a value, NaN where there is none."""
    told = json.loads(extra).get("stderr") if extra else None
    return float(told) if isinstance(told, int | float) else math.nan


def _can_be_best(trial: TrialRow) -> bool:
    return not trial.invalid and trial.state in VALUED

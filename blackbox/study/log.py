"""The log as the truth: which results close a step, the batch that `tell` gets, and the states that follow.

A study's log is one gap-free sequence of told results, step records and study events. A step closes at the first result
that completes what the method needs; the record keeps the sequence number of that result. Replay therefore calls `tell`
on recorded batches; it never asks, and never decides again where a step closed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from blackbox import codec
from blackbox.algorithm import Algorithm
from blackbox.recipes import from_json as recipe_from_json
from blackbox.records import Dense, Points, Recipes, Results, Structured
from blackbox.study.rows import COMPLETED, FAILED, INFEASIBLE, REPLICATE, START, STOPPED, PointRow, StepRow, TrialRow

LoggedResult = tuple[TrialRow, PointRow]
"""A trial with a result in the log, and its point."""


def accepts(algorithm: Algorithm[Any, Any], oldest: int, trial: TrialRow) -> bool:
    """Whether a told trial is among the results that `tell` takes (and, with lane >= 0, that close the step).

    Parameters
    ----------
    oldest : `Algorithm.oldest` of the open step's state.
    """
    if trial.invalid:
        return False
    if trial.state == FAILED:
        return algorithm.traits.sequential and trial.lane == 0
    if trial.state not in (COMPLETED, INFEASIBLE, STOPPED):
        return False
    if trial.lane < 0:
        # A replicate is no news of another point. Of the start an algorithm learns nothing new of directions, and it
        # would count as a step of length zero.
        return algorithm.traits.injects and trial.source not in (START, REPLICATE)
    return trial.step >= oldest


def closing(algorithm: Algorithm[Any, Any], state: Any, told: Sequence[LoggedResult]) -> int | None:
    """The number of told results that close the open step, or None if they do not suffice.

    Parameters
    ----------
    told : the results after the last closed step, by seq.
    """
    need, oldest = algorithm.need(state), algorithm.oldest(state)
    sequential = algorithm.traits.sequential
    for index, (trial, _) in enumerate(told):
        if trial.lane >= 0 and accepts(algorithm, oldest, trial) and (trial.lane == 0 or not sequential):
            need -= 1
            if need == 0:
                return index + 1
    return None


def batch(algorithm: Algorithm[Any, Any], state: Any, told: Sequence[LoggedResult], maximize: bool) -> Results:
    """The batch that `tell` gets of one step: the accepted results by (step, lane), values to be minimised."""
    oldest = algorithm.oldest(state)
    rows = sorted((pair for pair in told if accepts(algorithm, oldest, pair[0])), key=lambda p: (p[0].step, p[0].lane))
    sign = -1.0 if maximize else 1.0
    values = np.empty((len(rows), 1))
    for i, (trial, _) in enumerate(rows):
        if trial.state == FAILED:
            values[i] = np.inf
        else:
            values[i] = np.nan if trial.value is None else sign * trial.value
    return Results(
        step=np.array([trial.step for trial, _ in rows], dtype=np.int64),
        lane=np.array([trial.lane for trial, _ in rows], dtype=np.int64),
        points=points_of([point for _, point in rows], algorithm.space.dim, algorithm.traits.encoding),
        values=values,
        extra=tuple(json.loads(trial.extra) if trial.extra else {} for trial, _ in rows),
    )


def points_of(rows: Sequence[PointRow], dim: int, encoding: str) -> Points:
    """Stored points as the `Points` they were asked as; `encoding` is that of the algorithm's traits."""
    width = max((len(row.note) for row in rows), default=0) // 8
    note = np.zeros((len(rows), width), dtype=np.int64)
    for i, row in enumerate(rows):
        if row.note:
            note[i] = np.frombuffer(row.note, dtype="<i8")
    payload = tuple(json.loads(row.payload) if row.payload else None for row in rows)
    kept = payload if any(item is not None for item in payload) else ()
    if encoding == "recipe":
        return Recipes(tuple(recipe_from_json(json.loads(row.recipe or "{}")) for row in rows), note=note, payload=kept)
    if encoding == "structured":
        return Structured(tuple(row.params or "{}" for row in rows), note=note, payload=kept)
    vectors = np.empty((len(rows), dim))
    for i, row in enumerate(rows):
        vectors[i] = np.frombuffer(row.vector or b"", dtype="<f8")
    return Dense(vectors, note=note, payload=kept)


def named_blobs(point: PointRow) -> tuple[str, ...]:
    """Digests of the vectors that a stored recipe names; () for a point that is stored as numbers."""
    if point.vector is not None or point.recipe is None:
        return ()
    recipe = json.loads(point.recipe)
    names = [recipe["base"], *(op.get("weight") for op in recipe["ops"])]
    return tuple(dict.fromkeys(name for name in names if name is not None))


def factor_key(step: int) -> int:
    """The step under which the factors of a step's recipes are stored: apart from its base, which is found by step."""
    return step - 2**62


@dataclass(frozen=True, slots=True)
class ClosedStep:
    """One step closed in memory, not yet recorded.

    Attributes
    ----------
    step : number of the closed step; the state after it counts one more.
    upto_seq : seq of the result that closed it.
    consumed : results after the last recorded step that this step and those closed before it took or passed over.
    why : `need`, or the caller's reason.
    digest : digest of the state after the step.
    told : number of results that the algorithm was told.
    state, encoded : the state after the step, as an object and as bytes.
    """

    step: int
    upto_seq: int
    consumed: int
    why: str
    digest: str
    told: int
    state: Any
    encoded: bytes


def advance(
    algorithm: Algorithm[Any, Any], state: Any, told: Sequence[LoggedResult], maximize: bool, limit: int = 256
) -> list[ClosedStep]:
    """Close in memory every step that the told results complete, in order, at most `limit`."""
    steps: list[ClosedStep] = []
    at = 0
    for _ in range(limit):
        count = closing(algorithm, state, told[at:])
        if count is None:
            break
        results = batch(algorithm, state, told[at : at + count], maximize)
        upto = told[at + count - 1][0].seq
        assert upto is not None
        at += count
        closed = close(algorithm, state, results, upto, at, "need")
        state = closed.state
        steps.append(closed)
    return steps


def close(
    algorithm: Algorithm[Any, Any], state: Any, results: Results, upto_seq: int, consumed: int, why: str
) -> ClosedStep:
    """Tell one batch, which closes a step in memory; the arguments are fields of `ClosedStep`."""
    after = algorithm.tell(state, results)
    encoded = codec.encode(after)
    return ClosedStep(state.step, upto_seq, consumed, why, codec.digest(encoded), len(results), after, encoded)


def replay(
    algorithms: Sequence[tuple[int, Algorithm[Any, Any]]],
    state: Any,
    steps: Sequence[StepRow],
    told: Sequence[LoggedResult],
    maximize: bool,
) -> Iterator[tuple[StepRow, Any, str]]:
    """States after recorded steps.

    Parameters
    ----------
    algorithms : (first step, instance) in ascending order: a fork continues with another noise stream.
    state : the state before `steps[0]`.
    steps : contiguous step records.
    told : the results in the log after the record before `steps[0]`, by seq.

    Yields
    ------
    The record, the state after it, and that state's digest.
    """
    at = 0
    for record in steps:
        algorithm = algorithm_at(algorithms, record.step)
        start = at
        while at < len(told) and (told[at][0].seq or 0) <= record.upto_seq:
            at += 1
        state = algorithm.tell(state, batch(algorithm, state, told[start:at], maximize))
        yield record, state, codec.digest_like(record.digest, codec.encode(state))


def algorithm_at(algorithms: Sequence[tuple[int, Algorithm[Any, Any]]], step: int) -> Algorithm[Any, Any]:
    """The instance in charge of a step, of (first step, instance) in ascending order."""
    return next(algorithm for first, algorithm in reversed(algorithms) if first <= step)

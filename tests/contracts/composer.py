"""A method made of two methods: the proof that composed methods fit the one contract.

Each lane goes to the arm that has fewer lanes out; `note` keeps which arm it went to and that arm's own (step, lane).
An arm is told its own results when as many are in as it needs, at its own step, as if it were alone. Copy this to
compose other methods. It is registered by a fixture only (`registered`), never by an import.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from blackbox import codec
from blackbox.algorithm import ALGORITHMS, Algorithm, Traits, algorithm, build, lookup, resolve_options
from blackbox.options import Field, Options
from blackbox.records import NOTHING_PENDING, Ints, Matrix, Pending, Points, Results, Vector, dense
from blackbox.registry import UNKNOWN, Outlook
from blackbox.rng import Key
from blackbox.space import Space

HEAD = 3  # numbers of a note before the arm's own: arm, the arm's step, the arm's lane
STRIDE = 1 << 20  # arm lanes that one step of the composer may use


class TwoArmsOptions(Options):
    """Options of the composer."""

    arms: tuple[str, str] = ("cma_es", "random_search")
    """Names of two registered dense methods that work in steps."""
    options: tuple[dict[str, Any], dict[str, Any]] = Field(({}, {}))
    """Their options; what is left out gets the default that fits the problem."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Results of an arm that are in but not yet told to it. n rows.

    Attributes
    ----------
    step, lane : (n,) the arm's own.
    note : (n, m) the arm's own.
    vectors, values : (n, d) and (n, 1); NaN is a point without a value.
    """

    step: Ints
    lane: Ints
    note: Ints
    vectors: Matrix
    values: Matrix

    def take(self, rows: Any) -> Waiting:
        return Waiting(self.step[rows], self.lane[rows], self.note[rows], self.vectors[rows], self.values[rows])


@dataclass(frozen=True, slots=True)
class TwoArmsState:
    """State of the composer between two steps.

    Attributes
    ----------
    step : steps closed.
    arms : the encoded state of each arm, uint8: its class is not known here, and equal states have equal bytes.
    opened : the composer's step at which each arm opened the step it is in.
    waiting : what is in for each arm.
    best : lowest value told by each arm, or None.
    """

    step: int
    arms: tuple[np.ndarray, ...]
    opened: tuple[int, ...]
    waiting: tuple[Waiting, ...]
    best: tuple[float | None, ...]


TRAITS = Traits(uses_pending=True)


class TwoArms(Algorithm[TwoArmsOptions, TwoArmsState]):
    """Two methods that share workers evenly; the one with the best value so far is recommended.

    After the star design of blackbox (2026): an arm is any registered method, reached by `lookup` and `build` only.
    """

    name = "two_arms"
    traits = TRAITS
    Options = TwoArmsOptions
    State = TwoArmsState

    def __init__(self, space: Space, options: TwoArmsOptions, key: Key, stream: int = 0) -> None:
        super().__init__(space, options, key, stream)
        self.arms: list[Algorithm[Any, Any]] = []
        for i, (name, raw) in enumerate(zip(options.arms, options.options, strict=True)):
            arm = build(name, space, resolve_options(name, space, raw), key.child("arm", i), stream)
            if arm.traits.kind != "group" or arm.traits.encoding != "dense" or arm.traits.uses_pending:
                raise ValueError(f"an arm must be a dense method that works in steps, {name} is not")
            self.arms.append(arm)

    @classmethod
    def resolve(cls, options: TwoArmsOptions, space: Space, outlook: Outlook = UNKNOWN) -> TwoArmsOptions:
        full = [resolve_options(n, space, o).model_dump() for n, o in zip(options.arms, options.options, strict=True)]
        return options.model_copy(update={"options": (full[0], full[1])})

    def init(self) -> TwoArmsState:
        d = self.space.dim
        none = np.empty(0, dtype=np.int64)
        empty = Waiting(none, none, np.empty((0, 0), dtype=np.int64), np.empty((0, d)), np.empty((0, 1)))
        return TwoArmsState(0, tuple(_packed(arm.init()) for arm in self.arms), (0, 0), (empty, empty), (None, None))

    def need(self, state: TwoArmsState) -> int:
        """A step closes as soon as an arm could close its own."""
        return min(
            max(1, arm.need(own) - len(waiting.step))
            for arm, own, waiting in zip(self.arms, self._states(state), state.waiting, strict=True)
        )

    def oldest(self, state: TwoArmsState) -> int:
        return 0  # an arm's step spans several of ours; `tell` leaves out what the arm itself would not take

    def ask(self, state: TwoArmsState, lanes: Sequence[int], pending: Pending) -> Points:
        arms = self._routes(lanes, pending)
        states = self._states(state)
        vectors = np.empty((len(lanes), self.space.dim))
        notes: list[list[int]] = [[] for _ in lanes]
        for i, (arm, own) in enumerate(zip(self.arms, states, strict=True)):
            rows = [row for row, chosen in enumerate(arms) if chosen == i]
            # Unique within the arm's step, which may have been open for several of ours, without knowing what was lost.
            at = STRIDE * (state.step - state.opened[i])
            own_lanes = [at + int(lanes[row]) for row in rows]
            points = arm.ask(own, own_lanes, NOTHING_PENDING)
            vectors[rows] = points.vectors
            for row, lane, note in zip(rows, own_lanes, points.note.tolist(), strict=True):
                notes[row] = [i, own.step, lane, *note]
        width = max(map(len, notes), default=0)
        note = np.array([row + [0] * (width - len(row)) for row in notes], dtype=np.int64).reshape(len(lanes), width)
        return dense(vectors, note)

    def tell(self, state: TwoArmsState, results: Results) -> TwoArmsState:
        if not len(results):
            return replace(state, step=state.step + 1)
        arms, opened, waiting, best = list(state.arms), list(state.opened), list(state.waiting), list(state.best)
        for i, (arm, own) in enumerate(zip(self.arms, self._states(state), strict=True)):
            rows = (results.points.note[:, 0] == i).nonzero()[0]
            queue = _appended(state.waiting[i], results.take(rows))
            finite = results.scalar[rows][np.isfinite(results.scalar[rows])]
            if len(finite):
                known = best[i]
                best[i] = float(finite.min()) if known is None else min(known, float(finite.min()))
            queue = queue.take(queue.step >= arm.oldest(own))
            while len(queue.step) >= arm.need(own):
                own = arm.tell(own, _results(queue))
                arms[i], opened[i], queue = _packed(own), state.step + 1, queue.take(slice(0, 0))
            waiting[i] = queue
        return TwoArmsState(state.step + 1, tuple(arms), tuple(opened), tuple(waiting), tuple(best))

    def recommend(self, state: TwoArmsState) -> Vector:
        values = [math.inf if value is None else value for value in state.best]
        i = values.index(min(values))
        return self.arms[i].recommend(self._states(state)[i])

    def metrics(self, state: TwoArmsState) -> Mapping[str, float]:
        steps = {f"arm_{i}_step": float(own.step) for i, own in enumerate(self._states(state))}
        return steps | {f"arm_{i}_best": value for i, value in enumerate(state.best) if value is not None}

    def _states(self, state: TwoArmsState) -> list[Any]:
        return [codec.decode(arm.State, raw.tobytes()) for arm, raw in zip(self.arms, state.arms, strict=True)]

    @staticmethod
    def _routes(lanes: Sequence[int], pending: Pending) -> list[int]:
        """The arm of each lane: the one with fewer out, lane by lane from the first unused one.

        It depends on the lane and on what is out, not on which other lanes are asked with it.
        """
        out = [0, 0]
        if pending.note.shape[1] >= HEAD:
            out = np.bincount(pending.note[:, 0], minlength=2).tolist()
        routes: dict[int, int] = {}
        for lane in range(min([pending.fresh, *lanes]), max(lanes, default=-1) + 1):
            routes[lane] = 0 if out[0] <= out[1] else 1
            out[routes[lane]] += 1
        return [routes[lane] for lane in lanes]


def _packed(state: Any) -> np.ndarray:
    return np.frombuffer(codec.encode(state), dtype=np.uint8)


def _appended(queue: Waiting, results: Results) -> Waiting:
    """The queue with an arm's new results, by the arm's (step, lane)."""
    note = results.points.note
    own = note[:, HEAD:]
    width = max(queue.note.shape[1], own.shape[1])
    padded = [np.pad(rows, ((0, 0), (0, width - rows.shape[1]))) for rows in (queue.note, own)]
    every = Waiting(
        np.concatenate([queue.step, note[:, 1]]),
        np.concatenate([queue.lane, note[:, 2]]),
        np.concatenate(padded),
        np.concatenate([queue.vectors, results.vectors]),
        np.concatenate([queue.values, results.values[:, :1]]),
    )
    return every.take(np.lexsort((every.lane, every.step)))


def _results(queue: Waiting) -> Results:
    return Results(queue.step, queue.lane, dense(queue.vectors, queue.note), queue.values)


@contextmanager
def registered() -> Iterator[type[TwoArms]]:
    """`two_arms` by its name, for as long as a test runs: a study finds its method through `lookup`."""
    lookup("random_search")  # the registry is loaded before it is changed
    algorithm(TwoArms.name, TRAITS)(TwoArms)
    try:
        yield TwoArms
    finally:
        del ALGORITHMS.classes[TwoArms.name]

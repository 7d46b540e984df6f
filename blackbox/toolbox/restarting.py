"""Base of methods that restart: a run begins, ends, and may be followed by another (see `toolbox.runs`)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from blackbox.algorithm import Algorithm
from blackbox.records import Ints, Matrix, Points, Results, Stop, Vector, dense
from blackbox.registry import UNKNOWN, Outlook
from blackbox.rng import Key
from blackbox.space import Space
from blackbox.toolbox import evolution
from blackbox.toolbox.bounds import PENALTY
from blackbox.toolbox.evolution import default_popsize
from blackbox.toolbox.runs import Run, RunOptions, RunResolved, Runs, Shape, Values

SIGMA = 0.3
PROBE = 0  # the lane that is put on the bounds beside the centre
PROBE_EVERY = 8  # steps


class RunState(Protocol):
    """Fields in the state of a method that restarts."""

    @property
    def step(self) -> int: ...
    @property
    def run(self) -> Run: ...
    @property
    def values(self) -> Values: ...


S = TypeVar("S", bound=RunState)


class Restarting(Algorithm[RunResolved, S]):
    """A method that restarts: it defines how a run begins and the shape of its distribution, and learns in `tell`."""

    Options = RunOptions
    Resolved = RunResolved

    def __init__(self, space: Space, options: RunResolved, key: Key, stream: int = 0) -> None:
        super().__init__(space, options, key, stream)
        self.runs = Runs(space, options, self.noise)
        self.bounds = self.runs.bounds

    @classmethod
    def resolve(cls, options: RunOptions, space: Space, outlook: Outlook = UNKNOWN) -> RunResolved:
        d = space.dim
        return options.with_defaults(
            RunResolved,
            popsize=outlook.popsize(default_popsize(d)),
            sigma=SIGMA * min(1.0, (10 / d) ** 0.8) if space.domain == "box" else SIGMA,
            restarts="none" if outlook.evaluations is None else "bipop",
        )

    @abstractmethod
    def begin(self, run: Run, step: int) -> S:
        """Return the state before the first result of a run."""

    @abstractmethod
    def shape(self, state: S) -> Shape:
        """Return the properties of the distribution that decide whether a run is over."""

    def init(self) -> S:
        return self.begin(self.runs.first(), 0)

    def need(self, state: S) -> int:
        return state.run.popsize

    def oldest(self, state: S) -> int:
        return max(state.run.began, state.step - 1)

    def asked(self, state: S, lanes: Sequence[int], sampled: Matrix) -> Points:
        """Return the points to ask of what the distribution sampled for these lanes."""
        points = self.bounds.outer(sampled)
        probe = self._probe(state) if PROBE in lanes else None
        if probe is not None:
            near, side = probe
            points = np.where(near & (np.asarray(lanes) == PROBE)[:, None], side, points)
        return dense(points)

    def ranked(self, state: S, results: Results) -> tuple[Ints, int, Values]:
        """Return the rows to learn from, from best to worst, how many have a value, and the summary of all values.

        In a box the order is that of the values with the bounds' penalty.
        """
        ranking = order, _, n_values = evolution.rank(results)
        values = self.runs.tell(state.run, state.values, results, ranking)
        if not self.bounds.exist:
            return order, n_values, values
        probes = ((results.lane == PROBE) & (results.step == state.step)).nonzero()[0]
        if len(probes) and self._probe(state) is not None:
            n_values -= bool(np.isfinite(results.scalar[probes[0]]))
            order = order[order != probes[0]]
        return self._within(state, results, order, n_values), n_values, values

    def _within(self, state: S, results: Results, order: Ints, n_values: int) -> Ints:
        """Return the ranked rows in the order of their values with the penalty for being beyond a bound."""
        points = results.vectors.take(order[:n_values], axis=0)
        if n_values < 2 or not self.bounds.any_beyond(points):
            return order
        shape = self.shape(state)
        beyond = self.bounds.beyond(points, shape.mean, shape.sigma * shape.spread)
        values = results.scalar.take(order[:n_values])
        with np.errstate(over="ignore"):  # a penalty beyond float64 ranks last
            spread = values[3 * n_values // 4] / 2 - values[n_values // 4] / 2  # their difference may be infinite
            worse = values / 2 + PENALTY * beyond * spread
        return np.concatenate([order[:n_values][worse.argsort(kind="stable")], order[n_values:]])

    def _probe(self, state: S) -> tuple[NDArray[np.bool_], Vector] | None:
        """Return where the probe of this step lies on bounds, and on which; None if it has none."""
        if not self.bounds.exist or state.step % PROBE_EVERY:
            return None
        shape = self.shape(state)
        return self.bounds.probe(shape.mean, shape.sigma * shape.spread)

    def going_on(self, after: S) -> S:
        """Return the state after a step, or that of the next run if this one is over and another follows."""
        if self.options.restarts == "none":
            return after
        following = self.runs.following(after.run, after.values, self.shape(after), after.step)
        return after if following is None else self.begin(following, after.step)

    def recommend(self, state: S) -> Vector:
        return self.runs.recommend(state.run, state.values, self.shape(state))

    def metrics(self, state: S) -> Mapping[str, float]:
        return self.runs.metrics(state.run, state.values, self.shape(state))

    def stopped(self, state: S) -> Stop | None:
        return self.runs.stopped(state.run, state.values, self.shape(state))

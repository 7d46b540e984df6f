"""Base of methods that restart: a run begins, ends, and may be followed by another (see `toolbox.runs`)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Protocol, TypeVar

from blackbox.algorithm import Algorithm
from blackbox.records import Stop, Vector
from blackbox.registry import UNKNOWN, Outlook
from blackbox.rng import Key
from blackbox.space import Space
from blackbox.toolbox.evolution import default_popsize
from blackbox.toolbox.runs import Run, RunOptions, RunResolved, Runs, Shape, Values


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

    @classmethod
    def resolve(cls, options: RunOptions, space: Space, outlook: Outlook = UNKNOWN) -> RunResolved:
        return options.with_defaults(RunResolved, popsize=default_popsize(space.dim))

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

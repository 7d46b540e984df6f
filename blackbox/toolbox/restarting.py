"""What methods in runs share: a run begins, is learned from, and may be followed by another (see `toolbox.runs`)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Protocol, TypeVar

from blackbox.algorithm import Algorithm
from blackbox.records import Stop, Vector
from blackbox.rng import Key
from blackbox.space import Space
from blackbox.toolbox.evolution import default_popsize
from blackbox.toolbox.runs import Run, RunOptions, Runs, Shape, Values


class RunState(Protocol):
    """What the state of such a method has."""

    @property
    def step(self) -> int: ...
    @property
    def run(self) -> Run: ...
    @property
    def values(self) -> Values: ...


O = TypeVar("O", bound=RunOptions)  # noqa: E741 -- as in `blackbox.algorithm`
S = TypeVar("S", bound=RunState)


class Restarting(Algorithm[O, S]):
    """A method in runs. It says how a run begins and what its distribution looks like, and learns in `tell`."""

    def __init__(self, space: Space, options: O, key: Key, stream: int = 0) -> None:
        super().__init__(space, options, key, stream)
        self.runs = Runs(space, options, self.noise)

    @classmethod
    def resolve(cls, options: O, space: Space) -> O:
        return options.with_defaults(popsize=default_popsize(space.dim))

    @abstractmethod
    def begin(self, run: Run, step: int) -> S:
        """The state before the first result of a run."""

    @abstractmethod
    def shape(self, state: S) -> Shape:
        """What the rules of a run look at in the distribution."""

    def init(self) -> S:
        return self.begin(self.runs.first(), 0)

    def need(self, state: S) -> int:
        return state.run.popsize

    def oldest(self, state: S) -> int:
        return max(state.run.began, state.step - 1)

    def going_on(self, after: S) -> S:
        """The state after a step, or that of the next run if this one is over and shall be followed."""
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

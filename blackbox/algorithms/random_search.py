"""Random search: independent points, keep the best. The baseline that every other method has to beat.

Copy this file when you write a method: a docstring with the source, options (what a user may tune), state (what
changes from step to step), the class that arranges them. Constants that follow from options, space and key belong in
`__init__`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from blackbox.algorithm import Algorithm, Traits, algorithm
from blackbox.options import Field, Options
from blackbox.records import Pending, Points, Results, Vector, dense
from blackbox.rng import normals, uniforms


class RandomSearchOptions(Options):
    """Options of `random_search`."""

    popsize: int = Field(8, ge=1)
    """Results per step. No point depends on a result, so this only sets how often the recommendation is renewed."""
    sigma: float = Field(1.0, gt=0)
    """Standard deviation around the initial point, for coordinates without bounds."""


@dataclass(frozen=True, slots=True)
class RandomSearchState:
    """State of `random_search` between two steps; d is the dimension.

    Attributes
    ----------
    step : steps closed.
    best : (d,) the best point told so far; the initial point before there is one.
    value : its value, or None before there is one.
    """

    step: int
    best: Vector
    value: float | None


@algorithm(
    "random_search",
    Traits(
        injects=True,
        regions=frozenset({"free", "box", "convex"}),
        parameters=frozenset({"float", "int", "categorical"}),
    ),
)
class RandomSearch(Algorithm[RandomSearchOptions, RandomSearchState]):
    """Uniform in the box, normal around the initial point where there is no box; the best point told is recommended.

    In a convex region points are random mixtures of random vertices (`Region.sample`), which is not uniform.

    Bergstra and Bengio (2012), Random search for hyper-parameter optimization, JMLR 13:281-305.
    """

    Options = RandomSearchOptions
    State = RandomSearchState

    def init(self) -> RandomSearchState:
        return RandomSearchState(step=0, best=np.array(self.space.initial), value=None)

    def need(self, state: RandomSearchState) -> int:
        return self.options.popsize

    def oldest(self, state: RandomSearchState) -> int:
        return 0  # every point is drawn from the same distribution, so no result is ever stale

    def ask(self, state: RandomSearchState, lanes: Sequence[int], pending: Pending) -> Points:
        space, d = self.space, self.space.dim
        if space.domain == "convex" and space.region is not None:
            points = [space.region.sample(self.noise, state.step, lane, d) for lane in lanes]
            return dense(np.array(points).reshape(len(lanes), d))
        in_box = uniforms(self.noise, state.step, lanes, d)
        if space.bounded.all():
            return dense(in_box)
        around = space.initial + self.options.sigma * normals(self.noise, state.step, lanes, d)
        return dense(np.where(space.bounded, in_box, around))

    def tell(self, state: RandomSearchState, results: Results) -> RandomSearchState:
        values = np.where(np.isfinite(results.scalar), results.scalar, np.inf)  # no value: never the best
        i = int(np.argmin(values)) if len(values) else -1
        if i < 0 or values[i] == np.inf or (state.value is not None and state.value <= values[i]):
            return RandomSearchState(state.step + 1, state.best, state.value)
        return RandomSearchState(state.step + 1, results.vectors[i].copy(), float(values[i]))

    def recommend(self, state: RandomSearchState) -> Vector:
        return state.best

    def metrics(self, state: RandomSearchState) -> Mapping[str, float]:
        return {} if state.value is None else {"best": state.value}

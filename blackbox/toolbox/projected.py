"""Base of projected methods on estimated gradients: probes around an iterate, an estimate, a move, a projection.

A method of this kind defines the move that follows from a gradient (`_move`); everything around it is here. The iterate
x is feasible, the centre of a step's probes stands back from the border (`toolbox.feasible`), and a step without any
usable direction leaves everything as it is. After a step whose slopes are all zero the centre is displaced by a radius
(`toolbox.alarms`). Slopes are clipped against those of the last steps (`toolbox.scales`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np

from blackbox.algorithm import Algorithm, StateLike
from blackbox.records import Notice, Pending, Points, Results, Stop, Vector
from blackbox.rng import Key
from blackbox.space import Space
from blackbox.toolbox import alarms
from blackbox.toolbox.directions import Directions
from blackbox.toolbox.estimators import EstimatorResolved, bounded_radius
from blackbox.toolbox.feasible import Room
from blackbox.toolbox.scales import Scale
from blackbox.toolbox.schedules import AnySchedule

__all__ = ["DescentResolved", "DescentState", "ProjectedDescent"]

MAX_RATE = 1e8
"""Largest learning rate."""


class DescentResolved(EstimatorResolved):
    """Resolved options of projected methods."""

    learning_rate: AnySchedule
    """Step size by step."""


class DescentState(StateLike, Protocol):
    """Fields of a state beside the moments of its method.

    Attributes
    ----------
    x : (d,) iterate, feasible.
    value : F at the centre of the last step that told it, or None.
    gradient_norm, error : norm of the last estimate and its standard error (0 if unknown).
    scale : sizes of the slopes so far.
    flat : steps in a row, up to the last one, whose slopes were all zero.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def x(self) -> Vector: ...
    @property
    def value(self) -> float | None: ...
    @property
    def gradient_norm(self) -> float: ...
    @property
    def error(self) -> float: ...
    @property
    def scale(self) -> Scale: ...
    @property
    def flat(self) -> int: ...


O = TypeVar("O", bound=DescentResolved)  # noqa: E741 -- O and S are the letters of the design
S = TypeVar("S", bound=DescentState)


class ProjectedDescent(Algorithm[O, S]):
    """x_{t+1} = P(x_t + move(g_t)), g_t from values around x_t; P projects onto the region or clips to the bounds."""

    def __init__(self, space: Space, options: O, key: Key, stream: int = 0) -> None:
        super().__init__(space, options, key, stream)
        self.room = Room(space, Directions(options.directions, self.noise, space.dim).reach)
        tangent = self.room.tangent if space.domain == "convex" else None
        self.estimator = options.estimator(self.noise, space.dim, tangent)
        self.kicks = Directions("normal", alarms.kicks(self.noise), space.dim)
        self.moment = self.estimator.directions.second_moment(options.n_directions)

    @classmethod
    def evaluates_start(cls, options: O) -> bool:
        return bool(options.difference == "forward")

    @abstractmethod
    def _move(self, state: S, gradient: Vector, rate: float) -> tuple[S, Vector]:
        """Return the state with updated moments, and the (d,) displacement of x before the projection.

        The state's `scale` has the slopes of the step already.
        """

    def need(self, state: S) -> int:
        return self.estimator.need

    def ask(self, state: S, lanes: Sequence[int], pending: Pending) -> Points:
        r = self._radius(state.step)
        x = state.x
        if state.flat:
            x = self.room.project(x + r * self.kicks.rows(state.step, [0])[0])
        return self.estimator.plan(self.room.centre(x, r), state.step, lanes, r)

    def tell(self, state: S, results: Results) -> S:
        if not len(results):
            return replace(state, step=state.step + 1)
        note, values, recent = results.points.note, results.scalar, state.scale.recent
        estimate = self.estimator.reduce(state.step, note, values, self._radius(state.step), usual=recent)
        if not len(estimate):
            return replace(state, step=state.step + 1)
        g, value, slopes = estimate.gradient, estimate.slopes.value, estimate.slopes.slope
        seen = replace(state, scale=state.scale.plus(slopes), flat=0 if slopes.any() else state.flat + 1)
        moved, move = self._move(seen, g, self._rate(state.step))
        return replace(
            moved,
            step=state.step + 1,
            x=self.room.project(state.x + move),
            value=state.value if value is None else value,
            gradient_norm=float(np.linalg.norm(g)),
            error=estimate.error or 0.0,
        )

    def recommend(self, state: S) -> Vector:
        return state.x

    def metrics(self, state: S) -> Mapping[str, float]:
        known = {} if state.value is None else {"value": state.value}
        return known | {
            "gradient_norm": state.gradient_norm,
            "gradient_error": state.error,
            "radius": self._radius(state.step),
            "learning_rate": self._rate(state.step),
        }

    def stopped(self, state: S) -> Stop | None:
        return alarms.diverged(self.space, state.x, self._radius(state.step), "take a smaller learning_rate")

    def notices(self, state: S) -> Sequence[Notice]:
        return alarms.notices(state.flat, self._radius(state.step) / self.space.dim**0.5)

    def _radius(self, step: int) -> float:
        return bounded_radius(self.options.radius(step), self.room.longest)

    def _rate(self, step: int) -> float:
        return min(max(self.options.learning_rate(step), 0.0), MAX_RATE)

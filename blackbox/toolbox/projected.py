"""Base of projected methods on estimated gradients: probes around an iterate, an estimate, a move, a projection.

A method of this kind defines the move that follows from a gradient (`_move`); everything around it is here. The iterate
x is feasible, the centre of a step's probes stands back from the border (`toolbox.feasible`), and a step without any
usable direction leaves everything as it is.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np

from blackbox.algorithm import Algorithm, StateLike
from blackbox.records import Pending, Points, Results, Vector
from blackbox.rng import Key
from blackbox.space import Space
from blackbox.toolbox.directions import Directions
from blackbox.toolbox.estimators import EstimatorResolved, bounded_radius
from blackbox.toolbox.feasible import Room
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


O = TypeVar("O", bound=DescentResolved)  # noqa: E741 -- O and S are the letters of the design
S = TypeVar("S", bound=DescentState)


class ProjectedDescent(Algorithm[O, S]):
    """x_{t+1} = P(x_t + move(g_t)), g_t from values around x_t; P projects onto the region or clips to the bounds."""

    def __init__(self, space: Space, options: O, key: Key, stream: int = 0) -> None:
        super().__init__(space, options, key, stream)
        self.room = Room(space, Directions(options.directions, self.noise, space.dim).reach)
        tangent = self.room.tangent if space.domain == "convex" else None
        self.estimator = options.estimator(self.noise, space.dim, tangent)

    @classmethod
    def evaluates_start(cls, options: O) -> bool:
        return bool(options.difference == "forward")

    @abstractmethod
    def _move(self, state: S, gradient: Vector, rate: float) -> tuple[S, Vector]:
        """Return the state with updated moments, and the (d,) displacement of x before the projection."""

    def need(self, state: S) -> int:
        return self.estimator.need

    def ask(self, state: S, lanes: Sequence[int], pending: Pending) -> Points:
        r = self._radius(state.step)
        return self.estimator.plan(self.room.centre(state.x, r), state.step, lanes, r)

    def tell(self, state: S, results: Results) -> S:
        if not len(results):
            return replace(state, step=state.step + 1)
        estimate = self.estimator.reduce(state.step, results.points.note, results.scalar, self._radius(state.step))
        if not len(estimate):
            return replace(state, step=state.step + 1)
        g, value = estimate.gradient, estimate.slopes.value
        moved, move = self._move(state, g, self._rate(state.step))
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

    def _radius(self, step: int) -> float:
        return bounded_radius(self.options.radius(step), self.room.longest)

    def _rate(self, step: int) -> float:
        return min(max(self.options.learning_rate(step), 0.0), MAX_RATE)

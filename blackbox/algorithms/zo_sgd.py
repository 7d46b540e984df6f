"""Zeroth-order gradient descent: a gradient estimated from values, a step, a projection.

Nesterov and Spokoiny (2017), Random gradient-free minimization of convex functions, doi:10.1007/s10208-015-9296-2, with
Gaussian directions and forward differences; here with any family and difference of `blackbox.toolbox.estimators`::

    g_t     = d / |R| sum_{i in R} y_i u_i          y_i: slope along u_i from values around x_t
    x_{t+1} = P(x_t + delta(g_t))                   delta: sgd -a g; momentum, clipup: see `blackbox.toolbox.steppers`
              P(x_t - a sign(g_t))                  sign: Liu, Chen, Chen, Hong (2019), signSGD via zeroth-order oracle

P is the projection onto the region of the space, or the clip to its bounds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, TypeAlias

import numpy as np
from pydantic import Field as Tagged

from blackbox.algorithm import Traits, algorithm
from blackbox.records import Vector
from blackbox.registry import UNKNOWN, Outlook
from blackbox.rng import Key
from blackbox.space import Space
from blackbox.toolbox.directions import Directions, default_family
from blackbox.toolbox.estimators import EstimatorOptions, default_directions, directions_of, popsize_of
from blackbox.toolbox.projected import DescentResolved, ProjectedDescent
from blackbox.toolbox.schedules import AnySchedule
from blackbox.toolbox.steppers import SGD, ClipUp, Momentum, StepperState

Stepper: TypeAlias = Annotated[SGD | Momentum | ClipUp, Tagged(discriminator="type")]


class ZoSgdOptions(EstimatorOptions):
    """Options of `zo_sgd`. Lengths are in internal units: bounded parameters are the unit interval."""

    learning_rate: AnySchedule | None = None
    """Step size by step: internal units per unit of gradient; for clipup and sign the length of a move (of each
    coordinate). None: half over the estimator's second moment, about q / (2 d), which is right for a curvature of 1;
    for an objective of curvature L divide it by L."""
    stepper: Stepper = SGD()
    """Stepper that turns a gradient into a move: sgd, momentum, or clipup, which normalises it."""
    sign: bool = False
    """Move each coordinate by the sign of its gradient: robust to the scale and to heavy tails of the objective."""


class ZoSgdResolved(DescentResolved, ZoSgdOptions):
    """The options with every default filled in."""


@dataclass(frozen=True, slots=True)
class ZoSgdState:
    """State of `zo_sgd` between two steps; d is the dimension.

    Attributes
    ----------
    step : steps closed.
    x : (d,) iterate, feasible.
    stepper : moments of the stepper.
    value : F at the centre of the last step that told it, or None.
    gradient_norm, error : norm of the last estimate and its standard error (0 if unknown).
    """

    step: int
    x: Vector
    stepper: StepperState
    value: float | None
    gradient_norm: float
    error: float


@algorithm("zo_sgd", Traits(regions=frozenset({"free", "box", "convex"}), projects=True))
class ZoSgd(ProjectedDescent[ZoSgdResolved, ZoSgdState]):
    """Projected gradient descent on estimated gradients, for smooth objectives of ten to ten thousand dimensions.

    Nesterov and Spokoiny (2017), doi:10.1007/s10208-015-9296-2. Probes stay inside the region or the bounds: near the
    border the centre of a step stands back by the radius. Results of closed steps are not told.
    """

    Options = ZoSgdOptions
    Resolved = ZoSgdResolved
    State = ZoSgdState

    @classmethod
    def resolve(cls, options: ZoSgdOptions, space: Space, outlook: Outlook = UNKNOWN) -> ZoSgdResolved:
        family = options.directions or default_family(space.dim)
        popsize = options.popsize or popsize_of(default_directions(space.dim), options.difference)
        q = directions_of(popsize, options.difference)
        moment = Directions(family, Key((0, 0)), space.dim, min(q, space.dim)).second_moment(q)
        return options.with_defaults(ZoSgdResolved, directions=family, popsize=popsize, learning_rate=0.5 / moment)

    @classmethod
    def memory(cls, options: ZoSgdResolved, space: Space) -> int:
        return 8 * space.dim * (8 + 4 * options.n_directions)

    def init(self) -> ZoSgdState:
        x = self.room.project(self.space.initial)
        return ZoSgdState(0, x, self.options.stepper.init(self.space.dim), None, 0.0, 0.0)

    def _move(self, state: ZoSgdState, gradient: Vector, rate: float) -> tuple[ZoSgdState, Vector]:
        g = np.sign(gradient) if self.options.sign else gradient
        stepper, move = self.options.stepper.step(state.stepper, g, rate)
        return replace(state, stepper=stepper), move

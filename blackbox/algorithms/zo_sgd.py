"""Zeroth-order gradient descent: a gradient estimated from values, a step, a projection.

Nesterov and Spokoiny (2017), Random gradient-free minimization of convex functions, doi:10.1007/s10208-015-9296-2, with
Gaussian directions and forward differences; here with any family and difference of `blackbox.toolbox.estimators`::

    g_t     = d / |R| sum_{i in R} y_i u_i          y_i: slope along u_i from values around x_t
    x_{t+1} = P(x_t + delta(g_t))                   delta: sgd -a g; momentum, clipup: see `blackbox.toolbox.steppers`
              P(x_t - a sign(g_t))                  sign: Liu, Chen, Chen, Hong (2019), signSGD via zeroth-order oracle

P is the projection onto the region of the space, or the clip to its bounds.

Without a learning rate the gradient of sgd and momentum is `scaled` by the rate of AdaGrad in its form of one
number for all coordinates (Ward, Wu, Bottou 2019, arXiv:1806.01811), see `blackbox.toolbox.scales`::

    a = learning_rate sqrt(d) / sqrt(M (M m_t^2 + S_t^2))

M is the second moment of the estimator, S_t^2 the sum of squares of the slopes so far and m_t their median in the last
steps. The unit of the objective then does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, TypeAlias

import numpy as np
from pydantic import Field as Tagged

from blackbox.algorithm import Traits, algorithm
from blackbox.records import Vector
from blackbox.registry import UNKNOWN, Outlook
from blackbox.space import Space
from blackbox.toolbox.directions import default_family
from blackbox.toolbox.estimators import EstimatorOptions, default_popsize
from blackbox.toolbox.feasible import Room
from blackbox.toolbox.projected import DescentResolved, ProjectedDescent
from blackbox.toolbox.scales import NO_SCALE, Scale
from blackbox.toolbox.schedules import AnySchedule, crossing, falling
from blackbox.toolbox.steppers import SGD, ClipUp, Momentum, StepperState

Stepper: TypeAlias = Annotated[SGD | Momentum | ClipUp, Tagged(discriminator="type")]


class ZoSgdOptions(EstimatorOptions):
    """Options of `zo_sgd`. Lengths are in internal units: bounded parameters are the unit interval."""

    learning_rate: AnySchedule | None = None
    """Step size by step. Scaled: how far each coordinate may have to go. Else internal units per unit of gradient, for
    a curvature of L about q / (2 d L); for clipup and sign the length of a move (of each coordinate). None: scaled, the
    range of a bounded coordinate, 0.3 units of a free one; for clipup and sign what crosses the box a few times. With a
    budget it falls to a fiftieth."""
    scaled: bool | None = None
    """Divide gradients by the slopes told so far, so that the unit of the objective does not matter; sgd and momentum
    only. None: where no learning_rate is given."""
    stepper: Stepper = SGD()
    """Stepper that turns a gradient into a move: sgd, momentum, or clipup, which normalises it."""
    sign: bool = False
    """Move each coordinate by the sign of its gradient: robust to the scale and to heavy tails of the objective."""


class ZoSgdResolved(DescentResolved, ZoSgdOptions):
    """The options with every default filled in."""

    scaled: bool = False


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
    scale : sizes of the slopes so far.
    flat : steps in a row, up to the last one, whose slopes were all zero.
    """

    step: int
    x: Vector
    stepper: StepperState
    value: float | None
    gradient_norm: float
    error: float
    scale: Scale
    flat: int


@algorithm("zo_sgd", Traits(regions=frozenset({"free", "box", "convex"}), projects=True))
class ZoSgd(ProjectedDescent[ZoSgdResolved, ZoSgdState]):
    """Projected gradient descent on estimated gradients, for smooth objectives of ten to ten thousand dimensions.

    Nesterov and Spokoiny (2017), doi:10.1007/s10208-015-9296-2. Probes stay inside the region or the bounds: near the
    border the centre of a step stands back by the radius. Results of closed steps are not told.
    """

    # 2026-11: a default rate that knows the objective's scale, slopes clipped, and centres that leave symmetry.
    revision = 2
    Options = ZoSgdOptions
    Resolved = ZoSgdResolved
    State = ZoSgdState

    @classmethod
    def resolve(cls, options: ZoSgdOptions, space: Space, outlook: Outlook = UNKNOWN) -> ZoSgdResolved:
        popsize = default_popsize(options, space.dim, outlook)
        scales = options.stepper.type != "clipup" and not options.sign
        if scales:
            rate = falling(Room(space, 1.0).size, outlook, popsize)
        else:
            rate = crossing(space, outlook, popsize, space.dim**0.5 if options.stepper.type == "clipup" else 1.0)
        return options.with_defaults(
            ZoSgdResolved,
            directions=default_family(space.dim),
            popsize=popsize,
            learning_rate=rate,
            scaled=scales and options.learning_rate is None,
        )

    @classmethod
    def memory(cls, options: ZoSgdResolved, space: Space) -> int:
        return 8 * space.dim * (8 + 4 * options.n_directions)

    def init(self) -> ZoSgdState:
        x = self.room.project(self.space.initial)
        return ZoSgdState(0, x, self.options.stepper.init(self.space.dim), None, 0.0, 0.0, NO_SCALE, 0)

    def _move(self, state: ZoSgdState, gradient: Vector, rate: float) -> tuple[ZoSgdState, Vector]:
        g = np.sign(gradient) if self.options.sign else gradient
        if self.options.scaled:
            g = self.space.dim**0.5 * state.scale.rate(self.moment) * gradient
        stepper, move = self.options.stepper.step(state.stepper, g, rate)
        return replace(state, stepper=stepper), move

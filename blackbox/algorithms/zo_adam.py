"""Zeroth-order Adam and AdaMM: adaptive moments of an estimated gradient, then a projection.

Chen, Liu, Xu, Li, Lin, Hong, Cox (2019), ZO-AdaMM, arXiv:1910.06513, and Kingma and Ba (2015), arXiv:1412.6980. With
g_t of `blackbox.toolbox.estimators`::

    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
    adam     x <- P(x - a sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + epsilon))
    adamm    h <- max(h, v),   x <- P(x - a m / sqrt(h)),   v_0 = h_0 = 1e-7

Between bounds, and in a box, the clip is also the projection in the norm of sqrt(h), which the paper's proof asks for.
Other regions have a Euclidean projection only, which fits the move if g^2 is one number, its mean over coordinates:
with a square for each coordinate P(x - move) = x holds at other points than the minimum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from blackbox.algorithm import Traits, algorithm
from blackbox.options import Field
from blackbox.records import Vector
from blackbox.regions import Box
from blackbox.registry import UNKNOWN, Outlook
from blackbox.space import Space
from blackbox.toolbox.directions import default_family
from blackbox.toolbox.estimators import EstimatorOptions, default_popsize
from blackbox.toolbox.projected import DescentResolved, ProjectedDescent
from blackbox.toolbox.scales import NO_SCALE, Scale
from blackbox.toolbox.schedules import AnySchedule, crossing

SQUARE = 1e-7
"""v_0 of AdaMM, as in the authors' code."""


class ZoAdamOptions(EstimatorOptions):
    """Options of `zo_adam`. Lengths are in internal units: bounded parameters are the unit interval."""

    learning_rate: AnySchedule | None = None
    """Step size by step: about the distance that every coordinate moves per step, whatever the objective's scale. None:
    with a budget what crosses the box a few times, falling to a fiftieth of it; without one 0.01, and where coordinates
    are free at least 0.01 at first."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the average gradient."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the average squared gradient. The authors of AdaMM take 0.3 to 0.9 for attacks on images."""
    rule: Literal["adam", "adamm"] = "adam"
    """adamm: divide by the largest average square so far, without bias correction; it converges where adam may not."""
    epsilon: float = Field(1e-8, gt=0)
    """adam only: added to the root, against division by zero."""


class ZoAdamResolved(DescentResolved, ZoAdamOptions):
    """The options with every default filled in."""


@dataclass(frozen=True, slots=True)
class ZoAdamState:
    """State of `zo_adam` between two steps; d is the dimension.

    Attributes
    ----------
    step : steps closed.
    moves : steps that had a gradient, t.
    x : (d,) iterate, feasible.
    m, v, h : (d,) average gradient, average square (in regions other than a box one number for all coordinates), and
        its largest value so far (adamm; else empty).
    value : F at the centre of the last step that told it, or None.
    gradient_norm, error : norm of the last estimate and its standard error (0 if unknown).
    scale : sizes of the slopes so far.
    flat : steps in a row, up to the last one, whose slopes were all zero.
    """

    step: int
    moves: int
    x: Vector
    m: Vector
    v: Vector
    h: Vector
    value: float | None
    gradient_norm: float
    error: float
    scale: Scale
    flat: int


@algorithm("zo_adam", Traits(regions=frozenset({"free", "box", "convex"}), projects=True))
class ZoAdam(ProjectedDescent[ZoAdamResolved, ZoAdamState]):
    """Adam on estimated gradients: `zo_sgd` without a learning rate to find, for badly scaled coordinates.

    Chen et al. (2019), arXiv:1910.06513. The average square is dominated by the variance of the estimate, (d / q) times
    the squared gradient, so moves shrink by sqrt(q / d) against Adam with exact gradients. Results of closed steps are
    not told.
    """

    # 2026-11: a default rate that crosses the box within the budget, slopes clipped, and centres that leave symmetry.
    revision = 2
    Options = ZoAdamOptions
    Resolved = ZoAdamResolved
    State = ZoAdamState

    @classmethod
    def resolve(cls, options: ZoAdamOptions, space: Space, outlook: Outlook = UNKNOWN) -> ZoAdamResolved:
        popsize = default_popsize(options, space.dim, outlook)
        rate = crossing(space, outlook, popsize)
        family = default_family(space.dim)
        return options.with_defaults(ZoAdamResolved, directions=family, popsize=popsize, learning_rate=rate)

    @classmethod
    def memory(cls, options: ZoAdamResolved, space: Space) -> int:
        return 8 * space.dim * (14 + 4 * options.n_directions)

    def init(self) -> ZoAdamState:
        d, adamm = self.space.dim, self.options.rule == "adamm"
        v = np.full(d, SQUARE if adamm else 0.0)
        x = self.room.project(self.space.initial)
        return ZoAdamState(0, 0, x, np.zeros(d), v, v.copy() if adamm else np.empty(0), None, 0.0, 0.0, NO_SCALE, 0)

    def _move(self, state: ZoAdamState, gradient: Vector, rate: float) -> tuple[ZoAdamState, Vector]:
        o, t = self.options, state.moves + 1
        m = o.beta1 * state.m + (1 - o.beta1) * gradient
        squares = np.square(gradient)
        if not isinstance(self.room.region, Box | None):
            squares = np.full(gradient.size, squares.mean())
        v = o.beta2 * state.v + (1 - o.beta2) * squares
        h = state.h
        if o.rule == "adamm":
            h = np.maximum(h, v)
            move = -rate * m / np.sqrt(h)
        else:
            corrected = rate * math.sqrt(1 - o.beta2**t) / (1 - o.beta1**t)
            move = -corrected * m / (np.sqrt(v) + o.epsilon)
        return replace(state, moves=t, m=m, v=v, h=h), move

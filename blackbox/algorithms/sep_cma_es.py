"""Separable CMA-ES: a normal distribution that learns its mean, step size and the scale of every coordinate.

Ros and Hansen (2008), A Simple Modification in CMA-ES Achieving Linear Time and Space Complexity, PPSN X,
doi:10.1007/978-3-540-87700-4_30. The covariance is diagonal, so everything is linear in d, and it is learned about
d / 3 times as fast as a full one; directions other than the axes are never learned. With v the diagonal of C,
z = y / sqrt(v), and equation numbers of Hansen's tutorial (arXiv:1604.00772) for what is the same as in CMA-ES::

    x = mean + sigma sqrt(v) z,   z ~ N(0, I)                                                            eq. 39, 40
    v <- (1 - c1 - cmu sum_i w_i) v + c1 pc^2 + cmu sum_i w_i y_i^2                                      of eq. 47

Rates are those of pycma 4.5 for a diagonal covariance. Negative weights are those of CMA-ES; the paper has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from blackbox.algorithm import Traits, algorithm
from blackbox.records import Pending, Points, Results, Vector
from blackbox.rng import normals
from blackbox.space import Space
from blackbox.toolbox import evolution
from blackbox.toolbox.evolution import SIGMA_RANGE, TINY
from blackbox.toolbox.restarting import Restarting
from blackbox.toolbox.runs import MAX_CONDITION, Run, RunOptions, RunResolved, Shape, Values, largest_popsize

MAX_DIM = 100_000  # a point is stored and sent as d float64: 0.8 MB here; beyond, points are better recipes
SCALE_RANGE = (1e-20, 1e20)  # of the largest variance; outside, the scale moves from v to sigma


@dataclass(frozen=True, slots=True)
class SepCmaEsState:
    """State of `sep_cma_es` between two steps; d is the dimension.

    Attributes
    ----------
    step : steps closed.
    mean, sigma : (d,) centre and step size.
    D : (d,) standard deviations over sigma, the root of the covariance's diagonal.
    ps, pc : (d,) evolution paths of step size and covariance.
    values : summary of this run's values.
    run : which run this is.
    """

    step: int
    mean: Vector
    sigma: float
    D: Vector
    ps: Vector
    pc: Vector
    values: Values
    run: Run


def learning(d: int, k: int, mueff: float) -> tuple[float, float, float]:
    """Return c1, cmu and cc of a diagonal covariance, as in pycma."""
    root = math.sqrt(d)
    c1 = 1 / (d + 2 * root + mueff / d)
    cmu = min(1 - c1, (1 / 4 + mueff + 1 / mueff - 2) / (d + 4 * root + mueff / 2))
    return c1, cmu, (1 + 1 / d + mueff / d) / (root + 1 / d + 2 * mueff / d)


@algorithm("sep_cma_es", Traits(injects=True, parameters=frozenset({"float", "int", "categorical"}), max_dim=MAX_DIM))
class SepCmaEs(Restarting[SepCmaEsState]):
    """CMA-ES with a diagonal covariance: thousands of dimensions, or objectives whose coordinates differ in scale.

    Ros and Hansen (2008), doi:10.1007/978-3-540-87700-4_30. Late results, foreign points and restarts as in `cma_es`.
    """

    revision = 2  # 2026-11: the rules of toolbox.bounds; a smaller step in a box of more than ten dimensions
    Options = RunOptions
    Resolved = RunResolved
    State = SepCmaEsState

    @classmethod
    def memory(cls, options: RunResolved, space: Space) -> int:
        k = largest_popsize(options)
        return 8 * space.dim * (20 + 6 * k) + 8 * 30 * space.dim  # vectors, what `tell` ranks, the recent values

    def begin(self, run: Run, step: int) -> SepCmaEsState:
        d, start = self.space.dim, self.runs.start(run)
        values = self.runs.blank(run, start)
        return SepCmaEsState(
            step, self.bounds.start(start), run.sigma, np.ones(d), np.zeros(d), np.zeros(d), values, run
        )

    def ask(self, state: SepCmaEsState, lanes: Sequence[int], pending: Pending) -> Points:
        x = normals(self.noise, state.step, lanes, self.space.dim).astype(np.float64)
        x *= state.sigma * state.D
        x += state.mean
        return self.asked(state, lanes, x)

    def tell(self, state: SepCmaEsState, results: Results) -> SepCmaEsState:
        d, step = self.space.dim, state.step + 1
        order, n_values, values = self.ranked(state, results)
        k = len(order)
        if n_values == 0 or k < 2:  # no ranking, nothing to learn from
            return replace(state, step=step, values=values)

        r = evolution.rates(d, k, min(n_values, k // 2), learning)
        z = self.bounds.inner(results.vectors.take(order, axis=0))
        z -= state.mean
        push, pushed = r.push, r.pushed
        strangers = evolution.foreign(results, order, state.step)
        if strangers is not None:
            push = evolution.pushing(push, results, order)
            pushed = float(push.sum())
            evolution.shorten(z, strangers, state.sigma, lambda rows: rows / state.D)
        z /= state.sigma * state.D

        mu = len(r.pull)
        zw = r.pull.dot(z[:mu])
        yw = state.D * zw  # eq. 41
        mean = self.bounds.centre(state.mean + state.sigma * yw)  # eq. 42
        ps, pc, growth, h = evolution.follow(state.ps, state.pc, yw, zw, r, step - state.run.began)  # eq. 43-45
        sigma = state.sigma * growth
        lengths = np.vecdot(z, z)
        np.square(z, out=z)
        learned = r.pull.dot(z[:mu]) + (d * push / (lengths[-len(push) :] + TINY)).dot(z[-len(push) :])  # eq. 46
        c1a = r.c1 if h else r.c1 * (1 - r.cc * (2 - r.cc))
        v = np.square(state.D) * (1 - c1a - r.cmu * (1 + pushed) + r.cmu * learned) + r.c1 * np.square(pc)  # of eq. 47
        largest = max(float(v.max()), SIGMA_RANGE[0])
        np.maximum(v, largest / (2 * MAX_CONDITION), out=v)
        if not SCALE_RANGE[0] < largest < SCALE_RANGE[1]:
            v, pc, sigma = v / largest, pc / math.sqrt(largest), sigma * math.sqrt(largest)
        if self.bounds.exist:
            sigma /= self.bounds.excess(sigma * np.sqrt(v))
        sigma = min(max(sigma, SIGMA_RANGE[0]), SIGMA_RANGE[1])
        after = SepCmaEsState(step, mean, sigma, np.sqrt(v), ps, pc, values, state.run)
        return self.going_on(after)

    def shape(self, state: SepCmaEsState) -> Shape:
        return Shape(state.mean, state.sigma, state.pc, state.D, float(state.D.min()), float(state.D.max()))

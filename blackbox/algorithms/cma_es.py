"""CMA-ES: a normal distribution that learns its mean, step size and covariance from ranks.

Hansen (2016), The CMA Evolution Strategy: A Tutorial, arXiv:1604.00772; equation numbers are the tutorial's. Where a
rate follows pycma 4.5 instead, its line says so. z = C^(-1/2) y is used rotated, as B^T z = (B^T y) / D: it has the
same length and costs one product less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg.lapack import dsyevd

from blackbox.algorithm import Traits, algorithm
from blackbox.errors import NumericalError
from blackbox.records import Matrix, Pending, Points, Results, Vector
from blackbox.rng import normals
from blackbox.space import Space
from blackbox.toolbox import evolution
from blackbox.toolbox.evolution import SIGMA_RANGE, TINY
from blackbox.toolbox.restarting import Restarting
from blackbox.toolbox.runs import MAX_CONDITION, Run, RunOptions, RunResolved, Shape, Values, largest_popsize

TILE = 8  # lanes per product of `ask`: BLAS gives one row alone other last bits than the same row among others
SCALE_RANGE = (1e-20, 1e20)  # of the largest eigenvalue; outside, the scale moves from C to sigma


@dataclass(frozen=True, slots=True)
class CmaEsState:
    """State of `cma_es` between two steps; d is the dimension.

    Attributes
    ----------
    step : steps closed.
    mean, sigma : (d,) centre and step size.
    C : (d, d) covariance; only its lower triangle is read.
    axes, D : (d, d) rows are the eigenvectors of C (B^T in the tutorial), and (d,) roots of its eigenvalues, ascending.
    decomposed : the step at which they were computed.
    ps, pc : (d,) evolution paths of step size and covariance.
    values : summary of this run's values.
    run : which run this is.
    """

    step: int
    mean: Vector
    sigma: float
    C: Matrix
    axes: Matrix
    D: Vector
    decomposed: int
    ps: Vector
    pc: Vector
    values: Values
    run: Run


def learning(d: int, k: int, mueff: float) -> tuple[float, float, float]:
    """Return c1, cmu and cc of a full covariance."""
    c1 = min(1.0, k / 6) * 2 / ((d + 1.3) ** 2 + mueff)  # eq. 57, k / 6 as in pycma
    cmu = min(1 - c1, 2 * (1 / 4 + mueff - 2 + 1 / mueff) / ((d + 2) ** 2 + mueff))  # eq. 58, 1 / 4 as in pycma
    return c1, cmu, (4 + mueff / d) / (d + 4 + 2 * mueff / d)  # eq. 56


@algorithm("cma_es", Traits(injects=True, parameters=frozenset({"float", "int", "categorical"})))
class CmaEs(Restarting[CmaEsState]):
    """Covariance matrix adaptation with negative weights: the default up to about two thousand dimensions.

    Hansen (2016), arXiv:1604.00772. Results of the step before are learned from too, re-encoded in the current
    distribution and clipped; still older ones carry directions of a distribution that is gone, and make it diverge.
    Points that the method did not choose are treated alike and never push (Hansen 2011, arXiv:1110.4181). A run that
    is over can be followed by others from new places (`restarts`); results of an earlier run are not learned from.
    """

    revision = 2  # 2026-11: the rules of toolbox.bounds; a smaller step in a box of more than ten dimensions
    Options = RunOptions
    Resolved = RunResolved
    State = CmaEsState

    @classmethod
    def memory(cls, options: RunResolved, space: Space) -> int:
        d, k = space.dim, largest_popsize(options)
        return 8 * d * (9 * d + 6 * k + 100)  # C, axes, their successors, and what LAPACK works in

    def begin(self, run: Run, step: int) -> CmaEsState:
        d, start = self.space.dim, self.runs.start(run)
        return CmaEsState(
            step=step,
            mean=self.bounds.start(start),
            sigma=run.sigma,
            C=np.eye(d),
            axes=np.eye(d),
            D=np.ones(d),
            decomposed=step,
            ps=np.zeros(d),
            pc=np.zeros(d),
            values=self.runs.blank(run, start),
            run=run,
        )

    def ask(self, state: CmaEsState, lanes: Sequence[int], pending: Pending) -> Points:
        d = self.space.dim
        tiles, rows = tiled(lanes)
        z = normals(self.noise, state.step, tiles, d).reshape(-1, TILE, d)
        x = ((z * state.D) @ state.axes).reshape(-1, d)  # eq. 39, a product per tile
        x *= state.sigma
        x += state.mean  # eq. 40
        return self.asked(state, lanes, x[rows])

    def tell(self, state: CmaEsState, results: Results) -> CmaEsState:
        d, step = self.space.dim, state.step + 1
        order, n_values, values = self.ranked(state, results)
        k = len(order)
        if n_values == 0 or k < 2:  # no ranking, nothing to learn from
            return replace(state, step=step, values=values)

        r = evolution.rates(d, k, min(n_values, k // 2), learning)
        steps = np.empty((k + 1, d))  # pc and the ranked y: rank one and rank mu become one product
        y = np.subtract(self.bounds.inner(results.vectors.take(order, axis=0)), state.mean, out=steps[1:])
        push, pushed = r.push, r.pushed
        strangers = evolution.foreign(results, order, state.step)
        if strangers is not None:
            push = evolution.pushing(push, results, order)
            pushed = float(push.sum())
            evolution.shorten(y, strangers, state.sigma, lambda rows: rows.dot(state.axes.T) / state.D)
        y /= state.sigma
        z = y.dot(state.axes.T)
        z /= state.D

        mu = len(r.pull)
        yw = r.pull.dot(y[:mu])  # eq. 41
        zw = r.pull.dot(z[:mu]).dot(state.axes)
        mean = self.bounds.centre(state.mean + state.sigma * yw)  # eq. 42
        ps, pc, growth, h = evolution.follow(state.ps, state.pc, yw, zw, r, step - state.run.began)  # eq. 43-45
        sigma = state.sigma * growth
        steps[0] = pc
        factors = r.factors.copy()
        worst = z[-len(push) :]
        factors[-len(push) :] = (r.cmu * d) * push / (np.vecdot(worst, worst) + TINY)  # eq. 46
        c1a = r.c1 if h else r.c1 * (1 - r.cc * (2 - r.cc))
        C = (1 - c1a - r.cmu * (1 + pushed)) * state.C  # eq. 47
        C += (steps.T * factors).dot(steps)

        axes, D, decomposed = state.axes, state.D, state.decomposed
        if step - decomposed >= 1 / (2 * d * (r.c1 + r.cmu)):  # pycma: 10; 1, 2, 4 and 10 take the same evaluations
            C, axes, D, scale = decompose(C)
            decomposed = step
            if scale != 1.0:
                pc, sigma = pc / scale, sigma * scale
        if self.bounds.exist:
            sigma /= self.bounds.excess(sigma * np.sqrt(np.diag(C)))
        sigma = min(max(sigma, SIGMA_RANGE[0]), SIGMA_RANGE[1])
        after = CmaEsState(step, mean, sigma, C, axes, D, decomposed, ps, pc, values, state.run)
        return self.going_on(after)

    def shape(self, state: CmaEsState) -> Shape:
        spread = np.sqrt(np.diag(state.C))
        return Shape(state.mean, state.sigma, state.pc, spread, float(state.D[0]), float(state.D[-1]))


def tiled(lanes: Sequence[int]) -> tuple[Sequence[int], slice | list[int]]:
    """Return the lanes of all tiles that hold the given ones, and the positions of the given ones among them."""
    if isinstance(lanes, range) and lanes.step == 1 and len(lanes):  # as a study asks
        first = lanes.start // TILE * TILE
        return range(first, -(-lanes.stop // TILE) * TILE), slice(lanes.start - first, lanes.stop - first)
    tiles = sorted({lane // TILE for lane in lanes})
    offset = {tile: TILE * (i - tile) for i, tile in enumerate(tiles)}  # what to add to a lane of the tile
    return [TILE * tile + i for tile in tiles for i in range(TILE)], [lane + offset[lane // TILE] for lane in lanes]


def decompose(C: Matrix) -> tuple[Matrix, Matrix, Vector, float]:
    """Decompose C = B diag(D^2) B^T, keeping its condition number and scale in range.

    Returns
    -------
    C, axes, D, scale : `axes` is B^T; `scale` has moved out of the standard deviations, and is 1 as a rule.
    """
    eigenvalues, B, info = dsyevd(C, lower=1)  # half the time of numpy.linalg.eigh for small d; B is in Fortran order
    if info:
        raise NumericalError(f"the eigendecomposition of the covariance failed (LAPACK dsyevd, info={info})")
    largest = max(float(eigenvalues[-1]), SIGMA_RANGE[0])
    lift = largest / (2 * MAX_CONDITION) - float(eigenvalues[0])
    if lift > 0:
        C, eigenvalues = C + lift * np.eye(len(C)), eigenvalues + lift
    if SCALE_RANGE[0] < largest < SCALE_RANGE[1]:
        return C, B.T, np.sqrt(eigenvalues), 1.0
    return C / largest, B.T, np.sqrt(eigenvalues / largest), math.sqrt(largest)

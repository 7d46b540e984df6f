"""Parts of evolution strategies with a normal distribution: ranks, weights, rates and the cumulative step size.

Hansen (2016), The CMA Evolution Strategy: A Tutorial, arXiv:1604.00772; equation numbers are the tutorial's. Where a
rate follows pycma 4.5 instead, its line says so. Notation: points x = mean + sigma y, y = C^(1/2) z with z ~ N(0, I).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from blackbox.records import Ints, Matrix, Results, Vector

SIGMA_RANGE = (1e-100, 1e100)  # no objective needs more, and every square stays finite
TINY = 1e-12  # avoids a division by zero for a step of no length

Learning: TypeAlias = Callable[[int, int, float], tuple[float, float, float]]
"""(d, k, mueff) -> c1, cmu, cc of a model of the covariance."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Weights and learning rates for k ranked results.

    Attributes
    ----------
    pull : (mu,) weights of the best, sum 1.
    push : (k // 2,) weights of the worst, all negative.
    pushed : sum of `push`.
    factors : (k + 1,) factors of pc pc^T and of the ranked y y^T in the update of C: c1 and cmu w_i; 0 for the worst,
        whose factors depend on their lengths (eq. 46).
    to_ps, to_pc : weights of a step in the paths, the roots in eq. 43 and 45.
    chi : E|N(0, I)|.
    """

    pull: Vector
    push: Vector
    pushed: float
    factors: Vector
    mueff: float
    c1: float
    cmu: float
    cc: float
    cs: float
    ds: float
    to_ps: float
    to_pc: float
    chi: float


@lru_cache(maxsize=1024)
def rates(d: int, k: int, mu: int, learning: Learning) -> Rates:
    """Return the rates for dimension d, k >= 2 ranked results, and mean updates by the mu <= k / 2 best of them.

    Cached, because a study sees few different (k, mu). A step that closed with fewer results gets the rates of that
    popsize.
    """
    raw = math.log((k + 1) / 2) - np.log(np.arange(1, k + 1))  # eq. 49
    up, down = raw[:mu], raw[(k + 1) // 2 :]
    mueff, mueff_down = float(up.sum() ** 2 / (up @ up)), float(down.sum() ** 2 / (down @ down))
    c1, cmu, cc = learning(d, k, mueff)
    alpha = min(1 + c1 / cmu, 1 + 2 * mueff_down / (mueff + 2), (1 - c1 - cmu) / (d * cmu))  # eq. 50-52
    cs = min(0.5, (mueff + 2) / (d + mueff + 3))  # eq. 55 as in pycma
    inner = max(1.0, 3 * (1 - 2 ** (-d / 9)))  # pycma, issue 231: for mueff much larger than d
    ds = 1 + cs + 2 * max(0.0, inner * math.sqrt((mueff - 1) / (d + 1)) - 1)  # eq. 55 as in pycma
    pull, push = up / up.sum(), -alpha * down / down.sum()  # eq. 53
    factors = np.zeros(k + 1)
    factors[0], factors[1 : mu + 1] = c1, cmu * pull
    to_ps, to_pc = math.sqrt(cs * (2 - cs) * mueff), math.sqrt(cc * (2 - cc) * mueff)
    chi = math.sqrt(d) * (1 - 1 / (4 * d) + 1 / (21 * d * d))
    return Rates(pull, push, float(push.sum()), factors, mueff, c1, cmu, cc, cs, ds, to_ps, to_pc, chi)


def default_popsize(d: int) -> int:
    """Return 4 + floor(3 ln d), eq. 48."""
    return 4 + int(3 * math.log(d))


def rank(results: Results) -> tuple[Ints, list[float], int]:
    """Return the rows from best to worst, their values, and how many of these are numbers.

    A missing value ranks last, as infinity. Ties keep the order of lanes, which is independent of the points, so that
    they cause no drift.
    """
    values = results.scalar
    n_values = sum(map(math.isfinite, values.tolist()))
    if n_values < len(values):
        values = np.where(np.isfinite(values), values, np.inf)
    order = values.argsort(kind="stable")
    return order, values.take(order).tolist(), n_values


def foreign(results: Results, order: Ints, step: int) -> NDArray[np.bool_] | None:
    """Mark the ranked rows that the distribution of this step did not draw; None if it drew them all.

    They are results of the step before, and points that the method did not choose (lane < 0).
    """
    if results.step[0] >= step and results.lane[0] >= 0:  # sorted by step, so the first row shows whether there are any
        return None
    rows: NDArray[np.bool_] = (results.step.take(order) < step) | (results.lane.take(order) < 0)
    return rows


def pushing(push: Vector, results: Results, order: Ints) -> Vector:
    """Return the weights of the worst, without those of points that the method did not choose.

    How bad a point is says nothing unless the distribution proposed it: Hansen (2011), arXiv:1110.4181.
    """
    return np.where(results.lane.take(order[-len(push) :]) < 0, 0.0, push)


def shorten(deltas: Matrix, rows: NDArray[np.bool_], sigma: float, whiten: Callable[[Matrix], Matrix]) -> None:
    """Shorten x - mean of the given rows, in place, to a length |z| that the distribution could have drawn.

    Hansen (2011), arXiv:1110.4181.
    """
    d, limit = deltas.shape[1], 1e100 * sigma  # whatever was injected, squares stay finite
    y = np.clip(deltas[rows], -limit, limit)
    z = whiten(y / sigma)
    deltas[rows] = y * np.minimum(1.0, longest(d) / np.sqrt(np.vecdot(z, z) + TINY))[:, None]


def longest(d: int) -> float:
    """Return the largest |z| that a foreign point may have in d dimensions."""
    return math.sqrt(d) + 2 * d / (d + 2)


def follow(
    ps: Vector, pc: Vector, yw: Vector, zw: Vector, r: Rates, n_steps: int
) -> tuple[Vector, Vector, float, bool]:
    """Update both evolution paths by one step.

    Parameters
    ----------
    yw, zw : (d,) the weighted mean step, and the same times C^(-1/2).
    n_steps : steps of this run, the present one included.

    Returns
    -------
    ps, pc, growth, h : the paths, the factor of the step size, and whether `pc` took the step: a long `ps` would
    inflate C.
    """
    d = len(ps)
    ps = (1 - r.cs) * ps + r.to_ps * zw  # eq. 43
    length = math.sqrt(ps.dot(ps))
    growth = math.exp(min(1.0, r.cs / r.ds * (length / r.chi - 1)))  # eq. 44
    h = length**2 / d / (1 - (1 - r.cs) ** (2 * n_steps)) < 2 + 4 / (d + 1)
    pc = (1 - r.cc) * pc  # eq. 45
    if h:
        pc += r.to_pc * yw
    return ps, pc, growth, h

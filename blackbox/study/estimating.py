"""Values of points under noise: a regression over the evaluations near them, instead of single lucky readings.

A Gaussian process with a squared-exponential kernel is fitted to the values, with its length and the share of what it
does not explain by maximum likelihood. What it does not explain is noise, or structure that is finer than the points
are dense; where the size of the noise is known the two are told apart, and a reading keeps the share of its distance
from the curve that is not noise::

    y = m + g(x) + e(x) + noise        g ~ GP(0, s K),   e independent of point to point
    E[value at x_i | y] = m + s k(x_i)' A^-1 (y - m) + rest / (rest + noise) * residual_i,    A = s K + (rest + noise) I

so that without noise a told point has its own value, and with nothing but noise the curve's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import gammaincinv

from blackbox.records import Matrix, Vector

MAX_POINTS = 300
"""Most evaluations that are fitted: the time grows with the cube, some 80 ms for these."""
LENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Lengths of the kernel that are tried, in units of the median distance of two points."""
RESTS = 10.0 ** np.arange(-6.0, 2.5, 0.5)
"""Variances of what the curve does not explain that are tried, relative to the curve's."""


@dataclass(frozen=True, slots=True)
class Estimates:
    """Estimated values of k points.

    Attributes
    ----------
    mean, stderr : (k,) values to be minimised, and their standard errors.
    """

    mean: Vector
    stderr: Vector

    def pick(self) -> int:
        """The point to deploy: the lowest mean plus one standard error, so that a guess does not beat what is known."""
        return int(np.argmin(self.mean + self.stderr))


def noise_variance(square: float, n: int) -> float | None:
    """An upper bound (at 75 %) of the variance of one value, from n pairs of values of the same point.

    Parameters
    ----------
    square : sum of the squared differences of the pairs.

    Returns
    -------
    None without pairs. The bound, because a few pairs may differ little by luck, and readings would be believed.
    """
    return square / 2 / (2 * float(gammaincinv(n / 2, 0.25))) if n else None  # 2 gammaincinv: quantile of chi^2


def estimate(points: Matrix, values: Vector, counts: Vector, others: Matrix, noise: float | None) -> Estimates:
    """Estimated values of evaluated points, and of others.

    Parameters
    ----------
    points : (n, d) different internal points; n >= 2.
    values : (n,) finite mean values, minimised.
    counts : (n,) how many values each is the mean of.
    others : (m, d) points that need not have been evaluated.
    noise : variance of one value; None: unknown, then all that the curve does not explain is taken for noise.

    Returns
    -------
    Estimates of n + m points.
    """
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    # Far from the minimum values may be of any size; what happens there must not set the scale.
    values = np.minimum(values, middle + 3 * (high - low)) if high > low else values
    centre, scale = float(values.mean()), float(values.std())
    if scale == 0.0:
        return Estimates(np.full(len(points) + len(others), centre), np.zeros(len(points) + len(others)))
    z, square = (values - centre) / scale, _squares(points, points)
    unit = float(np.median(square[np.triu_indices(len(points), 1)])) or 1.0
    best: tuple[float, float, float, float, float, Vector, Matrix, Vector] | None = None
    for length in LENGTHS:
        variances, vectors = np.linalg.eigh(np.exp(-0.5 / (length * length * unit) * square))
        variances = np.maximum(variances, 0.0)
        turned, one = vectors.T @ z, vectors.sum(axis=0)
        for rest in RESTS:
            spread = variances + rest
            mean = float((one * turned / spread).sum() / (one * one / spread).sum())
            left = turned - mean * one
            size = float((left * left / spread).mean())
            likelihood = -0.5 * (len(z) * np.log(size) + np.log(spread).sum())
            if best is None or likelihood > best[0]:
                best = likelihood, length, float(rest), mean, size, spread, vectors, left
    assert best is not None
    _, length, rest, mean, size, spread, vectors, left = best
    near = np.exp(-0.5 / (length * length * unit) * _squares(np.vstack([points, others]), points)) @ vectors
    found = mean + near @ (left / spread)
    variance = size * np.maximum(1.0 - (near * near / spread).sum(axis=1), 0.0)
    unexplained = size * rest
    structure = 0.0 if noise is None else max(0.0, unexplained - noise / scale**2)
    error = (unexplained - structure) / counts
    share = structure / (structure + error) if structure else np.zeros(len(points))
    told = slice(0, len(points))
    found[told] += share * (z - found[told])
    variance[told] = (1 - share) ** 2 * variance[told] + share * error
    variance[len(points) :] += structure
    return Estimates(centre + scale * found, scale * np.sqrt(variance))


def _squares(a: Matrix, b: Matrix) -> Matrix:
    """(n, m) squared Euclidean distances."""
    square: Matrix = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * (a @ b.T)
    return np.maximum(square, 0.0)

"""Models of an objective from its evaluations: Gaussian processes with closed-form gradients, and random features.

Notation: X (n, d) points, y (n,) values, k a kernel of the distance r = |x - x'| with length l, so that::

    d/dx k(x, x') = -c(r) (x - x')        c = k / l^2                          squared exponential
                                          c = 5/(3 l^2) (1 + s) e^-s           Matern 5/2, s = sqrt(5) r / l
    prior variance of one coordinate of the gradient: c(0)

Posterior of the gradient, with K = k(X, X) + noise (Shu et al. 2023, arXiv:2308.04077)::

    mean  G(x) K^-1 y,     trace of the covariance  d c(0) - |L^-1 G(x)'|_F^2,     G(x) = -(x - X)' diag(c)

Values are scaled to mean 0 and range 1 inside and back outside. Everything is a pure function of arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular

from blackbox import rng
from blackbox.errors import InvalidInput, NumericalError
from blackbox.records import Ints, Matrix, Vector
from blackbox.rng import Key

KernelName: TypeAlias = Literal["matern52", "gaussian"]

JITTER = (0.0, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2)
"""Jitters that are added to the diagonal of a kernel matrix, in turn, until it can be factored."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A stationary, isotropic kernel with k(x, x) = 1.

    Attributes
    ----------
    length : l, the distance over which values are alike. In a unit cube distances grow like sqrt(d), and so should l.
    name : "matern52" (twice differentiable, the usual choice) or "gaussian" (squared exponential).
    """

    length: float
    name: KernelName = "matern52"

    def value(self, square: Matrix) -> Matrix:
        """Return k, from squared distances."""
        if self.name == "gaussian":
            return np.asarray(np.exp(-0.5 / self.length**2 * square))
        s = np.sqrt(5 * square) / self.length
        k: Matrix = (1 + s + s * s / 3) * np.exp(-s)
        return k

    def slope(self, square: Matrix) -> Matrix:
        """Return c, from squared distances: the gradient of k by its first argument is -c (x - x')."""
        if self.name == "gaussian":
            return self.value(square) / self.length**2
        s = np.sqrt(5 * square) / self.length
        c: Matrix = 5 / (3 * self.length**2) * (1 + s) * np.exp(-s)
        return c

    @property
    def gradient_variance(self) -> float:
        """Return c(0), the prior variance of one partial derivative."""
        return (1.0 if self.name == "gaussian" else 5 / 3) / self.length**2


def square_distances(a: Matrix, b: Matrix) -> Matrix:
    """Return (n, m) squared Euclidean distances. Both sets should lie around the origin, or digits cancel."""
    square: Matrix = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * (a @ b.T)
    return np.maximum(square, 0.0)


def factored(matrix: Matrix) -> tuple[Matrix, float]:
    """Return the lower Cholesky factor of a positive semidefinite matrix, and the jitter that it needed.

    Raises
    ------
    NumericalError
        If the largest jitter is not enough: the matrix is not finite, or not a kernel matrix.
    """
    scale = float(np.trace(matrix)) / len(matrix)
    for jitter in JITTER:
        try:
            return cholesky(matrix + jitter * scale * np.eye(len(matrix)), lower=True), jitter * scale
        except (LinAlgError, ValueError):  # not positive definite; not finite
            continue
    raise NumericalError(f"a kernel matrix of {len(matrix)} points cannot be factored with jitter up to {JITTER[-1]}")


def distinct(points: Matrix, values: Vector) -> tuple[Matrix, Vector]:
    """Return the points without repeats, in order of first appearance, with the mean of their values."""
    seen: dict[bytes, int] = {}  # sorting rows, as np.unique does, costs more than a Gaussian process of them
    group = [seen.setdefault(row.tobytes(), len(seen)) for row in points + 0.0]  # -0.0 is 0.0
    if len(seen) == len(points):
        return points, values
    means = np.bincount(group, weights=values) / np.bincount(group)
    return points[np.unique(group, return_index=True)[1]], means


def nearest(points: Matrix, x: Vector, n: int) -> Ints:
    """Return the indices of the n points nearest to x, ascending; ties go to the earlier one."""
    if len(points) <= n:
        return np.arange(len(points))
    square = np.square(points - x).sum(axis=1)
    return np.sort(np.argsort(square, kind="stable")[:n])


# -- Gaussian process --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GaussianProcess:
    """The posterior of a Gaussian process, see `fit`.

    Attributes
    ----------
    kernel, noise : prior; noise is added to the diagonal, in units of the kernel.
    centre : (d,) origin of `points`, so that distances do not cancel.
    points : (n, d) relative to `centre`.
    targets : (n,) scaled values.
    offset, scale : values are offset + scale * targets.
    factor : (n, n) lower Cholesky factor of k(X, X) + noise.
    alpha : (n,) (k(X, X) + noise)^-1 targets.
    """

    kernel: Kernel
    noise: float
    centre: Vector
    points: Matrix
    targets: Vector
    offset: float
    scale: float
    factor: Matrix
    alpha: Vector

    def __len__(self) -> int:
        return len(self.points)

    def mean(self, x: Matrix) -> Vector:
        """Return the (m,) posterior mean at the rows of x."""
        k = self.kernel.value(square_distances(x - self.centre, self.points))
        mean: Vector = self.offset + self.scale * (k @ self.alpha)
        return mean

    def variance(self, x: Matrix) -> Vector:
        """Return the (m,) posterior variance of the value at the rows of x, in units of the values squared."""
        k = self.kernel.value(square_distances(x - self.centre, self.points))
        explained = np.square(solve_triangular(self.factor, k.T, lower=True, check_finite=False)).sum(axis=0)
        variance: Vector = self.scale**2 * np.maximum(1.0 - explained, 0.0)
        return variance

    def gradient(self, x: Vector) -> Vector:
        """Return the (d,) gradient of the posterior mean at x."""
        away = (x - self.centre) - self.points
        c = self.kernel.slope(np.square(away).sum(axis=1))
        gradient: Vector = -self.scale * ((c * self.alpha) @ away)
        return gradient

    def gradient_variance(self, x: Matrix) -> Vector:
        """Return the (m,) trace of the posterior covariance of the gradient at the rows of x, in units of the kernel.

        It does not depend on the values. Where it is large, an evaluation teaches most about the gradient.
        """
        z, points = x - self.centre, self.points
        c = self.kernel.slope(square_distances(z, points))
        inverse = cho_solve((self.factor, True), np.eye(len(points)), check_finite=False)
        # |L^-1 G'|_F^2 = sum_ab c_a c_b K^-1_ab <x - X_a, x - X_b>, with the inner product multiplied out
        kc = c @ inverse
        explained = (z * z).sum(axis=1) * (kc * c).sum(axis=1)
        explained -= 2 * (kc * c * (z @ points.T)).sum(axis=1)
        explained += ((c @ (inverse * (points @ points.T))) * c).sum(axis=1)
        prior = x.shape[1] * self.kernel.gradient_variance
        variance: Vector = np.clip(prior - explained, 0.0, prior)
        return variance

    def append(self, x: Matrix, values: Vector) -> GaussianProcess:
        """Return the posterior with k more points in O(n^2 k) instead of O(n^3). Scale and offset stay as they were.

        Parameters
        ----------
        x : (k, d) points that are not among them yet.
        values : (k,) finite.
        """
        new = x - self.centre
        cross = self.kernel.value(square_distances(self.points, new))
        corner = self.kernel.value(square_distances(new, new)) + self.noise * np.eye(len(new))
        below = solve_triangular(self.factor, cross, lower=True, check_finite=False)  # (n, k)
        last, _ = factored(corner - below.T @ below)
        n, k = len(self.points), len(new)
        factor = np.zeros((n + k, n + k))
        factor[:n, :n], factor[n:, :n], factor[n:, n:] = self.factor, below.T, last
        targets = np.concatenate([self.targets, (values - self.offset) / self.scale])
        alpha = cho_solve((factor, True), targets, check_finite=False)
        points = np.concatenate([self.points, new])
        return replace(self, points=points, targets=targets, factor=factor, alpha=alpha)


def fit(points: Matrix, values: Vector, kernel: Kernel, noise: float = 1e-6) -> GaussianProcess:
    """Fit a Gaussian process to evaluations and return its posterior.

    Parameters
    ----------
    points : (n, d), n >= 1; repeats are merged.
    values : (n,) finite.
    noise : variance of a value's error, in units of the squared range of the values.

    Raises
    ------
    InvalidInput
        If there is no point, or a number is not finite.
    """
    if not len(points) or points.ndim != 2 or values.shape != (len(points),):
        raise InvalidInput(f"expected (n, d) points and (n,) values, got {points.shape} and {values.shape}")
    if not (np.isfinite(points).all() and np.isfinite(values).all()):
        raise InvalidInput("points and values must be finite; leave out what has no value")
    points, values = distinct(points, values)
    centre = points.mean(axis=0)
    inside = points - centre
    offset, scale = float(values.mean()), float(np.ptp(values))
    targets = (values - offset) / scale if scale > 0 else np.zeros(len(values))
    factor, jitter = factored(kernel.value(square_distances(inside, inside)) + noise * np.eye(len(inside)))
    alpha = cho_solve((factor, True), targets, check_finite=False)
    return GaussianProcess(kernel, noise + jitter, centre, inside, targets, offset, scale or 1.0, factor, alpha)


def median_distance(points: Matrix) -> float:
    """Return the median distance of two points; 1 where all are the same."""
    centred = points - points.mean(axis=0)
    square = square_distances(centred, centred)[np.triu_indices(len(points), 1)]
    median = math.sqrt(float(np.median(square))) if len(square) else 0.0
    return median or 1.0


def log_likelihood(square: Matrix, targets: Vector, kernel: Kernel, noise: float = 1e-6) -> float:
    """Return the log marginal likelihood of values without its constant, at the best prior variance.

    Parameters
    ----------
    square : (n, n) squared distances of the points.
    targets : (n,) values less their mean.
    """
    n = len(targets)
    factor, _ = factored(kernel.value(square) + noise * np.eye(n))
    whitened = solve_triangular(factor, targets, lower=True, check_finite=False)
    fitted = float(whitened @ whitened) / n
    if not fitted > 0:
        return -math.inf
    return -0.5 * n * math.log(fitted) - float(np.log(np.diag(factor)).sum())


def likely_length(points: Matrix, values: Vector, kernel: KernelName = "matern52", noise: float = 1e-6) -> float:
    """Return the length of largest marginal likelihood between 0.3 and 30 median distances: golden section on log l.

    Parameters
    ----------
    points : (n, d) distinct, n >= 2.
    values : (n,) finite.
    noise : as in `fit`.
    """
    middle, centred = math.log(median_distance(points)), points - points.mean(axis=0)
    square = square_distances(centred, centred)
    np.fill_diagonal(square, 0.0)
    targets = (values - values.mean()) / (float(np.ptp(values)) or 1.0)

    def badness(log_length: float) -> float:
        return -log_likelihood(square, targets, Kernel(math.exp(log_length), kernel), noise)

    return math.exp(golden_section(badness, middle + math.log(0.3), middle + math.log(30.0), 0.05))


def golden_section(f: Callable[[float], float], low: float, high: float, width: float) -> float:
    """Return the minimiser of a unimodal function of one number, to within `width`."""
    ratio = (math.sqrt(5) - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    fa, fb = f(a), f(b)
    while high - low > width:
        if fa <= fb:
            high, b, fb = b, a, fa
            a = high - ratio * (high - low)
            fa = f(a)
        else:
            low, a, fa = a, b, fb
            b = low + ratio * (high - low)
            fb = f(b)
    return (low + high) / 2


# -- random features ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RandomFeatures:
    """phi(x) = sqrt(2/M) cos(W x + b), whose inner products approximate a squared exponential kernel.

    Rahimi and Recht (2007), Random Features for Large-Scale Kernel Machines. A model is a weight vector, so models of
    several owners can be averaged, and the features themselves need not travel: both sides draw them from a key.

    Attributes
    ----------
    frequencies : W (M, d).
    phases : b (M,) in [0, 2 pi).
    """

    frequencies: Matrix
    phases: Vector

    @classmethod
    def draw(cls, key: Key, n: int, dim: int, length: float) -> RandomFeatures:
        """Draw n = M features of a kernel of the given length from a key: lane m at step 0, phases at step 1."""
        frequencies = rng.normals(key, 0, range(n), dim).astype(np.float64) / length
        return cls(frequencies, 2 * math.pi * rng.uniform(key, 1, 0, n))

    def __len__(self) -> int:
        return len(self.phases)

    def __call__(self, x: Matrix) -> Matrix:
        """Return the (m, M) features at the rows of x."""
        phi: Matrix = math.sqrt(2 / len(self)) * np.cos(x @ self.frequencies.T + self.phases)
        return phi

    def fit(self, points: Matrix, values: Vector, ridge: float = 1e-5) -> Vector:
        """Return the (M,) weights of ridge regression, in units of the values: w = phi' (phi phi' + ridge)^-1 y.

        Parameters
        ----------
        points : (n, d), n >= 1. Solved in n or M dimensions, whichever are fewer.
        values : (n,) finite; a constant is subtracted, so that the model is one of differences.
        ridge : added to the diagonal.
        """
        phi = self(points)
        scale = float(np.ptp(values))
        if not scale > 0:
            return np.zeros(len(self))
        y = (values - values.mean()) / scale
        if len(points) <= len(self):
            factor, _ = factored(phi @ phi.T + ridge * np.eye(len(points)))
            weights: Vector = phi.T @ cho_solve((factor, True), y, check_finite=False)
        else:
            factor, _ = factored(phi.T @ phi + ridge * np.eye(len(self)))
            weights = cho_solve((factor, True), phi.T @ y, check_finite=False)
        return scale * weights

    def mean(self, weights: Vector, x: Matrix) -> Vector:
        """Return the (m,) values of the model at the rows of x."""
        value: Vector = self(x) @ weights
        return value

    def gradient(self, weights: Vector, x: Vector) -> Vector:
        """Return the (d,) gradient of the model at x: -sqrt(2/M) W' (w sin(W x + b))."""
        waves = np.sin(self.frequencies @ x + self.phases)
        gradient: Vector = -math.sqrt(2 / len(self)) * ((weights * waves) @ self.frequencies)
        return gradient

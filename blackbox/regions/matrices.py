"""Sets of matrices, stored row by row in the vector: balls of singular values, sets of eigenvalues."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import scipy
from pydantic import Field

from blackbox.errors import InvalidRegion
from blackbox.records import Matrix, Vector
from blackbox.regions.balls import dual_vector, p_norm
from blackbox.regions.base import Region, generic, norm, project_budget, project_simplex, scaled
from blackbox.regions.simplices import level

DENSE_SVD_UPTO, DENSE_EIGEN_UPTO = 200, 500
"""Orders up to which a dense factorisation is as fast as Lanczos steps (which gain less for eigenvalues)."""


# -- singular values ---------------------------------------------------------------------------------------------------


class _MatrixBall(Region):
    """A ball of a norm of singular values, around 0."""

    rows: int = Field(ge=1, le=1_000_000)
    """Rows of the matrix."""
    cols: int = Field(ge=1, le=1_000_000)
    """Columns; coordinate i is entry (i // cols, i % cols)."""
    radius: float = Field(1.0, gt=0)
    """Radius in the norm."""

    def fixed_dim(self) -> int:
        return self.rows * self.cols

    @property
    def _rank(self) -> int:
        return min(self.rows, self.cols)

    def _matrix(self, x: Vector) -> Matrix:
        return x.reshape(self.rows, self.cols)

    def _singular_values(self, x: Vector) -> Vector:
        values: Vector = scipy.linalg.svdvals(self._matrix(x), check_finite=False)
        return values

    def _interior(self, dim: int) -> tuple[Vector, float]:
        return np.zeros(dim), self._inner_radius

    @property
    def _inner_radius(self) -> float:
        """Radius of the largest Euclidean (Frobenius) ball around 0."""
        return self.radius


class NuclearBall(_MatrixBall):
    """The sum of the singular values (nuclear or trace norm) is at most the radius: the hull of rank-one matrices."""

    type: Literal["nuclear_ball"] = "nuclear_ball"

    def diameter(self, dim: int) -> float:
        self.check_dim(dim)
        return 2 * self.radius

    def _violation(self, x: Vector) -> float:
        return (float(self._singular_values(x).sum()) - self.radius) / self.radius

    def _lmo(self, g: Vector) -> Vector:
        u, v = top_pair(self._matrix(scaled(g)))
        return np.outer(-self.radius * u, v).ravel()

    def _project(self, x: Vector) -> Vector:
        u, values, v = svd(self._matrix(x))
        if values.sum() <= self.radius:
            return x.copy()
        return ((u * project_simplex(values, self.radius)) @ v).ravel()

    @property
    def _inner_radius(self) -> float:
        return self.radius / math.sqrt(self._rank)


class SpectralBall(_MatrixBall):
    """The largest singular value is at most the radius: the hull of matrices with orthonormal rows or columns."""

    type: Literal["spectral_ball"] = "spectral_ball"

    def diameter(self, dim: int) -> float:
        self.check_dim(dim)
        return 2 * self.radius * math.sqrt(self._rank)

    def _violation(self, x: Vector) -> float:
        return (float(self._singular_values(x)[0]) - self.radius) / self.radius

    def _lmo(self, g: Vector) -> Vector:
        u, _, v = svd(self._matrix(scaled(g)))
        return (-self.radius * (u @ v)).ravel()

    def _project(self, x: Vector) -> Vector:
        u, values, v = svd(self._matrix(x))
        if values[0] <= self.radius:
            return x.copy()
        return ((u * np.minimum(values, self.radius)) @ v).ravel()


class SchattenBall(_MatrixBall):
    """The p-norm of the singular values is at most the radius, 1 < p < infinity."""

    type: Literal["schatten_ball"] = "schatten_ball"
    p: float = Field(gt=1)
    """The exponent of the norm."""

    def diameter(self, dim: int) -> float:
        self.check_dim(dim)
        return float(2 * self.radius * max(1.0, self._rank ** (1 / 2 - 1 / self.p)))

    def _violation(self, x: Vector) -> float:
        return (p_norm(self._singular_values(x), self.p) - self.radius) / self.radius

    def _lmo(self, g: Vector) -> Vector:
        u, values, v = svd(self._matrix(scaled(g)))
        return ((u * (-self.radius * dual_vector(values, self.p))) @ v).ravel()

    @property
    def _inner_radius(self) -> float:
        return float(self.radius * min(1.0, self._rank ** (1 / 2 - 1 / self.p)))


# -- eigenvalues -------------------------------------------------------------------------------------------------------


class _SymmetricSet(Region):
    """Symmetric matrices with a condition on their eigenvalues."""

    order: int = Field(ge=1, le=1000)
    """Rows and columns of the matrix; coordinate i is entry (i // order, i % order)."""

    def fixed_dim(self) -> int:
        return self.order**2

    @property
    def _has_volume(self) -> bool:
        return False

    def _symmetric(self, x: Vector) -> Matrix:
        square = x.reshape(self.order, self.order)
        return 0.5 * square + 0.5 * square.T

    def _skew(self, x: Vector) -> float:
        square = x.reshape(self.order, self.order)
        return float(np.abs(square - square.T).max())

    def _traceless(self, z: Vector) -> Vector:
        square = self._symmetric(z)
        np.fill_diagonal(square, level(square.diagonal()))
        return square.ravel()


class Spectraplex(_SymmetricSet):
    """Positive semidefinite matrices with trace = radius (density matrices), or <= radius."""

    type: Literal["spectraplex"] = "spectraplex"
    radius: float = Field(1.0, gt=0)
    """The trace."""
    exact: bool = True
    """Whether the trace must be equal to the radius, not only at most."""

    def diameter(self, dim: int) -> float:
        self.check_dim(dim)
        if self.order == 1:
            return 0.0 if self.exact else self.radius
        return math.sqrt(2) * self.radius

    def _violation(self, x: Vector) -> float:
        symmetric = self._symmetric(x)
        lowest = scipy.linalg.eigvalsh(symmetric, subset_by_index=(0, 0), check_finite=False)[0]
        trace = float(np.trace(symmetric)) - self.radius
        return max(self._skew(x), -float(lowest), abs(trace) if self.exact else trace) / self.radius

    def _lmo(self, g: Vector) -> Vector:
        value, vector = lowest_pair(self._symmetric(scaled(g)))
        if not self.exact and value >= 0:
            return np.zeros(g.size)
        return np.outer(self.radius * vector, vector).ravel()

    def _project(self, x: Vector) -> Vector:
        values, vectors = np.linalg.eigh(self._symmetric(x))
        positive = np.maximum(values, 0.0)
        if self.exact or positive.sum() > self.radius:
            positive = project_simplex(values, self.radius)
        return rebuilt(vectors, positive)

    def _interior(self, dim: int) -> tuple[Vector, float]:
        n = self.order
        if not self.exact:
            share = self.radius / (n + math.sqrt(n))
            return (share * np.eye(n)).ravel(), share
        return (self.radius / n * np.eye(n)).ravel(), self.radius / math.sqrt(n * (n - 1)) if n > 1 else math.inf

    def _tangent(self, z: Vector) -> Vector:
        return self._traceless(z) if self.exact else self._symmetric(z).ravel()


class Fantope(_SymmetricSet):
    """0 <= X <= I with trace k: the hull of projections onto k-dimensional subspaces."""

    type: Literal["fantope"] = "fantope"
    k: int = Field(ge=1)
    """Rank of an extreme point."""

    def check_dim(self, dim: int) -> None:
        super().check_dim(dim)
        if self.k > self.order:
            raise InvalidRegion(f"k must be at most the order {self.order}, got {self.k}")

    def diameter(self, dim: int) -> float:
        self.check_dim(dim)
        return math.sqrt(2 * min(self.k, self.order - self.k))

    def _violation(self, x: Vector) -> float:
        values = scipy.linalg.eigvalsh(self._symmetric(x), check_finite=False)
        beyond = max(-float(values[0]), float(values[-1]) - 1, abs(float(values.sum()) - self.k))
        return max(self._skew(x), beyond)

    def _lmo(self, g: Vector) -> Vector:
        chosen = scipy.linalg.eigh(self._symmetric(scaled(g)), subset_by_index=(0, self.k - 1), check_finite=False)[1]
        vertex: Vector = (chosen @ chosen.T).ravel()
        return vertex

    def _project(self, x: Vector) -> Vector:
        values, vectors = np.linalg.eigh(self._symmetric(x))
        ones = np.ones(self.order)
        return rebuilt(vectors, project_budget(values, ones, ones, float(self.k)))

    def _interior(self, dim: int) -> tuple[Vector, float]:
        n, share = self.order, self.k / self.order
        room = min(share, 1 - share) * math.sqrt(n / (n - 1)) if self.k < n else math.inf
        return (share * np.eye(n)).ravel(), room

    def _tangent(self, z: Vector) -> Vector:
        return self._traceless(z) if self.k < self.order else np.zeros(z.size)


# -- factorisations ----------------------------------------------------------------------------------------------------


def svd(matrix: Matrix) -> tuple[Matrix, Vector, Matrix]:
    """Thin singular value decomposition u, values, v with matrix = (u * values) @ v."""
    top = float(np.abs(matrix).max()) or 1.0
    u, values, v = scipy.linalg.svd(matrix / top, full_matrices=False, check_finite=False)
    return u, top * values, v


def rebuilt(vectors: Matrix, values: Vector) -> Vector:
    """The symmetric matrix with these eigenvectors and eigenvalues, row by row."""
    square = (vectors * values) @ vectors.T
    return (0.5 * square + 0.5 * square.T).ravel()


def top_pair(matrix: Matrix) -> tuple[Vector, Vector]:
    """The singular vectors u, v of the largest singular value."""
    if (
        min(matrix.shape) > DENSE_SVD_UPTO
        and (found := _lanczos(scipy.sparse.linalg.svds, matrix, min(matrix.shape))) is not None
    ):
        u, _, v = found
        return u[:, 0], v[0]
    u, _, v = scipy.linalg.svd(matrix, full_matrices=False, check_finite=False)
    return u[:, 0], v[0]


def lowest_pair(matrix: Matrix) -> tuple[float, Vector]:
    """The smallest eigenvalue of a symmetric matrix, and its vector."""
    if (
        len(matrix) > DENSE_EIGEN_UPTO
        and (found := _lanczos(scipy.sparse.linalg.eigsh, matrix, len(matrix), which="SA")) is not None
    ):
        values, vectors = found
    else:
        values, vectors = scipy.linalg.eigh(matrix, subset_by_index=(0, 0), check_finite=False)
    return float(values[0]), vectors[:, 0]


def _lanczos(solve: Any, matrix: Matrix, n: int, **options: str) -> Any:
    """The extreme pair by ARPACK from a fixed start, or None where it does not converge or has nothing to find."""
    if not matrix.any():
        return None
    start = generic(n)
    try:
        return solve(matrix, k=1, v0=start / norm(start), tol=0, maxiter=20 * n, **options)
    except scipy.sparse.linalg.ArpackError:
        return None

"""Boxes and norm balls."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from blackbox.errors import FieldError, InvalidRegion
from blackbox.records import Matrix, Vector
from blackbox.regions.base import (
    Region,
    Rows,
    Scalars,
    largest,
    length_of,
    norm,
    one_hot,
    project_budget,
    project_simplex,
    scalars_errors,
    scaled,
    smallest,
    spread,
    unit,
)


class Box(Region):
    """lower <= x <= upper, coordinate by coordinate."""

    type: Literal["box"] = "box"
    lower: Scalars = 0.0
    """Lower bounds."""
    upper: Scalars = 1.0
    """Upper bounds; where equal to the lower one the coordinate is fixed."""

    def errors(self) -> Iterable[FieldError]:
        lengths = {len(side) for side in (self.lower, self.upper) if isinstance(side, tuple)}
        if len(lengths) > 1 or 0 in lengths:
            yield FieldError("/lower", "wrong_length", "lower and upper must be equally long and not empty")
        elif np.any(self._low > self._high):
            where = int(np.argmax(np.atleast_1d(self._low > self._high)))
            yield FieldError("/lower", "empty", f"lower is above upper at coordinate {where}: the set is empty")

    @cached_property
    def _low(self) -> Vector:
        return np.asarray(self.lower, dtype=np.float64)

    @cached_property
    def _high(self) -> Vector:
        return np.asarray(self.upper, dtype=np.float64)

    @cached_property
    def _size(self) -> float:
        return max(largest(self._low), largest(self._high)) or 1.0

    def fixed_dim(self) -> int | None:
        lengths = [len(side) for side in (self.lower, self.upper) if isinstance(side, tuple)]
        return lengths[0] if lengths else None

    def diameter(self, dim: int) -> float:
        self.check_dim(dim)
        return norm(np.broadcast_to(self._high - self._low, (dim,)))

    def _violation(self, x: Vector) -> float:
        return float(np.maximum(self._low - x, x - self._high).max()) / self._size

    def _project(self, x: Vector) -> Vector:
        return np.minimum(np.maximum(x, self._low), self._high)

    def _lmo(self, g: Vector) -> Vector:
        return np.where(g > 0, self._low, self._high)

    def _interior(self, dim: int) -> tuple[Vector, float]:
        middle, half = 0.5 * self._low + 0.5 * self._high, 0.5 * self._high - 0.5 * self._low
        return np.broadcast_to(middle, (dim,)).copy(), float(np.where(half > 0, half, np.inf).min())

    def _tangent(self, z: Vector) -> Vector:
        return np.where(self._high > self._low, z, 0.0)

    @property
    def _has_volume(self) -> bool:
        return bool((self._high > self._low).all())


class _Ball(Region):
    """A norm ball around `centre`."""

    radius: float = Field(1.0, gt=0)
    """Radius in the ball's norm."""
    centre: Scalars = 0.0
    """The middle of the ball."""

    def errors(self) -> Iterable[FieldError]:
        if self.centre == ():
            yield FieldError("/centre", "wrong_length", "must not be empty")

    @cached_property
    def _centre(self) -> Vector:
        return np.asarray(self.centre, dtype=np.float64)

    @cached_property
    def _size(self) -> float:
        return max(self.radius, largest(self._centre))

    def fixed_dim(self) -> int | None:
        return len(self.centre) if isinstance(self.centre, tuple) else None

    def diameter(self, dim: int) -> float:
        self.check_dim(dim)
        return 2 * self.radius

    def _interior(self, dim: int) -> tuple[Vector, float]:
        return np.broadcast_to(self._centre, (dim,)).copy(), self._inner_radius(dim)

    def _inner_radius(self, dim: int) -> float:
        """Radius of the largest Euclidean ball around the centre."""
        return self.radius


class L1Ball(_Ball):
    """sum weights |x - centre| <= radius."""

    type: Literal["l1_ball"] = "l1_ball"
    weights: Scalars = 1.0
    """Cost of a unit of each coordinate."""

    def errors(self) -> Iterable[FieldError]:
        yield from scalars_errors(positive=False, centre=self.centre, weights=self.weights)
        yield from scalars_errors(weights=self.weights)

    @cached_property
    def _weights(self) -> Vector:
        return np.asarray(self.weights, dtype=np.float64)

    def fixed_dim(self) -> int | None:
        return length_of(self.centre, self.weights)

    def diameter(self, dim: int) -> float:
        self.check_dim(dim)
        return 2 * self.radius / float(self._weights.min())

    def _violation(self, x: Vector) -> float:
        return (float((self._weights * np.abs(x - self._centre)).sum()) - self.radius) / self._size

    def _project(self, x: Vector) -> Vector:
        offset = x - self._centre
        size = np.abs(offset)
        if (self._weights * size).sum() <= self.radius:
            return x.copy()
        if self._weights.ndim == 0:
            nearest = project_simplex(size, self.radius / float(self._weights))
        else:
            nearest = project_budget(size, self._weights, np.full(x.size, np.inf), self.radius)
        return self._centre + np.copysign(nearest, offset)

    def _lmo(self, g: Vector) -> Vector:
        i = int((np.abs(scaled(g)) / self._weights).argmax())
        reach = self.radius / float(self._weights if self._weights.ndim == 0 else self._weights[i])
        return one_hot(g.size, i, reach if g[i] < 0 else -reach) + self._centre  # sign(0) := +1

    def _inner_radius(self, dim: int) -> float:
        return self.radius / norm(spread(self.weights, dim))


class L2Ball(_Ball):
    """||x - centre||_2 <= radius."""

    type: Literal["l2_ball"] = "l2_ball"

    def _violation(self, x: Vector) -> float:
        return (norm(x - self._centre) - self.radius) / self._size

    def _project(self, x: Vector) -> Vector:
        offset = x - self._centre
        if norm(offset) <= self.radius:
            return x.copy()
        return self._centre + self.radius * unit(offset)

    def _lmo(self, g: Vector) -> Vector:
        return self._centre - self.radius * unit(g)


class LpBall(_Ball):
    """||x - centre||_p <= radius for 1 < p < infinity (for the two ends there are l1_ball and box)."""

    type: Literal["lp_ball"] = "lp_ball"
    p: float = Field(gt=1)
    """The exponent of the norm."""

    def diameter(self, dim: int) -> float:
        self.check_dim(dim)
        return float(2 * self.radius * max(1.0, dim ** (1 / 2 - 1 / self.p)))

    def _violation(self, x: Vector) -> float:
        return (p_norm(x - self._centre, self.p) - self.radius) / self._size

    def _lmo(self, g: Vector) -> Vector:
        return self._centre - self.radius * dual_vector(g, self.p)

    def _inner_radius(self, dim: int) -> float:
        return float(self.radius * min(1.0, dim ** (1 / 2 - 1 / self.p)))


MAX_ORDER = 300
"""Most rows of an ellipsoid's matrix, which is factorised when it is read."""


class Ellipsoid(_Ball):
    """(x - centre)' matrix (x - centre) <= radius^2."""

    type: Literal["ellipsoid"] = "ellipsoid"
    matrix: Rows | tuple[float, ...]
    """A symmetric positive definite matrix, row by row, or its diagonal: 1 / (semi-axis)^2 for radius 1."""

    def errors(self) -> Iterable[FieldError]:
        n = len(self.matrix)
        if n > MAX_ORDER and isinstance(self.matrix[0], tuple):
            yield FieldError("/matrix", "too_large", f"must have at most {MAX_ORDER} rows, got {n}; give its diagonal")
            return
        if n == 0 or any(len(row) != n for row in self.matrix if isinstance(row, tuple)):
            yield FieldError("/matrix", "wrong_length", "must be a square matrix or its diagonal")
            return
        if self.centre == () or length_of(self.centre) not in (None, n):
            yield FieldError("/centre", "wrong_length", f"must be one number, or {n}")
        matrix = np.asarray(self.matrix)
        if matrix.ndim == 2 and np.abs(matrix - matrix.T).max() > 1e-9 * np.abs(matrix).max():
            yield FieldError("/matrix", "not_symmetric", "must be symmetric")
        elif not self._values.min() > 1e-13 * self._values.max():
            message = f"must be positive definite, its smallest eigenvalue is {self._values.min():.3g}"
            yield FieldError("/matrix", "not_positive", message + f" and its largest {self._values.max():.3g}")

    @cached_property
    def _eigen(self) -> tuple[Vector, Matrix | None]:
        """Eigenvalues and the matrix of eigenvectors; None for a diagonal."""
        matrix = np.asarray(self.matrix, dtype=np.float64)
        if matrix.ndim == 1:
            return matrix, None
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        return values, vectors

    @property
    def _values(self) -> Vector:
        return self._eigen[0]

    def _turned(self, x: Vector) -> Vector:
        """In the basis of eigenvectors."""
        return x if self._eigen[1] is None else x @ self._eigen[1]

    def _back(self, z: Vector) -> Vector:
        return z if self._eigen[1] is None else self._eigen[1] @ z

    def fixed_dim(self) -> int:
        return len(self.matrix)

    def diameter(self, dim: int) -> float:
        self.check_dim(dim)
        return 2 * self.radius / math.sqrt(self._values.min())

    @cached_property
    def _size(self) -> float:
        return max(self.radius / math.sqrt(self._values.min()), largest(self._centre))

    def _violation(self, x: Vector) -> float:
        stretched = np.sqrt(self._values) * self._turned(x - self._centre)
        return (norm(stretched) - self.radius) / math.sqrt(self._values.max()) / self._size

    def _lmo(self, g: Vector) -> Vector:
        root = np.sqrt(self._values)
        return self._centre - self._back(self.radius * unit(self._turned(scaled(g)) / root) / root)

    def _project(self, x: Vector) -> Vector:
        offset = self._turned(x - self._centre)
        root = np.sqrt(self._values)
        length = norm(root * offset)
        if length <= self.radius:
            return x.copy()
        # The nearest point is offset / (1 + mu values) with the mu that puts it on the border. 1 / ||.|| as a function
        # of mu is concave, so that Newton's method climbs to the root from mu = 0 without passing it.
        z, target, mu = offset / length, length / self.radius, 0.0
        for _ in range(100):
            shrink = 1 + mu * self._values
            border = root * z / shrink
            size = norm(border)
            slope = float((border / size) ** 2 @ (self._values / shrink)) / size
            step = (target - 1 / size) / slope
            mu += step
            if step <= 1e-15 * mu:
                break
        nearest = z / (1 + mu * self._values)
        return self._centre + self._back(nearest * (self.radius / norm(root * nearest)))

    def _inner_radius(self, dim: int) -> float:
        return self.radius / math.sqrt(self._values.max())


class KSparsePolytope(_Ball):
    """|x - centre| <= radius in each coordinate and sum |x - centre| <= k radius: the hull of k-sparse sign vectors."""

    type: Literal["k_sparse"] = "k_sparse"
    k: int = Field(ge=1)
    """Non-zero coordinates of an extreme point."""

    def check_dim(self, dim: int) -> None:
        super().check_dim(dim)
        if self.k > dim:
            raise InvalidRegion(f"k must be at most the dimension {dim}, got {self.k}")

    def diameter(self, dim: int) -> float:
        self.check_dim(dim)
        return 2 * self.radius * math.sqrt(self.k)

    def _violation(self, x: Vector) -> float:
        size = np.abs(x - self._centre)
        return max(float(size.max()) - self.radius, float(size.sum()) / self.k - self.radius) / self._size

    def _lmo(self, g: Vector) -> Vector:
        signs = np.where(g < 0, self.radius, -self.radius)
        return np.where(smallest(-np.abs(g), self.k), signs, 0.0) + self._centre

    def _project(self, x: Vector) -> Vector:
        offset = x - self._centre
        size = np.abs(offset)
        nearest = np.minimum(size, self.radius)
        if nearest.sum() > self.k * self.radius:
            ones = np.ones(x.size)
            nearest = project_budget(size, ones, self.radius * ones, self.k * self.radius)
        return self._centre + np.copysign(nearest, offset)

    def _inner_radius(self, dim: int) -> float:
        return self.radius * min(1.0, self.k / math.sqrt(dim))


class OrderedL1Ball(_Ball):
    """sum weights_i |x - centre|_(i) <= radius, where |.|_(1) is the largest magnitude (OWL, SLOPE)."""

    type: Literal["ordered_l1_ball"] = "ordered_l1_ball"
    weights: tuple[float, ...]
    """Not negative, not rising, the first above 0; one for each coordinate."""

    def errors(self) -> Iterable[FieldError]:
        n = len(self.weights)
        if n == 0 or not self.weights[0] > 0 or min(self.weights) < 0 or np.any(np.diff(self.weights) > 0):
            message = "must be one number for each coordinate, not negative and not rising, the first above 0"
            yield FieldError("/weights", "not_ordered", message)
        if self.centre == () or length_of(self.centre) not in (None, n):
            yield FieldError("/centre", "wrong_length", f"must be one number, or {n}")

    @cached_property
    def _sums(self) -> Vector:
        return np.cumsum(self.weights)

    def fixed_dim(self) -> int:
        return len(self.weights)

    def diameter(self, dim: int) -> float:
        self.check_dim(dim)
        return 2 * self.radius * float((np.sqrt(np.arange(1, dim + 1)) / self._sums).max())

    def _violation(self, x: Vector) -> float:
        falling = np.sort(np.abs(x - self._centre))[::-1]
        return (float(falling @ np.asarray(self.weights)) - self.radius) / self.weights[0] / self._size

    def _lmo(self, g: Vector) -> Vector:
        # An extreme point has equal magnitudes on some coordinates; the best ones lead the order of |g|.
        size = np.abs(scaled(g))
        order = np.argsort(-size, kind="stable")
        n = 1 + int((np.cumsum(size[order]) / self._sums).argmax())
        vertex = np.zeros(g.size)
        lead = order[:n]
        vertex[lead] = np.where(g[lead] < 0, 1.0, -1.0) * (self.radius / self._sums[n - 1])
        return vertex + self._centre

    def _inner_radius(self, dim: int) -> float:
        return self.radius / norm(np.asarray(self.weights))


class GroupBall(_Ball):
    """sum over groups of ||x_group - centre_group||_2 <= radius (group lasso)."""

    type: Literal["group_ball"] = "group_ball"
    groups: int | tuple[tuple[int, ...], ...]
    """The size of each group of neighbours, or the coordinates of each group; every coordinate in exactly one."""

    def errors(self) -> Iterable[FieldError]:
        yield from super().errors()
        if isinstance(self.groups, int):
            if self.groups < 1:
                yield FieldError("/groups", "greater_than_equal", f"a group has at least 1 member, got {self.groups}")
            return
        members = sorted(i for group in self.groups for i in group)
        if members != list(range(len(members))) or not all(self.groups):
            yield FieldError("/groups", "no_partition", "must name each coordinate 0, 1, ... once, and no empty group")
        elif length_of(self.centre) not in (None, len(members)):
            yield FieldError("/centre", "wrong_length", f"must be one number, or {len(members)}")

    def fixed_dim(self) -> int | None:
        return length_of(self.centre) if isinstance(self.groups, int) else sum(map(len, self.groups))

    def check_dim(self, dim: int) -> None:
        super().check_dim(dim)
        if isinstance(self.groups, int) and dim % self.groups:
            raise InvalidRegion(f"{dim} coordinates are not whole groups of {self.groups}")

    def _labels(self, dim: int) -> NDArray[np.int64]:
        """(dim,) the group of each coordinate."""
        if isinstance(self.groups, int):
            return np.arange(dim) // self.groups
        labels = np.empty(dim, dtype=np.int64)
        for label, group in enumerate(self.groups):
            labels[list(group)] = label
        return labels

    def _norms(self, x: Vector) -> tuple[Vector, NDArray[np.int64]]:
        """(groups,) the norm of each group, and the labels."""
        labels = self._labels(x.size)
        top = float(np.abs(x).max()) or 1.0
        return top * np.sqrt(np.bincount(labels, (x / top) ** 2)), labels

    def _violation(self, x: Vector) -> float:
        return (float(self._norms(x - self._centre)[0].sum()) - self.radius) / self._size

    def _lmo(self, g: Vector) -> Vector:
        norms, labels = self._norms(scaled(g))
        own = labels == int(norms.argmax())
        vertex = np.zeros(g.size)
        vertex[own] = -self.radius * unit(g[own])
        return vertex + self._centre

    def _project(self, x: Vector) -> Vector:
        offset = x - self._centre
        norms, labels = self._norms(offset)
        if norms.sum() <= self.radius:
            return x.copy()
        nearest = project_simplex(norms, self.radius)
        factor = np.divide(nearest, norms, out=np.zeros_like(norms), where=norms > 0)
        return self._centre + factor[labels] * offset

    def _inner_radius(self, dim: int) -> float:
        return self.radius / math.sqrt(1 + int(self._labels(dim).max()))


def p_norm(x: Vector, p: float) -> float:
    """||x||_p without overflow of the powers."""
    top = float(np.abs(x).max())
    return top * float(((np.abs(x) / top) ** p).sum() ** (1 / p)) if top > 0 else 0.0


def dual_vector(g: Vector, p: float) -> Vector:
    """The v with ||v||_p = 1 and <g, v> = ||g||_q for 1/p + 1/q = 1; the first unit vector for g = 0."""
    if not g.any():
        return one_hot(g.size, 0, 1.0)
    size = np.abs(scaled(g)) ** (1 / (p - 1))  # |g|^(q - 1)
    vector: Vector = np.copysign(size / p_norm(size, p), g)
    return vector

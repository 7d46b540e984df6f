"""Convex hulls of lists of points."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import Literal

import numpy as np

from blackbox.errors import FieldError
from blackbox.records import Matrix, Vector
from blackbox.regions.base import Region, Rows, largest, nearest_in_hull, norm, scaled
from blackbox.validation import pointer

MAX_LISTED = 250_000
"""Most numbers in a list of points."""


class Hull(Region):
    """The convex hull of some points."""

    type: Literal["hull"] = "hull"
    points: Rows
    """The points, at least one."""

    def errors(self) -> Iterable[FieldError]:
        if not self.points or not self.points[0]:
            yield FieldError("/points", "empty", "needs at least one point")
            return
        if (n := len(self.points) * len(self.points[0])) > MAX_LISTED:
            yield FieldError("/points", "too_large", f"must be at most {MAX_LISTED} numbers, got {n}")
        for i, point in enumerate(self.points):
            if len(point) != len(self.points[0]):
                message = f"must be {len(self.points[0])} numbers like the first point, got {len(point)}"
                yield FieldError(pointer("points", i), "wrong_length", message)
                return

    @cached_property
    def _points(self) -> Matrix:
        """(n, d) in lexicographic order: the first of several best points is then an extreme point of their hull."""
        points = np.asarray(self.points, dtype=np.float64)
        return points[np.lexsort(points.T[::-1])]

    @cached_property
    def _middle(self) -> Vector:
        middle: Vector = self._points.mean(axis=0)
        return middle

    @cached_property
    def _size(self) -> float:
        return largest(self._points) or 1.0

    def fixed_dim(self) -> int:
        return len(self.points[0])

    def diameter(self, dim: int) -> float:
        self.check_dim(dim)
        return 2 * max(norm(point - self._middle) for point in self._points)

    def _violation(self, x: Vector) -> float:
        return norm(nearest_in_hull((self._points - x) / self._size)[0])

    def _lmo(self, g: Vector) -> Vector:
        best: Vector = self._points[int((self._points @ scaled(g)).argmin())]
        return best.copy()

    def _interior(self, dim: int) -> tuple[Vector, float]:
        return self._middle.copy(), 0.0 if self._span.shape[0] else math.inf

    @cached_property
    def _span(self) -> Matrix:
        """(r, d) orthonormal basis of the directions between the points."""
        return row_space(self._points - self._middle)

    def _tangent(self, z: Vector) -> Vector:
        tangent: Vector = self._span.T @ (self._span @ z)
        return tangent

    @property
    def _has_volume(self) -> bool:
        return len(self._span) == self.fixed_dim()


def row_space(matrix: Matrix) -> Matrix:
    """(r, d) orthonormal basis of the span of the rows."""
    _, values, v = np.linalg.svd(matrix, full_matrices=False)
    basis: Matrix = v[values > 1e-10 * max(values[0], 1e-300)]
    return basis

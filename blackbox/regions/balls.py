"""Boxes and norm balls."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import Literal

import numpy as np
from pydantic import Field

from blackbox.errors import FieldError
from blackbox.records import Vector
from blackbox.regions.base import Region, Scalars, largest, norm, project_simplex, unit


class Box(Region):
    """lower <= x <= upper, coordinate by coordinate."""

    type: Literal["box"] = "box"
    lower: Scalars = 0.0
    """Lower bounds."""
    upper: Scalars = 1.0
    """Upper bounds; where equal to the lower one the coordinate is fixed."""

    def faults(self) -> Iterable[FieldError]:
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


class _Ball(Region):
    """A norm ball around `centre`."""

    radius: float = Field(1.0, gt=0)
    """Radius in the ball's norm."""
    centre: Scalars = 0.0
    """The middle of the ball."""

    def faults(self) -> Iterable[FieldError]:
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
    """sum |x - centre| <= radius."""

    type: Literal["l1_ball"] = "l1_ball"

    def _violation(self, x: Vector) -> float:
        return (float(np.abs(x - self._centre).sum()) - self.radius) / self._size

    def _project(self, x: Vector) -> Vector:
        offset = x - self._centre
        size = np.abs(offset)
        if size.sum() <= self.radius:
            return x.copy()
        return self._centre + np.copysign(project_simplex(size, self.radius), offset)

    def _lmo(self, g: Vector) -> Vector:
        vertex = np.zeros_like(g)
        i = np.abs(g).argmax()
        vertex[i] = self.radius if g[i] < 0 else -self.radius  # sign(0) := +1
        return vertex + self._centre

    def _inner_radius(self, dim: int) -> float:
        return self.radius / math.sqrt(dim)


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

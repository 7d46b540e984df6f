"""Simplices and their relatives: non-negative coordinates with a bound on what they sum to."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from pydantic import Field

from blackbox.records import Vector
from blackbox.regions.base import Region, one_hot, project_simplex


class Simplex(Region):
    """x >= 0, sum x = radius: the probability simplex for radius 1."""

    type: Literal["simplex"] = "simplex"
    radius: float = Field(1.0, gt=0)
    """What the coordinates sum to."""

    def diameter(self, dim: int) -> float:
        return math.sqrt(2) * self.radius if dim > 1 else 0.0

    def _violation(self, x: Vector) -> float:
        return max(-float(x.min()), abs(float(x.sum()) - self.radius)) / self.radius

    def _project(self, x: Vector) -> Vector:
        return project_simplex(x, self.radius)

    def _lmo(self, g: Vector) -> Vector:
        return one_hot(g.size, int(g.argmin()), self.radius)

    def _interior(self, dim: int) -> tuple[Vector, float]:
        to_a_face = self.radius / math.sqrt(dim * (dim - 1)) if dim > 1 else math.inf
        return np.full(dim, self.radius / dim), to_a_face

    def _tangent(self, z: Vector) -> Vector:
        tangent: Vector = z - z.mean()
        return tangent

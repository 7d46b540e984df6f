"""Sets composed of other sets, whose oracle follows from the oracles of the parts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from blackbox.errors import FieldError, InvalidInput, InvalidRegion
from blackbox.records import Matrix, Vector
from blackbox.regions.base import Region, Rows, Scalars, distance, generic, largest, length_of, norm, scaled
from blackbox.validation import Described, pointer

if TYPE_CHECKING:
    from blackbox.regions import AnyRegion


MAX_MAPPED = 40_000
"""Most numbers in the matrix of an affine image."""
MAX_JOINED_DIM = 10_000
"""Most coordinates of a sum or a hull of sets, in which testing membership is a search."""


class Part(Described):
    """Some neighbouring coordinates of a product, and their set."""

    error_class: ClassVar[type[InvalidInput]] = InvalidRegion

    dim: int = Field(ge=1)
    """Number of coordinates."""
    region: AnyRegion
    """Their set."""

    def errors(self) -> Iterable[FieldError]:
        yield from _dim_errors(self.region, self.dim, "/region")


class Product(Region):
    """C1 x C2 x ...: each part of the coordinates has a set of its own, and the oracle works part by part."""

    type: Literal["product"] = "product"
    parts: tuple[Part, ...]
    """The parts, in the order of their coordinates."""

    def errors(self) -> Iterable[FieldError]:
        if not self.parts:
            yield FieldError("/parts", "empty", "needs at least one part")

    @cached_property
    def _slices(self) -> tuple[tuple[slice, Region], ...]:
        ends = list(accumulate(part.dim for part in self.parts))
        return tuple((slice(end - p.dim, end), p.region) for p, end in zip(self.parts, ends, strict=True))

    def fixed_dim(self) -> int:
        return sum(part.dim for part in self.parts)

    @property
    def has_projection(self) -> bool:
        return all(part.region.has_projection for part in self.parts)

    def diameter(self, dim: int) -> float:
        self.check_dim(dim)
        return math.hypot(*(part.region.diameter(part.dim) for part in self.parts))

    def _violation(self, x: Vector) -> float:
        return max(region._violation(x[own]) for own, region in self._slices)

    def _lmo(self, g: Vector) -> Vector:
        return np.concatenate([region._lmo(g[own]) for own, region in self._slices])

    def _project(self, x: Vector) -> Vector:
        return np.concatenate([region._project(x[own]) for own, region in self._slices])

    def _interior(self, dim: int) -> tuple[Vector, float]:
        points, radii = zip(*(part.region._interior(part.dim) for part in self.parts), strict=True)
        return np.concatenate(points), min(radii)

    def _tangent(self, z: Vector) -> Vector:
        return np.concatenate([region._tangent(z[own]) for own, region in self._slices])

    @property
    def _has_volume(self) -> bool:
        return all(part.region._has_volume for part in self.parts)


class AffineImage(Region):
    """{matrix y + offset : y in region}: the image of a set under an affine map."""

    type: Literal["affine_image"] = "affine_image"
    matrix: Rows
    """The map, row by row: as many rows as the image has coordinates, as many columns as the region."""
    offset: Scalars = 0.0
    """Added to the image."""
    region: AnyRegion
    """The set that is mapped."""

    def errors(self) -> Iterable[FieldError]:
        columns = len(self.matrix[0]) if self.matrix else 0
        if (n := len(self.matrix) * columns) > MAX_MAPPED:
            yield FieldError("/matrix", "too_large", f"must hold at most {MAX_MAPPED} numbers, got {n}")
        if not columns or any(len(row) != columns for row in self.matrix):
            yield FieldError("/matrix", "wrong_length", "must be rows of equally many numbers")
            return
        if length_of(self.offset) not in (None, len(self.matrix)):
            yield FieldError("/offset", "wrong_length", f"must be one number, or {len(self.matrix)}")
        yield from _dim_errors(self.region, columns, "/region")

    @cached_property
    def _matrix(self) -> Matrix:
        return np.asarray(self.matrix, dtype=np.float64)

    @cached_property
    def _offset(self) -> Vector:
        return np.asarray(self.offset, dtype=np.float64)

    @property
    def _inner_dim(self) -> int:
        return int(self._matrix.shape[1])

    def fixed_dim(self) -> int:
        return len(self.matrix)

    def diameter(self, dim: int) -> float:
        self.check_dim(dim)
        return float(np.linalg.norm(self._matrix, 2)) * self.region.diameter(self._inner_dim)

    @cached_property
    def _inverse(self) -> Matrix | None:
        """(columns, rows) the left inverse; None if the map is not injective."""
        if np.linalg.matrix_rank(self._matrix) < self._inner_dim:
            return None
        inverse: Matrix = np.asarray(np.linalg.pinv(self._matrix))
        return inverse

    def _violation(self, x: Vector) -> float:
        if self._inverse is None:
            return _relative_distance(self, x)
        y = self._inverse @ (x - self._offset)
        missed = norm(self._matrix @ y - (x - self._offset)) / _size_by_distance(self, x.size)
        return max(self.region._violation(y), missed)

    def _lmo(self, g: Vector) -> Vector:
        inner = self._matrix.T @ scaled(g)
        if not inner.any():  # every point is optimal: choose an extreme one
            inner = self._matrix.T @ generic(g.size)
        image: Vector = self._matrix @ self.region._lmo(inner) + self._offset
        return image

    @cached_property
    def _directions(self) -> tuple[Matrix, float]:
        """(r, d) orthonormal basis of the image's tangent space, and the smallest stretch of a tangent."""
        tangents = np.array([self.region._tangent(row) for row in np.eye(self._inner_dim)])
        _, values, v = np.linalg.svd(tangents @ self._matrix.T, full_matrices=False)
        kept = values > 1e-10 * max(values[0], 1e-300)
        return v[kept], float(values[kept].min()) if kept.any() else math.inf

    def _interior(self, dim: int) -> tuple[Vector, float]:
        point, radius = self.region._interior(self._inner_dim)
        basis, stretch = self._directions
        return self._matrix @ point + self._offset, radius * stretch if len(basis) else math.inf

    def _tangent(self, z: Vector) -> Vector:
        basis = self._directions[0]
        tangent: Vector = basis.T @ (basis @ z)
        return tangent

    @property
    def _has_volume(self) -> bool:
        return len(self._directions[0]) == self.fixed_dim()


class _Joined(Region):
    """Several sets in the same space, at least one of them with a volume (or their affine hull is hard to find)."""

    regions: tuple[AnyRegion, ...]
    """The sets."""

    def errors(self) -> Iterable[FieldError]:
        if not self.regions:
            yield FieldError("/regions", "empty", "needs at least one region")
        elif not any(region._has_volume for region in self.regions):
            message = "at least one region must have a volume; give flat ones as a hull of points or a polytope"
            yield FieldError("/regions", "flat", message)
        fixed = self.fixed_dim()
        for i, region in enumerate(self.regions):
            if fixed is not None:
                yield from _dim_errors(region, fixed, pointer("regions", i))

    def fixed_dim(self) -> int | None:
        return next((dim for region in self.regions if (dim := region.fixed_dim()) is not None), None)

    def check_dim(self, dim: int) -> None:
        if dim > MAX_JOINED_DIM:
            raise InvalidRegion(f"a {self._name} region has at most {MAX_JOINED_DIM} coordinates, got {dim}")
        for region in self.regions:
            region.check_dim(dim)

    def _violation(self, x: Vector) -> float:
        return _relative_distance(self, x)

    def _interiors(self, dim: int) -> list[tuple[Vector, float]]:
        """The interiors of the sets; the radius counts as 0 if it holds for some directions only."""
        found = [region._interior(dim) for region in self.regions]
        return [(x, r if region._has_volume else 0.0) for (x, r), region in zip(found, self.regions, strict=True)]


class MinkowskiSum(_Joined):
    """{x_1 + x_2 + ... : x_i in region i}."""

    type: Literal["minkowski_sum"] = "minkowski_sum"

    def diameter(self, dim: int) -> float:
        return sum(region.diameter(dim) for region in self.regions)

    def _lmo(self, g: Vector) -> Vector:
        # Of tied vertices each region returns its first, and their sum need not be extreme: break the tie for g = 0.
        g = scaled(g) if g.any() else generic(g.size)
        vertex: Vector = np.sum([region._lmo(g) for region in self.regions], axis=0)
        return vertex

    def _interior(self, dim: int) -> tuple[Vector, float]:
        points, radii = zip(*self._interiors(dim), strict=True)
        return np.sum(points, axis=0), sum(radii)


class UnionHull(_Joined):
    """The convex hull of the union of sets, such as the k-support ball of an L1 ball and a box."""

    type: Literal["union_hull"] = "union_hull"

    def diameter(self, dim: int) -> float:
        centres = [region._interior(dim)[0] for region in self.regions]
        reach = [norm(c - centres[0]) + r.diameter(dim) for c, r in zip(centres, self.regions, strict=True)]
        return max(reach) + sorted(reach)[-min(2, len(reach))]

    def _lmo(self, g: Vector) -> Vector:
        g = scaled(g) if g.any() else generic(g.size)
        vertices = [region._lmo(g) for region in self.regions]
        return vertices[int(np.argmin([g @ vertex for vertex in vertices]))]

    def _interior(self, dim: int) -> tuple[Vector, float]:
        points, radii = zip(*self._interiors(dim), strict=True)
        return np.mean(points, axis=0), sum(radii) / len(radii)


def _dim_errors(region: Region, dim: int, at: str) -> Iterable[FieldError]:
    try:
        region.check_dim(dim)
    except InvalidRegion as error:
        yield FieldError(at, "wrong_length", error.detail)


def _size_by_distance(region: Region, dim: int) -> float:
    return largest(region._interior(dim)[0]) + region.diameter(dim) or 1.0


def _relative_distance(region: Region, x: Vector) -> float:
    """Violation of a set of which only the oracle is known."""
    size = _size_by_distance(region, x.size)
    return distance(lambda g: region._lmo(g) / size, x / size, 1e-12)

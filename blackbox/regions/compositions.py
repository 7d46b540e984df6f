"""Sets made of other sets, where the oracle of the whole follows from the oracles of the parts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from blackbox.errors import FieldError, InvalidInput, InvalidRegion
from blackbox.records import Vector
from blackbox.regions.base import Region
from blackbox.validation import Described

if TYPE_CHECKING:
    from blackbox.regions import AnyRegion


class Part(Described):
    """Some neighbouring coordinates of a product, and where they live."""

    error_class: ClassVar[type[InvalidInput]] = InvalidRegion

    dim: int = Field(ge=1)
    """How many coordinates."""
    region: AnyRegion
    """Their set."""

    def faults(self) -> Iterable[FieldError]:
        try:
            self.region.check_dim(self.dim)
        except InvalidRegion as error:
            yield FieldError("/region", "wrong_length", error.detail)


class Product(Region):
    """C1 x C2 x ...: each part of the coordinates lives in a set of its own, and the oracle works part by part."""

    type: Literal["product"] = "product"
    parts: tuple[Part, ...]
    """The parts, in the order of their coordinates."""

    def faults(self) -> Iterable[FieldError]:
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

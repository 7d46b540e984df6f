"""Convex compact sets: membership, Euclidean projection and linear minimisation.

A region is written without its dimension (`{"type": "simplex", "radius": 1}` fits any) unless a field is a list.
To add a set, subclass `Region`, give it a literal `type`, and add it to `AnyRegion` and `_TYPES`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from typing import Annotated, ClassVar, Literal, TypeAlias

import numpy as np
from pydantic import Field

from blackbox.errors import FieldError, InvalidInput, InvalidRegion, NonFiniteValue
from blackbox.records import Vector
from blackbox.validation import Described, from_tagged_json

__all__ = ["AnyRegion", "Box", "L1Ball", "L2Ball", "Region", "Simplex", "region_from_json"]

Scalars: TypeAlias = float | tuple[float, ...]
"""One number for all coordinates, or one for each."""


# -- the sets ----------------------------------------------------------------------------------------------------------


class Region(Described, ABC):
    """A convex compact set in R^d. Vectors are (d,) float64; none of the methods changes its argument.

    All methods raise `InvalidRegion` for a vector of the wrong shape and `NonFiniteValue` for one with NaN or infinity.
    """

    error_class: ClassVar[type[InvalidInput]] = InvalidRegion

    @abstractmethod
    def contains(self, x: Vector, tol: float = 1e-9) -> bool:
        """Whether `x` is in the set up to `tol`, taken relative to the size of the set where that is above 1."""

    @abstractmethod
    def project(self, x: Vector) -> Vector:
        """The point of the set that is nearest to `x` in the Euclidean norm."""

    @abstractmethod
    def lmo(self, g: Vector) -> Vector:
        """argmin_{v in C} <g, v>, always an extreme point, also for ties and g = 0."""

    @abstractmethod
    def diameter(self, dim: int) -> float:
        """The largest Euclidean distance of two points of the set in `dim` dimensions."""

    def fixed_dim(self) -> int | None:
        """The dimension that list fields imply; None where the set fits any."""
        return None

    def check_dim(self, dim: int) -> None:
        """Raise `InvalidRegion` if the set does not live in `dim` dimensions."""
        fixed = self.fixed_dim()
        if fixed is not None and fixed != dim:
            raise InvalidRegion(
                f"the region has {fixed} coordinates, the point {dim}", hint="give one number for all coordinates"
            )

    def _read(self, x: Vector) -> Vector:
        x = np.asarray(x, dtype=np.float64)
        if x.ndim != 1 or x.size == 0:
            raise InvalidRegion(f"expected a vector of shape (d,), got {x.shape}")
        self.check_dim(x.size)
        if not np.isfinite(x).all():
            raise NonFiniteValue("a region was given a vector with NaN or infinity")
        return x


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

    def fixed_dim(self) -> int | None:
        lengths = [len(side) for side in (self.lower, self.upper) if isinstance(side, tuple)]
        return lengths[0] if lengths else None

    def contains(self, x: Vector, tol: float = 1e-9) -> bool:
        x = self._read(x)
        slack = tol * max(1.0, float(np.abs(self._low).max()), float(np.abs(self._high).max()))
        return bool(((x >= self._low - slack) & (x <= self._high + slack)).all())

    def project(self, x: Vector) -> Vector:
        return np.minimum(np.maximum(self._read(x), self._low), self._high)

    def lmo(self, g: Vector) -> Vector:
        return np.where(self._read(g) > 0, self._low, self._high)

    def diameter(self, dim: int) -> float:
        self.check_dim(dim)
        return _norm(np.broadcast_to(self._high - self._low, (dim,)))


class Simplex(Region):
    """x >= 0, sum x = radius: the probability simplex for radius 1."""

    type: Literal["simplex"] = "simplex"
    radius: float = Field(1.0, gt=0)
    """What the coordinates sum to."""

    def contains(self, x: Vector, tol: float = 1e-9) -> bool:
        x = self._read(x)
        slack = tol * max(1.0, self.radius)
        return bool(x.min() >= -slack and abs(float(x.sum()) - self.radius) <= slack)

    def project(self, x: Vector) -> Vector:
        return _project_simplex(self._read(x), self.radius)

    def lmo(self, g: Vector) -> Vector:
        g = self._read(g)
        vertex = np.zeros_like(g)
        vertex[g.argmin()] = self.radius
        return vertex

    def diameter(self, dim: int) -> float:
        return math.sqrt(2) * self.radius if dim > 1 else 0.0


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

    def fixed_dim(self) -> int | None:
        return len(self.centre) if isinstance(self.centre, tuple) else None

    def diameter(self, dim: int) -> float:
        self.check_dim(dim)
        return 2 * self.radius


class L1Ball(_Ball):
    """sum |x - centre| <= radius."""

    type: Literal["l1_ball"] = "l1_ball"

    def contains(self, x: Vector, tol: float = 1e-9) -> bool:
        offset = self._read(x) - self._centre
        return bool(np.abs(offset).sum() <= self.radius + tol * max(1.0, self.radius))

    def project(self, x: Vector) -> Vector:
        x = self._read(x)
        offset = x - self._centre
        size = np.abs(offset)
        if size.sum() <= self.radius:
            return x.copy()
        return self._centre + np.copysign(_project_simplex(size, self.radius), offset)

    def lmo(self, g: Vector) -> Vector:
        g = self._read(g)
        vertex = np.zeros_like(g)
        i = np.abs(g).argmax()
        vertex[i] = self.radius if g[i] < 0 else -self.radius  # sign(0) := +1
        return vertex + self._centre


class L2Ball(_Ball):
    """||x - centre||_2 <= radius."""

    type: Literal["l2_ball"] = "l2_ball"

    def contains(self, x: Vector, tol: float = 1e-9) -> bool:
        return _norm(self._read(x) - self._centre) <= self.radius + tol * max(1.0, self.radius)

    def project(self, x: Vector) -> Vector:
        x = self._read(x)
        offset = x - self._centre
        size = _norm(offset)
        if size <= self.radius:
            return x.copy()
        return self._centre + self.radius * _unit(offset)

    def lmo(self, g: Vector) -> Vector:
        return self._centre - self.radius * _unit(self._read(g))


def _norm(x: Vector) -> float:
    """Euclidean norm without overflow or underflow of the squares."""
    top = float(np.abs(x).max())
    return top * float(np.linalg.norm(x / top)) if top > 0 else 0.0


def _unit(x: Vector) -> Vector:
    """x / ||x||; the first unit vector for x = 0, so that an oracle still answers with an extreme point."""
    top = np.abs(x).max()
    if top == 0:
        first = np.zeros_like(x)
        first[0] = 1.0
        return first
    scaled = x / top
    unit: Vector = scaled / np.linalg.norm(scaled)
    return unit


def _project_simplex(x: Vector, radius: float) -> Vector:
    """Projection onto {w >= 0, sum w = radius} by sorting.

    Duchi, Shalev-Shwartz, Singer, Chandra (2008), *Efficient projections onto the l1-ball*, figure 1. The projection
    does not change when a constant is added to x, and only coordinates within `radius` of the largest can be positive:
    shifting and clipping first keeps the sums accurate for any magnitude.
    """
    with np.errstate(over="ignore"):
        shifted = np.maximum(x - x.max(), -radius)
    descending = np.sort(shifted)[::-1]
    excess = np.cumsum(descending) - radius
    count = np.arange(1, x.size + 1)
    active = int(np.flatnonzero(descending * count > excess)[-1])  # the first is always active: 0 > -radius
    projected: Vector = np.maximum(shifted - excess[active] / count[active], 0.0)
    return projected


# -- JSON --------------------------------------------------------------------------------------------------------------

AnyRegion: TypeAlias = Annotated[Box | Simplex | L1Ball | L2Ball, Field(discriminator="type")]
"""Every region, told apart by `type`: what a model that holds one declares."""

_TYPES: dict[str, type[Region]] = {"box": Box, "simplex": Simplex, "l1_ball": L1Ball, "l2_ball": L2Ball}


def region_from_json(raw: object, at: str = "/region") -> Region:
    """The region that a JSON object describes.

    Parameters
    ----------
    raw : object with `type` and the fields of that region.
    at : JSON pointer of `raw` in the document, for the error.

    Raises
    ------
    InvalidRegion
        Naming the fields at fault: unknown types and fields, empty and unbounded sets.
    """
    return from_tagged_json(raw, _TYPES, at)

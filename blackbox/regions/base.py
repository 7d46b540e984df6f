"""The interface of constraint sets, and small numerical functions that several of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar, TypeAlias

import numpy as np
import scipy  # its parts are imported when first used
from numpy.typing import NDArray

from blackbox.errors import FieldError, IncompatibleProblem, InvalidInput, InvalidRegion, NonFiniteValue
from blackbox.records import Matrix, Vector
from blackbox.rng import Key, normal, uniform
from blackbox.validation import Described

Scalars: TypeAlias = float | tuple[float, ...]
"""One number for all coordinates, or one for each of them."""
Rows: TypeAlias = tuple[tuple[float, ...], ...]
"""A matrix, row by row."""

FEASIBLE = 1e-6
"""Tolerance within which a study takes a point as feasible: covers round-off and the tolerance of LP solvers."""
MIXED_VERTICES = 8
"""Number of random vertices that `Region.sample` mixes."""


class Region(Described, ABC):
    """A convex compact set in R^d with a linear minimisation oracle. Vectors are (d,) float64 and never changed.

    A set is written without its dimension (`{"type": "simplex", "radius": 1}` fits any) unless a field is a list or a
    shape. Methods that take a vector raise `InvalidRegion` for one of the wrong shape and `NonFiniteValue` for one with
    NaN or infinity.
    """

    error_class: ClassVar[type[InvalidInput]] = InvalidRegion

    # -- the interface

    def contains(self, x: Vector, tol: float = 1e-9) -> bool:
        """Whether `x` is in the set up to `tol`, relative to the size of the set."""
        return self.violation(x) <= tol

    def violation(self, x: Vector) -> float:
        """The largest violation of a constraint by `x`, relative to the size of the set; 0 inside."""
        return max(0.0, self._violation(self._read(x)))

    def lmo(self, g: Vector) -> Vector:
        """argmin_{v in C} <g, v>: always an extreme point, also for g = 0. Ties go to the first coordinates."""
        return self._lmo(self._read(g))

    def project(self, x: Vector) -> Vector:
        """The point of the set that is nearest to `x` in the Euclidean norm.

        Raises
        ------
        IncompatibleProblem
            If `has_projection` is False: there is no cheap exact projection onto this set.
        """
        if not self.has_projection:
            raise IncompatibleProblem(
                f"there is no exact projection onto a {self._name} region, only its linear oracle",
                hint="use a Frank-Wolfe method: it never projects",
            )
        return self._project(self._read(x))

    @property
    def has_projection(self) -> bool:
        """Whether `project` works."""
        return type(self)._project is not Region._project

    @abstractmethod
    def diameter(self, dim: int) -> float:
        """The largest Euclidean distance of two points of the set in `dim` dimensions, or an upper bound on it."""

    def interior(self, dim: int) -> tuple[Vector, float]:
        """A point well inside, and the radius of a ball around it that the set contains *within its affine hull*.

        The ball is one of `tangent` directions: `point + tangent(z)` is feasible whenever ||tangent(z)|| <= radius. A
        radius of 0 means that none is known, infinity that the set is a single point.

        Returns
        -------
        (dim,) the point, and the radius.
        """
        self.check_dim(dim)
        return self._interior(dim)

    def tangent(self, z: Vector) -> Vector:
        """The part of the direction `z` that stays in the affine hull of the set (its orthogonal projection)."""
        return self._tangent(self._read(z))

    def vertex(self, key: Key, step: int, lane: int, dim: int) -> Vector:
        """(dim,) a random extreme point: the oracle's answer to the normal noise of this address."""
        self.check_dim(dim)
        return self._lmo(normal(key, step, lane, dim).astype(np.float64))

    def sample(self, key: Key, step: int, lane: int, dim: int) -> Vector:
        """(dim,) a random point, not uniform: a mixture of random vertices with stick-breaking weights.

        Stick breaking puts most of the weight on few vertices, so that there are points near faces of every dimension;
        equal weights would concentrate in the middle of a large set.
        """
        breaks = uniform(key, step, lane, MIXED_VERTICES)
        point = self.vertex(key.child("vertex", 0), step, lane, dim)
        for i in range(1, MIXED_VERTICES):
            vertex = self.vertex(key.child("vertex", i), step, lane, dim)
            point += breaks[i] * (vertex - point)
        return point

    def fixed_dim(self) -> int | None:
        """The dimension that list fields and shapes imply; None where the set fits any."""
        return None

    def check_dim(self, dim: int) -> None:
        """Raise `InvalidRegion` if the set does not live in `dim` dimensions."""
        fixed = self.fixed_dim()
        if fixed is not None and fixed != dim:
            raise InvalidRegion(f"the {self._name} region has {fixed} coordinates, the point {dim}")

    # -- defined by each set. Arguments have been checked: finite float64 of the right shape, not to be changed.

    @abstractmethod
    def _violation(self, x: Vector) -> float:
        """As `violation`; may be negative inside."""

    @abstractmethod
    def _lmo(self, g: Vector) -> Vector:
        """As `lmo`; a new array."""

    def _project(self, x: Vector) -> Vector:
        """As `project`; a new array."""
        raise NotImplementedError

    @abstractmethod
    def _interior(self, dim: int) -> tuple[Vector, float]:
        """As `interior`; a new array."""

    def _tangent(self, z: Vector) -> Vector:
        """As `tangent`; a new array. Default: the set has a volume."""
        return z.copy()

    @property
    def _has_volume(self) -> bool:
        """Whether the affine hull is all of R^d, so that `tangent` leaves every direction as it is."""
        return True

    @property
    def _name(self) -> str:
        return str(getattr(self, "type", type(self).__name__))

    def _read(self, x: Vector) -> Vector:
        x = np.asarray(x, dtype=np.float64)
        if x.ndim != 1 or x.size == 0:
            raise InvalidRegion(f"expected a vector of shape (d,), got {x.shape}")
        self.check_dim(x.size)
        if not np.isfinite(x).all():
            raise NonFiniteValue("a region was given a vector with NaN or infinity")
        return x


def norm(x: Vector) -> float:
    """Euclidean norm without overflow or underflow of the squares."""
    top = float(np.abs(x).max())
    return top * float(np.linalg.norm(x / top)) if top > 0 else 0.0


def unit(x: Vector) -> Vector:
    """x / ||x||; the first unit vector for x = 0, so that an oracle still answers with an extreme point."""
    top = np.abs(x).max()
    if top == 0:
        return one_hot(x.size, 0, 1.0)
    scaled = x / top
    direction: Vector = scaled / np.linalg.norm(scaled)
    return direction


def one_hot(dim: int, i: int, value: float) -> Vector:
    """(dim,) zeros with one entry."""
    vector = np.zeros(dim)
    vector[i] = value
    return vector


def largest(numbers: Scalars | Vector) -> float:
    """The largest magnitude."""
    return float(np.abs(numbers).max())


def scaled(g: Vector) -> Vector:
    """g over its largest magnitude, for oracles that square or add it; zero stays zero."""
    top = float(np.abs(g).max())
    return g / top if top > 0 else g


def generic(dim: int) -> Vector:
    """(dim,) a fixed direction without symmetries, which an oracle minimises if g = 0 leaves the vertex open."""
    direction: Vector = np.cos(1.0 + np.arange(dim, dtype=np.float64) ** 1.5)
    return direction


def smallest(g: Vector, k: int) -> NDArray[np.bool_]:
    """(d,) bool: whether a coordinate is among the k smallest; among equals the first are. Linear in d."""
    if k <= 0 or k >= g.size:
        return np.full(g.size, k > 0)
    last = np.partition(g, k - 1)[k - 1]
    chosen: NDArray[np.bool_] = g < last
    equal = np.flatnonzero(g == last)
    chosen[equal[: k - int(chosen.sum())]] = True
    return chosen


def spread(numbers: Scalars, dim: int) -> Vector:
    """(dim,) one number for all coordinates, or one for each."""
    return np.broadcast_to(np.asarray(numbers, dtype=np.float64), (dim,))


def length_of(*fields: Scalars) -> int | None:
    """Number of coordinates implied by the lists among the fields; None without a list."""
    lengths = [len(field) for field in fields if isinstance(field, tuple)]
    return lengths[0] if lengths else None


def scalars_errors(positive: bool = True, **fields: Scalars) -> Iterator[FieldError]:
    """Errors of `Scalars` fields: unequal lengths, and numbers that are not positive."""
    length = length_of(*fields.values())
    for name, field in fields.items():
        if field == ():
            yield FieldError(f"/{name}", "wrong_length", "must not be empty")
        elif isinstance(field, tuple) and len(field) != length:
            yield FieldError(f"/{name}", "wrong_length", f"must be one number, or {length} as elsewhere")
        elif positive and np.min(field) <= 0:
            yield FieldError(f"/{name}", "not_positive", f"must be above 0, got {float(np.min(field))!r}")


def project_simplex(x: Vector, radius: float) -> Vector:
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


def project_budget(y: Vector, weights: Vector, upper: Vector, budget: float) -> Vector:
    """Projection onto {0 <= x <= upper, weights . x = budget}, which must not be empty.

    The answer is clip(y - theta weights, 0, upper) with the theta that spends the budget. The cost falls with
    theta and is linear between the values at which a coordinate reaches a bound: these are bisected, and the last piece
    is solved. This is done twice, the second time from the theta of the first, because a large y absorbs `upper`.
    """
    with np.errstate(over="ignore"):
        y = y - _theta_that_spends(y, weights, upper, budget)[0] * weights
        end, empties, fills = _theta_that_spends(y, weights, upper, budget)
        grows = (fills < end) & (end <= empties)  # as theta falls below `end`; the others stay empty or full
        x = np.where(fills >= end, upper, np.where(grows, y - end * weights, 0.0))
        if grows.any():
            x[grows] += (budget - float(weights @ x)) / float(weights[grows] @ weights[grows]) * weights[grows]
        return np.clip(x, 0.0, upper)


def _theta_that_spends(y: Vector, weights: Vector, upper: Vector, budget: float) -> tuple[float, Vector, Vector]:
    """The first bend at which no more than the budget is spent, and the theta at which each coordinate is 0 or full."""
    empties, fills = y / weights, (y - upper) / weights
    bends = np.unique(np.concatenate([empties, fills]))
    bends = bends[np.isfinite(bends)]
    low, high = 0, len(bends) - 1
    while low < high:
        middle = (low + high) // 2
        if weights @ np.clip(y - bends[middle] * weights, 0.0, upper) > budget:
            low = middle + 1
        else:
            high = middle
    return float(bends[low]), empties, fills


def nearest_in_hull(atoms: Matrix) -> tuple[Vector, Vector]:
    """The point of the convex hull of the rows that is nearest to 0, and the weights of the rows in it.

    SciPy's solver sometimes stops early if rows have many ties (in 1 of 100 problems with the corners of a cube). Then
    it gets few rows at a time, as in Wolfe (1976), *Finding the nearest point in a polytope*: added one by one,
    each the farthest beyond the plane through the nearest point so far, and dropped when their weight is 0.

    Parameters
    ----------
    atoms : (n, d).

    Returns
    -------
    (d,) the point, and (n,) the weights, which sum to 1.
    """
    nearest, weights = _nearest_by_least_squares(atoms)
    if _beyond(atoms, nearest) is None:
        return nearest, weights
    own, before = np.array([int(np.square(atoms).sum(axis=1).argmin())]), np.inf
    while True:
        nearest, shares = _nearest_by_least_squares(atoms[own])
        last, before = before, norm(nearest)
        farthest = _beyond(atoms, nearest)
        if farthest is None or not before < last:
            weights = np.zeros(len(atoms))
            weights[own] = shares
            return nearest, weights
        own = np.append(own[shares > 0], farthest)


def _beyond(atoms: Matrix, nearest: Vector) -> int | None:
    """The row that is farthest on the other side of the plane through this point of their hull, or None."""
    length, inner, reach = norm(nearest), atoms @ nearest, largest(atoms)
    farthest = int(inner.argmin())
    beyond = length > 1e-13 * reach and inner[farthest] < length * (length - 1e-13 * reach)  # else it is round-off
    return farthest if beyond else None


def _nearest_by_least_squares(atoms: Matrix) -> tuple[Vector, Vector]:
    """As `nearest_in_hull`, but may stop early: a non-negative least-squares problem with a row of ones.

    Lawson and Hanson (1974), chapter 23.
    """
    rows = np.vstack([atoms.T, np.ones(len(atoms))])
    goal = np.append(np.zeros(atoms.shape[1]), 1.0)
    weights = scipy.optimize.nnls(rows, goal, maxiter=30 * len(atoms) + 100)[0]
    weights /= weights.sum()
    return weights @ atoms, weights


def distance(lmo: Callable[[Vector], Vector], x: Vector, enough: float) -> float:
    """A proved lower bound on the Euclidean distance of `x` from the set with this oracle.

    Exact to 1 % for polytopes, and 0 below `enough`. Near a curved boundary the search may end early; the bound is then
    the distance from the last separating plane, 0 if there is none: a point is rejected only with proof.

    Notes
    -----
    Wolfe (1976), *Finding the nearest point in a polytope*, as fully corrective Frank-Wolfe: the point p of the hull of
    the vertices so far that is nearest to x, then the vertex v that is farthest from p towards x. x is at least
    <p - x, v - x> / ||p - x|| away from the set.
    """
    atoms = (lmo(generic(x.size)) - x)[None, :]
    length, proved = np.inf, 0.0
    for _ in range(200):
        nearest, weights = _nearest_by_least_squares(atoms)
        before, length = length, norm(nearest)
        if length <= enough:
            return 0.0
        vertex = lmo(nearest) - x
        proved = max(proved, float(nearest @ vertex) / length)
        if proved >= 0.99 * length or not length < before:
            break
        atoms = np.vstack([atoms[weights > 0], vertex])
    return proved

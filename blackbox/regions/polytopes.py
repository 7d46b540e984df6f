"""Polytopes given by linear constraints: the oracle solves a linear program at every call."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import scipy

from blackbox.errors import FieldError, NumericalError
from blackbox.records import Matrix, Vector
from blackbox.regions.base import Region, Rows, Scalars, generic, largest, length_of, norm, scaled, spread
from blackbox.regions.marginals import centred, project_marginals
from blackbox.validation import pointer

MAX_NUMBERS = 40_000
"""Most numbers in the rows of a linear program."""


@dataclass(frozen=True, slots=True)
class Constraints:
    """{a_ub x <= b_ub, a_eq x = b_eq, lower <= x <= upper}.

    Attributes
    ----------
    a_ub, a_eq : (m, d) and (k, d) sparse, with rows of length 1; m and k may be 0.
    b_ub, b_eq : (m,) and (k,).
    lower, upper : (d,).
    """

    a_ub: Any
    b_ub: Vector
    a_eq: Any
    b_eq: Vector
    lower: Vector
    upper: Vector

    def minimise(self, g: Vector) -> Any:
        """SciPy's result for min <g, x>, at a vertex; g is (d,)."""
        rows = {"A_ub": self.a_ub, "b_ub": self.b_ub} if len(self.b_ub) else {}
        if len(self.b_eq):
            rows |= {"A_eq": self.a_eq, "b_eq": self.b_eq}
        bounds = np.stack([self.lower, self.upper], axis=1)
        return scipy.optimize.linprog(g, **rows, bounds=bounds, method="highs-ds")


@dataclass(frozen=True, slots=True)
class Geometry:
    """The set that constraints describe, as one linear program finds it.

    Attributes
    ----------
    error : why there is no such compact set; empty if there is.
    middle, radius : as `Region.interior`.
    span : (d, r) orthonormal basis of the row space of the equations: directions in which no point can move.
    """

    error: str
    middle: Vector
    radius: float
    span: Matrix


class _LinearProgram(Region):
    """A polytope given by inequalities and equations; HiGHS's dual simplex finds its vertices."""

    @abstractmethod
    def _make_constraints(self) -> Constraints:
        """The constraints, with normalised rows."""

    @cached_property
    def _constraints(self) -> Constraints:
        return self._make_constraints()

    @property
    def _geometry(self) -> Geometry:
        return _geometry_of(self)

    def _geometry_errors(self) -> Iterable[FieldError]:
        """The error of an empty or unbounded set; asked only when the fields are fine."""
        if self._geometry.error:
            yield FieldError("", "empty", self._geometry.error)

    @cached_property
    def _size(self) -> float:
        # That of the set where it is known, because bounds may be far outside; theirs for a set that is only 0.
        size = largest(self._geometry.middle) + (self._geometry.radius if math.isfinite(self._geometry.radius) else 0.0)
        bounds = max(largest(self._constraints.lower), largest(self._constraints.upper))
        return size if size > 1e-9 * bounds else bounds or 1.0

    def _violation(self, x: Vector) -> float:
        p = self._constraints
        beyond = [float((p.lower - x).max()), float((x - p.upper).max())]
        if len(p.b_ub):
            beyond.append(float((p.a_ub @ x - p.b_ub).max()))
        if len(p.b_eq):
            beyond.append(float(np.abs(p.a_eq @ x - p.b_eq).max()))
        return max(beyond) / self._size

    def _lmo(self, g: Vector) -> Vector:
        # HiGHS's tolerances are absolute: costs get magnitude 1. Without costs any vertex of our choice will do.
        found = self._constraints.minimise(scaled(g) if g.any() else generic(g.size))
        if found.status != 0:
            raise NumericalError(f"the linear program of a {self._name} region was not solved: {found.message}")
        vertex: Vector = np.clip(found.x, self._constraints.lower, self._constraints.upper)
        return vertex

    def _interior(self, dim: int) -> tuple[Vector, float]:
        return self._geometry.middle.copy(), self._geometry.radius

    def _tangent(self, z: Vector) -> Vector:
        span = self._geometry.span
        tangent: Vector = z - span @ (span.T @ z)
        return tangent

    @property
    def _has_volume(self) -> bool:
        return bool(self._geometry.span.shape[1] == 0)

    def diameter(self, dim: int) -> float:
        self.check_dim(dim)
        return norm(self._constraints.upper - self._constraints.lower)


class Polytope(_LinearProgram):
    """{a_ub x <= b_ub, a_eq x = b_eq, lower <= x <= upper}, in the names of SciPy's `linprog`.

    An equation is better written as one than as two inequalities: between these there is no inner radius.
    """

    type: Literal["polytope"] = "polytope"
    a_ub: Rows = ()
    """Rows of the inequalities."""
    b_ub: tuple[float, ...] = ()
    """Their right-hand sides."""
    a_eq: Rows = ()
    """Rows of the equations."""
    b_eq: tuple[float, ...] = ()
    """Their right-hand sides."""
    lower: Scalars
    """Lower bounds, so that the set is bounded whatever the rows say."""
    upper: Scalars
    """Upper bounds."""

    def errors(self) -> Iterable[FieldError]:
        return list(self._field_errors()) or self._geometry_errors()

    def _field_errors(self) -> Iterable[FieldError]:
        dim = self.fixed_dim()
        if dim is None:
            yield FieldError("/a_ub", "missing", "needs rows in a_ub or a_eq; a set with bounds only is a box")
            return
        for name, rows, sides in (("ub", self.a_ub, self.b_ub), ("eq", self.a_eq, self.b_eq)):
            if len(rows) != len(sides):
                message = f"must be one number for each of the {len(rows)} rows of a_{name}, got {len(sides)}"
                yield FieldError(f"/b_{name}", "wrong_length", message)
            for i, row in enumerate(rows):
                if len(row) != dim or not any(row):
                    message = f"must be {dim} numbers like the first row, and not all 0"
                    yield FieldError(pointer(f"a_{name}", i), "bad_row", message)
                    return
        for name, side in (("lower", self.lower), ("upper", self.upper)):
            if isinstance(side, tuple) and len(side) != dim:
                yield FieldError(f"/{name}", "wrong_length", f"must be one number or {dim}, got {len(side)}")
        if (n := (len(self.a_ub) + len(self.a_eq)) * dim) > MAX_NUMBERS:
            yield FieldError("/a_ub", "too_large", f"must hold at most {MAX_NUMBERS} numbers with a_eq, got {n}")

    def fixed_dim(self) -> int | None:
        return next((len(rows[0]) for rows in (self.a_ub, self.a_eq) if rows), None)

    def _make_constraints(self) -> Constraints:
        dim = self.fixed_dim() or 0
        return Constraints(
            *_normalised(self.a_ub, self.b_ub, dim),
            *_normalised(self.a_eq, self.b_eq, dim),
            spread(self.lower, dim),
            spread(self.upper, dim),
        )


class FlowPolytope(_LinearProgram):
    """Flows in a network with supplies, demands and capacities (minimum-cost flow); coordinates are edges."""

    type: Literal["flow"] = "flow"
    edges: tuple[tuple[int, int], ...]
    """(from, to) of each edge; nodes are counted from 0."""
    supply: tuple[float, ...]
    """Net outflow of each node; negative where it receives. Sums to 0."""
    capacity: Scalars
    """Upper bound on the flow of each edge."""

    def errors(self) -> Iterable[FieldError]:
        return list(self._field_errors()) or self._geometry_errors()

    def _field_errors(self) -> Iterable[FieldError]:
        n, m = len(self.supply), len(self.edges)
        if n * m > MAX_NUMBERS:
            yield FieldError("/edges", "too_large", f"nodes times edges must be at most {MAX_NUMBERS}, got {n * m}")
        for i, (a, b) in enumerate(self.edges):
            if not (0 <= a < n and 0 <= b < n and a != b):
                message = f"must lead from one node of 0 to {n - 1} to another, got {(a, b)}"
                yield FieldError(pointer("edges", i), "bad_node", message)
                return
        if not self.edges:
            yield FieldError("/edges", "wrong_length", "needs at least one edge")
        if abs(sum(self.supply)) > 1e-9 * (largest(self.supply) if self.supply else 1.0):
            yield FieldError("/supply", "unbalanced", f"must sum to 0, got {sum(self.supply):.3g}")
        if np.min(self.capacity) <= 0 or length_of(self.capacity) not in (None, m):
            yield FieldError("/capacity", "not_positive", f"must be above 0, one number or {m}")

    def fixed_dim(self) -> int:
        return len(self.edges)

    def _make_constraints(self) -> Constraints:
        n, m = len(self.supply), len(self.edges)
        ends = np.array(self.edges, dtype=np.int64)
        columns = np.tile(np.arange(m), 2)
        values = np.repeat([1.0, -1.0], m)
        balance = scipy.sparse.csr_array((values, (ends.T.ravel(), columns)), shape=(n, m)).toarray()
        used = balance.any(axis=1)  # a node without edges must have supply 0, which the sums of the others imply
        return Constraints(
            *_normalised((), (), m),
            *_normalised(balance[used], np.asarray(self.supply)[used], m),
            np.zeros(m),
            spread(self.capacity, m),
        )


class Transportation(_LinearProgram):
    """Matrices >= 0 with given row and column sums: transport plans from sources to sinks (optimal transport)."""

    type: Literal["transportation"] = "transportation"
    supply: tuple[float, ...]
    """Row sums, above 0."""
    demand: tuple[float, ...]
    """Column sums, above 0; both add up to the same. Coordinate i is entry (i // columns, i % columns)."""

    def errors(self) -> Iterable[FieldError]:
        for name, side in (("supply", self.supply), ("demand", self.demand)):
            if not side or min(side) <= 0:
                yield FieldError(f"/{name}", "not_positive", "must be numbers above 0")
        if 2 * len(self.supply) * len(self.demand) > MAX_NUMBERS:
            yield FieldError("/supply", "too_large", f"at most {MAX_NUMBERS // 2} pairs of a source and a sink")
        total = sum(self.supply)
        if abs(total - sum(self.demand)) > 1e-9 * total:
            message = f"must add up to the supply {total!r}, got {sum(self.demand)!r}: the set is empty"
            yield FieldError("/demand", "unbalanced", message)

    def fixed_dim(self) -> int:
        return len(self.supply) * len(self.demand)

    @cached_property
    def _sides(self) -> tuple[Vector, Vector]:
        supply, demand = np.asarray(self.supply), np.asarray(self.demand)
        return supply, demand * (supply.sum() / demand.sum())

    @cached_property
    def _size(self) -> float:
        return max(*self.supply, *self.demand)

    def _make_constraints(self) -> Constraints:
        (rows, columns), dim = map(len, self._sides), self.fixed_dim()
        sums = scipy.sparse.vstack(
            [
                scipy.sparse.kron(scipy.sparse.eye_array(rows), np.ones((1, columns))) / math.sqrt(columns),
                scipy.sparse.kron(np.ones((1, rows)), scipy.sparse.eye_array(columns)) / math.sqrt(rows),
            ]
        ).tocsr()
        values = np.concatenate([self._sides[0] / math.sqrt(columns), self._sides[1] / math.sqrt(rows)])
        return Constraints(
            *_normalised((), (), dim), sums, values, np.zeros(dim), np.minimum.outer(*self._sides).ravel()
        )

    def _project(self, x: Vector) -> Vector:
        supply, demand = self._sides
        return project_marginals(x.reshape(len(supply), len(demand)), supply, demand).ravel()

    def _interior(self, dim: int) -> tuple[Vector, float]:
        supply, demand = self._sides
        middle = np.outer(supply, demand) / supply.sum()
        rows, columns = middle.shape
        if rows == 1 or columns == 1:
            return middle.ravel(), math.inf
        return middle.ravel(), float(middle.min()) / math.sqrt((1 - 1 / rows) * (1 - 1 / columns))

    def _tangent(self, z: Vector) -> Vector:
        return centred(z, len(self.supply), len(self.demand))

    @property
    def _has_volume(self) -> bool:
        return False


def _normalised(rows: Any, sides: Any, dim: int) -> tuple[Any, Vector]:
    """Rows of length 1, sparse, and their right-hand sides."""
    matrix = np.asarray(rows, dtype=np.float64).reshape(-1, dim)
    lengths = np.array([norm(row) for row in matrix])
    return scipy.sparse.csr_array(matrix / lengths[:, None]), np.asarray(sides, dtype=np.float64) / lengths


@lru_cache(maxsize=16)
def _geometry_of(region: _LinearProgram) -> Geometry:
    """Solve one linear program for the largest ball in the set, which also finds out whether it is empty."""
    p = region._constraints
    dim = p.lower.size
    span = np.empty((dim, 0))
    if len(p.b_eq):
        basis, values, _ = np.linalg.svd(p.a_eq.toarray().T, full_matrices=False)
        span = basis[:, values > 1e-10 * values[0]]
    # The largest ball (x, r) within the equations: row i reaches as far as its part along them is long.
    eye = scipy.sparse.eye_array(dim, format="csr")
    rows = scipy.sparse.vstack([p.a_ub, eye, -eye])
    lengths = np.linalg.norm(rows.toarray() - (rows @ span) @ span.T, axis=1)
    lengths[lengths < 1e-9] = 0.0
    found = scipy.optimize.linprog(
        np.append(np.zeros(dim), -1.0 if lengths.any() else 0.0),
        A_ub=scipy.sparse.hstack([rows, lengths[:, None]]),
        b_ub=np.concatenate([p.b_ub, p.upper, -p.lower]),
        A_eq=scipy.sparse.hstack([p.a_eq, np.zeros((len(p.b_eq), 1))]) if len(p.b_eq) else None,
        b_eq=p.b_eq if len(p.b_eq) else None,
        bounds=[(None, None)] * dim + [(0, None)],
        method="highs-ds",
    )
    if found.status != 0:
        word = "no point satisfies all constraints: the set is empty" if found.status == 2 else found.message
        return Geometry(word, np.zeros(dim), 0.0, span)
    middle, radius = found.x[:dim], float(found.x[dim])
    if not lengths.any():  # the equations leave no direction
        return Geometry("", middle, math.inf, span)
    if radius > 1e-7 * max(1.0, largest(middle)):
        return Geometry("", middle, radius, span)
    corners = [p.minimise(g).x for g in np.vstack([generic(dim), -generic(dim), np.eye(dim)[:8], -np.eye(dim)[:8]])]
    return Geometry("", np.mean(corners, axis=0), 0.0, span)

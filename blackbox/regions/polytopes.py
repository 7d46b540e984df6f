"""Polytopes whose oracle is a combinatorial algorithm or a linear programme."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import scipy
from numpy.typing import NDArray
from pydantic import Field

from blackbox.errors import FieldError, NumericalError
from blackbox.records import Matrix, Vector
from blackbox.regions.base import (
    Region,
    Rows,
    Scalars,
    generic,
    largest,
    length_of,
    nearest_in_hull,
    norm,
    scaled,
    spread,
)
from blackbox.regions.marginals import project_marginals
from blackbox.validation import pointer

MAX_NUMBERS = 40_000
"""Most numbers in the rows of a linear programme: the oracle solves one at every call."""
MAX_EDGES = 100_000
"""Most edges of a graph whose paths are searched."""
MAX_LISTED = 250_000
"""Most numbers in a list of points."""


# -- assignments and paths ---------------------------------------------------------------------------------------------


class Birkhoff(Region):
    """Doubly stochastic matrices: the hull of permutation matrices (assignment problems)."""

    type: Literal["birkhoff"] = "birkhoff"
    order: int = Field(ge=1, le=1000)
    """Rows and columns; coordinate i is entry (i // order, i % order)."""

    def fixed_dim(self) -> int:
        return self.order**2

    def diameter(self, dim: int) -> float:
        self.check_dim(dim)
        return math.sqrt(2 * self.order) if self.order > 1 else 0.0

    def _violation(self, x: Vector) -> float:
        square = x.reshape(self.order, self.order)
        sums = np.concatenate([square.sum(axis=0), square.sum(axis=1)])
        return max(-float(x.min()), float(np.abs(sums - 1).max()))

    def _lmo(self, g: Vector) -> Vector:
        vertex = np.zeros((self.order, self.order))
        vertex[scipy.optimize.linear_sum_assignment(scaled(g).reshape(self.order, self.order))] = 1.0
        return vertex.ravel()

    def _project(self, x: Vector) -> Vector:
        ones = np.ones(self.order)
        return project_marginals(x.reshape(self.order, self.order), ones, ones).ravel()

    def _interior(self, dim: int) -> tuple[Vector, float]:
        return np.full(dim, 1 / self.order), 1 / (self.order - 1) if self.order > 1 else math.inf

    def _tangent(self, z: Vector) -> Vector:
        return centred(z, self.order, self.order)

    @property
    def _has_volume(self) -> bool:
        return False


class PathPolytope(Region):
    """Unit flows from a source to a target of a directed graph without cycles: the hull of its paths.

    Coordinates are edges; an extreme point is 1 on the edges of a path.
    """

    type: Literal["path"] = "path"
    edges: tuple[tuple[int, int], ...]
    """(from, to) of each edge; nodes are counted from 0."""
    source: int
    """Where paths begin."""
    target: int
    """Where they end."""

    def faults(self) -> Iterable[FieldError]:
        if not 0 < len(self.edges) <= MAX_EDGES:
            yield FieldError("/edges", "wrong_length", f"must be from 1 to {MAX_EDGES} edges, got {len(self.edges)}")
            return
        nodes = {node for edge in self.edges for node in edge}
        if min(nodes) < 0 or max(nodes) >= 2 * len(self.edges):
            yield FieldError("/edges", "bad_node", "nodes must be counted 0, 1, 2, ...")
        elif self.source not in nodes or self.target not in nodes or self.source == self.target:
            yield FieldError("/source", "bad_node", "source and target must be different nodes of the graph")
        elif len(self._order) < len(self.edges):
            yield FieldError("/edges", "cycle", "the graph has a cycle: paths may only go round it in an LP (flow)")
        elif not self._useful.any():
            yield FieldError("/target", "empty", f"no path from {self.source} leads to {self.target}: the set is empty")

    def fixed_dim(self) -> int:
        return len(self.edges)

    @cached_property
    def _heads(self) -> NDArray[np.int64]:
        return np.array(self.edges, dtype=np.int64)

    @property
    def _n_nodes(self) -> int:
        return int(self._heads.max()) + 1

    @cached_property
    def _order(self) -> list[int]:
        """Edges so that each comes after all that lead to its beginning; fewer than all where there is a cycle."""
        leaving: list[list[int]] = [[] for _ in range(self._n_nodes)]
        waiting = [0] * self._n_nodes
        for edge, (a, b) in enumerate(self.edges):
            leaving[a].append(edge)
            waiting[b] += 1
        ready, order = [node for node in range(self._n_nodes) if not waiting[node]], list[int]()
        for node in ready:  # grows as it is read
            for edge in leaving[node]:
                order.append(edge)
                end = self.edges[edge][1]
                waiting[end] -= 1
                if not waiting[end]:
                    ready.append(end)
        return order

    @cached_property
    def _useful(self) -> NDArray[np.bool_]:
        """(edges,) whether a path from source to target uses the edge."""
        from_source, to_target = {self.source}, {self.target}
        for edge in self._order:
            a, b = self.edges[edge]
            if a in from_source:
                from_source.add(b)
        for edge in reversed(self._order):
            a, b = self.edges[edge]
            if b in to_target:
                to_target.add(a)
        return np.array([a in from_source and b in to_target for a, b in self.edges])

    @cached_property
    def _steps(self) -> list[tuple[int, int, int]]:
        """(edge, from, to) of the useful edges, in order."""
        return [(edge, *self.edges[edge]) for edge in self._order if self._useful[edge]]

    def diameter(self, dim: int) -> float:
        self.check_dim(dim)
        longest = [-math.inf] * self._n_nodes
        longest[self.source] = 0
        for _, a, b in self._steps:
            longest[b] = max(longest[b], longest[a] + 1)
        return math.sqrt(2 * longest[self.target])

    def _violation(self, x: Vector) -> float:
        flow = np.bincount(self._heads[:, 1], x, self._n_nodes) - np.bincount(self._heads[:, 0], x, self._n_nodes)
        flow[self.source] += 1
        flow[self.target] -= 1
        return max(-float(x.min()), float(np.abs(flow).max()))

    def _lmo(self, g: Vector) -> Vector:
        cost = scaled(g).tolist()
        cheapest, last = [math.inf] * self._n_nodes, [-1] * self._n_nodes
        cheapest[self.source] = 0.0
        for edge, a, b in self._steps:
            if cheapest[a] + cost[edge] < cheapest[b]:
                cheapest[b], last[b] = cheapest[a] + cost[edge], edge
        vertex, node = np.zeros(g.size), self.target
        while node != self.source:
            vertex[last[node]] = 1.0
            node = self.edges[last[node]][0]
        return vertex

    def _interior(self, dim: int) -> tuple[Vector, float]:
        # At every node the flow leaves in equal shares; a change of length <= its least flow keeps every edge >= 0.
        ways, arrived = [0] * self._n_nodes, [0.0] * self._n_nodes
        for _, a, _ in self._steps:
            ways[a] += 1
        arrived[self.source] = 1.0
        flow = np.zeros(dim)
        for edge, a, b in self._steps:
            flow[edge] = arrived[a] / ways[a]
            arrived[b] += flow[edge]
        single = max(ways) == 1
        return flow, math.inf if single else float(flow[self._useful].min())

    @cached_property
    def _potentials(self) -> Any:
        """Incidence matrix of the useful edges without the target's row, and a solver with its Laplacian."""
        edges = self._heads[self._useful]
        nodes, ends = np.unique(edges, return_inverse=True)
        ends = ends.reshape(edges.shape)
        n, m = len(nodes), len(edges)
        rows, columns = np.concatenate([ends[:, 0], ends[:, 1]]), np.tile(np.arange(m), 2)
        incidence = scipy.sparse.csr_array((np.repeat([1.0, -1.0], m), (rows, columns)), shape=(n, m))
        incidence = incidence[np.flatnonzero(nodes != self.target)]
        return incidence, scipy.sparse.linalg.splu((incidence @ incidence.T).tocsc())

    def _tangent(self, z: Vector) -> Vector:
        incidence, laplacian = self._potentials
        own = z[self._useful]
        tangent = np.zeros(z.size)
        tangent[self._useful] = own - incidence.T @ laplacian.solve(incidence @ own)
        return tangent

    @property
    def _has_volume(self) -> bool:
        return False


# -- linear programmes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Programme:
    """{above x <= limit, equal x = value, low <= x <= high}.

    Attributes
    ----------
    above, equal : (m, d) and (k, d) sparse, with rows of length 1; m and k may be 0.
    limit, value, low, high : (m,), (k,), (d,) and (d,).
    """

    above: Any
    limit: Vector
    equal: Any
    value: Vector
    low: Vector
    high: Vector

    def minimise(self, g: Vector) -> Any:
        """SciPy's result for min <g, x>, at a vertex."""
        shape = {"A_ub": self.above, "b_ub": self.limit} if len(self.limit) else {}
        if len(self.value):
            shape |= {"A_eq": self.equal, "b_eq": self.value}
        bounds = np.stack([self.low, self.high], axis=1)
        return scipy.optimize.linprog(g, **shape, bounds=bounds, method="highs-ds")


@dataclass(frozen=True, slots=True)
class Shape:
    """What is found out about a programme once.

    Attributes
    ----------
    fault : why there is no such compact set; empty if there is.
    middle, radius : as `Region.interior`.
    span : (d, r) orthonormal basis of the directions that the equations forbid.
    """

    fault: str
    middle: Vector
    radius: float
    span: Matrix


class _LinearProgramme(Region):
    """A polytope given by inequalities and equations; HiGHS's dual simplex finds its vertices."""

    @abstractmethod
    def _programme(self) -> Programme:
        """The constraints, with normalised rows."""

    @cached_property
    def _constraints(self) -> Programme:
        return self._programme()

    @property
    def _shape(self) -> Shape:
        return _shape_of(self)

    def _shape_faults(self) -> Iterable[FieldError]:
        """Whether there is such a compact set, once everything else is fine."""
        if self._shape.fault:
            yield FieldError("", "empty", self._shape.fault)

    @cached_property
    def _size(self) -> float:
        # That of the set where it is known, because bounds may be far outside; theirs for a set that is only 0.
        size = largest(self._shape.middle) + (self._shape.radius if math.isfinite(self._shape.radius) else 0.0)
        bounds = max(largest(self._constraints.low), largest(self._constraints.high))
        return size if size > 1e-9 * bounds else bounds or 1.0

    def _violation(self, x: Vector) -> float:
        p = self._constraints
        beyond = [float((p.low - x).max()), float((x - p.high).max())]
        if len(p.limit):
            beyond.append(float((p.above @ x - p.limit).max()))
        if len(p.value):
            beyond.append(float(np.abs(p.equal @ x - p.value).max()))
        return max(beyond) / self._size

    def _lmo(self, g: Vector) -> Vector:
        # HiGHS's tolerances are absolute: costs get magnitude 1. Without costs any vertex of our choice will do.
        found = self._constraints.minimise(scaled(g) if g.any() else generic(g.size))
        if found.status != 0:
            raise NumericalError(f"the linear programme of a {self._name} region was not solved: {found.message}")
        vertex: Vector = np.clip(found.x, self._constraints.low, self._constraints.high)
        return vertex

    def _interior(self, dim: int) -> tuple[Vector, float]:
        return self._shape.middle.copy(), self._shape.radius

    def _tangent(self, z: Vector) -> Vector:
        span = self._shape.span
        tangent: Vector = z - span @ (span.T @ z)
        return tangent

    @property
    def _has_volume(self) -> bool:
        return bool(self._shape.span.shape[1] == 0)

    def diameter(self, dim: int) -> float:
        self.check_dim(dim)
        return norm(self._constraints.high - self._constraints.low)


class Polytope(_LinearProgramme):
    """{a_ub x <= b_ub, a_eq x = b_eq, lower <= x <= upper}: what SciPy's `linprog` calls by these names.

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

    def faults(self) -> Iterable[FieldError]:
        return list(self._field_faults()) or self._shape_faults()

    def _field_faults(self) -> Iterable[FieldError]:
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

    def _programme(self) -> Programme:
        dim = self.fixed_dim() or 0
        return Programme(
            *_normalised(self.a_ub, self.b_ub, dim),
            *_normalised(self.a_eq, self.b_eq, dim),
            spread(self.lower, dim),
            spread(self.upper, dim),
        )


class FlowPolytope(_LinearProgramme):
    """Flows in a network with supplies, demands and capacities (minimum-cost flow); coordinates are edges."""

    type: Literal["flow"] = "flow"
    edges: tuple[tuple[int, int], ...]
    """(from, to) of each edge; nodes are counted from 0."""
    supply: tuple[float, ...]
    """What each node sends out beyond what comes in; negative where it receives; the sum is 0."""
    capacity: Scalars
    """What an edge carries at most."""

    def faults(self) -> Iterable[FieldError]:
        return list(self._field_faults()) or self._shape_faults()

    def _field_faults(self) -> Iterable[FieldError]:
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

    def _programme(self) -> Programme:
        n, m = len(self.supply), len(self.edges)
        ends = np.array(self.edges, dtype=np.int64)
        columns = np.tile(np.arange(m), 2)
        values = np.repeat([1.0, -1.0], m)
        balance = scipy.sparse.csr_array((values, (ends.T.ravel(), columns)), shape=(n, m)).toarray()
        used = balance.any(axis=1)  # a node without edges must have supply 0, which the sums of the others imply
        return Programme(
            *_normalised((), (), m),
            *_normalised(balance[used], np.asarray(self.supply)[used], m),
            np.zeros(m),
            spread(self.capacity, m),
        )


class Transportation(_LinearProgramme):
    """Matrices >= 0 with given row and column sums: what each source sends to each sink (optimal transport)."""

    type: Literal["transportation"] = "transportation"
    supply: tuple[float, ...]
    """Row sums, above 0."""
    demand: tuple[float, ...]
    """Column sums, above 0; both add up to the same. Coordinate i is entry (i // columns, i % columns)."""

    def faults(self) -> Iterable[FieldError]:
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

    def _programme(self) -> Programme:
        (rows, columns), dim = map(len, self._sides), self.fixed_dim()
        sums = scipy.sparse.vstack(
            [
                scipy.sparse.kron(scipy.sparse.eye_array(rows), np.ones((1, columns))) / math.sqrt(columns),
                scipy.sparse.kron(np.ones((1, rows)), scipy.sparse.eye_array(columns)) / math.sqrt(rows),
            ]
        ).tocsr()
        values = np.concatenate([self._sides[0] / math.sqrt(columns), self._sides[1] / math.sqrt(rows)])
        return Programme(*_normalised((), (), dim), sums, values, np.zeros(dim), np.minimum.outer(*self._sides).ravel())

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
def _shape_of(region: _LinearProgramme) -> Shape:
    """What one linear programme tells: whether the set is empty, and its largest ball."""
    p = region._constraints
    dim = p.low.size
    span = np.empty((dim, 0))
    if len(p.value):
        basis, values, _ = np.linalg.svd(p.equal.toarray().T, full_matrices=False)
        span = basis[:, values > 1e-10 * values[0]]
    # The largest ball (x, r) within the equations: row i reaches as far as its part along them is long.
    eye = scipy.sparse.eye_array(dim, format="csr")
    rows = scipy.sparse.vstack([p.above, eye, -eye])
    lengths = np.linalg.norm(rows.toarray() - (rows @ span) @ span.T, axis=1)
    lengths[lengths < 1e-9] = 0.0
    found = scipy.optimize.linprog(
        np.append(np.zeros(dim), -1.0 if lengths.any() else 0.0),
        A_ub=scipy.sparse.hstack([rows, lengths[:, None]]),
        b_ub=np.concatenate([p.limit, p.high, -p.low]),
        A_eq=scipy.sparse.hstack([p.equal, np.zeros((len(p.value), 1))]) if len(p.value) else None,
        b_eq=p.value if len(p.value) else None,
        bounds=[(None, None)] * dim + [(0, None)],
        method="highs-ds",
    )
    if found.status != 0:
        word = "no point satisfies all constraints: the set is empty" if found.status == 2 else found.message
        return Shape(word, np.zeros(dim), 0.0, span)
    middle, radius = found.x[:dim], float(found.x[dim])
    if not lengths.any():  # the equations leave no direction
        return Shape("", middle, math.inf, span)
    if radius > 1e-7 * max(1.0, largest(middle)):
        return Shape("", middle, radius, span)
    corners = [p.minimise(g).x for g in np.vstack([generic(dim), -generic(dim), np.eye(dim)[:8], -np.eye(dim)[:8]])]
    return Shape("", np.mean(corners, axis=0), 0.0, span)


# -- lists of points ---------------------------------------------------------------------------------------------------


class Hull(Region):
    """The convex hull of some points."""

    type: Literal["hull"] = "hull"
    points: Rows
    """The points, at least one."""

    def faults(self) -> Iterable[FieldError]:
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


def centred(z: Vector, rows: int, columns: int) -> Vector:
    """The directions that keep row and column sums of a matrix."""
    square = z.reshape(rows, columns)
    square = square - square.mean(axis=1, keepdims=True)
    centre: Vector = (square - square.mean(axis=0, keepdims=True)).ravel()
    return centre


def row_space(matrix: Matrix) -> Matrix:
    """(r, d) orthonormal basis of the span of the rows."""
    _, values, v = np.linalg.svd(matrix, full_matrices=False)
    basis: Matrix = v[values > 1e-10 * max(values[0], 1e-300)]
    return basis

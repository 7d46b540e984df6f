"""Polytopes whose oracle is a combinatorial algorithm: assignments and shortest paths."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Literal

import numpy as np
import scipy
from numpy.typing import NDArray
from pydantic import Field

from blackbox.errors import FieldError
from blackbox.records import Vector
from blackbox.regions.base import Region, scaled
from blackbox.regions.marginals import centred, project_marginals

MAX_EDGES = 100_000
"""Most edges of a graph whose paths are searched."""


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
    """First node of every path."""
    target: int
    """Last node of every path."""

    def errors(self) -> Iterable[FieldError]:
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

"""Simplices and related sets: non-negative coordinates with a bound on their sum, and permutations."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import scipy
from pydantic import Field

from blackbox.errors import FieldError, InvalidInput, InvalidRegion
from blackbox.records import Vector
from blackbox.regions.base import (
    Region,
    Scalars,
    largest,
    length_of,
    norm,
    one_hot,
    project_budget,
    project_simplex,
    scalars_errors,
    scaled,
    spread,
)
from blackbox.validation import Described, pointer


class Simplex(Region):
    """x >= 0, sum x = radius: the probability simplex for radius 1."""

    type: Literal["simplex"] = "simplex"
    radius: float = Field(1.0, gt=0)
    """Sum of the coordinates."""

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
        return level(z)

    @property
    def _has_volume(self) -> bool:
        return False


class UnitSimplex(Region):
    """x >= 0, sum x <= radius: the simplex together with everything below it."""

    type: Literal["unit_simplex"] = "unit_simplex"
    radius: float = Field(1.0, gt=0)
    """Upper bound on the sum of the coordinates."""

    def diameter(self, dim: int) -> float:
        return math.sqrt(2) * self.radius if dim > 1 else self.radius

    def _violation(self, x: Vector) -> float:
        return max(-float(x.min()), float(x.sum()) - self.radius) / self.radius

    def _project(self, x: Vector) -> Vector:
        positive = np.maximum(x, 0.0)
        return positive if positive.sum() <= self.radius else project_simplex(x, self.radius)

    def _lmo(self, g: Vector) -> Vector:
        i = int(g.argmin())
        return one_hot(g.size, i, self.radius if g[i] < 0 else 0.0)

    def _interior(self, dim: int) -> tuple[Vector, float]:
        level = self.radius / (dim + math.sqrt(dim))  # as far from the faces x_i = 0 as from the slope
        return np.full(dim, level), level


class CappedSimplex(Region):
    """0 <= x <= cap, sum x = total: the relaxation of choosing `total / cap` coordinates."""

    type: Literal["capped_simplex"] = "capped_simplex"
    total: float = Field(gt=0)
    """Sum of the coordinates."""
    cap: float = Field(1.0, gt=0)
    """Upper bound of each coordinate."""

    def check_dim(self, dim: int) -> None:
        if self.total > self.cap * dim:
            raise InvalidRegion(
                f"{dim} coordinates of at most {self.cap} cannot sum to {self.total}: the set is empty",
                hint="lower total or raise cap",
            )

    def diameter(self, dim: int) -> float:
        self.check_dim(dim)
        return self.cap * math.sqrt(2 * min(self.total / self.cap, dim - self.total / self.cap))

    def _violation(self, x: Vector) -> float:
        beyond = max(-float(x.min()), float(x.max()) - self.cap, abs(float(x.sum()) - self.total))
        return beyond / self.total

    def _project(self, x: Vector) -> Vector:
        ones = np.ones(x.size)
        return project_budget(x, ones, self.cap * ones, self.total)

    def _lmo(self, g: Vector) -> Vector:
        return fill(g, np.ones(g.size), np.full(g.size, self.cap), self.total)

    def _interior(self, dim: int) -> tuple[Vector, float]:
        level = self.total / dim
        room = min(level, self.cap - level)
        return np.full(dim, level), room * math.sqrt(dim / (dim - 1)) if dim > 1 and room > 0 else math.inf

    def _tangent(self, z: Vector) -> Vector:
        return level(z) if self.total < self.cap * z.size else np.zeros(z.size)

    @property
    def _has_volume(self) -> bool:
        return False


class Knapsack(Region):
    """0 <= x <= upper, weights . x <= budget, or = budget."""

    type: Literal["knapsack"] = "knapsack"
    weights: Scalars = 1.0
    """Cost of a unit of each coordinate."""
    budget: float = Field(gt=0)
    """Upper bound on the total cost."""
    upper: Scalars = 1.0
    """Upper bounds."""
    exact: bool = False
    """Whether the total cost must be equal to the budget."""

    def errors(self) -> Iterable[FieldError]:
        errors = list(scalars_errors(weights=self.weights, upper=self.upper))
        yield from errors
        fixed = length_of(self.weights, self.upper)
        if not errors and fixed is not None:
            try:
                self.check_dim(fixed)
            except InvalidRegion as error:
                yield FieldError("/budget", "empty", error.detail)

    def fixed_dim(self) -> int | None:
        return length_of(self.weights, self.upper)

    def check_dim(self, dim: int) -> None:
        super().check_dim(dim)
        if self.exact and self._most(dim) < self.budget:
            raise InvalidRegion(f"at most {self._most(dim)} of the budget {self.budget} can be spent: the set is empty")

    def _most(self, dim: int) -> float:
        """Total cost with all coordinates at their upper bounds."""
        return float(self._weights(dim) @ self._upper(dim))

    def _weights(self, dim: int) -> Vector:
        return spread(self.weights, dim)

    def _upper(self, dim: int) -> Vector:
        return spread(self.upper, dim)

    def diameter(self, dim: int) -> float:
        self.check_dim(dim)
        return norm(np.minimum(self._upper(dim), self.budget / self._weights(dim)))

    def _violation(self, x: Vector) -> float:
        spent = float(self._weights(x.size) @ x) - self.budget
        return max(
            -float(x.min()) / largest(self.upper),
            float((x - self._upper(x.size)).max()) / largest(self.upper),
            (abs(spent) if self.exact else spent) / self.budget,
        )

    def _project(self, x: Vector) -> Vector:
        weights, upper = self._weights(x.size), self._upper(x.size)
        inside = np.clip(x, 0.0, upper)
        if not self.exact and weights @ inside <= self.budget:
            return inside
        return project_budget(x, weights, upper, self.budget)

    def _lmo(self, g: Vector) -> Vector:
        upper = self._upper(g.size)
        return fill(g, self._weights(g.size), upper if self.exact else np.where(g < 0, upper, 0.0), self.budget)

    def _interior(self, dim: int) -> tuple[Vector, float]:
        weights, upper = self._weights(dim), self._upper(dim)
        most, length, least = self._most(dim), norm(weights), float(upper.min())
        if not self.exact:  # share of the upper bounds: as far from the lowest bounds as from the slope
            share = min(0.5, self.budget / (most + least * length))
            return share * upper, min(share * least, (self.budget - share * most) / length)
        share = self.budget / most
        room = min(share, 1 - share) * upper / np.sqrt(np.maximum(1 - (weights / length) ** 2, 0) + 1e-300)
        return share * upper, float(room.min()) if dim > 1 and share < 1 else math.inf

    def _tangent(self, z: Vector) -> Vector:
        if not self.exact:
            return z.copy()
        if z.size == 1 or self._most(z.size) <= self.budget:
            return np.zeros(z.size)
        normal = self._weights(z.size) / norm(self._weights(z.size))
        tangent: Vector = z - (normal @ z) * normal
        return tangent

    @property
    def _has_volume(self) -> bool:
        return not self.exact


class Permutahedron(Region):
    """The hull of all orders of `values`: doubly stochastic mixtures of a ranking."""

    type: Literal["permutahedron"] = "permutahedron"
    values: tuple[float, ...]
    """The numbers to order."""

    def errors(self) -> Iterable[FieldError]:
        if not self.values:
            yield FieldError("/values", "empty", "needs at least one number")

    @cached_property
    def _falling(self) -> Vector:
        return np.sort(np.asarray(self.values, dtype=np.float64))[::-1]

    def fixed_dim(self) -> int:
        return len(self.values)

    def diameter(self, dim: int) -> float:
        self.check_dim(dim)
        return norm(self._falling - self._falling[::-1])

    def _violation(self, x: Vector) -> float:
        # x is majorised by the values: no k coordinates sum to more than the k largest, and all of them to the same.
        excess = np.cumsum(np.sort(x)[::-1]) - np.cumsum(self._falling)
        return max(float(excess.max()), abs(float(excess[-1]))) / (largest(self._falling) or 1.0)

    def _lmo(self, g: Vector) -> Vector:
        vertex = np.empty(g.size)
        vertex[np.argsort(g, kind="stable")] = self._falling
        return vertex

    def _project(self, x: Vector) -> Vector:
        # Lim and Wright (2016), Efficient Bregman projections onto the permutahedron, AISTATS: in falling order the
        # nearest point is x minus the falling sequence nearest to x - values. That is constant on blocks, and each
        # block keeps its shape around a new mean.
        order = np.argsort(-x, kind="stable")
        falling = x[order]
        blocks = scipy.optimize.isotonic_regression(falling - self._falling, increasing=False).blocks
        starts, lengths = blocks[:-1], np.diff(blocks)
        shape = falling - np.repeat(falling[starts], lengths)
        shift = (np.add.reduceat(self._falling - shape, starts)) / lengths
        nearest = np.empty(x.size)
        nearest[order] = shape + np.repeat(shift, lengths)
        return nearest

    def _interior(self, dim: int) -> tuple[Vector, float]:
        mean = float(self._falling.mean())
        if self._falling[0] == self._falling[-1]:
            return np.full(dim, mean), math.inf
        k = np.arange(1, dim)
        room = (np.cumsum(self._falling)[:-1] - k * mean) / np.sqrt(
            k * (dim - k) / dim
        )  # to the facet of k coordinates
        return np.full(dim, mean), float(room.min())

    def _tangent(self, z: Vector) -> Vector:
        return level(z) if self._falling[0] > self._falling[-1] else np.zeros(z.size)

    @property
    def _has_volume(self) -> bool:
        return False


class GroupLimit(Described):
    """An upper bound on the sum of some coordinates."""

    error_class: ClassVar[type[InvalidInput]] = InvalidRegion

    members: tuple[int, ...]
    """The coordinates, counted from 0."""
    limit: float = Field(gt=0)
    """Upper bound on their sum."""


class Budgets(Region):
    """x >= 0 under budgets that are nested or disjoint (laminar): limits of departments, teams and persons."""

    type: Literal["budgets"] = "budgets"
    dim: int = Field(ge=1, le=1_000_000)
    """Number of coordinates."""
    budgets: tuple[GroupLimit, ...]
    """The limits; each coordinate is in at least one, and two of them share no members or all of one."""

    def errors(self) -> Iterable[FieldError]:
        inner: dict[int, int] = {}  # coordinate -> the smallest budget so far that holds it
        for i in sorted(range(len(self.budgets)), key=lambda i: len(self.budgets[i].members)):
            members = self.budgets[i].members
            where = pointer("budgets", i, "members")
            if not members or len(set(members)) < len(members) or not 0 <= min(members) <= max(members) < self.dim:
                yield FieldError(where, "bad_members", f"must name coordinates from 0 to {self.dim - 1}, each once")
                return
            own = set(members)
            for j in {inner[k] for k in members if k in inner}:
                if not own.issuperset(self.budgets[j].members):
                    yield FieldError(where, "not_nested", f"shares some members with budget {j}, but not all of them")
                    return
            inner.update(dict.fromkeys(members, i))
        if len(inner) < self.dim:
            free = next(i for i in range(self.dim) if i not in inner)
            yield FieldError("/budgets", "unbounded", f"coordinate {free} is in no budget: the set is unbounded")

    @cached_property
    def _nodes(self) -> tuple[tuple[int, ...], ...]:
        """The budgets of each coordinate."""
        nodes: list[list[int]] = [[] for _ in range(self.dim)]
        for node, budget in enumerate(self.budgets):
            for i in budget.members:
                nodes[i].append(node)
        return tuple(map(tuple, nodes))

    @cached_property
    def _limits(self) -> tuple[float, ...]:
        return tuple(budget.limit for budget in self.budgets)

    def fixed_dim(self) -> int:
        return self.dim

    def diameter(self, dim: int) -> float:
        # Each coordinate alone can reach at most its tightest limit, and two points >= 0 differ by no more.
        self.check_dim(dim)
        return norm(np.array([min(self._limits[node] for node in nodes) for nodes in self._nodes]))

    def _violation(self, x: Vector) -> float:
        over = max(float(x[list(budget.members)].sum()) - budget.limit for budget in self.budgets)
        return max(over, -float(x.min())) / max(self._limits)

    def _lmo(self, g: Vector) -> Vector:
        # The sets x may spend are a polymatroid, on which the greedy choice is exact (Edmonds 1970).
        left = list(self._limits)
        vertex = np.zeros(g.size)
        for i in np.argsort(g, kind="stable")[: int((g < 0).sum())].tolist():
            nodes = self._nodes[i]
            share = min(left[node] for node in nodes)
            vertex[i] = share
            for node in nodes:
                left[node] -= share
        return vertex

    def _interior(self, dim: int) -> tuple[Vector, float]:
        sizes = np.array([len(budget.members) for budget in self.budgets])
        level = float((np.asarray(self._limits) / (sizes + np.sqrt(sizes))).min())
        return np.full(dim, level), level


def level(z: Vector) -> Vector:
    """z without its mean: the directions that keep the sum."""
    rest: Vector = z - z.mean()
    return rest


def fill(g: Vector, weights: Vector, upper: Vector, budget: float) -> Vector:
    """min <g, x> over 0 <= x <= upper, weights . x = budget (or all of `upper`): the cheapest g / weights come first.

    One coordinate at most is left between its bounds (Dantzig 1957, the continuous knapsack).
    """
    order = np.argsort(scaled(g) / weights, kind="stable")
    cost = (weights * upper)[order]
    before = np.cumsum(cost) - cost
    x = np.empty(g.size)
    x[order] = np.clip((budget - before) / weights[order], 0.0, upper[order])
    return x

"""Shared by the tests of zeroth-order methods: a driver without workers, and the least squares problem."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from blackbox.algorithm import Algorithm, lookup, resolve_options
from blackbox.records import NOTHING_PENDING, Matrix, Results, Vector
from blackbox.rng import Key
from blackbox.space import Space
from tests.contracts.algorithm import Case

Method = Algorithm[Any, Any]
Objective = Callable[[Matrix], Vector]


def make(name: str, space: Space, seed: int = 7, **options: Any) -> Method:
    return lookup(name)(space, resolve_options(name, space, options), Key.from_seed(seed), 0)


def ball(d: int, **region: Any) -> Space:
    """A vector in a region, by default the unit L1 ball."""
    return Space.from_json({"x": {"type": "vector", "dim": d, "region": {"type": "l1_ball", **region}}})


def told(method: Method, state: Any, lanes: Sequence[int], f: Objective) -> Any:
    """The state after the given lanes of the open step."""
    points = method.ask(state, lanes, NOTHING_PENDING)
    n = len(lanes)
    return method.tell(
        state, Results(np.full(n, state.step), np.array(lanes, dtype=np.int64), points, f(points.vectors).reshape(n, 1))
    )


def step(method: Method, state: Any, f: Objective) -> Any:
    """The state after exactly the results that the step needs."""
    return told(method, state, range(method.need(state)), f)


def asks_until(case: Case, lost: float, seed: int) -> float:
    """Asks until a hundredth of the first value, if each result is lost with the given probability."""
    target = 0.01 * case.problem.at_start
    loop = case.loop(seed).run(20_000, lost=lost, seed=seed, until=target)
    return loop.asks if loop.best <= target else math.inf


class LeastSquares:
    """1/2 ||A x - b||^2 with A ~ N(0, 1/d), whose minimum is 0 at a point of five non-zeros in the unit L1 ball."""

    def __init__(self, d: int, seed: int) -> None:
        chance = np.random.default_rng(seed)
        self.a = chance.normal(size=(d, d)) / np.sqrt(d)
        self.best = np.zeros(d)
        self.best[:5] = [0.3, -0.2, 0.2, -0.1, 0.1]
        self.b = self.a @ self.best
        self.calls = 0

    def __call__(self, x: Matrix) -> Vector:
        self.calls += len(x)
        value: Vector = 0.5 * np.square(x @ self.a.T - self.b).sum(axis=1)
        return value

    def gradient(self, x: Vector) -> Vector:
        slope: Vector = self.a.T @ (self.a @ x - self.b)
        return slope

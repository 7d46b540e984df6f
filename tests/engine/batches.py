"""Asking and telling whole batches by hand, for the tests of methods that work in groups."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from blackbox import recipes
from blackbox.algorithm import Algorithm
from blackbox.records import NOTHING_PENDING, Matrix, Points, Results, Vector, dense
from blackbox.rng import normals

Method = Algorithm[Any, Any]

# dense methods


def asked(method: Method, state: Any, lanes: Sequence[int]) -> Matrix:
    """(k, d) the points of these lanes."""
    return method.ask(state, lanes, NOTHING_PENDING).vectors


def results_of(vectors: Matrix, values: Vector, step: int, lanes: Sequence[int] | None = None) -> Results:
    """Points with values, by default of the lanes 0, 1, 2, ..."""
    n = len(vectors)
    rows = np.arange(n) if lanes is None else np.array(lanes)
    return Results(np.full(n, step), rows, dense(vectors), np.reshape(values, (n, 1)).astype(float))


def advance(method: Method, state: Any, f: Callable[[Matrix], Vector], n_steps: int = 1) -> Any:
    """The state after steps with exactly the results that each needs."""
    for _ in range(n_steps):
        vectors = asked(method, state, range(method.need(state)))
        state = method.tell(state, results_of(vectors, f(vectors), state.step))
    return state


# methods of recipes


def built(method: Method, state: Any, points: Points) -> Matrix:
    """(k, d) float64 points of recipes."""
    blobs = method.blobs(state)
    rows = [recipes.materialise(r, method.key, method.space.dim, blobs) for r in points.recipes]
    return np.array(rows, dtype=np.float64).reshape(len(rows), method.space.dim)


def told(method: Method, state: Any, lanes: list[int], values: list[float], extra: tuple[Any, ...] = ()) -> Any:
    """The state after these results of the open step."""
    n, points = len(lanes), method.ask(state, lanes, NOTHING_PENDING)
    steps, rows = np.full(n, state.step, dtype=np.int64), np.array(values).reshape(n, 1)
    return method.tell(state, Results(steps, np.array(lanes, dtype=np.int64), points, rows, extra=extra))


def asks_until(
    method: Method,
    target: float,
    lost: float,
    seed: int,
    *,
    centre: Callable[[Any], Vector],
    stdev: Callable[[Method, Any], Vector | float],
    most: int,
) -> int:
    """Points granted until |centre|^2 <= target on the sphere, if each result is lost with the given probability."""
    chance, state, asks = random.Random(seed), method.init(), 0
    while float(np.square(centre(state)).sum()) > target:
        lanes: list[int] = []
        lane = 0
        while len(lanes) < method.need(state):
            if chance.random() >= lost:
                lanes.append(lane)
            lane += 1
        asks += lane
        z = normals(method.noise, state.step, [lane // 2 for lane in lanes], method.space.dim)  # quicker than recipes
        signs = np.array([-1.0 if lane % 2 else 1.0 for lane in lanes])
        x = centre(state) + signs[:, None] * stdev(method, state) * z
        state = told(method, state, lanes, np.square(x).sum(axis=1).tolist())
        assert asks < most
    return asks

"""Zeroth-order Adam and AdaMM: their updates by loops, scale, bounds, lost results, golden trace."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

import numpy as np
import pytest

from blackbox.records import NOTHING_PENDING
from blackbox.space import Space, Vector
from tests.contracts.algorithm import Case, free
from tests.engine.golden import assert_golden
from tests.engine.zeroth_order import asks_until, ball, make, step, told

FREE = Space({"w": Vector(dim=6, init=1.0)})


def bowl(x: np.ndarray) -> np.ndarray:
    """sum_j 10^j (x_j - 0.2)^2: badly scaled."""
    value: np.ndarray = (10.0 ** np.arange(x.shape[1]) * np.square(x - 0.2)).sum(axis=1)
    return value


@pytest.mark.parametrize("rule", ["adam", "adamm"])
def test_x_moves_by_the_formulas(rule: str) -> None:
    a, r, q, d, b1, b2 = 0.03, 0.05, 3, 6, 0.8, 0.7
    method = make("zo_adam", FREE, popsize=2 * q, radius=r, learning_rate=a, rule=rule, beta1=b1, beta2=b2)
    state = method.init()
    x, m = [1.0] * d, [0.0] * d
    v = [1e-7 if rule == "adamm" else 0.0] * d
    h = list(v)
    for t in range(1, 6):
        g = [0.0] * d
        for i in range(q):
            u = method.estimator.directions.rows(t - 1, [i])[0].tolist()
            f = [float(bowl(np.array([[x[j] + s * r * u[j] for j in range(d)]]))[0]) for s in (1, -1)]
            for j in range(d):
                g[j] += d / q * (f[0] - f[1]) / (2 * r) * u[j]
        for j in range(d):
            m[j] = b1 * m[j] + (1 - b1) * g[j]
            v[j] = b2 * v[j] + (1 - b2) * g[j] ** 2
            h[j] = max(h[j], v[j])
            if rule == "adamm":
                x[j] -= a * m[j] / math.sqrt(h[j])
            else:
                x[j] -= a * math.sqrt(1 - b2**t) / (1 - b1**t) * m[j] / (math.sqrt(v[j]) + 1e-8)
        state = step(method, state, bowl)
        np.testing.assert_allclose(state.x, x, rtol=1e-8)


def test_the_scale_of_the_objective_does_not_matter() -> None:
    ends = []
    for scale in (1.0, 1e6):
        method = make("zo_adam", FREE)
        state = method.init()
        for _ in range(20):
            state = step(method, state, lambda x, s=scale: s * bowl(x))
        ends.append(state.x)
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-6)


def test_badly_scaled_coordinates_all_arrive() -> None:
    method = make("zo_adam", FREE, popsize=12, learning_rate={"type": "cosine", "start": 0.05, "steps": 300})
    state = method.init()
    for _ in range(300):
        state = step(method, state, bowl)
    np.testing.assert_allclose(state.x, 0.2, atol=0.01)


def test_steps_without_a_usable_result_do_not_age_the_moments() -> None:
    method = make("zo_adam", FREE)
    state = step(method, method.init(), bowl)
    after = told(method, state, [0, 1], lambda x: np.full(len(x), np.nan))
    assert (after.step, after.moves) == (2, 1)
    np.testing.assert_array_equal(after.m, state.m)


def test_iterates_and_probes_stay_in_the_region() -> None:
    method = make("zo_adam", ball(8, type="l2_ball", radius=2.0), rule="adamm", beta2=0.9, learning_rate=0.1)
    region = method.space.region
    assert region is not None
    state, slope = method.init(), np.linspace(1, 2, 8)
    for _ in range(60):
        points = method.ask(state, range(12), NOTHING_PENDING)
        assert all(region.contains(row) for row in points.vectors)
        state = step(method, state, lambda x: x @ slope)
    assert region.contains(state.x)
    assert slope @ state.x < -0.95 * 2 * np.linalg.norm(slope)


@pytest.mark.parametrize("rule", ["adam", "adamm"])
@pytest.mark.parametrize(
    "region",
    [{"type": "simplex"}, {"type": "l1_ball"}, {"type": "l2_ball"}, {"type": "birkhoff", "order": 3}, {"type": "box"}],
    ids=lambda region: str(region["type"]),
)
def test_the_minimum_on_the_border_of_a_region_is_reached(region: dict[str, Any], rule: str) -> None:
    """Of the squared distance to a point outside: the projection of that point."""
    d = 9
    method = make("zo_adam", ball(d, **region), rule=rule, radius=1e-6, popsize=2 * d, learning_rate=0.02)
    inside, goal, state = method.space.region, 1.5 * np.cos(np.arange(d) ** 2), method.init()
    assert inside is not None
    assert not inside.contains(goal)
    for _ in range(500):
        state = step(method, state, lambda x: 0.5 * np.square(x - goal).sum(axis=1))
    np.testing.assert_allclose(state.x, inside.project(goal), atol=2e-3)
    assert (np.ptp(state.v) > 0) == (region["type"] == "box"), "one square for all coordinates, but in a box"


@pytest.mark.slow
def test_thirty_percent_lost_cost_at_most_1_6_times_the_asks() -> None:
    case = Case(type(make("zo_adam", FREE)), free(20), {"learning_rate": 0.03})
    whole, lossy = (median(asks_until(case, lost, seed) for seed in range(5)) for lost in (0.0, 0.3))
    print(f"{whole} asks, with 30 % lost {lossy}: {lossy / whole:.2f} times")
    assert lossy <= 1.6 * whole


def golden_run() -> list[dict[str, Any]]:
    """Twenty steps between bounds, one lane of four lost, ten with each rule."""
    space = Space({"x": Vector(dim=5, low=-1, high=1)})
    steps = []
    for rule in ("adam", "adamm"):
        method = make("zo_adam", space, popsize=6, rule=rule, radius=0.03)
        state = method.init()
        for t in range(10):
            state = told(method, state, [lane for lane in range(8) if lane % 4 != t % 4], bowl)
            steps.append({"x": state.x.tolist(), "m": state.m.tolist(), "v": state.v.tolist(), "value": state.value})
    return steps


def test_it_does_what_it_did() -> None:
    assert_golden("zo_adam", golden_run())

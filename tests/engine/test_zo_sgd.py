"""Zeroth-order gradient descent: its update by loops, projections, lost results, golden trace."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

import numpy as np
import pytest

from blackbox.errors import InvalidOptions
from blackbox.records import NOTHING_PENDING
from blackbox.space import Space, Vector
from tests.contracts.algorithm import Case, free
from tests.engine.golden import assert_golden
from tests.engine.zeroth_order import LeastSquares, asks_until, ball, make, step, told

FREE = Space({"w": Vector(dim=6, init=1.0)})


def bowl(x: np.ndarray) -> np.ndarray:
    """sum_j (j + 1) (x_j - 0.2)^2 + x_0^4."""
    value: np.ndarray = (np.arange(1, x.shape[1] + 1) * np.square(x - 0.2)).sum(axis=1) + x[:, 0] ** 4
    return value


@pytest.mark.parametrize("difference", ["central", "forward"])
@pytest.mark.parametrize(
    ("stepper", "momentum"),
    [({"type": "sgd"}, 0.0), ({"type": "momentum", "momentum": 0.8}, 0.8)],
    ids=["sgd", "momentum"],
)
def test_x_moves_by_the_formulas(stepper: dict[str, Any], momentum: float, difference: str) -> None:
    a, r, q, d = 0.03, 0.05, 3, 6
    options = {"radius": r, "learning_rate": a, "stepper": stepper, "difference": difference, "directions": "sphere"}
    method = make("zo_sgd", FREE, popsize=2 * q if difference == "central" else q + 1, **options)
    state = method.init()
    x, m = [1.0] * d, [0.0] * d
    for t in range(4):
        g = [0.0] * d
        for i in range(q):
            u = method.estimator.directions.rows(t, [i])[0].tolist()
            f = [float(bowl(np.array([[x[j] + s * r * u[j] for j in range(d)]]))[0]) for s in (1, -1, 0)]
            y = (f[0] - f[1]) / (2 * r) if difference == "central" else (f[0] - f[2]) / r
            for j in range(d):
                g[j] += d / q * y * u[j]
        for j in range(d):
            m[j] = momentum * m[j] + (1 - momentum) * g[j]
            x[j] -= a * m[j]
        state = step(method, state, bowl)
        np.testing.assert_allclose(state.x, x, rtol=1e-9)
        assert state.gradient_norm == pytest.approx(math.hypot(*g))


def test_sign_moves_every_coordinate_by_the_rate() -> None:
    method = make("zo_sgd", FREE, sign=True, learning_rate=0.01)
    np.testing.assert_allclose(np.abs(step(method, method.init(), bowl).x - 1.0), 0.01)


def test_clipup_moves_by_a_distance_whatever_the_scale() -> None:
    moves = []
    for scale in (1.0, 1e6):
        method = make("zo_sgd", FREE, learning_rate=0.05, stepper={"type": "clipup"})
        moves.append(step(method, method.init(), lambda x, s=scale: s * bowl(x)).x - 1.0)
    np.testing.assert_allclose(moves[0], moves[1], rtol=1e-6)
    assert np.linalg.norm(moves[0]) == pytest.approx(0.05)


def test_without_a_rate_gradients_are_divided_by_the_slopes_so_far() -> None:
    method = make("zo_sgd", FREE)  # orthonormal frames of 4 directions in 6 dimensions
    assert (method.options.popsize, method.options.scaled) == (8, True)
    assert not make("zo_sgd", FREE, learning_rate=0.1).options.scaled
    assert not make("zo_sgd", FREE, stepper={"type": "clipup"}).options.scaled
    d, moment, state, sizes = 6, 6 / 4, method.init(), list[float]()
    for _ in range(12):
        x = method.ask(state, range(8), NOTHING_PENDING).vectors
        values, u = bowl(x), (x[::2] - x[1::2]) / 0.02
        y = (values[::2] - values[1::2]) / 0.02
        g = d / 4 * sum(y[i] * u[i] for i in range(4))
        sizes.append(math.sqrt(sum(one * one for one in y) / 4))
        middle = median(sizes[-16:])
        sizes[-16:] = [min(size, 10 * middle) for size in sizes[-16:]]  # outliers; here the first, much larger slopes
        rate = 0.3 * math.sqrt(d) / math.sqrt(moment * (moment * middle**2 + sum(size**2 for size in sizes)))
        expected = state.x - rate * g
        state = step(method, state, bowl)
        np.testing.assert_allclose(state.x, expected, rtol=1e-6)
    with pytest.raises(InvalidOptions, match="positive at step 0"):
        make("zo_sgd", FREE, radius=0.0)


def test_iterates_and_probes_stay_in_the_region_and_reach_a_face() -> None:
    d = 8
    method = make("zo_sgd", ball(d), radius=1e-3, learning_rate=0.05, popsize=2 * d)  # exact gradients
    region = method.space.region
    assert region is not None
    slope = np.linspace(3, 1, d)
    state = method.init()
    for _ in range(120):
        points = method.ask(state, range(20), NOTHING_PENDING)
        assert all(region.contains(row) for row in points.vectors)
        state = step(method, state, lambda x: x @ slope)
        assert region.contains(state.x)
    np.testing.assert_allclose(state.x, region.lmo(slope), atol=1e-9)


@pytest.mark.parametrize("name", ["zo_sgd", "zo_adam"])
@pytest.mark.parametrize(
    "region",
    [{"type": "birkhoff", "order": 3}, {"type": "transportation", "supply": [1, 2], "demand": [0.5, 1.5, 1]}],
    ids=lambda region: str(region["type"]),
)
def test_assignments_and_transport_plans_are_projected_onto(name: str, region: dict[str, Any]) -> None:
    """Least squares to a matrix outside approaches its projection, and every probe on the way is feasible."""
    d = 9 if region["type"] == "birkhoff" else 6
    space = Space.from_json({"x": {"type": "vector", "dim": d, "region": region}})
    method = make(name, space, radius=1e-6, learning_rate=0.1 if name == "zo_sgd" else 0.01, popsize=2 * d)
    inside, goal, state = space.region, np.cos(np.arange(d) ** 2), method.init()
    assert inside is not None
    nearest = inside.project(goal)
    for _ in range(150):
        points = method.ask(state, range(method.need(state)), NOTHING_PENDING)
        assert all(inside.contains(row) for row in points.vectors)
        state = step(method, state, lambda x: 0.5 * np.square(x - goal).sum(axis=1))
        assert inside.contains(state.x)
    np.testing.assert_allclose(state.x, nearest, atol=1e-4 if name == "zo_sgd" else 0.02)


def test_bounds_are_reached_and_not_left() -> None:
    method = make("zo_sgd", Space({"x": Vector(dim=4, low=0, high=1)}), learning_rate=0.1)
    state = method.init()
    for _ in range(20):
        points = method.ask(state, range(8), NOTHING_PENDING)
        assert points.vectors.min() >= 0
        assert points.vectors.max() <= 1
        state = step(method, state, lambda x: x.sum(axis=1))
    np.testing.assert_array_equal(state.x, 0)


def test_on_a_simplex_only_tangent_directions_are_probed() -> None:
    method = make("zo_sgd", ball(5, type="simplex"), radius=1e-4)
    points = method.ask(method.init(), range(10), NOTHING_PENDING)
    np.testing.assert_allclose(points.vectors.sum(axis=1), 1, rtol=1e-12)
    state = method.init()
    for _ in range(150):
        state = step(method, state, lambda x: np.square(x - [0.5, 0.3, 0.2, 0, 0]).sum(axis=1))
    np.testing.assert_allclose(state.x, [0.5, 0.3, 0.2, 0, 0], atol=1e-3)


def test_a_step_whose_only_result_is_a_single_value_moves_nothing() -> None:
    method = make("zo_sgd", FREE)
    state = method.init()
    np.testing.assert_array_equal(told(method, state, [3], bowl).x, state.x)


def test_nesterovs_rate_on_least_squares() -> None:
    """Strictly convex quadratic, d = 20: the rate for curvature 1 halves the distance within about d / q steps."""
    f = LeastSquares(20, 0)
    method = make("zo_sgd", Space({"x": Vector(dim=20)}), radius=1e-4, popsize=12, learning_rate=0.5 * 6 / 20)
    state = method.init()
    start = float(f(state.x[None])[0])
    for _ in range(300):
        state = step(method, state, f)
    assert float(f(state.x[None])[0]) < 0.02 * start


@pytest.mark.slow
def test_thirty_percent_lost_cost_at_most_1_6_times_the_asks() -> None:
    case = Case(type(make("zo_sgd", FREE)), free(30))
    whole, lossy = (median(asks_until(case, lost, seed) for seed in range(7)) for lost in (0.0, 0.3))
    print(f"{whole} asks, with 30 % lost {lossy}: {lossy / whole:.2f} times")
    assert lossy <= 1.6 * whole


def golden_run() -> list[dict[str, Any]]:
    """Twenty steps on a bowl between bounds, one lane of four lost."""
    space = Space({"x": Vector(dim=5, low=-1, high=1)})
    method = make("zo_sgd", space, popsize=6, learning_rate=0.02, radius=0.03, stepper={"type": "momentum"})
    state, steps = method.init(), []
    for t in range(20):
        state = told(method, state, [lane for lane in range(8) if lane % 4 != t % 4], bowl)
        steps.append({"x": state.x.tolist(), "gradient_norm": state.gradient_norm, "value": state.value})
    return steps


def test_it_does_what_it_did() -> None:
    assert_golden("zo_sgd", golden_run())

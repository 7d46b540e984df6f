"""Bounds: what is known of the minimum and of the start makes no difference, and a distribution stays in its box."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from blackbox.algorithm import build, resolve_options
from blackbox.records import NOTHING_PENDING, Results, dense
from blackbox.rng import Key
from blackbox.space import Categorical, Int, Space
from blackbox.space import Vector as Vectors
from blackbox.toolbox.bounds import CURVED, WIDEST, Bounds
from tests.benchmarks.bench_bounds import FUNCTIONS, PASSED, PLACES, WHERE, Case, pycma, run
from tests.engine.batches import advance

METHODS = ("cma_es", "sep_cma_es", "pycma")
ADAPTIVE = ("cma_es", "sep_cma_es")
HALF = Space({"b": Vectors(dim=3, low=-5.0, high=5.0), "f": Vectors(dim=2, init=1.0)})


@pytest.mark.parametrize("optimum", PLACES)
@pytest.mark.parametrize("start", PLACES)
@pytest.mark.parametrize("method", METHODS)
def test_start_and_minimum_may_be_anywhere_in_the_box(method: str, start: str, optimum: str) -> None:
    """Seed 0 and two dimensions of `python -m tests.benchmarks.bench_bounds`, whose table is in ACCEPTANCE.md."""
    for function in FUNCTIONS:
        if optimum in WHERE.get(function, PLACES):
            for dim, sigma in ((2, 0.01), (5, 0.5)):
                case = Case(method, function, dim, start, optimum, sigma, 0)
                assert run(case).ratio <= PASSED, case


@pytest.mark.slow
@pytest.mark.parametrize(("function", "dim"), [("sphere", 10), ("slope", 5)])
def test_a_minimum_in_a_corner_takes_no_more_evaluations_than_pycma(function: str, dim: int) -> None:
    ours, theirs = [], []
    for seed in range(3):
        case = Case("cma_es", function, dim, "middle", "corner", 0.3, seed)
        at_start = float(case.value(case.x0))
        ours.append(run(case, per_dim=1000, passed=1e-8 / at_start).evaluations)
        theirs.append(pycma(case, 1e-8, 1000 * dim))
    assert np.median(ours) <= np.median(theirs)


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("objective", ["flat", "slope", "narrow"])
def test_no_standard_deviation_is_above_a_third_of_the_range_and_the_centre_stays_inside(
    name: str, objective: str
) -> None:
    functions = {
        "flat": lambda x: np.zeros(len(x)),
        "slope": lambda x: x[:, 0] - x[:, 3],
        "narrow": lambda x: np.square(x[:, 0] + x[:, 1] - 1) * 1e6 + x[:, 2] + x[:, 4] ** 2,
    }
    method = build(name, HALF, resolve_options(name, HALF, {"sigma": 0.5}), Key.from_seed(3))
    state, bounded = method.init(), HALF.bounded
    for _ in range(300):
        state = advance(method, state, lambda x: functions[objective](HALF.fold(x)))
        shape = method.shape(state)
        assert (shape.sigma * shape.spread[bounded] <= WIDEST * (1 + 1e-9)).all()
        assert (np.abs(shape.mean[bounded] - 0.5) <= 0.5 + CURVED).all()
        centre = method.bounds.outer(shape.mean)[bounded]
        assert ((centre >= 0) & (centre <= 1)).all()


def test_inner_coordinates_are_one_to_one_smooth_at_the_bounds_and_themselves_inside() -> None:
    bounds = Bounds(HALF)
    g = np.linspace(-2.3, 3.3, 4001)[:, None] + np.zeros(5)
    x = bounds.outer(g)
    np.testing.assert_allclose(bounds.inner(x), g, atol=1e-9)
    assert (np.diff(x, axis=0) >= 0).all()
    np.testing.assert_array_equal(x[:, ~HALF.bounded], g[:, ~HALF.bounded])
    inside = np.linspace(CURVED, 1 - CURVED, 99)[:, None] + np.zeros(5)
    np.testing.assert_allclose(bounds.outer(inside), inside, rtol=1e-12)
    ends = np.array([[-CURVED] * 5, [1 + CURVED] * 5])
    np.testing.assert_array_equal(bounds.outer(ends)[:, HALF.bounded], [[0.0] * 3, [1.0] * 3])
    step = 1e-4
    around = np.array([[-CURVED - step] * 5, [-CURVED + step] * 5])
    folded = HALF.fold(bounds.outer(around))[:, HALF.bounded]
    np.testing.assert_allclose(folded[0], folded[1], rtol=1e-6)  # even around the bound,
    np.testing.assert_allclose(folded[1], step**2 / (4 * CURVED), rtol=1e-6)  # with slope zero


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_space_without_bounds_is_left_alone(name: str) -> None:
    free = Space({"x": Vectors(dim=3, init=0.0)})
    method = build(name, free, resolve_options(name, free, {"sigma": 5.0}), Key.from_seed(1))
    x = np.array([[1e300, -0.01, 0.5]])
    assert method.bounds.outer(x) is x
    assert method.bounds.inner(x) is x
    assert method.bounds.excess(np.full(3, 1e9)) == 1.0
    assert method.init().sigma == 5.0


@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_probe_lies_on_the_bounds_beside_the_centre_and_is_not_learned_from(name: str) -> None:
    method = build(name, HALF, resolve_options(name, HALF, {"sigma": 0.1, "popsize": 8}), Key.from_seed(1))
    state = method.init()
    state = replace(state, mean=np.array([0.05, 0.5, 0.98, 0.0, 1.0]))
    points = method.ask(state, range(8), NOTHING_PENDING)
    probe = points.vectors[0]
    assert (probe[0], probe[2]) == (0.0, 1.0)
    assert probe[1] not in (0.0, 1.0)
    values = np.arange(8.0)

    def told(first: float) -> np.ndarray:
        rows = np.concatenate([[first], values[1:]])[:, None]
        after = method.tell(state, Results(np.zeros(8, int), np.arange(8), points, rows))
        assert after.values.value == np.fmin(first, 1.0)
        return after.mean

    np.testing.assert_array_equal(told(-1.0), told(99.0))
    np.testing.assert_array_equal(told(-1.0), told(math.nan))


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_point_beyond_a_bound_ranks_behind_its_mirror_image_unless_the_centre_is_near_that_bound(name: str) -> None:
    method = build(name, HALF, resolve_options(name, HALF, {"sigma": 0.1, "popsize": 4}), Key.from_seed(1))
    points = np.full((4, 5), 0.5)
    points[:, 0] = -0.2, 0.2, 0.4, 0.6  # the first two fold to the same point
    values = np.array([0.0, 1e-9, 1.0, 1.0])

    def best(centre: float) -> int:
        state = replace(method.init(), step=1, mean=np.array([centre, 0.5, 0.5, 0.5, 0.5]))
        results = Results(np.ones(4, int), np.arange(4), dense(points), values[:, None])
        order, n_values, summary = method.ranked(state, results)
        assert (sorted(order), n_values, summary.value) == ([0, 1, 2, 3], 4, 0.0)
        return int(order[0])

    assert best(0.3) == 1
    assert best(0.05) == 0
    points[0, 0], points[0, 3] = 0.2, -0.2  # this coordinate has no bounds
    assert best(0.3) == 0


@pytest.mark.parametrize("value", [math.nan, 1e308])
def test_a_missing_value_ranks_last_and_huge_values_are_finite_for_the_penalty(value: float) -> None:
    method = build("cma_es", HALF, resolve_options("cma_es", HALF, {"sigma": 0.1}), Key.from_seed(1))
    points = np.full((4, 5), 0.5)
    points[0, 0] = -1.0
    state = replace(method.init(), step=1)
    rows = np.array([-1e308, 0.0, 1.0, value])[:, None]
    order, n_values, _ = method.ranked(state, Results(np.ones(4, int), np.arange(4), dense(points), rows))
    assert n_values == 3 + math.isfinite(value)
    assert order.tolist() == ([1, 2, 0, 3] if math.isnan(value) else [1, 2, 3, 0])


def test_a_thousand_dimensions_get_below_a_start_that_is_near_the_minimum() -> None:
    """10 d evaluations; one standard deviation of the whole box is five hundred times farther than this start."""
    minimum = np.random.default_rng(0).uniform(-3, 3, 1000)
    start = minimum + np.random.default_rng(1).normal(0, 0.055, 1000)
    space = Space({"x": Vectors(dim=1000, low=-5.0, high=5.0, init=tuple(start.tolist()))})
    method = build("sep_cma_es", space, resolve_options("sep_cma_es", space, {}), Key.from_seed(0))
    state = advance(method, method.init(), lambda x: np.square(10 * space.fold(x) - 5 - minimum).sum(axis=1), 416)
    assert state.values.value < 0.8 * np.square(start - minimum).sum()


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_hundred_dimensions_do_not_get_worse_than_the_start(name: str) -> None:
    """A first step of 0.3 in each coordinate leads far away from any start in many dimensions."""
    space = Space({"x": Vectors(dim=100, low=-5.0, high=5.0, init=1.0)})
    method = build(name, space, resolve_options(name, space, {}), Key.from_seed(0))
    state, best = method.init(), math.inf

    def f(x: np.ndarray) -> np.ndarray:
        nonlocal best
        values = np.square(10 * space.fold(x) - 5).sum(axis=1)
        best = min(best, float(values.min()))
        return values

    advance(method, state, f, 60)  # ten evaluations per dimension
    assert best < 0.8 * 100


@pytest.mark.parametrize("name", ADAPTIVE)
def test_integers_and_choices_stay_alive_at_their_ends(name: str) -> None:
    """The best choice is at the end of its scale for the values of the start, and in the middle for the minimum."""
    space = Space(
        {"k": Int(low=0, high=9), "c": Categorical(choices=["a", "b", "c"]), "x": Vectors(dim=2, low=0, high=1)}
    )

    def f(x: np.ndarray) -> np.ndarray:
        rows = [space.decode(row) for row in x]
        return np.array([(p["k"] - 9 * p["x"][0]) ** 2 + (p["c"] != "b") + np.square(p["x"] - 0.5).sum() for p in rows])

    found = []
    for seed in range(5):
        start = {"k": 0, "c": "a", "x": (0.0, 0.0)}
        method = build(name, space, resolve_options(name, space, {}), Key.from_seed(seed))
        state = replace(method.init(), mean=method.bounds.start(space.encode(start)))
        state = advance(method, state, f, 60)
        found.append(state.values.value)
    assert np.median(found) < 0.3, found

"""What must hold of every zeroth-order method in boxes, at symmetric starts, with outliers and in any unit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from blackbox.algorithm import Algorithm, build, resolve_options
from blackbox.records import NOTHING_PENDING, Matrix, Recipes, Results, Vector
from blackbox.registry import Outlook
from blackbox.rng import Key
from blackbox.space import Float, Space
from blackbox.space import Vector as Reals
from blackbox.toolbox.alarms import PATIENCE, tied
from blackbox.toolbox.perturbations import WIDEST, Walls
from blackbox.toolbox.schedules import Constant
from tests.engine.batches import built

PAIRED = ("ars", "mezo", "openai_es", "pgpe")
METHODS = (*PAIRED, "zo_sgd", "zo_adam")
DIM = 4


def box(init: float, dim: int = DIM) -> Space:
    return Space({"x": Reals(dim=dim, low=0.0, high=1.0, init=init)})


FREE = Space({"x": Reals(dim=DIM, init=2.0)})


def make(name: str, space: Space, evaluations: int, **options: Any) -> Algorithm[Any, Any]:
    resolved = resolve_options(name, space, options, outlook=Outlook(evaluations=evaluations))
    return build(name, space, resolved, Key.from_seed(3))


def vectors(method: Algorithm[Any, Any], state: Any) -> tuple[Any, Matrix]:
    points = method.ask(state, range(method.need(state)), NOTHING_PENDING)
    return points, built(method, state, points) if isinstance(points, Recipes) else points.vectors


def advance(method: Algorithm[Any, Any], state: Any, f: Callable[[Matrix], Vector]) -> Any:
    """The state after exactly the results that the step needs, of points folded into the bounds."""
    points, x = vectors(method, state)
    values = f(method.space.fold(np.asarray(x, dtype=np.float64)))
    n = len(points)
    return method.tell(state, Results(np.full(n, state.step), np.arange(n), points, values.reshape(n, 1)))


def run(method: Algorithm[Any, Any], evaluations: int, f: Callable[[Matrix], Vector]) -> Any:
    state, used = method.init(), 0
    while used < evaluations:
        used += method.need(state)
        state = advance(method, state, f)
    return state


def sphere(at: float) -> Callable[[Matrix], Vector]:
    return lambda x: np.square(x - at).sum(axis=1)


# bounds


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("start", "optimum"), [(0.0, 0.5), (0.0, 1.0), (1.0, 0.0), (0.5, 1.0), (1.0, 0.6)])
def test_the_gap_falls_to_a_hundredth_wherever_start_and_minimum_are(name: str, start: float, optimum: float) -> None:
    f = sphere(optimum)
    method = make(name, box(start), 200 * DIM)
    state = run(method, 200 * DIM, f)
    assert f(method.recommend(state)[None])[0] <= 0.01 * f(np.full((1, DIM), start))[0]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_no_pair_is_folded_to_one_point(name: str, start: float) -> None:
    method = make(name, box(start), 100)
    x = method.space.fold(np.asarray(vectors(method, method.init())[1], dtype=np.float64))
    assert (np.abs(x[::2] - x[1::2]).max(axis=1) > 1e-4).all()


@pytest.mark.parametrize("name", ["ars", "openai_es", "pgpe"])
def test_no_standard_deviation_is_above_a_third_of_the_range(name: str) -> None:
    method = make(name, box(0.5, dim=200), 100, sigma=5.0)
    x = np.asarray(vectors(method, method.init())[1], dtype=np.float64)
    assert float(np.sqrt(np.square(x - 0.5).mean())) == pytest.approx(WIDEST, rel=0.1)
    mixed = Walls(Space({"a": Float(low=0, high=1), "b": Float()}))
    assert mixed.narrowed(np.array([5.0, 5.0], dtype=np.float32)).tolist() == [np.float32(WIDEST), 5.0]
    assert mixed.size(Constant(value=5.0), 0) == WIDEST
    assert Walls(FREE).size(Constant(value=5.0), 0) == 5.0


@pytest.mark.parametrize("name", METHODS)
def test_the_iterate_may_reach_a_bound_and_never_leaves_it(name: str) -> None:
    method = make(name, box(0.5), 400)
    state = method.init()
    for _ in range(400 // method.need(state)):
        state = advance(method, state, lambda x: x.sum(axis=1))
        assert (method.recommend(state) >= 0).all()
    assert (method.recommend(state) < 0.01).all()


# ties


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_ties_is_followed_by_one_around_another_centre(name: str) -> None:
    """Even functions have no slope at the origin: the product of two coordinates falls along one diagonal."""
    method = make(name, Space({"x": Reals(dim=2)}), 400)
    state = run(method, 400, lambda x: x[:, 0] * x[:, 1] + 0.1 * np.square(np.square(x)).sum(axis=1))
    x = method.recommend(state)
    assert x[0] * x[1] < -1e-3
    assert method.notices(state) == ()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("space", [FREE, box(0.0)], ids=["free", "box"])
def test_on_a_flat_objective_nothing_moves_far_and_it_is_said(name: str, space: Space) -> None:
    method = make(name, space, 400)
    state = method.init()
    for step in range(40):
        assert len(method.notices(state)) == (step >= PATIENCE)
        _, x = vectors(method, state)
        assert np.abs(x - space.initial).max() < 0.2 if name != "pgpe" else 1.5
        state = advance(method, state, lambda x: np.full(len(x), 7.0))
    np.testing.assert_array_equal(method.recommend(state), space.initial)
    (notice,) = method.notices(state)
    assert (notice.code, notice.evidence["steps"]) == ("pairs_tie", 40)
    assert method.notices(advance(method, state, sphere(0.3))) == ()


def test_pairs_tie_if_both_halves_are_equal() -> None:
    lanes = np.array([0, 1, 2, 3])
    assert tied(lanes, np.array([1.0, 1.0, 2.0, 2.0]))
    assert tied(lanes, np.array([1.0, 1.0, np.nan, np.nan]))
    assert not tied(lanes, np.array([1.0, 1.0, 2.0, np.nan]))
    assert not tied(lanes, np.array([1.0, 1.0, 2.0, 3.0]))
    assert not tied(lanes, np.full(4, np.nan))
    assert not tied(np.array([0, 1, 2]), np.array([1.0, 1.0, 2.0])), "a half pair tells something"
    assert tied(np.array([0, 1, 2]), np.array([1.0, 1.0, 1.0]))
    assert not tied(lanes[:1], np.array([1.0]))


# outliers and units


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("wrong", [1e10, -1e10, math.nan])
@pytest.mark.parametrize("at", [0, 100])
def test_one_wrong_value_does_not_decide_where_it_ends(name: str, wrong: float, at: int) -> None:
    told = 0

    def f(x: Matrix) -> Vector:
        nonlocal told
        values = sphere(1.0)(x)
        values[told + np.arange(len(x)) == at] = wrong
        told += len(x)
        return values

    method = make(name, FREE, 800)
    assert sphere(1.0)(method.recommend(run(method, 800, f))[None])[0] < 0.01 * DIM


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("space", [FREE, box(0.0)], ids=["free", "box"])
@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_the_unit_of_the_objective_does_not_matter(name: str, space: Space, unit: float) -> None:
    method = make(name, space, 800)
    state = run(method, 800, lambda x: unit * sphere(0.8)(x))
    assert sphere(0.8)(method.recommend(state)[None])[0] < 0.02 * sphere(0.8)(space.initial[None])[0]


@pytest.mark.parametrize("name", ["mezo", "zo_sgd"])
def test_a_run_that_leaves_everything_behind_stops_as_diverged(name: str) -> None:
    method = make(name, FREE, 4000, learning_rate=100.0, clip=None)
    state = method.init()
    for _ in range(60):
        state = advance(method, state, sphere(0.0))
    stop = method.stopped(state)
    assert stop is not None
    assert stop.reason == "diverged"
    assert make(name, FREE, 4000).stopped(method.init()) is None


# defaults


@pytest.mark.parametrize("name", METHODS)
def test_the_default_population_uses_every_worker(name: str) -> None:
    resolved = resolve_options(name, box(0.5), {}, outlook=Outlook(workers=51))
    assert resolved.popsize == 52, "pairs: the next even number"
    assert resolve_options(name, box(0.5), {"popsize": 4}, outlook=Outlook(workers=51)).popsize == 4


@pytest.mark.parametrize("name", ["deep_ga", "cbo"])
def test_the_default_population_of_the_others_uses_every_worker_too(name: str) -> None:
    assert resolve_options(name, box(0.5), {}, outlook=Outlook(workers=151)).popsize == 151
    assert resolve_options(name, box(0.5), {"popsize": 6}, outlook=Outlook(workers=151)).popsize == 6


def test_no_mutation_of_a_bounded_coordinate_is_above_a_third_of_its_range() -> None:
    method = make("deep_ga", box(0.5, dim=200), 100, sigma=5.0)
    x = vectors(method, method.init())[1]
    assert float(np.sqrt(np.square(x - 0.5).mean())) == pytest.approx(WIDEST, rel=0.1)

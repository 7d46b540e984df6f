"""Nelder-Mead: SciPy's own path, asked and told; what advances its log, and what it is told for failures."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import minimize

from blackbox import codec
from blackbox.algorithm import build, lookup, resolve_options
from blackbox.algorithms.nelder_mead import NelderMead, NelderMeadState, first_simplex
from blackbox.errors import IncompatibleProblem
from blackbox.records import NOTHING_PENDING, Matrix, Results, Vector, dense
from blackbox.rng import Key
from blackbox.space import Float, Int, Space
from blackbox.space import Vector as Numbers
from tests.engine.golden import assert_golden

BOX = Space({"x": Numbers(dim=3, low=0, high=1, init=(0.2, 0.5, 0.9))})
FREE = Space({"x": Numbers(dim=3, init=(-1.0, 0.0, 2.0))})

Objective = Callable[[Vector], float]


def rosenbrock(x: Vector) -> float:
    return float((100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum())


def make(space: Space = FREE, **options: object) -> NelderMead:
    method = build("nelder_mead", space, resolve_options("nelder_mead", space, options), Key.from_seed(7))
    assert isinstance(method, NelderMead)
    return method


def asked(method: NelderMead, state: NelderMeadState) -> Vector:
    vectors = method.ask(state, [0], NOTHING_PENDING).vectors
    assert vectors is not None
    point: Vector = vectors[0]
    return point


def told(step: int, vectors: Matrix, values: list[float]) -> Results:
    n = len(values)
    zeros = np.zeros(n, dtype=np.int64)
    return Results(zeros + step, zeros, dense(np.asarray(vectors)), np.array(values).reshape(n, 1))


def advance(method: NelderMead, state: NelderMeadState, value: float) -> NelderMeadState:
    return method.tell(state, told(state.step, asked(method, state)[None], [value]))


def run(method: NelderMead, f: Objective, steps: int) -> NelderMeadState:
    state = method.init()
    for _ in range(steps):
        if method.stopped(state):
            break
        state = advance(method, state, f(asked(method, state)))
    return state


@pytest.mark.parametrize("adaptive", [True, False])
def test_it_asks_what_scipy_evaluates_and_stops_when_scipy_does(adaptive: bool) -> None:
    called = list[Vector]()

    def recorded(x: Vector) -> float:
        called.append(np.array(x))
        return rosenbrock(x)

    start = np.array(FREE.initial)
    simplex = np.vstack([start, start + 0.25 * np.eye(3)])
    options = {"adaptive": adaptive, "initial_simplex": simplex, "xatol": 1e-5, "fatol": 1e-5, "maxiter": 10**6}
    result = minimize(recorded, start, method="Nelder-Mead", options=options)
    method = make(adaptive=adaptive, x_tolerance=1e-5, f_tolerance=1e-5)
    state = run(method, rosenbrock, 10_000)
    assert state.points.tobytes() == np.array(called).tobytes()
    stop = method.stopped(state)
    assert stop is not None
    assert (stop.reason, stop.detail, stop.facts) == ("converged", result.message, {"evaluations": len(called)})
    assert rosenbrock(method.recommend(state)) == result.fun == method.metrics(state)["best"]
    assert asked(method, state).tolist() == method.recommend(state).tolist()


def test_the_first_simplex_steps_to_where_there_is_room() -> None:
    np.testing.assert_allclose(np.diag(first_simplex(BOX, 0.25)[1:] - BOX.initial), [0.25, 0.25, -0.25])
    np.testing.assert_allclose(np.diag(first_simplex(BOX, 5.0)[1:] - BOX.initial), [0.4, 0.25, -0.45])
    np.testing.assert_allclose(np.diag(first_simplex(FREE, 5.0)[1:] - FREE.initial), [5, 5, 5])


@pytest.mark.parametrize("corner", [0.0, 1.0])
def test_bounded_points_stay_inside_and_reach_a_minimum_at_the_bound(corner: float) -> None:
    method = make(BOX)
    state = run(method, lambda x: float(np.abs(x - corner).sum() + np.square(x - 0.5).sum()), 600)
    assert 0 <= state.points.min() <= state.points.max() <= 1
    np.testing.assert_allclose(method.recommend(state), corner, atol=1e-4)


@pytest.mark.parametrize("d", [1, 2, 6])
def test_it_finds_the_minimum_of_a_bowl(d: int) -> None:
    method = make(Space({"x": Numbers(dim=d, low=-1, high=1)}))
    state = run(method, lambda x: float((np.arange(1, d + 1) * np.square(x - 0.7)).sum()), 2000)
    assert method.stopped(state)
    np.testing.assert_allclose(method.recommend(state), 0.7, atol=1e-4)


def test_only_the_point_that_is_waited_for_advances_the_log() -> None:
    method = make()
    first = method.init()
    p0 = asked(method, first)
    second = advance(method, first, 5.0)
    foreign = method.tell(second, told(0, np.vstack([p0, p0 + 1e-9]), [1.0, 2.0]))
    assert foreign.step == second.step + 1
    assert codec.encode(foreign) == codec.encode(NelderMeadState(2, second.points, second.values, second.failed))
    p1 = asked(method, foreign)
    mixed = method.tell(foreign, told(2, np.vstack([p0, p1]), [1.0, 4.0]))
    assert mixed.values.tolist() == [5.0, 4.0]
    assert mixed.points.tolist() == [p0.tolist(), p1.tolist()]


def test_an_empty_batch_only_counts_the_step() -> None:
    method = make()
    state = advance(method, method.init(), 3.0)
    later = method.tell(state, told(1, np.zeros((1, 3)), [0.0]).take([]))
    assert (later.step, later.values.tolist()) == (2, [3.0])
    assert asked(method, later).tolist() == asked(method, state).tolist()


def test_every_lane_of_a_step_is_the_same_point_and_lane_0_is_handed_out_once() -> None:
    method = make()
    state = advance(method, method.init(), 3.0)
    vectors = method.ask(state, [0, 1], NOTHING_PENDING).vectors
    assert vectors is not None
    assert vectors.tolist() == [asked(method, state).tolist()] * 2
    assert list(method.lanes(state, NOTHING_PENDING, 4)) == [0]


def test_a_failure_is_told_as_worse_than_all_that_was_seen() -> None:
    method = make()
    state = method.init()
    for value in (np.nan, 3.0, 7.0, np.inf, -np.inf, 5.0):
        state = advance(method, state, value)
    assert state.values.tolist() == [1e10, 3, 7, 11, 11, 5]
    assert state.failed.tolist() == [True, False, False, True, True, False]
    assert method.recommend(state).tolist() == state.points[1].tolist()


def test_failures_every_seventh_time_do_not_keep_it_from_converging() -> None:
    method = make(Space({"x": Numbers(dim=3, low=-1, high=1)}))
    count = iter(range(10**6))
    state = run(method, lambda x: np.nan if next(count) % 7 == 6 else float(np.square(x - 0.7).sum()), 1500)
    np.testing.assert_allclose(method.recommend(state), 0.7, atol=0.02)
    assert 0 < state.failed.sum() < 0.2 * len(state.failed)


@pytest.mark.parametrize("space", [BOX, FREE], ids=["box", "free"])
@pytest.mark.parametrize(
    "values", [[np.nan], [0.0], [np.inf], [1e308, -1e308], [1.0, np.nan, np.inf, 2.0]],
    ids=["no value", "equal", "inf", "huge", "alternating"],
)  # fmt: skip
def test_no_values_make_a_state_or_a_point_that_is_not_finite(values: list[float], space: Space) -> None:
    method = make(space)
    state = method.init()
    assert method.metrics(state) == {}
    for step in range(80):
        assert np.isfinite(asked(method, state)).all()
        state = advance(method, state, values[step % len(values)])
        method.stopped(state)
    assert np.isfinite(state.points).all()
    assert np.isfinite(state.values).all()
    assert np.isfinite(method.recommend(state)).all()
    assert all(map(math.isfinite, method.metrics(state).values()))


def test_an_objective_that_falls_for_ever_does_not_overflow() -> None:
    method = make(Space({"x": Float()}))
    state = run(method, lambda x: float(-x[0]), 2000)
    assert np.isfinite(state.points).all()
    assert state.points.max() == 1e100


def test_a_state_is_continued_elsewhere_by_replay() -> None:
    whole = run(make(), rosenbrock, 60)
    part = codec.decode(NelderMeadState, codec.encode(run(make(), rosenbrock, 25)))
    elsewhere = make()
    for _ in range(35):
        part = codec.decode(NelderMeadState, codec.encode(advance(elsewhere, part, rosenbrock(asked(elsewhere, part)))))
    assert codec.encode(part) == codec.encode(whole)


def test_asking_at_an_earlier_state_gives_the_earlier_point() -> None:
    method = make()
    early = run(method, rosenbrock, 10)
    point = asked(method, early).tobytes()
    late = early
    for _ in range(10):
        late = advance(method, late, rosenbrock(asked(method, late)))
    forked = advance(method, early, 1e6)
    assert asked(method, early).tobytes() == point
    assert asked(method, forked).tobytes() != asked(method, advance(method, early, -1e6)).tobytes()


def test_it_takes_real_parameters_only() -> None:
    assert lookup("nelder_mead") is NelderMead
    with pytest.raises(IncompatibleProblem, match="the space has int"):
        resolve_options("nelder_mead", Space({"n": Int(low=0, high=5)}), {})


def test_golden_trace() -> None:
    """Twenty points, compared with yesterday's at 1e-9."""
    state = run(make(BOX), rosenbrock, 20)
    found = {"points": state.points.tolist(), "values": state.values.tolist()}
    assert_golden("nelder_mead", found, atol=1e-12)

"""pycma behind our interface: it is really pycma, it leaves NumPy's global state alone, and the log is its state."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from blackbox import codec
from blackbox.algorithm import build, resolve_options
from blackbox.algorithms import pycma as module
from blackbox.algorithms.pycma import Pycma, PycmaState
from blackbox.errors import IncompatibleProblem
from blackbox.records import NOTHING_PENDING, Matrix, Results, dense
from blackbox.rng import Key, normals
from blackbox.space import Space, Vector


def make(dim: int = 4, seed: int = 7, **options: object) -> Pycma:
    space = Space({"x": Vector(dim=dim, init=3.0)})
    method = build("pycma", space, resolve_options("pycma", space, options), Key.from_seed(seed))
    assert isinstance(method, Pycma)
    return method


def asked(method: Pycma, state: PycmaState, lanes: range | list[int]) -> Matrix:
    vectors = method.ask(state, lanes, NOTHING_PENDING).vectors
    assert vectors is not None
    return vectors


def told(vectors: Matrix, values: Matrix, step: int, first: int = 0) -> Results:
    n = len(vectors)
    return Results(np.full(n, step), first + np.arange(n), dense(vectors), np.reshape(values, (n, 1)).astype(float))


def sphere(vectors: Matrix) -> Matrix:
    return np.square(vectors).sum(axis=1)


def advance(method: Pycma, state: PycmaState, n_steps: int = 1) -> PycmaState:
    for _ in range(n_steps):
        vectors = asked(method, state, range(method.need(state)))
        state = method.tell(state, told(vectors, sphere(vectors), state.step))
    return state


def test_it_is_pycma_fed_with_our_noise() -> None:
    method = make(6, sigma=0.5)
    state = method.init()
    step = 0
    options = {"seed": math.nan, "signals_filename": "", "verbose": -9, "verb_log": 0}
    es = module._cma().CMAEvolutionStrategy(
        [3.0] * 6, 0.5, {**options, "randn": lambda n, d: normals(method.noise, step, range(n), d).astype(float)}
    )
    for step in range(40):  # noqa: B007 -- the lambda above reads it
        vectors = np.array(es.ask())
        np.testing.assert_array_equal(asked(method, state, range(method.need(state))), vectors)
        es.tell(list(vectors), sphere(vectors).tolist())
        state = method.tell(state, told(vectors, sphere(vectors), state.step))
    assert method.metrics(state)["sigma"] == es.sigma
    np.testing.assert_array_equal(method.recommend(state), es.mean)


def test_the_global_random_state_and_the_working_directory_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module._cma.cache_clear()
    before = np.random.get_state()  # noqa: NPY002 -- the legacy state is what this is about
    method = make(5)
    state = advance(method, method.init(), 30)
    asked(method, state, range(40))
    method.recommend(state), method.metrics(state), method.stopped(state)
    after = np.random.get_state()  # noqa: NPY002
    assert before[0] == after[0]
    np.testing.assert_array_equal(before[1], after[1])
    assert before[2:] == after[2:]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dim", [1, 4, 11])
def test_any_lane_is_a_function_of_its_address(dim: int) -> None:
    method = make(dim)
    state = advance(method, method.init(), 6)
    batch = asked(method, state, range(30))
    assert len({row.tobytes() for row in batch}) == 30
    restarted = codec.decode(PycmaState, codec.encode(state))
    for lane in (29, 0, 3, 14, 12):
        assert asked(method, state, [lane]).tobytes() == batch[lane].tobytes()
        assert asked(make(dim), restarted, [lane]).tobytes() == batch[lane].tobytes()


def test_lanes_beyond_the_population_have_its_distribution_and_can_be_told() -> None:
    method = make(3)
    state = advance(method, method.init(), 10)
    many = asked(method, state, range(5000))
    es = method._lives[state.digest].es
    np.testing.assert_allclose(np.cov(many.T), es.sigma**2 * es.C, rtol=0.15, atol=0.1 * es.sigma**2)
    late = many[100:107]
    after = method.tell(state, told(late, sphere(late), state.step, first=100))
    assert len(after.generations) == len(state.generations) + 1


def test_a_state_looked_at_again_is_rebuilt_by_replay() -> None:
    method = make(4)
    states = [method.init()]
    for _ in range(12):
        states.append(advance(method, states[-1]))
    seen = [asked(method, state, range(10)).tobytes() for state in states]  # only the last few objects are kept
    assert len(method._lives) <= module.N_CACHED
    assert [asked(method, state, range(10)).tobytes() for state in reversed(states)] == seen[::-1]
    fork = method.tell(states[5], told(asked(method, states[5], range(8)), np.arange(8.0), 5))
    assert asked(method, fork, range(8)).tobytes() != asked(method, states[6], range(8)).tobytes()
    assert asked(make(4), fork, range(8)).tobytes() == asked(method, fork, range(8)).tobytes()


def test_too_few_values_wait_for_those_of_the_next_step() -> None:
    method = make(4)  # popsize 8: pycma needs four values
    state = advance(method, method.init(), 2)
    sigma = method.metrics(state)["sigma"]
    first = asked(method, state, range(5))
    waiting = method.tell(state, told(first, np.array([1.0, np.nan, 2.0, np.nan, np.nan]), 2))
    assert (waiting.step, waiting.opened, len(waiting.generations)) == (3, 2, 2)
    assert (waiting.value, method.metrics(waiting)["sigma"]) == (1.0, sigma)
    second = asked(method, waiting, range(5))
    assert not np.isin(second, first).any()
    after = method.tell(waiting, told(second, np.arange(5.0), 3))
    assert (after.opened, after.generations[-1].tolist()) == (4, [2, 10])
    assert method.metrics(after)["sigma"] != sigma
    sooner = replace(waiting, step=9)
    later = method.tell(sooner, told(second, np.arange(5.0), 9))
    assert later.digest != after.digest  # the next generation opens at another step and draws other noise


@pytest.mark.parametrize(
    "values",
    [
        [np.nan] * 8,
        [np.inf] * 8,
        [0.0] * 8,
        [1.7e308, -1.7e308] * 4,
        [1.0, np.nan] * 4,
        [np.nan, 3.0, np.inf, 1.0, -np.inf, 2.0, 0.0, np.nan],
    ],
)
def test_no_values_crash_it(values: list[float]) -> None:
    method = make(4)
    state = method.init()
    for step in range(60):
        vectors = asked(method, state, range(8))
        assert np.isfinite(vectors).all()
        state = method.tell(state, told(vectors, np.roll(values, step), step))
    assert np.isfinite(method.recommend(state)).all()
    assert all(map(math.isfinite, method.metrics(state).values()))
    method.stopped(state)


def test_a_point_without_value_ranks_last() -> None:
    results = []
    for failed in (np.nan, 1e9):
        method = make(4)
        state = method.init()
        vectors = asked(method, state, range(8))
        values = sphere(vectors)
        values[3] = failed
        results.append(method.recommend(method.tell(state, told(vectors, values, 0))).tolist())
        results.append(method.metrics(method.tell(state, told(vectors, values, 0)))["sigma"])
    assert results[:2] == results[2:]


def test_it_reaches_the_target_and_says_pycmas_reason() -> None:
    method = make(5)
    state = method.init()
    while (stop := method.stopped(state)) is None:
        assert state.step < 500
        state = advance(method, state)
    assert state.value is not None
    assert state.value < 1e-9
    assert stop.reason == "tolfun"
    assert sphere(method.recommend(state)[None])[0] < 1e-9
    frozen = advance(method, state, 3)
    np.testing.assert_array_equal(method.recommend(frozen), method.recommend(state))


def test_spaces_where_pycma_would_use_the_global_state_are_refused() -> None:
    with pytest.raises(IncompatibleProblem, match="at most 299"):
        resolve_options("pycma", Space({"x": Vector(dim=300)}), {})


@pytest.mark.parametrize("name", ["pycma", "cma_es", "sep_cma_es"])
@pytest.mark.parametrize("scale", [1e-18, 1e-100, 1e18, 1e300])
def test_values_of_any_size_are_told_apart(name: str, scale: float) -> None:
    """A run of the same objective, stretched, goes on as long and comes as near."""
    space = Space({"x": Vector(dim=3, init=0.5)})
    method = build(name, space, resolve_options(name, space, {}), Key.from_seed(1))
    state, best = method.init(), np.inf
    while method.stopped(state) is None and state.step < 300:
        points = method.ask(state, range(7), NOTHING_PENDING)
        values = np.square(points.vectors).sum(axis=1)
        best = min(best, float(values.min()))
        rows = (scale * values)[:, None]
        state = method.tell(state, Results(np.full(7, state.step), np.arange(7), points, rows))
    assert best < 1e-9

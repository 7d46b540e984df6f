"""The end of a run, the next one, late results and the best point."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from blackbox import codec
from blackbox.algorithm import lookup, resolve_options
from blackbox.records import Matrix, Results
from blackbox.rng import Key
from blackbox.space import Space
from blackbox.space import Vector as Vectors
from blackbox.study.memory import MemoryStore
from blackbox.toolbox.runs import N_HISTORY, REASONS, SPREAD, Run, RunResolved, Runs, Shape, Values, largest_popsize
from tests.benchmarks.bench_bbob import solve
from tests.contracts.algorithm import AlgorithmContract, Case, Loop, box, free
from tests.engine.studies import start

METHODS = ("cma_es", "sep_cma_es")
D = 4
FREE = Space({"x": Vectors(dim=D, init=3.0)})


def runs_of(space: Space = FREE, **options: Any) -> Runs:
    resolved = resolve_options("cma_es", space, {"popsize": 8, **options})
    assert isinstance(resolved, RunResolved)
    return Runs(space, resolved, Key.from_seed(3).stream(0))


def loop_of(name: str, f: Callable[[Matrix], float], space: Space = FREE, seed: int = 7, **options: Any) -> Loop:
    method = lookup(name)(space, resolve_options(name, space, options), Key.from_seed(seed))
    return Loop(method, lambda x: float(f(x)))


def sphere(x: Matrix) -> float:
    return float(np.square(x).sum())


# Rules ----------------------------------------------------------------------------------------------------------------


def calm(runs: Runs, run: Run) -> tuple[Values, Shape]:
    """Values and a distribution to which no rule applies: a thousand steps, always improving."""
    values = runs.blank(run, np.zeros(D))
    n = 1000
    recent = 1 + 0.1 * np.arange(len(values.recent))[:, None] + [0.0, 0.5]
    history = 1 + np.arange(N_HISTORY)[:, None] + [0.0, 0.25]
    values = replace(values, recorded=n, told=8 * n, value=1.0, recent=recent, history=history, scale=1.0)
    return values, Shape(np.ones(D), run.sigma, np.ones(D), np.ones(D), 0.5, 2.0)


def with_recent(values: Values, bests: float, worst: float) -> Values:
    recent = np.column_stack([np.linspace(0, bests, len(values.recent)), np.full(len(values.recent), 99.0)])
    recent[0, 1] = worst
    return replace(values, recent=recent)


RULES: dict[str, Callable[[Values, Shape, float], tuple[Values, Shape]]] = {
    # x runs over 1: below, the rule does not hold; above, it does
    "tolfacupx": lambda v, s, x: (v, replace(s, longest=1e3 * x)),
    "tolx": lambda v, s, x: (v, replace(s, spread=np.full(D, 1e-11 / x), pc=np.full(D, 1e-11 / x))),
    "tolfun": lambda v, s, x: (with_recent(v, 0.2e-11, 1e-11 / x), s),
    "tolfunhist": lambda v, s, x: (with_recent(v, 1e-12 / x, 1.0), s),
    "flat": lambda v, s, x: (replace(v, flat=int(10.5 * x)), s),
    "condition": lambda v, s, x: (v, replace(s, shortest=2e-7 / math.sqrt(x))),
    "no_effect": lambda v, s, x: (
        v,
        replace(s, mean=np.array([1.0, 1.0, 2.0**49 * x, 1.0])),
    ),  # float64 steps by 1/8 from 2^49 on
    "max_steps": lambda v, s, x: (replace(v, recorded=int(5000 * x)), s),
}


@pytest.mark.parametrize("reason", RULES)
def test_each_rule_holds_beyond_its_limit_and_not_before(reason: str) -> None:
    runs = runs_of()
    run = replace(runs.first(), max_steps=5000)
    assert runs.over(run, *calm(runs, run)) is None
    assert runs.over(run, *RULES[reason](*calm(runs, run), 0.9)) is None
    assert runs.over(run, *RULES[reason](*calm(runs, run), 1.2)) == reason


def test_every_reason_has_its_test() -> None:
    assert set(RULES) | {"stagnation"} == set(REASONS)


def test_stagnation_is_a_window_in_which_neither_best_nor_median_improve() -> None:
    runs = runs_of()
    run = runs.first()
    values, shape = calm(runs, run)
    worse = values.history[::-1].copy()
    window = runs.stride(run) * N_HISTORY
    assert window == pytest.approx(100 + 100 * D**1.5 / 8, abs=N_HISTORY)  # tolstagnation of pycma
    assert runs.over(run, replace(values, history=worse, recorded=window + 1), shape) == "stagnation"
    assert runs.over(run, replace(values, history=worse, recorded=window), shape) is None
    for column in (0, 1):
        one = worse.copy()
        one[:, column] = values.history[:, column]
        assert runs.over(run, replace(values, history=one), shape) is None


@pytest.mark.parametrize("name", METHODS)
def test_stretching_a_small_objective_changes_nothing_not_even_the_end(name: str) -> None:
    def end(scale: float) -> tuple[int, str, bytes]:
        loop = loop_of(name, lambda x: scale * sphere(x)).run(10_000, workers=1)
        stop = loop.algorithm.stopped(loop.state)
        assert stop is not None
        return loop.state.step, stop.reason, loop.state.mean.tobytes()

    assert end(2.0**-20) == end(2.0**-90)


@pytest.mark.parametrize("name", METHODS)
def test_stretching_the_space_and_sigma_changes_nothing_not_even_the_end(name: str) -> None:
    def end(scale: float) -> tuple[int, str, list[float]]:
        space = Space({"x": Vectors(dim=D, init=3.0 * scale)})
        loop = loop_of(name, lambda x: sphere(x / scale) + 1.0, space, sigma=0.5 * scale, tolfun=0.0, tolfunhist=0.0)
        loop.run(10_000, workers=1)
        stop = loop.algorithm.stopped(loop.state)
        assert stop is not None
        return loop.state.step, stop.reason, (loop.state.mean / scale).tolist()

    assert end(1.0) == end(2.0**30) == end(2.0**-30)


# The sequence ---------------------------------------------------------------------------------------------------------


def finished(runs: Runs, run: Run, told: int, value: float = 1.0) -> tuple[Values, Shape]:
    values, shape = calm(runs, run)
    return replace(values, told=told, value=value), replace(shape, longest=1e9)


def test_ipop_doubles_the_population_each_time() -> None:
    runs = runs_of(restarts="ipop", max_restarts=4)
    run, sizes = runs.first(), []
    for step in range(10, 100, 10):
        assert runs.following(run, *calm(runs, run), step) is None, "it is not over"
        following = runs.following(run, *finished(runs, run, 100), step)
        if following is None:
            break
        run = following
        sizes.append(run.popsize)
        assert (run.regime, run.sigma, run.began, run.index) == ("large", 0.3, step, len(sizes))
        assert run.max_steps == int(100 + 150 * (D + 3) ** 2 / math.sqrt(run.popsize))
    assert sizes == [16, 32, 64, 128]
    assert largest_popsize(runs.options) == 128


def test_bipop_gives_small_runs_the_evaluations_of_the_large_ones() -> None:
    """Against the bookkeeping of pycma's fmin in plain lists."""
    runs = runs_of(restarts="bipop", max_restarts=6)
    run = runs.first()
    small, large = [100], []
    n_large, n_small, sigmas, sizes = 0, 0, [], []
    chance = np.random.default_rng(0)
    told = 100
    for step in range(1, 400):
        following = runs.following(run, *finished(runs, run, told), step)
        is_small = sum(small) < max(1, sum(large))
        if not is_small and n_large == 6:
            assert following is None
            break
        assert following is not None
        run = following
        told = int(chance.integers(200, 2000))
        assert (run.used_small, run.used_large) == (sum(small), sum(large))
        if is_small:
            n_small += 1
            assert run.regime == "small"
            assert 8 <= run.popsize <= 8 * 2**n_large
            assert 0.003 <= run.sigma <= 0.3
            limit = int(100 + 150 * (D + 3) ** 2 / math.sqrt(run.popsize))
            assert run.max_steps == max(1, min(limit, int(0.5 * sum(large) / run.popsize)))
            sigmas.append(math.log10(run.sigma / 0.3))
            sizes.append(math.log2(run.popsize / 8) / n_large)
            small.append(told)
        else:
            n_large += 1
            assert (run.regime, run.popsize, run.sigma) == ("large", 8 * 2**n_large, 0.3)
            large.append(told * run.popsize // 8)
            told = large[-1]
        assert run.n_large == n_large
    else:
        pytest.fail("it never ended")
    assert n_small > 30
    assert np.mean(sigmas) == pytest.approx(-1, abs=0.3)  # -2 v
    assert np.mean(sizes) == pytest.approx(1 / 3, abs=0.15)  # u^2


def test_runs_start_at_places_of_their_own() -> None:
    space = Space({"b": Vectors(dim=40, low=-1.0, high=2.0), "f": Vectors(dim=40, init=5.0)})
    runs = runs_of(space, restarts="ipop", sigma=0.5)
    first = runs.first()
    np.testing.assert_array_equal(runs.start(first), space.initial)
    starts = [runs.start(replace(first, index=i, began=10 * i)) for i in (1, 2)]
    assert starts[0].tobytes() == runs.start(replace(first, index=1, began=10, popsize=99)).tobytes()
    assert not np.isclose(*starts).any()
    for x in starts:
        inside, around = x[:40], (x[40:] - 5.0) / (SPREAD * 0.5)
        assert (inside >= 0).all()
        assert (inside < 1).all()
        assert (np.abs(around) <= 1).all()
        assert inside.std() == pytest.approx(math.sqrt(1 / 12), rel=0.25)
        assert around.std() == pytest.approx(math.sqrt(1 / 3), rel=0.25)


# In a method ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_it_ends_only_when_the_last_run_is_over(name: str) -> None:
    loop = loop_of(name, lambda x: 1.0, restarts="ipop", max_restarts=2, popsize=6)
    needs, states = [], []
    while loop.algorithm.stopped(loop.state) is None:
        assert loop.state.step < 100
        needs.append(loop.algorithm.need(loop.state))
        states.append(loop.state)
        loop.steps(1)
    assert needs == [6] * 11 + [12] * 11 + [24] * 11  # flat values, more than ten steps in a row
    stop = loop.algorithm.stopped(loop.state)
    assert stop is not None
    assert stop.reason == "flat"
    assert "last of 3 runs" in stop.detail
    metrics = [loop.algorithm.metrics(state) for state in states]
    assert [m["run"] for m in metrics] == [0] * 11 + [1] * 11 + [2] * 11
    assert {m["popsize"] for m in metrics} == {6, 12, 24}
    assert {(m["run"], m["regime"]) for m in metrics} == {(0, 0), (1, 1), (2, 1)}


@pytest.mark.parametrize("name", METHODS)
def test_a_new_run_knows_nothing_of_the_old_one(name: str) -> None:
    """After a restart the method does what a fresh one with the same mean, population and step size does."""
    loop = loop_of(name, lambda x: 1.0, restarts="ipop", popsize=6).steps(11)
    state, algorithm = loop.state, loop.algorithm
    assert (state.run.index, state.run.began, state.step) == (1, 11, 11)
    fresh = replace(lookup(name)(FREE, resolve_options(name, FREE, {"popsize": 12}), Key.from_seed(1)).init())
    fresh = replace(fresh, mean=state.mean, values=replace(fresh.values, best=state.mean))
    lanes = range(12)
    for step in range(8):
        points = algorithm.ask(state, lanes, loop.pending())
        values = np.array([[sphere(x)] for x in points.vectors])
        state = algorithm.tell(state, Results(np.full(12, 11 + step), np.arange(12), points, values))
        fresh = algorithm.tell(fresh, Results(np.full(12, step), np.arange(12), points, values))
    shared = [field for field in ("mean", "sigma", "ps", "pc", "D", "C") if hasattr(state, field)]
    assert len(shared) >= 5
    for field in shared:
        np.testing.assert_array_equal(getattr(state, field), getattr(fresh, field))
    assert codec.encode(state.values) == codec.encode(fresh.values)


@pytest.mark.parametrize("name", METHODS)
def test_late_results_of_an_earlier_run_never_enter_the_next_one(name: str) -> None:
    driver = start(MemoryStore(), name, options={"popsize": 4, "restarts": "ipop", "tolflatfitness": 1})
    late = driver.lease("slow")
    steps = set()
    while (state := driver.do(driver.study.state())[1]).run.index == 0:
        steps.add(state.step)
        if state.step == 1:
            other = driver.lease("slower")  # of the last step of the first run, which `oldest` would otherwise allow
        driver.evaluate(1, lambda x: 5.0)
    assert steps == {0, 1}
    driver.tell(late, -1.0, worker="slow")
    driver.tell(other, -2.0, worker="slower")
    driver.do(driver.study.advance(now=driver.now))
    state = driver.do(driver.study.state())[1]
    assert (state.step, state.values.told, state.values.value) == (2, 0, None)
    driver.evaluate(8, lambda x: 5.0)
    state = driver.do(driver.study.state())[1]
    assert (state.step, state.values.told, state.values.value) == (3, 8, 5.0)
    best = driver.do(driver.study.best())
    assert best is not None
    assert best[0].value == -2.0, "but the best point counts, whenever it comes"
    assert driver.replayed_equal() == 3
    driver.check_log()


@pytest.mark.parametrize("name", METHODS)
def test_of_equal_values_the_newest_is_recommended(name: str) -> None:
    """Returns of a simulator saturate: the first point that got the most was lucky, a later one comes of learning."""
    loop = loop_of(name, lambda x: max(1.0, sphere(x)), sigma=0.3)
    while loop.best > 1.0:
        loop.steps(1)
    assert loop.best == 1.0
    for _ in range(3):
        loop.steps(1)
        _, told = loop.history[-1]
        recommended = loop.algorithm.recommend(loop.state)
        if (told.scalar == 1.0).any():
            first = int(told.scalar.argmin())
            np.testing.assert_array_equal(recommended, told.vectors[first])


@pytest.mark.parametrize("name", METHODS)
def test_it_recommends_what_the_best_run_does(name: str) -> None:
    """Two valleys: the run in the deeper one gives the recommendation, whichever runs come after it."""

    def valleys(x: Matrix) -> float:
        return min(sphere(x - 0.2), 1e-3 + sphere(x - 0.8))

    space = Space({"x": Vectors(dim=3, low=0.0, high=1.0, init=0.8)})
    loop = loop_of(name, valleys, space, restarts="bipop", sigma=0.05)
    seen = set()
    while len(seen) < 8:
        loop.steps(1)
        seen.add(loop.state.run.index)
        record, value = loop.state.run.record, loop.state.values.value
        best = min(v for v in (record, value, math.inf) if v is not None)
        assert best == pytest.approx(loop.best)
        assert loop.algorithm.metrics(loop.state)["best"] == best
        recommended = valleys(loop.algorithm.recommend(loop.state))
        if loop.state.run.index == 1:
            assert recommended == pytest.approx(1e-3, abs=1e-9) or value is not None
        assert recommended <= best + 1e-9 or loop.state.step < 5 or value == best
    assert valleys(loop.algorithm.recommend(loop.state)) < 1e-9


class TestContractWithRestarts(AlgorithmContract):
    """The contract, with runs that are over soon."""

    OPTIONS = (
        {"restarts": "bipop", "tolx": 0.05, "popsize": 6},
        {"restarts": "ipop", "tolflatfitness": 1, "tolx": 0.1},
    )

    @pytest.fixture(
        params=[
            Case(lookup(name), p, raw) for name, raw in zip(METHODS, OPTIONS, strict=True) for p in (box(5), free(4))
        ],
        ids=str,
    )
    def case(self, request: pytest.FixtureRequest) -> Case:
        case: Case = request.param
        return case

    @pytest.fixture(
        params=[Case(lookup(name), box(10), raw) for name, raw in zip(METHODS, OPTIONS, strict=True)], ids=str
    )
    def home(self, request: pytest.FixtureRequest) -> Case:
        case: Case = request.param
        return case


# What restarts are for ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("function", "restarts"), [(15, "ipop"), (15, "bipop"), (21, "ipop")])
def test_restarts_solve_what_one_run_does_not(function: int, restarts: str) -> None:
    """BBOB f15 (Rastrigin, rotated and bent) and f21 (101 peaks), n = 5, instances 1 to 5, to 20,000 n evaluations."""

    def solved(kind: str) -> int:
        options = {"sigma": 2.0, "restarts": kind}
        return sum(solve(function, i, 5, 100_000, "cma_es", options).reached for i in range(1, 6))

    assert (solved("none"), solved(restarts)) == (0, 5)

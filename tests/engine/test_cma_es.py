"""CMA-ES: its equations, what it does with odd results, and how it compares with pycma."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from blackbox import codec
from blackbox.algorithm import build, resolve_options
from blackbox.algorithms.cma_es import TILE, CmaEs, CmaEsState, decompose, tiled
from blackbox.records import Matrix, Results, dense
from blackbox.rng import Key
from blackbox.space import Float, Int, Space
from blackbox.space import Vector as FreeVector
from blackbox.toolbox.evolution import longest
from blackbox.toolbox.runs import MAX_CONDITION, REASONS
from tests.benchmarks.bench_cma import OBJECTIVES, Objective, pycma
from tests.engine.batches import advance, asked, results_of
from tests.engine.golden import assert_golden


def make(space: Space | int = 4, seed: int = 7, x0: float = 3.0, **options: object) -> CmaEs:
    space = Space({"x": FreeVector(dim=space, init=x0)}) if isinstance(space, int) else space
    method = build("cma_es", space, resolve_options("cma_es", space, options), Key.from_seed(seed))
    assert isinstance(method, CmaEs)
    return method


def sphere(vectors: Matrix) -> Matrix:
    return np.square(vectors).sum(axis=1)


def ellipsoid(vectors: Matrix) -> Matrix:
    return np.square(vectors) @ 10.0 ** (6 * np.arange(vectors.shape[1]) / (vectors.shape[1] - 1))


# The equations --------------------------------------------------------------------------------------------------------


def tell_by_the_book(method: CmaEs, s: CmaEsState, vectors: Matrix, values: list[float]) -> dict[str, object]:
    """One step in plain loops: evolution.md 3.1 line by line, with C^(-1/2) formed from C itself."""
    n, lam, g = len(s.mean), len(values), s.step + 1
    raw = [math.log((lam + 1) / 2) - math.log(k) for k in range(1, lam + 1)]
    mu = lam // 2
    mueff = sum(raw[:mu]) ** 2 / sum(w * w for w in raw[:mu])
    mueff_minus = sum(raw[mu:]) ** 2 / sum(w * w for w in raw[mu:])
    c1 = min(1, lam / 6) * 2 / ((n + 1.3) ** 2 + mueff)
    cmu = min(1 - c1, 2 * (0.25 + mueff - 2 + 1 / mueff) / ((n + 2) ** 2 + mueff))
    alpha = min(1 + c1 / cmu, 1 + 2 * mueff_minus / (mueff + 2), (1 - c1 - cmu) / (n * cmu))
    plus, minus = sum(w for w in raw if w > 0), -sum(w for w in raw if w < 0)
    w = [r / plus if r >= 0 else alpha * r / minus for r in raw]
    cc = (4 + mueff / n) / (n + 4 + 2 * mueff / n)
    cs = min(0.5, (mueff + 2) / (n + mueff + 3))
    ds = 1 + cs + 2 * max(0, max(1, 3 * (1 - 2 ** (-n / 9))) * math.sqrt((mueff - 1) / (n + 1)) - 1)
    chi = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n))
    symmetric = np.tril(s.C) + np.tril(s.C, -1).T
    eigenvalues, eigenvectors = np.linalg.eigh(symmetric)
    root = eigenvectors @ np.diag(eigenvalues**-0.5) @ eigenvectors.T
    y = [(vectors[i] - s.mean) / s.sigma for i in sorted(range(lam), key=lambda i: values[i])]
    yw = sum(w[k] * y[k] for k in range(mu))
    ps = (1 - cs) * s.ps + math.sqrt(cs * (2 - cs) * mueff) * (root @ yw)
    norm = float(np.linalg.norm(ps))
    h = 1.0 if norm**2 / n / (1 - (1 - cs) ** (2 * g)) < 2 + 4 / (n + 1) else 0.0
    pc = (1 - cc) * s.pc + h * math.sqrt(cc * (2 - cc) * mueff) * yw
    C = (1 - c1 * (1 - (1 - h) * cc * (2 - cc)) - cmu * sum(w)) * symmetric + c1 * np.outer(pc, pc)
    for k in range(lam):
        wbar = w[k] if w[k] >= 0 else w[k] * n / float(np.linalg.norm(root @ y[k])) ** 2
        C = C + cmu * wbar * np.outer(y[k], y[k])
    sigma = s.sigma * math.exp(min(1, cs / ds * (norm / chi - 1)))
    return {"mean": s.mean + s.sigma * yw, "ps": ps, "pc": pc, "C": C, "sigma": sigma}


@pytest.mark.parametrize(("dim", "popsize"), [(2, 6), (5, 8), (5, 9), (10, 40), (3, 200)])
def test_one_step_is_the_equations(dim: int, popsize: int) -> None:
    method = make(dim, popsize=popsize, sigma=0.7)
    state = method.init()
    for _ in range(12):
        # the equations read C itself, the method its decomposition, which may be some steps old
        C, axes, D, _ = decompose(state.C)
        state = replace(state, C=C, axes=axes, D=D)
        vectors = asked(method, state, list(range(popsize)))
        values = ellipsoid(vectors)
        expected = tell_by_the_book(method, state, vectors, values.tolist())
        state = method.tell(state, results_of(vectors, values, state.step))
        for name, value in expected.items():
            got = np.tril(state.C) if name == "C" else getattr(state, name)
            np.testing.assert_allclose(
                got, np.tril(value) if name == "C" else value, rtol=1e-9, atol=1e-12, err_msg=name
            )


def test_asked_points_have_the_distribution_of_the_state() -> None:
    method = make(3)
    state = advance(method, method.init(), ellipsoid, 30)
    C, axes, D, _ = decompose(state.C)
    state = replace(state, C=C, axes=axes, D=D)
    x = asked(method, state, list(range(20_000)))
    np.testing.assert_allclose(x.mean(axis=0), state.mean, atol=4 * state.sigma * D[-1] / math.sqrt(20_000))
    whitened = (x - state.mean) / state.sigma @ state.axes.T / state.D
    np.testing.assert_allclose(np.cov(whitened.T), np.eye(3), atol=0.04)
    np.testing.assert_allclose(state.axes.T * state.D**2 @ state.axes, np.tril(C) + np.tril(C, -1).T, rtol=1e-10)


@pytest.mark.parametrize("dim", [1, 3, 17, 64])
def test_a_lane_asked_alone_equals_the_lane_in_a_batch_and_after_a_restart(dim: int) -> None:
    method = make(dim)
    state = advance(method, method.init(), sphere, 12)
    lanes = [0, 5, 7, 8, 9, 23, 24, 40]
    batch = asked(method, state, lanes)
    restarted = codec.decode(CmaEsState, codec.encode(state))
    for i, lane in enumerate(lanes):
        assert asked(method, state, [lane]).tobytes() == batch[i].tobytes()
        assert asked(make(dim), restarted, [lane]).tobytes() == batch[i].tobytes()
    assert codec.encode(advance(make(dim), restarted, sphere, 3)) == codec.encode(advance(method, state, sphere, 3))


def test_a_rotated_objective_is_solved_by_the_rotated_run() -> None:
    """Results of one run, rotated, are told to another: its state is the rotated one."""
    dim = 6
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((dim, dim)))[0]
    method = make(dim)
    plain = method.init()
    rotated = replace(plain, mean=plain.mean @ rotation)
    for _ in range(60):
        x = asked(method, plain, list(range(9)))
        values = ellipsoid(x)
        plain = method.tell(plain, results_of(x, values, plain.step))
        rotated = method.tell(rotated, results_of(x @ rotation, values, rotated.step))
    C, other = (np.tril(s.C) + np.tril(s.C, -1).T for s in (plain, rotated))
    assert np.linalg.cond(C) > 100
    np.testing.assert_allclose(rotated.mean, plain.mean @ rotation, atol=1e-9)
    np.testing.assert_allclose(other, rotation.T @ C @ rotation, rtol=1e-7, atol=1e-9)
    assert rotated.sigma == pytest.approx(plain.sigma, rel=1e-9)


def test_a_monotone_transformation_of_the_values_changes_nothing_but_them() -> None:
    plain, bent = (
        advance(make(6), make(6).init(), f, 60) for f in (sphere, lambda x: np.cbrt(np.log1p(sphere(x))) - 7)
    )
    for field in ("mean", "sigma", "C", "axes", "D", "ps", "pc"):
        np.testing.assert_array_equal(getattr(plain, field), getattr(bent, field))


def test_the_decomposition_stays_one_over_a_whole_run() -> None:
    method = make(8)
    state, n_checked = method.init(), 0
    while method.stopped(state) is None:
        state = advance(method, state, ellipsoid)
        if state.decomposed == state.step:
            C = np.tril(state.C) + np.tril(state.C, -1).T
            np.testing.assert_allclose(state.axes.T * state.D**2 @ state.axes, C, atol=1e-12 * state.D[-1] ** 2)
            n_checked += 1
    assert n_checked > 100


@pytest.mark.parametrize(
    "lanes", [range(3, 21), range(8), range(5, 6), [4], [0, 1001, 9, 8], [7, 7, 0], range(9, 0, -3)]
)
def test_lanes_are_found_among_those_of_their_tiles(lanes: list[int]) -> None:
    tiles, rows = tiled(lanes)
    assert len(tiles) % TILE == 0
    assert np.array(tiles)[rows].tolist() == list(lanes)
    assert np.reshape(tiles, (-1, TILE))[:, 0].tolist() == sorted({lane // TILE * TILE for lane in lanes})


def test_the_start_and_default_popsize_come_from_the_space() -> None:
    space = Space({"x": Float(low=-1, high=3, init=0.0), "k": Int(low=0, high=9), "w": FreeVector(dim=8, init=2.0)})
    options = resolve_options("cma_es", space, {})
    assert options.model_dump()["popsize"] == 10
    state = make(space).init()
    np.testing.assert_array_equal(state.mean, space.initial)
    assert make(space).memory(options, space) >= codec.encode(state).__sizeof__()


# Odd results ----------------------------------------------------------------------------------------------------------


def finite(state: CmaEsState) -> bool:
    arrays = (state.mean, state.C, state.axes, state.D, state.ps, state.pc, state.values.recent, state.values.best)
    return (
        all(np.isfinite(a).all() for a in arrays) and math.isfinite(state.sigma) and state.D[0] > 0 and state.sigma > 0
    )


PATTERNS: dict[str, Callable[[int, int, Matrix], Matrix]] = {
    "all NaN": lambda g, k, f: np.full(k, np.nan),
    "all equal": lambda g, k, f: np.zeros(k),
    "infinite": lambda g, k, f: np.where(np.arange(k) % 2, np.inf, -np.inf),
    "alternating failures": lambda g, k, f: np.where((np.arange(k) + g) % 2 == 0, np.nan, f),
    "one survivor": lambda g, k, f: np.where(np.arange(k) == g % k, f, np.nan),
    "huge": lambda g, k, f: np.where(np.arange(k) % 3, 1.7e308, -1.7e308),
    "a slope without end": lambda g, k, f: -np.arange(k, dtype=float),
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_results_make_a_state_that_is_not_finite(pattern: str) -> None:
    method = make(5)
    state = method.init()
    for g in range(400):
        vectors = asked(method, state, list(range(8)))
        state = method.tell(state, results_of(vectors, PATTERNS[pattern](g, 8, sphere(vectors)), g))
        method.stopped(state)
        assert finite(state), f"step {g}"
        assert all(map(math.isfinite, method.metrics(state).values()))


def test_a_linear_slope_and_a_flat_valley_never_leave_float64() -> None:
    for f in (lambda x: x[:, 0], lambda x: -sphere(x), lambda x: np.abs(x[:, 0])):
        method = make(4)
        state = method.init()
        for _ in range(3000):
            state = advance(method, state, lambda x, f=f: np.where(np.isfinite(f(x)), f(x), np.nan))
        assert finite(state)


@pytest.mark.slow
def test_a_flat_objective_does_not_change_the_step_size_on_average() -> None:
    finals = []
    for seed in range(16):
        method = make(10, seed=seed)
        finals.append(math.log(advance(method, method.init(), lambda x: np.zeros(len(x)), 1000).sigma / 0.3))
    assert abs(np.mean(finals)) < 3 * np.std(finals) / math.sqrt(16), f"{np.mean(finals)} +- {np.std(finals)}"


def test_a_point_without_value_never_pulls_the_mean() -> None:
    method = make(3, popsize=8)
    state = method.init()
    x = asked(method, state, list(range(8)))
    values = np.full(8, np.nan)
    values[5] = 1.0
    after = method.tell(state, results_of(x, values, 0))
    np.testing.assert_allclose(after.mean, x[5], rtol=1e-12)
    assert (after.values.value, after.values.best.tolist()) == (1.0, x[5].tolist())


def test_a_step_with_nothing_to_rank_teaches_nothing() -> None:
    method = make(3)
    state = advance(method, method.init(), sphere, 5)
    x = asked(method, state, [0, 1, 2])
    for vectors, values in ((x[:0], []), (x, [np.nan] * 3)):
        after = method.tell(state, results_of(vectors, np.array(values), 5))
        assert codec.encode(replace(after, step=5)) == codec.encode(state)
        assert after.step == 6
    after = method.tell(state, results_of(x[:1], np.array([-1.0]), 5))
    assert (after.values.value, after.sigma, after.values.recorded) == (-1.0, state.sigma, state.values.recorded)


def test_late_results_are_learned_from_but_never_from_afar() -> None:
    method = make(4, popsize=8)
    state = method.init()
    late = asked(method, state, [8, 9])
    state = advance(method, state, sphere, 1)
    assert method.oldest(state) == 0
    fresh = asked(method, state, list(range(6)))
    vectors = np.concatenate([late, fresh])
    steps, lanes = np.array([0, 0] + [1] * 6), np.array([8, 9, *range(6)])
    results = Results(steps, lanes, dense(vectors), sphere(vectors)[:, None])
    after = method.tell(state, results)
    expected = tell_by_the_book(method, replace(state, step=1), vectors, sphere(vectors).tolist())
    np.testing.assert_allclose(after.mean, expected["mean"])  # close enough to the mean not to be clipped

    far = replace(results, points=dense(vectors + 1e6 * (steps == 0)[:, None]), values=np.arange(8.0)[:, None])
    after = method.tell(state, far)
    moved = (after.mean - state.mean) / state.sigma @ state.axes.T / state.D
    assert np.linalg.norm(moved) <= longest(4)


def test_injected_points_pull_and_never_push() -> None:
    method = make(4, popsize=8)
    state = method.init()
    own = asked(method, state, list(range(8)))
    vectors = np.concatenate([np.full((1, 4), 0.5), own])
    best, worst = (np.concatenate([[value], np.arange(8.0)]) for value in (-1.0, 9.0))
    lanes = [-1, *range(8)]
    pulled = method.tell(state, results_of(vectors, best, 0, lanes))
    without = method.tell(state, results_of(own, np.arange(8.0), 0))
    assert np.linalg.norm(pulled.mean - 0.5) < np.linalg.norm(without.mean - 0.5)
    assert pulled.values.best.tolist() == [0.5] * 4
    one = method.tell(state, results_of(vectors, worst, 0, lanes))
    elsewhere = method.tell(state, results_of(np.concatenate([np.full((1, 4), -40.0), own]), worst, 0, lanes))
    assert codec.encode(one) == codec.encode(elsewhere)  # a bad injected point leaves no trace
    assert finite(method.tell(state, results_of(np.concatenate([np.full((1, 4), 1e300), own]), best, 0, lanes)))


# Stopping and recommending --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "f", "options"),
    [
        ("tolfun", sphere, {}),
        ("tolx", sphere, {"tolfun": 0.0, "tolfunhist": 0.0}),
        ("tolfunhist", lambda x: np.round(sphere(x)) + 1e-9 * np.arange(len(x)), {}),
        ("flat", lambda x: np.ones(len(x)), {"tolfun": 0.0, "tolfunhist": 0.0}),
        ("tolfacupx", lambda x: x[:, 0], {}),
        ("condition", lambda x: x[:, 0] ** 2 + 1e18 * x[:, 1] ** 2, {"tolx": 0.0, "tolfun": 0.0, "tolfunhist": 0.0}),
        ("no_effect", lambda x: sphere(x - 1e3), {"sigma": 9.0, "tolx": 0.0, "tolfun": 0.0, "tolfunhist": 0.0}),
    ],
)
def test_it_says_why_it_stops(reason: str, f: Callable[[Matrix], Matrix], options: dict[str, object]) -> None:
    method = make(2, **options)
    state = method.init()
    assert method.stopped(state) is None
    while (stop := method.stopped(state)) is None:
        assert state.step < 3000
        state = advance(method, state, f)
    assert stop.reason == reason
    assert stop.detail == REASONS[reason]


def test_noise_alone_is_stagnation() -> None:
    method = make(3)
    state = method.init()
    noise = np.random.default_rng(1)
    while (stop := method.stopped(state)) is None:
        assert state.step < 3000
        state = advance(method, state, lambda x: noise.standard_normal(len(x)))
    assert stop.reason == "stagnation"


def test_the_condition_number_is_kept_in_range() -> None:
    C, axes, D, scale = decompose(np.diag([1e-3, -1e-12, 5.0]))
    assert scale == 1.0
    assert D[-1] ** 2 / D[0] ** 2 == pytest.approx(2 * MAX_CONDITION, rel=0.2)
    np.testing.assert_allclose(axes.T * D**2 @ axes, C, atol=1e-12)
    C, axes, D, scale = decompose(1e-40 * np.eye(2))
    np.testing.assert_allclose(scale * D, 1e-20, rtol=1e-9)
    np.testing.assert_allclose(C, np.eye(2))


def test_it_recommends_the_best_point_first_and_then_the_mean() -> None:
    method = make(4)
    state = method.init()
    np.testing.assert_array_equal(method.recommend(state), method.space.initial)
    state = advance(method, state, sphere)
    late = advance(method, state, sphere, 150)
    assert method.recommend(state) is state.values.best
    assert method.recommend(late) is late.mean
    assert set(method.metrics(late)) == {
        "best", "step_best", "step_worst", "sigma", "axis_ratio", "std_min", "std_max",
    }  # fmt: skip


def test_the_golden_trace_of_twenty_steps() -> None:
    method = make(6, seed=1)
    state, trace = method.init(), []
    for _ in range(20):
        state = advance(method, state, ellipsoid)
        C = np.tril(state.C) + np.tril(state.C, -1).T
        trace.append({"mean": state.mean.tolist(), "sigma": state.sigma, "value": state.values.value, "C": C.tolist()})
    assert_golden("cma_es", trace, atol=1e-9)


# Against pycma --------------------------------------------------------------------------------------------------------


def evaluations(objective: Objective, dim: int, seed: int, lost: float = 0.0) -> float:
    """Asks until a told value is below 1e-8; infinity where it stops before. Lost lanes are never told."""
    method = make(dim, seed=seed, x0=objective.x0, sigma=objective.sigma)
    f, state, chance, n_asks = objective.function(dim), method.init(), np.random.default_rng(seed), 0
    while method.stopped(state) is None:
        lanes: list[int] = []
        lane = 0
        while len(lanes) < method.need(state):
            if lost == 0.0 or chance.random() >= lost:
                lanes.append(lane)
            lane += 1
        n_asks += lane
        vectors = asked(method, state, lanes)
        values = f(vectors)
        if values.min() < 1e-8:
            return n_asks
        state = method.tell(state, results_of(vectors, values, state.step, lanes))
    return math.inf


def evaluations_of_pycma(objective: Objective, dim: int, seed: int) -> float:
    es, f, n_asks = pycma(objective, dim, seed), objective.function(dim), 0
    while not es.stop():
        vectors = es.ask()
        values = f(np.array(vectors))
        n_asks += len(vectors)
        if values.min() < 1e-8:
            return n_asks
        es.tell(vectors, values.tolist())
    return math.inf


def test_thirty_percent_lost_cost_little_more_than_themselves() -> None:
    objective = OBJECTIVES["sphere"]
    whole = np.median([evaluations(objective, 10, seed) for seed in range(11)])
    lossy = np.median([evaluations(objective, 10, seed, lost=0.3) for seed in range(11)])
    assert lossy <= 1.6 * whole, f"{lossy} asks against {whole}"


@pytest.mark.slow
@pytest.mark.parametrize("dim", [5, 10, 20])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_takes_as_many_evaluations_as_pycma(name: str, dim: int) -> None:
    ours = np.median([evaluations(OBJECTIVES[name], dim, seed) for seed in range(7)])
    theirs = np.median([evaluations_of_pycma(OBJECTIVES[name], dim, seed) for seed in range(7)])
    assert 0.8 * theirs <= ours <= 1.2 * theirs, f"{ours} evaluations against {theirs}"

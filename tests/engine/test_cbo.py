"""CBO: the equations of the papers, members that nobody waits for, and what failed or lost evaluations do to them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from blackbox import codec
from blackbox.algorithm import build, lookup, resolve_options
from blackbox.algorithms.cbo import Cbo, CboResolved, CboState, alpha_of_size, effective_size, weights
from blackbox.records import NOTHING_PENDING, Matrix, Pending, Results, Vector, dense
from blackbox.rng import Key, normals
from blackbox.space import Categorical, Float, Int, Space
from blackbox.space import Vector as Numbers
from tests.engine.golden import assert_golden

BOX = Space({"x": Numbers(dim=3, low=-2, high=3)})
FREE = Space({"x": Numbers(dim=3, init=1.0)})
MIXED = Space(
    {"r": Float(low=0, high=1), "i": Int(low=1, high=9), "c": Categorical(choices=("a", "b", "c")), "f": Float()}
)

Objective = Callable[[Matrix], Vector]


def sphere(x: Matrix) -> Vector:
    value: Vector = np.square(x - 0.3).sum(axis=-1)
    return value


def rastrigin(x: Matrix) -> Vector:
    value: Vector = (10 + x * x - 10 * np.cos(2 * np.pi * x)).sum(axis=-1)
    return value


def make(space: Space = BOX, seed: int = 7, **options: object) -> Cbo:
    method = build("cbo", space, resolve_options("cbo", space, options), Key.from_seed(seed))
    assert isinstance(method, Cbo)
    return method


def told(step: int | list[int], lane: list[int], vectors: Matrix, values: list[float] | Vector) -> Results:
    n = len(lane)
    steps = np.broadcast_to(np.array(step, dtype=np.int64), (n,))
    points = dense(np.asarray(vectors, dtype=np.float64).reshape(n, -1))
    return Results(steps, np.array(lane, dtype=np.int64), points, np.asarray(values, dtype=np.float64).reshape(n, 1))


def asked(method: Cbo, state: CboState, lanes: list[int] | range) -> Matrix:
    vectors = method.ask(state, lanes, NOTHING_PENDING).vectors
    assert vectors is not None
    return vectors


def sweep(method: Cbo, state: CboState, f: Objective) -> CboState:
    """All members asked at once and told in one batch."""
    lanes = range(method.n_members)
    x = asked(method, state, lanes)
    return method.tell(state, told(state.step, list(lanes), x, f(x)))


def flying(lanes: list[int]) -> Pending:
    lane = np.array(sorted(lanes), dtype=np.int64)
    return Pending(np.zeros_like(lane), lane, np.empty((len(lane), 0), dtype=np.int64), None, 0)


def asks_until(
    method: Cbo, f: Objective, target: float, *, n_flying: int, seed: int, cap: int, lost: float = 0
) -> float:
    """Asks until a value below the target is told, with results in random order, some of which never arrive."""
    state, chance, flights, n = method.init(), random.Random(seed), list[tuple[int, int, Matrix]](), 0
    while n < cap:
        while len(flights) < n_flying:
            (lane,) = method.lanes(state, flying([f[1] for f in flights]), 1)
            flights.append((state.step, lane, asked(method, state, [lane])))
            n += 1
        step, lane, x = flights.pop(chance.randrange(len(flights)))
        if chance.random() >= lost:
            state = method.tell(state, told(step, [lane], x, f(x)))
            if state.value is not None and state.value < target:
                return n
    return math.inf


# -- weights -----------------------------------------------------------------------------------------------------------


def test_weights_are_a_softmin_that_survives_a_huge_alpha() -> None:
    values = np.array([3.0, 1.0, 2.0])
    np.testing.assert_allclose(weights(values, 0.7), np.exp(-0.7 * values) / np.exp(-0.7 * values).sum(), rtol=1e-14)
    assert weights(values + 1e6, 1e300).tolist() == [0, 1, 0]
    assert weights(np.array([1e308, -1e308]), 1e5).tolist() == [0, 1]
    assert weights(values, 0.0).tolist() == pytest.approx([1 / 3] * 3)


def test_a_value_of_infinity_has_no_weight_unless_there_is_nothing_else() -> None:
    assert weights(np.array([math.inf, 2.0, 2.0]), 1.0).tolist() == [0, 0.5, 0.5]
    assert weights(np.array([math.inf, 2.0]), 0.0).tolist() == [0, 1]
    assert weights(np.full(4, math.inf), 3.0).tolist() == [0.25] * 4


@pytest.mark.parametrize("size", [1.5, 4.0, 20.0, 39.0])
@pytest.mark.parametrize("scale", [1e-200, 1e-6, 1.0, 1e12, 1e250])
def test_alpha_meets_the_effective_sample_size_whatever_the_scale(size: float, scale: float) -> None:
    values = scale * np.random.default_rng(3).standard_cauchy(40)
    assert effective_size(weights(values, alpha_of_size(values, size))) == pytest.approx(size, rel=1e-6)


def test_alpha_of_ties() -> None:
    assert alpha_of_size(np.full(9, 5.0), 3.0) == 0
    w = weights(values := np.array([0.0] * 5 + [1.0] * 5), alpha_of_size(values, 2.0))
    np.testing.assert_allclose(w, [0.2] * 5 + [0] * 5, atol=1e-12)


# -- the update --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [FREE, BOX], ids=["free", "box"])
@pytest.mark.parametrize("truncation", [None, 0.2])
@pytest.mark.parametrize("diffusion", ["anisotropic", "isotropic"])
def test_a_batch_of_all_members_is_one_synchronous_sweep_of_the_papers(
    space: Space, truncation: float | None, diffusion: str
) -> None:
    N, d, kappa, s, R = 9, 3, 0.1, 0.4, math.inf if truncation is None else truncation
    method = make(
        space,
        popsize=N,
        diffusion=diffusion,
        truncation=truncation,
        drift=kappa,
        noise=s,
        schedule="multiply",
        alpha=2.0,
    )
    state = method.init()
    x, alpha = state.x.copy(), 2.0
    for step in range(31):
        state = sweep(method, state, sphere)
        E = np.array([sphere(x[i]) for i in range(N)])
        w = [math.exp(-alpha * (e - E.min())) for e in E]
        c = sum(w[i] * x[i] for i in range(N)) / sum(w)
        np.testing.assert_allclose(state.x, x, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(state.consensus, c, rtol=1e-10, atol=1e-12)
        assert state.alpha == pytest.approx(alpha)
        xi = normals(method.noise, step + 1, range(N), d).astype(np.float64)
        for i in range(N):
            D = x[i] - c
            S = np.minimum(np.abs(D), R) if diffusion == "anisotropic" else min(math.sqrt(D @ D), R)
            x[i] = space.fold(x[i] - kappa * D + s * S * xi[i])
        alpha = min(1.05 * alpha, 1e5)


def test_alpha_grows_with_results_and_not_with_tells() -> None:
    method = make(popsize=8, schedule="multiply", alpha=1.0, alpha_factor=2.0, alpha_max=7.0)
    at_once = one_by_one = method.init()
    alphas = []
    for _ in range(5):
        at_once = sweep(method, at_once, sphere)
        for lane in range(8):
            x = asked(method, one_by_one, [lane])
            one_by_one = method.tell(one_by_one, told(one_by_one.step, [lane], x, sphere(x)))
        assert one_by_one.alpha == pytest.approx(at_once.alpha)
        alphas.append(at_once.alpha)
    assert alphas == pytest.approx([1, 2, 4, 7, 7])


# -- members -----------------------------------------------------------------------------------------------------------


def test_first_flights_cover_the_box_and_surround_the_start_where_there_is_none() -> None:
    method = make(MIXED, popsize=2000, spread=3.0)
    x = asked(method, method.init(), range(2000))
    box, free = x[:, MIXED.bounded], x[:, ~MIXED.bounded]
    assert 0 <= box.min() <= box.max() <= 1
    np.testing.assert_allclose(box.mean(axis=0), 0.5, atol=0.03)
    np.testing.assert_allclose(box.var(axis=0), 1 / 12, atol=0.008)
    np.testing.assert_allclose([free.mean(), free.std()], [0, 3], atol=0.2)


@pytest.mark.parametrize("space", [BOX, FREE, MIXED], ids=["box", "free", "mixed"])
@pytest.mark.parametrize("diffusion", ["anisotropic", "isotropic"])
def test_ask_is_pure_and_a_lane_asked_alone_equals_the_lane_in_a_batch(space: Space, diffusion: str) -> None:
    method = make(space, diffusion=diffusion, truncation=0.5)
    state = sweep(method, sweep(method, method.init(), sphere), sphere)
    batch = asked(method, state, range(method.n_members))
    assert asked(method, state, range(method.n_members)).tobytes() == batch.tobytes()
    for lane in (5, 0, method.n_members - 1):
        assert asked(method, state, [lane]).tobytes() == batch[lane].tobytes()
    assert asked(method, state, [4, 2]).tobytes() == batch[[4, 2]].tobytes()


def test_the_member_untold_for_longest_goes_next_and_never_twice_at_once() -> None:
    method = make(popsize=4)
    state = method.init()
    assert method.lanes(state, NOTHING_PENDING, 3) == [0, 1, 2]
    for lane in (2, 0):
        x = asked(method, state, [lane])
        state = method.tell(state, told(state.step, [lane], x, sphere(x)))
    assert method.lanes(state, NOTHING_PENDING, 9) == [1, 3, 2, 0]
    assert method.lanes(state, flying([3, 2]), 9) == [1, 0]
    assert method.lanes(state, flying([0, 1, 2, 3]), 1) == []


def test_a_member_whose_result_was_lost_moves_from_where_it_was_with_new_noise() -> None:
    method = make(popsize=4)
    state = sweep(method, method.init(), sphere)
    lost = asked(method, state, [3])
    x = asked(method, state, [0])
    later = method.tell(state, told(state.step, [0], x, sphere(x)))
    assert later.x[3].tobytes() == state.x[3].tobytes()
    assert not np.isin(asked(method, later, [3]), lost).any()


def test_a_failed_move_leaves_the_member_and_a_failed_start_gets_another_one() -> None:
    method = make(popsize=3)
    state = method.init()
    x = asked(method, state, range(3))
    state = method.tell(state, told(0, [0, 1, 2], x, [1.0, np.nan, 2.0]))
    again = asked(method, state, [1])
    assert not np.isin(again, x).any()
    assert (again >= 0).all()
    assert asked(method, state, [1]).tobytes() == again.tobytes()
    state = method.tell(state, told(1, [1], again, [0.5]))
    assert state.x[1].tobytes() == again[0].tobytes()
    move = asked(method, state, [1])
    state = method.tell(state, told(2, [1], move, [np.nan]))
    assert state.x[1].tobytes() == again[0].tobytes()
    assert (state.value, state.values[1]) == (0.5, 0.5)


def test_a_late_result_counts_for_the_best_point_but_does_not_throw_its_member_back() -> None:
    method = make(popsize=3)
    state = sweep(method, sweep(method, method.init(), sphere), sphere)
    here, old = state.x[1].copy(), np.full(3, 0.25)
    state = method.tell(state, told(0, [1], old, [-9.0]))
    assert state.x[1].tolist() == here.tolist()
    assert (state.value, state.best.tolist()) == (-9.0, old.tolist())
    both = told([2, 3], [1, 1], np.vstack([old, old + 0.1]), [5.0, 6.0])
    assert method.tell(state, both).x[1].tolist() == (old + 0.1).tolist()


def test_an_empty_batch_only_counts_the_step() -> None:
    method = make()
    state = sweep(method, method.init(), sphere)
    later = method.tell(state, told(1, [0], np.zeros((1, 3)), [0.0]).take([]))
    assert later.step == state.step + 1
    assert codec.encode(replace(later, step=state.step)) == codec.encode(state)


@pytest.mark.parametrize("schedule", ["ess", "multiply"])
@pytest.mark.parametrize(
    "values",
    [[np.nan], [0.0], [np.inf], [-np.inf], [1e308, -1e308], [1.0, np.nan, np.inf, 2.0], [5e-324, 0.0]],
    ids=["no value", "equal", "inf", "-inf", "huge", "alternating", "denormal"],
)
def test_no_values_make_a_state_or_a_point_that_is_not_finite(values: list[float], schedule: str) -> None:
    method = make(MIXED, popsize=5, schedule=schedule)
    state = method.init()
    for step in range(12):
        x = asked(method, state, range(5))
        assert np.isfinite(x).all()
        state = method.tell(state, told(step, list(range(5)), x, [values[(step + i) % len(values)] for i in range(5)]))
        for part in (state.x, state.values, state.consensus, state.best, state.alpha):
            assert np.isfinite(part).all()
        assert all(map(math.isfinite, method.metrics(state).values()))


def test_too_much_noise_stays_finite() -> None:
    method = make(FREE, popsize=5, noise=100.0, diffusion="isotropic")
    state = method.init()
    for _ in range(300):
        state = sweep(method, state, sphere)
    assert np.isfinite(state.x).all()
    assert np.abs(state.x).max() > 1e90


def test_a_collapsed_cloud_stops() -> None:
    method = make(popsize=6, noise=0.1, drift=0.5, tolerance=1e-6)
    state = method.init()
    assert method.stopped(state) is None
    n = 0
    while (stop := method.stopped(state)) is None:
        state, n = sweep(method, state, sphere), n + 1
    assert (stop.reason, n < 60) == ("collapsed", True)
    assert np.abs(state.x - state.consensus).max() <= 1e-6
    assert method.metrics(state)["spread"] == stop.facts["spread"]


def test_it_recommends_the_best_point_told_or_the_consensus() -> None:
    best, consensus = make(), make(recommends="consensus")
    assert best.recommend(best.init()).tolist() == [0.5] * 3
    state = sweep(best, best.init(), sphere)
    assert sphere(best.recommend(state)) == state.values.min() == state.value
    np.testing.assert_allclose(consensus.recommend(state), weights(state.values, state.alpha) @ state.x)
    assert best.metrics(state)["ess"] == pytest.approx(2.3, rel=1e-6)  # a tenth of 23 members


def test_defaults_depend_on_the_dimension_and_are_resolved_once() -> None:
    assert lookup("cbo") is Cbo
    assert resolve_options("cbo", BOX, {}) == CboResolved(popsize=23, noise=0.85)
    assert make(diffusion="isotropic").options.noise == pytest.approx(0.8 * math.sqrt(0.4 / 3))
    assert make(Space({"x": Numbers(dim=500)})).options.popsize == 100


def test_a_run_through_bytes_equals_the_run() -> None:
    method = make(MIXED)
    state = through_bytes = method.init()
    for _ in range(6):
        state = sweep(method, state, sphere)
        through_bytes = codec.decode(CboState, codec.encode(sweep(method, through_bytes, sphere)))
    assert codec.encode(state) == codec.encode(through_bytes)


def test_golden_trace() -> None:
    """Twenty sweeps, compared with yesterday's; integers exactly, floats at 1e-9."""
    method = make(BOX, popsize=6)
    state = method.init()
    trace = []
    for _ in range(20):
        state = sweep(method, state, rastrigin)
        trace.append(
            {"x": state.x.tolist(), "consensus": state.consensus.tolist(), "alpha": state.alpha, "best": state.value}
        )
    assert_golden("cbo", trace, atol=1e-12)


def test_defaults_beat_random_points_on_shifted_rastrigin() -> None:
    def shifted(x: Matrix) -> Vector:
        return rastrigin(10 * x - 6.3)

    found, drawn = [], []
    for seed in range(5):
        method = make(Space({"x": Numbers(dim=5, low=0, high=1)}), seed=seed)
        state = method.init()
        for _ in range(1500 // method.n_members):
            state = sweep(method, state, shifted)
        found.append(state.value or 0.0)
        drawn.append(shifted(np.random.default_rng(seed).random((1500, 5))).min())
    assert np.median(found) < 0.5 * np.median(drawn)


# -- figures of the papers ---------------------------------------------------------------------------------------------


def soft_rastrigin(x: Matrix) -> Vector:
    value: Vector = (x * x + 2.5 * (1 - np.cos(2 * np.pi * x))).sum(axis=-1)
    return value


def ackley(x: Matrix) -> Vector:
    d = x.shape[-1]
    rms, waves = np.sqrt((x * x).sum(axis=-1) / d), np.cos(2 * np.pi * x).sum(axis=-1) / d
    value: Vector = 20 + math.e - 20 * np.exp(-0.2 * rms) - np.exp(waves)
    return value


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("f", "sigma", "R", "published"),
    [
        (ackley, 0.8, None, 1.0),
        (ackley, 1.2, None, 0.13),
        (ackley, 1.6, 1.0, 1.0),
        (soft_rastrigin, 0.8, None, 0.84),
        (soft_rastrigin, 1.2, None, 0.02),
        (soft_rastrigin, 1.2, 1.0, 1.0),
    ],
)
def test_truncated_noise_has_the_published_phase_diagram(
    f: Objective, sigma: float, R: float | None, published: float
) -> None:
    """Fornasier et al. (2024), arXiv:2310.16610: share of runs whose consensus ends below 0.1; d=4, N=100, dt=0.01."""
    space = Space({"x": Numbers(dim=4, init=1.0)})
    options = {
        "popsize": 100,
        "diffusion": "isotropic",
        "drift": 0.01,
        "noise": sigma * math.sqrt(0.01),
        "truncation": R,
    }
    options |= {"schedule": "multiply", "alpha": 1e5, "alpha_factor": 1.0, "spread": math.sqrt(2000), "tolerance": 1e-4}
    lanes, n_successes = range(100), 0
    for seed in range(12):
        method = make(space, seed, **options)
        state = method.init()
        for step in range(5001):
            points = method.ask(state, lanes, NOTHING_PENDING)
            values = f(points.vectors)[:, None]
            state = method.tell(state, Results(np.full(100, step), np.arange(100), points, values))
            if step % 100 == 0 and method.stopped(state):  # a cloud of this size stays on its side of 0.1
                break
        n_successes += bool(f(state.consensus) < 0.1)
    assert n_successes / 12 == pytest.approx(published, abs=0.15)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("n_flying", [1, 30])
def test_asynchronous_members_need_as_many_evaluations_as_sweeps(n_flying: int) -> None:
    def shifted(x: Matrix) -> Vector:
        return rastrigin(6 * x - 4.5)

    counts = []
    for seed in range(6):
        space = Space({"x": Numbers(dim=10, low=-3, high=3)})
        method = make(space, seed, popsize=40, drift=0.01, noise=1.01, schedule="multiply", alpha=30.0, tolerance=0)
        state, n_sync = method.init(), 0
        while state.value is None or state.value >= 1:
            state, n_sync = sweep(method, state, shifted), n_sync + 40
        n_async = asks_until(method, shifted, 1.0, n_flying=n_flying, seed=seed, cap=100_000)
        counts.append((n_sync, n_async))
    synchronous, asynchronous = np.exp(np.log(counts).mean(axis=0))
    assert asynchronous < 1.3 * synchronous


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_losing_30_percent_of_the_results_costs_little_more_than_their_share() -> None:
    def shifted(x: Matrix) -> Vector:
        return rastrigin(10.24 * x - 5.82)

    medians = []
    for lost in (0.0, 0.3):
        counts = []
        for seed in range(7):
            space = Space({"x": Numbers(dim=5, low=-5.12, high=5.12)})
            method = make(space, seed, popsize=40, drift=0.01, noise=1.01, schedule="multiply", alpha=30.0, tolerance=0)
            counts.append(asks_until(method, shifted, 1.0, n_flying=1, seed=seed, cap=8000, lost=lost))
        medians.append(np.median(counts))
    assert medians[1] <= 1.6 * medians[0] < math.inf

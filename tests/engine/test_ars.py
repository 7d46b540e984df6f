"""Augmented random search: its update against the paper's formulas, lost halves, ties, statistics, robustness."""

from __future__ import annotations

import math
from statistics import fmean, median, pstdev
from typing import Any

import numpy as np
import pytest

import blackbox
from blackbox.algorithm import lookup, resolve_options
from blackbox.algorithms.ars import Ars, among_the_best, standardised
from blackbox.errors import InvalidOptions
from blackbox.records import NOTHING_PENDING, Results
from blackbox.rng import Key, normal
from blackbox.space import Space, Vector
from blackbox.toolbox.perturbations import FARTHEST
from tests.contracts.algorithm import Case, Loop, box
from tests.engine import plain_ars
from tests.engine.batches import built, told
from tests.engine.golden import assert_golden

KEY = Key.from_seed(7)


def make(dim: int = 6, init: float = 1.0, stream: int = 0, key: Key = KEY, **options: Any) -> Ars:
    space = Space({"w": Vector(dim=dim, init=init)})
    method = lookup("ars")(space, resolve_options("ars", space, options), key, stream)
    assert isinstance(method, Ars)
    return method


def noise(step: int, pair: int, dim: int, key: Key = KEY) -> list[float]:
    return [float(x) for x in normal(key.stream(0), step, pair, dim)]


# the update


def test_whole_pairs_move_theta_as_the_paper_says() -> None:
    """theta <- theta + alpha / (b sigma_R) sum over the b best of (r+ - r-) delta, in terms of rewards r = -f."""
    dim, n, b, alpha = 6, 5, 3, 0.1
    method = make(dim=dim, popsize=2 * n, top=b, sigma=0.5, learning_rate=alpha)
    state, theta = method.init(), [1.0] * dim
    for t in range(4):
        points = built(method, state, method.ask(state, range(2 * n), NOTHING_PENDING))
        rewards = [-float(np.square(x - np.arange(dim)).sum()) for x in points]
        pairs = sorted(((rewards[2 * i], rewards[2 * i + 1], i) for i in range(n)), key=lambda p: -max(p[0], p[1]))[:b]
        sigma_r = pstdev([r for plus, minus, _ in pairs for r in (plus, minus)])
        for plus, minus, i in pairs:
            for j, delta in enumerate(noise(t, i, dim)):
                theta[j] += alpha / (b * sigma_r) * (plus - minus) * delta
        state = told(method, state, list(range(2 * n)), [-r for r in rewards])
        np.testing.assert_allclose(state.theta, theta, rtol=2e-6)
        assert state.spread == pytest.approx(sigma_r, rel=1e-9)
        assert state.mean == pytest.approx(-fmean(r for plus, minus, _ in pairs for r in (plus, minus)), rel=1e-9)


def test_a_run_is_that_of_the_papers_loop_with_statistics_and_the_best_directions() -> None:
    """V2-t on a cart that a linear policy pushes; the loop gets the log of returns and observations, nothing else."""
    n, top, nu, alpha = 6, 3, 0.3, 0.2
    asked: list[tuple[list[float], dict[str, list[float]]]] = []
    log: list[list[plain_ars.Episode]] = []

    def episode(weights: np.ndarray, evaluation: Any) -> dict[str, Any]:
        scales = evaluation.trial.payload["observations"]
        is_start = evaluation.trial.number == 1
        if not is_start:
            asked.append((weights.tolist(), scales))
        place, speed = 30.0 + evaluation.trial.eval_seed % 7, 0.0
        reward, seen = 0.0, []
        for _ in range(15):
            seen.append([place, speed, 5.0 - speed])
            normal_ones = [(x - m) / s for x, m, s in zip(seen[-1], scales["mean"], scales["std"], strict=True)]
            push = math.tanh(sum(w * x for w, x in zip(weights, normal_ones, strict=True)))  # no two returns tie
            speed += 0.1 * push
            place += speed
            reward += speed - 0.1 * push**2
        if len(log) * 2 * n < len(asked):
            log.append([])
        if not is_start:
            log[-1].append((reward, seen))
        sums = {"count": 15, "total": np.sum(seen, axis=0), "squares": np.square(seen).sum(axis=0)}
        return {"value": reward, "sums": sums}

    result = blackbox.minimize(
        episode,
        {"w": {"type": "vector", "dim": 3}},
        "ars",
        1 + 8 * 2 * n,
        options={"popsize": 2 * n, "top": top, "sigma": nu, "learning_rate": alpha, "observations": 3},
        direction="maximize",
        seed=7,
        with_trial=True,
        noise="none",
    )
    key = Key.from_seed("7")  # a study keeps its seed as text
    *before, last = plain_ars.follow(log, 3, lambda t, i: noise(t, i, 3, key), alpha, top)
    assert len(log) == len(before) == 8
    for t, (theta, mean, std) in enumerate(before):
        for lane, (weights, scales) in enumerate(asked[2 * n * t : 2 * n * (t + 1)]):
            delta = noise(t, lane // 2, 3, key)
            expected = [x + (-nu if lane % 2 else nu) * d for x, d in zip(theta, delta, strict=True)]
            np.testing.assert_allclose(weights, expected, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(scales["mean"], mean, rtol=1e-9)
            np.testing.assert_allclose(scales["std"], std, rtol=1e-6)
    np.testing.assert_allclose(result.proposed, last[0], rtol=1e-5)


def test_a_half_pair_counts_one_sided_with_half_the_weight() -> None:
    method = make(sigma=0.5, learning_rate=0.25)
    lanes, values = [0, 1, 3, 4], [1.0, 4.0, 2.0, 3.5]
    state = told(method, method.init(), lanes, values)
    average, spread = fmean(values), pstdev(values)
    move = [0.0] * 6
    for lane, value in zip(lanes, values, strict=True):
        for j, delta in enumerate(noise(0, lane // 2, 6)):
            move[j] -= 0.25 / (2 * spread) * (value - average) * (-1 if lane % 2 else 1) * delta
    np.testing.assert_allclose(state.theta, 1.0 + np.array(move), rtol=2e-6)
    assert state.move_norm == pytest.approx(math.sqrt(sum(x * x for x in move)), rel=1e-6)


def test_one_sided_estimates_agree_with_the_gradient_on_average() -> None:
    """On a linear function the mean move has the direction of the slope, with whole pairs and with halves alone."""
    slope = np.array([3.0, -1.0, 0.0, 2.0, 0.5, -4.0])
    for lanes in (list(range(200)), list(range(0, 400, 2))):
        method = make(init=0.0, sigma=0.1, learning_rate=1.0, popsize=400)
        state = method.init()
        values = built(method, state, method.ask(state, lanes, NOTHING_PENDING)) @ slope
        move = told(method, state, lanes, values.tolist()).theta.astype(np.float64)
        cosine = -move @ slope / np.linalg.norm(move) / np.linalg.norm(slope)
        assert cosine > 0.95


def test_ties_at_the_edge_belong_to_the_best() -> None:
    values = np.array([5.0, 1.0, 2.0, 9.0, 2.0, 7.0, 8.0, 6.0])
    pair = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    assert among_the_best(values, pair, 2).tolist() == [True] * 6 + [False] * 2
    assert among_the_best(values, pair, 1).tolist() == [True] * 2 + [False] * 6
    assert among_the_best(values, pair, 9).all()
    assert among_the_best(values[[7, 0, 2]], pair[[7, 0, 2]], 1).tolist() == [False, False, True]


def test_values_are_standardised_at_any_scale() -> None:
    values = [1.0, 4.0, 2.5, -3.0]
    for scale in (1.0, 1e300, 1e-300):
        z, mean, spread = standardised(np.array(values) * scale)
        np.testing.assert_allclose(z, [(v - fmean(values)) / pstdev(values) for v in values], rtol=1e-12)
        assert mean == pytest.approx(fmean(values) * scale)
        assert spread == pytest.approx(pstdev(values) * scale)
    for equal in ([0.1] * 7, [0.0] * 3, [1e300] * 2, [5.0]):
        z, _, spread = standardised(np.array(equal))
        assert (z.any(), spread) == (False, 0.0)


def test_a_constant_bonus_does_not_matter() -> None:
    method, values = make(), [3.0, 1.0, 4.0, 1.5, 9.0, 2.0]
    moved = told(method, method.init(), list(range(6)), values).theta
    shifted = told(method, method.init(), list(range(6)), [v + 1000.0 for v in values]).theta
    np.testing.assert_allclose(shifted, moved, rtol=1e-6)


def test_an_infeasible_point_counts_as_the_worst_of_its_step() -> None:
    method, lanes = make(), list(range(6))
    nan = told(method, method.init(), lanes, [3.0, 1.0, math.nan, 1.5, 9.0, 2.0])
    worst = told(method, method.init(), lanes, [3.0, 1.0, 9.0, 1.5, 9.0, 2.0])
    barrier = told(method, method.init(), lanes, [3.0, 1.0, math.inf, 1.5, 9.0, 2.0])
    np.testing.assert_array_equal(nan.theta, worst.theta)
    np.testing.assert_array_equal(barrier.theta, worst.theta)
    assert nan.best == 1.0


@pytest.mark.parametrize("values", [[math.nan] * 4, [2.0], [], [7.0] * 6])
def test_without_a_difference_nothing_moves(values: list[float]) -> None:
    method = make()
    before = told(method, method.init(), [0, 1, 2, 3], [1.0, 3.0, 2.0, 4.0])
    after = told(method, before, list(range(len(values))), values)
    assert after.step == 2
    np.testing.assert_array_equal(after.theta, before.theta)


def test_the_noise_that_was_asked_is_what_counts() -> None:
    asked_of, teller = make(stream=0), make(stream=9)
    state = asked_of.init()
    points = asked_of.ask(state, [0, 1, 2, 3], NOTHING_PENDING)
    results = Results(np.zeros(4, dtype=np.int64), np.arange(4), points, np.array([[1.0], [3.0], [2.0], [4.0]]))
    np.testing.assert_array_equal(teller.tell(state, results).theta, asked_of.tell(state, results).theta)


# statistics


def test_the_statistics_of_a_step_reach_every_evaluator_of_the_next() -> None:
    method = make(observations=2)
    state = method.init()
    extra = ({"sums": {"count": 2, "total": [2.0, 0.0], "squares": [4.0, 8.0]}}, {}, {"sums": {"count": 1}}, {})
    after = told(method, state, [0, 1, 2, 3], [1.0, 2.0, 3.0, 4.0], extra)
    first = method.ask(state, [0, 5], NOTHING_PENDING).payload
    second = method.ask(after, [3, 700], NOTHING_PENDING).payload
    assert first == ({"observations": {"count": 0.0, "mean": [0.0, 0.0], "std": [1.0, 1.0]}},) * 2
    assert second == ({"observations": {"count": 2.0, "mean": [1.0, 0.0], "std": [1.0, 2.0]}},) * 2
    assert method.payload(after) == second[0]
    metrics = method.metrics(after)
    assert (metrics["observed"], metrics["sums_ignored"]) == (2.0, 1.0)


def test_observations_count_even_where_no_value_does() -> None:
    method = make(observations=1)
    extra = ({"sums": {"count": 3, "total": [3.0], "squares": [3.0]}},) * 2
    after = told(method, method.init(), [0, 1], [math.nan, math.nan], extra)
    assert after.seen.count == 6


def test_without_the_option_nothing_is_said_of_observations() -> None:
    method = make()
    state = told(method, method.init(), [0, 1], [1.0, 2.0], ({"sums": {"count": 1, "total": [], "squares": []}}, {}))
    assert method.ask(state, [0], NOTHING_PENDING).payload == ()
    assert method.payload(state) is None
    assert "observed" not in method.metrics(state)


def test_an_objective_in_process_is_normalised_too() -> None:
    counts: list[float] = []

    def objective(theta: np.ndarray, evaluation: Any) -> dict[str, Any]:
        counts.append(evaluation.trial.payload["observations"]["count"])
        return {"value": float(theta @ theta), "sums": {"count": 2, "total": [4.0], "squares": [10.0]}}

    space = {"w": {"type": "vector", "dim": 3, "init": 0.5}}
    options = {"popsize": 4, "observations": 1}
    result = blackbox.minimize(objective, space, "ars", 13, options=options, with_trial=True)
    assert counts == [0.0] * 5 + [8.0] * 4 + [16.0] * 4
    # the best point told is deployed with what it was evaluated with
    assert result.payload == {"observations": {"count": 16.0, "mean": [2.0], "std": [1.0]}}
    assert blackbox.minimize(lambda w: float(w @ w), space, "ars", 4).payload is None


# options


@pytest.mark.parametrize(
    "options",
    [
        {"popsize": 0},
        {"popsize": 8, "top": 5},
        {"top": 0},
        {"sigma": 0},
        {"learning_rate": -1},
        {"observations": 0},
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptions):
        make(**options)


def test_the_defaults_are_the_authors() -> None:
    """modestyachts/ARS, code/ars.py: 8 directions, all used, step 0.02, noise 0.03."""
    method = make()
    assert method.options.model_dump() == {
        "popsize": 16,
        "top": 8,
        "sigma": {"type": "constant", "value": 0.03},
        "learning_rate": {"type": "constant", "value": 0.02},
        "observations": None,
    }
    assert method.need(method.init()) == 16


def test_extreme_options_keep_the_state_finite() -> None:
    method = make(learning_rate=1e300, sigma=1e-300)
    state = method.init()
    for _ in range(20):
        state = told(method, state, list(range(8)), [float((i * 5) % 8) for i in range(8)])
        assert np.abs(state.theta).max() <= np.float32(FARTHEST)
        assert np.isfinite(built(method, state, method.ask(state, [0, 1], NOTHING_PENDING))).all()


# what it reaches


def asks_until(seed: int, lost: float, target: float) -> int:
    """Points handed out until the sphere's value at theta falls to the target."""
    case = Case(Ars, box(10), {"learning_rate": 0.02, "sigma": 0.03})
    loop = Loop(case.make(seed), case.problem.at)
    while case.problem.at(loop.algorithm.recommend(loop.state)) > target:
        loop.run(loop.asks + 4, lost=lost, seed=loop.asks)
        assert loop.asks < 20_000
    return loop.asks


@pytest.mark.slow
def test_thirty_percent_lost_costs_at_most_six_tenths_more_asks() -> None:
    """Sphere in 10 dimensions, default options, to a tenth of the start: medians of 11 seeds."""
    target = 0.1 * box(10).at_start
    whole = median(asks_until(seed, 0.0, target) for seed in range(11))
    lossy = median(asks_until(seed, 0.3, target) for seed in range(11))
    print(f"\nars: {whole} asks, {lossy} with 30 % lost, {lossy / whole:.2f} times")
    assert lossy <= 1.6 * whole


# golden


def golden_run() -> dict[str, Any]:
    """Twenty steps on a parabola, one of five results lost, with every option in use."""
    method = make(
        dim=5,
        popsize=10,
        top=3,
        sigma={"type": "exponential", "start": 0.1, "factor": 0.95},
        learning_rate=0.05,
        observations=2,
    )
    state, steps = method.init(), []
    for t in range(20):
        lanes = [lane for lane in range(10) if lane % 5 != t % 5]
        points = method.ask(state, lanes, NOTHING_PENDING)
        rows = built(method, state, points).tolist()
        values = [math.fsum((j + 1) * v * v for j, v in enumerate(row)) for row in rows]
        extra = tuple({"sums": {"count": 1, "total": row[:2], "squares": [row[0] ** 2, row[1] ** 2]}} for row in rows)
        term = points.recipes[1].terms[0]
        state = told(method, state, lanes, values, extra)
        steps.append(
            {
                "asked": [term.stream, term.step, term.lane, term.kind],
                "scale": term.scale,
                "theta": [float(x) for x in state.theta],
                "spread": state.spread,
                "mean": state.seen.mean.tolist(),
                "std": state.seen.std.tolist(),
            }
        )
    return {"key": KEY.hex(), "steps": steps}


def test_it_does_what_it_did() -> None:
    assert_golden("ars", golden_run())

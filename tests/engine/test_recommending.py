"""What is recommended: the point one would deploy, without noise and with it."""

from __future__ import annotations

import json
from itertools import count

import numpy as np
import pytest

import blackbox
from blackbox.study.effects import perform
from blackbox.study.estimating import estimate, noise_variance
from blackbox.study.health import Tally
from tests.engine.studies import start

BOX = [(-5.0, 5.0)] * 5
GOAL = np.array([1.0, -2.0, 0.5, 2.5, -1.0])


def sphere(x):
    return float(((x - GOAL) ** 2).sum())


def noisy(seed, std):
    """A sphere whose values have noise, with the points and values that were read."""
    rng, reads = np.random.default_rng(seed), []

    def objective(x):
        reads.append((x.copy(), sphere(x) + std * float(rng.standard_normal())))
        return reads[-1][1]

    return objective, reads


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("algorithm", ["cma_es", "random_search", "openai_es", "nelder_mead", "mezo"])
def test_without_noise_what_is_recommended_is_the_best_point_told(algorithm, direction):
    sign = 1.0 if direction == "minimize" else -1.0
    for budget in (7, 43, 90):
        values: list[float] = []

        def objective(x, values=values):
            values.append(sign * sphere(x))
            return values[-1]

        result = blackbox.minimize(objective, BOX, algorithm, budget, direction=direction)
        best = min(values) if sign > 0 else max(values)
        assert result.fun == result.fun_observed == best == sign * sphere(result.x)
        np.testing.assert_array_equal(result.x, result.recommended)
        assert result.stderr is None


def test_mixed_spaces_ending_in_the_middle_of_a_step_are_recommended_the_best_point_told():
    space = {
        "t": blackbox.Float(low=0, high=250),
        "c": blackbox.Categorical(choices=["A", "B", "C"]),
        "n": blackbox.Int(low=1, high=9),
    }

    def cost(p):
        return abs(p["t"] - 190) / 100 + (p["c"] != "B") * 0.3 + abs(p["n"] - 4) / 10

    for seed in range(10):
        result = blackbox.minimize(cost, space, budget=43, seed=seed, target=0.1)
        assert cost(result.recommended) == result.fun


def test_under_noise_the_recommended_point_is_better_in_truth_than_the_luckiest_reading():
    recommended, luckiest = [], []
    for seed in range(8):
        objective, reads = noisy(seed, 10.0)
        result = blackbox.minimize(objective, BOX, "cma_es", 200, seed=seed)
        recommended.append(sphere(result.x))
        luckiest.append(sphere(min(reads, key=lambda read: read[1])[0]))
    assert np.median(recommended) < 0.7 * np.median(luckiest)


def test_under_noise_the_value_is_an_estimate_and_the_best_reading_is_kept_beside_it():
    off, wide = [], 0
    for seed in range(8):
        objective, reads = noisy(seed, 5.0)
        result = blackbox.minimize(objective, BOX, "cma_es", 200, seed=seed)
        assert result.fun_observed == min(value for _, value in reads)
        assert result.fun > result.fun_observed
        off.append(abs(result.fun - sphere(result.x)))
        wide += off[-1] < 3 * result.stderr
    assert np.median(off) < 2.5
    assert wide >= 6


def test_a_deterministic_objective_pays_for_one_evaluation_to_be_known_as_one():
    reads = []
    blackbox.minimize(lambda x: reads.append(tuple(x)) or sphere(x), BOX, "random_search", 300)
    assert len(reads) - len(set(reads)) == 1


def test_a_budget_below_thirty_pays_nothing_to_look_for_noise():
    reads = []
    blackbox.minimize(lambda x: reads.append(tuple(x)) or sphere(x), BOX, "random_search", 29)
    assert len(set(reads)) == len(reads) == 29


@pytest.mark.parametrize(("noise", "repeats"), [("none", 0), ("present", 0), ("auto", 4)])
def test_a_study_that_says_whether_there_is_noise_evaluates_nothing_to_find_out(store, noise, repeats):
    d = start(store, algorithm="random_search", noise=noise, budget={"evaluations": 300}, space=_space(2))
    values = np.random.default_rng(0).standard_normal(300)
    asked = [_tell(d, values[i]) for i in range(300)]
    assert sum(trial.source == "replicate" for trial in asked) == repeats  # after 30, 60, 120, 240 results
    found = d.do(d.study.recommend())
    assert (found.estimate is None) == (noise == "none")
    assert (found.value is None) == (noise != "none")


def test_a_told_standard_error_says_that_there_is_noise(store):
    d = start(store, algorithm="random_search", space=_space(2))
    for i in range(60):
        _tell(d, float(i % 7), {"stderr": 0.5})
    found = d.do(d.study.recommend())
    assert found.estimate is not None
    assert d.row().trials == 60  # nothing was evaluated again


def test_two_values_of_one_point_say_that_there_is_noise_also_in_small_studies(store):
    d = start(store, algorithm="random_search", space=_space(1))
    for i in range(12):
        _tell(d, float(i))
    assert d.do(d.study.recommend()).value == 0.0
    d.do(d.study.enqueue([{"x0": 0.25}, {"x0": 0.25}], now=d.now))
    _tell(d, 3.0)
    _tell(d, 4.0)
    assert d.do(d.study.recommend()).estimate is not None


def test_the_replicate_is_not_told_to_the_algorithm_and_the_log_replays(store):
    seen = {}
    for noise in ("auto", "none"):
        d = start(store, algorithm="cma_es", noise=noise, budget={"evaluations": 100}, space=_space(2), name=noise)
        for i in count():
            lease = next(iter(d.ask().leases), None)
            if lease is None:
                break
            d.tell(lease, float(np.square(d.study.vector(lease.point)).sum()))
            assert i < 200
        d.check_log()
        seen[noise] = [digest for record, digest in d.do(d.study.replay())]
        assert all(record.digest == digest for record, digest in d.do(d.study.replay()))
    assert seen["auto"] == seen["none"][: len(seen["auto"])]
    assert len(seen["auto"]) >= len(seen["none"]) - 1


def test_a_recipe_is_evaluated_again_from_its_base_and_under_noise_the_algorithms_own_point_is_recommended():
    rng = np.random.default_rng(1)
    space = blackbox.Space({"w": blackbox.Vector(dim=50, init=1.0)})
    result = blackbox.minimize(
        lambda w: float((w**2).sum() + rng.standard_normal()), space, "openai_es", 200, options={"popsize": 20}
    )
    tally = Tally.of(perform(result.store, result.study.row()))
    assert tally.pairs >= 2
    np.testing.assert_array_equal(result.x, result.proposed)
    assert result.stderr is not None


def test_an_estimate_without_noise_is_the_value_itself_and_with_nothing_but_noise_the_mean():
    rng = np.random.default_rng(2)
    points = rng.uniform(size=(60, 2))
    one, nothing = np.ones(60), np.empty((0, 2))
    rough = np.sign(rng.standard_normal(60))  # no curve explains this
    known = estimate(points, rough, one, nothing, 0.0)
    np.testing.assert_allclose(known.mean, rough, atol=1e-6)
    unknown = estimate(points, rough, one, nothing, None)
    assert np.abs(unknown.mean).max() < 0.7


def test_an_estimate_follows_a_curve_through_the_noise():
    rng = np.random.default_rng(3)
    points = rng.uniform(size=(200, 2))
    truth = np.square(points - 0.4).sum(axis=1)
    found = estimate(points, truth + 0.1 * rng.standard_normal(200), np.ones(200), points[:1], None)
    assert np.sqrt(np.mean((found.mean[:200] - truth) ** 2)) < 0.04  # a reading is off by 0.1
    assert found.mean[200] == pytest.approx(found.mean[0], abs=0.02)


def test_the_variance_of_noise_is_bounded_from_above_in_three_of_four_cases():
    rng = np.random.default_rng(4)
    for n in (1, 3, 10):
        pairs = rng.standard_normal((4000, n, 2))
        bounds = [noise_variance(float(np.square(a[:, 0] - a[:, 1]).sum()), n) for a in pairs]
        assert np.mean(np.array(bounds) >= 1.0) == pytest.approx(0.75, abs=0.03)
    assert noise_variance(0.0, 0) is None


def test_values_too_large_to_square_do_not_break_what_is_recommended(store):
    d = start(store, algorithm="random_search", noise="present", space=_space(2))
    for i in range(20):
        _tell(d, 1e300 * (-1) ** i)
    found = d.do(d.study.recommend())
    assert found.value == -1e300
    assert json.loads(d.row().health)["values"] == 20


def test_metrics_that_are_values_have_the_sign_of_the_user(store):
    for direction, best in (("minimize", 1.0), ("maximize", 5.0)):
        d = start(store, algorithm="random_search", direction=direction, space=_space(2), name=direction)
        for value in (3.0, 1.0, 5.0) * 5:
            _tell(d, value)
        d.do(d.study.advance(now=d.now))
        assert d.do(d.study.metrics())["best"] == best


def _space(dim):
    return {f"x{i}": {"type": "float", "low": 0.0, "high": 1.0} for i in range(dim)}


def _tell(d, value, extra=None):
    lease = d.lease()
    d.tell(lease, float(value), extra=extra or {})
    return lease.trial

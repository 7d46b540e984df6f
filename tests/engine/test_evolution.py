"""Ranks, weights and rates that evolution strategies share."""

from __future__ import annotations

import math

import numpy as np
import pytest

from blackbox.algorithms import cma_es, sep_cma_es
from blackbox.records import Results, dense
from blackbox.toolbox import evolution
from blackbox.toolbox.evolution import Learning


def told(values: list[float], steps: list[int] | None = None, lanes: list[int] | None = None) -> Results:
    n = len(values)
    return Results(
        np.array(steps or [0] * n), np.array(lanes or range(n)), dense(np.zeros((n, 2))), np.array(values)[:, None]
    )


def test_no_value_ranks_last_and_ties_keep_the_order_of_lanes() -> None:
    order, ranked, n_values = evolution.rank(told([2.0, math.nan, 1.0, -math.inf, 1.0, math.inf, -3.0]))
    assert order.tolist() == [6, 2, 4, 0, 1, 3, 5]
    assert (ranked, n_values) == ([-3.0, 1.0, 1.0, 2.0, math.inf, math.inf, math.inf], 4)


@pytest.mark.parametrize("learning", [cma_es.learning, sep_cma_es.learning], ids=["full", "diagonal"])
@pytest.mark.parametrize("k", [2, 3, 4, 5, 10, 11, 100, 1000])
@pytest.mark.parametrize("d", [1, 2, 10, 100, 10_000])
def test_rates_are_sane_for_any_number_of_results(d: int, k: int, learning: Learning) -> None:
    for mu in {1, max(1, k // 4), k // 2}:
        r = evolution.rates(d, k, mu, learning)
        assert (len(r.pull), len(r.push), len(r.factors)) == (mu, k // 2, k + 1)
        assert r.pull.sum() == pytest.approx(1)
        assert (np.diff(r.pull) < 0).all()
        assert (r.push <= 0).all()
        assert r.mueff == pytest.approx(1 / (r.pull @ r.pull))
        assert r.factors.sum() == pytest.approx(r.c1 + r.cmu)
        assert 0 < r.c1 <= r.c1 + r.cmu <= 1
        assert 0 < r.cs <= 0.5
        assert 0 < r.cc < 1
        assert r.ds > 1
        # C keeps a part of itself that outweighs all that is pushed out of it, so it stays positive definite
        assert 1 - r.c1 - r.cmu * (1 + r.pushed) + r.cmu * d * r.pushed >= -1e-12


def test_a_path_of_random_steps_has_the_length_of_a_normal_vector_and_leaves_sigma_alone() -> None:
    """Under random selection zw is N(0, I / mueff): then |ps| is chi on average, and the step size has no drift."""
    d, k = 6, 9
    r = evolution.rates(d, k, k // 2, cma_es.learning)
    chance = np.random.default_rng(1)
    ps, pc, lengths, growths = np.zeros(d), np.zeros(d), [], []
    for generation in range(1, 20_001):
        zw = chance.standard_normal(d) / math.sqrt(r.mueff)
        ps, pc, growth, h = evolution.follow(ps, pc, zw, zw, r, generation)
        if generation > 100:
            lengths.append(float(np.linalg.norm(ps)))
            growths.append(math.log(growth))
            assert h == (ps @ ps / d < 2 + 4 / (d + 1)) or generation < 200
    assert r.chi == pytest.approx(math.sqrt(2) * math.gamma((d + 1) / 2) / math.gamma(d / 2), rel=1e-3)
    assert np.mean(lengths) == pytest.approx(r.chi, rel=0.02)
    assert abs(np.mean(growths)) < 0.01
    assert np.square(pc).sum() / d < 4


def test_foreign_rows_are_those_of_the_step_before_and_of_others() -> None:
    own = told([3.0, 1.0, 2.0])
    assert evolution.foreign(own, evolution.rank(own)[0], 0) is None
    mixed = told([3.0, 1.0, 2.0], steps=[4, 5, 5], lanes=[7, -1, 0])
    order = evolution.rank(mixed)[0]
    rows = evolution.foreign(mixed, order, 5)
    assert rows is not None
    assert rows.tolist() == [True, False, True]  # the injected one is best, the late one worst
    worst_injected = told([3.0, 9.0, 2.0], steps=[5, 5, 5], lanes=[7, -1, 0])
    push = evolution.pushing(np.array([-0.1, -0.2]), worst_injected, evolution.rank(worst_injected)[0])
    assert push.tolist() == [-0.1, 0.0]


def test_only_what_is_too_far_is_shortened() -> None:
    sigma, scales = 0.5, np.array([1.0, 4.0, 0.25])
    near, far = sigma * scales * 0.9, sigma * scales * 1e200
    deltas = np.array([near, far, far])
    evolution.shorten(deltas, np.array([True, True, False]), sigma, lambda y: y / scales)
    np.testing.assert_allclose(deltas[0], near)
    length = float(np.linalg.norm(deltas[1] / sigma / scales))
    assert length == pytest.approx(math.sqrt(3) + 2 * 3 / (3 + 2))
    assert deltas[2].tolist() == far.tolist()

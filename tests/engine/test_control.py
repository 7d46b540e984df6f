"""Real simulators, as tests/benchmarks/bench_control.py has them: CartPole learned, HalfCheetah goes by the paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import blackbox
from blackbox.rng import Key, normal
from blackbox.toolbox.observations import FLOOR
from tests.engine import plain_ars

gymnasium = pytest.importorskip("gymnasium", reason="the simulator is part of the extra `demo`")


@pytest.mark.slow
@pytest.mark.parametrize(("method", "most"), [("ars", 1000), ("pgpe", 2000)])
def test_a_policy_for_cartpole_reaches_the_published_threshold(method: str, most: int) -> None:
    """475 as the mean of twenty fresh episodes; the figures of five seeds are in tests/benchmarks/ACCEPTANCE.md."""
    from tests.benchmarks.bench_control import train

    outcome = train("CartPole", method, seed=1)
    assert outcome.episodes <= most, outcome
    assert outcome.score >= 475


@pytest.mark.slow
def test_ars_on_a_simulator_with_statistics_is_the_papers_loop() -> None:
    """HalfCheetah, three steps of five directions: the loop gets returns and observations, and comes to the same."""
    from tests.benchmarks.bench_control import JOBS, play

    n, top, nu, alpha, dim, m = 5, 3, 0.05, 0.05, 108, 17
    cheetah = gymnasium.make("HalfCheetah-v5")
    asked: list[tuple[np.ndarray, dict[str, Any]]] = []
    episodes: list[plain_ars.Episode] = []

    def episode(weights: np.ndarray, evaluation: Any) -> dict[str, Any]:
        scales = evaluation.trial.payload["observations"]
        is_start = evaluation.trial.number == 1  # which the method does not hear of
        if not is_start:
            asked.append((weights, scales))
        matrix, over, reward, seen = weights.reshape(6, m + 1), False, 0.0, []
        observation, _ = cheetah.reset(seed=evaluation.trial.eval_seed)
        while not over:
            seen.append(observation.tolist())
            action = matrix @ [*((observation - scales["mean"]) / scales["std"]), 1.0]
            observation, gain, ended, cut, _ = cheetah.step(np.clip(action, -1, 1))
            reward, over = reward + float(gain), ended or cut
        if not is_start:
            episodes.append((reward, seen))
        if len(episodes) == 2 * n + 1:  # one of the second step, where observations are normalised
            same = play(JOBS["HalfCheetah"], weights, evaluation.trial.eval_seed, scales)
            assert same[0] == pytest.approx(reward, rel=0.01), "the benchmark plays the same episode"
            np.testing.assert_allclose(same[2], np.sum(seen, axis=0), rtol=0.05, atol=5)
        return {
            "value": reward,
            "sums": {"count": len(seen), "total": np.sum(seen, axis=0), "squares": np.square(seen).sum(axis=0)},
        }

    result = blackbox.minimize(
        episode,
        {"w": {"type": "vector", "dim": dim, "init": 0.0}},
        "ars",
        1 + 3 * 2 * n,
        options={"popsize": 2 * n, "top": top, "sigma": nu, "learning_rate": alpha, "observations": m},
        direction="maximize",
        seed=1,
        with_trial=True,
        noise="none",
    )
    key = Key.from_seed("1").stream(0)
    log = [episodes[a : a + 2 * n] for a in range(0, len(episodes), 2 * n)]
    *before, last = plain_ars.follow(log, dim, lambda t, i: normal(key, t, i, dim).tolist(), alpha, top)
    for t, (theta, mean, std) in enumerate(before):
        for lane, (weights, scales) in enumerate(asked[2 * n * t : 2 * n * (t + 1)]):
            delta = normal(key, t, lane // 2, dim).astype(float)
            np.testing.assert_allclose(weights, theta + (-nu if lane % 2 else nu) * delta, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(scales["mean"], mean, rtol=1e-6, atol=1e-9)
            np.testing.assert_allclose(scales["std"], np.maximum(std, FLOOR), rtol=1e-6)
    np.testing.assert_allclose(result.proposed, last[0], rtol=1e-4, atol=1e-6)

"""A real simulator: linear policies for CartPole, as in tests/benchmarks/bench_control.py, learn to balance."""

from __future__ import annotations

import pytest

gymnasium = pytest.importorskip("gymnasium", reason="the simulator is part of the extra `demo`")


@pytest.mark.slow
@pytest.mark.parametrize(("method", "most"), [("ars", 1000), ("pgpe", 2000)])
def test_a_policy_for_cartpole_reaches_the_published_threshold(method: str, most: int) -> None:
    """475 as the mean of twenty fresh episodes; the figures of five seeds are in tests/benchmarks/ACCEPTANCE.md."""
    from tests.benchmarks.bench_control import train

    outcome = train("CartPole", method, seed=1)
    assert outcome.episodes <= most, outcome
    assert outcome.score >= 475

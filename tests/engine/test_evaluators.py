"""A study learns how long its evaluators take and which of them fail."""

import numpy as np
import pytest

from blackbox.study.evaluators import (
    BACKOFF_SECONDS,
    FAILURES_UNTIL_BACKOFF,
    LEARNED_EVERY,
    N_DURATIONS,
    CircuitBreaker,
    Durations,
)
from blackbox.study.settling import Outcome

GOOD = Outcome(1, "applied", "COMPLETED")
REQUEUED = Outcome(1, "requeued", "QUEUED")
FAILED = Outcome(1, "applied", "FAILED")


def test_leases_run_three_times_the_95th_percentile_and_never_below_a_minute():
    durations = Durations()
    durations.learn([1000.0] * 4)
    assert durations.lease_seconds == 600.0  # four are too few to learn from
    durations.learn([1000.0])
    assert durations.lease_seconds == 3000.0
    durations.learn([1.0] * 300)  # the long ones are forgotten
    assert durations.lease_seconds == 60.0


def test_the_percentile_is_that_of_the_last_200():
    rng = np.random.default_rng(1)
    seconds = rng.exponential(100.0, 60 * LEARNED_EVERY)
    durations = Durations()
    for each in seconds:
        durations.learn([each])
    expected = 3.0 * np.quantile(seconds[-N_DURATIONS:], 0.95, method="inverted_cdf")
    assert durations.lease_seconds == pytest.approx(expected, rel=1e-12)


def test_a_worker_that_fails_many_times_in_a_row_is_held_for_a_while():
    breaker = CircuitBreaker()
    breaker.learn("good", [GOOD], 0.0)
    for n in range(FAILURES_UNTIL_BACKOFF):
        assert breaker.backoff("bad", float(n)) == 0.0
        assert breaker.learn("bad", [REQUEUED if n % 2 else FAILED], float(n)) is None
    last = float(FAILURES_UNTIL_BACKOFF - 1)
    assert breaker.backoff("bad", last + 10.0) == BACKOFF_SECONDS - 10.0
    assert breaker.backoff("good", last) == 0.0
    assert breaker.backoff("bad", last + BACKOFF_SECONDS) == 0.0


def test_one_success_ends_a_streak_and_the_hold():
    breaker = CircuitBreaker()
    breaker.learn("other", [GOOD], 0.0)
    breaker.learn("w", [REQUEUED] * FAILURES_UNTIL_BACKOFF, 0.0)
    assert breaker.backoff("w", 1.0) > 0.0
    breaker.learn("w", [REQUEUED, GOOD], 1.0)
    assert breaker.backoff("w", 1.0) == 0.0
    assert breaker.learn("w", [REQUEUED] * (FAILURES_UNTIL_BACKOFF - 1), 1.0) is None
    assert breaker.backoff("w", 1.0) == 0.0


def test_the_study_should_pause_when_all_workers_fail_or_two_do():
    alone = CircuitBreaker()
    reason = alone.learn("w", [FAILED] * FAILURES_UNTIL_BACKOFF, 0.0)
    assert reason == f"w failed {FAILURES_UNTIL_BACKOFF} times in a row"
    several = CircuitBreaker()
    several.learn("good", [GOOD], 0.0)
    assert several.learn("b", [FAILED] * FAILURES_UNTIL_BACKOFF, 0.0) is None
    assert several.learn("a", [FAILED] * FAILURES_UNTIL_BACKOFF, 0.0) == "a, b failed 20 times in a row"


def test_what_is_neither_a_failure_nor_a_result_counts_for_nothing():
    breaker = CircuitBreaker()
    for outcome in ("duplicate", "late_recorded", "rejected", "released"):
        assert breaker.learn("w", [Outcome(1, outcome)] * 50, 0.0) is None
    assert breaker.backoff("w", 0.0) == 0.0

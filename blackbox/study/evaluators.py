"""Statistics of a study's workers: how long evaluations take, and which workers keep failing. Nothing is stored."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from blackbox.study.rows import FAILED
from blackbox.study.settling import Outcome

FIRST_LEASE_SECONDS, SHORTEST_LEASE_SECONDS = 600.0, 60.0
N_DURATIONS, LEARNED_EVERY = 200, 16
"""Evaluations that are remembered, and new ones after which their quantile is computed again."""
FAILURES_UNTIL_BACKOFF = 20
BACKOFF_SECONDS = 30.0


class Durations:
    """The duration of leases: three times the 95th percentile of evaluation times, and at least a minute.

    Attributes
    ----------
    lease_seconds : the current duration; 600 s until five evaluations are known.
    """

    def __init__(self) -> None:
        self.lease_seconds = FIRST_LEASE_SECONDS
        self._seconds: deque[float] = deque(maxlen=N_DURATIONS)
        self._new = 0

    def learn(self, seconds: Sequence[float]) -> None:
        """Record the durations of finished evaluations."""
        self._seconds.extend(seconds)
        self._new += len(seconds)
        known = len(self._seconds)
        if 5 <= known <= LEARNED_EVERY or (known >= 5 and self._new >= LEARNED_EVERY):
            self._new = 0
            longest = sorted(self._seconds)[math.ceil(0.95 * known) - 1]
            self.lease_seconds = max(SHORTEST_LEASE_SECONDS, 3.0 * longest)


class CircuitBreaker:
    """Grants nothing for a while to workers that fail many times in a row."""

    def __init__(self) -> None:
        self._streaks: dict[str, int] = {}
        self._until: dict[str, float] = {}

    def backoff(self, worker: str, now: float) -> float:
        """Seconds for which the worker is granted nothing; 0 if it may ask."""
        return max(0.0, self._until.get(worker, 0.0) - now) if self._until else 0.0

    def learn(self, worker: str, outcomes: Sequence[Outcome], now: float) -> str | None:
        """Record the outcomes of one tell.

        Returns
        -------
        Why the study should pause, if every worker keeps failing (or two do); otherwise None.
        """
        failed = sum(o.outcome == "requeued" or o.state == FAILED for o in outcomes)
        if any(o.outcome == "applied" and o.state != FAILED for o in outcomes):
            self._streaks[worker] = 0
            self._until.pop(worker, None)
            return None
        if not failed:
            return None
        self._streaks[worker] = self._streaks.get(worker, 0) + failed
        if self._streaks[worker] < FAILURES_UNTIL_BACKOFF:
            return None
        self._until[worker] = now + BACKOFF_SECONDS
        failing = [name for name, streak in self._streaks.items() if streak >= FAILURES_UNTIL_BACKOFF]
        if len(failing) < 2 and len(failing) < len(self._streaks):
            return None
        return f"{', '.join(sorted(failing))} failed {FAILURES_UNTIL_BACKOFF} times in a row"

"""Recent speed of a worker, which decides how many points may be queued for it.

If evaluations are short, points are sent before the current one is done, so that the worker has the next one at hand,
and several in one message if a message costs as much as they do. If evaluations are long this gains nothing, and a lane
that waits behind a long one is late for its step. Nothing is queued therefore for a worker that was slow recently, that
is not known yet, or that is late with its current points.
"""

from __future__ import annotations

import math
import time
from collections import deque

REMEMBERED = 32
"""Number of evaluations that are remembered."""
SHORT_SECONDS = 0.5
"""Mean evaluation time from which the delay between driver and worker does not matter."""
LATE_SECONDS = 0.02
"""Tolerance beyond twice the mean before a worker is late: for the message, and for a busy driver."""


class WorkerPace:
    """The mean duration of a worker's recent evaluations: of many fast ones and a few slow ones, all count."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)
        self._mean = math.inf
        self._due = math.inf

    def began(self, n: int) -> None:
        """Record that the worker has, as far as is known, begun with `n` points."""
        self._due = time.monotonic() + 2 * n * self._mean + LATE_SECONDS

    def took(self, seconds: float) -> None:
        """Record the duration of an evaluation."""
        self._seconds.append(seconds)
        self._mean = sum(self._seconds) / len(self._seconds)

    @property
    def short(self) -> bool:
        """Whether its evaluations are short, and it is not late with the current ones."""
        return self._mean < SHORT_SECONDS and time.monotonic() < self._due

    def within(self, seconds: float, most: int) -> int:
        """Number of its evaluations that fit into `seconds`: at least 1, at most `most`."""
        return most if self._mean * most <= seconds else max(1, int(seconds / self._mean))

"""How fast a worker is lately: what decides how many points may be on their way to it at once.

Where evaluations are short, points are sent before the one in hand is done, so that a worker has the next one when it
needs it, and several in one message where a message costs as much as they do. Where they are long nothing is gained by
that, and a lane that waits behind a long evaluation is late for its step: so nothing is sent to a worker that was slow
lately, of which nothing is known yet, or that is late with what it has.
"""

from __future__ import annotations

import math
import time
from collections import deque

REMEMBERED = 32
"""Evaluations that are remembered."""
SHORT_SECONDS = 0.5
"""From here on the way between driver and worker is nothing beside an evaluation."""
LATE_SECONDS = 0.02
"""How much later than twice the usual an answer may come before its worker is late: the way here, and a busy driver."""


class WorkerPace:
    """Of one worker: what an evaluation took lately, in the mean: a few slow ones among many fast ones count."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)
        self._mean = math.inf
        self._due = math.inf

    def began(self, n: int) -> None:
        """The worker has, as far as is known here, begun with so many points."""
        self._due = time.monotonic() + 2 * n * self._mean + LATE_SECONDS

    def took(self, seconds: float) -> None:
        """It has told how long an evaluation took."""
        self._seconds.append(seconds)
        self._mean = sum(self._seconds) / len(self._seconds)

    @property
    def short(self) -> bool:
        """Whether its evaluations are short, those in hand too as far as one can see."""
        return self._mean < SHORT_SECONDS and time.monotonic() < self._due

    def within(self, seconds: float, most: int) -> int:
        """How many of its evaluations fit into so many seconds: at least one, at most `most`."""
        return most if self._mean * most <= seconds else max(1, int(seconds / self._mean))

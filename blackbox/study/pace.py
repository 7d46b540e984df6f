"""The speed of a study's algorithm, and the decisions based on it: when to compute inside a transaction or snapshot.

There is no clock here: the driver that ran and timed a computation reports how long it took.
"""

from __future__ import annotations

import math

SNAPSHOT_STEPS = 256
"""Number of steps after which a snapshot is due."""
SNAPSHOT_SECONDS = 0.25
"""Seconds of computing steps after which a snapshot is due."""
SECONDS_PER_COORDINATE = 1e-8
"""Estimate for the first step: short at a thousand dimensions, too long for an event loop at a million."""
AT_ONCE_SECONDS = 0.002
"""Steps faster than this are closed inside the transaction that brought their last result: a transaction of their own
would cost more, and asks that arrive in between would find that their step has closed."""
REPLAY_SECONDS = 1e-4
"""Estimate for replaying one step: a service runs long replays outside its event loop."""
MEASURED_EVERY = 64
"""Transactions that close steps themselves before one step is computed outside again to be measured: an algorithm may
become slower over time."""


class Pace:
    """The last measured durations of steps and asks of one open study, in seconds.

    Parameters
    ----------
    dim : internal dimension, from which the first step is estimated.
    """

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._tell_seconds: float | None = None
        self._step_seconds = math.inf
        self._lane_seconds: float | None = None
        self._left_at_once = 0
        self._since_snapshot = 0.0

    # Measuring --------------------------------------------------------------------------------------------------------

    def told(self, seconds: float) -> None:
        """Record the duration of a computation of steps."""
        self._tell_seconds = seconds
        self._since_snapshot += seconds

    def closed(self, n_steps: int) -> None:
        """Record how many steps the last measured computation closed."""
        if n_steps and self._tell_seconds is not None:
            self._step_seconds = self._tell_seconds / n_steps
            self._left_at_once = MEASURED_EVERY

    def asked(self, seconds: float, n_lanes: int) -> None:
        """Record how long computing the points of `n_lanes` lanes took."""
        self._lane_seconds = seconds / n_lanes

    # What is expected -------------------------------------------------------------------------------------------------

    @property
    def tell_seconds(self) -> float:
        """Estimate for the next computation of steps: the last measurement."""
        return SECONDS_PER_COORDINATE * self._dim if self._tell_seconds is None else self._tell_seconds

    def ask_seconds(self, n_lanes: int) -> float:
        """Estimate for computing the points of `n_lanes` lanes; 0 before the first measurement."""
        return (self._lane_seconds or 0.0) * n_lanes

    # Inside a transaction ---------------------------------------------------------------------------------------------

    def may_close(self, n_steps: float) -> bool:
        """Whether up to `n_steps` steps are fast enough to be computed inside a transaction."""
        return self._left_at_once > 0 and n_steps * self._step_seconds <= AT_ONCE_SECONDS

    def closed_at_once(self) -> None:
        """Record that steps were computed inside a transaction, where they are not measured."""
        self._left_at_once -= 1

    def may_ask(self, n_lanes: int) -> bool:
        """Whether the points of `n_lanes` lanes are fast enough to be computed inside a transaction."""
        if self._left_at_once <= 0 or self._lane_seconds is None:
            return False
        return n_lanes * self._lane_seconds < AT_ONCE_SECONDS

    # Snapshots --------------------------------------------------------------------------------------------------------

    def snapshot_due(self, first: int, after: int) -> bool:
        """Whether a snapshot is due now that the steps `first` .. `after` - 1 are closed."""
        return after // SNAPSHOT_STEPS > first // SNAPSHOT_STEPS or self._since_snapshot > SNAPSHOT_SECONDS

    def want_snapshot(self) -> None:
        """Make a snapshot due at the next step, because a stored one could not be read."""
        self._since_snapshot = math.inf

    def snapshot_stored(self) -> None:
        """Record that a snapshot was committed."""
        self._since_snapshot = 0.0

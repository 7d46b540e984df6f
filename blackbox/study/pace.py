"""How fast a study's method is, and what follows from it: what is computed at once, when a snapshot is due.

No clock here: whoever ran a computation and has a clock says how long it took.
"""

from __future__ import annotations

import math

SNAPSHOT_STEPS = 256
"""Steps after which a snapshot is due."""
SNAPSHOT_SECONDS = 0.25
"""Seconds of computing steps after which a snapshot is due."""
SECONDS_PER_COORDINATE = 1e-8
"""What a first step is expected to take: little at a thousand dimensions, too long for an event loop at a million."""
AT_ONCE_SECONDS = 0.002
"""Steps that take less than this are closed inside the transaction that brought their last result: one of their own
would cost more, and meanwhile every ask would find the step gone that it was made for."""
REPLAY_SECONDS = 1e-4
"""What replaying a step is expected to take: a service runs long stretches beside its event loop."""
MEASURED_EVERY = 64
"""Times that steps are closed at once before they are computed outside again, and measured: a method may become slower
as it goes."""


class Pace:
    """How long steps and asks of one open study took when they were last measured.

    Parameters
    ----------
    dim : coordinates of a point; all that is known before the first measurement.
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
        """A computation of the next steps took so long."""
        self._tell_seconds = seconds
        self._since_snapshot += seconds

    def closed(self, n_steps: int) -> None:
        """The computation last measured has closed so many steps."""
        if n_steps and self._tell_seconds is not None:
            self._step_seconds = self._tell_seconds / n_steps
            self._left_at_once = MEASURED_EVERY

    def asked(self, seconds: float, n_lanes: int) -> None:
        """Computing the points of so many lanes took so long."""
        self._lane_seconds = seconds / n_lanes

    # What is expected -------------------------------------------------------------------------------------------------

    @property
    def tell_seconds(self) -> float:
        """What the next steps are expected to take, as the last ones did."""
        return SECONDS_PER_COORDINATE * self._dim if self._tell_seconds is None else self._tell_seconds

    def ask_seconds(self, n_lanes: int) -> float:
        """What the points of so many lanes are expected to take; 0 before the first measurement."""
        return (self._lane_seconds or 0.0) * n_lanes

    # Inside a transaction ---------------------------------------------------------------------------------------------

    def may_close(self, n_steps: float) -> bool:
        """Whether so many steps (at most) are so quick that they may be computed inside a transaction."""
        return self._left_at_once > 0 and n_steps * self._step_seconds <= AT_ONCE_SECONDS

    def closed_at_once(self) -> None:
        """Steps were computed inside a transaction, where nobody measures."""
        self._left_at_once -= 1

    def may_ask(self, n_lanes: int) -> bool:
        """Whether the points of so many lanes are computed so quickly that it may happen inside a transaction."""
        if self._left_at_once <= 0 or self._lane_seconds is None:
            return False
        return n_lanes * self._lane_seconds < AT_ONCE_SECONDS

    # Snapshots --------------------------------------------------------------------------------------------------------

    def snapshot_due(self, first: int, after: int) -> bool:
        """Whether the state should be stored, now that steps `first` .. `after` - 1 are closed."""
        return after // SNAPSHOT_STEPS > first // SNAPSHOT_STEPS or self._since_snapshot > SNAPSHOT_SECONDS

    def want_snapshot(self) -> None:
        """One that was stored is of no use: the next step that closes should be."""
        self._since_snapshot = math.inf

    def snapshot_stored(self) -> None:
        """A snapshot is committed."""
        self._since_snapshot = 0.0

"""A line that shows how far a run is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TextIO

from blackbox.study.editing import Study

LINE_SECONDS = 0.2
"""Shortest time between two lines on a terminal."""
PARTS = 10
"""Number of lines per run where there is no terminal, such as in a log."""


class ProgressLine:
    """Shows evaluations, best value and time: one line that is rewritten on a terminal, ten lines elsewhere.

    Parameters
    ----------
    clock : the time in seconds.
    stream : where to write; None: standard error.
    """

    def __init__(self, clock: Callable[[], float], stream: TextIO | None = None) -> None:
        self._clock = clock
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._began = clock()
        self._shown_at = -LINE_SECONDS
        self._shown_part = -1
        self._width = 0

    def show(self, study: Study, last: bool = False) -> None:
        """Show a study as it was last seen, if a line is due or the `last` one."""
        row, budget = study.seen, study.spec.budget.evaluations
        if row is None:
            return
        seconds = self._clock() - self._began
        part = row.used * PARTS // budget if budget else 0
        due = seconds - self._shown_at >= LINE_SECONDS if self._terminal else part > self._shown_part
        if not due and not last:
            return
        self._shown_at, self._shown_part = seconds, part
        best = "no value yet" if row.best_value is None else f"best {row.best_value:.6g}"
        made = f"{row.used}/{budget}" if budget else f"{row.used}"
        line = f"{made} evaluations, {best}, {seconds:.0f} s"
        if self._terminal:
            self._stream.write(f"\r{line:<{self._width}}" + ("\n" if last else ""))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

"""A summary of the work of a worker, counted while it runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from blackbox_client.models import Outcome, Progress, Result


@dataclass(frozen=True, slots=True)
class Summary:
    """The work of a worker in numbers.

    Attributes
    ----------
    evaluated : evaluations that came to an end, well or not.
    applied, duplicates, late, requeued, rejected, released : what the server made of what was told.
    failed, infeasible : evaluations that ended so.
    abandoned : evaluations the server did not want any more and that were cut off.
    seconds : how long `Worker.run` took.
    ended : why it ended: ``"study"``, ``"stopped"`` or ``"max_trials"``.
    study : what the server said about the study last.
    """

    evaluated: int = 0
    applied: int = 0
    duplicates: int = 0
    late: int = 0
    requeued: int = 0
    rejected: int = 0
    released: int = 0
    failed: int = 0
    infeasible: int = 0
    abandoned: int = 0
    seconds: float = 0.0
    ended: str = ""
    study: Progress = field(default_factory=Progress)


class Tally:
    """Counts what a `Summary` says."""

    def __init__(self) -> None:
        self.n_failed_in_a_row = 0
        self._counts: Counter[str] = Counter()

    def evaluated(self, result: Result) -> None:
        """An evaluation came to its end."""
        self._counts["evaluated"] += 1
        if result.status in ("failed", "infeasible"):
            self._counts[result.status] += 1
        self.n_failed_in_a_row = self.n_failed_in_a_row + 1 if result.status == "failed" else 0

    def told(self, outcome: Outcome) -> None:
        """The server said what it made of a result."""
        name = _NAMES.get(outcome.outcome)
        if name is not None:
            self._counts[name] += 1

    def released(self, n: int) -> None:
        """Trials were given back when the worker left."""
        self._counts["released"] += n

    def abandoned(self) -> None:
        """An evaluation was cut off."""
        self._counts["abandoned"] += 1

    def summary(self, seconds: float, ended: str, study: Progress) -> Summary:
        """The summary so far."""
        return Summary(**self._counts, seconds=seconds, ended=ended, study=study)


_NAMES = {
    "applied": "applied",
    "duplicate": "duplicates",
    "late_recorded": "late",
    "rejected": "rejected",
    "released": "released",
    "requeued": "requeued",
}
"""Outcomes by the names that a summary counts them under."""

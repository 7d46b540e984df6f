"""What an open study remembers between its transactions, so that none has to read again what another one wrote."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from blackbox.study.leases import Lease
from blackbox.study.log import LoggedResult
from blackbox.study.open_step import PARAMS_STORED_UPTO, OpenStep, Position, position_of
from blackbox.study.rows import StudyRow

LEASES_KEPT, NUMBERS_KEPT = 4096, 2**18
"""Leased trials that are remembered, the newest ones, and coordinates of their points."""


@dataclass(frozen=True, slots=True)
class ResultsUpto:
    """The results in the log after the last closed step.

    Attributes
    ----------
    position : of the study's row.
    seq : the row's: what was logged later is not here.
    results : by seq, with their points.
    """

    position: Position
    seq: int
    results: list[LoggedResult]


class Known:
    """What one open study knows of its rows without reading them.

    **The invariant.** After each of this study's works the following is true of the store as that work left it,
    committed or not (works never interleave, but several share a commit, and the next one sees what this one wrote):

    1. `step_of(row)` is the step that is open at the position of `row`, or None. Steps are found by position only, so
       one that was closed, here or elsewhere, is never taken for the open one.
    2. `results(row)` are all results in the log after `row.upto_seq`, up to `row.seq`, or None.
    3. Each remembered lease has trial and point as a work of ours left them. Another instance may have changed the
       trial since: `Tx.put_leased` writes it only while it is still leased so.

    When a work is undone, or its commit fails, nobody knows how much of this stands: `forget` what is not committed.
    What is committed stays: the step last seen in a committed row (`committed`), and the results that wait for
    `advance`, which go with one committed row and are taken once.

    Parameters
    ----------
    dim : coordinates of a point. Leases of points too large to be stored as parameters are not remembered.
    """

    def __init__(self, dim: int) -> None:
        self._n_leases = 0 if dim > PARAMS_STORED_UPTO else min(LEASES_KEPT, NUMBERS_KEPT // dim)
        self.committed: OpenStep | None = None
        self._newest: OpenStep | None = None
        self._leases: OrderedDict[int, Lease] = OrderedDict()
        self._results: ResultsUpto | None = None
        self._waiting: ResultsUpto | None = None

    # Of the newest transaction ----------------------------------------------------------------------------------------

    def step_of(self, row: StudyRow) -> OpenStep | None:
        """The step that is open in this row, if it was seen here."""
        position = position_of(row)
        for step in (self._newest, self.committed):
            if step is not None and step.position == position:
                return step
        return None

    def replace(self, old: OpenStep, new: OpenStep) -> None:
        """Take another object for a step, where the old one is known: its points were computed anew."""
        if self._newest is old:
            self._newest = new
        if self.committed is old:
            self.committed = new

    def remember_leases(self, leases: Iterable[Lease]) -> None:
        """Remember what was granted: it will be told."""
        if not self._n_leases:
            return
        self._leases.update({lease.trial.number: lease for lease in leases})
        while len(self._leases) > self._n_leases:
            self._leases.popitem(last=False)

    def take_leases(self, numbers: Iterable[int]) -> dict[int, Lease]:
        """The remembered leases of these trials, which are remembered no longer: they are about to change."""
        return {number: self._leases.pop(number) for number in numbers if number in self._leases}

    def results(self, row: StudyRow) -> list[LoggedResult] | None:
        """All results after the last closed step of this row, if they are known."""
        known = self._results
        if known is None or (known.position, known.seq) != (position_of(row), row.seq):
            return None
        return known.results

    def remember_results(self, row: StudyRow, results: list[LoggedResult] | None) -> None:
        """Remember all results after the last closed step of a row; None: they are not known any more."""
        self._results = None if results is None else ResultsUpto(position_of(row), row.seq, results)

    def steps_closed(
        self, row: StudyRow, opened: OpenStep, results: Sequence[LoggedResult] | None, oldest: int | None
    ) -> None:
        """A transaction has closed steps.

        Parameters
        ----------
        row : the study's row after them.
        opened : the step open in it.
        results : those left over, if known.
        oldest : leases of steps before this one were withdrawn; None: none were.
        """
        self._newest = opened
        self.remember_results(row, None if results is None else list(results))
        if oldest is not None:
            for number in [number for number, lease in self._leases.items() if lease.trial.step < oldest]:
                del self._leases[number]

    def forget(self) -> None:
        """A work was undone: forget everything that is not known to be committed."""
        self._newest = self._results = None
        self._leases.clear()

    # Of what is committed ---------------------------------------------------------------------------------------------

    def keep_results(self, row: StudyRow, results: list[LoggedResult]) -> None:
        """Keep results that a committed transaction has read for whoever closes the step."""
        self._waiting = ResultsUpto(position_of(row), row.seq, results)

    def take_results(self, row: StudyRow) -> list[LoggedResult] | None:
        """What was left for the step that is open in this committed row. More may have been told since."""
        left, self._waiting = self._waiting, None
        return left.results if left is not None and left.position == position_of(row) else None

"""The rows that an open study remembers between transactions, so that it need not read again what it wrote."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from blackbox.study.leases import Lease
from blackbox.study.log import LoggedResult
from blackbox.study.open_step import PARAMS_STORED_UPTO, OpenStep, Position, position_of
from blackbox.study.rows import StudyRow

LEASES_KEPT, NUMBERS_KEPT = 4096, 2**18
"""Most leases that are remembered (the newest), and most coordinates of their points."""


@dataclass(frozen=True, slots=True)
class ResultsUpto:
    """The results in the log after the last closed step.

    Attributes
    ----------
    position : position of the study's row.
    seq : the row's `seq`; later results are not included.
    results : ordered by seq, with their points.
    """

    position: Position
    seq: int
    results: list[LoggedResult]


class Known:
    """The rows of its study that one open study knows without reading them.

    **The invariant.** After each of this study's works the following holds for the store as that work left it,
    committed or not (works never interleave, but several share a commit, and the next one sees what this one wrote):

    1. `step_of(row)` is the step that is open at the position of `row`, or None. Steps are found by position only, so
       one that was closed, here or elsewhere, is never taken for the open one.
    2. `results(row)` are all results in the log after `row.upto_seq`, up to `row.seq`, or None.
    3. Each remembered lease has trial and point as a work of ours left them. Another instance may have changed the
       trial since: `Tx.put_leased` writes it only while it is still leased so.

    When a work is rolled back, or its commit fails, everything uncommitted is in doubt: `forget` it. What remains: the
    step last seen in a committed row (`committed`), and the results that wait for `advance`, which belong to one
    committed row and are taken once.

    Parameters
    ----------
    dim : coordinates of a point. Leases of points too large to be stored as parameters are not remembered.

    Attributes
    ----------
    committed : the step last seen open in a committed row, or None.
    rolled_back : how often uncommitted rows were forgotten.
    """

    def __init__(self, dim: int) -> None:
        self._n_leases = 0 if dim > PARAMS_STORED_UPTO else min(LEASES_KEPT, NUMBERS_KEPT // dim)
        self.committed: OpenStep | None = None
        self.rolled_back = 0
        self._newest: OpenStep | None = None
        self._leases: OrderedDict[int, Lease] = OrderedDict()
        self._results: ResultsUpto | None = None
        self._waiting: ResultsUpto | None = None

    # Of the newest transaction ----------------------------------------------------------------------------------------

    def step_of(self, row: StudyRow) -> OpenStep | None:
        """The open step of this row, if it is known here."""
        position = position_of(row)
        for step in (self._newest, self.committed):
            if step is not None and step.position == position:
                return step
        return None

    def replace(self, old: OpenStep, new: OpenStep) -> None:
        """Replace the object of a known step, because its points were computed again."""
        if self._newest is old:
            self._newest = new
        if self.committed is old:
            self.committed = new

    def remember_leases(self, leases: Iterable[Lease]) -> None:
        """Remember granted leases: their results will be told."""
        if not self._n_leases:
            return
        self._leases.update({lease.trial.number: lease for lease in leases})
        while len(self._leases) > self._n_leases:
            self._leases.popitem(last=False)

    def take_leases(self, numbers: Iterable[int]) -> dict[int, Lease]:
        """Remove and return the remembered leases of these trials, by number: they are about to change."""
        return {number: self._leases.pop(number) for number in numbers if number in self._leases}

    def results(self, row: StudyRow) -> list[LoggedResult] | None:
        """All results after the last closed step of this row, if they are known; otherwise None."""
        known = self._results
        if known is None or (known.position, known.seq) != (position_of(row), row.seq):
            return None
        return known.results

    def remember_results(self, row: StudyRow, results: list[LoggedResult] | None) -> None:
        """Remember all results after the last closed step of a row; None: they are no longer known."""
        self._results = None if results is None else ResultsUpto(position_of(row), row.seq, results)

    def steps_closed(
        self, row: StudyRow, opened: OpenStep, results: Sequence[LoggedResult] | None, oldest: int | None
    ) -> None:
        """Note that a transaction has closed steps.

        Parameters
        ----------
        row : the study's row after closing them.
        opened : the open step of that row.
        results : the results not consumed, if known.
        oldest : leases of steps before this one were withdrawn; None: no lease was.
        """
        self._newest = opened
        self.remember_results(row, None if results is None else list(results))
        if oldest is not None:
            for number in [number for number, lease in self._leases.items() if lease.trial.step < oldest]:
                del self._leases[number]

    def forget(self) -> None:
        """Forget everything that is not known to be committed, after a work was rolled back."""
        self._newest = self._results = None
        self.rolled_back += 1
        self._leases.clear()

    # Of what is committed ---------------------------------------------------------------------------------------------

    def keep_results(self, row: StudyRow, results: list[LoggedResult]) -> None:
        """Keep the results that a committed transaction has read, for the `advance` that closes the step."""
        self._waiting = ResultsUpto(position_of(row), row.seq, results)

    def take_results(self, row: StudyRow) -> list[LoggedResult] | None:
        """Remove and return the results kept for the open step of this committed row. More may have been told since."""
        left, self._waiting = self._waiting, None
        return left.results if left is not None and left.position == position_of(row) else None

"""Points of a finite space that were told already, and whether their values may be taken from the archive."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blackbox.records import JSON
from blackbox.study import history
from blackbox.study.known import Known
from blackbox.study.open_step import PARAMS_STORED_UPTO
from blackbox.study.rows import CANCELLED, COMPLETED, INFEASIBLE, REUSED, SUPERSEDED, StudyRow, TrialRow, Tx

if TYPE_CHECKING:
    from blackbox.study.reading import RecordedStudy

ENOUGH_REPEATS = 3
"""Points that must have been told twice or more, always with equal values, before an objective is called repeatable."""
REUSED_AT_ONCE = 128
"""Most values that one ask takes from the archive; then repeats are evaluated, so that no ask goes on for ever."""


@dataclass(frozen=True, slots=True)
class Told:
    """The first answer for a point: the trial, its value (None: infeasible), its worker and other told fields."""

    number: int
    value: float | None
    worker: str | None
    extra: dict[str, JSON]

    def extra_of_copy(self) -> str:
        """JSON of the fields of a trial that takes this answer: without the cost, which was paid once."""
        kept = {name: value for name, value in self.extra.items() if name != "cost"}
        return json.dumps({**kept, "reused": f"t_{self.number}"}, sort_keys=True)


class Repeats:
    """The told points of one open study, by their parameters: a cache of its log that follows it by `seq`.

    Only a finite space is followed; what is told in others costs nothing here.

    Parameters
    ----------
    study : the study.
    known : says when uncommitted rows were rolled back.
    """

    def __init__(self, study: RecordedStudy, known: Known) -> None:
        space = study.space
        self._study, self._known, self._policy = study, known, study.spec.duplicates
        self._size = space.size if space.dim <= PARAMS_STORED_UPTO and study.traits.encoding == "dense" else None
        if self._policy == "evaluate" or study.resolved.hosted is not None:
            self._size = None
        self._place = (-1, -1)
        self._seq = 0
        self._told: dict[bytes, Told] = {}
        self._repeated: set[bytes] = set()
        self._differ = False

    def reusable(self, tx: Tx, row: StudyRow) -> bool:
        """Whether told values answer repeats now. Reads what was logged since the last call."""
        if self._size is None:
            return False
        self._catch_up(tx, row)
        enough = len(self._repeated) >= min(ENOUGH_REPEATS, self._size)
        return self._policy == "reuse" or (enough and not self._differ)

    def find(self, params: str | None) -> Told | None:
        """The first answer for a point, given as stored JSON of its parameters."""
        return None if params is None else self._told.get(_key(params))

    def left(self) -> int:
        """Number of points of the space that were never told."""
        return 0 if self._size is None else self._size - len(self._told)

    def _catch_up(self, tx: Tx, row: StudyRow) -> None:
        place = (row.epoch, self._known.rolled_back)
        if self._place != place:
            self._place, self._seq, self._differ = place, 0, False
            self._told.clear()
            self._repeated.clear()
        if self._seq == row.seq:
            return
        for trial, point in history.results(tx, row.id, self._seq, row.seq):
            answered = trial.state in (COMPLETED, INFEASIBLE, SUPERSEDED, CANCELLED)
            if answered and not trial.invalid and trial.source != REUSED and point.params is not None:
                self._add(point.params, trial, trial.value, trial.extra)
        late = [value for value in tx.late(row.id, self._seq, history.MAX_SEQ) if value.value is not None]
        points = tx.points(row.id, [value.number for value in late]) if late else {}
        trials = tx.trials(row.id, [value.number for value in late]) if late else {}
        for value in late:
            params, trial = points[value.number].params, trials[value.number]
            if params is not None and not trial.invalid:
                self._add(params, trial, value.value, value.extra)
        self._seq = row.seq

    def _add(self, params: str, trial: TrialRow, value: float | None, extra: str | None) -> None:
        key = _key(params)
        fields = json.loads(extra) if extra else {}
        stderr = fields.get("stderr")
        self._differ |= isinstance(stderr, int | float) and stderr > 0
        first = self._told.setdefault(key, Told(trial.number, value, trial.worker, fields))
        if first.number != trial.number or first.value != value:
            self._repeated.add(key)
            self._differ |= first.value != value


def _key(params: str) -> bytes:
    # Numbers may be written differently where a person enqueued the point.
    return hashlib.blake2b(
        json.dumps(json.loads(params), sort_keys=True, separators=(",", ":")).encode(), digest_size=16
    ).digest()

"""Points of a finite space that were told already, and whether their values may be taken from the archive."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pydantic_core import to_json

from blackbox.records import JSON
from blackbox.space import Categorical, Int
from blackbox.study import history
from blackbox.study.effects import Steps, read
from blackbox.study.known import Known
from blackbox.study.log import LoggedResult
from blackbox.study.open_step import PARAMS_STORED_UPTO
from blackbox.study.rows import CANCELLED, COMPLETED, INFEASIBLE, REUSED, SUPERSEDED, PointRow, StudyRow, TrialRow, Tx

if TYPE_CHECKING:
    from blackbox.study.reading import RecordedStudy

ENOUGH_REPEATS = 3
"""Points that must have been told twice or more, always with equal values, before an objective is called repeatable."""
REUSED_AT_ONCE = 32
"""Values that one ask takes from the archive; then it grants points of the space that nobody has told, so that no ask
goes on for ever and no known value is paid for."""
REUSED_IN_A_WORK = 16
"""Most values that one transaction takes from the archive."""
READ_AT_ONCE = 4096
"""Numbers of the log that are read in one transaction."""
DRAWS = 16
"""Points drawn at random before the next untold one is looked for in order."""


Entry = tuple[TrialRow, PointRow, float | None, str | None]
"""A told value: its trial, its point, the value (None: infeasible), JSON of the other told fields."""


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
        if self._size is None or self._known_to_differ(row):
            return False
        while self._seq < row.seq:
            self._take(self._read(tx, row, self._seq), row)
        enough = len(self._repeated) >= min(ENOUGH_REPEATS, self._size)
        return self._policy == "reuse" or (enough and not self._differ)

    def catch_up(self, row: StudyRow) -> Steps[None]:
        """Read what a long log says outside of the transaction that grants."""
        if self._size is None or self._known_to_differ(row):
            return
        while row.seq - self._seq > READ_AT_ONCE:
            after, place = self._seq, self._place
            found = yield from read(partial(self._read, row=row, after=after))
            if (after, place) == (self._seq, self._place):
                self._take(found, row)

    def feed(self, row: StudyRow, before: int, results: Sequence[LoggedResult] | None, n_others: int) -> None:
        """Take results that were just logged, which saves reading them.

        Parameters
        ----------
        row : the study's row after logging them.
        before : its `seq` before.
        results : None if they are not known.
        n_others : other entries of the log since then, which say nothing of points.
        """
        if self._size is None or results is None or self._known_to_differ(row) or self._seq != before:
            return
        if len(results) + n_others == row.seq - before:
            self._take([(trial, point, trial.value, trial.extra) for trial, point in results if _says(trial)], row)
            self._seq = row.seq

    def find(self, params: str | None) -> Told | None:
        """The first answer for a point of the algorithm, given as stored JSON of its parameters."""
        return None if params is None else self._told.get(_digest(params))

    def left(self) -> int:
        """Number of points of the space that were never told."""
        return 0 if self._size is None else self._size - len(self._told)

    def untold(self, tx: Tx, row: StudyRow, n: int) -> list[tuple[bytes, str]]:
        """At most n points, as vectors and parameters, that were neither told nor are out: a function of the row's
        number of trials and of these points."""
        open_trials = [trial.number for trial in tx.open_trials(row.id)]
        out = {self._key(point.params, -1) for point in tx.points(row.id, open_trials).values() if point.params}
        taken = out - self._told.keys()
        n = min(n, self.left() - len(taken))
        found: list[tuple[bytes, str]] = []
        while len(found) < n:
            for draw in range(DRAWS):
                key = self._study.key.child("untold", row.trials + len(found), draw)
                place = key.words[0] + (key.words[1] << 64)
                vector, params = self._point(place)
                if (digest := _digest(params)) not in taken and digest not in self._told:
                    break
            while digest in taken or digest in self._told:
                place += 1
                vector, params = self._point(place)
                digest = _digest(params)
            taken.add(digest)
            found.append((vector, params))
        return found

    def _point(self, place: int) -> tuple[bytes, str]:
        """The point at a place of the space, counted with its first parameter as the fastest; modulo its size."""
        params: dict[str, JSON] = {}
        for name, parameter in self._study.space.items():
            if isinstance(parameter, Int):
                place, digit = divmod(place, parameter.high - parameter.low + 1)
                params[name] = parameter.low + digit
            elif isinstance(parameter, Categorical):
                place, digit = divmod(place, len(parameter.choices))
                params[name] = parameter.choices[digit]
        vector = self._study.space.encode(params)
        return vector.astype("<f8").tobytes(), to_json(self._study.space.decode(vector)).decode()

    def _known_to_differ(self, row: StudyRow) -> bool:
        """Whether values are noisy, so that nothing more need be known; forgets everything if the past has changed."""
        place = (row.epoch, self._known.rolled_back)
        if self._place != place:
            self._place, self._seq, self._differ = place, 0, False
            self._told.clear()
            self._repeated.clear()
        return self._differ and self._policy == "auto"

    def _read(self, tx: Tx, row: StudyRow, after: int) -> list[Entry]:
        """What the log says after a place, in at most `READ_AT_ONCE` of its entries."""
        upto = min(row.seq, after + READ_AT_ONCE)
        found = [
            (trial, point, trial.value, trial.extra)
            for trial, point in history.results(tx, row.id, after, upto)
            if _says(trial)
        ]
        late = [each for each in tx.late(row.id, after, READ_AT_ONCE) if each.value is not None and each.seq <= upto]
        if late:
            numbers = [each.number for each in late]
            points, trials = tx.points(row.id, numbers), tx.trials(row.id, numbers)
            beside = [(trials[each.number], points[each.number], each.value, each.extra) for each in late]
            found += [each for each in beside if not each[0].invalid]
        return found

    def _take(self, found: Sequence[Entry], row: StudyRow) -> None:
        for trial, point, value, extra in found:
            if point.params is not None:
                self._add(self._key(point.params, trial.lane), trial, value, extra)
        self._seq = min(row.seq, self._seq + READ_AT_ONCE)

    def _add(self, key: bytes, trial: TrialRow, value: float | None, extra: str | None) -> None:
        fields = json.loads(extra) if extra else {}
        stderr = fields.get("stderr")
        self._differ |= isinstance(stderr, int | float) and stderr > 0
        first = self._told.get(key)
        if first is None:
            self._told[key] = Told(trial.number, value, trial.worker, fields)
        elif first.number != trial.number or first.value != value:
            self._repeated.add(key)
            self._differ |= first.value != value

    def _key(self, params: str, lane: int) -> bytes:
        """What is the same for the same point: numbers may be written differently where a person has enqueued it."""
        if lane < 0:
            space = self._study.space
            params = to_json(space.decode(space.encode(json.loads(params)))).decode()
        return _digest(params)


def _digest(params: str) -> bytes:
    return hashlib.blake2b(params.encode(), digest_size=16).digest()


def _says(trial: TrialRow) -> bool:
    """Whether the result of a trial is an answer for its point."""
    answered = trial.state in (COMPLETED, INFEASIBLE, SUPERSEDED, CANCELLED)
    return answered and not trial.invalid and trial.source != REUSED

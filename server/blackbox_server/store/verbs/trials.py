"""Rows of trials, with their points and interim values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

from blackbox.errors import TrialNotFound
from blackbox.study.rows import VALUED, InterimRow, PointRow, TrialRow
from blackbox_server.store.verbs.base import Verbs, arguments, columns, insert, no_nan, update, upsert

INSERT_TRIAL, TRIAL_ARGUMENTS = insert("trials", TrialRow), arguments(TrialRow)
INSERT_POINT, POINT_ARGUMENTS = insert("points", PointRow), arguments(PointRow)
# Not assigning the columns of the unique key spares rewriting its index.
PUT_TRIAL, PUT_TRIAL_ARGUMENTS = update("trials", TrialRow, ["study", "number"], ["step", "lane", "replicate"])
PUT_LEASED = f"{PUT_TRIAL} AND state = 'LEASED' AND attempt = ?"


def _open(index: str, where: str) -> str:
    """A SELECT that must use a partial index: without statistics SQLite would read all trials of the study instead.

    The condition begins as the index's own does.
    """
    return f"SELECT {columns(TrialRow)} FROM trials INDEXED BY {index} WHERE study = ?1 AND {where}"


TRIALS = f"SELECT {columns(TrialRow)} FROM trials WHERE study = ?1"
TRIAL = f"{TRIALS} AND number = ?2"
_OPEN = (
    _open("trials_enqueued", "state = 'QUEUED' AND lane < 0"),
    _open("trials_queued", "state = 'QUEUED' AND lane >= 0"),
    _open("trials_leased", "state = 'LEASED'"),
)
ENQUEUED = f"{_OPEN[0]} ORDER BY number LIMIT ?2"
QUEUED = f"{_OPEN[1]} ORDER BY number LIMIT ?2"
LAPSED = f"{_OPEN[2]} AND until < ?2 ORDER BY until, number LIMIT ?3"
OPEN = " UNION ALL ".join(_OPEN)
LANES_AT = "SELECT lane FROM trials WHERE study = ? AND step = ? AND lane >= 0"
LEASED_UNDER = _open("trials_asked", "state = 'LEASED' AND ask_key = ?2")
LEASED_BY = f"{_OPEN[2]} AND worker = ?2"
TOLD = f"{TRIALS} AND seq > ?2 AND seq <= ?3 ORDER BY seq"
TOLD_BY = f"{TRIALS} AND worker = ?2 AND seq IS NOT NULL ORDER BY number"
_SUPERSEDE = (
    "UPDATE trials INDEXED BY {} SET state = 'SUPERSEDED' WHERE study = ? AND state = '{}' AND lane >= 0 AND step < ?"
)
SUPERSEDE_QUEUED = _SUPERSEDE.format("trials_queued", "QUEUED")
SUPERSEDE_LEASED = _SUPERSEDE.format("trials_leased", "LEASED")
WITHDRAWN = (
    "SELECT count(*) FROM trials INDEXED BY trials_withdrawn"
    " WHERE study = ? AND state = 'SUPERSEDED' AND seq IS NULL AND until IS NOT NULL AND until >= ?"
)
PAGE = f"{TRIALS} AND number > ?2 ORDER BY number LIMIT ?3"
PAGE_OF_STATES = f"{TRIALS} AND number > ?2 AND state IN (SELECT value FROM json_each(?4)) ORDER BY number LIMIT ?3"
BEST = f"{TRIALS} AND value IS NOT NULL AND seq > 0 AND invalid = 0 AND state IN {VALUED}"
LOWEST, HIGHEST = f"{BEST} ORDER BY value, seq LIMIT 1", f"{BEST} ORDER BY value DESC, seq LIMIT 1"
SOME_TRIALS = f"{TRIALS} AND number IN (SELECT value FROM json_each(?2))"
POINTS = f"SELECT {columns(PointRow)} FROM points WHERE study = ?"
POINT = f"{POINTS} AND number = ?"
SOME_POINTS = f"{POINTS} AND number IN (SELECT value FROM json_each(?))"

PUT_INTERIM, INTERIM_ARGUMENTS = upsert("interim", InterimRow, "study, number, attempt, step"), arguments(InterimRow)
INTERIM = f"SELECT {columns(InterimRow)} FROM interim WHERE study = ? AND number = ? ORDER BY attempt, step"
PRUNE_INTERIM = (  # where there are fewer, the inner SELECT finds none, and nothing is before that
    "DELETE FROM interim WHERE study = ?1 AND number = ?2 AND (attempt, step) < (SELECT attempt, step FROM interim"
    " WHERE study = ?1 AND number = ?2 ORDER BY attempt DESC, step DESC LIMIT 1 OFFSET ?3)"
)


def _trials(rows: Iterable[Sequence[Any]]) -> list[TrialRow]:
    trials = [TrialRow(*row) for row in rows]
    for trial in trials:
        trial.invalid = bool(trial.invalid)  # SQLite has no booleans
    return trials


class TrialVerbs(Verbs):
    """Verbs of `Tx` about trials."""

    def insert_trials(self, trials: Sequence[TrialRow], points: Sequence[PointRow]) -> None:
        if not trials:
            return
        for trial in trials:
            no_nan(trial.value, trial.until, trial.asked_at, trial.leased_at, trial.told_at)
        first = trials[0]
        what = f"trial {first.number} (step {first.step}, lane {first.lane}) or one inserted with it exists"
        # A point has the key of its trial, so what the trials pass the points pass.
        self._add(INSERT_TRIAL, [TRIAL_ARGUMENTS(trial) for trial in trials], first.study, what)
        self._add(INSERT_POINT, [POINT_ARGUMENTS(point) for point in points], first.study, what)

    def trial(self, study: str, number: int) -> TrialRow | None:
        found = self._execute(TRIAL, (study, number)).fetchone()
        return _trials([found])[0] if found else None

    def trials(self, study: str, numbers: Sequence[int]) -> dict[int, TrialRow]:
        if len(numbers) == 1:
            found = self.trial(study, numbers[0])
            return {} if found is None else {found.number: found}
        rows = self._execute(SOME_TRIALS, (study, json.dumps(list(numbers))))
        return {trial.number: trial for trial in _trials(rows)}

    def put_trials(self, rows: Sequence[TrialRow]) -> None:
        for row in rows:
            no_nan(row.value, row.until, row.asked_at, row.leased_at, row.told_at)
        changed = self.connection.executemany(PUT_TRIAL, [PUT_TRIAL_ARGUMENTS(row) for row in rows]).rowcount
        if rows and changed != len(rows):
            raise TrialNotFound(f"of {len(rows)} trials of {rows[0].study} only {changed} exist")

    def put_leased(self, rows: Sequence[TrialRow]) -> bool:
        for row in rows:
            no_nan(row.value, row.until, row.asked_at, row.leased_at, row.told_at)
        values = [(*PUT_TRIAL_ARGUMENTS(row), row.attempt) for row in rows]
        return not rows or self.connection.executemany(PUT_LEASED, values).rowcount == len(rows)

    def put_trial(self, row: TrialRow) -> None:
        no_nan(row.value, row.until, row.asked_at, row.leased_at, row.told_at)
        if not self._execute(PUT_TRIAL, PUT_TRIAL_ARGUMENTS(row)).rowcount:
            raise TrialNotFound(f"there is no trial {row.number} of {row.study}")

    def points(self, study: str, numbers: Sequence[int]) -> dict[int, PointRow]:
        if len(numbers) == 1:
            rows = self._execute(POINT, (study, numbers[0]))
        else:  # one statement for any number of them
            rows = self._execute(SOME_POINTS, (study, json.dumps(list(numbers))))
        return {row[1]: PointRow(*row) for row in rows}

    def queued(self, study: str, limit: int) -> list[TrialRow]:
        rows = _trials(self._execute(ENQUEUED, (study, limit)))
        if len(rows) < limit:
            rows += _trials(self._execute(QUEUED, (study, limit - len(rows))))
        return rows

    def lapsed(self, study: str, now: float, limit: int) -> list[TrialRow]:
        return _trials(self._execute(LAPSED, (study, now, limit)))

    def open_trials(self, study: str) -> list[TrialRow]:
        return sorted(_trials(self._execute(OPEN, (study,))), key=attrgetter("number"))

    def lanes_at(self, study: str, step: int) -> frozenset[int]:
        return frozenset(lane for (lane,) in self._execute(LANES_AT, (study, step)))

    def leased_under(self, study: str, ask_key: str) -> list[TrialRow]:
        return sorted(_trials(self._execute(LEASED_UNDER, (study, ask_key))), key=attrgetter("number"))

    def leased_by(self, study: str, worker: str) -> list[TrialRow]:
        return sorted(_trials(self._execute(LEASED_BY, (study, worker))), key=attrgetter("number"))

    def told(self, study: str, after_seq: int, upto_seq: int) -> list[TrialRow]:
        return _trials(self._execute(TOLD, (study, after_seq, upto_seq)))

    def told_by(self, study: str, worker: str) -> list[TrialRow]:
        return _trials(self._execute(TOLD_BY, (study, worker)))

    def supersede(self, study: str, queued_before: int, leased_before: int) -> tuple[int, int]:
        both = ((SUPERSEDE_QUEUED, queued_before), (SUPERSEDE_LEASED, leased_before))
        queued, leased = (self._execute(sql, (study, n)).rowcount if n > 0 else 0 for sql, n in both)
        return queued, leased

    def withdrawn(self, study: str, now: float) -> int:
        return int(self._execute(WITHDRAWN, (study, now)).fetchone()[0])

    def page(self, study: str, after: int, limit: int, states: Sequence[str]) -> list[TrialRow]:
        if not states:
            return _trials(self._execute(PAGE, (study, after, limit)))
        return _trials(self._execute(PAGE_OF_STATES, (study, after, limit, json.dumps(list(states)))))

    def best(self, study: str, maximize: bool) -> TrialRow | None:
        found = self._execute(HIGHEST if maximize else LOWEST, (study,)).fetchone()
        return _trials([found])[0] if found else None

    def put_interim(self, row: InterimRow, keep: int) -> None:
        no_nan(row.value, row.at)
        self._add(PUT_INTERIM, [INTERIM_ARGUMENTS(row)], row.study, "")
        self._execute(PRUNE_INTERIM, (row.study, row.number, keep - 1))

    def interim(self, study: str, number: int) -> list[InterimRow]:
        return [InterimRow(*row) for row in self._execute(INTERIM, (study, number))]

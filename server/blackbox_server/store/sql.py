"""The store on SQLite: one connection that writes, transactions that works share, row verbs as prebuilt statements.

`write` is a transaction of its own. Who has many works at hand (`embedded`) begins a `Group`: each work
runs inside a savepoint of its own, so that one that fails rolls back alone, and one fsync pays for all of them. Readers
have connections of their own, see the last commit, and wait for nobody (WAL).

The statements are SQL for the driver, because SQLAlchemy's expression layer costs more per call than SQLite does;
schema and migrations are SQLAlchemy's and alembic's (`tables`, `migrations`).

The file is long because each verb of `study.rows.Tx` has its statement and its few lines here, and nowhere else.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from blackbox.errors import Conflict, InvalidInput, NonFiniteValue, StoreUnavailable, StudyNotFound, TrialNotFound
from blackbox.study.memory import steps_with_bases
from blackbox.study.rows import (
    ContributionRow,
    EventRow,
    InterimRow,
    KeyRow,
    LateRow,
    MemberRow,
    PointRow,
    ReplyRow,
    SnapshotRow,
    StepRow,
    StudyHead,
    StudyRow,
    TrialRow,
    Tx,
    UpdateRow,
)
from blackbox_server.store import migrations

T = TypeVar("T")

BUSY_SECONDS = 5.0
"""How long to wait for another program that holds the database, such as a backup ..."""
RETRY_SECONDS = 0.005
"""... and how often to try meanwhile."""
CHECKPOINT_PAGES = 4000
"""Pages of WAL (16 MB) after which a commit moves them into the database. A hot page is moved once per checkpoint, not
once per commit, so more is cheaper, until readers feel it."""

SYNCHRONOUS = {"OFF": 0, "NORMAL": 1, "FULL": 2, "EXTRA": 3}

# Statements -----------------------------------------------------------------------------------------------------------


def _names(row: type) -> list[str]:
    return [field.name for field in fields(row)]


def _columns(row: type, table: str = "") -> str:
    return ", ".join(table + name for name in _names(row))


def _insert(table: str, row: type) -> str:
    marks = ", ".join("?" * len(fields(row)))
    return f"INSERT INTO {table} ({_columns(row)}) VALUES ({marks})"


def _upsert(table: str, row: type, key: str) -> str:
    changed = (f"{name} = excluded.{name}" for name in _names(row) if name not in key.split(", "))
    return f"{_insert(table, row)} ON CONFLICT ({key}) DO UPDATE SET {', '.join(changed)}"


def _update(table: str, row: type, key: Sequence[str], fixed: Sequence[str]) -> tuple[str, Callable[[Any], Any]]:
    """An UPDATE of one row by its key, and what takes its arguments from a row; `fixed` fields are not assigned."""
    changed = [name for name in _names(row) if name not in (*key, *fixed)]
    sets, where = (", ".join(f"{n} = ?" for n in changed), " AND ".join(f"{n} = ?" for n in key))
    return f"UPDATE {table} SET {sets} WHERE {where}", attrgetter(*changed, *key)


def _arguments(row: type) -> Callable[[Any], Any]:
    return attrgetter(*_names(row))


INSERT_HEAD, HEAD_ARGUMENTS = _insert("heads", StudyHead), _arguments(StudyHead)
INSERT_STUDY, STUDY_ARGUMENTS = _insert("studies", StudyRow), _arguments(StudyRow)
STUDY = f"SELECT {_columns(StudyRow)} FROM studies WHERE id = ?"
PUT_STUDY, PUT_STUDY_ARGUMENTS = _update("studies", StudyRow, ["id"], [])
HEAD = f"SELECT {_columns(StudyHead)} FROM heads WHERE id = ?"
PUT_HEAD, PUT_HEAD_ARGUMENTS = _update("heads", StudyHead, ["id", "project", "name"], [])
FIND = f"SELECT {_columns(StudyHead)} FROM heads WHERE project = ? AND name = ?"
STUDIES = (
    f"SELECT {_columns(StudyHead, 'h.')}, {_columns(StudyRow, 's.')} FROM heads h JOIN studies s ON s.id = h.id"
    " WHERE h.id > ?1 AND (?2 IS NULL OR h.project = ?2) ORDER BY h.id LIMIT ?3"
)
DELETE_STUDY = "DELETE FROM heads WHERE id = ?"  # the rest goes by ON DELETE CASCADE

INSERT_TRIAL, TRIAL_ARGUMENTS = _insert("trials", TrialRow), _arguments(TrialRow)
INSERT_POINT, POINT_ARGUMENTS = _insert("points", PointRow), _arguments(PointRow)
# Not assigning the columns of the unique key spares rewriting its index.
PUT_TRIAL, PUT_TRIAL_ARGUMENTS = _update("trials", TrialRow, ["study", "number"], ["step", "lane", "replicate"])
PUT_LEASED = f"{PUT_TRIAL} AND state = 'LEASED' AND attempt = ?"


def _open(index: str, where: str) -> str:
    """A SELECT that must use a partial index: without statistics SQLite would read all trials of the study instead.

    The condition begins as the index's own does.
    """
    return f"SELECT {_columns(TrialRow)} FROM trials INDEXED BY {index} WHERE study = ?1 AND {where}"


TRIALS = f"SELECT {_columns(TrialRow)} FROM trials WHERE study = ?1"
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
PAGE = f"{TRIALS} AND number > ?2 ORDER BY number LIMIT ?3"
PAGE_OF_STATES = f"{TRIALS} AND number > ?2 AND state IN (SELECT value FROM json_each(?4)) ORDER BY number LIMIT ?3"
BEST = f"{TRIALS} AND value IS NOT NULL AND seq > 0 AND invalid = 0 AND state IN ('COMPLETED', 'SUPERSEDED')"
LOWEST, HIGHEST = f"{BEST} ORDER BY value, seq LIMIT 1", f"{BEST} ORDER BY value DESC, seq LIMIT 1"
SOME_TRIALS = f"{TRIALS} AND number IN (SELECT value FROM json_each(?2))"
POINTS = f"SELECT {_columns(PointRow)} FROM points WHERE study = ?"
POINT = f"{POINTS} AND number = ?"
SOME_POINTS = f"{POINTS} AND number IN (SELECT value FROM json_each(?))"

INSERT_STEP, STEP_ARGUMENTS = _insert("steps", StepRow), _arguments(StepRow)
PUT_DIGEST = "UPDATE steps SET digest = ? WHERE study = ? AND step = ?"
STEPS = f"SELECT {_columns(StepRow)} FROM steps WHERE study = ? AND step >= ? AND step < ? ORDER BY step"
STEPS_LOGGED = f"SELECT {_columns(StepRow)} FROM steps WHERE study = ? AND seq > ? ORDER BY seq LIMIT ?"
INSERT_EVENT, EVENT_ARGUMENTS = _insert("events", EventRow), _arguments(EventRow)
EVENTS = f"SELECT {_columns(EventRow)} FROM events WHERE study = ? AND seq > ? ORDER BY seq LIMIT ?"
INSERT_LATE, LATE_ARGUMENTS = _insert("late", LateRow), _arguments(LateRow)
LATE = f"SELECT {_columns(LateRow)} FROM late WHERE study = ? AND seq > ? ORDER BY seq LIMIT ?"

PUT_INTERIM, INTERIM_ARGUMENTS = _upsert("interim", InterimRow, "study, number, attempt, step"), _arguments(InterimRow)
INTERIM = f"SELECT {_columns(InterimRow)} FROM interim WHERE study = ? AND number = ? ORDER BY attempt, step"
PRUNE_INTERIM = (  # where there are fewer, the inner SELECT finds none, and nothing is before that
    "DELETE FROM interim WHERE study = ?1 AND number = ?2 AND (attempt, step) < (SELECT attempt, step FROM interim"
    " WHERE study = ?1 AND number = ?2 ORDER BY attempt DESC, step DESC LIMIT 1 OFFSET ?3)"
)

PUT_SNAPSHOT, SNAPSHOT_ARGUMENTS = _upsert("snapshots", SnapshotRow, "study, epoch, step"), _arguments(SnapshotRow)
SNAPSHOT = (
    f"SELECT {_columns(SnapshotRow)} FROM snapshots WHERE study = ? AND epoch = ? AND step <= ?"
    " ORDER BY step DESC LIMIT 1"
)
SNAPSHOT_PLACES = "SELECT epoch, step FROM snapshots WHERE study = ? ORDER BY epoch, step"
DELETE_SNAPSHOT = "DELETE FROM snapshots WHERE study = ? AND epoch = ? AND step = ?"
# A digest names its content, so a second put only moves it to the newer step.
PUT_BLOB = (
    "INSERT INTO blobs (study, digest, step, content) VALUES (?, ?, ?, ?)"
    " ON CONFLICT (study, digest) DO UPDATE SET step = excluded.step WHERE step <> excluded.step"
)
BLOB = "SELECT content FROM blobs WHERE study = ? AND digest = ?"
BLOB_AT = "SELECT digest, content FROM blobs WHERE study = ? AND step = ? LIMIT 1"
BLOB_STEPS = "SELECT DISTINCT step FROM blobs WHERE study = ?"
DELETE_BLOB = "DELETE FROM blobs WHERE study = ? AND step = ?"

PUT_MEMBER, MEMBER_ARGUMENTS = _upsert("members", MemberRow, "study, client"), _arguments(MemberRow)
MEMBER = f"SELECT {_columns(MemberRow)} FROM members WHERE study = ? AND client = ?"
MEMBERS = f"SELECT {_columns(MemberRow)} FROM members WHERE study = ? AND left_at IS NULL ORDER BY client"
INSERT_CONTRIBUTION, CONTRIBUTION_ARGUMENTS = _insert("contributions", ContributionRow), _arguments(ContributionRow)
CONTRIBUTIONS = f"SELECT {_columns(ContributionRow)} FROM contributions WHERE study = ?"
CONTRIBUTION = f"{CONTRIBUTIONS} AND client = ? AND round = ? AND phase = ?"
CONTRIBUTIONS_LOGGED = f"{CONTRIBUTIONS} AND seq > ? AND seq <= ? ORDER BY seq"
CONTRIBUTIONS_WAITING = f"{CONTRIBUTIONS} AND step IS NULL ORDER BY seq"
SETTLE = "UPDATE contributions SET step = ? WHERE study = ? AND seq = ?"
SETTLE_AND_FORGET = "UPDATE contributions SET step = ?, content = NULL WHERE study = ? AND seq = ?"
INSERT_UPDATE, UPDATE_ARGUMENTS = _insert("updates", UpdateRow), _arguments(UpdateRow)
UPDATES = f"SELECT {_columns(UpdateRow)} FROM updates WHERE study = ? AND version > ? ORDER BY version LIMIT ?"

PUT_KEY, KEY_ARGUMENTS = _upsert("keys", KeyRow, "id"), _arguments(KeyRow)
KEY = f"SELECT {_columns(KeyRow)} FROM keys WHERE id = ?"
KEYS = f"SELECT {_columns(KeyRow)} FROM keys WHERE ?1 IS NULL OR project = ?1 ORDER BY created_at, id"
PUT_REPLY, REPLY_ARGUMENTS = _upsert("replies", ReplyRow, "project, key"), _arguments(ReplyRow)
REPLY = f"SELECT {_columns(ReplyRow)} FROM replies WHERE project = ? AND key = ?"
PURGE_REPLIES = "DELETE FROM replies WHERE at < ?"

# Rows -----------------------------------------------------------------------------------------------------------------


def _trials(rows: Iterable[Sequence[Any]]) -> list[TrialRow]:
    trials = [TrialRow(*row) for row in rows]
    for trial in trials:
        trial.invalid = bool(trial.invalid)  # SQLite has no booleans
    return trials


def _no_nan(*numbers: float | None) -> None:
    """Refuse NaN, which SQLite would silently store as NULL."""
    for number in numbers:
        if number != number:
            raise NonFiniteValue(
                "a number to be stored is NaN", hint="a result without a value is stored as None, with its state"
            )


def _refused(error: sqlite3.IntegrityError, study: str, what: str) -> Exception:
    """What a refused row means to the caller. A CHECK that fails is a bug above, and is shown as it is."""
    if error.sqlite_errorname in ("SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_UNIQUE"):
        return Conflict(what)
    if error.sqlite_errorname == "SQLITE_CONSTRAINT_FOREIGNKEY":
        return StudyNotFound(f"there is no study {study}")
    return error


class _SqlTx:
    """`blackbox.study.rows.Tx` over one connection. The transaction itself is the caller's."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self._execute = connection.execute

    def _add(self, sql: str, rows: Sequence[Any], study: str, what: str) -> None:
        """Insert rows: all, or none if one of them is refused."""
        try:
            if len(rows) == 1:
                self._execute(sql, rows[0])
                return
            self._execute("SAVEPOINT rows")
            try:
                self.connection.executemany(sql, rows)
            except BaseException:
                if self.connection.in_transaction:  # a failing disk may have ended it
                    self._execute("ROLLBACK TO rows")
                    self._execute("RELEASE rows")
                raise
            self._execute("RELEASE rows")
        except sqlite3.IntegrityError as error:
            raise _refused(error, study, what) from error

    # studies

    def insert_study(self, head: StudyHead, row: StudyRow) -> None:
        _no_nan(head.created_at, row.cost, row.best_value)
        self._add(INSERT_HEAD, [HEAD_ARGUMENTS(head)], head.id, f'a study named "{head.name}" exists')
        self._add(INSERT_STUDY, [STUDY_ARGUMENTS(row)], head.id, f"the study {row.id} exists")

    def study(self, study: str) -> StudyRow | None:
        found = self._execute(STUDY, (study,)).fetchone()
        return StudyRow(*found) if found else None

    def put_study(self, row: StudyRow) -> None:
        _no_nan(row.cost, row.best_value)
        if not self._execute(PUT_STUDY, PUT_STUDY_ARGUMENTS(row)).rowcount:
            raise StudyNotFound(f"there is no study {row.id}")

    def head(self, study: str) -> StudyHead | None:
        found = self._execute(HEAD, (study,)).fetchone()
        return StudyHead(*found) if found else None

    def put_head(self, head: StudyHead) -> None:
        if not self._execute(PUT_HEAD, PUT_HEAD_ARGUMENTS(head)).rowcount:
            if self.head(head.id) is None:
                raise StudyNotFound(f"there is no study {head.id}")
            raise Conflict("a study's name and project do not change")

    def find(self, project: str, name: str) -> StudyHead | None:
        found = self._execute(FIND, (project, name)).fetchone()
        return StudyHead(*found) if found else None

    def studies(self, project: str | None, after: str, limit: int) -> list[tuple[StudyHead, StudyRow]]:
        n = len(_names(StudyHead))
        rows = self._execute(STUDIES, (after, project, limit))
        return [(StudyHead(*row[:n]), StudyRow(*row[n:])) for row in rows]

    def delete_study(self, study: str) -> None:
        if not self._execute(DELETE_STUDY, (study,)).rowcount:
            raise StudyNotFound(f"there is no study {study}")

    # trials

    def insert_trials(self, trials: Sequence[TrialRow], points: Sequence[PointRow]) -> None:
        if not trials:
            return
        for trial in trials:
            _no_nan(trial.value, trial.until, trial.asked_at, trial.leased_at, trial.told_at)
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
            _no_nan(row.value, row.until, row.asked_at, row.leased_at, row.told_at)
        changed = self.connection.executemany(PUT_TRIAL, [PUT_TRIAL_ARGUMENTS(row) for row in rows]).rowcount
        if rows and changed != len(rows):
            raise TrialNotFound(f"of {len(rows)} trials of {rows[0].study} only {changed} exist")

    def put_leased(self, rows: Sequence[TrialRow]) -> bool:
        for row in rows:
            _no_nan(row.value, row.until, row.asked_at, row.leased_at, row.told_at)
        values = [(*PUT_TRIAL_ARGUMENTS(row), row.attempt) for row in rows]
        return not rows or self.connection.executemany(PUT_LEASED, values).rowcount == len(rows)

    def put_trial(self, row: TrialRow) -> None:
        _no_nan(row.value, row.until, row.asked_at, row.leased_at, row.told_at)
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

    def page(self, study: str, after: int, limit: int, states: Sequence[str]) -> list[TrialRow]:
        if not states:
            return _trials(self._execute(PAGE, (study, after, limit)))
        return _trials(self._execute(PAGE_OF_STATES, (study, after, limit, json.dumps(list(states)))))

    def best(self, study: str, maximize: bool) -> TrialRow | None:
        found = self._execute(HIGHEST if maximize else LOWEST, (study,)).fetchone()
        return _trials([found])[0] if found else None

    def put_interim(self, row: InterimRow, keep: int) -> None:
        _no_nan(row.value, row.at)
        self._add(PUT_INTERIM, [INTERIM_ARGUMENTS(row)], row.study, "")
        self._execute(PRUNE_INTERIM, (row.study, row.number, keep - 1))

    def interim(self, study: str, number: int) -> list[InterimRow]:
        return [InterimRow(*row) for row in self._execute(INTERIM, (study, number))]

    # the log

    def insert_steps(self, rows: Sequence[StepRow]) -> None:
        if rows:
            what = f"step {rows[0].step} or one closed with it is in the log"
            self._add(INSERT_STEP, [STEP_ARGUMENTS(row) for row in rows], rows[0].study, what)

    def put_digests(self, study: str, digests: Sequence[tuple[int, str | None]]) -> None:
        self.connection.executemany(PUT_DIGEST, [(digest, study, step) for step, digest in digests])

    def steps(self, study: str, from_step: int, before_step: int) -> list[StepRow]:
        return [StepRow(*row) for row in self._execute(STEPS, (study, from_step, before_step))]

    def steps_logged(self, study: str, after_seq: int, limit: int) -> list[StepRow]:
        return [StepRow(*row) for row in self._execute(STEPS_LOGGED, (study, after_seq, limit))]

    def insert_event(self, row: EventRow) -> None:
        self._add(INSERT_EVENT, [EVENT_ARGUMENTS(row)], row.study, f"event {row.seq} is in the log")

    def events(self, study: str, after_seq: int, limit: int) -> list[EventRow]:
        return [EventRow(*row) for row in self._execute(EVENTS, (study, after_seq, limit))]

    def insert_late(self, row: LateRow) -> None:
        _no_nan(row.value)
        self._add(INSERT_LATE, [LATE_ARGUMENTS(row)], row.study, f"late value {row.seq} is in the log")

    def late(self, study: str, after_seq: int, limit: int) -> list[LateRow]:
        return [LateRow(*row) for row in self._execute(LATE, (study, after_seq, limit))]

    # caches and large things

    def insert_snapshot(self, row: SnapshotRow) -> None:
        self._add(PUT_SNAPSHOT, [SNAPSHOT_ARGUMENTS(row)], row.study, "")

    def snapshot(self, study: str, epoch: int, upto_step: int) -> SnapshotRow | None:
        found = self._execute(SNAPSHOT, (study, epoch, upto_step)).fetchone()
        return SnapshotRow(*found) if found else None

    def keep_snapshots(self, study: str, epoch: int, steps: Iterable[int]) -> None:
        kept = {(epoch, step) for step in steps}
        places = self._execute(SNAPSHOT_PLACES, (study,)).fetchall()
        self.connection.executemany(DELETE_SNAPSHOT, [(study, *place) for place in places if place not in kept])

    def snapshot_steps(self, study: str, epoch: int) -> list[int]:
        return [step for e, step in self._execute(SNAPSHOT_PLACES, (study,)) if e == epoch]

    def put_blob(self, study: str, digest: str, step: int, content: bytes) -> None:
        self._add(PUT_BLOB, [(study, digest, step, content)], study, "")

    def blob(self, study: str, digest: str) -> bytes | None:
        found = self._execute(BLOB, (study, digest)).fetchone()
        return found[0] if found else None

    def blob_at(self, study: str, step: int) -> tuple[str, bytes] | None:
        found = self._execute(BLOB_AT, (study, step)).fetchone()
        return (found[0], found[1]) if found else None

    def drop_blobs(self, study: str, before_step: int, keep: Iterable[int]) -> None:
        steps = {step for (step,) in self._execute(BLOB_STEPS, (study,))}
        gone = steps - steps_with_bases(steps, keep)
        self.connection.executemany(DELETE_BLOB, [(study, step) for step in sorted(gone) if step < before_step])

    # federated rounds

    def put_member(self, row: MemberRow) -> None:
        _no_nan(row.joined_at, row.left_at)
        self._add(PUT_MEMBER, [MEMBER_ARGUMENTS(row)], row.study, "")

    def member(self, study: str, client: str) -> MemberRow | None:
        found = self._execute(MEMBER, (study, client)).fetchone()
        return MemberRow(*found) if found else None

    def members(self, study: str) -> list[MemberRow]:
        return [MemberRow(*row) for row in self._execute(MEMBERS, (study,))]

    def insert_contribution(self, row: ContributionRow) -> None:
        what = f"{row.client} has contributed to {row.phase} of round {row.round}"
        self._add(INSERT_CONTRIBUTION, [CONTRIBUTION_ARGUMENTS(row)], row.study, what)

    def contribution(self, study: str, client: str, round: int, phase: str) -> ContributionRow | None:
        found = self._execute(CONTRIBUTION, (study, client, round, phase)).fetchone()
        return ContributionRow(*found) if found else None

    def contributions(self, study: str, after_seq: int, upto_seq: int) -> list[ContributionRow]:
        return [ContributionRow(*row) for row in self._execute(CONTRIBUTIONS_LOGGED, (study, after_seq, upto_seq))]

    def waiting_contributions(self, study: str) -> list[ContributionRow]:
        return [ContributionRow(*row) for row in self._execute(CONTRIBUTIONS_WAITING, (study,))]

    def settle_contributions(self, study: str, seqs: Sequence[int], step: int, keep: bool) -> None:
        sql = SETTLE if keep else SETTLE_AND_FORGET
        self.connection.executemany(sql, [(step, study, seq) for seq in seqs])

    def insert_update(self, row: UpdateRow) -> None:
        self._add(INSERT_UPDATE, [UPDATE_ARGUMENTS(row)], row.study, f"the update to version {row.version} is there")

    def updates(self, study: str, after_version: int, limit: int) -> list[UpdateRow]:
        return [UpdateRow(*row) for row in self._execute(UPDATES, (study, after_version, limit))]

    # the service's own

    def put_key(self, row: KeyRow) -> None:
        _no_nan(row.created_at, row.expires_at, row.revoked_at)
        self._execute(PUT_KEY, KEY_ARGUMENTS(row))

    def key(self, key_id: str) -> KeyRow | None:
        found = self._execute(KEY, (key_id,)).fetchone()
        return KeyRow(*found) if found else None

    def keys(self, project: str | None) -> list[KeyRow]:
        return [KeyRow(*row) for row in self._execute(KEYS, (project,))]

    def put_reply(self, row: ReplyRow) -> None:
        self._execute(PUT_REPLY, REPLY_ARGUMENTS(row))

    def reply(self, project: str, key: str) -> ReplyRow | None:
        found = self._execute(REPLY, (project, key)).fetchone()
        return ReplyRow(*found) if found else None

    def purge_replies(self, before: float) -> None:
        self._execute(PURGE_REPLIES, (before,))


# The store ------------------------------------------------------------------------------------------------------------


class SqlStore:
    """Studies in one SQLite file, on a local disk, for one server process.

    Parameters
    ----------
    path_or_url : path of the database, or ``sqlite:///path``. A new file is made, readable by its owner only: it holds
        secrets. Its folder must exist.
    synchronous : SQLite's pragma. FULL: what was acknowledged survives a power cut. NORMAL may lose the last moments in
        one, but never in a crash of the process.

    Raises
    ------
    InvalidInput
        If the address cannot be a store of this kind.
    StoreUnavailable
        If another server has this database, a newer version wrote it, or it cannot be made durable.
    """

    def __init__(self, path_or_url: str | Path, *, synchronous: str = "FULL") -> None:
        if synchronous.upper() not in SYNCHRONOUS:
            raise InvalidInput(f"synchronous must be one of {', '.join(SYNCHRONOUS)}, got {synchronous!r}")
        self.path = database_path(path_or_url)
        self._synchronous = synchronous.upper()
        self._turn = threading.Lock()
        """Held from BEGIN to the end of the transaction, by whoever writes; a commit may end it in another thread."""
        self._working: int | None = None
        """The thread that is running a work just now."""
        self._closed = False
        self._connection: sqlite3.Connection | None = None
        self._idle: list[sqlite3.Connection] = []
        """Reading connections that nobody uses; a reader takes one for itself."""
        self._lock = lock(self.path)
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            migrations.upgrade(self.path)
            self._connection = self._open_writer()
        except BaseException:
            os.close(self._lock)
            raise

    def write(self, work: Callable[[Tx], T]) -> T:
        """Run a work in a transaction of its own; what it did is durable when this returns, and undone if it raises.

        Raises
        ------
        StoreUnavailable
            If the database cannot take it. Retrying is safe as far as the work is idempotent: of a commit that failed
            nobody can say whether the disk has it.
        RuntimeError
            If a work calls this: it is in a transaction already, and would wait for itself.
        """
        if self._working == threading.get_ident():
            raise RuntimeError("a work called store.write and would wait for itself; use the transaction it was given")
        group = self.begin()
        value, failure = group.run(work)
        group.commit()
        if failure is not None:
            raise failure
        return value  # type: ignore[no-any-return]

    def begin(self) -> Group:
        """Begin a transaction, when nobody else writes any more.

        Raises
        ------
        StoreUnavailable
            If another program holds the database for long, or it cannot be opened.
        """
        until = time.monotonic() + BUSY_SECONDS
        while (group := self.try_begin(time.monotonic() < until)) is None:
            time.sleep(RETRY_SECONDS)
        return group

    def try_begin(self, again: bool = True, *, wait: bool = True) -> Group | None:
        """Begin a transaction now, if possible; see `blackbox.study.rows.Store`."""
        if not self._turn.acquire(blocking=wait):
            return None
        try:
            if self._closed:
                raise StoreUnavailable("the store is closed", hint="the server is stopping; retry in a moment")
            self._connection = self._connection or self._open_writer()
            self._connection.execute("BEGIN IMMEDIATE")
        except BaseException as error:
            busy = isinstance(error, sqlite3.Error) and _code(error) == sqlite3.SQLITE_BUSY
            if not busy:
                self._drop_connection()
            self._turn.release()
            if busy and again:
                return None
            if isinstance(error, sqlite3.Error):
                raise _unavailable(error) from error
            raise
        return Group(self, self._connection)

    def read(self, work: Callable[[Tx], T]) -> T:
        """Run a work on one snapshot of what is committed.

        Raises
        ------
        RuntimeError
            If the work writes.
        """
        if self._closed:
            raise StoreUnavailable("the store is closed", hint="the server is stopping; retry in a moment")
        try:
            connection = self._idle.pop() if self._idle else self._open_reader()
        except IndexError:  # another thread took the last one
            connection = self._open_reader()
        try:
            connection.execute("BEGIN")
            return work(_SqlTx(connection))
        except sqlite3.Error as error:
            if _code(error) == sqlite3.SQLITE_READONLY:
                raise RuntimeError("a work given to store.read tried to write; give it to store.write") from error
            if _is_of_database(error):
                raise _unavailable(error) from error
            raise
        finally:
            self._give_back(connection)

    def pragmas(self) -> dict[str, Any]:
        """What the writing connection runs with, asked of itself."""
        return self.write(lambda tx: _pragmas(tx.connection))  # type: ignore[attr-defined]

    def close(self) -> None:
        """Let go of the database, after the transaction that is open. Later calls are refused."""
        with self._turn:
            if self._closed:
                return
            self._closed = True
            self._close_idle()
            self._drop_connection()  # the last connection moves the WAL into the database
            os.close(self._lock)

    def _drop_connection(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()  # rolls back
            self._connection = None

    # connections

    def _open(self, timeout: float) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=timeout, isolation_level=None, cached_statements=256, check_same_thread=False
        )
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA temp_store = MEMORY")
        return connection

    def _open_reader(self) -> sqlite3.Connection:
        try:
            connection = self._open(BUSY_SECONDS)
            connection.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            raise _unavailable(error) from error
        return connection

    def _give_back(self, connection: sqlite3.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            connection.close()
        else:
            self._idle.append(connection)
            if self._closed:
                self._close_idle()

    def _close_idle(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _open_writer(self) -> sqlite3.Connection:
        connection = self._open(0.0)  # an event loop must not be held by SQLite's own waiting
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        connection.execute("PRAGMA cache_size = -32768")  # KiB
        found = _pragmas(connection)
        # SQLite ignores what it cannot do: WAL on a network disk, say. A promise is only kept if it was understood.
        if found["journal_mode"] != "wal" or found["synchronous"] != SYNCHRONOUS[self._synchronous]:
            connection.close()
            raise StoreUnavailable(
                f"{self.path} would not be durable: SQLite answers {found}", hint="put the database on a local disk"
            )
        return connection


class Group:
    """A transaction that several works share. It holds the store's only writing connection until it ends.

    When the database itself fails, the group has ended and nothing of it stands; the connection is not trusted any
    more, and the next group opens another.
    """

    def __init__(self, store: SqlStore, connection: sqlite3.Connection) -> None:
        self._store = store
        self._connection = connection
        self._tx = _SqlTx(connection)
        self._alone = True
        """No other work has written in this transaction: one that fails may take all of it along."""

    def run(self, work: Callable[[Tx], T]) -> tuple[Any, BaseException | None]:
        """Run a work; see `blackbox.study.rows.Group`."""
        self._store._working = threading.get_ident()
        try:
            value, failure = _attempt(self._connection, self._tx, work, savepoint=not self._alone)
        except BaseException as error:
            raise self._failed(error) from error
        finally:
            self._store._working = None
        self._alone = self._alone and failure is not None
        return value, failure

    def commit(self) -> None:
        """Make it durable; see `blackbox.study.rows.Group`."""
        try:
            self._connection.execute("COMMIT")
        except BaseException as error:
            raise self._failed(error) from error
        self._store._turn.release()

    def _failed(self, error: BaseException) -> StoreUnavailable:
        self._store._drop_connection()
        self._store._turn.release()
        return _unavailable(error)


def _attempt(
    connection: sqlite3.Connection, tx: _SqlTx, work: Callable[[Any], Any], *, savepoint: bool
) -> tuple[Any, BaseException | None]:
    """Run one work of a group; undo what it did if it raises.

    Raises
    ------
    sqlite3.Error
        If the database failed, not the work.
    """
    if savepoint:
        connection.execute("SAVEPOINT work")
    try:
        value = work(tx)
    except BaseException as error:  # also an interrupt: it is the work's, and the writer has others to serve
        if isinstance(error, sqlite3.Error) and _is_of_database(error):
            raise
        if savepoint:
            connection.execute("ROLLBACK TO work")
            connection.execute("RELEASE work")
        else:
            connection.execute("ROLLBACK")
            connection.execute("BEGIN IMMEDIATE")
        return None, error
    if savepoint:
        connection.execute("RELEASE work")
    return value, None


def _code(error: sqlite3.Error) -> int:
    """The primary code of an error; 0 if it is the driver's own."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _is_of_database(error: sqlite3.Error) -> bool:
    """Whether the disk, the file or the engine failed, not what was asked of it."""
    blameless = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError, sqlite3.NotSupportedError)
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(error, blameless)


def _unavailable(error: BaseException) -> StoreUnavailable:
    return StoreUnavailable(
        f"the database failed: {error}", hint="nothing was acknowledged; retry, and look at the server's disk"
    )


def _pragmas(connection: sqlite3.Connection) -> dict[str, Any]:
    names = ("journal_mode", "synchronous", "wal_autocheckpoint", "foreign_keys", "busy_timeout")
    return {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names}


def database_path(path_or_url: str | Path) -> Path:
    """The file an address names."""
    text = str(path_or_url)
    scheme, is_url, rest = text.partition("://")
    if is_url:
        if scheme != "sqlite":
            raise InvalidInput(
                f"this version stores studies in SQLite only, got {scheme}://...", hint="name a file, or sqlite:///path"
            )
        text = rest.removeprefix("/")
    if text in ("", ":memory:"):
        raise InvalidInput(
            "a database in memory is lost with the process and belongs to one connection",
            hint="use blackbox.study.rows.MemoryStore, or name a file",
        )
    path = Path(text).resolve()  # two names of one file have one lock
    if not path.parent.is_dir():
        raise InvalidInput(f"there is no folder {path.parent} to keep {path.name} in", hint="make it first")
    return path


def lock(path: Path) -> int:
    """Take the lock file beside a database, or say who has it. Held until the descriptor is closed."""
    descriptor = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise StoreUnavailable(
            f"{path} is in use by the server with process id {holder}",
            hint="stop it, or give this server a database of its own",
        ) from error
    os.ftruncate(descriptor, 0)
    os.write(descriptor, b"%d\n" % os.getpid())
    return descriptor

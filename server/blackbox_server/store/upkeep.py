"""Maintenance of a database file: check it, upgrade its schema, back it up while a server uses it."""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from blackbox.errors import InvalidInput, StoreUnavailable
from blackbox.study.ledger import PAID_SOURCES
from blackbox.study.spec import Resolved
from blackbox_server.store import migrations
from blackbox_server.store.sql import BUSY_SECONDS, database_path, lock
from blackbox_server.store.verbs.trials import BEST


@dataclass(frozen=True, slots=True)
class StudyHealth:
    """One study of a database, with its size and its faults."""

    id: str
    name: str
    n_trials: int
    n_steps: int
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Health:
    """The findings of a check.

    Attributes
    ----------
    schema : revision of the database's tables; None where the file is damaged.
    faults : of the file itself.
    """

    path: Path
    schema: str | None
    faults: tuple[str, ...]
    studies: tuple[StudyHealth, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults and not any(study.faults for study in self.studies)


# Checking -------------------------------------------------------------------------------------------------------------


def check(path_or_url: str | Path) -> Health:
    """Look for damage of the file, and for rows that contradict one another. Changes nothing; a server may be running.

    Everything is read in one transaction, so writes of a running server are seen completely or not at all.

    Raises
    ------
    InvalidInput
        If there is no database of ours.
    StoreUnavailable
        If it has another schema than this release, or cannot be read.
    """
    path = _existing(path_or_url)
    with closing(_reader(path)) as connection:
        if damage := _damage(connection):  # then its rows mean nothing
            return Health(path, None, damage, ())
        if (schema := migrations.revision(path)) != migrations.HEAD:
            raise StoreUnavailable(
                f"{path} has the schema {schema or 'of no release'}, this release checks {migrations.HEAD}",
                hint="`blackbox db upgrade` brings an older one here; take a backup before",
            )
        connection.execute("BEGIN")
        return Health(path, schema, tuple(_strays(connection)), tuple(_studies(connection)))


def _damage(connection: sqlite3.Connection) -> tuple[str, ...]:
    """The faults that SQLite itself finds in the file."""
    try:
        return tuple(row[0] for row in connection.execute("PRAGMA integrity_check(20)") if row[0] != "ok")
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorname == "SQLITE_NOTADB":
            return ()  # `migrations.revision` reports that
        return (f"it cannot be read: {error}",)


def _strays(connection: sqlite3.Connection) -> Iterator[str]:
    """Rows that belong to no study."""
    for table, n in connection.execute('SELECT "table", count(*) FROM pragma_foreign_key_check GROUP BY 1'):
        yield f"{n} rows of {table} belong to no study"
    for (study,) in connection.execute("SELECT id FROM heads EXCEPT SELECT id FROM studies"):
        yield f"{study} has a spec and no row of its own"


def _studies(connection: sqlite3.Connection) -> Iterator[StudyHealth]:
    connection.row_factory = sqlite3.Row
    for row in connection.execute("SELECT h.name, h.resolved, s.* FROM heads h JOIN studies s USING (id) ORDER BY id"):
        try:
            resolved = Resolved.model_validate_json(row["resolved"])
        except ValidationError as error:
            fault = f"its spec cannot be read: {error.error_count()} faults, the first: {error.errors()[0]['msg']}"
            yield StudyHealth(row["id"], row["name"], row["trials"], row["step"], (fault,))
            continue
        faults = tuple(_faults(connection, row, resolved))
        yield StudyHealth(row["id"], row["name"], row["trials"], row["step"], faults)


TRIALS = f"""
SELECT count(*) AS made, coalesce(max(number), 0) AS newest,
    count(*) FILTER (WHERE state = 'QUEUED') AS queued, count(*) FILTER (WHERE state = 'LEASED') AS leased,
    count(*) FILTER (WHERE seq > :upto_seq) AS waiting,
    count(*) FILTER (WHERE own AND NOT invalid AND NOT withdrawn) AS used,
    count(*) FILTER (WHERE own AND NOT invalid AND withdrawn) AS late,
    count(*) FILTER (WHERE own AND invalid AND withdrawn) AS taken, sum(failures) AS failures
FROM (SELECT *, seq IS NOT NULL
    AND CASE WHEN source = 'reuse' THEN 0 ELSE lane >= 0 OR source IN {PAID_SOURCES} END AS own,
    state IN ('SUPERSEDED', 'CANCELLED') AS withdrawn FROM trials WHERE study = :id)
"""
STEPS = """
SELECT count(*) AS n, coalesce(min(step), 0) AS first, coalesce(max(step), -1) AS last,
    coalesce(max(upto_seq), 0) AS upto_seq, count(*) FILTER (WHERE upto_seq < before) AS backward
FROM (SELECT *, lag(upto_seq) OVER (ORDER BY step) AS before FROM steps WHERE study = :id)
"""
LOG = """
SELECT count(*) AS n, count(DISTINCT seq) AS different, coalesce(max(seq), 0) AS last FROM (
    SELECT seq FROM trials WHERE study = :id AND seq IS NOT NULL UNION ALL SELECT seq FROM steps WHERE study = :id
    UNION ALL SELECT seq FROM events WHERE study = :id UNION ALL SELECT seq FROM late WHERE study = :id
    UNION ALL SELECT seq FROM contributions WHERE study = :id)
"""
STRAY_ROWS = {
    "trials without a point": "SELECT count(*) FROM trials LEFT JOIN points USING (study, number)"
    " WHERE study = :id AND points.note IS NULL",
    "points without a trial": "SELECT count(*) FROM points LEFT JOIN trials USING (study, number)"
    " WHERE study = :id AND trials.state IS NULL",
    "late values without a trial": "SELECT count(*) FROM late LEFT JOIN trials USING (study, number)"
    " WHERE study = :id AND trials.state IS NULL",
    "snapshots of steps to come": "SELECT count(*) FROM snapshots WHERE study = :id"
    " AND (step > :step OR epoch > :epoch)",
    "contributions counted by steps to come": "SELECT count(*) FROM contributions WHERE study = :id AND step >= :step",
}


def _faults(connection: sqlite3.Connection, row: sqlite3.Row, resolved: Resolved) -> Iterator[str]:
    """Contradictions between the row of a study and its other rows."""
    study: dict[str, Any] = dict(row)

    def one(sql: str) -> sqlite3.Row:
        found: sqlite3.Row = connection.execute(sql, study).fetchone()
        return found

    trials, steps, log = one(TRIALS), one(STEPS), one(LOG)
    waiting = trials["waiting"]
    if resolved.federated:
        waiting = one("SELECT count(*) FROM contributions WHERE study = :id AND step IS NULL")[0]
    for name, found in (
        ("trials", trials["made"]), ("queued", trials["queued"]), ("leased", trials["leased"]), ("waiting", waiting),
        ("step", steps["n"]), ("upto_seq", steps["upto_seq"]), ("seq", log["n"]),
    ):  # fmt: skip
        if study[name] != found:
            yield f"{name} is {study[name]}, its rows say {found}"
    if trials["newest"] != trials["made"]:
        yield f"the newest of {trials['made']} trials is t_{trials['newest']}"
    # Earlier releases counted neither what came late nor attempts that failed.
    fewest, most = max(0, trials["used"] - trials["taken"]), trials["used"] + trials["late"]
    most += (trials["failures"] or 0) + one("SELECT count(*) FROM late WHERE study = :id")[0]
    if not resolved.federated and not fewest <= study["used"] <= most:
        yield f"used is {study['used']}, its rows say {fewest}" + (f" to {most}" if most > fewest else "")
    if steps["n"] and (steps["first"], steps["last"]) != (0, steps["n"] - 1):
        yield f"{steps['n']} step records are numbered {steps['first']} to {steps['last']}"
    if steps["backward"]:
        yield f"{steps['backward']} step records begin before the one before them ended"
    if (log["different"], log["last"]) != (log["n"], log["n"]):
        yield f"the log has {log['n']} entries with {log['different']} numbers up to {log['last']}"
    yield from _best(connection, study, maximize=resolved.spec.direction == "maximize")
    for what, sql in STRAY_ROWS.items():
        if n := one(sql)[0]:
            yield f"{n} {what}"


def _best(connection: sqlite3.Connection, study: dict[str, Any], *, maximize: bool) -> Iterator[str]:
    """Faults of the best trial in the row of a study."""
    order = "DESC" if maximize else "ASC"
    best = connection.execute(f"{BEST} ORDER BY value {order}, seq LIMIT 1", (study["id"],)).fetchone()
    known = (study["best_trial"], study["best_value"])
    if best is None:
        if known != (None, None):
            yield f"the best trial is t_{known[0]} with {known[1]}, and none has a value"
        return
    named = connection.execute(f"{BEST} AND number = ?2", (study["id"], known[0])).fetchone()
    if known[1] != best["value"] or named is None or named["value"] != best["value"]:
        yield f"the best trial is t_{known[0]} with {known[1]}, its rows say t_{best['number']} with {best['value']}"


# Upgrading and copying ------------------------------------------------------------------------------------------------


def upgrade(path_or_url: str | Path) -> list[str]:
    """Bring a database to the schema of this release; returns the steps taken. A crash leaves the old schema.

    Raises
    ------
    StoreUnavailable
        If a server is using it, or a later release wrote it.
    InvalidInput
        If there is no database of ours.
    """
    path = _existing(path_or_url)
    descriptor = lock(path)
    try:
        return migrations.upgrade(path)
    finally:
        os.close(descriptor)


def backup(path_or_url: str | Path, target: str | Path) -> Health:
    """Copy a database as of one moment, while a server may be writing; returns the check of the copy.

    The copy gets its name once it is complete and on the disk, even if the check finds faults that the original shares.

    Parameters
    ----------
    target : a file that does not exist.

    Raises
    ------
    InvalidInput
        If there is no database of ours, or the target exists, or its folder does not.
    StoreUnavailable
        If the database cannot be read, or the copy cannot be written.
    """
    path, target = _existing(path_or_url), Path(target).absolute()
    if target.exists():
        raise InvalidInput(f"{target} exists, and a backup replaces nothing", hint="name a new file")
    if not target.parent.is_dir():
        raise InvalidInput(f"there is no folder {target.parent} to keep {target.name} in", hint="make it first")
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        with closing(_reader(path)) as source, closing(sqlite3.connect(draft)) as copy:
            source.backup(copy)  # in one piece: writers of a WAL do not disturb it, and are not disturbed
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, with nothing beside it
        health = check(draft)
        _publish(draft, target)
    except (OSError, sqlite3.Error) as error:
        hint = "is there room on the disk, and does the folder belong to you?"
        raise StoreUnavailable(f"{path} could not be copied to {target}: {error}", hint=hint) from error
    finally:
        draft.unlink(missing_ok=True)
    return Health(target, health.schema, health.faults, health.studies)


def _publish(draft: Path, target: Path) -> None:
    """Give a file its name, if that is free, once its content is on the disk."""
    _sync(draft)
    os.link(draft, target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _existing(path_or_url: str | Path) -> Path:
    path = database_path(path_or_url)
    if not path.is_file():
        raise InvalidInput(f"there is no file {path}", hint="name the database that `blackbox serve` uses")
    return path


def _reader(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    connection.execute("PRAGMA query_only = ON")
    return connection

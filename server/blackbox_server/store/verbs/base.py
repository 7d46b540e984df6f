"""Statements made from row types, and the connection that runs them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any

from blackbox.errors import Conflict, NonFiniteValue, StudyNotFound

# Statements -----------------------------------------------------------------------------------------------------------


def names(row: type) -> list[str]:
    return [field.name for field in fields(row)]


def columns(row: type, table: str = "") -> str:
    return ", ".join(table + name for name in names(row))


def insert(table: str, row: type) -> str:
    marks = ", ".join("?" * len(fields(row)))
    return f"INSERT INTO {table} ({columns(row)}) VALUES ({marks})"


def upsert(table: str, row: type, key: str) -> str:
    changed = (f"{name} = excluded.{name}" for name in names(row) if name not in key.split(", "))
    return f"{insert(table, row)} ON CONFLICT ({key}) DO UPDATE SET {', '.join(changed)}"


def update(table: str, row: type, key: Sequence[str], fixed: Sequence[str]) -> tuple[str, Callable[[Any], Any]]:
    """An UPDATE of one row by its key, and what takes its arguments from a row; `fixed` fields are not assigned."""
    changed = [name for name in names(row) if name not in (*key, *fixed)]
    sets, where = (", ".join(f"{n} = ?" for n in changed), " AND ".join(f"{n} = ?" for n in key))
    return f"UPDATE {table} SET {sets} WHERE {where}", attrgetter(*changed, *key)


def arguments(row: type) -> Callable[[Any], Any]:
    return attrgetter(*names(row))


# Rows -----------------------------------------------------------------------------------------------------------------


def no_nan(*numbers: float | None) -> None:
    """Refuse NaN, which SQLite would silently store as NULL."""
    for number in numbers:
        if number != number:
            raise NonFiniteValue(
                "a number to be stored is NaN", hint="a result without a value is stored as None, with its state"
            )


def refused(error: sqlite3.IntegrityError, study: str, what: str) -> Exception:
    """What a refused row means to the caller. A CHECK that fails is a bug above, and is shown as it is."""
    if error.sqlite_errorname in ("SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_UNIQUE"):
        return Conflict(what)
    if error.sqlite_errorname == "SQLITE_CONSTRAINT_FOREIGNKEY":
        return StudyNotFound(f"there is no study {study}")
    return error


class Verbs:
    """Base of the row verbs: a connection, inside a transaction that is the caller's."""

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
            raise refused(error, study, what) from error

"""Statements built from row types, and the base of the classes that run them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any

from blackbox.errors import Conflict, NonFiniteValue, StudyNotFound

# Statements -----------------------------------------------------------------------------------------------------------


def names(row: type) -> list[str]:
    """The columns of a row type, in the order of its fields."""
    return [field.name for field in fields(row)]


def columns(row: type, table: str = "") -> str:
    """The columns for a SELECT, each behind the prefix `table`."""
    return ", ".join(table + name for name in names(row))


def insert(table: str, row: type) -> str:
    """An INSERT of one row."""
    marks = ", ".join("?" * len(fields(row)))
    return f"INSERT INTO {table} ({columns(row)}) VALUES ({marks})"


def upsert(table: str, row: type, key: str) -> str:
    """An INSERT that replaces the row of the same key, a list of columns with commas."""
    changed = (f"{name} = excluded.{name}" for name in names(row) if name not in key.split(", "))
    return f"{insert(table, row)} ON CONFLICT ({key}) DO UPDATE SET {', '.join(changed)}"


def update(table: str, row: type, key: Sequence[str], fixed: Sequence[str]) -> tuple[str, Callable[[Any], Any]]:
    """An UPDATE of one row by its key, and the getter of its arguments; `fixed` columns are not assigned."""
    changed = [name for name in names(row) if name not in (*key, *fixed)]
    sets, where = (", ".join(f"{n} = ?" for n in changed), " AND ".join(f"{n} = ?" for n in key))
    return f"UPDATE {table} SET {sets} WHERE {where}", attrgetter(*changed, *key)


def arguments(row: type) -> Callable[[Any], Any]:
    """The getter of the arguments of an INSERT from a row."""
    return attrgetter(*names(row))


# Rows -----------------------------------------------------------------------------------------------------------------


def no_nan(*numbers: float | None) -> None:
    """Refuse NaN, which SQLite would silently store as NULL.

    Raises
    ------
    NonFiniteValue
    """
    for number in numbers:
        if number != number:
            raise NonFiniteValue(
                "a number to be stored is NaN", hint="a result without a value is stored as None, with its state"
            )


def refused(error: sqlite3.IntegrityError, study: str, what: str) -> Exception:
    """The error for a row that a constraint refused. A failed CHECK is a bug of the caller and stays what it is."""
    if error.sqlite_errorname in ("SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_UNIQUE"):
        return Conflict(what)
    if error.sqlite_errorname == "SQLITE_CONSTRAINT_FOREIGNKEY":
        return StudyNotFound(f"there is no study {study}")
    return error


class Verbs:
    """Base of the row verbs: a connection inside a transaction that the caller has begun."""

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
                if self.connection.in_transaction:  # a failing disk may have ended the transaction
                    self._execute("ROLLBACK TO rows")
                    self._execute("RELEASE rows")
                raise
            self._execute("RELEASE rows")
        except sqlite3.IntegrityError as error:
            raise refused(error, study, what) from error

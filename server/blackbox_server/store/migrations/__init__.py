"""Brings a database to the schema of this code. One file in `versions/` per change; old ones are never edited.

A new one is written by hand from `script.py.mako`, describes its change in the docstring, and moves `HEAD`.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from blackbox.errors import InvalidInput, StoreUnavailable

HEAD = "0005"
"""The revision that `tables` describes. A test holds it against `versions/`."""


def upgrade(path: Path) -> list[str]:
    """Bring the SQLite database at `path` to `HEAD`; a missing or empty file becomes an empty store.

    Returns what was done, a line for each step. The caller holds the store's lock. All steps run in one transaction, so
    a crash leaves the old schema.

    Raises
    ------
    StoreUnavailable
        If a newer version of this code wrote the database.
    InvalidInput
        If the file is not a database of ours.
    """
    found = revision(path)
    if found == HEAD:  # the usual case, spared the half second that importing alembic takes
        return []

    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from sqlalchemy import URL, NullPool, create_engine, event

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    scripts = list(ScriptDirectory.from_config(config).walk_revisions())
    known = [script.revision for script in reversed(scripts)]
    if found is not None and found not in known:
        raise StoreUnavailable(
            f"{path} has schema {found}, and this version knows schemas up to {HEAD}",
            hint="it was written by a newer blackbox-zoo: upgrade this one, or open another database",
        )
    engine = create_engine(URL.create("sqlite", database=str(path)), poolclass=NullPool)
    # Python's driver opens no transaction for DDL; with its own handling off, ours covers the whole upgrade.
    event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    try:
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        engine.dispose()
    steps = known if found is None else known[known.index(found) + 1 :]
    return [f"{script.revision}: {script.doc}" for script in reversed(scripts) if script.revision in steps]


def revision(path: Path) -> str | None:
    """The schema revision of a database; None for a new one.

    Raises
    ------
    StoreUnavailable
        If it cannot be read.
    InvalidInput
        If it is not a database of ours.
    """
    with closing(sqlite3.connect(path)) as connection:
        try:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "alembic_version" in tables:
                row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
                return str(row[0]) if row else None
        except sqlite3.OperationalError as error:
            raise StoreUnavailable(f"{path} cannot be read: {error}") from error
        except sqlite3.DatabaseError as error:
            raise InvalidInput(f"{path} is not a database: {error}", hint="name a new file") from error
    if tables:
        raise InvalidInput(
            f"{path} is a database of something else: it has the tables {', '.join(sorted(tables)[:5])}",
            hint="name a new file",
        )
    return None

"""The store on SQLite: one connection that writes, transactions that many works share, connections that read.

`write` is a transaction of its own. A caller with many works at hand (`embedded`) begins a `Group`: each work runs
inside a savepoint of its own, so that one that fails rolls back alone, and one fsync pays for all of them. Readers have
connections of their own, see the last commit, and wait for nobody (WAL). What the works call is in `verbs`.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from blackbox.errors import InvalidInput, StoreUnavailable
from blackbox.study.rows import Tx
from blackbox_server.store import migrations
from blackbox_server.store.verbs import SqlTx

T = TypeVar("T")

BUSY_SECONDS = 5.0
"""How long to wait for another program that holds the database, such as a backup ..."""
RETRY_SECONDS = 0.005
"""... and how often to try meanwhile."""
CHECKPOINT_PAGES = 4000
"""Pages of WAL (16 MB) after which a commit moves them into the database. A hot page is moved once per checkpoint, not
once per commit, so more is cheaper, until readers feel it."""

SYNCHRONOUS = {"OFF": 0, "NORMAL": 1, "FULL": 2, "EXTRA": 3}


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
        If another server uses this database, a newer release wrote it, or it cannot be made durable.
    """

    def __init__(self, path_or_url: str | Path, *, synchronous: str = "FULL") -> None:
        if synchronous.upper() not in SYNCHRONOUS:
            raise InvalidInput(f"synchronous must be one of {', '.join(SYNCHRONOUS)}, got {synchronous!r}")
        self.path = database_path(path_or_url)
        self._synchronous = synchronous.upper()
        self._writing = threading.Lock()
        """Held from BEGIN to the end of a transaction; a commit may release it in another thread."""
        self._working: int | None = None
        """The thread that is running a work at the moment."""
        self._closed = False
        self._connection: sqlite3.Connection | None = None
        self._idle: list[sqlite3.Connection] = []
        """Reading connections that are not in use; a reader takes one for itself."""
        self._lock_file = lock(self.path)
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            migrations.upgrade(self.path)
            self._connection = self._open_writer()
        except BaseException:
            os.close(self._lock_file)
            raise

    def write(self, work: Callable[[Tx], T]) -> T:
        """Run a work in a transaction of its own: durable when this returns, rolled back if it raises.

        Raises
        ------
        StoreUnavailable
            If the database cannot take it. A retry is safe if the work is idempotent: after a failed commit nobody
            knows whether the disk has it.
        RuntimeError
            If a work calls this: it is inside a transaction already, and would wait for itself.
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
        """Begin a transaction as soon as nobody else writes.

        Raises
        ------
        StoreUnavailable
            If another program holds the database for more than `BUSY_SECONDS`, or it cannot be opened.
        """
        until = time.monotonic() + BUSY_SECONDS
        while (group := self.try_begin(time.monotonic() < until)) is None:
            time.sleep(RETRY_SECONDS)
        return group

    def try_begin(self, again: bool = True, *, wait: bool = True) -> Group | None:
        """Begin a transaction now, if possible; see `blackbox.study.rows.Store`."""
        if not self._writing.acquire(blocking=wait):
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
            self._writing.release()
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
            return work(SqlTx(connection))
        except sqlite3.Error as error:
            if _code(error) == sqlite3.SQLITE_READONLY:
                raise RuntimeError("a work given to store.read tried to write; give it to store.write") from error
            if _is_of_database(error):
                raise _unavailable(error) from error
            raise
        finally:
            self._give_back(connection)

    def pragmas(self) -> dict[str, Any]:
        """The settings of the writing connection, as SQLite reports them."""
        return self.write(lambda tx: _pragmas(tx.connection))  # type: ignore[attr-defined]

    def close(self) -> None:
        """Close the database once the open transaction has ended. Later calls are refused."""
        with self._writing:
            if self._closed:
                return
            self._closed = True
            self._close_idle()
            self._drop_connection()  # the last connection moves the WAL into the database
            os.close(self._lock_file)

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

    If the database itself fails, the whole group is rolled back; the connection is not trusted any more, and the next
    group opens another one.
    """

    def __init__(self, store: SqlStore, connection: sqlite3.Connection) -> None:
        self._store = store
        self._connection = connection
        self._tx = SqlTx(connection)
        self._alone = True
        """No other work has written in this transaction yet: one that fails may roll back all of it."""

    def run(self, work: Callable[[Tx], T]) -> tuple[Any, BaseException | None]:
        """Run a work; see `blackbox.study.rows.Group`."""
        self._store._working = threading.get_ident()
        try:
            value, failure = _attempt(self._connection, self._tx, work, savepoint=not self._alone)
        except Exception as error:
            raise self._failed(error) from error
        except BaseException:  # Ctrl-C is no fault of the database
            self._end_badly()
            raise
        finally:
            self._store._working = None
        self._alone = self._alone and failure is not None
        return value, failure

    def commit(self) -> None:
        """Make it durable; see `blackbox.study.rows.Group`."""
        try:
            self._connection.execute("COMMIT")
        except Exception as error:
            raise self._failed(error) from error
        except BaseException:  # Ctrl-C is no fault of the database
            self._end_badly()
            raise
        self._store._writing.release()

    def _failed(self, error: Exception) -> StoreUnavailable:
        self._end_badly()
        return _unavailable(error)

    def _end_badly(self) -> None:
        self._store._drop_connection()
        self._store._writing.release()


def _attempt(
    connection: sqlite3.Connection, tx: SqlTx, work: Callable[[Any], Any], *, savepoint: bool
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
    except BaseException as error:  # also an interrupt: it belongs to the work, and the writer has others to serve
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
    """The primary result code of an error; 0 for errors of the driver itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _is_of_database(error: sqlite3.Error) -> bool:
    """Whether the disk, the file or SQLite failed, rather than the statement."""
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
    """The absolute path of the database that a path or `sqlite:///path` names.

    Raises
    ------
    InvalidInput
        If it is another kind of database, or in memory, or in a folder that does not exist.
    """
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
            hint="use blackbox.study.memory.MemoryStore, or name a file",
        )
    path = Path(text).resolve()  # two names of one file have one lock
    if not path.parent.is_dir():
        raise InvalidInput(f"there is no folder {path.parent} to keep {path.name} in", hint="make it first")
    return path


def lock(path: Path) -> int:
    """Lock the lock file beside a database; returns its descriptor, which holds the lock until it is closed.

    Raises
    ------
    StoreUnavailable
        If another process holds it; names that process.
    """
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

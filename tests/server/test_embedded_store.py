"""The store behind an event loop: the contract of stores, and groups over SQLite and over one that fails on purpose."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from blackbox_server.store import SqlStore, embedded
from blackbox_server.store.embedded import EmbeddedStore
from blackbox_server.store.front import AsyncStore
from contracts.store import S, StoreContract, head, insert, queued

from blackbox.errors import StoreUnavailable
from blackbox.study.memory import MemoryStore
from blackbox.study.rows import Store, StudyRow


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    opened = SqlStore(tmp_path / "blackbox.db")
    opened.write(lambda tx: tx.insert_study(head(), StudyRow(S)))
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups are bounded by their works, not by how slow this machine is just now."""
    monkeypatch.setattr(embedded, "GROUP_SECONDS", 60.0)


class Awaited:
    """A front that another thread awaits, as a store: what the contract of stores asks."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.try_begin = store.try_begin
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._front = self._result(self._made())

    async def _made(self) -> AsyncStore:
        return EmbeddedStore(self._store)

    def _run(self) -> None:
        while not self._loop.is_closed():
            with suppress(KeyboardInterrupt):  # a task that was interrupted hands it to its loop, too
                self._loop.run_forever()
                return

    def _result(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=30)

    def write(self, work: Callable[[Any], Any]) -> Any:
        if threading.current_thread() is self._thread:  # a work that reached for its store
            return self._store.write(work)
        return self._result(self._front.write(work))

    def read(self, work: Callable[[Any], Any]) -> Any:
        return self._result(self._front.read(work, long=True))

    def close(self) -> None:
        self._front.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._store.close()


class TestOverMemory(StoreContract):
    @pytest.fixture
    def store(self) -> Iterator[Store]:
        opened = Awaited(MemoryStore())
        yield opened
        opened.close()


class TestOverSqlite(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        opened = Awaited(SqlStore(tmp_path / "blackbox.db", synchronous="OFF"))
        yield opened
        opened.close()


def commits(store: SqlStore) -> list[str]:
    """Statements from now on, of which the first COMMIT is that of this call."""
    heard: list[str] = []
    store.write(lambda tx: tx.connection.set_trace_callback(heard.append))  # type: ignore[attr-defined]
    return heard


def run(store: Store, body: Callable[[EmbeddedStore], Coroutine[Any, Any, None]], **options: Any) -> None:
    async def main() -> None:
        own = EmbeddedStore(store, **options)
        try:
            await body(own)
        finally:
            own.close()

    asyncio.run(main())


def put(n: int) -> Callable[[Any], None]:
    return lambda tx: insert(tx, queued(n))


def numbers(store: SqlStore) -> list[int]:
    return [trial.number for trial in store.read(lambda tx: tx.open_trials(S))]


def test_writes_of_one_turn_of_the_loop_share_a_commit(store: SqlStore) -> None:
    heard = commits(store)

    async def body(own: EmbeddedStore) -> None:
        await asyncio.gather(*(own.write(put(n)) for n in range(1, 21)))

    run(store, body)
    assert heard.count("COMMIT") == 2
    assert numbers(store) == list(range(1, 21))


class Held:
    """The store with commits that wait until they are let go, and then may fail."""

    def __init__(self, store: SqlStore) -> None:
        self.write = store.write
        self.failing = False
        self.let_go = threading.Event()
        self._store = store

    def try_begin(self, again: bool = True, *, wait: bool = True) -> Any:
        group = self._store.try_begin(again, wait=wait)
        if group is not None:
            commit = group.commit

            def held() -> None:
                assert self.let_go.wait(10)
                if self.failing:
                    group._connection.execute("ROLLBACK")  # COMMIT will find no transaction
                    self.failing = False
                commit()

            group.commit = held  # type: ignore[method-assign]
        return group


def test_what_comes_during_a_commit_becomes_the_next_group(store: SqlStore) -> None:
    heard = commits(store)
    held = Held(store)

    async def body(own: EmbeddedStore) -> None:
        first = asyncio.ensure_future(own.write(put(1)))
        await asyncio.sleep(0.01)
        rest = [asyncio.ensure_future(own.write(put(n))) for n in (2, 3, 4)]
        await asyncio.sleep(0.01)
        assert not first.done()  # run, and not yet durable
        assert numbers(store) == []
        held.let_go.set()
        await asyncio.gather(first, *rest)

    run(held, body)
    assert heard.count("COMMIT") == 3
    assert numbers(store) == [1, 2, 3, 4]


def test_a_work_that_fails_does_not_hurt_its_neighbours(store: SqlStore) -> None:
    def failing(tx: Any) -> None:
        insert(tx, queued(9))
        raise ZeroDivisionError

    async def body(own: EmbeddedStore) -> None:
        told = await asyncio.gather(
            own.write(put(1)), own.write(failing), own.write(put(2)), own.write(failing), return_exceptions=True
        )
        assert [type(each) for each in told] == [type(None), ZeroDivisionError, type(None), ZeroDivisionError]

    run(store, body)
    assert numbers(store) == [1, 2]


def test_a_group_is_bounded_in_works_and_in_time(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, bound, groups in (("GROUP_WORKS", 4, 2), ("GROUP_SECONDS", -1.0, 8)):
        with monkeypatch.context() as patch:
            patch.setattr(embedded, name, bound)
            heard = commits(store)

            async def body(own: EmbeddedStore) -> None:
                await asyncio.gather(*(own.write(lambda tx: None) for _ in range(8)))

            run(store, body)
            assert heard.count("COMMIT") == 1 + groups


def test_a_full_queue_is_an_answer_not_a_wait(store: SqlStore) -> None:
    async def body(own: EmbeddedStore) -> None:
        told = await asyncio.gather(*(own.write(put(n)) for n in (1, 2, 3)), return_exceptions=True)
        assert told[:2] == [None, None]
        assert "2 writes are waiting" in str(told[2])
        await own.write(put(3))

    run(store, body, bound=2)
    assert numbers(store) == [1, 2, 3]


def test_a_caller_that_was_cancelled_before_its_turn_writes_nothing(store: SqlStore) -> None:
    async def body(own: EmbeddedStore) -> None:
        gone, stays = asyncio.ensure_future(own.write(put(1))), asyncio.ensure_future(own.write(put(2)))
        await asyncio.sleep(0)
        gone.cancel()
        await stays
        with pytest.raises(asyncio.CancelledError):
            await gone

    run(store, body)
    assert numbers(store) == [2]


def test_a_long_work_runs_beside_the_loop_in_its_turn(store: SqlStore) -> None:
    threads: list[int] = []
    entered, leave = threading.Event(), threading.Event()

    def long(tx: Any) -> None:
        threads.append(threading.get_ident())
        entered.set()
        assert leave.wait(10)
        insert(tx, queued(2))

    def seen(tx: Any) -> list[int]:
        return [trial.number for trial in tx.open_trials(S)]

    async def body(own: EmbeddedStore) -> None:
        first = asyncio.ensure_future(own.write(put(1)))
        held = asyncio.ensure_future(own.write(long, long=True))
        after = asyncio.ensure_future(own.write(seen))
        await asyncio.to_thread(entered.wait, 10)  # the loop is free meanwhile
        assert first.done()
        leave.set()
        await held
        assert await after == [1, 2]

    run(store, body)
    assert threads != [threading.get_ident()]


def test_a_database_that_fails_fails_the_whole_group_and_the_next_one_is_well(store: SqlStore) -> None:
    def fill_the_disk(tx: Any) -> None:
        tx.connection.execute("PRAGMA max_page_count = 1")
        tx.put_blob(S, "d", 0, bytes(1_000_000))

    async def body(own: EmbeddedStore) -> None:
        told = await asyncio.gather(
            own.write(put(1)), own.write(fill_the_disk), own.write(put(2)), return_exceptions=True
        )
        # The third was not run with the others: it is of the next group.
        assert [type(each) for each in told] == [StoreUnavailable, StoreUnavailable, type(None)]
        assert told[0] is not told[1]
        await own.write(put(1))

    run(store, body)
    assert numbers(store) == [1, 2]


def test_callers_hear_of_a_failed_commit_before_the_next_group_runs(store: SqlStore) -> None:
    """They have to forget what they thought was stored before anybody builds on it."""
    order: list[str] = []
    held = Held(store)
    held.failing = True

    async def caller(own: EmbeddedStore) -> None:
        with pytest.raises(StoreUnavailable):
            await own.write(lambda tx: None)
        order.append("heard")

    async def body(own: EmbeddedStore) -> None:
        failed = [asyncio.ensure_future(caller(own)) for _ in range(3)]
        await asyncio.sleep(0.01)
        after = asyncio.ensure_future(own.write(lambda tx: order.append("next")))
        await asyncio.sleep(0.01)
        assert order == []
        held.let_go.set()
        await asyncio.gather(*failed, after)

    run(held, body)
    assert order == ["heard"] * 3 + ["next"]


def test_a_database_held_by_another_is_waited_for_without_holding_the_loop(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(own: EmbeddedStore) -> None:
        group = store.begin()
        waiting = [asyncio.ensure_future(own.write(put(n))) for n in (1, 2)]
        await asyncio.sleep(0.02)
        assert not any(each.done() for each in waiting)
        group.commit()
        await asyncio.gather(*waiting)
        monkeypatch.setattr(embedded, "BUSY_SECONDS", 0.01)
        other = sqlite3.connect(store.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        told = await asyncio.gather(*(own.write(put(n)) for n in (3, 4)), return_exceptions=True)
        assert [type(each) for each in told] == [StoreUnavailable] * 2
        other.execute("ROLLBACK")
        other.close()
        await own.write(put(3))

    run(store, body)
    assert numbers(store) == [1, 2, 3]

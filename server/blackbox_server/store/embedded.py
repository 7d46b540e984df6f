"""A store of this process behind an event loop: the writes of many requests become one transaction, which one fsync
pays for.

Works run in the loop's own thread, one after the other; only COMMIT, which waits for the disk, is done by a thread.
While it does, the loop reads requests, whose works form the next group. Two threads that ran works and requests side by
side would hand the interpreter to each other all the time, which costs a quarter of what 32 clients get.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from blackbox.errors import StoreUnavailable
from blackbox.study.rows import Group, Store, Tx

T = TypeVar("T")
_Queued = tuple[Callable[[Tx], Any], bool, "asyncio.Future[Any]"]
_Ran = tuple["asyncio.Future[Any]", Any, BaseException | None]

GROUP_WORKS = 256
"""Works in one transaction, at most ..."""
GROUP_SECONDS = 0.005
"""... and how long they may run: whoever came first waits no longer than this for the others."""
BUSY_SECONDS = 5.0
"""How long to wait for another program, or thread, that holds the database."""
RETRY_SECONDS = 0.002


class EmbeddedStore:
    """Queues works for the transactions of a store in this process; see `front.AsyncStore` for what is promised.

    Belongs to the event loop it was made in. The store itself stays open when this closes.

    Parameters
    ----------
    bound : works that may wait before new ones are refused.
    """

    def __init__(self, store: Store, bound: int = 4096) -> None:
        self._store = store
        self._bound = bound
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Queued] = deque()
        self._busy = False
        """A group is under way, or about to begin."""
        self._since = 0.0
        """When the group that is about to begin first found the database held."""
        self._calls: SimpleQueue[tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]] | None]
        self._calls = SimpleQueue()
        threading.Thread(target=self._wait_for_the_disk, name="store-commits", daemon=True).start()

    async def write(self, work: Callable[[Tx], T], long: bool = False) -> T:
        """Run a work in a transaction; returns when it is durable.

        A work whose caller has been cancelled before its turn is not run.

        Parameters
        ----------
        long : run it in the thread, in a transaction of its own.

        Raises
        ------
        StoreUnavailable
            If the database or the queue cannot take it.
        """
        if len(self._queue) >= self._bound:
            raise StoreUnavailable(
                f"{self._bound} writes are waiting for the disk", hint="retry after a second; send results in batches"
            )
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.append((work, long, future))
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._begin)  # not now: what else this turn of the loop brings joins the group
        return await future

    async def read(self, work: Callable[[Tx], T], long: bool = False) -> T:
        """Run a work on what is committed: at once, or beside the event loop where it is long."""
        if long:
            return await asyncio.to_thread(self._store.read, work)
        return self._store.read(work)

    def close(self) -> None:
        """End the thread, after what it has in hand. Nothing may be written after that."""
        self._calls.put(None)

    # One group --------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        while self._queue and self._queue[0][2].done():
            self._queue.popleft()
        if not self._queue:
            self._busy = False
        elif self._queue[0][1]:
            work, _, future = self._queue.popleft()
            self._calls.put((partial(self._store.write, work), partial(self._end_one, future)))
        else:
            self._since = self._since or time.monotonic()
            try:
                group = self._store.try_begin(time.monotonic() - self._since < BUSY_SECONDS, wait=False)
            except Exception as error:  # whoever is queued would wait as long for the same answer
                self._since = 0.0
                waiting = [(future, None, error) for _, _, future in self._queue]
                self._queue.clear()
                self._end(waiting, None, None)
                return
            if group is None:
                self._loop.call_later(RETRY_SECONDS, self._begin)
                return
            self._since = 0.0
            self._run(group)

    def _run(self, group: Group) -> None:
        ran: list[_Ran] = []
        until = time.monotonic() + GROUP_SECONDS
        while self._queue and not self._queue[0][1] and len(ran) < GROUP_WORKS:
            work, _, future = self._queue.popleft()
            if future.done():
                continue
            try:
                ran.append((future, *group.run(work)))
            except StoreUnavailable as error:
                ran.append((future, None, error))
                self._end(ran, None, error)
                return
            if time.monotonic() > until:
                break
        self._calls.put((group.commit, partial(self._end, ran)))

    def _end_one(self, future: asyncio.Future[Any], value: Any, failure: BaseException | None) -> None:
        self._end([(future, value, failure)], None, None)

    def _end(self, ran: Sequence[_Ran], _: Any, error: BaseException | None) -> None:
        """Answer those whose works were run; `error` is the database's, and everybody's."""
        for future, value, failure in ran:
            if future.done():
                continue
            if error is not None:
                future.set_exception(_again(error))
            elif failure is not None:
                future.set_exception(failure)
            else:
                future.set_result(value)
        # After the callers have seen their answers: of what failed, they have to forget what they thought was stored.
        self._loop.call_soon(self._begin)

    def _wait_for_the_disk(self) -> None:
        while (call := self._calls.get()) is not None:
            run, then = call
            value, error = None, None
            try:
                value = run()
            except BaseException as raised:
                error = raised
            with suppress(RuntimeError):  # the loop has ended, and with it who waited
                self._loop.call_soon_threadsafe(then, value, error)


def _again(error: BaseException) -> BaseException:
    """The error for one more caller: an exception that is raised twice collects the tracebacks of both."""
    if isinstance(error, StoreUnavailable):
        other = StoreUnavailable(str(error), hint=error.hint)
        other.__cause__ = error
        return other
    return error

"""A store of this process behind an event loop: group commit, with one transaction and one fsync for many requests.

Works run in the thread of the loop, one after the other; only COMMIT, which waits for the disk, runs in another thread.
Meanwhile the loop reads requests, whose works form the next group. If works and requests ran in two threads, these
would compete for the interpreter lock, which costs 32 clients a quarter of their throughput.
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
"""Most works in one transaction ..."""
GROUP_SECONDS = 0.005
"""... and the seconds they may run: the first one waits no longer than this for the others."""
BUSY_SECONDS = 5.0
"""Seconds to wait for another program, or thread, that holds the database ..."""
RETRY_SECONDS = 0.002
"""... and the interval at which to try."""


class EmbeddedStore:
    """Queues works for the transactions of a store in this process; see `front.AsyncStore` for what is promised.

    It belongs to the event loop in which it was made. The store itself stays open when this closes.

    Parameters
    ----------
    bound : most works that may wait; more are refused.
    """

    def __init__(self, store: Store, bound: int = 4096) -> None:
        self._store = store
        self._bound = bound
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Queued] = deque()
        self._busy = False
        """Whether a group is under way or about to begin."""
        self._since = 0.0
        """When the next group first found the database held by others; 0 if it has not."""
        self._calls: SimpleQueue[tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]] | None]
        self._calls = SimpleQueue()
        threading.Thread(target=self._wait_for_the_disk, name="store-commits", daemon=True).start()

    async def write(self, work: Callable[[Tx], T], long: bool = False) -> T:
        """Run a work in a transaction; returns when it is durable.

        If the caller is cancelled before the work has begun, the work is not run.

        Parameters
        ----------
        long : whether to run it in the other thread, in a transaction of its own.

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
            self._loop.call_soon(self._begin)  # later, so that other works of this iteration of the loop join the group
        return await future

    async def read(self, work: Callable[[Tx], T], long: bool = False) -> T:
        """Run a work on a snapshot of what is committed: at once, or, if it is long, in another thread."""
        if long:
            return await asyncio.to_thread(self._store.read, work)
        return self._store.read(work)

    def close(self) -> None:
        """End the thread after its current commit. Nothing may be written after that."""
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
            except Exception as error:  # all others in the queue would wait as long for the same error
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
        """Resolve the futures of a group; an `error` of the database is that of every one."""
        for future, value, failure in ran:
            if future.done():
                continue
            if error is not None:
                future.set_exception(_again(error))
            elif failure is not None:
                future.set_exception(failure)
            else:
                future.set_result(value)
        # After the callers have seen their answers: if it failed, they first have to drop what they believed stored.
        self._loop.call_soon(self._begin)

    def _wait_for_the_disk(self) -> None:
        while (call := self._calls.get()) is not None:
            run, then = call
            value, error = None, None
            try:
                value = run()
            except BaseException as raised:
                error = raised
            with suppress(RuntimeError):  # the loop has ended, and with it the callers
                self._loop.call_soon_threadsafe(then, value, error)


def _again(error: BaseException) -> BaseException:
    """A copy of the error for one more caller: an exception raised twice would collect the tracebacks of both."""
    if isinstance(error, StoreUnavailable):
        other = StoreUnavailable(str(error), hint=error.hint)
        other.__cause__ = error
        return other
    return error

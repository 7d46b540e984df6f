"""Where algorithm steps run: in the event loop when they are short, else in a few threads.

NumPy lets go of the interpreter in its long loops, so threads serve: a few for steps side by side, and others among
which the update of one large vector is cut by coordinates (`recipes.slices`). Where one machine is not enough, these
parts go to a Ray cluster instead; nothing else of the service knows where they run, and no bit depends on it.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from blackbox.recipes import slices

T = TypeVar("T")


class Computer(Protocol):
    """Runs one work of an algorithm."""

    async def run(self, work: Callable[[], T], seconds: float) -> T:
        """The work's answer.

        Parameters
        ----------
        seconds : how long it is expected to take.
        """
        ...

    def close(self) -> None: ...


class _Waited(threading.local):
    """Seconds that this thread has waited for parts which others computed for it."""

    seconds = 0.0


_waited = _Waited()


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """The work's answer, and the processor time it took: waiting for other threads is not counted, or a busy moment
    would make a short work look long. Waiting for parts of this very work is."""
    _waited.seconds = 0.0
    started = time.thread_time()
    value = work()
    return value, time.thread_time() - started + _waited.seconds


class Slices:
    """An executor for parts of large updates that keeps the time the caller waits for them.

    Parameters
    ----------
    executor : who computes.
    """

    def __init__(self, executor: slices.Executor) -> None:
        self._executor = executor

    def map(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterator[Any]:
        started = time.perf_counter()
        for result in self._executor.map(function, items):
            _waited.seconds += time.perf_counter() - started
            yield result
            started = time.perf_counter()


class Threads:
    """Short works at once, longer ones in a pool of threads, the sums of large vectors in parts.

    Parameters
    ----------
    n_threads : how many steps run at the same time.
    inline_seconds : expected time up to which handing over would cost more than it saves.
    n_slices : threads among which the update of one large vector is cut; 0 takes one per core.
    cluster : computes these parts instead, with as many workers as it says; closed with this.
    """

    def __init__(
        self, n_threads: int, inline_seconds: float, n_slices: int = 1, cluster: slices.Cluster | None = None
    ) -> None:
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="compute")
        self._inline_seconds = inline_seconds
        n_slices = n_slices or len(os.sched_getaffinity(0))
        self._threads = ThreadPoolExecutor(n_slices, thread_name_prefix="slice")
        self._cluster = cluster
        self._n_parts = 2 * (n_slices if cluster is None else cluster.n_workers)
        self._slices = Slices(self._threads if cluster is None else cluster)

    async def run(self, work: Callable[[], T], seconds: float) -> T:
        if seconds < self._inline_seconds:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._in_parts, work)

    def _in_parts(self, work: Callable[[], T]) -> T:
        with slices.using(self._slices, self._n_parts):
            return work()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._cluster is not None:
            self._cluster.close()

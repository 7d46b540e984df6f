"""Runs the steps of algorithms: short ones in the event loop, others in a few threads.

NumPy releases the interpreter lock in its long loops, so threads suffice: one pool runs steps in parallel, another
computes the update of one large vector in slices of coordinates (`recipes.slices`). Where one machine is not enough,
the slices go to a Ray cluster instead; nothing else in the service knows where they run, and no bit depends on it.
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
    """Runs computations of algorithms."""

    @property
    def slicer(self) -> slices.Slicer:
        """Computes the slices of large sums; studies are opened with it."""

    async def run(self, work: Callable[[], T], seconds: float) -> T:
        """Run a function and return its result.

        Parameters
        ----------
        seconds : how long it is expected to take.
        """
        ...

    def close(self) -> None:
        """Stop; what has not begun is dropped."""
        ...


class _Waited(threading.local):
    """Seconds that this thread has waited for slices that other threads computed for it."""

    seconds = 0.0


_waited = _Waited()


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """The result of a function, and the seconds of processor time it took.

    Waiting for other threads is not counted, or a busy machine would make short work look long; waiting for slices of
    this very work is.
    """
    _waited.seconds = 0.0
    started = time.thread_time()
    value = work()
    return value, time.thread_time() - started + _waited.seconds


class Slices:
    """An executor for slices of large updates that records how long the caller waits for them.

    Parameters
    ----------
    executor : computes the slices.
    """

    def __init__(self, executor: slices.Executor) -> None:
        self._executor = executor

    def map(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterator[Any]:
        """The results in the order of the items."""
        started = time.perf_counter()
        for result in self._executor.map(function, items):
            _waited.seconds += time.perf_counter() - started
            yield result
            started = time.perf_counter()


class Threads:
    """Runs short steps in place, longer ones in a pool of threads, and sums of large vectors in slices.

    Parameters
    ----------
    n_threads : most steps that run at the same time.
    inline_seconds : expected time up to which a hand-over to a thread would cost more than it saves.
    n_slices : threads that share the update of one large vector; 0 takes one per core.
    cluster : computes the slices instead, with as many workers as it has; closed along with this.

    Attributes
    ----------
    slicer : hands the slices of large sums to those threads, or to the cluster.
    """

    def __init__(
        self, n_threads: int, inline_seconds: float, n_slices: int = 1, cluster: slices.Cluster | None = None
    ) -> None:
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="compute")
        self._inline_seconds = inline_seconds
        n_slices = n_slices or len(os.sched_getaffinity(0))
        self._threads = ThreadPoolExecutor(n_slices, thread_name_prefix="slice")
        self._cluster = cluster
        n_parts = 2 * (n_slices if cluster is None else cluster.n_workers)
        self.slicer = slices.Slicer(Slices(self._threads if cluster is None else cluster), n_parts)

    async def run(self, work: Callable[[], T], seconds: float) -> T:
        """See `Computer.run`."""
        if seconds < self._inline_seconds:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        """See `Computer.close`."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._cluster is not None:
            self._cluster.close()

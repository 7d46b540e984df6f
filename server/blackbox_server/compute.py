"""Where algorithm steps run: in the event loop when they are short, else in a few threads.

NumPy lets go of the interpreter in its long loops, so threads serve until one machine is not enough. Then another
`Computer` with the same one method takes their place (a Ray cluster, say): works are closures over arrays, and nothing
else of the service knows where they run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

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


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """The work's answer, and the processor time it took: waiting for other threads is not counted, or a busy moment
    would make a short work look long."""
    started = time.thread_time()
    value = work()
    return value, time.thread_time() - started


class Threads:
    """Short works at once, longer ones in a pool of threads.

    Parameters
    ----------
    n_threads : how many steps run at the same time.
    inline_seconds : expected time up to which handing over would cost more than it saves.
    """

    def __init__(self, n_threads: int, inline_seconds: float) -> None:
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="compute")
        self._inline_seconds = inline_seconds

    async def run(self, work: Callable[[], T], seconds: float) -> T:
        if seconds < self._inline_seconds:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

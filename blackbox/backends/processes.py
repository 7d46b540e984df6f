"""Evaluate in processes of this machine.

Each worker has a pipe of its own, so that the death of one is noticed at once and costs exactly the point it was
evaluating; an executor pool would fail every pending call. If evaluations are short, the next points are in the pipe
already when a worker is done. Workers are spawned, never forked: a fork in a process with threads (NumPy has some) can
deadlock.
"""

from __future__ import annotations

import multiprocessing
import os
import selectors
import signal
import time
import traceback
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from blackbox.backends import Done, Objective, WorkerDied, WorkerLost, load
from blackbox.backends.pace import WorkerPace
from blackbox.errors import InvalidInput

_CONTEXT = multiprocessing.get_context("spawn")


AHEAD_SECONDS = 0.004
"""Seconds of work queued in the pipe of a worker while evaluations are short: covers the round trip to the driver and
the driver's own work. At least one point, at most `AHEAD_POINTS`."""
AHEAD_POINTS = 8
IN_PIPE_BYTES = 2**16
"""Bytes that a pipe takes without a reader. More are held back here, or the driver would block on the worker."""


@dataclass(slots=True, eq=False)
class _Worker:
    process: Any
    pipe: Connection
    out: deque[tuple[int, int]] = field(default_factory=deque)
    """(ticket, bytes) of the points sent, in order: the first one is being evaluated."""
    unsent: deque[tuple[int, bytes]] = field(default_factory=deque)
    """(ticket, message) of the points that do not fit into the pipe yet."""
    pace: WorkerPace = field(default_factory=WorkerPace)

    @property
    def load(self) -> int:
        return len(self.out) + len(self.unsent)

    @property
    def vacancies(self) -> int:
        """Number of points that could be queued behind the current one."""
        return 1 + self.pace.within(AHEAD_SECONDS, AHEAD_POINTS) - max(1, self.load) if self.pace.short else 0

    def send(self) -> None:
        """Send as many points as the pipe takes."""
        while self.unsent:
            ticket, message = self.unsent[0]
            if self.out and sum(size for _, size in self.out) + len(message) > IN_PIPE_BYTES:
                return
            self.unsent.popleft()
            if not self.out:
                self.pace.began(1)
            self.out.append((ticket, len(message)))
            with suppress(BrokenPipeError, ConnectionResetError):  # it died: `wait` will read the end of its pipe
                self.pipe.send_bytes(message)


class Processes:
    """A fixed number of worker processes.

    Parameters
    ----------
    objective : a picklable callable (defined in a module, not a lambda), sent to each worker once; or its name as
        "module:function", imported by each worker.
    n_workers : number of processes. Default: the cores that this process may use.

    Raises
    ------
    InvalidInput
        If the objective cannot be pickled, or `n_workers` is not positive.
    """

    def __init__(self, objective: Objective | str, n_workers: int | None = None) -> None:
        n = len(os.sched_getaffinity(0)) if n_workers is None else n_workers
        if n < 1:
            raise InvalidInput(f"n_workers must be at least 1, got {n}")
        self._objective = objective
        self._selector = selectors.DefaultSelector()
        self._workers = [self._start() for _ in range(n)]

    def _start(self) -> _Worker:
        ours, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(target=_serve, args=(theirs, self._objective), daemon=True)
        try:
            process.start()
        except (AttributeError, TypeError) as error:
            raise InvalidInput(
                f"the objective cannot be sent to another process: {error}",
                hint="define it at the top level of a module, or use backend='inline'",
            ) from None
        except Exception as error:
            if type(error).__name__ != "PicklingError":
                raise
            raise InvalidInput(
                f"the objective cannot be sent to another process: {error}",
                hint="define it at the top level of a module, or use backend='inline'",
            ) from None
        theirs.close()
        worker = _Worker(process, ours)
        self._selector.register(ours, selectors.EVENT_READ, worker)
        return worker

    @property
    def free(self) -> int:
        """Number of idle workers."""
        return sum(not worker.load for worker in self._workers)

    @property
    def ahead(self) -> int:
        """Number of calls that could be queued behind others."""
        return sum(max(0, worker.vacancies) for worker in self._workers)

    def submit(self, ticket: int, *arguments: Any) -> None:
        """Give the call to an idle worker, or queue it for the least loaded one."""
        worker = next((worker for worker in self._workers if not worker.load), None) or min(
            self._workers, key=lambda worker: (worker.vacancies <= 0, worker.load)
        )
        worker.unsent.append((ticket, bytes(ForkingPickler.dumps(arguments))))
        worker.send()

    def wait(self) -> list[Done]:
        """Block until a call has finished or a worker has died; [] if nothing was submitted."""
        done: list[Done] = []
        while not done and any(worker.load for worker in self._workers):
            for key, _ in self._selector.select():
                done += self._read(key.data)
        return done

    def _read(self, worker: _Worker) -> list[Done]:
        """The finished call, or the calls of a worker that died."""
        try:
            value, error, seconds = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            return self._replaced(worker)
        ticket, _ = worker.out.popleft()
        worker.pace.took(seconds)
        if worker.out:
            worker.pace.began(1)
        worker.send()
        return [Done(ticket, value, error)]

    def _replaced(self, worker: _Worker) -> list[Done]:
        worker.process.join()
        self._selector.unregister(worker.pipe)
        worker.pipe.close()
        self._workers[self._workers.index(worker)] = self._start()
        said = f"a worker process ended with code {worker.process.exitcode}"
        done = [Done(ticket, error=WorkerDied(said)) for ticket, _ in list(worker.out)[:1]]
        behind = [ticket for ticket, _ in (*list(worker.out)[1:], *worker.unsent)]
        return done + [Done(ticket, error=WorkerLost(said)) for ticket in behind]

    def close(self) -> None:
        """End the workers; unfinished calls are dropped."""
        for worker in self._workers:
            worker.pipe.close()
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()
        self._selector.close()


def _serve(pipe: Connection, objective: Objective | str) -> None:
    """The worker's loop: arguments in, (value, error, seconds) out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it ends us
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        began = time.perf_counter()
        value: Any = None
        raised: BaseException | None = None
        try:
            objective = load(objective)
            value = objective(*arguments)
        except Exception as error:
            error.add_note("in a worker process:\n" + traceback.format_exc())
            raised = error
        seconds = time.perf_counter() - began
        try:
            pipe.send((value, raised, seconds))
        except Exception as error:  # the value or the exception cannot be pickled
            what = raised if raised is not None else value
            unfit = TypeError(f"cannot send {type(what).__name__} back: {error}; {what!r}"[:2000])
            pipe.send((None, unfit, seconds))

"""Evaluate in processes of this machine.

Each worker has a pipe of its own, so that the death of one is noticed at once and costs exactly the point it was
evaluating; an executor pool would fail every pending call. If evaluations are short, the next points are in the pipe
already when a worker is done. Workers are spawned, never forked: a fork in a process with threads (NumPy has some) can
deadlock.

A worker that dies before it has loaded the objective would die of the same cause again: that is an error at once. The
script of the caller is imported by workers only if the objective is defined in it.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import selectors
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from blackbox.backends import Done, Objective, TimedOut, WorkerDied, WorkerLost, load
from blackbox.backends.pace import WorkerPace
from blackbox.backends.raised import Raised
from blackbox.errors import InvalidInput

_CONTEXT = multiprocessing.get_context("spawn")


AHEAD_SECONDS = 0.004
"""Seconds of work queued in the pipe of a worker while evaluations are short: covers the round trip to the driver and
the driver's own work. At least one point, at most `AHEAD_POINTS`."""
AHEAD_POINTS = 8
IN_PIPE_BYTES = 2**16
"""Bytes that a pipe takes without a reader. More are held back here, or the driver would block on the worker."""
UNGUARDED = 113
"""Exit code of a worker that, importing the caller's script, was asked to start workers itself."""
END_SECONDS = 2.0
"""Seconds that workers get to end after SIGTERM before they are killed."""


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


class _Sent:
    """The objective on its way to a worker. It is unpickled there by `_serve`, which can say what went wrong."""

    def __init__(self, objective: Objective | str) -> None:
        self.objective: Any = objective

    def __getstate__(self) -> bytes:
        return bytes(ForkingPickler.dumps(self.objective))

    def __setstate__(self, pickled: bytes) -> None:
        self.objective = pickled


@dataclass(slots=True, eq=False)
class _Worker:
    process: Any
    pipe: Connection
    out: deque[tuple[int, int]] = field(default_factory=deque)
    """(ticket, bytes) of the points sent, in order: the first one is being evaluated."""
    unsent: deque[tuple[int, bytes]] = field(default_factory=deque)
    """(ticket, message) of the points that do not fit into the pipe yet."""
    pace: WorkerPace = field(default_factory=WorkerPace)
    ready: bool = False
    """Whether it has loaded the objective."""
    began: float = math.inf
    """When the first of `out` began, as far as is known; infinity if nothing is being evaluated."""

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
            self.out.append((ticket, len(message)))
            if len(self.out) == 1:
                self.begin()
            with suppress(BrokenPipeError, ConnectionResetError):  # it died: `wait` will read the end of its pipe
                self.pipe.send_bytes(message)

    def begin(self) -> None:
        """Note that the first of `out`, if there is one, begins now."""
        self.began = time.monotonic() if self.out and self.ready else math.inf
        if self.out:
            self.pace.began(1)


class Processes:
    """A fixed number of worker processes.

    Parameters
    ----------
    objective : a picklable callable (defined in a module, not a lambda), sent to each worker once; or its name as
        "module:function", imported by each worker.
    n_workers : number of processes. Default: the cores that this process may use.
    timeout_seconds : longest evaluation: its process is killed and replaced, and the call is `TimedOut`. Neither the
        start of a process counts nor the import of the objective. None: no limit.

    Raises
    ------
    InvalidInput
        If the objective cannot be pickled or imported by another process, a number is not positive, or this process
        is itself a worker.
    """

    def __init__(
        self, objective: Objective | str, n_workers: int | None = None, timeout_seconds: float | None = None
    ) -> None:
        n = cores() if n_workers is None else n_workers
        if n < 1:
            raise InvalidInput(f"n_workers must be at least 1, got {n}")
        if timeout_seconds is not None and not timeout_seconds > 0:
            raise InvalidInput(f"timeout_seconds must be above 0, got {timeout_seconds}", hint="None: no limit")
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise SystemExit(UNGUARDED)  # not a traceback per worker: the process that started this one says it once
        if multiprocessing.current_process().daemon:
            raise InvalidInput(
                "a worker process cannot start worker processes of its own",
                hint='if importing the objective\'s module starts them, put that under `if __name__ == "__main__":`; '
                "inside an objective use backend='inline'",
            )
        self._objective = objective
        self._needs_script = _needs_script(objective)
        self._timeout = math.inf if timeout_seconds is None else timeout_seconds
        self._failed_starts = 0
        self._selector = selectors.DefaultSelector()
        self._workers = [self._start() for _ in range(n)]

    def _start(self) -> _Worker:
        ours, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(target=_serve, args=(theirs, _Sent(self._objective)), daemon=True)
        try:
            with _interrupts_held(), _script_hidden(not self._needs_script):
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
        """Block until a call has finished or a worker has died; [] if nothing was submitted.

        Raises
        ------
        Exception
            If the objective cannot be loaded by a worker: what its import raised, or what is known of its end.
        """
        done: list[Done] = []
        while not done and any(worker.load for worker in self._workers):
            until = min(worker.began for worker in self._workers) + self._timeout
            patience = None if until == math.inf else max(0.0, until - time.monotonic())
            for key, _ in self._selector.select(patience):
                done += self._read(key.data)
            if until < math.inf:
                done += self._overdue()
        return done

    def _read(self, worker: _Worker) -> list[Done]:
        """The finished call, or the calls of a worker that died."""
        message: Any = None
        ended = False
        try:
            message = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            ended = True
        if ended:
            return self._died(worker)
        if not worker.ready:
            if message is not None:
                raise message.rebuilt(ForkingPickler.loads, "in a worker process, loading the objective")
            worker.ready = True
            self._failed_starts = 0
            worker.begin()
            return []
        pickled, raised, seconds = message
        ticket, _ = worker.out.popleft()
        worker.pace.took(seconds)
        worker.begin()
        worker.send()
        if raised is not None:
            return [Done(ticket, error=raised.rebuilt(ForkingPickler.loads, "in a worker process"))]
        try:
            return [Done(ticket, ForkingPickler.loads(pickled))]
        except Exception as error:
            unfit = TypeError(f"cannot read what the objective returned: {type(error).__name__}: {error}"[:2000])
            return [Done(ticket, error=unfit)]

    def _overdue(self) -> list[Done]:
        """The calls of workers whose evaluation has taken too long, which are killed."""
        done: list[Done] = []
        for worker in list(self._workers):
            if time.monotonic() < worker.began + self._timeout or worker.pipe.poll():
                continue
            worker.process.kill()
            done += self._replaced(worker, TimedOut(f"no value within {self._timeout:g} s; its process was killed"))
        return done

    def _died(self, worker: _Worker) -> list[Done]:
        worker.process.join()
        code = worker.process.exitcode
        if worker.ready:
            return self._replaced(worker, WorkerDied(f"a worker process ended with code {code}"))
        if code == UNGUARDED:
            raise InvalidInput(
                "the script starts worker processes when it is imported, which they have to do, because the objective "
                "is defined there",
                hint='put the call under `if __name__ == "__main__":`, or the objective into a module of its own',
            )
        self._failed_starts += 1
        if code >= 0 or self._failed_starts > 3:
            raise WorkerDied(
                f"a worker process ended with code {code} before it had loaded the objective; "
                "what it wrote to standard error says why"
            )
        return self._replaced(worker, WorkerLost(f"a worker process ended with code {code} while it started"))

    def _replaced(self, worker: _Worker, why: WorkerDied | WorkerLost | TimedOut) -> list[Done]:
        """The calls of a worker that has ended: the one in its hand because of `why`, the others are lost with it."""
        worker.process.join()
        self._selector.unregister(worker.pipe)
        worker.pipe.close()
        self._workers[self._workers.index(worker)] = self._start()
        done = [Done(ticket, error=why) for ticket, _ in list(worker.out)[:1]]
        behind = [ticket for ticket, _ in (*list(worker.out)[1:], *worker.unsent)]
        return done + [Done(ticket, error=WorkerLost(str(why))) for ticket in behind]

    def close(self) -> None:
        """End the workers, those that hang too; unfinished calls are dropped."""
        for worker in self._workers:
            worker.process.terminate()
            worker.pipe.close()
        until = time.monotonic() + END_SECONDS
        for worker in self._workers:
            worker.process.join(max(0.0, until - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._selector.close()


def _needs_script(objective: Objective | str) -> bool:
    """Whether a worker has to import the caller's script (`__main__`) to get the objective.

    Raises
    ------
    InvalidInput
        If it has to, and there is no file to import.
    """
    try:
        if b"__main__" not in bytes(ForkingPickler.dumps(objective)):
            return False
    except Exception:  # `start` says what is wrong with it
        return True
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    if getattr(main, "__spec__", None) is None and (path is None or not os.path.exists(path)):
        raise InvalidInput(
            f"the objective {getattr(objective, '__name__', type(objective).__name__)!r} is defined in a notebook, a "
            "console or standard input, which worker processes cannot import",
            hint='write it to a file, such as my_job.py, and give it as "my_job:function"; or use backend="ray", which '
            'sends functions themselves, or backend="inline"',
        )
    return True


@contextmanager
def _script_hidden(hidden: bool) -> Iterator[None]:
    """While this lasts a process that starts does not import the caller's script, if `hidden`.

    So a script needs no `if __name__ == "__main__"` for an objective of a module, and may come from standard input.
    """
    main: dict[str, Any] = vars(sys.modules["__main__"])
    kept: dict[str, Any] = {name: main[name] for name in ("__file__", "__spec__") if name in main and hidden}
    for name in kept:
        main[name] = None
    try:
        yield
    finally:
        main.update(kept)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """A process that starts while this lasts is deaf to Ctrl-C; here it arrives afterwards."""
    resource_tracker.ensure_running()  # its own start, with that of the first process, would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection, sent: _Sent) -> None:
    """The worker's loop: arguments in, (pickled value, what was raised, seconds) out, until the pipe closes.

    Its first message is None, or what loading the objective raised.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it ends us
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    dumps, loads = ForkingPickler.dumps, ForkingPickler.loads
    try:
        objective = load(loads(sent.objective))
    except BaseException as error:
        pipe.send(Raised.of(error, dumps, loads))
        return
    pipe.send(None)
    while True:
        try:
            arguments = pipe.recv()
        except (EOFError, OSError):  # the parent has closed its end
            return
        began = time.perf_counter()
        pickled: bytes | None = None
        raised: Raised | None = None
        try:
            value = objective(*arguments)
        except BaseException as error:
            raised = Raised.of(error, dumps, loads)
        seconds = time.perf_counter() - began
        if raised is None:
            try:
                pickled = bytes(dumps(value))
            except Exception as error:
                unfit = TypeError(f"cannot send {type(value).__name__} back: {error}; {value!r}"[:2000])
                raised = Raised.of(unfit, dumps, loads)
        with suppress(OSError):
            pipe.send((pickled, raised, seconds))


def _end_with_parent() -> None:
    """End this process when its parent has ended: an evaluation that hangs does not look at its pipe."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

"""Evaluate in processes of this machine.

Each worker has a pipe of its own, so that the death of one is seen at once and costs exactly the point it had in hand;
an executor pool would fail every call that is out. Workers are spawned, never forked: a fork in a process with threads
(NumPy has some) can deadlock.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from blackbox.backends import Done, Objective, WorkerDied, load
from blackbox.errors import InvalidInput

_CONTEXT = multiprocessing.get_context("spawn")


@dataclass(slots=True)
class _Worker:
    process: Any
    pipe: Connection
    ticket: int | None = None


class Processes:
    """A fixed number of worker processes.

    Parameters
    ----------
    objective : a picklable callable (defined in a module, not a lambda), sent to each worker once; or its name as
        "module:function", imported by each worker.
    n_workers : default: the number of cores this process may use.
    """

    def __init__(self, objective: Objective | str, n_workers: int | None = None) -> None:
        n = len(os.sched_getaffinity(0)) if n_workers is None else n_workers
        if n < 1:
            raise InvalidInput(f"n_workers must be at least 1, got {n}")
        self._objective = objective
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
        return _Worker(process, ours)

    @property
    def free(self) -> int:
        return sum(worker.ticket is None for worker in self._workers)

    def submit(self, ticket: int, *arguments: Any) -> None:
        worker = next(worker for worker in self._workers if worker.ticket is None)
        worker.ticket = ticket
        with suppress(BrokenPipeError, ConnectionResetError):  # it died while idle: `wait` reads the end of its pipe
            worker.pipe.send(arguments)

    def wait(self) -> list[Done]:
        busy = {worker.pipe: worker for worker in self._workers if worker.ticket is not None}
        done = []
        for pipe in wait(list(busy)) if busy else ():
            worker = busy[pipe]  # type: ignore[index]
            ticket = worker.ticket
            assert ticket is not None
            try:
                value, error = worker.pipe.recv()
            except (EOFError, ConnectionResetError):
                worker.process.join()
                done.append(
                    Done(ticket, error=WorkerDied(f"a worker process ended with code {worker.process.exitcode}"))
                )
                worker.pipe.close()
                self._workers[self._workers.index(worker)] = self._start()
                continue
            worker.ticket = None
            done.append(Done(ticket, value, error))
        return done

    def close(self) -> None:
        """End the workers; what they have in hand is dropped."""
        for worker in self._workers:
            worker.pipe.close()
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()


def _serve(pipe: Connection, objective: Objective | str) -> None:
    """The worker's loop: arguments in, (value, error) out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it ends us
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        try:
            objective = load(objective)
            answer: tuple[Any, BaseException | None] = (objective(*arguments), None)
        except Exception as error:
            error.add_note("in a worker process:\n" + traceback.format_exc())
            answer = (None, error)
        try:
            pipe.send(answer)
        except Exception as error:  # the value or the exception cannot be pickled
            what = answer[1] if answer[1] is not None else answer[0]
            pipe.send((None, TypeError(f"cannot send {type(what).__name__} back: {error}; {what!r}"[:2000])))

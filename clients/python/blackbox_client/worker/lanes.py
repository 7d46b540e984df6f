"""Lanes of evaluations beside the caller's thread: a thread each, with a process behind it where asked for."""

from __future__ import annotations

import logging
import multiprocessing
import queue
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from blackbox_client.models import Result
from blackbox_client.worker.evaluation import NonFinite, Objective, evaluate, failure, unusable
from blackbox_client.worker.leases import Held

log = logging.getLogger("blackbox_client.worker")


class Lane(threading.Thread):
    """One evaluation at a time, of what is put into `jobs`.

    Parameters
    ----------
    number : of the lane, for people.
    work : evaluates a trial; None where the evaluation was cut off.
    done : called with what came of each, in this thread.
    child : the process behind the lane, if there is one.
    """

    def __init__(
        self,
        number: int,
        work: Callable[[Held], Result | None],
        done: Callable[[Done], None],
        child: Child | None,
    ) -> None:
        super().__init__(name=f"blackbox-lane-{number}", daemon=True)
        self.jobs: queue.SimpleQueue[Held | None] = queue.SimpleQueue()
        self._work = work
        self._done = done
        self._child = child

    def run(self) -> None:
        """Evaluate one trial after the other, until None comes."""
        while (held := self.jobs.get()) is not None:
            try:
                result = self._work(held)
            except BaseException as error:  # SystemExit of an objective, or a recipe that cannot be rebuilt
                self._done(Done(held, None, error))
            else:
                self._done(Done(held, result))

    def abandon(self) -> None:
        """Stop the evaluation, where it runs in a process."""
        if self._child is not None:
            self._child.kill()

    def close(self) -> None:
        """End the lane after the evaluation under way; one in a process is cut off."""
        self.jobs.put(None)
        if self._child is not None:
            self._child.kill(for_good=True)


@dataclass(frozen=True, slots=True)
class Done:
    """The end of an evaluation: with a result, with an error, or with neither if it was cut off."""

    held: Held
    result: Result | None
    error: BaseException | None = None


class Child:
    """A process that evaluates, started when first needed and again after it died.

    Parameters
    ----------
    objective, non_finite : as in `evaluate`.
    """

    def __init__(self, objective: Objective, non_finite: NonFinite) -> None:
        self._objective = objective
        self._non_finite = non_finite
        self._context = multiprocessing.get_context("spawn")
        self._lock = threading.Lock()
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection[Any, Any] | None = None
        self._busy = False
        self._killed = False
        self._closed = False

    def evaluate(self, params: dict[str, Any]) -> Result | None:
        """The result, or None if the process was killed on purpose."""
        with self._lock:
            if self._closed:
                return None
            self._killed, self._busy = False, True
            if self._pipe is None:
                self._pipe, theirs = self._context.Pipe()
                self._process = self._context.Process(
                    target=_serve, args=(theirs, self._objective, self._non_finite), name="blackbox-evaluation"
                )
                self._process.start()
                theirs.close()
            pipe, process = self._pipe, self._process
        try:
            pipe.send(params)
            answer = pipe.recv()
        except (EOFError, OSError):
            answer = None
        with self._lock:
            self._busy, killed = False, self._killed
            if isinstance(answer, Result) and not killed:
                return answer
            self._pipe = self._process = None
        pipe.close()
        code = None
        if process is not None:
            process.join(5.0)
            code = process.exitcode
        if killed:
            return answer if isinstance(answer, Result) else None
        how = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        message = f"the evaluating process died ({how}); out of memory, a crash in native code, or os._exit"
        log.warning("%s", message)
        return failure("ProcessDied", message, retryable=True)

    def kill(self, *, for_good: bool = False) -> None:
        """End the process; an evaluation under way has no result."""
        with self._lock:
            self._killed = self._killed or self._busy
            self._closed = self._closed or for_good
            process = self._process if self._busy or for_good else None
        if process is not None and process.is_alive():
            process.kill()
            process.join(1.0)


def _serve(pipe: Connection[Any, Any], objective: Objective, non_finite: NonFinite) -> None:
    """The main function of an evaluating process. Signals to the group are for the worker, which lets us finish."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # not SIG_IGN: programs that the objective starts would inherit that
    while True:
        try:
            params = pipe.recv()
        except (EOFError, OSError):  # the worker is gone
            return
        result = evaluate(objective, (params,), non_finite)
        try:
            pipe.send(result)
        except (EOFError, BrokenPipeError, ConnectionError):
            return
        except Exception as error:  # something in it cannot be pickled
            pipe.send(unusable(f"the result cannot leave the evaluating process: {error}"))

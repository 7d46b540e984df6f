"""Lanes of evaluations beside the caller's thread: one thread each, backed by a process if asked for."""

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

from blackbox_client.errors import ObjectiveUnusable
from blackbox_client.models import Result
from blackbox_client.worker.evaluation import NonFinite, Objective, evaluate, failure, unusable
from blackbox_client.worker.leases import Held

log = logging.getLogger("blackbox_client.worker")


class Lane(threading.Thread):
    """A thread that evaluates the trials in its queue `jobs`, one at a time.

    Parameters
    ----------
    number : of the lane, for people.
    work : evaluates a trial; returns None if the evaluation was cut off.
    done : called with the end of each evaluation, in this thread.
    child : the process that evaluates, if there is one.
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
        """Stop the evaluation if it runs in a process."""
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
    """A process that evaluates, started when it is first needed, and again after it has died.

    Parameters
    ----------
    objective, non_finite : as in `evaluate`.
    timeout_seconds : how long an evaluation may take; then the process is killed. None: for ever.
    """

    def __init__(self, objective: Objective, non_finite: NonFinite, timeout_seconds: float | None = None) -> None:
        self._timeout_seconds = timeout_seconds
        self._objective = objective
        self._non_finite = non_finite
        self._context = multiprocessing.get_context("spawn")
        self._lock = threading.Lock()
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection[Any, Any] | None = None
        self._busy = False
        self._killed = False
        self._ended = False
        self._closed = False

    def evaluate(self, params: dict[str, Any]) -> Result | None:
        """Evaluate in the process; returns the result, or None if the process was killed on purpose.

        Raises
        ------
        ObjectiveUnusable
            If the process cannot import the objective: another one could not either.
        """
        answer: Any
        with self._lock:
            if self._closed:
                return None
            self._killed, self._busy, self._ended = False, True, False
            fresh = self._pipe is None
            if self._pipe is None:
                self._pipe, theirs = self._context.Pipe()
                self._process = self._context.Process(
                    target=_serve, args=(theirs, self._non_finite), name="blackbox-evaluation"
                )
                self._process.start()
                theirs.close()
            pipe, process = self._pipe, self._process
        try:
            if fresh:
                self._began(pipe)
            pipe.send(params)
            if pipe.poll(self._timeout_seconds):
                answer = pipe.recv()
            else:
                self._end_process()
                answer = _too_long(self._timeout_seconds)
        except (EOFError, OSError):
            answer = None
        except _Broken as error:
            self._end_process()
            raise ObjectiveUnusable(str(error)) from None
        except Exception as error:  # what was sent back cannot be unpickled; the process is as it was
            answer = unusable(f"the result cannot leave the evaluating process: {type(error).__name__}: {error}")
        with self._lock:
            self._busy, killed = False, self._killed
            if isinstance(answer, Result) and not killed and process is not None and not self._ended:
                return answer
            self._pipe = self._process = None
        pipe.close()
        code = None
        if process is not None:
            process.join(5.0)
            code = process.exitcode
        if isinstance(answer, Result):  # it came just before the process was killed, or is about a timeout
            return answer
        if killed:
            return None
        how = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        message = f"the evaluating process died ({how}); out of memory, a crash in native code, or os._exit"
        log.warning("%s", message)
        return failure("ProcessDied", message, retryable=True)

    def _began(self, pipe: Connection[Any, Any]) -> None:
        """Hand the objective to a new process, and wait until it has imported it, which may take long."""
        pipe.send(self._objective)
        try:
            said = pipe.recv()
        except (EOFError, OSError):
            if self._killed:
                raise
            said = (
                "the evaluating process died before it was ready; what it printed says why. A script that starts a "
                'worker needs if __name__ == "__main__": around it'
            )
        if said:
            raise _Broken(said)

    def _end_process(self) -> None:
        """Kill the process; the next evaluation starts another one."""
        with self._lock:
            self._ended, process = True, self._process
        if process is not None:
            process.kill()

    def kill(self, *, for_good: bool = False) -> None:
        """End the process; an evaluation under way has no result."""
        with self._lock:
            self._killed = self._killed or self._busy
            self._closed = self._closed or for_good
            process = self._process if self._busy or for_good else None
        if process is not None and process.is_alive():
            process.kill()
            process.join(1.0)


class _Broken(Exception):
    """The process cannot evaluate at all."""


def _too_long(seconds: float | None) -> Result:
    log.warning("an evaluation was killed after %s s", seconds)
    message = f"no value after {seconds:g} s (timeout_seconds of the worker); its process was killed"
    return failure("timeout", message, retryable=False)


def _serve(pipe: Connection[Any, Any], non_finite: NonFinite) -> None:
    """The main function of an evaluating process. It ignores signals to its group: the worker lets it finish."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # not SIG_IGN: programs that the objective starts would inherit that
    try:
        objective: Objective = pipe.recv()  # imports its module
    except (EOFError, OSError):
        return
    except BaseException as error:
        pipe.send(f"the objective cannot be imported: {type(error).__name__}: {error}")
        return
    pipe.send("")
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

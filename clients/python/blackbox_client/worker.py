"""The worker: lease, evaluate, tell, until the study ends.

The caller's thread talks to the server; a daemon thread renews leases; evaluations run in the caller's thread
(`executor=None` with one lane), in threads, or in processes of their own. What the threads say to each other goes
through one inbox, so the book-keeping needs no locks but the one around the leases held.

A finished result is never dropped silently: it is told until the retry policy gives up, and then `run` raises
`ResultsUndelivered` with the results in it. A trial that was leased and not evaluated is given back as ``released``.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, Literal, TypeAlias

from blackbox_client import protocol
from blackbox_client.client import StudyHandle
from blackbox_client.errors import (
    AnsweredWithError,
    BadAnswer,
    BlackboxClientError,
    CallInterrupted,
    InvalidRequest,
    NonFiniteValue,
    ResultsUndelivered,
    TooLarge,
)
from blackbox_client.models import AskAnswer, Outcome, Progress, Result, TellAnswer, Trial, released
from blackbox_client.protocol import Encoding, new_key, plain

log = logging.getLogger("blackbox_client.worker")
Objective: TypeAlias = "Callable[..., Any]"
NonFinite = Literal["failed", "infeasible"]

_HEARTBEAT_SECONDS = 60.0  # at least so often while something is leased: heartbeats also carry commands
_LAST_WORDS_SECONDS = 5.0  # how long to keep trying when leaving at once
_MESSAGE_LENGTH = 2000  # characters of an error message that are told
_OF_A_MAPPING = {"value", "behaviour", "sums"}  # these are the fields of a result, not names of values


class Infeasible(Exception):
    """Raise it in an objective: this point cannot be evaluated, and the algorithm shall learn from it."""


# ---- evaluating


def evaluate(objective: Objective, arguments: Sequence[Any], non_finite: NonFinite = "failed") -> Result:
    """Call an objective and say in a `Result` what came of it; never raises an `Exception`.

    Parameters
    ----------
    objective : returns a number, a mapping of named values, or a `Result`; may raise `Infeasible`. A mapping with
        ``"value"``, and perhaps ``"behaviour"`` and ``"sums"``, is the `Result` of those fields, so that an objective
        works here and in ``blackbox.minimize``.
    arguments : what it is called with.
    non_finite : what NaN and infinity mean.

    Returns
    -------
    Result without trial and lease; with its duration as ``cost["seconds"]`` unless the objective names a cost itself.
    """
    start = time.perf_counter()
    try:
        result = _result_of(objective(*arguments), non_finite)
    except Infeasible as error:
        result = Result(status="infeasible", reason=str(error)[:_MESSAGE_LENGTH] or None)
    except Exception as error:
        log.warning("the objective raised %s: %s", type(error).__name__, error, exc_info=True)
        result = _failure(type(error).__name__, str(error), retryable=True)
    if result.cost is None and result.status in ("completed", "stopped", "infeasible"):
        result = replace(result, cost={"seconds": round(time.perf_counter() - start, 6)})
    return result


def _result_of(returned: Any, non_finite: NonFinite) -> Result:
    if isinstance(returned, Result):
        result = returned
    elif hasattr(returned, "keys") and hasattr(returned, "__getitem__"):
        fields = {name: returned[name] for name in returned.keys()}  # noqa: SIM118 -- not every mapping iterates its keys
        result = Result(**fields) if {"value"} <= set(fields) <= _OF_A_MAPPING else Result(values=returned)
    elif isinstance(returned, bool | str | bytes) or returned is None:
        return _unusable(f"the objective returned {returned!r:.100}; return a number, a mapping of values or a Result")
    else:
        result = Result(returned)
    try:
        item = plain(result.item())
    except NonFiniteValue as error:
        if non_finite == "infeasible":
            return Result(status="infeasible", reason=error.detail)
        return _unusable(
            f"the objective returned a value that is not finite: {error.detail} If the point cannot be evaluated raise "
            'Infeasible, or run the worker with non_finite="infeasible"',
            kind="NonFiniteValue",
        )
    except InvalidRequest as error:
        return _unusable(f"the objective returned something that cannot be told: {error}")
    scalar = item.get("value")
    if scalar is not None and (isinstance(scalar, bool) or not isinstance(scalar, int | float)):
        return _unusable(f"the objective returned {scalar!r:.100} as its value; return one number")
    return result


def _unusable(message: str, kind: str = "UnusableResult") -> Result:
    log.warning("%s", message)
    return _failure(kind, message, retryable=False)


def _failure(kind: str, message: str, *, retryable: bool) -> Result:
    error = {"type": kind, "message": message[:_MESSAGE_LENGTH], "retryable": retryable}
    return Result(status="failed", error=error)


class Evaluation:
    """The trial under evaluation, for objectives that want more than its parameters (``with_trial=True``).

    Attributes
    ----------
    trial : the leased trial, with its seed for common random numbers in `trial.eval_seed`, and what the method says
        beside the point, if it says anything, in `trial.payload`.
    """

    def __init__(self, worker: Worker, held: _Held) -> None:
        self.trial = held.trial
        self._worker = worker
        self._held = held

    @property
    def should_stop(self) -> bool:
        """Whether the server wants what there is (return it as a ``stopped`` result), or nothing at all any more."""
        return self._held.directive != "continue"

    def report(self, step: int, value: Any) -> str:
        """Send an interim value.

        Returns
        -------
        ``"continue"``, ``"stop"`` or ``"abandon"``. A report that cannot be sent is logged; the evaluation goes on.
        """
        study = self._worker.study
        try:
            call = protocol.report(study.id, self.trial, step, value)
            answer = study.client.send(call, give_up_seconds=self._held.interval)
        except NonFiniteValue:
            raise
        except BlackboxClientError as error:
            log.warning("a report of %s was not delivered: %s", self.trial.id, error)
            return self._held.directive
        self._held.due = time.monotonic() + self._held.interval
        if answer.directive != "continue":
            self._held.directive = answer.directive
        return answer.directive


@dataclass(eq=False)
class _Held:
    """A trial in our hands, from ask until its result is told."""

    trial: Trial
    interval: float  # seconds between renewals
    due: float  # monotonic time of the next one
    directive: str = "continue"

    @property
    def token(self) -> str | None:
        return self.trial.lease.token if self.trial.lease else None


# ---- slots


class _Slot(threading.Thread):
    """One lane of evaluations beside the caller's thread; with a process of its own behind it where asked for."""

    def __init__(self, worker: Worker, number: int, in_process: bool) -> None:
        super().__init__(name=f"blackbox-slot-{number}", daemon=True)
        self.jobs: queue.SimpleQueue[_Held | None] = queue.SimpleQueue()
        self.worker = worker
        self.child = _Child(worker.objective, worker.non_finite) if in_process else None

    def run(self) -> None:
        while (held := self.jobs.get()) is not None:
            try:
                result = self._evaluate(held)
            except BaseException as error:  # SystemExit of an objective, or a recipe that cannot be rebuilt
                self.worker._inbox.put(_Done(self, held, None, error))
            else:
                self.worker._inbox.put(_Done(self, held, result))

    def _evaluate(self, held: _Held) -> Result | None:
        if self.child is not None:
            return self.child.evaluate(self.worker.study.arguments(held.trial))
        return self.worker._evaluate(held)

    def abandon(self) -> None:
        """Stop the evaluation, where it runs in a process."""
        if self.child is not None:
            self.child.kill()

    def close(self) -> None:
        self.jobs.put(None)
        if self.child is not None:
            self.child.kill(for_good=True)


class _Child:
    """A process that evaluates, started when first needed and again after it died."""

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
        return _failure("ProcessDied", message, retryable=True)

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
            pipe.send(_unusable(f"the result cannot leave the evaluating process: {error}"))


# ---- messages to the caller's thread


@dataclass(frozen=True, slots=True)
class _Done:
    slot: _Slot
    held: _Held
    result: Result | None  # None: killed, or error
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    answer: AskAnswer | None
    error: BaseException | None = None


class _Wake:
    """Look around: something was set."""


class _LeaveNow(BaseException):
    """Thrown by the second signal out of an evaluation or an ask in the caller's thread."""


_Message: TypeAlias = "_Done | _Asked | _Wake"


# ---- the worker


@dataclass(frozen=True, slots=True)
class Summary:
    """What a worker did.

    Attributes
    ----------
    evaluated : evaluations that came to an end, well or not.
    applied, duplicates, late, requeued, rejected, released : what the server made of what was told.
    failed, infeasible : evaluations that ended so.
    abandoned : evaluations the server did not want any more and that were cut off.
    seconds : how long `Worker.run` took.
    ended : why it ended: ``"study"``, ``"stopped"``, ``"drained"`` (by the server) or ``"max_trials"``.
    study : what the server said about the study last.
    """

    evaluated: int = 0
    applied: int = 0
    duplicates: int = 0
    late: int = 0
    requeued: int = 0
    rejected: int = 0
    released: int = 0
    failed: int = 0
    infeasible: int = 0
    abandoned: int = 0
    seconds: float = 0.0
    ended: str = ""
    study: Progress = field(default_factory=Progress)


class Worker:
    """Evaluates trials of a study until it ends.

    Parameters
    ----------
    study : ``client.study("st_...")`` or what `Client.create_study` returned.
    objective : called with a dict of parameters; returns a number, a mapping of named values, or a `Result`; raises
        `Infeasible` for a point that cannot be evaluated. Any other exception is told as a failure to be tried again.
    name : of this worker, unique; None: host name and process id.
    concurrency : evaluations at a time. A function is asked for it about twice a second, from the caller's thread; what
        is under way when the number falls is finished.
    lease_seconds : how long to lease, ``"auto"``, or None: as the study has it.
    encoding : ``"seed"`` for large vectors: they travel as recipes and are rebuilt here.
    executor : ``"thread"``, ``"process"`` (one process per lane: a crash costs one evaluation, and what the server
        abandons is killed; objective, parameters and result must be picklable, and a script needs
        ``if __name__ == "__main__":``), or None: the caller's thread for one lane, threads for several.
    wait_seconds : how long the server may hold back an ask, at most 30.
    non_finite : what a NaN or infinity of the objective is told as.
    resume : begin with what a worker of this name still holds. Only for names that are never used twice at a time.
    with_trial : call ``objective(params, evaluation)``; see `Evaluation`. Not for processes.
    max_trials : leave after so many evaluations.
    handle_signals : drain at the first SIGTERM or SIGINT, release everything and leave at the second. Needs the main
        thread. A worker that waits for a trial leaves when that ask is answered, after at most `wait_seconds`.

    Notes
    -----
    Several evaluations on one machine: have numerical libraries use one thread each (``OMP_NUM_THREADS=1``,
    ``OPENBLAS_NUM_THREADS=1``, ``MKL_NUM_THREADS=1``, set before the first import of NumPy), or they fight for the
    cores.
    """

    def __init__(
        self,
        study: StudyHandle,
        objective: Objective,
        *,
        name: str | None = None,
        concurrency: int | Callable[[], int] = 1,
        lease_seconds: float | Literal["auto"] | None = None,
        encoding: Encoding = "values",
        executor: Literal["thread", "process"] | None = None,
        wait_seconds: float = 20.0,
        non_finite: NonFinite = "failed",
        resume: bool = False,
        with_trial: bool = False,
        max_trials: int | None = None,
        handle_signals: bool = True,
    ) -> None:
        if not callable(concurrency) and concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, got {concurrency}")
        if executor not in (None, "thread", "process"):
            raise ValueError(f'executor is "thread", "process" or None, got {executor!r}')
        if non_finite not in ("failed", "infeasible"):
            raise ValueError(f'non_finite is "failed" or "infeasible", got {non_finite!r}')
        if with_trial and executor == "process":
            raise ValueError('with_trial needs executor="thread" or None: a process cannot report')
        self.study = study
        self.objective = objective
        self.name = name or f"{socket.gethostname()}-{os.getpid()}"
        self.concurrency = concurrency
        self.lease_seconds = lease_seconds
        self.encoding = encoding
        self.executor: Literal["thread", "process"] | None = executor if executor or concurrency == 1 else "thread"
        self.wait_seconds = wait_seconds
        self.non_finite = non_finite
        self.resume = resume
        self.with_trial = with_trial
        self.max_trials = max_trials
        self.handle_signals = handle_signals

        self._inbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._stopping = threading.Event()  # ask for nothing more
        self._leaving = threading.Event()  # and do not wait for anything
        self._ended = ""
        self._held: dict[str, _Held] = {}  # by trial id
        self._lock = threading.Lock()  # around _held
        self._renewing = threading.Event()  # _held has changed
        self._closed = False
        self._n_failed_in_a_row = 0
        self._n_started = 0
        self._progress = Progress()
        self._counts: dict[str, int] = {}
        self._interruptible = False  # the caller's thread may be thrown out of what it does
        self._n_signals = 0

    # ---- from outside

    def stop(self, *, now: bool = False) -> None:
        """Ask the worker to leave, from any thread: finish and tell what it has; with `now` release it instead."""
        self._end("stopped")
        if now:
            self._leaving.set()
        self._inbox.put(_Wake())

    def run(self) -> Summary:
        """Work until the study ends, `stop` is called, or a signal or the server says so. Once per worker.

        Returns
        -------
        Summary

        Raises
        ------
        ResultsUndelivered
            If results could not be told until the retry policy gave up, or the server refused them.
        BlackboxClientError
            If asking failed for good: no such study, no right, no connection. What runs is finished and told first.
        RecipeError
            If a seed-encoded trial cannot be rebuilt here; it is released for another worker.
        """
        start = time.monotonic()
        renewer = threading.Thread(target=self._renew_leases, name="blackbox-leases", daemon=True)
        renewer.start()
        slots: list[_Slot] = []
        try:
            with self._signals():
                if self.executor:
                    self._run_slots(slots)
                else:
                    self._run_here()
        finally:
            for slot in slots:
                slot.close()
            self._closed = True
            self._renewing.set()
            self._release_held()
        summary = Summary(
            **self._counts, seconds=time.monotonic() - start, ended=self._ended or "stopped", study=self._progress
        )
        log.info("worker %s is done: %s", self.name, summary)
        return summary

    @contextmanager
    def _signals(self) -> Iterator[None]:
        if not self.handle_signals or threading.current_thread() is not threading.main_thread():
            yield
            return
        # A handler runs between any two bytecodes of the main thread, perhaps inside an Event, so it only touches a
        # SimpleQueue (reentrant); a thread of its own sets the events.
        relay: queue.SimpleQueue[int | None] = queue.SimpleQueue()

        def on_signal(number: int, frame: FrameType | None) -> None:
            self._n_signals += 1
            relay.put(self._n_signals)
            if self._n_signals >= 2 and self._interruptible:
                raise _LeaveNow

        def pass_on() -> None:
            while (count := relay.get()) is not None:
                log.warning("finishing what is leased; a second signal releases it" if count == 1 else "releasing")
                self.stop(now=count >= 2)

        threading.Thread(target=pass_on, name="blackbox-signals", daemon=True).start()
        before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
            relay.put(None)

    def _end(self, why: str) -> None:
        self._ended = self._ended or why
        self._stopping.set()

    # ---- in the caller's thread

    def _run_here(self) -> None:
        held: _Held | None = None
        try:
            while not self._stopping.is_set() or held:
                if held is None:
                    held = self._take(self._interruptibly(self._ask, self._wanted(1)))
                    continue
                if self._stopping.is_set():
                    return  # what is held is released
                result = self._interruptibly(self._evaluate, held)
                self._finished(result)
                answer = self._tell([self._addressed(result, held)], 0 if self._pause() else self._wanted(1))
                held = self._take(answer.ask)
        except _LeaveNow:
            return

    def _interruptibly(self, work: Callable[..., Any], *arguments: Any) -> Any:
        try:
            if self._leaving.is_set() or self._n_signals >= 2:
                raise _LeaveNow
            self._interruptible = True
            outcome = work(*arguments)
            self._interruptible = False
            return outcome
        finally:
            self._interruptible = False

    def _take(self, answer: AskAnswer | None) -> _Held | None:
        taken = self._hold(answer)
        return taken[0] if taken else None  # we ask for one; what came beyond that stays held and is released

    # ---- in slots

    def _run_slots(self, slots: list[_Slot]) -> None:
        idle: list[_Slot] = []
        busy: dict[str, _Slot] = {}
        asked = 0  # trials that an ask under way may bring
        fault: BaseException | None = None  # ends the worker once what runs is told
        asks: queue.SimpleQueue[tuple[int, float] | None] = queue.SimpleQueue()
        threading.Thread(target=self._asker, args=(asks,), name="blackbox-ask", daemon=True).start()

        def room() -> int:
            """Evaluations that may begin now; there are as many slots as were ever wanted."""
            n = self.concurrency() if callable(self.concurrency) else self.concurrency
            while len(slots) < n:
                slots.append(_Slot(self, len(slots), self.executor == "process"))
                slots[-1].start()
                idle.append(slots[-1])
            return min(len(idle), n - len(busy))

        def start(answer: AskAnswer | None) -> None:
            for held in self._hold(answer):
                if self._stopping.is_set() or not idle:
                    continue  # it is released at the end
                slot = idle.pop()
                busy[held.trial.id] = slot
                slot.jobs.put(held)

        def fail(error: BaseException) -> None:
            nonlocal fault
            if isinstance(error, ResultsUndelivered) and isinstance(fault, ResultsUndelivered):
                fault = fault.with_more(error.results)
            elif fault is None or isinstance(error, ResultsUndelivered):
                fault = error
            self._end("error")

        def deliver(results: list[Result], n_wanted: int) -> None:
            if results:
                try:
                    start(self._tell(results, n_wanted).ask)
                except ResultsUndelivered as error:
                    fail(error)

        try:
            while not self._leaving.is_set():
                self._cut_off(busy)
                if self._stopping.is_set():
                    with self._lock:
                        wanted = [name for name in busy if self._held[name].directive != "abandon"]
                    if not wanted and not asked:
                        break
                elif not asked and (count := self._wanted(room())):
                    asked = count
                    asks.put((count, self._pause()))
                messages: list[_Message] = []
                with suppress(queue.Empty):  # a signal just before the wait does not end it: look up now and then
                    messages.append(self._inbox.get(timeout=0.5))
                while not self._inbox.empty():
                    messages.append(self._inbox.get())
                for message in messages:
                    if isinstance(message, _Done):
                        idle.append(busy.pop(message.held.trial.id))
                    if isinstance(message, _Asked):
                        asked = 0
                        start(message.answer)
                    if not isinstance(message, _Wake) and message.error is not None:
                        fail(message.error)
                results = self._results(messages)
                deliver(results, 0 if not results or self._pause() else self._wanted(room(), asked))
        finally:
            asks.put(None)
        deliver(self._results(self._drained()), 0)
        if fault is not None:
            raise fault

    def _asker(self, asks: queue.SimpleQueue[tuple[int, float] | None]) -> None:
        while (job := asks.get()) is not None:
            count, pause = job
            try:
                self._stopping.wait(pause)
                answer = None if self._stopping.is_set() else self._ask(count)
            except BaseException as error:
                self._inbox.put(_Asked(None, error))
            else:
                self._inbox.put(_Asked(answer))

    def _results(self, messages: Sequence[_Message]) -> list[Result]:
        """What has finished, ready to be told; what was cut off is forgotten, and what could not begin is released."""
        results = []
        for message in messages:
            if not isinstance(message, _Done) or message.error is not None:
                continue
            if message.result is None:
                self._forget(message.held.trial.id)
                self._count("abandoned")
            else:
                self._finished(message.result)
                results.append(self._addressed(message.result, message.held))
        return results

    def _cut_off(self, busy: dict[str, _Slot]) -> None:
        with self._lock:
            abandoned = [name for name in busy if self._held[name].directive == "abandon"]
        for name in abandoned:
            busy[name].abandon()

    # ---- talking to the server

    def _wanted(self, n_idle: int, n_asked: int = 0) -> int:
        """How many trials to ask for, beside those that an ask under way may bring."""
        if self._stopping.is_set():
            return 0
        n_idle -= n_asked
        if self.max_trials is not None:
            n_idle = min(n_idle, self.max_trials - self._n_started - n_asked)
            if self._n_started >= self.max_trials:
                self._end("max_trials")
        return max(n_idle, 0)

    def _pause(self) -> float:
        """Seconds to wait before asking after failures in a row; full jitter."""
        if self._n_failed_in_a_row < 3:
            return 0.0
        policy = self.study.client.retry
        return max(
            1e-3, random.random() * min(policy.max_seconds, policy.base_seconds * 2.0 ** (self._n_failed_in_a_row - 3))
        )

    def _ask(self, count: int) -> AskAnswer | None:
        """Ask once, long-polling; an empty answer comes back after the pause the server asked for."""
        if count <= 0:
            return None
        if self.executor is None and (pause := self._pause()):
            self._stopping.wait(pause)
            if self._stopping.is_set():
                return None
        body = protocol.ask_body(
            count,
            worker=self.name,
            lease_seconds=self.lease_seconds,
            wait_seconds=self.wait_seconds,
            resume=self.resume,
            encoding=self.encoding,
        )
        self.resume = False
        start = time.monotonic()
        try:
            answer = self.study.client.send(protocol.ask(self.study.id, body), interrupt=self._stopping)
        except CallInterrupted:
            return None
        self._observe(answer.study)
        if not answer.trials and not self._stopping.is_set():
            pace = answer.retry_after_seconds
            self._stopping.wait(pace if pace is not None else max(0.0, 1.0 - (time.monotonic() - start)))
        return answer

    def _hold(self, answer: AskAnswer | None) -> list[_Held]:
        """Take note of leased trials, so that they are renewed, and released if they are not evaluated."""
        taken = []
        for trial in answer.trials if answer is not None else ():
            interval = trial.lease.heartbeat_seconds if trial.lease else None
            if interval is None:
                interval = self.lease_seconds / 3 if isinstance(self.lease_seconds, int | float) else 20.0
            taken.append(_Held(trial, interval, time.monotonic() + min(interval, _HEARTBEAT_SECONDS)))
        with self._lock:
            taken = [held for held in taken if held.trial.id not in self._held]
            self._held.update({held.trial.id: held for held in taken})
        self._renewing.set()
        self._n_started += len(taken)
        return taken

    def _forget(self, trial_id: str) -> None:
        with self._lock:
            self._held.pop(trial_id, None)

    def _addressed(self, result: Result, held: _Held) -> Result:
        return replace(result, trial=held.trial.id, lease=held.token)

    def _tell(self, results: list[Result], n_wanted: int) -> TellAnswer:
        """Tell until it is told; a batch that the server refuses is told one by one."""
        body = None
        if n_wanted:
            body = protocol.ask_body(n_wanted, lease_seconds=self.lease_seconds, encoding=self.encoding)
        try:
            answer = self._send_tell(results, body)
        except (InvalidRequest, TooLarge) as error:
            if len(results) == 1:
                raise ResultsUndelivered(results, f"the server refused it: {error}") from error
            refused: list[Result] = []
            for result in results:
                try:
                    answer = self._tell([result], 0)
                except ResultsUndelivered as undelivered:
                    refused += undelivered.results
            if refused:
                raise ResultsUndelivered(refused, f"the server refused: {error}") from error
            return answer
        except BlackboxClientError as error:
            raise ResultsUndelivered(results, str(error)) from error
        self._take_note(results, answer)
        return answer

    def _drained(self) -> list[_Message]:
        """What is left in the inbox when we leave; trials that arrived too late are held, to be released."""
        messages = []
        while not self._inbox.empty():
            messages.append(message := self._inbox.get())
            if isinstance(message, _Asked):
                self._hold(message.answer)
        return messages

    def _send_tell(self, results: Sequence[Result], ask: dict[str, Any] | None) -> TellAnswer:
        client = self.study.client
        key = new_key()
        call = protocol.tell(self.study.id, results, worker=self.name, ask=ask, idempotency_key=key)
        give_up = _LAST_WORDS_SECONDS if self._leaving.is_set() else None
        try:
            return client.send(call, interrupt=None if give_up else self._leaving, give_up_seconds=give_up)
        except CallInterrupted:
            return client.send(call, give_up_seconds=_LAST_WORDS_SECONDS)

    def _take_note(self, results: Sequence[Result], answer: TellAnswer) -> None:
        outcomes = {outcome.trial: outcome for outcome in answer.outcomes}
        for result in results:
            outcome = outcomes.get(result.trial or "")
            self._forget(result.trial or "")
            if outcome is not None:
                self._count_outcome(result, outcome)
        self._observe(answer.study)
        if answer.ask is not None:
            self._observe(answer.ask.study)

    def _count_outcome(self, result: Result, outcome: Outcome) -> None:
        names = {"duplicate": "duplicates", "late_recorded": "late"}
        known = ("applied", "requeued", "released", "rejected")
        name = names.get(outcome.outcome) or (outcome.outcome if outcome.outcome in known else "")
        if name:
            self._count(name)
        problem = outcome.problem
        if problem is None:
            return
        log.error("the result of %s was rejected: %s", outcome.trial, problem)
        if problem.code != "lease-unknown" and result.status != "failed":
            # the trial is still ours in the server's books: say that nothing will come
            message = f"the server rejected the result: {problem.detail}"
            self._n_failed_in_a_row += 1
            note = _failure("RejectedResult", message, retryable=False)
            self._tell([replace(note, trial=result.trial, lease=result.lease)], 0)

    def _observe(self, progress: Progress) -> None:
        if progress.state:
            self._progress = progress
        if progress.ended:
            self._end("study")

    def _release_held(self) -> None:
        """Give back what is leased and not evaluated; a server that cannot be reached lets the leases lapse."""
        with self._lock:
            held = [one for one in self._held.values() if one.directive != "abandon"]
            self._held = {}
        if not held:
            return
        results = [released(one.trial) for one in held]
        try:
            call = protocol.tell(self.study.id, results, worker=self.name)
            answer = self.study.client.send(call, give_up_seconds=_LAST_WORDS_SECONDS)
        except BlackboxClientError as error:
            log.warning("%d trial(s) could not be released and will lapse: %s", len(held), error)
        else:
            self._count("released", sum(outcome.outcome == "released" for outcome in answer.outcomes))

    # ---- evaluations

    def _evaluate(self, held: _Held) -> Result:
        params = self.study.arguments(held.trial)
        arguments = (params, Evaluation(self, held)) if self.with_trial else (params,)
        return evaluate(self.objective, arguments, self.non_finite)

    def _finished(self, result: Result) -> None:
        self._count("evaluated")
        if result.status in ("failed", "infeasible"):
            self._count(result.status)
        self._n_failed_in_a_row = self._n_failed_in_a_row + 1 if result.status == "failed" else 0

    def _count(self, name: str, n: int = 1) -> None:
        self._counts[name] = self._counts.get(name, 0) + n

    # ---- leases

    def _renew_leases(self) -> None:
        """Renew what is held, each lease at a third of its length, all of them when the first is due."""
        while not self._closed:
            with self._lock:
                renewable = [held for held in self._held.values() if held.token and held.directive != "abandon"]
            if not renewable:
                self._renewing.wait()
            elif not self._renewing.wait(max(0.0, min(held.due for held in renewable) - time.monotonic())):
                self._heartbeat(renewable)
            self._renewing.clear()

    def _heartbeat(self, renewable: Sequence[_Held]) -> None:
        by_token = {held.token: held for held in renewable if held.token}
        interval = min(held.interval for held in renewable)
        extend = self.lease_seconds if isinstance(self.lease_seconds, int | float) else None
        call = protocol.heartbeat(self.study.id, by_token, worker=self.name, extend_seconds=extend)
        try:
            answer = self.study.client.send(call, give_up_seconds=interval)
        except (BlackboxClientError, RuntimeError) as error:  # RuntimeError: the client was closed after the run
            if not self._closed:
                log.warning("the leases of %d trial(s) were not renewed: %s", len(by_token), error)
            now = time.monotonic()
            for held in renewable:
                held.due = now + held.interval / 2 if isinstance(error, AnsweredWithError | BadAnswer) else now + 1.0
            return
        now = time.monotonic()
        for held in renewable:
            held.due = now + min(held.interval, _HEARTBEAT_SECONDS)
        for lease in answer.leases:
            found = by_token.get(lease.token)
            if found is not None and lease.directive != "continue":
                log.info("%s of %s", lease.directive, found.trial.id)
                found.directive = lease.directive
        if answer.drain:
            self._end("drained")
        self._inbox.put(_Wake())

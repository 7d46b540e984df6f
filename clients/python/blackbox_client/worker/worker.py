"""The loop: lease, evaluate, tell, until the study ends.

The caller's thread talks to the server; a daemon thread renews leases; evaluations run in the caller's thread
(`executor=None` with one lane), in threads, or in processes of their own. All messages between the threads go through
one inbox, so the bookkeeping needs no locks except the one around the leases.

A finished result is never dropped silently: it is told until the retry policy gives up, and then `run` raises
`ResultsUndelivered` with the results in it. A trial that was leased and not evaluated is told as ``released``.
"""

from __future__ import annotations

import logging
import os
import queue
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from blackbox_client import protocol
from blackbox_client.client import StudyHandle
from blackbox_client.errors import BlackboxClientError, CallInterrupted, InvalidRequest, ResultsUndelivered, TooLarge
from blackbox_client.models import AskAnswer, Outcome, Progress, Result, TellAnswer
from blackbox_client.models.bodies import Ask, Encoding
from blackbox_client.protocol import new_key
from blackbox_client.worker.evaluation import NonFinite, Objective, evaluate, failure
from blackbox_client.worker.lanes import Child, Done, Lane
from blackbox_client.worker.leases import Evaluation, Held, Leases
from blackbox_client.worker.signals import LeaveNow, Signals
from blackbox_client.worker.summary import Summary, Tally

log = logging.getLogger("blackbox_client.worker")

_LAST_WORDS_SECONDS = 5.0  # how long to keep trying when leaving at once


# ---- messages to the caller's thread


@dataclass(frozen=True, slots=True)
class _Asked:
    answer: AskAnswer | None
    error: BaseException | None = None


class _Wake:
    """Wakes the loop, because a flag was set."""


_Message: TypeAlias = "Done | _Asked | _Wake"


# ---- the worker


class Worker:
    """Evaluates trials of a study until it ends.

    Parameters
    ----------
    study : ``client.study("st_...")`` or what `Client.create_study` returned.
    objective : called with a dict of parameters; returns a number, ``{"value": number}`` with perhaps ``"behaviour"``
        and ``"sums"``, or a `Result`; raises `Infeasible` for a point that cannot be evaluated. Any other exception is
        told as a failure to be tried again.
    name : of this worker, unique; None: host name and process id.
    concurrency : evaluations at a time. A function is asked for it about twice a second, from the caller's thread; what
        is under way when the number falls is finished.
    lease_seconds : how long to lease, ``"auto"``, or None: as the study has it.
    encoding : ``"seed"`` for large vectors: they travel as recipes and are rebuilt here.
    executor : ``"thread"``, ``"process"`` (one process per lane: a crash costs one evaluation, and what the server
        abandons is killed; objective, parameters and result must be picklable, and a script needs
        ``if __name__ == "__main__":``), or None: the caller's thread for one lane, threads for several.
    wait_seconds : how long the server may hold back an ask, at most 30.
    non_finite : status with which a NaN or infinity of the objective is told.
    resume : begin with the trials that a worker of this name still holds. Only one worker at a time may use the name.
    with_trial : call ``objective(params, evaluation)``; see `Evaluation`. Not for processes.
    max_trials : leave after so many evaluations.
    timeout_seconds : how long an evaluation may take; then its process is killed and the trial told as failed for good
        (``"timeout"``). Needs processes, which it makes the default. The first import of the objective does not count.
    grace_seconds : how long evaluations may go on after the first signal, before everything is released as at the
        second; None: as long as they take.
    handle_signals : drain at the first SIGTERM or SIGINT, release everything and leave at the second. Needs the main
        thread. A worker that waits for a trial leaves when that ask is answered, after at most `wait_seconds`.

    Notes
    -----
    Several evaluations on one machine: have numerical libraries use one thread each (``OMP_NUM_THREADS=1``,
    ``OPENBLAS_NUM_THREADS=1``, ``MKL_NUM_THREADS=1``, set before the first import of NumPy), or they compete
    for the cores.
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
        timeout_seconds: float | None = None,
        grace_seconds: float | None = 8.0,
        handle_signals: bool = True,
    ) -> None:
        if not callable(concurrency) and concurrency < 1:
            raise ValueError(f"concurrency is at least 1, or a function that says how many, got {concurrency}")
        if executor not in (None, "thread", "process"):
            raise ValueError(f'executor is "thread", "process" or None, got {executor!r}')
        if non_finite not in ("failed", "infeasible"):
            raise ValueError(f'non_finite is "failed" or "infeasible", got {non_finite!r}')
        if with_trial and executor == "process":
            raise ValueError('with_trial needs executor="thread" or None: a process cannot report')
        if timeout_seconds is not None and not timeout_seconds > 0:
            raise ValueError(f"timeout_seconds is positive, or None, got {timeout_seconds}")
        if timeout_seconds is not None and (executor == "thread" or with_trial):
            raise ValueError(
                "timeout_seconds needs processes: a thread cannot be killed; leave out executor, with_trial"
            )
        executor = executor or (None if timeout_seconds is None else "process")
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
        self.timeout_seconds = timeout_seconds
        self.handle_signals = handle_signals

        self._inbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._stopping = threading.Event()  # ask for nothing more
        self._leaving = threading.Event()  # and do not wait for anything
        self._ended = ""
        self._leases = Leases(study, self.name, lease_seconds, lambda: self._inbox.put(_Wake()))
        self._tally = Tally()
        self._n_started = 0
        self._progress = Progress()
        self._signals = Signals(self.stop, grace_seconds)

    # ---- from outside

    def stop(self, *, now: bool = False) -> None:
        """Stop the worker once its current trials are told, or, with `now`, released. Any thread may call this."""
        self._end("stopped")
        if now:
            self._leaving.set()
        self._inbox.put(_Wake())

    def run(self) -> Summary:
        """Work until the study ends, `stop` is called, or a signal says so. Once per worker.

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
        ObjectiveUnusable
            If an evaluating process cannot import the objective; what was leased is released.
        """
        start = time.monotonic()
        self._leases.start()
        lanes: list[Lane] = []
        try:
            with self._signals.heeded() if self.handle_signals else nullcontext():
                if self.executor:
                    self._run_lanes(lanes)
                else:
                    self._run_here()
        finally:
            for lane in lanes:
                lane.close()
            self._tally.released(self._leases.close(_LAST_WORDS_SECONDS))
        summary = self._tally.summary(time.monotonic() - start, self._ended or "stopped", self._progress)
        log.info("worker %s is done: %s", self.name, summary)
        return summary

    def _end(self, why: str) -> None:
        self._ended = self._ended or why
        self._stopping.set()

    # ---- in the caller's thread

    def _run_here(self) -> None:
        held: Held | None = None
        try:
            while not self._stopping.is_set() or held:
                if held is None:
                    held = self._take(self._interruptibly(self._ask, self._wanted(1)))
                    continue
                if self._stopping.is_set():
                    return  # what is held is released
                result = self._interruptibly(self._evaluate, held)
                self._tally.evaluated(result)
                answer = self._tell([self._addressed(result, held)], 0 if self._pause() else self._wanted(1))
                held = self._take(answer.ask)
        except LeaveNow:
            return

    def _interruptibly(self, work: Callable[..., Any], *arguments: Any) -> Any:
        if self._leaving.is_set():
            raise LeaveNow
        return self._signals.interruptibly(work, *arguments)

    def _take(self, answer: AskAnswer | None) -> Held | None:
        taken = self._hold(answer)
        return taken[0] if taken else None  # we ask for one; what came beyond that stays held and is released

    # ---- in lanes

    def _lane(self, number: int) -> Lane:
        if self.executor != "process":
            return Lane(number, self._evaluate, self._inbox.put, None)
        child = Child(self.objective, self.non_finite, self.timeout_seconds)
        return Lane(number, lambda held: child.evaluate(self.study.arguments(held.trial)), self._inbox.put, child)

    def _run_lanes(self, lanes: list[Lane]) -> None:
        idle: list[Lane] = []
        busy: dict[str, Lane] = {}
        asked = 0  # trials that an ask under way may bring
        fault: BaseException | None = None  # ends the worker once what runs is told
        asks: queue.SimpleQueue[tuple[int, float] | None] = queue.SimpleQueue()
        threading.Thread(target=self._asker, args=(asks,), name="blackbox-ask", daemon=True).start()

        def room() -> int:
            """The number of evaluations that may begin now; lanes are only added, never removed."""
            n = self.concurrency() if callable(self.concurrency) else self.concurrency
            while len(lanes) < n:
                lanes.append(self._lane(len(lanes)))
                lanes[-1].start()
                idle.append(lanes[-1])
            return min(len(idle), n - len(busy))

        def start(answer: AskAnswer | None) -> None:
            for held in self._hold(answer):
                if self._stopping.is_set() or not idle:
                    continue  # it is released at the end
                lane = busy[held.trial.id] = idle.pop()
                lane.jobs.put(held)

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
                abandoned = self._leases.abandoned(list(busy))
                for name in abandoned:
                    busy[name].abandon()
                if self._stopping.is_set():
                    if len(abandoned) == len(busy) and not asked:
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
                    if isinstance(message, Done):
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
        """The finished results, ready to be told.

        Trials that were cut off are forgotten; those that could not begin are released.
        """
        results = []
        for message in messages:
            if not isinstance(message, Done) or message.error is not None:
                continue
            if message.result is None:
                self._leases.forget(message.held.trial.id)
                self._tally.abandoned()
            else:
                self._tally.evaluated(message.result)
                results.append(self._addressed(message.result, message.held))
        return results

    # ---- talking to the server

    def _wanted(self, n_idle: int, n_asked: int = 0) -> int:
        """The number of trials to ask for, besides those that an ask under way may bring."""
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
        if (n := self._tally.n_failed_in_a_row) < 3:
            return 0.0
        policy = self.study.client.retry
        return max(1e-3, random.random() * min(policy.max_seconds, policy.base_seconds * 2.0 ** (n - 3)))

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

    def _hold(self, answer: AskAnswer | None) -> list[Held]:
        """Record leased trials, so that they are renewed, and released if they are not evaluated."""
        taken = self._leases.take(answer)
        self._n_started += len(taken)
        return taken

    def _addressed(self, result: Result, held: Held) -> Result:
        return replace(result, trial=held.trial.id, lease=held.token)

    def _tell(self, results: list[Result], n_wanted: int) -> TellAnswer:
        """Tell results until they are accepted; a batch that the server refuses is told one by one."""
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
        """The content of the inbox at the end; trials that arrived too late are held, to be released."""
        messages = []
        while not self._inbox.empty():
            messages.append(message := self._inbox.get())
            if isinstance(message, _Asked):
                self._hold(message.answer)
        return messages

    def _send_tell(self, results: Sequence[Result], ask: Ask | None) -> TellAnswer:
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
            self._leases.forget(result.trial or "")
            if outcome is not None:
                self._count_outcome(result, outcome)
        self._observe(answer.study)
        if answer.ask is not None:
            self._observe(answer.ask.study)

    def _count_outcome(self, result: Result, outcome: Outcome) -> None:
        self._tally.told(outcome)
        problem = outcome.problem
        if problem is None:
            return
        log.error("the result of %s was rejected: %s", outcome.trial, problem)
        if problem.code != "lease-unknown" and result.status != "failed":
            # the trial is still ours in the server's books: say that nothing will come
            message = f"the server rejected the result: {problem.detail}"
            self._tally.n_failed_in_a_row += 1
            note = failure("RejectedResult", message, retryable=False)
            self._tell([replace(note, trial=result.trial, lease=result.lease)], 0)

    def _observe(self, progress: Progress) -> None:
        if progress.state == "PAUSED" != self._progress.state:
            log.warning("study %s is paused: this worker waits until it is resumed; its health says why", self.study.id)
        if progress.state:
            self._progress = progress
        if progress.ended:
            self._end("study")

    # ---- evaluations

    def _evaluate(self, held: Held) -> Result:
        params = self.study.arguments(held.trial)
        arguments = (params, Evaluation(self.study, held)) if self.with_trial else (params,)
        return evaluate(self.objective, arguments, self.non_finite)

"""Evaluating a study on a backend until it ends: `run(study, ...)`."""

from __future__ import annotations

import json
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from blackbox import backends
from blackbox.backends import Backend
from blackbox.backends.raised import ObjectiveExited, words
from blackbox.errors import InvalidInput
from blackbox.minimize.progress import ProgressLine
from blackbox.minimize.result import keep_work, summary
from blackbox.minimize.told import told_by
from blackbox.recipes import pack
from blackbox.study.editing import Study
from blackbox.study.effects import perform
from blackbox.study.leases import Lease
from blackbox.study.rows import PointRow, Store
from blackbox.study.settling import Report

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult  # half a second to import: only when a result is made

WORKER = "local"
"""Name in the log of whoever evaluates in this process."""
LEASE_SECONDS = 1e9
"""Nobody else waits for what is evaluated here; the study may allow less."""
ALL = 1_000_000
"""More members than any method has."""
MESSAGE_LENGTH = 2000
"""Characters of an error message that are told."""
OnError = Literal["raise", "infeasible"]


def run(
    study: Study,
    store: Store,
    backend: Backend,
    *,
    point: Callable[[dict[str, Any]], Any] = dict,
    callback: Callable[[OptimizeResult], object] | None = None,
    clock: Callable[[], float] = time.time,
    worker: str = WORKER,
    with_trial: bool = False,
    on_error: OnError = "raise",
    batches: bool = False,
    deadline: float | None = None,
    progress: ProgressLine | None = None,
) -> OptimizeResult:
    """Evaluate a study on a backend until it ends; see `minimize`.

    Every worker gets the next lane as soon as it is free; a step never waits for its slow evaluations. Calls that the
    backend queues behind others are lanes that the open step needs, never more.

    An exception of the objective is told as a failure and raised; the death of a worker process is told as a failure
    that may be retried, up to the study's `max_attempts`; an evaluation over its time fails for good. The points of a
    lost machine are released, as if they had not been asked; a point under which more than the study's `max_lost`
    workers died fails for good.

    Parameters
    ----------
    point : converts decoded parameters to the argument of the objective.
    clock : the time in seconds since the epoch.
    worker : name of the worker in the log.
    callback, with_trial, on_error : see `minimize`.
    batches : ask what the open step needs at once (of a method with members: every member) when nothing is in hand, and
        tell it together, in the order of the lanes: then nothing depends on which worker is how fast.
    deadline : when to begin no more evaluations, in seconds since the epoch. Those in hand are finished.
    progress : shows how far it is.

    Raises
    ------
    Exception
        The exception of the objective, after it was told as a failure. Whatever ends the run, `KeyboardInterrupt` too,
        has the result so far as its attribute `result`.
    """
    driver = _Driver(study, store, backend, point, callback, clock, worker, with_trial, on_error, batches, deadline)
    try:
        driver.run(progress)
        driver.give_back()
    except BaseException as error:
        with suppress(Exception):  # `error` is the one to tell
            driver.give_back()
        keep_work(error, partial(summary, study, store, point))
        raise
    result = summary(study, store, point)
    if driver.late and result.message == "active":
        result.message = "active: deadline"
    return result


class _Driver:
    """One run: what is in hand, and what is to be told."""

    def __init__(
        self,
        study: Study,
        store: Store,
        backend: Backend,
        point: Callable[[dict[str, Any]], Any],
        callback: Callable[[OptimizeResult], object] | None,
        clock: Callable[[], float],
        worker: str,
        with_trial: bool,
        on_error: OnError,
        batches: bool,
        deadline: float | None,
    ) -> None:
        self._study, self._store, self._backend, self._point = study, store, backend, point
        self._callback, self._clock, self._worker, self._with_trial = callback, clock, worker, with_trial
        self._on_error, self._batches, self._deadline = on_error, batches, deadline
        builds = bool(getattr(backend, "builds", False)) and study.traits.encoding == "recipe"
        self._sources = _Sources(study, store, point) if builds else None
        self._out: dict[int, str] = {}
        """Lease tokens of the trials asked and not told, by number."""
        self._unsent: deque[tuple[Any, ...]] = deque()
        """Calls that wait for a worker: number, point, evaluation."""
        self._held: list[tuple[Report, BaseException | None]] = []
        """Results of a batch that is not complete yet."""
        self._deaths: Counter[int] = Counter()
        self.late = False
        """Whether the deadline has passed."""

    def run(self, progress: ProgressLine | None) -> None:
        """Ask, evaluate and tell until nothing more is granted."""
        while True:
            if self._study.due():
                perform(self._store, self._study.advance(now=self._clock()))
            self.late = self.late or (self._deadline is not None and self._clock() >= self._deadline)
            wanted = self._wanted()
            if wanted:
                self._ask(wanted)
            self._submit()
            if not self._out and not self._held and (wanted or self.late):
                break  # if none was wanted, the workers are about to start again
            finished = self._finished()
            if finished:
                self._tell(finished)
                if progress is not None:
                    progress.show(self._study)
        if progress is not None:
            progress.show(self._study, last=True)

    def _wanted(self) -> int:
        """Number of trials to ask now."""
        if self.late or (self._batches and self._out):
            return 0
        if self._batches:
            return ALL if self._study.kind == "members" else max(1, self._study.short())
        count = self._backend.free
        if ahead := getattr(self._backend, "ahead", 0):
            count += max(0, min(ahead, self._study.short() - count))
        return count

    def _ask(self, count: int) -> None:
        study, now = self._study, self._clock()
        asked = perform(self._store, study.ask(now=now, worker=self._worker, count=count, lease_seconds=LEASE_SECONDS))
        for lease in asked.leases:
            number = lease.trial.number
            self._out[number] = lease.token
            unbuilt = None if self._sources is None else self._sources.unbuilt(number, lease.point)
            more = (evaluation_of(study, lease),) if self._with_trial else ()
            point = unbuilt or self._point(params_of(self._store, study, number, lease.point))
            self._unsent.append((number, point, *more))

    def _submit(self) -> None:
        """Give calls to the backend: all that were asked for it, of a batch as many as it has room for."""
        if self.late and self._unsent:
            self._release([number for number, *_ in self._unsent])
            self._unsent.clear()
        while self._unsent and (not self._batches or self._backend.free or getattr(self._backend, "ahead", 0)):
            self._backend.submit(*self._unsent.popleft())

    def _finished(self) -> list[tuple[Report, BaseException | None]]:
        """Results to be told now; of a batch, all of them in the order of their lanes, or none yet."""
        for done in self._backend.wait():
            self._held.append(self._report(done, self._out.pop(done.ticket)))
        if self._batches and self._out:
            return []
        finished, self._held = self._held, []
        return sorted(finished, key=lambda each: each[0].trial or 0) if self._batches else finished

    def _tell(self, finished: Sequence[tuple[Report, BaseException | None]]) -> None:
        study, store = self._study, self._store
        told = perform(store, study.tell([report for report, _ in finished], now=self._clock(), worker=self._worker))
        errors = [error for _, error in finished] + [outcome.error for outcome in told.outcomes]
        if (error := next((error for error in errors if error is not None), None)) is not None:
            raise error
        if self._callback is not None:
            try:
                stop = bool(self._callback(summary(study, store, self._point)))
            except StopIteration:  # as SciPy has it
                stop = True
            if stop:
                perform(store, study.complete(now=self._clock()))

    def give_back(self) -> None:
        """Tell what is finished, and release what is not."""
        if self._held:
            reports = [report for report, _ in self._held]
            self._held = []
            perform(self._store, self._study.tell(reports, now=self._clock(), worker=self._worker))
        self._release(list(self._out))

    def _release(self, numbers: Sequence[int]) -> None:
        reports = [Report(number, self._out.pop(number), "released") for number in numbers]
        if reports:
            perform(self._store, self._study.tell(reports, now=self._clock(), worker=self._worker))

    def _report(self, done: backends.Done, token: str) -> tuple[Report, BaseException | None]:
        """The report of a finished call, and the exception to raise after it was told."""
        error = done.error
        if isinstance(error, backends.WorkerLost):
            self._deaths[done.ticket] += error.suspect
            if self._deaths[done.ticket] <= self._study.spec.lease.max_lost:
                return Report(done.ticket, token, "released"), None
            died = f"{self._deaths[done.ticket]} workers died of it: {error}"
            return Report(done.ticket, token, "failed", extra=failure("lost", died), retryable=False), None
        if error is None:
            try:
                return report_of(done.ticket, token, done.value), None
            except InvalidInput as unfit:
                error = unfit
        elif self._on_error == "infeasible" and not isinstance(error, _OF_WORKERS):
            facts = failure(name_of(error), words(error))
            reason = f"{name_of(error)}: {words(error)}"[:MESSAGE_LENGTH]
            return Report(done.ticket, token, "infeasible", extra={**facts, "reason": reason}), None
        told = isinstance(error, backends.WorkerDied | backends.TimedOut)
        facts = failure(name_of(error), words(error))
        again = isinstance(error, backends.WorkerDied)
        return Report(done.ticket, token, "failed", extra=facts, retryable=again), None if told else error


_OF_WORKERS = (backends.WorkerDied, backends.TimedOut, ObjectiveExited)


def name_of(error: BaseException) -> str:
    """The name of an exception's type, also of one of another process."""
    return str(getattr(error, "type_name", type(error).__name__))


def failure(name: str, message: str) -> dict[str, Any]:
    """The told fields of a failure."""
    return {"error": {"type": name, "message": message[:MESSAGE_LENGTH]}}


def report_of(trial: int, token: str | None, returned: Any) -> Report:
    """The report of what an objective returned for a trial.

    Raises
    ------
    InvalidInput
        If that cannot be told.
    """
    value, side = told_by(returned)
    if not math.isfinite(value):
        return Report(trial, token, "infeasible", extra={**side, "reason": f"value was {value}"})
    return Report(trial, token, value=value, extra=side)


def params_of(store: Store, study: Study, number: int, stored: Any) -> dict[str, Any]:
    """Decoded parameters of a leased trial."""
    if stored.params is None and stored.recipe is not None:
        return study.params(*perform(store, study.points([number]))[number])
    return study.params(stored)


class _Sources:
    """The points of a recipe study in the form for a backend that builds them."""

    def __init__(self, study: Study, store: Store, point: Callable[[dict[str, Any]], Any]) -> None:
        self._study, self._store, self._point = study, store, point
        self._latest: tuple[str, backends.Source] | None = None

    def unbuilt(self, number: int, stored: PointRow) -> backends.Unbuilt | None:
        """The unbuilt form of a point; None if only the study can build it (no recipe, or one with factors)."""
        recipe = self._study.recipe(stored)
        if recipe is None or any(term.weight is not None for term in recipe.terms):
            return None
        name = f"{self._study.id}/{recipe.base}"
        if self._latest is None or self._latest[0] != name:
            _, blobs = perform(self._store, self._study.points([number]))[number]
            base = None if recipe.base is None else np.frombuffer(blobs[recipe.base], dtype="<f4")
            self._latest = (name, backends.Source(self._study.key, self._study.space, base, self._point))
        return backends.Unbuilt(pack(recipe), *self._latest)


def evaluation_of(study: Study, lease: Lease) -> backends.Evaluation:
    """The second argument of an objective with two."""
    trial, payload = lease.trial, lease.point.payload
    told = None if payload is None else json.loads(payload)
    return backends.Evaluation(backends.Trial(trial.number, trial.step, int(study.eval_seed(trial)), told))

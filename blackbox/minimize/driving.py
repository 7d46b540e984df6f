"""Evaluating a study on a backend until it ends: `run(study, ...)`."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from blackbox import backends
from blackbox.backends import Backend
from blackbox.errors import InvalidInput
from blackbox.minimize.result import summary
from blackbox.minimize.told import told_by
from blackbox.recipes import pack
from blackbox.study.editing import Study
from blackbox.study.effects import perform
from blackbox.study.leases import Lease
from blackbox.study.rows import PointRow, Store
from blackbox.study.settling import Report

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult  # half a second to import: only when a result is made


def run(
    study: Study,
    store: Store,
    backend: Backend,
    *,
    point: Callable[[dict[str, Any]], Any] = dict,
    callback: Callable[[OptimizeResult], object] | None = None,
    clock: Callable[[], float] = time.time,
    worker: str = "local",
    with_trial: bool = False,
) -> OptimizeResult:
    """Evaluate a study on a backend until it ends; see `minimize`.

    Every worker gets the next lane as soon as it is free; a step never waits for its slow evaluations. Calls that the
    backend queues behind others are lanes that the open step needs, never more.

    An exception of the objective is told as a failure and raised; the death of a worker process is told as a failure
    that may be retried, up to the study's `max_attempts`. The points of a lost machine are released, as if they had not
    been asked; a point under which more than the study's `max_lost` workers died fails for good.

    Parameters
    ----------
    point : converts decoded parameters to the argument of the objective.
    clock : the time in seconds since the epoch.
    worker : name of the worker in the log.
    callback, with_trial : see `minimize`.

    Raises
    ------
    Exception
        The exception of the objective, after it was told as a failure.
    """
    out: dict[int, str] = {}
    deaths: Counter[int] = Counter()
    builds = bool(getattr(backend, "builds", False)) and study.traits.encoding == "recipe"
    prepared = _Sources(study, store, point) if builds else None
    try:
        while True:
            if study.due():
                perform(store, study.advance(now=clock()))
            count = backend.free
            if ahead := getattr(backend, "ahead", 0):
                count += max(0, min(ahead, study.short() - count))
            if count:
                asked = perform(store, study.ask(now=clock(), worker=worker, count=count, lease_seconds=86400.0))
                for lease in asked.leases:
                    number = lease.trial.number
                    out[number] = lease.token
                    unbuilt = None if prepared is None else prepared.unbuilt(number, lease.point)
                    more = (_evaluation(study, lease),) if with_trial else ()
                    backend.submit(number, unbuilt or point(_params(store, study, number, lease.point)), *more)
                if not out:
                    break
            reports: list[Report] = []
            error: BaseException | None = None
            for done in backend.wait():
                report, raised = _report(done, out.pop(done.ticket), deaths, study.spec.lease.max_lost)
                reports.append(report)
                error = error or raised
            if reports:
                told = perform(store, study.tell(reports, now=clock(), worker=worker))
                error = error or next((outcome.error for outcome in told.outcomes if outcome.error is not None), None)
            if error is not None:
                raise error
            if callback is not None and reports and callback(summary(study, store, point)):
                perform(store, study.complete(now=clock()))
    finally:
        if out:
            perform(store, study.tell([Report(n, t, "released") for n, t in out.items()], now=clock(), worker=worker))
    return summary(study, store, point)


def _params(store: Store, study: Study, number: int, stored: Any) -> dict[str, Any]:
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


def _evaluation(study: Study, lease: Lease) -> backends.Evaluation:
    trial, payload = lease.trial, lease.point.payload
    told = None if payload is None else json.loads(payload)
    return backends.Evaluation(backends.Trial(trial.number, trial.step, int(study.eval_seed(trial)), told))


def _report(
    done: backends.Done, token: str, deaths: Counter[int], max_lost: int
) -> tuple[Report, BaseException | None]:
    """The report of a finished call, and the exception to raise after it was told."""
    error, value = done.error, math.nan
    if isinstance(error, backends.WorkerLost):
        deaths[done.ticket] += error.suspect
        if deaths[done.ticket] <= max_lost:
            return Report(done.ticket, token, "released"), None
        facts = {"error": {"type": "lost", "message": f"{deaths[done.ticket]} workers died of it: {error}"[:2000]}}
        return Report(done.ticket, token, "failed", extra=facts, retryable=False), None
    side: dict[str, Any] = {}
    if error is None:
        try:
            value, side = told_by(done.value)
        except InvalidInput as unfit:
            error = unfit
    if error is not None:
        died = isinstance(error, backends.WorkerDied)
        facts = {"error": {"type": type(error).__name__, "message": str(error)[:2000]}}
        return Report(done.ticket, token, "failed", extra=facts, retryable=died), None if died else error
    if not math.isfinite(value):
        return Report(done.ticket, token, "infeasible", extra={**side, "reason": f"value was {value}"}), None
    return Report(done.ticket, token, value=value, extra=side), None

"""Optimization in process: `minimize(fn, space, ...)`, and `run(study, ...)` for an existing study."""

from __future__ import annotations

import inspect
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, Never

import numpy as np

from blackbox import backends
from blackbox.backends import Backend
from blackbox.errors import InvalidInput, InvalidSpace, nearest
from blackbox.recipes import pack
from blackbox.recipes.slices import WHOLE, Slicer
from blackbox.space import Parameter, Space
from blackbox.study.creation import create
from blackbox.study.editing import Study
from blackbox.study.effects import perform
from blackbox.study.leases import Lease
from blackbox.study.memory import MemoryStore
from blackbox.study.rows import ACTIVE, COMPLETED, FAILED, PointRow, Store
from blackbox.study.settling import Report
from blackbox.study.side_data import TOLD

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult  # half a second to import: only when a result is made

Bounds = Sequence[tuple[float, float]]


def minimize(
    fn: Callable[..., Any] | str,
    space: Space | Mapping[str, Parameter] | Mapping[str, Mapping[str, Any]] | Bounds,
    algorithm: str = "auto",
    budget: int = 1000,
    *,
    options: Mapping[str, Any] | None = None,
    backend: str | Callable[[Any], Backend] = "inline",
    n_workers: int | None = None,
    seed: int | str = 0,
    direction: str = "minimize",
    target: float | None = None,
    callback: Callable[[OptimizeResult], object] | None = None,
    with_trial: bool = False,
    noise: str = "auto",
    slicer: Slicer = WHOLE,
    **unknown: Never,
) -> OptimizeResult:
    """Minimise (or maximise) a function by its values alone.

    Parameters
    ----------
    fn : the objective, or its name as "module:function". It gets a dict of parameters, or, where `space` is a list of
        bounds or one vector, a (d,) array. It returns a number, or
        ``{"value": number, "behaviour": [...], "sums": {...}}`` with one or both of the latter (see
        `study.side_data`). NaN and infinities mean that the point cannot be evaluated; an exception ends the run.
    space : a `Space`, its parameters by name (objects or their JSON), or a list of (low, high).
    algorithm : the name of a registered algorithm, or `auto`.
    budget : number of evaluations.
    options : options of the algorithm.
    backend : `inline`; `processes` for `n_workers` processes on this machine; `ray` for actors of a Ray cluster that is
        started here; or a function from `fn` to a backend, such as `partial(RayBackend, address="auto", num_gpus=1)`.
        No worker waits for a slow one.
    n_workers : number of processes or actors. None: one per core.
    seed : seed of all randomness. With `inline`, equal arguments give equal results.
    direction : `minimize` or `maximize`.
    target : stop when a value is at least this good.
    callback : called with the result so far after every value; a true return value stops the run.
    with_trial : call ``fn(point, evaluation)``; `evaluation.trial` has number, step, eval_seed and payload.
    noise : whether two values of one point may differ: `none`, `present`, or `auto`, by which one evaluation of 30 and
        more is spent to find out (see `study.recommending`).
    slicer : computes the parts of updates of millions of parameters (`recipes.slices`); by default this thread does.

    Returns
    -------
    OptimizeResult
        x : the point to deploy, as `fn` got it; None without any value. Without noise it is the best point evaluated.
            If two values of a point were seen to differ, the best reading is partly luck: then it is the point with the
            best estimate (see `study.recommending`).
        fun, stderr : its value; under noise its estimated value with the standard error, which is otherwise None.
        x_observed, fun_observed : the point with the best value told, and that value.
        recommended : as `x`, and before the first value what the algorithm proposes.
        proposed : the point that the algorithm itself would deploy, such as the mean of its distribution; it has not
            necessarily been evaluated.
        payload : JSON for an evaluation of `recommended`, such as statistics of observations, or None.
        nfev, nit, success, status, message : evaluations, closed steps, and how it ended.
        algorithm, study, store : the algorithm's name, the `Study` and its store.

    Raises
    ------
    InvalidInput
        (and its subclasses) If the problem cannot be treated; the message names what fits.

    Examples
    --------
    >>> result = minimize(lambda x: (x[0] - 1) ** 2 + x[1] ** 2, [(-5, 5), (-5, 5)], budget=400, target=1e-8)
    >>> result.success, bool(result.fun <= 1e-8)
    (True, True)
    """
    if unknown:
        raise _unknown_arguments(unknown)
    whole = _as_space(space)
    as_array = not isinstance(space, Space | Mapping) or whole.is_single_vector
    store = MemoryStore()
    spec: dict[str, Any] = {
        "name": "minimize",
        "space": whole.to_json(),
        "direction": direction,
        "algorithm": {"name": algorithm, "options": dict(options or {})},
        "budget": {"evaluations": budget},
        "target": target,
        "seed": seed,
        "noise": noise,
        "non_finite": "infeasible",
    }
    head, _ = perform(store, create("local", spec, time.time()))
    study = Study(head, slicer)
    point = _array if as_array else dict
    made = backends.make(backend, fn, n_workers) if isinstance(backend, str) else backend(fn)
    with closing(made) as evaluator:
        return run(study, store, evaluator, point=point, callback=callback, with_trial=with_trial)


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


def summary(study: Study, store: Store, point: Callable[[dict[str, Any]], Any] = dict) -> OptimizeResult:
    """The result of a study so far, in SciPy's form; see `minimize`."""
    from scipy.optimize import OptimizeResult

    row = perform(store, study.row())
    best = perform(store, study.best())
    found, proposed = perform(store, study.recommend()), perform(store, study.propose())
    deployed = None if best is None else point(found.params)
    reason = row.reason or row.state.lower()
    return OptimizeResult(
        x=deployed,
        fun=found.expected,
        stderr=None if found.estimate is None else found.estimate.stderr,
        x_observed=None if best is None else point(best[1]),
        fun_observed=None if best is None else best[0].value,
        nfev=row.used,
        nit=found.step,
        success=row.state in (ACTIVE, COMPLETED) and best is not None,
        status=1 if row.state == FAILED else 0,
        message=f"{row.state.lower()}: {reason}" if row.reason else reason,
        recommended=point(found.params),
        proposed=point(proposed.params),
        payload=found.payload,
        algorithm=study.resolved.algorithm,
        study=study,
        store=store,
    )


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
            value, side = _told(done.value)
        except InvalidInput as unfit:
            error = unfit
    if error is not None:
        died = isinstance(error, backends.WorkerDied)
        facts = {"error": {"type": type(error).__name__, "message": str(error)[:2000]}}
        return Report(done.ticket, token, "failed", extra=facts, retryable=died), None if died else error
    if not math.isfinite(value):
        return Report(done.ticket, token, "infeasible", extra={**side, "reason": f"value was {value}"}), None
    return Report(done.ticket, token, value=value, extra=side), None


_SIDE = {name: told.read for name, told in TOLD.items() if told.read is not None}


def _told(returned: Any) -> tuple[float, dict[str, Any]]:
    """The value that an objective returned, and its other told fields."""
    side: dict[str, Any] = {}
    value = returned
    if isinstance(returned, Mapping):
        if "value" not in returned or set(returned) - {"value", *_SIDE}:
            what = f"got the names {', '.join(map(repr, returned))}"
            names = " and ".join(f'"{name}"' for name in _SIDE)
            raise InvalidInput(f'a mapping returned by the objective has "value", {names}; {what}')
        value = returned["value"]
        side = {name: read(returned[name]) for name, read in _SIDE.items() if returned.get(name) is not None}
    if isinstance(value, np.ndarray | np.generic) and np.ndim(value) == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInput(
            f"the objective must return a number, got {type(value).__name__} ({value!r:.80})",
            hint="return float('nan') for a point that cannot be evaluated",
        )
    return float(value), side


def _unknown_arguments(given: Mapping[str, Any]) -> InvalidInput:
    names = [name for name in inspect.signature(minimize).parameters if name != "unknown"]
    name = next(iter(given))
    hint = f'say algorithm="{given["method"]}"' if name == "method" else nearest(name, names)
    return InvalidInput(f"minimize has no argument {name!r}", hint=hint)


def _as_space(space: Any) -> Space:
    if isinstance(space, Space):
        return space
    if isinstance(space, Mapping):
        if all(isinstance(value, Mapping) for value in space.values()):
            return Space.from_json(dict(space))
        return Space(dict(space))
    try:
        pairs = [(float(low), float(high)) for low, high in space]
    except (TypeError, ValueError):
        raise InvalidSpace(
            f"expected a Space, parameters by name, or a list of (low, high), got {type(space).__name__}",
            hint='for example [(-5, 5), (0, 1)] or {"x": Float(low=-5, high=5)}',
        ) from None
    return Space.from_json(
        {f"x{i}": {"type": "float", "low": low, "high": high} for i, (low, high) in enumerate(pairs)}
    )


def _array(params: dict[str, Any]) -> Any:
    values = list(params.values())
    return np.asarray(values[0] if len(values) == 1 and np.ndim(values[0]) == 1 else values, dtype=np.float64)

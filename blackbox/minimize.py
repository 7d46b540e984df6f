"""The in-process front door: `minimize(fn, space, ...)`, and `run(study, ...)` for a study that exists."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from blackbox import backends
from blackbox.backends import Backend
from blackbox.effects import perform
from blackbox.errors import InvalidInput, InvalidSpace
from blackbox.leases import Lease, Report
from blackbox.side_data import behaviour_of, sums_of
from blackbox.space import Parameter, Space
from blackbox.store import ACTIVE, COMPLETED, FAILED, MemoryStore, Store
from blackbox.study import Asked, Study, create

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult  # half a second to import: only when a result is made

Bounds = Sequence[tuple[float, float]]


def minimize(
    fn: Callable[..., Any],
    space: Space | Mapping[str, Parameter] | Mapping[str, Mapping[str, Any]] | Bounds,
    method: str = "auto",
    budget: int = 1000,
    *,
    options: Mapping[str, Any] | None = None,
    backend: str = "inline",
    n_workers: int | None = None,
    seed: int | str = 0,
    direction: str = "minimize",
    target: float | None = None,
    callback: Callable[[OptimizeResult], object] | None = None,
    with_trial: bool = False,
) -> OptimizeResult:
    """Minimise (or maximise) a function of which only values are known.

    Parameters
    ----------
    fn : the objective. It gets a dict of parameters, or, where `space` is a list of bounds or one vector, a (d,) array.
        It returns a number, or ``{"value": number, "behaviour": [...], "sums": {...}}`` with one or both of the latter
        (see `blackbox.side_data`). NaN and infinities mean that the point cannot be evaluated; an exception ends the
        run.
    space : a `Space`, the parameters of one by name (objects or their JSON), or a list of (low, high).
    method : a registered algorithm, or `auto`.
    budget : most evaluations.
    options : of the algorithm.
    backend : `inline`, or `processes` for `n_workers` processes of this machine. No worker waits for a slow one.
    seed : of all randomness. With `inline`, equal arguments give equal results.
    direction : `minimize` or `maximize`.
    target : stop when a value is at least this good.
    callback : called with the result so far after every told value; a true return value stops the run.
    with_trial : call ``fn(point, evaluation)``; `evaluation.trial` has number, generation, eval_seed and payload.

    Returns
    -------
    OptimizeResult
        x (best evaluated point, as `fn` got it), fun, nfev, nit (closed steps), success, status, message, recommended
        (the point the method would deploy: better than `x` under noise), payload (what its evaluation should get beside
        it, such as statistics of observations, or None), algorithm, study (the `Study`) and store.

    Raises
    ------
    InvalidInput
        (and its subclasses) When the problem cannot be treated; the message names what fits.

    Examples
    --------
    >>> result = minimize(lambda x: (x[0] - 1) ** 2 + x[1] ** 2, [(-5, 5), (-5, 5)], budget=400, target=1e-8)
    >>> result.success, bool(result.fun <= 1e-8)
    (True, True)
    """
    whole = _as_space(space)
    as_array = not isinstance(space, Space | Mapping) or whole.is_single_vector
    store = MemoryStore()
    spec: dict[str, Any] = {
        "name": "minimize",
        "space": whole.to_json(),
        "direction": direction,
        "algorithm": {"name": method, "options": dict(options or {})},
        "budget": {"evaluations": budget},
        "target": target,
        "seed": seed,
        "non_finite": "infeasible",
    }
    head, _ = perform(store, create("local", spec, time.time()))
    study = Study(head)
    point = _array if as_array else dict
    with closing(backends.make(backend, fn, n_workers)) as evaluator:
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

    Every free worker gets the next lane as soon as it is free; a step never waits for its slow evaluations. An
    exception of the objective is told as a failure and raised; the death of a worker process is told as a failure that
    may be retried, up to the study's `max_attempts`.
    """
    out: dict[int, str] = {}
    try:
        while True:
            if study.due():
                perform(store, study.advance(now=clock()))
            if free := backend.free:
                asked: Asked = perform(store, study.ask(now=clock(), worker=worker, count=free, lease_seconds=86400.0))
                for lease in asked.leases:
                    number = lease.trial.number
                    out[number] = lease.token
                    more = (_evaluation(study, lease),) if with_trial else ()
                    backend.submit(number, point(_params(store, study, number, lease.point)), *more)
                if not out:
                    break
            reports: list[Report] = []
            error: BaseException | None = None
            for done in backend.wait():
                report, raised = _report(done, out.pop(done.ticket))
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
    """What a study has found so far, in SciPy's form."""
    from scipy.optimize import OptimizeResult

    row = perform(store, study.row())
    best = perform(store, study.best())
    step, recommended, payload = perform(store, study.recommend())
    reason = row.reason or row.state.lower()
    return OptimizeResult(
        x=None if best is None else point(best[1]),
        fun=None if best is None else best[0].value,
        nfev=row.used,
        nit=step,
        success=row.state in (ACTIVE, COMPLETED) and best is not None,
        status=1 if row.state == FAILED else 0,
        message=f"{row.state.lower()}: {reason}" if row.reason else reason,
        recommended=point(recommended),
        payload=payload,
        algorithm=study.resolved.algorithm,
        study=study,
        store=store,
    )


def _params(store: Store, study: Study, number: int, stored: Any) -> dict[str, Any]:
    if stored.params is None and stored.recipe is not None:
        return study.params(*perform(store, study.points([number]))[number])
    return study.params(stored)


def _evaluation(study: Study, lease: Lease) -> backends.Evaluation:
    trial, payload = lease.trial, lease.point.payload
    told = None if payload is None else json.loads(payload)
    return backends.Evaluation(backends.Trial(trial.number, trial.step, int(study.eval_seed(trial)), told))


def _report(done: backends.Done, token: str) -> tuple[Report, BaseException | None]:
    """What to tell of a finished call, and what to raise after that."""
    error, value = done.error, math.nan
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


_SIDE = {"behaviour": behaviour_of, "sums": sums_of}


def _told(returned: Any) -> tuple[float, dict[str, Any]]:
    """The value that an objective returned, and what it told beside it."""
    side: dict[str, Any] = {}
    value = returned
    if isinstance(returned, Mapping):
        if "value" not in returned or set(returned) - {"value", *_SIDE}:
            what = f"got the names {', '.join(map(repr, returned))}"
            raise InvalidInput(f'a mapping returned by the objective has "value", "behaviour" and "sums"; {what}')
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
            hint='for example [(-5, 5), (0, 1)] or {"x": Real(low=-5, high=5)}',
        ) from None
    return Space.from_json(
        {f"x{i}": {"type": "float", "low": low, "high": high} for i, (low, high) in enumerate(pairs)}
    )


def _array(params: dict[str, Any]) -> Any:
    values = list(params.values())
    return np.asarray(values[0] if len(values) == 1 and np.ndim(values[0]) == 1 else values, dtype=np.float64)

"""The front door: `minimize(fn, space, ...)`."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING, Any, Never, get_args

from blackbox import backends
from blackbox.backends import Backend
from blackbox.backends.processes import cores
from blackbox.backends.vectorized import Vectorized
from blackbox.errors import InvalidInput, nearest
from blackbox.minimize.driving import WORKER, OnError, run
from blackbox.minimize.problem import Bounds, array_of, space_of, spec_of
from blackbox.minimize.progress import ProgressLine
from blackbox.minimize.result import summary, without_store
from blackbox.minimize.stores import StoreLike, opened, study_in
from blackbox.recipes.slices import WHOLE, Slicer
from blackbox.space import Parameter, Space
from blackbox.study.effects import perform
from blackbox.study.rows import ACTIVE

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult  # half a second to import: only when a result is made


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
    vectorized: bool = False,
    repeatable: bool = False,
    on_error: OnError = "raise",
    timeout_seconds: float | None = None,
    deadline_seconds: float | None = None,
    progress: bool = False,
    store: StoreLike = None,
    name: str = "minimize",
    noise: str = "auto",
    slicer: Slicer = WHOLE,
    **unknown: Never,
) -> OptimizeResult:
    """Minimise (or maximise) a function by its values alone.

    Parameters
    ----------
    fn : the objective, or its name as "module:function". It gets a dict of parameters, or, where `space` is a list of
        bounds or one vector, a (d,) array. It returns one real number, of whatever type, or
        ``{"value": number, "behaviour": [...], "sums": {...}}`` with one or both of the latter (see
        `study.side_data`). NaN and infinities mean that the point cannot be evaluated.
    space : a `Space`, its parameters by name (objects or their JSON), or a list of (low, high).
    algorithm : the name of a registered algorithm, or `auto`.
    budget : number of evaluations.
    options : options of the algorithm.
    backend : `inline`; `processes` for `n_workers` processes on this machine; `ray` for actors of a Ray cluster that is
        started here; or a function from `fn` to a backend, such as `partial(RayBackend, address="auto", num_gpus=1)`.
        No worker waits for a slow one.
    n_workers : number of processes or actors. None: one per core. Default populations are at least as large.
    seed : seed of all randomness. With `inline`, equal arguments give equal results.
    direction : `minimize` or `maximize`.
    target : stop when a value is at least this good.
    callback : called with the result so far after every value (of a batch: after the batch); a true return value or
        `StopIteration` stops the run.
    with_trial : call ``fn(point, evaluation)``; `evaluation.trial` has number, step, eval_seed and payload.
    vectorized : call `fn` with all points that a step needs: an (n, d) array, or a list of n dicts; it returns n values
        in their order. With `with_trial` the second argument is the list of evaluations.
    repeatable : equal results for any number of workers, and `inline`. Whole steps are asked, and told in the order of
        their points when all values are there (of a method with members: all members), so workers wait for the slowest
        of a step. `n_workers` then has no influence on defaults.
    on_error : what an exception of `fn` does. `raise`: it ends the run. `infeasible`: the point has no value, and the
        reason is kept with it (with `vectorized`, every point of the batch). `sys.exit` and a return value that is no
        number end the run in any case.
    timeout_seconds : longest evaluation; only with `processes`, whose process is killed and replaced. The trial fails
        for good, and the run goes on, unless so many fail in a row that the study is paused.
    deadline_seconds : no evaluation begins later than this after the call; those in hand are finished.
    progress : show evaluations, best value and time on standard error.
    store : a database file, made by the service's store (`pip install 'blackbox-zoo[server]'`), in which every result
        is kept as soon as it is told. The same call again goes on where the first has stopped, however it stopped, also
        with another `budget`; if the study has ended it returns its result at once. `blackbox serve` opens the file,
        too. Or an open store. None: in memory.
    name : name of the study in `store`.
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
    StudySpecMismatch
        If `store` has a study of this `name` with other arguments; says which.
    Exception
        What `fn` or `callback` raised. Whatever ends a run, `KeyboardInterrupt` too, has the result so far as its
        attribute `result`, and names the best point in a note.

    Examples
    --------
    >>> result = minimize(lambda x: (x[0] - 1) ** 2 + x[1] ** 2, [(-5, 5), (-5, 5)], budget=400, target=1e-8)
    >>> result.success, bool(result.fun <= 1e-8)
    (True, True)

    A batch of points in one call:

    >>> minimize(lambda x: (x**2).sum(axis=1), [(-5, 5)] * 2, budget=60, vectorized=True).nfev
    60
    """
    if unknown:
        raise _unknown_arguments(unknown)
    whole = space_of(space)
    as_array = not isinstance(space, Space | Mapping) or whole.is_single_vector
    if on_error not in get_args(OnError):
        raise InvalidInput(f"on_error must be one of {', '.join(get_args(OnError))}, got {on_error!r}")
    n = {"processes": n_workers or cores(), "ray": n_workers}.get(backend) if isinstance(backend, str) else None
    spec = spec_of(
        whole,
        algorithm,
        budget,
        name=name,
        options=options,
        direction=direction,
        target=target,
        seed=seed,
        noise=noise,
        workers=None if repeatable else n,
    )
    point = array_of if as_array else dict
    began = time.time()
    rows = opened(store)
    closes = rows is not store and store is not None
    with closing(rows) if closes else nullcontext():
        study = study_in(rows, spec, began, WORKER, slicer)
        if perform(rows, study.row()).state != ACTIVE:
            result = summary(study, rows, point)
            return without_store(result) if closes else result
        try:
            with closing(_evaluator(fn, backend, n_workers, timeout_seconds, vectorized)) as evaluator:
                result = run(
                    study,
                    rows,
                    evaluator,
                    point=point,
                    callback=callback,
                    worker=WORKER,
                    with_trial=with_trial,
                    on_error=on_error,
                    batches=repeatable or vectorized,
                    deadline=None if deadline_seconds is None else began + deadline_seconds,
                    progress=ProgressLine(time.monotonic) if progress else None,
                )
        except BaseException as error:
            if closes and (so_far := getattr(error, "result", None)) is not None:
                without_store(so_far)
            raise
        return without_store(result) if closes else result


def _evaluator(
    fn: Callable[..., Any] | str,
    backend: str | Callable[[Any], Backend],
    n_workers: int | None,
    timeout_seconds: float | None,
    vectorized: bool,
) -> Backend:
    if vectorized:
        if backend != "inline":
            raise InvalidInput(
                f"vectorized calls are made in this process, not with backend={backend!r}",
                hint="leave backend out, and let the objective spread its batch over workers",
            )
        return Vectorized(backends.load(fn))
    if isinstance(backend, str):
        return backends.make(backend, fn, n_workers, timeout_seconds)
    if timeout_seconds is not None:
        raise InvalidInput('timeout_seconds is for backend="processes"', hint="give the limit to your backend itself")
    return backend(fn)


def _unknown_arguments(given: Mapping[str, Any]) -> InvalidInput:
    names = [name for name in inspect.signature(minimize).parameters if name != "unknown"]
    name = next(iter(given))
    hint = f'say algorithm="{given["method"]}"' if name == "method" else nearest(name, names)
    return InvalidInput(f"minimize has no argument {name!r}", hint=hint)

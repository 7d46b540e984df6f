"""The front door: `minimize(fn, space, ...)`."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any, Never

from blackbox import backends
from blackbox.backends import Backend
from blackbox.errors import InvalidInput, nearest
from blackbox.minimize.driving import run
from blackbox.minimize.problem import Bounds, array_of, space_of
from blackbox.recipes.slices import WHOLE, Slicer
from blackbox.space import Parameter, Space
from blackbox.study.creation import create
from blackbox.study.editing import Study
from blackbox.study.effects import perform
from blackbox.study.memory import MemoryStore

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
    slicer : computes the parts of updates of millions of parameters (`recipes.slices`); by default this thread does.

    Returns
    -------
    OptimizeResult
        x (best evaluated point, as `fn` got it), fun, nfev, nit (closed steps), success, status, message, recommended
        (the point that the algorithm would deploy: better than `x` under noise), payload (JSON for its evaluation, such
        as statistics of observations, or None), algorithm (its name), study (the `Study`) and store.

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
    whole = space_of(space)
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
        "non_finite": "infeasible",
    }
    head, _ = perform(store, create("local", spec, time.time()))
    study = Study(head, slicer)
    point = array_of if as_array else dict
    made = backends.make(backend, fn, n_workers) if isinstance(backend, str) else backend(fn)
    with closing(made) as evaluator:
        return run(study, store, evaluator, point=point, callback=callback, with_trial=with_trial)


def _unknown_arguments(given: Mapping[str, Any]) -> InvalidInput:
    names = [name for name in inspect.signature(minimize).parameters if name != "unknown"]
    name = next(iter(given))
    hint = f'say algorithm="{given["method"]}"' if name == "method" else nearest(name, names)
    return InvalidInput(f"minimize has no argument {name!r}", hint=hint)

"""Backends that evaluate the objective of an in-process study.

A backend takes calls while it has capacity and returns finished ones in any order. It knows nothing of studies.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from blackbox.errors import InvalidInput, nearest
from blackbox.recipes import materialise, unpack
from blackbox.rng import Key
from blackbox.space import Space

Objective = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Trial:
    """The context of an evaluation, for objectives that need more than the point.

    Attributes
    ----------
    number : number of the trial in its study.
    step : the step it was asked at.
    eval_seed : a seed for common random numbers: equal for all points of a step, if the algorithm works in groups.
    payload : JSON that the algorithm gives to the evaluator beside the point, or None.
    """

    number: int
    step: int
    eval_seed: int
    payload: Any = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The second argument of objectives with two: a subset of what the client's `Worker(with_trial=True)` passes."""

    trial: Trial


@dataclass(frozen=True, slots=True)
class Done:
    """One finished call.

    Attributes
    ----------
    ticket : as submitted.
    value : the value that the objective returned.
    error : the exception it raised instead; `WorkerDied` if its process ended during the call, `TimedOut` if it was
        killed because of its time, `WorkerLost` if the worker disappeared.
    """

    ticket: int
    value: Any = None
    error: BaseException | None = None


class WorkerDied(RuntimeError):
    """The process that evaluated a point ended without an answer."""


class WorkerLost(RuntimeError):
    """A worker disappeared with its points. This is no failure of the points: they are given to another worker.

    Attributes
    ----------
    suspect : whether its machine is alive and it was evaluating this point, which may have killed it.
    """

    def __init__(self, detail: str, *, suspect: bool = False) -> None:
        super().__init__(detail)
        self.suspect = suspect


class TimedOut(RuntimeError):
    """An evaluation took longer than it may; its process was killed."""


class Builder(Protocol):
    """Builds points in the process that evaluates them."""

    def build(self, recipe: Any, /) -> Any:
        """The argument of the objective for this recipe."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """The common data from which the candidates of one step are built.

    Attributes
    ----------
    key, space : noise key and space of the study.
    base : (d,) the base vector of their recipes, or None.
    point : converts decoded parameters to the argument of the objective.
    """

    key: Key
    space: Space
    base: NDArray[np.float32] | None
    point: Callable[[dict[str, Any]], Any]

    def build(self, recipe: bytes) -> Any:
        """The point of a packed recipe, as the study itself would build it."""
        made = unpack(recipe)
        blobs = {} if made.base is None or self.base is None else {made.base: self.base}
        vector = materialise(made, self.key, self.space.dim, blobs).astype(np.float64)
        return self.point(self.space.decode(vector))


@dataclass(frozen=True, slots=True)
class Unbuilt:
    """A large candidate before it is built: a recipe, and the builder of its point, which is sent once by name."""

    recipe: Any
    name: str
    source: Builder


class Backend(Protocol):
    """Evaluates an objective at points.

    A backend may have two more attributes: `builds`, whether `submit` takes `Unbuilt` points, and `ahead`, how many
    calls beyond `free` could be queued behind others.
    """

    @property
    def free(self) -> int:
        """Number of calls that can start now."""

    def submit(self, ticket: int, *arguments: Any) -> None:
        """Begin to call the objective with these arguments."""

    def wait(self) -> list[Done]:
        """Block until a call has finished; [] if none was submitted."""

    def close(self) -> None:
        """Release the workers; unfinished calls are dropped."""


def make(
    backend: str, objective: Objective | str, n_workers: int | None = None, timeout_seconds: float | None = None
) -> Backend:
    """A backend by name.

    Parameters
    ----------
    backend : `inline` evaluates in this thread, `processes` in `n_workers` processes here (default: one per core),
        `ray` on as many actors of a Ray cluster that is started here.
    objective : a function, or its name as "module:function".
    timeout_seconds : longest evaluation; None: no limit. Only `processes` can end one.

    Raises
    ------
    InvalidInput
        If there is no such backend, or the objective or a time limit cannot be used with it.
    """
    from blackbox.backends.inline import Inline
    from blackbox.backends.processes import Processes
    from blackbox.backends.ray_cluster import RayBackend

    if backend == "processes":
        return Processes(objective, n_workers, timeout_seconds)
    if timeout_seconds is not None:
        raise InvalidInput(
            f"timeout_seconds needs evaluations that can be killed, which backend={backend!r} does not have",
            hint='use backend="processes", with n_workers=1 if one process is enough',
        )
    if backend == "inline":
        return Inline(load(objective))
    if backend == "ray":
        return RayBackend(objective, n_workers)
    raise InvalidInput(f'there is no backend "{backend}"', hint=nearest(backend, ["inline", "processes", "ray"]))


def load(objective: Objective | str) -> Objective:
    """The function that `module:function` names; a function is returned as it is.

    Raises
    ------
    InvalidInput
        If the module or the function does not exist; the message says which.
    """
    if not isinstance(objective, str):
        return objective
    module_name, _, attribute = objective.partition(":")
    if not module_name or not attribute:
        raise InvalidInput(f"expected module:function, got {objective!r}", hint="for example my_job:evaluate")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InvalidInput(f"cannot import {module_name}: {error}", hint="run this where the module lies") from None
    function = getattr(module, attribute, None)
    if not callable(function):
        raise InvalidInput(f"{module_name} has no function {attribute!r}")
    return function  # type: ignore[no-any-return]

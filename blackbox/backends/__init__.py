"""Where an in-process study is evaluated.

A backend takes calls while it has room and gives back what is done, in any order. It knows nothing of studies.
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
    """What an objective may want to know beside its point.

    Attributes
    ----------
    number : of the trial in its study.
    step : the step it was asked at.
    eval_seed : a seed for common random numbers: equal for all points of a step of a method that works in steps.
    payload : what the method says beside the point, or None.
    """

    number: int
    step: int
    eval_seed: int
    payload: Any = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The second argument of objectives that take one: a part of what the client's `Worker(with_trial=True)` passes."""

    trial: Trial


@dataclass(frozen=True, slots=True)
class Done:
    """One finished call.

    Attributes
    ----------
    ticket : as submitted.
    value : what the objective returned, if it did.
    error : what it raised instead; a `WorkerDied` when its process ended under it, a `WorkerLost` when it went away.
    """

    ticket: int
    value: Any = None
    error: BaseException | None = None


class WorkerDied(RuntimeError):
    """The process that evaluated a point ended without an answer."""


class WorkerLost(RuntimeError):
    """A worker is gone, with what it had in hand. Nobody failed: the point is given to another one.

    Attributes
    ----------
    suspect : its machine lives on and it was working on this very point, which may have killed it.
    """

    def __init__(self, detail: str, *, suspect: bool = False) -> None:
        super().__init__(detail)
        self.suspect = suspect


class Builder(Protocol):
    """Builds points where they are evaluated."""

    def build(self, recipe: Any, /) -> Any: ...


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """What all candidates of one step are built from.

    Attributes
    ----------
    key, space : of the study.
    base : (d,) the vector their recipes name, or None.
    point : from parameters to what the objective gets.
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
    """A large candidate on its way: a recipe, and what builds the point of it, sent once under a name."""

    recipe: Any
    name: str
    source: Builder


class Backend(Protocol):
    """Evaluates an objective at points.

    A backend may have two more attributes: `builds` is true where `submit` takes `Unbuilt` points, and `ahead` says how
    many calls could wait behind others, beyond `free`.
    """

    @property
    def free(self) -> int:
        """How many calls can be taken now."""
        ...

    def submit(self, ticket: int, *arguments: Any) -> None:
        """Begin to call the objective with these arguments."""
        ...

    def wait(self) -> list[Done]:
        """Block until something is done; empty when nothing is out."""
        ...

    def close(self) -> None: ...


def make(backend: str, objective: Objective | str, n_workers: int | None = None) -> Backend:
    """`inline` evaluates in this thread, `processes` in `n_workers` processes here (default: one per core), `ray` on as
    many actors of a Ray cluster that is started here. The objective may be named, as "module:function"."""
    from blackbox.backends.inline import Inline
    from blackbox.backends.processes import Processes
    from blackbox.backends.ray_cluster import RayBackend

    if backend == "inline":
        return Inline(load(objective))
    if backend == "processes":
        return Processes(objective, n_workers)
    if backend == "ray":
        return RayBackend(objective, n_workers)
    raise InvalidInput(f'there is no backend "{backend}"', hint=nearest(backend, ["inline", "processes", "ray"]))


def load(objective: Objective | str) -> Objective:
    """The function that `module:function` names; a function is returned as it is.

    Raises
    ------
    InvalidInput
        Saying which part of the name is wrong.
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

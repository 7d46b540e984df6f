"""Where an in-process study is evaluated.

A backend takes calls while it has room and gives back what is done, in any order. It knows nothing of studies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from blackbox.errors import InvalidInput, nearest

Objective = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Trial:
    """What an objective may want to know beside its point.

    Attributes
    ----------
    number : of the trial in its study.
    generation : the step it was asked at.
    eval_seed : a seed for common random numbers: equal for all points of a step of a method that works in steps.
    payload : what the method says beside the point, or None.
    """

    number: int
    generation: int
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
    error : what it raised instead; a `WorkerDied` when its process ended under it.
    """

    ticket: int
    value: Any = None
    error: BaseException | None = None


class WorkerDied(RuntimeError):
    """The process that evaluated a point ended without an answer."""


class Backend(Protocol):
    """Evaluates an objective at points."""

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


def make(backend: str, objective: Objective, n_workers: int | None = None) -> Backend:
    """`inline` evaluates in this thread, `processes` in `n_workers` processes here (default: one per core)."""
    from blackbox.backends.inline import Inline
    from blackbox.backends.processes import Processes

    if backend == "inline":
        return Inline(objective)
    if backend == "processes":
        return Processes(objective, n_workers)
    raise InvalidInput(f'there is no backend "{backend}"', hint=nearest(backend, ["inline", "processes"]))

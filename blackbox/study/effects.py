"""What an operation wants from the outside: a write, a read, a computation.

An operation is a generator that yields effects, gets their results sent back, and returns its answer. `drive` runs it
with whatever answers effects: `perform` answers them in this thread, the service from its event loop. Inside an
operation `row = yield from write(work)` asks for an effect: the answer has the type that the work returns.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from blackbox.study.rows import Store, Tx

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Write:
    """Run a work in a write transaction; the answer comes when it is durable.

    Attributes
    ----------
    long : it may touch very many rows; a service runs it beside its event loop.
    """

    work: Callable[[Tx], Any]
    long: bool = False


@dataclass(frozen=True, slots=True)
class Read:
    """Run a work on what was committed."""

    work: Callable[[Tx], Any]


@dataclass(frozen=True, slots=True)
class Compute:
    """Run an algorithm; a service may do this in another thread when `seconds` (an estimate) is long."""

    work: Callable[[], Any]
    seconds: float = 0.0
    took: Callable[[float], None] | None = None
    """Called by a driver that has a clock, with the seconds it took."""


Effect = Write | Read | Compute
Steps = Generator[Effect, Any, T]


def write(work: Callable[[Tx], T], *, long: bool = False) -> Steps[T]:
    """Run a work in a write transaction; see `Write`. The answer is what the work returned."""
    answer: T = yield Write(work, long)
    return answer


def read(work: Callable[[Tx], T]) -> Steps[T]:
    """Run a work on what was committed; the answer is what it returned."""
    answer: T = yield Read(work)
    return answer


def compute(work: Callable[[], T], seconds: float = 0.0, took: Callable[[float], None] | None = None) -> Steps[T]:
    """Run an algorithm; see `Compute`. The answer is what the work returned."""
    answer: T = yield Compute(work, seconds, took)
    return answer


async def drive(steps: Steps[T], answer: Callable[[Effect], Awaitable[Any]]) -> T:
    """Drive an operation to its end: the one loop behind `perform`, a service and the tests.

    Parameters
    ----------
    answer : does what an effect wants. What it raises is raised inside the operation, where it waits for the answer.
    """
    value: Any = None
    error: BaseException | None = None
    while True:
        try:
            effect = steps.send(value) if error is None else steps.throw(error)
        except StopIteration as stop:
            result: T = stop.value
            return result
        value, error = None, None
        try:
            value = await answer(effect)
        except Exception as raised:
            error = raised


def perform(store: Store, steps: Steps[T]) -> T:
    """Drive an operation to its end in this thread."""
    return at_once(drive(steps, in_place(store)))


def in_place(store: Store) -> Callable[[Effect], Awaitable[Any]]:
    """What answers effects for `drive` at once, in the thread that calls it."""

    async def answer(effect: Effect) -> Any:
        if isinstance(effect, Write):
            return store.write(effect.work)
        if isinstance(effect, Read):
            return store.read(effect.work)
        return effect.work()

    return answer


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never has to wait, without an event loop.

    Raises
    ------
    RuntimeError
        If it waits.
    """
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise RuntimeError("an operation that is performed in one thread waited for something")

"""The effects of an operation: a write, a read, a computation.

An operation is a generator that yields effects, is sent their results, and returns its answer. `drive` runs one with
any interpreter of effects: `perform` interprets them in this thread, the service in its event loop. Inside an
operation `row = yield from write(work)` requests an effect; the answer has the return type of the work.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from blackbox.study.rows import Store, Tx

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Write:
    """Run a work (a function of a transaction) in a write transaction; answered once it is durable.

    Attributes
    ----------
    work : the function.
    long : whether it may touch very many rows; a service then runs it outside its event loop.
    """

    work: Callable[[Tx], Any]
    long: bool = False


@dataclass(frozen=True, slots=True)
class Read:
    """Run a work on committed rows."""

    work: Callable[[Tx], Any]


@dataclass(frozen=True, slots=True)
class Compute:
    """Run a computation of the algorithm.

    Attributes
    ----------
    work : the computation.
    seconds : how long it is expected to take; a service runs long ones in another thread.
    took : called with the measured seconds, if the driver has a clock.
    """

    work: Callable[[], Any]
    seconds: float = 0.0
    took: Callable[[float], None] | None = None


Effect = Write | Read | Compute
Steps = Generator[Effect, Any, T]


def write(work: Callable[[Tx], T], *, long: bool = False) -> Steps[T]:
    """Run a work in a write transaction and return its result; see `Write`."""
    answer: T = yield Write(work, long)
    return answer


def read(work: Callable[[Tx], T]) -> Steps[T]:
    """Run a work on committed rows and return its result."""
    answer: T = yield Read(work)
    return answer


def compute(work: Callable[[], T], seconds: float = 0.0, took: Callable[[float], None] | None = None) -> Steps[T]:
    """Run a computation and return its result; see `Compute`."""
    answer: T = yield Compute(work, seconds, took)
    return answer


async def drive(steps: Steps[T], answer: Callable[[Effect], Awaitable[Any]]) -> T:
    """Drive an operation to its end: the one loop behind `perform`, a service and the tests.

    Parameters
    ----------
    answer : interprets one effect. An exception it raises is thrown into the operation at its `yield`.

    Returns
    -------
    The operation's answer.
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
    """Drive an operation to its end in this thread, on a store."""
    return at_once(drive(steps, in_place(store)))


def in_place(store: Store) -> Callable[[Effect], Awaitable[Any]]:
    """An interpreter of effects for `drive` that answers at once, in the calling thread."""

    async def answer(effect: Effect) -> Any:
        if isinstance(effect, Write):
            return store.write(effect.work)
        if isinstance(effect, Read):
            return store.read(effect.work)
        return effect.work()

    return answer


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never suspends, computed without an event loop.

    Raises
    ------
    RuntimeError
        If it suspends.
    """
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise RuntimeError("an operation that is performed in one thread waited for something")

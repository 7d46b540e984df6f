"""What an operation wants from the outside: a write, a read, a computation.

An operation is a generator that yields effects, gets their results sent back, and returns its answer. `perform` drives
it in this thread; the service drives the same generators from its event loop. Inside an operation `row = yield from
write(work)` asks for an effect: the answer has the type that the work returns.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
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


def perform(store: Store, steps: Steps[T]) -> T:
    """Drive an operation to its end in this thread."""
    answer: Any = None
    error: BaseException | None = None
    while True:
        try:
            effect = steps.send(answer) if error is None else steps.throw(error)
        except StopIteration as stop:
            result: T = stop.value
            return result
        answer, error = None, None
        try:
            if isinstance(effect, Write):
                answer = store.write(effect.work)
            elif isinstance(effect, Read):
                answer = store.read(effect.work)
            else:
                answer = effect.work()
        except Exception as raised:
            error = raised

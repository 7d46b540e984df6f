"""The update of a large vector cut by coordinates, its parts computed wherever somebody is free.

A sum of noise treats each coordinate alone and adds its terms in a fixed order, so coordinates [a, b) computed in a
thread, in another process or on another machine are bitwise those of the whole: there is nothing to add up at the end,
only pieces to lay side by side. Who computes them therefore cannot change a result, and methods need not know: whoever
drives a study says so around it, and `recipe.weighted_noise_sum` looks here.

>>> from concurrent.futures import ThreadPoolExecutor
>>> with ThreadPoolExecutor(2) as threads, using(threads, 16):
...     pass  # study.advance(...), algorithm.tell(...), ...

Anything with the `map` of `concurrent.futures` serves: threads, processes, `blackbox.backends.ray_cluster.RaySlices`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from blackbox.errors import InvalidInput
from blackbox.records import Vector

ALIGN = 1 << 16
"""Cuts are multiples of this, so that no block of noise is drawn twice and partial norms agree."""
WORTH = 1 << 22
"""Coordinates times terms up to which handing the parts out costs more than it saves (about 10 ms of work)."""

Part = tuple[int, int]
"""Coordinates [start, stop)."""


class Executor(Protocol):
    """Computes parts: results in the order of the items, as `concurrent.futures.Executor.map` gives them."""

    def map(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterable[Any]: ...


class Cluster(Executor, Protocol):
    """An executor with workers of its own."""

    @property
    def n_workers(self) -> int: ...
    def close(self) -> None: ...


class Inline:
    """An executor without workers."""

    def map(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterable[Any]:
        return map(function, items)


@dataclass(frozen=True, slots=True)
class _Plan:
    executor: Executor
    n_parts: int
    worth: int


_plan: ContextVar[_Plan | None] = ContextVar("blackbox_slices", default=None)


@contextmanager
def using(executor: Executor, n_parts: int, *, worth: int = WORTH) -> Iterator[None]:
    """Large sums inside this block are cut into parts that the executor computes.

    Parameters
    ----------
    executor : kept by the caller, who also closes it. Processes and clusters get picklable functions.
    n_parts : most parts. Two or three per worker let a fast one take more; each returns 8 bytes per coordinate.
    worth : coordinates times terms from which a sum is cut.

    Notes
    -----
    The block's thread alone is meant (a context variable): threads of the executor do not cut again.
    """
    if n_parts < 1:
        raise InvalidInput(f"n_parts must be at least 1, got {n_parts}")
    token = _plan.set(_Plan(executor, n_parts, worth))
    try:
        yield
    finally:
        _plan.reset(token)


def cut(start: int, stop: int, n_parts: int, align: int = ALIGN) -> list[Part]:
    """[start, stop) in at most `n_parts` parts of about equal length, cut at multiples of `align`.

    >>> cut(0, 10, 3, align=2)
    [(0, 4), (4, 8), (8, 10)]
    >>> cut(0, 10, 3)
    [(0, 10)]
    """
    first, last = start // align, -(-stop // align)
    n_parts = max(1, min(n_parts, last - first))
    marks = [first + -(-i * (last - first) // n_parts) for i in range(n_parts + 1)]
    edges = [min(max(mark * align, start), stop) for mark in marks]
    return [(a, b) for a, b in pairwise(edges) if a < b]


def computed(function: Callable[[Part], Vector], start: int, stop: int, n_terms: int) -> Vector | None:
    """The coordinates [start, stop) of a sum, in parts where that was asked for (`using`) and is worth it, else None.

    Parameters
    ----------
    function : from a part to its (stop - start,) values, alike for any cut; picklable.
    n_terms : noise vectors that the sum draws.
    """
    plan = _plan.get()
    if plan is None or (stop - start) * n_terms < plan.worth:
        return None
    parts = cut(start, stop, plan.n_parts)
    whole = np.empty(stop - start, dtype=np.float64)
    for (a, b), values in zip(parts, plan.executor.map(function, parts), strict=True):
        whole[a - start : b - start] = values
    return whole

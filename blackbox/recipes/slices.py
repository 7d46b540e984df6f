"""The update of a large vector cut by coordinates, its parts computed wherever somebody is free.

A sum of noise treats each coordinate alone and adds its terms in a fixed order, so coordinates [a, b) computed in a
thread, in another process or on another machine are bitwise those of the whole: there is nothing to add up at the end,
only pieces to lay side by side. Who computes them therefore cannot change a result. A `Slicer` says who does; whoever
opens a study or builds a method hands it in, and the method passes it on to `recipe.weighted_noise_sum`.

>>> from concurrent.futures import ThreadPoolExecutor
>>> with ThreadPoolExecutor(2) as threads:
...     halves = Slicer(threads, 2).compute(lambda part: np.arange(*part, dtype=float), 0, 1 << 17, n_terms=64)
>>> bool((halves == np.arange(1 << 17)).all())
True

Anything with the `map` of `concurrent.futures` serves: threads, processes, `blackbox.backends.ray_cluster.RaySlices`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from blackbox.errors import InvalidInput
from blackbox.records import Vector

ALIGN = 1 << 16
"""Cuts are multiples of this, so that no block of noise is drawn twice and partial norms agree."""
THRESHOLD = 1 << 22
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


def split(start: int, stop: int, n_parts: int, align: int = ALIGN) -> list[Part]:
    """[start, stop) in at most `n_parts` parts of about equal length, cut at multiples of `align`.

    >>> split(0, 10, 3, align=2)
    [(0, 4), (4, 8), (8, 10)]
    >>> split(0, 10, 3)
    [(0, 10)]
    """
    first, last = start // align, -(-stop // align)
    n_parts = max(1, min(n_parts, last - first))
    marks = [first + -(-i * (last - first) // n_parts) for i in range(n_parts + 1)]
    edges = [min(max(mark * align, start), stop) for mark in marks]
    return [(a, b) for a, b in pairwise(edges) if a < b]


@dataclass(frozen=True, slots=True)
class Slicer:
    """Cuts large sums by coordinates, and has the parts computed.

    Attributes
    ----------
    executor : computes the parts; kept by whoever made it, who also closes it. Processes and clusters get picklable
        functions.
    n_parts : most parts of a sum. Two or three per worker let a fast one take more; each returns 8 bytes per
        coordinate.
    threshold : coordinates times terms from which a sum is cut; smaller ones are computed in place.

    Raises
    ------
    InvalidInput
        If `n_parts` is not positive.
    """

    executor: Executor
    n_parts: int
    threshold: float = THRESHOLD

    def __post_init__(self) -> None:
        if self.n_parts < 1:
            raise InvalidInput(f"n_parts must be at least 1, got {self.n_parts}")

    def compute(self, function: Callable[[Part], Vector], start: int, stop: int, n_terms: int) -> Vector:
        """The coordinates [start, stop) of a sum, in parts where that is worth it.

        Parameters
        ----------
        function : from a part to its (stop - start,) values, alike for any cut; picklable.
        n_terms : noise vectors that the sum draws.

        Returns
        -------
        (stop - start,) float64, the same bits whoever computes them.
        """
        if (stop - start) * n_terms < self.threshold:
            return function((start, stop))
        parts = split(start, stop, self.n_parts)
        whole = np.empty(stop - start, dtype=np.float64)
        for (a, b), values in zip(parts, self.executor.map(function, parts), strict=True):
            whole[a - start : b - start] = values
        return whole


WHOLE = Slicer(Inline(), 1, threshold=math.inf)
"""Computes every sum in one piece, in place."""

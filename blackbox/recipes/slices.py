"""Splitting the update of a large vector by coordinates, to compute its parts in parallel.

A sum of noise treats each coordinate by itself and adds its terms in a fixed order, so coordinates [a, b) computed in a
thread, in another process or on another machine are bitwise those of the whole: the parts are concatenated, not added
up. Where they are computed therefore cannot change a result. A `Slicer` decides that; it is given to a study or a
method when it is opened or built, and the method passes it on to `recipes.weighted_noise_sum`.

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
"""Parts begin at multiples of this, so that no block of noise is drawn twice and partial norms agree."""
THRESHOLD = 1 << 22
"""Coordinates times terms below which splitting costs more than it saves (about 10 ms of work)."""

Part = tuple[int, int]
"""Coordinates [start, stop)."""


class Executor(Protocol):
    """Computes parts: results in the order of the items, as `concurrent.futures.Executor.map` gives them."""

    def map(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterable[Any]:
        """The results of `function` for each item, in order."""


class Cluster(Executor, Protocol):
    """An executor with workers of its own."""

    @property
    def n_workers(self) -> int:
        """Number of parts that can be computed at a time."""

    def close(self) -> None:
        """Release the workers."""


class Inline:
    """An executor without workers."""

    def map(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterable[Any]:
        """The results of `function`, computed in the calling thread."""
        return map(function, items)


def split(start: int, stop: int, n_parts: int, align: int = ALIGN) -> list[Part]:
    """[start, stop) in at most `n_parts` parts of about equal length, split at multiples of `align`.

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
    """Splits large sums by coordinates and computes the parts in an executor.

    Attributes
    ----------
    executor : computes the parts; its owner closes it. The functions it gets are picklable, for processes and clusters.
    n_parts : most parts of a sum. Two or three per worker let a fast one take more; each returns 8 bytes per
        coordinate.
    threshold : coordinates times terms from which a sum is split; smaller ones are computed in the calling thread.

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
        """The coordinates [start, stop) of a sum, computed in parts if it is large enough.

        Parameters
        ----------
        function : from a part to its (stop - start,) values, which must not depend on the split; picklable.
        n_terms : number of noise vectors in the sum.

        Returns
        -------
        (stop - start,) float64, the same bits wherever the parts are computed.
        """
        if (stop - start) * n_terms < self.threshold:
            return function((start, stop))
        parts = split(start, stop, self.n_parts)
        whole = np.empty(stop - start, dtype=np.float64)
        for (a, b), values in zip(parts, self.executor.map(function, parts), strict=True):
            whole[a - start : b - start] = values
        return whole


WHOLE = Slicer(Inline(), 1, threshold=math.inf)
"""Computes every sum in one piece in the calling thread."""

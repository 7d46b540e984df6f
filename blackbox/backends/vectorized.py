"""Evaluate many points in one call, in the calling thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from blackbox.backends import Done, Objective
from blackbox.backends.raised import exited
from blackbox.errors import InvalidInput

ROOM = 1_000_000
"""Calls that are collected at most: more than any step has."""


class Vectorized:
    """A backend that calls the objective with a batch: an (n, d) array of points, or a list of n dicts.

    The objective returns n values in the order of the points: an array, or a sequence of what it would return for each.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._calls: list[tuple[int, tuple[Any, ...]]] = []

    @property
    def free(self) -> int:
        """Number of points that the next call can take."""
        return ROOM - len(self._calls)

    def submit(self, ticket: int, *arguments: Any) -> None:
        """Collect a point for the next call."""
        self._calls.append((ticket, arguments))

    def wait(self) -> list[Done]:
        """Call the objective with all points collected; its values, or one error for all."""
        if not self._calls:
            return []
        calls, self._calls = self._calls, []
        points, *more = zip(*(arguments for _, arguments in calls), strict=True)
        batch = np.stack(points) if isinstance(points[0], np.ndarray) else list(points)
        try:
            values = self._values(self._objective(batch, *map(list, more)), len(calls))
        except SystemExit as error:
            return [Done(ticket, error=exited(error)) for ticket, _ in calls]
        except Exception as error:
            return [Done(ticket, error=error) for ticket, _ in calls]
        return [Done(ticket, value) for (ticket, _), value in zip(calls, values, strict=True)]

    def _values(self, returned: Any, n: int) -> Sequence[Any]:
        shape = getattr(returned, "shape", None)
        if shape is not None and callable(getattr(returned, "tolist", None)):
            if tuple(shape) in ((n,), (n, 1)):
                return list(returned.reshape(n).tolist())
            came = f"shape {tuple(shape)}"
        elif isinstance(returned, Sequence) and not isinstance(returned, str | bytes):
            if len(returned) == n:
                return returned
            came = f"{len(returned)} values"
        else:
            came = type(returned).__name__
        raise InvalidInput(
            f"a vectorized objective got {n} points and must return {n} values in their order, got {came}",
            hint="return an array of shape (n,), or a list of n numbers",
        )

    def close(self) -> None:
        """Nothing to do."""

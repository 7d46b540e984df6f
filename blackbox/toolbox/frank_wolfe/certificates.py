"""The Frank-Wolfe gap from values alone: fresh directions in two halves, and two numbers that enclose it on average."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from blackbox.records import Ints, Matrix, Points, Vector, dense
from blackbox.rng import Key
from blackbox.toolbox.directions import Directions, default_family
from blackbox.toolbox.estimators import differences, roles
from blackbox.toolbox.feasible import Room

__all__ = ["ERRORS", "Certificate", "bracket", "widened"]

ERRORS = 2.0
"""Standard errors by which each end of a bracket is moved outwards where it is published."""


class Certificate:
    """A measurement of the gap at an iterate, by central differences along directions that nothing else uses.

    Parameters
    ----------
    room : the centres of probes.
    lmo : the region's linear oracle.
    key : key of the directions' noise.
    pairs : pairs of values per measurement.
    clip : see `estimators.differences`.
    """

    def __init__(
        self, room: Room, lmo: Callable[[Vector], Vector], key: Key, pairs: int, clip: float | None = None
    ) -> None:
        d = room.space.dim
        self.room, self.lmo, self.pairs, self.clip = room, lmo, pairs, clip
        # Two halves of a certificate must not share a frame: its rows depend on one another.
        keys = [key.child("certify", half) for half in (0, 1)]
        self.halves = [Directions(default_family(d), own, d, min(-(-pairs // 2), d)) for own in keys]

    @property
    def need(self) -> int:
        """Number of results that make a certificate."""
        return 2 * self.pairs

    def plan(self, w: Vector, step: int, lanes: Ints, radius: float) -> Points:
        """Return the probes of the given lanes around the centre of w, with direction and sign as note."""
        note = roles(lanes, "central")
        u = self._rows(step, note[:, 0])
        return dense(self.room.centre(w, radius) + (radius * note[:, 1])[:, None] * u, note)

    def reduce(
        self, w: Vector, step: int, note: Ints, values: Vector, radius: float
    ) -> tuple[float, float, float, float] | None:
        """Return the `bracket` of the gap from the results; None if a half has fewer than two slopes."""
        slopes = differences(note, values, radius, clip=self.clip)
        own = slopes.index % 2 == 0
        if min(own.sum(), (~own).sum()) < 2:
            return None
        terms = w.size * slopes.slope[:, None] * self._rows(step, slopes.index)
        return bracket(w, self.lmo, terms[own], terms[~own])

    def _rows(self, step: int, indices: Ints) -> Matrix:
        """Return the (n, d) directions: even ones from one half, odd ones from the other."""
        u = np.empty((len(indices), self.room.space.dim))
        for half, directions in enumerate(self.halves):
            own = indices % 2 == half
            u[own] = directions.rows(step, indices[own] // 2)
        return np.array([self.room.tangent(row) for row in u]).reshape(u.shape)


def widened(low: float, up: float, low_error: float, up_error: float) -> tuple[float, float]:
    """Return the ends of a `bracket` moved outwards by `ERRORS` standard errors each; a gap is never below zero.

    The bare ends enclose the gap only on average: at the default 50 pairs in about a third of the runs.
    """
    return max(0.0, low - ERRORS * low_error), max(0.0, up + ERRORS * up_error)


def bracket(x: Vector, lmo: Callable[[Vector], Vector], a: Matrix, b: Matrix) -> tuple[float, float, float, float]:
    """Return two numbers whose means enclose the Frank-Wolfe gap G = max_{v in C} <grad f(x), x - v>.

    With the means g_a, g_b of two independent halves, v(g) the oracle's answer and g = (g_a + g_b) / 2::

        low = (<g_b, x - v(g_a)> + <g_a, x - v(g_b)>) / 2      E low <= G: a vertex is judged by the other half
        up  = <g, x - v(g)>                                    E up  >= G: the maximum is convex in g

    Parameters
    ----------
    x : (d,) a point of the set C.
    lmo : the set's linear oracle.
    a, b : (n, d) and (m, d) independent, unbiased estimates of the gradient, n, m >= 2.

    Returns
    -------
    low, up, and their standard errors from a jackknife over the rows.
    """

    def ends(g_a: Vector, g_b: Vector, share: float) -> tuple[float, float]:
        g = share * g_a + (1 - share) * g_b
        low = 0.5 * (g_b @ (x - lmo(g_a)) + g_a @ (x - lmo(g_b)))
        return float(low), float(g @ (x - lmo(g)))

    n, m = len(a), len(b)
    g_a, g_b = a.mean(axis=0), b.mean(axis=0)
    low, up = ends(g_a, g_b, n / (n + m))
    left_out = np.array(
        [ends((n * g_a - row) / (n - 1), g_b, (n - 1) / (n + m - 1)) for row in a]
        + [ends(g_a, (m * g_b - row) / (m - 1), n / (n + m - 1)) for row in b]
    )
    # Two samples: each half has its own jackknife variance.
    variance = np.zeros(2)
    for part in (left_out[:n], left_out[n:]):
        variance += (len(part) - 1) / len(part) * np.square(part - part.mean(axis=0)).sum(axis=0)
    return low, up, float(np.sqrt(variance[0])), float(np.sqrt(variance[1]))

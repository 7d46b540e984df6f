"""Pure pieces of Frank-Wolfe methods: mixtures of atoms, a search along segments, a bracket of the gap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from blackbox.records import Ints, Matrix, Vector

__all__ = ["Mixture", "Search", "bracket", "least_on_segment", "most_atoms"]

SAME = 1e-9
"""Atoms that differ by less, relative to the largest coordinate, are one."""
EXTRAPOLATED = 8.0
"""How far beyond the longer length that was tried a step may go, in multiples of it."""
MOST_ATOMS, MOST_NUMBERS = 64, 1_000_000
"""Most atoms that a search remembers, and most numbers in them."""
FIRST_REACH, SHORTEST = (0.25, 1.0), 1e-9
"""The longer of the first two lengths along each segment of a search, and the shortest ever."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """A point of a convex set as a mixture of points of it, by default of vertices: the active set.

    Attributes
    ----------
    atoms : (n, d) the points, no two equal.
    weights : (n,) above 0, sum 1.
    """

    atoms: Matrix
    weights: Vector

    @classmethod
    def at(cls, x: Vector) -> Mixture:
        """The point x alone."""
        return cls(x[None].copy(), np.ones(1))

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def point(self) -> Vector:
        """(d,) sum_i weights_i atoms_i."""
        point: Vector = self.weights @ self.atoms
        return point

    def away(self, g: Vector) -> int:
        """The atom to lose weight: that with the largest <g, atom>."""
        return int((self.atoms @ g).argmax())

    def toward(self, v: Vector, share: float) -> Mixture:
        """The Frank-Wolfe step: every atom gives `share` of its weight to v."""
        return self._given(self.weights * (1 - share), v, share)

    def exchanged(self, i: int, v: Vector, weight: float) -> Mixture:
        """The pairwise step: atom i gives `weight`, at most all it has, to v."""
        weights = self.weights.copy()
        weights[i] -= weight
        return self._given(weights, v, weight)

    def at_most(self, n: int) -> Mixture:
        """The same point with at most n >= 1 atoms: the lightest two become their mixture, which is no vertex."""
        atoms, weights = self.atoms, self.weights
        while len(weights) > n:
            i, j = sorted(np.argsort(weights, kind="stable")[:2].tolist())
            both = weights[i] + weights[j]
            atoms, weights = atoms.copy(), weights.copy()
            atoms[i] = (weights[i] * atoms[i] + weights[j] * atoms[j]) / both
            weights[i] = both
            atoms, weights = np.delete(atoms, j, axis=0), np.delete(weights, j)
        return Mixture(atoms, weights)

    def _given(self, weights: Vector, v: Vector, weight: float) -> Mixture:
        atoms = self.atoms
        same = np.flatnonzero(np.abs(atoms - v).max(axis=1) <= SAME * np.abs(v).max())
        if len(same):
            weights = weights.copy()
            weights[same[0]] += weight
        else:
            atoms, weights = np.vstack([atoms, v]), np.append(weights, weight)
        kept = weights > 1e-13
        return Mixture(atoms[kept], weights[kept] / weights[kept].sum())


def least_on_segment(base: float, whole: float, half: float, length: float, longest: float) -> tuple[float, float]:
    """Where on a segment an objective is least, by the parabola through three of its values: exact for a quadratic.

    Parameters
    ----------
    base, whole, half : values at 0, at `length` and at half of it, the last NaN where there is none.
    length : above 0.
    longest : the end of the segment, at least `length`.

    Returns
    -------
    step : in [0, longest], at most 8 times `length`; 0 where nothing is below the base.
    change : of the value over the step as the parabola predicts it, <= 0.
    """
    if np.isnan(half):
        return (length, whole - base) if whole < base else (0.0, 0.0)
    slope = 4 * (half - base) - (whole - base)  # of the parabola in units of `length`
    bend = 2 * (whole - base) - 4 * (half - base)
    end = min(longest / length, EXTRAPOLATED)
    if bend > 0:
        step = float(np.clip(-0.5 * slope / bend, 0.0, end))
    else:
        step = end if whole < half < base else 0.0
    change = slope * step + bend * step**2
    return (step * length, float(change)) if change < 0 else (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Search:
    """Which of two steps to take, and how far, from two values along each: the state of the rule `search`.

    With the averaged gradient g and the oracle's answer v to it, one segment leads from w to v (Frank-Wolfe), the other
    moves weight from the atom a of the mixture w that has the largest <g, a> to v (pairwise), until a has none left.
    The first takes weight from every atom, also from the right ones, and zigzags where the optimum is inside a face;
    the second leaves all others as they are. The parabolas through the values decide: a wrong g costs a step, no more.

    Attributes
    ----------
    mixture : w.
    reach : (2,) the longest length to try along each segment, in units of its way; the others are halves of it.

    Notes
    -----
    Pairwise steps: Lacoste-Julien and Jaggi (2015), arXiv:1511.05932. Choosing by values is ours.
    """

    mixture: Mixture
    reach: Vector

    @classmethod
    def at(cls, x: Vector) -> Search:
        """At the point x, with the first lengths."""
        return cls(Mixture.at(x), np.array(FIRST_REACH))

    @classmethod
    def without(cls, dim: int) -> Search:
        """No mixture, for methods that do not search."""
        return cls(Mixture(np.zeros((0, dim)), np.zeros(0)), np.array(FIRST_REACH))

    def need(self, g: Vector, v: Vector) -> int:
        """Values that close the search: two along each segment."""
        return 2 * len(self._segments(g, v))

    def candidates(self, g: Vector, v: Vector, lanes: Ints) -> tuple[Matrix, Ints]:
        """The (n, d) points of the lanes, and (n, 2) which segment each is on and how often its length was halved.

        Lanes go round the segments; further lanes, for idle workers and lost results, halve the lengths again.
        """
        segments, w = self._segments(g, v), self.mixture.point
        note = np.stack([lanes // 2 % len(segments), lanes // (2 * len(segments)) * 2 + lanes % 2], axis=1)
        points = [w + segments[i].reach * 0.5**halvings * segments[i].way for i, halvings in note.tolist()]
        return np.array(points).reshape(len(lanes), w.size), note

    def after(self, g: Vector, v: Vector, base: float | None, note: Ints, values: Vector) -> Search:
        """The mixture after the better step, and lengths to try next: 4 times the best, or half of the last in vain.

        Parameters
        ----------
        g, v : (d,) as the candidates were made with.
        base : value at w; None: stay.
        note : (n, 2) as `candidates` gave it, none twice.
        values : (n,) what is not finite counts as missing.
        """
        mixture, reach, least = self.mixture, self.reach.copy(), 0.0
        for i, segment in enumerate(self._segments(g, v)):
            own = (note[:, 0] == i) & np.isfinite(values)
            known = dict(zip(note[own, 1].tolist(), values[own].tolist(), strict=True))
            if base is None or not known:
                continue
            best = min(known, key=lambda halvings: (known[halvings], halvings))
            first = best - 1 if best - 1 in known else best  # with a longer one that is worse the least is between
            length = segment.reach * 0.5**first
            step, change = least_on_segment(base, known[first], known.get(first + 1, np.nan), length, segment.longest)
            reach[i] = min(max(4 * step, segment.reach * 0.5 ** (max(known) + 1), SHORTEST), 1.0)
            if change < least:
                least, worst = change, segment.atom
                mixture = self.mixture.toward(v, step) if worst is None else self.mixture.exchanged(worst, v, step)
        return Search(mixture.at_most(most_atoms(v.size)), reach)

    def toward(self, v: Vector, share: float) -> Search:
        """After a Frank-Wolfe step of a given length."""
        return Search(self.mixture.toward(v, share).at_most(most_atoms(v.size)), self.reach)

    def _segments(self, g: Vector, v: Vector) -> list[_Segment]:
        mixture = self.mixture
        segments = [_Segment(v - mixture.point, float(self.reach[0]), 1.0, None)]
        worst = mixture.away(g)
        way, weight = v - mixture.atoms[worst], float(mixture.weights[worst])
        if len(mixture) > 1 and way.any():
            segments.append(_Segment(way, min(weight, float(self.reach[1])), weight, worst))
        return segments


@dataclass(frozen=True, slots=True)
class _Segment:
    """Points w + length * way with length in [0, longest]; `atom` gives weight away, None: all atoms do."""

    way: Vector
    reach: float
    longest: float
    atom: int | None


def most_atoms(dim: int) -> int:
    """How many atoms of `dim` numbers a search remembers."""
    return max(2, min(MOST_ATOMS, MOST_NUMBERS // dim))


def bracket(x: Vector, lmo: Callable[[Vector], Vector], a: Matrix, b: Matrix) -> tuple[float, float, float, float]:
    """Two numbers whose means enclose the Frank-Wolfe gap G = max_{v in C} <grad f(x), x - v>.

    With the means g_a, g_b of two independent halves, v(g) the oracle's answer and g = (g_a + g_b) / 2::

        low = (<g_b, x - v(g_a)> + <g_a, x - v(g_b)>) / 2      E low <= G: a vertex is judged by the other half
        up  = <g, x - v(g)>                                    E up  >= G: the maximum is convex in g

    Parameters
    ----------
    x : (d,) a point of the set C.
    lmo : the set's linear oracle.
    a, b : (n, d) and (m, d) independent estimates of the gradient without bias, n, m >= 2.

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

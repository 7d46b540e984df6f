"""Points as mixtures of atoms, and a search along the segments on which weight can move between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from blackbox.records import Ints, Matrix, Vector

__all__ = ["MOST_ATOMS", "Mixture", "Search", "least_on_segment", "most_atoms"]

SAME = 1e-9
"""Atoms that differ by less, relative to the largest coordinate, are one."""
EXTRAPOLATED = 8.0
"""Largest step, in multiples of the longer length that was tried."""
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
        """Return the mixture of the point x alone."""
        return cls(x[None].copy(), np.ones(1))

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def point(self) -> Vector:
        """(d,) sum_i weights_i atoms_i."""
        point: Vector = self.weights @ self.atoms
        return point

    def away(self, g: Vector) -> int:
        """Return the index of the atom that loses weight: the one with the largest <g, atom>."""
        return int((self.atoms @ g).argmax())

    def toward(self, v: Vector, share: float) -> Mixture:
        """Take a Frank-Wolfe step: every atom gives `share` of its weight to v."""
        return self._given(self.weights * (1 - share), v, share)

    def exchanged(self, i: int, v: Vector, weight: float) -> Mixture:
        """Take a pairwise step: atom i gives `weight`, at most all it has, to v."""
        weights = self.weights.copy()
        weights[i] -= weight
        return self._given(weights, v, weight)

    def at_most(self, n: int) -> Mixture:
        """Return the same point with at most n >= 1 atoms: the lightest two are merged into one, which is no vertex."""
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
    """Minimise an objective on a segment by the parabola through three of its values: exact for a quadratic.

    Parameters
    ----------
    base, whole, half : values at 0, at `length` and at half of it, the last NaN where there is none.
    length : above 0.
    longest : the end of the segment, at least `length`.

    Returns
    -------
    step : in [0, longest], at most 8 times `length`; 0 where nothing is below the base.
    change : predicted change of the value over the step, <= 0.
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
    """The state of the rule `search`, which chooses one of two steps and its length by two values along each.

    With the averaged gradient g and the oracle's answer v to it, one segment leads from w to v (Frank-Wolfe), the other
    moves weight from the atom a of the mixture w that has the largest <g, a> to v (pairwise), until a has none left.
    The first takes weight from every atom, also from the right ones, and zigzags where the optimum is inside a face;
    the second leaves all others as they are. The parabolas through the values decide: a wrong g costs a step, no more.

    Attributes
    ----------
    mixture : w.
    reach : (2,) the longest length to try along each segment, relative to the segment; the others are halves of it.

    Notes
    -----
    Pairwise steps: Lacoste-Julien and Jaggi (2015), arXiv:1511.05932. Choosing by values is ours.
    """

    mixture: Mixture
    reach: Vector

    @classmethod
    def at(cls, x: Vector) -> Search:
        """Return the search at the point x, with the first lengths."""
        return cls(Mixture.at(x), np.array(FIRST_REACH))

    @classmethod
    def without(cls, dim: int) -> Search:
        """Return a search without a mixture, for rules that do not search."""
        return cls(Mixture(np.zeros((0, dim)), np.zeros(0)), np.array(FIRST_REACH))

    def need(self, g: Vector, v: Vector) -> int:
        """Number of values that close the search: two along each segment."""
        return 2 * len(self._segments(g, v))

    def candidates(self, g: Vector, v: Vector, lanes: Ints) -> tuple[Matrix, Ints]:
        """Return the (n, d) points of the lanes, and (n, 2) their segment and how often the length was halved.

        Lanes go round the segments; further lanes, for idle workers and lost results, halve the lengths again.
        """
        segments, w = self._segments(g, v), self.mixture.point
        note = np.stack([lanes // 2 % len(segments), lanes // (2 * len(segments)) * 2 + lanes % 2], axis=1)
        points = [w + segments[i].reach * 0.5**halvings * segments[i].way for i, halvings in note.tolist()]
        return np.array(points).reshape(len(lanes), w.size), note

    def after(self, g: Vector, v: Vector, base: float | None, note: Ints, values: Vector) -> Search:
        """Return the search after the better step, with lengths to try next: 4 times the best, or half of the last.

        Parameters
        ----------
        g, v : (d,) gradient and vertex that the candidates were made with.
        base : value at w; None: the mixture stays.
        note : (n, 2) as `candidates` gave it, none twice.
        values : (n,); NaN and infinities count as missing.
        """
        mixture, reach, least = self.mixture, self.reach.copy(), 0.0
        for i, segment in enumerate(self._segments(g, v)):
            own = (note[:, 0] == i) & np.isfinite(values)
            known = dict(zip(note[own, 1].tolist(), values[own].tolist(), strict=True))
            if base is None or not known:
                continue
            best = min(known, key=lambda halvings: (known[halvings], halvings))
            first = best - 1 if best - 1 in known else best  # a longer one that is worse: the minimum is between
            length = segment.reach * 0.5**first
            step, change = least_on_segment(base, known[first], known.get(first + 1, np.nan), length, segment.longest)
            reach[i] = min(max(4 * step, segment.reach * 0.5 ** (max(known) + 1), SHORTEST), 1.0)
            if change < least:
                least, worst = change, segment.atom
                mixture = self.mixture.toward(v, step) if worst is None else self.mixture.exchanged(worst, v, step)
        return Search(mixture.at_most(most_atoms(v.size)), reach)

    def toward(self, v: Vector, share: float) -> Search:
        """Return the search after a Frank-Wolfe step of a given length."""
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
    """Points w + length * way with length in [0, longest]; `atom` loses weight, None: all atoms do."""

    way: Vector
    reach: float
    longest: float
    atom: int | None


def most_atoms(dim: int) -> int:
    """Return the number of atoms of `dim` numbers that a search keeps."""
    return max(2, min(MOST_ATOMS, MOST_NUMBERS // dim))

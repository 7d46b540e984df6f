"""Perturbations of a base vector by noise address: their limits, lanes on both sides of it, and sums that follow them.

Shared by the methods whose points are recipes: `openai_es`, `pgpe` and `ars` ask lanes 2i and 2i + 1 on both sides of a
centre, with the same noise eps_i, and move the centre by a weighted sum of that noise::

    x_l = centre + s_l scale eps_i,   i = floor(l / 2),   s_l = +1 for even l, -1 for odd l
    sum_l w_l s_l eps_i               of a whole pair: (w_i+ - w_i-) eps_i; a half pair counts one-sided

A centre is float32, as workers hold it. Between bounds it is not the iterate itself: around a centre on a bound both
lanes of a pair are folded to the same point, so the centre stands back by a standard deviation (`Walls`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.records import JSON, Recipe, Recipes, Term, no_note
from blackbox.rng import Key, normal
from blackbox.space import Space
from blackbox.toolbox.bounds import WIDEST
from blackbox.toolbox.schedules import Schedule

__all__ = [
    "FARTHEST",
    "SIZES",
    "WIDEST",
    "Walls",
    "centre",
    "default_popsize",
    "mirrored",
    "moved",
    "paired",
    "rate",
    "size",
    "twice",
    "weighted",
]

SIZES = (1e-8, 1e8)  # of a perturbation: below, the noise would be lost in a float32 near 1
MAX_RATE = 1e8
FARTHEST = 1e15  # coordinates of a centre stay below it, so that squares stay finite in float32


def default_popsize(d: int) -> int:
    """Return 4 + floor(3 ln d), rounded up to even: 18 at 100 dimensions, 46 at a million."""
    return 4 + int(3 * math.log(d)) + int(3 * math.log(d)) % 2


def paired(popsize: int | None) -> int | None:
    """Validate the option `popsize` of a method that asks mirrored pairs.

    Raises
    ------
    ValueError
        If it is odd.
    """
    if popsize is not None and popsize % 2:
        raise ValueError(f"must be even for mirrored pairs, got {popsize}; use {popsize + 1}")
    return popsize


def twice(directions: Any, stored: Mapping[str, Any]) -> int:
    """Return the results of so many mirrored directions; reads a stored option, see `Options.renamed`."""
    return 2 * int(directions)  # as people wrote it, which may be text


def size(schedule: Schedule, step: int) -> float:
    """Return the length of a perturbation per coordinate at a step, within `SIZES`."""
    return min(max(schedule(step), SIZES[0]), SIZES[1])


def rate(schedule: Schedule, step: int) -> float:
    """Return the learning rate at a step, between 0 and `MAX_RATE`."""
    return min(max(schedule(step), 0.0), MAX_RATE)


def centre(space: Space) -> NDArray[np.float32]:
    """Return the (d,) initial point of the space as a base vector."""
    return np.clip(space.initial, -FARTHEST, FARTHEST).astype(np.float32)


class Walls:
    """The bounds of a space, as methods of perturbations see them. Free coordinates have none.

    Parameters
    ----------
    space : a space of domain "free" or "box".

    Attributes
    ----------
    widest : the largest standard deviation of a perturbation that is the same for all coordinates.
    """

    def __init__(self, space: Space) -> None:
        self._bounded = space.bounded if space.bounded.any() else None
        self._all = bool(space.bounded.all())
        self.widest = SIZES[1] if self._bounded is None else WIDEST

    def size(self, schedule: Schedule, step: int) -> float:
        """Return the length of a perturbation per coordinate at a step, within `SIZES` and at most `widest`."""
        return min(size(schedule, step), self.widest)

    def narrowed(self, stdev: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (d,) standard deviations, those of bounded coordinates at most `WIDEST`."""
        if self._bounded is None:
            return stdev
        return np.where(self._bounded, np.minimum(stdev, np.float32(WIDEST)), stdev)

    def inside(self, theta: NDArray[np.float32], margin: float | NDArray[np.float32] = 0.0) -> NDArray[np.float32]:
        """Return the (d,) nearest point whose bounded coordinates are at least `margin` away from their bounds."""
        if self._bounded is None:
            return theta
        low = np.asarray(margin, dtype=np.float32)
        within = np.clip(theta, low, 1 - low)
        return within if self._all else np.where(self._bounded, within, theta)

    def centre(
        self, theta: NDArray[np.float32], margin: float | NDArray[np.float32], kick: tuple[Key, int] | None = None
    ) -> NDArray[np.float32]:
        """Return the (d,) centre of the probes around an iterate: stood back from the bounds by `margin`.

        Parameters
        ----------
        theta : (d,) iterate.
        margin : standard deviation of the perturbations, one for all coordinates or (d,).
        kick : key and step of the noise that displaces the centre by as much; None: it is not displaced.
        """
        if kick is not None:
            theta = theta + np.asarray(margin, dtype=np.float32) * normal(kick[0], kick[1], 0, len(theta))
        return self.inside(theta, margin)


def moved(base: NDArray[np.float32], move: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the (d,) base vector base + move."""
    after: NDArray[np.float32] = (base + move).astype(np.float32, copy=False)
    return np.clip(after, -FARTHEST, FARTHEST, out=after)


def mirrored(base: str, first: Term, lanes: Sequence[int], payload: JSON = None) -> Recipes:
    """Return the points of the given lanes, on both sides of a base vector.

    Parameters
    ----------
    base : digest of the base vector.
    first : the term of lane 0; that of lane l has l // 2 as its lane, and for odd l the opposite scale.
    payload : what every evaluator gets beside its point, or None.
    """
    recipes = []
    for lane in lanes:
        scale = -first.scale if lane % 2 else first.scale
        recipes.append(Recipe(base, (Term(first.stream, first.step, int(lane) // 2, scale, first.kind, first.weight),)))
    payloads = () if payload is None else (payload,) * len(recipes)
    return Recipes(tuple(recipes), note=no_note(len(recipes)), payload=payloads)


def weighted(recipes: Sequence[Recipe], weights: Sequence[float], *, signed: bool = True) -> list[Term]:
    """Return the terms of a weighted sum over told points: noise as it was asked, times w_l s_l.

    Parameters
    ----------
    recipes : k, as asked; the sign of each term's scale is s_l.
    weights : (k,) w.
    signed : whether s_l counts; if not, for even functions of the noise, the weights are w_l alone.
    """
    return [
        replace(term, scale=math.copysign(w, w * term.scale) if signed else w, weight=None)
        for asked, w in zip(recipes, weights, strict=True)
        for term in asked.terms
    ]

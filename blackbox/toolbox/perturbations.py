"""Perturbations of a base vector by noise address: their limits, lanes on both sides of it, and sums that follow them.

What methods share whose points are recipes: `openai_es`, `pgpe` and `ars` ask lanes 2i and 2i + 1 on both sides of a
centre, with the same noise eps_i, and move the centre by a weighted sum of that noise::

    x_l = centre + s_l scale eps_i,   i = floor(l / 2),   s_l = +1 for even l, -1 for odd l
    sum_l w_l s_l eps_i               of a whole pair: (w_i+ - w_i-) eps_i; a half pair counts one-sided

A centre is float32, as workers hold it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.records import JSON, Recipe, Recipes, Term, no_note
from blackbox.space import Space
from blackbox.toolbox.schedules import Schedule

__all__ = [
    "FARTHEST",
    "SIZES",
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
    """4 + floor(3 ln d), rounded up to even: 18 at 100 dimensions, 46 at a million."""
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
    """Results of so many mirrored directions: how a stored number of directions is read, see `Options.renamed`."""
    return 2 * int(directions)  # as people wrote it, which may be text


def size(schedule: Schedule, step: int) -> float:
    """Length of a perturbation per coordinate at a step, within `SIZES`."""
    return min(max(schedule(step), SIZES[0]), SIZES[1])


def rate(schedule: Schedule, step: int) -> float:
    """Learning rate at a step, never negative."""
    return min(max(schedule(step), 0.0), MAX_RATE)


def centre(space: Space) -> NDArray[np.float32]:
    """(d,) the space's initial point as a base vector."""
    return np.clip(space.initial, -FARTHEST, FARTHEST).astype(np.float32)


def moved(base: NDArray[np.float32], move: NDArray[np.floating]) -> NDArray[np.float32]:
    """(d,) base + move as a base vector."""
    after: NDArray[np.float32] = (base + move).astype(np.float32, copy=False)
    return np.clip(after, -FARTHEST, FARTHEST, out=after)


def mirrored(base: str, first: Term, lanes: Sequence[int], payload: JSON = None) -> Recipes:
    """The points of the given lanes, on both sides of a base vector.

    Parameters
    ----------
    base : its digest.
    first : the term of lane 0; that of lane l has l // 2 as its lane and the scale's sign changed for odd l.
    payload : what every evaluator gets, or None.
    """
    recipes = []
    for lane in lanes:
        scale = -first.scale if lane % 2 else first.scale
        recipes.append(Recipe(base, (Term(first.stream, first.step, int(lane) // 2, scale, first.kind, first.weight),)))
    payloads = () if payload is None else (payload,) * len(recipes)
    return Recipes(tuple(recipes), note=no_note(len(recipes)), payload=payloads)


def weighted(recipes: Sequence[Recipe], weights: Sequence[float], *, signed: bool = True) -> list[Term]:
    """What `recipe.weighted_noise_sum` adds up for told points: noise as it was asked, times w_l s_l.

    Parameters
    ----------
    recipes : k, as asked; the sign of each term's scale is s_l.
    weights : (k,) w.
    signed : whether s_l counts; without it, for even functions of the noise, the weights are w_l alone.
    """
    return [
        replace(term, scale=math.copysign(w, w * term.scale) if signed else w, weight=None)
        for asked, w in zip(recipes, weights, strict=True)
        for term in asked.terms
    ]

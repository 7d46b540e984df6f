"""Novelty search: the distance of a behaviour to its nearest neighbours, and the archive of behaviours.

Lehman and Stanley (2011), Abandoning objectives: evolution through the search for novelty alone,
doi:10.1162/EVCO_a_00025. A behaviour is a list of numbers that says what a point did, told beside its value and
compared by Euclidean distance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from blackbox.records import Matrix, Results, Vector
from blackbox.rng import Key, uniform

__all__ = ["behaviours", "novelty", "remembering"]

FARTHEST = 1e100  # limit on the numbers of a behaviour, so that squares of distances stay finite
ROWS = 64  # behaviours whose distances to all others are in memory at one time


def behaviours(extra: Sequence[Mapping[str, Any]], archive: Matrix) -> list[Vector | None]:
    """Return the usable behaviours of told results, None for the others.

    Parameters
    ----------
    extra : (n,) `Results.extra`.
    archive : (A, m) remembered behaviours. A behaviour is usable if it has their length; if there are none, that of the
        first result.
    """
    told = [_behaviour(one) for one in extra]
    m = archive.shape[1] or next((len(one) for one in told if one is not None), 0)
    return [one if one is not None and len(one) == m else None for one in told]


def _behaviour(extra: Mapping[str, Any]) -> Vector | None:
    told = extra.get("behaviour")
    return np.clip(np.array(told, dtype=np.float64), -FARTHEST, FARTHEST) if told else None


def novelty(behaviours: Sequence[Vector | None], archive: Matrix, k: int) -> Vector:
    """Return the mean distance of each behaviour to its k nearest neighbours in the archive and among the others.

    Parameters
    ----------
    behaviours : (m,) each; None has no novelty.
    archive : (A, m).
    k : neighbours; fewer where there are fewer.

    Returns
    -------
    (n,) NaN for None; 0 where there is no neighbour at all.
    """
    new = np.full(len(behaviours), math.nan)
    rows = [i for i, behaviour in enumerate(behaviours) if behaviour is not None]
    if not rows:
        return new
    own = np.array([behaviours[i] for i in rows])
    known = np.concatenate([own, archive]) if len(archive) else own
    k = min(k, len(known) - 1)
    if k == 0:
        new[rows] = 0.0
        return new
    for a in range(0, len(own), ROWS):
        part = own[a : a + ROWS]
        squares = np.square(part[:, None, :] - known[None, :, :]).sum(axis=2)
        squares[np.arange(len(part)), a + np.arange(len(part))] = math.inf  # not its own neighbour
        nearest = np.sort(np.partition(squares, k - 1, axis=1)[:, :k], axis=1)
        new[rows[a : a + ROWS]] = np.sqrt(nearest).mean(axis=1)
    return new


def remembering(
    archive: Matrix, results: Results, behaviours: Sequence[Vector | None], key: Key, most: int, rate: float
) -> Matrix:
    """Return the (A, m) archive with some behaviours added; which ones, and where, depends only on their addresses.

    Parameters
    ----------
    archive : (A, m).
    results, behaviours : n told points and what they did; None is not remembered.
    key : key of the noise that decides.
    most : capacity of the archive. In a full one a new behaviour takes the place of a random one.
    rate : probability with which a behaviour is remembered.
    """
    kept = list(archive)
    for step, lane, behaviour in zip(results.step.tolist(), results.lane.tolist(), behaviours, strict=True):
        if behaviour is None or not most:
            continue
        chance, place = uniform(key, step, lane, 2)
        if chance >= rate:
            continue
        if len(kept) < most:
            kept.append(behaviour)
        else:
            kept[int(place * len(kept))] = behaviour
    return np.array(kept) if kept else archive

"""What an iterate shows when nothing can be learned, and when it runs away: ties, kicks, divergence.

Around a centre of symmetry (a network whose weights are zero, a plateau) both halves of every mirrored pair have the
same value, so every estimated gradient is zero, and the next one too. So after a step in which all pairs tie, the next
step's centre is displaced by random noise of the size of a perturbation. The iterate itself stays: on an objective that
is flat everywhere the centres stay within one perturbation of it, and `notices` says that nothing moves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from blackbox.records import Ints, Notice, Stop, Vector
from blackbox.rng import Key
from blackbox.space import Space

__all__ = ["FAR", "PATIENCE", "diverged", "kicks", "notices", "tied"]

PATIENCE = 3
"""Steps in a row that tie before it is said: the first is answered by a kick, which mends a symmetric start."""
FAR = 1e9
"""Internal units from the start at which an iterate counts as diverged: a unit is the scale of its parameter."""


def tied(lane: Ints, values: Vector) -> bool:
    """Return whether the results of mirrored lanes 2i, 2i + 1 tell no direction.

    Parameters
    ----------
    lane : (k,) none twice.
    values : (k,) minimised; NaN is worse than every number.

    Returns
    -------
    True where both values of every pair are equal; where half pairs are among them, if all values are equal. False with
    fewer than two results, and where no value is finite: those steps have no values to compare.
    """
    if len(values) < 2 or not np.isfinite(values).any():
        return False
    values = np.where(np.isnan(values), np.inf, values)
    even = lane % 2 == 0
    _, i, j = np.intersect1d(lane[even], lane[~even] - 1, assume_unique=True, return_indices=True)
    if 2 * len(i) < len(lane):
        return bool((values == values[0]).all())
    return bool((values[even][i] == values[~even][j]).all())


def kicks(noise: Key) -> Key:
    """Return the key of the displacements of centres, apart from that of the perturbations themselves."""
    return noise.child("kick")


def notices(flat: int, size: float) -> Sequence[Notice]:
    """Return what to say after so many steps in a row whose values told no direction.

    Parameters
    ----------
    flat : steps.
    size : length of a perturbation per coordinate, in internal units.
    """
    if flat < PATIENCE:
        return ()
    sentence = f"Nothing has moved for {flat} steps: every pair of points had equal values."
    action = "See whether the objective depends on its parameters at all; if it changes in jumps, perturb farther."
    return (Notice("pairs_tie", sentence, {"steps": flat, "size": size}, action),)


def diverged(space: Space, x: NDArray[np.floating], size: float, advice: str) -> Stop | None:
    """Return the reason to stop where an iterate has run away from the start; None while it has not.

    That is by `FAR`, or so far that perturbations are lost in the rounding of the iterate.

    Parameters
    ----------
    x : (d,) iterate, float32 or float64.
    size : length of a perturbation per coordinate.
    advice : what to change.
    """
    if space.bounded.all():
        return None
    far = float(np.abs(x - space.initial).max())
    if far < min(FAR, size / float(np.finfo(x.dtype).eps)):
        return None
    return Stop("diverged", f"a coordinate is {far:.3g} internal units away from the start: {advice}", {"far": far})

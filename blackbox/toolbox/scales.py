"""The scale of an objective, learned from its slopes: what is an outlier, and how long a step is.

A step of plain descent is a rate times a gradient, so the unit of the objective decides between standing still and
exploding, and one wrong value throws the iterate away. Here the sizes of the last steps' slopes are kept. Their median
says what is usual, against which a slope is clipped, and the sum of squares of all of them makes the rate of AdaGrad
in its form of one number for all coordinates (Ward, Wu, Bottou 2019, arXiv:1806.01811, AdaGrad-Norm)::

    s_t  = root mean square of the slopes of step t, each clipped at `clip` medians of what is usual
    S_t^2 = sum_{j <= t} s_j^2,    m_t = median of the last s_j
    rate = learning_rate sqrt(d) / sqrt(M (M m_t^2 + S_t^2)),    M = E||g||^2 / ||grad f||^2 of the estimator

With slopes along unit vectors, of mean square ||grad f||^2 / d, ||g|| is about sqrt(M d) s_t. So whatever the unit of
the objective, the first step has about the length learning_rate sqrt(d) / M and the sum of the first M about
learning_rate sqrt(d), a distance: `learning_rate` for each coordinate. On a smooth function the slopes fall, the sum
converges and the rate stays; where they do not fall (kinks, noise) the rate does, as 1 / sqrt(t).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from blackbox.records import Vector

__all__ = ["NO_SCALE", "WINDOW", "Scale"]

WINDOW = 16
"""Steps whose sizes are kept: a few outliers among them do not move their median."""
UNUSUAL = 10.0
"""Medians beyond which a size counts no more in the sum: an outlier in the first steps is known only afterwards."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The sizes of the slopes told so far.

    Attributes
    ----------
    recent : (n,) n <= WINDOW sizes of the last steps whose slopes were not all zero, the newest last.
    older : root of the sum of squares of the sizes before them.
    """

    recent: Vector
    older: float

    def plus(self, slopes: Vector) -> Scale:
        """Return the scale after a step with the given (r,) finite slopes. Zeros say nothing about it."""
        size = _root_mean_square(slopes)
        if size == 0:
            return self
        recent, older = np.append(self.recent, size), self.older
        if len(recent) > WINDOW:
            older = math.hypot(older, min(float(recent[0]), UNUSUAL * float(np.median(recent))))
            recent = recent[1:]
        return Scale(recent, older)

    def rate(self, moment: float) -> float:
        """Return 1 / sqrt(M (M m^2 + S^2)) for the estimator's second moment M; 0 before the first slope."""
        if not len(self.recent):
            return 0.0
        middle = float(np.median(self.recent))
        sizes = np.minimum(self.recent, UNUSUAL * middle)
        return 1 / (math.sqrt(moment) * math.hypot(math.sqrt(moment) * middle, self.older, *sizes.tolist()))


NO_SCALE = Scale(np.empty(0), 0.0)


def _root_mean_square(slopes: Vector) -> float:
    """Return the root mean square of (r,) numbers, computed at the scale of the largest; 0 for none."""
    top = float(np.abs(slopes).max(initial=0.0))
    return top and top * math.sqrt(float(np.square(slopes / top).mean()))

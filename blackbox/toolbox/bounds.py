"""A normal distribution beside bounds: what it samples is unbounded, what it asks is not.

Folding at the bounds, as a space decodes, leaves a kink there, and the folded landscape repeats itself: with steps as
large as the box a step size does a random walk, and a minimum on a bound is no smooth minimum. Five rules together:

* The distribution lives in *inner* coordinates g, in which a bound is smooth. Inside, x = g; within `CURVED` of a bound
  x is quadratic, with slope zero at the bound itself, which is g = -CURVED or 1 + CURVED, as in pycma's BoundTransform.
  The map goes on beyond the bounds as x does, so that it is one to one, and x folded is a smooth function of g::

      x(g) = r^2 / (4 a)      for r = g + a in [0, 2 a],       a = CURVED, and alike at the upper bound

* The centre is kept inside.
* No standard deviation of a bounded coordinate exceeds `WIDEST`.
* A point beyond a bound that the centre is not near is ranked as if its value were worse: by `PENALTY` interquartile
  ranges of the values for a root mean square of one standard deviation beyond. Folded, it looks as good as its mirror
  image inside, and a distribution wider than the basin learns nothing from the difference. The quadratic penalty and
  its unit are those of Hansen, Niederberger, Guzzella and Koumoutsakos (2009), doi:10.1109/TEVC.2008.924423.
* One point of some steps, the *probe*, lies on every bound that the centre is within `PROBED` standard deviations of: a
  minimum in a corner, or on a face, is then found, not approached. The distribution did not draw it and does not learn
  from it.

The centre is *near* a bound within `NEAR` standard deviations. Why not otherwise (measured,
tests/benchmarks/ACCEPTANCE.md): points moved to the bound, or folded, before they are learned from, look like short
steps, and the step size shrinks before the minimum is reached; a penalty beside near bounds too keeps the centre away
from the corners.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from blackbox.records import Matrix, Vector
from blackbox.space import Space

CURVED = 0.003  # of the range. 0: twice the evaluations for a linear slope on a face; 0.01: f10 of BBOB takes 1.1 times
WIDEST = 1 / 3  # of the range, of any method: wider noise samples the folded landscape, where all places look alike
PENALTY = 10.0  # 0: f1, f10 and f11 of BBOB take 1.03, 1.05 and 1.08 times the evaluations
NEAR = 1.0  # standard deviations. 0.3: the corner of a slope, d = 20, takes five times the evaluations
PROBED = 2.0  # standard deviations. 1: the corner of a slope, d = 20, takes four times the evaluations


class Bounds:
    """The map between inner and internal coordinates of a space, and the limits of a distribution. Constants only."""

    def __init__(self, space: Space) -> None:
        self.exist = space.domain == "box"
        self.bounded = space.bounded
        self.columns = slice(None) if space.bounded.all() else space.bounded.nonzero()[0]
        self.low = np.where(space.bounded, -CURVED, -np.inf)
        self.high = np.where(space.bounded, 1 + CURVED, np.inf)

    def outer(self, inner: Matrix) -> Matrix:
        """Return (..., d) internal coordinates of inner ones; both unbounded, to be folded when they are decoded."""
        return self._where_bent(inner, _bend)

    def inner(self, outer: Matrix) -> Matrix:
        """Return the (..., d) inner coordinates of internal ones: the inverse of `outer`."""
        return self._where_bent(outer, _straighten)

    def start(self, point: Vector) -> Vector:
        """Return the (d,) centre of a distribution that begins at an internal point.

        On a bound the inner coordinates have slope zero, and small steps from there would come to nothing; so it
        begins a little inside.
        """
        return np.clip(self.inner(point), self.low + CURVED, self.high - CURVED) if self.exist else point

    def centre(self, mean: Vector) -> Vector:
        """Return the (d,) mean moved inside."""
        return np.minimum(np.maximum(mean, self.low), self.high) if self.exist else mean

    def excess(self, stds: Vector) -> float:
        """Return by how much the largest standard deviation of a bounded coordinate is too large; 1 if it is not."""
        return max(1.0, float(stds[self.columns].max()) / WIDEST) if self.exist else 1.0

    def probe(self, mean: Vector, stds: Vector) -> tuple[NDArray[np.bool_], Vector] | None:
        """Return which coordinates the probe has on a bound, (d,) bool, and on which, (d,); None if on none."""
        if not self.exist:
            return None
        side = np.where(mean < 0.5, 0.0, 1.0)
        near: NDArray[np.bool_] = self.bounded & (np.abs(mean - side) <= PROBED * stds)
        return (near, side) if near.any() else None

    def any_beyond(self, points: Matrix) -> bool:
        """Return whether a bounded coordinate of internal points is beyond a bound."""
        return self.exist and bool((self.bounded & (np.abs(points - 0.5) > 0.5)).any())

    def beyond(self, points: Matrix, mean: Vector, stds: Vector) -> Vector:
        """Return (n,) mean squares of how far internal points are beyond bounds that the centre is not near, in stds.

        Zero for a point that is inside.
        """
        below = np.where(self.bounded & (mean > NEAR * stds), -points, 0.0)
        above = np.where(self.bounded & (1 - mean > NEAR * stds), points - 1, 0.0)
        far = np.maximum(np.maximum(below, above), 0.0) / stds
        squares: Vector = np.vecdot(far, far) / len(mean)
        return squares

    def _where_bent(self, points: Matrix, change: Callable[[Vector], Vector]) -> Matrix:
        """Return the points with the coordinates changed that are not well inside: few, or none, as a rule."""
        if not self.exist:
            return points
        bent = self.bounded & (np.abs(points - 0.5) > 0.5 - CURVED)
        if bent.any():
            points = points.copy()
            points[bent] = change(points[bent])
        return points


def _bend(g: Vector) -> Vector:
    cell, r = _cells(g + CURVED, 1 + 2 * CURVED)
    up = 1 + 2 * CURVED - r
    low, high = r * r / (4 * CURVED), 1 - up * up / (4 * CURVED)
    return cell + np.where(r < 2 * CURVED, low, np.where(up < 2 * CURVED, high, r - CURVED))


def _straighten(x: Vector) -> Vector:
    cell, t = _cells(x, 1.0)
    low, high = np.sqrt(4 * CURVED * t) - CURVED, 1 + CURVED - np.sqrt(4 * CURVED * (1 - t))
    return cell * (1 + 2 * CURVED) + np.where(t < CURVED, low, np.where(t > 1 - CURVED, high, t))


def _cells(coordinates: Matrix, width: float) -> tuple[Matrix, Matrix]:
    """Return the numbers of the intervals of a width in which coordinates are, and the distances from their starts."""
    cell = np.floor(coordinates / width)
    return cell, np.clip(coordinates - cell * width, 0.0, width)

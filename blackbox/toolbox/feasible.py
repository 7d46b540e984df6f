"""Room for probes: centres of a gradient estimate around which every probe is feasible.

An objective is often defined inside its region only, and a study refuses points outside. A method keeps its iterate w
in the set C, all of it, and evaluates around a centre that stands back from the border:

* in a convex region with a ball of radius R around an inner point p (within the affine hull), the centre is
  w + k (p - w) with k = r / R for probes of length r: then centre + u is (1 - k) w + k (p + u / k), a mixture of two
  points of C. Directions are projected onto the tangent space; only their components there mean anything to C;
* between bounds, it is w clipped to [r, 1 - r], coordinate by coordinate;
* a free coordinate needs no room.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np

from blackbox.records import Vector
from blackbox.rng import Key
from blackbox.space import Space

__all__ = ["FARTHEST", "Room"]

FARTHEST = 1e15
"""Free coordinates stay below it, so that squares of them are finite."""
MOST = 0.5
"""The largest k: probes get shorter rather than centres farther from w."""


class Room:
    """Feasible centres, probes and iterates of a space.

    Parameters
    ----------
    space : a space of any domain.
    reach : largest norm of a direction, see `Directions.reach`.

    Attributes
    ----------
    longest : the largest radius that leaves room; infinity without bounds, 0 if no inner point of the region is known.
    """

    def __init__(self, space: Space, reach: float) -> None:
        self.space = space
        self.region = space.region if space.domain == "convex" else None
        if self.region is not None:
            self.point, inner = self.region.interior(space.dim)
        else:
            inner = 0.5 if space.domain == "box" else np.inf
        self.reach = reach
        self.inner = inner
        self.longest = MOST * inner / reach

    @cached_property
    def size(self) -> float:
        """How far apart points are, per coordinate: the range of a bounded one, 0.3 units of a free one, in a region
        the distance of its vertices from the initial point over sqrt(d)."""
        if self.region is None:
            return 1.0 if self.space.domain == "box" else 0.3
        d, key = self.space.dim, Key((0, 0))
        away = [self.region.vertex(key, 0, lane, d) - self.space.initial for lane in range(4)]
        return float(np.linalg.norm(away, axis=1).max()) / math.sqrt(d)

    def tangent(self, direction: Vector) -> Vector:
        """Return the (d,) component of a direction in the affine hull of the set."""
        return direction if self.region is None else self.region.tangent(direction)

    def centre(self, w: Vector, radius: float) -> Vector:
        """Return the (d,) point near the feasible `w` around which every probe `radius * tangent(u)` is feasible."""
        if self.region is not None:
            k = min(radius * self.reach / self.inner, MOST) if self.inner > 0 else 0.0
            return w + k * (self.point - w)
        if self.space.domain == "box":
            margin = min(radius * self.reach, MOST)
            return np.where(self.space.bounded, np.clip(w, margin, 1 - margin), w)
        return w

    def project(self, x: Vector) -> Vector:
        """Return the (d,) nearest feasible point; free coordinates are limited to `FARTHEST`."""
        x = np.clip(x, -FARTHEST, FARTHEST)
        if self.region is not None:
            return self.region.project(x)
        return np.where(self.space.bounded, np.clip(x, 0, 1), x) if self.space.domain == "box" else x

"""Gradient estimates from values: the probe of each lane, and the estimate from the results that arrive.

An `Estimator` plans the lanes of a step and reduces its results to an `Estimate` of the gradient itself: all factors
are inside, so learning rates, Frank-Wolfe gaps and Adam agree on what g is. With directions u_i, E[u u^T] = I / d, of
`directions` and the set R of those that can be used::

    y_i = (F(x + r u_i) - F(x)) / r                     forward: lane 0 is x, lane l > 0 is x + r u_{l-1}
    y_i = (F(x + r u_i) - F(x - r u_i)) / (2 r)         central: lanes 2i and 2i + 1 are x +- r u_i
    g   = d / |R| sum_{i in R} y_i u_i

No result that arrives is thrown away, and g stays unbiased for the gradient of the smoothed F as long as arrival does
not depend on the value (NaN and infinities count as missing). A value F(x + s r u_i) without its partner becomes the
slope s (value - b) / r against a baseline b that does not depend on u_i: F(x) if that is known; else the mean of the
midpoints of the whole pairs, which is F(x) up to a curvature term; else the mean of the other lone values (leave one
out: Kool, van Hoof, Welling 2019). More directions than planned are as good as the planned ones, so lost lanes are
replaced by further ones and never asked again.

Recipe methods use `differences` alone and leave the sum of noise to `recipes.weighted_noise_sum`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import pydantic
from numpy.typing import NDArray

from blackbox.options import Field, Options, Renamed
from blackbox.records import Ints, Matrix, Points, Vector, dense
from blackbox.registry import Outlook
from blackbox.rng import Key
from blackbox.toolbox.directions import Directions, Family
from blackbox.toolbox.schedules import AnySchedule, Constant

__all__ = [
    "STEEPEST",
    "Difference",
    "Estimate",
    "Estimator",
    "EstimatorOptions",
    "EstimatorResolved",
    "Slopes",
    "bounded_radius",
    "default_directions",
    "default_popsize",
    "differences",
    "directions_of",
    "popsize_of",
    "renamed_count",
    "roles",
]

Difference: TypeAlias = Literal["forward", "central"]

SHORTEST = 1e-12
"""Smallest distance of a probe from its centre, in internal units."""
STEEPEST = 1e100
"""Limit on the size of a slope, so that squares of a gradient are finite whatever an evaluator returns."""


@dataclass(frozen=True, slots=True)
class Slopes:
    """Directional slopes of one step.

    Attributes
    ----------
    index : (r,) int64 directions that can be used, ascending.
    slope : (r,) y_i, finite.
    value : F at the centre, as far as it is known: the base, else the mean of the midpoints; None without either.
    n_values : finite values among the results.
    """

    index: Ints
    slope: Vector
    value: float | None
    n_values: int

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A gradient estimate and its standard error.

    Attributes
    ----------
    gradient : (d,) estimate of the gradient; zeros if no direction could be used.
    error : standard error of `gradient` in the Euclidean norm, from the spread over the directions: the root of
        E||g - E g||^2. None with fewer than two directions. For orthonormal frames an upper bound.
    slopes : the slopes it was computed from.
    """

    gradient: Vector
    error: float | None
    slopes: Slopes

    def __len__(self) -> int:
        """Return the number of directions used, the effective batch size of schedules."""
        return len(self.slopes)


def roles(lanes: Sequence[int] | Ints, difference: Difference, base: bool = True) -> Ints:
    """Return (n, 2) int64: direction index and sign (+1, -1; 0 is the centre) of each lane.

    Parameters
    ----------
    lanes : (n,).
    difference : forward or central.
    base : forward only: lane 0 is the centre; otherwise lane l is direction l.
    """
    lane = np.asarray(lanes, dtype=np.int64)
    if difference == "central":
        return np.stack([lane // 2, 1 - 2 * (lane % 2)], axis=1)
    index = lane - base
    return np.stack([np.maximum(index, 0), np.where(index < 0, 0, 1)], axis=1)


def differences(
    note: Ints,
    values: Vector,
    radius: float,
    base: float | None = None,
    clip: float | None = None,
    usual: Vector | Sequence[float] = (),
) -> Slopes:
    """Compute the slopes along all directions whose results allow it.

    Parameters
    ----------
    note : (n, 2) direction and sign of each result, see `roles`; none twice. Any order.
    values : (n,) F, minimised; NaN and infinities count as missing.
    radius : r > 0, length of the displacements.
    base : F(x) from elsewhere, used where the step has no result at the centre.
    clip : limit on |y_i| in multiples of what is usual, for outliers and heavy tails; None: no limit. It biases g.
    usual : (m,) sizes of the slopes of earlier steps, see `toolbox.scales`. The limit is a multiple of the median of
        these and of the median of this step's |y_i|, zeros left out.
    """
    known = np.isfinite(values)
    index, sign, values = note[known, 0], note[known, 1], values[known]
    centre = values[sign == 0]
    with np.errstate(over="ignore", invalid="ignore"):  # the largest numbers: clipped below
        if len(centre):
            base = float(centre.mean())
        plus, minus = np.flatnonzero(sign > 0), np.flatnonzero(sign < 0)
        _, i, j = np.intersect1d(index[plus], index[minus], assume_unique=True, return_indices=True)
        p, m = values[plus[i]], values[minus[j]]
        lone = np.setdiff1d(np.flatnonzero(sign != 0), np.concatenate([plus[i], minus[j]]), assume_unique=True)
        if base is None and len(p):
            base = float((0.5 * p + 0.5 * m).mean())
        if base is not None:
            baseline: Vector = np.full(len(lone), base)
        elif len(lone) > 1:
            baseline = _means_of_the_others(values[lone])
        else:
            baseline, lone = np.empty(0), lone[:0]
        slope = np.concatenate([(p - m) / (2 * radius), sign[lone] * (values[lone] - baseline) / radius])
    slope = np.clip(np.nan_to_num(slope), -STEEPEST, STEEPEST)
    if clip is not None and slope.any():
        limit = clip * float(np.median([*usual, np.median(np.abs(slope[slope != 0]))]))
        slope = np.clip(slope, -limit, limit)
    used = np.concatenate([index[plus[i]], index[lone]])
    order = np.argsort(used, kind="stable")
    value = None if base is None or not np.isfinite(base) else base
    return Slopes(used[order], slope[order], value, int(known.sum()))


def _means_of_the_others(values: Vector) -> Vector:
    """Return each value's mean of all others, by sums from both sides: subtracting from the total would cancel."""
    before = np.concatenate([[0.0], np.cumsum(values)[:-1]])
    after = np.concatenate([np.cumsum(values[::-1])[:-1][::-1], [0.0]])
    means: NDArray[np.float64] = (before + after) / (len(values) - 1)
    return means


@dataclass(frozen=True, slots=True)
class Estimator:
    """The map from lanes to probes, and from their results to a gradient.

    Attributes
    ----------
    directions : the family.
    difference : forward or central.
    n_directions : directions of a step, q.
    base : forward only: whether lane 0 evaluates the centre. Without it the base comes from `reduce`'s argument, or
        slopes are taken against the mean of the other lanes.
    clip : see `differences`.
    tangent : projection of directions onto a linear subspace, or None: g is then the gradient's part in it.
    """

    directions: Directions
    difference: Difference
    n_directions: int
    base: bool = True
    clip: float | None = None
    tangent: Callable[[Vector], Vector] | None = None

    @property
    def need(self) -> int:
        """Results that close a step: 2 q central, q + 1 forward, q forward without a base."""
        return popsize_of(self.n_directions, self.difference, self.base)

    def plan(self, x: Vector, step: int, lanes: Sequence[int] | Ints, radius: float) -> Points:
        """Return the points of the given lanes, with direction and sign as note.

        Parameters
        ----------
        x : (d,) centre.
        step : address of the directions, together with the lane.
        lanes : (n,), in any order.
        radius : r > 0.
        """
        note = roles(lanes, self.difference, self.base)
        u = self._rows(step, note[:, 0])
        return dense(x + (radius * note[:, 1])[:, None] * u, note)

    def reduce(
        self,
        step: int,
        note: Ints,
        values: Vector,
        radius: float,
        base: float | None = None,
        usual: Vector | Sequence[float] = (),
    ) -> Estimate:
        """Estimate the gradient from the results of one step.

        Parameters
        ----------
        step, radius : as they were planned.
        note : (n, 2) as planned and given back.
        values : (n,) F; NaN and infinities count as missing.
        base : F(x) from elsewhere, if known.
        usual : see `differences`.
        """
        slopes = differences(note, values, radius, base, self.clip, usual)
        d, r = self.directions.dim, len(slopes)
        if not r:
            return Estimate(np.zeros(d), None, slopes)
        u = self._rows(step, slopes.index)
        g = (d / r) * (slopes.slope @ u)
        if r < 2:
            return Estimate(g, None, slopes)
        squares = d * d * np.square(slopes.slope) * np.square(u).sum(axis=1)
        spread = max(float(squares.sum()) - r * float(g @ g), 0.0)
        return Estimate(g, float(np.sqrt(spread / (r * (r - 1)))), slopes)

    def _rows(self, step: int, indices: Ints) -> Matrix:
        u = self.directions.rows(step, indices)
        return u if self.tangent is None else np.array([self.tangent(row) for row in u]).reshape(u.shape)


def popsize_of(n_directions: int, difference: Difference, base: bool = True) -> int:
    """Return the results of a step with q directions: 2 q central, q + 1 forward, q forward without a base."""
    return 2 * n_directions if difference == "central" else n_directions + base


def directions_of(popsize: int, difference: Difference) -> int:
    """Return the directions of a step with `popsize` results, its base among them: the inverse of `popsize_of`.

    Raises
    ------
    ValueError
        If central differences are asked of an odd number of results.
    """
    if difference == "forward":
        return popsize - 1
    if popsize % 2:
        raise ValueError(f"must be even for mirrored pairs, got {popsize}; use {popsize + 1}")
    return popsize // 2


def renamed_count(default: Callable[[Mapping[str, Any]], Difference]) -> Renamed:
    """Declare that the option `count`, directions per step, has become `popsize`, results per step.

    Parameters
    ----------
    default : maps stored options to the kind of difference that the method takes where they name none.
    """

    def convert(count: Any, stored: Mapping[str, Any]) -> int:
        return popsize_of(int(count), stored.get("difference") or default(stored))

    unit = "results: two for each direction with central differences, one and one more with forward ones"
    return Renamed("popsize", since="0.2", convert=convert, unit=unit)


class EstimatorOptions(Options):
    """Options of methods that estimate a gradient in dense vectors. Lengths are in internal units."""

    directions: Family | None = None
    """Family of the random directions. None: orthonormal frames, which have the least variance (normal numbers in one
    dimension)."""
    difference: Difference = "central"
    """central: two results per direction and an error of second order; forward: one, and one for the centre of the
    step. A half whose partner is lost counts one-sided."""
    popsize: int | None = Field(None, ge=2)
    """Results per step: 2 q central, and so even, q + 1 forward, for q directions. None: those of
    q = 2 + floor(1.5 ln d), at most d. With W workers choose at least W."""
    radius: AnySchedule = Constant(value=0.01)
    """Length of a probe's displacement, by step; the default is a hundredth of the range of a bounded parameter. With
    noise of size s in the values and third derivatives of size M choose about (3 s / M)^(1/3); without noise 1e-4 or
    less. It is shortened where the region has no room for it."""
    clip: float | None = Field(10.0, gt=0)
    """Limit on the slope along a direction, in multiples of the median of the last 16 steps: one value of 1e10 among
    thousands counts as a steep slope, no more. None: no limit."""

    renamed: ClassVar[Mapping[str, Renamed]] = {"count": renamed_count(lambda stored: "central")}

    @pydantic.field_validator("popsize")
    @classmethod
    def _fits(cls, popsize: int | None, info: pydantic.ValidationInfo) -> int | None:
        if popsize is not None and "difference" in info.data:
            directions_of(popsize, info.data["difference"])
        return popsize

    @pydantic.field_validator("radius")
    @classmethod
    def _starts_positive(cls, schedule: AnySchedule) -> AnySchedule:
        if not schedule(0) > 0:
            raise ValueError(f"must be positive at step 0, got {schedule(0)}")
        return schedule


class EstimatorResolved(EstimatorOptions):
    """The options with every default filled in."""

    directions: Family
    popsize: int

    @property
    def n_directions(self) -> int:
        """Directions of a step, q."""
        return directions_of(self.popsize, self.difference)

    def estimator(self, key: Key, dim: int, tangent: Callable[[Vector], Vector] | None = None) -> Estimator:
        """Return the estimator of these options in `dim` dimensions; see `Estimator` for `tangent`."""
        directions = Directions(self.directions, key, dim, min(self.n_directions, dim))
        return Estimator(directions, self.difference, self.n_directions, clip=self.clip, tangent=tangent)


def default_directions(dim: int) -> int:
    """Return 2 + floor(1.5 ln d), at most d: 5 at 10 dimensions, 12 at a thousand."""
    return min(dim, 2 + int(1.5 * math.log(dim)))


def default_popsize(options: EstimatorOptions, dim: int, outlook: Outlook) -> int:
    """Return the option `popsize`, or where it is None the results of the default directions, at least one a worker."""
    default = popsize_of(default_directions(dim), options.difference)
    return options.popsize or outlook.popsize(default, even=options.difference == "central")


def bounded_radius(wanted: float, longest: float) -> float:
    """Return the radius to use: at most the room there is, and not so short that x + r u would be x."""
    return max(min(wanted, longest), SHORTEST)

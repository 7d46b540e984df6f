"""Schemes: the points that a gradient of the objective needs, and the averaged gradient from their values.

A scheme sees the iterate w and what was averaged so far. It plans the lanes of a step and reduces the
results that arrive to the next average gbar_t, each in its own way::

    irdsa, rdsa, kwsa   gbar_t = (1 - rho_t) gbar_{t-1} + rho_t g_t, g_t from the slopes along random directions, one of
                        them, or all coordinates                                        Sahu, Zaheer, Kar (2019)
    jaguar              a memory h of slopes along coordinates, of which the B oldest are renewed per step
                                                                                        Veprikov et al. (2024)
    vertices            a memory h, corrected in the least squares sense to agree with the slopes along m chords

Probes surround a centre that stands back from the border of the set (`toolbox.feasible`); those of `vertices` lie on
chords from w itself to vertices, so that no inner point needs to be known.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias

import numpy as np

from blackbox.records import Ints, Matrix, Points, Vector, dense
from blackbox.regions import Region
from blackbox.rng import Key, permutation
from blackbox.toolbox.directions import Family
from blackbox.toolbox.estimators import STEEPEST, Difference, Estimator, bounded_radius, differences, roles
from blackbox.toolbox.feasible import Room
from blackbox.toolbox.frank_wolfe.state import ZoFrankWolfeState as State

__all__ = ["SCHEMES", "SHARE_OF_ROOM", "Average", "Chords", "Jaguar", "Scheme", "SchemeName", "Tools"]

SchemeName: TypeAlias = Literal["irdsa", "rdsa", "kwsa", "jaguar", "vertices"]

SHARE_OF_ROOM = 1e-3
"""Default radius, as a share of the inner radius of the region."""


@dataclass(frozen=True, slots=True)
class Average:
    """The gradient as a scheme knows it after a step.

    Attributes
    ----------
    gradient : (d,) gbar_t.
    value : F at the centre of the step; None if it was not told.
    memory : (d,) slopes in memory; empty for schemes without one.
    renewed : (d,) the t at which a coordinate of the memory was renewed, -1 for never; empty but for jaguar.
    """

    gradient: Vector
    value: float | None
    memory: Vector
    renewed: Ints


@dataclass(frozen=True, slots=True)
class Tools:
    """The parts that a scheme is built from.

    Attributes
    ----------
    estimator : directions of its family, kind of differences, directions or coordinates per step, clipping.
    room, region : the set, with and without the centres of probes.
    noise : key of all noise but the directions.
    rho : (t, second moment of the estimate) to the weight of the newest gradient, in [0, 1].
    """

    estimator: Estimator
    room: Room
    region: Region
    noise: Key
    rho: Callable[[int, float], float]


class Scheme(ABC):
    """One way to get gradients from values. Instances hold constants only.

    Attributes
    ----------
    most_directions : default number of directions (coordinates, chords) per step, where there are as many dimensions.
    fixed : the directions that are always taken, if there is no choice; empty if there is.
    family : the family of directions that it requires; None: that of the options.
    difference : the default differences.
    averaging : the default weight of the newest gradient; None: the paper's schedule.
    anywhere : whether it needs no inner point of the region.
    """

    most_directions: ClassVar[int] = 6
    fixed: ClassVar[str] = ""
    family: ClassVar[Family | None] = None
    difference: ClassVar[Difference] = "forward"
    averaging: ClassVar[float | None] = None
    anywhere: ClassVar[bool] = False

    def __init__(self, tools: Tools) -> None:
        self.tools = tools

    # -- defaults of options

    @classmethod
    def directions(cls, dim: int) -> int:
        """Return the default number of directions per step."""
        return min(cls.most_directions, dim)

    @classmethod
    def radius_for(cls, inner: float) -> float:
        """Return the default length of a probe in a region of the given inner radius."""
        return SHARE_OF_ROOM * inner if np.isfinite(inner) else SHARE_OF_ROOM

    @classmethod
    def offset(cls, dim: int, n_directions: int) -> float:
        """Return the least o of step sizes 2 / (t + o) with which the average keeps up with the iterate."""
        return 0.0

    # -- positions of probes

    @property
    def longest(self) -> float:
        """The longest radius."""
        return self.tools.room.longest

    def centre(self, w: Vector, radius: float) -> Vector:
        """Return the (d,) point at which F stands for F(w)."""
        return self.tools.room.centre(w, radius)

    def around(self, radius: float) -> float:
        """Return the radius of probes that surround a centre, if those of the scheme have the given one."""
        return radius

    # -- a gradient

    def blank(self) -> tuple[Vector, Ints]:
        """Return the memory and the ages of its entries before the first gradient."""
        return np.zeros(0), np.zeros(0, dtype=np.int64)

    def need(self, state: State, base: float | None) -> int:
        """Return the results that make a gradient; `base` is F at the centre if known: then no lane evaluates it."""
        return replace(self.tools.estimator, base=base is None).need

    @abstractmethod
    def plan(self, state: State, lanes: Ints, radius: float, base: float | None) -> Points:
        """Return the probes of the given lanes, with notes that identify them."""

    @abstractmethod
    def reduce(self, state: State, note: Ints, values: Vector, radius: float, base: float | None) -> Average | None:
        """Return the average with the results of a step; None if they allow no estimate.

        Parameters
        ----------
        note : (n, 2) as planned and given back.
        values : (n,) F; NaN and infinities count as missing.
        radius, base : as they were planned with.
        """


class RandomDirections(Scheme):
    """irdsa: the mean of d y_i u_i over a few random directions u_i with slopes y_i, averaged over the steps."""

    def plan(self, state: State, lanes: Ints, radius: float, base: float | None) -> Points:
        estimator = replace(self.tools.estimator, base=base is None)
        return estimator.plan(self.centre(state.w, radius), state.step, lanes, radius)

    def reduce(self, state: State, note: Ints, values: Vector, radius: float, base: float | None) -> Average | None:
        estimate = self.tools.estimator.reduce(state.step, note, values, radius, base)
        if not len(estimate):
            return None
        moment = self.tools.estimator.directions.second_moment(len(estimate))
        rho = 1.0 if state.t == 0 else self.tools.rho(state.t, moment)
        gradient = (1 - rho) * state.gradient + rho * estimate.gradient
        return Average(gradient, estimate.slopes.value, state.memory, state.renewed)


class OneDirection(RandomDirections):
    """rdsa: one random direction."""

    most_directions = 1
    fixed = "one direction"


class EveryCoordinate(RandomDirections):
    """kwsa: every coordinate in every step. Its forward differences have a bias."""

    fixed = "every coordinate"
    family: ClassVar[Family | None] = "coordinate"
    difference: ClassVar[Difference] = "central"

    @classmethod
    def directions(cls, dim: int) -> int:
        return dim


class Jaguar(Scheme):
    """A memory of slopes along coordinates, of which the oldest are renewed per step: arXiv:2409.10442.

    The first step evaluates them all. Lost ones stay the oldest and are renewed next.
    """

    most_directions = 25
    family: ClassVar[Family | None] = "coordinate"
    difference: ClassVar[Difference] = "central"
    averaging = 1.0

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        self.dim = tools.estimator.directions.dim
        self.order = permutation(tools.noise, 0, 0, self.dim)

    @classmethod
    def offset(cls, dim: int, n_directions: int) -> float:
        return 2 * dim / n_directions

    def blank(self) -> tuple[Vector, Ints]:
        return np.zeros(self.dim), np.full(self.dim, -1, dtype=np.int64)

    def need(self, state: State, base: float | None) -> int:
        return 2 * max(self.tools.estimator.n_directions, int(np.count_nonzero(state.renewed < 0)))

    def plan(self, state: State, lanes: Ints, radius: float, base: float | None) -> Points:
        note = roles(lanes, "central")
        u = np.zeros((len(lanes), self.dim))
        u[np.arange(len(lanes)), self._oldest(state)[note[:, 0] % self.dim]] = 1.0
        tangents = np.array([self.tools.room.tangent(row) for row in u]).reshape(u.shape)
        return dense(self.centre(state.w, radius) + (radius * note[:, 1])[:, None] * tangents, note)

    def reduce(self, state: State, note: Ints, values: Vector, radius: float, base: float | None) -> Average | None:
        slopes = differences(note, values, radius, base, self.tools.estimator.clip)
        if not len(slopes):
            return None
        where = self._oldest(state)[slopes.index % self.dim]
        old, memory, renewed = state.memory, state.memory.copy(), state.renewed.copy()
        memory[where] = slopes.slope
        renewed[where] = state.t
        rho, gradient = self.tools.rho(state.t, 1.0), memory
        if rho < 1 and not (state.renewed < 0).any():  # h + (d / B) sum_i (y_i - h_i) e_i, without bias
            unbiased = old + self.dim / len(np.unique(where)) * (memory - old)
            gradient = (1 - rho) * state.gradient + rho * unbiased
        return Average(gradient, slopes.value, memory, renewed)

    def _oldest(self, state: State) -> Ints:
        """Return the (d,) coordinates, the least recently renewed first; ties in a fixed random order."""
        return self.order[np.argsort(state.renewed[self.order], kind="stable")]


class Chords(Scheme):
    """vertices: the smallest change of the memory h after which <h, v_i - w> are the slopes along m random chords.

    A radius is a share of the chord.
    """

    averaging = 1.0
    anywhere = True

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        self.noise = tools.noise.child("vertex")

    @classmethod
    def radius_for(cls, inner: float) -> float:
        return SHARE_OF_ROOM

    @property
    def longest(self) -> float:
        return 1.0

    def centre(self, w: Vector, radius: float) -> Vector:
        return w

    def around(self, radius: float) -> float:
        room = self.tools.room
        return bounded_radius(min(SHARE_OF_ROOM * room.inner, 1.0), room.longest)

    def blank(self) -> tuple[Vector, Ints]:
        return np.zeros(self.tools.room.space.dim), np.zeros(0, dtype=np.int64)

    def plan(self, state: State, lanes: Ints, radius: float, base: float | None) -> Points:
        note = roles(lanes, "forward", base is None)
        return dense(state.w + (radius * note[:, 1])[:, None] * self.chords(state, note[:, 0]), note)

    def reduce(self, state: State, note: Ints, values: Vector, radius: float, base: float | None) -> Average | None:
        known = np.isfinite(values)
        at, index, values = note[known, 1] == 0, note[known, 0], values[known]
        if at.any():
            base = float(values[at][0])
        value, chords, y = base, self.chords(state, index[~at]), values[~at]
        if base is None and len(y) > 1:  # against one another: the mean chord has the mean value
            base = float((y / len(y)).sum())
            chords = chords - chords.mean(axis=0)
        if base is None or not len(y):
            return None
        slopes = np.clip((y - base) / radius, -STEEPEST, STEEPEST)
        change = np.linalg.lstsq(chords, slopes - chords @ state.memory, rcond=1e-10)[0]
        memory = state.memory + self.tools.rho(state.t, 1.0) * change
        return Average(memory, value, memory, state.renewed) if np.isfinite(memory).all() else None

    def chords(self, state: State, indices: Ints) -> Matrix:
        """Return the (n, d) chords v_i - w to random vertices v_i of the open step."""
        step, d = state.step + 1, state.w.size  # step 0 is the start's
        vertices = [self.tools.region.vertex(self.noise, step, i, d) for i in indices.tolist()]
        chords: Matrix = np.array(vertices).reshape(len(indices), d) - state.w
        return chords


SCHEMES: Mapping[SchemeName, type[Scheme]] = {
    "irdsa": RandomDirections,
    "rdsa": OneDirection,
    "kwsa": EveryCoordinate,
    "jaguar": Jaguar,
    "vertices": Chords,
}

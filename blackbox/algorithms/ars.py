"""Augmented random search: random directions, the differences of their best, scaled by the spread of the values.

Mania, Guy, Recht (2018), Simple random search provides a competitive approach to reinforcement learning,
arXiv:1803.07055, algorithm 2, and the authors' code (modestyachts/ARS). Lanes 2i and 2i + 1 share noise delta_i::

    x_l = theta + s_l nu delta_i,   i = floor(l / 2),   s_l = +1 for even l, -1 for odd l             ask
    keep the b directions with the lowest min(f_i+, f_i-) of the told values; k lanes in all
    sigma_R = population standard deviation of the k kept values, f_R their mean
    theta <- theta - alpha / ((k / 2) sigma_R) sum_l (f_l - f_R) s_l delta_i                           tell

Between bounds theta stays in [0, 1], and the centre of the perturbations is theta stood back from the bounds by nu: on
a bound both lanes of a pair would be folded to one point. After a step in which all pairs tie it is displaced by nu.

Of a whole pair the sum has (f_i+ - f_i-) delta_i, as in the paper (f_R cancels), and k / 2 is b. A half pair, whose
other lane was lost, counts one-sided with half the weight. With b = N this is the paper's V1; with `observations` the
evaluators tell sums of what they saw and get mean and standard deviation back, which is its V2; b < N is its "-t".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pydantic
from numpy.typing import NDArray

from blackbox.algorithm import Algorithm, Traits, algorithm
from blackbox.errors import FieldError
from blackbox.options import Field, Options, Renamed
from blackbox.recipes import digest, weighted_noise_sum
from blackbox.records import JSON, Ints, Notice, Pending, Points, Results, Stop, Term, Vector
from blackbox.registry import UNKNOWN, Outlook
from blackbox.rng import Key
from blackbox.space import Space
from blackbox.toolbox import alarms, observations, perturbations, steppers
from blackbox.toolbox.observations import Moments
from blackbox.toolbox.perturbations import Walls, paired, twice
from blackbox.toolbox.schedules import Constant, PositiveSchedule, crossing
from blackbox.toolbox.values import lower


class ArsOptions(Options):
    """Options of `ars`. Lengths are in internal units: bounded parameters are the unit interval."""

    popsize: int | None = Field(None, ge=2, json_schema_extra={"multipleOf": 2})
    """Results per step, even: two for each of N = popsize / 2 directions. None: 16, or two for each of `top`, or as
    many as there are workers."""
    top: int | None = Field(None, ge=1)
    """Directions that count (b), those with the best value; ties at the edge count too. None: all N."""
    sigma: PositiveSchedule = Constant(value=0.03)
    """Length of a perturbation per coordinate, by step (the paper's nu). Kept above 1e-8, and between bounds at most a
    third of the range."""
    learning_rate: PositiveSchedule | None = None
    """Step size by step (alpha). Values are divided by their spread, so it is a distance; about sigma. None: with a
    budget what crosses the box a few times, falling to a fiftieth of it; without one 0.02, and where coordinates are
    free at least 0.02 at first."""
    observations: int | None = Field(None, ge=1, le=100_000)
    """Length of an observation. Evaluators then tell {"value", "sums": {"count", "total", "squares"}} and normalise by
    the mean and standard deviation in their payload (V2). None: no statistics (V1)."""

    renamed: ClassVar[Mapping[str, Renamed]] = {
        "directions": Renamed("popsize", since="0.2", convert=twice, unit="results, two for each direction")
    }
    _paired = pydantic.field_validator("popsize")(paired)

    @pydantic.model_validator(mode="after")
    def _top_of_them(self) -> ArsOptions:
        if self.top is not None and self.popsize is not None and self.top > self.popsize // 2:
            raise ValueError(f"top must be at most popsize / 2 = {self.popsize // 2}, got {self.top}")
        return self


class ArsResolved(ArsOptions):
    """The options with every default filled in."""

    popsize: int
    top: int
    learning_rate: PositiveSchedule


@dataclass(frozen=True, slots=True)
class ArsState:
    """State of `ars` between two steps; d is the dimension.

    Attributes
    ----------
    step : steps closed.
    theta : (d,) float32, the iterate; bounded coordinates in [0, 1].
    digest : name of the base of the open step's recipes, which is theta, stood back from bounds and displaced after
        ties.
    best : lowest value told so far, or None.
    mean, spread : mean and standard deviation of the values that counted in the last step that had some, or None.
    move_norm : norm of the last move of theta; 0 before the first one.
    flat : steps in a row, up to the last one, in which all pairs tied.
    seen : sums over the observations told so far; of length 0 without the option `observations`.
    """

    step: int
    theta: NDArray[np.float32]
    digest: str
    best: float | None
    mean: float | None
    spread: float | None
    move_norm: float
    flat: int
    seen: Moments


@algorithm("ars", Traits(encoding="recipe"))
class Ars(Algorithm[ArsResolved, ArsState]):
    """Augmented random search: few options, linear policies, noisy returns. V1, V2 and the -t variants.

    Mania et al. (2018), arXiv:1803.07055. Unlike ranks the values themselves weigh, so a constant bonus does not
    matter, but an outlier does: it decides the direction of one step, whose length is limited. An infeasible point
    counts as the worst value of its step, so that it is stepped away from; results of closed steps are not told. A step
    whose values are all equal moves nothing.
    """

    # 2026-11: bounds that no mirrored pair is folded onto, a default rate that crosses the box, kicks after ties.
    revision = 2
    Options = ArsOptions
    Resolved = ArsResolved
    State = ArsState

    def __init__(self, space: Space, options: ArsResolved, key: Key, stream: int = 0) -> None:
        super().__init__(space, options, key, stream)
        self.walls = Walls(space)
        self.kicks = alarms.kicks(self.noise)

    @classmethod
    def resolve(cls, options: ArsOptions, space: Space, outlook: Outlook = UNKNOWN) -> ArsResolved:
        popsize = options.popsize or outlook.popsize(max(16, 2 * (options.top or 0)), even=True)
        # Of each move sqrt(d / b) is noise: it must not add up to more than a range where directions are few.
        length = min(space.dim, (outlook.evaluations or 0) / 128) ** 0.5
        rate = crossing(space, outlook, popsize, length, least=0.02)
        return options.with_defaults(ArsResolved, popsize=popsize, top=popsize // 2, learning_rate=rate)

    @classmethod
    def memory(cls, options: ArsResolved, space: Space) -> int:
        return 44 * space.dim + 1024 * options.popsize  # theta twice, centre, the sum, the move, and recipes

    def init(self) -> ArsState:
        theta = perturbations.centre(self.space)
        seen = Moments.zero(self.options.observations)
        return self._named(ArsState(0, theta, "", None, None, None, 0.0, 0, seen))

    def need(self, state: ArsState) -> int:
        return self.options.popsize

    def base(self, state: ArsState) -> NDArray[np.float32]:
        return self.walls.centre(state.theta, self._sigma(state.step), (self.kicks, state.step) if state.flat else None)

    def ask(self, state: ArsState, lanes: Sequence[int], pending: Pending) -> Points:
        first = Term(self.stream, state.step, 0, self._sigma(state.step))
        return perturbations.mirrored(state.digest, first, lanes, self.payload(state))

    def tell(self, state: ArsState, results: Results) -> ArsState:
        state = replace(state, seen=state.seen.plus(results.extra))
        recipes = results.recipes
        finite = results.scalar[np.isfinite(results.scalar)]
        if not recipes or not len(finite):
            return self._named(replace(state, step=state.step + 1))
        lowest = float(finite.min())
        values = np.clip(np.where(np.isnan(results.scalar), np.inf, results.scalar), lowest, finite.max())
        kept = np.flatnonzero(among_the_best(values, results.lane // 2, self.options.top))
        centred, mean, spread = standardised(values[kept])
        state = replace(
            state,
            step=state.step + 1,
            best=lower(state.best, lowest),
            mean=mean,
            spread=spread,
            move_norm=0.0,
            flat=state.flat + 1 if alarms.tied(results.lane, values) else 0,
        )
        if not centred.any():
            return self._named(state)
        rate = perturbations.rate(self.options.learning_rate, state.step - 1)
        weights = (centred * (2 / len(kept))).tolist()
        terms = perturbations.weighted([recipes[row] for row in kept], weights)
        move = -rate * weighted_noise_sum(terms, self.key, self.space.dim, slicer=self.slicer)
        theta = self.walls.inside(perturbations.moved(state.theta, move))
        return self._named(replace(state, theta=theta, move_norm=steppers.norm(steppers.square_sums(move))))

    def recommend(self, state: ArsState) -> Vector:
        return state.theta.astype(np.float64)

    def lacks(self, extra: Mapping[str, Any]) -> FieldError | None:
        return observations.lack(extra, self.options.observations)

    def payload(self, state: ArsState) -> JSON:
        return state.seen.payload()

    def metrics(self, state: ArsState) -> Mapping[str, float]:
        found = {} if state.best is None else {"best": state.best}
        if state.mean is not None and state.spread is not None:
            found |= {"step_mean": state.mean, "step_spread": state.spread}
        found |= {"step": float(state.step), "sigma": self._sigma(state.step), "move_norm": state.move_norm}
        return found | state.seen.metrics()

    def stopped(self, state: ArsState) -> Stop | None:
        return alarms.diverged(
            self.space, state.theta, self._sigma(state.step), "take a smaller learning_rate, or a larger unit"
        )

    def notices(self, state: ArsState) -> Sequence[Notice]:
        return alarms.notices(state.flat, self._sigma(state.step))

    def _named(self, state: ArsState) -> ArsState:
        return replace(state, digest=digest(self.base(state)))

    def _sigma(self, step: int) -> float:
        return self.walls.size(self.options.sigma, step)


def among_the_best(values: Vector, pair: Ints, top: int) -> NDArray[np.bool_]:
    """Select the rows of the `top` directions with the lowest value on either side; ties at the edge are all selected.

    Parameters
    ----------
    values : (k,) finite.
    pair : (k,) number of each row's direction.
    top : directions to select.

    Returns
    -------
    (k,) bool.

    Notes
    -----
    The authors keep every direction at or above a percentile, so ties may keep more than `top` there too.
    """
    names, place = np.unique(pair, return_inverse=True)
    lowest = np.full(len(names), np.inf)
    np.minimum.at(lowest, place, values)
    edge = np.sort(lowest)[min(top, len(names)) - 1]
    chosen: NDArray[np.bool_] = (lowest <= edge)[place]
    return chosen


def standardised(values: Vector) -> tuple[Vector, float, float]:
    """Subtract the mean of values and divide by their population standard deviation.

    Computed at the scale of the largest value, so that no square overflows or vanishes.

    Parameters
    ----------
    values : (k,) finite, k >= 1.

    Returns
    -------
    The (k,) standardised values (zeros if the deviation is 0), the mean, and the deviation.
    """
    scale = float(np.abs(values).max()) or 1.0
    mean = float((values / scale).mean())
    centred = values / scale - mean
    deviation = float(np.sqrt((centred * centred).mean()))
    if deviation <= 1e-14:  # the rounding of the mean
        return np.zeros(len(values)), mean * scale, 0.0
    return centred / deviation, mean * scale, deviation * scale

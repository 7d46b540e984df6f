"""Augmented random search: random directions, the differences of their best, scaled by the spread of the values.

Mania, Guy, Recht (2018), Simple random search provides a competitive approach to reinforcement learning,
arXiv:1803.07055, algorithm 2, and the authors' code (modestyachts/ARS). Lanes 2i and 2i + 1 share noise delta_i::

    x_l = theta + s_l nu delta_i,   i = floor(l / 2),   s_l = +1 for even l, -1 for odd l             ask
    keep the b directions with the lowest min(f_i+, f_i-) of the told values; k lanes in all
    sigma_R = population standard deviation of the k kept values, f_R their mean
    theta <- theta - alpha / ((k / 2) sigma_R) sum_l (f_l - f_R) s_l delta_i                           tell

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
from blackbox.records import JSON, Ints, Pending, Points, Results, Term, Vector
from blackbox.registry import UNKNOWN, Outlook
from blackbox.space import Space
from blackbox.toolbox import observations, perturbations, steppers
from blackbox.toolbox.observations import Moments
from blackbox.toolbox.perturbations import paired, twice
from blackbox.toolbox.schedules import Constant, PositiveSchedule
from blackbox.toolbox.values import lower


class ArsOptions(Options):
    """Options of `ars`. Lengths are in internal units: bounded parameters are the unit interval."""

    popsize: int = Field(16, ge=2, json_schema_extra={"multipleOf": 2})
    """Results per step, even: two for each of N = popsize / 2 directions. With W workers choose at least W."""
    top: int | None = Field(None, ge=1)
    """Directions that count (b), those with the best value; ties at the edge count too. None: all N."""
    sigma: PositiveSchedule = Constant(value=0.03)
    """Length of a perturbation per coordinate, by step (the paper's nu). Kept above 1e-8."""
    learning_rate: PositiveSchedule = Constant(value=0.02)
    """Step size by step (alpha). Values are divided by their spread, so it is a distance; about sigma."""
    observations: int | None = Field(None, ge=1, le=100_000)
    """Length of an observation. Evaluators then tell {"value", "sums": {"count", "total", "squares"}} and normalise by
    the mean and standard deviation in their payload (V2). None: no statistics (V1)."""

    renamed: ClassVar[Mapping[str, Renamed]] = {
        "directions": Renamed("popsize", since="0.2", convert=twice, unit="results, two for each direction")
    }
    _paired = pydantic.field_validator("popsize")(paired)

    @pydantic.model_validator(mode="after")
    def _top_of_them(self) -> ArsOptions:
        if self.top is not None and self.top > self.popsize // 2:
            raise ValueError(f"top must be at most popsize / 2 = {self.popsize // 2}, got {self.top}")
        return self


class ArsResolved(ArsOptions):
    """The options with every default filled in."""

    top: int


@dataclass(frozen=True, slots=True)
class ArsState:
    """State of `ars` between two steps; d is the dimension.

    Attributes
    ----------
    step : steps closed.
    theta : (d,) float32, the centre and the base of the open step's recipes.
    digest : name of theta, see `digest`.
    best : lowest value told so far, or None.
    mean, spread : mean and standard deviation of the values that counted in the last step that had some, or None.
    move_norm : norm of the last move of theta; 0 before the first one.
    seen : sums over the observations told so far; of length 0 without the option `observations`.
    """

    step: int
    theta: NDArray[np.float32]
    digest: str
    best: float | None
    mean: float | None
    spread: float | None
    move_norm: float
    seen: Moments


@algorithm("ars", Traits(encoding="recipe"))
class Ars(Algorithm[ArsResolved, ArsState]):
    """Augmented random search: few options, linear policies, noisy returns. V1, V2 and the -t variants.

    Mania et al. (2018), arXiv:1803.07055. Unlike ranks the values themselves weigh, so a constant bonus does not
    matter, but an outlier does. An infeasible point counts as the worst value of its step, so that it is stepped away
    from; results of closed steps are not told. A step whose values are all equal moves nothing.
    """

    Options = ArsOptions
    Resolved = ArsResolved
    State = ArsState

    @classmethod
    def resolve(cls, options: ArsOptions, space: Space, outlook: Outlook = UNKNOWN) -> ArsResolved:
        return options.with_defaults(ArsResolved, top=options.popsize // 2)

    @classmethod
    def memory(cls, options: ArsResolved, space: Space) -> int:
        return 40 * space.dim + 1024 * options.popsize  # theta twice, the sum, the move, and recipes

    def init(self) -> ArsState:
        theta = perturbations.centre(self.space)
        seen = Moments.zero(self.options.observations)
        return ArsState(0, theta, digest(theta), None, None, None, 0.0, seen)

    def need(self, state: ArsState) -> int:
        return self.options.popsize

    def base(self, state: ArsState) -> NDArray[np.float32]:
        return state.theta

    def ask(self, state: ArsState, lanes: Sequence[int], pending: Pending) -> Points:
        first = Term(self.stream, state.step, 0, perturbations.size(self.options.sigma, state.step))
        return perturbations.mirrored(state.digest, first, lanes, self.payload(state))

    def tell(self, state: ArsState, results: Results) -> ArsState:
        state = replace(state, seen=state.seen.plus(results.extra))
        recipes = results.recipes
        finite = results.scalar[np.isfinite(results.scalar)]
        if not recipes or not len(finite):
            return replace(state, step=state.step + 1)
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
        )
        if not centred.any():
            return state
        rate = perturbations.rate(self.options.learning_rate, state.step - 1)
        weights = (centred * (2 / len(kept))).tolist()
        terms = perturbations.weighted([recipes[row] for row in kept], weights)
        move = -rate * weighted_noise_sum(terms, self.key, self.space.dim, slicer=self.slicer)
        theta = perturbations.moved(state.theta, move)
        move_norm = steppers.norm(steppers.square_sums(move))
        return replace(state, theta=theta, digest=digest(theta), move_norm=move_norm)

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
        sigma = perturbations.size(self.options.sigma, state.step)
        found |= {"step": float(state.step), "sigma": sigma, "move_norm": state.move_norm}
        return found | state.seen.metrics()


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

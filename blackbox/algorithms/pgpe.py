"""PGPE with ClipUp: a search Gaussian with a standard deviation per coordinate, followed at a limited speed.

Sehnke, Osendorfer, Rueckstiess, Graves, Peters, Schmidhuber (2010), Parameter-exploring policy gradients,
doi:10.1016/j.neunet.2009.12.004; ClipUp and the settings: Toklu, Liskowski, Srivastava (2020), arXiv:2008.02387, and
the authors' EvoTorch. Lanes 2i and 2i + 1 share noise z_i::

    x_l = mu + s_l s z_i,   i = floor(l / 2),   s_l = +1 for even l, -1 for odd l                       ask
    u   = centred ranks of the k told values, the best -1/2, the worst +1/2                       values are minimised
    g   = 1/k sum_l u_l s_l s z_i                      of a whole pair: (u_i+ - u_i-) / 2 per direction
    h   = 1/k sum_l u_l s (z_i^2 - 1)                  of a whole pair: (u_i+ + u_i-) / 2 per direction
    v   <- momentum v - rate g / ||g||,   v <- v min(1, max_speed / ||v||),   mu <- mu + v              ClipUp
    s   <- s clipped to (1 +- max_change) of itself after  s - stdev_rate h,  then to [stdev_min, stdev_max]

Between bounds mu stays in [0, 1], no s is above a third of the range, and the centre of the perturbations is mu stood
back from the bounds by s: on a bound both lanes of a pair would be folded to one point. After a step in which all pairs
tie it is displaced by s.

A point travels as a recipe: digests of the centre and of s, one noise address and +-1. A half pair, whose other lane
was lost, counts one-sided, as in `openai_es`: both sums run over lanes."""

from __future__ import annotations

import math
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
from blackbox.records import JSON, Notice, Pending, Points, Results, Stop, Term, Vector
from blackbox.registry import UNKNOWN, Outlook
from blackbox.rng import Key
from blackbox.space import Space
from blackbox.toolbox import alarms, observations, perturbations, steppers
from blackbox.toolbox.observations import Moments
from blackbox.toolbox.perturbations import MAX_RATE, Walls, default_popsize, paired
from blackbox.toolbox.schedules import PositiveSchedule, crossing
from blackbox.toolbox.steppers import ClipUp, StepperState
from blackbox.toolbox.values import centred_ranks, lower, lowest_and_median

SLOWEST = 1e-12  # a speed limit is positive, whatever the schedule says


class PgpeOptions(Options):
    """Options of `pgpe`. Lengths are in internal units: bounded parameters are the unit interval."""

    popsize: int | None = Field(None, ge=4, json_schema_extra={"multipleOf": 2})
    """Results per step, even. None: 4 + floor(3 ln d), rounded up to even, or as many as there are workers; for
    policies the authors have 200 and more."""
    sigma: float = Field(0.1, gt=0, le=1e6)
    """Initial standard deviation of every coordinate, for bounded ones at most a third of the range."""
    max_speed: PositiveSchedule | None = None
    """Longest move of the centre in one step, by step: the one length that matters. None: with a
    budget what crosses the box a few times, falling to a fiftieth of it; without one sigma sqrt(d) / 15, as the authors
    have it, and where coordinates are free at least that at first."""
    learning_rate: PositiveSchedule | None = None
    """Length of a step without momentum, by step. None: 0.75 max_speed."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Share of the last move that is kept."""
    stdev_learning_rate: float = Field(0.1, ge=0, le=10)
    """Step size of the standard deviations. 0: they stay as they are."""
    stdev_max_change: float = Field(0.2, gt=0, lt=1)
    """Largest relative change of a standard deviation in one step."""
    stdev_min: float = Field(1e-6, ge=1e-8, le=1e8)
    """Smallest standard deviation."""
    stdev_max: float = Field(1e6, ge=1e-8, le=1e8)
    """Largest standard deviation."""
    observations: int | None = Field(None, ge=1, le=100_000)
    """Length of an observation. Evaluators then tell {"value", "sums": {"count", "total", "squares"}} and normalise by
    the mean and standard deviation in their payload. None: no statistics."""

    renamed: ClassVar[Mapping[str, Renamed]] = {"population": Renamed("popsize", since="0.2")}
    _paired = pydantic.field_validator("popsize")(paired)

    @pydantic.model_validator(mode="after")
    def _in_order(self) -> PgpeOptions:
        if not self.stdev_min <= self.sigma <= self.stdev_max:
            raise ValueError(
                f"sigma must be between stdev_min and stdev_max, got {self.sigma}, {self.stdev_min}, {self.stdev_max}"
            )
        return self


class PgpeResolved(PgpeOptions):
    """The options with every default filled in."""

    popsize: int
    max_speed: PositiveSchedule
    learning_rate: PositiveSchedule | None


@dataclass(frozen=True, slots=True)
class PgpeState:
    """State of `pgpe` between two steps; d is the dimension.

    Attributes
    ----------
    step : steps closed.
    mu : (d,) float32, the iterate; bounded coordinates in [0, 1].
    stdev : (d,) float32, standard deviations and the factor of the open step's recipes; positive.
    names : digests of the base of the open step's recipes, which is mu, stood back from bounds and displaced after
        ties, and of stdev.
    stepper : velocity of ClipUp, float32.
    best : lowest value told so far, or None.
    median : upper median of the finite values of the last step that had some, or None.
    gradient_norm, move_norm : norms of g and of the last move of mu; 0 before the first one.
    flat : steps in a row, up to the last one, in which all pairs tied.
    seen : moments of the observations told so far; of length 0 without the option `observations`.
    """

    step: int
    mu: NDArray[np.float32]
    stdev: NDArray[np.float32]
    names: tuple[str, str]
    stepper: StepperState
    best: float | None
    median: float | None
    gradient_norm: float
    move_norm: float
    flat: int
    seen: Moments


@algorithm("pgpe", Traits(encoding="recipe"))
class Pgpe(Algorithm[PgpeResolved, PgpeState]):
    """Policy gradients with parameter-based exploration: adapts a scale per coordinate, needs one length, `max_speed`.

    Sehnke et al. (2010), doi:10.1016/j.neunet.2009.12.004, with ClipUp of Toklu et al. (2020), arXiv:2008.02387. Only
    ranks of values count; ties share theirs, so that a flat objective moves nothing but what momentum carries on. The
    authors' code refuses bounds; here the centre and the deviations are kept inside them.
    """

    # 2026-11: bounds that no mirrored pair is folded onto, a default speed that crosses the box, kicks after ties.
    revision = 2
    Options = PgpeOptions
    Resolved = PgpeResolved
    State = PgpeState

    def __init__(self, space: Space, options: PgpeResolved, key: Key, stream: int = 0) -> None:
        super().__init__(space, options, key, stream)
        self.walls = Walls(space)
        self.kicks = alarms.kicks(self.noise)

    @classmethod
    def resolve(cls, options: PgpeOptions, space: Space, outlook: Outlook = UNKNOWN) -> PgpeResolved:
        popsize = options.popsize or outlook.popsize(default_popsize(space.dim), even=True)
        length = math.sqrt(space.dim)
        speed = crossing(space, outlook, popsize, length, least=options.sigma * length / 15)
        return options.with_defaults(PgpeResolved, popsize=popsize, max_speed=speed)

    @classmethod
    def memory(cls, options: PgpeResolved, space: Space) -> int:
        return 84 * space.dim + 1024 * options.popsize  # mu, stdev, velocity twice, two sums, their work, recipes

    def init(self) -> PgpeState:
        mu = perturbations.centre(self.space)
        stdev = self.walls.narrowed(np.full(self.space.dim, self.options.sigma, dtype=np.float32))
        stepper = ClipUp(momentum=self.options.momentum).init(self.space.dim, np.float32)
        seen = Moments.zero(self.options.observations)
        return self._named(PgpeState(0, mu, stdev, ("", ""), stepper, None, None, 0.0, 0.0, 0, seen))

    def need(self, state: PgpeState) -> int:
        return self.options.popsize

    def base(self, state: PgpeState) -> NDArray[np.float32]:
        return self.walls.centre(state.mu, state.stdev, (self.kicks, state.step) if state.flat else None)

    def factors(self, state: PgpeState) -> Sequence[NDArray[np.float32]]:
        return (state.stdev,)

    def ask(self, state: PgpeState, lanes: Sequence[int], pending: Pending) -> Points:
        base, factor = state.names
        first = Term(self.stream, state.step, 0, 1.0, weight=factor)
        return perturbations.mirrored(base, first, lanes, self.payload(state))

    def tell(self, state: PgpeState, results: Results) -> PgpeState:
        state = replace(self._noted(state, results), step=state.step + 1)
        k, recipes = len(results), results.recipes
        if k < 2 or not recipes or not np.isfinite(results.scalar).any():  # no ranking, nothing to learn
            return self._named(state)
        weights = (centred_ranks(results.scalar) / k).tolist()
        terms = perturbations.weighted(recipes, weights)  # u_l s_l
        g = state.stdev * weighted_noise_sum(terms, self.key, self.space.dim, slicer=self.slicer)
        gradient_norm = steppers.norm(steppers.square_sums(g))
        options, step = self.options, state.step - 1
        speed = min(options.max_speed(step), MAX_RATE)
        rate = 0.75 * speed if options.learning_rate is None else perturbations.rate(options.learning_rate, step)
        clipup = ClipUp(momentum=options.momentum, max_speed=max(speed, SLOWEST))
        stepper, move = clipup.step(state.stepper, g, rate, gradient_norm)
        return self._named(
            replace(
                state,
                mu=self.walls.inside(perturbations.moved(state.mu, move)),
                stdev=self._stdev(state.stdev, perturbations.weighted(recipes, weights, signed=False)),
                stepper=stepper,
                gradient_norm=gradient_norm,
                move_norm=steppers.norm(steppers.square_sums(move)),
                flat=state.flat + 1 if alarms.tied(results.lane, results.scalar) else 0,
            )
        )

    def _named(self, state: PgpeState) -> PgpeState:
        return replace(state, names=(digest(self.base(state)), digest(state.stdev)))

    def _stdev(self, stdev: NDArray[np.float32], terms: Sequence[Term]) -> NDArray[np.float32]:
        """Return the next (d,) standard deviations."""
        options = self.options
        if not options.stdev_learning_rate:
            return stdev
        # The weights sum to zero, so that the -1 of z^2 - 1 drops out.
        h = weighted_noise_sum(terms, self.key, self.space.dim, square=True, slicer=self.slicer)
        change = np.clip(options.stdev_learning_rate * h, -options.stdev_max_change, options.stdev_max_change)
        after: NDArray[np.float32] = (stdev * (1 - change)).astype(np.float32)
        return self.walls.narrowed(np.clip(after, options.stdev_min, options.stdev_max, out=after))

    def recommend(self, state: PgpeState) -> Vector:
        return state.mu.astype(np.float64)

    def lacks(self, extra: Mapping[str, Any]) -> FieldError | None:
        return observations.lack(extra, self.options.observations)

    def payload(self, state: PgpeState) -> JSON:
        return state.seen.payload()

    def metrics(self, state: PgpeState) -> Mapping[str, float]:
        found = {} if state.best is None or state.median is None else {"best": state.best, "step_median": state.median}
        return found | {
            "step": float(state.step),
            "stdev_min": float(state.stdev.min()),
            "stdev_mean": float(state.stdev.mean(dtype=np.float64)),
            "stdev_max": float(state.stdev.max()),
            "gradient_norm": state.gradient_norm,
            "move_norm": state.move_norm,
            **state.seen.metrics(),
        }

    def stopped(self, state: PgpeState) -> Stop | None:
        return alarms.diverged(
            self.space, state.mu, float(state.stdev.max()), "take a smaller max_speed, or a larger unit"
        )

    def notices(self, state: PgpeState) -> Sequence[Notice]:
        return alarms.notices(state.flat, float(state.stdev.mean(dtype=np.float64)))

    def _noted(self, state: PgpeState, results: Results) -> PgpeState:
        """Return the state with observations and values recorded; the update itself uses only ranks."""
        state = replace(state, seen=state.seen.plus(results.extra))
        found = lowest_and_median(results.scalar)
        return state if found is None else replace(state, best=lower(state.best, found[0]), median=found[1])

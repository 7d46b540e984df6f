"""OpenAI-ES: a noisy gradient from ranks of mirrored perturbations, then Adam. For a thousand dimensions and more.

Salimans, Ho, Chen, Sidor, Sutskever (2017), Evolution Strategies as a Scalable Alternative to Reinforcement Learning,
arXiv:1703.03864, and the authors' code (openai/evolution-strategies-starter). Lanes 2i and 2i + 1 share noise eps_i::

    x_l = theta + s_l sigma eps_i,   i = floor(l / 2),   s_l = +1 for even l, -1 for odd l        ask
    u   = centred ranks of the k told values, the best -1/2, the worst +1/2                      values are minimised
    g   = 1/k sum_l u_l s_l eps_i                                    adam, clipup: as in the authors' code
    g   = 1/(k sigma) sum_l u_l s_l eps_i                            sgd, momentum: a gradient of the smoothed ranks
    theta <- theta + stepper(g + weight_decay theta)                 the decay is inside, as in the authors' code

Between bounds theta stays in [0, 1], and the centre of the perturbations is theta stood back from the bounds by sigma:
on a bound both lanes of a pair would be folded to one point. After a step in which all pairs tie it is displaced by
sigma.

A point travels as a recipe: the digest of the centre, one noise address and +-sigma. A half pair, whose other lane was
lost, counts one-sided: its u_l s_l eps_i alone has the right mean too, and where 30 % of lanes are lost, dropping half
pairs would throw away 30 % of the results as well.

Policies want observations at a common scale. With `observations` the evaluators tell sums of what they saw, and the
payload of the next step's points carries mean and standard deviation (section 3 of the paper; `toolbox.observations`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

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
from blackbox.toolbox.perturbations import Walls, default_popsize, paired
from blackbox.toolbox.schedules import Constant, PositiveSchedule, crossing
from blackbox.toolbox.steppers import Adam, AnyStepper, StepperState
from blackbox.toolbox.values import centred_ranks, lower, lowest_and_median


class OpenAiEsOptions(Options):
    """Options of `openai_es`. Lengths are in internal units: bounded parameters are the unit interval."""

    popsize: int | None = Field(None, ge=2, json_schema_extra={"multipleOf": 2})
    """Results per step, even. None: 4 + floor(3 ln d), rounded up to even, or as many as there are workers. With noisy
    values, or where theta matters more than evaluations, choose a few hundred."""
    sigma: PositiveSchedule = Constant(value=0.02)
    """Standard deviation of the perturbations by step, in internal units: the default is a fiftieth of the range of a
    bounded parameter. Where values only change in jumps, choose it larger than the jumps are apart. Kept above 1e-8,
    and between bounds at most a third of the range."""
    learning_rate: PositiveSchedule | None = None
    """Step size by step. With adam about the distance every coordinate moves per step, so about sigma / 2. None: with a
    budget what crosses the box a few times, falling to a fiftieth of it; without one 0.01, and where coordinates are
    free at least 0.01 at first."""
    stepper: AnyStepper = Adam()
    """Stepper that turns a gradient into a move. For sgd and momentum the gradient is divided by sigma, for adam and
    clipup, which normalise it, it is not."""
    weight_decay: float = Field(0.0, ge=0, le=1)
    """Pull towards the internal origin, added to the gradient as weight_decay * theta. The authors have 0.005 for the
    weights of policies; for bounded parameters, whose origin is the lower bound, leave it at 0."""
    noise: Literal["normal", "rademacher"] = "normal"
    """rademacher: random signs, an order of magnitude cheaper to draw; for 10^7 dimensions and more."""
    observations: int | None = Field(None, ge=1, le=100_000)
    """Length of an observation. Evaluators then tell {"value", "sums": {"count", "total", "squares"}} and normalise by
    the mean and standard deviation in their payload. None: no statistics."""
    stagnation: int | None = Field(None, ge=1)
    """Stop after this many steps without a new lowest median of a step's values. None: never."""

    renamed: ClassVar[Mapping[str, Renamed]] = {"population": Renamed("popsize", since="0.2")}
    _paired = pydantic.field_validator("popsize")(paired)


class OpenAiEsResolved(OpenAiEsOptions):
    """The options with every default filled in."""

    popsize: int
    learning_rate: PositiveSchedule


@dataclass(frozen=True, slots=True)
class OpenAiEsState:
    """State of `openai_es` between two steps; d is the dimension.

    Attributes
    ----------
    step : steps closed.
    theta : (d,) float32, the iterate; bounded coordinates in [0, 1].
    digest : name of the base of the open step's recipes, which is theta, stood back from bounds and displaced after
        ties.
    stepper : moments of the stepper, float32.
    best : lowest value told so far, or None.
    median : upper median of the finite values of the last step that had some, or None.
    lowest : lowest of all these medians, or None.
    idle : steps since `lowest` was found.
    gradient_norm, move_norm : norms of g and of the last move of theta; 0 before the first one.
    flat : steps in a row, up to the last one, in which all pairs tied.
    seen : sums over the observations told so far; of length 0 without the option `observations`.
    """

    step: int
    theta: NDArray[np.float32]
    digest: str
    stepper: StepperState
    best: float | None
    median: float | None
    lowest: float | None
    idle: int
    gradient_norm: float
    move_norm: float
    flat: int
    seen: Moments


@algorithm("openai_es", Traits(encoding="recipe"))
class OpenAiEs(Algorithm[OpenAiEsResolved, OpenAiEsState]):
    """Evolution strategy on noise addresses: scales to millions of dimensions, hundreds of workers and noisy values.

    Salimans et al. (2017), arXiv:1703.03864. Ties share ranks (the authors break them by order), so that a flat
    objective gives no gradient. Results of closed steps are not told: their noise belongs to another theta. A step
    without any finite value, or with a single result, moves nothing.
    """

    # 2026-11: bounds that no mirrored pair is folded onto, a default rate that crosses the box, kicks after ties.
    revision = 2
    Options = OpenAiEsOptions
    Resolved = OpenAiEsResolved
    State = OpenAiEsState

    def __init__(self, space: Space, options: OpenAiEsResolved, key: Key, stream: int = 0) -> None:
        super().__init__(space, options, key, stream)
        self.divides_by_sigma = options.stepper.type in ("sgd", "momentum")
        self.walls = Walls(space)
        self.kicks = alarms.kicks(self.noise)

    @classmethod
    def resolve(cls, options: OpenAiEsOptions, space: Space, outlook: Outlook = UNKNOWN) -> OpenAiEsResolved:
        popsize = options.popsize or outlook.popsize(default_popsize(space.dim), even=True)
        length = space.dim**0.5 if options.stepper.type == "clipup" else 1.0
        rate = crossing(space, outlook, popsize, length)
        return options.with_defaults(OpenAiEsResolved, popsize=popsize, learning_rate=rate)

    @classmethod
    def memory(cls, options: OpenAiEsResolved, space: Space) -> int:
        return (
            76 * space.dim + 1024 * options.popsize
        )  # theta and moments twice, centre, g, the stepper's work, recipes

    def init(self) -> OpenAiEsState:
        theta = perturbations.centre(self.space)
        stepper = self.options.stepper.init(self.space.dim, np.float32)
        seen = Moments.zero(self.options.observations)
        return self._named(OpenAiEsState(0, theta, "", stepper, None, None, None, 0, 0.0, 0.0, 0, seen))

    def need(self, state: OpenAiEsState) -> int:
        return self.options.popsize

    def base(self, state: OpenAiEsState) -> NDArray[np.float32]:
        return self.walls.centre(state.theta, self._sigma(state.step), (self.kicks, state.step) if state.flat else None)

    def ask(self, state: OpenAiEsState, lanes: Sequence[int], pending: Pending) -> Points:
        first = Term(self.stream, state.step, 0, self._sigma(state.step), self.options.noise)
        return perturbations.mirrored(state.digest, first, lanes, self.payload(state))

    def tell(self, state: OpenAiEsState, results: Results) -> OpenAiEsState:
        state = self._noted(state, results)
        k, recipes = len(results), results.recipes
        if k < 2 or not recipes or not np.isfinite(results.scalar).any():  # no ranking, nothing to learn
            return self._named(replace(state, step=state.step + 1))
        weights = centred_ranks(results.scalar) / k
        if self.divides_by_sigma:
            weights /= self._sigma(state.step)
        terms = perturbations.weighted(recipes, weights.tolist())  # u_l s_l
        g = weighted_noise_sum(terms, self.key, self.space.dim, slicer=self.slicer)
        gradient_norm = steppers.norm(steppers.square_sums(g))
        if self.options.weight_decay:
            g += self.options.weight_decay * state.theta
        rate = perturbations.rate(self.options.learning_rate, state.step)
        stepper, move = self.options.stepper.step(state.stepper, g, rate)
        return self._named(
            replace(
                state,
                step=state.step + 1,
                theta=self.walls.inside(perturbations.moved(state.theta, move)),
                stepper=stepper,
                gradient_norm=gradient_norm,
                move_norm=steppers.norm(steppers.square_sums(move)),
                flat=state.flat + 1 if alarms.tied(results.lane, results.scalar) else 0,
            )
        )

    def recommend(self, state: OpenAiEsState) -> Vector:
        return state.theta.astype(np.float64)

    def lacks(self, extra: Mapping[str, Any]) -> FieldError | None:
        return observations.lack(extra, self.options.observations)

    def payload(self, state: OpenAiEsState) -> JSON:
        return state.seen.payload()

    def metrics(self, state: OpenAiEsState) -> Mapping[str, float]:
        found = {} if state.best is None or state.median is None else {"best": state.best, "step_median": state.median}
        return found | {
            "step": float(state.step),
            "sigma": self._sigma(state.step),
            "gradient_norm": state.gradient_norm,
            "move_norm": state.move_norm,
            **state.seen.metrics(),
        }

    def stopped(self, state: OpenAiEsState) -> Stop | None:
        patience = self.options.stagnation
        if patience is None or state.idle < patience:
            return alarms.diverged(
                self.space, state.theta, self._sigma(state.step), "take a smaller learning_rate, or a larger unit"
            )
        return Stop("stagnation", f"no lower median of a step for {state.idle} steps", {"idle": float(state.idle)})

    def notices(self, state: OpenAiEsState) -> Sequence[Notice]:
        return alarms.notices(state.flat, self._sigma(state.step))

    def _named(self, state: OpenAiEsState) -> OpenAiEsState:
        return replace(state, digest=digest(self.base(state)))

    def _sigma(self, step: int) -> float:
        return self.walls.size(self.options.sigma, step)

    def _noted(self, state: OpenAiEsState, results: Results) -> OpenAiEsState:
        """Return the state with observations and values recorded; the update itself uses only ranks."""
        state = replace(state, seen=state.seen.plus(results.extra))
        found = lowest_and_median(results.scalar)
        if found is None:
            return replace(state, idle=state.idle + bool(len(results)))
        lowest, median = found
        improved = state.lowest is None or median < state.lowest
        return replace(
            state,
            best=lower(state.best, lowest),
            median=median,
            lowest=median if improved else state.lowest,
            idle=0 if improved else state.idle + 1,
        )

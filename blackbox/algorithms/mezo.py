"""MeZO: gradient descent along random directions that are never stored, for models of any size.

Malladi, Gao, Nichani, Damian, Lee, Chen, Arora (2023), Fine-Tuning Language Models with Just Forward Passes,
arXiv:2305.17333, an SPSA (Spall 1992) whose direction is a seed. With z_i the noise of its address (stream, step, i)::

    lanes 2i, 2i + 1:  theta + c z_i,  theta - c z_i                        a point travels as a recipe
    p_i = (F(theta + c z_i) - F(theta - c z_i)) / (2 c)                     one number per direction
    theta <- theta - a (1 / |R| sum_{i in R} p_i z_i + weight_decay theta)

The update is made piece by piece, each noise drawn again, so it needs theta and a constant; a run is its log of
numbers. Without a learning rate the slopes are `scaled` by those told so far, so that the unit of the objective does
not matter (`blackbox.toolbox.scales`, with M = 1 + (d + 1) / |R|)::

    a = learning_rate sqrt(d) / sqrt(M (M m_t^2 + S_t^2))

Between bounds theta stays in [0, 1], and the centre of the probes stands back by c. The evaluator's point is centre + c
z, built from theta: no rounding is left behind, unlike adding, subtracting twice and adding in place. Of a half pair
that was lost the other half counts, see `blackbox.toolbox.estimators`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from blackbox.algorithm import Algorithm, Traits, algorithm
from blackbox.options import Field, Options, Renamed
from blackbox.recipes import digest, weighted_noise_sum
from blackbox.records import Notice, Pending, Points, Recipe, Recipes, Results, Stop, Term, Vector
from blackbox.registry import UNKNOWN, Outlook
from blackbox.rng import CHUNK, Key
from blackbox.space import Space
from blackbox.toolbox import alarms, perturbations
from blackbox.toolbox.estimators import differences, roles
from blackbox.toolbox.feasible import Room
from blackbox.toolbox.perturbations import FARTHEST, Walls, paired, twice
from blackbox.toolbox.scales import NO_SCALE, Scale
from blackbox.toolbox.schedules import AnySchedule, Constant, PositiveSchedule, falling


class MezoOptions(Options):
    """Options of `mezo`. Lengths are in internal units."""

    popsize: int | None = Field(None, ge=2, json_schema_extra={"multipleOf": 2})
    """Results per step, even: two for each of q = popsize / 2 directions. None: 2, or as many as there are workers."""
    radius: PositiveSchedule = Constant(value=1e-3)
    """c: standard deviation of the perturbation of each coordinate, by step. The authors take 1e-3 for all weights of a
    language model, 1e-2 for LoRA and 1e-1 for prefixes. Between bounds at most a third of the range."""
    learning_rate: AnySchedule | None = None
    """a, by step; scaled: how far each coordinate may have to go. None: scaled, the range of bounded coordinates, 0.3
    units of free ones, with a budget falling to a fiftieth. The authors take, not scaled, 1e-6 to 1e-7 for all weights
    of a language model, 1e-4 for LoRA and 1e-2 for prefixes."""
    scaled: bool | None = None
    """Divide slopes by those told so far, so that the unit of the objective does not matter. None: where no
    learning_rate is given."""
    noise: Literal["normal", "rademacher"] = "normal"
    """rademacher: random signs, an order of magnitude cheaper to draw, and SPSA as Spall has it."""
    weight_decay: float = Field(0.0, ge=0, le=1)
    """Pull towards the internal origin; for bounded parameters, whose origin is the lower bound, leave it at 0."""
    clip: float | None = Field(10.0, gt=0)
    """Limit on |p_i|, in multiples of the median of the last 16 steps: one value of 1e10 among thousands counts as a
    steep slope, no more. None: no limit."""

    renamed: ClassVar[Mapping[str, Renamed]] = {
        "count": Renamed("popsize", since="0.2", convert=twice, unit="results, two for each direction")
    }
    _paired = pydantic.field_validator("popsize")(paired)


class MezoResolved(MezoOptions):
    """The options with every default filled in."""

    popsize: int
    learning_rate: AnySchedule
    scaled: bool = False


@dataclass(frozen=True, slots=True)
class MezoState:
    """State of `mezo` between two steps; d is the dimension.

    Attributes
    ----------
    step : steps closed.
    theta : (d,) float32, the iterate; bounded coordinates in [0, 1].
    digest : name of the base of the open step's recipes, which is theta, stood back from bounds and displaced after
        ties.
    value : F at theta, the mean of the last step's midpoints, or None.
    slope : root mean square of the p_i of the last step that had some.
    scale : sizes of the p_i so far.
    flat : steps in a row, up to the last one, whose p_i were all zero.
    """

    step: int
    theta: NDArray[np.float32]
    digest: str
    value: float | None
    slope: float
    scale: Scale
    flat: int


@algorithm("mezo", Traits(encoding="recipe"))
class Mezo(Algorithm[MezoResolved, MezoState]):
    """Two evaluations and one number per step: gradient descent for fine-tuning and for 10^5 to 10^9 parameters.

    Malladi et al. (2023), arXiv:2305.17333. It uses values, not ranks: where their scale changes or their noise has
    outliers, `openai_es` is safer. Results of closed steps are not told: their noise belongs to another theta.
    """

    # 2026-11: bounds that no mirrored pair is folded onto, a default rate in any unit, slopes clipped.
    revision = 2
    Options = MezoOptions
    Resolved = MezoResolved
    State = MezoState

    def __init__(self, space: Space, options: MezoResolved, key: Key, stream: int = 0) -> None:
        super().__init__(space, options, key, stream)
        self.walls = Walls(space)
        self.kicks = alarms.kicks(self.noise)

    @classmethod
    def resolve(cls, options: MezoOptions, space: Space, outlook: Outlook = UNKNOWN) -> MezoResolved:
        popsize = options.popsize or outlook.popsize(2, even=True)
        return options.with_defaults(
            MezoResolved,
            popsize=popsize,
            learning_rate=falling(Room(space, 1.0).size, outlook, popsize),
            scaled=options.learning_rate is None,
        )

    @classmethod
    def memory(cls, options: MezoResolved, space: Space) -> int:
        return 16 * space.dim + 512 * options.popsize  # theta of two states, one of them as bytes, and a centre

    def init(self) -> MezoState:
        return self._named(MezoState(0, perturbations.centre(self.space), "", None, 0.0, NO_SCALE, 0))

    def need(self, state: MezoState) -> int:
        return self.options.popsize

    def base(self, state: MezoState) -> NDArray[np.float32]:
        radius = self._radius(state.step)
        return self.walls.centre(state.theta, radius, (self.kicks, state.step) if state.flat else None)

    def ask(self, state: MezoState, lanes: Sequence[int], pending: Pending) -> Points:
        c, note = self._radius(state.step), roles(lanes, "central")
        recipes = tuple(
            Recipe(state.digest, (Term(self.stream, state.step, i, sign * c, self.options.noise),))
            for i, sign in note.tolist()
        )
        return Recipes(recipes, note=note)

    def tell(self, state: MezoState, results: Results) -> MezoState:
        if not len(results):
            return self._named(replace(state, step=state.step + 1))
        note, values, recent = results.points.note, results.scalar, state.scale.recent
        p = differences(note, values, self._radius(state.step), clip=self.options.clip, usual=recent)
        if not len(p):
            return self._named(replace(state, step=state.step + 1))
        rate, scale = self._rate(state.step), state.scale.plus(p.slope)
        slopes = p.slope
        if self.options.scaled:
            moment = 1 + (self.space.dim + 1) / len(p)
            slopes = math.sqrt(self.space.dim) * scale.rate(moment) * slopes
        terms = [
            # A direction moves no coordinate farther than FARTHEST; a scale of a term must be a float32.
            Term(self.stream, state.step, i, float(np.clip(rate * y / len(p), -FARTHEST, FARTHEST)), self.options.noise)
            for i, y in zip(p.index.tolist(), slopes.tolist(), strict=True)
        ]
        return self._named(
            MezoState(
                step=state.step + 1,
                theta=self._moved(state.theta, terms, rate * self.options.weight_decay),
                digest="",
                value=state.value if p.value is None else p.value,
                slope=float(np.sqrt(np.square(p.slope).mean())),
                scale=scale,
                flat=0 if p.slope.any() else state.flat + 1,
            )
        )

    def recommend(self, state: MezoState) -> Vector:
        return state.theta.astype(np.float64)

    def metrics(self, state: MezoState) -> Mapping[str, float]:
        known = {} if state.value is None else {"value": state.value}
        return known | {
            "slope": state.slope,
            "radius": self._radius(state.step),
            "learning_rate": self._rate(state.step),
        }

    def stopped(self, state: MezoState) -> Stop | None:
        return alarms.diverged(self.space, state.theta, self._radius(state.step), "take a smaller learning_rate")

    def notices(self, state: MezoState) -> Sequence[Notice]:
        return alarms.notices(state.flat, self._radius(state.step))

    def _named(self, state: MezoState) -> MezoState:
        return replace(state, digest=digest(self.base(state)))

    def _moved(self, theta: NDArray[np.float32], terms: list[Term], decay: float) -> NDArray[np.float32]:
        """Return theta - sum of the terms - decay theta, piece by piece: without a second vector of float64."""
        d, moved = len(theta), np.empty_like(theta)
        for a in range(0, d, CHUNK):
            piece = theta[a : a + CHUNK].astype(np.float64)
            piece -= weighted_noise_sum(terms, self.key, d, start=a, count=len(piece)) + decay * piece
            moved[a : a + CHUNK] = np.clip(piece, -FARTHEST, FARTHEST)
        return self.walls.inside(moved)

    def _radius(self, step: int) -> float:
        return self.walls.size(self.options.radius, step)

    def _rate(self, step: int) -> float:
        return perturbations.rate(self.options.learning_rate, step)

"""MeZO: gradient descent along random directions that are never stored, for models of any size.

Malladi, Gao, Nichani, Damian, Lee, Chen, Arora (2023), Fine-Tuning Language Models with Just Forward Passes,
arXiv:2305.17333, an SPSA (Spall 1992) whose direction is a seed. With z_i the noise of its address (stream, step, i)::

    lanes 2i, 2i + 1:  theta + c z_i,  theta - c z_i                        a point travels as a recipe
    p_i = (F(theta + c z_i) - F(theta - c z_i)) / (2 c)                     one number per direction
    theta <- theta - a (1 / |R| sum_{i in R} p_i z_i + weight_decay theta)

The update is made piece by piece, each noise drawn again, so it needs theta and a constant; a run is its log of
numbers. The evaluator's point is theta + c z, built from theta: no rounding is left behind, unlike adding, subtracting
twice and adding in place. Of a half pair that was lost the other half counts, see `blackbox.toolbox.estimators`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from blackbox.algorithm import Algorithm, Traits, algorithm
from blackbox.options import Field, Options, Renamed
from blackbox.recipes import digest, weighted_noise_sum
from blackbox.records import Pending, Points, Recipe, Recipes, Results, Term, Vector
from blackbox.registry import UNKNOWN, Outlook
from blackbox.rng import CHUNK
from blackbox.space import Space
from blackbox.toolbox import perturbations
from blackbox.toolbox.estimators import differences, roles
from blackbox.toolbox.perturbations import FARTHEST, paired, twice
from blackbox.toolbox.schedules import AnySchedule, Constant, PositiveSchedule


class MezoOptions(Options):
    """Options of `mezo`. Lengths are in internal units."""

    popsize: int = Field(2, ge=2, json_schema_extra={"multipleOf": 2})
    """Results per step, even: two for each of q = popsize / 2 directions. With W workers choose at least W."""
    radius: PositiveSchedule = Constant(value=1e-3)
    """c: standard deviation of the perturbation of each coordinate, by step. The authors take 1e-3 for all weights of a
    language model, 1e-2 for LoRA and 1e-1 for prefixes."""
    learning_rate: AnySchedule | None = None
    """a, by step. None: 0.5 / (1 + (d + 1) / q), which is right for a curvature of 1 in every direction. The authors
    take 1e-6 to 1e-7 for all weights of a language model, 1e-4 for LoRA and 1e-2 for prefixes."""
    noise: Literal["normal", "rademacher"] = "normal"
    """rademacher: random signs, an order of magnitude cheaper to draw, and SPSA as Spall has it."""
    weight_decay: float = Field(0.0, ge=0, le=1)
    """Pull towards the internal origin; for bounded parameters, whose origin is the lower bound, leave it at 0."""
    clip: float | None = Field(None, gt=0)
    """Limit on |p_i|, in multiples of the median of the step (of several directions). None: no limit."""

    renamed: ClassVar[Mapping[str, Renamed]] = {
        "count": Renamed("popsize", since="0.2", convert=twice, unit="results, two for each direction")
    }
    _paired = pydantic.field_validator("popsize")(paired)


class MezoResolved(MezoOptions):
    """The options with every default filled in."""

    learning_rate: AnySchedule


@dataclass(frozen=True, slots=True)
class MezoState:
    """State of `mezo` between two steps; d is the dimension.

    Attributes
    ----------
    step : steps closed.
    theta : (d,) float32, the base of the open step's recipes.
    digest : name of theta, see `digest`.
    value : F at theta, the mean of the last step's midpoints, or None.
    slope : root mean square of the p_i of the last step that had some.
    """

    step: int
    theta: NDArray[np.float32]
    digest: str
    value: float | None
    slope: float


@algorithm("mezo", Traits(encoding="recipe"))
class Mezo(Algorithm[MezoResolved, MezoState]):
    """Two evaluations and one number per step: gradient descent for fine-tuning and for 10^5 to 10^9 parameters.

    Malladi et al. (2023), arXiv:2305.17333. It uses values, not ranks: where their scale changes or their noise has
    outliers, `openai_es` is safer. Results of closed steps are not told: their noise belongs to another theta.
    """

    Options = MezoOptions
    Resolved = MezoResolved
    State = MezoState

    @classmethod
    def resolve(cls, options: MezoOptions, space: Space, outlook: Outlook = UNKNOWN) -> MezoResolved:
        return options.with_defaults(MezoResolved, learning_rate=0.5 / (1 + (space.dim + 1) / (options.popsize // 2)))

    @classmethod
    def memory(cls, options: MezoResolved, space: Space) -> int:
        return 12 * space.dim + 512 * options.popsize  # theta of two states, and one of them as bytes

    def init(self) -> MezoState:
        theta = perturbations.centre(self.space)
        return MezoState(0, theta, digest(theta), None, 0.0)

    def need(self, state: MezoState) -> int:
        return self.options.popsize

    def base(self, state: MezoState) -> NDArray[np.float32]:
        return state.theta

    def ask(self, state: MezoState, lanes: Sequence[int], pending: Pending) -> Points:
        c, note = self._radius(state.step), roles(lanes, "central")
        recipes = tuple(
            Recipe(state.digest, (Term(self.stream, state.step, i, sign * c, self.options.noise),))
            for i, sign in note.tolist()
        )
        return Recipes(recipes, note=note)

    def tell(self, state: MezoState, results: Results) -> MezoState:
        if not len(results):
            return replace(state, step=state.step + 1)
        p = differences(results.points.note, results.scalar, self._radius(state.step), clip=self.options.clip)
        if not len(p):
            return replace(state, step=state.step + 1)
        rate = self._rate(state.step)
        terms = [
            # A direction moves no coordinate farther than FARTHEST; a scale of a term must be a float32.
            Term(self.stream, state.step, i, float(np.clip(rate * y / len(p), -FARTHEST, FARTHEST)), self.options.noise)
            for i, y in zip(p.index.tolist(), p.slope.tolist(), strict=True)
        ]
        theta = self._moved(state.theta, terms, rate * self.options.weight_decay)
        return MezoState(
            step=state.step + 1,
            theta=theta,
            digest=digest(theta),
            value=state.value if p.value is None else p.value,
            slope=float(np.sqrt(np.square(p.slope).mean())),
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

    def _moved(self, theta: NDArray[np.float32], terms: list[Term], decay: float) -> NDArray[np.float32]:
        """Return theta - sum of the terms - decay theta, piece by piece: without a second vector of float64."""
        d, moved = len(theta), np.empty_like(theta)
        for a in range(0, d, CHUNK):
            piece = theta[a : a + CHUNK].astype(np.float64)
            piece -= weighted_noise_sum(terms, self.key, d, start=a, count=len(piece)) + decay * piece
            moved[a : a + CHUNK] = np.clip(piece, -FARTHEST, FARTHEST)
        return moved

    def _radius(self, step: int) -> float:
        return perturbations.size(self.options.radius, step)

    def _rate(self, step: int) -> float:
        return perturbations.rate(self.options.learning_rate, step)

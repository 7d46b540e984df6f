"""Deep GA: truncation selection and mutation on genomes that are lists of noise addresses; with novelty search.

Such, Madhavan, Conti, Lehman, Stanley, Clune (2017), Deep Neuroevolution: Genetic Algorithms Are a Competitive
Alternative for Training Deep Neural Networks for Reinforcement Learning, arXiv:1712.06567. Novelty search: Lehman and
Stanley (2011), doi:10.1162/EVCO_a_00025. A genome is a recipe: a base vector and one term per ancestor::

    x_l = x_p + sigma_g eps(step, l),   p uniform among the parents                               ask
    parents <- the elite and the best told points, T in all                                       tell

With `validations` V > 0 a generation has two steps: after the children, the C best of them (the elite takes the last
place) are asked V times each, and the one with the best mean is the elite; else the elite is the best point ever told.

With `novelty` w > 0 points are ordered by (1 - w) rank(value) + w rank(-novelty), where novelty is the mean distance
of a point's behaviour to the k nearest ones in the archive and among the other points of the step (`toolbox.novelty`).

Genomes stay short by *re-basing* (`toolbox.genomes`): first terms that all parents share become the new base vector.
Where lineages stay apart, some of them are given up to keep `max_terms`; their number is a metric.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from blackbox.algorithm import Algorithm, Traits, algorithm
from blackbox.errors import FieldError
from blackbox.options import Field, Options, Renamed
from blackbox.recipes import digest, materialise
from blackbox.records import Matrix, Pending, Points, Recipe, Recipes, Results, Term, Vector
from blackbox.registry import UNKNOWN, Outlook
from blackbox.rng import Key, uniform
from blackbox.space import Space
from blackbox.toolbox import perturbations
from blackbox.toolbox.genomes import Genome, Genomes, coalesced
from blackbox.toolbox.novelty import behaviours, novelty, remembering
from blackbox.toolbox.schedules import Constant, PositiveSchedule
from blackbox.toolbox.values import centred_ranks, lower, lowest_and_median, order


class DeepGaOptions(Options):
    """Options of `deep_ga`. Lengths are in internal units: bounded parameters are the unit interval."""

    popsize: int | None = Field(None, ge=2)
    """Children per generation; the paper has 1000. None: 50, or as many as there are parents or workers."""
    parents: int | None = Field(None, ge=1)
    """Genomes that have children. None: a fifth of popsize, at most 20 (the paper's number)."""
    sigma: PositiveSchedule | None = None
    """Mutation power by generation: standard deviation of what a child adds. None: 0.05, above 6400 dimensions
    4 / sqrt(d), which is the paper's 0.002 for its networks of four million weights. Kept above 1e-8, and between
    bounds at most a third of the range."""
    initial_sigma: float | None = Field(None, gt=0)
    """Standard deviation of the first generation around the initial point. None: sigma."""
    noise: Literal["normal", "rademacher"] = "normal"
    """rademacher: random signs, an order of magnitude cheaper to draw; for 10^7 dimensions and more."""
    validations: int = Field(0, ge=0, le=10_000)
    """Evaluations of each candidate for elite, each with an `eval_seed` of its own. 0 for values without noise; with
    noise 5 to 30 (the paper has 30), or the luckiest point stays the elite for good."""
    candidates: int = Field(10, ge=1)
    """Best children that are evaluated again; the last place is the elite's. Only with `validations`."""
    novelty: float = Field(0.0, ge=0, le=1)
    """Weight of novelty against the value: 0 is the genetic algorithm, 1 pure novelty search. Above 0 every result
    needs a `behaviour`, a list of numbers that is compared by Euclidean distance: scale its entries alike."""
    neighbours: int = Field(10, ge=1)
    """Nearest behaviours whose mean distance is the novelty."""
    archive: int = Field(1000, ge=0, le=100_000)
    """Most behaviours that are remembered. When it is full, a new one takes the place of a random one."""
    archive_rate: float = Field(0.03, ge=0, le=1)
    """Probability with which a told behaviour is remembered."""
    rebase_terms: int = Field(16, ge=1)
    """Shared terms that become a new base vector. Fewer: shorter recipes, and workers fetch a base more often."""
    max_terms: int = Field(128, ge=2, le=10_000)
    """Most terms of a recipe. It costs 34 bytes per term; a worker that keeps its parents pays one term a child."""

    renamed: ClassVar[Mapping[str, Renamed]] = {"population": Renamed("popsize", since="0.2")}

    @pydantic.model_validator(mode="after")
    def _fits(self) -> DeepGaOptions:
        if self.parents is not None and self.popsize is not None and self.parents > self.popsize:
            raise ValueError(f"parents must be at most popsize = {self.popsize}, got {self.parents}")
        if self.rebase_terms >= self.max_terms:
            raise ValueError(f"rebase_terms must be less than max_terms = {self.max_terms}, got {self.rebase_terms}")
        return self


class DeepGaResolved(DeepGaOptions):
    """The options with every default filled in."""

    popsize: int
    parents: int
    sigma: PositiveSchedule


@dataclass(frozen=True, slots=True)
class DeepGaState:
    """State of `deep_ga` between two steps; d is the dimension, m the length of a behaviour.

    Attributes
    ----------
    step : steps closed.
    generation : generations closed.
    validating : whether the open step evaluates the candidates again.
    base : (d,) float32, the base of the open step's recipes.
    digest : name of the base, see `digest`.
    dropped : one genome, on the base before: the terms that made this base of it. Late children are recognised by it.
    dropped_from : digest of the base before, or "".
    parents : genomes that have children, best first; while validating, the best children. One empty genome at first.
    candidates : genomes that are evaluated again; none unless validating.
    elite : the genome of the elite, or none: before the first value, and where it cannot be told on this base.
    elite_value : the elite's value, or None before the first one.
    elite_point : (d,) float32, the elite where `elite` has none; else (0,).
    archive : (A, m) remembered behaviours.
    best : lowest value told so far, or None.
    median : upper median of the finite values of the last generation that had some, or None.
    novelty : mean novelty in the last generation that had some, or None.
    rebased : how often the base has changed.
    extinct : genomes given up because of `max_terms`, or because they came too late for this base.
    mute : results without a usable behaviour where novelty counts.
    """

    step: int
    generation: int
    validating: bool
    base: NDArray[np.float32]
    digest: str
    dropped: Genomes
    dropped_from: str
    parents: Genomes
    candidates: Genomes
    elite: Genomes
    elite_value: float | None
    elite_point: NDArray[np.float32]
    archive: Matrix
    best: float | None
    median: float | None
    novelty: float | None
    rebased: int
    extinct: int
    mute: int


@algorithm("deep_ga", Traits(encoding="recipe"))
class DeepGa(Algorithm[DeepGaResolved, DeepGaState]):
    """Genetic algorithm on noise addresses, and novelty search: no gradient, no distribution, only selection.

    Such et al. (2017), arXiv:1712.06567. A generation closes on the first `popsize` results, from any worker;
    without validation, results of the step before count too (a child is a child, whenever it is told). Points without a
    value have no children.
    """

    # 2026-11: no mutation of a bounded coordinate above a third of its range.
    revision = 2
    Options = DeepGaOptions
    Resolved = DeepGaResolved
    State = DeepGaState

    def __init__(self, space: Space, options: DeepGaResolved, key: Key, stream: int = 0) -> None:
        super().__init__(space, options, key, stream)
        self.walls = perturbations.Walls(space)
        self.choices = self.noise.child("parents")
        self.memories = self.noise.child("archive")

    @classmethod
    def resolve(cls, options: DeepGaOptions, space: Space, outlook: Outlook = UNKNOWN) -> DeepGaResolved:
        popsize = options.popsize or outlook.popsize(max(50, options.parents or 0))
        parents, sigma = default_parents(popsize), default_sigma(space.dim)
        return options.with_defaults(DeepGaResolved, popsize=popsize, parents=parents, sigma=sigma)

    @classmethod
    def memory(cls, options: DeepGaResolved, space: Space) -> int:
        genomes = 512 * options.max_terms * (options.parents + options.candidates + options.popsize)
        behaviours = 8 * 64 * (options.archive + 2 * options.popsize) if options.novelty else 0
        return 32 * space.dim + genomes + behaviours  # base and elite as state, its bytes and their copies

    def init(self) -> DeepGaState:
        base = perturbations.centre(self.space)
        none, alone = Genomes.of([]), Genomes.of([()])
        return DeepGaState(
            step=0,
            generation=0,
            validating=False,
            base=base,
            digest=digest(base),
            dropped=none,
            dropped_from="",
            parents=alone,
            candidates=none,
            elite=none,
            elite_value=None,
            elite_point=np.empty(0, dtype=np.float32),
            archive=np.empty((0, 0)),
            best=None,
            median=None,
            novelty=None,
            rebased=0,
            extinct=0,
            mute=0,
        )

    def need(self, state: DeepGaState) -> int:
        return len(state.candidates) * self.options.validations if state.validating else self.options.popsize

    def oldest(self, state: DeepGaState) -> int:
        # Children and second evaluations must not be mixed, so with validation only the open step counts.
        return state.step if self.options.validations else max(0, state.step - 1)

    def base(self, state: DeepGaState) -> NDArray[np.float32]:
        return state.base

    def lacks(self, extra: Mapping[str, Any]) -> FieldError | None:
        if self.options.novelty and not extra.get("behaviour"):
            return FieldError("/behaviour", "missing", "novelty search compares what points did: a list of numbers")
        return None

    # ask

    def ask(self, state: DeepGaState, lanes: Sequence[int], pending: Pending) -> Points:
        note = np.empty((len(lanes), 0), dtype=np.int64)
        if state.validating:
            n = len(state.candidates)
            candidates = self._genomes(state.candidates)
            asked = tuple(Recipe(state.digest, candidates[int(lane) % n]) for lane in lanes)
            return Recipes(asked, note=note, replicates=tuple(1 + int(lane) // n for lane in lanes))
        sigma = self._sigma(state)
        children = []
        for lane in lanes:
            chance = uniform(self.choices, state.step, int(lane), 1)[0]
            parent = state.parents.genome(int(chance * len(state.parents)), self.options.noise)
            own = Term(self.stream, state.step, int(lane), sigma, self.options.noise)
            children.append(Recipe(state.digest, (*parent, own)))
        return Recipes(tuple(children), note=note)

    def _sigma(self, state: DeepGaState) -> float:
        first = self.options.initial_sigma if state.generation == 0 else None
        return self.walls.size(Constant(value=first) if first else self.options.sigma, state.generation)

    def _genomes(self, genomes: Genomes) -> list[Genome]:
        return genomes.all(self.options.noise)

    # tell

    def tell(self, state: DeepGaState, results: Results) -> DeepGaState:
        told = self._validated(state, results) if state.validating else self._bred(state, results)
        return replace(told, step=state.step + 1)

    def _bred(self, state: DeepGaState, results: Results) -> DeepGaState:
        """Return the state after a generation of children."""
        if not len(results):
            return state
        state, did = self._noted(state, results)
        genomes = [self._on_this_base(state, asked) for asked in results.recipes]
        lost = sum(genome is None for genome in genomes)
        rows = [i for i, value in enumerate(results.scalar) if math.isfinite(value) and genomes[i] is not None]
        state = replace(state, extinct=state.extinct + lost)
        if not rows:
            return replace(self._remembering(state, results, did), generation=state.generation + 1)
        values = results.scalar[rows]
        children = [genome for i in rows if (genome := genomes[i]) is not None]
        by_value = order(values).tolist()
        ranked = by_value
        if self.options.novelty:
            new = novelty([did[i] for i in rows], state.archive, self.options.neighbours)
            ranked = order(self._mixed(values, new)).tolist()
            found = new[np.isfinite(new)]
            state = replace(state, novelty=float(found.mean()) if len(found) else state.novelty)
            state = self._remembering(state, results, did)
        best = [children[i] for i in ranked[: self.options.parents]]
        if self.options.validations:
            elite = self._genomes(state.elite)
            again = [children[i] for i in by_value[: self.options.candidates - len(elite)]] + elite
            return replace(state, validating=True, parents=Genomes.of(best), candidates=Genomes.of(again))
        first, value = by_value[0], float(values[by_value[0]])
        if state.elite_value is None or value <= state.elite_value:
            state = replace(state, elite_value=value)
            return self._closed(state, best, children[first])
        return self._closed(state, best, None)

    def _validated(self, state: DeepGaState, results: Results) -> DeepGaState:
        """Return the state after the candidates were evaluated again."""
        if not len(results):
            return state
        candidates = self._genomes(state.candidates)
        values: list[list[float]] = [[] for _ in candidates]
        for lane, value in zip(results.lane.tolist(), results.scalar.tolist(), strict=True):
            values[lane % len(candidates)].append(value)
        means = np.array([_mean(some) for some in values])
        state = replace(state, validating=False, candidates=Genomes.of([]))
        best = self._genomes(state.parents)
        if not np.isfinite(means).any():  # nothing was learned about any of them: the children's order decides
            return self._closed(state, best, None if len(state.elite) or len(state.elite_point) else candidates[0])
        first = int(np.nanargmin(means))
        mean = float(means[first])
        if not len(state.elite) and state.elite_value is not None and state.elite_value < mean:
            return self._closed(state, best, None)  # an elite that could not be asked again keeps its value
        return self._closed(replace(state, elite_value=mean), best, candidates[first])

    def _closed(self, state: DeepGaState, best: list[Genome], elite: Genome | None) -> DeepGaState:
        """Return the state that opens the next generation.

        Parameters
        ----------
        best : genomes in the order of selection.
        elite : the new elite; None keeps the old one.
        """
        if elite is not None:
            state = replace(state, elite=Genomes.of([elite]), elite_point=np.empty(0, dtype=np.float32))
        elites = self._genomes(state.elite)
        parents = best
        if not self.options.novelty:  # what is new today is not new tomorrow: there the elite is no parent by right
            parents = (elites + [genome for genome in best if genome not in elites])[: self.options.parents]
        return self._rebased(replace(state, generation=state.generation + 1), parents)

    # genomes

    def _on_this_base(self, state: DeepGaState, asked: Recipe) -> Genome | None:
        """The genome of a told recipe on the open base; None for a late one whose lineage has died out."""
        if asked.base == state.digest:
            return asked.terms
        if asked.base == state.dropped_from:
            (dropped,) = self._genomes(state.dropped)
            if asked.terms[: len(dropped)] == dropped:
                return asked.terms[len(dropped) :]
        return None

    def _rebased(self, state: DeepGaState, parents: list[Genome]) -> DeepGaState:
        """The state with these parents, on a new base if enough of their terms are shared, or have to be."""
        kin, cut = coalesced(parents, self.options.rebase_terms, self.options.max_terms)
        state = replace(state, extinct=state.extinct + len(parents) - len(kin))
        if not cut:
            return replace(state, parents=Genomes.of(kin))
        shared = kin[0][:cut]
        base = self._point(state, shared)
        elite, point = self._genomes(state.elite), state.elite_point
        if elite and elite[0][:cut] != shared:
            point, elite = self._point(state, elite[0]), []
        return replace(
            state,
            base=base,
            digest=digest(base),
            dropped=Genomes.of([shared]),
            dropped_from=state.digest,
            parents=Genomes.of([genome[cut:] for genome in kin]),
            elite=Genomes.of([genome[cut:] for genome in elite]),
            elite_point=point,
            rebased=state.rebased + 1,
        )

    def _point(self, state: DeepGaState, genome: Genome) -> NDArray[np.float32]:
        return materialise(Recipe(state.digest, genome), self.key, self.space.dim, {state.digest: state.base})

    # values and behaviours

    def _noted(self, state: DeepGaState, results: Results) -> tuple[DeepGaState, list[Vector | None]]:
        """The state with what is recorded of the values, and the usable behaviours."""
        did: list[Vector | None] = [None] * len(results)
        if self.options.novelty:
            did = behaviours(results.extra, state.archive) or did
            state = replace(state, mute=state.mute + sum(one is None for one in did))
        found = lowest_and_median(results.scalar)
        if found is not None:
            state = replace(state, best=lower(state.best, found[0]), median=found[1])
        return state, did

    def _mixed(self, values: Vector, new: Vector) -> Vector:
        """Return the weighted mean of the ranks by value and by novelty, by which children are ordered: (n,)."""
        if len(values) < 2:
            return np.zeros(len(values))
        weight = self.options.novelty
        return (1 - weight) * centred_ranks(values) + weight * centred_ranks(-new)

    def _remembering(self, state: DeepGaState, results: Results, did: Sequence[Vector | None]) -> DeepGaState:
        """Return the state with some of the behaviours added to the archive."""
        most, rate = self.options.archive, self.options.archive_rate
        return replace(state, archive=remembering(state.archive, results, did, self.memories, most, rate))

    # reading

    def recommend(self, state: DeepGaState) -> Vector:
        if len(state.elite_point):
            return state.elite_point.astype(np.float64)
        elite = self._genomes(state.elite)
        return self._point(state, elite[0] if elite else ()).astype(np.float64)

    def metrics(self, state: DeepGaState) -> Mapping[str, float]:
        known = {"best": state.best, "generation_median": state.median, "elite": state.elite_value}
        if self.options.novelty:
            known |= {"novelty": state.novelty, "archive": float(len(state.archive)), "mute": float(state.mute)}
        return {name: value for name, value in known.items() if value is not None} | {
            "generation": float(state.generation),
            "validating": float(state.validating),
            "sigma": self._sigma(state),
            "parents": float(len(state.parents)),
            "longest_genome": float(max(state.parents.lengths, default=0)),
            "rebased": float(state.rebased),
            "extinct": float(state.extinct),
        }


def _mean(values: list[float]) -> float:
    """Return the mean; NaN where there is no value, or one is not finite."""
    if not values or not all(map(math.isfinite, values)):
        return math.nan
    return math.fsum(value / len(values) for value in values)


def default_parents(popsize: int) -> int:
    """Return a fifth of the children, at least 1 and at most 20."""
    return min(20, max(1, popsize // 5))


def default_sigma(d: int) -> Constant:
    """Return 0.05, above 6400 dimensions 4 / sqrt(d), so that a mutation is at most about 4 units long."""
    return Constant(value=min(0.05, 4.0 / math.sqrt(d)))

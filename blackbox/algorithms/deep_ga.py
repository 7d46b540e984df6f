"""Deep GA: truncation selection and mutation on genomes that are lists of noise addresses; with novelty search.

Such, Madhavan, Conti, Lehman, Stanley, Clune (2017), Deep Neuroevolution: Genetic Algorithms Are a Competitive
Alternative for Training Deep Neural Networks for Reinforcement Learning, arXiv:1712.06567. Novelty search: Lehman and
Stanley (2011), doi:10.1162/EVCO_a_00025. A genome is a recipe: a base vector and one term per ancestor::

    x_l = x_p + sigma_g eps(step, l),   p uniform among the parents                               ask
    parents <- the elite and the best told points, T in all                                       tell

With `validations` V > 0 a generation has two steps: after the children, the C best of them (the elite takes the last
place) are asked V times each, and the one with the best mean is the elite; else the elite is the best point ever told.

With `novelty` w > 0 points are ordered by (1 - w) rank(value) + w rank(-novelty), where novelty is the mean distance
of a point's behaviour to the k nearest ones in the archive and among the other points of the step.

Genomes stay short by *re-basing*. Under truncation selection the parents' lineages coalesce: all of them soon begin
with the same terms, and these only grow in number. As soon as `rebase_terms` are shared, their point becomes the new
base vector and every genome drops them. Terms are added in order, in float32, so no point changes by a bit. Where
lineages stay apart, `max_terms` is kept by letting those lineages die that split off from the first parent's longest
ago; their share is a metric.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from blackbox import recipe
from blackbox.algorithm import Algorithm, Traits, algorithm
from blackbox.errors import FieldError
from blackbox.options import Field, Options
from blackbox.records import Ints, Matrix, Pending, Points, Recipe, Results, Term, Vector
from blackbox.rng import Key, uniform
from blackbox.schedules import AnySchedule, Constant
from blackbox.space import Space
from blackbox.values import centred_ranks, order

Genome = tuple[Term, ...]
"""The terms of a recipe on the open base."""

SIGMA_RANGE = (1e-8, 1e8)  # below, the noise would be lost in a float32 near 1
FARTHEST = 1e15  # an initial coordinate stays below it, so that sums stay finite in float32
FARTHEST_BEHAVIOUR = 1e100  # so that squares of distances stay finite
ROWS = 64  # behaviours whose distances to all others are in memory at a time


class DeepGaOptions(Options):
    """What a user may tune. Lengths are in internal units: bounded parameters are the unit interval."""

    population: int = Field(50, ge=2)
    """Children per generation. With W workers choose at least W; the paper has 1000."""
    parents: int | None = Field(None, ge=1)
    """Genomes that have children. None: a fifth of the population, at most 20 (the paper's number)."""
    sigma: AnySchedule | None = None
    """Mutation power by generation: standard deviation of what a child adds. None: 0.05, above 6400 dimensions
    4 / sqrt(d), which is the paper's 0.002 for its networks of four million weights. Kept above 1e-8."""
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

    @pydantic.field_validator("sigma")
    @classmethod
    def _starts_positive(cls, schedule: AnySchedule | None) -> AnySchedule | None:
        if schedule is not None and not schedule(0) > 0:
            raise ValueError(f"must be positive at generation 0, got {schedule(0)}")
        return schedule

    @pydantic.model_validator(mode="after")
    def _fits(self) -> DeepGaOptions:
        if self.parents is not None and self.parents > self.population:
            raise ValueError(f"parents must be at most population = {self.population}, got {self.parents}")
        if self.rebase_terms >= self.max_terms:
            raise ValueError(f"rebase_terms must be less than max_terms = {self.max_terms}, got {self.rebase_terms}")
        return self


@dataclass(frozen=True, slots=True)
class Genomes:
    """Genomes as arrays, one after the other; N terms in all.

    Attributes
    ----------
    ends : (n,) where each genome ends; it begins where the one before ends.
    stream : (N,) uint64, as the other three an address of noise.
    step, lane : (N,) int64.
    scale : (N,) float64.
    """

    ends: Ints
    stream: NDArray[np.uint64]
    step: Ints
    lane: Ints
    scale: Vector

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> Ints:
        """(n,) terms of each genome."""
        return np.diff(self.ends, prepend=0)


@dataclass(frozen=True, slots=True)
class DeepGaState:
    """What changes. d is the dimension, m the length of a behaviour.

    Attributes
    ----------
    step : steps closed.
    generation : generations closed.
    validating : whether the open step evaluates the candidates again.
    base : (d,) float32, the base of the open step's recipes.
    digest : name of the base, see `recipe.digest`.
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
class DeepGa(Algorithm[DeepGaOptions, DeepGaState]):
    """Genetic algorithm on noise addresses, and novelty search: no gradient, no distribution, only selection.

    Such et al. (2017), arXiv:1712.06567. A generation closes on the first `population` results, whoever brought them;
    without validation, results of the step before count too (a child is a child, whenever it is told). Points without a
    value have no children.
    """

    Options = DeepGaOptions
    State = DeepGaState

    def __init__(self, space: Space, options: DeepGaOptions, key: Key, stream: int = 0) -> None:
        super().__init__(space, options, key, stream)
        self.n_parents = options.parents or default_parents(options.population)
        self.sigma = options.sigma or default_sigma(space.dim)
        self.choices = self.noise.child("parents")
        self.memories = self.noise.child("archive")

    @classmethod
    def resolve(cls, options: DeepGaOptions, space: Space) -> DeepGaOptions:
        return options.with_defaults(parents=default_parents(options.population), sigma=default_sigma(space.dim))

    @classmethod
    def memory(cls, options: DeepGaOptions, space: Space) -> int:
        parents = options.parents or default_parents(options.population)
        genomes = 512 * options.max_terms * (parents + options.candidates + options.population)
        behaviours = 8 * 64 * (options.archive + 2 * options.population) if options.novelty else 0
        return 32 * space.dim + genomes + behaviours  # base and elite as state, its bytes and their copies

    def init(self) -> DeepGaState:
        base = self.space.initial.astype(np.float32)
        np.clip(base, -FARTHEST, FARTHEST, out=base)
        none, alone = _packed([]), _packed([()])
        return DeepGaState(
            step=0,
            generation=0,
            validating=False,
            base=base,
            digest=recipe.digest(base),
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
        return len(state.candidates) * self.options.validations if state.validating else self.options.population

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
            asked = tuple(Recipe(state.digest, self._genome(state.candidates, int(lane) % n)) for lane in lanes)
            return Points(None, asked, note, replicates=tuple(1 + int(lane) // n for lane in lanes))
        sigma = self._sigma(state)
        children = []
        for lane in lanes:
            chance = uniform(self.choices, state.step, int(lane), 1)[0]
            parent = self._genome(state.parents, int(chance * len(state.parents)))
            own = Term(self.stream, state.step, int(lane), sigma, self.options.noise)
            children.append(Recipe(state.digest, (*parent, own)))
        return Points(None, tuple(children), note)

    def _sigma(self, state: DeepGaState) -> float:
        first = self.options.initial_sigma if state.generation == 0 else None
        return min(max(first or self.sigma(state.generation), SIGMA_RANGE[0]), SIGMA_RANGE[1])

    def _genome(self, genomes: Genomes, i: int) -> Genome:
        own = slice(int(genomes.ends[i - 1]) if i else 0, int(genomes.ends[i]))
        columns = [column[own].tolist() for column in (genomes.stream, genomes.step, genomes.lane, genomes.scale)]
        kind = self.options.noise
        return tuple(Term(a, step, lane, scale, kind) for a, step, lane, scale in zip(*columns, strict=True))

    def _genomes(self, genomes: Genomes) -> list[Genome]:
        return [self._genome(genomes, i) for i in range(len(genomes))]

    # tell

    def tell(self, state: DeepGaState, results: Results) -> DeepGaState:
        told = self._validated(state, results) if state.validating else self._bred(state, results)
        return replace(told, step=state.step + 1)

    def _bred(self, state: DeepGaState, results: Results) -> DeepGaState:
        """After a generation of children."""
        if not len(results):
            return state
        state, behaviours = self._noted(state, results)
        genomes = [self._on_this_base(state, asked) for asked in results.points.recipes or ()]
        lost = sum(genome is None for genome in genomes)
        rows = [i for i, value in enumerate(results.scalar) if math.isfinite(value) and genomes[i] is not None]
        state = replace(state, extinct=state.extinct + lost)
        if not rows:
            return replace(self._remembering(state, results, behaviours), generation=state.generation + 1)
        values = results.scalar[rows]
        children = [genome for i in rows if (genome := genomes[i]) is not None]
        by_value = order(values).tolist()
        ranked = by_value
        if self.options.novelty:
            new = novelty([behaviours[i] for i in rows], state.archive, self.options.neighbours)
            ranked = order(self._mixed(values, new)).tolist()
            found = new[np.isfinite(new)]
            state = replace(state, novelty=float(found.mean()) if len(found) else state.novelty)
            state = self._remembering(state, results, behaviours)
        best = [children[i] for i in ranked[: self.n_parents]]
        if self.options.validations:
            elite = self._genomes(state.elite)
            again = [children[i] for i in by_value[: self.options.candidates - len(elite)]] + elite
            return replace(state, validating=True, parents=_packed(best), candidates=_packed(again))
        first, value = by_value[0], float(values[by_value[0]])
        if state.elite_value is None or value <= state.elite_value:
            state = replace(state, elite_value=value)
            return self._closed(state, best, children[first])
        return self._closed(state, best, None)

    def _validated(self, state: DeepGaState, results: Results) -> DeepGaState:
        """After the candidates were evaluated again."""
        if not len(results):
            return state
        candidates = self._genomes(state.candidates)
        values: list[list[float]] = [[] for _ in candidates]
        for lane, value in zip(results.lane.tolist(), results.scalar.tolist(), strict=True):
            values[lane % len(candidates)].append(value)
        means = np.array([_mean(some) for some in values])
        state = replace(state, validating=False, candidates=_packed([]))
        best = self._genomes(state.parents)
        if not np.isfinite(means).any():  # nothing was learned about any of them: the children's order decides
            return self._closed(state, best, None if len(state.elite) or len(state.elite_point) else candidates[0])
        first = int(np.nanargmin(means))
        mean = float(means[first])
        if not len(state.elite) and state.elite_value is not None and state.elite_value < mean:
            return self._closed(state, best, None)  # an elite that could not be asked again keeps its value
        return self._closed(replace(state, elite_value=mean), best, candidates[first])

    def _closed(self, state: DeepGaState, best: list[Genome], elite: Genome | None) -> DeepGaState:
        """The state of the next generation.

        Parameters
        ----------
        best : genomes in the order of selection.
        elite : the new elite; None keeps the old one.
        """
        if elite is not None:
            state = replace(state, elite=_packed([elite]), elite_point=np.empty(0, dtype=np.float32))
        elites = self._genomes(state.elite)
        parents = best
        if not self.options.novelty:  # what is new today is not new tomorrow: there the elite is no parent by right
            parents = (elites + [genome for genome in best if genome not in elites])[: self.n_parents]
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
        limit, n_shared = self.options.max_terms, _n_shared(parents)
        cut = n_shared if n_shared >= self.options.rebase_terms else 0
        longest = max(map(len, parents))
        if longest - cut >= limit:  # a child would have too many terms
            cut = min(max(self.options.rebase_terms, longest + 1 - limit), len(parents[0]))
            kin = [genome for genome in parents if genome[:cut] == parents[0][:cut] and len(genome) - cut < limit]
            state = replace(state, extinct=state.extinct + len(parents) - len(kin))
            parents, cut = kin, _n_shared(kin)
        if not cut:
            return replace(state, parents=_packed(parents))
        shared = parents[0][:cut]
        base = self._point(state, shared)
        elite, point = self._genomes(state.elite), state.elite_point
        if elite and elite[0][:cut] != shared:
            point, elite = self._point(state, elite[0]), []
        return replace(
            state,
            base=base,
            digest=recipe.digest(base),
            dropped=_packed([shared]),
            dropped_from=state.digest,
            parents=_packed([genome[cut:] for genome in parents]),
            elite=_packed([genome[cut:] for genome in elite]),
            elite_point=point,
            rebased=state.rebased + 1,
        )

    def _point(self, state: DeepGaState, genome: Genome) -> NDArray[np.float32]:
        return recipe.materialise(Recipe(state.digest, genome), self.key, self.space.dim, {state.digest: state.base})

    # values and behaviours

    def _noted(self, state: DeepGaState, results: Results) -> tuple[DeepGaState, list[Vector | None]]:
        """The state with what is recorded of the values, and the usable behaviours."""
        behaviours: list[Vector | None] = [None] * len(results)
        if self.options.novelty:
            told = [_behaviour(extra) for extra in results.extra] or behaviours
            m = state.archive.shape[1] or next((len(one) for one in told if one is not None), 0)
            behaviours = [one if one is not None and len(one) == m else None for one in told]
            state = replace(state, mute=state.mute + sum(one is None for one in behaviours))
        values = np.sort(results.scalar[np.isfinite(results.scalar)])
        if len(values):
            lowest = float(values[0])
            best = lowest if state.best is None else min(state.best, lowest)
            state = replace(state, best=best, median=float(values[len(values) // 2]))
        return state, behaviours

    def _mixed(self, values: Vector, new: Vector) -> Vector:
        """What children are ordered by: the weighted mean of both ranks."""
        if len(values) < 2:
            return np.zeros(len(values))
        weight = self.options.novelty
        return (1 - weight) * centred_ranks(values) + weight * centred_ranks(-new)

    def _remembering(self, state: DeepGaState, results: Results, behaviours: Sequence[Vector | None]) -> DeepGaState:
        """The state with some behaviours in the archive; which ones, and where, only depends on their addresses."""
        archive = list(state.archive)
        for step, lane, behaviour in zip(results.step.tolist(), results.lane.tolist(), behaviours, strict=True):
            if behaviour is None or not self.options.archive:
                continue
            chance, place = uniform(self.memories, step, lane, 2)
            if chance >= self.options.archive_rate:
                continue
            if len(archive) < self.options.archive:
                archive.append(behaviour)
            else:
                archive[int(place * len(archive))] = behaviour
        return replace(state, archive=np.array(archive)) if archive else state

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


def novelty(behaviours: Sequence[Vector | None], archive: Matrix, k: int) -> Vector:
    """Mean distance of each behaviour to its k nearest neighbours in the archive and among the others.

    Parameters
    ----------
    behaviours : (m,) each; None has no novelty.
    archive : (A, m).
    k : fewer where there are fewer.

    Returns
    -------
    (n,) NaN for None; 0 where there is no neighbour at all.
    """
    new = np.full(len(behaviours), math.nan)
    rows = [i for i, behaviour in enumerate(behaviours) if behaviour is not None]
    if not rows:
        return new
    own = np.array([behaviours[i] for i in rows])
    known = np.concatenate([own, archive]) if len(archive) else own
    k = min(k, len(known) - 1)
    if k == 0:
        new[rows] = 0.0
        return new
    for a in range(0, len(own), ROWS):
        part = own[a : a + ROWS]
        squares = np.square(part[:, None, :] - known[None, :, :]).sum(axis=2)
        squares[np.arange(len(part)), a + np.arange(len(part))] = math.inf  # not its own neighbour
        nearest = np.sort(np.partition(squares, k - 1, axis=1)[:, :k], axis=1)
        new[rows[a : a + ROWS]] = np.sqrt(nearest).mean(axis=1)
    return new


def _mean(values: list[float]) -> float:
    """NaN where there is none, or one that is not finite."""
    if not values or not all(map(math.isfinite, values)):
        return math.nan
    return math.fsum(value / len(values) for value in values)


def default_parents(population: int) -> int:
    """A fifth of the population, at most 20."""
    return min(20, max(1, population // 5))


def default_sigma(d: int) -> Constant:
    """0.05; above 6400 dimensions 4 / sqrt(d), so that a mutation is at most about 4 units long."""
    return Constant(value=min(0.05, 4.0 / math.sqrt(d)))


def _behaviour(extra: Mapping[str, Any]) -> Vector | None:
    told = extra.get("behaviour")
    if not told:
        return None
    return np.clip(np.array(told, dtype=np.float64), -FARTHEST_BEHAVIOUR, FARTHEST_BEHAVIOUR)


def _n_shared(genomes: Sequence[Genome]) -> int:
    """How many terms all genomes begin with."""
    first, *others = genomes
    n = len(first)
    for other in others:
        n = next((i for i, (a, b) in enumerate(zip(first[:n], other, strict=False)) if a != b), min(n, len(other)))
    return n


def _packed(genomes: Sequence[Genome]) -> Genomes:
    terms = [term for genome in genomes for term in genome]
    return Genomes(
        ends=np.cumsum([len(genome) for genome in genomes], dtype=np.int64),
        stream=np.array([term.stream for term in terms], dtype=np.uint64),
        step=np.array([term.step for term in terms], dtype=np.int64),
        lane=np.array([term.lane for term in terms], dtype=np.int64),
        scale=np.array([term.scale for term in terms], dtype=np.float64),
    )

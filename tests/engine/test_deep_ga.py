"""Deep GA: its points against a genetic algorithm on plain vectors, re-basing, novelty, its robustness."""

from __future__ import annotations

import math
import random
from collections import deque
from statistics import median
from typing import Any

import numpy as np
import pytest

import blackbox
from blackbox import codec
from blackbox.algorithm import lookup, resolve_options
from blackbox.algorithms.deep_ga import DeepGa, DeepGaState, default_parents, default_sigma
from blackbox.errors import InvalidInput, InvalidOptions
from blackbox.recipes import PrefixCache, materialise, pack, to_json
from blackbox.records import NOTHING_PENDING, Points, Recipe, Recipes, Results, no_note
from blackbox.rng import Key, normal, rademacher, uniform
from blackbox.space import Space, Vector
from blackbox.study.effects import perform
from blackbox.study.settling import Report
from tests.contracts.algorithm import Case, assert_replays, free, new_study, run_study
from tests.engine import maze
from tests.engine.golden import assert_golden

KEY = Key.from_seed(7)


def make(dim: int = 6, key: Key = KEY, **options: Any) -> DeepGa:
    space = Space({"w": Vector(dim=dim, init=1.0)})
    method = lookup("deep_ga")(space, resolve_options("deep_ga", space, options), key)
    assert isinstance(method, DeepGa)
    return method


def built(method: DeepGa, state: DeepGaState, points: Points) -> np.ndarray:
    """(k, d) float32 points of recipes."""
    blobs = {state.digest: state.base}
    return np.array([materialise(r, method.key, method.space.dim, blobs) for r in points.recipes])


def results(state: DeepGaState, lanes: list[int], points: Points, values: Any, behaviours: Any = ()) -> Results:
    n = len(lanes)
    extra = tuple({} if b is None else {"behaviour": list(b)} for b in behaviours)
    steps = np.full(n, state.step, dtype=np.int64)
    return Results(steps, np.array(lanes), points, np.array(values, dtype=float).reshape(n, 1), None, extra)


def told(
    method: DeepGa, state: DeepGaState, values: Any, behaviours: Any = (), lanes: list[int] | None = None
) -> DeepGaState:
    lanes = list(range(len(values))) if lanes is None else lanes
    points = method.ask(state, lanes, NOTHING_PENDING)
    return method.tell(state, results(state, lanes, points, values, behaviours))


def lengths(state: DeepGaState) -> list[int]:
    return state.parents.lengths.tolist()


def sphere(x: np.ndarray) -> list[float]:
    return np.square(x.astype(float)).sum(axis=1).tolist()


# against a genetic algorithm on plain vectors


@pytest.mark.parametrize("kind", ["normal", "rademacher"])
def test_its_points_are_those_of_a_genetic_algorithm_on_plain_vectors(kind: str) -> None:
    """Vectors instead of recipes: a child is its parent's vector plus noise. Sixty generations, some values missing."""
    dim, n_parents, sigma = 6, 4, 0.1
    method = make(dim, popsize=12, parents=n_parents, sigma=sigma, initial_sigma=0.5, rebase_terms=3, noise=kind)
    draw = {"normal": normal, "rademacher": rademacher}[kind]
    noise_key, chance_key = KEY.stream(0), KEY.stream(0).child("parents")
    state = method.init()
    parents, elite = [np.ones(dim, dtype=np.float32)], None
    for step in range(60):
        lanes = [lane for lane in range(15) if lane % 5 != step % 5]
        children = []
        for lane in lanes:
            parent = parents[int(uniform(chance_key, step, lane, 1)[0] * len(parents))]
            scale = np.float32(0.5 if step == 0 else sigma)
            children.append(parent + scale * draw(noise_key, step, lane, dim))
        points = method.ask(state, lanes, NOTHING_PENDING)
        assert built(method, state, points).tobytes() == np.array(children).tobytes(), f"generation {step}"
        own = sphere(np.array(children))
        values = [math.nan if (step + lane) % 7 == 0 else v for lane, v in zip(lanes, own, strict=True)]
        state = method.tell(state, results(state, lanes, points, values))

        ranked = sorted((v, lane, x) for v, lane, x in zip(values, lanes, children, strict=True) if not math.isnan(v))
        best = [x for _, _, x in ranked[:n_parents]]
        if elite is None or ranked[0][0] <= elite[0]:
            elite = (ranked[0][0], best[0])
        parents = ([elite[1]] + [x for x in best if x is not elite[1]])[:n_parents]
        assert method.recommend(state).astype(np.float32).tobytes() == elite[1].tobytes()
        assert (state.elite_value, len(state.parents)) == (elite[0], n_parents)
    assert state.rebased > 5
    assert elite is not None
    assert elite[0] < 0.5


def test_a_child_is_its_parent_and_one_term() -> None:
    method = make(popsize=10, parents=3, sigma=0.25)
    state = told(method, method.init(), [float(lane % 4) for lane in range(10)])
    points = method.ask(state, range(40), NOTHING_PENDING)
    parents = {r.terms[:-1] for r in points.recipes}
    assert len(parents) == 3
    for lane, child in enumerate(points.recipes):
        own = child.terms[-1]
        assert (own.stream, own.step, own.lane, own.scale, own.kind) == (0, 1, lane, 0.25, "normal")
        assert child.base == state.digest
    assert len(pack(points.recipes[0])) == 38 + 2 * 34


def test_sigma_follows_the_generation() -> None:
    method = make(popsize=4, sigma={"type": "exponential", "start": 0.8, "factor": 0.5}, initial_sigma=3.0)
    state, seen = method.init(), []
    for _ in range(4):
        (asked,) = method.ask(state, [0], NOTHING_PENDING).recipes
        seen.append(asked.terms[-1].scale)
        state = told(method, state, [1.0, 2.0, 3.0, 4.0])
    assert seen == [3.0, 0.4, 0.2, 0.1]


# validation


def test_candidates_are_evaluated_again_and_the_best_mean_is_the_elite() -> None:
    method = make(popsize=6, parents=2, validations=3, candidates=3)
    state = told(method, method.init(), [3.0, 1.0, 2.0, math.nan, 0.5, 9.0])
    assert (state.validating, state.generation, method.need(state), method.oldest(state)) == (True, 0, 9, 1)
    points = method.ask(state, range(12), NOTHING_PENDING)
    assert [r.terms[-1].lane for r in points.recipes] == [4, 1, 2] * 4  # best first, in turn
    assert points.replicates == (1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4)
    # lane 4 was lucky; of candidate 1 (lane 2) one evaluation is lost, and one of the extra ones replaces it
    lanes = [0, 1, 2, 3, 4, 5, 6, 8, 11]
    values = [5.0, 2.0, 4.0, 7.0, 1.0, 6.0, 6.0, 5.0, 5.0]
    state = method.tell(state, results(state, lanes, points.take(lanes), values))
    assert (state.validating, state.generation, state.elite_value) == (False, 1, 1.5)
    parents = method._genomes(state.parents)
    assert [genome[-1].lane for genome in parents] == [1, 4]  # the elite, then the best child
    # next generation: the elite takes the last place, and loses its title on new evidence
    state = told(method, state, [8.0, 7.0, 6.0, 5.0, 4.0, 3.0])
    points = method.ask(state, range(3), NOTHING_PENDING)
    assert [(r.terms[-1].step, r.terms[-1].lane) for r in points.recipes] == [(2, 5), (2, 4), (0, 1)]
    state = told(method, state, [4.0, 3.0, 50.0])
    assert state.elite_value == 3.0
    assert method._genomes(state.elite)[0][-1].lane == 4


def test_without_a_usable_second_evaluation_the_elite_stays() -> None:
    method = make(popsize=4, parents=2, validations=2, candidates=2)
    state = told(method, method.init(), [1.0, 2.0, 3.0, 4.0])
    state = told(method, state, [2.0, 1.5, math.nan, 1.5])
    assert (state.elite_value, method._genomes(state.elite)[0][-1].lane) == (1.5, 1)
    state = told(method, told(method, state, [9.0, 9.0, 8.0, 9.0]), [math.nan] * 4)
    assert (state.elite_value, method._genomes(state.elite)[0][-1].lane) == (1.5, 1)


def test_each_repetition_has_a_seed_of_its_own_that_all_candidates_share() -> None:
    case = Case(DeepGa, free(4), {"popsize": 4, "parents": 2, "validations": 3, "candidates": 2})
    store, study = new_study(case)
    for lease in perform(store, study.ask(now=0.0, count=4)).leases:
        perform(store, study.tell([Report(lease.trial.number, lease.token, value=1.0)], now=0.0))
    perform(store, study.advance(now=0.0))
    leases = perform(store, study.ask(now=0.0, count=6)).leases
    seeds = [study.eval_seed(lease.trial) for lease in leases]
    assert [lease.trial.replicate for lease in leases] == [1, 1, 2, 2, 3, 3]
    assert seeds[::2] == seeds[1::2]
    assert len(set(seeds)) == 3


@pytest.mark.slow
def test_under_noise_validation_finds_an_elite_that_is_good_and_not_lucky() -> None:
    """Sphere from 10 with noise of 1: true value of the recommended point after 3000 evaluations, median of 5 seeds."""

    def true_value(seed: int, **options: Any) -> float:
        method, chance = make(10, Key.from_seed(seed), popsize=40, sigma=0.1, **options), np.random.default_rng(seed)
        state, used = method.init(), 0
        while used < 3000:
            n = method.need(state)
            points = method.ask(state, range(n), NOTHING_PENDING)
            values = sphere(built(method, state, points)) + chance.standard_normal(n)
            state, used = method.tell(state, results(state, list(range(n)), points, values)), used + n
        return sphere(method.recommend(state)[None])[0]

    plain = median(true_value(seed) for seed in range(5))
    careful = median(true_value(seed, validations=10, candidates=4) for seed in range(5))
    print(f"\n{plain:.2f} without, {careful:.2f} with validation")
    assert careful < 0.75 * plain


# re-basing


@pytest.mark.slow
def test_re_basing_changes_no_bit_of_any_point() -> None:
    """Beside the method one that never re-bases: equal points, ever longer recipes."""
    short = make(popsize=12, parents=4, rebase_terms=2)
    long = make(popsize=12, parents=4, rebase_terms=900, max_terms=1000)
    a, b = short.init(), long.init()
    for _ in range(150):
        asked, whole = short.ask(a, range(12), NOTHING_PENDING), long.ask(b, range(12), NOTHING_PENDING)
        x = built(short, a, asked)
        assert x.tobytes() == built(long, b, whole).tobytes()
        values = [v % 0.01 - a.step for v in sphere(x)]  # no elite lasts, and lineages drift
        a, b = (
            short.tell(a, results(a, list(range(12)), asked, values)),
            long.tell(b, results(b, list(range(12)), whole, values)),
        )
        assert short.recommend(a).tobytes() == long.recommend(b).tobytes()
    assert a.rebased > 5
    assert b.rebased == 0
    assert max(lengths(a)) < max(lengths(b)) / 2


@pytest.mark.slow
@pytest.mark.parametrize("novel", [0.0, 1.0])
def test_five_hundred_generations_stay_compact(novel: float) -> None:
    """Longest recipe where fitness is not inherited and no elite lasts, so that lineages meet late."""
    method, chance = make(4, novelty=novel), np.random.default_rng(1)
    state, longest = method.init(), 0
    for step in range(500):
        state = told(method, state, chance.random(50) - step, chance.random((50, 2)))
        longest = max(longest, *lengths(state))
    print(f"\nnovelty {novel}: at most {longest + 1} terms, {38 + 34 * (longest + 1)} bytes, {state.extinct} extinct")
    assert longest < 128
    assert state.rebased > 12
    assert state.extinct < 25


def test_two_lineages_that_never_meet_are_cut_at_the_limit() -> None:
    """Selection keeps the best child of each of two lineages for ever: one of them has to go every now and then."""
    method = make(popsize=20, parents=2, rebase_terms=4, max_terms=20, novelty=0.5)  # no elite among the parents
    state = told(method, method.init(), list(range(20)), [[0.0]] * 20)
    for _ in range(200):
        points = method.ask(state, range(20), NOTHING_PENDING)
        genomes = [r.terms for r in points.recipes]
        assert max(map(len, genomes)) <= 20
        families = {genome[:-1] for genome in genomes}
        first = {next(i for i, genome in enumerate(genomes) if genome[:-1] == family) for family in families}
        values = [float(i not in first) for i in range(20)]
        state = method.tell(state, results(state, list(range(20)), points, values, [[0.0]] * 20))
        assert len(state.parents) >= 1
        assert np.isfinite(method.recommend(state)).all()
    assert 5 < state.extinct < 60
    assert state.rebased > 5


def test_the_first_parent_is_never_the_one_that_dies_out() -> None:
    """An elite that nobody beats keeps its short genome, while the others drift away from it."""
    method = make(popsize=8, parents=3, rebase_terms=4, max_terms=16)
    state = told(method, method.init(), [-100.0, *range(7)])
    elite = method.recommend(state)
    for step in range(300):
        points = method.ask(state, range(8), NOTHING_PENDING)
        n_terms = [len(r.terms) for r in points.recipes]
        assert max(n_terms) <= 16
        values = [-float(n) for n in n_terms]  # the longest genomes are selected
        state = method.tell(state, results(state, list(range(8)), points, values))
        assert state.elite_value == -100.0, step
        assert method.recommend(state).tobytes() == elite.tobytes()
    assert state.extinct > 0


def test_an_elite_of_a_lineage_that_died_out_can_still_be_recommended() -> None:
    method = make(popsize=6, parents=1, rebase_terms=2, novelty=1.0)
    far = [[float(i)] for i in range(6)]
    state = told(method, method.init(), [5.0, 5.0, -1.0, 5.0, 5.0, 5.0], far)  # lane 2 is best, lane 5 most novel
    elite = built(method, method.init(), method.ask(method.init(), [2], NOTHING_PENDING))[0]
    for i in range(6):
        state = told(method, state, [5.0] * 6, [[10.0 * i + x] for (x,) in far])
        assert method.recommend(state).astype(np.float32).tobytes() == elite.tobytes()
    assert state.rebased > 0
    assert (len(state.elite), len(state.elite_point)) == (0, 6)
    asked = method.ask(state, range(6), NOTHING_PENDING)
    elite = built(method, state, asked)[3]
    state = method.tell(state, results(state, list(range(6)), asked, [5.0, 5.0, 5.0, -2.0, 5.0, 5.0], far))
    assert state.elite_value == -2.0
    assert method.recommend(state).astype(np.float32).tobytes() == elite.tobytes()


def test_late_children_of_the_base_before_are_recognised_or_given_up() -> None:
    method = make(popsize=4, parents=1, rebase_terms=1)
    state = method.init()
    before = method.ask(state, range(6), NOTHING_PENDING)  # generation 0, on the first base
    state = method.tell(state, results(state, [0, 1, 2, 3], before.take([0, 1, 2, 3]), [4.0, 3.0, 1.0, 2.0]))
    assert (state.rebased, lengths(state)) == (1, [0])  # the only parent is the new base
    asked = method.ask(state, range(6), NOTHING_PENDING)
    late_points = Recipes((before.recipes[5], *asked.recipes[:3]), note=before.take([0, 1, 2, 3]).note)
    late = Results(np.array([0, 1, 1, 1]), np.array([5, 0, 1, 2]), late_points, np.array([[0.1], [2.0], [3.0], [4.0]]))
    after = method.tell(state, late)
    assert (after.best, after.extinct) == (0.1, 1), "a child of the base before, off this line: only its value counts"
    old, parent = state, asked.recipes[0]
    state = method.tell(state, results(state, [0, 1, 2, 3], asked.take([0, 1, 2, 3]), [0.5, 0.6, 0.7, 0.8]))
    assert (state.dropped_from, lengths(state)) == (parent.base, [0])
    child = Recipe(parent.base, (*parent.terms, asked.recipes[4].terms[-1]))  # of this line, on the base before
    late_points = Recipes((child,), note=no_note(1))
    after = method.tell(state, Results(np.array([1]), np.array([4]), late_points, np.array([[0.01]])))
    assert (after.extinct, after.elite_value) == (0, 0.01)
    np.testing.assert_array_equal(method.recommend(after), built(method, old, late_points)[0])


def test_a_study_of_several_workers_goes_on_over_new_bases_and_replays() -> None:
    case = Case(DeepGa, free(5), {"popsize": 6, "parents": 2, "rebase_terms": 2, "sigma": 0.1})
    store, study = run_study(case, turns=900, workers=5, lost=0.2, seed=3)
    _, state = perform(store, study.state())
    assert state.rebased > 5
    assert state.step > 60
    assert_replays(store, study)
    best = perform(store, study.best())
    assert best is not None
    assert case.problem.value(best[1]) == best[0].value, "the best point's base is found or made again"
    kept = store.read(lambda tx: [tx.blob_at(study.id, step) for step in range(state.step + 1)])
    assert sum(blob is not None for blob in kept) < 6, "old bases are dropped"


# novelty


def test_pure_novelty_selects_what_is_new_and_a_mix_weighs_ranks() -> None:
    behaviours = [[0.0], [1.0], [2.0], [50.0], [3.0], [90.0]]
    values = [1.0, 2.0, 3.0, 6.0, 4.0, 5.0]

    def selected(weight: float) -> list[int]:
        method = make(popsize=6, parents=2, novelty=weight, neighbours=1)
        state = told(method, method.init(), values, behaviours)
        return [genome[-1].lane for genome in method._genomes(state.parents)]

    assert selected(1.0) == [3, 5]
    assert selected(1e-9) == [0, 1]
    # novelty 1, 1, 1, 40, 1, 40: ranks 3.5, 3.5, 3.5, .5, 3.5, .5; ranks of the values 0, 1, 2, 5, 3, 4
    assert selected(0.4) == [0, 1]  # 1.4, 2.0, 2.6, 3.2, 3.2, 2.6
    assert selected(0.75) == [5, 3]  # 2.625, 2.875, 3.125, 1.625, 3.375, 1.375


def test_the_archive_is_filled_by_address_and_bounded() -> None:
    method = make(popsize=30, novelty=1.0, archive=12, archive_rate=0.3)
    state, expected = method.init(), []
    chance = np.random.default_rng(2)
    for step in range(8):
        behaviours = chance.random((30, 2))
        for lane, behaviour in enumerate(behaviours):
            u, place = uniform(KEY.stream(0).child("archive"), step, lane, 2)
            if u < 0.3 and len(expected) < 12:
                expected.append(behaviour)
            elif u < 0.3:
                expected[int(place * 12)] = behaviour
        state = told(method, state, chance.random(30), behaviours)
        np.testing.assert_array_equal(state.archive, np.array(expected))
    assert len(state.archive) == 12


def test_a_result_without_a_behaviour_is_refused_when_novelty_counts() -> None:
    space = [(-1.0, 1.0)] * 2
    with pytest.raises(InvalidInput, match="needs behaviour beside the value") as refused:
        blackbox.minimize(lambda x: 1.0, space, "deep_ga", budget=60, options={"novelty": 0.5})
    assert refused.value.errors[0].pointer == "/behaviour"
    assert '"behaviour"' in refused.value.hint
    returned = {"value": float("nan")}  # what cannot be evaluated has done nothing
    result = blackbox.minimize(lambda x: returned, space, "deep_ga", budget=60, options={"novelty": 0.5})
    assert result.nfev == 60


def test_behaviours_of_another_length_count_as_none_and_are_counted() -> None:
    method = make(popsize=4, parents=2, novelty=1.0, archive_rate=1.0)
    state = told(method, method.init(), [1.0, 2.0, 3.0, 4.0], [[0.0, 1.0], [1.0], [5.0, 5.0], None])
    assert state.mute == 2
    assert {genome[-1].lane for genome in method._genomes(state.parents)} == {0, 2}
    assert state.archive.shape == (2, 2)
    assert method.metrics(state)["mute"] == 2
    state = told(method, state, [1.0] * 4, [[1e300, -1e300], [1e308, 0.0], [0.0, 0.0], [1.0, 1.0]])
    assert np.isfinite(state.archive).all()
    assert math.isfinite(method.metrics(state)["novelty"])


def evaluations_to_the_goal(seed: int, weight: float, budget: int = 4500) -> int | None:
    """Evaluations of the maze until a robot reaches the goal, or None."""
    method = make(maze.DIM, Key.from_seed(seed), popsize=50, sigma=0.2, initial_sigma=1.0, novelty=weight)
    state, cache = method.init(), PrefixCache()
    lanes = list(range(50))
    for used in range(50, budget + 1, 50):
        points = method.ask(state, lanes, NOTHING_PENDING)
        blobs = {state.digest: state.base}
        x = [materialise(r, method.key, maze.DIM, blobs, cache=cache) for r in points.recipes]
        distances, ends = maze.walk(np.array(x))
        if distances.min() < maze.AT_GOAL:
            return used
        state = method.tell(state, results(state, lanes, points, distances, ends))
    return None


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_novelty_search_leaves_the_sack_in_which_the_genetic_algorithm_stays() -> None:
    """Evaluations to the goal of the deceptive maze within 4500, five seeds."""
    by_value = [evaluations_to_the_goal(seed, 0.0) for seed in range(5)]
    by_novelty = [evaluations_to_the_goal(seed, 1.0) for seed in range(5)]
    print(f"\nby value {by_value}, by novelty {by_novelty}")
    assert sum(used is not None for used in by_novelty) >= 4
    assert sum(used is not None for used in by_value) <= 1


# options, studies


@pytest.mark.parametrize(
    "options",
    [
        {"popsize": 1},
        {"parents": 0},
        {"popsize": 50, "parents": 51},
        {"sigma": 0},
        {"initial_sigma": -1.0},
        {"novelty": 1.5},
        {"rebase_terms": 128},
        {"max_terms": 1},
        {"validations": -1},
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptions):
        make(**options)


def test_defaults_depend_on_the_problem_and_are_stored_with_the_study() -> None:
    assert (default_parents(50), default_parents(1000), default_parents(3)) == (10, 20, 1)
    assert (default_sigma(100).value, default_sigma(4_000_000).value) == (0.05, 0.002)
    stored = resolve_options("deep_ga", Space({"w": Vector(dim=4_000_000)}), {"popsize": 1000}).model_dump()
    assert (stored["parents"], stored["sigma"]["value"]) == (20, 0.002)


def test_it_treats_bounded_spaces_and_maximisation() -> None:
    result = blackbox.minimize(
        lambda x: -float(((x - 3.0) ** 2).sum()), [(-5, 5)] * 4, "deep_ga", budget=1500, direction="maximize"
    )
    assert result.fun > -0.1
    assert np.allclose(result.recommended, 3.0, atol=0.3)


def test_extreme_values_and_options_keep_the_state_finite() -> None:
    method = make(popsize=4, validations=2, candidates=2, sigma=1e300, rebase_terms=1)
    state = method.init()
    for _ in range(30):
        n = method.need(state)
        state = told(method, state, ([1e308, -1e308, math.inf, math.nan] * n)[:n])
        assert np.isfinite(state.base).all()
        assert np.isfinite(method.recommend(state)).all()
        codec.decode(DeepGaState, codec.encode(state))


def asks_until(method: DeepGa, lost: float, seed: int) -> int:
    """Asks until the best value is a twentieth of the first one; workers are 8, results come in any order."""
    state, asks, chance = method.init(), 0, random.Random(seed)
    out: deque[tuple[int, int, Recipe, float]] = deque()
    waiting: list[tuple[int, int, Recipe, float]] = []
    lane = 0
    cache = PrefixCache()
    while state.best is None or state.best > 0.05 * method.space.dim:
        (asked,) = method.ask(state, [lane], NOTHING_PENDING).recipes
        x = materialise(asked, method.key, method.space.dim, {state.digest: state.base}, cache=cache)
        out.append((state.step, lane, asked, float(np.square(x.astype(float)).sum())))
        asks, lane = asks + 1, lane + 1
        if len(out) == 8:
            out.rotate(chance.randrange(8))
            item = out.popleft()
            if chance.random() >= lost and item[0] >= method.oldest(state):
                waiting.append(item)
        if len(waiting) >= method.need(state):
            waiting.sort(key=lambda item: item[:2])
            steps, lanes, recipes, values = zip(*waiting, strict=True)
            points = Recipes(recipes, note=no_note(len(recipes)))
            state = method.tell(
                state, Results(np.array(steps), np.array(lanes), points, np.array(values).reshape(-1, 1))
            )
            waiting, lane = [], 0
        assert asks < 60_000
    return asks


@pytest.mark.slow
def test_thirty_percent_lost_costs_at_most_six_tenths_more_asks() -> None:
    """Sphere, 10 dimensions, from 1 to a twentieth of the first value, population and parents as they come, 5 seeds."""
    methods = [make(10, Key.from_seed(seed)) for seed in range(5)]
    whole = median(asks_until(method, 0.0, seed) for seed, method in enumerate(methods))
    lossy = median(asks_until(method, 0.3, seed) for seed, method in enumerate(methods))
    print(f"\n{whole} asks, {lossy} with 30 % lost: {lossy / whole:.2f} times")
    assert lossy <= 1.6 * whole


# golden


def golden_run() -> dict[str, Any]:
    """Forty steps on a parabola, one of five results lost, with validation, novelty and re-basing in use."""
    method = make(5, popsize=8, parents=3, rebase_terms=3, validations=2, candidates=2, novelty=0.3, archive_rate=0.2)
    state, steps = method.init(), []
    for t in range(40):
        lanes = [lane for lane in range(10) if lane % 5 != t % 5][: method.need(state)]
        points = method.ask(state, lanes, NOTHING_PENDING)
        x = built(method, state, points).tolist()
        values = [math.fsum((j + 1) * v * v for j, v in enumerate(row)) for row in x]
        state = method.tell(state, results(state, lanes, points, values, [row[:2] for row in x]))
        steps.append(
            {
                "asked": to_json(points.recipes[0])["ops"],
                "base": [float(v) for v in state.base],
                "elite_value": state.elite_value,
                "novelty": state.novelty,
                "parents": lengths(state),
                "archive": len(state.archive),
                "rebased": state.rebased,
            }
        )
    return {"key": KEY.hex(), "steps": steps}


def test_it_does_what_it_did() -> None:
    assert_golden("deep_ga", golden_run())

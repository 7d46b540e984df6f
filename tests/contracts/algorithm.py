"""The contract of every method, as tests over pairs of a method and a problem.

A new method is tested without a line of its own: tests/engine/test_contract_algorithms.py runs the suite over the
registry. To run it on something else, subclass `AlgorithmContract` with a `case` and a `home` fixture (see
tests/contracts/composer.py). `Loop` is the smallest study, without store and clock; `run_study` is a real one.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from statistics import median
from typing import Any

import numpy as np
import pytest

from blackbox import codec
from blackbox.algorithm import Algorithm, lookup
from blackbox.options import Options, parse_options
from blackbox.recipes import materialise
from blackbox.recipes import to_json as recipe_to_json
from blackbox.records import NOTHING_PENDING, Dense, Pending, Points, Recipes, Results, Vector, dense
from blackbox.regions import L1Ball, L2Ball, Simplex
from blackbox.rng import Key
from blackbox.space import Categorical, Float, Int, Space
from blackbox.space import Vector as Vectors
from blackbox.study.creation import create
from blackbox.study.editing import Study
from blackbox.study.effects import perform
from blackbox.study.memory import MemoryStore
from blackbox.study.settling import Report

Method = Algorithm[Any, Any]

# Problems -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """The squared distance to a target, in internal coordinates; zero at the target, whatever the parameters are."""

    name: str
    space: Space
    target: Mapping[str, Any]

    @cached_property
    def goal(self) -> Vector:
        return self.space.encode(self.target)

    def value(self, params: Mapping[str, Any]) -> float:
        return float(np.square(self.space.encode(params) - self.goal).sum())

    def at(self, vector: Vector) -> float:
        """The value of an internal point."""
        return self.value(self.space.decode(vector))

    @property
    def at_start(self) -> float:
        return self.at(self.space.initial)


def box(dim: int) -> Problem:
    """Bounded coordinates with the target off the centre, on both sides."""
    target = tuple(0.15 if i % 2 else 0.8 for i in range(dim))
    return Problem(f"box{dim}", Space({"x": Vectors(dim=dim, low=0.0, high=1.0)}), {"x": target})


def free(dim: int) -> Problem:
    """Coordinates without bounds, away from the target."""
    return Problem(f"free{dim}", Space({"w": Vectors(dim=dim, init=1.0)}), {"w": (0.6,) * dim})


REALS = Problem(
    "reals",
    Space({"rate": Float(low=1e-4, high=1e-1, scale="log"), "x": Float(low=-5, high=5), "w": Vectors(dim=2)}),
    {"rate": 1e-2, "x": 2.0, "w": (0.2, -0.2)},
)
MIXED = Problem(
    "mixed",
    Space(
        {"depth": Int(low=1, high=9), "act": Categorical(choices=["relu", "gelu", "tanh"]), "x": Float(low=0, high=1)}
    ),
    {"depth": 7, "act": "tanh", "x": 0.3},
)
LINE = Problem("line", Space({"x": Float(low=0, high=1)}), {"x": 0.9})


def ball(dim: int) -> Problem:
    """An L1 ball with a sparse target inside."""
    target = (0.5, -0.3, *(0.0,) * dim)[:dim]
    return Problem(f"ball{dim}", Space({"x": Vectors(dim=dim, region=L1Ball())}), {"x": target})


SHARES = Problem(
    "shares",
    Space({"shares": Vectors(dim=4, region=Simplex()), "weights": Vectors(dim=3, region=L2Ball(radius=2.0))}),
    {"shares": (0.5, 0.3, 0.2, 0.0), "weights": (1.0, -0.5, 0.0)},
)
PROBLEMS = (free(4), REALS, MIXED, LINE, SHARES)
"""Each kind of parameter and of domain, one coordinate and several; a box and a ball by themselves are at `home`."""
DOMAINS = (free(4), LINE, SHARES)
"""Of these what values do to a state depends on: no method knows what its coordinates mean."""


@dataclass(frozen=True)
class Case:
    """A method on a problem."""

    method: type[Method]
    problem: Problem
    raw: Mapping[str, Any] = field(default_factory=dict)
    """Options as people write them."""

    def __str__(self) -> str:
        return f"{self.method.name}-{self.problem.name}"

    @property
    def options(self) -> Options:
        options: Options = self.method.resolve(parse_options(self.method.Options, dict(self.raw)), self.problem.space)
        return options

    def of_dim(self, dim: int) -> Case:
        """The method on the same kind of sphere with another dimension."""
        return home(self.method, self.raw, dim)

    def make(self, seed: int = 7, stream: int = 0) -> Method:
        """A fresh instance; equal arguments must give equal behaviour."""
        return self.method(self.problem.space, self.options, Key.from_seed(seed), stream)

    def loop(self, seed: int = 7) -> Loop:
        return Loop(self.make(seed), self.problem.at)


def cases(
    method: type[Method], problems: Sequence[Problem] = PROBLEMS, raw: Mapping[str, Any] | None = None
) -> list[Case]:
    """The method on those of the problems that its traits can treat."""
    return [Case(method, problem, raw or {}) for problem in problems if method.why_not(problem.space) is None]


def home(method: type[Method], raw: Mapping[str, Any] | None = None, dim: int = 10) -> Case:
    """The method on an easy problem: a sphere inside bounds, without them, or in a ball, whichever it takes first."""
    dim, kinds = min(dim, method.traits.max_dim or dim), method.traits.regions
    problem = box(dim) if "box" in kinds else free(dim) if "free" in kinds else ball(dim)
    return Case(method, problem, raw or {})


# The smallest study ---------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Flight:
    """A point in somebody's hands."""

    step: int
    lane: int
    points: Points
    """One row."""
    vector: Vector
    value: float = math.nan


class Loop:
    """One study in memory: hands out lanes, knows what is out, closes steps as `blackbox.study.log` does."""

    def __init__(self, algorithm: Method, objective: Callable[[Vector], float], state: Any = None) -> None:
        self.algorithm = algorithm
        self.objective = objective
        self.state = algorithm.init() if state is None else state
        self.out: list[Flight] = []
        self.waiting: list[Flight] = []
        self.given: set[int] = set()
        self.asks = 0
        self.best = math.inf
        self.history: list[tuple[Any, Results]] = []
        """Each closed step: the state before it and what was told."""

    def pending(self) -> Pending:
        traits, fresh = self.algorithm.traits, max(self.given, default=-1) + 1
        if traits.kind == "group" and not traits.uses_pending:
            return replace(NOTHING_PENDING, fresh=fresh)
        rows = sorted(self.out, key=lambda flight: (flight.step, flight.lane))
        points = joined([flight.points for flight in rows]) if rows else None
        return Pending(
            np.array([flight.step for flight in rows], dtype=np.int64),
            np.array([flight.lane for flight in rows], dtype=np.int64),
            np.empty((len(rows), 0), dtype=np.int64) if points is None else points.note,
            points if traits.uses_pending else None,
            fresh if traits.kind == "group" else 0,
            frozenset(self.given),
        )

    def ask(self, n: int = 1) -> list[Flight]:
        pending = self.pending()
        lanes = list(self.algorithm.lanes(self.state, pending, n))
        if not lanes:
            return []
        points = self.algorithm.ask(self.state, lanes, pending)
        vectors = internal(self.algorithm, self.state, points)
        flights = [Flight(self.state.step, lane, points.take([i]), vectors[i]) for i, lane in enumerate(lanes)]
        self.given.update(lanes)
        self.out += flights
        self.asks += len(flights)
        return flights

    def tell(self, flight: Flight, value: float | None = None) -> None:
        self.out.remove(flight)
        flight.value = self.objective(flight.vector) if value is None else value
        self.best = min(self.best, flight.value)
        self.waiting.append(flight)
        if len(self._accepted()) >= self.algorithm.need(self.state):
            self.close()

    def close(self) -> None:
        rows = sorted(self._accepted(), key=lambda flight: (flight.step, flight.lane))
        results = (
            Results(
                np.array([row.step for row in rows], dtype=np.int64),
                np.array([row.lane for row in rows], dtype=np.int64),
                joined([row.points for row in rows]),
                np.array([[row.value] for row in rows]),
            )
            if rows
            else nothing(self.algorithm)
        )
        self.history.append((self.state, results))
        self.state = self.algorithm.tell(self.state, results)
        self.waiting, self.given = [], set()

    def _accepted(self) -> list[Flight]:
        oldest = self.algorithm.oldest(self.state)
        return [flight for flight in self.waiting if flight.step >= oldest]

    def run(self, asks: int, *, workers: int = 4, lost: float = 0.0, seed: int = 0, until: float = -math.inf) -> Loop:
        """Keep `workers` busy until so many points were handed out, a value is reached or the method stops.

        Results come in any order. A lost one is gone (a group moves on without it) or, where the method needs exactly
        this one, evaluated again, which counts as another ask.
        """
        chance = random.Random(seed)
        while self.asks < asks and self.best > until and self.algorithm.stopped(self.state) is None:
            while len(self.out) < workers and self.ask():
                pass
            if not self.out:
                self.close()  # all its members are lost: a step without results
                continue
            flight = chance.choice(self.out)
            if chance.random() >= lost:
                self.tell(flight)
            elif self.algorithm.traits.kind == "group":
                self.out.remove(flight)
            else:
                self.asks += 1
        return self

    def steps(self, n: int) -> Loop:
        """Close n steps with exactly what they need."""
        for _ in range(n):
            step = self.state.step
            while self.state.step == step:
                self.tell((self.out or self.ask())[0])
        return self


def internal(algorithm: Method, state: Any, points: Points) -> np.ndarray:
    """(k, d) the internal points, recipes materialised."""
    if isinstance(points, Dense):
        return points.vectors
    assert isinstance(points, Recipes)
    blobs, dim = algorithm.blobs(state), algorithm.space.dim
    vectors = np.empty((len(points), dim))
    for i, recipe in enumerate(points.recipes):
        vectors[i] = materialise(recipe, algorithm.key, dim, blobs)
    return vectors


def joined(parts: Sequence[Points]) -> Points:
    """Rows of several points, one below the other."""
    note = np.concatenate([part.note for part in parts])
    payload = tuple(item for part in parts for item in part.payload)
    vectors = [part.vectors for part in parts if isinstance(part, Dense)]
    if vectors:
        return Dense(np.concatenate(vectors), note=note, payload=payload)
    recipes = [part.recipes for part in parts if isinstance(part, Recipes)]
    return Recipes(tuple(recipe for rows in recipes for recipe in rows), note=note, payload=payload)


def nothing(algorithm: Method) -> Results:
    """The results of a step that was closed without any."""
    none, note = np.empty(0, dtype=np.int64), np.empty((0, 0), dtype=np.int64)
    recipes = algorithm.traits.encoding == "recipe"
    points = Recipes((), note=note) if recipes else dense(np.empty((0, algorithm.space.dim)), note)
    return Results(none, none, points, np.empty((0, 1)))


def told(algorithm: Method, state: Any, lanes: Sequence[int], values: Sequence[float]) -> Results:
    """Results of the given lanes of the open step."""
    if not lanes:
        return nothing(algorithm)
    lanes = sorted(lanes)
    points = algorithm.ask(state, lanes, NOTHING_PENDING)
    return Results(
        np.full(len(lanes), state.step, dtype=np.int64),
        np.array(lanes, dtype=np.int64),
        points,
        np.array(values, dtype=np.float64).reshape(-1, 1),
    )


def some_lanes(algorithm: Method, state: Any, n: int) -> list[int]:
    """n lanes that may be told at the open step: any for a group, idle members, or the one of a sequential method."""
    return list(algorithm.lanes(state, NOTHING_PENDING, n))


# What is looked at ----------------------------------------------------------------------------------------------------


def bytes_of(points: Points) -> bytes:
    """Everything about points, so that equal bytes are equal points."""
    recipes = [recipe_to_json(recipe) for recipe in points.recipes] if isinstance(points, Recipes) else None
    parts = [points.vectors.astype("<f8").tobytes() if isinstance(points, Dense) else b""]
    parts += [json.dumps([recipes, points.payload, points.note.tolist()]).encode()]
    return b"|".join(parts)


def leaves(value: Any, path: str = "state", documented: bool = False) -> Iterator[tuple[str, Any, bool]]:
    """(path, number or array, whether its docstring speaks of infinity or NaN) of everything in a state."""
    if dataclasses.is_dataclass(value):
        infinite = fields_that_may_be_infinite(type(value))
        for item in dataclasses.fields(value):
            yield from leaves(getattr(value, item.name), f"{path}.{item.name}", documented or item.name in infinite)
    elif isinstance(value, tuple | list):
        for i, item in enumerate(value):
            yield from leaves(item, f"{path}[{i}]", documented)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{path}[{key}]", documented)
    else:
        yield path, value, documented


@cache
def fields_that_may_be_infinite(cls: Any) -> frozenset[str]:
    """Fields whose entry in the class's docstring has the word inf, infinite, infinity or NaN."""
    found: set[str] = set()
    names: list[str] = []
    for line in inspect.getdoc(cls).splitlines() if inspect.getdoc(cls) else ():
        head = re.match(r"(\w+(?:, \w+)*) : ", line)
        if head:
            names = head[1].split(", ")
        if re.search(r"\b(inf|infinity|infinite|nan)\b", line, re.IGNORECASE):
            found.update(names)
    return frozenset(found)


def assert_finite(state: Any) -> None:
    """Every number of a state is finite, but for those whose docstring says otherwise."""
    for path, leaf, documented in leaves(state):
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f":
            assert documented or np.isfinite(leaf).all(), f"{path} is not finite after step {state.step}: {leaf}"
        elif isinstance(leaf, float):
            assert documented or math.isfinite(leaf), f"{path} is {leaf} after step {state.step}"


def assert_sound(algorithm: Method, state: Any) -> None:
    """A state is finite, and so is everything one can see of it."""
    assert_finite(state)
    assert algorithm.need(state) >= 1
    assert 0 <= algorithm.oldest(state) <= state.step
    recommended = algorithm.recommend(state)
    assert recommended.shape == (algorithm.space.dim,)
    assert recommended.dtype == np.float64
    assert np.isfinite(recommended).all(), f"recommends {recommended}"
    assert_feasible(algorithm, recommended)
    metrics = algorithm.metrics(state)
    assert all(isinstance(name, str) for name in metrics)
    assert all(math.isfinite(value) for value in metrics.values()), f"metrics are {dict(metrics)}"
    if lanes := some_lanes(algorithm, state, 3):
        vectors = internal(algorithm, state, algorithm.ask(state, lanes, NOTHING_PENDING))
        assert vectors.shape == (len(lanes), algorithm.space.dim)
        assert np.isfinite(vectors).all(), f"asks {vectors} at step {state.step}"
        for vector in vectors:
            assert_feasible(algorithm, vector)


def assert_feasible(algorithm: Method, vector: Vector) -> None:
    """A point of a convex region lies in it; elsewhere every point decodes."""
    region = algorithm.space.region
    if algorithm.space.domain == "convex" and region is not None:
        assert region.contains(vector), f"{vector} is outside by {region.violation(vector)}"


def ordinary(n: int) -> list[float]:
    return [0.5 + 0.1 * ((7 * i) % 11) for i in range(n)]


AWKWARD: Mapping[str, Callable[[int, int], list[float]]] = {
    "all NaN": lambda step, n: [math.nan] * n,
    "all equal": lambda step, n: [1.25] * n,
    "huge": lambda step, n: [(-1) ** i * 1e300 for i in range(n)],
    "huge after small": lambda step, n: [1e300 if step % 3 == 2 else 1e-300 * i for i in range(n)],
    "infinite": lambda step, n: [(math.inf, 1.0, -math.inf)[i % 3] for i in range(step, step + n)],
    "every other failed": lambda step, n: [math.nan if i % 2 else v for i, v in enumerate(ordinary(n))],
    "every other step failed": lambda step, n: [math.nan] * n if step % 2 else ordinary(n),
    "one value": lambda step, n: [math.nan] * (n - 1) + [3.0],
    "constant but one": lambda step, n: [7.0] * (n - 1) + [7.0 - step],
    "ever better": lambda step, n: [-float(100**step) * (i + 1) for i in range(n)],
}
"""(step, n) -> n values of that step."""


N_ASKS = 1000
"""Evaluations that a method and random search have at home."""


# The contract ---------------------------------------------------------------------------------------------------------


class AlgorithmContract:
    """The contract of every method.

    Subclasses give the fixtures `case` (each problem), `bare` (each of `DOMAINS`) and `home` (one per method).
    """

    @pytest.fixture
    def case(self) -> Case:
        raise NotImplementedError

    @pytest.fixture
    def bare(self, case: Case) -> Case:
        return case

    @pytest.fixture
    def home(self) -> Case:
        raise NotImplementedError

    # ask

    def test_ask_is_pure_and_repeatable(self, case: Case) -> None:
        loop = case.loop()
        for _ in range(5):
            loop.ask(2)
            algorithm, state, pending = loop.algorithm, loop.state, loop.pending()
            lanes = list(algorithm.lanes(state, pending, 3))
            before = codec.encode(state)
            points = bytes_of(algorithm.ask(state, lanes, pending)) if lanes else b""
            assert list(algorithm.lanes(state, pending, 3)) == lanes
            if lanes:
                assert bytes_of(algorithm.ask(state, lanes, pending)) == points, "asked twice"
                assert bytes_of(case.make().ask(state, lanes, pending)) == points, "asked by a fresh instance"
            assert codec.encode(state) == before, "ask changed the state"
            loop.steps(1)

    def test_a_lane_asked_alone_equals_the_lane_in_a_batch(self, case: Case) -> None:
        loop = case.loop().steps(3)
        algorithm, state = loop.algorithm, loop.state
        batches = [some_lanes(algorithm, state, 12)]
        if case.method.traits.kind == "group":
            need = algorithm.need(state)
            batches += [[need + 5, 3, 64, 1001], list(range(5, need + 9)), [0, 2, 9, 10, 11]]
        for lanes in batches:
            batch = algorithm.ask(state, lanes, NOTHING_PENDING)
            assert len(batch) == len(lanes)
            for i, lane in enumerate(lanes):
                alone = algorithm.ask(state, [lane], NOTHING_PENDING)
                assert bytes_of(alone) == bytes_of(batch.take([i])), f"lane {lane} of {lanes}"

    def test_lanes_and_steps_get_different_points(self, case: Case) -> None:
        loop = case.loop()
        seen = []
        for _ in range(2):
            lanes = some_lanes(loop.algorithm, loop.state, 6)
            seen += internal(
                loop.algorithm, loop.state, loop.algorithm.ask(loop.state, lanes, NOTHING_PENDING)
            ).tolist()
            loop.steps(1)
        if case.method.traits.kind == "group":
            assert len({tuple(row) for row in seen}) == len(seen)

    def test_another_noise_stream_gives_other_points(self, case: Case) -> None:
        def asked(seed: int, stream: int) -> bytes:
            loop = Loop(case.make(seed, stream), case.problem.at)
            seen = b""
            for _ in range(2):
                lanes = some_lanes(loop.algorithm, loop.state, 4)
                points = loop.algorithm.ask(loop.state, lanes, NOTHING_PENDING)
                seen += internal(loop.algorithm, loop.state, points).tobytes()
                loop.steps(1)
            return seen

        first = asked(1, 0)
        assert asked(1, 0) == first
        if asked(2, 0) != first:  # else the method uses no noise
            assert asked(1, 1) != first

    def test_lanes_are_unused_ones_and_members_are_never_out_twice(self, case: Case) -> None:
        loop, kind = case.loop(), case.method.traits.kind
        chance = random.Random(3)
        for _ in range(40):
            pending = loop.pending()
            lanes = list(loop.algorithm.lanes(loop.state, pending, 3))
            assert len(lanes) == len(set(lanes)) <= 3
            assert not set(lanes) & pending.spent
            assert min(lanes, default=0) >= 0
            if kind == "group":
                assert len(lanes) == 3
                assert min(lanes) >= pending.fresh
            elif kind == "members":
                assert not set(lanes) & set(pending.lane.tolist()), "a member is out twice"
            else:
                assert lanes == ([] if 0 in pending.spent else [0])
            loop.ask(chance.randint(0, 3))
            if loop.out:
                loop.tell(chance.choice(loop.out))

    # states

    def test_a_state_survives_its_bytes(self, case: Case) -> None:
        loop = case.loop()
        kinds: dict[str, str] = {}
        for _ in range(6):
            raw = codec.encode(loop.state)
            decoded = codec.decode(case.method.State, raw)
            assert codec.encode(decoded) == raw
            assert case.method.State in (type(loop.state), type(decoded))
            for path, leaf, _ in leaves(loop.state):
                if isinstance(leaf, np.ndarray):
                    assert kinds.setdefault(path, f"{leaf.dtype} {leaf.ndim}-d") == f"{leaf.dtype} {leaf.ndim}-d", path
            loop.steps(1)

    def test_a_run_split_at_every_step_equals_the_unsplit_run(self, case: Case) -> None:
        loop = case.loop()
        loop.run(5 * max(loop.algorithm.need(loop.state), 6), lost=0.2)
        raw = codec.encode(case.make().init())
        for state, results in loop.history:
            assert codec.encode(state) == raw, f"step {state.step} depends on what the instance did before"
            decoded = codec.decode(case.method.State, raw)
            algorithm = case.make()
            lanes = some_lanes(algorithm, state, 3)
            assert bytes_of(algorithm.ask(decoded, lanes, NOTHING_PENDING)) == bytes_of(
                loop.algorithm.ask(state, lanes, NOTHING_PENDING)
            )
            raw = codec.encode(case.make().tell(decoded, results))
        assert codec.encode(loop.state) == raw

    def test_tell_leaves_its_arguments_alone(self, case: Case) -> None:
        loop = case.loop().steps(3)
        for state, results in loop.history:
            before = codec.encode(state), bytes_of(results.points), results.values.tobytes()
            loop.algorithm.tell(state, results)
            assert (codec.encode(state), bytes_of(results.points), results.values.tobytes()) == before

    # tell

    @pytest.mark.parametrize("values", AWKWARD)
    def test_no_values_make_a_state_that_is_not_finite(self, bare: Case, values: str) -> None:
        algorithm = bare.make()
        state = algorithm.init()
        for step in range(16):
            lanes = some_lanes(algorithm, state, max(algorithm.need(state), 4))
            after = algorithm.tell(state, told(algorithm, state, lanes, AWKWARD[values](step, len(lanes))))
            assert after.step == state.step + 1
            state = after
            assert_finite(state)
            if step < 2 or step % 5 == 0:  # the last step is the 15th
                assert_sound(algorithm, state)
        codec.decode(bare.method.State, codec.encode(state))
        algorithm.stopped(state)

    def test_any_number_of_rows_is_told(self, case: Case) -> None:
        algorithm = case.make()
        state = algorithm.init()
        need = algorithm.need(state)
        for n in (0, 1, 2, need, 0, 2 * need + 3, 0, 0, 3, 1):
            lanes = some_lanes(algorithm, state, n)
            state = algorithm.tell(state, told(algorithm, state, lanes, ordinary(len(lanes))))
            assert_sound(algorithm, state)
        assert state.step == 10

    def test_a_step_without_results_only_counts(self, case: Case) -> None:
        loop = case.loop().steps(3)
        before = loop.state
        after = loop.algorithm.tell(before, nothing(loop.algorithm))
        assert after.step == before.step + 1
        assert codec.encode(replace(after, step=before.step)) == codec.encode(before)

    def test_late_results_are_told_as_far_as_oldest_allows(self, case: Case) -> None:
        if case.method.traits.kind != "group":
            return
        loop = case.loop()
        algorithm = loop.algorithm
        for _ in range(4):
            late = loop.ask(algorithm.need(loop.state) + 3)[-1]  # this one comes when its step is closed
            loop.out.remove(late)
            loop.steps(1)
            accepted = late.step >= algorithm.oldest(loop.state)
            loop.out.append(late)
            loop.tell(late)
            loop.steps(1)
            assert_sound(algorithm, loop.state)
            told = {(step, lane) for _, r in loop.history for step, lane in zip(r.step, r.lane, strict=True)}
            assert ((late.step, late.lane) in told) == accepted

    def test_a_point_the_method_did_not_choose(self, case: Case) -> None:
        if not case.method.traits.injects:
            return
        algorithm, space = case.make(), case.problem.space
        state = algorithm.init()
        for step, far in enumerate((0.0, 1.0, 1e3, 1e150)):
            lanes = some_lanes(algorithm, state, algorithm.need(state))
            own = told(algorithm, state, lanes, ordinary(len(lanes)))
            foreign = np.full(space.dim, far)
            if space.domain == "convex" and space.region is not None:  # others are refused before they come here
                foreign = space.region.lmo(-foreign)
            vectors = np.concatenate([[foreign], own.vectors])
            note = np.zeros((1, own.points.note.shape[1]), dtype=np.int64)
            results = Results(
                np.concatenate([own.step[:1], own.step]),
                np.concatenate([[-1 - step], own.lane]),
                dense(vectors, np.concatenate([note, own.points.note])),
                np.concatenate([[[-1.0 - step]], own.values]),
            )
            state = algorithm.tell(state, results)
            assert_sound(algorithm, state)

    # what it is for

    def test_thirty_percent_lost_still_reaches_the_target(self, home: Case) -> None:
        home = home.of_dim(5)
        target = 0.1 * home.problem.at_start
        loop = home.loop().run(4000, lost=0.3, until=target)
        assert loop.best <= target, f"{loop.best} after {loop.asks} asks"

    def test_thirty_percent_lost_still_reaches_the_target_in_a_study(self, home: Case) -> None:
        home = home.of_dim(3)
        target = 0.1 * home.problem.at_start
        store, study = run_study(home, turns=8000, lost=0.3, until=target)
        best = perform(store, study.best())
        assert best is not None
        assert best[0].value is not None
        assert best[0].value <= target
        assert_replays(store, study)

    def test_order_of_arrival_does_not_matter(self, home: Case) -> None:
        if home.method.traits.kind != "group":
            return  # a step of the others is one result

        def digests(backwards: bool) -> list[str | None]:
            store, study = new_study(home, seed="5")
            for step in range(3):
                row, state = perform(store, study.state())
                asked = perform(store, study.ask(now=float(step), count=study.algorithm(row).need(state)))
                for lease in reversed(asked.leases) if backwards else asked.leases:
                    point, blob = perform(store, study.points([lease.trial.number]))[lease.trial.number]
                    value = home.problem.value(study.params(point, blob))
                    perform(store, study.tell([Report(lease.trial.number, lease.token, value=value)], now=float(step)))
                perform(store, study.advance(now=float(step)))
            return [row.digest for row in store.read(lambda tx: tx.steps(study.id, 0, 100))]

        assert len(digests(False)) == 3
        assert digests(True) == digests(False)

    def test_it_beats_random_search_at_home(self, home: Case) -> None:
        if home.method.name == "random_search":
            return
        goal = 0.5 * random_search_reaches(home.problem.space.domain, home.problem.space.dim)
        assert sum(recommends(home, goal, seed) for seed in (1, 2, 3)) >= 2

    # what it says of itself

    def test_its_options_and_docstrings_say_what_they_are(self, home: Case) -> None:
        schema = home.method.Options.model_json_schema()
        assert schema["properties"]
        for name, described in schema["properties"].items():
            assert described.get("description"), f"option {name} has no description"
        text = inspect.getdoc(home.method) or ""
        assert re.search(r"\b(19|20)\d\d\b|arXiv|doi", text), "the docstring names no source"
        for item in dataclasses.fields(home.method.State):
            assert re.search(rf"\b{item.name}\b", inspect.getdoc(home.method.State) or ""), f"State.{item.name}"

    def test_resolved_options_stay_as_they_are(self, case: Case) -> None:
        options = case.options
        stored = json.loads(json.dumps(options.model_dump(mode="json"), allow_nan=False))
        again = parse_options(case.method.Resolved, stored)
        assert again == options
        assert isinstance(options, case.method.Options)
        assert case.method.resolve(again, case.problem.space) == options
        assert case.method.memory(options, case.problem.space) > 0

    def test_names_of_metrics_are_stable(self, case: Case) -> None:
        loop = case.loop()
        first = set(loop.algorithm.metrics(loop.state))
        loop.run(3 * max(loop.algorithm.need(loop.state), 6))
        after = set(loop.algorithm.metrics(loop.state))
        assert first <= after
        loop.steps(3)
        assert set(loop.algorithm.metrics(loop.state)) == after
        assert_sound(loop.algorithm, loop.state)


def recommends(case: Case, goal: float, seed: int, asks: int = N_ASKS) -> bool:
    """Return whether the recommended point has the value of the goal within so many asks; looks after every hundred."""
    loop = case.loop(seed)
    for so_far in range(100, asks + 1, 100):
        loop.run(so_far, seed=seed)
        if case.problem.at(loop.algorithm.recommend(loop.state)) <= goal:
            return True
    return False


@cache
def random_search_reaches(domain: str, dim: int, asks: int = N_ASKS) -> float:
    """Value of the best of as many random points, the median of three seeds."""
    case = Case(lookup("random_search"), {"box": box, "free": free, "convex": ball}[domain](dim))
    drawn = [case.make(seed) for seed in (1, 2, 3)]
    points = [method.ask(method.init(), range(asks), NOTHING_PENDING).vectors for method in drawn]
    return median(min(map(case.problem.at, rows)) for rows in points if rows is not None)


# A real study ---------------------------------------------------------------------------------------------------------


def new_study(case: Case, seed: str = "7", **spec: Any) -> tuple[MemoryStore, Study]:
    """The case as a study in a memory store."""
    store = MemoryStore()
    raw = {
        "name": "contract",
        "space": case.problem.space.to_json(),
        "start": "skip",
        "algorithm": {"name": case.method.name, "options": dict(case.raw)},
        "seed": seed,
        "noise": "none",  # these are about algorithms; the study evaluates nothing of its own
        **spec,
    }
    head, _ = perform(store, create("contracts", raw, 0.0))
    return store, Study(head)


def run_study(
    case: Case,
    *,
    turns: int,
    workers: int = 4,
    lost: float = 0.0,
    seed: int = 0,
    until: float = -math.inf,
    **spec: Any,
) -> tuple[MemoryStore, Study]:
    """Several workers on two replicas of one study. In a turn one result arrives or is lost; a lost lease lapses."""
    store, study = new_study(case, str(seed), **spec)
    replicas = [study, Study(study.head)]
    chance = random.Random(seed)
    out: list[tuple[int, str, float, str]] = []
    best = math.inf
    for turn in range(turns):
        now = float(turn)
        while len(out) < workers:
            worker = f"worker {chance.randrange(workers)}"
            replica = chance.choice(replicas)
            asked = perform(store, replica.ask(now=now, worker=worker, lease_seconds=15.0))
            if not asked.leases:
                break
            for lease in asked.leases:
                number = lease.trial.number
                point, blob = perform(store, replica.points([number]))[number]
                out.append((number, lease.token, case.problem.value(replica.params(point, blob)), worker))
        if not out:
            continue
        number, token, value, worker = out.pop(chance.randrange(len(out)))
        if chance.random() < lost:
            continue  # the worker is never heard of again
        replica = chance.choice(replicas)
        perform(store, replica.tell([Report(number, token, value=value)], now=now, worker=worker))
        perform(store, replica.advance(now=now))
        best = min(best, value)
        if best <= until:
            break
    return store, study


def assert_replays(store: MemoryStore, study: Study) -> None:
    """A replay of the log gives the digest of every step, and a fresh instance the same state."""
    steps = list(perform(store, study.replay()))
    assert steps
    for record, digest in steps:
        assert record.digest == digest, f"step {record.step} replays to another state"
    _, here = perform(store, study.state())
    _, fresh = perform(store, Study(study.head).state())
    assert codec.encode(here) == codec.encode(fresh)

"""Random search: where its points lie, what it remembers, and that it is a Moore machine."""

from __future__ import annotations

import numpy as np
import pytest

from blackbox import codec
from blackbox.algorithm import build, lookup, resolve_options
from blackbox.algorithms.random_search import RandomSearch, RandomSearchOptions, RandomSearchState
from blackbox.records import NOTHING_PENDING, Results, dense
from blackbox.rng import Key
from blackbox.space import Categorical, Float, Int, Space, Vector

MIXED = Space(
    {
        "rate": Float(low=1e-4, high=1e-1, scale="log"),
        "depth": Int(low=1, high=9),
        "act": Categorical(choices=["relu", "gelu", "tanh"]),
        "offset": Vector(dim=2, init=(5.0, -5.0)),
    }
)


def make(space: Space = MIXED, **options: object) -> RandomSearch:
    resolved = resolve_options("random_search", space, options)
    method = build("random_search", space, resolved, Key.from_seed(7))
    assert isinstance(method, RandomSearch)
    return method


def told(vectors: np.ndarray, values: list[float], step: int = 0) -> Results:
    n = len(values)
    steps, lanes = np.full(n, step, dtype=np.int64), np.arange(n, dtype=np.int64)
    return Results(steps, lanes, dense(np.asarray(vectors, dtype=np.float64)), np.array(values).reshape(n, 1))


def test_it_is_registered_and_takes_every_scalar_parameter() -> None:
    assert lookup("random_search") is RandomSearch
    assert resolve_options("random_search", MIXED, {}) == RandomSearchOptions()


def test_bounded_coordinates_are_uniform_and_free_ones_normal_around_the_start() -> None:
    method = make(sigma=2.0)
    vectors = method.ask(method.init(), range(4000), NOTHING_PENDING).vectors
    assert vectors is not None
    box, free = vectors[:, MIXED.bounded], vectors[:, ~MIXED.bounded]
    assert box.min() >= 0
    assert box.max() < 1
    np.testing.assert_allclose(box.mean(axis=0), 0.5, atol=0.03)
    np.testing.assert_allclose(box.var(axis=0), 1 / 12, atol=0.006)
    np.testing.assert_allclose(free.mean(axis=0), [5, -5], atol=0.15)
    np.testing.assert_allclose(free.std(axis=0), 2, atol=0.1)


def test_a_lane_asked_alone_equals_the_lane_in_a_batch() -> None:
    method = make()
    state = method.init()
    batch = method.ask(state, range(20), NOTHING_PENDING).vectors
    alone = [method.ask(state, [lane], NOTHING_PENDING).vectors for lane in range(20)]
    assert batch is not None
    assert np.concatenate([a for a in alone if a is not None]).tobytes() == batch.tobytes()


def test_steps_draw_different_points() -> None:
    method = make()
    first = method.init()
    second = method.tell(first, told(np.zeros((0, MIXED.dim)), []))
    a, b = (method.ask(state, range(8), NOTHING_PENDING).vectors for state in (first, second))
    assert a is not None
    assert b is not None
    assert not np.isin(a, b).any()


def test_the_best_point_told_is_recommended_whatever_came_with_it() -> None:
    method = make(Space({"x": Float(low=0, high=1)}))
    state = method.init()
    assert method.recommend(state) == pytest.approx([0.5])
    state = method.tell(state, told([[0.1], [0.2], [0.3]], [np.nan, 4.0, np.inf]))
    assert (state.step, state.value, state.best.tolist()) == (1, 4.0, [0.2])
    state = method.tell(state, told([[0.4], [0.6]], [np.nan, 5.0], step=0))
    assert (state.step, state.value, state.best.tolist()) == (2, 4.0, [0.2])
    state = method.tell(state, told([[0.7]], [-1.0], step=1))
    assert method.recommend(state) == pytest.approx([0.7])
    assert method.metrics(state) == {"best": -1.0}


@pytest.mark.parametrize("values", [[], [np.nan] * 4, [np.inf] * 4, [-np.inf] * 4])
def test_a_step_without_any_value_only_counts(values: list[float]) -> None:
    method = make()
    state = method.tell(method.init(), told(np.ones((len(values), MIXED.dim)), values))
    assert (state.step, state.value) == (1, None)
    np.testing.assert_array_equal(state.best, MIXED.initial)
    assert method.metrics(state) == {}


def test_the_state_survives_its_bytes() -> None:
    method = make()
    for state in (method.init(), method.tell(method.init(), told(np.ones((1, MIXED.dim)), [2.0]))):
        raw = codec.encode(state)
        assert codec.encode(codec.decode(RandomSearchState, raw)) == raw

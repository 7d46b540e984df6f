"""Steppers follow their formulas, coordinate by coordinate, however the vector is cut."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import DTypeLike
from pydantic import TypeAdapter

from blackbox import codec
from blackbox.toolbox import steppers
from blackbox.toolbox.steppers import (
    SGD,
    Adam,
    AnyStepper,
    ClipUp,
    Momentum,
    Stepper,
    StepperState,
    norm,
    square_sums,
)

ALL: list[Stepper] = [SGD(), Momentum(), Adam(), ClipUp()]
each = pytest.mark.parametrize("stepper", ALL, ids=lambda stepper: stepper.type)
RATES = [0.1, 0.05, 0.2, 0.01, 0.1]


def gradients(n: int, dim: int) -> np.ndarray:
    return np.random.default_rng(7).normal(size=(n, dim)) * np.logspace(-3, 3, dim)


def walk(stepper: Stepper, dtype: DTypeLike = np.float64) -> list[list[float]]:
    """The moves of five steps in three dimensions."""
    state, moves = stepper.init(3, dtype), []
    for rate, gradient in zip(RATES, gradients(5, 3), strict=True):
        state, delta = stepper.step(state, gradient, rate)
        moves.append(delta.tolist())
    assert state.t == 5
    return moves


def test_sgd_moves_against_the_gradient() -> None:
    expected = [[-rate * g for g in gradient] for rate, gradient in zip(RATES, gradients(5, 3), strict=True)]
    np.testing.assert_allclose(walk(SGD()), expected)


def test_momentum_is_an_exponential_average() -> None:
    velocity, expected = [0.0] * 3, []
    for rate, gradient in zip(RATES, gradients(5, 3).tolist(), strict=True):
        velocity = [0.9 * v + 0.1 * d for v, d in zip(velocity, gradient, strict=True)]
        expected.append([-rate * v for v in velocity])
    np.testing.assert_allclose(walk(Momentum()), expected)


def test_adam_matches_the_code_of_salimans() -> None:
    m, v, expected = [0.0] * 3, [0.0] * 3, []
    for t, (rate, gradient) in enumerate(zip(RATES, gradients(5, 3).tolist(), strict=True), start=1):
        a = rate * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        move = []
        for i, g in enumerate(gradient):
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g * g
            move.append(-a * m[i] / (math.sqrt(v[i]) + 1e-8))
        expected.append(move)
    np.testing.assert_allclose(walk(Adam()), expected)


@pytest.mark.parametrize("max_speed", [None, 0.03])
def test_clipup_normalises_averages_and_limits(max_speed: float | None) -> None:
    velocity, expected = [0.0] * 3, []
    for rate, gradient in zip(RATES, gradients(5, 3).tolist(), strict=True):
        length = math.sqrt(sum(g * g for g in gradient))
        velocity = [0.9 * v - rate * g / length for v, g in zip(velocity, gradient, strict=True)]
        speed = math.sqrt(sum(v * v for v in velocity))
        limit = 2 * rate if max_speed is None else max_speed
        if speed > limit:
            velocity = [v * limit / speed for v in velocity]
        expected.append(velocity)
    np.testing.assert_allclose(walk(ClipUp(max_speed=max_speed)), expected)


def test_clipup_does_not_depend_on_the_scale_of_the_objective() -> None:
    for scale in (1e-100, 1e100):
        _, delta = ClipUp().step(ClipUp().init(3), scale * np.array([3.0, 0.0, -4.0]), 0.1)
        np.testing.assert_allclose(delta, [-0.06, 0.0, 0.08], atol=1e-17)


def test_clipup_coasts_where_the_objective_is_flat() -> None:
    state = StepperState(3, np.array([0.1, -0.05]), np.empty(0))
    _, delta = ClipUp().step(state, np.zeros(2), 0.1)
    np.testing.assert_allclose(delta, [0.09, -0.045])


@each
def test_a_nan_gradient_is_never_hidden(stepper: Stepper) -> None:
    _, delta = stepper.step(stepper.init(2), np.array([math.nan, 1.0]), 0.1)
    assert np.isnan(delta).any()


@each
def test_a_step_changes_neither_state_nor_gradient(stepper: Stepper) -> None:
    state, _ = stepper.step(stepper.init(3), np.ones(3), 0.1)
    before = [np.copy(x) for x in (state.velocity, state.square)]
    gradient = np.array([1.0, -2.0, 3.0])
    first = stepper.step(state, gradient, 0.1)[1]
    second = stepper.step(state, gradient, 0.1)[1]
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(gradient, [1.0, -2.0, 3.0])
    for old, now in zip(before, (state.velocity, state.square), strict=True):
        np.testing.assert_array_equal(old, now)


@each
def test_the_dtype_of_init_is_kept(stepper: Stepper) -> None:
    state, delta = stepper.step(stepper.init(5, np.float32), np.ones(5), 0.1)
    assert delta.dtype == state.velocity.dtype == state.square.dtype == np.float32
    np.testing.assert_allclose(walk(stepper, np.float32), walk(stepper), rtol=1e-4)


@each
@settings(deadline=None, max_examples=25)
@given(cuts=st.sets(st.integers(1, 36), max_size=4), seed=st.integers(0, 99), dtype=st.sampled_from(["f4", "f8"]))
def test_an_update_cut_by_coordinates_is_bitwise_that_of_the_whole(
    stepper: Stepper, cuts: set[int], seed: int, dtype: str
) -> None:
    rng = np.random.default_rng(seed)
    state, _ = stepper.step(stepper.init(37, dtype), rng.normal(size=37), 0.1)
    gradient = rng.normal(size=37)
    whole, delta = stepper.step(state, gradient, 0.1)
    norms: dict[str, float] = {}
    if isinstance(stepper, ClipUp):
        length = norm(square_sums(gradient))
        speed = norm(square_sums(stepper.velocity(state, gradient, 0.1, length)))
        norms = {"gradient_norm": length, "velocity_norm": speed}
    edges = [0, *sorted(cuts), 37]
    for start, stop in pairwise(edges):
        part, moved = stepper.step(state.cut(start, stop), gradient[start:stop], 0.1, **norms)
        assert moved.tobytes() == delta[start:stop].tobytes()
        for field in dataclasses.fields(StepperState):
            np.testing.assert_array_equal(getattr(part, field.name), getattr(whole.cut(start, stop), field.name))


def test_norms_from_blocks_do_not_depend_on_the_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steppers, "BLOCK", 16)
    x = np.random.default_rng(3).normal(size=100).astype(np.float32)
    assert norm(square_sums(x)) == pytest.approx(np.linalg.norm(x.astype(np.float64)), rel=1e-14)
    for cut in (16, 48, 96):
        parts = [*square_sums(x[:cut]), *square_sums(x[cut:])]
        assert parts == square_sums(x).tolist()
        assert norm(parts) == norm(square_sums(x))


@each
def test_a_stepper_round_trips_through_json(stepper: Stepper) -> None:
    adapter = TypeAdapter(AnyStepper)
    assert adapter.validate_json(adapter.dump_json(stepper)) == stepper


@each
def test_a_stepper_state_survives_the_codec(stepper: Stepper) -> None:
    state, _ = stepper.step(stepper.init(3, np.float32), np.ones(3), 0.1)
    again = codec.decode(StepperState, codec.encode(state))
    assert again.t == 1
    for field in ("velocity", "square"):
        old, new = getattr(state, field), getattr(again, field)
        assert new.dtype == old.dtype
        np.testing.assert_array_equal(new, old)

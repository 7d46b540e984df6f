"""Mirrored lanes and the sums that follow them, against plain loops; base vectors stay where float32 squares do."""

from __future__ import annotations

import math

import numpy as np
import pytest

from blackbox.recipes import digest, materialise, weighted_noise_sum
from blackbox.records import Term
from blackbox.rng import Key, normal
from blackbox.space import Space, Vector
from blackbox.toolbox.perturbations import (
    FARTHEST,
    SIZES,
    centre,
    default_popsize,
    mirrored,
    moved,
    rate,
    size,
    weighted,
)
from blackbox.toolbox.schedules import Constant, Linear

KEY, DIM = Key.from_seed(5), 6
LANES = [7, 0, 1, 12, 3]


@pytest.mark.parametrize("scale", [0.25, -0.25])
def test_two_lanes_lie_on_both_sides_of_the_base(scale: float) -> None:
    base = np.linspace(-1, 1, DIM).astype(np.float32)
    name = digest(base)
    points = mirrored(name, Term(2, 9, 0, scale), LANES)
    assert points.note.shape == (len(LANES), 0)
    assert points.payload == ()
    for lane, asked in zip(LANES, points.recipes, strict=True):
        noise = normal(KEY.stream(2), 9, lane // 2, DIM)
        found = materialise(asked, KEY, DIM, {name: base})
        np.testing.assert_allclose(found, base + (-scale if lane % 2 else scale) * noise, rtol=1e-6)


def test_every_lane_gets_the_payload_the_kind_of_noise_and_the_factor() -> None:
    points = mirrored("base", Term(0, 1, 0, 1.0, "rademacher", "factor"), [4, 5], {"seen": 1})
    assert points.payload == ({"seen": 1},) * 2
    (first,), (second,) = (asked.terms for asked in points.recipes)
    assert first == Term(0, 1, 2, 1.0, "rademacher", "factor")
    assert second == Term(0, 1, 2, -1.0, "rademacher", "factor")


def test_what_was_told_is_summed_on_the_side_where_it_was_asked() -> None:
    weights = [0.5, -0.25, 0.125, 0.0, -1.0]
    recipes = mirrored("base", Term(2, 9, 0, 0.1, weight="factor"), LANES).recipes
    for signed in (True, False):
        expected = np.zeros(DIM)
        for lane, w in zip(LANES, weights, strict=True):
            noise = normal(KEY.stream(2), 9, lane // 2, DIM).astype(float)
            expected += (-w if lane % 2 and signed else w) * noise
        terms = weighted(recipes, weights, signed=signed)
        assert all(term.weight is None for term in terms), "the factor belongs to the point, not to its noise"
        np.testing.assert_allclose(weighted_noise_sum(terms, KEY, DIM), expected, rtol=1e-5, atol=1e-6)


def test_a_base_vector_stays_where_its_squares_are_finite() -> None:
    start = centre(Space({"w": Vector(dim=2, init=(1e300, -3.0))}))
    assert (start.dtype, start.tolist()) == (np.float32, [np.float32(FARTHEST), -3.0])
    after = moved(start, np.array([FARTHEST, -1e30], dtype=np.float32))
    assert after.dtype == np.float32
    assert after.tolist() == [np.float32(FARTHEST), np.float32(-FARTHEST)]
    assert np.isfinite(np.square(after)).all()
    assert start[1] == -3.0, "the old one is left alone"


def test_sizes_and_rates_stay_in_range_whatever_the_schedule_says() -> None:
    falling = Linear(start=0.5, end=-1.0, steps=3)
    assert [size(falling, step) for step in (0, 1, 3)] == [0.5, pytest.approx(1e-8), SIZES[0]]
    assert [rate(falling, step) for step in (0, 3)] == [0.5, 0.0]
    assert size(Constant(value=1e300), 0) == SIZES[1]
    assert math.isfinite(rate(Constant(value=1e300), 0) * FARTHEST)


@pytest.mark.parametrize("d", [1, 2, 10, 100, 10**6])
def test_the_default_popsize_is_even(d: int) -> None:
    assert default_popsize(d) in (4 + int(3 * math.log(d)), 5 + int(3 * math.log(d)))
    assert default_popsize(d) % 2 == 0

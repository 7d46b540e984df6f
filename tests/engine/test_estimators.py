"""Estimators: slopes by hand, gradients by plain loops, and what lost results leave."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest

from blackbox.rng import Key
from blackbox.toolbox.directions import Directions, Family
from blackbox.toolbox.estimators import STEEPEST, Difference, Estimator, differences, roles

KEY = Key.from_seed(3)
NAN = math.nan
FAMILIES: tuple[Family, ...] = get_args(Family)


def quadratic(d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    h = chance.normal(size=(d, d))
    return h @ h.T / d, chance.normal(size=d)


# roles and slopes


def test_lanes_have_these_roles() -> None:
    assert roles(range(4), "central").tolist() == [[0, 1], [0, -1], [1, 1], [1, -1]]
    assert roles(range(3), "forward").tolist() == [[0, 0], [0, 1], [1, 1]]
    assert roles(range(2), "forward", base=False).tolist() == [[0, 1], [1, 1]]


def test_slopes_by_hand() -> None:
    def slopes(rows: list[tuple[int, int, float]], **more: float) -> tuple[list[int], list[float], float | None]:
        note = np.array([row[:2] for row in rows], dtype=np.int64).reshape(-1, 2)
        found = differences(note, np.array([row[2] for row in rows]), 0.5, **more)
        return found.index.tolist(), found.slope.tolist(), found.value

    assert slopes([(0, 1, 3.0), (0, -1, 1.0)]) == ([0], [2.0], 2.0), "a pair is central"
    assert slopes([(0, 0, 1.0), (0, 1, 3.0), (1, 1, 0.5)]) == ([0, 1], [4.0, -1.0], 1.0), "against the base"
    assert slopes([(0, 1, 3.0), (4, -1, 2.0)], base=1.0) == ([0, 4], [4.0, -2.0], 1.0), "against a given base"
    assert slopes([(2, -1, 5.0), (0, 1, 3.0), (0, -1, 1.0)]) == ([0, 2], [2.0, -6.0], 2.0), "half a pair: the midpoints"
    assert slopes([(2, -1, 5.0), (0, 1, 3.0), (0, -1, 1.0)], base=4.0) == ([0, 2], [2.0, -2.0], 4.0)
    assert slopes([(0, 1, 1.0), (1, 1, 2.0), (2, -1, 6.0)]) == ([0, 1, 2], [-6.0, -3.0, -9.0], None), "leave one out"
    assert slopes([(0, 1, 1.0)]) == ([], [], None), "a single value says nothing"
    assert slopes([]) == ([], [], None)
    assert slopes([(0, 1, 3.0), (0, -1, NAN), (1, 1, math.inf), (2, 0, 1.0)]) == ([0], [4.0], 1.0)
    assert slopes([(0, 0, 0.0), (0, 1, 1.0), (1, 1, -2.0), (2, 1, 90.0)], clip=3.0)[1] == [2.0, -4.0, 12.0]


@pytest.mark.parametrize("difference", get_args(Difference))
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gradient_by_plain_loops(family: Family, difference: Difference) -> None:
    d, q, r, step = 5, 4, 0.1, 6
    h, b = quadratic(d)

    def f(x: np.ndarray) -> float:
        return float(0.5 * x @ h @ x + b @ x)

    x = np.linspace(-1, 1, d)
    estimator = Estimator(Directions(family, KEY, d, q), difference, q)
    points = estimator.plan(x, step, range(estimator.need), r)
    assert points.vectors is not None
    estimate = estimator.reduce(step, points.note, np.array([f(row) for row in points.vectors]), r)
    terms = []
    for i in range(q):
        u = estimator.directions.rows(step, [i])[0]
        y = (f(x + r * u) - f(x)) / r if difference == "forward" else (f(x + r * u) - f(x - r * u)) / (2 * r)
        terms.append([d * y * u[j] for j in range(d)])
    g = [sum(term[j] for term in terms) / q for j in range(d)]
    np.testing.assert_allclose(estimate.gradient, g, rtol=1e-9)
    spread = sum((term[j] - g[j]) ** 2 for term in terms for j in range(d))
    assert estimate.error == pytest.approx(math.sqrt(spread / (q * (q - 1))), rel=1e-9)
    assert len(estimate) == q
    if difference == "forward":
        assert estimate.slopes.value == f(x)
    else:
        assert estimate.slopes.value == pytest.approx(f(x), abs=r * r * np.linalg.norm(h))


@pytest.mark.parametrize("family", FAMILIES)
def test_d_orthogonal_directions_give_the_gradient_of_a_quadratic(family: Family) -> None:
    d = 6
    h, b = quadratic(d)
    estimator = Estimator(Directions(family, KEY, d, d), "central", d)
    x = np.ones(d)
    points = estimator.plan(x, 0, range(2 * d), 0.5)
    assert points.vectors is not None
    values = np.array([0.5 * row @ h @ row + b @ row for row in points.vectors])
    off = np.linalg.norm(estimator.reduce(0, points.note, values, 0.5).gradient - (h @ x + b))
    assert (off < 1e-12) == (family in ("coordinate", "orthogonal"))


# lost results


@pytest.mark.parametrize(
    ("difference", "base"),
    [("central", True), ("forward", True), ("forward", False)],
    ids=["central", "forward", "rloo"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_lost_results_leave_the_mean_where_it_was(family: Family, difference: Difference, base: bool) -> None:
    """Half of all results lost, also bases and halves of pairs: the mean of 600 steps is right within 3.2 se."""
    d, q, r, n = 4, 3, 0.2, 600
    h, b = quadratic(d, 1)
    x = np.array([1.0, -0.5, 0.3, 0.8])
    slope = h @ x + b
    estimator = Estimator(Directions(family, KEY, d, q), difference, q, base)
    chance = np.random.default_rng(2)
    found = []
    for step in range(n):
        points = estimator.plan(x, step, range(estimator.need), r)
        assert points.vectors is not None
        v = points.vectors
        values = 0.5 * np.einsum("ni,ij,nj->n", v, h, v) + v @ b + 10.0
        values[chance.random(len(values)) < 0.5] = NAN
        estimate = estimator.reduce(step, points.note, values, r)
        if len(estimate):
            found.append(estimate.gradient)
    g = np.array(found)
    error = np.sqrt(g.var(axis=0) / len(g))
    np.testing.assert_array_less(np.abs(g.mean(axis=0) - slope), 3.2 * error)


def test_half_pairs_cost_less_against_midpoints_than_they_would_against_one_another() -> None:
    """A large constant in F must not enter the variance through a lone half."""
    d, q = 10, 5
    estimator = Estimator(Directions("orthogonal", KEY, d, q), "central", q)
    x, slope = np.zeros(d), np.ones(d)
    errors = []
    for step in range(300):
        points = estimator.plan(x, step, range(2 * q), 1e-3)
        assert points.vectors is not None
        values = 1e3 + points.vectors @ slope
        values[1] = NAN
        whole = estimator.reduce(step, points.note, 1e3 + points.vectors @ slope, 1e-3).gradient
        errors.append(np.abs(estimator.reduce(step, points.note, values, 1e-3).gradient - whole).max())
    assert max(errors) < 1e-8


def test_the_error_is_that_of_the_mean_over_directions() -> None:
    d, q, n = 8, 6, 1000
    slope = np.linspace(1, 2, d)
    estimator = Estimator(Directions("sphere", KEY, d), "central", q)
    squares, claimed = [], []
    for step in range(n):
        points = estimator.plan(np.zeros(d), step, range(2 * q), 0.1)
        assert points.vectors is not None
        estimate = estimator.reduce(step, points.note, points.vectors @ slope, 0.1)
        assert estimate.error is not None
        squares.append(np.square(estimate.gradient - slope).sum())
        claimed.append(estimate.error**2)
    assert np.mean(claimed) == pytest.approx(np.mean(squares), rel=0.08)


@pytest.mark.parametrize("difference", get_args(Difference))
def test_no_values_make_a_gradient_that_is_not_finite(difference: Difference) -> None:
    d = 3
    estimator = Estimator(Directions("normal", KEY, d), difference, 3)
    lanes = range(9)
    for values in (
        [NAN] * 9,
        [1e308, -1e308] * 4 + [1e308],
        [-1e308, 1e308, 1e308] * 3,
        [math.inf, -math.inf, 1.0] * 3,
        [1e308] * 9,
    ):
        for part in (slice(0, 9), slice(1, 9), slice(1, 9, 2), slice(0, 1)):
            note = estimator.plan(np.zeros(d), 0, lanes, 1e-8).note[part]
            estimate = estimator.reduce(0, note, np.array(values)[part], 1e-8)
            assert np.isfinite(estimate.gradient).all()
            assert np.abs(estimate.slopes.slope).max(initial=0) <= STEEPEST
            assert estimate.error is None or math.isfinite(estimate.error)
            assert estimate.slopes.value is None or math.isfinite(estimate.slopes.value)

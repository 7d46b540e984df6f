"""Nearest matrices with given row and column sums: against formulas, all supports and optimality conditions."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from blackbox.regions import Birkhoff
from blackbox.regions.marginals import project_marginals


def nearest(y: np.ndarray) -> np.ndarray:
    """The doubly stochastic matrix nearest to y."""
    ones = np.ones(len(y))
    return project_marginals(y, ones, ones)


def drawn(chance: np.random.Generator, shape: tuple[int, int], kind: int) -> np.ndarray:
    """A matrix: spread evenly, with ties, over magnitudes, with zeros, or of rank one."""
    y = chance.normal(size=shape)
    if kind == 1:
        y = chance.integers(-2, 3, size=shape).astype(np.float64)
    elif kind == 2:
        y *= 10.0 ** chance.uniform(-6, 6, size=shape)
    elif kind == 3:
        y[chance.random(shape) < 0.6] = 0.0
    elif kind == 4:
        y = np.outer(y[:, 0], y[0])
    return y


@pytest.mark.parametrize("y", [[[0.1, 0.3], [0.2, 0.6]], [[3.0, -1.0], [0.0, 2.0]], [[-5.0, 2.0], [1.0, 1.0]]])
def test_two_by_two_has_a_formula(y: list[list[float]]) -> None:
    (a, b), (c, d) = y
    share = min(max(0.5 + (a - b - c + d) / 4, 0.0), 1.0)
    np.testing.assert_allclose(nearest(np.array(y)), [[share, 1 - share], [1 - share, share]], atol=1e-15)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.3, 1.0, 20.0]))
def test_it_is_the_nearest_of_the_candidates_of_all_supports(seed: int, scale: float) -> None:
    """For each of the 512 choices of entries that are 0, the nearest matrix with the right sums, if it is >= 0."""
    y = scale * drawn(np.random.default_rng(seed), (3, 3), seed % 2)
    sums = np.vstack([np.kron(np.eye(3), np.ones(3)), np.kron(np.ones(3), np.eye(3))])
    candidates = []
    for free in product((False, True), repeat=9):
        own = sums[:, free]
        x = np.zeros(9)
        x[list(free)] = y.ravel()[list(free)] + np.linalg.pinv(own) @ (1 - own @ y.ravel()[list(free)])
        if np.abs(sums @ x - 1).max() < 1e-9 and x.min() > -1e-12:
            candidates.append(x)
    p = nearest(y).ravel()
    np.testing.assert_allclose(p, min(candidates, key=lambda x: float(np.linalg.norm(x - y.ravel()))), atol=1e-9)
    corners = np.array([np.eye(3)[list(order)].ravel() for order in permutations(range(3))])
    assert max((corners - p) @ (y.ravel() - p)) <= 1e-9, "no vertex lies towards y"


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_assignment_lies_towards_the_matrix(seed: int) -> None:
    """Of all v, the assignment with the largest <y - p, v - p> has none above 0: that is what nearest means."""
    chance = np.random.default_rng(seed)
    n = int(chance.integers(1, 40))
    y = 10.0 ** chance.uniform(-3, 3) * drawn(chance, (n, n), seed % 5)
    p = nearest(y)
    assert p.min() >= 0
    np.testing.assert_allclose([p.sum(axis=0), p.sum(axis=1)], 1, atol=1e-13)
    away = (y - p) / max(1.0, np.abs(y).max())  # round-off is that of y
    best = linear_sum_assignment(-away)
    assert away[best].sum() - (away * p).sum() <= 1e-12 * n
    np.testing.assert_allclose(nearest(p), p, atol=1e-13)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), magnitude=st.sampled_from([1.0, 1e3, 1e8, 1e15]))
def test_any_sums_at_any_magnitude_are_met_to_round_off(seed: int, magnitude: float) -> None:
    chance = np.random.default_rng(seed)
    m, n = chance.integers(1, 12, size=2)
    rows, columns = (10.0 ** chance.uniform(-4, 0, size=k) for k in (m, n))
    columns *= rows.sum() / columns.sum()
    y = chance.uniform(-1, 1, size=(m, n)) * magnitude
    p = project_marginals(y, rows, columns)
    assert p.min() >= 0
    np.testing.assert_allclose(p.sum(axis=1), rows, atol=1e-14 * rows.max() * n)
    np.testing.assert_allclose(p.sum(axis=0), columns, atol=1e-14 * columns.max() * m)
    np.testing.assert_allclose(project_marginals(y.T, columns, rows), p.T, atol=1e-10 + 1e-14 * magnitude)


@pytest.mark.parametrize("magnitude", [1e4, 1e9, 1e15, 1e300])
def test_far_away_the_nearest_matrix_is_the_best_assignment(magnitude: float) -> None:
    y = np.random.default_rng(3).normal(size=(12, 12))
    best = Birkhoff(order=12).lmo(-y.ravel()).reshape(12, 12)
    np.testing.assert_allclose(nearest(magnitude * y), best, atol=1e-12)


def test_alternating_projections_lead_there() -> None:
    """Dykstra's algorithm between the matrices with these sums and those >= 0, 20,000 rounds."""
    chance = np.random.default_rng(0)
    rows, columns = np.array([0.5, 1.0, 2.0, 0.1]), np.array([1.0, 1.6, 1.0])
    y = chance.normal(size=(4, 3))
    x, correction = y.copy(), np.zeros((4, 3))
    for _ in range(20_000):
        over, above = x.sum(axis=1) - rows, x.sum(axis=0) - columns
        plane = x - over[:, None] / 3 - above / 4 + over.sum() / 12
        x = np.maximum(plane + correction, 0.0)
        correction = plane + correction - x
    np.testing.assert_allclose(project_marginals(y, rows, columns), x, atol=1e-9)


def test_large_matrices_are_projected_to_round_off() -> None:
    y = np.random.default_rng(1).normal(size=(200, 200))
    for scale in (0.1, 1.0, 100.0):
        p = nearest(scale * y)
        away = scale * y - p
        assert np.abs(p.sum(axis=1) - 1).max() < 1e-13
        assert away[linear_sum_assignment(-away)].sum() - (away * p).sum() <= 1e-10

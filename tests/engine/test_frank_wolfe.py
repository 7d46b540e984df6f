"""Mixtures of atoms and the search along segments: by loops and formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from blackbox.toolbox.frank_wolfe import MOST_ATOMS, Mixture, Search, least_on_segment, most_atoms

NAN = math.nan
CORNERS = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def test_mixtures_move_by_the_formulas() -> None:
    mixture = Mixture.at(CORNERS[0])
    weights = {0: 1.0}
    for share, corner in ((0.25, 1), (0.5, 2), (0.1, 1)):
        mixture = mixture.toward(CORNERS[corner], share)
        weights = {i: weight * (1 - share) for i, weight in weights.items()}
        weights[corner] = weights.get(corner, 0.0) + share
        np.testing.assert_allclose(mixture.point, sum(weight * CORNERS[i] for i, weight in weights.items()))
        assert len(mixture) == len(weights)
    i = mixture.away(np.array([1.0, 3.0, 2.0]))
    np.testing.assert_array_equal(mixture.atoms[i], CORNERS[1])
    moved = mixture.exchanged(i, CORNERS[0], 0.05)
    np.testing.assert_allclose(moved.point, mixture.point + 0.05 * (CORNERS[0] - CORNERS[1]))
    gone = mixture.exchanged(i, CORNERS[0], float(mixture.weights[i]))
    assert len(gone) == 2, "an atom without weight is dropped"
    np.testing.assert_allclose(gone.weights.sum(), 1, rtol=1e-15)
    assert len(mixture.toward(CORNERS[2], 1.0)) == 1


def test_the_lightest_atoms_are_merged_and_the_point_stays() -> None:
    chance = np.random.default_rng(0)
    weights = chance.random(20)
    mixture = Mixture(chance.normal(size=(20, 4)), weights / weights.sum())
    few = mixture.at_most(16)
    assert len(few) == 16
    np.testing.assert_allclose(few.point, mixture.point, atol=1e-14)
    heaviest = np.argsort(weights)[-12:]
    assert all((few.atoms == mixture.atoms[i]).all(axis=1).any() for i in heaviest)
    assert [most_atoms(d) for d in (5, 100_000, 10**6)] == [MOST_ATOMS, 10, 2]


@pytest.mark.parametrize(
    ("at", "bend", "length", "longest", "expected"),
    [
        (0.3, 2.0, 0.5, 1.0, 0.3),
        (0.3, 2.0, 0.1, 1.0, 0.3),
        (3.0, 2.0, 0.5, 1.0, 1.0),
        (3.0, 2.0, 0.01, 1.0, 0.08),
        (-0.2, 2.0, 0.5, 1.0, 0.0),
        (-0.2, -2.0, 0.5, 1.0, 1.0),
        (0.6, -2.0, 0.1, 1.0, 0.0),
        (0.2, -2.0, 0.5, 1.0, 0.0),
    ],
)
def test_the_step_is_where_a_quadratic_is_least(
    at: float, bend: float, length: float, longest: float, expected: float
) -> None:
    """F = bend (t - at)^2 + 5; without a least inside as far as a step may go, if values fall all the way, else 0."""
    f = lambda t: bend * (t - at) ** 2 + 5  # noqa: E731
    step, change = least_on_segment(f(0.0), f(length), f(0.5 * length), length, longest)
    assert step == pytest.approx(expected, abs=1e-12)
    assert change == pytest.approx(f(step) - f(0.0), abs=1e-12)


def test_with_one_value_the_step_is_that_one_or_none() -> None:
    assert least_on_segment(1.0, 0.5, NAN, 0.4, 1.0) == (0.4, -0.5)
    assert least_on_segment(1.0, 1.0, NAN, 0.4, 1.0) == (0.0, 0.0)


@pytest.mark.parametrize("values", [(1e308, -1e308, 1e308), (-1e308, 1e308, -1e308), (1e308, 1e308, 1e300)])
def test_the_largest_numbers_give_a_step_that_is_feasible(values: tuple[float, float, float]) -> None:
    step, change = least_on_segment(*values, 0.5, 1.0)
    assert 0 <= step <= 1
    assert change <= 0


def test_every_candidate_and_every_answer_is_a_mixture_of_what_is_known() -> None:
    chance = np.random.default_rng(1)
    search = Search.at(CORNERS[0])
    for _ in range(200):
        g = chance.normal(size=3)
        v = CORNERS[int(g.argmin())]
        lanes = np.arange(search.need(g, v) + 3)
        points, note = search.candidates(g, v, lanes)
        alone = [search.candidates(g, v, np.array([lane]))[0][0] for lane in lanes]
        np.testing.assert_array_equal(points, alone)
        assert len(np.unique(note, axis=0)) == len(lanes)
        values = np.where(chance.random(len(lanes)) < 0.2, NAN, chance.normal(size=len(lanes)))
        search = search.after(g, v, float(chance.normal()), note, values)
        for x in (*points, search.mixture.point):
            assert x.min() >= -1e-15
            assert x.sum() == pytest.approx(1, abs=1e-14)
        assert (search.mixture.weights > 0).all()
        assert ((search.reach > 0) & (search.reach <= 1)).all()


def test_further_lanes_halve_the_lengths_and_the_best_pair_of_neighbours_counts() -> None:
    search, v = Search.at(CORNERS[0]), CORNERS[1]
    points, note = search.candidates(np.array([1.0, 0.0, 2.0]), v, np.arange(5))
    np.testing.assert_allclose(points[:, 1], [1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64])
    least = 0.05  # F = (t - 0.05)^2: the parabola of any two lengths finds it
    for arrived in ([0, 1], [1, 2], [0, 1, 2, 3, 4], [4, 3]):
        values = np.square(points[arrived, 1] - least)
        after = search.after(np.array([1.0, 0.0, 2.0]), v, least**2, note[arrived], values)
        np.testing.assert_allclose(after.mixture.point[1], least)
        assert after.reach[0] == pytest.approx(4 * least)
    values = 1 + np.abs(points[:, 1] - 1 / 16)
    after = search.after(np.array([1.0, 0.0, 2.0]), v, 1.03, note, values)
    whole, half = values[1] - 1.03, values[2] - 1.03  # the third is the least; with the longer one it is enclosed
    slope, bend = 4 * half - whole, 2 * whole - 4 * half
    assert after.mixture.point[1] == pytest.approx(-slope / (2 * bend) / 8)
    assert 1 / 32 < after.mixture.point[1] < 1 / 8
    in_vain = search.after(np.array([1.0, 0.0, 2.0]), v, 0.0, note[:3], values[:3])
    assert (in_vain.mixture.point[1], in_vain.reach[0]) == (0.0, 1 / 32)

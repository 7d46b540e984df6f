"""Regions: the oracle against brute force and linear programming, the projection against its optimality conditions."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from scipy.optimize import linprog, minimize

from blackbox.errors import InvalidRegion, NonFiniteValue
from blackbox.regions import AnyRegion, Box, L1Ball, L2Ball, Region, Simplex, region_from_json

quick = settings(deadline=None, max_examples=25)
D = 4
CENTRE = (1.0, -2.0, 0.5, 0.0)
REGIONS: list[Region] = [
    Box(lower=-1.0, upper=2.0),
    Box(lower=(-1.0, 0.0, 3.0, -5.0), upper=(1.0, 0.0, 3.5, 5.0)),
    Simplex(),
    Simplex(radius=3.0),
    L1Ball(radius=2.0),
    L1Ball(radius=0.5, centre=CENTRE),
    L2Ball(radius=2.0),
    L2Ball(radius=0.5, centre=CENTRE),
]
each = pytest.mark.parametrize("region", REGIONS, ids=repr)
polytopes = pytest.mark.parametrize("region", [r for r in REGIONS if not isinstance(r, L2Ball)], ids=repr)
vectors = st.lists(st.floats(-10, 10), min_size=D, max_size=D).map(np.array)


def vertices(region: Region) -> np.ndarray:
    """All extreme points of a polytope in D dimensions, from its definition."""
    match region:
        case Box(lower=low, upper=high):
            sides = zip(np.broadcast_to(low, D), np.broadcast_to(high, D), strict=True)
            return np.array(list(itertools.product(*sides)))
        case Simplex(radius=radius):
            return radius * np.eye(D)
        case L1Ball(radius=radius, centre=centre):
            return np.concatenate([np.eye(D), -np.eye(D)]) * radius + np.asarray(centre)
    raise TypeError(region)


# -- linear minimisation


@polytopes
@quick
@given(g=vectors)
def test_lmo_is_the_best_vertex(region: Region, g: np.ndarray) -> None:
    corners = vertices(region)
    v = region.lmo(g)
    assert g @ v == pytest.approx((corners @ g).min(), abs=1e-9)
    assert np.abs(corners - v).max(axis=1).min() == 0


@pytest.mark.parametrize("seed", range(5))
@polytopes
def test_lmo_solves_the_linear_programme(region: Region, seed: int) -> None:
    g = np.random.default_rng(seed).normal(size=D)
    match region:
        case Box(lower=low, upper=high):
            bounds = np.stack([np.broadcast_to(low, D), np.broadcast_to(high, D)], axis=1)
            optimum = linprog(g, bounds=bounds).fun
        case Simplex(radius=radius):
            optimum = linprog(g, A_eq=np.ones((1, D)), b_eq=[radius]).fun
        case L1Ball(radius=radius, centre=centre):  # x = centre + p - q with p, q >= 0 and sum p + q <= radius
            split = linprog(np.concatenate([g, -g]), A_ub=np.ones((1, 2 * D)), b_ub=[radius])
            optimum = split.fun + g @ np.broadcast_to(centre, D)
        case _:
            raise TypeError(region)
    assert g @ region.lmo(g) == pytest.approx(optimum, abs=1e-9)


@pytest.mark.parametrize("region", [r for r in REGIONS if isinstance(r, L2Ball)], ids=repr)
@quick
@given(g=vectors)
def test_lmo_of_the_euclidean_ball_attains_the_cauchy_schwarz_bound(region: L2Ball, g: np.ndarray) -> None:
    v = region.lmo(g)
    centre = np.broadcast_to(region.centre, D)
    assert g @ v == pytest.approx(g @ centre - region.radius * np.linalg.norm(g), abs=1e-9)
    assert np.linalg.norm(v - centre) == pytest.approx(region.radius)


@each
@pytest.mark.parametrize("g", [np.zeros(D), -np.zeros(D), np.ones(D)], ids=["zero", "negative zero", "ties"])
def test_lmo_answers_ties_with_an_extreme_point(region: Region, g: np.ndarray) -> None:
    v = region.lmo(g)
    if isinstance(region, L2Ball):
        assert np.linalg.norm(v - np.asarray(region.centre)) == pytest.approx(region.radius)
    else:
        assert np.abs(vertices(region) - v).max(axis=1).min() == 0


# -- projection


@each
@quick
@given(x=vectors)
def test_projection_meets_its_optimality_condition(region: Region, x: np.ndarray) -> None:
    p = region.project(x)
    assert region.contains(p)
    # p is nearest to x iff <x - p, c - p> <= 0 for every c in the set, and the oracle knows the worst c.
    assert (x - p) @ (region.lmo(p - x) - p) <= 1e-8
    if region.contains(x, tol=0):
        np.testing.assert_allclose(p, x, atol=1e-12)


@pytest.mark.parametrize("seed", range(2))
@each
def test_projection_agrees_with_a_quadratic_programme(region: Region, seed: int) -> None:
    x = 3 * np.random.default_rng(seed).normal(size=D)
    if isinstance(region, L2Ball):
        centre = np.asarray(region.centre)
        constraint = {"type": "ineq", "fun": lambda y: region.radius**2 - ((y - centre) ** 2).sum()}
        solved = minimize(lambda y: ((y - x) ** 2).sum(), centre + np.zeros(D), constraints=[constraint], tol=1e-14)
        nearest = solved.x
    else:  # in barycentric coordinates of the vertices
        corners = vertices(region)
        k = len(corners)
        solved = minimize(
            lambda w: ((w @ corners - x) ** 2).sum(),
            np.full(k, 1 / k),
            jac=lambda w: 2 * corners @ (w @ corners - x),
            bounds=[(0, 1)] * k,
            constraints=[{"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(k)}],
            tol=1e-14,
        )
        nearest = solved.x @ corners
    np.testing.assert_allclose(region.project(x), nearest, atol=1e-5)


@each
@quick
@given(x=vectors, y=vectors)
def test_projection_is_idempotent_and_non_expansive(region: Region, x: np.ndarray, y: np.ndarray) -> None:
    p, q = region.project(x), region.project(y)
    np.testing.assert_allclose(region.project(p), p, atol=1e-14)
    assert np.linalg.norm(p - q) <= np.linalg.norm(x - y) + 1e-12


@each
@pytest.mark.parametrize("scale", [1e-300, 1e15, 1e300])
def test_projection_and_oracle_keep_their_accuracy_at_any_magnitude(region: Region, scale: float) -> None:
    x = scale * np.array([3.0, -1.0, 2.0, 3.0])
    assert region.contains(region.project(x))
    assert region.contains(region.lmo(x))
    if isinstance(region, Simplex) and scale > 1:
        np.testing.assert_allclose(region.project(x), [region.radius / 2, 0, 0, region.radius / 2])


@each
def test_nothing_is_changed_in_place(region: Region) -> None:
    x = np.array([0.1, -3.0, 0.2, 7.0])
    before = x.copy()
    for y in (region.project(x), region.lmo(x), region.project(region.project(x))):
        y += 1
    region.contains(x)
    np.testing.assert_array_equal(x, before)


# -- membership and size


@each
def test_contains_draws_the_line_at_its_tolerance(region: Region) -> None:
    inside = region.project(np.zeros(D))
    for g in np.concatenate([np.eye(D), -np.eye(D)]):
        edge = region.lmo(g)
        assert region.contains(edge)
        outward = edge - inside
        if np.linalg.norm(outward) > 1e-6:
            assert not region.contains(edge + 1e-3 * outward)
            assert region.contains(edge + 1e-3 * outward, tol=1e-1)


@polytopes
def test_diameter_is_the_largest_distance_of_vertices(region: Region) -> None:
    corners = vertices(region)
    distances = np.linalg.norm(corners[:, None] - corners[None], axis=2)
    assert region.diameter(D) == pytest.approx(distances.max())


def test_diameter_of_the_euclidean_ball_and_of_a_point() -> None:
    assert L2Ball(radius=1.5).diameter(7) == 3.0
    assert Simplex(radius=2.0).diameter(1) == 0.0


# -- descriptions


@each
def test_a_region_round_trips_through_json(region: Region) -> None:
    assert region_from_json(region.to_json()) == region
    adapter: TypeAdapter[Any] = TypeAdapter(AnyRegion)
    assert adapter.validate_json(adapter.dump_json(region)) == region


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"type": "box", "lower": 1, "upper": 0}, ("/region/lower", "empty")),
        ({"type": "box", "lower": [0, 0], "upper": [1, -1]}, ("/region/lower", "empty")),
        ({"type": "box", "lower": [0, 0], "upper": [1, 1, 1]}, ("/region/lower", "wrong_length")),
        ({"type": "box", "lower": []}, ("/region/lower", "wrong_length")),
        ({"type": "box", "upper": math.inf}, ("/region/upper", "finite_number")),
        ({"type": "simplex", "radius": 0}, ("/region/radius", "greater_than")),
        ({"type": "simplex", "radius": "1"}, ("/region/radius", "float_type")),
        ({"type": "simplex", "raduis": 1}, ("/region/raduis", "extra_forbidden")),
        ({"type": "l1_ball", "radius": math.inf}, ("/region/radius", "finite_number")),
        ({"type": "l2_ball", "centre": []}, ("/region/centre", "wrong_length")),
        ({"type": "l2ball"}, ("/region/type", "unknown_type")),
        ({}, ("/region/type", "missing")),
        (None, ("/region", "wrong_type")),
    ],
)
def test_unbounded_empty_and_misspelt_regions_are_refused(raw: Any, expected: tuple[str, str]) -> None:
    with pytest.raises(InvalidRegion) as info:
        region_from_json(raw)
    assert (info.value.errors[0].pointer, info.value.errors[0].code) == expected


def test_direct_construction_is_refused_alike_and_names_the_nearest_word() -> None:
    with pytest.raises(InvalidRegion, match="the set is empty"):
        Box(lower=1, upper=0)
    with pytest.raises(InvalidRegion, match='did you mean "l2_ball"'):
        region_from_json({"type": "l2ball"})
    with pytest.raises(InvalidRegion, match='did you mean "radius"'):
        Simplex(raduis=1)  # type: ignore[call-arg]


@each
def test_vectors_that_do_not_fit_are_refused(region: Region) -> None:
    for method in (region.contains, region.project, region.lmo):
        with pytest.raises(NonFiniteValue):
            method(np.array([0.0, math.nan, 0.0, 0.0]))
        with pytest.raises(InvalidRegion, match="shape"):
            method(np.zeros((2, 2)))
        if region.fixed_dim() is not None:
            with pytest.raises(InvalidRegion, match="4 coordinates, the point 3"):
                method(np.zeros(3))

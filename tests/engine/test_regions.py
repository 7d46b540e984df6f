"""Regions: the oracle against formulas, vertices and linear programmes, the projection against its optimality."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from scipy.optimize import minimize

import blackbox.regions
from blackbox.errors import IncompatibleProblem, InvalidRegion, NonFiniteValue
from blackbox.regions import (
    AffineImage,
    AnyRegion,
    Birkhoff,
    Box,
    CappedSimplex,
    Ellipsoid,
    Fantope,
    FlowPolytope,
    GroupBall,
    Hull,
    Knapsack,
    KSparsePolytope,
    L1Ball,
    MinkowskiSum,
    NuclearBall,
    PathPolytope,
    Permutahedron,
    Polytope,
    Region,
    Simplex,
    Spectraplex,
    Transportation,
    region_from_json,
    region_types,
)
from blackbox.rng import Key
from tests.engine.region_examples import EXAMPLES, Example, eigen, singular

quick = settings(deadline=None, max_examples=25)
norm = np.linalg.norm
DRAWS = 100

each = pytest.mark.parametrize("example", EXAMPLES, ids=str)
cornered = pytest.mark.parametrize("example", [e for e in EXAMPLES if e.corners is not None], ids=str)
projected = pytest.mark.parametrize("example", [e for e in EXAMPLES if e.region.has_projection], ids=str)
oracle_only = pytest.mark.parametrize("example", [e for e in EXAMPLES if not e.region.has_projection], ids=str)
seeds = st.integers(0, 2**32 - 1)


def drawn(seed: int, dim: int) -> np.ndarray:
    """A vector of any kind: spread over magnitudes, with zeros and with ties."""
    random = np.random.default_rng(seed)
    kind = seed % 4
    x = random.normal(size=dim)
    if kind == 1:
        x = random.integers(-1, 2, size=dim).astype(np.float64)
    elif kind == 2:
        x *= 10.0 ** random.uniform(-3, 1, size=dim)
    elif kind == 3:
        x[random.random(dim) < 0.5] = 0.0
    return np.asarray(x)


def test_every_type_has_an_example() -> None:
    assert {type(example.region) for example in EXAMPLES} == set(region_types().values())


# -- linear minimisation


@each
def test_the_oracle_attains_the_least_inner_product_inside_the_set(example: Example) -> None:
    for seed in range(DRAWS):
        g = drawn(seed, example.dim)
        v = example.region.lmo(g)
        assert g @ v == pytest.approx(example.least(g), abs=1e-9), f"seed {seed}"
        assert example.region.contains(v), f"seed {seed}"


@cornered
def test_the_oracle_answers_with_an_extreme_point(example: Example) -> None:
    assert example.corners is not None
    for seed in range(DRAWS):
        v = example.region.lmo(drawn(seed, example.dim))
        if isinstance(example.region, MinkowskiSum | AffineImage) and seed % 4 in (1, 3):
            continue  # ties that their parts break each for itself
        assert np.abs(example.corners - v).max(axis=1).min() < 1e-12, f"seed {seed}"


@each
def test_without_costs_the_oracle_still_answers_with_an_extreme_point(example: Example) -> None:
    region = example.region
    v = region.lmo(np.zeros(example.dim))
    assert v.tobytes() == region.lmo(np.full(example.dim, -0.0)).tobytes()
    if example.corners is not None:
        assert np.abs(example.corners - v).max(axis=1).min() < 1e-12
    assert region.contains(v)
    # No extreme point is in the middle of two other points: along every direction one of the sides is outside.
    random = np.random.default_rng(0)
    for _ in range(20):
        z = region.tangent(random.normal(size=example.dim))
        if norm(z) > 1e-9:
            z *= 1e-2 * region.diameter(example.dim) / norm(z)
            assert not (region.contains(v + z) and region.contains(v - z))


@each
def test_the_oracle_keeps_its_accuracy_at_any_magnitude(example: Example) -> None:
    g = np.random.default_rng(1).uniform(-3, 3, size=example.dim)
    least = example.least(g)
    for scale in (1e-300, 1e-160, 1e160, 1e300):
        assert g @ example.region.lmo(scale * g) == pytest.approx(least, abs=1e-9), f"at {scale}"


@each
def test_equal_arguments_give_equal_bytes(example: Example) -> None:
    again = region_from_json(json.loads(json.dumps(example.region.to_json())))
    for seed in range(4):
        g = drawn(seed, example.dim)
        assert example.region.lmo(g).tobytes() == again.lmo(g).tobytes()
        assert again.vertex(Key.from_seed(1), 2, seed, example.dim).tobytes() == (
            example.region.vertex(Key.from_seed(1), 2, seed, example.dim).tobytes()
        )


# -- projection


@projected
@quick
@given(seed=seeds)
def test_projection_meets_its_optimality_condition(example: Example, seed: int) -> None:
    region, x = example.region, 3 * drawn(seed, example.dim)
    p = region.project(x)
    assert region.contains(p)
    # p is nearest to x iff <x - p, c - p> <= 0 for every c in the set, and the oracle knows the worst c.
    assert (x - p) @ (region.lmo(p - x) - p) <= 1e-8
    np.testing.assert_allclose(region.project(p), p, atol=1e-13)
    if region.contains(x, tol=0):
        np.testing.assert_allclose(p, x, atol=1e-12)


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.region.has_projection and e.corners is not None], ids=str)
def test_projection_agrees_with_a_quadratic_programme(example: Example) -> None:
    corners = example.corners
    assert corners is not None
    k = len(corners)
    for x in 3 * np.random.default_rng(0).normal(size=(2, example.dim)):
        solved = minimize(  # in barycentric coordinates of the vertices
            lambda w, x=x: ((w @ corners - x) ** 2).sum(),
            np.full(k, 1 / k),
            jac=lambda w, x=x: 2 * corners @ (w @ corners - x),
            bounds=[(0, 1)] * k,
            constraints=[{"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(k)}],
            tol=1e-14,
        )
        np.testing.assert_allclose(example.region.project(x), solved.x @ corners, atol=1e-5)


@projected
@quick
@given(seed=seeds)
def test_projection_is_non_expansive(example: Example, seed: int) -> None:
    x, y = drawn(seed, example.dim), 2 * drawn(seed + 1, example.dim)
    p, q = example.region.project(x), example.region.project(y)
    assert norm(p - q) <= norm(x - y) + 1e-12


@projected
def test_projection_keeps_its_accuracy_at_any_magnitude(example: Example) -> None:
    for scale in (1e-300, 1e15, 1e300):
        x = scale * np.resize([3.0, -1.0, 2.0, 3.0], example.dim)
        p = example.region.project(x)
        assert example.region.contains(p), f"at {scale}"
        if isinstance(example.region, Simplex) and scale > 1:
            radius = example.region.radius
            np.testing.assert_allclose(p, [radius / 2, 0, 0, radius / 2])


@oracle_only
def test_a_set_without_a_projection_says_so(example: Example) -> None:
    with pytest.raises(IncompatibleProblem, match="only its linear oracle"):
        example.region.project(np.zeros(example.dim))


# -- membership, size, inside


@each
def test_contains_draws_the_line_at_its_tolerance(example: Example) -> None:
    region = example.region
    inside, _ = region.interior(example.dim)
    for g in np.concatenate([np.eye(example.dim), -np.eye(example.dim)]):
        edge = region.lmo(g)
        outward = edge - inside
        beyond = -(g @ outward)
        if beyond > 1e-6:
            assert not region.contains(edge + 1e-3 * outward)
            assert region.violation(edge + 1e-3 * outward) > 0
            assert region.contains(edge + 1e-3 * outward, tol=1e-1)


@each
def test_mixtures_are_inside_and_points_off_the_hull_are_not(example: Example) -> None:
    region, key = example.region, Key.from_seed(5)
    for lane in range(5):
        x = region.sample(key, 0, lane, example.dim)
        assert region.contains(x)
        assert x.tobytes() == region.sample(key, 0, lane, example.dim).tobytes()
        normal = np.random.default_rng(lane).normal(size=example.dim)
        normal -= region.tangent(normal)
        if norm(normal) > 1e-9:
            assert not region.contains(x + 1e-3 * region.diameter(example.dim) * normal / norm(normal))


@each
def test_the_diameter_bounds_every_distance(example: Example) -> None:
    region = example.region
    corners = example.corners
    if corners is None:
        random = np.random.default_rng(0)
        corners = np.array([region.lmo(g) for g in random.normal(size=(40, example.dim))])
    distances = norm(corners[:, None] - corners[None], axis=2)
    assert distances.max() <= region.diameter(example.dim) * (1 + 1e-12)
    if not isinstance(region, Polytope | FlowPolytope):  # theirs is that of their bounds
        assert region.diameter(example.dim) <= 4 * distances.max() + 1e-12


@each
def test_the_inner_ball_lies_in_the_set_and_touches_nothing_else(example: Example) -> None:
    region = example.region
    middle, radius = region.interior(example.dim)
    assert region.contains(middle)
    if not isinstance(region, Hull):
        assert radius > 0
    random = np.random.default_rng(0)
    for z in random.normal(size=(50, example.dim)):
        t = region.tangent(z)
        if norm(t) > 1e-12 and math.isfinite(radius):
            assert region.contains(middle + radius * t / norm(t))


@each
def test_tangents_are_the_orthogonal_projection_onto_the_affine_hull(example: Example) -> None:
    region, random = example.region, np.random.default_rng(3)
    y, z = random.normal(size=(2, example.dim))
    np.testing.assert_allclose(region.tangent(region.tangent(z)), region.tangent(z), atol=1e-12)
    assert y @ region.tangent(z) == pytest.approx(region.tangent(y) @ z)
    a, b = region.lmo(y), region.lmo(z)
    np.testing.assert_allclose(region.tangent(a - b), a - b, atol=1e-9)
    # No larger than the hull: the differences of vertices span it.
    corners = np.array([region.lmo(g) for g in random.normal(size=(60, example.dim))])
    spanned = np.linalg.matrix_rank(corners - corners[0], tol=1e-6)
    tangents = np.array([region.tangent(row) for row in np.eye(example.dim)])
    assert np.linalg.matrix_rank(tangents, tol=1e-6) == spanned


@each
def test_nothing_is_changed_in_place(example: Example) -> None:
    region = example.region
    x = drawn(8, example.dim)
    before = x.copy()
    answers = [region.lmo(x), region.tangent(x), region.interior(example.dim)[0]]
    if region.has_projection:
        answers += [region.project(x), region.project(region.project(x))]
    region.contains(x)
    first = region.interior(example.dim)[0].copy()
    for answer in answers:
        answer += 1
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(region.interior(example.dim)[0], first)
    assert region.lmo(x).tobytes() == example.region.lmo(before).tobytes()


@pytest.mark.parametrize(
    "corners",
    [
        list(itertools.product((0.0, 1.0), repeat=4)),
        [np.eye(4)[list(p)].ravel() for p in itertools.permutations(range(4))],
    ],
    ids=["cube", "permutations"],
)
def test_the_violation_of_a_hull_is_the_distance_also_with_many_ties(corners: Any) -> None:
    points = np.array(corners, dtype=np.float64)
    region = Hull(points=points.tolist())
    cube = len(points) == 16
    random = np.random.default_rng(0)
    for _ in range(400):
        x = random.choice([0.1, 0.5, 1.0]) * random.integers(-2, 3, size=points.shape[1])
        nearest = np.clip(x, 0, 1) if cube else Birkhoff(order=4).project(x)
        assert region.violation(x) == pytest.approx(norm(x - nearest), abs=1e-9)  # the size of both sets is 1


def test_sets_of_one_point() -> None:
    for region, dim in (
        (Simplex(radius=2.0), 1),
        (Box(lower=1.0, upper=1.0), 3),
        (CappedSimplex(total=3.0), 3),
        (Permutahedron(values=(2.0, 2.0)), 2),
        (Birkhoff(order=1), 1),
        (Fantope(order=2, k=2), 4),
        (Transportation(supply=(1.0,), demand=(0.25, 0.75)), 2),
        (PathPolytope(edges=((0, 1), (1, 2)), source=0, target=2), 2),
        (Knapsack(budget=2.0, exact=True), 2),
        (Polytope(a_eq=((1.0, 1.0), (1.0, -1.0)), b_eq=(1.0, 0.0), lower=0.0, upper=1.0), 2),
        (Hull(points=((1.0, 2.0),)), 2),
    ):
        point, radius = region.interior(dim)
        assert radius == math.inf, region
        for g in (np.ones(dim), -np.arange(dim, dtype=float)):
            np.testing.assert_allclose(region.lmo(g), point, atol=1e-12)
            np.testing.assert_allclose(region.tangent(g), 0, atol=1e-12)
        assert region.contains(point)
        assert not region.contains(point + 1e-3)


def test_large_matrices_take_another_solver_and_agree_with_the_dense_one() -> None:
    random = np.random.default_rng(0)
    g, square = random.normal(size=(210, 230)), random.normal(size=(510, 510))
    nuclear, spectraplex = NuclearBall(rows=210, cols=230), Spectraplex(order=510)
    assert g.ravel() @ nuclear.lmo(g.ravel()) == pytest.approx(-singular(g)[0], abs=1e-9)
    assert square.ravel() @ spectraplex.lmo(square.ravel()) == pytest.approx(eigen(square)[0], abs=1e-9)
    for region, dim in ((nuclear, g.size), (spectraplex, square.size)):
        for flat in (np.zeros(dim), np.ones(dim)):
            assert region.contains(region.lmo(flat))


@pytest.mark.parametrize(
    ("region", "dim"),
    [
        (Simplex(), 500),
        (L1Ball(weights=tuple(np.linspace(0.5, 2, 500))), 500),
        (KSparsePolytope(k=20), 500),
        (Knapsack(budget=30.0, upper=tuple(np.linspace(0.5, 2, 500)), exact=True), 500),
        (Permutahedron(values=tuple(np.linspace(0, 1, 200) ** 2)), 200),
        (Ellipsoid(matrix=tuple(np.logspace(-3, 3, 50))), 50),
        (Birkhoff(order=30), 900),
        (Transportation(supply=tuple(np.linspace(1, 3, 20)), demand=(4.0,) * 10), 200),
    ],
    ids=lambda value: getattr(value, "type", None),
)
def test_projections_hold_in_larger_dimensions(region: Region, dim: int) -> None:
    random = np.random.default_rng(0)
    for scale in (0.1, 1.0, 100.0):
        x = scale * random.normal(size=dim)
        p = region.project(x)
        assert region.contains(p)
        assert (x - p) @ (region.lmo(p - x) - p) <= 1e-9 * max(1.0, norm(x) * region.diameter(dim))


# -- descriptions


@each
def test_a_region_round_trips_through_json(example: Example) -> None:
    raw = json.loads(json.dumps(example.region.to_json()))
    assert region_from_json(raw) == example.region
    assert hash(region_from_json(raw)) == hash(example.region)
    adapter: TypeAdapter[Any] = TypeAdapter(AnyRegion)
    assert adapter.validate_json(adapter.dump_json(example.region)) == example.region


def test_the_schema_describes_every_field() -> None:
    schema = TypeAdapter(AnyRegion).json_schema()
    assert set(schema["discriminator"]["mapping"]) == set(region_types())
    for name, cls in region_types().items():
        described = cls.model_json_schema()
        described = described.get("$defs", {}).get(cls.__name__, described)
        assert described["description"]
        for field, about in described["properties"].items():
            assert field == "type" or about.get("description"), f"{name}.{field}"


def test_the_page_lists_every_region_as_it_is() -> None:
    page = (Path(blackbox.regions.__file__).parent / "README.md").read_text()
    rows = re.findall(r"^\| `(\{.*\})` \| .* \| .* \| (yes|no|if all parts) \|$", page, re.M)
    regions = [(region_from_json(json.loads(raw)), project) for raw, project in rows]
    assert [region.to_json()["type"] for region, _ in regions] == list(region_types())
    for region, project in regions:
        assert region.has_projection == (project != "no"), region


EDGES = [[0, 1], [1, 2]]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"type": "box", "lower": 1, "upper": 0}, ("/lower", "empty")),
        ({"type": "box", "lower": [0, 0], "upper": [1, -1]}, ("/lower", "empty")),
        ({"type": "box", "lower": [0, 0], "upper": [1, 1, 1]}, ("/lower", "wrong_length")),
        ({"type": "box", "lower": []}, ("/lower", "wrong_length")),
        ({"type": "box", "upper": math.inf}, ("/upper", "finite_number")),
        ({"type": "simplex", "radius": 0}, ("/radius", "greater_than")),
        ({"type": "simplex", "radius": "1"}, ("/radius", "float_type")),
        ({"type": "simplex", "raduis": 1}, ("/raduis", "extra_forbidden")),
        ({"type": "l1_ball", "radius": math.inf}, ("/radius", "finite_number")),
        ({"type": "l1_ball", "weights": [1, 0]}, ("/weights", "not_positive")),
        ({"type": "l1_ball", "weights": [1, 1], "centre": [0]}, ("/weights", "wrong_length")),
        ({"type": "l2_ball", "centre": []}, ("/centre", "wrong_length")),
        ({"type": "l2ball"}, ("/type", "unknown_type")),
        ({"type": "lp_ball"}, ("/p", "missing")),
        ({"type": "lp_ball", "p": 1}, ("/p", "greater_than")),
        ({"type": "ellipsoid", "matrix": [[1, 2], [3, 4]]}, ("/matrix", "not_symmetric")),
        ({"type": "ellipsoid", "matrix": [[1, 2], [2, 1]]}, ("/matrix", "not_positive")),
        ({"type": "ellipsoid", "matrix": [1, 0]}, ("/matrix", "not_positive")),
        ({"type": "ellipsoid", "matrix": [[1, 2]]}, ("/matrix", "wrong_length")),
        ({"type": "ellipsoid", "matrix": []}, ("/matrix", "wrong_length")),
        ({"type": "ellipsoid", "matrix": [1, 1], "centre": [0]}, ("/centre", "wrong_length")),
        ({"type": "k_sparse", "k": 0}, ("/k", "greater_than_equal")),
        ({"type": "ordered_l1_ball", "weights": [1, 2]}, ("/weights", "not_ordered")),
        ({"type": "ordered_l1_ball", "weights": []}, ("/weights", "not_ordered")),
        ({"type": "group_ball", "groups": 0}, ("/groups", "greater_than_equal")),
        ({"type": "group_ball", "groups": [[0, 1], [1]]}, ("/groups", "no_partition")),
        ({"type": "group_ball", "groups": [[0], []]}, ("/groups", "no_partition")),
        ({"type": "capped_simplex", "total": -1}, ("/total", "greater_than")),
        ({"type": "knapsack", "budget": 1, "weights": [1, -1]}, ("/weights", "not_positive")),
        ({"type": "knapsack", "budget": 9, "upper": [1, 1], "exact": True}, ("/budget", "empty")),
        ({"type": "permutahedron", "values": []}, ("/values", "empty")),
        ({"type": "budgets", "dim": 2, "budgets": [{"members": [0], "limit": 1}]}, ("/budgets", "unbounded")),
        (
            {"type": "budgets", "dim": 3, "budgets": [{"members": m, "limit": 1} for m in ([0, 1], [1, 2])]},
            ("/budgets/1/members", "not_nested"),
        ),
        (
            {"type": "budgets", "dim": 1, "budgets": [{"members": [1], "limit": 1}]},
            ("/budgets/0/members", "bad_members"),
        ),
        (
            {"type": "budgets", "dim": 1, "budgets": [{"members": [0], "limit": -1}]},
            ("/budgets/0/limit", "greater_than"),
        ),
        ({"type": "nuclear_ball", "rows": 0, "cols": 2}, ("/rows", "greater_than_equal")),
        ({"type": "spectraplex", "order": 10**6}, ("/order", "less_than_equal")),
        ({"type": "birkhoff"}, ("/order", "missing")),
        ({"type": "path", "edges": [[0, 1], [1, 0]], "source": 0, "target": 1}, ("/edges", "cycle")),
        ({"type": "path", "edges": EDGES, "source": 0, "target": 7}, ("/source", "bad_node")),
        ({"type": "path", "edges": EDGES, "source": 2, "target": 0}, ("/target", "empty")),
        ({"type": "path", "edges": [[0, 10**9]], "source": 0, "target": 10**9}, ("/edges", "bad_node")),
        ({"type": "path", "edges": [[0, 1, 2]], "source": 0, "target": 1}, ("/edges/0", "too_long")),
        ({"type": "flow", "edges": EDGES, "supply": [1, 0, 0], "capacity": 1}, ("/supply", "unbalanced")),
        ({"type": "flow", "edges": EDGES, "supply": [2, 0, -2], "capacity": 1}, ("", "empty")),
        ({"type": "flow", "edges": EDGES, "supply": [1, -1], "capacity": 1}, ("/edges/1", "bad_node")),
        ({"type": "flow", "edges": EDGES, "supply": [1, 0, -1], "capacity": [1]}, ("/capacity", "not_positive")),
        ({"type": "transportation", "supply": [1, 1], "demand": [1]}, ("/demand", "unbalanced")),
        ({"type": "transportation", "supply": [1, -1], "demand": [1]}, ("/supply", "not_positive")),
        ({"type": "polytope", "a_ub": [[1, 1]], "b_ub": [1]}, ("/lower", "missing")),
        ({"type": "polytope", "lower": 0, "upper": 1}, ("/a_ub", "missing")),
        ({"type": "polytope", "a_ub": [[1, 1]], "b_ub": [], "lower": 0, "upper": 1}, ("/b_ub", "wrong_length")),
        ({"type": "polytope", "a_ub": [[1, 1], [1]], "b_ub": [1, 1], "lower": 0, "upper": 1}, ("/a_ub/1", "bad_row")),
        ({"type": "polytope", "a_ub": [[0, 0]], "b_ub": [1], "lower": 0, "upper": 1}, ("/a_ub/0", "bad_row")),
        ({"type": "polytope", "a_ub": [[1, 1]], "b_ub": [-1], "lower": 0, "upper": 1}, ("", "empty")),
        ({"type": "polytope", "a_eq": [[1, 1]], "b_eq": [3], "lower": 0, "upper": 1}, ("", "empty")),
        ({"type": "hull", "points": []}, ("/points", "empty")),
        ({"type": "hull", "points": [[1, 2], [1]]}, ("/points/1", "wrong_length")),
        ({"type": "product", "parts": []}, ("/parts", "empty")),
        (
            {"type": "affine_image", "matrix": [[1, 2]], "region": {"type": "birkhoff", "order": 2}},
            ("/region", "wrong_length"),
        ),
        (
            {"type": "affine_image", "matrix": [[1], [1, 2]], "region": {"type": "simplex"}},
            ("/matrix", "wrong_length"),
        ),
        ({"type": "minkowski_sum", "regions": []}, ("/regions", "empty")),
        ({"type": "union_hull", "regions": [{"type": "simplex"}]}, ("/regions", "flat")),
        (
            {
                "type": "union_hull",
                "regions": [{"type": "box", "lower": [0, 0]}, {"type": "box", "lower": [0, 0, 0]}],
            },
            ("/regions/1", "wrong_length"),
        ),
        ({"type": "union_hull", "regions": [{"type": "l2_ball", "radius": 0}]}, ("/regions/0/radius", "greater_than")),
        ({}, ("/type", "missing")),
        (None, ("", "wrong_type")),
    ],
    ids=lambda value: json.dumps(value)[:70] if isinstance(value, dict) else "",
)
def test_unbounded_empty_and_misspelt_regions_are_refused(raw: Any, expected: tuple[str, str]) -> None:
    with pytest.raises(InvalidRegion) as info:
        region_from_json(raw)
    assert (info.value.errors[0].pointer, info.value.errors[0].code) == ("/region" + expected[0], expected[1])


def test_direct_construction_is_refused_alike_and_names_the_nearest_word() -> None:
    with pytest.raises(InvalidRegion, match="the set is empty"):
        Box(lower=1, upper=0)
    with pytest.raises(InvalidRegion, match='did you mean "l2_ball"'):
        region_from_json({"type": "l2ball"})
    with pytest.raises(InvalidRegion, match='did you mean "radius"'):
        Simplex(raduis=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("region", "dim", "words"),
    [
        (KSparsePolytope(k=5), 4, "k must be at most the dimension 4"),
        (CappedSimplex(total=5.0), 4, "the set is empty"),
        (Knapsack(budget=5.0, exact=True), 4, "the set is empty"),
        (GroupBall(groups=3), 4, "not whole groups of 3"),
        (Fantope(order=2, k=3), 4, "k must be at most the order 2"),
        (Birkhoff(order=3), 4, "9 coordinates, the point 4"),
    ],
    ids=lambda value: getattr(value, "type", None),
)
def test_a_dimension_that_does_not_fit_is_refused(region: Region, dim: int, words: str) -> None:
    for use in (region.check_dim, region.interior, region.diameter):
        with pytest.raises(InvalidRegion, match=words):
            use(dim)
    with pytest.raises(InvalidRegion, match=words):
        region.lmo(np.ones(dim))


@each
def test_vectors_that_do_not_fit_are_refused(example: Example) -> None:
    region, dim = example.region, example.dim
    for method in (region.contains, region.violation, region.lmo, region.tangent):
        with pytest.raises(NonFiniteValue):
            method(np.append(np.zeros(dim - 1), math.nan))
        with pytest.raises(InvalidRegion, match="shape"):
            method(np.zeros((2, 2)))
        if region.fixed_dim() is not None:
            with pytest.raises(InvalidRegion, match=rf"{dim} coordinates, the point {dim + 1}"):
                method(np.zeros(dim + 1))

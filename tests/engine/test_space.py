"""The search space: every description and every point is read strictly; every finite vector decodes."""

from __future__ import annotations

import doctest
import json
import math
import pickle
from collections import Counter
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import blackbox.space
from blackbox.errors import InvalidInput, InvalidSpace, NonFiniteValue
from blackbox.regions import Box, L1Ball, L2Ball, Part, Product, Simplex
from blackbox.space import Categorical, Float, Int, Space, Vector
from blackbox.study.spec import parse_spec

quick = settings(deadline=None, max_examples=60)

API_EXAMPLE = {
    "lr": {"type": "float", "low": 1e-5, "high": 1e-1, "scale": "log"},
    "layers": {"type": "int", "low": 1, "high": 8},
    "act": {"type": "categorical", "choices": ["relu", "gelu"]},
}
MIXED = Space(
    {
        "x": Float(low=-5, high=5),
        "free": Float(unit=10.0, init=30.0),
        "n": Int(low=1, high=8),
        "two": Categorical(choices=["relu", "gelu"]),
        "v": Vector(dim=3, low=0.0, high=2.0),
        "three": Categorical(choices=["a", 1, True]),
    }
)
MIXED_PARAMS = {"x": 2.5, "free": -7.0, "n": 3, "two": "gelu", "v": [0.0, 1.0, 2.0], "three": 1}


def codes(build: Any) -> list[tuple[str, str]]:
    """(pointer, code) of the faults that `build` is refused for."""
    with pytest.raises(InvalidSpace) as info:
        build()
    assert str(info.value)
    return [(fault.pointer, fault.code) for fault in info.value.errors]


# -- strategies

ODD: list[Any] = [None, True, "3", math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324, 1e308, -1e308, 1e-5, -0.1, 1, 7]
ODD += [10**400, 2**53, 2**53 + 1, np.float32(0.5), np.int64(3), [1.0], (1.0, 2.0), " ", "\ud800"]
odd = st.sampled_from(ODD) | st.floats() | st.integers()
descriptions = st.one_of(
    st.builds(lambda **fields: (Float, fields), low=odd, high=odd, init=odd, scale=st.sampled_from(["linear", "log"])),
    st.builds(lambda **fields: (Float, fields), unit=odd, init=odd),
    st.builds(lambda **fields: (Int, fields), low=odd, high=odd, init=odd, scale=st.sampled_from(["linear", "log"])),
    st.builds(lambda **fields: (Vector, fields), dim=st.just(2), low=odd, high=odd, init=odd, unit=st.just(1.0) | odd),
    st.builds(lambda **fields: (Categorical, fields), choices=st.lists(odd, min_size=1, max_size=3), init=odd),
)

finite = st.floats(allow_nan=False, allow_infinity=False)
moderate = st.floats(-1e12, 1e12)


@st.composite
def reals(draw: st.DrawFn) -> Float:
    if draw(st.booleans()):
        return Float(unit=draw(st.floats(1e-3, 1e3)))
    scale = draw(st.sampled_from(["linear", "log"]))
    low, high = sorted((draw(moderate), draw(moderate)))
    if scale == "log":
        low, high = sorted((draw(st.floats(1e-12, 1e12)), draw(st.floats(1e-12, 1e12))))
        assume(high > low * (1 + 1e-6))
    assume(high > low)
    return Float(low=low, high=high, scale=scale)


@st.composite
def integers(draw: st.DrawFn) -> Int:
    scale = draw(st.sampled_from(["linear", "log"]))
    low = draw(st.integers(1, 10**6) if scale == "log" else st.integers(-(10**9), 10**9))
    return Int(low=low, high=low + draw(st.integers(1, 10**9)), scale=scale)


choices = st.lists(
    st.one_of(st.text(max_size=3), st.integers(-3, 3), st.booleans(), st.none(), st.floats(-2, 2)),
    min_size=2,
    max_size=5,
    unique_by=lambda c: (type(c).__name__ if isinstance(c, bool | str) or c is None else "number", c),
).map(lambda values: Categorical(choices=values))


@st.composite
def vectors(draw: st.DrawFn) -> Vector:
    dim = draw(st.integers(1, 4))
    if draw(st.booleans()):
        return Vector(dim=dim, unit=draw(st.floats(1e-3, 1e3)), dtype=draw(st.sampled_from(["f32", "f64"])))
    low, high = sorted((draw(moderate), draw(moderate)))
    assume(high > low)
    return Vector(dim=dim, low=low, high=high, init=low)


parameters = st.one_of(reals(), integers(), choices, vectors())
spaces = st.dictionaries(st.text(min_size=1, max_size=4), parameters, min_size=1, max_size=5).map(Space)


def values_of(parameter: Any) -> st.SearchStrategy[Any]:
    match parameter:
        case Int(low=low, high=high):
            return st.integers(low, high)
        case Categorical(choices=values):
            return st.sampled_from(values)
        case Vector(dim=dim, low=low, high=high):
            return st.lists(moderate if low is None else st.floats(low, high), min_size=dim, max_size=dim)
        case Float(low=low, high=high):
            return moderate if low is None else st.floats(low, high)


@st.composite
def spaces_with_params(draw: st.DrawFn) -> tuple[Space, dict[str, Any]]:
    space = draw(spaces)
    return space, {name: draw(values_of(parameter)) for name, parameter in space.items()}


@st.composite
def spaces_with_vectors(draw: st.DrawFn, elements: st.SearchStrategy[float] = finite) -> tuple[Space, np.ndarray]:
    space = draw(spaces)
    return space, np.array(draw(st.lists(elements, min_size=space.dim, max_size=space.dim)))


# -- round trips


@quick
@given(spaces_with_params())
def test_decode_undoes_encode(case: tuple[Space, dict[str, Any]]) -> None:
    space, params = case
    point = space.encode(params)
    assert ((point >= space.lower) & (point <= space.upper)).all()
    decoded = space.decode(point)
    assert list(decoded) == list(space)
    for name, parameter in space.items():
        if isinstance(parameter, Float | Vector):
            size = max(abs(parameter.low), abs(parameter.high)) if parameter.low is not None else 0.0
            relative = 1e-13 if getattr(parameter, "scale", "linear") == "log" else 4e-16
            absolute = 0.0 if relative == 1e-13 else 4e-16 * size + 1e-300
            np.testing.assert_allclose(decoded[name], params[name], rtol=relative, atol=absolute)
        else:
            assert decoded[name] == params[name]
            assert type(decoded[name]) is type(params[name])


@quick
@given(spaces_with_vectors())
def test_any_finite_vector_decodes_to_valid_parameters(case: tuple[Space, np.ndarray]) -> None:
    space, vector = case
    before = vector.copy()
    decoded = space.decode(vector)
    np.testing.assert_array_equal(vector, before)
    for name, parameter in space.items():
        expected = {"float": float, "int": int}.get(parameter.kind)
        if isinstance(parameter, Vector):
            assert decoded[name].dtype == np.float64
            assert decoded[name].shape == (parameter.dim,)
        elif expected:
            assert type(decoded[name]) is expected
        if parameter.is_bounded or np.abs(decoded[name]).max() < 1e300:  # beyond, raw / unit may overflow
            parameter.read(decoded[name])
    json.dumps({k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in decoded.items()}, allow_nan=False)


@quick
@given(spaces_with_vectors(st.floats(-50, 50)))
def test_fold_is_a_triangle_wave_on_bounded_coordinates_and_the_identity_on_free_ones(case: Any) -> None:
    space, vector = case
    folded = space.fold(vector)
    triangle = np.abs(vector - 2 * np.round(vector / 2))  # distance to the nearest even integer
    np.testing.assert_allclose(folded[space.bounded], triangle[space.bounded], atol=1e-14)
    np.testing.assert_array_equal(folded[~space.bounded], vector[~space.bounded])
    np.testing.assert_array_equal(space.fold(folded), folded)
    shifted = space.fold(vector + 2 * space.bounded)
    np.testing.assert_allclose(shifted, folded, atol=1e-14)


@quick
@given(spaces_with_vectors(st.floats(-50, 50)))
def test_a_point_and_its_folded_image_decode_alike(case: Any) -> None:
    space, vector = case
    a, b = space.decode(vector), space.decode(space.fold(vector))
    assert all(np.array_equal(a[name], b[name]) for name in space)


@quick
@given(spaces)
def test_json_round_trip_gives_an_equal_space(space: Space) -> None:
    again = Space.from_json(json.loads(json.dumps(space.to_json())))
    assert again == space
    assert hash(again) == hash(space)
    assert again.to_json() == space.to_json()


def test_fold_leaves_points_inside_the_bounds_exactly_alone_and_copies() -> None:
    space = Space({"x": Float(low=0, high=1)})
    inside = np.array([[0.0], [1e-300], [0.1], [1.0]])
    folded = space.fold(inside)
    np.testing.assert_array_equal(folded, inside)
    assert not np.shares_memory(folded, inside)


# -- what each parameter decodes to


def test_real_maps_linearly_with_exact_ends() -> None:
    space = Space({"x": Float(low=-0.1, high=0.7)})
    assert [space.decode([u])["x"] for u in (0.0, 0.25, 1.0, 1.25, -0.25, 2.0)] == pytest.approx(
        [-0.1, 0.1, 0.7, 0.5, 0.1, -0.1]
    )
    assert space.decode([0.0])["x"] == -0.1
    assert space.decode([1.0])["x"] == 0.7


def test_log_real_maps_geometrically_with_exact_ends_over_the_whole_range_of_floats() -> None:
    low, high = 3e-308, 1.7e308
    space = Space({"x": Float(low=low, high=high, scale="log")})
    assert space.decode([0.0])["x"] == low
    assert space.decode([1.0])["x"] == high
    for u in np.linspace(0.01, 0.99, 7):
        exponent = math.log(low) + u * (math.log(high) - math.log(low))
        assert math.log(space.decode([u])["x"]) == pytest.approx(exponent, abs=1e-9)


def test_free_real_is_measured_in_its_unit_and_stays_finite() -> None:
    space = Space({"x": Float(unit=10.0)})
    assert space.encode({"x": 25})[0] == 2.5
    assert space.decode([-0.5])["x"] == -5.0
    assert math.isfinite(space.decode([1.7e308])["x"])
    assert math.isfinite(Space({"v": Vector(dim=1, unit=10.0)}).decode([-1.7e308])["v"][0])


def test_integer_bins_are_equally_wide() -> None:
    space = Space({"n": Int(low=-1, high=3)})
    grid = (np.arange(1000) + 0.5) / 1000
    assert Counter(space.decode([u])["n"] for u in grid) == dict.fromkeys(range(-1, 4), 200)
    assert space.decode([1.0])["n"] == 3
    assert space.encode({"n": 0})[0] == pytest.approx(0.3)


def test_log_integer_bins_are_equally_wide_in_the_logarithm_and_all_reachable() -> None:
    space = Space({"n": Int(low=1, high=100, scale="log")})
    grid = (np.arange(20000) + 0.5) / 20000
    share = Counter(space.decode([u])["n"] for u in grid)
    assert sorted(share) == list(range(1, 101))
    for n in (1, 10, 100):
        expected = math.log((n + 0.5) / (n - 0.5)) / math.log(100.5 / 0.5)
        assert share[n] / 20000 == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "parameter",
    [Int(low=-(2**49), high=2**49 - 1), Int(low=1, high=2**40, scale="log")],
    ids=["linear", "log"],
)
def test_the_widest_integers_still_round_trip(parameter: Int) -> None:
    space = Space({"n": parameter})
    for n in (parameter.low, parameter.low + 1, 12345, parameter.high - 1, parameter.high):
        assert space.decode(space.encode({"n": n}))["n"] == n


def test_two_choices_share_one_coordinate_and_more_are_one_hot() -> None:
    two = Space({"c": Categorical(choices=["a", "b"])})
    assert [two.decode([u])["c"] for u in (0.0, 0.49, 0.5, 1.0)] == ["a", "a", "b", "b"]
    three = Space({"c": Categorical(choices=["a", "b", "c"])})
    np.testing.assert_array_equal(three.encode({"c": "b"}), [0, 1, 0])
    assert three.decode([0.5, 0.5, 0.5])["c"] == "a"
    assert three.decode([0.1, 0.5, 0.5])["c"] == "b"
    assert three.decode([0.1, 0.5, 1.1])["c"] == "c"


def test_choices_are_told_apart_as_json_does() -> None:
    space = Space({"c": Categorical(choices=[1, True, "1", None])})
    for value in (1, True, "1", None):
        assert space.decode(space.encode({"c": value}))["c"] is value
    np.testing.assert_array_equal(space.encode({"c": 1.0}), space.encode({"c": 1}))
    assert codes(lambda: Categorical(choices=[1, 2, 1.0])) == [("/choices/2", "duplicate")]
    assert codes(lambda: Categorical(choices=["a"])) == [("/choices", "too_short")]


def test_numpy_scalars_are_read_like_python_ones() -> None:
    params = {"x": np.float64(2.5), "free": np.int64(-7), "n": np.int64(3), "two": np.str_("gelu")}
    params |= {"v": np.array([0, 1, 2], dtype=np.float32), "three": np.int64(1)}
    np.testing.assert_array_equal(MIXED.encode(params), MIXED.encode(MIXED_PARAMS))
    assert Float(low=np.float64(0), high=np.int64(2)) == Float(low=0, high=2)
    assert Vector(dim=2, init=np.zeros(2)) == Vector(dim=2, init=[0.0, 0.0])


# -- the space as a whole


def test_the_example_of_the_api_is_read_and_written_unchanged() -> None:
    space = Space.from_json(API_EXAMPLE)
    assert space.to_json() == API_EXAMPLE
    assert space.names == ("lr", "layers", "act")
    assert space.dim == 3
    assert space.kinds == {"float", "int", "categorical"}
    assert space.encode({"lr": 1e-3, "layers": 4, "act": "gelu"}) == pytest.approx([0.5, 3.5 / 8, 0.75])


def test_coordinates_follow_the_order_of_the_parameters() -> None:
    assert MIXED.dim == 1 + 1 + 1 + 1 + 3 + 3
    point = MIXED.encode(MIXED_PARAMS)
    np.testing.assert_allclose(point, [0.75, -0.7, 2.5 / 8, 0.75, 0, 0.5, 1, 0, 1, 0])
    np.testing.assert_array_equal(MIXED.bounded, [True, False] + [True] * 8)
    np.testing.assert_array_equal(MIXED.lower, [0, -np.inf] + [0] * 8)
    np.testing.assert_array_equal(MIXED.upper, [1, np.inf] + [1] * 8)
    swapped = Space(dict(reversed(list(MIXED.items()))))
    assert swapped != MIXED


def test_the_initial_point_is_the_middle_unless_told() -> None:
    np.testing.assert_allclose(MIXED.initial, [0.5, 3.0] + [0.5] * 8)
    space = Space(
        {
            "lr": Float(low=1e-4, high=1e-2, scale="log", init=1e-2),
            "n": Int(low=0, high=3, init=3),
            "c": Categorical(choices=["a", "b", "c"], init="b"),
            "v": Vector(dim=2, low=0, high=4, init=1),
            "w": Vector(dim=2, unit=2.0, init=[1, -2]),
        }
    )
    np.testing.assert_allclose(space.initial, [1, 3.5 / 4, 0, 1, 0, 0.25, 0.25, 0.5, -1])
    with pytest.raises(ValueError, match="read-only"):
        space.initial[0] = 0


def test_the_region_is_the_unit_box_or_none_when_a_coordinate_is_free() -> None:
    box = Space.from_json(API_EXAMPLE).region
    assert box is not None
    np.testing.assert_array_equal(box.project(np.array([-1.0, 0.3, 2.0])), [0, 0.3, 1])
    assert MIXED.region is None


def test_a_huge_vector_is_described_without_memory() -> None:
    space = Space({"theta": Vector(dim=10**9, dtype="f32", init=0.5)})
    assert space.is_single_vector
    assert space.lower.shape == (10**9,)
    assert space.lower[-1] == -np.inf
    assert not MIXED.is_single_vector
    assert codes(lambda: Vector(dim=10**9 + 1)) == [("/dim", "less_than_equal")]


def test_a_space_is_a_mapping_and_survives_pickling() -> None:
    again = pickle.loads(pickle.dumps(MIXED))  # noqa: S301
    assert again == MIXED
    assert isinstance(again["n"], Int)
    assert "n" in again
    assert len(again) == 6
    assert set(again.decode(np.zeros(10))) == set(MIXED)


# -- regions

SHARES = {
    "shares": {"type": "vector", "dim": 3, "region": {"type": "simplex"}},
    "depth": {"type": "int", "low": 1, "high": 4},
    "weights": {"type": "vector", "dim": 2, "region": {"type": "l2_ball", "radius": 2.0}, "init": [1.0, -1.0]},
}


def test_a_vector_in_a_region_is_its_coordinates_bit_for_bit() -> None:
    space = Space.from_json(SHARES)
    point = np.array([0.3, 0.7, 0.0, 0.9, 0.1, -1.7])
    params = space.decode(point)
    assert params["depth"] == 4
    assert params["shares"].tolist() == [0.3, 0.7, 0.0]
    assert params["weights"].tolist() == [0.1, -1.7]
    assert space.encode(params)[[0, 1, 2, 4, 5]].tobytes() == point[[0, 1, 2, 4, 5]].tobytes()
    params["shares"][0] = 9.0
    assert point[0] == 0.3


def test_a_space_with_regions_is_one_convex_set() -> None:
    space = Space.from_json(SHARES)
    assert space.domain == "convex"
    assert space.region == Product(
        parts=[
            Part(dim=3, region=Simplex()),
            Part(dim=1, region=Box()),
            Part(dim=2, region=L2Ball(radius=2.0)),
        ]
    )
    np.testing.assert_allclose(space.initial, [1 / 3, 1 / 3, 1 / 3, 0.5, 1, -1])
    alone = Space({"w": Vector(dim=4, region={"type": "l1_ball", "radius": 2.0})})
    assert alone.region == L1Ball(radius=2.0)
    assert alone.is_single_vector
    assert [Space.from_json(raw).domain for raw in (API_EXAMPLE, {"x": {"type": "float"}})] == ["box", "free"]


def test_a_region_survives_json() -> None:
    space = Space.from_json(SHARES)
    assert space.to_json() == SHARES
    assert Space.from_json(json.loads(json.dumps(space.to_json()))) == space
    assert pickle.loads(pickle.dumps(space)) == space  # noqa: S301


def test_points_outside_a_region_are_refused_and_round_off_is_not() -> None:
    space = Space.from_json(SHARES)
    params = space.decode(space.initial)
    for shares in ([0.5, 0.5, 0.5], [1.1, -0.1, 0.0]):
        assert codes(lambda s=shares: space.encode({**params, "shares": s})) == [("/params/shares", "infeasible")]
        outside = np.concatenate([shares, space.initial[3:]])
        assert codes(lambda x=outside: space.decode(x)) == [("/params/shares", "infeasible")]
    space.encode({**params, "shares": [0.5, 0.5 + 1e-8, -1e-8]})
    with pytest.raises(InvalidSpace, match=r"must lie in its simplex region, is outside by 0\.5"):
        space.encode({**params, "shares": [0.5, 0.5, 0.5]})


def test_a_free_parameter_beside_a_region_is_refused() -> None:
    assert codes(lambda: Space.from_json(SHARES | {"x": {"type": "float"}})) == [("/space/x", "unbounded")]
    with pytest.raises(InvalidSpace, match="give it low and high, or a region"):
        Space({"v": Vector(dim=2, region=Simplex()), "x": Float()})


# -- refusals


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_coordinate_is_refused_and_names_its_parameter(bad: float) -> None:
    owner = ["x", "free", "n", "two", "v", "v", "v", "three", "three", "three"]
    for i, name in enumerate(owner):
        vector = np.full(10, 0.5)
        vector[i] = bad
        with pytest.raises(NonFiniteValue, match=f"'{name}'"):
            MIXED.decode(vector)
        with pytest.raises(NonFiniteValue):
            MIXED.fold(vector)


def test_a_vector_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(InvalidSpace, match=r"\(10,\), got \(9,\)"):
        MIXED.decode(np.zeros(9))
    with pytest.raises(InvalidSpace, match=r"\(\.\.\., 10\)"):
        MIXED.fold(np.zeros((10, 2)))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"type": "float", "low": 1, "high": 1}, [("/space/x/low", "low_not_below_high")]),
        ({"type": "float", "low": 1}, [("/space/x/high", "one_sided")]),
        ({"type": "vector", "dim": 2, "high": 1}, [("/space/x/low", "one_sided")]),
        ({"type": "float", "low": 0, "high": 1, "scale": "log"}, [("/space/x/low", "log_not_positive")]),
        ({"type": "float", "scale": "log"}, [("/space/x/scale", "log_unbounded")]),
        ({"type": "float", "low": 0, "high": 1, "unit": 2}, [("/space/x/unit", "unit_bounded")]),
        ({"type": "float", "low": -1e308, "high": 1e308}, [("/space/x/high", "too_wide")]),
        (
            {"type": "float", "low": 1e10, "high": math.nextafter(1e10, 1e11), "scale": "log"},
            [("/space/x/high", "too_close")],
        ),
        ({"type": "float", "low": 0, "high": 1, "init": 2}, [("/space/x/init", "out_of_range")]),
        (
            {"type": "float", "low": "0", "high": True},
            [("/space/x/low", "float_type"), ("/space/x/high", "float_type")],
        ),
        ({"type": "float", "low": -math.inf, "high": 1}, [("/space/x/low", "finite_number")]),
        ({"type": "float", "hihg": 1}, [("/space/x/hihg", "extra_forbidden")]),
        ({"type": "int", "low": 3, "high": 1}, [("/space/x/low", "low_not_below_high")]),
        ({"type": "int", "low": 0, "high": 9, "scale": "log"}, [("/space/x/low", "log_not_positive")]),
        ({"type": "int", "low": 0, "high": 2**50}, [("/space/x/high", "too_wide")]),
        ({"type": "int", "low": 0, "high": 1.5}, [("/space/x/high", "int_type")]),
        ({"type": "int", "low": 0}, [("/space/x/high", "missing")]),
        ({"type": "int", "low": 0, "high": 2, "init": 3}, [("/space/x/init", "out_of_range")]),
        ({"type": "categorical", "choices": ["a", "b", "a"]}, [("/space/x/choices/2", "duplicate")]),
        ({"type": "categorical", "choices": ["a", ["b"], "c"]}, [("/space/x/choices/1", "bool_type")]),
        ({"type": "categorical", "choices": ["a", "b"], "init": "c"}, [("/space/x/init", "not_a_choice")]),
        ({"type": "vector", "dim": 0}, [("/space/x/dim", "greater_than")]),
        ({"type": "vector", "dim": 2, "init": [1]}, [("/space/x/init", "wrong_length")]),
        ({"type": "vector", "dim": 2, "low": 0, "high": 1, "init": [0, 2]}, [("/space/x/init", "out_of_range")]),
        ({"type": "vector", "dim": 2, "region": 1}, [("/space/x/region", "wrong_type")]),
        ({"type": "vector", "dim": 2, "region": {}}, [("/space/x/region/type", "missing")]),
        ({"type": "vector", "dim": 2, "region": {"type": "simplx"}}, [("/space/x/region/type", "unknown_type")]),
        (
            {"type": "vector", "dim": 2, "region": {"type": "simplex", "radius": -1}},
            [("/space/x/region/radius", "greater_than")],
        ),
        (
            {"type": "vector", "dim": 2, "region": {"type": "box", "lower": [0, 0, 0]}},
            [("/space/x/region", "wrong_dim")],
        ),
        (
            {"type": "vector", "dim": 2, "low": 0, "high": 1, "region": {"type": "simplex"}},
            [("/space/x/region", "region_and_bounds")],
        ),
        ({"type": "vector", "dim": 2, "region": {"type": "simplex"}, "init": 1}, [("/space/x/init", "infeasible")]),
        ({"type": "vector", "dim": 2, "region": {"type": "simplex"}, "init": [1]}, [("/space/x/init", "wrong_length")]),
        ({"type": "vector", "dim": 10**9, "region": {"type": "simplex"}}, [("/space/x/dim", "too_large")]),
        (
            {"type": "vector", "dim": 2, "region": {"type": "product", "parts": []}},
            [("/space/x/region/parts", "empty")],
        ),
        (
            {
                "type": "vector",
                "dim": 2,
                "region": {"type": "product", "parts": [{"dim": 1, "region": {"type": "l2_ball", "radius": 0}}, {}]},
            },
            [
                ("/space/x/region/parts/0/region/radius", "greater_than"),
                ("/space/x/region/parts/1/dim", "missing"),
                ("/space/x/region/parts/1/region", "missing"),
            ],
        ),
        ({"type": "flaot"}, [("/space/x/type", "unknown_type")]),
        ({"low": 1}, [("/space/x/type", "missing")]),
        (["float"], [("/space/x", "wrong_type")]),
    ],
)
def test_a_bad_description_names_the_field_at_fault(raw: Any, expected: list[tuple[str, str]]) -> None:
    assert codes(lambda: Space.from_json({"ok": {"type": "float"}, "x": raw})) == expected


def test_messages_say_what_to_do() -> None:
    with pytest.raises(InvalidSpace, match='did you mean "float"'):
        Space.from_json({"x": {"type": "flaot"}})
    with pytest.raises(InvalidSpace, match='did you mean "high"'):
        Space.from_json({"x": {"type": "float", "hihg": 1}})
    with pytest.raises(InvalidSpace, match="give both low and high, or neither"):
        Float(low=1)
    with pytest.raises(InvalidSpace, match='did you mean "gelu"'):
        MIXED.encode(MIXED_PARAMS | {"two": "gleu"})
    with pytest.raises(InvalidSpace, match=r"Space\.from_json"):
        Space({"x": {"type": "float"}})  # type: ignore[dict-item]


def test_an_empty_space_or_name_is_refused() -> None:
    assert codes(lambda: Space({})) == [("", "empty")]
    assert codes(lambda: Space.from_json({})) == [("/space", "empty")]
    assert codes(lambda: Space.from_json(None)) == [("/space", "empty")]
    assert codes(lambda: Space.from_json({"": {"type": "float"}})) == [("/space", "bad_name")]


def test_faults_of_several_parameters_are_told_at_once_with_escaped_pointers() -> None:
    raw = {"a/b": {"type": "float", "low": 1}, "c~": {"type": "int"}}
    assert codes(lambda: Space.from_json(raw)) == [
        ("/space/a~1b/high", "one_sided"),
        ("/space/c~0/low", "missing"),
        ("/space/c~0/high", "missing"),
    ]


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("x", "3", "wrong_type"),
        ("x", True, "wrong_type"),
        ("x", np.bool_(True), "wrong_type"),
        ("x", None, "wrong_type"),
        ("x", math.nan, "non_finite"),
        ("x", 10**400, "non_finite"),
        ("x", 5.1, "out_of_range"),
        ("n", 3.0, "wrong_type"),
        ("n", True, "wrong_type"),
        ("n", 9, "out_of_range"),
        pytest.param("n", 10**5000, "out_of_range", id="n-unprintable"),
        ("two", "tanh", "not_a_choice"),
        ("two", ["relu"], "not_a_choice"),
        ("three", False, "not_a_choice"),
        ("v", 1.0, "wrong_type"),
        ("v", [0, 1, True], "wrong_type"),
        ("v", [0, 1, "2"], "wrong_type"),
        ("v", [[0], [1], [2]], "wrong_type"),
        ("v", np.array([True, False, True]), "wrong_type"),
        ("v", [0, 1], "wrong_length"),
        ("v", [0, 1, math.inf], "non_finite"),
        ("v", [0, 1, 10**400], "non_finite"),
        ("v", [0, 1, 2.1], "out_of_range"),
    ],
)
def test_an_unfit_value_is_refused_by_check_and_encode(name: str, value: Any, code: str) -> None:
    params = MIXED_PARAMS | {name: value}
    assert codes(lambda: MIXED.check(params)) == [(f"/params/{name}", code)]
    assert codes(lambda: MIXED.encode(params)) == [(f"/params/{name}", code)]


def test_a_value_that_overflows_its_unit_is_refused() -> None:
    space = Space({"x": Float(unit=1e-10), "v": Vector(dim=1, unit=1e-10)})
    assert codes(lambda: space.check({"x": 1e308, "v": [1e308]})) == [
        ("/params/x", "out_of_range"),
        ("/params/v", "out_of_range"),
    ]


def test_missing_and_unknown_parameters_are_named() -> None:
    params = {name: value for name, value in MIXED_PARAMS.items() if name != "two"} | {"tow": "gelu"}
    assert codes(lambda: MIXED.encode(params)) == [("/params/two", "missing"), ("/params/tow", "unknown_parameter")]
    with pytest.raises(InvalidSpace, match='did you mean "two"'):
        MIXED.check(params)
    assert codes(lambda: MIXED.check([1.0])) == [("/params", "wrong_type")]  # type: ignore[arg-type]
    MIXED.check(MIXED_PARAMS)


def test_examples_in_the_docstrings_run() -> None:
    assert doctest.testmod(blackbox.space).failed == 0


@settings(deadline=None, max_examples=400)
@given(descriptions)
def test_whatever_describes_a_parameter_it_works_or_is_an_invalid_space(described: Any) -> None:
    cls, fields = described
    try:
        space = Space({"x": cls(**fields)})
    except InvalidSpace:
        return
    for coordinate in (0.0, 0.3, 1.0):
        space.encode(space.decode(np.full(space.dim, coordinate)))
    space.decode(space.initial)
    assert Space.from_json(json.loads(json.dumps(space.to_json()))) == space


def test_every_pair_of_odd_bounds_works_or_is_an_invalid_space() -> None:
    for low in ODD:
        for high in ODD:
            for scale in ("linear", "log"):
                with suppress(InvalidSpace):
                    Space({"x": Float(low=low, high=high, scale=scale)}).decode([0.3])
    assert codes(lambda: Float(low=1e-5, high=-0.1, scale="log")) == [("/low", "low_not_below_high")]


def test_text_that_utf_8_cannot_encode_is_refused_and_not_renamed() -> None:
    for build in (
        lambda: Space({"\udcff": Int(low=0, high=1)}),
        lambda: Space.from_json({"\udcff": {"type": "int", "low": 0, "high": 1}}),
    ):
        with pytest.raises(InvalidSpace, match=r"'\\udcff'; was it decoded with errors='surrogateescape'"):
            build()
    assert codes(lambda: Categorical(choices=["a", "\ud800"])) == [("/choices/1", "not_text")]
    with pytest.raises(InvalidInput, match="name: must be text"):
        parse_spec({"name": "\ud800", "space": API_EXAMPLE})
    with pytest.raises(InvalidInput, match="labels/a"):
        parse_spec({"name": "s", "space": API_EXAMPLE, "labels": {"a": "\ud800"}})
    assert Space({"größe": Categorical(choices=["weiß", "\U0001f600"])}).decode([0.2])["größe"] == "weiß"

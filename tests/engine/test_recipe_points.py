"""A recipe is its formula, however its point is cut, stored or continued."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blackbox import recipes, rng
from blackbox.errors import BlobNotFound, CodecError, InvalidInput, NonFiniteValue
from blackbox.records import Recipe, Term

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "noise.json").read_text())["recipe"]
KEY = rng.Key.from_seed(3)
DIM = 2 * rng.CHUNK + 77  # more than one chunk, and a rest

words = st.integers(0, (1 << 64) - 1)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
scales = st.floats(-3.4e38, 3.4e38)
any_term = st.builds(Term, words, words, words, scales, st.sampled_from(["normal", "rademacher"]), st.none() | digests)
any_recipe = st.builds(Recipe, st.none() | digests, st.lists(any_term, max_size=5).map(tuple))


def vector(seed: int, dtype: Any = np.float32) -> np.ndarray:
    return rng.uniform(KEY, 0, seed, DIM).astype(dtype)


BASE, FACTOR = vector(1), vector(2)
BLOBS = {recipes.digest(BASE): BASE, recipes.digest(FACTOR): FACTOR}
LINEAGE = Recipe(
    recipes.digest(BASE),
    (
        Term(0, 0, 3, 0.02),
        Term(0, 1, 1, -0.1),
        Term(1, 1, 1, 0.5, "rademacher"),
        Term(0, 2, 9, 0.3, weight=recipes.digest(FACTOR)),
    ),
)


# Points ---------------------------------------------------------------------------------------------------------------


def test_point_is_the_base_plus_scaled_noise_in_the_order_of_the_terms() -> None:
    f32 = np.float32
    x = BASE + f32(0.02) * rng.normal(KEY.stream(0), 0, 3, DIM)
    x = x + f32(-0.1) * rng.normal(KEY.stream(0), 1, 1, DIM)
    x = x + f32(0.5) * rng.rademacher(KEY.stream(1), 1, 1, DIM)
    x = x + f32(0.3) * (rng.normal(KEY.stream(0), 2, 9, DIM) * FACTOR)
    np.testing.assert_array_equal(recipes.materialise(LINEAGE, KEY, DIM, BLOBS), x)


def test_a_mirrored_term_is_the_opposite_step() -> None:
    there = recipes.materialise(Recipe(None, (Term(0, 1, 2, 0.7),)), KEY, DIM)
    back = recipes.materialise(Recipe(None, (Term(0, 1, 2, -0.7),)), KEY, DIM)
    np.testing.assert_array_equal(there, -back)


def test_a_recipe_of_nothing_is_the_zero_vector() -> None:
    out = np.ones(DIM, dtype=np.float32)
    assert recipes.materialise(Recipe(None, ()), KEY, DIM, out=out) is out
    assert not out.any()


@settings(deadline=None, max_examples=25)
@given(cut=st.tuples(st.integers(0, DIM), st.integers(0, DIM)))
def test_a_slice_of_a_point_equals_that_slice_of_the_whole(cut: tuple[int, int]) -> None:
    start, stop = sorted(cut)
    whole = recipes.materialise(LINEAGE, KEY, DIM, BLOBS)
    part = recipes.materialise(LINEAGE, KEY, DIM, BLOBS.__getitem__, start=start, count=stop - start)
    np.testing.assert_array_equal(part, whole[start:stop])


def test_continuing_from_the_parents_vector_equals_starting_at_the_root() -> None:
    parent = recipes.materialise(dataclasses.replace(LINEAGE, terms=LINEAGE.terms[:2]), KEY, DIM, BLOBS)
    child = Recipe("parent", LINEAGE.terms[2:])
    continued = recipes.materialise(child, KEY, DIM, {**BLOBS, "parent": parent})
    np.testing.assert_array_equal(continued, recipes.materialise(LINEAGE, KEY, DIM, BLOBS))


def test_a_float64_base_is_rounded_once() -> None:
    base = vector(5, np.float64)
    name = recipes.digest(base)
    built = recipes.materialise(Recipe(name, (Term(0, 0, 0, 0.1),)), KEY, DIM, {name: base})
    np.testing.assert_array_equal(
        built, base.astype(np.float32) + np.float32(0.1) * rng.normal(KEY.stream(0), 0, 0, DIM)
    )


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(BlobNotFound, match="fetch it"):
        recipes.materialise(LINEAGE, KEY, DIM)
    with pytest.raises(BlobNotFound):
        recipes.materialise(LINEAGE, KEY, DIM, {recipes.digest(BASE): BASE})  # the factor is missing
    with pytest.raises(InvalidInput, match=r"must have shape \(5,\)"):
        recipes.materialise(LINEAGE, KEY, 5, BLOBS)
    for term, message in [
        (Term(0, 0, 0, 1.0, "cauchy"), "one of normal, rademacher"),
        (Term(0, -1, 0, 1.0), "step must be"),
        (Term(0, 0, -1, 1.0), "lane must be"),
        (Term(0, 0, 0, float("nan")), "finite"),
        (Term(0, 0, 0, 1e39), "finite"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            recipes.materialise(Recipe(None, (term,)), KEY, 5)
        with pytest.raises(InvalidInput, match=message):
            recipes.weighted_noise_sum([term], KEY, 5)
    with pytest.raises(InvalidInput, match=r"coordinates \[3, 9\)"):
        recipes.materialise(Recipe(None, ()), KEY, 5, start=3, count=6)
    with pytest.raises(InvalidInput, match="out must be"):
        recipes.materialise(Recipe(None, ()), KEY, 5, out=np.empty(5).astype(np.float32)[:4])


# Updates --------------------------------------------------------------------------------------------------------------

GENERATION = [
    Term(0, step, lane, sign * weight)
    for step in (7, 8)
    for lane in range(4)
    for sign, weight in ((1, 0.1 * lane + 0.01 * step), (-1, 0.03))
]


def test_sum_is_the_matrix_product_of_weights_and_noise() -> None:
    noise = np.array([rng.normal(KEY.stream(0), term.step, term.lane, DIM) for term in GENERATION], dtype=np.float64)
    expected = np.array([term.scale for term in GENERATION]) @ noise
    np.testing.assert_allclose(recipes.weighted_noise_sum(GENERATION, KEY, DIM), expected, rtol=0, atol=1e-14)


def test_sum_is_bitwise_the_same_for_any_number_of_parts() -> None:
    whole = recipes.weighted_noise_sum(GENERATION, KEY, DIM)
    for n_parts in (2, 3, 7, 100):
        cuts = [DIM * i // n_parts for i in range(n_parts + 1)]
        parts = [
            recipes.weighted_noise_sum(GENERATION, KEY, DIM, start=a, count=b - a) for a, b in itertools.pairwise(cuts)
        ]
        assert np.concatenate(parts).tobytes() == whole.tobytes()


@settings(deadline=None, max_examples=20)
@given(st.permutations(GENERATION))
def test_sum_does_not_depend_on_the_order_of_arrival(arrived: list[Term]) -> None:
    expected = recipes.weighted_noise_sum(GENERATION, KEY, 50)
    assert recipes.weighted_noise_sum(arrived, KEY, 50).tobytes() == expected.tobytes()


def test_mirrored_lanes_share_one_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    draws: list[tuple[int, int]] = []

    def counted(key: rng.Key, step: int, lane: int, *rest: Any) -> Any:
        draws.append((step, lane))
        return rng.normal(key, step, lane, *rest)

    monkeypatch.setitem(recipes.KINDS, "normal", counted)
    recipes.weighted_noise_sum(GENERATION, KEY, 100)
    assert draws == [(step, lane) for step in (7, 8) for lane in range(4)]


def test_weights_that_cancel_cost_no_draw_and_an_empty_sum_is_zero() -> None:
    pair = [Term(0, 0, 0, 0.1), Term(0, 0, 0, -0.1)]
    assert recipes.weighted_noise_sum(pair, KEY, 4).tolist() == [0.0] * 4
    assert recipes.weighted_noise_sum([], KEY, 4).tolist() == [0.0] * 4


def test_a_sum_of_squares_is_its_formula_however_it_is_cut() -> None:
    terms = [Term(0, 3, lane, scale) for lane, scale in enumerate((0.5, -2.0, 0.25))] + [Term(0, 3, 1, 1.0)]
    weights = (0.5, -1.0, 0.25)  # of one address the weights are added, not the noise
    expected = sum(
        w * rng.normal(KEY.stream(0), 3, lane, DIM).astype(np.float64) ** 2 for lane, w in enumerate(weights)
    )
    whole = recipes.weighted_noise_sum(terms, KEY, DIM, square=True)
    np.testing.assert_allclose(whole, expected, rtol=0, atol=5e-6)  # the square is rounded to float32
    part = recipes.weighted_noise_sum(terms, KEY, DIM, start=100, count=70_000, square=True)
    assert part.tobytes() == whole[100:70_100].tobytes()


def test_sum_takes_streams_kinds_and_factors() -> None:
    total = recipes.weighted_noise_sum(LINEAGE.terms, KEY, DIM, BLOBS)
    point = recipes.materialise(dataclasses.replace(LINEAGE, base=None), KEY, DIM, BLOBS)
    np.testing.assert_allclose(total, point, rtol=0, atol=1e-6)


# Wire forms -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(any_recipe)
def test_recipes_survive_json_and_bytes(recipe: Recipe) -> None:
    text = json.dumps(recipes.to_json(recipe), allow_nan=False)
    assert recipes.from_json(json.loads(text)) == recipe
    assert json.dumps(recipes.to_json(recipes.from_json(json.loads(text)))) == text
    packed = recipes.pack(recipe)
    assert recipes.unpack(packed) == recipe
    assert recipes.pack(recipes.unpack(packed)) == packed


def test_a_candidate_of_one_term_takes_less_than_a_hundred_bytes() -> None:
    candidate = Recipe(recipes.digest(BASE), (Term(2**63, 412, 7, 0.02),))
    assert len(recipes.pack(candidate)) == 72
    assert len(json.dumps(recipes.to_json(candidate))) < 250


@settings(deadline=None, max_examples=100)
@given(any_recipe, st.data())
def test_bytes_that_are_not_a_recipe_are_refused(recipe: Recipe, data: st.DataObject) -> None:
    packed = recipes.pack(recipe)
    with pytest.raises(CodecError):
        recipes.unpack(packed[: data.draw(st.integers(0, len(packed) - 1))])
    with pytest.raises(CodecError, match="left over"):
        recipes.unpack(packed + b"\0")
    with pytest.raises(CodecError, match="version 9"):
        recipes.unpack(b"\x09" + packed[1:])
    damaged = bytearray(packed)
    damaged[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(CodecError):  # other bytes are another recipe, or none
        assert recipes.pack(recipes.unpack(bytes(damaged))) == damaged


def test_json_that_is_not_a_recipe_says_what_is_wrong() -> None:
    op: dict[str, Any] = {"op": "normal", "stream": "0", "step": 1, "lane": 2, "scale": 0.5}
    for change, message in [
        ({"op": "cauchy"}, r"ops\[0\].op"),
        ({"stream": 0}, r"ops\[0\].stream"),
        ({"stream": "-1"}, r"ops\[0\].stream"),
        ({"stream": "9" * 5000}, r"ops\[0\].stream"),
        ({"step": 1.0}, r"ops\[0\].step"),
        ({"step": True}, r"ops\[0\].step"),
        ({"lane": -2}, r"ops\[0\].lane"),
        ({"lane": 1 << 64}, r"ops\[0\].lane"),
        ({"scale": "0.5"}, r"ops\[0\].scale"),
        ({"scale": float("inf")}, "finite"),
        ({"weight": "abc"}, r"ops\[0\].weight"),
        ({"sclae": 1}, r"ops\[0\] needs the members"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            recipes.from_json({"base": None, "ops": [op | change]})
    for bad in ({"base": None}, {"base": "abc", "ops": []}, {"base": None, "ops": {}}, [], None):
        with pytest.raises(InvalidInput):
            recipes.from_json(bad)  # type: ignore[arg-type]


def test_digest_names_type_length_and_numbers() -> None:
    x = np.array([1.0, 2.0], dtype=np.float32)
    others = [x, x.astype(np.float64), x[:1], -x, np.array([1.0, 2.0, 0.0], dtype=np.float32)]
    assert len({recipes.digest(v) for v in others}) == len(others)
    assert recipes.digest(x) == recipes.digest(x.astype(">f4")) == recipes.digest(np.repeat(x, 2)[::2])
    for bad in (x[None], x.astype(np.int32), x.astype(np.float16), x.astype(np.complex64)):
        with pytest.raises(InvalidInput, match="float32 or float64"):
            recipes.digest(bad)


def test_check_names_the_first_two_numbers_and_the_last() -> None:
    whole = recipes.materialise(LINEAGE, KEY, DIM, BLOBS)
    check = recipes.check(LINEAGE, KEY, DIM, BLOBS)
    assert check == {"index": [0, 1, DIM - 1], "value": [float(whole[i]) for i in (0, 1, -1)]}
    assert json.loads(json.dumps(check)) == check
    noise = Recipe(None, (Term(0, 0, 0, 1.0),))
    for dim, index in [(1, [0]), (2, [0, 1]), (3, [0, 1, 2])]:
        whole = recipes.materialise(noise, KEY, dim)
        assert recipes.check(noise, KEY, dim) == {"index": index, "value": whole.tolist()}
    with pytest.raises(NonFiniteValue):
        recipes.check(Recipe("bad", ()), KEY, 2, {"bad": np.array([0, np.nan])})


def test_published_trial_is_what_the_engine_says_and_builds() -> None:
    base = np.array(GOLDEN["base"], dtype=np.float32)
    trial = GOLDEN["trial"]
    recipe = recipes.from_json({"base": trial["base"]["sha256"], "ops": trial["ops"]})
    key = rng.Key.from_hex(trial["key"])
    blobs = {recipes.digest(base): base}
    assert recipes.materialise(recipe, key, 5, blobs).tolist() == GOLDEN["point"]
    assert recipes.seed_encoded(recipe, key, 5, blobs) == trial
    assert recipes.pack(recipe).hex() == GOLDEN["packed"]


def test_parent_cache_key_names_the_prefix_the_study_and_the_dimension() -> None:
    child = dataclasses.replace(LINEAGE, terms=(*LINEAGE.terms, Term(0, 3, 0, 0.1)))
    assert recipes.cache_key(child, KEY, DIM, -1) == recipes.cache_key(LINEAGE, KEY, DIM)
    others = [
        recipes.cache_key(child, KEY, DIM),
        recipes.cache_key(LINEAGE, KEY, DIM),
        recipes.cache_key(LINEAGE, KEY.child("other"), DIM),
        recipes.cache_key(LINEAGE, KEY, DIM + 1),
        recipes.cache_key(dataclasses.replace(LINEAGE, base=None), KEY, DIM),
    ]
    assert len(set(others)) == len(others)


# parents


def lineage(n_terms: int, lane: int = 0) -> Recipe:
    """A line of ancestors and, as its last term, a child."""
    return Recipe(LINEAGE.base, (*(Term(0, i, 3, 0.1) for i in range(n_terms - 1)), Term(0, n_terms, lane, 0.1)))


def test_children_of_one_parent_cost_one_term_each_and_are_the_same_points(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def counting(key: rng.Key, step: int, lane: int, *rest: Any) -> Any:
        drawn.append(step)
        return rng.normal(key, step, lane, *rest)

    monkeypatch.setitem(recipes.KINDS, "normal", counting)
    cache, base = recipes.PrefixCache(), np.arange(DIM, dtype=np.float32)
    blobs = {LINEAGE.base: base} if LINEAGE.base else {}
    costs = []
    for recipe in (lineage(9), lineage(9, 1), lineage(9, 2), lineage(9, 2), lineage(10), lineage(10, 1), lineage(12)):
        drawn.clear()
        built = recipes.materialise(recipe, KEY, DIM, blobs, cache=cache)
        costs.append(len(set(drawn)))  # pieces of a vector are drawn one by one
        assert built.tobytes() == recipes.materialise(recipe, KEY, DIM, blobs).tobytes()
        built[:] = 0  # what is kept is not what was given
    assert costs == [9, 1, 1, 1, 2, 1, 3]


def test_slices_are_kept_apart_and_equal_those_of_the_whole_point() -> None:
    cache, base = recipes.PrefixCache(), np.arange(DIM, dtype=np.float32)
    blobs = {LINEAGE.base: base} if LINEAGE.base else {}
    whole = recipes.materialise(lineage(5), KEY, DIM, blobs)
    for start, count in [(0, 2), (DIM - 1, 1), (1, DIM - 1), (0, DIM), (2, 0)]:
        for _ in range(2):
            part = recipes.materialise(lineage(5), KEY, DIM, blobs, start=start, count=count, cache=cache)
            assert part.tobytes() == whole[start : start + count].tobytes()
    assert recipes.check(lineage(5), KEY, DIM, blobs, cache) == recipes.check(lineage(5), KEY, DIM, blobs)


def test_the_parents_used_last_are_kept_within_their_bytes() -> None:
    room = 3 * (4 * DIM + 256)
    cache = recipes.PrefixCache(room)
    parents = [Recipe(None, (Term(0, i, 0, 0.1), Term(0, 9, 0, 0.1))) for i in range(5)]
    for parent in (*parents, parents[0], parents[4]):
        recipes.materialise(parent, KEY, DIM, cache=cache)
        assert cache.n_bytes <= room
    assert len(cache) == 3
    small = recipes.PrefixCache(100)
    assert recipes.materialise(parents[0], KEY, DIM, cache=small).shape == (DIM,)
    assert len(small) == 0

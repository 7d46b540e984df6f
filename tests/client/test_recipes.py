"""The client rebuilds the engine's points byte for byte, and refuses what it cannot vouch for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blackbox_client import recipes as client_recipes
from blackbox_client.recipes import (
    RNG,
    Blob,
    CheckMismatch,
    PrefixCache,
    RecipeError,
    UnknownEncoding,
    UnknownOp,
    WrongBlob,
    blob_sha256,
    rebuild,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from blackbox import recipes, rng
from blackbox.records import Recipe, Term

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "noise.json").read_text())


def wire(trial: dict[str, Any]) -> dict[str, Any]:
    """What the client gets: the trial after a trip through JSON text."""
    return json.loads(json.dumps(trial, allow_nan=False))


@st.composite
def problems(draw: st.DrawFn) -> tuple[Recipe, rng.Key, int, dict[str, np.ndarray]]:
    dim = draw(st.integers(1, 600) | st.sampled_from([rng.CHUNK, rng.CHUNK + 1, 2 * rng.CHUNK + 300]))
    key = rng.Key.from_seed(draw(st.integers()))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    vectors = [rng.uniform(key, 0, i, dim).astype(dtype) for i in range(2)]
    blobs = {recipes.digest(vector): vector for vector in vectors}
    base, factor = list(blobs) if len(blobs) == 2 else list(blobs) * 2
    words = st.integers(0, (1 << 64) - 1)
    term = st.builds(
        Term, words, words, st.integers(0, 1 << 40), st.floats(-10, 10, width=64),
        st.sampled_from(["normal", "rademacher"]), st.sampled_from([None, None, factor]),
    )  # fmt: skip
    recipe = Recipe(draw(st.sampled_from([None, base])), tuple(draw(st.lists(term, max_size=4))))
    return recipe, key, dim, blobs


@settings(deadline=None, max_examples=60)
@given(problems())
def test_client_and_engine_build_the_same_bytes(problem: tuple[Recipe, rng.Key, int, dict[str, np.ndarray]]) -> None:
    recipe, key, dim, blobs = problem
    base = None if recipe.base is None else blobs[recipe.base]
    trial = wire(recipes.seed_encoded(recipe, key, dim, blobs))
    rebuilt = rebuild(trial, base, factors=blobs)
    assert rebuilt.tobytes() == recipes.materialise(recipe, key, dim, blobs).tobytes()
    buffer = np.full(dim, 7, dtype=np.float32)
    assert rebuild(trial, None if base is None else Blob.of(base), factors=blobs, out=buffer) is buffer
    assert buffer.tobytes() == rebuilt.tobytes()


def test_digests_agree() -> None:
    for vector in (np.arange(5, dtype=np.float32), np.arange(3.0), np.arange(8.0, dtype=">f4")[::2], np.empty(0)):
        assert blob_sha256(vector) == recipes.digest(vector) == Blob.of(vector).sha256


def test_client_rebuilds_the_published_trial() -> None:
    published = GOLDEN["recipe"]
    base = np.array(published["base"], dtype=np.float32)
    assert rebuild(published["trial"], base).tolist() == published["point"]
    assert GOLDEN["rng"] == RNG


# What is refused ------------------------------------------------------------------------------------------------------

BASE = np.array(GOLDEN["recipe"]["base"], dtype=np.float32)
TRIAL: dict[str, Any] = GOLDEN["recipe"]["trial"]
OP: dict[str, Any] = TRIAL["ops"][0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rng": "philox4x64/boxmuller/1"}, UnknownEncoding, "rng 'philox4x64/quantile16-f32/1', got 'philox4x64/box"),
        ({"encoding": "seed/2"}, UnknownEncoding, "encoding"),
        ({"dtype": "bf16"}, UnknownEncoding, "dtype"),
        ({"ops": [OP | {"op": "cauchy"}]}, UnknownOp, "cauchy"),
        ({"ops": [OP | {"rank": 4}]}, UnknownOp, "rank"),
        ({"ops": [OP | {"weight": "0" * 64}]}, WrongBlob, "the factor with sha256 0000"),
        ({"ops": [OP | {"lane": -1}]}, RecipeError, "lane must be a non-negative integer"),
        ({"ops": [OP | {"lane": 1 << 64}]}, RecipeError, "64 bits"),
        ({"ops": [OP | {"step": 1.5}]}, RecipeError, "step must be a non-negative integer"),
        ({"ops": [OP | {"stream": "x"}]}, RecipeError, "stream must be an integer"),
        ({"ops": [OP | {"scale": 1e39}]}, RecipeError, "finite float32"),
        ({"ops": [OP | {"scale": "1"}]}, RecipeError, "finite float32"),
        ({"ops": None}, RecipeError, "ops must be a list"),
        ({"base": "x"}, RecipeError, "base must be"),
        ({"base": {"sha256": "0" * 64}}, WrongBlob, "the base must have sha256 0000"),
        ({"dim": 0}, RecipeError, "dim must be a positive integer"),
        ({"dim": 6}, WrongBlob, "must have 6 numbers, got 5"),
        ({"key": "00"}, RecipeError, "32 hexadecimal digits"),
        ({"key": "0" * 32}, CheckMismatch, "coordinate 0 must be"),
        ({"check": {"index": [4], "value": [0.0]}}, CheckMismatch, "coordinate 4 must be 0.0, rebuilt 1.9"),
    ],
)
def test_a_trial_it_cannot_vouch_for_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        rebuild(TRIAL | change, BASE)
    assert isinstance(caught.value, RecipeError)


def test_wrong_arrays_are_refused() -> None:
    with pytest.raises(WrongBlob, match="the base must have sha256"):
        rebuild(TRIAL, BASE + 1)
    with pytest.raises(WrongBlob, match="is needed; fetch it"):
        rebuild(TRIAL)
    with pytest.raises(WrongBlob, match="float32 or float64"):
        rebuild(TRIAL, BASE.astype(np.int32))  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"out must be \(5,\) float32"):
        rebuild(TRIAL, BASE, out=np.empty(4, dtype=np.float32))


def test_a_blob_cannot_be_written_through() -> None:
    with pytest.raises(ValueError, match="read-only"):
        Blob.of(BASE).vector[0] = 1


def test_recipes_need_numpy_alone() -> None:
    program = (
        "import importlib.util, sys; before = set(sys.modules); import numpy\n"
        "spec = importlib.util.spec_from_file_location('recipes', sys.argv[1])\n"
        "module = sys.modules['recipes'] = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'scipy', 'blackbox', 'httpx', 'pydantic'}))"
    )
    path = ROOT / "clients" / "python" / "blackbox_client" / "recipes.py"
    assert subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True).stdout == "[]\n"


# The page -------------------------------------------------------------------------------------------------------------


def test_vectors_on_the_specification_page_are_true() -> None:
    page = (ROOT / "clients" / "NOISE.md").read_text()
    blocks = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL)]
    assert blocks == [GOLDEN]
    assert RNG in page
    assert GOLDEN["quantiles"]["sha256"] in page


def test_children_of_one_parent_cost_one_op_each_and_are_the_engines_points(monkeypatch: pytest.MonkeyPatch) -> None:
    dim, key = rng.CHUNK + 5, rng.Key.from_seed(4)
    base = rng.uniform(key, 0, 0, dim).astype(np.float32)
    blob, written = Blob.of(base), []
    write = client_recipes._Term.write

    def counting(self: Any, a: int, out: Any) -> None:
        written.append(self.step)
        write(self, a, out)

    monkeypatch.setattr(client_recipes._Term, "write", counting)
    cache = PrefixCache()
    for n_terms, lane, cost in [(6, 0, 6), (6, 1, 1), (6, 1, 1), (7, 0, 2), (9, 0, 3), (9, 4, 1)]:
        line = (*(Term(0, i, 3, 0.1) for i in range(n_terms - 1)), Term(0, n_terms, lane, -0.1, "rademacher"))
        recipe = Recipe(blob.sha256, line)
        written.clear()
        built = rebuild(wire(recipes.seed_encoded(recipe, key, dim, {blob.sha256: base})), blob, cache=cache)
        assert len(set(written)) == cost
        assert built.tobytes() == recipes.materialise(recipe, key, dim, {blob.sha256: base}).tobytes()
        built[:] = 0


def test_the_parents_used_last_are_kept_within_their_bytes() -> None:
    dim, key, cache = 100, rng.Key.from_seed(4), PrefixCache(3 * 400 + 10)
    trials = [
        wire(recipes.seed_encoded(Recipe(None, (Term(0, i, 0, 0.1), Term(0, 9, 0, 0.1))), key, dim)) for i in range(5)
    ]
    for trial in trials:
        rebuild(trial, cache=cache)
        assert cache.n_bytes <= cache.max_bytes
    assert len(cache) == 3
    none = PrefixCache(0)
    assert rebuild(trials[0], cache=none).tobytes() == rebuild(trials[0], cache=cache).tobytes()
    assert len(none) == 0

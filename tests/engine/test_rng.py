"""Noise is what its specification says, whoever asks, in whatever order, whole or in slices.

The reference below is plain Python integers and shares no code with the engine. `python -m tests.engine.test_rng`
writes the published vectors (tests/golden/noise.json) from it; they change only with the name of the specification.
"""

from __future__ import annotations

import hashlib
import json
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri

from blackbox import rng
from blackbox.errors import InvalidInput
from blackbox.rng import Key

GOLDEN = Path(__file__).parents[1] / "golden" / "noise.json"
KEY = Key.from_seed(20261101).child("studies", "noise").stream(0)

# The reference --------------------------------------------------------------------------------------------------------

MASK = (1 << 64) - 1


def philox4x64(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 (Salmon et al. 2011, doi:10.1145/2063384.2063405)."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & MASK, (p0 >> 64) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return [c0, c1, c2, c3]


def words(key: str, kind: int, per_block: int, dim: int, step: int, lane: int) -> list[int]:
    """All words of one lane."""
    n_blocks = -(-dim // per_block)
    stride = 1
    while stride < n_blocks:
        stride *= 2
    key_words = [int.from_bytes(bytes.fromhex(key)[i : i + 8], "little") for i in (0, 8)]
    blocks = (philox4x64([lane * stride + i, kind, dim, step], key_words) for i in range(n_blocks))
    return [word for block in blocks for word in block]


def pieces(word_list: list[int], bits: int) -> list[int]:
    return [word >> shift & ((1 << bits) - 1) for word in word_list for shift in range(0, 64, bits)]


def quantile(i: int) -> float:
    return float(np.float32(ndtri((i + 0.5) / 65536)))


def reference(
    kind: str, key: str, dim: int, step: int, lane: int, low: int = 0, high: int = 0
) -> list[float] | list[int]:
    """All numbers of one lane."""
    address = dim, step, lane
    if kind == "normal":
        return [quantile(i) for i in pieces(words(key, 1, 16, *address), 16)[:dim]]
    if kind == "rademacher":
        return [2 * bit - 1 for bit in pieces(words(key, 2, 256, *address), 1)[:dim]]
    if kind == "uniform":
        return [(word >> 11) / 2**53 for word in words(key, 3, 4, *address)[:dim]]
    if kind == "integers":
        w = words(key, 4, 2, *address)
        return [low + ((w[2 * i] + (w[2 * i + 1] << 64)) * (high - low) >> 128) for i in range(dim)]
    w = words(key, 5, 4, *address)
    return sorted(range(dim), key=lambda i: w[i])


def derive(path: list[int | str], stream: int | None) -> str:
    key = bytes(16)
    tags = [(b"t" if isinstance(name, str) else b"i", str(name)) for name in path]
    for tag, text in tags + ([] if stream is None else [(b"s", str(stream))]):
        message = key + tag + len(text.encode()).to_bytes(8, "little") + text.encode()
        key = hashlib.blake2b(message, digest_size=16, person=b"blackbox-noise-1").digest()
    return key.hex()


def engine(kind: str, key: str, dim: int, step: int, lane: int, low: int = 0, high: int = 0) -> list[float] | list[int]:
    """The same numbers from the engine."""
    k = Key.from_hex(key)
    if kind == "integers":
        return rng.integers(k, step, lane, dim, low, high).tolist()
    if kind == "permutation":
        return rng.permutation(k, step, lane, dim).tolist()
    return {"normal": rng.normal, "rademacher": rng.rademacher, "uniform": rng.uniform}[kind](
        k, step, lane, dim
    ).tolist()


def vectors() -> dict[str, Any]:
    """The published vectors, from the reference alone."""
    counters = [([0] * 4, [0] * 2), ([MASK] * 4, [MASK] * 2), ([7, 1, 1000000, 412], [1, 2])]
    paths: list[tuple[list[int | str], int | None]] = [
        ([7], None), (["7"], None), ([7, "studies", "demo"], None), ([7, "studies", "demo"], 0),
        ([7, "studies", "demo"], 1), ([2**70, "größe", -3], 2**64 - 1),
    ]  # fmt: skip
    key = derive([7, "studies", "demo"], 0)
    addresses: list[dict[str, Any]] = [
        {"kind": "normal", "dim": 5, "step": 412, "lane": 7},
        {"kind": "normal", "dim": 5, "step": 0, "lane": 0},
        {"kind": "normal", "dim": 40, "step": 412, "lane": 7, "start": 30},
        {"kind": "normal", "dim": 100000, "step": 2**40, "lane": 2**33, "start": 99996},
        {"kind": "rademacher", "dim": 300, "step": 412, "lane": 7, "start": 292},
        {"kind": "uniform", "dim": 6, "step": 412, "lane": 7, "start": 3},
        {"kind": "integers", "dim": 5, "step": 412, "lane": 7, "low": -10, "high": 10},
        {"kind": "integers", "dim": 2, "step": 412, "lane": 7, "low": 0, "high": 2**53},
        {"kind": "permutation", "dim": 8, "step": 412, "lane": 7},
    ]  # fmt: skip
    noise = []
    for address in addresses:
        whole = {name: value for name, value in address.items() if name != "start"}
        numbers = reference(key=key, **whole)[address.get("start", 0) :]
        if address["kind"] == "normal":  # the shortest text that names the float32
            numbers = [float(str(np.float32(x))) for x in numbers]
        noise.append({**address, "values": numbers})
    entries = [0, 1, 32767, 32768, 40000, 65535]
    return {
        "rng": "philox4x64/quantile16-f32/1",
        "philox4x64": [
            {"counter": [hex(x) for x in c], "key": [hex(x) for x in k], "words": [hex(x) for x in philox4x64(c, k)]}
            for c, k in counters
        ],
        "keys": [{"path": path, "stream": None if s is None else str(s), "key": derive(path, s)} for path, s in paths],
        "quantiles": {
            "sha256": hashlib.sha256(ndtri((np.arange(65536) + 0.5) / 65536).astype("<f4").tobytes()).hexdigest(),
            "entries": {str(i): float(str(np.float32(quantile(i)))) for i in entries},
        },
        "noise": {"key": key, "vectors": noise},
        "recipe": recipe_vector(derive([7, "studies", "demo"], None)),
    }


def recipe_vector(key: str) -> dict[str, Any]:
    """A seed-encoded trial with its base and its point."""
    base = np.array([0.5, -0.25, 0, 1, 2], dtype=np.float32)
    ops: list[dict[str, Any]] = [
        {"op": "normal", "stream": "0", "step": 412, "lane": 7, "scale": 0.02},
        {"op": "rademacher", "stream": "1", "step": 3, "lane": 0, "scale": -0.1},
    ]
    point = base.copy()
    packed = b""
    for op in ops:
        stream_key = derive([7, "studies", "demo"], int(op["stream"]))
        noise = np.array(reference(op["op"], stream_key, len(base), op["step"], op["lane"]), dtype=np.float32)
        point += np.float32(op["scale"]) * noise
        kind = {"normal": 1, "rademacher": 2}[op["op"]]
        packed += struct.pack("<BBQQQd", kind, 0, int(op["stream"]), op["step"], op["lane"], op["scale"])
    sha256 = hashlib.sha256(b"<f4 5\n" + base.astype("<f4").tobytes()).hexdigest()
    return {
        "base": base.tolist(),
        "trial": {
            "encoding": "seed/1",
            "dim": len(base),
            "dtype": "f32",
            "base": {"sha256": sha256},
            "ops": ops,
            "rng": "philox4x64/quantile16-f32/1",
            "key": key,
            "check": {"index": [0, 1, 4], "value": [float(point[i]) for i in (0, 1, 4)]},
        },
        "point": point.tolist(),
        "packed": (struct.pack("<BBI", 1, 1, len(ops)) + bytes.fromhex(sha256) + packed).hex(),
    }


# The specification ----------------------------------------------------------------------------------------------------


def test_reference_philox_gives_the_known_answers_of_its_authors() -> None:
    # Random123, kat_vectors, philox4x64 10
    assert philox4x64([0] * 4, [0] * 2) == [
        0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B,
    ]  # fmt: skip
    assert philox4x64([MASK] * 4, [MASK] * 2) == [
        0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0,
    ]  # fmt: skip
    pi = [0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89]
    assert philox4x64(pi, [0x452821E638D01377, 0xBE5466CF34E90C6C]) == [
        0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6,
    ]  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(["normal", "rademacher", "uniform", "integers", "permutation"]),
    key=st.binary(min_size=16, max_size=16),
    dim=st.integers(1, 700),
    step=st.integers(0, MASK),
    lane=st.integers(0, 1 << 54),
    low=st.integers(-(1 << 63), 0),
    n=st.integers(1, (1 << 63) - 1),
)
def test_every_kind_equals_the_plain_python_reference(
    kind: str, key: bytes, dim: int, step: int, lane: int, low: int, n: int
) -> None:
    address: dict[str, Any] = {"kind": kind, "key": key.hex(), "dim": dim, "step": step, "lane": lane}
    if kind == "integers":
        address |= {"low": low, "high": low + n}
    assert engine(**address) == reference(**address)


def test_lane_zero_of_step_zero_starts_at_counter_zero() -> None:
    # NumPy would have produced the block after it; the counter has to be stepped back through a borrow.
    for kind in ("normal", "rademacher", "uniform", "permutation"):
        address: dict[str, Any] = {"kind": kind, "key": KEY.hex(), "dim": 3, "step": 0, "lane": 0}
        assert engine(**address) == reference(**address)


def test_published_vectors_are_those_of_the_reference() -> None:
    assert json.loads(GOLDEN.read_text()) == vectors()


def test_engine_gives_the_published_vectors() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert golden["rng"] == rng.NAME
    assert golden["quantiles"]["sha256"] == rng.QUANTILES_SHA256
    for entry in golden["keys"]:
        seed, *path = entry["path"]
        key = Key.from_seed(seed).child(*path)
        assert (key if entry["stream"] is None else key.stream(int(entry["stream"]))).hex() == entry["key"]
    for vector in golden["noise"]["vectors"]:
        start, values = vector.pop("start", 0), vector.pop("values")
        key = Key.from_hex(golden["noise"]["key"])
        if vector["kind"] == "normal":
            part = rng.normal(key, vector["step"], vector["lane"], vector["dim"], start)
            assert part.tolist() == np.array(values, dtype=np.float32).tolist()
        else:
            assert engine(key=key.hex(), **vector)[start:] == values


# Keys -----------------------------------------------------------------------------------------------------------------


def test_equal_paths_give_equal_keys_and_others_do_not() -> None:
    root = Key.from_seed(7)
    assert root.child("a", "b", 3) == root.child("a").child("b").child(3)
    others = [
        root, root.child("a"), root.child("ab"), root.child("a", "b"), root.child("b", "a"), root.child("", "ab"),
        root.child("ab", ""), root.child("a", "b", ""), root.child("3"), root.child(3), root.child(-3), root.stream(3),
        root.child("a").stream(3), root.stream(3).child("a"), Key.from_seed("7"), Key.from_seed(8),
    ]  # fmt: skip
    assert len({key.words for key in others}) == len(others)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text() | st.integers(), max_size=4), st.integers())
def test_keys_equal_the_written_derivation(path: list[str | int], stream: int) -> None:
    key = Key.from_seed(1).child(*path)
    assert key.hex() == derive([1, *path], None)
    assert key.stream(stream).hex() == derive([1, *path], stream)


def test_key_survives_its_hexadecimal_text() -> None:
    assert Key.from_hex(KEY.hex()) == KEY
    for bad in ("", "00", "g" * 32, KEY.hex() + "00", " " + KEY.hex()[1:]):
        with pytest.raises(InvalidInput, match="32 hexadecimal digits"):
            Key.from_hex(bad)


# Random access --------------------------------------------------------------------------------------------------------

READERS = {
    "normal": rng.normal,
    "rademacher": rng.rademacher,
    "uniform": rng.uniform,
    "integers": lambda key, step, lane, dim, *part: rng.integers(key, step, lane, dim, -5, 12, *part),
}


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(sorted(READERS)), dim=st.integers(1, 150_000), cut=st.tuples(st.floats(0, 1), st.floats(0, 1))
)
def test_a_slice_equals_that_slice_of_the_whole(kind: str, dim: int, cut: tuple[float, float]) -> None:
    start, stop = sorted(int(x * dim) for x in cut)
    read = READERS[kind]
    whole = read(KEY, 3, 5, dim)
    assert whole.shape == (dim,)
    np.testing.assert_array_equal(read(KEY, 3, 5, dim, start, stop - start), whole[start:stop])
    np.testing.assert_array_equal(read(KEY, 3, 5, dim, start), whole[start:])


@settings(deadline=None, max_examples=60)
@given(dim=st.integers(1, 3000), lanes=st.lists(st.integers(0, 40), max_size=12))
def test_a_lane_alone_equals_the_same_lane_in_a_batch(dim: int, lanes: list[int]) -> None:
    for many, one in ((rng.normals, rng.normal), (rng.uniforms, rng.uniform)):
        together = many(KEY, 9, lanes, dim)
        assert together.shape == (len(lanes), dim)
        for lane, row in zip(lanes, together, strict=True):
            np.testing.assert_array_equal(row, one(KEY, 9, lane, dim))
        np.testing.assert_array_equal(many(KEY, 9, np.array(lanes, dtype=np.int64), dim), together)


def test_long_runs_of_lanes_are_cut_without_changing_a_bit() -> None:
    for many, one in ((rng.normals, rng.normal), (rng.uniforms, rng.uniform)):
        together = many(KEY, 9, range(10, 700), 256)
        for lane in (10, 265, 266, 267, 521, 522, 699):
            np.testing.assert_array_equal(together[lane - 10], one(KEY, 9, lane, 256))


def test_a_slice_costs_only_its_own_blocks() -> None:
    # the whole vector would take an hour and 4 TB
    part = rng.normal(KEY, 0, 3, 10**12, 10**12 - 40, 40)
    np.testing.assert_array_equal(part[-5:], rng.normal(KEY, 0, 3, 10**12, 10**12 - 5))


def test_noise_is_written_into_the_given_buffer() -> None:
    for draw in (rng.normal, rng.rademacher):
        buffer = np.zeros(12, dtype=np.float32)
        assert draw(KEY, 1, 2, 30, 7, 10, buffer[1:11]).base is buffer
        np.testing.assert_array_equal(buffer[1:11], draw(KEY, 1, 2, 30)[7:17])
        assert buffer[0] == buffer[11] == 0
        with pytest.raises(InvalidInput, match=r"out must be \(10,\) float32"):
            draw(KEY, 1, 2, 30, 7, 10, buffer)


def test_threads_do_not_disturb_one_another() -> None:
    expected = [rng.normal(KEY, step, 0, 2000) for step in range(4)]
    wrong: list[int] = []

    def read(step: int) -> None:
        for _ in range(100):
            if not np.array_equal(rng.normal(KEY, step, 0, 2000), expected[step]):
                wrong.append(step)

    threads = [threading.Thread(target=read, args=(step,)) for step in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_impossible_addresses_are_refused() -> None:
    for bad, message in [
        ((-1, 0, 5), "step must be in"), ((1 << 64, 0, 5), "step must be in"), ((0, -1, 5), "lane must be in"),
        ((0, 1 << 62, 1000), "lane must be in"), ((0, 0, 0), "dim must be at least 1"),
        ((0, 0, 5, 6), r"coordinates \[6, 5\)"), ((0, 0, 5, 2, 4), r"coordinates \[2, 6\)"),
        ((0, 0, 5, -1), "coordinates"),
    ]:  # fmt: skip
        for draw in (rng.normal, rng.rademacher, rng.uniform):
            with pytest.raises(InvalidInput, match=message):
                draw(KEY, *bad)
    with pytest.raises(InvalidInput, match="lanes must not be negative"):
        rng.normals(KEY, 0, [3, -1], 5)
    with pytest.raises(InvalidInput, match="lanes must not be negative, got -1"):
        rng.uniforms(KEY, 0, [3, -1], 5)
    for low, high in [(3, 3), (4, 3), (-(1 << 63), 1), (0, (1 << 63) + 1)]:
        with pytest.raises(InvalidInput, match="low < high"):
            rng.integers(KEY, 0, 0, 5, low, high)


# Quality --------------------------------------------------------------------------------------------------------------


def test_quantile_table_is_antisymmetric_and_has_nearly_the_moments_of_a_normal() -> None:
    table = rng.quantiles()
    np.testing.assert_array_equal(table, ndtri((np.arange(65536) + 0.5) / 65536).astype(np.float32))
    np.testing.assert_array_equal(table, -table[::-1])
    x = table.astype(np.float64)
    variance = np.mean(x**2)
    assert abs(variance - 0.99998) < 1e-6
    assert abs(np.mean(x**4) / variance**2 - 2.99925) < 1e-5
    assert abs(x.max() - 4.3249) < 1e-4
    with pytest.raises(ValueError, match="read-only"):
        table[0] = 0


def test_quantile_table_survives_a_thousand_times_the_error_of_its_formula() -> None:
    x = ndtri((np.arange(32768, 65536) + 0.5) / 65536)
    for error in (-1e-12, 1e-12):
        np.testing.assert_array_equal((x * (1 + error)).astype(np.float32), rng.quantiles()[32768:])


def test_another_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rng, "QUANTILES_SHA256", "0" * 64)
    with pytest.raises(RuntimeError, match="would not match any other machine"):
        rng.quantiles.__wrapped__()


def test_normals_have_the_moments_of_their_table() -> None:
    x = rng.normal(KEY, 1, 0, 1 << 20).astype(np.float64)
    n = len(x)
    assert abs(x.mean()) < 4 / np.sqrt(n)
    assert abs(x.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs(np.mean(x**3)) < 4 * np.sqrt(15 / n)
    assert abs(np.mean(x**4) - 3) < 4 * np.sqrt(96 / n)
    counts = np.bincount(pieces_of(x), minlength=64)
    assert chi_square(counts) < 120  # 63 degrees of freedom: one in 50,000 above


def pieces_of(x: np.ndarray) -> np.ndarray:
    """The 64th of the distribution that each number falls into."""
    return np.searchsorted(ndtri(np.arange(1, 64) / 64), x)


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2).sum() / expected)


def test_other_kinds_are_fair() -> None:
    n = 1 << 18
    signs = rng.rademacher(KEY, 1, 0, n)
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(signs.sum()) < 4 * np.sqrt(n)
    u = rng.uniform(KEY, 1, 0, n)
    assert 0 <= u.min() < u.max() < 1
    assert chi_square(np.bincount((u * 64).astype(int), minlength=64)) < 120
    dice = rng.integers(KEY, 1, 0, n, 1, 7)
    assert (dice.min(), dice.max()) == (1, 6)
    assert chi_square(np.bincount(dice - 1, minlength=6)) < 30
    orders = [tuple(rng.permutation(KEY, 1, lane, 4).tolist()) for lane in range(6000)]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert chi_square(counts) < 63


def test_neighbouring_addresses_kinds_streams_and_lengths_are_uncorrelated() -> None:
    n = 1 << 14
    study = Key.from_seed(5)
    rows = np.array(
        [
            rng.normal(study.stream(0), 1, 0, n),
            rng.normal(study.stream(0), 1, 1, n),
            rng.normal(study.stream(0), 2, 0, n),
            rng.normal(study.stream(1), 1, 0, n),
            rng.normal(study.stream(0), 1, 0, n + 1)[:n],
            rng.rademacher(study.stream(0), 1, 0, n),
            rng.uniform(study.stream(0), 1, 0, n),
        ]
    )
    correlation = np.corrcoef(rows) - np.eye(len(rows))
    assert np.abs(correlation).max() < 4.5 / np.sqrt(n)


if __name__ == "__main__":

    def lines(value: Any, indent: str = "") -> str:
        """JSON with one line per vector."""
        inner = indent + "  "
        if isinstance(value, dict) and indent in ("", "  ") and "trial" not in value and "sha256" not in value:
            members = [f"{inner}{json.dumps(name)}: {lines(member, inner)}" for name, member in value.items()]
            return "{\n" + ",\n".join(members) + f"\n{indent}}}"
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = [inner + json.dumps(row, ensure_ascii=False) for row in value]
            return "[\n" + ",\n".join(rows) + f"\n{indent}]"
        return json.dumps(value, ensure_ascii=False)

    GOLDEN.write_text(lines(vectors()) + "\n")

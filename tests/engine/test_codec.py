"""States as bytes: every value survives, equal values give equal bytes, and foreign bytes are refused without harm."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import pickle
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blackbox import codec
from blackbox.errors import CodecError


@dataclass(frozen=True, slots=True)
class Inner:
    count: int
    mean: np.ndarray


@dataclass(frozen=True, slots=True)
class Other:
    text: str


@dataclass(frozen=True, slots=True)
class State:
    step: int
    sigma: float
    name: str
    flag: bool
    value: float | None
    mean: np.ndarray
    inner: Inner
    either: Inner | Other | None
    pair: tuple[Inner, ...]
    table: dict[str, float]
    nested: dict[str, Inner]


@dataclass(frozen=True, slots=True)
class OneArray:
    a: np.ndarray


@dataclass(frozen=True, slots=True)
class Anything:
    value: Any


DTYPES = ["<f8", "<f4", "<i8", "<i4", "<u8", "<u4", "<u2", "|u1", "|i1", "|b1"]
floats = st.floats(allow_nan=True, allow_infinity=True)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    raw = draw(st.binary(min_size=math.prod(shape) * dtype.itemsize, max_size=math.prod(shape) * dtype.itemsize))
    if dtype.kind == "b":
        raw = bytes(byte & 1 for byte in raw)
    return np.frombuffer(raw, dtype).reshape(shape)


inners = st.builds(Inner, st.integers(), arrays())
states = st.builds(
    State,
    st.integers(),
    floats,
    st.text(),
    st.booleans(),
    st.none() | floats,
    arrays(),
    inners,
    st.none() | inners | st.builds(Other, st.text()),
    st.lists(inners, max_size=3).map(tuple),
    st.dictionaries(st.text(), floats, max_size=3),
    st.dictionaries(st.text(), inners, max_size=2),
)
SAMPLE = State(
    3, math.inf, "é\u2028", True, None, np.arange(6.0).reshape(2, 3), Inner(1, np.zeros(3, np.float32)), Other("x"),
    (Inner(2, np.ones((), np.int64)),), {"b": -0.0, "a": math.nan}, {"k": Inner(-1, np.array([True, False, True]))},
)  # fmt: skip


def same(a: Any, b: Any) -> bool:
    """Equal in type, shape and bits."""
    if isinstance(a, np.ndarray):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, float):
        return type(b) is float and (struct.pack("<d", a) == struct.pack("<d", b) or (math.isnan(a) and math.isnan(b)))
    return type(a) is type(b) and a == b


@settings(max_examples=150, deadline=None)
@given(states)
def test_every_value_survives_and_gives_the_same_bytes_again(state: State) -> None:
    raw = codec.encode(state)
    decoded = codec.decode(State, raw)
    assert same(state, decoded)
    assert codec.encode(decoded) == raw
    assert codec.encode(state) == raw


@settings(max_examples=100, deadline=None)
@given(arrays())
def test_arrays_come_back_fresh_and_writable(array: np.ndarray) -> None:
    decoded = codec.decode(OneArray, codec.encode(OneArray(array))).a
    assert decoded.flags.writeable
    assert decoded.flags.c_contiguous
    assert not np.shares_memory(decoded, array)


def test_layout_and_byte_order_of_an_array_in_memory_do_not_matter() -> None:
    plain = np.arange(12.0).reshape(3, 4)
    for variant in (np.asfortranarray(plain), plain.astype(">f8"), np.repeat(plain, 2, axis=1)[:, ::2]):
        assert codec.encode(OneArray(variant)) == codec.encode(OneArray(plain))


def test_order_of_a_mapping_does_not_matter() -> None:
    assert codec.encode(Anything({"a": 1, "b": 2})) == codec.encode(Anything({"b": 2, "a": 1}))


def test_numpy_scalars_become_numbers_and_lists_tuples() -> None:
    decoded = codec.decode(Anything, codec.encode(Anything([np.float64(0.5), np.int32(3), np.bool_(True)])))
    assert decoded.value == (0.5, 3, True)
    assert [type(item) for item in decoded.value] == [float, int, bool]


def test_the_layout_is_what_its_docstring_says() -> None:
    raw = codec.encode(OneArray(np.array([1.0, 2.0], dtype=np.float32)))
    (length,) = struct.unpack_from("<I", raw, 4)
    assert raw[:4] == b"BBX1"
    schema, body = json.loads(raw[8 : 8 + length])
    assert schema == "OneArray(a)"
    assert body["v"] == [{"a": "<f4", "s": [2]}]
    start = 8 + length + -(8 + length) % 8
    assert raw[start:] == struct.pack("<ff", 1.0, 2.0)


@pytest.mark.parametrize(
    "value",
    [object(), 1j, b"bytes", {1, 2}, np.array(["text"]), np.array([None]), np.zeros(2, np.complex128), lambda: 0],
)
def test_what_is_no_number_is_refused_with_the_name_of_its_field(value: Any) -> None:
    with pytest.raises(CodecError, match=r"Anything\.value"):
        codec.encode(Anything(value))


@pytest.mark.parametrize("value", [3, {"a": 1}, State, None])
def test_only_dataclass_instances_are_encoded(value: Any) -> None:
    with pytest.raises(CodecError, match="dataclass instance"):
        codec.encode(value)


def test_every_truncation_is_refused() -> None:
    raw = codec.encode(SAMPLE)
    for n in range(len(raw)):
        with pytest.raises(CodecError):
            codec.decode(State, raw[:n])
    for tail in (b"\0", b"\0" * 8, raw):
        with pytest.raises(CodecError):
            codec.decode(State, raw + tail)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused(raw: bytes) -> None:
    for foreign in (raw, b"BBX1" + raw, b"BBX1" + struct.pack("<I", len(raw)) + raw):
        with pytest.raises(CodecError):
            codec.decode(State, foreign)


def test_bytes_of_other_formats_are_refused() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    for foreign in (b"", pickle.dumps(SAMPLE), buffer.getvalue(), b"{}", codec.encode(Other("x"))):
        with pytest.raises(CodecError):
            codec.decode(State, foreign)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_altered_bytes_are_refused_or_give_a_state_never_anything_else(data: st.DataObject) -> None:
    raw = bytearray(codec.encode(SAMPLE))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = codec.decode(State, bytes(raw))
    except CodecError:
        return
    assert type(decoded) is State


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | floats.filter(math.isfinite) | st.text(max_size=3),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "s", "f", "m", "d", "v", "x"]), inside, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(json_values, st.binary(max_size=32))
def test_a_forged_body_is_refused_or_gives_a_state_never_anything_else(body: Any, tail: bytes) -> None:
    for header in (body, ["OneArray(a)", body], ["OneArray(a)", {"d": "OneArray", "v": [body]}]):
        text = json.dumps(header).encode()
        text += b" " * (-(len(text) + 8) % 8)
        try:
            decoded = codec.decode(OneArray, b"BBX1" + struct.pack("<I", len(text)) + text + tail)
        except CodecError:
            continue
        assert type(decoded) is OneArray


@pytest.mark.parametrize(
    "body",
    [
        {"a": "|O", "s": [1]},
        {"a": "<f8", "s": [-1]},
        {"a": "<f8", "s": [2**62, 4]},
        {"a": "<f8", "s": [2**40]},
        {"a": "<f8", "s": [-2, -3]},
        {"a": "<f8", "s": 3},
        {"a": ["<f8"], "s": [1]},
        {"a": "<f8"},
        {"f": "pi"},
        {"f": None},
        {"m": 3},
        {"m": [[1]]},
        {"d": "Inner", "v": [1]},
        {"d": "Popen", "v": ["true"]},
        {"d": "Inner"},
        {"d": "Inner", "v": 5},
        {},
    ],
)
def test_a_forged_value_is_refused(body: Any) -> None:
    text = json.dumps(["OneArray(a)", {"d": "OneArray", "v": [body]}]).encode()
    text += b" " * (-(len(text) + 8) % 8)
    with pytest.raises(CodecError):
        codec.decode(OneArray, b"BBX1" + struct.pack("<I", len(text)) + text + b"\0" * 16)


def test_a_deep_header_is_refused() -> None:
    text = b"[" * 100_000
    with pytest.raises(CodecError):
        codec.decode(OneArray, b"BBX1" + struct.pack("<I", len(text)) + text)


def test_a_state_of_another_version_is_refused_and_says_what_to_do() -> None:
    @dataclass(frozen=True)
    class State:
        step: int
        renamed: float

    with pytest.raises(CodecError, match="replay the log") as caught:
        codec.decode(State, codec.encode(SAMPLE))
    assert "State(step,renamed)" in str(caught.value)


@dataclass(frozen=True)
class Outer:
    inner: Inner


def test_a_part_of_another_version_is_refused_too() -> None:
    @dataclass(frozen=True)
    class Inner:
        mean: np.ndarray
        count: int  # the same number of fields, in another order

    with pytest.raises(CodecError):
        codec.decode(Outer, codec.encode(Outer(Inner(np.zeros(2), 3))))  # type: ignore[arg-type]


def test_only_classes_that_an_annotation_names_are_built() -> None:
    with pytest.raises(CodecError, match="does not allow"):
        codec.decode(Anything, codec.encode(Anything(Inner(1, np.zeros(1)))))


def test_there_is_no_pickle() -> None:
    assert not {"pickle", "marshal", "shelve", "dill"} & set(vars(codec))

    class Trap:
        def __reduce__(self) -> Any:
            raise AssertionError("pickled")

    with pytest.raises(CodecError):
        codec.encode(Anything(Trap()))


def test_the_digest_is_of_values_and_not_of_names() -> None:
    inner = [("text", str), ("numbers", np.ndarray)]

    def state(inner_name: str, fields: list[str], text: str, number: float) -> bytes:
        part = dataclasses.make_dataclass(inner_name, inner)
        whole = dataclasses.make_dataclass("Whole", [(fields[0], int), (fields[1], part), (fields[2], str)])
        return codec.encode(whole(3, part(text, np.array([number])), 'a "d":"x", b'))

    one = state("Part", ["step", "part", "note"], "t", 1.0)
    assert codec.digest(one) == codec.digest(state("Piece", ["steps", "piece", "note"], "t", 1.0))
    assert codec.digest(one) != codec.digest(state("Part", ["step", "part", "note"], "u", 1.0))
    assert codec.digest(one) != codec.digest(state("Part", ["step", "part", "note"], "t", 2.0))
    assert codec.digest(one) != hashlib.sha256(one).hexdigest()


def test_a_recorded_digest_of_all_bytes_is_met_as_it_is() -> None:
    raw = codec.encode(SAMPLE)
    whole = hashlib.sha256(raw).hexdigest()
    assert codec.digest_like(whole, raw) == whole
    assert codec.digest_like(codec.digest(raw), raw) == codec.digest(raw)
    assert codec.digest_like("0" * 64, raw) == codec.digest(raw)
    assert codec.digest_like(None, raw) == codec.digest(raw)


def test_the_digest_is_of_the_bytes() -> None:
    a, b = codec.encode(SAMPLE), codec.encode(dataclasses.replace(SAMPLE, step=4))
    assert codec.digest(a) == codec.digest(codec.encode(codec.decode(State, a)))
    assert codec.digest(a) != codec.digest(b)
    assert len(codec.digest(a)) == 64


def test_the_npz_export_is_read_by_numpy_without_pickle() -> None:
    with np.load(io.BytesIO(codec.to_npz(SAMPLE)), allow_pickle=False) as exported:
        assert set(exported.files) == {field.name for field in dataclasses.fields(State)}
        np.testing.assert_array_equal(exported["mean"], SAMPLE.mean)
        assert json.loads(str(exported["step"])) == 3

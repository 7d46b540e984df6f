"""Encoding dataclasses of arrays as bytes, for states and snapshots.

Layout: magic `BBX1`, header length (uint32, little-endian), a JSON header, then the raw little-endian arrays in header
order, each aligned to 8 bytes. There is no pickle: decoding builds only the expected dataclass and the dataclasses that
its annotations name. Equal values give equal bytes, so a digest of the bytes is a digest of the state.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import math
import operator
import struct
import types
import typing
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from blackbox.errors import CodecError

T = TypeVar("T")

MAGIC = b"BBX1"
_DTYPES = {"<f8", "<f4", "<i8", "<i4", "<u8", "<u4", "<u2", "|u1", "|i1", "|b1"}


def encode(value: Any) -> bytes:
    """The canonical bytes of a dataclass instance.

    Fields may be bool, int, float (NaN and infinities included), str, None, NumPy arrays of numbers or booleans, tuples
    and string-keyed mappings of these, and dataclasses.

    Raises
    ------
    CodecError
        For any other type; the message names the field.
    """
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise CodecError(f"expected a dataclass instance, got {type(value).__name__}")
    arrays: list[NDArray[Any]] = []
    body = _plain(value, arrays, type(value).__name__)
    header = json.dumps([schema_of(type(value)), body], separators=(",", ":"), allow_nan=False).encode()
    parts = [MAGIC, struct.pack("<I", len(header)), header, b" " * (-(len(header) + 8) % 8)]
    for array in arrays:
        raw = array.tobytes()
        parts.append(raw)
        if padding := -len(raw) % 8:
            parts.append(b"\0" * padding)
    return b"".join(parts)


def decode(cls: type[T], raw: bytes) -> T:
    """The inverse of `encode`, for an expected class. Arrays are fresh and writable.

    Raises
    ------
    CodecError
        If the bytes are truncated, in another format, or were written for another schema of the class.
    """
    if raw[:4] != MAGIC:
        raise CodecError(f"expected bytes that start with {MAGIC!r}, got {bytes(raw[:4])!r}")
    try:
        (length,) = struct.unpack_from("<I", raw, 4)
        schema, body = json.loads(raw[8 : 8 + length])
    except (struct.error, TypeError, ValueError, RecursionError) as error:
        raise CodecError(f"the header cannot be read: {error}") from None
    expected = schema_of(typing.cast(Any, cls))
    if schema != expected:
        raise CodecError(
            f"these bytes hold {schema!r}, expected {expected!r}",
            hint="the state was written by another version of this algorithm; replay the log instead",
        )
    reader = _Reader(raw, 8 + length + (-(length + 8) % 8))
    try:
        value: T = _rebuild(cls, body, reader)
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise CodecError(f"the bytes are damaged: {type(error).__name__}: {error}") from None
    if type(value) is not cls:
        raise CodecError(f"these bytes hold a {type(value).__name__}, expected {expected!r}")
    if reader.offset != len(raw):
        raise CodecError(f"{len(raw) - reader.offset} bytes are left over after the last array")
    return value


def digest(raw: bytes) -> str:
    """Hexadecimal sha256 of encoded bytes without the names of classes and fields: renaming a field of a state in a
    later release does not change it."""
    (length,) = struct.unpack_from("<I", raw, 4)
    # Each schema is `"...",`, the first that of the whole; a quote inside a text would be escaped.
    header = raw[8 : 8 + length].split(b'"d":"')
    found = hashlib.sha256(b"".join([part[part.index(b'",') + 2 :] for part in header]))
    found.update(memoryview(raw)[8 + length + (-(length + 8) % 8) :])
    return found.hexdigest()


def digest_like(recorded: str | None, raw: bytes) -> str:
    """The digest of encoded bytes, computed as the recorded one was: early releases included the names."""
    whole = hashlib.sha256(raw).hexdigest()
    return whole if whole == recorded else digest(raw)


@functools.cache
def schema_of(cls: Any) -> str:
    """Class name and field names of a dataclass: changes if a field is added, dropped or renamed."""
    return f"{cls.__name__}({','.join(field.name for field in dataclasses.fields(cls))})"


def to_npz(value: Any) -> bytes:
    """An export of a dataclass of arrays for NumPy, with one entry per field; it is never read back."""
    arrays: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        arrays[field.name] = (
            item if isinstance(item, np.ndarray) else np.array(json.dumps(_plain(item, [], field.name)))
        )
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


@functools.cache
def _field_names(cls: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


def _plain(value: Any, arrays: list[NDArray[Any]], where: str) -> Any:
    """JSON for the header; arrays are appended to `arrays` and replaced by a placeholder."""
    kind = type(value)
    if kind is np.ndarray:
        array = np.ascontiguousarray(value).reshape(value.shape)  # ascontiguousarray makes 0-d arrays 1-d
        name = array.dtype.str
        if name not in _DTYPES:
            if array.dtype.newbyteorder("<").str not in _DTYPES:
                raise CodecError(f"{where}: arrays must hold numbers or booleans, got dtype {array.dtype}")
            array = array.astype(array.dtype.newbyteorder("<"))
            name = array.dtype.str
        arrays.append(array)
        return {"a": name, "s": list(array.shape)}
    if kind is float:
        return value if math.isfinite(value) else {"f": repr(value)}
    if kind is int or kind is str or kind is bool or value is None:
        return value
    if kind is tuple or kind is list:
        return [_plain(item, arrays, where) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item(), arrays, where)
    if dataclasses.is_dataclass(kind):
        return {
            "d": schema_of(kind),
            "v": [_plain(getattr(value, n), arrays, f"{where}.{n}") for n in _field_names(kind)],
        }
    if isinstance(value, dict | types.MappingProxyType):
        return {"m": [[str(k), _plain(v, arrays, f"{where}[{k!r}]")] for k, v in sorted(value.items())]}
    raise CodecError(f"{where}: cannot encode {kind.__name__}")


class _Reader:
    """Reads the arrays behind the header, in order."""

    def __init__(self, raw: bytes, offset: int) -> None:
        self.raw = raw
        self.offset = offset

    def array(self, name: str, shape: list[int]) -> NDArray[Any]:
        if name not in _DTYPES:
            raise CodecError(f"dtype {name!r} is not one of ours")
        dtype = np.dtype(name)
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or self.offset + size > len(self.raw):
            raise CodecError(f"an array of shape {shape} ends after the last byte; the bytes are truncated")
        flat = np.frombuffer(self.raw, dtype, math.prod(shape), self.offset)
        self.offset += size + (-size % 8)
        return flat.reshape(shape).copy()


def _rebuild(hint: Any, body: Any, reader: _Reader) -> Any:
    if isinstance(body, list):
        return tuple(_rebuild(_item_hint(hint), item, reader) for item in body)
    if not isinstance(body, dict):
        return body
    if "a" in body:
        return reader.array(body["a"], body["s"])
    if "f" in body:
        return float(body["f"])
    if "m" in body:
        return {key: _rebuild(_item_hint(hint), item, reader) for key, item in body["m"]}
    cls = _dataclass_of(hint, body["d"])
    hints = _hints(cls)
    names = _field_names(cls)
    if len(names) != len(body["v"]):
        raise CodecError(f"{cls.__name__} has {len(names)} fields, the bytes hold {len(body['v'])}")
    return cls(**{n: _rebuild(hints[n], item, reader) for n, item in zip(names, body["v"], strict=True)})


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _item_hint(hint: Any) -> Any:
    """The annotation of a container's items: tuple[X, ...] -> X, dict[str, X] -> X, unions -> the union itself."""
    arguments = [a for a in typing.get_args(hint) if a is not Ellipsis and a is not type(None)]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return _union([_item_hint(a) for a in arguments])
    return _union(arguments)


def _union(options: list[Any]) -> Any:
    return functools.reduce(operator.or_, options) if options else Any


def _dataclass_of(hint: Any, schema: str) -> Any:
    for option in (hint, *typing.get_args(hint)):
        if dataclasses.is_dataclass(option) and isinstance(option, type) and schema_of(option) == schema:
            return option
    raise CodecError(f"the bytes hold a {schema}, which the annotation {hint!r} does not allow")

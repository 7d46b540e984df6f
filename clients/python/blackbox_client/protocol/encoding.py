"""JSON on its way out: numbers of any library, and where something is that JSON cannot say."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np

from blackbox_client.errors import NON_FINITE_HINT, FieldError, InvalidRequest, NonFiniteValue


def plain(value: Any, pointer: str = "") -> Any:
    """A value as JSON has it: NumPy scalars and arrays become numbers and lists, times become text.

    Parameters
    ----------
    value : nested mappings, sequences, numbers, text; array scalars of any library that has ``.item()``.
    pointer : JSON pointer of the value, for the message.

    Raises
    ------
    NonFiniteValue
        If there is NaN or infinity anywhere; the pointer says where.
    InvalidRequest
        If something has no JSON form.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _non_finite(value, pointer)
        return float(value)
    if isinstance(value, np.datetime64 | np.timedelta64):
        raise _unusable(pointer, "not_json", f"{type(value).__name__} has no JSON form; send seconds, or text")
    if isinstance(value, Real | Decimal) and not isinstance(
        value, Integral
    ):  # fractions, and floats wider than 64 bits
        try:
            return plain(float(value), pointer)
        except OverflowError:
            raise _non_finite(math.copysign(math.inf, value), pointer) from None
    if isinstance(value, Mapping):
        return {_name(key, pointer): plain(entry, f"{pointer}/{_escape(key)}") for key, entry in value.items()}
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise _unusable(pointer, "time_zone", f"a time needs its zone, got {value.isoformat()}")
        return value.isoformat()
    if isinstance(value, np.ndarray) and value.ndim:
        return [plain(entry, f"{pointer}/{i}") for i, entry in enumerate(value.tolist())]
    if isinstance(value, list | tuple):
        return [plain(entry, f"{pointer}/{i}") for i, entry in enumerate(value)]
    item = getattr(value, "item", None)  # NumPy, and whoever looks like it
    if callable(item):
        try:
            return plain(item(), pointer)
        except (TypeError, ValueError) as error:
            if isinstance(error, InvalidRequest):
                raise
    raise _unusable(
        pointer, "not_json", f"{type(value).__name__} has no JSON form; send numbers, text, lists or mappings"
    )


def encode(body: Mapping[str, Any]) -> bytes:
    """The JSON bytes of a request body; see `plain` for what it takes and refuses."""
    text = json.dumps(plain(body), allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    try:
        return text.encode()
    except UnicodeEncodeError as error:  # a lone surrogate, as from decoding with errors="surrogateescape"
        near = text[max(0, error.start - 20) : error.end + 20]
        raise _unusable("", "not_text", f"UTF-8 cannot encode the text near {near!r}") from None


def _non_finite(value: float, pointer: str) -> NonFiniteValue:
    name = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    told = pointer.startswith("/results/") or pointer == "/value"
    parts = pointer.split("/")[1:]
    words = "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in parts).removeprefix(".") or "the value"
    return NonFiniteValue(
        f"{words} is {name}.",
        code="non-finite-value",
        hint=NON_FINITE_HINT if told else "Send finite numbers.",
        errors=[FieldError(pointer, "non_finite")],
    )


def _unusable(pointer: str, code: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid-request", errors=[FieldError(pointer, code, message)])


def _name(key: Any, pointer: str) -> str:
    if not isinstance(key, str):
        raise _unusable(pointer, "not_json", f"names are text in JSON, got {key!r}")
    return str(key)


def _escape(key: Any) -> str:
    return str(key).replace("~", "~0").replace("/", "~1")

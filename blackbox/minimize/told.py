"""What an objective returns: one real number of whatever type, and the told fields beside it."""

from __future__ import annotations

import inspect
import math
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from blackbox.errors import InvalidInput
from blackbox.study.side_data import TOLD

_SIDE = {name: told.read for name, told in TOLD.items() if told.read is not None}
_NO_VALUE = "return float('nan') for a point that cannot be evaluated"


def told_by(returned: Any) -> tuple[float, dict[str, Any]]:
    """The value that an objective returned, and its other told fields.

    Raises
    ------
    InvalidInput
        If it is neither one number nor a mapping with one; the hint says what to return.
    """
    if not isinstance(returned, Mapping):
        return number_of(returned), {}
    if "value" not in returned or set(returned) - {"value", *_SIDE}:
        what = f"got the names {', '.join(map(repr, returned))}"
        names = " and ".join(f'"{name}"' for name in _SIDE)
        raise InvalidInput(f'a mapping returned by the objective has "value", {names}; {what}')
    side = {name: read(returned[name]) for name, read in _SIDE.items() if returned.get(name) is not None}
    return number_of(returned["value"]), side


def number_of(value: Any) -> float:
    """One real number as a float.

    Every type that means one real number is read: integers of any size, NumPy scalars of any precision, `Decimal`,
    `Fraction`, arrays and tensors of one element. A number beyond the range of float64 is an infinity, a masked
    element NaN: no value in either case.

    Raises
    ------
    InvalidInput
        For anything else: truth values, complex numbers, times, text, several numbers.

    Examples
    --------
    >>> from fractions import Fraction
    >>> number_of(Fraction(1, 4)), number_of(-(10**400))
    (0.25, -inf)
    """
    scalar = _element(value)
    unfit = _unfit(scalar)
    if unfit is None:
        try:
            return float(scalar)
        except OverflowError:
            return math.copysign(math.inf, 1 if scalar > 0 else -1)
        except (TypeError, ValueError) as error:  # a signalling NaN, a type that only looks like a number
            unfit = f"float() says: {error}; {_NO_VALUE}"
    raise InvalidInput(f"the objective must return a number, got {type(value).__name__} ({_shown(value)})", hint=unfit)


def _element(value: Any) -> Any:
    """The element of an array or tensor that has one; anything else as it is."""
    if type(value) is float:
        return value
    if isinstance(value, np.ma.MaskedArray) and value.size == 1 and np.ma.getmaskarray(value).all():
        return math.nan
    if isinstance(value, np.ndarray):
        return _element(value.reshape(-1)[0]) if value.size == 1 else value
    if not isinstance(value, np.generic) and callable(item := getattr(value, "item", None)):  # a tensor, a Series
        try:
            return item()
        except Exception:  # it has several elements
            return value
    return value


def _unfit(value: Any) -> str | None:
    """What to return instead of something that is not one real number; None if it may be one."""
    if type(value) in (float, int):
        return None
    if isinstance(value, bool | np.bool_):
        return "return float(...) if the truth value itself is meant"
    if isinstance(value, str | bytes):
        try:
            float(value)
        except ValueError:
            return _NO_VALUE
        return "it is the text of a number: return float(...)"
    if value is None:
        return f"is a `return` missing? {_NO_VALUE}"
    if isinstance(value, complex | np.complexfloating):
        return "complex numbers have no order: return the real part or the modulus"
    if isinstance(value, np.datetime64 | np.timedelta64) or hasattr(value, "total_seconds"):
        return "return a duration as a number, such as seconds"
    if inspect.iscoroutine(value):
        value.close()
        return "the objective is an async function: give a function that runs it, such as with asyncio.run"
    if callable(getattr(value, "__len__", None)) or getattr(value, "shape", ()) != ():
        return 'return one number, such as a sum or a mean; further ones have a place in {"value": ..., "sums": {...}}'
    if not any(hasattr(type(value), name) for name in ("__float__", "__index__")):
        return _NO_VALUE
    return None


def _shown(value: Any) -> str:
    try:
        return reprlib.repr(value)[:80]
    except Exception:
        return "it has no repr"

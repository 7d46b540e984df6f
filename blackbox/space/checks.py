"""Checks of values and descriptions with their error messages, and folding into the bounds by reflection."""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np

from blackbox import records
from blackbox.errors import FieldError, NonFiniteValue
from blackbox.records import Matrix
from blackbox.regions import FEASIBLE, Region

Scalar: TypeAlias = bool | int | float | str | None

MAX_DIM = 10**9
INTEGERS = (int, np.integer)
NUMBERS = (int, float, np.integer, np.floating)
SCALARS = (bool, int, float, str, type(None))
FREE_HINT = "give both low and high, or neither for a free parameter (init and unit set its start and scale)"


class BadValue(Exception):
    """A value that does not fit its parameter; `Space` turns it into an `InvalidSpace` with a pointer.

    Parameters
    ----------
    code, message : those of the `FieldError`.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message


def fold_one(u: float, name: str) -> float:
    """Fold a coordinate into [0, 1]: a triangle wave of period 2, the identity on [0, 1].

    Raises
    ------
    NonFiniteValue
        For NaN or infinity; `name` is the parameter's.
    """
    if not math.isfinite(u):
        raise non_finite(name, u)
    u = math.fmod(abs(u), 2.0)  # exact
    return min(u, 2.0 - u)


def fold_all(u: Matrix) -> Matrix:
    """As `fold_one` for an array of finite numbers; returns the argument itself if nothing needs folding."""
    if u.size and u.min() >= 0.0 and u.max() <= 1.0:
        return u
    wave = np.fmod(np.abs(u), 2.0)
    return np.minimum(wave, 2.0 - wave)


def require_finite(points: Matrix, name: str) -> Matrix:
    """The points themselves; raises `NonFiniteValue` for NaN or infinity."""
    if not np.isfinite(points).all():
        raise non_finite(name, float(points[~np.isfinite(points)][0]))
    return points


def non_finite(name: str, value: float) -> NonFiniteValue:
    """The error for an internal coordinate that is not finite; `name` is the parameter's, or empty."""
    of = f" of parameter {name!r}" if name else ""
    return NonFiniteValue(f"an internal coordinate{of} is {value}, which is no point of the space")


def read_number(value: Any) -> float:
    """A finite float; raises `BadValue` for anything that is no number (a bool is none) or not finite."""
    if isinstance(value, bool) or not isinstance(value, NUMBERS):
        raise BadValue("wrong_type", f"must be a number, got {described(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BadValue("non_finite", f"must be finite, got {described(value)}")
    return number


def check_unit(value: float, unit: float) -> None:
    """Raise `BadValue` if value / unit overflows."""
    if not abs(value) / unit <= sys.float_info.max:
        raise BadValue("out_of_range", f"overflows as {value!r} / unit {unit!r}")


def check_inside(region: Region, numbers: records.Vector) -> records.Vector:
    """(d,) the numbers themselves; raises `BadValue` if they are outside their region by more than `FEASIBLE`."""
    violation = region.violation(numbers)
    if not violation <= FEASIBLE:
        kind = region.to_json()["type"]
        raise BadValue(
            "infeasible", f"must lie in its {kind} region, is outside by {violation:.2g} of the region's size"
        )
    return numbers


def largest_coordinate(unit: float) -> float:
    """The largest coordinate whose decoded value is still finite."""
    return math.nextafter(sys.float_info.max / unit, 0.0) if unit > 1.0 else sys.float_info.max


def described(value: Any) -> str:
    """A value and its type for an error message, shortened."""
    try:
        return f"{reprlib.repr(value)} ({type(value).__name__})"
    except ValueError:  # Python refuses to print integers of more than 4300 digits
        return f"a huge {type(value).__name__}"


def out_of_range(low: float, high: float, value: float) -> BadValue:
    """The error for a value outside [low, high]."""
    return BadValue("out_of_range", f"must be between {low!r} and {high!r}, got {described(value)}")


def json_key(value: Scalar) -> tuple[str, Scalar]:
    """Equal keys are equal JSON: Python finds True == 1 == 1.0, JSON only the last two."""
    if value is None or isinstance(value, bool | str):
        return type(value).__name__, value
    return "number", value


def low_not_below_high(low: float, high: float) -> FieldError:
    """The error for bounds in the wrong order."""
    return FieldError("/low", "low_not_below_high", f"must be below high, got low={low!r}, high={high!r}")


def bound_errors(low: float | None, high: float | None, unit: float) -> Iterable[FieldError]:
    """Errors of the bounds and the unit of a `Float` or `Vector`."""
    if low is None and high is None:
        return
    if low is None or high is None:
        given, lacking = ("high", "low") if low is None else ("low", "high")
        yield FieldError(f"/{lacking}", "one_sided", f"is missing while {given} is given: {FREE_HINT}")
    elif low >= high:
        yield low_not_below_high(low, high)
    elif not math.isfinite(high - low):
        yield FieldError("/high", "too_wide", "high - low overflows; leave both out for a free parameter")
    if unit != 1.0:
        yield FieldError("/unit", "unit_bounded", "only means something without low and high; leave it out")


def init_errors(read: Callable[[], object]) -> Iterable[FieldError]:
    """The error of an `init` that cannot be read, where `read` reads it."""
    try:
        read()
    except BadValue as error:
        yield FieldError("/init", error.code, error.message)

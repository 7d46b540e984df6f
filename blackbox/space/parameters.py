"""The parameter types, one class each: their descriptions, and how their values are read, encoded and decoded."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import numpy as np
from pydantic import Field

from blackbox import records
from blackbox.errors import FieldError, InvalidInput, InvalidRegion, InvalidSpace, nearest
from blackbox.regions import AnyRegion, Region
from blackbox.space.checks import (
    INTEGERS,
    MAX_DIM,
    SCALARS,
    BadValue,
    Scalar,
    bound_errors,
    check_inside,
    check_unit,
    described,
    fold_all,
    fold_one,
    init_errors,
    json_key,
    largest_coordinate,
    low_not_below_high,
    non_finite,
    out_of_range,
    read_number,
    require_finite,
)
from blackbox.validation import NOT_TEXT, Described, invalid, is_text, pointer

Decoder: TypeAlias = Callable[[list[float], records.Vector], Any]
"""From (scalar coordinates of the point as a list, the whole point) to the value of one parameter."""
MAX_INTEGER = 2**53  # what a JSON number carries exactly
MAX_BINS = 2**50  # beyond, the centre of a bin is no longer a float64 safely inside it
MAX_LOG_INTEGER = 2**40  # beyond, the last bin on the log scale falls below the resolution of float64 near 1
MAX_REGION_DIM = 10**6  # methods on regions are dense, and membership is checked coordinate by coordinate


class _Parameter(Described):
    """Base of the four parameter types."""

    error_class: ClassVar[type[InvalidInput]] = InvalidSpace
    kind: ClassVar[str]

    @property
    def size(self) -> int:
        """Number of internal coordinates."""
        return 1

    @property
    def is_bounded(self) -> bool:
        """Whether its internal coordinates lie in [0, 1] (otherwise in R)."""
        return True

    def read(self, value: Any) -> Any:
        """The value in its canonical Python type.

        Raises
        ------
        BadValue
            If the value does not fit the parameter.
        """
        raise NotImplementedError

    def encode(self, value: Any) -> Any:
        """Internal coordinates of a value that `read` returned: a float or an array (size,)."""
        raise NotImplementedError

    def start(self) -> Any:
        """Internal coordinates to start from: the encoded `init`, else the middle of [0, 1], or 0."""
        init: Any = getattr(self, "init", None)
        if init is None:
            return 0.5 if self.is_bounded else 0.0
        return self.encode(self.read(init))

    def decoder(self, name: str, at: int, scalar_at: int) -> Decoder:
        """A function that decodes this parameter.

        Parameters
        ----------
        name : of the parameter, for errors.
        at, scalar_at : index of its first coordinate in the point, and among the scalar coordinates.
        """
        raise NotImplementedError


class Float(_Parameter):
    """A real number: between bounds, or free.

    >>> from blackbox.space import Space
    >>> Space({"lr": Float(low=1e-4, high=1e-2, scale="log")}).decode([0.5])["lr"]
    0.001
    """

    kind: ClassVar[str] = "float"
    type: Literal["float"] = "float"
    low: float | None = None
    """Lower bound, attainable. None (with high=None): free."""
    high: float | None = None
    """Upper bound, attainable."""
    scale: Literal["linear", "log"] = "linear"
    """log: interpolate geometrically, for parameters of which ratios matter (low > 0)."""
    unit: float = Field(1.0, gt=0)
    """Free parameters only: a change of this size counts as one internally."""
    init: float | None = None
    """Initial value. None: the middle (of the logarithm for scale=log); 0 if free."""

    def errors(self) -> Iterable[FieldError]:
        yield from bound_errors(self.low, self.high, self.unit)
        if self.scale == "log" and self.low is None:
            yield FieldError("/scale", "log_unbounded", "a log scale needs low and high")
        elif self.scale == "log" and self.low is not None and self.low <= 0:
            yield FieldError("/low", "log_not_positive", f"must be above 0 on a log scale, got {self.low!r}")
        elif self.scale == "log" and self.low and self.high and _same_logarithm(self.low, self.high):
            yield FieldError("/high", "too_close", "low and high are too close for a log scale; use linear")
        if self.init is not None:
            yield from init_errors(lambda: self.read(self.init))

    @property
    def is_bounded(self) -> bool:
        return self.low is not None

    def read(self, value: Any) -> float:
        number = read_number(value)
        if self.low is None or self.high is None:
            check_unit(number, self.unit)
        elif not self.low <= number <= self.high:
            raise out_of_range(self.low, self.high, number)
        return number

    def encode(self, value: float) -> float:
        low, high = self.low, self.high
        if low is None or high is None:
            return value / self.unit
        if self.scale == "log":
            return min(max((math.log(value) - math.log(low)) / (math.log(high) - math.log(low)), 0.0), 1.0)
        return (value - low) / (high - low)

    def decoder(self, name: str, at: int, scalar_at: int) -> Decoder:
        low, high, unit = self.low, self.high, self.unit
        if low is None or high is None:
            limit = largest_coordinate(unit)

            def free(scalars: list[float], _: records.Vector) -> float:
                x = scalars[scalar_at]
                if not -limit <= x <= limit:
                    if not math.isfinite(x):
                        raise non_finite(name, x)
                    x = math.copysign(limit, x)
                return x * unit

            return free

        # Both interpolations give the bounds exactly at 0 and 1; in between rounding may leave them, hence the clip.
        def linear(scalars: list[float], _: records.Vector) -> float:
            u = scalars[scalar_at]
            if not 0.0 <= u <= 1.0:
                u = fold_one(u, name)
            x = low * (1.0 - u) + high * u
            return low if x < low else high if x > high else x

        def log(scalars: list[float], _: records.Vector) -> float:
            u = scalars[scalar_at]
            if not 0.0 <= u <= 1.0:
                u = fold_one(u, name)
            x = low ** (1.0 - u) * high**u
            return low if x < low else high if x > high else x

        return log if self.scale == "log" else linear


def _same_logarithm(low: float, high: float) -> bool:
    return 0.0 < low < high and math.log(low) == math.log(high)


class Int(_Parameter):
    """A whole number from low to high, both included."""

    kind: ClassVar[str] = "int"
    type: Literal["int"] = "int"
    low: int = Field(ge=-MAX_INTEGER, le=MAX_INTEGER)
    """Smallest value."""
    high: int = Field(ge=-MAX_INTEGER, le=MAX_INTEGER)
    """Largest value."""
    scale: Literal["linear", "log"] = "linear"
    """log: interpolate geometrically, for parameters of which ratios matter (low >= 1)."""
    init: int | None = None
    """Initial value. None: the middle."""

    def errors(self) -> Iterable[FieldError]:
        if self.low >= self.high:
            yield low_not_below_high(self.low, self.high)
        elif self.high - self.low >= MAX_BINS:
            yield FieldError("/high", "too_wide", f"at most {MAX_BINS} values can be told apart; use a float")
        if self.scale == "log" and self.low < 1:
            yield FieldError("/low", "log_not_positive", f"must be at least 1 on a log scale, got {self.low}")
        elif self.scale == "log" and self.high > MAX_LOG_INTEGER:
            yield FieldError("/high", "too_wide", f"must be at most {MAX_LOG_INTEGER} on a log scale; use a float")
        if self.init is not None:
            yield from init_errors(lambda: self.read(self.init))

    def read(self, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, INTEGERS):
            raise BadValue("wrong_type", f"must be an integer, got {described(value)}")
        number = int(value)
        if not self.low <= number <= self.high:
            raise out_of_range(self.low, self.high, number)
        return number

    def encode(self, value: int) -> float:
        if self.scale == "log":
            low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
            return (0.5 * (math.log(value - 0.5) + math.log(value + 0.5)) - low) / (high - low)
        return (value - self.low + 0.5) / (self.high - self.low + 1)

    def decoder(self, name: str, at: int, scalar_at: int) -> Decoder:
        low, high = self.low, self.high
        bins, last = high - low + 1, high - low
        bottom, top = low - 0.5, high + 0.5

        def linear(scalars: list[float], _: records.Vector) -> int:
            u = scalars[scalar_at]
            if not 0.0 <= u <= 1.0:
                u = fold_one(u, name)
            k = int(u * bins)
            return low + (k if k < last else last)

        # The bin of i is [i - 1/2, i + 1/2] on the log scale, so that every integer keeps a share of [0, 1].
        def log(scalars: list[float], _: records.Vector) -> int:
            u = scalars[scalar_at]
            if not 0.0 <= u <= 1.0:
                u = fold_one(u, name)
            k = int(bottom ** (1.0 - u) * top**u + 0.5)
            return low if k < low else high if k > high else k

        return log if self.scale == "log" else linear


class Categorical(_Parameter):
    """One of a few JSON scalars, without order.

    Choices are told apart as JSON tells them apart: 1 and true differ, 1 and 1.0 do not.
    """

    kind: ClassVar[str] = "categorical"
    type: Literal["categorical"] = "categorical"
    choices: tuple[Scalar, ...] = Field(min_length=2)
    """The values, each once."""
    init: Scalar = None
    """Initial value. None: all choices alike."""

    def errors(self) -> Iterable[FieldError]:
        seen: dict[tuple[str, Scalar], int] = {}
        for i, choice in enumerate(self.choices):
            if isinstance(choice, str) and not is_text(choice):
                yield FieldError(pointer("choices", i), "not_text", NOT_TEXT.format(choice))
            first = seen.setdefault(json_key(choice), i)
            if first != i:
                yield FieldError(pointer("choices", i), "duplicate", f"{choice!r} is the same as choice {first}")
        if self.init is not None:
            yield from init_errors(lambda: self.read(self.init))

    @cached_property
    def _index(self) -> dict[tuple[str, Scalar], int]:
        return {json_key(choice): i for i, choice in enumerate(self.choices)}

    @property
    def size(self) -> int:
        return 1 if len(self.choices) == 2 else len(self.choices)

    def read(self, value: Any) -> int:
        """The index of the choice."""
        if isinstance(value, np.generic):
            value = value.item()
        index = self._index.get(json_key(value)) if isinstance(value, SCALARS) else None
        if index is None:
            hint = nearest(value, [c for c in self.choices if isinstance(c, str)]) if isinstance(value, str) else ""
            text = f"{value!r} ({hint})" if hint.startswith("did") else described(value)
            raise BadValue("not_a_choice", f"must be one of {reprlib.repr(list(self.choices))}, got {text}")
        return index

    def encode(self, value: int) -> float | records.Vector:
        if self.size == 1:
            return 0.25 + 0.5 * value
        one_hot = np.zeros(self.size)
        one_hot[value] = 1.0
        return one_hot

    def decoder(self, name: str, at: int, scalar_at: int) -> Decoder:
        choices, stop = self.choices, scalar_at + self.size

        def one_of_two(scalars: list[float], _: records.Vector) -> Scalar:
            u = scalars[scalar_at]
            if not 0.0 <= u <= 1.0:
                u = fold_one(u, name)
            return choices[u >= 0.5]

        def largest(scalars: list[float], _: records.Vector) -> Scalar:
            us = [u if 0.0 <= u <= 1.0 else fold_one(u, name) for u in scalars[scalar_at:stop]]
            return choices[us.index(max(us))]

        return one_of_two if self.size == 1 else largest


class Vector(_Parameter):
    """`dim` real numbers under one name: all within the same bounds, together in a region, or free.

    Decodes to a float64 array.

    >>> from blackbox.space import Space
    >>> space = Space({"shares": Vector(dim=3, region={"type": "simplex"})})
    >>> space.decode([0.5, 0.5, 0.0])["shares"]
    array([0.5, 0.5, 0. ])
    """

    kind: ClassVar[str] = "float"
    type: Literal["vector"] = "vector"
    dim: int = Field(gt=0, le=MAX_DIM)
    """Number of coordinates."""
    low: float | None = None
    """Lower bound of each. None (with high=None): free."""
    high: float | None = None
    """Upper bound of each."""
    unit: float = Field(1.0, gt=0)
    """Free vectors only: a change of this size counts as one internally."""
    region: AnyRegion | None = None
    """The convex set of feasible vectors, such as {"type": "simplex"}. None: only low and high constrain it."""
    init: float | tuple[float, ...] | None = None
    """Initial value: one number for all, or `dim` of them. None: the middle; 0 if free; well inside the region."""
    dtype: Literal["f32", "f64"] = "f64"
    """Precision in which the numbers are sent to evaluators as bytes."""

    def errors(self) -> Iterable[FieldError]:
        yield from bound_errors(self.low, self.high, self.unit)
        if self.region is not None:
            unfit = list(self._region_errors(self.region))
            yield from unfit
            if unfit:
                return
        if isinstance(self.init, tuple) and len(self.init) != self.dim:
            yield FieldError("/init", "wrong_length", f"must be one number or {self.dim}, got {len(self.init)}")
        elif self.init is not None:
            yield from init_errors(lambda: self._within(self._init()))

    def _region_errors(self, region: Region) -> Iterable[FieldError]:
        if self.low is not None or self.high is not None or self.unit != 1.0:
            message = "says where the vector lives: leave out low, high and unit, or the region"
            yield FieldError("/region", "region_and_bounds", message)
        if self.dim > MAX_REGION_DIM:
            yield FieldError("/dim", "too_large", f"at most {MAX_REGION_DIM} with a region, got {self.dim}")
            return
        try:
            region.check_dim(self.dim)
        except InvalidRegion as error:
            yield FieldError("/region", "wrong_dim", error.detail)

    def _init(self) -> records.Vector:
        """(dim,) `init` as numbers; (1,) if one number serves all coordinates and there is no region."""
        numbers = np.array(self.init, ndmin=1, dtype=np.float64)
        return numbers if self.region is None else np.broadcast_to(numbers, (self.dim,))

    @property
    def size(self) -> int:
        return self.dim

    @property
    def is_bounded(self) -> bool:
        return self.low is not None

    def start(self) -> Any:
        if self.init is not None:
            return self.encode(self._init())
        return super().start() if self.region is None else self.region.interior(self.dim)[0]

    def read(self, value: Any) -> records.Vector:
        if isinstance(value, list | tuple):
            odd = set(map(type, value)) - {int, float}  # one pass in C; a bool is not a number here
            for i, item in enumerate(value) if odd else ():
                try:
                    read_number(item)
                except BadValue as error:
                    raise BadValue(error.code, f"number {i} {error.message}") from None
        elif not (isinstance(value, np.ndarray) and value.dtype.kind in "iuf"):
            raise BadValue("wrong_type", f"must be a list of {self.dim} numbers, got {described(value)}")
        try:
            numbers = np.asarray(value, dtype=np.float64)
        except OverflowError:
            raise BadValue("non_finite", "must be finite") from None
        if numbers.shape != (self.dim,):
            raise BadValue("wrong_length", f"must be {self.dim} numbers, got shape {numbers.shape}")
        return self._within(numbers)

    def _within(self, numbers: records.Vector) -> records.Vector:
        finite = np.isfinite(numbers)
        if not finite.all():
            i = int(np.argmin(finite))
            raise BadValue("non_finite", f"number {i} must be finite, got {float(numbers[i])!r}")
        if self.region is not None:
            return check_inside(self.region, numbers)
        if self.low is None or self.high is None:
            check_unit(float(np.abs(numbers).max()), self.unit)
            return numbers
        fits = (numbers >= self.low) & (numbers <= self.high)
        if not fits.all():
            i = int(np.argmin(fits))
            error = out_of_range(self.low, self.high, float(numbers[i]))
            raise BadValue(error.code, f"number {i} {error.message}")
        return numbers

    def encode(self, value: records.Vector) -> records.Vector:
        if self.low is None or self.high is None:
            return value / self.unit
        return (value - self.low) / (self.high - self.low)

    def decoder(self, name: str, at: int, scalar_at: int) -> Decoder:
        low, high, unit, region, stop = self.low, self.high, self.unit, self.region, at + self.dim
        limit = largest_coordinate(unit)

        if region is not None:
            return _inside(region, name, at, stop)

        def free(_: list[float], point: records.Vector) -> records.Vector:
            x = require_finite(point[at:stop], name)
            return x.copy() if unit == 1.0 else np.clip(x, -limit, limit) * unit

        if low is None or high is None:
            return free

        def bounded(_: list[float], point: records.Vector) -> records.Vector:
            u = fold_all(require_finite(point[at:stop], name))
            return np.clip(low * (1.0 - u) + high * u, low, high)

        return bounded


def _inside(region: Region, name: str, start: int, stop: int) -> Decoder:
    def decode(_: list[float], point: records.Vector) -> records.Vector:
        x = require_finite(point[start:stop], name).copy()
        try:
            return check_inside(region, x)
        except BadValue as error:
            raise invalid(InvalidSpace, [FieldError(pointer("params", name), error.code, error.message)]) from None

    return decode


Parameter: TypeAlias = Annotated[Float | Int | Categorical | Vector, Field(discriminator="type")]
"""Any parameter, discriminated by `type`: the annotation for models that hold one."""

TYPES: dict[str, type[Float | Int | Categorical | Vector]] = {
    "float": Float,
    "int": Int,
    "categorical": Categorical,
    "vector": Vector,
}

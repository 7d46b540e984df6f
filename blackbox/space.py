"""The search space: what people write, and how parameters become the internal vector of the algorithms.

=================  =====================  ==============================================================
parameter          internal coordinates   decoded as
=================  =====================  ==============================================================
bounded real       1 in [0, 1]            linear or geometric interpolation between the bounds
free real          1 in R                 coordinate * unit
integer            1 in [0, 1]            one of K equally wide bins (equally wide in the log for scale=log)
choice of 2        1 in [0, 1]            one of 2 bins
choice of K > 2    K in [0, 1]            argmax, ties to the earlier choice
vector             dim of its kind        like a real, without scale
vector in a region dim                    the coordinates are the values
=================  =====================  ==============================================================

Algorithms search all of R^d. A coordinate outside [0, 1] of a bounded parameter is folded back by reflection (a
triangle wave of period 2, identity inside), so that every finite vector decodes, and algorithms keep the unfolded one.

A vector may live in a region, a convex set of `blackbox.regions`. Then nothing is scaled, folded or repaired: a method
that treats regions only asks feasible points, and `decode` and `encode` refuse others (beyond `regions.FEASIBLE`, the
room for round-off). Such a space is one convex set: its other parameters must be bounded, and count as the unit box.
"""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import accumulate
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from blackbox import records
from blackbox.errors import FieldError, InvalidInput, InvalidRegion, InvalidSpace, NonFiniteValue, nearest
from blackbox.records import JSON, Matrix
from blackbox.regions import FEASIBLE, AnyRegion, Box, Part, Product, Region
from blackbox.validation import Described, from_tagged_json, invalid, pointer

__all__ = ["Choice", "Integer", "Parameter", "Real", "Space", "Vector"]

Decoder: TypeAlias = Callable[[list[float], records.Vector], Any]
"""(scalar coordinates of the point as a list, the whole point) -> value of one parameter."""
Scalar: TypeAlias = bool | int | float | str | None

MAX_DIM = 10**9
MAX_INTEGER = 2**53  # what a JSON number carries exactly
MAX_BINS = 2**50  # beyond, the centre of a bin is no longer a float64 safely inside it
MAX_LOG_INTEGER = 2**40  # beyond, the last bin on the log scale falls below the resolution of float64 near 1
_INTEGERS = (int, np.integer)
_NUMBERS = (int, float, np.integer, np.floating)
_SCALARS = (bool, int, float, str, type(None))
MAX_REGION_DIM = 10**6  # methods on regions are dense, and membership is checked coordinate by coordinate
FREE_HINT = "give both low and high, or neither for a free parameter (init and unit set its start and scale)"


class _Fault(Exception):
    """Why a value does not fit a parameter."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message


# -- parameters --------------------------------------------------------------------------------------------------------


class _Parameter(Described):
    """Base of the four parameter types."""

    error_class: ClassVar[type[InvalidInput]] = InvalidSpace
    kind: ClassVar[str]

    @property
    def size(self) -> int:
        """How many internal coordinates the parameter takes."""
        return 1

    @property
    def is_bounded(self) -> bool:
        """Whether its internal coordinates live in [0, 1], else in R."""
        return True

    def read(self, value: Any) -> Any:
        """The value in its canonical Python type; raises `_Fault`."""
        raise NotImplementedError

    def encode(self, value: Any) -> Any:
        """Internal coordinates of a value that was read: a float or an array (size,)."""
        raise NotImplementedError

    def start(self) -> Any:
        """Internal coordinates to start from: the encoded `init`, else the middle of [0, 1], or 0."""
        init: Any = getattr(self, "init", None)
        if init is None:
            return 0.5 if self.is_bounded else 0.0
        return self.encode(self.read(init))

    def decoder(self, name: str, at: int, scalar_at: int) -> Decoder:
        """A function that decodes this parameter, which starts at coordinate `at`, or `scalar_at` of the scalars."""
        raise NotImplementedError


class Real(_Parameter):
    """A real number: between bounds, or free.

    >>> Space({"lr": Real(low=1e-4, high=1e-2, scale="log")}).decode([0.5])["lr"]
    0.001
    """

    kind: ClassVar[str] = "real"
    type: Literal["float"] = "float"
    low: float | None = None
    """Lower bound, attainable. None (with high=None): free."""
    high: float | None = None
    """Upper bound, attainable."""
    scale: Literal["linear", "log"] = "linear"
    """log: ratios matter, not differences (low > 0)."""
    unit: float = Field(1.0, gt=0)
    """Free parameters only: a change of this size counts as one internally."""
    init: float | None = None
    """Where to start. None: the middle (of the logarithm for scale=log); 0 if free."""

    def faults(self) -> Iterable[FieldError]:
        yield from _bound_faults(self.low, self.high, self.unit)
        if self.scale == "log" and self.low is None:
            yield FieldError("/scale", "log_unbounded", "a log scale needs low and high")
        elif self.scale == "log" and self.low is not None and self.low <= 0:
            yield FieldError("/low", "log_not_positive", f"must be above 0 on a log scale, got {self.low!r}")
        elif self.scale == "log" and self.low and self.high and math.log(self.low) == math.log(self.high):
            yield FieldError("/high", "too_close", "low and high are too close for a log scale; use linear")
        if self.init is not None:
            yield from _init_fault(lambda: self.read(self.init))

    @property
    def is_bounded(self) -> bool:
        return self.low is not None

    def read(self, value: Any) -> float:
        number = _real(value)
        if self.low is None or self.high is None:
            _check_unit(number, self.unit)
        elif not self.low <= number <= self.high:
            raise _out_of_range(self.low, self.high, number)
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
            limit = _largest(unit)

            def free(scalars: list[float], _: records.Vector) -> float:
                x = scalars[scalar_at]
                if not -limit <= x <= limit:
                    if not math.isfinite(x):
                        raise _non_finite(name, x)
                    x = math.copysign(limit, x)
                return x * unit

            return free

        # Both interpolations give the bounds exactly at 0 and 1; in between rounding may leave them, hence the clip.
        def linear(scalars: list[float], _: records.Vector) -> float:
            u = scalars[scalar_at]
            if not 0.0 <= u <= 1.0:
                u = _fold_one(u, name)
            x = low * (1.0 - u) + high * u
            return low if x < low else high if x > high else x

        def log(scalars: list[float], _: records.Vector) -> float:
            u = scalars[scalar_at]
            if not 0.0 <= u <= 1.0:
                u = _fold_one(u, name)
            x = low ** (1.0 - u) * high**u
            return low if x < low else high if x > high else x

        return log if self.scale == "log" else linear


class Integer(_Parameter):
    """A whole number from low to high, both included."""

    kind: ClassVar[str] = "integer"
    type: Literal["int"] = "int"
    low: int = Field(ge=-MAX_INTEGER, le=MAX_INTEGER)
    """Smallest value."""
    high: int = Field(ge=-MAX_INTEGER, le=MAX_INTEGER)
    """Largest value."""
    scale: Literal["linear", "log"] = "linear"
    """log: ratios matter, not differences (low >= 1)."""
    init: int | None = None
    """Where to start. None: the middle."""

    def faults(self) -> Iterable[FieldError]:
        if self.low >= self.high:
            yield _low_not_below_high(self.low, self.high)
        elif self.high - self.low >= MAX_BINS:
            yield FieldError("/high", "too_wide", f"at most {MAX_BINS} values can be told apart; use a float")
        if self.scale == "log" and self.low < 1:
            yield FieldError("/low", "log_not_positive", f"must be at least 1 on a log scale, got {self.low}")
        elif self.scale == "log" and self.high > MAX_LOG_INTEGER:
            yield FieldError("/high", "too_wide", f"must be at most {MAX_LOG_INTEGER} on a log scale; use a float")
        if self.init is not None:
            yield from _init_fault(lambda: self.read(self.init))

    def read(self, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, _INTEGERS):
            raise _Fault("wrong_type", f"must be an integer, got {_shown(value)}")
        number = int(value)
        if not self.low <= number <= self.high:
            raise _out_of_range(self.low, self.high, number)
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
                u = _fold_one(u, name)
            k = int(u * bins)
            return low + (k if k < last else last)

        # The bin of i is [i - 1/2, i + 1/2] on the log scale, so that every integer keeps a share of [0, 1].
        def log(scalars: list[float], _: records.Vector) -> int:
            u = scalars[scalar_at]
            if not 0.0 <= u <= 1.0:
                u = _fold_one(u, name)
            k = int(bottom ** (1.0 - u) * top**u + 0.5)
            return low if k < low else high if k > high else k

        return log if self.scale == "log" else linear


class Choice(_Parameter):
    """One of a few JSON scalars, without order.

    Choices are told apart as JSON tells them apart: 1 and true differ, 1 and 1.0 do not.
    """

    kind: ClassVar[str] = "choice"
    type: Literal["categorical"] = "categorical"
    choices: tuple[Scalar, ...] = Field(min_length=2)
    """The values, each once."""
    init: Scalar = None
    """Where to start. None: all choices alike."""

    def faults(self) -> Iterable[FieldError]:
        seen: dict[tuple[str, Scalar], int] = {}
        for i, choice in enumerate(self.choices):
            first = seen.setdefault(_json_key(choice), i)
            if first != i:
                yield FieldError(pointer("choices", i), "duplicate", f"{choice!r} is the same as choice {first}")
        if self.init is not None:
            yield from _init_fault(lambda: self.read(self.init))

    @cached_property
    def _index(self) -> dict[tuple[str, Scalar], int]:
        return {_json_key(choice): i for i, choice in enumerate(self.choices)}

    @property
    def size(self) -> int:
        return 1 if len(self.choices) == 2 else len(self.choices)

    def read(self, value: Any) -> int:
        """The index of the choice."""
        if isinstance(value, np.generic):
            value = value.item()
        index = self._index.get(_json_key(value)) if isinstance(value, _SCALARS) else None
        if index is None:
            hint = nearest(value, [c for c in self.choices if isinstance(c, str)]) if isinstance(value, str) else ""
            shown = f"{value!r} ({hint})" if hint.startswith("did") else _shown(value)
            raise _Fault("not_a_choice", f"must be one of {reprlib.repr(list(self.choices))}, got {shown}")
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
                u = _fold_one(u, name)
            return choices[u >= 0.5]

        def largest(scalars: list[float], _: records.Vector) -> Scalar:
            us = [u if 0.0 <= u <= 1.0 else _fold_one(u, name) for u in scalars[scalar_at:stop]]
            return choices[us.index(max(us))]

        return one_of_two if self.size == 1 else largest


class Vector(_Parameter):
    """`dim` real numbers under one name: all within the same bounds, together in a region, or free.

    Decodes to a float64 array.

    >>> space = Space({"shares": Vector(dim=3, region={"type": "simplex"})})
    >>> space.decode([0.5, 0.5, 0.0])["shares"]
    array([0.5, 0.5, 0. ])
    """

    kind: ClassVar[str] = "real"
    type: Literal["vector"] = "vector"
    dim: int = Field(gt=0, le=MAX_DIM)
    """How many numbers."""
    low: float | None = None
    """Lower bound of each. None (with high=None): free."""
    high: float | None = None
    """Upper bound of each."""
    unit: float = Field(1.0, gt=0)
    """Free vectors only: a change of this size counts as one internally."""
    region: AnyRegion | None = None
    """The convex set they live in, such as {"type": "simplex"}. None: low and high say all there is."""
    init: float | tuple[float, ...] | None = None
    """Where to start: one number for all, or `dim` of them. None: the middle; 0 if free; well inside the region."""
    dtype: Literal["f32", "f64"] = "f64"
    """Precision in which the numbers travel to evaluators as bytes."""

    def faults(self) -> Iterable[FieldError]:
        yield from _bound_faults(self.low, self.high, self.unit)
        if self.region is not None:
            unfit = list(self._region_faults(self.region))
            yield from unfit
            if unfit:
                return
        if isinstance(self.init, tuple) and len(self.init) != self.dim:
            yield FieldError("/init", "wrong_length", f"must be one number or {self.dim}, got {len(self.init)}")
        elif self.init is not None:
            yield from _init_fault(lambda: self._within(self._init()))

    def _region_faults(self, region: Region) -> Iterable[FieldError]:
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
        """`init` as numbers; without a region one serves all, without `dim` copies of it."""
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
                    _real(item)
                except _Fault as fault:
                    raise _Fault(fault.code, f"number {i} {fault.message}") from None
        elif not (isinstance(value, np.ndarray) and value.dtype.kind in "iuf"):
            raise _Fault("wrong_type", f"must be a list of {self.dim} numbers, got {_shown(value)}")
        try:
            numbers = np.asarray(value, dtype=np.float64)
        except OverflowError:
            raise _Fault("non_finite", "must be finite") from None
        if numbers.shape != (self.dim,):
            raise _Fault("wrong_length", f"must be {self.dim} numbers, got shape {numbers.shape}")
        return self._within(numbers)

    def _within(self, numbers: records.Vector) -> records.Vector:
        finite = np.isfinite(numbers)
        if not finite.all():
            i = int(np.argmin(finite))
            raise _Fault("non_finite", f"number {i} must be finite, got {float(numbers[i])!r}")
        if self.region is not None:
            return _check_inside(self.region, numbers)
        if self.low is None or self.high is None:
            _check_unit(float(np.abs(numbers).max()), self.unit)
            return numbers
        fits = (numbers >= self.low) & (numbers <= self.high)
        if not fits.all():
            i = int(np.argmin(fits))
            fault = _out_of_range(self.low, self.high, float(numbers[i]))
            raise _Fault(fault.code, f"number {i} {fault.message}")
        return numbers

    def encode(self, value: records.Vector) -> records.Vector:
        if self.low is None or self.high is None:
            return value / self.unit
        return (value - self.low) / (self.high - self.low)

    def decoder(self, name: str, at: int, scalar_at: int) -> Decoder:
        low, high, unit, region, stop = self.low, self.high, self.unit, self.region, at + self.dim
        limit = _largest(unit)

        if region is not None:
            return _inside(region, name, at, stop)

        def free(_: list[float], point: records.Vector) -> records.Vector:
            x = _all_finite(point[at:stop], name)
            return x.copy() if unit == 1.0 else np.clip(x, -limit, limit) * unit

        if low is None or high is None:
            return free

        def bounded(_: list[float], point: records.Vector) -> records.Vector:
            u = _fold_all(_all_finite(point[at:stop], name))
            return np.clip(low * (1.0 - u) + high * u, low, high)

        return bounded


def _inside(region: Region, name: str, start: int, stop: int) -> Decoder:
    def decode(_: list[float], point: records.Vector) -> records.Vector:
        x = _all_finite(point[start:stop], name).copy()
        try:
            return _check_inside(region, x)
        except _Fault as fault:
            raise invalid(InvalidSpace, [FieldError(pointer("params", name), fault.code, fault.message)]) from None

    return decode


Parameter: TypeAlias = Annotated[Real | Integer | Choice | Vector, Field(discriminator="type")]
"""Every parameter, told apart by `type`: what a wire model that holds one declares."""

_TYPES: dict[str, type[Real | Integer | Choice | Vector]] = {
    "float": Real,
    "int": Integer,
    "categorical": Choice,
    "vector": Vector,
}
T = TypeVar("T", np.float64, np.bool_)


# -- the space ---------------------------------------------------------------------------------------------------------


class Space(Mapping[str, Parameter]):
    """An ordered, immutable collection of named parameters, and the map between them and R^dim.

    Parameters
    ----------
    parameters : name -> `Real`, `Integer`, `Choice` or `Vector`. The order lays out the internal vector.

    Raises
    ------
    InvalidSpace
        If empty, or if a name is empty or a parameter is none of these.

    Examples
    --------
    >>> space = Space({"x": Real(low=-5, high=5), "act": Choice(choices=["relu", "gelu"])})
    >>> space.encode({"x": 0.0, "act": "gelu"})
    array([0.5 , 0.75])
    >>> space.decode([1.25, 0.0])
    {'x': 2.5, 'act': 'relu'}
    """

    dim: int
    """Internal dimension."""

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        if not isinstance(parameters, Mapping) or not parameters:
            fault = FieldError("", "empty", "the space needs at least one parameter")
            raise invalid(InvalidSpace, [fault], hint='for example {"x": Real(low=-5, high=5)}')
        faults = [fault for name, parameter in parameters.items() for fault in _entry_faults(name, parameter)]
        if faults:
            raise invalid(InvalidSpace, faults)
        self._parameters = dict(parameters)
        sizes = [parameter.size for parameter in self._parameters.values()]
        self._is_bounded = all(parameter.is_bounded for parameter in self._parameters.values())
        self._has_region = any(_has_region(parameter) for parameter in self._parameters.values())
        if self._has_region and (faults := list(_free_beside_region(self._parameters))):
            raise invalid(InvalidSpace, faults)
        self._starts = list(accumulate(sizes, initial=0))
        self.dim = self._starts[-1]
        if self.dim > MAX_DIM:
            fault = FieldError("", "too_large", f"at most {MAX_DIM} internal coordinates, got {self.dim}")
            raise invalid(InvalidSpace, [fault])
        decoders, scalar_index = [], list[int]()
        for (name, parameter), start in zip(self._parameters.items(), self._starts, strict=False):
            decoders.append((name, parameter.decoder(name, start, len(scalar_index))))
            if not isinstance(parameter, Vector):
                scalar_index.extend(range(start, start + parameter.size))
        self._decoders = tuple(decoders)
        # Without vectors the scalar coordinates are the point itself, which is quicker than picking them.
        self._scalar_index = None if len(scalar_index) == self.dim else np.array(scalar_index, dtype=np.int64)

    @classmethod
    def from_json(cls, raw: object, at: str = "/space") -> Space:
        """The space that a JSON object describes.

        Parameters
        ----------
        raw : {name: {"type": "float" | "int" | "categorical" | "vector", ...}}.
        at : JSON pointer of `raw` in the document, for the errors.

        Raises
        ------
        InvalidSpace
            With a `FieldError` for every field at fault.
        """
        if not isinstance(raw, Mapping) or not raw:
            fault = FieldError(at, "empty", f"must be an object of at least one parameter, got {reprlib.repr(raw)}")
            raise invalid(InvalidSpace, [fault], hint='for example {"x": {"type": "float", "low": -5, "high": 5}}')
        parameters: dict[str, Parameter] = {}
        faults: list[FieldError] = []
        for name, fields in raw.items():
            try:
                parameters[name] = from_tagged_json(fields, _TYPES, at + pointer(name))
            except InvalidSpace as error:
                faults += error.errors
        if faults:
            raise invalid(InvalidSpace, faults)
        try:
            return cls(parameters)
        except InvalidSpace as error:
            raise invalid(
                InvalidSpace, [FieldError(at + f.pointer, f.code, f.message) for f in error.errors], error.hint
            ) from None

    def to_json(self) -> dict[str, JSON]:
        """The wire form; `Space.from_json` gives an equal space back."""
        return {name: parameter.to_json() for name, parameter in self._parameters.items()}

    # -- a mapping of its parameters

    def __getitem__(self, name: str) -> Parameter:
        return self._parameters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and list(self.items()) == list(other.items())

    def __hash__(self) -> int:
        return hash(tuple(self._parameters.items()))

    def __repr__(self) -> str:
        return f"Space({self._parameters!r})"

    def __reduce__(self) -> tuple[type[Space], tuple[dict[str, Parameter]]]:
        return (Space, (self._parameters,))  # the decoders are closures

    @property
    def names(self) -> tuple[str, ...]:
        """Parameter names, in order."""
        return tuple(self._parameters)

    @property
    def kinds(self) -> frozenset[str]:
        """Which of "real", "integer" and "choice" occur; compare with `Traits.parameters`."""
        return frozenset(parameter.kind for parameter in self._parameters.values())

    @property
    def is_single_vector(self) -> bool:
        """Whether the space is one `Vector`, the form that recipe methods work on."""
        return len(self._parameters) == 1 and isinstance(next(iter(self._parameters.values())), Vector)

    # -- the internal space. Arrays are read-only and made when first asked for: a vector may have 10^9 coordinates.

    @cached_property
    def bounded(self) -> NDArray[np.bool_]:
        """(dim,) bool, whether a coordinate is bounded to [0, 1]; the others range over R."""
        return self._per_coordinate([np.bool_(p.is_bounded) for p in self._parameters.values()])

    @cached_property
    def lower(self) -> records.Vector:
        """(dim,) lower bounds: 0 or -inf."""
        return self._per_coordinate([np.float64(0 if p.is_bounded else -np.inf) for p in self._parameters.values()])

    @cached_property
    def upper(self) -> records.Vector:
        """(dim,) upper bounds: 1 or inf."""
        return self._per_coordinate([np.float64(1 if p.is_bounded else np.inf) for p in self._parameters.values()])

    @cached_property
    def initial(self) -> records.Vector:
        """(dim,) where to start: `init` where given, else the middle of [0, 1], 0, or a point well inside a region."""
        point = np.empty(self.dim)
        for parameter, start in zip(self._parameters.values(), self._starts, strict=False):
            point[start : start + parameter.size] = parameter.start()
        point.setflags(write=False)
        return point

    @property
    def domain(self) -> Literal["free", "box", "convex"]:
        """What the space asks of a method: a region ("convex"), bounds of some coordinates ("box"), or nothing.

        Compare with `Traits.regions`.
        """
        if self._has_region:
            return "convex"
        return "box" if any(parameter.is_bounded for parameter in self._parameters.values()) else "free"

    @cached_property
    def region(self) -> Region | None:
        """The convex set of all internal points; None where some coordinate is free, because it is then unbounded.

        The region of a single vector, or the product of the regions of several parameters, where bounded ones count as
        unit boxes; the unit box where no parameter has a region (`domain` is "box", and points may also be folded).
        """
        if not self._has_region:
            return Box() if self._is_bounded else None
        if self.is_single_vector:
            return _region_of(next(iter(self._parameters.values())))
        return Product(parts=tuple(Part(dim=p.size, region=_region_of(p)) for p in self._parameters.values()))

    def fold(self, vectors: Matrix) -> Matrix:
        """Reflect the bounded coordinates into [0, 1]; free ones stay.

        Parameters
        ----------
        vectors : (..., dim) internal points.

        Returns
        -------
        (..., dim) new array. The identity inside the bounds; period 2.

        Raises
        ------
        NonFiniteValue
            For NaN or infinity in any coordinate.
        """
        points = np.asarray(vectors, dtype=np.float64)
        if points.shape[-1:] != (self.dim,):
            raise InvalidSpace(f"expected internal points of shape (..., {self.dim}), got {points.shape}")
        _all_finite(points, "")
        folded = _fold_all(points)
        if self._is_bounded:
            return folded.copy() if folded is points else folded
        return np.where(self.bounded, folded, points)

    # -- params <-> internal vector

    def decode(self, vector: records.Vector | list[float]) -> dict[str, Any]:
        """Parameters of an internal point.

        Parameters
        ----------
        vector : (dim,) any finite numbers; those of a vector with a region must lie in it.

        Returns
        -------
        name -> float, int, choice, or (dim,) float64 for a `Vector`. Always within the bounds.

        Raises
        ------
        NonFiniteValue
            For NaN or infinity.
        InvalidSpace
            For a wrong shape, or coordinates outside their region.
        """
        point = np.asarray(vector, dtype=np.float64)
        if point.shape != (self.dim,):
            raise InvalidSpace(f"expected an internal point of shape ({self.dim},), got {point.shape}")
        index = self._scalar_index
        scalars: list[float] = point.tolist() if index is None else point[index].tolist()
        return {name: decode(scalars, point) for name, decode in self._decoders}

    def encode(self, params: Mapping[str, Any]) -> records.Vector:
        """The internal point of given parameters: a right inverse of `decode`.

        Parameters
        ----------
        params : every parameter of the space, and no other. Types are strict: a bool is no number, "3" is not 3, and
            3.0 is no integer.

        Returns
        -------
        (dim,) float64 within `lower` and `upper`.

        Raises
        ------
        InvalidSpace
            With a `FieldError` (pointer `/params/...`) for each missing, unknown or unfit parameter.
        """
        read = self._read(params)
        point = np.empty(self.dim)
        for (name, parameter), start in zip(self._parameters.items(), self._starts, strict=False):
            point[start : start + parameter.size] = parameter.encode(read[name])
        return point

    def check(self, params: Mapping[str, Any]) -> None:
        """Raise what `encode` would raise."""
        self._read(params)

    def _read(self, params: Any) -> dict[str, Any]:
        if not isinstance(params, Mapping):
            fault = FieldError("/params", "wrong_type", f"must be an object of name: value, got {_shown(params)}")
            raise invalid(InvalidSpace, [fault])
        read: dict[str, Any] = {}
        faults: list[FieldError] = []
        for name, parameter in self._parameters.items():
            if name not in params:
                faults.append(FieldError(pointer("params", name), "missing", "is required"))
                continue
            try:
                read[name] = parameter.read(params[name])
            except _Fault as fault:
                faults.append(FieldError(pointer("params", name), fault.code, fault.message))
        for name in params:
            if name not in self._parameters:
                message = f"no such parameter; {nearest(str(name), self._parameters)}"
                faults.append(FieldError(pointer("params", name), "unknown_parameter", message))
        if faults:
            raise invalid(InvalidSpace, faults)
        return read

    def _per_coordinate(self, values: list[T]) -> NDArray[T]:
        """One value per parameter -> one per coordinate, without memory where all are the same."""
        if len(set(values)) == 1:
            return np.broadcast_to(np.array(values[0]), (self.dim,))
        array = np.repeat(np.array(values), [parameter.size for parameter in self._parameters.values()])
        array.setflags(write=False)
        return array


# -- folding -----------------------------------------------------------------------------------------------------------


def _fold_one(u: float, name: str) -> float:
    """Triangle wave of period 2, identity on [0, 1]."""
    if not math.isfinite(u):
        raise _non_finite(name, u)
    u = math.fmod(abs(u), 2.0)  # exact
    return min(u, 2.0 - u)


def _fold_all(u: Matrix) -> Matrix:
    """The same for an array of finite numbers; the argument itself where nothing is to fold."""
    if u.size and u.min() >= 0.0 and u.max() <= 1.0:
        return u
    wave = np.fmod(np.abs(u), 2.0)
    return np.minimum(wave, 2.0 - wave)


def _all_finite(points: Matrix, name: str) -> Matrix:
    if not np.isfinite(points).all():
        raise _non_finite(name, float(points[~np.isfinite(points)][0]))
    return points


def _non_finite(name: str, value: float) -> NonFiniteValue:
    of = f" of parameter {name!r}" if name else ""
    return NonFiniteValue(f"an internal coordinate{of} is {value}, which is no point of the space")


# -- reading values ----------------------------------------------------------------------------------------------------


def _real(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        raise _Fault("wrong_type", f"must be a number, got {_shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _Fault("non_finite", f"must be finite, got {_shown(value)}")
    return number


def _check_unit(value: float, unit: float) -> None:
    if not abs(value) / unit <= sys.float_info.max:
        raise _Fault("out_of_range", f"overflows as {value!r} / unit {unit!r}")


def _check_inside(region: Region, numbers: records.Vector) -> records.Vector:
    violation = region.violation(numbers)
    if not violation <= FEASIBLE:
        kind = region.to_json()["type"]
        raise _Fault("infeasible", f"must lie in its {kind} region, is outside by {violation:.2g} of the region's size")
    return numbers


def _largest(unit: float) -> float:
    """The largest coordinate whose decoded value is still finite."""
    return math.nextafter(sys.float_info.max / unit, 0.0) if unit > 1.0 else sys.float_info.max


def _shown(value: Any) -> str:
    try:
        return f"{reprlib.repr(value)} ({type(value).__name__})"
    except ValueError:  # Python refuses to print integers of more than 4300 digits
        return f"a huge {type(value).__name__}"


def _out_of_range(low: float, high: float, value: float) -> _Fault:
    return _Fault("out_of_range", f"must be between {low!r} and {high!r}, got {_shown(value)}")


def _json_key(value: Scalar) -> tuple[str, Scalar]:
    """Equal keys are equal JSON: Python finds True == 1 == 1.0, JSON only the last two."""
    if value is None or isinstance(value, bool | str):
        return type(value).__name__, value
    return "number", value


# -- faults of descriptions --------------------------------------------------------------------------------------------


def _low_not_below_high(low: float, high: float) -> FieldError:
    return FieldError("/low", "low_not_below_high", f"must be below high, got low={low!r}, high={high!r}")


def _bound_faults(low: float | None, high: float | None, unit: float) -> Iterable[FieldError]:
    if low is None and high is None:
        return
    if low is None or high is None:
        given, lacking = ("high", "low") if low is None else ("low", "high")
        yield FieldError(f"/{lacking}", "one_sided", f"is missing while {given} is given: {FREE_HINT}")
    elif low >= high:
        yield _low_not_below_high(low, high)
    elif not math.isfinite(high - low):
        yield FieldError("/high", "too_wide", "high - low overflows; leave both out for a free parameter")
    if unit != 1.0:
        yield FieldError("/unit", "unit_bounded", "only means something without low and high; leave it out")


def _init_fault(place: Callable[[], object]) -> Iterable[FieldError]:
    try:
        place()
    except _Fault as fault:
        yield FieldError("/init", fault.code, fault.message)


def _has_region(parameter: Parameter) -> bool:
    return isinstance(parameter, Vector) and parameter.region is not None


def _region_of(parameter: Parameter) -> AnyRegion:
    """The set of a parameter's internal coordinates, where that is bounded."""
    region = parameter.region if isinstance(parameter, Vector) else None
    return Box() if region is None else region


def _free_beside_region(parameters: Mapping[str, Parameter]) -> Iterable[FieldError]:
    for name, parameter in parameters.items():
        if not parameter.is_bounded and not _has_region(parameter):
            message = "is free beside a region, and the whole space must be bounded: give it low and high, or a region"
            yield FieldError(pointer(name), "unbounded", message)


def _entry_faults(name: object, parameter: object) -> Iterable[FieldError]:
    if not isinstance(name, str) or not name:
        yield FieldError("", "bad_name", f"a parameter's name must be a word, got {name!r}")
    elif not isinstance(parameter, Real | Integer | Choice | Vector):
        message = f"must be a Real, Integer, Choice or Vector, got {_shown(parameter)}; JSON goes to Space.from_json"
        yield FieldError(pointer(name), "wrong_type", message)

"""The ordered collection of parameters, and the map between parameters and internal vectors.

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
triangle wave of period 2, identity inside), so that every finite vector decodes; algorithms keep the unfolded one.

A vector may be constrained to a region, a convex set of `blackbox.regions`. Then nothing is scaled, folded or repaired:
a method that supports regions asks feasible points only, and `decode` and `encode` reject others (beyond the tolerance
`regions.FEASIBLE`). Such a space is one convex set: its other parameters must be bounded, and count as the unit box.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from blackbox import records
from blackbox.errors import FieldError, InvalidSpace, nearest
from blackbox.records import JSON, Matrix
from blackbox.regions import AnyRegion, Box, Part, Product, Region
from blackbox.space.checks import MAX_DIM, BadValue, described, fold_all, require_finite
from blackbox.space.parameters import TYPES, Categorical, Float, Int, Parameter, Vector
from blackbox.validation import NOT_TEXT, from_tagged_json, invalid, is_text, pointer

__all__ = ["Categorical", "Float", "Int", "Parameter", "Space", "Vector"]
T = TypeVar("T", np.float64, np.bool_)


class Space(Mapping[str, Parameter]):
    """An ordered, immutable collection of named parameters, and the map between them and R^dim.

    Parameters
    ----------
    parameters : name -> `Float`, `Int`, `Categorical` or `Vector`. Their order determines the internal vector.

    Raises
    ------
    InvalidSpace
        If empty, or if a name is empty or a parameter is none of these.

    Examples
    --------
    >>> space = Space({"x": Float(low=-5, high=5), "act": Categorical(choices=["relu", "gelu"])})
    >>> space.encode({"x": 0.0, "act": "gelu"})
    array([0.5 , 0.75])
    >>> space.decode([1.25, 0.0])
    {'x': 2.5, 'act': 'relu'}
    """

    dim: int
    """Internal dimension."""

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        if not isinstance(parameters, Mapping) or not parameters:
            error = FieldError("", "empty", "the space needs at least one parameter")
            raise invalid(InvalidSpace, [error], hint='for example {"x": Float(low=-5, high=5)}')
        errors = [error for name, parameter in parameters.items() for error in _entry_errors(name, parameter)]
        if errors:
            raise invalid(InvalidSpace, errors)
        self._parameters = dict(parameters)
        sizes = [parameter.size for parameter in self._parameters.values()]
        self._is_bounded = all(parameter.is_bounded for parameter in self._parameters.values())
        self._has_region = any(_has_region(parameter) for parameter in self._parameters.values())
        if self._has_region and (errors := list(_free_beside_region(self._parameters))):
            raise invalid(InvalidSpace, errors)
        self._starts = list(accumulate(sizes, initial=0))
        self.dim = self._starts[-1]
        if self.dim > MAX_DIM:
            error = FieldError("", "too_large", f"at most {MAX_DIM} internal coordinates, got {self.dim}")
            raise invalid(InvalidSpace, [error])
        decoders, scalar_index = [], list[int]()
        for (name, parameter), start in zip(self._parameters.items(), self._starts, strict=False):
            decoders.append((name, parameter.decoder(name, start, len(scalar_index))))
            if not isinstance(parameter, Vector):
                scalar_index.extend(range(start, start + parameter.size))
        self._decoders = tuple(decoders)
        # Without vectors the scalar coordinates are the point itself, which is faster than selecting them.
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
            With a `FieldError` for every field at error.
        """
        if not isinstance(raw, Mapping) or not raw:
            error = FieldError(at, "empty", f"must be an object of at least one parameter, got {reprlib.repr(raw)}")
            raise invalid(InvalidSpace, [error], hint='for example {"x": {"type": "float", "low": -5, "high": 5}}')
        parameters: dict[str, Parameter] = {}
        errors: list[FieldError] = []
        for name, fields in raw.items():
            try:
                parameters[name] = from_tagged_json(fields, TYPES, at + pointer(name))
            except InvalidSpace as error:
                errors += error.errors
        if errors:
            raise invalid(InvalidSpace, errors)
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
        """The kinds of parameters in it: "float" (also a vector), "int", "categorical"; compare `Traits.parameters`."""
        return frozenset(parameter.kind for parameter in self._parameters.values())

    @cached_property
    def size(self) -> int | None:
        """Number of different points, where every parameter is an `Int` or a `Categorical`; otherwise None."""
        size = 1
        for parameter in self._parameters.values():
            if isinstance(parameter, Int):
                size *= parameter.high - parameter.low + 1
            elif isinstance(parameter, Categorical):
                size *= len(parameter.choices)
            else:
                return None
        return size

    @property
    def is_single_vector(self) -> bool:
        """Whether the space is a single `Vector`, as recipe methods require."""
        return len(self._parameters) == 1 and isinstance(next(iter(self._parameters.values())), Vector)

    # -- the internal space. Arrays are read-only and made on first use: a vector may have 10^9 coordinates.

    @cached_property
    def bounded(self) -> NDArray[np.bool_]:
        """(dim,) bool: whether a coordinate is bounded to [0, 1]; the others range over R."""
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
        """(dim,) the initial point: `init` if given, else the middle of [0, 1], 0, or a point well inside a region."""
        point = np.empty(self.dim)
        for parameter, start in zip(self._parameters.values(), self._starts, strict=False):
            point[start : start + parameter.size] = parameter.start()
        point.setflags(write=False)
        return point

    @property
    def domain(self) -> Literal["free", "box", "convex"]:
        """The constraints of the space: a region ("convex"), bounds of some coordinates ("box"), or none ("free").

        A method lists those it supports in `Traits.regions`.
        """
        if self._has_region:
            return "convex"
        return "box" if any(parameter.is_bounded for parameter in self._parameters.values()) else "free"

    @cached_property
    def region(self) -> Region | None:
        """The convex set of all internal points; None if some coordinate is free, because the set is then unbounded.

        The region of a single vector, or the product of the regions of several parameters, where bounded ones count as
        unit boxes; the unit box if no parameter has a region (`domain` is "box", and points may also be folded).
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
        (..., dim) a new array. The map has period 2 and is the identity inside the bounds.

        Raises
        ------
        NonFiniteValue
            For NaN or infinity in any coordinate.
        """
        points = np.asarray(vectors, dtype=np.float64)
        if points.shape[-1:] != (self.dim,):
            raise InvalidSpace(f"expected internal points of shape (..., {self.dim}), got {points.shape}")
        require_finite(points, "")
        folded = fold_all(points)
        if self._is_bounded:
            return folded.copy() if folded is points else folded
        return np.where(self.bounded, folded, points)

    # -- params <-> internal vector

    def decode(self, vector: records.Vector | list[float]) -> dict[str, Any]:
        """The parameters of an internal point.

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
        """The internal point of parameters: a right inverse of `decode`.

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
            With a `FieldError` (pointer `/params/...`) for each missing, unknown or invalid parameter.
        """
        read = self._read(params)
        point = np.empty(self.dim)
        for (name, parameter), start in zip(self._parameters.items(), self._starts, strict=False):
            point[start : start + parameter.size] = parameter.encode(read[name])
        return point

    def check(self, params: Mapping[str, Any]) -> None:
        """Check parameters without encoding them; raises as `encode`."""
        self._read(params)

    def _read(self, params: Any) -> dict[str, Any]:
        if not isinstance(params, Mapping):
            error = FieldError("/params", "wrong_type", f"must be an object of name: value, got {described(params)}")
            raise invalid(InvalidSpace, [error])
        read: dict[str, Any] = {}
        errors: list[FieldError] = []
        for name, parameter in self._parameters.items():
            if name not in params:
                errors.append(FieldError(pointer("params", name), "missing", "is required"))
                continue
            try:
                read[name] = parameter.read(params[name])
            except BadValue as error:
                errors.append(FieldError(pointer("params", name), error.code, error.message))
        for name in params:
            if name not in self._parameters:
                message = f"no such parameter; {nearest(str(name), self._parameters)}"
                errors.append(FieldError(pointer("params", name), "unknown_parameter", message))
        if errors:
            raise invalid(InvalidSpace, errors)
        return read

    def _per_coordinate(self, values: list[T]) -> NDArray[T]:
        """One value per parameter as one per coordinate; takes no memory if all are equal."""
        if len(set(values)) == 1:
            return np.broadcast_to(np.array(values[0]), (self.dim,))
        array = np.repeat(np.array(values), [parameter.size for parameter in self._parameters.values()])
        array.setflags(write=False)
        return array


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


def _entry_errors(name: object, parameter: object) -> Iterable[FieldError]:
    if not isinstance(name, str) or not name:
        yield FieldError("", "bad_name", f"a parameter's name must be a word, got {name!r}")
    elif not is_text(name):
        yield FieldError("", "bad_name", f"a parameter's name {NOT_TEXT.format(name)}")
    elif not isinstance(parameter, tuple(TYPES.values())):
        names = ", ".join(cls.__name__ for cls in TYPES.values())
        message = f"must be one of {names}, got {described(parameter)}; JSON goes to Space.from_json"
        yield FieldError(pointer(name), "wrong_type", message)

"""Parsing of answers: a class declares its members once, and `Model.of` reads an object as any such class.

A field of a dataclass is the member of the JSON object with its name, unless `wire` names another. The annotation says
how it is read, the default what a missing or unusable member becomes; a field without a default must be there. Unknown
members are ignored, so that a newer server does not break an older client; the whole object stays in `raw`. Sequence
numbers and seeds of evaluations are text on the wire, because they may exceed 2**53, and integers here.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from datetime import datetime
from functools import cache
from typing import Any, Generic, Self, TypeVar

from blackbox_client.errors import AnsweredWithError, BadAnswer, error_of

T = TypeVar("T")
Json = Mapping[str, Any]
Read = Callable[[Any], Any]
"""Reads a JSON value; None where it is missing or of another kind."""


@dataclass(frozen=True, slots=True)
class Model:
    """Base of everything that is read from an answer; `raw` is the object as it came."""

    raw: Json = field(default_factory=dict, repr=False, compare=False, kw_only=True)

    @classmethod
    def of(cls, raw: Json) -> Self:
        """Read an object.

        Raises
        ------
        BadAnswer
            If a member that must be there is missing.
        """
        return cls(**read_members(cls, raw), raw=raw)


@dataclass(frozen=True, slots=True)
class Tagged(Model):
    """A model whose answer carries an ETag, for `If-Match`."""

    etag: str = field(default="", kw_only=True, metadata={"header": True})

    @classmethod
    def of(cls, raw: Json, etag: str = "") -> Self:
        """Read an object, and keep the ETag of its answer; see `Model.of`."""
        return cls(**read_members(cls, raw), raw=raw, etag=etag)


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list; `next` is the path and query of the following one, None on the last."""

    items: tuple[T, ...] = ()
    next: str | None = None
    raw: Json = field(default_factory=dict, repr=False, compare=False)


def wire(name: str) -> Mapping[str, Any]:
    """Metadata of a field that has another name on the wire."""
    return {"wire": name}


def inline(sign: str) -> Mapping[str, Any]:
    """Metadata of a field whose members stand beside those of its owner, where the one named `sign` is among them."""
    return {"wire": sign, "inline": True}


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an object and the field that holds it.

    Attributes
    ----------
    name, wire : of the field, and in JSON.
    model : the model that reads it, or the entries of the list that it is; None for everything else.
    read : how it is read.
    required : whether a missing one makes the answer bad.
    inline : whether its members stand beside those of its owner; `wire` is the one that says so.
    """

    name: str
    wire: str
    model: type[Model] | None
    read: Read
    required: bool
    inline: bool


@cache
def members(cls: type[Model]) -> tuple[Member, ...]:
    """The members that a model declares, in order."""
    hints = typing.get_type_hints(cls)
    found: list[Member] = []
    for each in fields(cls):
        if each.name == "raw" or "header" in each.metadata:
            continue
        model = _model_in(hints[each.name])
        name, read = each.metadata.get("wire", each.name), _reader(hints[each.name])
        required = each.default is MISSING and each.default_factory is MISSING
        found.append(Member(each.name, name, model, read, required, "inline" in each.metadata))
    return tuple(found)


def read_members(cls: type[Model], raw: Json) -> dict[str, Any]:
    """The fields of a model that an object has usable members for.

    Raises
    ------
    BadAnswer
        If a member that must be there is missing.
    """
    by_name, needed = _plan(cls)  # type: ignore[arg-type]  # a class has a hash, whatever its instances have
    given = {}
    for name, value in raw.items():
        if value is None:
            continue
        for member in by_name.get(name, ()):
            found = member.read(raw if member.inline else value)
            if found is not None:
                given[member.name] = found
    for member in needed:
        if member.name not in given:
            raise BadAnswer(
                f"expected {cls.__name__} with {member.wire!r}, got {dict(raw)!r:.200}; is this a blackbox server, and "
                "is blackbox-zoo-client as new as it?"
            )
    return given


@cache
def _plan(cls: type[Model]) -> tuple[dict[str, list[Member]], list[Member]]:
    """Members by their names on the wire, and those that must be there."""
    by_name: dict[str, list[Member]] = {}
    for member in members(cls):  # type: ignore[arg-type]
        by_name.setdefault(member.wire, []).append(member)
    return by_name, [member for each in by_name.values() for member in each if member.required]


def as_integer(value: Any) -> int | None:
    """An integer written as a number or as text; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def as_object(value: Any) -> Json:
    """A JSON object; an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _time(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None


def _of_kind(kind: type) -> Read:
    return lambda value: value if isinstance(value, kind) else None


_READERS: dict[Any, Read] = {
    Any: lambda value: value,
    str: _of_kind(str),
    bool: _of_kind(bool),
    int: as_integer,
    float: _number,
    datetime: _time,
    AnsweredWithError: lambda value: error_of(value) if isinstance(value, Mapping) else None,
}


def _reader(hint: Any) -> Read:
    """The function that reads a value of this annotation."""
    if hint in _READERS:
        return _READERS[hint]
    if isinstance(hint, type) and issubclass(hint, Model):
        return lambda value: hint.of(value) if isinstance(value, Mapping) else None
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Mapping:
        return _of_kind(Mapping)
    if origin is tuple:
        entry = _reader(arguments[0])

        def read(value: Any) -> Any:
            if not isinstance(value, list):
                return None
            return tuple(found for found in map(entry, value) if found is not None)

        return read
    if origin in (typing.Union, types.UnionType):
        (inner,) = (each for each in arguments if each is not types.NoneType)
        return _reader(inner)
    raise TypeError(f"no way to read {hint!r}; add one to blackbox_client.models.model")


def _model_in(hint: Any) -> type[Model] | None:
    """The model in an annotation: itself, in a tuple, or beside None."""
    if isinstance(hint, type) and issubclass(hint, Model):
        return hint
    return next((found for found in map(_model_in, typing.get_args(hint)) if found is not None), None)

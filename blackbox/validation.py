"""The base of what people write, and bad input as our errors.

An error has a JSON pointer per field, what was expected, what came, and the nearest valid name.
"""

from __future__ import annotations

import ast
import inspect
import reprlib
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar, TypeVar

import numpy as np
import pydantic
from pydantic import ConfigDict, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from blackbox.errors import FieldError, InvalidInput, nearest

D = TypeVar("D", bound="Described")


class Model(pydantic.BaseModel):
    """A frozen model that refuses unknown fields and non-finite numbers.

    The docstring under a field is its description in the JSON schema. It is read when somebody asks for it: pydantic's
    own `use_attribute_docstrings` parses the source of every class at import, a third of the time that takes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name, text in descriptions(cls).items():
            if name in properties:
                properties[name].setdefault("description", text)
        return schema


@cache
def descriptions(model: type[pydantic.BaseModel]) -> Mapping[str, str]:
    """The docstrings under the fields of a model and its bases, by field; empty where the source is not at hand."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not issubclass(cls, Model) or cls is Model:
            continue
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        except (OSError, TypeError, SyntaxError):  # defined in a console, say
            continue
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for field, text in pairwise(body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                    found[name] = inspect.cleandoc(words)
    return found


class Described(Model):
    """A model with a JSON form whose faults are our errors, with JSON pointers, however it is constructed."""

    model_config = ConfigDict(strict=True)
    error_class: ClassVar[type[InvalidInput]] = InvalidInput

    def __init__(self, /, **fields: Any) -> None:
        plain = {name: _plain(value) for name, value in fields.items()}
        try:
            super().__init__(**plain)
        except pydantic.ValidationError as error:
            faults = field_errors(error, type(self))
        else:
            faults = list(self.errors())
        if faults:
            raise invalid(self.error_class, faults)

    # By fields only: the inherited comparison also looks at what is cached, and arrays have no truth value.
    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash((type(self), self._fields()))

    def _fields(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in type(self).model_fields)

    def errors(self) -> Iterable[FieldError]:
        """What is wrong with fields that are each fine alone."""
        return ()

    def to_json(self) -> dict[str, Any]:
        """The fields that differ from their defaults, `type` first."""
        fields = type(self).model_fields
        kind = {"type": getattr(self, "type")} if "type" in fields else {}  # noqa: B009
        told = zip(fields, self._fields(), strict=True)
        return {**kind, **{name: _json(value) for name, value in told if value != fields[name].default}}


def invalid(error_class: type[InvalidInput], faults: Iterable[FieldError], hint: str = "") -> InvalidInput:
    """An error whose text names its first few faulty fields."""
    errors = tuple(faults)
    shown = "; ".join(f"{f.pointer.removeprefix('/')}: {f.message}" if f.pointer else f.message for f in errors[:5])
    more = f"; and {len(errors) - 5} more" if len(errors) > 5 else ""
    return error_class(shown + more, hint=hint, errors=errors)


def pointer(*parts: str | int) -> str:
    """A JSON pointer (RFC 6901).

    >>> pointer("space", "a/b", 0)
    '/space/a~1b/0'
    """
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def _plain(value: Any) -> Any:
    """NumPy scalars and arrays as Python ones, lists (of lists) as tuples: strict models take exactly these."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        nested = any(isinstance(item, list | tuple | np.ndarray | np.generic) for item in value)
        return tuple(map(_plain, value)) if nested else tuple(value)
    return value


def _json(value: Any) -> Any:
    """A field of a description as JSON."""
    if isinstance(value, Described):
        return value.to_json()
    if isinstance(value, tuple):
        nested = any(isinstance(item, Described | tuple) for item in value)
        return list(map(_json, value)) if nested else list(value)
    return value


def field_errors(error: pydantic.ValidationError, model: type[pydantic.BaseModel]) -> list[FieldError]:
    """One fault per field: what was expected and what came, and for an unknown field the nearest one that exists.

    A union reports a complaint per member, under the member's own name; these are read as one complaint of the field.
    """
    found: dict[str, FieldError] = {}
    alternatives: set[str] = set()
    for item in error.errors(include_url=False):
        path, known = _walk(model, item["loc"])
        where = pointer(*path)
        if len(path) < len(item["loc"]):
            alternatives.add(where)
        code, message = item["type"], item["msg"].replace("Input should be", "must be").removeprefix("Value error, ")
        nested = item.get("ctx", {}).get("error")
        if isinstance(nested, InvalidInput) and nested.errors:  # a description inside this one: its own pointers
            for fault in nested.errors:
                found[where + fault.pointer] = replace(fault, pointer=where + fault.pointer)
            continue
        if item["type"] == "union_tag_not_found":
            where, code, message = f"{where}/type", "missing", "is required"
        elif item["type"] == "union_tag_invalid":
            tag, tags = item["ctx"]["tag"], item["ctx"]["expected_tags"].replace("'", "").split(", ")
            where, code, message = f"{where}/type", "unknown_type", f"{tag!r} is none; {nearest(tag, tags)}"
        elif item["type"] == "model_attributes_type":
            code, message = "wrong_type", f"must be an object, got {reprlib.repr(item['input'])}"
        elif item["type"] == "extra_forbidden":
            message = f"unknown field; {nearest(str(path[-1]), known)}"
        elif item["type"] == "missing":
            message = "is required"
        elif where in found:
            if message not in found[where].message:
                message = f"{message.removeprefix('must be ')} or {found[where].message.removeprefix('must be ')}"
                found[where] = FieldError(where, found[where].code, f"must be {message}")
            continue
        else:
            message = f"{message}, got {reprlib.repr(item['input'])}"
        found[where] = FieldError(where, code, message)
    # One member of the union fits but for something inside: that the others do not fit at all is no news.
    spare = {at for at in alternatives if any(other.startswith(f"{at}/") for other in found)}
    return [fault for at, fault in found.items() if at not in spare]


def _walk(model: type[pydantic.BaseModel], loc: tuple[int | str, ...]) -> tuple[list[int | str], list[str]]:
    """The part of a location that the writer knows (no names of union members), and the fields there are at its end."""
    path: list[int | str] = []
    known: list[str] = []
    current: Any = model
    for part in loc:
        current = _unwrapped(current)
        if isinstance(current, type) and issubclass(current, pydantic.BaseModel):
            path.append(part)
            known = list(current.model_fields)
            field = current.model_fields.get(str(part))
            current = None if field is None else field.annotation
        elif typing.get_origin(current) is dict and part != "[key]":
            path.append(part)
            current = typing.get_args(current)[1]
        elif isinstance(part, int):
            path.append(part)
            current = next(iter(typing.get_args(current)), None)
    return path, known


def _unwrapped(annotation: Any) -> Any:
    """What stands in `X | None` and in `Annotated[X, ...]`."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _unwrapped(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        members = [member for member in typing.get_args(annotation) if member is not types.NoneType]
        return _unwrapped(members[0]) if len(members) == 1 else annotation
    return annotation


def from_tagged_json(raw: object, kinds: Mapping[str, type[D]], at: str) -> D:
    """`raw` as the model that its `type` names; faults carry pointers below `at`."""
    error_class = next(iter(kinds.values())).error_class
    known = f"known: {', '.join(sorted(kinds))}"
    if not isinstance(raw, Mapping):
        raise invalid(error_class, [FieldError(at, "wrong_type", f"must be an object, got {reprlib.repr(raw)}")])
    kind = raw.get("type")
    if kind is None:
        raise invalid(error_class, [FieldError(f"{at}/type", "missing", f"is required; {known}")])
    if not isinstance(kind, str) or kind not in kinds:
        hint = nearest(kind, kinds) if isinstance(kind, str) else known
        raise invalid(error_class, [FieldError(f"{at}/type", "unknown_type", f"{reprlib.repr(kind)} is none; {hint}")])
    try:
        return kinds[kind](**{str(name): value for name, value in raw.items()})
    except error_class as error:
        raise invalid(error_class, [replace(f, pointer=at + f.pointer) for f in error.errors]) from None

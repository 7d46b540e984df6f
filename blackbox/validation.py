"""Base models for input that people write, and invalid input as exceptions of the engine.

An error has a JSON pointer per field, the expected and the actual value, and the nearest valid name.
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

    The docstring under a field is its description in the JSON schema. It is read on demand: pydantic's own
    `use_attribute_docstrings` parses the source of every class at import, which takes a third of the import time.
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
    """The docstrings under the fields of a model and its bases, by field; {} if the source is not available."""
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
    """A model with a JSON form that raises `error_class` with JSON pointers, however it is constructed."""

    model_config = ConfigDict(strict=True)
    error_class: ClassVar[type[InvalidInput]] = InvalidInput

    def __init__(self, /, **fields: Any) -> None:
        plain = {name: _plain(value) for name, value in fields.items()}
        try:
            super().__init__(**plain)
        except pydantic.ValidationError as error:
            errors = field_errors(error, type(self))
        else:
            errors = list(self.errors())
        if errors:
            raise invalid(self.error_class, errors)

    # By fields only: the inherited comparison includes cached properties, and arrays have no truth value.
    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash((type(self), self._fields()))

    def _fields(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in type(self).model_fields)

    def errors(self) -> Iterable[FieldError]:
        """Errors of fields that are each valid by themselves; overridden by models with such constraints."""
        return ()

    def to_json(self) -> dict[str, Any]:
        """The JSON form: the fields that differ from their defaults, `type` first."""
        fields = type(self).model_fields
        kind = {"type": getattr(self, "type")} if "type" in fields else {}  # noqa: B009
        told = zip(fields, self._fields(), strict=True)
        return {**kind, **{name: _json(value) for name, value in told if value != fields[name].default}}


NOT_TEXT = "must be text that UTF-8 can encode, got {!r}; was it decoded with errors='surrogateescape'?"
"""The message for text with lone surrogates."""


def is_text(value: str) -> bool:
    """Whether UTF-8 can encode a string: one with lone surrogates would come back from a store or a wire as another."""
    return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)


def not_text(value: Any, at: str = "") -> Iterable[FieldError]:
    """The errors of the strings in a JSON value, names included, that UTF-8 cannot encode; `at` points to it."""
    if isinstance(value, str) and not is_text(value):
        yield FieldError(at, "not_text", NOT_TEXT.format(value))
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if isinstance(name, str) and not is_text(name):
                yield FieldError(at, "not_text", f"a name in it {NOT_TEXT.format(name)}")
            else:
                yield from not_text(item, f"{at}{pointer(name)}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            if isinstance(item, str | Mapping | list | tuple):
                yield from not_text(item, f"{at}/{i}")


def invalid(error_class: type[InvalidInput], fields: Iterable[FieldError], hint: str = "") -> InvalidInput:
    """An exception for invalid fields; its text names the first five."""
    errors = tuple(fields)
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
    """A value as strict models take it: NumPy scalars and arrays as Python numbers, lists (of lists) as tuples."""
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
    """One error per field: the expected and the actual value, and for an unknown field the nearest known one.

    Pydantic reports an error per member of a union, under the member's own name; these become one error of the field.
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
        if isinstance(nested, InvalidInput) and nested.errors:  # of a description inside, with its own pointers
            for inner in nested.errors:
                found[where + inner.pointer] = replace(inner, pointer=where + inner.pointer)
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
        elif ", got " not in message:
            message = f"{message}, got {reprlib.repr(item['input'])}"
        found[where] = FieldError(where, code, message)
    # If one member of a union fits except for something inside, the errors of the other members are dropped.
    spare = {at for at in alternatives if any(other.startswith(f"{at}/") for other in found)}
    return [field for at, field in found.items() if at not in spare]


def _walk(model: type[pydantic.BaseModel], loc: tuple[int | str, ...]) -> tuple[list[int | str], list[str]]:
    """The location without the names of union members, and the known fields at its end."""
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
    """X of `X | None` and `Annotated[X, ...]`."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _unwrapped(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        members = [member for member in typing.get_args(annotation) if member is not types.NoneType]
        return _unwrapped(members[0]) if len(members) == 1 else annotation
    return annotation


def from_tagged_json(raw: object, kinds: Mapping[str, type[D]], at: str) -> D:
    """`raw` as the model that its `type` names.

    Raises
    ------
    InvalidInput
        The `error_class` of the models, with JSON pointers below `at`.
    """
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

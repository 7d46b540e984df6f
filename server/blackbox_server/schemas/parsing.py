"""Parses bodies and query parameters into models.

Bodies are read in two passes. `read_json` turns bytes into Python values and refuses ambiguous or hostile JSON: a name
given twice, nesting deeper than the limit, text after the document. It lets NaN and infinities through (Python's `json`
writes them), so that the error can say where they are: `not_finite` finds them, `refuse_not_finite` refuses them. The
models are strict: `true` is no number, "3" is not 3, and an unknown field is an error that names the nearest one.

Decoding holds the interpreter, and with it every other request, wherever it runs. So its work is bounded before
anything is built: by the size of the body and by how many values, objects and names its bytes can hold, which counting
a few characters tells at a gigabyte a second.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import reprlib
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, TypeVar, Union
from urllib.parse import parse_qsl

import pydantic
import pydantic_core
from pydantic import BaseModel, ConfigDict

from blackbox.errors import FieldError, InvalidInput, NonFiniteValue, TooLarge, nearest
from blackbox.study.settling import NON_FINITE_HINT
from blackbox_server.problems import MAX_FAULTS, SCHEMA_HINT, MalformedJson

M = TypeVar("M", bound=BaseModel)

MAX_DEPTH = 32
"""Levels of objects and arrays in a body."""
MAX_VALUES = 1_000_000
"""Values in a body where points are sent, numbers mostly: as many commas ..."""
MAX_PLAIN_VALUES = 100_000
"""... in any other body ..."""
MAX_OBJECTS = 100_000
"""... objects and arrays: as many opening brackets ..."""
MAX_MEMBERS = 100_000
"""... members of objects: as many colons ..."""
MAX_TEXTS = 200_000
"""... and texts, names among them: half as many quotation marks. Those inside of texts count in all four."""
MAX_NAME = 1000
"""Characters of a member's name."""
MAX_DIGITS = 4300
"""Digits of an integer (the decoder's own limit)."""
MAX_WIDTH = 1000
"""Members of an object, and items of a list that are no numbers, where `within_width` is asked."""
SMALL_BODY = 32 * 1024
"""A body of at most so many bytes needs no counting: whatever it holds is decoded in 5 ms."""
MANY_NUMBERS = 64
_NUMBERS = {int, float}
_CONTAINERS = (dict, list)


# Reading JSON ---------------------------------------------------------------------------------------------------------


def read_json(body: bytes, max_values: int = MAX_VALUES) -> tuple[Any, bool]:
    """The value of a JSON document, and whether all its numbers are finite and its integers have at most 64 bits.

    Parameters
    ----------
    max_values : most values in it.

    Raises
    ------
    MalformedJson
        For anything that is not one JSON document in UTF-8, nested at most 32 deep, naming each member once.
    TooLarge
        If it could hold more than the constants above allow; nothing is decoded then.
    """
    if len(body) > SMALL_BODY:
        _within_bounds(body, max_values)
    try:
        value = pydantic_core.from_json(body)
    except ValueError as error:
        raise _malformed(body, str(error)) from None
    members, finite = _survey(value)
    if members != body.count(b":"):  # each member has one colon; further ones are in strings, or of a name given twice
        json.loads(body, object_pairs_hook=_once)
    return value, finite


def _within_bounds(body: bytes, max_values: int) -> None:
    """Refuse a body that may hold more than the bounds, from its bytes alone."""
    for what, most, found in (
        ("objects and arrays", MAX_OBJECTS, body.count(b"{") + body.count(b"[")),
        ("members", MAX_MEMBERS, body.count(b":")),
        ("values", max_values, body.count(b",")),
        ("texts", MAX_TEXTS, body.count(b'"') // 2),
    ):
        if found > most:
            raise TooLarge(
                f"the body may hold {found} {what}, at most {most} are read at once",
                hint="Send it in several requests. (What looks like these inside of texts counts too.)",
                errors=[FieldError("", "too_many", f"at most {most} {what}, got up to {found}")],
            )


def _survey(value: Any) -> tuple[int, bool]:
    """The number of object members, and whether every number can be sent back; refuses too deep nesting."""
    members, finite = 0, True
    level: list[Any] = [value] if isinstance(value, _CONTAINERS) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return members, finite
        below: list[Any] = []
        for container in level:
            if type(container) is dict:
                members += len(container)
                if container and max(map(len, container)) > MAX_NAME:
                    raise _long_name(max(container, key=len))
                items: Any = container.values()
            else:
                items = container
                if len(items) > MANY_NUMBERS and (kinds := set(map(type, items))) <= _NUMBERS:
                    finite = finite and _all_finite(items, kinds)
                    continue
            for item in items:
                kind = type(item)
                if kind is float:
                    if not -math.inf < item < math.inf:
                        finite = False
                elif kind is int:
                    if not -(2**63) <= item < 2**64:
                        finite = False
                elif kind is dict or kind is list:
                    below.append(item)
        level = below
    if level:
        raise MalformedJson(
            f"the body is nested more than {MAX_DEPTH} deep",
            hint=f"Send at most {MAX_DEPTH} levels of objects and arrays.",
            errors=[FieldError("", "too_deep", f"more than {MAX_DEPTH} levels")],
        )
    return members, finite


def _all_finite(items: list[Any], kinds: set[type]) -> bool:
    """Whether every number can be sent back. Four hundred thousand of them are a common body: no loop in Python."""
    numbers = items if len(kinds) == 1 else [item for item in items if type(item) is float]
    if float in kinds and not all(map(math.isfinite, numbers)):
        return False
    numbers = items if len(kinds) == 1 else [item for item in items if type(item) is int]
    return int not in kinds or (min(numbers) >= -(2**63) and max(numbers) < 2**64)


def _long_name(name: str) -> MalformedJson:
    return MalformedJson(
        f'the name "{name[:40]}..." has {len(name)} characters, expected at most {MAX_NAME}',
        hint="Put long text into values.",
        errors=[FieldError("", "name_too_long", f"at most {MAX_NAME} characters, got {len(name)}")],
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for name, value in pairs:
        if name in seen:
            raise MalformedJson(
                f'the name "{name[:100]}" is given twice in one object',
                hint="Give each name once; readers disagree about which of two counts.",
                errors=[FieldError("", "duplicate_name", f'"{name[:100]}" is given twice')],
            )
        seen[name] = value
    return seen


def _malformed(body: bytes, why: str) -> MalformedJson:
    hint = "Send one JSON object in UTF-8."
    if not body:
        why, hint = "the body is empty", 'Send a JSON object, at least "{}".'
    elif "recursion limit" in why:
        why, hint = f"the body is nested more than {MAX_DEPTH} deep", f"Send at most {MAX_DEPTH} levels."
    elif "number out of range" in why:
        why += f" (integers of more than {MAX_DIGITS} digits are refused)"
    elif body[:1] not in b"{[ \n\r\t":
        hint = "Send a JSON object; forms and multipart are not read."
    return MalformedJson(f"the body is not valid JSON: {why}", hint=hint, errors=[FieldError("", "malformed", why)])


def within_width(value: Any, at: str = "") -> None:
    """Refuse objects of very many members, and long lists of anything but numbers: their models would be as long.

    Raises
    ------
    TooLarge
    """
    many = len(value) if isinstance(value, _CONTAINERS) else 0
    if many > MAX_WIDTH and (isinstance(value, dict) or not set(map(type, value)) <= _NUMBERS):
        raise TooLarge(
            f"{dotted(at)} has {many} entries, expected at most {MAX_WIDTH}",
            hint="Only lists of numbers, and spaces, may be longer.",
            errors=[FieldError(at, "too_many", f"at most {MAX_WIDTH}, got {many}")],
        )
    if isinstance(value, dict):
        for name, item in value.items():
            if isinstance(item, _CONTAINERS):
                within_width(item, f"{at}/{escape(name)}")
    elif many <= MAX_WIDTH:
        for i in range(many):
            if isinstance(value[i], _CONTAINERS):
                within_width(value[i], f"{at}/{i}")


def not_finite(value: Any, at: str = "") -> Iterator[tuple[str, float | int]]:
    """JSON pointer and value of every number that is not finite, and of every integer of more than 64 bits."""
    if (isinstance(value, float) and not math.isfinite(value)) or (
        isinstance(value, int) and not -(2**63) <= value < 2**64
    ):
        yield at, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from not_finite(item, f"{at}/{escape(name)}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from not_finite(item, f"{at}/{i}")


def escape(name: str) -> str:
    """A name as part of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def spelled(value: float) -> str:
    """A non-finite number as people write it: NaN, Infinity or -Infinity."""
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


def dotted(pointer: str) -> str:
    """`/results/0/value` as `results[0].value`."""
    words = ""
    for part in pointer.split("/")[1:]:
        words += f"[{part}]" if part.isdecimal() else f".{part}"
    return words.removeprefix(".") or "the body"


def refuse_not_finite(value: Any, tolerant: bool = False, kind: type[InvalidInput] = NonFiniteValue) -> None:
    """Raise for numbers that are not finite, and for integers that other readers of JSON would change.

    Parameters
    ----------
    tolerant : whether the values of results may be anything.
    kind : the error for numbers that are not finite.

    Raises
    ------
    NonFiniteValue
        Or `kind`, with a pointer to each of the first 100.
    InvalidInput
        If there are only integers of more than 64 bits (a seed and a result's value may be one).
    """
    endless, long = [], []
    for pointer, number in not_finite(value):
        is_value = re.fullmatch(r"(/results/\d+)?/value", pointer) is not None
        if isinstance(number, float):
            if not (tolerant and is_value):
                endless.append(FieldError(pointer, "non_finite", f"{dotted(pointer)} is {spelled(number)}"))
        elif not is_value and pointer != "/seed":
            long.append(FieldError(pointer, "too_long", f"{dotted(pointer)} is an integer of more than 64 bits"))
        if len(endless) + len(long) == MAX_FAULTS:
            break
    if endless:
        raise kind("; ".join(f.message for f in endless[:3]) + ".", hint=NON_FINITE_HINT, errors=endless)
    if long:
        raise InvalidInput("; ".join(f.message for f in long[:3]) + ".", hint="Send it as text.", errors=long)


# Fitting models -------------------------------------------------------------------------------------------------------


class Wire(BaseModel):
    """Base of the models of bodies: strict types, no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    counted: ClassVar[str] = ""
    """The list whose length is limited by `Settings.max_count`, and checked before the model is built."""


class Query(BaseModel):
    """Base of the models of query parameters: text is converted to the type of the field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Q = TypeVar("Q", bound=Query)


def fit_query(model: type[Q], text: bytes) -> Q:
    """The query string of an address as the model. If a name is given twice the last one counts.

    Raises
    ------
    InvalidInput
        With a pointer for each faulty parameter.
    """
    told = dict(parse_qsl(text.decode("latin-1"), keep_blank_values=True))
    for name in told:
        if name not in model.model_fields:
            raise unknown_parameter(name, model.model_fields)
    try:
        return model.model_validate(told)
    except pydantic.ValidationError as error:
        faults = [
            FieldError("".join(f"/{part}" for part in item["loc"]), item["type"], item["msg"])
            for item in error.errors(include_url=False)
        ]
        detail = "; ".join(f"query parameter {fault.pointer[1:]}: {fault.message}" for fault in faults)
        raise InvalidInput(detail, errors=faults) from None


def unknown_parameter(name: str, known: Iterable[str]) -> InvalidInput:
    """The error for a query parameter that a route does not have."""
    names = sorted(known)
    hint = nearest(name[:100], names) if names else "This address takes none."
    fault = FieldError(f"/{escape(name[:100])}", "unknown", hint)
    return InvalidInput(f"there is no query parameter {name[:100]!r}", hint=hint, errors=[fault])


def fit(model: type[M], raw: Any) -> M:
    """`raw` as the model.

    Raises
    ------
    InvalidInput
        With a JSON pointer for each faulty field, and the nearest name for an unknown one.
    """
    try:
        return model.model_validate(raw)
    except pydantic.ValidationError as error:
        n_faults, items = error.error_count(), _first_faults(error, model, raw)
    raise _unfit(items, n_faults, model)


def _first_faults(
    error: pydantic.ValidationError, model: type[BaseModel], raw: Any
) -> list[pydantic_core.ErrorDetails]:
    """Pydantic's first faults. It builds all or none; of very many, those of the beginning of the input are built."""
    if error.error_count() > 10 * MAX_FAULTS:
        try:
            model.model_validate(_beginning(raw, frozenset(model.model_fields)))
        except pydantic.ValidationError as some:
            error = some
    return error.errors(include_url=False)[:MAX_FAULTS] if error.error_count() <= 10_000 else []


def _beginning(raw: Any, fields: frozenset[str], room: int = MAX_FAULTS) -> Any:
    """`raw` with the first items of its lists, and the first members of its objects and the named ones."""
    if isinstance(raw, list):
        return [_beginning(item, fields, room // 2) for item in raw[:room]]
    if isinstance(raw, dict):
        kept = dict.fromkeys([*itertools.islice(raw, room), *(name for name in fields if name in raw)])
        return {name: _beginning(raw[name], fields, room // 2) for name in kept}
    return raw


def _unfit(items: Sequence[pydantic_core.ErrorDetails], n_faults: int, model: type[BaseModel]) -> InvalidInput:
    faults = []
    spelled_out = False
    for item in items:
        place = [str(part) for part in item["loc"] if not _is_branch(part)]
        pointer = "".join(f"/{escape(part)}" for part in place)
        if item["type"] == "extra_forbidden":
            message = f"unknown field; {nearest(place[-1], _names_at(model, place[:-1]))}"
        elif item["type"] == "missing":
            message = "this field is required"
        else:
            message = f"{item['msg'].removeprefix('Value error, ')}, got {_shown(item['input'])}"
        if place and place[-1] == "value" and item["type"] != "extra_forbidden":
            spelled_out = True
        faults.append(FieldError(pointer, item["type"], message))
    detail = "; ".join(f"{dotted(f.pointer)}: {f.message}" for f in faults[:5])
    if n_faults > max(5, len(faults)) or not faults:
        detail += f"; {n_faults} faults in all" if faults else f"the body has {n_faults} faults"
    if spelled_out:
        words = [_shown(item["input"]).strip("'").strip().lower().lstrip("+-") for item in items]
        kind = NonFiniteValue if any(word in ("nan", "inf", "infinity") for word in words) else InvalidInput
        return kind(detail, hint=NON_FINITE_HINT, errors=faults)
    return InvalidInput(detail, hint=SCHEMA_HINT, errors=faults)


def _is_branch(part: Any) -> bool:
    """Whether a part of a location names the branch of a union, not a field."""
    return isinstance(part, str) and (
        part in ("str", "int", "float") or part.startswith(("literal[", "function-", "constrained-", "dict["))
    )


def _shown(value: Any) -> str:
    text = reprlib.repr(value) if isinstance(value, dict | list) else repr(value[:80] if type(value) is str else value)
    return text if len(text) <= 80 else text[:77] + "..."


def _names_at(model: type[BaseModel], place: list[str]) -> list[str]:
    """The names of the fields at a place: of the model found there by following the annotations."""
    current: type[BaseModel] = model
    for part in place:
        if part.isdecimal():
            continue
        field = current.model_fields.get(part)
        inner = _model_in(field.annotation) if field else None
        if inner is None:
            break
        current = inner
    return list(current.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (list, Union, types.UnionType, Annotated):
        return next((m for m in map(_model_in, typing.get_args(annotation)) if m), None)
    return None

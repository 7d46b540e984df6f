"""Parses bodies and query parameters into models.

Bodies are read in two passes. `read_json` turns bytes into Python values and refuses ambiguous or hostile JSON: a name
given twice, nesting deeper than the limit, text after the document. It lets NaN and infinities through (Python's `json`
writes them), so that the error can say where they are: `not_finite` finds them, `refuse_not_finite` refuses them. The
models are strict: `true` is no number, "3" is not 3, and an unknown field is an error that names the nearest one.
"""

from __future__ import annotations

import json
import math
import re
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar, Union
from urllib.parse import parse_qsl

import pydantic
import pydantic_core
from pydantic import BaseModel, ConfigDict

from blackbox.errors import FieldError, InvalidInput, NonFiniteValue, nearest
from blackbox.study.settling import NON_FINITE_HINT
from blackbox_server.problems import SCHEMA_HINT, MalformedJson

M = TypeVar("M", bound=BaseModel)

MAX_DEPTH = 32
_CONTAINERS = (dict, list)


# Reading JSON ---------------------------------------------------------------------------------------------------------


def read_json(body: bytes) -> tuple[Any, bool]:
    """The value of a JSON document, and whether all its numbers are finite and its integers have at most 64 bits.

    Raises
    ------
    MalformedJson
        For anything that is not one JSON document in UTF-8, nested at most 32 deep, naming each member once.
    """
    try:
        value = pydantic_core.from_json(body)
    except ValueError as error:
        raise _malformed(body, str(error)) from None
    members, finite = _survey(value)
    if members != body.count(b":"):  # each member has a colon, so a surplus is in a string or of a name given twice
        json.loads(body, object_pairs_hook=_once)
    return value, finite


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
                items: Any = container.values()
            else:
                items = container
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
        why += " (integers of more than 4300 digits are refused)"
    elif body[:1] not in b"{[ \n\r\t":
        hint = "Send a JSON object; forms and multipart are not read."
    return MalformedJson(f"the body is not valid JSON: {why}", hint=hint, errors=[FieldError("", "malformed", why)])


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


def refuse_not_finite(value: Any, tolerant: bool = False) -> None:
    """Raise for numbers that are not finite, and for integers that other readers of JSON would change.

    Parameters
    ----------
    tolerant : whether the values of results may be anything.

    Raises
    ------
    NonFiniteValue
        With a pointer to each of the first 100.
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
        if len(endless) + len(long) == 100:
            break
    if endless:
        raise NonFiniteValue("; ".join(f.message for f in endless[:3]) + ".", hint=NON_FINITE_HINT, errors=endless)
    if long:
        raise InvalidInput("; ".join(f.message for f in long[:3]) + ".", hint="Send it as text.", errors=long)


# Fitting models -------------------------------------------------------------------------------------------------------


class Wire(BaseModel):
    """Base of the models of bodies: strict types, no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class Query(BaseModel):
    """Base of the models of query parameters: text is converted to the type of the field; others are ignored."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


Q = TypeVar("Q", bound=Query)


def fit_query(model: type[Q], text: bytes) -> Q:
    """The query string of an address as the model. If a name is given twice the last one counts.

    Raises
    ------
    InvalidInput
        With a pointer for each faulty parameter.
    """
    try:
        return model.model_validate(dict(parse_qsl(text.decode("latin-1"), keep_blank_values=True)))
    except pydantic.ValidationError as error:
        faults = [
            FieldError("".join(f"/{part}" for part in item["loc"]), item["type"], item["msg"])
            for item in error.errors(include_url=False)
        ]
        detail = "; ".join(f"query parameter {fault.pointer[1:]}: {fault.message}" for fault in faults)
        raise InvalidInput(detail, errors=faults) from None


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
        raise _unfit(error, model) from None


def _unfit(error: pydantic.ValidationError, model: type[BaseModel]) -> InvalidInput:
    faults = []
    spelled_out = False
    for item in error.errors(include_url=False)[:100]:
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
    if spelled_out:
        words = [str(item["input"]).strip().lower().lstrip("+-") for item in error.errors(include_url=False)]
        kind = NonFiniteValue if any(word in ("nan", "inf", "infinity") for word in words) else InvalidInput
        return kind(detail, hint=NON_FINITE_HINT, errors=faults)
    return InvalidInput(detail, hint=SCHEMA_HINT, errors=faults)


def _is_branch(part: Any) -> bool:
    """Whether a part of a location names the branch of a union, not a field."""
    return isinstance(part, str) and (
        part in ("str", "int", "float") or part.startswith(("literal[", "function-", "constrained-", "dict["))
    )


def _shown(value: Any) -> str:
    text = repr(value)
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

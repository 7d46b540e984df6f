"""What comes over the wire: how bodies are read, and the models they must fit.

Bodies are read in two passes. `read_json` turns bytes into Python values and refuses what JSON does not mean: a name
given twice, nesting deeper than the limit, text after the document. It lets NaN and infinities through (Python's `json`
writes them), because only then can the answer say where they are; `finite` finds them, `read_body` refuses them.
The models are strict: `true` is no number, "3" is not 3, and an unknown field is an error that names the nearest one.
"""

from __future__ import annotations

import json
import math
import re
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar, Union

import pydantic
import pydantic_core
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from blackbox.errors import FieldError, InvalidInput, NonFiniteValue, nearest
from blackbox.study.settling import NON_FINITE_HINT
from blackbox.study.side_data import MAX_BEHAVIOUR, MAX_SUM_NAMES
from blackbox.study.spec import Budget, LeaseDefaults, Parallelism
from blackbox_server.problems import SCHEMA_HINT, MalformedJson

M = TypeVar("M", bound=BaseModel)

MAX_DEPTH = 32
MAX_TRIAL = 2**53
_CONTAINERS = (dict, list)


# Reading JSON ---------------------------------------------------------------------------------------------------------


def read_json(body: bytes) -> tuple[Any, bool]:
    """The value of a JSON document, and whether all its numbers are finite, and its integers of at most 64 bits.

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
    if members != body.count(b":"):  # each member has a colon; texts may have more, and a name given twice is left over
        json.loads(body, object_pairs_hook=_once)
    return value, finite


def _survey(value: Any) -> tuple[int, bool]:
    """How many object members there are, and whether every number is one we can send back; refuses depth."""
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
    """A non-finite number as people write it."""
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
    tolerant : a result's value may be anything.

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
    """Base of what clients send: strict types, no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


def fit(model: type[M], raw: Any, shorten: str = "") -> M:
    """`raw` as the model.

    Parameters
    ----------
    shorten : a prefix to leave out of the pointers, where the client sent a shorter form than the model's.

    Raises
    ------
    InvalidInput
        With a JSON pointer per field at fault, and the nearest name for an unknown field.
    """
    try:
        return model.model_validate(raw)
    except pydantic.ValidationError as error:
        raise _unfit(error, model, shorten) from None


def _unfit(error: pydantic.ValidationError, model: type[BaseModel], shorten: str) -> InvalidInput:
    faults = []
    spelled_out = False
    for item in error.errors(include_url=False)[:100]:
        place = [str(part) for part in item["loc"] if not _is_branch(part)]
        pointer = "".join(f"/{escape(part)}" for part in place).removeprefix(shorten)
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
    """Names of the fields of the model that is found by walking down the annotations."""
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


# Wire models ----------------------------------------------------------------------------------------------------------


def trial_number(value: Any) -> int:
    """The number of a trial written as 41, "41" or "t_41"."""
    if type(value) is str:
        digits = value.removeprefix("t_")
        if digits.isascii() and digits.isdecimal() and len(digits) <= 16:
            return int(digits)
    elif type(value) is int and 0 <= value <= MAX_TRIAL:
        return value
    raise ValueError('expected a trial such as "t_41" or 41')


TrialNumber = Annotated[int, BeforeValidator(trial_number, json_schema_input_type=str | int)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Seconds = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Params = dict[str, Any]


class Ask(Wire):
    """Lease trials."""

    count: int = Field(1, ge=1, le=10**9)
    """How many at most; GET /v1/limits has the largest."""
    worker: Name | None = None
    """Who evaluates; by default the name of the key."""
    lease_seconds: Seconds | Literal["auto"] | None = None
    """How long without a heartbeat; by default as the study says."""
    wait_seconds: float = Field(0.0, ge=0, allow_inf_nan=False)
    """How long to wait when nothing is free (at most 30)."""
    resume: bool = False
    """First give the worker the leases it still has."""
    encoding: Literal["values", "seed"] = "values"
    """seed: vectors as a base and noise addresses, where the method works on those."""


class Failure(Wire):
    """Why an evaluation failed."""

    model_config = ConfigDict(extra="allow", strict=True, use_attribute_docstrings=True)

    type: str = ""
    message: str = ""
    retryable: bool = True
    """Whether another attempt may help."""


class Result(Wire):
    """One result. Without `params` it is for a trial that was asked."""

    trial: TrialNumber | None = None
    """The trial's id, such as "t_41"."""
    lease: Annotated[str, Field(max_length=200)] | None = None
    """The `lease.token` of the ask answer."""
    status: Literal["completed", "infeasible", "failed", "stopped", "released"] = "completed"
    value: float | None = None
    """The objective: a finite number."""
    stderr: float | None = Field(None, ge=0)
    """Standard error of the value."""
    n: int | None = Field(None, ge=1)
    """Number of samples behind it."""
    cost: dict[str, float] | None = None
    """What it took, such as {"seconds": 61.2, "usd": 0.03}."""
    behaviour: Annotated[list[float], Field(min_length=1, max_length=MAX_BEHAVIOUR)] | None = None
    """What the point did, in at most 256 numbers: where a robot ended, say. For methods that look for new behaviour."""
    sums: Annotated[dict[str, float | list[float]], Field(max_length=MAX_SUM_NAMES)] | None = None
    """Numbers and lists of numbers to add up over results, such as {"count": 200, "total": [0.1], "squares": [0.3]}."""
    info: dict[str, Any] | None = None
    """Anything small worth keeping."""
    reason: Annotated[str, Field(max_length=2000)] | None = None
    """Why a point is infeasible."""
    error: Failure | None = None
    """Why an evaluation failed."""
    fidelity: float | dict[str, Any] | None = None
    """How far a stopped evaluation got."""
    params: Params | None = None
    """A point that the study did not choose."""
    source: Name | None = None
    """Where such a point comes from."""
    key: Name | None = None
    """Idempotency key of such an item."""


class Tell(Wire):
    """Results, and perhaps the next ask."""

    results: list[Result]
    worker: Name | None = None
    ask: Ask | None = None
    """Lease the next trials in the same answer."""


class Heartbeat(Wire):
    """Renew leases."""

    leases: list[Annotated[str, Field(max_length=200)]]
    worker: Name | None = None
    extend_seconds: Seconds | None = None


class Enqueued(Wire):
    """A point to evaluate; with a value it is imported as finished."""

    params: Params
    value: float | None = None
    status: Literal["completed", "infeasible"] = "completed"
    source: Name | None = None
    key: Name | None = None
    info: dict[str, Any] | None = None


class Enqueue(Wire):
    """Points to evaluate, or finished ones."""

    trials: list[Enqueued] = Field(min_length=1)


class InterimReport(Wire):
    """An interim value; extends the lease."""

    lease: Annotated[str, Field(max_length=200)] | None = None
    step: int | None = None
    value: float | None = None


class Join(Wire):
    """Take part in federated rounds."""

    client: Name
    """The participant's name, unique in the study: letters, digits and . _ : @ - behind a letter or digit."""
    hosted: bool = False
    """Whether the participant's machine shall run here. The answer names a study whose trials are its points; asking
    and telling there is all that is left to do. This server then sees points and values."""
    weight: Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)] | None = None
    """Of a hosted participant, its share in means, such as its number of examples; default 1."""


class Reason(Wire):
    """Why."""

    reason: Annotated[str, Field(max_length=500)] | None = None


class Edit(Wire):
    """What may change about a study. Each part replaces the one that was there."""

    budget: Annotated[Budget, Field(strict=False)] | None = None
    labels: dict[str, str] | None = None
    lease: Annotated[LeaseDefaults, Field(strict=False)] | None = None
    parallelism: Annotated[Parallelism, Field(strict=False)] | None = None


class Fork(Wire):
    """A branch of a study."""

    name: Name | None = None
    step: int | None = Field(None, ge=0)
    """Generation to branch at; now by default."""
    algorithm: dict[str, Any] | str | None = None
    """Another algorithm starts fresh, with the parent's results as points it did not choose."""


class NewKey(Wire):
    """A key to make."""

    scopes: list[str] = Field(min_length=1)
    name: Name = "unnamed"
    project: Name | None = None
    """Another project than yours: only for key administrators of the root project."""
    expires_seconds: Seconds | None = None


class Nothing(Wire):
    """An empty object."""

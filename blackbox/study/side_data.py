"""The fields that a result may carry beside its value, each declared once.

`TOLD` is the table. The service's model of a result, its limits, `minimize` and the page of the protocol follow it; an
algorithm reads the fields it uses from `Results.extra`. To add a field, add its record, the algorithm that uses it and
its line in the page; Python clients send it in their `Result`.

`behaviour` is a list of finite numbers that describe a point (where a robot ended, how often it jumped): novelty
search looks for points whose behaviour is unlike that of others. `sums` are named numbers or lists of numbers of which
only the sum over results means something, such as the statistics of observations
``{"count": 200.0, "total": [...], "squares": [...]}``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, TypeAlias

from pydantic import Field

from blackbox.errors import FieldError, InvalidInput, NonFiniteValue, TooLarge

Sums: TypeAlias = "dict[str, float | list[float]]"

MAX_BEHAVIOUR = 256
"""Most numbers of a behaviour: it is stored with every result and compared with many others."""
MAX_SUM_NAMES = 64
"""Most names in `sums`."""


# Reading what an objective returns ------------------------------------------------------------------------------------


def behaviour_of(told: Any) -> list[float]:
    """A told behaviour as a list of floats.

    Parameters
    ----------
    told : (m,) a sequence or array of 1 to 256 finite numbers.

    Raises
    ------
    InvalidInput, NonFiniteValue, TooLarge
        If it is anything else; the message says what came.
    """
    numbers = _numbers(told, "/behaviour")
    if not 1 <= len(numbers) <= MAX_BEHAVIOUR:
        raise TooLarge(
            f"behaviour has {len(numbers)} numbers, expected 1 to {MAX_BEHAVIOUR}",
            hint="describe what the point did by a few numbers, such as where it ended; keep the rest elsewhere",
            errors=[FieldError("/behaviour", "too_long", f"{len(numbers)} numbers")],
        )
    return numbers


def sums_of(told: Any) -> Sums:
    """Told sums as floats and lists of floats.

    Parameters
    ----------
    told : finite numbers, or sequences or arrays of them, by name; at most 64 names.

    Raises
    ------
    InvalidInput, NonFiniteValue, TooLarge
        If it is anything else; the message says what came.
    """
    if not isinstance(told, Mapping) or not all(isinstance(name, str) for name in told):
        raise _unfit("/sums", "a mapping of names to numbers or lists of numbers", told)
    if len(told) > MAX_SUM_NAMES:
        raise TooLarge(
            f"sums has {len(told)} names, expected at most {MAX_SUM_NAMES}",
            hint="send numbers that belong together as one list",
            errors=[FieldError("/sums", "too_long", f"{len(told)} names")],
        )
    sums: Sums = {}
    for name, item in told.items():
        pointer = f"/sums/{name.replace('~', '~0').replace('/', '~1')}"
        item = item.tolist() if hasattr(item, "tolist") else item
        sums[name] = _numbers(item, pointer) if isinstance(item, list | tuple) else _number(item, pointer)
    return sums


def _numbers(told: Any, pointer: str) -> list[float]:
    told = told.tolist() if hasattr(told, "tolist") else told
    if not isinstance(told, Sequence) or isinstance(told, str | bytes):
        raise _unfit(pointer, "a list of numbers", told)
    return [_number(item, f"{pointer}/{i}") for i, item in enumerate(told)]


def _number(told: Any, pointer: str) -> float:
    told = told.item() if hasattr(told, "item") else told
    if isinstance(told, bool) or not isinstance(told, int | float):
        raise _unfit(pointer, "a number", told)
    if not math.isfinite(told):
        raise NonFiniteValue(
            f"{_words(pointer)} is {told}, expected a finite number",
            hint="leave out what could not be measured, or tell the point as infeasible",
            errors=[FieldError(pointer, "non_finite", f"got {told}")],
        )
    return float(told)


def _unfit(pointer: str, expected: str, told: Any) -> InvalidInput:
    came = f"{type(told).__name__} ({told!r:.80})"
    return InvalidInput(
        f"{_words(pointer)} must be {expected}, got {came}",
        errors=[FieldError(pointer, "wrong_type", f"expected {expected}")],
    )


def _words(pointer: str) -> str:
    return ".".join(pointer.split("/")[1:])


# The table ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ToldField:
    """One field that a result may carry beside its value.

    Attributes
    ----------
    type : its type on the wire, as pydantic reads it.
    about : its meaning, in one line of Markdown.
    used_by : the algorithms or features that use it; it is stored with the trial in any case.
    read : converts the value in a mapping that an objective returns; None: `minimize` does not take the field.
    too_large : advice if its JSON exceeds the service's `info_bytes`; None: its type bounds it.
    """

    type: Any
    about: str
    used_by: str = ""
    read: Callable[[Any], Any] | None = None
    too_large: str | None = None


TOLD: Mapping[str, ToldField] = MappingProxyType(
    {
        "stderr": ToldField(Annotated[float, Field(ge=0)], "Standard error of the value.", "the list of best points"),
        "n": ToldField(Annotated[int, Field(ge=1)], "Number of samples behind the value."),
        "cost": ToldField(
            dict[str, float],
            'What it took, such as `{"seconds": 61.2, "usd": 0.03}`.',
            "`budget.max_cost`, which sums `usd`",
        ),
        "behaviour": ToldField(
            Annotated[list[float], Field(min_length=1, max_length=MAX_BEHAVIOUR)],
            f"What the point did, in 1 to {MAX_BEHAVIOUR} numbers: where a robot ended, say.",
            "`deep_ga` with `novelty`",
            read=behaviour_of,
        ),
        "sums": ToldField(
            Annotated[dict[str, float | list[float]], Field(max_length=MAX_SUM_NAMES)],
            "Numbers and lists of numbers to add up over results, such as "
            '`{"count": 200, "total": [0.1], "squares": [0.3]}`; at most '
            f"{MAX_SUM_NAMES} names.",
            "`openai_es`, `ars` and `pgpe` with `observations`",
            read=sums_of,
            too_large="Add up over blocks of numbers, or send fewer digits.",
        ),
        "info": ToldField(
            dict[str, Any],
            "Anything small worth keeping.",
            too_large="Keep artefacts elsewhere and send their address.",
        ),
        "reason": ToldField(Annotated[str, Field(max_length=2000)], "Why a point is infeasible."),
        "fidelity": ToldField(float | dict[str, Any], "How far a stopped evaluation got."),
    }
)
"""Every such field by its name. (`error`, why an evaluation failed, is kept with them, but says what to do next.)"""

"""One evaluation: turns what an objective returns or raises into a result."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np

from blackbox_client.errors import InvalidRequest, NonFiniteValue
from blackbox_client.models import Failure, Result
from blackbox_client.protocol import plain

log = logging.getLogger("blackbox_client.worker")
Objective: TypeAlias = "Callable[..., Any]"
NonFinite = Literal["failed", "infeasible"]

_MESSAGE_LENGTH = 2000  # characters of an error message that are told
_OF_A_MAPPING = ("value", "behaviour", "sums")  # members of a mapping that an objective may return


class Infeasible(Exception):
    """Raise this in an objective if a point cannot be evaluated and the algorithm should learn that."""


def evaluate(objective: Objective, arguments: Sequence[Any], non_finite: NonFinite = "failed") -> Result:
    """Call an objective and describe the outcome in a `Result`; never raises an `Exception`, nor `SystemExit`.

    Parameters
    ----------
    objective : returns a number, a mapping with ``"value"`` and perhaps ``"behaviour"`` and ``"sums"`` (as in
        ``blackbox.minimize``), or a `Result`; may raise `Infeasible`.
    arguments : of the objective.
    non_finite : status of a result that is NaN or infinite.

    Returns
    -------
    Result without trial and lease; with its duration as ``cost["seconds"]`` unless the objective names a cost itself.
    """
    start = time.perf_counter()
    try:
        result = _result_of(objective(*arguments), non_finite)
    except Infeasible as error:
        result = Result(status="infeasible", reason=str(error)[:_MESSAGE_LENGTH] or None)
    except (Exception, SystemExit) as error:
        log.warning("the objective raised %s: %s", type(error).__name__, error, exc_info=True)
        said = (
            f"exit code {error.code or 0}"
            if isinstance(error, SystemExit) and not isinstance(error.code, str)
            else error
        )
        result = failure(type(error).__name__, str(said), retryable=True)
    if result.cost is None and result.status in ("completed", "stopped", "infeasible"):
        result = replace(result, cost={"seconds": round(time.perf_counter() - start, 6)})
    return result


def _result_of(returned: Any, non_finite: NonFinite) -> Result:
    if isinstance(returned, np.ndarray) and returned.size == 1:
        returned = returned.reshape(-1)[0]
    if isinstance(returned, Result):
        result = returned
    elif hasattr(returned, "keys") and hasattr(returned, "__getitem__"):
        fields = {name: returned[name] for name in returned.keys()}  # noqa: SIM118 -- not every mapping iterates its keys
        if not {"value"} <= set(fields) <= set(_OF_A_MAPPING):
            return unusable(
                f"the objective returned a mapping with {', '.join(map(repr, fields)) or 'nothing'}; return one with "
                '"value", and perhaps "behaviour" and "sums", or a Result, which has a place for more'
            )
        result = Result(**fields)
    elif isinstance(returned, bool | str | bytes) or returned is None:
        return unusable(f'the objective returned {returned!r:.100}; return a number, {{"value": number}} or a Result')
    else:
        result = Result(returned)
    try:
        item = plain(result.item())
    except NonFiniteValue as error:
        if non_finite == "infeasible":
            return Result(status="infeasible", reason=error.detail)
        return unusable(
            f"the objective returned a value that is not finite: {error.detail} If the point cannot be evaluated raise "
            'Infeasible, or run the worker with non_finite="infeasible"',
            kind="NonFiniteValue",
        )
    except InvalidRequest as error:
        return unusable(f"the objective returned something that cannot be told: {error}")
    scalar = item.get("value")
    if isinstance(scalar, int) and abs(scalar) > sys.float_info.max:
        return unusable(f"the objective returned an integer of {scalar.bit_length()} bits; return a finite float")
    if scalar is not None and (isinstance(scalar, bool) or not isinstance(scalar, int | float)):
        return unusable(f"the objective returned {scalar!r:.100} as its value; return one number")
    return result


def unusable(message: str, kind: str = "UnusableResult") -> Result:
    """The result of an objective whose return value cannot be told: a failure that is not tried again."""
    log.warning("%s", message)
    return failure(kind, message, retryable=False)


def failure(kind: str, message: str, *, retryable: bool) -> Result:
    """The result of an evaluation that failed; a long message is cut off."""
    error: Failure = {"type": kind, "message": message[:_MESSAGE_LENGTH], "retryable": retryable}
    return Result(status="failed", error=error)

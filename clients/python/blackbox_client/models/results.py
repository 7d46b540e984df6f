"""The one thing that goes to the server from an evaluation: its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypedDict

from blackbox_client.models.trials import Trial, TrialRef, trial_number

Status = Literal["completed", "infeasible", "failed", "stopped", "released"]


class Failure(TypedDict, total=False):
    """Why an evaluation failed; `retryable`: whether another attempt may help."""

    type: str
    message: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class Result:
    """The result of an evaluation: one item of a tell.

    An objective run by a `Worker` may return ``Result(value=..., info=...)``; the worker fills in trial and lease. By
    hand use `completed`, `infeasible`, `failed`, `stopped`, `released` and `injected`.

    Parameters
    ----------
    value : of the objective; a finite number.
    stderr, n : standard error of the value and the number of samples behind it.
    cost : what it took, such as ``{"seconds": 61.2, "usd": 0.03}``.
    behaviour : what the point did, at most 256 finite numbers; novelty search needs it.
    sums : finite numbers, and lists of them, to add up over results: ``{"count": n, "total": [...]}``.
    info : anything small worth keeping.
    status : ``"completed"`` is not written on the wire: a value says it.
    reason : why a point is infeasible.
    error : why the evaluation failed.
    fidelity : how far a stopped evaluation got.
    trial, lease : whose result it is.
    params, source, key : for an injected point: where, from whom, and the idempotency key of the item.
    """

    value: Any = None
    stderr: Any = None
    n: int | None = None
    cost: Mapping[str, Any] | None = None
    info: Mapping[str, Any] | None = None
    status: Status = "completed"
    reason: str | None = None
    error: Failure | None = None
    fidelity: Any = None
    trial: str | None = None
    lease: str | None = None
    params: Mapping[str, Any] | None = None
    source: str | None = None
    key: str | None = None
    behaviour: Any = None
    sums: Mapping[str, Any] | None = None

    def item(self) -> dict[str, Any]:
        """The item as the wire wants it: only what is set."""
        item = {name: value for name in _MEMBERS if (value := getattr(self, name)) is not None}
        if self.status == "completed":
            del item["status"]
        return item

    def of_trial(self, trial: TrialRef) -> Result:
        """This result, addressed to a trial, with its lease if that is known."""
        return replace(self, **_address(trial))


_MEMBERS = tuple(each.name for each in fields(Result))


def _address(trial: TrialRef) -> dict[str, Any]:
    lease = trial.lease.token if isinstance(trial, Trial) and trial.lease else None
    return {"trial": f"t_{trial_number(trial)}", "lease": lease}


def completed(
    trial: TrialRef,
    value: Any,
    *,
    stderr: Any = None,
    n: int | None = None,
    cost: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
    behaviour: Any = None,
    sums: Mapping[str, Any] | None = None,
) -> Result:
    """A finished evaluation.

    >>> completed("t_41", 0.183, n=5).item()
    {'value': 0.183, 'n': 5, 'trial': 't_41'}
    """
    more = {"behaviour": behaviour, "sums": sums}
    return Result(value, stderr, n, cost, info, **more, **_address(trial))


def infeasible(
    trial: TrialRef,
    reason: str = "",
    *,
    behaviour: Any = None,
    sums: Mapping[str, Any] | None = None,
) -> Result:
    """A point that cannot be evaluated: the algorithm learns from it."""
    more = {"behaviour": behaviour, "sums": sums}
    return Result(status="infeasible", reason=reason or None, **more, **_address(trial))


def failed(
    trial: TrialRef, message: str = "", *, error_type: str = "EvaluationError", retryable: bool = True
) -> Result:
    """An evaluator that broke: the algorithm ignores it; with `retryable` somebody tries again."""
    error: Failure = {"type": error_type, "message": message, "retryable": retryable}
    return Result(status="failed", error=error, **_address(trial))


def stopped(
    trial: TrialRef,
    value: Any,
    *,
    fidelity: Any = None,
    behaviour: Any = None,
    sums: Mapping[str, Any] | None = None,
) -> Result:
    """An evaluation ended early: the partial value, and how far it got."""
    more = {"fidelity": fidelity, "behaviour": behaviour, "sums": sums}
    return Result(value, status="stopped", **more, **_address(trial))


def released(trial: TrialRef) -> Result:
    """A trial given back unevaluated; counts against nothing."""
    return Result(status="released", **_address(trial))


def injected(
    params: Mapping[str, Any], value: Any = None, *, source: str | None = None, key: str | None = None, **more: Any
) -> Result:
    """The value of a point nobody asked for. `more` is what `Result` takes besides."""
    return Result(value, params=params, source=source, key=key, **more)

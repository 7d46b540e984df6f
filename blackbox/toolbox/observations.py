"""Running statistics of observations: sums from all evaluators, by which every evaluator of a step normalises alike.

A policy learns best from observations at a common scale, and their scale changes while the policy learns. Each
evaluator tells, beside its value, `sums` = {"count": n, "total": [...], "squares": [...]} of the observations it saw; a
method adds them up in (step, lane) order, and the payload of the next step's points carries the mean and standard
deviation back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from blackbox.errors import FieldError
from blackbox.records import JSON, Vector

__all__ = ["FLOOR", "Moments", "lack"]

FLOOR = 1e-2
"""No standard deviation is given as less: a coordinate that hardly ever moved would be blown up when it does."""
_MAX = 1e150  # limit on a sum, and its square on a sum of squares: the state of a method stays finite


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments over all observations so far: a monoid under addition. Of length 0 where observations are not asked for.

    Attributes
    ----------
    count : number of observations.
    total : (m,) float64, their sum.
    squares : (m,) float64, the sum of their squares.
    ignored : results whose sums were there but could not be used: another length, not numbers, not finite, negative
        where that cannot be.
    """

    count: float
    total: Vector
    squares: Vector
    ignored: int = 0

    @classmethod
    def zero(cls, length: int | None) -> Moments:
        """Return the moments of no observations of `length` numbers each; None: observations are not asked for."""
        return cls(0.0, np.zeros(length or 0), np.zeros(length or 0))

    def plus(self, extra: Sequence[Mapping[str, JSON]]) -> Moments:
        """Return the moments with the sums of the given results added, in their order.

        Parameters
        ----------
        extra : `Results.extra`. A result without `sums` adds nothing. Sums that do not fit are counted in `ignored`, so
            that they do not end the study: `lack` refuses them with a value, but an infeasible point may bring some.
        """
        if not len(self.total):
            return self
        count, total, squares, ignored = self.count, self.total, self.squares, self.ignored
        for told in extra:
            if told.get("sums") is None:
                continue
            read = _read(told["sums"], len(self.total))
            after = None if read is None else (count + read[0], total + read[1], squares + read[2])
            if after is None or max(after[0], np.abs(after[1]).max(), math.sqrt(after[2].max())) > _MAX:
                ignored += 1
            else:
                count, total, squares = after
        return Moments(count, total, squares, ignored)

    @property
    def mean(self) -> Vector:
        """(m,) mean; 0 before the first observation."""
        return self.total / max(self.count, 1.0)

    @property
    def std(self) -> Vector:
        """(m,) population standard deviation, at least `FLOOR`; 1 before the second observation."""
        if self.count < 2:
            return np.ones(len(self.total))
        mean = self.mean
        variance: Vector = self.squares / self.count - mean * mean
        return np.sqrt(np.maximum(variance, FLOOR * FLOOR))

    def payload(self) -> JSON:
        """Return the payload of a point: {"observations": {"count", "mean", "std"}}; use (observation - mean) / std.

        None where observations are not asked for.
        """
        if not len(self.total):
            return None
        return {"observations": {"count": self.count, "mean": self.mean.tolist(), "std": self.std.tolist()}}

    def metrics(self) -> dict[str, float]:
        """Return the number of observations told and of unusable sums; empty where observations are not asked for."""
        return {"observed": self.count, "sums_ignored": float(self.ignored)} if len(self.total) else {}


def lack(extra: Mapping[str, Any], length: int | None) -> FieldError | None:
    """Return the fault of a result whose sums over observations of `length` numbers are missing or unusable.

    None if there is none, or observations are not asked for (no length).
    """
    if length is None:
        return None
    fields = f'"count" of the observations seen, "total" and "squares" of {length} numbers each'
    if extra.get("sums") is None:
        return FieldError("/sums", "missing", f"expected {fields}; where none were seen, zeros")
    if _read(extra["sums"], length) is None:
        return FieldError("/sums", "unfit", f"expected {fields}, the squares not negative; got {_shape(extra['sums'])}")
    return None


def _shape(sums: Any) -> str:
    """Describe a value in few words."""
    if not isinstance(sums, Mapping):
        return type(sums).__name__
    parts = (f"{name} of {len(told)}" if isinstance(told, list | tuple) else str(name) for name, told in sums.items())
    return ", ".join(parts) or "nothing"


def _read(sums: Any, length: int) -> tuple[float, Vector, Vector] | None:
    """Return count, total and squares of one result, or None if they are unusable."""
    if not isinstance(sums, Mapping):
        return None
    count = sums.get("count")
    if isinstance(count, bool) or not isinstance(count, int | float) or not 0 <= count < math.inf:
        return None
    try:
        total, squares = (np.array(sums.get(name), dtype=np.float64) for name in ("total", "squares"))
    except (TypeError, ValueError, OverflowError):
        return None
    if total.shape != (length,) or squares.shape != (length,):
        return None
    if not (np.isfinite(total).all() and np.isfinite(squares).all() and (squares >= 0).all()):
        return None
    return float(count), total, squares

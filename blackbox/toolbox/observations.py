"""Running statistics of observations: what evaluators saw adds up, and every evaluator of a step normalises alike.

A policy wants its observations at a common scale, and that scale changes while the policy learns. Each evaluator tells,
beside its value, `sums` = {"count": n, "total": [...], "squares": [...]} of the observations it saw; a method adds them
up in (step, lane) order, and the payload of the next step's points carries the mean and standard deviation back.
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
_MAX = 1e150  # no sum goes beyond it, nor a sum of squares beyond its square: the state of a method stays finite


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments over all observations so far: a monoid under addition. Of length 0: nobody asks for observations.

    Attributes
    ----------
    count : observations.
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
        """Of no observations of `length` numbers; None: nobody asks for any."""
        return cls(0.0, np.zeros(length or 0), np.zeros(length or 0))

    def plus(self, extra: Sequence[Mapping[str, JSON]]) -> Moments:
        """These and what the given results tell, in their order.

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
        """(m,) 0 before the first observation."""
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
        """What an evaluator gets: {"observations": {"count", "mean", "std"}}; it uses (observation - mean) / std.

        None where nobody asks for observations.
        """
        if not len(self.total):
            return None
        return {"observations": {"count": self.count, "mean": self.mean.tolist(), "std": self.std.tolist()}}

    def metrics(self) -> dict[str, float]:
        """How many observations were told, and how many sums could not be used; empty where nobody asks for any."""
        return {"observed": self.count, "sums_ignored": float(self.ignored)} if len(self.total) else {}


def lack(extra: Mapping[str, Any], length: int | None) -> FieldError | None:
    """What a result must tell of the observations it saw, each of `length` numbers, and does not.

    None if nothing, as where nobody asks for observations (no length).
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
    """What came, in few words."""
    if not isinstance(sums, Mapping):
        return type(sums).__name__
    parts = (f"{name} of {len(told)}" if isinstance(told, list | tuple) else str(name) for name, told in sums.items())
    return ", ".join(parts) or "nothing"


def _read(sums: Any, length: int) -> tuple[float, Vector, Vector] | None:
    """Count, total and squares of one result, or None if they are not what they should be."""
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

"""All evaluations of a study: the best point under noise, and the evaluated points near a given one.

Equal points are replicates of one another. Values are minimised; NaN (infeasible) points are kept for `nearest`, and
are never best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from blackbox.errors import InvalidInput
from blackbox.records import Ints, Matrix, Vector


@dataclass(frozen=True, slots=True)
class Archive:
    """m distinct points with the statistics of their values.

    Attributes
    ----------
    points : (m, d) float64, in order of their first evaluation.
    mean : (m,) mean value of the feasible evaluations; NaN where there is none.
    n : (m,) number of feasible evaluations.
    stderr : (m,) standard error of the mean; NaN without replicates and without told standard errors.
    first : (m,) row of the first evaluation of each point.
    """

    points: Matrix
    mean: Vector
    n: Ints
    stderr: Vector
    first: Ints

    @classmethod
    def of(cls, points: Matrix, values: Vector, stderr: Vector | None = None) -> Archive:
        """Group evaluations by point.

        Parameters
        ----------
        points : (n, d) evaluated points; rows that are equal bit for bit are replicates.
        values : (n,) NaN where the point is infeasible.
        stderr : (n,) told standard errors of single values, NaN where none was told.

        Raises
        ------
        InvalidInput
            If the lengths differ or a value is infinite.
        """
        points = np.ascontiguousarray(points, dtype=np.float64)
        if points.ndim != 2 or len(points) != len(values) or (stderr is not None and len(stderr) != len(values)):
            raise InvalidInput(f"expected (n, d) points and n values, got {points.shape} and {len(values)}")
        if np.isinf(values).any():
            raise InvalidInput("values must be finite, or NaN for infeasible points")
        seen: dict[bytes, int] = {}
        group = np.array([seen.setdefault(row.tobytes(), len(seen)) for row in points], dtype=np.int64)
        m = len(seen)
        feasible = ~np.isnan(values)
        at = group[feasible]
        n = np.bincount(at, minlength=m)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.bincount(at, weights=values[feasible], minlength=m) / n
            square = np.bincount(at, weights=(values[feasible] - mean[at]) ** 2, minlength=m)
            error = np.where(n > 1, np.sqrt(square / (n - 1) / n), np.nan)
        if stderr is not None:
            told = feasible & ~np.isnan(stderr)
            single = np.isnan(error)
            error[single] = _scattered(group[told], stderr[told], m)[single]
        order = np.unique(group, return_index=True)[1] if m else np.empty(0, dtype=np.int64)
        return cls(points[order], mean, n.astype(np.int64), error, order.astype(np.int64))

    def __len__(self) -> int:
        return len(self.points)

    def noise(self) -> float:
        """Standard deviation of a single value, pooled over the points with a standard error; 0.0 if none has one."""
        known = ~np.isnan(self.stderr)
        if not known.any():
            return 0.0
        return float(np.sqrt(np.mean(self.stderr[known] ** 2 * self.n[known])))

    def best(self, k: int = 1) -> list[int]:
        """Rows of the (at most) k best feasible points by mean, best first; ties in order of evaluation."""
        feasible = np.flatnonzero(self.n > 0)
        return [int(i) for i in feasible[np.argsort(self.mean[feasible], kind="stable")][:k]]

    def incumbent(self, confidence: float = 1.0) -> int | None:
        """The point to trust: lowest mean + `confidence` standard errors.

        The lowest of many single values is partly luck. A point that was evaluated once therefore has the pooled noise
        as its standard error; n replicates have a smaller one. Without any sign of noise this is the best mean.

        Parameters
        ----------
        confidence : standard errors added to the mean.

        Returns
        -------
        Its row, or None if no point is feasible.
        """
        feasible = np.flatnonzero(self.n > 0)
        if not len(feasible):
            return None
        own, pooled = self.stderr[feasible], self.noise() / np.sqrt(self.n[feasible])
        error = np.where(
            np.isnan(own), pooled, np.maximum(own, pooled)
        )  # two equal values do not prove that noise is 0
        return int(feasible[np.argmin(self.mean[feasible] + confidence * error)])

    def nearest(self, point: Vector | Sequence[float], k: int = 1) -> list[int]:
        """Rows of the k points closest to a point (Euclidean, internal units), closest first."""
        distance = np.square(self.points - np.asarray(point, dtype=np.float64)).sum(axis=1)
        return [int(i) for i in np.argsort(distance, kind="stable")[:k]]


def _scattered(rows: Ints, values: Vector, m: int) -> Vector:
    """(m,) `values` at `rows`, NaN elsewhere."""
    out = np.full(m, np.nan)
    out[rows] = values
    return out

"""Values of a batch: their order, ranks and utilities, and the value that stands for a failed point.

Values are minimised. NaN is *no value* (infeasible) and ranks last, behind +inf; all NaN
are ties. Ties share the mean of what their places would get, so that no weight depends on the order of arrival.
"""

from __future__ import annotations

import sys

import numpy as np

from blackbox.records import Ints, Vector

__all__ = ["barrier", "centred_ranks", "lower", "lowest_and_median", "order", "ranks", "shared", "utilities"]


def order(values: Vector) -> Ints:
    """Return the indices from best to worst: ties keep their order, NaN comes last.

    Parameters
    ----------
    values : (n,) float64, minimised.

    Returns
    -------
    (n,) int64.
    """
    return np.asarray(values, dtype=np.float64).argsort(kind="stable")


def lowest_and_median(values: Vector) -> tuple[float, float] | None:
    """Return the lowest and the upper median of the finite values, or None if there are none.

    Parameters
    ----------
    values : (n,) float64; NaN and infinities are left out.
    """
    finite = np.sort(values[np.isfinite(values)])
    return (float(finite[0]), float(finite[len(finite) // 2])) if len(finite) else None


def lower(best: float | None, value: float) -> float:
    """Return the lower of the best value so far, if there is one, and another value."""
    return value if best is None else min(best, value)


def shared(values: Vector, table: Vector) -> Vector:
    """Assign `table[k]` to the k-th best value; ties share the mean of their entries.

    Parameters
    ----------
    values : (n,) float64, minimised.
    table : (n,) float64, by rank, best first.

    Returns
    -------
    (n,) float64, in the order of `values`, with the sum of `table`.
    """
    values = np.asarray(values, dtype=np.float64)
    places = values.argsort(kind="stable")
    ascending = values[places]
    tied = ascending[1:] == ascending[:-1]
    if values.size and ascending[-1] != ascending[-1]:  # NaN differs from itself, but all NaN are one tie
        tied |= np.isnan(ascending[:-1])
    if tied.any():
        edges = np.concatenate(([0], (~tied).nonzero()[0] + 1, [values.size]))
        sizes = edges[1:] - edges[:-1]
        table = (np.add.reduceat(table, edges[:-1]) / sizes).repeat(sizes)
    result = np.empty(values.size)
    result[places] = table
    return result


def ranks(values: Vector) -> Vector:
    """Return ranks from 0 for the best to n - 1 for the worst; ties share their mean rank.

    Parameters
    ----------
    values : (n,) float64, minimised. NaN ranks last.

    Returns
    -------
    (n,) float64.
    """
    return shared(values, np.arange(len(values), dtype=np.float64))


def centred_ranks(values: Vector) -> Vector:
    """Return the ranks of values mapped linearly to [-0.5, 0.5]; the best value gets -0.5.

    Parameters
    ----------
    values : (n,) float64
        Objective values, minimised. NaN (no value) ranks last; ties share their mean rank.

    Returns
    -------
    (n,) float64, sums to zero.

    Raises
    ------
    ValueError
        If n < 2.

    Notes
    -----
    Salimans et al. (2017), arXiv:1703.03864. Unlike the authors' code ties are shared, so that a flat objective gives a
    zero gradient instead of the order of arrival.
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"centred ranks need at least 2 values, got {n}")
    return shared(values, (np.arange(n) - 0.5 * (n - 1)) / (n - 1))


def utilities(values: Vector) -> Vector:
    """Return the rank utilities of natural evolution strategies: large for good values, zero-sum.

    Parameters
    ----------
    values : (n,) float64, minimised. NaN ranks last; ties share.

    Returns
    -------
    (n,) float64, sums to zero; the worse half gets -1/n.

    Raises
    ------
    ValueError
        If n < 2.

    Notes
    -----
    Wierstra et al. (2014), *Natural evolution strategies*, JMLR 15, section 3.1:
    u_k = max(0, ln(n/2 + 1) - ln k) / sum_j max(0, ln(n/2 + 1) - ln j) - 1/n for the k-th best.
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"utilities need at least 2 values, got {n}")
    raw = np.maximum(0.0, np.log(n / 2 + 1) - np.log(np.arange(1, n + 1)))
    return shared(values, raw / raw.sum() - 1 / n)


def barrier(values: Vector) -> float:
    """Return the value that stands for a failed point in a sequential solver: worse than all by as much as they differ.

    A solver that fits a model would be thrown off by +inf or 1e30; one that only compares needs no more than this.

    Parameters
    ----------
    values : (n,) float64, observed so far, without earlier barriers (each would double the next). NaN and
        infinities are left out.

    Returns
    -------
    Finite: the maximum plus the range. Where the range is zero (also for a single value), the maximum plus the larger
    of 1 and its size. Without any finite value 1e10: a number below later values would make the failed point look good.
    """
    values = np.asarray(values, dtype=np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 1e10
    top, bottom = float(finite.max()), float(finite.min())
    return min(top + ((top - bottom) or max(1.0, abs(top))), sys.float_info.max)

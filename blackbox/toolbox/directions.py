"""Families of random directions, each direction a function of its address (key, step, index).

Every family has one convention: E[u u^T] = I / d. So the mean of d <grad f, u> u is the gradient whatever the family, a
displacement of radius r has length r (for `normal` and in mean square), and radii and learning rates keep their
meaning when the family changes. What differs is the variance. For a linear f and q directions of one step,
E||g||^2 / ||grad f||^2 of that mean is

============  ====================  ====================================================================================
coordinate    d / q                 unit vectors with random signs, in random order without replacement
orthogonal    d / q                 rows of Haar-distributed orthonormal frames: exact for q = d
sphere        1 + (d - 1) / q       uniform on the unit sphere
rademacher    1 + (d - 1) / q       random signs over sqrt(d): every coordinate moves by the same amount
normal        1 + (d + 1) / q       standard normal numbers over sqrt(d)
============  ====================  ====================================================================================

(the first two for q <= d; the expected cosine of mean and gradient is about sqrt(q / (q + d)) for the others). All
are symmetric, u and -u are equally likely: the even part of F drops out of the mean, also in one-sided differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from blackbox.errors import InvalidInput
from blackbox.records import Ints, Matrix, Vector
from blackbox.rng import Key, normals, permutation, quantiles, rademacher

__all__ = ["Directions", "Family", "default_family"]

Family: TypeAlias = Literal["orthogonal", "sphere", "normal", "rademacher", "coordinate"]
"""The families, the one with the least variance first."""


def default_family(dim: int) -> Family:
    """Return orthonormal frames; in one dimension, where every frame is +1 or -1, normal numbers."""
    return "orthogonal" if dim > 1 else "normal"


@dataclass(frozen=True, slots=True)
class Directions:
    """A family of random directions in d dimensions.

    Attributes
    ----------
    family : its name.
    key : key of a noise stream, in which a direction has the address (step, index).
    dim : dimension d.
    frame : number of directions that are orthogonal to one another; at most d. Only for `orthogonal`, where the rows of
        a frame are computed together: take the number of directions of a step.
    """

    family: Family
    key: Key
    dim: int
    frame: int = 1

    def __post_init__(self) -> None:
        if self.family not in get_args(Family):
            raise InvalidInput(f"a family of directions is one of {', '.join(get_args(Family))}, got {self.family!r}")
        if not 1 <= self.frame <= self.dim:
            raise InvalidInput(
                f"a frame has 1 to d={self.dim} directions, got {self.frame}", hint="further ones get their own frame"
            )

    def rows(self, step: int, indices: Sequence[int] | Ints) -> Matrix:
        """Return the directions of the given indices.

        Parameters
        ----------
        step : >= 0.
        indices : (n,) >= 0, in any order, repeats allowed.

        Returns
        -------
        (n, d) float64; row i depends on `indices[i]` alone, bit for bit.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if self.family == "coordinate":
            where, sign = self.coordinates(step, wanted)
            u = np.zeros((len(wanted), self.dim))
            u[np.arange(len(wanted)), where] = sign
            return u
        if self.family == "orthogonal":
            u = np.empty((len(wanted), self.dim))
            for number in np.unique(wanted // self.frame).tolist():
                inside = wanted // self.frame == number
                u[inside] = _frame(self.key, step, number, self.frame, self.dim)[wanted[inside] % self.frame]
            return u
        if self.family == "rademacher":
            u = np.empty((len(wanted), self.dim))
            for i, number in enumerate(wanted.tolist()):
                u[i] = rademacher(self.key, step, number, self.dim)
            u /= np.sqrt(self.dim)
            return u
        z = normals(self.key, step, wanted, self.dim).astype(np.float64)
        # No row is zero: no normal number of `rng` is.
        z /= np.sqrt(self.dim) if self.family == "normal" else _norms(z)
        return z

    def coordinates(self, step: int, indices: Sequence[int] | Ints) -> tuple[Ints, Vector]:
        """Return the (n,) coordinate that each direction of the family `coordinate` moves, and its (n,) sign.

        The first d indices are all coordinates in random order with random signs, the next d another order with the
        other signs, so that two sweeps are central differences.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        where, sign = np.empty(len(wanted), dtype=np.int64), np.empty(len(wanted))
        sweeps = wanted // self.dim
        for sweep in np.unique(sweeps).tolist():
            inside = sweeps == sweep
            where[inside] = permutation(self.key, step, sweep, self.dim)[wanted[inside] % self.dim]
            sign[inside] = rademacher(self.key, step, sweep // 2, self.dim)[where[inside]] * (1 - 2 * (sweep % 2))
        return where, sign

    @property
    def reach(self) -> float:
        """Largest norm of a direction: 1, except for `normal`, whose noise ends at 4.32 standard deviations."""
        return float(quantiles()[-1]) if self.family == "normal" else 1.0

    def second_moment(self, n: int) -> float:
        """Return E||g||^2 / ||grad f||^2 of the mean over n directions of one step, for a linear f; 1 is exact."""
        d = self.dim
        if self.family == "coordinate":  # each coordinate is used `whole` or `whole + 1` times
            whole, rest = n // d, n % d / d
            return (d / n) ** 2 * (whole**2 + 2 * whole * rest + rest)
        if self.family == "orthogonal":  # frames are independent of one another
            sizes = [self.frame] * (n // self.frame) + [n % self.frame] * (n % self.frame > 0)
            return 1 + sum(size * (d - size) for size in sizes) / n**2
        return 1 + (d + 1 if self.family == "normal" else d - 1) / n


@lru_cache(maxsize=2)  # of the open step: its lanes are often asked one at a time, and each needs the whole frame
def _frame(key: Key, step: int, number: int, size: int, dim: int) -> Matrix:
    """Return (size, d) orthonormal rows, Haar-distributed: the Q of a normal matrix whose R has a positive diagonal.

    Mezzadri (2007), *How to generate random matrices from the classical compact groups*. LAPACK chooses the
    signs of R as it likes, and without the correction Q would not be uniform.
    """
    z = normals(key, step, range(number * size, (number + 1) * size), dim).astype(np.float64)
    q, r = np.linalg.qr(z.T)
    rows: NDArray[np.float64] = np.ascontiguousarray(np.where(np.diag(r) < 0, -q, q).T)
    rows.flags.writeable = False
    return rows


def _norms(z: Matrix) -> Matrix:
    """Return the (n, 1) Euclidean norms of the rows."""
    norms: Matrix = np.sqrt(np.square(z).sum(axis=1, keepdims=True))
    return norms

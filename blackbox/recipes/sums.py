"""Noise added to a base vector, and the weighted sums of noise by which base vectors are updated.

Both treat each coordinate by itself, in a fixed order of terms, so splitting the coordinates changes no bit; and both
work in pieces of `rng.CHUNK` coordinates, so the result is the only array as long as the vector.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from blackbox import rng
from blackbox.errors import BlobNotFound, InvalidInput, NonFiniteValue
from blackbox.recipes import slices
from blackbox.records import Term, Vector

Floats: TypeAlias = "NDArray[np.float32] | NDArray[np.float64]"
Blobs: TypeAlias = "Mapping[str, Floats] | Callable[[str], Floats]"
"""From a digest to its vector: a mapping, or a function that raises KeyError."""

KINDS = {"normal": rng.normal, "rademacher": rng.rademacher}
"""The kinds of noise a term may name."""

MAX_SCALE = 3.4e38  # where float32 ends


def digest(vector: Floats) -> str:
    """The name of a vector: sha256 over its type, length and little-endian bytes.

    Parameters
    ----------
    vector : (dim,) float32 or float64.

    Returns
    -------
    64 hexadecimal digits, the sha256 of "<f4 DIM\\n" (or "<f8 DIM\\n") followed by the numbers.

    Raises
    ------
    InvalidInput
        If the array is not one-dimensional float32 or float64.
    """
    if vector.ndim != 1 or vector.dtype.kind != "f" or vector.dtype.itemsize not in (4, 8):
        raise InvalidInput(f"a base vector is (dim,) float32 or float64, got {vector.shape} {vector.dtype}")
    little = np.ascontiguousarray(vector, dtype=f"<f{vector.dtype.itemsize}")
    name = hashlib.sha256(f"{little.dtype.str} {len(little)}\n".encode())
    name.update(little.data)
    return name.hexdigest()


def add_terms(
    base: Floats | None,
    origin: int,
    terms: Sequence[Term],
    key: rng.Key,
    dim: int,
    blobs: Blobs | None,
    start: int,
    count: int,
    out: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Fill `out` with base + terms at the coordinates [start, start + count).

    Parameters
    ----------
    base, origin : the base vector, or a part of it that begins at the coordinate `origin`; None: zeros.
    out : (count,) float32.

    Returns
    -------
    `out`.
    """
    draws = _prepared(terms, key, dim, blobs)
    scales = [np.float32(checked_scale(term.scale)) for term in terms]
    scratch = np.empty(min(count, rng.CHUNK), dtype=np.float32)
    for a, b in rng.pieces(start, count):
        piece, noise = out[a - start : b - start], scratch[: b - a]
        piece[:] = np.float32(0) if base is None else base[a - origin : b - origin]
        for draw, scale in zip(draws, scales, strict=True):
            draw(a, noise)
            np.multiply(noise, scale, out=noise)
            np.add(piece, noise, out=piece)
    return out


def weighted_noise_sum(
    terms: Sequence[Term],
    key: rng.Key,
    dim: int,
    blobs: Blobs | None = None,
    *,
    start: int = 0,
    count: int | None = None,
    square: bool = False,
    slicer: slices.Slicer = slices.WHOLE,
) -> Vector:
    """The coordinates [start, start + count) of the sum of scale * noise over the terms, in float64.

    Terms of one address (the two halves of a mirrored pair, say) share one draw; their scales are summed exactly first.
    The order of the terms does not matter: they are summed by (step, lane, stream, kind, factor).

    Parameters
    ----------
    terms : the terms; the `scale` of each is its weight in the sum.
    key, dim, blobs, start, count : as `materialise`.
    square : sum scale * noise^2 instead, for updates of standard deviations.
    slicer : computes the parts of a large sum.

    Returns
    -------
    (count,) float64, bitwise the same however the coordinates are split.

    Raises
    ------
    BlobNotFound, InvalidInput
        As `materialise`.

    Notes
    -----
    One multiplication and one addition per term instead of a matrix product: BLAS sums in an order that depends on the
    shape, so its last bits change with the split, and the time goes into drawing the noise in any case.
    """
    start, count = checked_extent(dim, start, count)
    weights: dict[tuple[int, int, int, str, str], list[float]] = {}
    for term in terms:
        address = (term.step, term.lane, term.stream, term.kind, term.weight or "")
        weights.setdefault(address, []).append(checked_scale(term.scale))
    summed = [(address, math.fsum(weights[address])) for address in sorted(weights)]
    rows = [
        Term(stream, step, lane, weight, kind, factor or None)
        for (step, lane, stream, kind, factor), weight in summed
        if weight != 0
    ]
    factors = {row.weight: find_blob(blobs, row.weight, dim) for row in rows if row.weight is not None}
    return slicer.compute(partial(_summed, rows, key, dim, factors, square), start, start + count, len(rows))


def _summed(
    rows: Sequence[Term], key: rng.Key, dim: int, factors: Mapping[str, Floats], square: bool, part: slices.Part
) -> Vector:
    """The coordinates [start, stop) of the rows' sum, added in their order."""
    start, stop = part
    draws = _prepared(rows, key, dim, factors)
    total = np.zeros(stop - start, dtype=np.float64)
    scratch = np.empty(min(stop - start, rng.CHUNK), dtype=np.float32)
    product = np.empty(min(stop - start, rng.CHUNK), dtype=np.float64)
    for a, b in rng.pieces(start, stop - start):
        noise, weighted, piece = scratch[: b - a], product[: b - a], total[a - start : b - start]
        for row, draw in zip(rows, draws, strict=True):
            draw(a, noise)
            if square:
                np.multiply(noise, noise, out=noise)
            np.multiply(noise, row.scale, out=weighted, dtype=np.float64)
            np.add(piece, weighted, out=piece)
    return total


def _prepared(
    terms: Sequence[Term], key: rng.Key, dim: int, blobs: Blobs | None
) -> list[Callable[[int, NDArray[np.float32]], None]]:
    """For each term a function (a, out) that writes noise * factor of the coordinates [a, a + len(out)) into `out`."""
    streams = {number: key.stream(number) for number in {term.stream for term in terms}}

    def prepare(term: Term) -> Callable[[int, NDArray[np.float32]], None]:
        if term.kind not in KINDS:
            raise InvalidInput(f"the noise of a term is one of {', '.join(KINDS)}, got {term.kind!r}")
        draw = KINDS[term.kind]
        stream = streams[term.stream]
        factor = None if term.weight is None else find_blob(blobs, term.weight, dim)

        def write(a: int, out: NDArray[np.float32]) -> None:
            draw(stream, term.step, term.lane, dim, a, len(out), out)
            if factor is not None:
                np.multiply(out, factor[a : a + len(out)].astype(np.float32, copy=False), out=out)

        return write

    return [prepare(term) for term in terms]


def find_blob(blobs: Blobs | None, name: str, dim: int) -> Floats:
    """(dim,) the vector with this digest.

    Raises
    ------
    BlobNotFound
        If it is not among the blobs.
    InvalidInput
        If its shape is not (dim,).
    """
    try:
        vector = blobs(name) if callable(blobs) else (blobs or {})[name]
    except KeyError:
        raise BlobNotFound(f"no vector with sha256 {name} is at hand", hint="fetch it and pass it in blobs") from None
    if vector.shape != (dim,):
        raise InvalidInput(f"the vector with sha256 {name} must have shape ({dim},), got {vector.shape}")
    return vector


def checked_extent(dim: int, start: int, count: int | None) -> tuple[int, int]:
    """(start, count) with count None read as all up to the end; raises `InvalidInput` outside [0, dim)."""
    count = dim - start if count is None else count
    if not (dim > 0 and 0 <= start <= dim and 0 <= count <= dim - start):
        raise InvalidInput(f"coordinates [{start}, {start + count}) are not inside [0, {dim})")
    return start, count


def checked_scale(scale: float) -> float:
    """The scale of a term; raises `NonFiniteValue` if it is not finite in float32."""
    if not abs(scale) <= MAX_SCALE:  # also refuses NaN
        raise NonFiniteValue(f"the scale of a term must be a finite float32, got {scale}")
    return float(scale)

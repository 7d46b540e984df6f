"""Vectors as they travel: finite float32, written in JSON as lists of numbers or as base64."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from blackbox.errors import FieldError, InvalidContribution
from blackbox.validation import invalid

Floats: TypeAlias = NDArray[np.float32]
"""(n,) float32, as it travels."""

LISTED = 64
"""Vectors up to this length are written as lists in JSON, longer ones as base64."""


def written(vector: Floats) -> list[float] | str:
    """Return a vector as JSON: a list up to `LISTED` numbers, else base64 of little-endian float32."""
    if len(vector) <= LISTED:
        return [float(v) for v in vector]
    return base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode()


def read(sent: Sequence[float] | str, at: str) -> Floats:
    """Return the vector that was sent as a list of numbers or as base64.

    Parameters
    ----------
    sent : what `written` returns; a list may be of any length.
    at : JSON pointer to it, for the error.

    Raises
    ------
    InvalidContribution
        If it is neither, or has a number that is no finite float32.
    """
    if isinstance(sent, str):
        try:
            raw = base64.b64decode(sent, validate=True)
            vector = np.frombuffer(raw, "<f4")
        except (binascii.Error, ValueError):
            fault = FieldError(at, "bad_base64", "must be a list of numbers, or base64 of little-endian float32")
            raise invalid(InvalidContribution, [fault]) from None
        return finite(vector.astype(np.float32), at)
    return finite(np.array(sent, dtype=np.float64), at)


def finite(vector: NDArray[Any], at: str) -> Floats:
    """Return a vector as float32.

    Raises
    ------
    InvalidContribution
        If it is no vector of floats, or one of them is no finite float32.
    """
    if vector.ndim != 1 or vector.dtype.kind != "f":
        fault = FieldError(at, "wrong_type", f"must be a vector of floats, got {vector.dtype} of shape {vector.shape}")
        raise invalid(InvalidContribution, [fault])
    with np.errstate(over="ignore"):
        narrow = vector.astype(np.float32)
    if not np.isfinite(narrow).all():
        bad = int(np.flatnonzero(~np.isfinite(narrow))[0])
        fault = FieldError(at, "non_finite", f"must hold finite float32 numbers, got {vector[bad]} at index {bad}")
        raise invalid(InvalidContribution, [fault])
    return narrow


def norm(vector: NDArray[Any]) -> float:
    """Return the Euclidean norm of a vector, with the same bits whatever BLAS is installed."""
    return math.sqrt(math.fsum(np.square(vector, dtype=np.float64).tolist()))

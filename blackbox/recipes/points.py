"""Building the points of recipes, whole or any slice of them, and the wire form of a seed-encoded point."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from blackbox import rng
from blackbox.errors import InvalidInput, NonFiniteValue
from blackbox.recipes.cache import PrefixCache
from blackbox.recipes.sums import Blobs, add_terms, checked_extent, find_blob
from blackbox.recipes.wire import to_json
from blackbox.records import JSON, Recipe


def materialise(
    recipe: Recipe,
    key: rng.Key,
    dim: int,
    blobs: Blobs | None = None,
    *,
    start: int = 0,
    count: int | None = None,
    out: NDArray[np.float32] | None = None,
    cache: PrefixCache | None = None,
) -> NDArray[np.float32]:
    """The coordinates [start, start + count) of a recipe's point.

    Parameters
    ----------
    recipe : base vector and terms; the terms are added in their order.
    key : the study's key; a term's noise has the key `key.stream(term.stream)`.
    dim : length of the whole point.
    blobs : base and factors by digest. They are trusted: nothing is hashed here.
    start, count : the coordinates wanted; count None reads to the end. A slice equals that slice of the whole point.
    out : (count,) float32 to write into, or None for a new array.
    cache : keeps the points of parents, for recipes of which many share all but the last term.

    Returns
    -------
    (count,) float32.

    Raises
    ------
    BlobNotFound
        If the base or a factor is not among the blobs.
    InvalidInput
        If an address is impossible, a kind unknown, a scale not finite, or an array not of the right shape.

    Notes
    -----
    All in float32, rounded after every operation: x = base; then for each term x = x + scale * (noise * factor). So a
    parent's point can be the base of its child: continuing from it gives the same bits as starting at the root.
    """
    start, count = checked_extent(dim, start, count)
    if out is None:
        out = np.empty(count, dtype=np.float32)
    elif out.shape != (count,) or out.dtype != np.float32:
        raise InvalidInput(f"out must be ({count},) float32, got {out.shape} {out.dtype}")
    base = None if recipe.base is None else find_blob(blobs, recipe.base, dim)
    if cache is not None and len(recipe.terms) > 1 and cache.takes(4 * count):
        parent, n = cache.parent(recipe, key, dim, blobs, base, start, count)
        return add_terms(parent, start, recipe.terms[n:], key, dim, blobs, start, count, out)
    return add_terms(base, 0, recipe.terms, key, dim, blobs, start, count, out)


def check(
    recipe: Recipe, key: rng.Key, dim: int, blobs: Blobs | None = None, cache: PrefixCache | None = None
) -> dict[str, JSON]:
    """The first two and the last number of the point, by which a worker checks that it rebuilt the same vector.

    Returns
    -------
    {"index": [0, 1, dim - 1], "value": [...]} without repeats; the values are the float32 numbers, exactly.

    Raises
    ------
    NonFiniteValue
        If one of them is not finite: JSON cannot carry it.
    """
    first = materialise(recipe, key, dim, blobs, count=min(2, dim), cache=cache)
    last = materialise(recipe, key, dim, blobs, start=min(dim, max(2, dim - 1)), cache=cache)
    values = [*first.tolist(), *last.tolist()]
    if not np.isfinite(values).all():
        raise NonFiniteValue(f"a recipe's point must be finite, got {values} at its first two and last coordinates")
    return {"index": [*range(len(first)), dim - 1][: len(values)], "value": values}


def seed_encoded(
    recipe: Recipe, key: rng.Key, dim: int, blobs: Blobs | None = None, cache: PrefixCache | None = None
) -> dict[str, JSON]:
    """The JSON form of a seed-encoded trial's point (`blackbox_client.recipes.rebuild` reads it).

    The server adds the trial's id and the address of the base (`base.version`, `base.href`).

    Raises
    ------
    BlobNotFound, InvalidInput
        As `materialise` and `check`.
    """
    wire = to_json(recipe)
    return {
        "encoding": "seed/1",
        "dim": dim,
        "dtype": "f32",
        "base": None if recipe.base is None else {"sha256": recipe.base},
        "ops": wire["ops"],
        "rng": rng.NAME,
        "key": key.hex(),
        "check": check(recipe, key, dim, blobs, cache),
    }

"""A cache of the points of parents, so that a child costs one term however many ancestors it has."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from blackbox import rng
from blackbox.recipes.sums import Blobs, Floats, add_terms
from blackbox.recipes.wire import pack_term
from blackbox.records import Recipe


class PrefixCache:
    """Least-recently-used cache of the points of recipes' prefixes, so that a child costs one term.

    Children of one parent share all terms but the last. The parent's point is kept; a new parent is built from its
    longest cached prefix. May be shared by threads and by studies.

    Parameters
    ----------
    max_bytes : size of the cache. A point that is larger by itself is built without it.

    Attributes
    ----------
    n_bytes : size of the cached points.
    """

    def __init__(self, max_bytes: int = 2**28) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._kept: OrderedDict[tuple[bytes, int, int], NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def takes(self, n_bytes: int) -> bool:
        """Whether a point of this size fits into the cache."""
        return n_bytes + _OVERHEAD <= self.max_bytes

    def parent(
        self, recipe: Recipe, key: rng.Key, dim: int, blobs: Blobs | None, base: Floats | None, start: int, count: int
    ) -> tuple[NDArray[np.float32], int]:
        """(count,) the coordinates [start, start + count) of base and all terms but the last, and the number of terms.

        Parameters as for `materialise`; `base` is the whole base vector, or None.
        """
        wanted = len(recipe.terms) - 1
        names = _prefix_names(recipe, key, dim)
        found, n = None, wanted
        with self._lock:
            while n > 0 and (found := self._kept.get((names[n], start, count))) is None:
                n -= 1
            if found is not None:
                self._kept.move_to_end((names[n], start, count))
        if found is not None and n == wanted:
            return found, wanted
        point, origin = (base, 0) if found is None else (found, start)
        built = np.empty(count, dtype=np.float32)
        add_terms(point, origin, recipe.terms[n:wanted], key, dim, blobs, start, count, built)
        built.flags.writeable = False
        with self._lock:
            if self._kept.setdefault((names[wanted], start, count), built) is built:
                self.n_bytes += built.nbytes + _OVERHEAD
            while self.n_bytes > self.max_bytes:
                _, oldest = self._kept.popitem(last=False)
                self.n_bytes -= oldest.nbytes + _OVERHEAD
        return built, wanted


_OVERHEAD = 256  # bytes of a kept point beside its numbers


def cache_key(recipe: Recipe, key: rng.Key, dim: int, n_terms: int | None = None) -> str:
    """The name of the point of the first `n_terms` terms, by which a child looks up its parent's vector.

    Parameters
    ----------
    recipe : the child.
    key, dim : also part of the name, so that studies may share one cache.
    n_terms : number of terms, counted like a slice (-1: all but the last); None: all of them.

    Returns
    -------
    64 hexadecimal digits.
    """
    return _prefix_names(Recipe(recipe.base, recipe.terms[:n_terms]), key, dim)[-1].hex()


def _prefix_names(recipe: Recipe, key: rng.Key, dim: int) -> list[bytes]:
    """The names of the points of the first 0, 1, 2, ... terms, by one running hash."""
    running = hashlib.sha256(f"{rng.NAME} {key.hex()} {dim} {recipe.base}\n".encode())
    names = [running.digest()]
    for i, term in enumerate(recipe.terms):
        running.update(pack_term(term, i))
        names.append(running.digest())
    return names

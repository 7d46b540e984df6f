"""Points as sums: a base vector plus noise named by its address, so that a million numbers travel as a hundred bytes.

`materialise` builds a point, whole or any slice of it; `weighted_noise_sum` is the other direction, the update of an
evolution strategy. Both treat each coordinate alone, in a fixed order of terms, so no cut of the coordinates changes a
bit; and both work in pieces of `rng.CHUNK` coordinates, so nothing as long as the vector is needed beside the result.

The wire forms are specified for other languages in clients/NOISE.md; `blackbox_client.recipes` is the client's own
implementation of them.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from blackbox import rng, slices
from blackbox.errors import BlobNotFound, CodecError, InvalidInput, NonFiniteValue
from blackbox.records import JSON, Recipe, Term, Vector

Floats: TypeAlias = "NDArray[np.float32] | NDArray[np.float64]"
Blobs: TypeAlias = "Mapping[str, Floats] | Callable[[str], Floats]"
"""From a digest to its vector: a mapping, or a function that raises KeyError."""

KINDS = {"normal": rng.normal, "rademacher": rng.rademacher}
"""The kinds of noise a term may name."""

_MAX_SCALE = 3.4e38  # where float32 ends


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


# Building points ------------------------------------------------------------------------------------------------------


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
    blobs : where base and factors are found by digest. They are trusted: nothing is hashed here.
    start, count : the coordinates wanted; count None reads to the end. A slice equals that slice of the whole point.
    out : (count,) float32 to build in, or None for a new array.
    cache : where the points of parents are kept, for recipes of which many share all but the last term.

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
    start, count = _extent(dim, start, count)
    if out is None:
        out = np.empty(count, dtype=np.float32)
    elif out.shape != (count,) or out.dtype != np.float32:
        raise InvalidInput(f"out must be ({count},) float32, got {out.shape} {out.dtype}")
    base = None if recipe.base is None else _blob(blobs, recipe.base, dim)
    if cache is not None and len(recipe.terms) > 1 and cache.takes(4 * count):
        parent, n = cache.parent(recipe, key, dim, blobs, base, start, count)
        return _add(parent, start, recipe.terms[n:], key, dim, blobs, start, count, out)
    return _add(base, 0, recipe.terms, key, dim, blobs, start, count, out)


def _add(
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
    """`out` filled with base + terms at the coordinates [start, start + count); base[0] is the coordinate `origin`."""
    draws = _prepared(terms, key, dim, blobs)
    scales = [np.float32(_finite(term.scale)) for term in terms]
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
    terms : what to sum; a term's `scale` is its weight in the sum.
    key, dim, blobs, start, count : as `materialise`.
    square : sum scale * noise^2 instead, for updates of standard deviations.
    slicer : who computes the parts of a large sum.

    Returns
    -------
    (count,) float64, bitwise the same however the coordinates are cut.

    Raises
    ------
    BlobNotFound, InvalidInput
        As `materialise`.

    Notes
    -----
    One multiplication and one addition per term instead of a matrix product: BLAS sums in an order that depends on the
    shape, so its last bits change with the cut, and the time goes into making the noise in any case.
    """
    start, count = _extent(dim, start, count)
    weights: dict[tuple[int, int, int, str, str], list[float]] = {}
    for term in terms:
        address = (term.step, term.lane, term.stream, term.kind, term.weight or "")
        weights.setdefault(address, []).append(_finite(term.scale))
    summed = [(address, math.fsum(weights[address])) for address in sorted(weights)]
    rows = [
        Term(stream, step, lane, weight, kind, factor or None)
        for (step, lane, stream, kind, factor), weight in summed
        if weight != 0
    ]
    factors = {row.weight: _blob(blobs, row.weight, dim) for row in rows if row.weight is not None}
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
        factor = None if term.weight is None else _blob(blobs, term.weight, dim)

        def write(a: int, out: NDArray[np.float32]) -> None:
            draw(stream, term.step, term.lane, dim, a, len(out), out)
            if factor is not None:
                np.multiply(out, factor[a : a + len(out)].astype(np.float32, copy=False), out=out)

        return write

    return [prepare(term) for term in terms]


def _blob(blobs: Blobs | None, name: str, dim: int) -> Floats:
    try:
        vector = blobs(name) if callable(blobs) else (blobs or {})[name]
    except KeyError:
        raise BlobNotFound(f"no vector with sha256 {name} is at hand", hint="fetch it and pass it in blobs") from None
    if vector.shape != (dim,):
        raise InvalidInput(f"the vector with sha256 {name} must have shape ({dim},), got {vector.shape}")
    return vector


def _extent(dim: int, start: int, count: int | None) -> tuple[int, int]:
    count = dim - start if count is None else count
    if not (dim > 0 and 0 <= start <= dim and 0 <= count <= dim - start):
        raise InvalidInput(f"coordinates [{start}, {start + count}) are not inside [0, {dim})")
    return start, count


def _finite(scale: float) -> float:
    if not abs(scale) <= _MAX_SCALE:  # also refuses NaN
        raise NonFiniteValue(f"the scale of a term must be a finite float32, got {scale}")
    return float(scale)


# Wire forms -----------------------------------------------------------------------------------------------------------


_DIGITS = re.compile("0|[1-9][0-9]{0,19}", re.ASCII)
_SHA256 = re.compile("[0-9a-f]{64}")


def to_json(recipe: Recipe) -> dict[str, JSON]:
    """{"base": digest or null, "ops": [...]}, members always in this order, so that equal recipes give equal text."""
    return {"base": recipe.base, "ops": [_op(term) for term in recipe.terms]}


def _op(term: Term) -> JSON:
    op: dict[str, JSON] = {
        "op": term.kind,
        "stream": str(term.stream),  # text: a fork's stream may need all 64 bits, and JavaScript has 53
        "step": int(term.step),  # from an array it may be a NumPy integer, which json refuses
        "lane": int(term.lane),
        "scale": float(term.scale),
    }
    return op if term.weight is None else {**op, "weight": term.weight}


def from_json(value: Mapping[str, Any]) -> Recipe:
    """The recipe that `to_json` wrote.

    Raises
    ------
    InvalidInput
        If a member is missing, unknown, of the wrong type or out of range; says which.
    """
    if not isinstance(value, Mapping) or set(value) != {"base", "ops"} or not isinstance(value["ops"], list | tuple):
        raise InvalidInput(f'a recipe is {{"base": ..., "ops": [...]}}, got {value!r:.200}')
    base = value["base"]
    terms = tuple(_term(op, f"ops[{i}]") for i, op in enumerate(value["ops"]))
    return Recipe(None if base is None else _sha256(base, "base"), terms)


def _term(op: Any, where: str) -> Term:
    needed = {"op", "stream", "step", "lane", "scale"}
    if not isinstance(op, Mapping) or not needed <= set(op) <= needed | {"weight"}:
        raise InvalidInput(
            f"{where} needs the members {', '.join(sorted(needed))} and may have weight, got {op!r:.200}"
        )
    if op["op"] not in KINDS:
        raise InvalidInput(f"{where}.op must be one of {', '.join(KINDS)}, got {op['op']!r}")
    stream, scale, weight = op["stream"], op["scale"], op.get("weight")
    if not isinstance(stream, str) or not (_DIGITS.fullmatch(stream) and int(stream) < 1 << 64):
        raise InvalidInput(f'{where}.stream must be a 64-bit integer as text, like "0", got {stream!r}')
    for name in ("step", "lane"):
        if type(op[name]) is not int or not 0 <= op[name] < 1 << 64:
            raise InvalidInput(f"{where}.{name} must be an integer in [0, 2^64), got {op[name]!r}")
    if type(scale) not in (int, float):
        raise InvalidInput(f"{where}.scale must be a number, got {scale!r}")
    weight = None if weight is None else _sha256(weight, f"{where}.weight")
    return Term(int(stream), op["step"], op["lane"], _finite(scale), op["op"], weight)


def _sha256(text: Any, where: str) -> str:
    if not isinstance(text, str) or not _SHA256.fullmatch(text):
        raise InvalidInput(f"{where} must be a sha256 of 64 lower-case hexadecimal digits, got {text!r:.100}")
    return text


_VERSION = 1
_HEAD = struct.Struct("<BBI")  # version, base follows?, number of terms
_TERM = struct.Struct("<BBQQQd")  # kind, factor follows?, stream, step, lane, scale
_PACKED_KINDS = {"normal": rng.NORMAL, "rademacher": rng.RADEMACHER}


def pack(recipe: Recipe) -> bytes:
    """The recipe in bytes: 6, plus 32 with a base, plus 34 per term (72 in all for a candidate of one term).

    Raises
    ------
    InvalidInput
        If a digest, kind, scale or address cannot be packed.
    """
    parts = [_HEAD.pack(_VERSION, recipe.base is not None, len(recipe.terms))]
    if recipe.base is not None:
        parts.append(bytes.fromhex(_sha256(recipe.base, "base")))
    parts += [_packed_term(term, i) for i, term in enumerate(recipe.terms)]
    return b"".join(parts)


def _packed_term(term: Term, i: int) -> bytes:
    if term.kind not in _PACKED_KINDS:
        raise InvalidInput(f"terms[{i}].kind must be one of {', '.join(_PACKED_KINDS)}, got {term.kind!r}")
    kind, scale = _PACKED_KINDS[term.kind], _finite(term.scale)
    try:
        packed = _TERM.pack(kind, term.weight is not None, term.stream, term.step, term.lane, scale)
    except struct.error:
        raise InvalidInput(f"stream, step and lane must be in [0, 2^64), got {term}") from None
    return packed if term.weight is None else packed + bytes.fromhex(_sha256(term.weight, f"terms[{i}].weight"))


def unpack(packed: bytes) -> Recipe:
    """The recipe that `pack` wrote.

    Raises
    ------
    CodecError
        If the bytes are of another version, cut short, or not a packed recipe.
    """
    kinds = {code: kind for kind, code in _PACKED_KINDS.items()}
    rest = memoryview(packed)

    def take(n: int) -> memoryview:
        nonlocal rest
        if len(rest) < n:
            raise CodecError(f"a packed recipe ends early: {n} more bytes expected, {len(rest)} left")
        head, rest = rest[:n], rest[n:]
        return head

    def flag(value: int) -> bool:
        if value > 1:
            raise CodecError(f"a flag of a packed recipe must be 0 or 1, got {value}")
        return value == 1

    def terms(n_terms: int) -> Iterator[Term]:
        for _ in range(n_terms):
            code, has_weight, stream, step, lane, scale = _TERM.unpack(take(_TERM.size))
            if code not in kinds or not abs(scale) <= _MAX_SCALE:
                raise CodecError(f"a packed term has the unknown kind {code} or the scale {scale}")
            yield Term(stream, step, lane, scale, kinds[code], take(32).hex() if flag(has_weight) else None)

    version, has_base, n_terms = _HEAD.unpack(take(_HEAD.size))
    if version != _VERSION:
        raise CodecError(f"a packed recipe of version {version}; this program reads version {_VERSION}")
    base = take(32).hex() if flag(has_base) else None
    recipe = Recipe(base, tuple(terms(n_terms)))
    if len(rest):
        raise CodecError(f"{len(rest)} bytes left over after a packed recipe")
    return recipe


def check(
    recipe: Recipe, key: rng.Key, dim: int, blobs: Blobs | None = None, cache: PrefixCache | None = None
) -> dict[str, JSON]:
    """The point's first two numbers and its last, by which a worker proves that it rebuilt the same vector.

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
    """What a seed-encoded trial says about its point (`blackbox_client.recipes.rebuild` reads it).

    The server adds what it alone knows: the trial's id, and where the base is found (`base.version`, `base.href`).

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


class PrefixCache:
    """Points of the first terms of recipes, so that a child costs one term however many ancestors it has.

    Children of one parent share all terms but the last. What is kept is the parent's point; where that is new, it is
    built from the longest prefix at hand. The least recently used points go when there are too many bytes. May be
    shared by threads and by studies.

    Parameters
    ----------
    max_bytes : most that is kept. A point that alone is larger is built without the cache.
    """

    def __init__(self, max_bytes: int = 2**28) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._kept: OrderedDict[tuple[bytes, int, int], NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def takes(self, n_bytes: int) -> bool:
        """Whether a point of this size is kept at all."""
        return n_bytes + _OVERHEAD <= self.max_bytes

    def parent(
        self, recipe: Recipe, key: rng.Key, dim: int, blobs: Blobs | None, base: Floats | None, start: int, count: int
    ) -> tuple[NDArray[np.float32], int]:
        """The coordinates [start, start + count) of all terms but the last, and how many terms that is."""
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
        _add(point, origin, recipe.terms[n:wanted], key, dim, blobs, start, count, built)
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
    """The name of the point that the first `n_terms` terms make: a child looks up its parent's vector with it.

    Parameters
    ----------
    recipe : the child.
    key, dim : also part of the name, so that studies may share one cache.
    n_terms : how many terms to keep, counted like a slice (-1: all but the last); None is all of them.

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
        running.update(_packed_term(term, i))
        names.append(running.digest())
    return names

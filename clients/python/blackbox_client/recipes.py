"""Rebuild a candidate from the few hundred bytes of a seed-encoded trial.

A trial of a large problem names its point instead of listing it: a base vector by its digest, and noise by its address.
This is the client's own implementation of the specification `philox4x64/quantile16-f32/1` (clients/NOISE.md), on NumPy
alone; the tests hold it to the server's, byte for byte.

>>> trial = {
...     "encoding": "seed/1", "dim": 3, "dtype": "f32", "rng": "philox4x64/quantile16-f32/1",
...     "key": "00112233445566778899aabbccddeeff", "base": None,
...     "ops": [{"op": "normal", "stream": "0", "step": 412, "lane": 7, "scale": 0.5}],
... }
>>> rebuild(trial)
array([ 0.16561997, -0.07852949,  0.4297539 ], dtype=float32)
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

RNG = "philox4x64/quantile16-f32/1"
"""The noise specification this module implements."""

Floats: TypeAlias = "NDArray[np.float32] | NDArray[np.float64]"

_QUANTILES_SHA256 = "1cfbba1e07e34386a57626f82aeb43e6ed54ba70a3ea6b7d964dc66a841074a8"
_CHUNK = 1 << 16  # coordinates built at a time: what they need stays in the cache
_MAX = (1 << 64) - 1


class RecipeError(ValueError):
    """This trial cannot be rebuilt here. Release it: another worker may be able to."""


class UnknownEncoding(RecipeError):
    """An encoding, number type or noise specification that this client does not know; a newer client may."""


class UnknownOp(RecipeError):
    """An operation that this client does not know; a newer client may."""


class WrongBlob(RecipeError):
    """The base vector or a factor is missing, of another length, or not the one the trial names."""


class CheckMismatch(RecipeError):
    """The rebuilt vector differs from the server's in one of its check values."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A vector with its digest, hashed once and then used for many trials.

    Attributes
    ----------
    vector : (dim,) float32 or float64, a read-only view; do not change what is behind it.
    sha256 : its digest, see `blob_sha256`.
    """

    vector: Floats
    sha256: str

    @classmethod
    def of(cls, vector: Floats) -> Blob:
        """Hash a vector.

        Raises
        ------
        WrongBlob
            If it is not a one-dimensional array of float32 or float64.
        """
        view = vector.view()
        view.flags.writeable = False
        return cls(view, blob_sha256(view))


def blob_sha256(vector: Floats) -> str:
    """sha256 of "<f4 DIM\\n" (or "<f8 DIM\\n") followed by the little-endian numbers, in hexadecimal.

    Raises
    ------
    WrongBlob
        If the vector is not a one-dimensional array of float32 or float64.
    """
    if vector.ndim != 1 or vector.dtype.kind != "f" or vector.dtype.itemsize not in (4, 8):
        raise WrongBlob(f"a base vector is (dim,) float32 or float64, got {vector.shape} {vector.dtype}")
    little = np.ascontiguousarray(vector, dtype=f"<f{vector.dtype.itemsize}")
    name = hashlib.sha256(f"{little.dtype.str} {len(little)}\n".encode())
    name.update(little.data)
    return name.hexdigest()


def rebuild(
    trial: Mapping[str, Any],
    base: Blob | Floats | None = None,
    *,
    factors: Mapping[str, Blob | Floats] | None = None,
    out: NDArray[np.float32] | None = None,
    cache: PrefixCache | None = None,
) -> NDArray[np.float32]:
    """The point of a seed-encoded trial, byte for byte as the server means it.

    Parameters
    ----------
    trial : the trial as the server sent it: encoding, dim, dtype, base, ops, rng, key and, if it has one, check.
    base : (dim,) the vector that `trial["base"]["sha256"]` names; None where the trial has no base. An array is hashed
        at every call, a `Blob` only when it is made.
    factors : (dim,) each, by digest: the vectors that ops name as their `weight`.
    out : (dim,) float32 to build in, so that a worker needs one buffer for all its trials; or None for a new array.
    cache : keeps the points of parents, so that a trial which shares all but its last op with others costs one op.

    Returns
    -------
    (dim,) float32.

    Raises
    ------
    UnknownEncoding, UnknownOp
        If the trial needs something this client does not know.
    WrongBlob
        If base or factors are missing, or not those the trial names.
    CheckMismatch
        If the result differs from the server's check values.
    RecipeError
        If the trial is malformed. All of the above are RecipeErrors too.
    """
    for name, known in (("encoding", "seed/1"), ("dtype", "f32"), ("rng", RNG)):
        if trial.get(name) != known:
            raise UnknownEncoding(
                f"this client knows {name} {known!r}, got {trial.get(name)!r}; update blackbox-zoo-client"
            )
    dim = _integer(trial, "dim")
    try:
        key = bytes.fromhex(trial["key"])
    except (KeyError, TypeError, ValueError):
        key = b""
    if len(key) != 16:
        raise RecipeError(f"key must be 32 hexadecimal digits, got {trial.get('key')!r}")
    if out is None:
        out = np.empty(dim, dtype=np.float32)
    elif out.shape != (dim,) or out.dtype != np.float32:
        raise RecipeError(f"out must be ({dim},) float32, got {out.shape} {out.dtype}")

    named, ops = trial.get("base"), trial.get("ops")
    if not (named is None or (isinstance(named, Mapping) and "sha256" in named)):
        raise RecipeError(f'base must be null or {{"sha256": ...}}, got {named!r:.200}')
    if not isinstance(ops, list | tuple) or not all(isinstance(op, Mapping) for op in ops):
        raise RecipeError(f"ops must be a list of operations, got {ops!r:.200}")
    start = None if named is None else _vector(base, named["sha256"], dim, "the base")
    terms = [_Term(op, key, dim, factors or {}) for op in ops]
    if cache is not None and len(ops) > 1 and cache.takes(4 * dim):
        start, terms = cache.parent(trial, start, terms), terms[-1:]
    _add(start, terms, out)
    _verify(out, trial.get("check"))
    return out


def _add(start: Floats | None, terms: Sequence[_Term], out: NDArray[np.float32]) -> None:
    """`out` filled with start + terms, rounded to float32 after every operation, in this order."""
    dim = len(out)
    scratch = np.empty(min(dim, _CHUNK), dtype=np.float32)
    for a in range(0, dim, _CHUNK):
        b = min(dim, a + _CHUNK)
        piece, noise = out[a:b], scratch[: b - a]
        piece[:] = np.float32(0) if start is None else start[a:b]
        for term in terms:
            term.write(a, noise)
            np.multiply(noise, term.scale, out=noise)
            np.add(piece, noise, out=piece)


class PrefixCache:
    """Points of all ops but the last: children of one parent share them, and cost one op each.

    A new parent is built from the longest prefix at hand, usually its own parent. The least recently used points go
    when there are too many bytes; threads may share a cache, and so may studies.

    Parameters
    ----------
    max_bytes : most that is kept. Points that alone are larger are built without the cache.
    """

    def __init__(self, max_bytes: int = 2**28) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._kept: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def takes(self, n_bytes: int) -> bool:
        """Whether a point of this size is small enough to be kept."""
        return n_bytes <= self.max_bytes

    def parent(self, trial: Mapping[str, Any], base: Floats | None, terms: Sequence[_Term]) -> NDArray[np.float32]:
        """(dim,) the point of all ops but the last; `terms` are the ops of the trial, ready to write."""
        named = trial.get("base")
        running = hashlib.sha256(json.dumps([trial["key"], trial["dim"], named and named["sha256"]]).encode())
        names = [running.digest()]
        for op in trial["ops"][:-1]:
            running.update(json.dumps(op, sort_keys=True).encode())
            names.append(running.digest())
        n = len(names) - 1
        with self._lock:
            while n > 0 and names[n] not in self._kept:
                n -= 1
            found = self._kept.get(names[n])
            if found is not None:
                self._kept.move_to_end(names[n])
                if n == len(names) - 1:
                    return found
        built = np.empty(trial["dim"], dtype=np.float32)
        _add(base if found is None else found, terms[n:-1], built)
        built.flags.writeable = False
        with self._lock:
            if self._kept.setdefault(names[-1], built) is built:
                self.n_bytes += built.nbytes
            while self.n_bytes > self.max_bytes:
                _, oldest = self._kept.popitem(last=False)
                self.n_bytes -= oldest.nbytes
        return built


def _verify(vector: NDArray[np.float32], check: Mapping[str, Any] | None) -> None:
    if check is None:
        return
    for i, value in zip(check["index"], check["value"], strict=True):
        if vector[i] != np.float32(value):
            raise CheckMismatch(
                f"coordinate {i} must be {value!r}, rebuilt {float(vector[i])!r}: client and server disagree about the "
                "noise; do not evaluate this point"
            )


def _vector(blob: Blob | Floats | None, sha256: str, dim: int, what: str) -> Floats:
    if blob is None:
        raise WrongBlob(f"{what} with sha256 {sha256} is needed; fetch it and pass it in")
    blob = blob if isinstance(blob, Blob) else Blob.of(blob)
    if blob.sha256 != sha256:
        raise WrongBlob(f"{what} must have sha256 {sha256}, got {blob.sha256}; fetch it again")
    if blob.vector.shape != (dim,):
        raise WrongBlob(f"{what} must have {dim} numbers, got {len(blob.vector)}")
    return blob.vector


def _integer(value: Mapping[str, Any], name: str) -> int:
    number = value.get(name)
    if type(number) is not int or number < (name == "dim"):
        raise RecipeError(f"{name} must be a {'positive' if name == 'dim' else 'non-negative'} integer, got {number!r}")
    return number


# Noise ----------------------------------------------------------------------------------------------------------------


class _Term:
    """One op of a recipe, ready to write its noise * factor anywhere."""

    def __init__(self, op: Mapping[str, Any], key: bytes, dim: int, factors: Mapping[str, Blob | Floats]) -> None:
        # kind is counter word 1; a block of four words holds this many numbers
        kinds = {"normal": (1, 16, _normal), "rademacher": (2, 256, _rademacher)}
        if op.get("op") not in kinds or set(op) - {"op", "stream", "step", "lane", "scale", "weight"}:
            raise UnknownOp(
                f"this client knows the ops {', '.join(kinds)}, got {op!r:.200}; update blackbox-zoo-client"
            )
        self.kind, self.per_block, self.numbers = kinds[op["op"]]
        self.step, self.dim = _integer(op, "step"), dim
        stride = 1 << (-(-dim // self.per_block) - 1).bit_length()
        self.first = _integer(op, "lane") * stride
        if self.step > _MAX or self.first + stride > _MAX + 1:
            raise RecipeError(f"step and lane must fit into 64 bits at dim={dim}, got {op!r:.200}")
        try:
            self.key = _stream_key(key, int(op["stream"]))
        except (KeyError, TypeError, ValueError):
            raise RecipeError(f"stream must be an integer as text, got {op!r:.200}") from None
        scale = op.get("scale")
        if not isinstance(scale, int | float) or not abs(scale) <= 3.4e38:  # where float32 ends; also refuses NaN
            raise RecipeError(f"scale must be a finite float32, got {scale!r}")
        self.scale = np.float32(scale)
        named = op.get("weight")
        self.factor = None if named is None else _vector(factors.get(named), named, dim, "the factor")

    def write(self, a: int, out: NDArray[np.float32]) -> None:
        """The coordinates [a, a + len(out)), where a is a multiple of the chunk."""
        n_blocks = -(-len(out) // self.per_block)
        block = self.first + a // self.per_block
        self.numbers(_generator.draw(self.key, self.kind, self.dim, self.step, block, n_blocks), out)
        if self.factor is not None:
            np.multiply(out, self.factor[a : a + len(out)].astype(np.float32, copy=False), out=out)


def _normal(words: NDArray[np.uint64], out: NDArray[np.float32]) -> None:
    """Each 16 bits, lowest first, choose a quantile; "clip" skips a check that cannot fail."""
    _quantiles().take(words.view("<u2")[: len(out)], out=out, mode="clip")


def _rademacher(words: NDArray[np.uint64], out: NDArray[np.float32]) -> None:
    """Each bit, lowest first, chooses a sign: 1 is +1 and 0 is -1."""
    bits = np.unpackbits(words.view(np.uint8), count=len(out), bitorder="little")
    np.subtract(bits * np.float32(2), np.float32(1), out=out)


def _stream_key(key: bytes, stream: int) -> list[int]:
    text = str(stream).encode()
    message = key + b"s" + len(text).to_bytes(8, "little") + text
    digest = hashlib.blake2b(message, digest_size=16, person=b"blackbox-noise-1").digest()
    return [int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")]


@cache
def _quantiles() -> NDArray[np.float32]:
    """(65536,) float32: the standard-normal quantiles of (i + 1/2) / 65536."""
    normal = NormalDist()
    upper = np.array([normal.inv_cdf((i + 0.5) / 65536) for i in range(32768, 65536)]).astype(np.float32)
    table = np.concatenate([-upper[::-1], upper])
    digest = hashlib.sha256(table.astype("<f4").tobytes()).hexdigest()
    if digest != _QUANTILES_SHA256:
        raise RuntimeError(f"this platform computes another table of normal quantiles: sha256 {digest}")
    return table


class _Generator(threading.local):
    """One Philox per thread, pointed at an address by its public `state`."""

    def __init__(self) -> None:
        self.philox = np.random.Philox(key=0)

    def draw(self, key: list[int], kind: int, dim: int, step: int, block: int, n_blocks: int) -> NDArray[np.uint64]:
        # NumPy increments the counter before it makes a block, hence one less
        counter = [block - 1, kind, dim, step] if block else [_MAX, kind - 1, dim, step]
        state: Any = {
            "bit_generator": "Philox",
            "state": {"counter": counter, "key": key},
            "buffer": [0, 0, 0, 0],
            "buffer_pos": 4,  # nothing left in the buffer
            "has_uint32": 0,
            "uinteger": 0,
        }
        self.philox.state = state
        words: NDArray[np.uint64] = self.philox.random_raw(4 * n_blocks)
        return words if sys.byteorder == "little" else words.byteswap()


_generator = _Generator()

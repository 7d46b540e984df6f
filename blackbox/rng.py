"""Noise as a pure function of its address, specification `philox4x64/quantile16-f32/1` (clients/NOISE.md).

There is no position that advances: a number is addressed by (key, kind, length of the vector, step, lane, coordinate),
so asking twice, on two machines or in another order gives the same bits. The bits are Philox4x64-10 in counter mode:

======  =============================================================================================================
word 0  lane * S + block, with S the smallest power of two that holds the blocks of one lane: lanes are neighbours
word 1  the kind of noise (`NORMAL`, `RADEMACHER`, ...): kinds never share bits under one key
word 2  `dim`, the length of the whole vector: vectors of different length never share bits either
word 3  step
======  =============================================================================================================

Different addresses never share a counter. A block is four 64-bit words. NumPy promises these raw bits for ever but not
its distributions (NEP 19), so the bits become numbers here, in a way that is the same in any language.

`start` and `count` read the coordinates [start, start + count) at the cost of their own blocks only: the result equals
that slice of the whole vector, bit for bit.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from operator import index
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.errors import InvalidInput

NAME = "philox4x64/quantile16-f32/1"
"""The name of this specification on the wire. It changes whenever any bit of any kind of noise changes."""

NORMAL, RADEMACHER, UNIFORM, INTEGERS, PERMUTATION = 1, 2, 3, 4, 5
"""Counter word 1. From 1 on, so that a counter stepped back by one never borrows from word 2 (`_Generator.draw`)."""

QUANTILES_SHA256 = "1cfbba1e07e34386a57626f82aeb43e6ed54ba70a3ea6b7d964dc66a841074a8"
"""SHA-256 of the quantile table as little-endian float32."""

CHUNK = 1 << 16
"""Coordinates drawn at a time. Fewer need more calls, more do not fit into the cache; no bit depends on it."""

_WASTE = 64
"""Unused blocks between two neighbouring lanes up to which one draw is cheaper than a call per lane."""

_U16 = np.dtype("<u2")
_PERSON = b"blackbox-noise-1"
_MAX = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Key:
    """128 bits that identify a family of noise. Equal paths give equal keys, different paths different ones.

    >>> study = Key.from_seed(7).child("studies", "demo")
    >>> study == Key.from_seed(7).child("studies").child("demo")
    True
    >>> study.stream(0).hex()
    'af58eeb262ff285839df8428b8d11cba'

    Attributes
    ----------
    words : the two 64-bit words that Philox takes; little-endian, they are the sixteen bytes of `hex`.
    """

    words: tuple[int, int]

    @classmethod
    def from_seed(cls, seed: int | str) -> Key:
        """The root of a tree of keys. The integer 7 and the text "7" are different seeds."""
        return cls((0, 0)).child(seed)

    @classmethod
    def from_hex(cls, text: str) -> Key:
        """The key that `hex` wrote.

        Raises
        ------
        InvalidInput
            If the text is not 32 hexadecimal digits.
        """
        try:
            digest = bytes.fromhex(text)
        except (TypeError, ValueError):
            digest = b""
        if len(digest) != 16 or len(text) != 32:
            raise InvalidInput(f"a noise key is 32 hexadecimal digits, got {text!r}")
        return cls._of(digest)

    def hex(self) -> str:
        """32 hexadecimal digits."""
        return self._bytes().hex()

    def child(self, *names: int | str) -> Key:
        """The key at the end of a path of names below this one: BLAKE2b, one name at a time."""
        key = self
        for name in names:
            key = key._derive(b"t", name) if isinstance(name, str) else key._derive(b"i", str(index(name)))
        return key

    def stream(self, number: int) -> Key:
        """The key of a numbered stream: an independent use of noise in a study, and the `stream` of a `Term`."""
        return self._derive(b"s", str(index(number)))

    def _derive(self, tag: bytes, text: str) -> Key:
        # The tag distinguishes "7", 7 and stream 7. Parent and tag have a fixed size and the text is preceded by its
        # length, so no two paths hash the same bytes.
        payload = text.encode()
        message = self._bytes() + tag + len(payload).to_bytes(8, "little") + payload
        return self._of(hashlib.blake2b(message, digest_size=16, person=_PERSON).digest())

    def _bytes(self) -> bytes:
        return b"".join(word.to_bytes(8, "little") for word in self.words)

    @classmethod
    def _of(cls, digest: bytes) -> Key:
        return cls((int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")))


# Raw bits -------------------------------------------------------------------------------------------------------------


class _Generator(threading.local):
    """One Philox per thread, set to an address by its public `state`: about 1 us, where constructing one takes 13."""

    def __init__(self) -> None:
        self.philox = np.random.Philox(key=0)
        self.address: dict[str, list[int]] = {
            "counter": [0, 0, 0, 0],
            "key": [0, 0],
        }  # lists: arrays are 5 times slower
        self.state: Any = {
            "bit_generator": "Philox",
            "state": self.address,
            "buffer": [0, 0, 0, 0],
            "buffer_pos": 4,  # the buffer is empty: the next word comes from the counter
            "has_uint32": 0,
            "uinteger": 0,
        }

    def draw(self, key: Key, kind: int, dim: int, step: int, block: int, n_blocks: int) -> NDArray[np.uint64]:
        """(4 * n_blocks,) little-endian words of consecutive blocks."""
        # NumPy increments the counter before it computes a block, hence one less, with a borrow from word 1 at block 0.
        self.address["counter"] = [block - 1, kind, dim, step] if block else [_MAX, kind - 1, dim, step]
        self.address["key"] = [*key.words]
        self.philox.state = self.state
        words: NDArray[np.uint64] = self.philox.random_raw(4 * n_blocks)
        return words if sys.byteorder == "little" else words.byteswap()


_generator = _Generator()


def _stride(dim: int, per_block: int) -> int:
    """S: the smallest power of two >= the blocks of one lane."""
    return 1 << (-(-dim // per_block) - 1).bit_length()


def _words(
    key: Key, kind: int, per_block: int, dim: int, step: int, lane: int, start: int, count: int
) -> NDArray[np.uint64]:
    """The whole blocks of one lane that contain the coordinates [start, start + count), count > 0."""
    first = start // per_block
    last = (start + count - 1) // per_block
    return _generator.draw(key, kind, dim, step, lane * _stride(dim, per_block) + first, last - first + 1)


def _checked(per_block: int, dim: int, step: int, lane: int, start: int, count: int | None) -> tuple[int, ...]:
    """The address as Python integers; raises `InvalidInput` if it is out of range."""
    dim, step, lane, start = index(dim), index(step), index(lane), index(start)
    n = dim - start if count is None else index(count)
    if not 0 < dim <= _MAX:
        raise InvalidInput(f"dim must be at least 1, got {dim}")
    if not (0 <= start <= dim and 0 <= n <= dim - start):
        raise InvalidInput(f"coordinates [{start}, {start + n}) are not inside [0, {dim})")
    if not 0 <= step <= _MAX:
        raise InvalidInput(f"step must be in [0, 2^64), got {step}")
    n_lanes = (_MAX + 1) // _stride(dim, per_block)
    if not 0 <= lane < n_lanes:
        raise InvalidInput(f"lane must be in [0, {n_lanes}) at dim={dim}, got {lane}")
    return dim, step, lane, start, n


def pieces(start: int, count: int) -> Iterator[tuple[int, int]]:
    """[start, start + count) split at multiples of CHUNK, which are block boundaries for every kind of noise."""
    stop = start + count
    while start < stop:
        end = min(stop, (start // CHUNK + 1) * CHUNK)
        yield start, end
        start = end


# Normal ---------------------------------------------------------------------------------------------------------------


@cache
def quantiles() -> NDArray[np.float32]:
    """(65536,) float32, read-only: entry i is the standard-normal quantile of (i + 1/2) / 65536.

    Antisymmetric; variance 0.99998, kurtosis 2.9992, support +-4.3249.

    Raises
    ------
    RuntimeError
        If this machine computes another table: its noise would silently differ from that of all others.

    Notes
    -----
    Algorithm AS 241 (Wichura 1988, doi:10.2307/2347330) from the standard library, good to 1e-15. The entry nearest
    to a boundary between two float32 numbers stays 1.2e-12 away from it (relative), so errors of 1e4 units in the
    last place of float64 would still give this table; the digest is checked nevertheless.
    """
    normal = NormalDist()
    upper = np.array([normal.inv_cdf((i + 0.5) / 65536) for i in range(32768, 65536)]).astype(np.float32)
    table = np.concatenate([-upper[::-1], upper])
    digest = hashlib.sha256(table.astype("<f4").tobytes()).hexdigest()
    if digest != QUANTILES_SHA256:
        raise RuntimeError(
            f"the table of normal quantiles has sha256 {digest}, expected {QUANTILES_SHA256}: the logarithm or square "
            "root of this platform is broken, and noise made here would not match any other machine"
        )
    table.flags.writeable = False
    return table


def normal(
    key: Key,
    step: int,
    lane: int,
    dim: int,
    start: int = 0,
    count: int | None = None,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Standard-normal numbers of one lane: each 16-bit piece of the raw words, lowest first, indexes `quantiles`.

    Parameters
    ----------
    key, step, lane, dim : the address; `dim` is the length of the whole vector.
    start, count : the coordinates wanted; count None reads to the end.
    out : (count,) float32 to write into, or None for a new array.

    Returns
    -------
    (count,) float32.

    Raises
    ------
    InvalidInput
        If the coordinates are outside the vector, step or lane is negative or too large, or `out` does not fit.
    """
    dim, step, lane, start, count = _checked(16, dim, step, lane, start, count)
    if out is None:
        out = np.empty(count, dtype=np.float32)
    elif out.shape != (count,) or out.dtype != np.float32:
        raise InvalidInput(f"out must be ({count},) float32, got {out.shape} {out.dtype}")
    table = quantiles()
    for a, b in pieces(start, count):
        digits = _words(key, NORMAL, 16, dim, step, lane, a, b - a).view(_U16)
        skip = a % 16
        # 16 bits cannot miss a table of 2^16; mode "clip" only skips the check and the copy it would need
        table.take(digits[skip : skip + b - a], out=out[a - start : b - start], mode="clip")
    return out


def normals(key: Key, step: int, lanes: Sequence[int] | NDArray[np.int64], dim: int) -> NDArray[np.float32]:
    """Standard-normal numbers of several lanes; runs of neighbouring lanes are drawn in one call.

    Parameters
    ----------
    key, step, dim : the address, see `normal`.
    lanes : (n,) in any order, repeats allowed.

    Returns
    -------
    (n, dim) float32; row i equals `normal(key, step, lanes[i], dim)` bit for bit.

    Raises
    ------
    InvalidInput
        As `normal`.
    """
    rows = _rows(lanes)
    dim, step, *_ = _checked(16, dim, step, max(rows, default=0), 0, None)
    out = np.empty((len(rows), dim), dtype=np.float32)
    stride = _stride(dim, 16)
    if stride - -(-dim // 16) > _WASTE:  # a call per lane is cheaper than drawing the gaps between lanes
        for i, lane in enumerate(rows):
            normal(key, step, lane, dim, out=out[i])
        return out
    table = quantiles()
    for a, b in _runs(rows, CHUNK // (16 * stride)):
        words = _generator.draw(key, NORMAL, dim, step, rows[a] * stride, (b - a) * stride)
        table.take(words.view(_U16).reshape(b - a, 16 * stride)[:, :dim], out=out[a:b], mode="clip")
    return out


def _rows(lanes: Sequence[int] | NDArray[np.int64]) -> Sequence[int]:
    """The lanes as Python integers."""
    if isinstance(lanes, range):
        rows: Sequence[int] = lanes
    else:
        rows = lanes.tolist() if isinstance(lanes, np.ndarray) else list(map(index, lanes))
    if rows and min(rows) < 0:
        raise InvalidInput(f"lanes must not be negative, got {min(rows)}")
    return rows


def _runs(rows: Sequence[int], at_once: int) -> Iterator[tuple[int, int]]:
    """The runs of neighbouring lanes as (start, stop) of rows, each of at most `at_once`."""
    n, at_once = len(rows), max(1, at_once)
    if isinstance(rows, range) and rows.step == 1:  # the common case, without a loop over lanes
        cuts = list(range(at_once, n, at_once))
    else:
        cuts = [i for i in range(1, n) if rows[i] != rows[i - 1] + 1 or i % at_once == 0]
    if n:
        yield from zip([0, *cuts], [*cuts, n], strict=True)


# Other kinds ----------------------------------------------------------------------------------------------------------


@cache
def _signs() -> NDArray[np.float32]:
    """(256, 8) float32: the eight signs of a byte, lowest bit first; a set bit is +1."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.float32(2) * bits.astype(np.float32) - np.float32(1)


def rademacher(
    key: Key,
    step: int,
    lane: int,
    dim: int,
    start: int = 0,
    count: int | None = None,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Fair signs: bit j of the raw words, lowest first, is coordinate j; a set bit is +1, a clear one -1.

    Parameters, errors and shape as `normal`.

    Returns
    -------
    (count,) float32, each -1 or +1.
    """
    dim, step, lane, start, count = _checked(256, dim, step, lane, start, count)
    if out is None:
        out = np.empty(count, dtype=np.float32)
    elif out.shape != (count,) or out.dtype != np.float32:
        raise InvalidInput(f"out must be ({count},) float32, got {out.shape} {out.dtype}")
    for a, b in pieces(start, count):
        octets = _words(key, RADEMACHER, 256, dim, step, lane, a, b - a).view(np.uint8)
        skip = a % 256
        first, last = skip // 8, (skip + b - a + 7) // 8
        signs = _signs().take(octets[first:last], axis=0, mode="clip").reshape(-1)
        out[a - start : b - start] = signs[skip % 8 : skip % 8 + b - a]
    return out


def uniform(key: Key, step: int, lane: int, dim: int, start: int = 0, count: int | None = None) -> NDArray[np.float64]:
    """Numbers in [0, 1): the upper 53 bits of one raw word each, times 2^-53.

    Parameters and errors as `normal`.

    Returns
    -------
    (count,) float64, multiples of 2^-53.
    """
    dim, step, lane, start, count = _checked(4, dim, step, lane, start, count)
    out = np.empty(count, dtype=np.float64)
    for a, b in pieces(start, count):
        words = _words(key, UNIFORM, 4, dim, step, lane, a, b - a)[a % 4 :][: b - a]
        np.multiply(words >> np.uint64(11), 2.0**-53, out=out[a - start : b - start])
    return out


def uniforms(key: Key, step: int, lanes: Sequence[int] | NDArray[np.int64], dim: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) of several lanes; runs of neighbouring lanes are drawn in one call.

    Parameters and errors as `normals`.

    Returns
    -------
    (n, dim) float64; row i equals `uniform(key, step, lanes[i], dim)` bit for bit.
    """
    rows = _rows(lanes)
    dim, step, *_ = _checked(4, dim, step, max(rows, default=0), 0, None)
    out = np.empty((len(rows), dim), dtype=np.float64)
    stride = _stride(dim, 4)
    if stride - -(-dim // 4) > _WASTE:
        for i, lane in enumerate(rows):
            out[i] = uniform(key, step, lane, dim)
        return out
    for a, b in _runs(rows, CHUNK // (4 * stride)):
        words = _generator.draw(key, UNIFORM, dim, step, rows[a] * stride, (b - a) * stride)
        np.multiply(words.reshape(b - a, 4 * stride)[:, :dim] >> np.uint64(11), 2.0**-53, out=out[a:b])
    return out


def integers(
    key: Key, step: int, lane: int, dim: int, low: int, high: int, start: int = 0, count: int | None = None
) -> NDArray[np.int64]:
    """Integers in [low, high): `low` plus the upper part of (high - low) times a 128-bit number of two raw words.

    Parameters
    ----------
    key, step, lane, dim, start, count : the address, see `normal`.
    low, high : bounds within int64, at most 2^63 apart; not part of the address, so other bounds use the same bits.

    Returns
    -------
    (count,) int64.

    Raises
    ------
    InvalidInput
        As `normal`, or if the bounds are empty or too far apart.

    Notes
    -----
    Lemire (2019), arXiv:1805.10941, with 128 bits in place of rejection, so that every integer costs two words whatever
    they hold. No probability is off by more than 2^-128: the distance to the fair distribution is below 2^-64.
    """
    low, high = index(low), index(high)
    if not (-(1 << 63) <= low < high <= 1 << 63 and high - low <= 1 << 63):
        raise InvalidInput(f"integers need low < high within int64 and at most 2^63 apart, got low={low}, high={high}")
    dim, step, lane, start, count = _checked(2, dim, step, lane, start, count)
    n = high - low
    out = np.empty(count, dtype=np.int64)
    for a, b in pieces(start, count):
        pairs = _words(key, INTEGERS, 2, dim, step, lane, a, b - a).reshape(-1, 2)[a % 2 :][: b - a]
        lower, upper = pairs[:, 0], pairs[:, 1]
        middle = upper * np.uint64(n)  # modulo 2^64
        carry = (middle + _high_word(lower, n)) < middle
        out[a - start : b - start] = (_high_word(upper, n) + carry).astype(np.int64) + low
    return out


def _high_word(a: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """floor(a * n / 2^64), by halves (Hacker's Delight, 8-2)."""
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    a1, a0 = a >> half, a & mask
    n1, n0 = np.uint64(n >> 32), np.uint64(n & 0xFFFFFFFF)
    t = a1 * n0 + (a0 * n0 >> half)
    u = a0 * n1 + (t & mask)
    result: NDArray[np.uint64] = a1 * n1 + (t >> half) + (u >> half)
    return result


def permutation(key: Key, step: int, lane: int, n: int) -> NDArray[np.int64]:
    """The numbers 0 ... n-1 in random order: one raw word each, sorted by it (equal words stay in order).

    Returns
    -------
    (n,) int64.

    Raises
    ------
    InvalidInput
        If n < 1, or step or lane is negative or too large.

    Notes
    -----
    Only equal words make some orders likelier than others: the bias is below n^2 / 2^65, 3e-8 for a million.
    """
    n, step, lane, *_ = _checked(4, n, step, lane, 0, None)
    return np.argsort(_words(key, PERMUTATION, 4, n, step, lane, 0, n)[:n], kind="stable").astype(np.int64, copy=False)

"""Recipes as JSON and as bytes (clients/NOISE.md specifies both forms for other languages)."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from blackbox import rng
from blackbox.errors import CodecError, InvalidInput
from blackbox.recipes.sums import KINDS, MAX_SCALE, checked_scale
from blackbox.records import JSON, Recipe, Term

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
        If a member is missing, unknown, of the wrong type or out of range; the message says which.
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
    return Term(int(stream), op["step"], op["lane"], checked_scale(scale), op["op"], weight)


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
    parts += [pack_term(term, i) for i, term in enumerate(recipe.terms)]
    return b"".join(parts)


def pack_term(term: Term, i: int) -> bytes:
    """One term in bytes: 34, plus 32 with a factor; `i` is its index, for errors as of `pack`."""
    if term.kind not in _PACKED_KINDS:
        raise InvalidInput(f"terms[{i}].kind must be one of {', '.join(_PACKED_KINDS)}, got {term.kind!r}")
    kind, scale = _PACKED_KINDS[term.kind], checked_scale(term.scale)
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
            if code not in kinds or not abs(scale) <= MAX_SCALE:
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

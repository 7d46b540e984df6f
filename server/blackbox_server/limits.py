"""Limits of the work of one request, and of the requests of one key."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from blackbox.algorithm import Algorithm, registry
from blackbox.errors import BlackboxError, FieldError, TooLarge
from blackbox.space import Space
from blackbox.study.spec import Resolved, stored_algorithm
from blackbox_server.settings import Settings


class TokenBucket:
    """Limits a rate of requests, in 1/s on average; a burst may be twice as large."""

    __slots__ = ("_at", "_left", "burst", "rate")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self.burst = 2.0 * rate
        self._left = self.burst
        self._at = now

    def take(self, now: float) -> int:
        """Take one request; returns how many are left, or -1 if there was none."""
        left = min(self.burst, self._left + (now - self._at) * self.rate) - 1.0
        self._at = now
        if left < 0.0:
            self._left = left + 1.0
            return -1
        self._left = left
        return int(left)


def within_count(settings: Settings, items: Sized | int, pointer: str) -> None:
    """Refuse more items than one request may have; `pointer` is where they are in its body.

    Raises
    ------
    TooLarge
    """
    n = items if isinstance(items, int) else len(items)
    if n > settings.max_count:
        raise TooLarge(
            f"{pointer[1:]}: at most {settings.max_count} in one request, got {n}",
            hint=f"Send several requests of at most {settings.max_count}.",
            errors=[FieldError(pointer, "too_many", f"at most {settings.max_count}, got {n}")],
        )


def within_values(settings: Settings, dim: int, count: int) -> None:
    """Refuse an ask for `count` points of `dim` numbers if these are too many to send.

    Raises
    ------
    TooLarge
    """
    if dim * count * 8 > settings.max_values_bytes:
        fitting = settings.max_values_bytes // (8 * dim)
        raise TooLarge(
            f"{count} points of {dim} numbers are {dim * count * 8 / 1e6:.0f} MB, at most "
            f"{settings.max_values_bytes / 1e6:.0f} MB are sent at once",
            hint='Ask with "encoding":"seed"' + (f", or for at most {fitting} at once." if fitting else "."),
            errors=[FieldError("/count", "too_large", f"at most {fitting} with encoding values")],
        )


LEAST_BYTES = 16
"""Bytes per dimension that every algorithm needs: a vector and the one that replaces it."""


def within_reach(settings: Settings, space: Space) -> None:
    """Refuse a space that is too large for any algorithm, before anything iterates over its dimensions.

    Raises
    ------
    TooLarge
    """
    if LEAST_BYTES * space.dim > settings.max_algorithm_bytes:
        raise TooLarge(
            f"{space.dim} dimensions need {_bytes(LEAST_BYTES * space.dim)} and more with any algorithm, at most "
            f"{_bytes(settings.max_algorithm_bytes)} are allowed",
            hint=f"At most {settings.max_algorithm_bytes // LEAST_BYTES} dimensions can be treated here.",
            errors=[FieldError("/space", "too_large", f"{space.dim} dimensions")],
        )


def within_memory(settings: Settings, resolved: Resolved, space: Space) -> None:
    """Refuse a study whose algorithm would need too much memory, naming one that fits.

    Raises
    ------
    TooLarge
    """
    stored = stored_algorithm(resolved, space)
    if stored.cls is None or stored.options is None:
        return  # nothing will run; the study says why
    estimate = stored.cls.memory(stored.options, space)
    if estimate <= settings.max_algorithm_bytes:
        return
    fitting = [name for name in registry() if _fits(settings, registry()[name], space)]
    raise TooLarge(
        f"{resolved.algorithm} needs about {_bytes(estimate)} for {space.dim} dimensions, at most "
        f"{_bytes(settings.max_algorithm_bytes)} are allowed",
        hint=f"These fit: {', '.join(fitting)}." if fitting else "No registered algorithm fits this many dimensions.",
        errors=[FieldError("/algorithm", "too_large", f"about {_bytes(estimate)}")],
    )


def within_hosting(settings: Settings, resolved: Resolved, space: Space) -> None:
    """Refuse to host a participant whose half of the algorithm would need too much memory.

    Raises
    ------
    TooLarge
    """
    stored = stored_algorithm(resolved, space)
    if stored.cls is None or stored.options is None:
        return  # nothing will run; the study says why
    estimate = stored.cls.hosting_memory(stored.options, space)
    if estimate > settings.max_algorithm_bytes:
        raise TooLarge(
            f"a hosted participant of {resolved.algorithm} needs about {_bytes(estimate)} for {space.dim} dimensions, "
            f"at most {_bytes(settings.max_algorithm_bytes)} are allowed",
            hint="Let the participant run its own machine: join without `hosted`, or `blackbox participant`.",
            errors=[FieldError("/hosted", "too_large", f"about {_bytes(estimate)}")],
        )


def _fits(settings: Settings, cls: type[Algorithm[Any, Any]], space: Space) -> bool:
    try:
        if cls.why_not(space) is not None:
            return False
        return cls.memory(cls.resolve(cls.Options(), space), space) <= settings.max_algorithm_bytes
    except (BlackboxError, ValueError, ArithmeticError, MemoryError):
        return False


def _bytes(n: int) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"

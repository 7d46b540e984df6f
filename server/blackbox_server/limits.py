"""Limits of the work of one request, of the requests of one key, and of what is kept for a key or a project.

The last two are quotas. `QUOTAS` names them; `GET /v1/limits` lists them with what is used, and a request beyond one is
answered with `quota-exceeded` or `too-much-at-once`, which name it. One process serves a database, so what is used is
counted here.
"""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from blackbox.algorithm import Algorithm, registry
from blackbox.errors import BlackboxError, FieldError, StoreUnavailable, TooLarge
from blackbox.space import Space
from blackbox.study.spec import Resolved, stored_algorithm
from blackbox_server.problems import OverLimit, QuotaExceeded, TooMuchAtOnce
from blackbox_server.settings import Settings


class TokenBucket:
    """Limits a rate of requests, in 1/s on average.

    Parameters
    ----------
    now : seconds of a monotonic clock, here and below: a date that is set back must not stop anybody.
    burst : most requests at once; None: those of two seconds.
    """

    __slots__ = ("_at", "_left", "burst", "rate")

    def __init__(self, rate: float, now: float, burst: float | None = None) -> None:
        self.rate = rate
        self.burst = 2.0 * rate if burst is None else burst
        self._left = self.burst
        self._at = now

    def take(self, now: float, n: float = 1.0) -> int:
        """Take one request, or n; returns how many are left, or -1 if there were not enough."""
        left = self.left(now) - n
        self._at = now
        if left < 0.0:
            self._left = left + n
            return -1
        self._left = left
        return int(left)

    def left(self, now: float) -> float:
        """How many could be taken now."""
        return min(self.burst, self._left + (now - self._at) * self.rate)


class Buckets:
    """A bucket for each address that has cost something; the least recently used are forgotten, which fills them.

    Parameters
    ----------
    rate, burst : see `TokenBucket`.
    """

    MOST = 10_000

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, burst
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def take(self, address: str, now: float, n: float = 1.0) -> int:
        """Take n; returns how many are left, or -1 if there were not enough."""
        bucket = self._buckets.get(address)
        if bucket is None:
            bucket = self._buckets[address] = TokenBucket(self.rate, now, self.burst)
            if len(self._buckets) > self.MOST:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(address)
        return bucket.take(now, n)

    def exhausted(self, address: str, now: float) -> bool:
        """Whether not even one is left."""
        bucket = self._buckets.get(address)
        return bucket is not None and bucket.left(now) < 1.0

    def left(self, address: str, now: float) -> float:
        """How many are left."""
        bucket = self._buckets.get(address)
        return self.burst if bucket is None else bucket.left(now)


# Quotas ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Quota:
    """One quota.

    Attributes
    ----------
    per : for what it is counted.
    setting : the setting that says how much it is.
    hint : what to do when it is used up.
    passing : whether it comes back by itself.
    """

    name: str
    per: Literal["project", "key", "study"]
    setting: str
    about: str
    hint: str
    passing: bool = False

    def value(self, settings: Settings) -> float:
        """How much it is."""
        return float(getattr(settings, self.setting))

    def reached(self, settings: Settings, used: float) -> OverLimit:
        """The error for a request that would exceed it."""
        value = self.value(settings)
        kind = TooMuchAtOnce if self.passing else QuotaExceeded
        return kind(self.name, value, used, f"{self.about}: {used:.15g} of {value:.15g} are taken", hint=self.hint)

    def check(self, settings: Settings, used: float, more: float = 1) -> None:
        """Raise if so much more does not fit beside what is used.

        Raises
        ------
        QuotaExceeded, TooMuchAtOnce
        """
        if used + more > self.value(settings):
            raise self.reached(settings, used)


QUOTAS: Mapping[str, Quota] = MappingProxyType(
    {
        quota.name: quota
        for quota in (
            Quota("studies", "project", "max_studies", "studies", "Delete studies that are over."),
            Quota("keys", "project", "max_keys", "keys, revoked ones among them", "Use those that there are."),
            Quota("labels", "study", "max_labels", "labels of the study", "Drop some; keep the rest elsewhere."),
            Quota("participants", "study", "max_participants", "participants that joined",
                  "Come back under the name that joined before."),
            Quota("queued", "study", "max_queued", "trials that wait to be asked for", "Ask for some first.", True),
            Quota("trials", "study", "max_trials", "trials of the study", "Go on in a fork."),
            Quota("injected", "key", "max_injected_per_hour", "points of this hour that the study did not choose",
                  "Send them more slowly.", True),
            Quota("open_bytes", "project", "max_open_bytes", "bytes of memory for open studies, by their estimates",
                  "Wait until requests to other studies have ended, or use an algorithm that needs less.", True),
            Quota("held_bytes", "key", "max_held_bytes", "bytes of bodies that are under way",
                  "Send fewer large bodies at a time.", True),
        )
    }
)  # fmt: skip
LABEL_CHARACTERS = 1000
"""Most characters of a label's name, and of its text."""


class HeldBytes:
    """Bytes of bodies that are under way: of each key, and of all."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.by_key: Counter[str] = Counter()
        self._total = 0

    def take(self, key: str, n: int) -> None:
        """Hold n more bytes.

        Raises
        ------
        TooMuchAtOnce
        """
        QUOTAS["held_bytes"].check(self._settings, self.by_key[key], n)
        if self._total + n > self._settings.max_all_held_bytes:
            raise StoreUnavailable(
                "the bodies that are under way take all the memory there is for them", hint="Send it again in a second."
            )
        self.by_key[key] += n
        self._total += n

    def give(self, key: str, n: int) -> None:
        """Hold n fewer."""
        self._total -= n
        self.by_key[key] -= n
        if not self.by_key[key]:
            del self.by_key[key]


def within_labels(settings: Settings, labels: Mapping[str, str]) -> None:
    """Refuse more labels, or longer ones, than a study may have.

    Raises
    ------
    QuotaExceeded, TooLarge
    """
    QUOTAS["labels"].check(settings, 0, len(labels))
    for name, text in labels.items():
        if len(name) > LABEL_CHARACTERS or len(text) > LABEL_CHARACTERS:
            raise TooLarge(
                f"the label {name[:40]!r} has more than {LABEL_CHARACTERS} characters, in its name or its text",
                hint="Keep long texts elsewhere.",
                errors=[FieldError("/labels", "too_long", f"at most {LABEL_CHARACTERS} characters")],
            )


def memory_of(resolved: Resolved, space: Space) -> int:
    """The estimate of the memory of an open study, in bytes; 0 where this release computes nothing."""
    stored = stored_algorithm(resolved, space)
    if stored.cls is None or stored.options is None:
        return 0
    estimate = stored.cls.memory if resolved.hosted is None else stored.cls.hosting_memory
    return int(estimate(stored.options, space))


# The work of one request ----------------------------------------------------------------------------------------------


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


def fitting(sizes: Iterable[int], most: int) -> int:
    """How many of the first sizes add up to at most so much; one at least.

    >>> fitting([5, 4, 3], 9)
    2
    """
    return max(1, sum(total <= most for total in itertools.accumulate(sizes)))


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
    estimate = memory_of(resolved, space)
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

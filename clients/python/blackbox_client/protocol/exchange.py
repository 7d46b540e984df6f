"""One call and its attempts: what is sent, what comes back, when it is sent again.

A `Call` is the same at every attempt; an `Exchange` is fed with what came of each and says what to do next;
`RetryPolicy` is the table of the contract. Nothing here opens a socket, sleeps or reads a clock.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Generic, TypeAlias, TypeVar

from blackbox_client.errors import (
    AnsweredWithError,
    BadAnswer,
    BlackboxClientError,
    ConnectionFailed,
    IdempotencyInProgress,
    error_of,
)
from blackbox_client.models import Json

T = TypeVar("T")

# ---- calls and replies


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer; header names in lower case."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def etag(self) -> str:
        """The ETag; empty if there is none."""
        return self.headers.get("etag", "")

    @property
    def retry_after(self) -> float | None:
        """`Retry-After` in seconds, also where it is a date (measured against the answer's own `Date`)."""
        text = self.headers.get("retry-after", "").strip()
        try:
            seconds = float(text)
        except ValueError:
            try:
                seconds = (
                    parsedate_to_datetime(text) - parsedate_to_datetime(self.headers.get("date", ""))
                ).total_seconds()
            except (TypeError, ValueError):
                return None
        return max(seconds, 0.0) if math.isfinite(seconds) else None

    def json(self) -> Any:
        """The body as JSON.

        Raises
        ------
        BadAnswer
            If it is not JSON: a proxy's page, a cut-off body.
        """
        try:
            return json.loads(self.body)
        except ValueError:
            raise BadAnswer(
                f"expected JSON with status {self.status}, got {self.body[:120]!r}; is this the address of a blackbox "
                "server, and does a proxy stand before it?"
            ) from None

    def object(self) -> Json:
        """The body as a JSON object; an empty body is an empty object."""
        value = self.json() if self.body.strip() else {}
        if not isinstance(value, dict):
            raise BadAnswer(f"expected a JSON object, got {self.body[:120]!r}")
        return value

    def error(self) -> AnsweredWithError:
        """The exception this answer stands for; also where the body is no problem document."""
        try:
            problem: Json = self.object()
        except BadAnswer:
            problem = {"detail": f"the server answered {self.status}: {self.body[:200].decode(errors='replace')}"}
        return error_of(
            problem,
            status=self.status,
            request_id=self.headers.get("x-request-id", ""),
            retry_after=self.retry_after,
        )


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """An attempt that ended without an answer. Not `repeatable`: a bad address, an untrusted certificate."""

    reason: str
    repeatable: bool = True


Outcome: TypeAlias = "Reply | NoAnswer"


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One logical call: what to send, the same at every attempt, and how to read the answer.

    `hold_seconds` is how long the server may hold the answer back (long poll); time-outs grow by it.
    """

    method: str
    path: str
    read: Callable[[Reply], T]
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    hold_seconds: float = 0.0


def new_key() -> str:
    """A fresh idempotency key: one per logical call, kept over its repetitions."""
    return uuid.uuid4().hex


# ---- repeating


@dataclass(frozen=True, slots=True)
class Retry:
    """Wait so many seconds, then send the same call again."""

    delay: float


@dataclass(frozen=True, slots=True)
class Raise:
    """Stop trying."""

    error: BlackboxClientError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The retry table of the contract.

    Parameters
    ----------
    base_seconds, max_seconds : attempt n waits a random part of ``base_seconds * 2**n``, at most `max_seconds`.
    give_up_seconds : no repetition is started later than this after the first attempt; 0 never repeats.
    n_server_errors : so many answers 500 are repeated.
    """

    base_seconds: float = 0.25
    max_seconds: float = 30.0
    give_up_seconds: float = 600.0
    n_server_errors: int = 3

    def decide(
        self, attempt: int, outcome: Outcome, elapsed: float, random: float, *, server_errors: int | None = None
    ) -> Retry | Raise:
        """Decide what to do after a failed attempt.

        Parameters
        ----------
        attempt : repetitions so far, 0 after the first try.
        outcome : the answer (status >= 400), or that there was none.
        elapsed : seconds since the first try began.
        random : a number in [0, 1).
        server_errors : answers 500 before this one; `attempt` where not told.
        """
        if isinstance(outcome, NoAnswer):
            error: BlackboxClientError = ConnectionFailed(
                f"no answer after {attempt + 1} attempt(s) in {elapsed:.1f} s: {outcome.reason}"
            )
            if not outcome.repeatable:
                return Raise(error)
            asked = None
        else:
            error = outcome.error()
            asked = outcome.retry_after
            seen = attempt if server_errors is None else server_errors
            repeatable = (
                outcome.status in (408, 429, 502, 503, 504)
                or (outcome.status == 500 and seen < self.n_server_errors)
                or isinstance(error, IdempotencyInProgress)
            )
            if not repeatable:
                return Raise(error)
        ceiling = min(self.max_seconds, self.base_seconds * 2.0 ** min(attempt, 64))
        delay = random * ceiling  # full jitter
        if asked is not None:
            delay = max(delay, asked + random * self.base_seconds)  # not all at the same moment
        return Retry(delay) if elapsed + delay <= self.give_up_seconds else Raise(error)


class Exchange(Generic[T]):
    """One call under way. Feed it what came of each attempt; it says what to do next.

    Parameters
    ----------
    call : what is being sent.
    policy : when to repeat.
    """

    def __init__(self, call: Call[T], policy: RetryPolicy) -> None:
        self.call = call
        self.policy = policy
        self.attempt = 0
        self._server_errors = 0

    def succeeded(self, outcome: Outcome) -> bool:
        """Whether this outcome is a success, so that `Call.read` may read it.

        A repeated DELETE that finds nothing has been done by an attempt whose answer was lost.
        """
        if not isinstance(outcome, Reply):
            return False
        return outcome.status < 300 or (self.call.method == "DELETE" and self.attempt > 0 and outcome.status == 404)

    def after(self, outcome: Outcome, elapsed: float, random: float) -> Retry | Raise:
        """Count an attempt that did not succeed, and decide what to do next."""
        if isinstance(outcome, Reply) and outcome.status < 400:
            return Raise(
                BadAnswer(
                    f"{self.call.method} {self.call.path} was answered with a redirect ({outcome.status} to "
                    f"{outcome.headers.get('location', 'nowhere')}), which is not followed; use the final address"
                )
            )
        decision = self.policy.decide(self.attempt, outcome, elapsed, random, server_errors=self._server_errors)
        self.attempt += 1
        self._server_errors += isinstance(outcome, Reply) and outcome.status == 500
        return decision

"""One request: its sender, its content, and the headers of its answer."""

from __future__ import annotations

import asyncio
import itertools
import math
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.datastructures import State
from starlette.types import Receive, Scope

from blackbox.errors import FieldError, InvalidInput
from blackbox.study.effects import Steps
from blackbox.study.rows import Tx
from blackbox_server import auth, limits
from blackbox_server.auth import Principal
from blackbox_server.limits import Buckets, TokenBucket
from blackbox_server.metrics import ServerTiming
from blackbox_server.problems import BodyCut, BodyTimeout, BodyTooLarge, UnsupportedMediaType
from blackbox_server.schemas import parsing
from blackbox_server.schemas.parsing import Query, Wire
from blackbox_server.schemas.requests import trial_number
from blackbox_server.service import Answered, IdempotentRequest, OpenStudy, Service
from blackbox_server.settings import Settings

M = TypeVar("M", bound=BaseModel)
Q = TypeVar("Q", bound=Query)
T = TypeVar("T")

_run = secrets.token_hex(5)
_count = itertools.count(1)
LARGE_BODY = 16 * 1024
"""What a body of more bytes than this asks for is made in a thread. A space of 400 parameters is one: 20 ms."""
NOBODY = Principal("", "anonymous", "", frozenset(), TokenBucket(1.0, 0.0))


class Call(ServerTiming):
    """One request. The application makes it, the route admits it, and the endpoint reads it step by step.

    Attributes
    ----------
    route : the path template of its route, for the metrics; never text of the client.
    raw : the bytes of its body, once it has been read.
    """

    __slots__ = (
        "_allow_empty", "_body_limit", "_held", "_max_values", "headers", "left", "principal", "raw", "receive",
        "request_id", "route", "scope", "service", "settings", "state",
    )  # fmt: skip

    service: Service

    def __init__(self, scope: Scope, receive: Receive, state: State) -> None:
        super().__init__()
        self.scope = scope
        self.receive = receive
        self.state = state
        self.settings: Settings = state.settings
        self.request_id = f"req_{_run}{next(_count):x}"
        self.headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))  # of equal names the first counts
        self.route = "unmatched"
        self.principal = NOBODY
        self.left = 0
        self.raw = b""
        self._held = 0
        self._allow_empty = False
        self._body_limit = self.settings.max_body_bytes
        self._max_values = parsing.MAX_PLAIN_VALUES

    async def enter(self, route: str, scope: str | None, *, allow_empty: bool, vectors: bool) -> None:
        """Admit the request to a route, or raise.

        Parameters
        ----------
        scope : required of its key; "" admits any key, None needs no key.
        allow_empty : whether a missing body counts as an empty object.
        vectors : whether the limit of bodies with points applies.

        Raises
        ------
        Unauthorized, Forbidden, RateLimited
        """
        self.route = route
        self.service = self.state.service
        self._allow_empty = allow_empty
        if vectors:
            self._body_limit = self.settings.max_vector_body_bytes
            self._max_values = parsing.MAX_VALUES
        if scope is not None:
            self.principal = self.state.local or await self.state.keyring.admit(
                self.headers.get(b"authorization"), self.address
            )
            self.left = auth.spend(self.principal, self.service.monotonic())
            if scope:
                self.principal.require(scope)

    def inject(self, n: int) -> None:
        """Count points that a study did not choose.

        Raises
        ------
        TooMuchAtOnce
        """
        limits.QUOTAS["injected"].check(self.settings, self.injected, n)
        injected: Buckets = self.state.injected
        injected.take(self.principal.key_id, self.service.monotonic(), n)

    @property
    def injected(self) -> int:
        """Points of this hour that a study did not choose."""
        injected: Buckets = self.state.injected
        return math.ceil(injected.burst - injected.left(self.principal.key_id, self.service.monotonic()))

    @property
    def may_read(self) -> bool:
        """Whether the key may see results of others, such as the best one."""
        return self.principal.may("study:read")

    @property
    def now(self) -> float:
        """Seconds since the epoch."""
        return self.service.clock()

    @property
    def address(self) -> str:
        """The address that the request came from."""
        client = self.scope.get("client")
        return client[0] if client else ""

    def recheck(self) -> None:
        """Raise if the key has ended since the request was admitted: what is held must not outlast it.

        Raises
        ------
        Unauthorized
        """
        if self.state.keyring is not None:
            self.state.keyring.recheck(self.principal)

    def wait(self, wanted: float) -> float:
        """Seconds for which a request that wants to be held is: no longer than the settings and its key allow."""
        expires = self.principal.expires_at
        ends = self.settings.max_wait_seconds if expires is None else max(0.0, expires - self.now)
        return min(wanted, self.settings.max_wait_seconds, ends)

    def answer_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of every answer: request id, timing, rate limit."""
        headers = [
            (b"x-request-id", self.request_id.encode()),
            (b"server-timing", b"algo;dur=%.2f, db;dur=%.2f" % (self.algo * 1e3, self.db * 1e3)),
        ]
        if self.principal is not NOBODY:
            headers += [
                (b"ratelimit-limit", b"%d" % self.principal.bucket.burst),
                (b"ratelimit-remaining", b"%d" % self.left),
                (b"ratelimit-reset", b"0" if self.left else b"1"),
            ]
        return headers

    # The address and the headers --------------------------------------------------------------------------------------

    @property
    def path(self) -> dict[str, str]:
        """The values of the parameters in the route's path."""
        parameters: dict[str, str] = self.scope["path_params"]
        return parameters

    @property
    def origin(self) -> str:
        """Scheme and host under which the client reaches the service."""
        return f"{self.scope['scheme']}://{(self.header(b'host') or '')[:100]}"

    def header(self, name: bytes) -> str | None:
        """A header, by its name in lower case."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    def query(self, model: type[Q]) -> Q:
        """The query parameters.

        Raises
        ------
        InvalidInput
        """
        return parsing.fit_query(model, self.scope["query_string"])

    async def opened(self) -> OpenStudy:
        """The study in the path, if it belongs to the caller's project.

        Raises
        ------
        StudyNotFound
        """
        return await self.service.open(self.path["study"], self.principal.project)

    @property
    def trial(self) -> int:
        """The number of the trial in the path, written as t_41 or 41.

        Raises
        ------
        InvalidInput
        """
        text = self.path["trial"]
        try:
            return trial_number(text)
        except ValueError as error:
            fault = FieldError("", "trial", str(error))
            raise InvalidInput(f"{error}, got {text[:80]!r}", hint="Write t_41 or 41.", errors=[fault]) from None

    @property
    def idempotency_key(self) -> str | None:
        """The Idempotency-Key header.

        Raises
        ------
        InvalidInput
            If it is empty or too long.
        """
        key = self.header(b"idempotency-key")
        if key is not None and (not 1 <= len(key) <= 255 or not key.isascii()):
            raise InvalidInput(
                f"an Idempotency-Key has 1 to 255 ASCII characters, got {len(key)}",
                hint="Use a UUID per logical request.",
                errors=[FieldError("", "idempotency_key", "1 to 255 ASCII characters")],
            )
        return key

    def names_etag(self, etag: str) -> bool:
        """Whether If-None-Match has this ETag: the client has that version already."""
        named = [word.strip().removeprefix("W/") for word in (self.header(b"if-none-match") or "").split(",")]
        return etag in named or "*" in named

    async def gone(self) -> None:
        """Return when the client has disconnected. After the body no other message can come."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    # The body ---------------------------------------------------------------------------------------------------------

    async def body(self, model: type[M]) -> M:
        """The body as a model.

        Raises
        ------
        MalformedJson, InvalidInput, NonFiniteValue, TooLarge
            And the errors of `read`.
        """
        value, finite = await self.json()
        if not finite:
            await self.work(partial(parsing.refuse_not_finite, value))
        return await self.fit(model, value)

    async def json(self) -> tuple[Any, bool]:
        """The body as Python values, and whether all its numbers are finite; see `parsing.read_json`."""
        raw = await self.read()
        if not raw and self._allow_empty:
            raw = b"{}"
        return await self.work(partial(parsing.read_json, raw, self._max_values))

    async def fit(self, model: type[M], value: Any) -> M:
        """A decoded body as a model. How many items it has is looked at first.

        Raises
        ------
        InvalidInput, TooLarge
        """
        if issubclass(model, Wire) and model.counted and type(value) is dict:
            items = value.get(model.counted)
            if type(items) is list:
                limits.within_count(self.settings, items, f"/{model.counted}")
        return await self.work(partial(parsing.fit, model, value))

    @property
    def large(self) -> bool:
        """Whether what is made of the body may take longer than the other requests should wait."""
        return len(self.raw) > LARGE_BODY

    async def work(self, task: Callable[[], T]) -> T:
        """Run a function whose work grows with the body: here, or for a large one in a thread."""
        return await self.service.beside(task) if self.large else task()

    async def read(self, kinds: Sequence[bytes] = ()) -> bytes:
        """The bytes of the body, of at most the limit and of an accepted content type.

        Parameters
        ----------
        kinds : content types accepted besides JSON and none at all.

        Raises
        ------
        UnsupportedMediaType, BodyTooLarge, BodyTimeout, BodyCut
        """
        kind, limit = self.headers.get(b"content-type"), self._body_limit
        if kind is not None and kind in kinds:
            limit = self.settings.max_binary_body_bytes
        if kind != b"application/json" and kind not in kinds:
            self._check_kind(kind)
        if self.headers.get(b"content-encoding", b"identity") != b"identity":
            raise UnsupportedMediaType("the body is compressed", hint="Send it as it is, without content-encoding.")
        length = self.headers.get(b"content-length")
        if length is not None and length.isdigit() and (len(length) > 18 or int(length) > limit):
            raise _too_large(limit)
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                body = await self._whole(limit)
        except TimeoutError:
            raise BodyTimeout(f"the body took longer than {self.settings.body_seconds:g} s") from None
        if length is not None and length != b"%d" % len(body) and length.isdigit() and int(length) != len(body):
            raise BodyCut(f"the body has {len(body)} bytes, its header Content-Length says {int(length)}")
        self.raw = body
        return body

    async def _whole(self, limit: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self.receive()
            if message["type"] != "http.request":  # the connection ended first: what came of it must not be executed
                raise BodyCut(f"the connection ended after {size} bytes of the body")
            part: bytes = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            if not message.get("more_body"):
                return b"".join((*parts, part)) if parts else part
            parts.append(part)
            self._hold(len(part))

    def _hold(self, n: int) -> None:
        self.state.held.take(self.principal.key_id, n)
        self._held += n

    def release(self) -> None:
        """Give back what the body held; the application calls it when the request has been answered."""
        if self._held:
            self.state.held.give(self.principal.key_id, self._held)

    def _check_kind(self, kind: bytes | None) -> None:
        """Accept JSON, and the default of `curl -d`, except where a web page could send that without permission."""
        word = (kind or b"").split(b";")[0].strip().lower()
        if word == b"application/json" or (word.startswith(b"application/") and word.endswith(b"+json")):
            return
        if self.state.local is not None:
            raise UnsupportedMediaType(
                "a server without keys only reads bodies that are said to be JSON",
                hint='Add -H "content-type: application/json": without it any web page could send this.',
            )
        if kind is not None and word != b"application/x-www-form-urlencoded":
            raise UnsupportedMediaType(f"the body is {word.decode('latin-1')[:100]!r}, expected application/json")

    # The operation ----------------------------------------------------------------------------------------------------

    @property
    def idempotent(self) -> IdempotentRequest:
        """The identity of this request, by which a retry is recognised."""
        path = self.scope["path"].encode()
        return IdempotentRequest.of(self.principal.project, self.idempotency_key, path, self.raw)

    async def once(self, steps: Steps[T], render: Callable[[Tx, Any], tuple[int, bytes]]) -> Answered[T]:
        """Drive an operation whose answer is remembered for retries; see `Service.once`."""
        return await self.service.once(self.idempotent, steps, render, beside=self.large)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit} bytes", hint=f"Send at most {limit} bytes at once.")

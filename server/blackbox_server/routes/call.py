"""One request: its sender, its content, and the headers of its answer."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.datastructures import State
from starlette.types import Receive, Scope

from blackbox.errors import FieldError, InvalidInput
from blackbox.study.effects import Steps
from blackbox.study.rows import Tx
from blackbox_server import auth
from blackbox_server.auth import Principal
from blackbox_server.limits import TokenBucket
from blackbox_server.problems import BodyTimeout, BodyTooLarge, UnsupportedMediaType
from blackbox_server.schemas import parsing
from blackbox_server.schemas.parsing import Query
from blackbox_server.schemas.requests import trial_number
from blackbox_server.service import Answered, IdempotentRequest, OpenStudy, ServerTiming, Service
from blackbox_server.settings import Settings

M = TypeVar("M", bound=BaseModel)
Q = TypeVar("Q", bound=Query)
T = TypeVar("T")

_run = secrets.token_hex(5)
_count = itertools.count(1)
LARGE_BODY = 256 * 1024
"""Bodies of more bytes than this are parsed in a thread."""
NOBODY = Principal("", "anonymous", "", frozenset(), TokenBucket(1.0, 0.0))


class Call(ServerTiming):
    """One request. The application makes it, the route admits it, and the endpoint reads it step by step.

    Attributes
    ----------
    route : the path template of its route, for the metrics; never text of the client.
    raw : the bytes of its body, once it has been read.
    """

    __slots__ = (
        "_allow_empty", "_body_limit", "headers", "left", "principal", "raw", "receive", "request_id", "route", "scope",
        "service", "settings", "state",
    )  # fmt: skip

    service: Service

    def __init__(self, scope: Scope, receive: Receive, state: State) -> None:
        super().__init__()
        self.scope = scope
        self.receive = receive
        self.state = state
        self.settings: Settings = state.settings
        self.request_id = f"req_{_run}{next(_count):x}"
        self.headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))  # of a name that comes twice, the first
        self.route = "unmatched"
        self.principal = NOBODY
        self.left = 0
        self.raw = b""
        self._allow_empty = False
        self._body_limit = self.settings.max_body_bytes

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
        if scope is not None:
            now = self.service.clock()
            self.principal = self.state.local or await self.state.keyring.admit(self.headers.get(b"authorization"), now)
            self.left = auth.spend(self.principal, now)
            if scope:
                self.principal.require(scope)

    @property
    def may_read(self) -> bool:
        """Whether the key may see results of others, such as the best one."""
        return self.principal.may("study:read")

    @property
    def now(self) -> float:
        """Seconds since the epoch."""
        return self.service.clock()

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
        MalformedJson, InvalidInput, NonFiniteValue
            And the errors of `read`.
        """
        value, finite = await self.json()
        if not finite:
            parsing.refuse_not_finite(value)
        return parsing.fit(model, value)

    async def json(self) -> tuple[Any, bool]:
        """The body as Python values, and whether all its numbers are finite; see `parsing.read_json`."""
        raw = await self.read()
        if not raw and self._allow_empty:
            raw = b"{}"
        if len(raw) > LARGE_BODY:
            return await asyncio.to_thread(parsing.read_json, raw)
        return parsing.read_json(raw)

    async def read(self, kinds: Sequence[bytes] = ()) -> bytes:
        """The bytes of the body, of at most the limit and of an accepted content type.

        Parameters
        ----------
        kinds : content types accepted besides JSON and none at all.

        Raises
        ------
        UnsupportedMediaType, BodyTooLarge, BodyTimeout
        """
        kind, limit = self.headers.get(b"content-type"), self._body_limit
        if kind != b"application/json" and kind not in kinds:
            self._check_kind(kind)
        if self.headers.get(b"content-encoding", b"identity") != b"identity":
            raise UnsupportedMediaType("the body is compressed", hint="Send it as it is, without content-encoding.")
        length = self.headers.get(b"content-length")
        if length is not None and length.isdigit() and int(length) > limit:
            raise _too_large(limit)
        message = await self.receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            try:
                async with asyncio.timeout(self.settings.body_seconds):
                    body = await self._rest(body)
            except TimeoutError:
                raise BodyTimeout(f"the body took longer than {self.settings.body_seconds:g} s") from None
        if len(body) > limit:
            raise _too_large(limit)
        self.raw = body
        return body

    async def _rest(self, first: bytes) -> bytes:
        parts, size = [first], len(first)
        while True:
            message = await self.receive()
            part = message.get("body", b"")
            parts.append(part)
            size += len(part)
            if size > self._body_limit:
                raise _too_large(self._body_limit)
            if not message.get("more_body"):
                return b"".join(parts)

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
        return await self.service.once(self.idempotent, steps, render)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit} bytes", hint=f"Send at most {limit} bytes at once.")

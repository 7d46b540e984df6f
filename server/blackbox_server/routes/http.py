"""What every route needs: who asks, the body, the answer's bytes."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import itertools
import secrets
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import orjson
from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from blackbox.errors import FieldError, InvalidInput
from blackbox_server import auth, problems, schemas
from blackbox_server.auth import Principal
from blackbox_server.limits import Bucket
from blackbox_server.problems import BodyTimeout, BodyTooLarge, UnsupportedMediaType
from blackbox_server.service import Once, Open, Service, Timing
from blackbox_server.settings import Settings

M = TypeVar("M", bound=BaseModel)

_run = secrets.token_hex(5)
_count = itertools.count(1)
_JSON_HEADERS = (b"content-type", b"application/json")
LARGE_BODY = 256 * 1024
"""Bodies from here on are parsed in a thread."""
NOBODY = Principal("", "anonymous", "", frozenset(), Bucket(1.0, 0.0))


class Exchange(Timing):
    """One request under way."""

    __slots__ = ("left", "principal", "request_id", "route")

    def __init__(self) -> None:
        super().__init__()
        self.request_id = f"req_{_run}{next(_count):x}"
        self.route = "unmatched"
        self.principal = NOBODY
        self.left = 0

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What every answer says about itself."""
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


def exchange(request: Request) -> Exchange:
    """The request's own record."""
    found: Exchange = request.scope["blackbox"]
    return found


def service(request: Request) -> Service:
    """The service of the application."""
    found: Service = request.scope["app"].state.service
    return found


def settings(request: Request) -> Settings:
    """The settings of the application."""
    found: Settings = request.scope["app"].state.settings
    return found


async def opened(request: Request) -> Open:
    """The study that the path names, if it is the caller's."""
    project = exchange(request).principal.project
    return await service(request).open(request.scope["path_params"]["study"], project)


class Guarded(APIRoute):
    """A route that lets nobody in without the scope it declares.

    Endpoints that only take the request skip FastAPI's dependency solver and response model: on the hot routes it
    costs more than the work.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        extra = options.get("openapi_extra") or {}
        if "x-scope" not in extra:
            raise TypeError(f"{path} does not say which scope it needs")
        self.needs: str | None = extra["x-scope"]
        super().__init__(path, endpoint, **options)
        self.lean = list(inspect.signature(endpoint).parameters) == ["request"]

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        own: Exchange = scope["blackbox"]
        own.route = self.path
        if self.needs is not None and scope["method"] in (self.methods or ()):
            state = scope["app"].state
            now = state.service.clock()
            own.principal = state.local or state.keyring.admit(_header(scope, b"authorization"), now)
            own.left = auth.spend(own.principal, now)
            if self.needs:
                own.principal.require(self.needs)
        if self.lean and scope["method"] in (self.methods or ()):
            response = await self.endpoint(Request(scope, receive))
            await response(scope, receive, send)
        else:
            await super().handle(scope, receive, send)


def router() -> APIRouter:
    """A router of guarded routes."""
    return APIRouter(route_class=Guarded)


def needs(scope: str | None, body: type[BaseModel] | None = None, required: bool = True) -> dict[str, Any]:
    """Options of a route: the scope it needs ("" for any key, None for nobody's), and the model of its body."""
    extra: dict[str, Any] = {"x-scope": scope}
    if scope is not None:
        extra["security"] = [{"key": []}]
    if body is not None:
        schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
        extra["x-body"] = (body.__name__, schema)
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}}
        extra["requestBody"] = {"required": required, "content": content}
    return {"openapi_extra": extra, "response_model": None}


# Requests -------------------------------------------------------------------------------------------------------------


def header(request: Request, name: bytes) -> bytes | None:
    """A header of the request, by its name in lower case."""
    return _header(request.scope, name)


def _header(scope: Scope, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            return value  # type: ignore[no-any-return]
    return None


async def read_bytes(request: Request, limit: int, kinds: Sequence[bytes] = ()) -> bytes:
    """The body, if it is said to be JSON (or nothing), or of one of these other kinds, and within the limit.

    Raises
    ------
    UnsupportedMediaType, BodyTooLarge, BodyTimeout
    """
    scope = request.scope
    kind = _header(scope, b"content-type")
    if kind is not None and kind != b"application/json" and kind not in kinds:
        _check_kind(kind, strict=scope["app"].state.local is not None)
    elif kind is None and scope["app"].state.local is not None:
        _check_kind(b"", strict=True)
    if _header(scope, b"content-encoding") not in (None, b"identity"):
        raise UnsupportedMediaType("the body is compressed", hint="Send it as it is, without content-encoding.")
    length = _header(scope, b"content-length")
    if length is not None and length.isdigit() and int(length) > limit:
        raise _too_large(limit)
    message = await request.receive()
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        settings_: Settings = scope["app"].state.settings
        try:
            async with asyncio.timeout(settings_.body_seconds):
                body = await _rest(request, body, limit)
        except TimeoutError:
            raise BodyTimeout(f"the body took longer than {settings_.body_seconds:g} s") from None
    if len(body) > limit:
        raise _too_large(limit)
    return body


async def _rest(request: Request, first: bytes, limit: int) -> bytes:
    parts, size = [first], len(first)
    while True:
        message = await request.receive()
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        if not message.get("more_body"):
            return b"".join(parts)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit} bytes", hint=f"Send at most {limit} bytes at once.")


def _check_kind(kind: bytes, strict: bool) -> None:
    """JSON, or what `curl -d` says when it is not told (never where a web page could send it without asking)."""
    word = kind.split(b";")[0].strip().lower()
    if word == b"application/json" or (word.startswith(b"application/") and word.endswith(b"+json")):
        return
    if strict:
        raise UnsupportedMediaType(
            "a server without keys only reads bodies that are said to be JSON",
            hint='Add -H "content-type: application/json": without it any web page could send this.',
        )
    if word != b"application/x-www-form-urlencoded":
        raise UnsupportedMediaType(f"the body is {word.decode('latin-1')[:100]!r}, expected application/json")


async def body_of(
    request: Request, model: type[M], *, vectors: bool = False, raw: bytes | None = None, allow_empty: bool = False
) -> tuple[M, bytes]:
    """The body as a model, and its bytes.

    Raises
    ------
    MalformedJson, InvalidInput, NonFiniteValue
    """
    if raw is None:
        raw = await read_bytes(request, body_limit(request, vectors))
    value, finite = await parse(b"{}" if allow_empty and not raw else raw)
    if not finite:
        schemas.refuse_not_finite(value)
    return schemas.fit(model, value), raw


def body_limit(request: Request, vectors: bool) -> int:
    """How large a body may be."""
    found = settings(request)
    return found.max_vector_body_bytes if vectors else found.max_body_bytes


async def parse(raw: bytes) -> tuple[Any, bool]:
    """`schemas.read_json`, beside the event loop where it takes long."""
    if len(raw) > LARGE_BODY:
        return await asyncio.to_thread(schemas.read_json, raw)
    return schemas.read_json(raw)


def idempotency_key(request: Request) -> str | None:
    """The Idempotency-Key header.

    Raises
    ------
    InvalidInput
        If it is empty or too long.
    """
    raw = _header(request.scope, b"idempotency-key")
    if raw is None:
        return None
    if not 1 <= len(raw) <= 255 or not raw.isascii():
        raise InvalidInput(
            f"an Idempotency-Key has 1 to 255 ASCII characters, got {len(raw)}",
            hint="Use a UUID per logical request.",
            errors=[FieldError("", "idempotency_key", "1 to 255 ASCII characters")],
        )
    return raw.decode()


def once(request: Request, raw: bytes) -> Once:
    """What this POST is remembered by."""
    return Once.of(exchange(request).principal.project, idempotency_key(request), request.scope["path"].encode(), raw)


def trial_in_path(request: Request) -> int:
    """The trial that the path names, as t_41 or 41."""
    text = request.scope["path_params"]["trial"]
    try:
        return schemas.trial_number(text)
    except ValueError as error:
        fault = FieldError("", "trial", str(error))
        raise InvalidInput(f"{error}, got {text[:80]!r}", hint="Write t_41 or 41.", errors=[fault]) from None


# Answers --------------------------------------------------------------------------------------------------------------


class Bytes(Response):
    """A JSON answer from bytes: two messages, nothing else."""

    def __init__(self, body: bytes, status: int = 200, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        self.status_code = status
        self.body = body
        self.background = None
        self.raw_headers = [_JSON_HEADERS, (b"content-length", b"%d" % len(body)), *(headers or ())]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body})


def dumps(value: Any) -> bytes:
    """JSON bytes. Refuses nothing silently: NaN cannot be here, everything that came in was checked."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z)


def answer(value: Any, status: int = 200, **headers: str) -> Bytes:
    """A JSON answer."""
    extra = [(name.replace("_", "-").encode(), text.encode("latin-1")) for name, text in headers.items()]
    return Bytes(dumps(value), status, extra)


def tagged(request: Request, value: Any, etag: str | None = None) -> Response:
    """A JSON answer with an ETag; 304 if the client has it already."""
    body = dumps(value)
    etag = etag or f'"{hashlib.blake2b(body, digest_size=9).hexdigest()}"'
    if matches(request, etag):
        return Response(status_code=304, headers={"etag": etag})
    return Bytes(body, 200, [(b"etag", etag.encode()), (b"cache-control", b"no-cache")])


def matches(request: Request, etag: str, header: bytes = b"if-none-match") -> bool:
    """Whether the header names this ETag."""
    raw = _header(request.scope, header)
    if raw is None:
        return False
    named = [word.strip().removeprefix("W/") for word in raw.decode("latin-1").split(",")]
    return etag in named or "*" in named


def problem_answer(error: BaseException, request_id: str) -> Response:
    """The answer for an error."""
    document = problems.problem(error, request_id)
    response = Bytes(problems.encode(document), document["status"])
    response.raw_headers[0] = (b"content-type", b"application/problem+json")
    if document["status"] == 401:
        response.raw_headers.append((b"www-authenticate", b'Bearer realm="blackbox"'))
    if document["status"] in (429, 503):
        response.raw_headers.append((b"retry-after", b"1"))
    return response

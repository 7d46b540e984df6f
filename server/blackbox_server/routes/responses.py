"""Answers as bytes: JSON, perhaps with an ETag, and problems."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from blackbox_server import problems
from blackbox_server.routes.call import Call

_JSON = (b"content-type", b"application/json")
_PROBLEM = (b"content-type", b"application/problem+json")


class JsonResponse(Response):
    """A response with JSON that is serialised already; it sends two ASGI messages and does nothing else."""

    def __init__(
        self,
        body: bytes,
        status: int = 200,
        headers: Sequence[tuple[bytes, bytes]] = (),
        kind: tuple[bytes, bytes] = _JSON,
    ) -> None:
        self.status_code = status
        self.body = body
        self.background = None
        self.raw_headers = [kind, (b"content-length", b"%d" % len(body)), *headers]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body})


def dumps(value: Any) -> bytes:
    """JSON bytes. orjson would write NaN as null, but none can be here: all input was checked."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z)


def answer(value: Any, status: int = 200) -> JsonResponse:
    """A JSON answer."""
    return JsonResponse(dumps(value), status)


def tagged(call: Call, value: Any, etag: str | None = None) -> Response:
    """A JSON answer with an ETag (by default a hash of the body); 304 if the client has it already."""
    body = dumps(value)
    etag = etag or f'"{hashlib.blake2b(body, digest_size=9).hexdigest()}"'
    if call.names_etag(etag):
        return Response(status_code=304, headers={"etag": etag})
    return JsonResponse(body, 200, [(b"etag", etag.encode()), (b"cache-control", b"no-cache")])


def problem_answer(error: BaseException, request_id: str) -> JsonResponse:
    """The problem document of an error as a response."""
    document = problems.problem(error, request_id)
    headers = []
    if document["status"] == 401:
        headers.append((b"www-authenticate", b'Bearer realm="blackbox"'))
    if document["status"] in (429, 503):
        headers.append((b"retry-after", b"1"))
    return JsonResponse(problems.encode(document), document["status"], headers, _PROBLEM)

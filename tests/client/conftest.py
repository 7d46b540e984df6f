"""A server on loopback that answers by script, so that the client meets real sockets, lost connections included."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest


@dataclass(frozen=True)
class Received:
    """A request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


@dataclass(frozen=True)
class Answer:
    """A canned answer. `cut` sends only so many bytes of the body and hangs up; 0 hangs up before the status line."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None

    def bytes(self) -> bytes:
        if self.body is None:
            return b""
        if isinstance(self.body, bytes):
            return self.body
        return self.body.encode() if isinstance(self.body, str) else json.dumps(self.body).encode()


Step = Answer | Callable[[Received], Answer]


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the play."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class ScriptedServer:
    """Answers each route with its steps in order; the last step repeats. Routes without a script answer 404."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self._scripts: dict[tuple[str, str], list[Step]] = {}
        self._lock = threading.Lock()
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def answer(self) -> None:
                scripted._answer(self)

            do_GET = do_POST = do_PATCH = do_DELETE = answer

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._http = _Quiet(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def on(self, method: str, path: str, *steps: Any) -> None:
        """Script a route: Answers, functions of the request, or bare bodies for status 200."""
        self._scripts[method, path] = [
            step if isinstance(step, Answer) or callable(step) else Answer(step) for step in steps
        ]

    def requests(self, method: str, path: str) -> list[Received]:
        """What arrived on a route, in order."""
        with self._lock:
            return [request for request in self.received if (request.method, request.path) == (method, path)]

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        link = urlsplit(handler.path)
        raw = handler.rfile.read(int(handler.headers.get("content-length") or 0))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        request = Received(handler.command, link.path, dict(parse_qsl(link.query)), headers, raw)
        with self._lock:
            self.received.append(request)
            steps = self._scripts.get((request.method, request.path), [])
            step = steps[0] if steps else Answer({"detail": "no such thing", "code": "not-found"}, 404)
            if len(steps) > 1:
                del steps[0]
        answer = step if isinstance(step, Answer) else step(request)
        body = answer.bytes()
        if answer.cut == 0:
            handler.close_connection = True
            return
        handler.send_response(answer.status)
        for name, value in {"Content-Length": str(len(body)), "X-Request-Id": "req-1", **answer.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        with contextlib.suppress(ConnectionError):
            handler.wfile.write(body if answer.cut is None else body[: answer.cut])
        if answer.cut is not None:
            handler.close_connection = True


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    yield scripted
    scripted.close()


@pytest.fixture
def answer() -> type[Answer]:
    return Answer

"""Two servers: the application itself, in this process, and one on loopback that answers by script.

The script is for what the application cannot be made to do: lost connections, a proxy's pages, answers of another
release.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
from blackbox_client import Client, RetryPolicy

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # starlette's advice about another HTTP library
    from starlette.testclient import TestClient

from blackbox_server.app import create_app
from blackbox_server.settings import Settings

from blackbox.study.memory import MemoryStore


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


# ---- the application


@dataclass(frozen=True)
class Exchanged:
    """A request as it was sent, and its answer."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    sent: bytes
    status: int
    answer: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.sent)


class RealServer(httpx.BaseTransport):
    """The application over a store in memory, with a clock that tests move. As a transport it keeps what it carried."""

    def __init__(self, **settings: Any) -> None:
        self.now = 1_800_000_000.0
        self.exchanged: list[Exchanged] = []
        self.app = create_app(Settings(**settings), MemoryStore(), lambda: self.now)
        self._http = TestClient(self.app, raise_server_exceptions=False)
        self._http.__enter__()
        self.key = str(self.app.state.first_key)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        response = self._http._transport.handle_request(request)
        response.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        query = dict(request.url.params)
        self.exchanged.append(
            Exchanged(
                request.method,
                request.url.path,
                query,
                headers,
                request.content,
                response.status_code,
                response.content,
            )
        )
        return response

    def close(self) -> None:
        """A client that closes leaves the application to the others; see `end`."""

    def end(self) -> None:
        self._http.__exit__(None, None, None)

    def client(self, key: str | None = None) -> Client:
        """A client of the first key, or of another, that does not try again for long."""
        quick = RetryPolicy(base_seconds=0.001, max_seconds=0.005, give_up_seconds=1.0)
        return Client("http://testserver", key or self.key, transport=self, retry=quick)

    def requests(self, method: str, path: str) -> list[Exchanged]:
        """What arrived on a route, in order."""
        return [each for each in self.exchanged if (each.method, each.path) == (method, path)]


@pytest.fixture
def real(request: pytest.FixtureRequest) -> Iterator[RealServer]:
    """The application; settings of its own come as the fixture's parameter."""
    server = RealServer(**getattr(request, "param", {}))
    yield server
    server.end()

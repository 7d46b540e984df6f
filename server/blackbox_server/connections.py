"""Limits of a connection before anybody has shown a key: bytes, seconds, and connections of one address.

uvicorn bounds neither the size of a request's head nor the time it takes, and it counts connections only in total. Its
parser collects a header piece by piece in one string, so that an endless one costs ever more for each byte.
`Connection` is uvicorn's protocol with these limits around it; what happens between a whole head and an answer is
uvicorn's alone.

| limit | of | beyond it |
|---|---|---|
| `max_head_bytes` | the request line and the headers; whatever else is not body, such as the sizes of chunks | 431 |
| `head_seconds` | from the first byte, or the connection, to the end of the head | 408 |
| `body_seconds` | an answer that the client does not take (the body itself is timed by `routes.call`) | closed |
| `max_connections_per_address`, `max_connections` | open connections | 429, 503 |
| `MAX_PIPELINED` | requests sent ahead of their answers | closed |
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from blackbox.errors import BlackboxError
from blackbox_server import problems
from blackbox_server.problems import HeadTimeout, HeadTooLarge, RateLimited, TooManyConnections
from blackbox_server.settings import Settings

SLICE = 16 * 1024
"""Bytes that are parsed before the limits are looked at again."""
MAX_HEADERS = 100
MAX_PIPELINED = 32
LINGER_SECONDS = 1.0
"""How long the rest of a body is thrown away after its request was answered; closing at once could lose the answer."""


class Connections:
    """Makes the connections of one server, and counts them. uvicorn calls it where it expects a protocol class."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.total = 0
        self.by_address: Counter[str] = Counter()

    def __call__(self, **of_uvicorn: Any) -> Connection:
        """A protocol for the next connection."""
        return Connection(self, **of_uvicorn)

    def enter(self, address: str) -> BlackboxError | None:
        """Count a connection; returns why it is refused, if it is."""
        each, total = self.settings.max_connections_per_address, self.settings.max_connections
        if each and self.by_address[address] >= each:
            return RateLimited(
                f"{each} connections from {address} are open", hint="Close some, or send requests over those that are."
            )
        if total and self.total >= total:
            return TooManyConnections(f"{total} connections are open")
        self.total += 1
        self.by_address[address] += 1
        return None

    def leave(self, address: str) -> None:
        """Count a connection that has ended."""
        self.total -= 1
        self.by_address[address] -= 1
        if not self.by_address[address]:
            del self.by_address[address]


class Connection(HttpToolsProtocol):
    """A connection of uvicorn's within the limits of the module.

    Parameters
    ----------
    connections : the others.
    of_uvicorn : what uvicorn makes its protocols with.
    """

    def __init__(self, connections: Connections, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._connections = connections
        self._settings = connections.settings
        self._address = ""
        self._counted = False
        self._timer: asyncio.TimerHandle | None = None
        """Ends the wait for a head, or for the rest of a body that nobody wants."""
        self._write_timer: asyncio.TimerHandle | None = None
        self._in_head = True
        """Whether the next bytes belong to the head of a request, or come before it."""
        self._in_message = False
        """Whether a request has begun and not ended."""
        self._head_bytes = 0
        """Bytes of names and values in the headers that are being read."""
        self._body_bytes = 0
        """Bytes of the body that is being read ..."""
        self._other_bytes = 0
        """... and those around it."""

    # The connection ---------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count it, and wait for a head."""
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        refusal = self._connections.enter(self._address)
        if refusal is not None:
            self._refuse(refusal)
            return
        self._counted = True
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        if self._counted:
            self._counted = False
            self._connections.leave(self._address)
        self._stop_waiting()
        if self._write_timer is not None:
            self._write_timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not take its answer: give it some time."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self._settings.body_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It took some."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    # What comes in ----------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse some bytes, slice by slice."""
        for start in range(0, len(data), SLICE):
            if self.transport.is_closing():
                return
            self._slice_received(data if len(data) <= SLICE else data[start : start + SLICE])

    def _slice_received(self, data: bytes) -> None:
        body_before = self._body_bytes
        self._other_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_message:
            self._other_bytes = max(0, self._other_bytes - max(0, self._body_bytes - body_before))
        elif self._cycle_is_running():
            self._other_bytes = 0
        # Of a body in chunks, the sizes of these may take as many bytes as the body does.
        if self._other_bytes > self._settings.max_head_bytes + self._body_bytes:
            self._refuse(HeadTooLarge(f"more than {self._settings.max_head_bytes} bytes are not the body"))
        elif len(self.pipeline) > MAX_PIPELINED:
            self.transport.abort()
        elif self._in_head and self._timer is None and (self._in_message or not self._cycle_is_running()):
            self._wait_for_head()

    def _cycle_is_running(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_message = True
        self._head_bytes = self._body_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer."""
        self._head_bytes += len(name) + len(value)
        if self._head_fits():
            super().on_header(name, value)

    def _head_fits(self) -> bool:
        return self._head_bytes <= self._settings.max_head_bytes and len(self.headers) <= MAX_HEADERS

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head = False
        self._other_bytes = 0
        self._stop_waiting()
        usual = self.app
        if not (self._head_fits() and len(self.url) <= self._settings.max_head_bytes):
            self.app = self._too_large
        super().on_headers_complete()
        self.app = usual

    def on_body(self, body: bytes) -> None:
        """Some of the body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._in_message = False
        self._in_head = True
        self._stop_waiting()  # for the rest of a body that nobody wants
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The request is answered."""
        super().on_response_complete()
        unread = self._in_message and not self._in_head and not self._cycle_is_running()
        if unread and not self.transport.is_closing():
            self._stop_waiting()
            self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    # Time and refusals ------------------------------------------------------------------------------------------------

    def _wait_for_head(self) -> None:
        seconds = self._settings.head_seconds
        error = HeadTimeout(f"the head of the request took longer than {seconds:g} s")
        self._timer = self.loop.call_later(seconds, self._refuse, error)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _too_large(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application that answers a head which is whole and too large."""
        most = self._settings.max_head_bytes
        error = HeadTooLarge(f"a head has at most {most} bytes and {MAX_HEADERS} headers, got more")
        status, headers, body = _answer(error)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _refuse(self, error: BlackboxError) -> None:
        """Answer before there is a request, and close. A request that is being answered is cut."""
        if not self.transport.is_closing():
            if not self._cycle_is_running():
                status, headers, body = _answer(error)
                lines = b"".join(b"%b: %b\r\n" % header for header in headers)
                self.transport.write(STATUS_LINE[status] + lines + b"\r\n" + body)
            self.transport.close()


def _answer(error: BlackboxError) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    document = problems.problem(error, f"req_{secrets.token_hex(8)}")
    body = problems.encode(document)
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
        (b"x-request-id", document["request_id"].encode()),
    ]
    return document["status"], headers, body

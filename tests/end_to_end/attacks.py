"""Attacks on a server of one's own, on loopback and bounded: each sends its bytes over raw sockets, some seconds long.

The tests look at what becomes of each; `tests/benchmarks/bench_attacks.py` at what others waited meanwhile.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

Send = Callable[[bytes, float], bytes]
"""Sends bytes on a connection of its own and returns what comes back within so many seconds."""


class Target:
    """A server on loopback, a study of it, and a key that may evaluate.

    Parameters
    ----------
    key : text of a key; None: the server has none.
    """

    def __init__(self, port: int, study: str, key: str | None = None) -> None:
        self.port = port
        self.study = study
        self._key = b"" if key is None else b"Authorization: Bearer %b\r\n" % key.encode()

    def connect(self) -> socket.socket:
        """A new connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60.0)

    def send(self, data: bytes, seconds: float = 60.0) -> bytes:
        """What comes back for some bytes: until the other side closes, or an answer is whole, or the time is over."""
        with self.connect() as connection:
            connection.settimeout(seconds)
            received = b""
            with suppress(OSError):
                connection.sendall(data)
            with suppress(OSError):
                while part := connection.recv(65_536):
                    received += part
                    head, end, body = received.partition(b"\r\n\r\n")
                    if end and len(body) >= _length(head):
                        break
            return received

    def head(self, method: str, path: str, headers: Mapping[str, object] | None = None) -> bytes:
        """A request line with headers, and the line that ends them."""
        lines = [f"{name}: {value}\r\n" for name, value in (headers or {}).items()]
        start = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        return start.encode() + self._key + "".join(lines).encode() + b"\r\n"

    def post(self, path: str, body: bytes, seconds: float = 60.0) -> tuple[int, dict[str, object]]:
        """Status and content of the answer to a POST."""
        answer = self.send(self.head("POST", path, {"Content-Length": len(body)}) + body, seconds)
        return status(answer), content(answer)


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


def status(answer: bytes) -> int:
    """The status of an answer; 0 if there is none."""
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0


def content(answer: bytes) -> dict[str, object]:
    """The JSON of an answer."""
    body = answer.partition(b"\r\n\r\n")[2]
    return dict(json.loads(body)) if body[:1] == b"{" else {}


@dataclass(frozen=True, slots=True)
class Body:
    """A body that asks for much work, and where it goes."""

    path: str
    content: Callable[[], bytes]
    status: tuple[int, ...]
    """What a server that bounds its work may answer."""


def _space(n: int) -> bytes:
    return json.dumps({"name": f"{n} parameters", "space": {f"x{i}": _FLOAT for i in range(n)}}).encode()


def _choices(n: int) -> bytes:
    space = {"x": {"type": "categorical", "choices": [f"c{i}" for i in range(n)]}}
    return json.dumps({"name": f"{n} choices", "space": space, "algorithm": "random_search"}).encode()


_FLOAT = {"type": "float", "low": 0, "high": 1}
MB = 2**20
BODIES: Mapping[str, Body] = {
    "2 MB of numbers as results": Body("tell", lambda: b'{"results":[%b1]}' % (b"1," * MB), (413, 422)),
    "2 MB of {} as results": Body("tell", lambda: b'{"results":[%b{}]}' % (b"{}," * (2 * MB // 3)), (413, 422)),
    "1 MB of numbers as leases": Body("heartbeat", lambda: b'{"leases":[%b1]}' % (b"1," * (MB // 2 - 20)), (413, 422)),
    "8 MB of [] as results": Body("tell", lambda: b'{"results":[%b[]]}' % (b"[]," * (8 * MB // 3 - 20)), (413, 422)),
    "8 MB of numbers as a point": Body(
        "tell",
        lambda: b'{"params":{"x":[%b1]},"value":1,"key":"k"}' % (b"0.12345678901234567," * (8 * MB // 20 - 20)),
        (200, 422),
    ),
    "1000 results of 30 unknown fields": Body(
        "tell", lambda: json.dumps({"results": [{f"a{i}": 1 for i in range(30)}] * 1000}).encode(), (422,)
    ),
    "8 MB of one text": Body("tell", lambda: b'{"key":"%b"}' % (b"a" * (8 * MB - 20)), (422,)),
    "8 MB of nesting": Body("tell", lambda: b"[" * (8 * MB - 20), (400, 413, 422)),
    "8 MB of digits": Body("tell", lambda: b'{"value":%b}' % (b"7" * (8 * MB - 20)), (400, 413, 422)),
    "20,000 parameters": Body("", lambda: _space(20_000), (200, 201)),
    "100,000 choices": Body("", lambda: _choices(100_000), (200, 201, 422)),
}

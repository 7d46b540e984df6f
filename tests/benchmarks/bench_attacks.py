"""The service under attack: what others waited meanwhile, and the memory that it took.

Each attack is bounded, on loopback, against a server of its own with default settings. A light client asks and tells
on one connection every 10 ms; its waits are corrected for those that it could not even send meanwhile (a wait of one
second stands for a hundred). The attacker has a key that may evaluate and create where the attack needs one.

`BLACKBOX_BEFORE=FOLDER` names a checkout of another release, whose figures are put beside.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.end_to_end.attacks import BODIES, Target, status

SECONDS = 3.0
INTERVAL = 0.01
HOLD_SECONDS = 12.0
SPACE = {"x": {"type": "float", "low": -5, "high": 5}}
ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys
from blackbox_server.app import run
from blackbox_server.settings import Settings
run(Settings(port=0))
"""
Attack = Callable[[Target, threading.Event], str]
"""Runs until it is done or the event is set; returns what became of it."""


@contextmanager
def server(checkout: Path) -> Iterator[tuple[int, int, str]]:
    """Process id, port and first key of a server with default settings from this checkout."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": f"{checkout}:{checkout / 'server'}:{checkout / 'clients/python'}"}
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().rpartition(":")[2])
            key = process.stdout.readline().rpartition(": ")[2].strip()
            yield process.pid, port, key
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def memory(pid: int, field: str) -> float:
    """A figure of the process's memory, in MB: VmRSS now, VmHWM at most so far."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0]) / 1024


class Light:
    """A client that asks and tells every 10 ms."""

    def __init__(self, target: Target) -> None:
        self.waits: list[float] = []
        self._target = target
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Light:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._target.port)
        study = f"/v1/studies/{self._target.study}"
        while not self._stop.is_set():
            asked = await self._post(reader, writer, f"{study}/ask", b"{}")
            told = [{"trial": trial["id"], "value": 1.0} for trial in asked["trials"]]
            await self._post(reader, writer, f"{study}/tell", json.dumps({"results": told}).encode())
        writer.close()

    async def _post(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: bytes) -> dict:
        began = time.perf_counter()
        writer.write(self._target.head("POST", path, {"Content-Length": len(body)}) + body)
        head = await reader.readuntil(b"\r\n\r\n")
        answer = await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n", 1)[0]))
        waited = time.perf_counter() - began
        self.waits.append(waited)
        assert status(head) == 200, answer
        await asyncio.sleep(max(0.0, INTERVAL - waited))
        return dict(json.loads(answer))

    def summary(self) -> tuple[float, float]:
        """99th percentile and longest wait, in ms."""
        all_waits = [wait - i * INTERVAL for wait in self.waits for i in range(max(1, int(wait / INTERVAL)))]
        return statistics.quantiles(all_waits, n=100)[98] * 1e3, max(self.waits) * 1e3


# Attacks --------------------------------------------------------------------------------------------------------------


def nothing(_: Target, stop: threading.Event) -> str:
    """No attack."""
    stop.wait()
    return ""


def body(name: str) -> Attack:
    """Send one of the large bodies again and again."""
    attack = BODIES[name]
    text = attack.content()

    def run(target: Target, stop: threading.Event) -> str:
        path = f"/v1/studies/{target.study}/{attack.path}".rstrip("/") if attack.path else "/v1/studies"
        answers = []
        while not stop.is_set():
            answers.append(target.post(path, text, 90.0)[0])
        return f"{len(answers)} x {'/'.join(map(str, sorted(set(answers))))}"

    return run


def endless_head(target: Target, stop: threading.Event) -> str:
    """One header that never ends."""
    sent = 0
    with target.connect() as connection, suppress(OSError):
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ")
        while not stop.is_set():
            connection.sendall(b"a" * 65_536)
            sent += 65_536
        return f"{sent / 2**20:.1f} MB taken"
    return f"cut after {sent / 2**20:.1f} MB"


def _hold(target: Target, n: int, data: bytes) -> str:
    connections = []
    with suppress(OSError):
        for _ in range(n):
            connection = target.connect()
            connection.sendall(data)
            connections.append(connection)
    time.sleep(HOLD_SECONDS)
    still = sum(map(_is_open, connections))
    for connection in connections:
        connection.close()
    return f"{still} of {n} open after {HOLD_SECONDS:g} s"


def _is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        while part := connection.recv(65_536):
            pass
    except BlockingIOError:
        return True
    except OSError:
        return False
    return bool(part)


def half_heads(target: Target, _: threading.Event) -> str:
    """1,500 connections, each with half a head."""
    return _hold(target, 1500, b"GET /healthz HTTP/1.1\r\nHost: loc")


def pipeline(target: Target, stop: threading.Event) -> str:
    """Requests without end, sent ahead of answers that are not read."""
    sent = 0
    with target.connect() as connection, suppress(OSError):
        connection.settimeout(1.0)
        while not stop.is_set():
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000)
            sent += 1000
        return f"{sent} sent"
    return f"stopped after {sent}"


def wrong_keys(target: Target, stop: threading.Event) -> str:
    """Unknown keys, as fast as they are answered."""
    counts: dict[int, int] = {}
    while not stop.is_set():
        wrong = Target(target.port, "", f"zok_{secrets.token_hex(4)}_{'a' * 43}")
        with wrong.connect() as connection, suppress(OSError):
            for _ in range(100):
                connection.sendall(wrong.head("GET", "/v1/studies"))
                code = status(connection.recv(65_536))
                counts[code] = counts.get(code, 0) + 1
    return ", ".join(f"{n} x {code}" for code, n in sorted(counts.items()))


ATTACKS: dict[str, Attack] = {
    "none": nothing,
    **{name: body(name) for name in BODIES},
    "a header without end": endless_head,
    "1,500 half heads": half_heads,
    "pipelined requests without end": pipeline,
    "unknown keys": wrong_keys,
}


def measure(checkout: Path, attack: Attack) -> tuple[float, float, float, float, str]:
    """99th percentile and longest wait of the light client (ms), memory before and at most (MB), and the outcome."""
    with server(checkout) as (pid, port, key):
        admin = Target(port, "", key)

        def made(path: str, **content_: object) -> dict:
            code, answer = admin.post(path, json.dumps(content_).encode())
            assert code == 201, answer
            return answer

        study = made("/v1/studies", name="light", space=SPACE, algorithm="random_search")["id"]
        scopes = ["study:admin", "study:read", "study:evaluate"]
        target = Target(port, str(study), str(made("/v1/keys", scopes=scopes)["key"]))
        before = memory(pid, "VmRSS")
        stop = threading.Event()
        timer = threading.Timer(SECONDS, stop.set)
        with Light(Target(port, str(study), key)) as light:
            time.sleep(0.5)
            light.waits.clear()
            timer.start()
            outcome = attack(target, stop)
            time.sleep(0.1)
        return *light.summary(), before, memory(pid, "VmHWM"), outcome


def main() -> list[str]:
    """The section of BENCHMARKS.md."""
    before = os.environ.get("BLACKBOX_BEFORE")
    sides = [("before", Path(before))] if before else []
    sides.append(("now", ROOT))
    rows = [
        f"Two cores for server, client and attacker. {SECONDS:g} s each, or one request where that takes longer.",
        "",
        "| attack | "
        + " | ".join(f"{side}: p99, longest wait (ms) | memory (MB) | outcome" for side, _ in sides)
        + " |",
        "|---|" + "---:|---:|---|" * len(sides),
    ]
    wanted = os.environ.get("BLACKBOX_ATTACKS", "")
    for name, attack in ATTACKS.items():
        if wanted and wanted not in name:
            continue
        cells = []
        for _, checkout in sides:
            p99, longest, start, peak, outcome = measure(checkout, attack)
            cells.append(f"{p99:.1f}, {longest:.0f} | {start:.0f} to {peak:.0f} | {outcome}")
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    print("\n".join(main()))

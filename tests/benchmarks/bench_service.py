"""The service: cycles per second beside a bare route, the disk's commits, and Optuna.

A *cycle* is one trial asked and told by one client. The load comes from one asyncio process with raw sockets, so that
the two cores measure the server and not a client library. Every figure of one run is taken on the same disk.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import orjson

SECONDS = 2.0
CLIENTS = (1, 8, 32)
TURNS = 5
SPACE = {f"x{i}": {"type": "float", "low": -5, "high": 5} for i in range(5)}
BARE = """
import sys
from datetime import UTC, datetime
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()

class Result(BaseModel):
    trial: str
    lease: str
    value: float

class Ask(BaseModel):
    worker: str | None = None
    count: int = 1

class Tell(BaseModel):
    worker: str
    results: list[Result] = []
    ask: Ask | None = None

STUDY = {"state": "ACTIVE", "step": 4, "used": 123456, "leased": 32, "remaining": None}

def trial(i):
    params = {f"x{k}": 1.2345678901234567 for k in range(5)}
    expires = datetime.fromtimestamp(1795300000.123456, UTC)
    lease = {"token": f"{i}.1." + "0" * 24, "attempt": 1, "expires_at": expires, "heartbeat_seconds": 200.0}
    return {"id": f"t_{i}", "number": i, "step": 4, "replicate": 0, "params": params,
            "eval_seed": "123456789012345", "lease": lease}

def asked(count):
    return {"trials": [trial(123456 + i) for i in range(count)], "granted": count, "requested": count, "reason": None,
            "retry_after_seconds": None}

@app.post("/v1/studies/bare/ask")
async def ask(body: Ask)RETURNS:
    return {**asked(body.count), "study": STUDY}

@app.post("/v1/studies/bare/tell")
async def tell(body: Tell)RETURNS:
    results = [{"trial": item.trial, "outcome": "applied"} for item in body.results]
    answer = {"applied": len(body.results), "results": results, "study": STUDY}
    if body.ask is not None:
        answer["ask"] = asked(body.ask.count)
    return answer

uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False, loop="uvloop", http="httptools")
"""
"""Two routes that read the same bodies and return answers of the same form, and do nothing else."""
PEERS = {"plain": "", "lean": " -> dict"}
"""As most people write a route; and with a return annotation, by which recent FastAPI hands the answer to pydantic's
serialiser instead of walking through it in Python."""


class Connection:
    """One keep-alive connection that sends JSON and reads JSON."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def post(self, path: str, body: bytes) -> Any:
        self._writer.write(
            b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (path.encode(), len(body), body)
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n", 1)[0])
        answer = await self._reader.readexactly(length)
        if b" 20" not in head.split(b"\r\n", 1)[0]:
            raise RuntimeError(f"{head.split(chr(13).encode(), 1)[0]!r} {answer[:500]!r}")
        return orjson.loads(answer)

    def close(self) -> None:
        self._writer.close()


async def rate(port: int, n_clients: int, cycle: Callable[[Connection, int], Awaitable[int]]) -> float:
    """Trials per second that `n_clients` connections get through in `SECONDS`, each repeating `cycle`."""
    connections = [await Connection.open(port) for _ in range(n_clients)]
    for i, connection in enumerate(connections):
        await cycle(connection, i)
    done = 0
    until = time.perf_counter() + SECONDS

    async def client(connection: Connection, number: int) -> None:
        nonlocal done
        while time.perf_counter() < until:
            n = await cycle(connection, number)  # awaited first: `done += await` would add to an old `done`
            done += n

    began = time.perf_counter()
    await asyncio.gather(*(client(connection, i) for i, connection in enumerate(connections)))
    seconds = time.perf_counter() - began
    for connection in connections:
        connection.close()
    return done / seconds


def two_calls(study: str) -> Callable[[Connection, int], Awaitable[int]]:
    """Ask, then tell."""

    async def cycle(connection: Connection, number: int) -> int:
        asked = await connection.post(f"/v1/studies/{study}/ask", b'{"worker":"w%d"}' % number)
        trial = asked["trials"][0]
        await connection.post(f"/v1/studies/{study}/tell", _result(trial, number))
        return 1

    return cycle


def piggybacked(study: str, count: int = 1) -> Callable[[Connection, int], Awaitable[int]]:
    """Tell what is in hand, and get as many new trials in the same answer."""
    held: dict[int, list[dict[str, Any]]] = {}

    async def cycle(connection: Connection, number: int) -> int:
        if number not in held:
            asked = await connection.post(f"/v1/studies/{study}/ask", b'{"worker":"w%d","count":%d}' % (number, count))
            held[number] = asked["trials"]
        results = [
            {"trial": t["id"], "lease": t["lease"]["token"], "value": sum(x * x for x in t["params"].values())}
            for t in held[number]
        ]
        body = {"worker": f"w{number}", "results": results, "ask": {"count": count}}
        told = await connection.post(f"/v1/studies/{study}/tell", orjson.dumps(body))
        held[number] = told["ask"]["trials"]
        return len(results)

    return cycle


def _result(trial: dict[str, Any], number: int) -> bytes:
    value = sum(x * x for x in trial["params"].values())
    result = {"trial": trial["id"], "lease": trial["lease"]["token"], "value": value}
    return orjson.dumps({"worker": f"w{number}", "results": [result]})


async def create(port: int, name: str, algorithm: str = "random_search") -> str:
    """A new study; its id."""
    connection = await Connection.open(port)
    spec = {"name": name, "space": SPACE, "algorithm": {"name": algorithm}, "parallelism": {"max_leased": 10_000}}
    made = await connection.post("/v1/studies", orjson.dumps(spec))
    connection.close()
    return str(made["id"])


async def fill(port: int, study: str, n_trials: int) -> None:
    """Ask and tell `n_trials` in large batches."""
    cycle, connection, n = piggybacked(study, 500), await Connection.open(port), 0
    while n < n_trials:
        told = await cycle(connection, 0)
        n += told
    connection.close()


@contextmanager
def server(folder: Path) -> Iterator[int]:
    """`blackbox serve` on a fresh database; its port."""
    command = [sys.executable, "-m", "blackbox.cli", "serve", "--port", "0", "--insecure-local"]
    environment = {**os.environ, "BLACKBOX_RATE_PER_SECOND": "1000000", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command, "--database", str(folder / "bench.db")], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline().rsplit(":", 1)[1])
    finally:
        process.terminate()
        process.wait()


@contextmanager
def bare_server(returns: str) -> Iterator[int]:
    """The bare routes on the same uvicorn; `returns` is their return annotation."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", BARE.replace("RETURNS", returns), str(port)])
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def commit_seconds(folder: Path, n: int = 400) -> float:
    """Median of a durable one-row commit on this disk."""
    connection = sqlite3.connect(folder / "commits.db", isolation_level=None)
    connection.execute("pragma journal_mode=wal")
    connection.execute("pragma synchronous=full")
    connection.execute("create table t(a integer primary key, b text)")
    times = []
    for i in range(n):
        began = time.perf_counter()
        connection.execute("begin immediate")
        connection.execute("insert into t(b) values (?)", (f"{i:0200d}",))
        connection.execute("commit")
        times.append(time.perf_counter() - began)
    connection.close()
    return statistics.median(times)


def optuna_rate(folder: Path) -> float:
    """Trials per second of Optuna's ask and tell, five floats, random sampler, SQLite storage."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        storage=f"sqlite:///{folder / 'optuna.db'}", sampler=optuna.samplers.RandomSampler(seed=1)
    )
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        trial = study.ask()
        value = sum(trial.suggest_float(name, -5, 5) ** 2 for name in SPACE)
        study.tell(trial, value)
        done += 1
    return done / (time.perf_counter() - began)


Cycles = Callable[[str], Callable[[Connection, int], Awaitable[int]]]
LOADS: dict[str, tuple[int, Cycles]] = {
    **{f"{n}, two": (n, two_calls) for n in CLIENTS},
    **{f"{n}, one": (n, piggybacked) for n in CLIENTS},
    "4, batches of 32": (4, lambda study: piggybacked(study, 32)),
}
"""How many clients, and what each repeats."""


def _turn(ports: dict[str, int], turn: int) -> dict[str, dict[str, float]]:
    """Trials per second of every load on every server, one after the other."""

    async def of(who: str, load: str) -> float:
        n, cycle = LOADS[load]
        study = await create(ports[who], f"{load} {turn}") if who == "ours" else "bare"
        return await rate(ports[who], n, cycle(study))

    return {load: {who: asyncio.run(of(who, load)) for who in ports} for load in LOADS}


async def _empty_and(port: int, study: str, turn: int) -> tuple[float, float]:
    """Rates of 8 clients in a new study, and then in this one."""
    new = await create(port, f"empty-{turn}")
    return await rate(port, 8, piggybacked(new)), await rate(port, 8, piggybacked(study))


def main() -> list[str]:
    """Markdown lines."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BLACKBOX_TEST_FOLDER")) as name:
        folder = Path(name)
        commit = commit_seconds(folder)
        with server(folder) as port, ExitStack() as peers:
            ports = {"ours": port} | {who: peers.enter_context(bare_server(PEERS[who])) for who in PEERS}
            turns = [_turn(ports, turn) for turn in range(TURNS)]
            study = asyncio.run(create(port, "large"))
            asyncio.run(fill(port, study, 100_000))
            pairs = [asyncio.run(_empty_and(port, study, turn)) for turn in range(TURNS)]
        optuna = optuna_rate(folder)
    ratios = [full / empty for empty, full in pairs]
    commits = 2 + 1 / 8  # ask, tell, and a swap for each generation of 8
    median = {load: {who: statistics.median(turn[load][who] for turn in turns) for who in ports} for load in LOADS}
    bound = 2e3 * (1 / median["1, two"]["plain"] + commits * commit)

    def of(load: str, peer: str) -> str:
        """Our share of a peer's rate: median over turns, least, most."""
        found = [turn[load]["ours"] / turn[load][peer] for turn in turns]
        return f"{statistics.median(found):.2f} ({min(found):.2f}, {max(found):.2f})"

    rows = [["clients, calls a cycle", "ours", "plain route", "of it", "lean route", "of it"]]
    for load, each in median.items():
        rates = [f"{each[who]:.0f}" for who in ("ours", "plain", "lean")]
        rows.append([load, rates[0], rates[1], of(load, "plain"), rates[2], of(load, "lean")])
    optuna_times = f"{median['1, one']['ours'] / optuna:.0f} times"
    wanted = [
        ["what", "measured", "wanted"],
        [f"one client, a cycle of two calls, beside twice (plain route + {commits} commits)",
         f"{1e3 / median['1, two']['ours']:.2f} ms", f"<= {bound:.2f} ms"],
        ["32 clients, two calls, of the plain route", of("32, two", "plain"), ">= 0.6"],
        ["batches of 32 from 4 clients, of the plain route", of("4, batches of 32", "plain"), ">= 0.5"],
        [f"one client, tell with ask, beside Optuna with SQLite ({optuna:.0f}/s)", optuna_times, ">= 20 times"],
        ["8 clients at 100,000 trials, beside an empty study",
         f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})", ">= 0.8"],
    ]  # fmt: skip
    return [
        f"A durable commit takes {commit * 1e3:.2f} ms (median). `random_search`, five floats; trials per second;",
        f"medians of {TURNS} turns, each of which goes through all servers (least and most beside the ratios). The",
        "bare routes read the same bodies from the same clients, on the same uvicorn, and return constant answers of",
        "the same form: *plain* as most people write a route, *lean* with a return annotation, by which FastAPI leaves",
        "the answer to pydantic's serialiser.",
        "",
        *_table(rows),
        "",
        *_table(wanted),
    ]


def _table(rows: list[list[Any]]) -> list[str]:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]


if __name__ == "__main__":
    print("\n".join(main()))

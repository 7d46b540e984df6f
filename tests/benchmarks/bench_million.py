"""Cost of a step of 256 candidates of four million parameters over HTTP.

A real server on its SQLite file, one client. Every candidate is rebuilt from its recipe and its value computed from the
rebuilt numbers. Two floors are stated beside the update: reading and writing every array of theta and the stepper once
at the measured copy bandwidth, and drawing the noise, which nobody stored. The update is measured in this process too,
in processor time, because seconds over HTTP depend on what else the machine does.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
from blackbox_client import StudyHandle
from blackbox_client.models import completed

from blackbox import codec, rng
from blackbox.algorithm import build, resolve_options
from blackbox.records import NOTHING_PENDING, Results
from blackbox.space import Space, Vector
from tests.end_to_end.service import Service

DIM = 4_000_000
POPSIZE = 256
N_STEPS = 3
STRIDE = 4096
KEY = rng.Key.from_seed(1)


@dataclass
class Seen:
    """What went over the wire since the last look."""

    received: int = 0
    sent: int = 0
    algo_seconds: float = 0.0


class Counting(httpx.HTTPTransport):
    """Counts bodies, and the seconds that the server says its algorithm took."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = Seen()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        self.seen.sent += int(request.headers.get("content-length", 0))
        self.seen.received += int(response.headers.get("content-length", 0))
        algo = re.search(r"algo;dur=([0-9.]+)", response.headers.get("server-timing", ""))
        self.seen.algo_seconds += float(algo[1]) / 1e3 if algo else 0.0
        return response

    def look(self) -> Seen:
        seen, self.seen = self.seen, Seen()
        return seen


@dataclass
class Costs:
    """Costs of each step."""

    ask: list[float] = field(default_factory=list)
    candidate_bytes: list[float] = field(default_factory=list)
    base: list[float] = field(default_factory=list)
    base_bytes: list[float] = field(default_factory=list)
    rebuild: list[float] = field(default_factory=list)
    tell: list[float] = field(default_factory=list)
    tell_bytes: list[float] = field(default_factory=list)
    algo: list[float] = field(default_factory=list)
    means: list[float] = field(default_factory=list)


def value(theta: np.ndarray[Any, Any]) -> float:
    """A quadratic that looks at every 4096th coordinate."""
    return float(np.square(theta[::STRIDE].astype(np.float64) - 1.0).sum())


def one_step(study: StudyHandle, wire: Counting, costs: Costs) -> None:
    """Ask, rebuild, tell."""
    wire.look()
    began = time.perf_counter()
    trials = study.ask(POPSIZE, encoding="seed").trials
    costs.ask.append(time.perf_counter() - began)
    assert len(trials) == POPSIZE
    costs.candidate_bytes.append(wire.look().received / POPSIZE)
    assert trials[0].candidate is not None
    began = time.perf_counter()
    study.ingredients(trials[0].candidate)
    costs.base.append(time.perf_counter() - began)
    costs.base_bytes.append(wire.look().received)
    began = time.process_time()
    values = [value(study.materialise(trial)) for trial in trials]
    costs.rebuild.append((time.process_time() - began) / POPSIZE)
    costs.means.append(float(np.mean(values)))
    assert wire.look().received == 0
    began = time.perf_counter()
    answer = study.tell([completed(trial, v) for trial, v in zip(trials, values, strict=True)])
    costs.tell.append(time.perf_counter() - began)
    assert all(outcome.outcome == "applied" for outcome in answer.outcomes)
    seen = wire.look()
    costs.tell_bytes.append((seen.sent + seen.received) / POPSIZE)
    costs.algo.append(seen.algo_seconds)


def memory(pid: int, name: str) -> float:
    """MB of a process: VmHWM is the most it had resident, VmRSS what it has."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1e3


def cpu(pid: int) -> float:
    """Processor seconds of a process."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def measure(slice_threads: int) -> tuple[Costs, list[str]]:
    """A server, a study and its steps."""
    costs, wire = Costs(), Counting()
    os.environ["BLACKBOX_SLICE_THREADS"] = str(slice_threads)
    with tempfile.TemporaryDirectory() as folder, Service(Path(folder)) as server:
        server.start()
        pid = server.process.pid
        idle = memory(pid, "VmRSS")
        study = server.client(transport=wire, timeout=120.0).create_study(
            name="million",
            space={"theta": {"type": "vector", "dim": DIM, "init": 0.0}},
            algorithm={"name": "openai_es", "options": {"popsize": POPSIZE, "sigma": 0.02}},
            budget=POPSIZE * N_STEPS,
        )
        spent = cpu(pid)
        for _ in range(N_STEPS):
            one_step(study, wire, costs)
        spent = (cpu(pid) - spent) / N_STEPS
        peak, resident = memory(pid, "VmHWM"), memory(pid, "VmRSS")
        assert study.refresh().state == "COMPLETED"
    assert costs.means[-1] < costs.means[0]  # it descends
    notes = [
        f"| server processor time per step | {spent:.2f} s | |",
        f"| server memory | peak {peak:.0f} MB, at the end {resident:.0f} MB | idle {idle:.0f} MB; theta is "
        f"{DIM * 4 / 1e6:.0f} MB, a state {3 * DIM * 4 / 1e6:.0f} MB |",
    ]
    return costs, notes


def update_seconds() -> tuple[float, float]:
    """Processor seconds of one update in this process, and of naming the new state (encode and hash)."""
    space = Space({"theta": Vector(dim=DIM, init=0.0)})
    method = build("openai_es", space, resolve_options("openai_es", space, {"popsize": POPSIZE}), KEY)
    state, lanes = method.init(), np.arange(POPSIZE)
    updates, names = [], []
    for step in range(2):
        points = method.ask(state, range(POPSIZE), NOTHING_PENDING)
        values = (lanes * 37 % 251).reshape(-1, 1).astype(float)
        results = Results(np.full(POPSIZE, step, dtype=np.int64), lanes, points, values)
        began = time.process_time()
        state = method.tell(state, results)
        updates.append(time.process_time() - began)
        began = time.process_time()
        codec.digest(codec.encode(state))
        names.append(time.process_time() - began)
    return min(updates), min(names)


def floors() -> tuple[float, float, float]:
    """Seconds to move the arrays of an update once, seconds to draw its noise in one thread, bytes per second."""
    source = np.ones(1 << 25, dtype=np.float32)
    target = np.empty_like(source)
    copies = []
    for _ in range(7):
        began = time.perf_counter()
        np.copyto(target, source)
        copies.append(time.perf_counter() - began)
    bandwidth = 2 * source.nbytes / min(copies)
    # theta, both moments: read and written, float32; g: written and read, float64
    moved = DIM * (3 * 2 * 4 + 2 * 8)
    key = KEY.stream(0)
    noise = np.empty(1 << 16, dtype=np.float32)
    began = time.process_time()
    n_pieces = 512
    for i in range(n_pieces):
        rng.normal(key, 0, i, DIM, 0, len(noise), noise)
    draw = (time.process_time() - began) / (n_pieces * len(noise)) * DIM * POPSIZE / 2
    return moved / bandwidth, draw, bandwidth


def main() -> list[str]:
    """Markdown rows: what, measured, beside what."""
    moved, draw, bandwidth = floors()
    tell, name = update_seconds()
    one, _ = measure(1)
    costs, notes = measure(0)
    n_cores = len(os.sched_getaffinity(0))
    update, alone = median(costs.algo), median(one.algo)
    return [
        f"{N_STEPS} steps, medians. Wall-clock seconds unless processor time is said.",
        "",
        f"| {POPSIZE} candidates of {DIM} parameters | measured | beside |",
        "|---|---|---|",
        f"| ask {POPSIZE} | {median(costs.ask):.2f} s | {median(costs.candidate_bytes):.0f} bytes a candidate on "
        f"the wire; its numbers would be {DIM * 4} |",
        f"| base vector, once per step and worker | {median(costs.base):.2f} s | "
        f"{median(costs.base_bytes) / 1e6:.1f} MB |",
        f"| rebuild one | {median(costs.rebuild) * 1e3:.1f} ms processor time | |",
        f"| tell {POPSIZE}, the update in it | {median(costs.tell):.2f} s | {median(costs.tell_bytes):.0f} bytes a "
        "result, both ways |",
        f"| the update alone | {tell:.2f} s processor time | drawing {POPSIZE // 2} noise vectors: {draw:.2f} s |",
        f"| floor: theta, moments, gradient moved once | {moved:.3f} s | at {bandwidth / 1e9:.1f} GB/s (copy) |",
        f"| naming the new state (encode, hash) | {name:.2f} s processor time | |",
        f"| update and name in the server | {update:.2f} s on {n_cores} cores | on one {alone:.2f} s |",
        *notes,
    ]


if __name__ == "__main__":
    print("\n".join(main()))

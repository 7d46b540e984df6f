"""What Ray costs: short evaluations on all cores beside a bare ActorPool loop and processes, and bytes per generation.

Objectives sleep, so that cores are free for the machinery; achieved over ideal is evaluations x seconds each over
workers x seconds taken. Each figure is a `random_search` study through `blackbox.run`; the bare loop only maps.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

import blackbox
from blackbox.backends import Backend
from blackbox.backends.processes import Processes
from blackbox.backends.ray_cluster import RayBackend, Session
from blackbox.effects import perform
from blackbox.store import MemoryStore
from blackbox.study import Study, create

N_WORKERS = len(os.sched_getaffinity(0))
DIM = 1_000_000
POPULATION = 32
GENERATIONS = 4


class Sleeping:
    """An objective that takes a while and needs no core for it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, params: dict[str, Any]) -> float:
        time.sleep(self.seconds)
        return float(params["x"])


def study(space: dict[str, Any], algorithm: dict[str, Any], budget: int) -> tuple[Study, MemoryStore]:
    store = MemoryStore()
    spec = {"name": "bench", "space": space, "algorithm": algorithm, "budget": {"evaluations": budget}, "seed": 1}
    head, _ = perform(store, create("bench", spec, time.time()))
    return Study(head), store


def seconds_of(backend: Backend, n: int) -> float:
    """Of a study of n evaluations on a backend that is warm."""
    space = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
    for budget in (4 * N_WORKERS, n):
        of, store = study(space, {"name": "random_search"}, budget)
        began = time.perf_counter()
        blackbox.run(of, store, backend)
    return time.perf_counter() - began


def bare(ray: Any, seconds: float, n: int) -> float:
    """An ActorPool that maps the objective, as Ray's own documentation would write it."""
    from ray.util import ActorPool

    class Actor:
        def __init__(self) -> None:
            self._objective = Sleeping(seconds)

        def evaluate(self, params: dict[str, Any]) -> float:
            return self._objective(params)

    remote = ray.remote(Actor)
    actors = [remote.remote() for _ in range(N_WORKERS)]
    pool = ActorPool(actors)
    for count in (4 * N_WORKERS, n):
        began = time.perf_counter()
        list(pool.map_unordered(lambda actor, point: actor.evaluate.remote(point), [{"x": 0.5}] * count))
    taken = time.perf_counter() - began
    for actor in actors:
        ray.kill(actor)
    return taken


def efficiency(session: Session) -> list[str]:
    """Rows of achieved over ideal."""
    rows = []
    for seconds, n in ((0.001, 2000), (0.01, 600), (0.1, 80)):
        ideal = n * seconds / N_WORKERS

        def of(make: Callable[[], Backend], n: int = n, ideal: float = ideal) -> str:
            with closing(make()) as backend:
                while getattr(backend, "n_workers", N_WORKERS) < N_WORKERS:
                    backend.wait()
                return f"{100 * ideal / seconds_of(backend, n):.0f} %"

        objective = Sleeping(seconds)
        rows.append(
            f"| {seconds * 1e3:.0f} ms, {n} evaluations | "
            + " | ".join(
                [
                    of(lambda: RayBackend(objective, N_WORKERS)),  # noqa: B023 -- called at once
                    of(lambda: RayBackend(objective, N_WORKERS, ahead=0)),  # noqa: B023
                    f"{100 * ideal / bare(session.ray, seconds, n):.0f} %",
                    of(lambda: Processes(objective, N_WORKERS)),  # noqa: B023
                ]
            )
            + " |"
        )
    return rows


def moved() -> int:
    """Bytes that went through the loopback interface so far: everything between driver, nodes and actors."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name.strip() == "lo":
            return int(rest.split()[0])
    raise RuntimeError("there is no interface lo")


class Numbers:
    """The same backend without recipes: the driver builds points, and their numbers travel."""

    def __init__(self, inner: RayBackend) -> None:
        self._inner = inner
        self.submit, self.wait, self.close = inner.submit, inner.wait, inner.close

    @property
    def free(self) -> int:
        return self._inner.free


def mean_square(params: dict[str, Any]) -> float:
    return float(np.square(params["x"]).mean())


def travel() -> list[str]:
    """Bytes per generation on two nodes, the driver on one and the only actor on the other."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False, "object_store_memory": 4 * 10**8}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"num_cpus": 0})
    rows = []
    try:
        cluster.add_node(**node)
        with closing(RayBackend(mean_square, 1, address=cluster.address)) as backend:
            began, before = time.perf_counter(), moved()
            time.sleep(2.0)
            idle = (moved() - before) / (time.perf_counter() - began)
            for name, used in (("recipes", backend), ("numbers", Numbers(backend))):
                of, store = study(
                    {"x": {"type": "vector", "dim": DIM, "init": 1.0}},
                    {"name": "openai_es", "options": {"population": POPULATION}},
                    POPULATION * GENERATIONS,
                )
                began, before = time.perf_counter(), moved()
                blackbox.run(of, store, used)
                taken = time.perf_counter() - began
                each = (moved() - before - idle * taken) / GENERATIONS
                rows.append(f"| {name} | {each / 1e6:.2f} MB | {each / POPULATION / 1e3:.1f} kB |")
    finally:
        cluster.shutdown()
    return rows


def main() -> list[str]:
    """Markdown rows: what, measured, beside what."""
    with closing(Session(n_cpus=N_WORKERS)) as session:
        rows = efficiency(session)
    # Another cluster, so another process; it finds a token in its environment before it imports Ray.
    alone = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.urandom(32).hex(), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    told = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.bench_ray", "travel"],
        env={**os.environ, **alone},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [
        f"Achieved over ideal, {N_WORKERS} workers on {N_WORKERS} cores.",
        "",
        "| objective | Ray, one call ahead | Ray, none ahead | bare ActorPool loop | processes |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"A study of {DIM} parameters, {POPULATION} candidates a generation, from the driver's node to another one; "
        f"theta is {DIM * 4 / 1e6:.0f} MB.",
        "",
        "| candidates travel as | bytes moved per generation | per candidate |",
        "|---|---|---|",
        *[line for line in told.stdout.splitlines() if line.startswith("| ")],
    ]


if __name__ == "__main__":
    print("\n".join(travel() if sys.argv[1:] == ["travel"] else main()))

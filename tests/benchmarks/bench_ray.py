"""Cost of Ray: short evaluations on all cores beside a bare ActorPool loop and processes, and bytes per step.

Achieved over ideal is evaluations x seconds each over workers x seconds taken. Objectives that sleep leave the cores to
the machinery, so the ideal can be reached; objectives that compute on every core share them with the driver, whose own
processor time is then lost. Each figure is a `random_search` study through `blackbox.run`; the bare loop only maps. The
contestants take turns, with the idle processes of all up; beside each figure stands how many cores other programs used
meanwhile.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import blackbox
from blackbox.backends import Backend
from blackbox.backends.processes import Processes
from blackbox.backends.ray_cluster import RayBackend, Session
from blackbox.study.creation import create
from blackbox.study.editing import Study
from blackbox.study.effects import perform
from blackbox.study.memory import MemoryStore

N_WORKERS = len(os.sched_getaffinity(0))
TURNS = 5
DIM = 1_000_000
POPSIZE = 32
N_STEPS = 4


class Sleeping:
    """An objective that takes a while and needs no core for it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, params: dict[str, Any]) -> float:
        time.sleep(self.seconds)
        return float(params["x"])


class Computing(Sleeping):
    """An objective that needs a core for so many seconds."""

    def __call__(self, params: dict[str, Any]) -> float:
        until = time.thread_time() + self.seconds
        while time.thread_time() < until:
            pass
        return float(params["x"])


OBJECTIVES: dict[str, tuple[Sleeping, int, int]] = {
    "1 ms asleep": (Sleeping(0.001), 1000, 8),
    "10 ms asleep": (Sleeping(0.01), 320, 8),
    "10 ms asleep, steps of 64": (Sleeping(0.01), 320, 64),
    "10 ms computing": (Computing(0.01), 320, 8),
    "100 ms asleep": (Sleeping(0.1), 40, 8),
}
"""Objective, evaluations, and results that close a step: no lane of the next one is sent ahead of that."""


def study(space: dict[str, Any], algorithm: dict[str, Any], budget: int) -> tuple[Study, MemoryStore]:
    store = MemoryStore()
    spec = {"name": "bench", "space": space, "algorithm": algorithm, "budget": {"evaluations": budget}, "seed": 1}
    head, _ = perform(store, create("bench", spec, time.time()))
    return Study(head), store


# Processor time -------------------------------------------------------------------------------------------------------


def family(pid: int) -> set[int]:
    """A process and all its children."""
    found, todo = set(), [pid]
    while todo:
        found.add(todo[-1])
        children = Path(f"/proc/{todo.pop()}/task").glob("*/children")
        todo += [int(child) for path in children for child in path.read_text().split()]
    return found


def spent(pid: int) -> float:
    """Processor seconds of a process."""
    try:
        return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9
    except OSError:  # it ended
        return 0.0


def busy() -> float:
    """Processor seconds that all programs of this machine have used."""
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + sum(interrupts)) / float(os.sysconf("SC_CLK_TCK"))


@dataclass(frozen=True, slots=True)
class Turn:
    """What one contestant did in one turn."""

    achieved: float
    """Over ideal."""
    others: float
    """Cores that other programs used meanwhile."""
    driver: float
    """Processor seconds of this process per evaluation."""
    rest: float
    """The same of its children, without what the objective needs."""

    def __str__(self) -> str:
        return f"{100 * self.achieved:.0f} % ({self.others:.1f})"


def turn(run: Callable[[int], None], objective: Sleeping, n: int) -> Turn:
    """Time n evaluations."""
    pids = family(os.getpid())
    began, all_before, before = time.perf_counter(), busy(), {pid: spent(pid) for pid in pids}
    run(n)
    taken, everybody = time.perf_counter() - began, busy() - all_before
    used = {pid: spent(pid) - before[pid] for pid in pids}
    own, driver = sum(used.values()), used[os.getpid()]
    needed = objective.seconds * n if isinstance(objective, Computing) else 0.0
    ideal = n * objective.seconds / N_WORKERS
    return Turn(ideal / taken, max(0.0, everybody - own) / taken, driver / n, (own - driver - needed) / n)


class Plain:
    """A backend without what is special to it: nothing waits behind anything, and points travel as numbers."""

    def __init__(self, inner: Backend) -> None:
        self._inner = inner
        self.submit, self.wait, self.close = inner.submit, inner.wait, inner.close

    @property
    def free(self) -> int:
        return self._inner.free


# Contestants ----------------------------------------------------------------------------------------------------------


def through(backend: Backend, popsize: int) -> Callable[[int], None]:
    """Evaluations of a study on a backend."""

    def run(n: int) -> None:
        method = {"name": "random_search", "options": {"popsize": popsize}}
        of, store = study({"x": {"type": "float", "low": 0.0, "high": 1.0}}, method, n)
        blackbox.run(of, store, backend)

    return run


def bare(ray: Any, objective: Sleeping) -> Callable[[int], None]:
    """An ActorPool that maps the objective, as Ray's own documentation would write it."""
    from ray.util import ActorPool

    class Actor:
        def evaluate(self, params: dict[str, Any]) -> float:
            return objective(params)

    remote = ray.remote(Actor).options(num_cpus=0)
    pool = ActorPool([remote.remote() for _ in range(N_WORKERS)])

    def run(n: int) -> None:
        list(pool.map_unordered(lambda actor, point: actor.evaluate.remote(point), [{"x": 0.5}] * n))

    return run


def contest(session: Session, objective: Sleeping, n: int, popsize: int) -> dict[str, list[Turn]]:
    """The turns of all contestants by name."""
    with ExitStack() as stack:
        backend = stack.enter_context(closing(RayBackend(objective, N_WORKERS, num_cpus=0)))
        while backend.n_workers < N_WORKERS:
            backend.wait()
        contestants = {
            "Ray": through(backend, popsize),
            "Ray, one by one": through(Plain(backend), popsize),
            "bare ActorPool loop": bare(session.ray, objective),
            "processes": through(stack.enter_context(closing(Processes(objective, N_WORKERS))), popsize),
        }
        turns: dict[str, list[Turn]] = {name: [] for name in contestants}
        for run in contestants.values():
            run(4 * N_WORKERS)
        for _ in range(TURNS):
            for name, run in contestants.items():
                turns[name].append(turn(run, objective, n))
    return turns


def row(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def efficiency(session: Session) -> list[str]:
    """Tables of achieved over ideal, of its turns, and of processor time."""
    found = {name: contest(session, *each) for name, each in OBJECTIVES.items()}
    names = list(next(iter(found.values())))

    def table(cell: Callable[[str, list[Turn]], str], whats: Iterable[str] = tuple(OBJECTIVES)) -> list[str]:
        rows = [row(what, *[cell(what, found[what][name]) for name in names]) for what in whats]
        return ["", row("objective", *names), "|---" * (1 + len(names)) + "|", *rows, ""]

    def cost(turns: list[Turn]) -> tuple[float, float]:
        return median(each.driver for each in turns), median(each.rest for each in turns)

    def share(what: str, turns: list[Turn]) -> str:
        seconds = OBJECTIVES[what][0].seconds
        return f"{100 * seconds / (seconds + sum(cost(turns))):.0f} %"

    return [
        f"Achieved over ideal, {N_WORKERS} workers on {N_WORKERS} cores: the turn in which other programs used least, "
        "and in brackets how many cores that was.",
        *table(lambda what, turns: str(min(turns, key=lambda each: each.others))),
        f"All {TURNS} turns of each; {', '.join(f'{n} of {what}' for what, (_, n, _) in OBJECTIVES.items())}:",
        *table(lambda what, turns: ", ".join(map(str, turns))),
        "Processor time per evaluation in microseconds, medians: of the driver + of everything else, what an objective "
        "computes itself aside.",
        *table(lambda what, turns: " + ".join(f"{1e6 * each:.0f}" for each in cost(turns))),
        "The objective's share of all processor time, which is the most that computing on every core can achieve:",
        *table(share, [what for what, (objective, *_) in OBJECTIVES.items() if isinstance(objective, Computing)]),
    ][:-1]


# Bytes ----------------------------------------------------------------------------------------------------------------


def moved() -> int:
    """Bytes that went through the loopback interface so far: everything between driver, nodes and actors."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name.strip() == "lo":
            return int(rest.split()[0])
    raise RuntimeError("there is no interface lo")


def mean_square(params: dict[str, Any]) -> float:
    return float(np.square(params["x"]).mean())


def travel() -> list[str]:
    """Bytes per step on two nodes, the driver on one and the only actor on the other."""
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
            for name, used in (("recipes", backend), ("numbers", Plain(backend))):
                of, store = study(
                    {"x": {"type": "vector", "dim": DIM, "init": 1.0}},
                    {"name": "openai_es", "options": {"popsize": POPSIZE}},
                    POPSIZE * N_STEPS,
                )
                began, before = time.perf_counter(), moved()
                blackbox.run(of, store, used)
                taken = time.perf_counter() - began
                each = (moved() - before - idle * taken) / N_STEPS
                rows.append(f"| {name} | {each / 1e6:.2f} MB | {each / POPSIZE / 1e3:.1f} kB |")
    finally:
        cluster.shutdown()
    return rows


def main() -> list[str]:
    """Markdown tables."""
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
        *rows,
        "",
        f"A study of {DIM} parameters, {POPSIZE} candidates a step, from the driver's node to another one; "
        f"theta is {DIM * 4 / 1e6:.0f} MB.",
        "",
        "| candidates travel as | bytes moved per step | per candidate |",
        "|---|---|---|",
        *[line for line in told.stdout.splitlines() if line.startswith("| ")],
    ]


if __name__ == "__main__":
    print("\n".join(travel() if sys.argv[1:] == ["travel"] else main()))

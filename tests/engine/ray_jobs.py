"""A study on a cluster of four nodes that loses one and gains one: `python -m tests.engine.ray_jobs`.

A process of its own, because a process drives one cluster at a time.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from typing import Any

import numpy as np

import blackbox
from blackbox.backends.inline import Inline
from blackbox.study.creation import create
from blackbox.study.editing import Study
from blackbox.study.effects import perform
from blackbox.study.memory import MemoryStore

LOSE_AFTER, COMPARE_AT = 150, 400
PATIENCE = 150.0
"""Seconds until the run ends whatever has happened; nodes take long to start on a busy machine."""
SPEC = {
    "name": "nodes",
    "space": {"x": {"type": "vector", "dim": 4, "init": 1.0}},
    "algorithm": {"name": "cma_es", "options": {"sigma": 0.3, "popsize": 24, "restarts": "ipop"}},
    "budget": {"evaluations": 1_000_000},
    "seed": 1,
}


def square(params: dict[str, Any]) -> float:
    return float(np.square(params["x"]).sum())


def slow_square(params: dict[str, Any]) -> float:
    time.sleep(0.02)
    return square(params)


def study() -> tuple[Study, MemoryStore]:
    store = MemoryStore()
    head, _ = perform(store, create("tests", SPEC, time.time()))
    return Study(head), store


def best_of(store: MemoryStore, of: Study) -> float:
    """Of the first values told."""
    told = sorted((t.seq, t.value) for t in store.read(lambda tx: tx.page(of.id, 0, 100_000, ())) if t.seq is not None)
    return min(value for _, value in told[:COMPARE_AT])


def main() -> dict[str, Any]:
    """Kill a node after a while, add one when that was noticed, and go on until it takes part."""
    from ray.cluster_utils import Cluster

    from blackbox.backends.ray_cluster import RayBackend

    node = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        doomed, *_ = [cluster.add_node(wait=False, **node) for _ in range(3)]
        cluster.wait_for_nodes()
        of, store = study()
        workers: list[int] = []  # how many were up at each look
        looks: list[int] = []  # how many there were until the node was killed, missed, replaced, and that took part
        phases: list[int] = []  # how many results were told by then

        def watch(result: Any) -> bool:
            n = backend.n_workers
            workers.append(n)
            if not phases and result.nfev >= LOSE_AFTER:
                cluster.remove_node(doomed, allow_graceful=False)
            elif len(phases) == 1 and n == 3:
                cluster.add_node(**node)
            elif len(phases) != 2 or n < 4:
                return enough(result)
            looks.append(len(workers))
            phases.append(result.nfev)
            return enough(result)

        def enough(result: Any) -> bool:
            if time.monotonic() - began > PATIENCE:
                raise TimeoutError(
                    f"after {result.nfev} results the phases are {phases}, {backend.n_workers} actors are up"
                )
            return len(phases) == 3 and result.nfev >= max(COMPARE_AT, phases[-1] + 40)

        began = time.monotonic()
        backend = RayBackend(slow_square, address=cluster.address, start_seconds=90)
        try:
            while backend.n_workers < 4 and time.monotonic() - began < 90:
                backend.wait()
            started = time.monotonic()
            result = blackbox.run(of, store, backend, callback=watch)
        finally:
            backend.close()
    finally:
        cluster.shutdown()
    plain, plain_store = study()
    blackbox.run(plain, plain_store, Inline(square), callback=lambda found: found.nfev >= COMPARE_AT)
    trials = store.read(lambda tx: tx.page(of.id, 0, 100_000, ()))
    told = [trial.seq for trial in trials if trial.seq is not None]
    late = sum(trial.seq is not None and trial.state == "SUPERSEDED" for trial in trials)
    return {
        "joined_seconds": round(started - began, 1),
        "seconds": round(time.monotonic() - started, 1),
        "phases": phases,
        "most_before": max(workers[: looks[0]]),
        "least_between": min(workers[looks[0] : looks[2]]),
        "last": workers[-1],
        "used": result.nfev,
        "told": len(told),
        "late": late,  # told after their step had closed and their method took them no more: kept, not counted
        "told_twice": len(told) - len(set(told)),
        "trials": dict(Counter(trial.state for trial in trials)),
        "failures": sum(trial.failures for trial in trials),
        "lost": sum(trial.lost for trial in trials),
        "given_again": sum(trial.attempt > 1 for trial in trials),
        "best": best_of(store, of),
        "best_undisturbed": best_of(plain_store, plain),
    }


if __name__ == "__main__":
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": os.urandom(32).hex(),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    print(json.dumps(main()))

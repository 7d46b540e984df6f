"""A fleet on a cluster that gains a node and loses it: `python -m tests.end_to_end.growing_fleet URL STUDY FOLDER`.

A process of its own, because a process drives one cluster at a time.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from blackbox_client import Client
from blackbox_client.worker import Summary

from blackbox.cli import fleet

PATIENCE = 90.0
"""Seconds for each phase."""


def main(url: str, study: str, folder: Path) -> dict[str, Any]:
    """Add a node once the first one works, remove it once it works too, and end when the first one has gone on."""
    from ray.cluster_utils import Cluster

    from blackbox.backends.ray_cluster import Fleet

    def evaluate(params: dict[str, float]) -> float:
        import ray

        time.sleep(0.05)
        (folder / f"{ray.get_runtime_context().get_node_id()} {uuid.uuid4().hex}").touch()
        return params["x"] ** 2

    def until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.02)

    def n_worked(node: str) -> int:
        return len(list(folder.glob(f"{node} *")))

    def until_worked(node: str, n: int) -> None:
        until(lambda: n_worked(node) >= n)

    node = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    capacities: list[int] = []
    ended: list[Summary] = []
    try:
        with closing(Fleet(evaluate, address=cluster.address)) as actors, Client(url) as client:

            def work() -> None:
                ended.append(
                    fleet.work(client, study, actors, name="fleet", concurrency=actors.capacity, seed_encoded=False)
                )

            worker = threading.Thread(target=work)  # Ray wants the main thread for starting nodes
            worker.start()
            until_worked(cluster.head_node.node_id, 3)
            capacities.append(actors.capacity())
            added = cluster.add_node(**node)
            until_worked(added.node_id, 3)
            capacities.append(actors.capacity())
            cluster.remove_node(added)
            until(lambda: actors.capacity() == 1)
            capacities.append(actors.capacity())
            until_worked(cluster.head_node.node_id, n_worked(cluster.head_node.node_id) + 10)
            client.study(study).complete()
            worker.join()
    finally:
        cluster.shutdown()
    (summary,) = ended
    told = {name: getattr(summary, name) for name in ("evaluated", "applied", "late", "failed", "released", "ended")}
    nodes = {path.name.partition(" ")[0] for path in folder.iterdir()}
    return {**told, "nodes": len(nodes), "capacities": capacities}


if __name__ == "__main__":
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": os.urandom(32).hex(),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    print(json.dumps(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))

"""`blackbox demo`: the service on an embedded SQLite file, two workers, a real simulator, a result table.

Everything is as a user would start it: the server and the workers are processes of their own, started through this
command line, and the demo talks to the server through the SDK alone. The workers are two processes, or two actors of a
local Ray cluster with one process that holds their leases.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from blackbox.cli import swimmer
from blackbox.cli.show import progress
from blackbox.errors import InvalidInput

N_WORKERS = 2
OBJECTIVE = "blackbox.cli.swimmer:episode"
# One numerical thread per process: two workers on two cores otherwise fight over them.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one algorithm."""

    algorithm: str
    returns: list[float]
    """Of every episode, in the order they were told."""
    seconds: float


def run(console: Console, episodes: int, seed: int, *, ray: bool = False) -> None:
    """Run both algorithms and print the comparison.

    Parameters
    ----------
    episodes : budget of each algorithm.
    seed : of both.
    ray : evaluate on a local Ray cluster.
    """
    if ray and importlib.util.find_spec("ray") is None:
        raise InvalidInput("this demo needs Ray", hint="pip install 'blackbox-zoo[server,demo,ray]', or make demo-ray")
    if importlib.util.find_spec("mujoco") is None or importlib.util.find_spec("gymnasium") is None:
        raise InvalidInput("the demo needs the simulator", hint="pip install 'blackbox-zoo[server,demo]', or make demo")
    from blackbox_client import Client

    with tempfile.TemporaryDirectory(prefix="blackbox-demo-") as folder, ExitStack() as stack:
        url = stack.enter_context(server(Path(folder)))
        client = stack.enter_context(Client(url))
        kind = "actors on a local Ray cluster" if ray else "worker processes"
        console.print(f"service on {url}, {N_WORKERS} {kind}, Swimmer-v5: 18 parameters, 1 episode = 1 value")
        outcomes = [
            _optimize(console, client, "cma_es", {"sigma": 0.6}, episodes, seed, ray),
            _optimize(console, client, "random_search", {"sigma": 0.6}, episodes, seed, ray),
        ]
        brief = client.study(next(s.id for s in client.studies() if s.name == "cma_es")).brief()
    console.print(_table(outcomes))
    console.print("what an agent would have read at /brief:", style="bold")
    console.print(brief, highlight=False, soft_wrap=True)
    console.print("`make serve` keeps a service running.")


def _table(outcomes: list[Outcome]) -> Table:
    """The comparison. The best episode flatters a blind search; the last ones show what was learned."""
    table = Table("algorithm", "best return", "median of the last 50", "325 passed after", "seconds", "episodes/s")
    for outcome in outcomes:
        passed = next((i + 1 for i, value in enumerate(outcome.returns) if value >= swimmer.THRESHOLD), None)
        table.add_row(
            outcome.algorithm,
            f"{max(outcome.returns):.1f}",
            f"{statistics.median(outcome.returns[-50:]):.1f}",
            "-" if passed is None else f"{passed} episodes",
            f"{outcome.seconds:.1f}",
            f"{len(outcome.returns) / outcome.seconds:.1f}",
        )
    return table


def _optimize(
    console: Console, client: Any, algorithm: str, options: dict[str, Any], episodes: int, seed: int, ray: bool
) -> Outcome:
    """Create a study, start its workers, and watch it to its end."""
    study = client.create_study(
        name=algorithm,
        space=swimmer.SPACE,
        direction="maximize",
        algorithm={"name": algorithm, "options": options},
        budget=episodes,
        seed=seed,
    )
    console.print(f"{algorithm}: {client.url}/v1/studies/{study.id}/brief")
    began = time.monotonic()
    returns: list[float] = []
    with _workers(client.url, study.id, ray) as processes, progress(console) as bars:
        task = bars.add_task(algorithm, total=episodes, best="")
        for event in study.events(follow=True):
            if event.type == "trial.completed":
                returns.append(event.data["value"])
                bars.update(task, completed=len(returns), best=f"best return {max(returns):.1f}")
            elif event.type in ("study.completed", "study.failed", "study.paused", "study.cancelled"):
                break
            if all(process.poll() is not None for process in processes):
                raise InvalidInput("the workers ended early", hint="run `blackbox worker` by hand to see why")
    if event.type != "study.completed":
        raise InvalidInput(f"the study ended with {event.type}: {event.data.get('reason')}")
    return Outcome(algorithm, returns, time.monotonic() - began)


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """A server process of its own on a free port; yields its address."""
    process = start("serve", "--port", "0", "--database", str(folder / "demo.db"), "--insecure-local", stdout=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "http://" not in line:
            raise InvalidInput(f"the server did not start (exit code {process.wait()})", hint="see its message above")
        yield line.split()[-1]
    finally:
        end(process)


@contextmanager
def _workers(url: str, study: str, ray: bool) -> Iterator[list[subprocess.Popen[str]]]:
    """Worker processes that leave when the study has ended."""
    job = ("worker", study, OBJECTIVE, "--url", url)
    if ray:
        processes = [start(*job, "--name", "fleet", "--ray", "local", "--concurrency", str(N_WORKERS))]
    else:
        processes = [start(*job, "--name", f"worker-{i}") for i in range(1, N_WORKERS + 1)]
    try:
        yield processes
        for process in processes:
            process.wait(timeout=60)
    finally:
        for process in processes:
            end(process)


def start(*arguments: str, stdout: bool = False, variables: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """A command of this command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "blackbox.cli", *arguments],
        stdout=subprocess.PIPE if stdout else subprocess.DEVNULL,
        text=True,
        env={**os.environ, **ONE_THREAD, "PYTHONUNBUFFERED": "1", **(variables or {})},
    )


def end(process: subprocess.Popen[str]) -> None:
    """End a process that still runs."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

"""`blackbox demo-federated`: five owners find out together how robust their networks are, and keep their data.

A server on an embedded SQLite file and a process per owner, started through this command line as users would start
them. Each owner has images and a network of its own (`digits`); what leaves its process is one contribution per phase.
Beside `fzoos` and `fedzo` the table has what one process finds that may look into all networks: centralised
optimization with the same number of queries.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from blackbox.cli import digits
from blackbox.cli.demo import end, server, start
from blackbox.cli.show import progress
from blackbox.errors import InvalidInput

OBJECTIVE = "blackbox.cli.digits:margin"
CENTRALISED = "sep_cma_es"
# In 784 dimensions the defaults of fzoos take seconds per round: smaller models are nearly as good here.
METHODS: dict[str, dict[str, Any]] = {
    "fzoos": {"rate": 0.02, "neighbours": 100, "transfer_neighbours": 300, "features": 1000, "candidates": 20},
    "fedzo": {"rate": 0.02},
}
CLIPS = {"fzoos": {"delta": 2.0, "weights": 2.0}, "fedzo": {"delta": 2.0}}
"""Somewhat below the norms that these vectors have without privacy."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one way of optimizing.

    Attributes
    ----------
    margins : of each owner's network at the change found.
    queries : of all networks together.
    bytes_up, bytes_down : raw vectors of one participant and round; 0 for the centralised run.
    """

    name: str
    margins: list[float]
    queries: int
    bytes_up: int
    bytes_down: int
    seconds: float


def run(console: Console, rounds: int, participants: int, noise: float, seed: int) -> None:
    """Run both algorithms and the centralised one, and print the comparison.

    Parameters
    ----------
    rounds : of each federated algorithm.
    participants : processes.
    noise : of each contribution, in units of its clip; 0: no privacy.
    seed : of the algorithms.
    """
    from blackbox_client import Client

    at_start = _margins(np.zeros(digits.PIXELS), participants)
    read = [digits.accuracy(owner, participants) for owner in range(participants)]
    with TemporaryDirectory(prefix="blackbox-demo-") as folder, ExitStack() as stack:
        url = stack.enter_context(server(Path(folder)))
        client = stack.enter_context(Client(url))
        console.print(
            f"service on {url}, {participants} processes with private digits; their networks read {min(read):.0%} to "
            f"{max(read):.0%} of unseen digits; the one under test with a mean margin of {np.mean(at_start):.2f}"
        )
        outcomes, briefs = [], []
        for name in METHODS:
            study, outcome = _federated(console, client, name, rounds, participants, noise, seed)
            outcomes.append(outcome)
            briefs.append(study.brief())
    outcomes.append(_centralised(console, outcomes[0].queries, participants, seed))
    console.print(_table(outcomes, rounds))
    console.print("what an agent would have read at /brief:", style="bold")
    console.print(briefs[0], highlight=False, soft_wrap=True)


def _table(outcomes: list[Outcome], rounds: int) -> Table:
    title = f"margin: logit of the true digit over the best other one, |change| <= {digits.LARGEST} per pixel"
    columns = ("algorithm", "mean margin", "of the networks", "fooled", "queries", "bytes up", "down", "seconds")
    table = Table(*columns, title=title, caption=f"bytes: of one participant in one of {rounds} rounds")
    for outcome in outcomes:
        table.add_row(
            outcome.name,
            f"{np.mean(outcome.margins):.2f}",
            f"{min(outcome.margins):.2f} to {max(outcome.margins):.2f}",
            f"{sum(margin < 0 for margin in outcome.margins)} of {len(outcome.margins)}",
            str(outcome.queries),
            str(outcome.bytes_up) if outcome.bytes_up else "everything",
            str(outcome.bytes_down) if outcome.bytes_down else "-",
            f"{outcome.seconds:.1f}",
        )
    return table


def _federated(
    console: Console, client: Any, name: str, rounds: int, participants: int, noise: float, seed: int
) -> tuple[Any, Outcome]:
    """Create a study, start its participants, and watch it to its end."""
    privacy = {"privacy": {"clip": CLIPS[name], "noise": noise}} if noise > 0 else {}
    study = client.create_study(
        name=name,
        space=digits.SPACE,
        seed=seed,
        algorithm={"name": name, "options": {**METHODS[name], **privacy, "rounds": rounds, "quorum": 1.0}},
        rounds={"min_joined": participants},
    )
    console.print(f"{name}: {client.url}/v1/studies/{study.id}/brief")
    began, step = time.monotonic(), -1
    with _participants(client.url, study.id, participants) as processes, progress(console) as bars:
        task = bars.add_task(name, total=rounds, best="")
        while True:
            phase = study.open_phase(after_step=step, wait_seconds=0.3)
            if phase.state != "ACTIVE":
                break
            if phase.broadcast is not None:
                step = phase.step
                told = f"{phase.broadcast.phase}: {phase.received}/{phase.need} contributions"
                if "update_norm" in phase.metrics:
                    told += f", last move {phase.metrics['update_norm']:.3f}"
                bars.update(task, completed=phase.broadcast.round, best=told)
            if any(process.poll() not in (None, 0) for process in processes):
                raise InvalidInput("a participant ended early", hint="run `blackbox participant` by hand to see why")
        bars.update(task, completed=rounds, best="")
    if phase.state != "COMPLETED":
        raise InvalidInput(f"the study ended {phase.state}: {phase.reason}")
    change = study.best(view="recommended").params["change"]
    up, down, queries = (int(phase.metrics[name]) for name in ("bytes_up", "bytes_down", "evaluations"))
    return study, Outcome(name, _margins(change, participants), queries, up, down, time.monotonic() - began)


def _centralised(console: Console, queries: int, participants: int, seed: int) -> Outcome:
    """The mean over all networks, minimised by one process that has them all."""
    from blackbox import minimize

    began, budget = time.monotonic(), max(1, queries // participants)
    with progress(console) as bars:
        task = bars.add_task("centralised", total=budget, best="")
        found = minimize(
            lambda change: float(np.mean(_margins(change, participants))),
            digits.SPACE,
            CENTRALISED,
            budget,
            seed=seed,
            callback=lambda result: bars.update(task, completed=result.nfev),
        )
    margins, seconds = _margins(found.recommended, participants), time.monotonic() - began
    return Outcome(f"{CENTRALISED}, centralised", margins, found.nfev * participants, 0, 0, seconds)


def _margins(change: Any, participants: int) -> list[float]:
    """Of every network. The demo looks into all of them to say what was reached; no participant can."""
    return [digits.margins(np.asarray(change), owner, participants) for owner in range(participants)]


@contextmanager
def _participants(url: str, study: str, n: int) -> Iterator[list[Popen[str]]]:
    """A process per owner; they leave when the study has ended."""
    processes = [
        start(
            "participant", study, OBJECTIVE, "--client", f"owner-{owner}", "--url", url,
            "--weight", str(len(digits.private(owner, n)[0])),
            variables={digits.OWNER: str(owner), digits.OWNERS: str(n)},
        )
        for owner in range(n)
    ]  # fmt: skip
    try:
        yield processes
        for process in processes:
            process.wait(timeout=60)
    finally:
        for process in processes:
            end(process)

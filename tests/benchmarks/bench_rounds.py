"""Bytes of a participant of federated rounds over HTTP: `python -m tests.benchmarks.bench_rounds`.

A real server, two participants, `ROUNDS` rounds over one vector of `DIM` numbers. Counted at the socket's side of the
SDK: bodies and HTTP heads as they are written, both ways, polls included, joining left out.
"""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from blackbox_client import Client
from blackbox_client.participant import Participant

from tests.end_to_end.service import Service

DIM, ROUNDS = 1000, 4
SMALL = {
    "neighbours": 40,
    "transfer_neighbours": 80,
    "candidates": 10,
}  # of fzoos: its models do not change what travels
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "moves (fedzo)": ("fedzo", {}),
    "moves and control variates (scaffold)": ("scaffold", {}),
    "scalars (fedzo, 10 x 20)": ("fedzo", {"payload": "scalars"}),
    "moves and 1,000 surrogate weights (fzoos)": ("fzoos", {**SMALL, "features": 1000}),
}


class Counting(httpx.HTTPTransport):
    """Counts what goes through it once participants have joined."""

    def __init__(self) -> None:
        super().__init__()
        self.up = self.down = self.requests = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        response.read()
        if not request.url.path.endswith("/join"):
            self.requests += 1
            self.up += len(request.method) + len(request.url.raw_path) + len(request.read()) + _head(request.headers)
            self.down += len(response.content) + _head(response.headers)
        return response


def _head(headers: httpx.Headers) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers.raw) + 15


def measure(service: Service, name: str) -> str:
    """A row: raw vectors as the method counts them, then what HTTP carried, per participant and round."""
    method, options = METHODS[name]
    space = {"w": {"type": "vector", "dim": DIM, "low": 0.0, "high": 1.0}}
    study = service.client().create_study(
        name=name,
        space=space,
        algorithm={"name": method, "options": {**options, "rounds": ROUNDS, "quorum": 1.0}},
        rounds={"min_joined": 2},
    )
    taps = [Counting(), Counting()]

    def work(number: int) -> None:
        with Client(service.url, transport=taps[number]) as client:
            centre = 0.3 + 0.4 * number
            objective = lambda params: float(np.square(params["w"] - centre).sum())  # noqa: E731
            participants[number] = Participant(client.study(study.id), objective, client=f"c{number}").run()

    participants: dict[int, Any] = {}
    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken, tap = participants[0], taps[0]
    cells = (taken.sent_bytes, tap.up, taken.received_bytes, tap.down, tap.requests)
    return f"| {name} | " + " | ".join(f"{cell / ROUNDS:,.0f}" for cell in cells) + " |"


def main() -> None:
    """Print the table."""
    print("| payload | contribution | all sent | vectors or updates | all received | requests |\n" + "| --- " * 6 + "|")
    with tempfile.TemporaryDirectory() as folder, Service(Path(folder)) as service:
        service.start()
        for name in METHODS:
            print(measure(service, name), flush=True)


if __name__ == "__main__":
    main()

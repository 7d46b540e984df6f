"""Writes the database that every later release must open: a study of every kind, in every state that waits for more.

    python -m tests.upgrades.write v0_2_0

writes `v0_2_0.sqlite` and, beside it, `v0_2_0.json` with what this release says of each study. Old ones are never
written again: they are what the release of that name has left behind.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sqlite3
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from blackbox_server.app import create_app
from blackbox_server.settings import Settings
from blackbox_server.store import SqlStore
from scipy.linalg.lapack import dsyevd

from tests.server.conftest import Clock, Server
from tests.server.test_rounds_http import SPACE as WEIGHTS
from tests.server.test_rounds_http import Federated

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # starlette's advice about another HTTP library
    from starlette.testclient import TestClient

FOLDER = Path(__file__).parent
KEY = "zok_upgrades_" + "k" * 43
"""The first key of the databases, so that whoever opens one can ask."""
NEVER = 10 * 365 * 86400.0
"""Seconds of a lease that has not lapsed when a later release opens the database."""
MIXED = {
    "rate": {"type": "float", "low": 1e-4, "high": 1.0, "scale": "log"},
    "depth": {"type": "int", "low": 1, "high": 8},
    "kind": {"type": "categorical", "choices": ["a", "b", "c"]},
}
VECTOR = {"x": {"type": "vector", "dim": 12, "init": 0.5}}


def objective(params: dict[str, Any]) -> float:
    """A value for any point: the sum of squares of its numbers."""
    numbers = [x for value in params.values() for x in (value if isinstance(value, list) else [value])]
    return float(sum(x * x for x in numbers if isinstance(x, int | float)))


def evaluate(server: Server, study: str, n: int, value: Callable[[dict[str, Any]], float] = objective) -> None:
    """Ask for and tell n results, one at a time."""
    for _ in range(n):
        trial = server.ask(study)["trials"][0]
        told = {"trial": trial["id"], "lease": trial["lease"]["token"], "value": value(trial["params"])}
        server.clock.now += 1.0
        server.tell(study, told)


def numerics() -> str:
    """A digest of what this machine computes: where it is another, replayed states differ in their last bits."""
    x = np.linspace(0.1, 3.0, 64)
    matrix = np.outer(np.sin(x[:9]), np.cos(x[:9])) + np.diag(x[:9])
    results = [np.exp(x), np.log(x), np.tanh(x), x**0.3, matrix @ matrix.T, *dsyevd(matrix @ matrix.T)[:2], x.dot(x)]
    return hashlib.sha256(b"".join(np.ascontiguousarray(result).tobytes() for result in results)).hexdigest()


@contextmanager
def serving(database: Path, now: float | None = None) -> Iterator[Server]:
    """A server over a database, in this process, with a client that has the first key."""
    store, clock = SqlStore(database, synchronous="OFF"), Clock()
    clock.now = clock.now if now is None else now
    keyfile = database.with_name("first.key")
    keyfile.write_text(KEY)
    app = create_app(Settings(first_key_file=str(keyfile)), store, clock)
    try:
        with TestClient(app, raise_server_exceptions=False) as http:
            http.headers["authorization"] = f"Bearer {KEY}"
            yield Server(app, http, clock, Clock(), store)
    finally:
        store.close()


class Rounds(Federated):
    """A federated study that exists, with participants that join (again)."""

    def __init__(self, server: Server, study: str, clients: str) -> None:
        self.server, self.http, self.study, self.at = server, server.http, study, f"/v1/studies/{study}"
        self.tokens: dict[str, str] = {}
        self.machines: dict[str, Any] = {}
        self.private: dict[str, Any] = {}
        self.join(*clients)

    def contribute(self, clients: str) -> list[str]:
        """What became of a contribution of each to the open phase."""
        return [self.send(client, self.made(client)).json()["outcome"] for client in clients]


# The studies ----------------------------------------------------------------------------------------------------------


def post(server: Server, study: str, verb: str, body: Any = None, **headers: str) -> Any:
    answer = server.http.post(f"/v1/studies/{study}/{verb}", json=body or {}, headers=headers)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


def group(server: Server) -> None:
    """Steps of six: with late values, an enqueued point, leases that are out, one with an interim value, and results of
    a step not yet closed."""
    algorithm = {"name": "cma_es", "options": {"popsize": 6, "sigma": 0.2}}
    study = server.create("group", space=MIXED, algorithm=algorithm, lease={"max_seconds": NEVER})
    slow = server.ask(study, worker="slow", lease_seconds=NEVER)["trials"][0]
    evaluate(server, study, 25)
    late = {"trial": slow["id"], "lease": slow["lease"]["token"], "value": 0.9}
    assert server.outcome(study, **late)["outcome"] == "late_recorded"
    server.tell(study, {**late, "value": 0.8})  # a second value, of a trial that has one
    post(server, study, "trials", {"trials": [{"params": {"rate": 0.5, "depth": 3, "kind": "b"}}]})
    post(server, study, "trials", {"trials": [{"params": {"rate": 0.1, "depth": 2, "kind": "a"}, "value": 4.5}]},
         **{"idempotency-key": "import"})  # fmt: skip
    held = server.ask(study, worker="holder", count=3, lease_seconds=NEVER)["trials"][0]
    post(server, study, f"trials/{held['id']}/reports", {"lease": held["lease"]["token"], "step": 2, "value": 3.5})
    post(server, study, "trials", {"trials": [{"params": {"rate": 0.2, "depth": 4, "kind": "c"}}]})
    server.outcome(study, trial="t_9", value=1.0)


def rewritten(server: Server) -> None:
    """A result taken back (a second epoch), and a fork of what is left."""
    study = server.create("rewritten", algorithm={"name": "sep_cma_es", "options": {"popsize": 4}})
    evaluate(server, study, 14)
    post(server, study, "trials/t_6/invalidate")
    evaluate(server, study, 3)
    fork = post(server, study, "fork", {"name": "fork", "step": 3})["id"]
    evaluate(server, fork, 6)


def members(server: Server) -> None:
    """Members, with options that are no defaults; two are out."""
    options = {"popsize": 5, "diffusion": "isotropic", "drift": 0.3, "schedule": "multiply", "alpha": 2.0}
    study = server.create("members", algorithm={"name": "cbo", "options": options}, direction="maximize",
                          lease={"max_seconds": NEVER})  # fmt: skip
    evaluate(server, study, 17, lambda params: -objective(params))
    server.ask(study, worker="holder", count=2, lease_seconds=NEVER)


def sequential(server: Server) -> None:
    """One point at a time; paused."""
    study = server.create("sequential", algorithm={"name": "nelder_mead"})
    evaluate(server, study, 11, lambda params: objective({**params, "x": params["x"] - 1.5}))
    post(server, study, "pause", {"reason": "for the weekend"})


def recipes(server: Server) -> None:
    """Points that are noise addresses: of an estimator whose last step is half told, and of genomes, completed."""
    study = server.create("recipes", space=VECTOR, algorithm={"name": "openai_es", "options": {"popsize": 8}})
    evaluate(server, study, 29)
    genomes = {"name": "deep_ga", "options": {"popsize": 6, "parents": 2}}
    study = server.create("finished", space=VECTOR, algorithm=genomes, budget={"evaluations": 24})
    evaluate(server, study, 24)


def region(server: Server) -> None:
    """Points of a simplex."""
    space = {"w": {"type": "vector", "dim": 4, "region": {"type": "simplex"}}}
    study = server.create("region", space=space, algorithm={"name": "zo_frank_wolfe"})
    evaluate(server, study, 40)


def chosen(server: Server) -> None:
    """A method that `auto` has chosen, cancelled."""
    study = server.create("chosen", algorithm={"name": "auto"}, budget={"evaluations": 500})
    evaluate(server, study, 9)
    post(server, study, "cancel")


def finite(server: Server) -> None:
    """A space of 120 points: the start, values that are reused, and a trial that has failed."""
    kinds = {"type": "categorical", "choices": ["a", "b", "c"]}
    space = {"depth": {"type": "int", "low": 1, "high": 40}, "kind": kinds}
    study = server.create("finite", space=space, budget={"evaluations": 200}, lease={"max_seconds": NEVER},
                          start="evaluate", duplicates="reuse")  # fmt: skip
    worth = lambda params: abs(params["depth"] - 3) + (params["kind"] != "b")  # noqa: E731
    evaluate(server, study, 30, worth)
    broken = server.ask(study, worker="broken", lease_seconds=NEVER)["trials"][0]
    error = {"type": "MemoryError", "message": "out of memory", "retryable": False}
    server.tell(study, {"trial": broken["id"], "lease": broken["lease"]["token"], "status": "failed", "error": error})
    server.ask(study, worker="holder", lease_seconds=NEVER)


def federated(server: Server) -> None:
    """Rounds, with one contribution to the open phase; and rounds that forget what they have used."""
    options = {"local_steps": 2, "quorum": 1.0}
    study = server.create("federated", space=WEIGHTS, algorithm={"name": "fedzo", "options": options})
    d = Rounds(server, study, "abc")
    for _ in range(2):
        d.contribute("abc")
    d.contribute("b")
    algorithm = {"name": "fzoos", "options": {**options, "features": 50}}
    d = Rounds(server, server.create("forgetful", space=WEIGHTS, algorithm=algorithm, rounds={"keep": "open"}), "ab")
    for _ in range(4):
        d.contribute("ab")


def hosted(server: Server) -> None:
    """A participant whose machine runs in the service, in the middle of the second round."""
    algorithm = {"name": "fedzo", "options": {"local_steps": 2}}
    study = server.create("host", space=WEIGHTS, algorithm=algorithm)
    guest = post(server, study, "rounds/join", {"client": "guest", "hosted": True})["hosted"]["study"]
    evaluate(server, guest, 50)
    server.ask(guest)


KINDS = (group, rewritten, members, sequential, recipes, region, chosen, finite, federated, hosted)


# Writing --------------------------------------------------------------------------------------------------------------


def says(server: Server, study: dict[str, Any]) -> dict[str, Any]:
    """What a release says of a study, in words of this file: they stay when those of the service change."""
    at = f"/v1/studies/{study['id']}"
    found = server.http.get(f"{at}/best", params={"view": "proposed"}).json()
    proposed = None if found.get("code") == "algorithm-changed" else found["items"][0]["params"]
    seen = server.http.get(at).json()
    return {
        "id": seen["id"], "state": seen["state"], "reason": seen["reason"], "step": seen["step"],
        "epoch": seen["epoch"], "seq": int(seen["seq"]), "used": seen["budget"]["used"], "made": seen["trials"]["made"],
        "queued": seen["trials"]["queued"], "leased": seen["trials"]["leased"], "best": seen["best"],
        "recommended": proposed,
    }  # fmt: skip


def write(database: Path) -> dict[str, Any]:
    """Write a database; what this release says of its studies, by name."""
    with serving(database) as server:
        for make in KINDS:
            make(server)
        listed = server.http.get("/v1/studies", params={"limit": 100}).json()["studies"]
        for study in listed:
            post(server, study["id"], "snapshots")
        told = {study["name"].rpartition("/")[2]: says(server, study) for study in listed}
        now = server.clock.now
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")  # one file, without a WAL beside it
        connection.execute("VACUUM")
    return {"numerics": numerics(), "now": now, "studies": told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the two files, such as v0_2_0")
    name = parser.parse_args().name
    target = FOLDER / f"{name}.sqlite"
    if target.exists():
        parser.error(f"{target} exists, and what a release has left behind does not change")
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / target.name
        told = write(database)
        target.write_bytes(database.read_bytes())
    target.with_suffix(".json").write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")
    print(f"{target}: {target.stat().st_size} bytes, {len(told['studies'])} studies")


if __name__ == "__main__":
    main()

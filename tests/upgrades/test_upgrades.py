"""What an earlier release has left behind: a copy of each database here is opened, read, replayed, and goes on.

Digests are of bytes, and equal bytes are promised on the machine and wheels that wrote them. So a digest has to be
equal where this machine computes the same last bits as that one (`write.numerics`); what a study recommends must agree
to nine digits on any.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blackbox.study.effects import perform
from blackbox.study.kinds import open_study
from tests.server.conftest import Server
from tests.upgrades.write import FOLDER, VECTOR, Rounds, evaluate, numerics, objective, post, says, serving

RELEASES = sorted(path.stem for path in FOLDER.glob("*.sqlite"))
ENDED = ("COMPLETED", "CANCELLED")


class Left:
    """A copy of what a release has left behind, served by this tree."""

    def __init__(self, server: Server, told: dict[str, Any]) -> None:
        self.server = server
        self.studies: dict[str, Any] = told["studies"]
        self.same_bits = told["numerics"] == numerics()

    def id(self, name: str) -> str:
        return str(self.studies[name]["id"])

    def get(self, name: str, path: str = "", **query: Any) -> Any:
        answer = self.server.http.get(f"/v1/studies/{self.id(name)}{path}", params=query)
        assert answer.status_code == 200, f"{name}: {answer.text}"
        return answer

    def replayed(self, name: str) -> list[tuple[int, bool]]:
        """Every recorded step, and whether its digest is that of the record."""
        store = self.server.store
        study = perform(store, open_study(self.id(name)))
        return [(record.step, digest == record.digest) for record, digest in perform(store, study.replay())]

    def revised(self, name: str) -> bool:
        """Whether this tree's revision of the study's method is another one."""
        return bool(perform(self.server.store, open_study(self.id(name))).stored.revised)

    def stands(self, name: str) -> bool:
        """Whether the study cannot go on, because this tree's revision of its method computes something else."""
        changed = self.server.http.get(f"/v1/studies/{self.id(name)}/best", params={"view": "proposed"})
        return self.revised(name) and bool(changed.json().get("code") == "algorithm-changed")


@pytest.fixture(scope="module", params=RELEASES)
def untouched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Left]:
    """For tests that only read."""
    with left_by(request.param, tmp_path_factory.mktemp(request.param)) as left:
        yield left


@pytest.fixture(params=RELEASES)
def left(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Left]:
    with left_by(request.param, tmp_path) as opened:
        yield opened


def close(found: Any, expected: Any) -> None:
    """Parameters that agree to nine digits."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, str):
            assert found[name] == value
        else:
            np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-12)


@contextmanager
def left_by(release: str, folder: Path) -> Iterator[Left]:
    """A server over a copy of a release's database, at the time at which it was left."""
    database = folder / "blackbox.db"
    shutil.copy(FOLDER / f"{release}.sqlite", database)
    told = json.loads((FOLDER / f"{release}.json").read_text())
    with serving(database, told["now"]) as server:
        yield Left(server, told)


def test_every_study_is_what_it_was(untouched: Left) -> None:
    for name, expected in untouched.studies.items():
        found = says(untouched.server, {"id": expected["id"]})
        recommended = found.pop("recommended")
        if not untouched.stands(name):
            close(recommended, expected["recommended"])
        assert found == {key: value for key, value in expected.items() if key != "recommended"}, name


def test_every_study_is_read_and_exported(untouched: Left) -> None:
    for name, expected in untouched.studies.items():
        brief = untouched.get(name, "/brief").text
        assert f"study {expected['id']}" in brief
        assert expected["state"] in brief
        exported = [json.loads(line) for line in untouched.get(name, "/export").text.splitlines()]
        assert exported[0]["type"] == "study"
        seqs = [int(event["seq"]) for event in exported[1:]]
        assert seqs == sorted(set(seqs))
        assert max(seqs, default=0) <= expected["seq"]
        trials = untouched.get(name, "/trials", limit=1000).json()["trials"]
        assert len(trials) == expected["made"]
        if expected["best"] is not None:
            best = untouched.get(name, "/best").json()["items"][0]
            assert (best["id"], best["value"]) == (expected["best"]["trial"], expected["best"]["value"])


def test_every_study_replays_to_its_digests(untouched: Left) -> None:
    for name, expected in untouched.studies.items():
        if name == "forgetful":
            continue  # it keeps no contributions: its newest snapshot is where it begins
        steps = untouched.replayed(name)
        equal = [same for _, same in steps]
        assert [step for step, _ in steps] == list(range(len(steps)))
        if untouched.revised(name):
            assert all(equal[:-1]), f"{name}: the replay ends where the revisions part"
            continue
        assert len(steps) == expected["step"]
        if untouched.same_bits:
            assert all(equal), name


def test_every_study_asks_and_tells(left: Left) -> None:
    for name, expected in left.studies.items():
        if "ask" not in left.get(name).json()["links"]:
            continue  # it works in rounds
        if expected["state"] == "PAUSED":
            post(left.server, expected["id"], "resume")
        if expected["state"] in ENDED:
            assert left.server.ask(expected["id"])["granted"] == 0
            continue
        if left.stands(name):
            answer = left.server.http.post(f"/v1/studies/{expected['id']}/ask", json={})
            assert (answer.status_code, answer.json()["code"]) == (409, "algorithm-changed")
            assert "fork" in answer.json()["hint"]
            continue
        worth = (lambda params: -objective(params)) if name == "members" else objective
        evaluate(left.server, expected["id"], 30, worth)
        now = left.get(name).json()
        assert now["step"] > expected["step"], name
        assert now["budget"]["used"] == expected["used"] + 30
        if left.same_bits and not left.revised(name):
            assert all(equal for _, equal in left.replayed(name)), name


def test_what_is_out_is_told_and_what_is_enqueued_is_handed_out(left: Left) -> None:
    enqueued = left.server.ask(left.id("group"))["trials"][0]
    assert enqueued["params"] == {"rate": 0.2, "depth": 4, "kind": "c"}
    for name in ("group", "members"):
        out = left.get(name, "/trials", state="LEASED").json()["trials"]
        held = [trial["id"] for trial in out if trial["worker"] == "holder"]
        assert len(held) == left.studies[name]["leased"]
        told = left.server.tell(left.id(name), *({"trial": trial, "value": 3.0} for trial in held), worker="holder")
        assert told["applied"] == len(held)


def test_every_study_of_trials_forks(left: Left) -> None:
    for name, expected in left.studies.items():
        if "fork" not in left.get(name).json()["links"]:
            continue
        fork = post(left.server, expected["id"], "fork", {"name": f"next {name}"})["id"]
        assert left.get(name).json()["step"] == expected["step"]
        if name != "finished":  # its budget is spent
            evaluate(left.server, fork, 20)
        if name != "region":  # random search knows no regions
            body = {"name": f"other {name}", "algorithm": "random_search"}
            other = post(left.server, expected["id"], "fork", body)["id"]
            evaluate(left.server, other, 3)


def test_rounds_go_on(left: Left) -> None:
    for name, clients in (("federated", "abc"), ("forgetful", "ab")):
        d = Rounds(left.server, left.id(name), clients)
        outcomes = d.contribute(clients)
        assert set(outcomes) == {"applied"} if name == "forgetful" else outcomes == ["applied", "duplicate", "applied"]
        assert left.get(name).json()["step"] == left.studies[name]["step"] + 1


def test_a_spec_in_todays_words_finds_the_study_that_was_created_in_older_ones(left: Left) -> None:
    body = {"name": "recipes", "space": VECTOR, "algorithm": {"name": "openai_es", "options": {"popsize": 8}}}
    body["start"] = left.get("recipes").json()["start"]
    answer = left.server.http.post("/v1/studies", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["id"] == left.id("recipes")
    body["algorithm"] = {"name": "openai_es", "options": {"popsize": 10}}
    assert left.server.http.post("/v1/studies", json=body).status_code == 409

"""Federated rounds over HTTP: join, broadcast, contribute, catch up."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from blackbox import federation
from blackbox.federation import Contribution
from blackbox.federation import privacy as dp
from tests.server.conftest import Server, assert_problem

CENTRES = {"a": 0.2, "b": 0.4, "c": 0.6}
SPACE = {"w": {"type": "vector", "dim": 3, "low": 0.0, "high": 1.0}}


class Federated:
    """A federated study on a server, with participants that speak HTTP."""

    def __init__(self, server: Server, name: str = "fed", method: str = "fedzo", **spec: Any) -> None:
        options = {"local_steps": 2, "quorum": 1.0, **spec.pop("options", {})}
        self.server = server
        self.http = server.http
        self.study = server.create(name, space=SPACE, algorithm={"name": method, "options": options}, **spec)
        self.at = f"/v1/studies/{self.study}"
        self.tokens: dict[str, str] = {}
        self.machines: dict[str, Any] = {}
        self.private: dict[str, Any] = {}

    def join(self, *clients: str) -> Federated:
        for client in clients:
            answer = self.http.post(f"{self.at}/rounds/join", json={"client": client})
            assert answer.status_code == 200, answer.text
            joined = answer.json()
            self.tokens[client] = joined["token"]
            machine = federation.accept(joined["invitation"], client=client, secret=client.encode() * 16)
            assert machine.terms == joined["terms"]
            self.machines[client], self.private[client] = machine, machine.init()
        return self

    def headers(self, client: str) -> dict[str, str]:
        return {"participant-token": self.tokens[client]}

    def current(self, client: str | None = None, **query: Any) -> dict[str, Any]:
        headers = None if client is None else self.headers(client)
        answer = self.http.get(f"{self.at}/rounds/current", params=query, headers=headers)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def made(self, client: str) -> Contribution:
        phase = self.current(client)
        raw = phase["broadcast"]
        blobs = {}
        for vector in raw["vectors"].values():
            blobs[vector["sha256"]] = np.frombuffer(self.http.get(vector.pop("href")).content, vector["dtype"])
        machine = self.machines[client]
        own = machine.start(self.private[client], federation.Broadcast.from_json(raw, blobs))
        while len(points := machine.ask(own)):
            own = machine.tell(own, np.square(points - CENTRES[client]).sum(axis=1))
        contribution = machine.contribution(own)
        self.private[client] = machine.settle(own, True)
        return contribution

    def send(self, client: str, contribution: Contribution, binary: bool = False) -> Any:
        path = f"{self.at}/rounds/{contribution.round}/contributions"
        if binary:
            headers = {**self.headers(client), "content-type": "application/octet-stream"}
            return self.http.post(path, content=contribution.to_bytes(), headers=headers)
        return self.http.post(path, json=contribution.to_json(), headers=self.headers(client))


@pytest.mark.parametrize("method", list(federation.registry()))
def test_rounds_over_http_close_and_move_the_common_point(each_store, method):
    d = Federated(each_store, method=method).join(*CENTRES)
    for step in range(2 * len(federation.lookup(method)(*_parts(d)).phases)):
        assert d.current()["step"] == step
        for i, client in enumerate(CENTRES):
            answer = d.send(client, d.made(client), binary=bool(i % 2))
            assert answer.json()["outcome"] == "applied", answer.text
    found = d.http.get(f"{d.at}/updates", params={"after": 0}).json()
    assert [update["version"] for update in found["updates"]] == [1, 2]
    assert found["next_after"] == 2
    space, key = d.machines["a"].space, d.machines["a"].key
    x, _ = federation.catch_up(
        federation.project(space.initial, space),
        0,
        [federation.Update.from_json(u) for u in found["updates"]],
        key,
        space,
    )
    sent = d.current()["broadcast"]["vectors"]["x"]
    np.testing.assert_array_equal(np.frombuffer(d.http.get(sent["href"]).content, sent["dtype"]), x)
    recommended = d.http.get(f"{d.at}/best", params={"view": "recommended"}).json()["items"][0]["params"]["w"]
    np.testing.assert_allclose(recommended, x)
    assert "algorithm:" in d.http.get(f"{d.at}/brief").text
    past = d.http.get(f"{d.at}/rounds/1").json()
    assert (past["state"], {p["counted"] for p in past["phases"]}) == ("AGGREGATED", {3})


def _parts(d: Federated) -> Any:
    machine = d.machines["a"]
    return machine.space, machine.options, machine.key


def test_a_contribution_sent_twice_is_applied_once(each_store):
    d = Federated(each_store).join(*CENTRES)
    made = d.made("a")
    assert d.send("a", made).json()["outcome"] == "applied"
    again = d.send("a", made, binary=True).json()
    assert (again["outcome"], again["received"], again["need"]) == ("duplicate", 1, 3)
    assert d.current("a")["contributed"] is True
    assert d.current("b")["contributed"] is False


def test_who_waits_for_the_next_phase_gets_it_when_it_opens(server):
    d = Federated(server, options={"quorum": 0.3}).join("a", "b")
    assert d.current("a", after_step=-1)["step"] == 0
    made = d.made("a")
    d.send("a", made)
    assert d.current("b", after_step=0, wait_seconds=20)["step"] == 1
    assert d.current("b", after_step=1)["step"] == 1, "without waiting the open phase is answered"


def test_rounds_begin_when_enough_have_joined(server):
    d = Federated(server, rounds={"min_joined": 2}).join("a")
    assert d.current("a")["broadcast"] is None
    d.join("b")
    assert d.current("a")["broadcast"]["round"] == 0


def test_a_deadline_closes_a_phase_when_somebody_looks(server, clock):
    d = Federated(server, rounds={"deadline_seconds": 60}).join(*CENTRES)
    d.send("a", d.made("a"))
    clock.now += 61
    assert d.current()["broadcast"]["round"] == 1
    assert d.http.get(f"{d.at}/rounds/0").json()["phases"][0]["why"] == "deadline"


def test_who_leaves_is_not_waited_for(server):
    d = Federated(server).join("a", "b")
    d.send("a", d.made("a"))
    answer = d.http.post(f"{d.at}/rounds/leave", headers=d.headers("b"))
    assert answer.json()["study"]["step"] == 1


def test_who_has_no_value_declines_and_is_not_waited_for(server):
    d = Federated(server).join("a", "b")
    at = f"{d.at}/rounds/0/decline"
    body = {"phase": "local", "error": "MemoryError"}
    assert_problem(d.http.post(at, json=body), 422, "invalid-input")
    bad = d.http.post(at, json={**body, "error": "patient 17: no pulse"}, headers=d.headers("b"))
    assert_problem(bad, 422, "invalid-contribution")
    said = d.http.post(at, json=body, headers=d.headers("b"))
    assert said.status_code == 200, said.text
    assert (said.json()["outcome"], said.json()["counted"], said.json()["need"]) == ("declined", False, 1)
    assert d.current("b")["declined"] == 1
    assert d.current("b")["invited"] is False
    assert "declined: 1 had no value to learn from: b (MemoryError)" in d.http.get(f"{d.at}/brief").text
    assert d.send("a", d.made("a")).json()["study"]["step"] == 1


def test_the_brief_says_where_the_rounds_stand_and_how_to_take_part(server):
    privacy = {"clip": {"delta": 0.1}, "noise": 1.0}
    d = Federated(server, rounds={"min_joined": 2}, options={"rounds": 2, "privacy": privacy}).join("a")
    assert "nothing yet, 2 must join" in d.http.get(f"{d.at}/brief").text
    d.join("b")
    d.send("a", d.made("a"))
    text = d.http.get(f"{d.at}/brief").text
    assert "rounds: 0 of 2 done; 2 joined" in text
    assert "phase 'local', 1 of 2 contributions received" in text
    assert f"next: blackbox participant {d.study} my_job:evaluate --client NAME --url http" in text
    d.send("b", d.made("b"))
    text = d.http.get(f"{d.at}/brief").text
    assert "rounds: 1 of 2 done" in text
    spent = re.search(r"privacy: epsilon ([\d.]+) towards the coordinator", text)
    assert spent is not None
    assert float(spent[1]) == pytest.approx(dp.epsilon_of_replacement(1, 1.0, 1e-5), rel=1e-2)
    for client in "ab":
        d.send(client, d.made(client))
    text = d.http.get(f"{d.at}/brief").text
    assert "COMPLETED" in text
    assert "/best?view=recommended" in text.rpartition("next:")[2]


def test_a_study_links_to_what_it_has(server):
    d = Federated(server)
    links = d.http.get(d.at).json()["links"]
    assert links["current"] == f"{d.at}/rounds/current"
    assert "ask" not in links
    assert d.http.get(links["current"]).status_code == 200
    plain = d.http.get(f"/v1/studies/{server.create('plain')}").json()["links"]
    assert "ask" in plain
    assert "current" not in plain


def test_bad_contributions_say_what_was_expected(server):
    d = Federated(server).join("a", "b")
    made = d.made("a")
    at = f"{d.at}/rounds/0/contributions"
    raw = made.to_json()

    def sent(changes: dict[str, Any], **headers: str) -> Any:
        return d.http.post(at, json={**raw, **changes}, headers={**d.headers("a"), **headers})

    name = next(iter(raw["vectors"]))
    for changes, pointer in (
        ({"points": [[0.5, 0.5, 0.5]]}, "/points"),
        ({"trajectory": []}, "/trajectory"),
        ({"vectors": {**raw["vectors"], "values": [1.0]}}, "/vectors/values"),
        ({"vectors": {name: [0.0, 1.0]}}, f"/vectors/{name}"),
        ({"vectors": {name: [0.0, 1.0, "x"]}}, f"/vectors/{name}/2"),
        ({"weight": 0}, "/weight"),
        ({"terms": "0" * 16}, "/terms"),
        ({"round": 5}, "/round"),
    ):
        problem = assert_problem(sent(changes), 422, "invalid-contribution")
        assert any(fault["pointer"].startswith(pointer) for fault in problem["errors"]), (
            pointer,
            problem,
        )
    text = json.dumps(raw).replace(json.dumps(raw["weight"]), "NaN", 1)
    headers = {**d.headers("a"), "content-type": "application/json"}
    assert_problem(d.http.post(at, content=text, headers=headers), 422, "invalid-contribution")
    binary = {**d.headers("a"), "content-type": "application/octet-stream"}
    assert_problem(d.http.post(at, content=b"\x80\x04K\x01.", headers=binary), 422, "invalid-contribution")
    assert_problem(d.http.post(at, json=raw), 422, "invalid-input")
    assert_problem(d.http.post(at, json=raw, headers=d.headers("b")), 422, "lease-unknown")
    assert_problem(d.http.get(f"{d.at}/rounds/0"), 404, "round-not-found")
    assert_problem(d.http.get(f"{d.at}/rounds/latest"), 422, "invalid-input")
    assert_problem(d.http.post(f"{d.at}/ask", json={}), 422, "incompatible-problem")
    problem = assert_problem(d.http.post(f"{d.at}/rounds/join", json={"client": "a b"}), 422, "invalid-contribution")
    assert problem["errors"][0]["pointer"] == "/client"
    plain = server.create("plain")
    assert_problem(d.http.post(f"/v1/studies/{plain}/rounds/join", json={"client": "a"}), 422, "incompatible-problem")
    assert d.current()["received"] == 0, "nothing of that was stored"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "ask", {}),
        ("POST", "tell", {"trial": "t_1", "value": 1.0}),
        ("POST", "tell", {"params": {"w": [0.5] * 3}, "value": 1.0}),
        ("POST", "heartbeat", {"leases": ["1.1.00"]}),
        ("POST", "trials", {"trials": [{"params": {"w": [0.5] * 3}}]}),
        ("POST", "trials", {"trials": [{"params": {"w": [0.5] * 3}, "value": 1.0}]}),
        ("POST", "trials/t_1/cancel", {}),
        ("POST", "trials/t_1/requeue", {}),
        ("POST", "trials/t_1/invalidate", {}),
        ("POST", "fork", {}),
        ("GET", "best?k=2", None),
    ],
)
def test_who_comes_with_trials_is_told_what_the_study_takes(server: Server, method: str, path: str, body: Any) -> None:
    d = Federated(server)
    answer = d.http.request(method, f"{d.at}/{path}", json=body, headers={"idempotency-key": "k"})
    problem = assert_problem(answer, 422, "incompatible-problem")
    assert problem["detail"] == "fedzo works in federated rounds: there are no trials to ask for or to tell"
    assert "blackbox participant" in problem["hint"]
    assert "`links`" in problem["hint"]
    assert {"join", "current", "updates"} <= d.http.get(d.at).json()["links"].keys()


def test_what_reads_trials_finds_none_in_a_federated_study(server: Server) -> None:
    d = Federated(server)
    assert d.http.get(f"{d.at}/trials").json()["trials"] == []
    assert d.http.get(f"{d.at}/best").json()["items"] == []
    assert_problem(d.http.get(f"{d.at}/trials/t_1"), 404, "trial-not-found")
    assert_problem(d.http.post(f"{d.at}/ask", json={"encoding": "seed"}), 422, "invalid-input")

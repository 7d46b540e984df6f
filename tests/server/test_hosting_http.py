"""Hosted participants over HTTP: join once, then ask and tell, and the rounds go on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from blackbox_server.settings import Settings

from blackbox import federation
from tests.server.conftest import Server, assert_problem
from tests.server.test_rounds_http import CENTRES, Federated


def host(d: Federated, client: str, **body: Any) -> dict[str, Any]:
    answer = d.http.post(f"{d.at}/rounds/join", json={"client": client, "hosted": True, **body})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def evaluate(d: Federated, study: str, client: str, **asked: Any) -> int:
    """Ask for everything there is and tell it; how much that was."""
    trials = d.server.ask(study, count=100, **asked)["trials"]
    results = [
        {
            "trial": trial["id"],
            "lease": trial["lease"]["token"],
            "value": float(np.square(np.array(trial["params"]["w"]) - CENTRES[client]).sum()),
        }
        for trial in trials
    ]
    if results:
        assert d.server.tell(study, *results)["applied"] == len(results)
    return len(results)


def finish(d: Federated, study: str, client: str) -> int:
    n = 0
    while k := evaluate(d, study, client):
        n += k
    return n


@pytest.mark.parametrize("method", list(federation.registry()))
def test_hosted_evaluators_and_participants_close_rounds_together(each_store: Server, method: str) -> None:
    d = Federated(each_store, method=method, options={"rounds": 2}).join("a")
    studies = {client: host(d, client)["hosted"]["study"] for client in "bc"}
    one = d.machines["a"]
    n_phases = len(federation.lookup(method)(one.space, one.options, one.key).phases)
    for step in range(2 * n_phases):
        assert d.current()["step"] == step
        assert d.send("a", d.made("a")).json()["outcome"] == "applied"
        for client, study in studies.items():
            finish(d, study, client)
    row = d.http.get(d.at).json()
    assert (row["state"], row["reason"]) == ("COMPLETED", "rounds")
    for study in studies.values():
        assert each_store.ask(study)["reason"] == "completed"
        seen = d.http.get(f"/v1/studies/{study}").json()
        assert seen["state"] == "COMPLETED"
        common, own = (d.http.get(f"{at}/best?view=recommended").json() for at in (d.at, f"/v1/studies/{study}"))
        assert own["items"][0]["params"] == common["items"][0]["params"]


def test_joining_hosted_says_where_to_ask_and_the_study_whom_it_is_for(server: Server) -> None:
    d = Federated(server)
    joined = host(d, "judge", weight=3)
    assert host(d, "judge", weight=3) == joined
    study = joined["hosted"]["study"]
    assert joined["hosted"]["links"]["ask"] == f"/v1/studies/{study}/ask"
    seen = d.http.get(f"/v1/studies/{study}").json()
    assert seen["hosted"] == {"study": d.study, "client": "judge", "weight": 3.0}
    assert seen["name"] == f"{d.study}/judge"
    assert seen["links"] == joined["hosted"]["links"]
    assert d.http.get(seen["links"]["rounds"]).json()["hosted"] is None
    brief = d.http.get(f"/v1/studies/{study}/brief").text
    assert f"hosted participant 'judge' of {d.study}" in brief
    assert "/ask" in brief.rpartition("next:")[2]
    asked = server.ask(study)
    assert asked["trials"][0]["params"]["w"]
    assert asked["study"]["state"] == "ACTIVE"


def test_an_ask_between_rounds_is_held_until_the_next_phase_opens(server: Server) -> None:
    d = Federated(server).join("a")
    study = host(d, "b")["hosted"]["study"]
    finish(d, study, "b")
    assert server.ask(study)["reason"] == "between_rounds"
    d.send("a", d.made("a"))
    asked = server.ask(study, wait_seconds=20)
    assert asked["granted"] == 1
    assert asked["reason"] is None


def test_a_piggy_backed_ask_works_for_a_hosted_participant(server: Server) -> None:
    d = Federated(server, options={"rounds": 1})
    study = host(d, "a")["hosted"]["study"]
    trial = server.ask(study)["trials"][0]
    n = 0
    while trial is not None:
        told = server.tell(study, {"trial": trial["id"], "value": 1.0}, ask={"count": 1})
        trial = told["ask"]["trials"][0] if told["ask"]["trials"] else None
        n += 1
    assert told["study"]["state"] == "COMPLETED"
    assert told["ask"]["reason"] == "completed"
    assert d.http.get(d.at).json()["budget"]["used"] == n


def test_a_value_told_twice_is_a_duplicate_and_a_vanished_evaluator_is_passed_over(server: Server, clock: Any) -> None:
    d = Federated(server, rounds={"deadline_seconds": 60}).join("a")
    study = host(d, "b")["hosted"]["study"]
    trial = server.ask(study)["trials"][0]
    result = {"trial": trial["id"], "lease": trial["lease"]["token"], "value": 0.25}
    assert server.outcome(study, **result)["outcome"] == "applied"
    assert server.outcome(study, **result)["outcome"] == "duplicate"
    d.send("a", d.made("a"))
    assert d.current()["received"] == 1
    clock.now += 61
    assert d.current()["broadcast"]["round"] == 1, "the evaluator of b is not waited for after the deadline"
    assert finish(d, study, "b") > 0
    assert d.current()["received"] == 1, "b is back, and in time for this round"


def test_leaving_with_the_token_ends_the_hosted_study(server: Server) -> None:
    d = Federated(server).join("a")
    joined = host(d, "b")
    d.send("a", d.made("a"))
    answer = d.http.post(f"{d.at}/rounds/leave", headers={"participant-token": joined["token"]})
    assert answer.json()["study"]["step"] == 1, "nobody is waited for any more"
    assert server.ask(joined["hosted"]["study"])["reason"] == "completed"
    host(d, "b")
    assert server.ask(joined["hosted"]["study"])["granted"] == 1


def test_quarantine_skips_federated_studies_and_says_so(server: Server) -> None:
    d = Federated(server).join("a")
    hosted = host(d, "b")["hosted"]["study"]
    finish(d, hosted, "b")
    own = server.create("own", space={"x": {"type": "float", "low": 0, "high": 1}})
    trial = server.ask(own, worker="mallory")["trials"][0]
    server.tell(own, {"trial": trial["id"], "value": 0.5}, worker="mallory")
    answer = server.http.post("/v1/workers/mallory/quarantine")
    assert answer.status_code == 200, answer.text
    assert answer.json()["invalidated"] == {own: 1}
    assert answer.json()["skipped"].keys() == {d.study, hosted}
    assert "federated rounds" in answer.json()["skipped"][d.study]
    assert f"hosted participant b of {d.study}" in answer.json()["skipped"][hosted]


def test_what_a_hosted_participant_cannot_do_is_said(server: Server) -> None:
    d = Federated(server).join("a")
    study = host(d, "b")["hosted"]["study"]
    at = f"/v1/studies/{study}"
    params = {"w": [0.5, 0.5, 0.5]}
    key = {"idempotency-key": "k"}
    for path, body in (
        ("tell", {"params": params, "value": 1.0}),
        ("trials", {"trials": [{"params": params}]}),
        ("fork", {}),
        ("rounds/join", {"client": "x"}),
    ):
        assert_problem(d.http.post(f"{at}/{path}", json=body, headers=key), 422, "incompatible-problem")
    server.ask(study)
    assert_problem(d.http.post(f"{at}/trials/t_2/invalidate", json={}), 422, "incompatible-problem")
    joining = f"{d.at}/rounds/join"
    assert_problem(d.http.post(joining, json={"client": "b"}), 409, "conflict")
    assert_problem(d.http.post(joining, json={"client": "a", "hosted": True}), 409, "conflict")
    assert_problem(d.http.post(joining, json={"client": "b", "hosted": True, "weight": 2}), 409, "conflict")
    problem = assert_problem(d.http.post(joining, json={"client": "c", "weight": 2}), 422, "invalid-input")
    assert problem["errors"][0]["pointer"] == "/weight"
    for weight in (0, -1, "heavy"):
        answer = d.http.post(joining, json={"client": "c", "hosted": True, "weight": weight})
        assert answer.status_code == 422


def test_a_machine_too_large_to_be_hosted_is_refused(server: Server) -> None:
    space = {"w": {"type": "vector", "dim": 200_000, "low": 0.0, "high": 1.0}}
    study = server.create("large", space=space, algorithm={"name": "fzoos", "options": {"features": 100_000}})
    problem = assert_problem(
        server.http.post(f"/v1/studies/{study}/rounds/join", json={"client": "a", "hosted": True}), 422, "too-large"
    )
    assert "run its own machine" in problem["hint"]
    assert server.http.post(f"/v1/studies/{study}/rounds/join", json={"client": "a"}).status_code == 200
    assert Settings().max_algorithm_bytes < 8 * 200_000 * 100_000


def test_an_evaluate_key_joins_hosted_asks_and_tells_and_another_project_finds_nothing(server: Server) -> None:
    d = Federated(server)
    judge, stranger = server.key("study:evaluate"), server.key("study:evaluate", project="other")
    joined = d.http.post(f"{d.at}/rounds/join", json={"client": "a", "hosted": True}, headers=judge)
    study = joined.json()["hosted"]["study"]
    trial = server.ask(study, headers=judge)["trials"][0]
    told = {"trial": trial["id"], "value": 1.0}
    assert d.http.post(f"/v1/studies/{study}/tell", json=told, headers=judge).json()["applied"] == 1
    for path in ("ask", "tell"):
        answer = d.http.post(f"/v1/studies/{study}/{path}", json=told if path == "tell" else {}, headers=stranger)
        assert_problem(answer, 404, "study-not-found")
    answer = d.http.post(f"{d.at}/rounds/join", json={"client": "x", "hosted": True}, headers=stranger)
    assert_problem(answer, 404, "study-not-found")

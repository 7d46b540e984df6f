"""A repeated POST counts once."""

from __future__ import annotations

from typing import Any

import pytest

from blackbox.errors import StoreUnavailable
from tests.server.conftest import SPACE, Server, assert_problem

KEY = {"idempotency-key": "k-1"}


@pytest.mark.parametrize("key", [KEY, {}])
def test_creating_twice_gives_one_study(each_store: Server, key: dict[str, str]) -> None:
    body = {"name": "a", "space": SPACE}
    first = each_store.http.post("/v1/studies", json=body, headers=key)
    again = each_store.http.post("/v1/studies", json=body, headers=key)
    assert first.status_code == 201
    assert again.status_code == (201 if key else 200)
    assert again.json()["id"] == first.json()["id"]


def test_points_are_enqueued_once(each_store: Server) -> None:
    server = each_store
    study = server.create()
    body = {"trials": [{"params": {"x": 1, "y": 2}}]}
    answers = [server.http.post(f"/v1/studies/{study}/trials", json=body, headers=KEY) for _ in range(2)]
    assert [a.status_code for a in answers] == [201, 201]
    assert answers[0].content == answers[1].content
    assert server.http.get(f"/v1/studies/{study}").json()["trials"]["queued"] == 1
    other = server.http.post(f"/v1/studies/{study}/trials", json={"trials": body["trials"] * 2}, headers=KEY)
    assert_problem(other, 422, "idempotency-key-reused")
    assert_problem(server.http.post(f"/v1/studies/{study}/pause", headers=KEY), 422, "idempotency-key-reused")


def test_an_injected_result_needs_a_key_and_counts_once(each_store: Server) -> None:
    server = each_store
    study = server.create()
    item = {"params": {"x": 1.0, "y": 2.0}, "value": 0.2, "source": "previous-study"}
    path = f"/v1/studies/{study}/tell"
    problem = assert_problem(server.http.post(path, json={"results": [item]}), 422, "idempotency-key-required")
    assert problem["errors"][0]["pointer"] == "/results/0/key"
    with_header = [server.http.post(path, json={"results": [item], "ask": {}}, headers=KEY).json() for _ in range(2)]
    assert [a["results"][0]["outcome"] for a in with_header] == ["injected", "injected"]
    assert with_header[0]["ask"]["trials"][0]["id"] == with_header[1]["ask"]["trials"][0]["id"]
    keyed = {"results": [{**item, "key": "item-1"}]}
    assert server.http.post(path, json=keyed).json() == server.http.post(path, json=keyed).json()
    trials = server.http.get(f"/v1/studies/{study}/trials").json()["trials"]
    assert [t["source"] for t in trials] == ["previous-study", None, "previous-study"]
    bad = server.http.post(path, json={"results": [{**item, "params": {"x": 9}, "key": "item-2"}]}).json()
    assert bad["results"][0]["problem"]["code"] == "invalid-space"
    assert bad["results"][0]["problem"]["errors"][0]["pointer"] == "/results/0/params/x"


def test_imported_trials_count_once(server: Server) -> None:
    study = server.create()
    body = {"trials": [{"params": {"x": 1.0, "y": 2.0}, "value": 0.5}]}
    path = f"/v1/studies/{study}/trials"
    assert_problem(server.http.post(path, json=body), 422, "idempotency-key-required")
    first, again = (server.http.post(path, json=body, headers=KEY) for _ in range(2))
    assert first.content == again.content
    assert server.http.get(f"/v1/studies/{study}/best").json()["items"][0]["params"] == {"x": 1.0, "y": 2.0}


def test_answers_are_forgotten_after_a_day(server: Server) -> None:
    study = server.create()
    path, body = f"/v1/studies/{study}/trials", {"trials": [{"params": {"x": 1, "y": 2}}]}
    server.http.post(path, json=body, headers=KEY)
    server.clock.now += 25 * 3600
    assert server.http.post(path, json=body, headers=KEY).json()["trials"][0]["id"] == "t_2"


def test_what_failed_is_not_remembered(server: Server) -> None:
    study = server.create()
    service = server.app.state.service
    path = f"/v1/studies/{study}/pause"
    write = service.store.write

    async def refuse(work: Any, long: bool) -> Any:
        def run(tx: Any) -> Any:
            work(tx)
            raise StoreUnavailable("the disk is full")

        return await write(run, long)

    service.store.write = refuse
    assert server.http.post(path, headers=KEY).status_code == 503
    service.store.write = write
    assert server.http.get(f"/v1/studies/{study}").json()["state"] == "ACTIVE"
    assert server.http.post(path, headers=KEY).json()["state"] == "PAUSED"


def test_a_repeated_key_does_not_show_its_secret_again(server: Server) -> None:
    body = {"scopes": ["study:read"]}
    first, again = (server.http.post("/v1/keys", json=body, headers=KEY).json() for _ in range(2))
    assert first["key"].startswith("zok_")
    assert "key" not in again
    assert again["id"] == first["id"]


def test_other_projects_may_use_the_same_key(server: Server) -> None:
    other = server.key("study:evaluate", "study:admin", "study:read") | KEY
    elsewhere = server.key("study:admin", "study:read", "study:evaluate", project="else") | KEY
    body = {"name": "a", "space": SPACE}
    one = server.http.post("/v1/studies", json=body, headers=other).json()["id"]
    two = server.http.post("/v1/studies", json=body, headers=elsewhere).json()["id"]
    assert one != two
    assert_problem(server.http.post("/v1/studies", json=body, headers={"idempotency-key": ""}), 422, "invalid-input")

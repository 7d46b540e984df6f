"""Limits of what a body may hold, and of what a key and a project may have; and the clocks that they run on."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from blackbox_server.limits import QUOTAS, Buckets, TokenBucket
from blackbox_server.routes import shapes, studies
from blackbox_server.schemas import parsing, requests
from blackbox_server.settings import Settings

from blackbox.errors import InvalidInput, TooLarge
from tests.server.conftest import SPACE, Server, assert_problem

POINT = {"x": 0.5, "y": 0.5}


def quota(server: Server, name: str) -> dict[str, Any]:
    """What `GET /v1/limits` says of a quota."""
    return next(each for each in server.http.get("/v1/limits").json()["quotas"] if each["name"] == name)


def assert_names_the_limit(answer: Any, status: int, code: str, name: str, value: float, used: float) -> None:
    """The answer over a limit names it: what it is, how much of it is taken, what to do."""
    assert answer.status_code == status, answer.text
    problem = answer.json()
    assert problem["code"] == code
    assert problem["limit"] == {"name": name, "value": value, "used": used}
    assert QUOTAS[name].hint in problem["hint"]
    assert "GET /v1/limits" in problem["hint"]


# A body, before anything is built -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"[" + b"{}," * 100_001 + b"{}]", "objects and arrays"),
        (b"[" + b"[]," * 100_001 + b"[]]", "objects and arrays"),
        (b"[" + b"1," * 1_000_001 + b"1]", "values"),
        (b"{" + b",".join(b'"%d":1' % i for i in range(100_001)) + b"}", "members"),
        (b"[" + b'"",' * 200_001 + b'""]', "texts"),
    ],
    ids=["objects", "arrays", "numbers", "members", "texts"],
)
def test_a_body_that_could_hold_too_much_is_refused_before_it_is_decoded(
    body: bytes, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parsing.pydantic_core, "from_json", lambda _: pytest.fail("it was decoded"))
    with pytest.raises(TooLarge, match=what):
        parsing.read_json(body)


@pytest.mark.parametrize(
    "part",
    [
        {"labels": {f"l{i}": 1 for i in range(1001)}},
        {"algorithm": {"name": "cma_es", "options": {f"o{i}": 1 for i in range(1001)}}},
        {"algorithm": {"name": "cma_es", "options": {"popsize": ["a"] * 1001}}},
        {f"unknown{i}": 1 for i in range(1001)},
    ],
    ids=["labels", "options", "items", "fields"],
)
def test_a_spec_wide_enough_to_have_thousands_of_faults_is_refused_before_they_are_built(
    server: Server, part: dict[str, Any]
) -> None:
    answer = server.http.post("/v1/studies", json={"name": "wide", "space": SPACE, **part})
    assert assert_problem(answer, 422, "too-large")["errors"][0]["code"] == "too_many"


def test_an_answer_lists_a_hundred_faults_at_most(server: Server) -> None:
    space = {f"x{i}": {"type": "flaot"} for i in range(300)}
    answer = server.http.post("/v1/studies", json={"name": "wrong", "space": space})
    assert len(assert_problem(answer, 422, "invalid-space")["errors"]) <= 100


def test_four_hundred_thousand_numbers_are_read() -> None:
    value, finite = parsing.read_json(b"[" + b"0.25," * 399_999 + b"0.25]")
    assert len(value) == 400_000
    assert finite


def test_a_name_of_more_than_a_thousand_characters_is_refused() -> None:
    assert parsing.read_json(json.dumps({"n" * 1000: 1}).encode())[1]
    with pytest.raises(InvalidInput, match="1001 characters"):
        parsing.read_json(json.dumps({"a": [{"n" * 1001: 1}]}).encode())


@pytest.mark.parametrize("item", [1, {}, {"lease": 1}], ids=["numbers", "objects", "wrong objects"])
@pytest.mark.parametrize(
    ("path", "name"),
    [("tell", "results"), ("heartbeat", "leases"), ("trials", "trials")],
    ids=["tell", "beat", "enqueue"],
)
def test_the_length_of_a_list_is_looked_at_before_its_items(
    server: Server, path: str, name: str, item: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = server.create()
    monkeypatch.setattr(parsing, "fit", lambda *_: pytest.fail("its models were built"))
    answer = server.http.post(f"/v1/studies/{study}/{path}", json={name: [item] * 1001})
    problem = assert_problem(answer, 422, "too-large")
    assert problem["errors"] == [
        {"pointer": f"/{name}", "code": "too_many", "message": "at most 1000, got 1001"},
    ]


@pytest.mark.parametrize(
    ("raw", "n"),
    [
        ({"results": [1] * 1000}, 1000),
        ({"results": [{f"a{i}": 1 for i in range(30)}] * 1000}, 30_000),
        ({"results": [], **{f"a{i}": 1 for i in range(20_000)}}, 20_000),
        ({"results": [{"trial": "t_1", "sums": {f"s{i}": "x" for i in range(5000)}}] * 3}, 30_000),
    ],
    ids=["items", "fields of items", "fields", "inside"],
)
def test_of_very_many_faults_a_hundred_are_built_and_all_are_counted(raw: Any, n: int) -> None:
    with pytest.raises(InvalidInput) as caught:
        parsing.fit(requests.Tell, raw)
    assert 0 < len(caught.value.errors) <= parsing.MAX_FAULTS
    assert str(n) in caught.value.detail


def test_what_a_large_body_asks_for_is_computed_beside_the_event_loop(server: Server) -> None:
    """While a space of 2,000 parameters is read, the loop answers others: reading happens in another thread."""
    threads = []
    original = shapes.described

    def described(text: str) -> Any:
        threads.append(threading.current_thread().name)
        return original(text)

    space = {f"x{i}": {"type": "float", "low": 0, "high": 1} for i in range(2000)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "described", described)
        study = server.create("wide", space=space)
    assert threads[0].startswith("beside")
    assert server.http.get(f"/v1/studies/{study}").json()["space"].keys() == space.keys()
    trial = server.ask(study)["trials"][0]
    told = {"params": trial["params"], "value": 1.0, "key": "k", "source": "s"}
    assert server.outcome(study, **told)["outcome"] == "injected"


# Bodies that end early ------------------------------------------------------------------------------------------------


def _raw(server: Server, path: str, headers: dict[str, str], *messages: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The answer of the application to a request of these messages."""
    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
        "scheme": "http", "root_path": "", "client": ("127.0.0.1", 1), "server": ("testserver", 80),
        "http_version": "1.1",
        "headers": [
            (b"authorization", server.http.headers["authorization"].encode()),
            *((name.encode(), value.encode()) for name, value in headers.items()),
        ],
    }  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def call() -> None:
        waiting = [*messages, {"type": "http.disconnect"}]

        async def receive() -> dict[str, Any]:
            return waiting.pop(0) if len(waiting) > 1 else waiting[0]

        async def send(message: Any) -> None:
            sent.append(message)

        await server.app(scope, receive, send)

    server.http.portal.call(call)  # type: ignore[union-attr]
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_a_body_that_is_cut_short_is_refused_and_not_executed(server: Server) -> None:
    study = server.create()
    server.ask(study)
    body = b'{"trial":"t_1","value":1}'
    path = f"/v1/studies/{study}/tell"
    part = {"type": "http.request", "body": body, "more_body": True}
    whole = {"type": "http.request", "body": body, "more_body": False}
    for headers, messages in (
        ({"content-length": "500"}, [part]),
        ({"content-length": "500"}, []),
        ({"transfer-encoding": "chunked"}, [part]),
        ({"content-length": "500"}, [whole]),
    ):
        status, problem = _raw(server, path, headers, *messages)
        assert (status, problem["code"]) == (400, "body-cut")
    assert server.http.get(f"/v1/studies/{study}").json()["budget"]["used"] == 0
    assert _raw(server, path, {"content-length": str(len(body))}, whole)[1]["applied"] == 1


# Clocks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [-60.0, -86_400.0, 60.0, 86_400.0])
def test_a_step_of_the_wall_clock_neither_stops_nor_frees_anybody(serve: Callable[..., Server], step: float) -> None:
    server = serve(rate_per_second=5)
    assert [server.http.get("/v1/studies").status_code for _ in range(9)] == [200] * 9
    server.clock.now += step
    assert [server.http.get("/v1/studies").status_code for _ in range(2)] == [200, 429]
    server.ticks.now += 1
    assert [server.http.get("/v1/studies").status_code for _ in range(6)] == [200] * 5 + [429]


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_asking_and_telling_go_on_when_the_wall_clock_steps(server: Server, step: float) -> None:
    study = server.create()
    trial = server.ask(study)["trials"][0]
    server.clock.now += step
    told = {"trial": trial["id"], "lease": trial["lease"]["token"], "value": 1.0}
    assert server.outcome(study, **told)["outcome"] == "applied"
    assert server.ask(study)["granted"] == 1


def test_a_verified_key_is_believed_for_seconds_that_nobody_can_set(server: Server) -> None:
    made = server.http.post("/v1/keys", json={"scopes": ["study:read"]}).json()
    header = {"authorization": f"Bearer {made['key']}"}
    assert server.http.get("/v1/studies", headers=header).status_code == 200
    row = server.store.read(lambda tx: tx.key(made["id"]))
    assert row is not None
    server.store.write(lambda tx: tx.put_key(replace(row, revoked_at=server.clock.now)))  # by another process
    server.clock.now -= 3600
    assert server.http.get("/v1/studies", headers=header).status_code == 200
    server.ticks.now += 6
    assert server.http.get("/v1/studies", headers=header).status_code == 401


def test_a_bucket_fills_by_its_own_clock() -> None:
    bucket = TokenBucket(2.0, 100.0, burst=3.0)
    assert [bucket.take(100.0) for _ in range(4)] == [2, 1, 0, -1]
    assert bucket.left(101.0) == 2.0
    assert bucket.take(101.0, 2) == 0
    assert bucket.take(200.0, 4) == -1


def test_buckets_forget_who_came_longest_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Buckets, "MOST", 2)
    buckets = Buckets(1.0, 2.0)
    for address in ("a", "b", "a", "c"):
        buckets.take(address, 0.0)
    assert buckets.exhausted("a", 0.0)
    assert not buckets.exhausted("b", 0.0)
    assert buckets.left("b", 0.0) == 2.0


# Keys -----------------------------------------------------------------------------------------------------------------


def test_an_expired_key_ends_at_its_time_although_it_was_just_believed(server: Server) -> None:
    made = server.http.post("/v1/keys", json={"scopes": ["study:read"], "expires_seconds": 60}).json()
    header = {"authorization": f"Bearer {made['key']}"}
    server.clock.now += 59.5
    assert server.http.get("/v1/studies", headers=header).status_code == 200
    server.clock.now += 0.5
    assert_problem(server.http.get("/v1/studies", headers=header), 401, "unauthorized")


@pytest.mark.parametrize("end", ["expired", "revoked"])
@pytest.mark.parametrize("what", ["ask", "events"])
def test_a_held_request_does_not_outlast_its_key(server: Server, what: str, end: str) -> None:
    made = server.http.post("/v1/keys", json={"scopes": ["study:admin"], "expires_seconds": 60}).json()
    header = {"authorization": f"Bearer {made['key']}"}
    study = server.create(parallelism={"max_leased": 1})
    server.ask(study)
    after = server.http.get(f"/v1/studies/{study}/events").json()["next_after"]

    def hold() -> Any:
        if what == "ask":
            return server.http.post(f"/v1/studies/{study}/ask", json={"wait_seconds": 20}, headers=header)
        return server.http.get(f"/v1/studies/{study}/events?wait_seconds=20&after={after}", headers=header)

    waiting = server.app.state.metrics.waiting
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(hold)
        while waiting._value.get() == 0:
            assert not held.done(), held.result().text
        if end == "expired":
            server.clock.now += 61
        else:
            server.http.delete(f"/v1/keys/{made['id']}")
        server.tell(study, {"trial": "t_1", "value": 1.0})  # wakes it
        assert_problem(held.result(), 401, "unauthorized")
    assert server.http.get(f"/v1/studies/{study}").json()["budget"]["leased"] == 0


def test_a_request_is_held_no_longer_than_its_key_lasts(server: Server) -> None:
    made = server.http.post("/v1/keys", json={"scopes": ["study:admin"], "expires_seconds": 60}).json()
    header = {"authorization": f"Bearer {made['key']}"}
    study = server.create(parallelism={"max_leased": 1})
    server.ask(study)
    server.clock.now += 60 - 1 / 1024
    answer = server.http.post(f"/v1/studies/{study}/ask", json={"wait_seconds": 20}, headers=header)
    assert answer.json()["granted"] == 0


def test_of_an_address_that_sends_unknown_keys_only_known_ones_are_looked_at(serve: Callable[..., Server]) -> None:
    server = serve(failed_keys_per_minute=3)
    assert server.http.get("/v1/studies").status_code == 200
    wrong = {"authorization": "Bearer zok_aaaaaaaa_" + "b" * 43}
    assert [server.http.get("/v1/studies", headers=wrong).status_code for _ in range(5)] == [401] * 3 + [429] * 2
    server.ticks.now += 6  # the good key is no longer believed, but it was good before
    assert server.http.get("/v1/studies").status_code == 200
    server.ticks.now += 20
    assert [server.http.get("/v1/studies", headers=wrong).status_code for _ in range(2)] == [401, 429]


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("host", "LOCALHOST", 200), ("host", "LocalHost:8800", 200), ("host", "[::1]:8800", 200),
        ("host", "127.0.0.2", 200),
        ("host", "[::1].evil.com", 403), ("host", "[::1]evil.com:80", 403), ("host", "localhost:evil", 403),
        ("host", "localhost:80.evil.com", 403), ("host", "127.0.0.1.evil.com", 403),
        ("host", "localhost.evil.com", 403),
        ("host", "evil.com:localhost", 403), ("host", "", 403), ("host", "localhost\x00", 403),
        ("origin", "http://LOCALHOST:3000", 200), ("origin", "http://[::1].evil.com", 403), ("origin", "null", 403),
        ("origin", "http://localhost:evil", 403), ("origin", "http://localhost@evil.com", 403),
    ],
)  # fmt: skip
def test_without_keys_only_names_of_this_machine_are_answered(
    serve: Callable[..., Server], header: str, value: str, status: int
) -> None:
    server = serve(insecure_local=True)
    assert server.http.get("/v1/studies", headers={header: value}).status_code == status


# Quotas ---------------------------------------------------------------------------------------------------------------


def test_a_quota_of_studies_counts_those_there_are(serve: Callable[..., Server]) -> None:
    server = serve(max_studies=2)
    first = server.create("one")
    server.create("two")
    more = {"name": "three", "space": SPACE}
    assert_names_the_limit(server.http.post("/v1/studies", json=more), 403, "quota-exceeded", "studies", 2, 2)
    assert_names_the_limit(server.http.post(f"/v1/studies/{first}/fork"), 403, "quota-exceeded", "studies", 2, 2)
    assert server.http.post("/v1/studies", json={"name": "two", "space": SPACE, "algorithm": {"name": "random_search"}})
    other = server.key("study:admin", project="other")
    assert server.http.post("/v1/studies", json=more, headers=other).status_code == 201
    assert quota(server, "studies")["used"] == 2
    assert server.http.delete(f"/v1/studies/{first}").status_code == 204
    assert server.http.post("/v1/studies", json=more).status_code == 201


def test_a_quota_counts_what_an_earlier_process_has_stored(serve: Callable[..., Server]) -> None:
    server = serve()
    server.create("one")
    again = serve(server.store, max_studies=1)
    again.http.headers["authorization"] = server.http.headers["authorization"]
    answer = again.http.post("/v1/studies", json={"name": "two", "space": SPACE})
    assert_names_the_limit(answer, 403, "quota-exceeded", "studies", 1, 1)


def test_keys_and_labels_have_quotas(serve: Callable[..., Server]) -> None:
    server = serve(max_keys=2, max_labels=2)
    server.key("study:read")
    answer = server.http.post("/v1/keys", json={"scopes": ["study:read"]})
    assert_names_the_limit(answer, 403, "quota-exceeded", "keys", 2, 2)
    study = server.create(labels={"a": "1", "b": "2"})
    three = {"a": "1", "b": "2", "c": "3"}
    answer = server.http.post("/v1/studies", json={"name": "n", "space": SPACE, "labels": three})
    assert_names_the_limit(answer, 403, "quota-exceeded", "labels", 2, 0)
    answer = server.http.patch(f"/v1/studies/{study}", json={"labels": three})
    assert_names_the_limit(answer, 403, "quota-exceeded", "labels", 2, 0)
    long = server.http.patch(f"/v1/studies/{study}", json={"labels": {"a": "1" * 1001}})
    assert_problem(long, 422, "too-large")


def test_points_that_a_study_did_not_choose_have_a_quota_of_an_hour(serve: Callable[..., Server]) -> None:
    server = serve(max_injected_per_hour=3)
    study = server.create()

    def inject(n: int, key: str) -> Any:
        results = [{"params": POINT, "value": i} for i in range(n)]
        return server.http.post(
            f"/v1/studies/{study}/tell", json={"results": results}, headers={"idempotency-key": key}
        )

    assert [item["outcome"] for item in inject(3, "a").json()["results"]] == ["injected"] * 3
    assert_names_the_limit(inject(1, "b"), 429, "too-much-at-once", "injected", 3, 3)
    imported = {"trials": [{"params": POINT, "value": 1.0}]}
    answer = server.http.post(f"/v1/studies/{study}/trials", json=imported, headers={"idempotency-key": "c"})
    assert_names_the_limit(answer, 429, "too-much-at-once", "injected", 3, 3)
    assert quota(server, "injected")["used"] == 3
    server.ticks.now += 1200
    assert inject(1, "d").json()["results"][0]["outcome"] == "injected"


def test_queued_points_and_trials_have_quotas(serve: Callable[..., Server]) -> None:
    server = serve(max_queued=3, max_trials=5)
    study = server.create()

    def enqueue(n: int) -> Any:
        return server.http.post(f"/v1/studies/{study}/trials", json={"trials": [{"params": POINT}] * n})

    assert enqueue(2).status_code == 201
    assert_names_the_limit(enqueue(2), 429, "too-much-at-once", "queued", 3, 2)
    server.ask(study, count=2)
    assert enqueue(2).status_code == 201
    assert_names_the_limit(enqueue(2), 403, "quota-exceeded", "trials", 5, 4)


def test_participants_have_a_quota_and_who_comes_back_is_among_them(serve: Callable[..., Server]) -> None:
    server = serve(max_participants=2)
    study = server.create(algorithm={"name": "fedzo"})

    def join(name: str) -> Any:
        return server.http.post(f"/v1/studies/{study}/rounds/join", json={"client": name})

    assert [join(name).status_code for name in ("a", "b", "a")] == [200, 200, 200]
    assert_names_the_limit(join("c"), 403, "quota-exceeded", "participants", 2, 2)


def test_the_memory_of_open_studies_is_bounded_by_closing_those_used_longest_ago(serve: Callable[..., Server]) -> None:
    space = {"x": {"type": "vector", "dim": 200, "low": -1, "high": 1}}
    server = serve(max_open_bytes=10 * 2**20, max_algorithm_bytes=10 * 2**20)
    made = [server.create(f"s{i}", space=space, algorithm={"name": "cma_es"}) for i in range(4)]
    for study in made:
        server.ask(study)
    service = server.app.state.service
    (one,) = {each.memory for each in service.usage.alive}
    assert one > 10 * 2**20 / 4
    assert service.usage.open_bytes("default") == one * (10 * 2**20 // one)
    assert quota(server, "open_bytes")["used"] <= 10 * 2**20
    assert server.ask(made[0])["granted"] == 1  # opened again


def test_the_memory_of_studies_that_are_in_use_is_refused_to_others(serve: Callable[..., Server]) -> None:
    space = {"x": {"type": "vector", "dim": 300, "low": -1, "high": 1}}
    server = serve(max_open_bytes=10 * 2**20, max_algorithm_bytes=10 * 2**20)
    first, second = [server.create(f"s{i}", space=space, algorithm={"name": "cma_es"}) for i in range(2)]
    server.ask(first)
    service = server.app.state.service
    held = service._studies[first]
    assert held.memory > 5 * 2**20
    answer = server.http.post(f"/v1/studies/{second}/ask", json={})
    assert_names_the_limit(answer, 429, "too-much-at-once", "open_bytes", 10 * 2**20, held.memory)
    assert answer.headers["retry-after"]
    del held
    assert server.ask(second)["granted"] == 1


def test_bodies_under_way_are_counted_for_their_key_and_given_back(serve: Callable[..., Server]) -> None:
    server = serve(max_held_bytes=1024)
    study = server.create()
    part = {"type": "http.request", "body": b" " * 600, "more_body": True}
    path = f"/v1/studies/{study}/ask"
    status, problem = _raw(server, path, {}, part, part)
    assert (status, problem["code"]) == (429, "too-much-at-once")
    assert problem["limit"] == {"name": "held_bytes", "value": 1024, "used": 600}
    assert not server.app.state.held.by_key
    status, _ = _raw(server, path, {}, part, {"type": "http.request", "body": b"{}", "more_body": False})
    assert status == 200
    assert not server.app.state.held.by_key


def test_limits_are_listed_with_what_is_used(server: Server) -> None:
    server.create()
    said = server.http.get("/v1/limits").json()
    assert [each["name"] for each in said["quotas"]] == list(QUOTAS)
    used = {each["name"]: each["used"] for each in said["quotas"]}
    assert used == {
        "studies": 1, "keys": 1, "labels": None, "participants": None, "queued": None, "trials": None, "injected": 0,
        "open_bytes": 0, "held_bytes": 0,
    }  # fmt: skip
    assert all(each["value"] == QUOTAS[each["name"]].value(Settings()) for each in said["quotas"])


# What is stored can be shown ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [-1e30, -62135596801.0, 0.0, 253402300799.5, 253402300800.0, 1e12, 1e300])
def test_every_time_can_be_shown(seconds: float) -> None:
    assert 1 <= shapes.at(seconds).year <= 9999


@pytest.mark.parametrize(
    "deadline", ["9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59.999999Z"]
)
def test_a_deadline_at_the_ends_of_the_calendar_can_be_shown(server: Server, deadline: str) -> None:
    answer = server.http.post("/v1/studies", json={"name": "n", "space": SPACE, "budget": {"deadline": deadline}})
    assert answer.status_code in (201, 422)
    if answer.status_code == 201:
        study = answer.json()["id"]
        for path in ("", "/brief", "/events", "/export", "/trials"):
            assert server.http.get(f"/v1/studies/{study}{path}").status_code == 200
        assert server.http.post(f"/v1/studies/{study}/ask", json={}).status_code == 200


def test_a_sum_of_costs_can_be_shown(server: Server) -> None:
    study = server.create()
    for _ in range(2):
        trial = server.ask(study)["trials"][0]["id"]
        server.tell(study, {"trial": trial, "value": 1.0, "cost": {"usd": 1e308}})
    assert server.http.get(f"/v1/studies/{study}").json()["budget"]["cost"] == sys.float_info.max
    assert server.http.get(f"/v1/studies/{study}/brief").status_code == 200


def test_a_number_that_is_not_finite_in_a_contribution_is_named(server: Server) -> None:
    study = server.create(algorithm={"name": "fedzo"})
    token = server.http.post(f"/v1/studies/{study}/rounds/join", json={"client": "a"}).json()["token"]
    answer = server.http.post(
        f"/v1/studies/{study}/rounds/0/contributions",
        content=b'{"vectors":{"update":[0.5,NaN,1e999]}}',
        headers={"participant-token": token, "content-type": "application/json"},
    )
    problem = assert_problem(answer, 422, "invalid-contribution")
    assert [fault["pointer"] for fault in problem["errors"]] == ["/vectors/update/1", "/vectors/update/2"]


def test_a_page_of_large_studies_is_cut_and_goes_on(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [server.create(f"s{i}") for i in range(3)]
    monkeypatch.setattr(studies, "PAGE_CHARACTERS", 10)
    found, address = [], "/v1/studies"
    while address:
        page = server.http.get(address).json()
        found += [study["id"] for study in page["studies"]]
        address = page["next"]
    assert found == sorted(made)

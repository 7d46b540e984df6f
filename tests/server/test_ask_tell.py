"""The hot path: leases, the tell table, long polls, budgets, the breaker."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from blackbox.algorithms.random_search import RandomSearch
from blackbox.records import Points
from tests.server.conftest import Server, assert_problem


def test_the_whole_loop_finds_a_minimum(each_store: Server) -> None:
    server = each_store
    study = server.create(algorithm={"name": "cma_es"}, budget={"evaluations": 120}, seed="3")
    answer = server.ask(study, count=4, worker="w")
    while answer["trials"]:
        results = [
            {"trial": t["id"], "lease": t["lease"]["token"], "value": sum(v**2 for v in t["params"].values())}
            for t in answer["trials"]
        ]
        told = server.tell(study, *results, worker="w", ask={"count": 4})
        assert told["applied"] == len(results)
        answer = told["ask"]
    assert answer["reason"] == "completed"
    assert told["study"]["state"] == "COMPLETED"
    assert told["study"]["reason"] == "budget"
    best = server.http.get(f"/v1/studies/{study}/best").json()["items"][0]
    assert best["value"] < 1e-2
    assert best["value"] == pytest.approx(sum(v**2 for v in best["params"].values()))


def test_an_ask_gives_what_the_contract_says(server: Server) -> None:
    study = server.create(budget={"evaluations": 10}, lease={"default_seconds": 900})
    answer = server.ask(study, count=2)
    assert answer["granted"] == answer["requested"] == 2
    assert answer["reason"] is None
    trial = answer["trials"][0]
    assert trial["id"] == "t_1"
    assert trial["number"] == 1
    assert set(trial["params"]) == {"x", "y"}
    assert isinstance(trial["eval_seed"], str)
    assert trial["lease"]["attempt"] == 1
    assert trial["lease"]["heartbeat_seconds"] == 300
    assert trial["lease"]["expires_at"].endswith("Z")
    assert answer["study"] == {"state": "ACTIVE", "step": 0, "used": 0, "late": 0, "leased": 2, "remaining": 8}


@pytest.mark.parametrize("name", ["t_1", 1, "1"])
def test_a_trial_may_be_named_by_its_number(server: Server, name: Any) -> None:
    study = server.create()
    server.ask(study)
    answer = server.http.post(f"/v1/studies/{study}/tell", json={"trial": name, "value": 1})
    assert answer.json()["results"][0] == {"trial": "t_1", "outcome": "applied", "best_so_far": True}
    assert server.http.get(f"/v1/studies/{study}/trials/{name}").json()["value"] == 1.0


# The tell table -------------------------------------------------------------------------------------------------------


def test_open_trial_with_its_token_is_applied(server: Server) -> None:
    study = server.create()
    trial = server.ask(study)["trials"][0]
    assert server.outcome(study, trial=trial["id"], lease=trial["lease"]["token"], value=1)["outcome"] == "applied"


def test_the_token_of_an_earlier_attempt_is_applied_and_the_other_holder_abandons(server: Server) -> None:
    study = server.create(lease={"default_seconds": 60})
    first = server.ask(study, worker="a")["trials"][0]
    server.clock.now += 61
    second = server.ask(study, worker="b")["trials"][0]
    assert second["id"] == first["id"]
    assert second["lease"]["attempt"] == 2
    assert server.outcome(study, trial="t_1", lease=first["lease"]["token"], value=1)["outcome"] == "applied"
    beat = server.http.post(f"/v1/studies/{study}/heartbeat", json={"leases": [second["lease"]["token"]]}).json()
    assert beat["leases"][0]["directive"] == "abandon"


def test_closed_trial_same_value_is_a_duplicate_other_value_is_recorded_late(server: Server) -> None:
    study = server.create()
    token = server.ask(study)["trials"][0]["lease"]["token"]
    assert server.outcome(study, trial="t_1", lease=token, value=1.5)["outcome"] == "applied"
    assert server.outcome(study, trial="t_1", lease=token, value=1.5)["outcome"] == "duplicate"
    assert server.outcome(study, trial="t_1", lease=token, value=2.5)["outcome"] == "late_recorded"
    assert server.http.get(f"/v1/studies/{study}/trials/t_1").json()["value"] == 1.5
    types = [e["type"] for e in server.http.get(f"/v1/studies/{study}/events").json()["events"]]
    assert types == ["study.created", "trial.completed", "trial.late"]


def test_a_superseded_trial_may_still_improve_the_best(server: Server) -> None:
    study = server.create(algorithm={"name": "cma_es", "options": {"popsize": 4}})
    trials = server.ask(study, count=5)["trials"]
    for step in range(20):
        closing = trials[:4] if step == 0 else server.ask(study, count=4)["trials"]
        server.tell(study, *({"trial": t["id"], "value": 5.0 + t["number"]} for t in closing))
        if server.http.get(f"/v1/studies/{study}/trials/t_5").json()["state"] != "LEASED":
            break
    assert server.http.get(f"/v1/studies/{study}/trials/t_5").json()["state"] == "SUPERSEDED"
    late = server.outcome(study, trial="t_5", lease=trials[4]["lease"]["token"], value=0.5)
    assert late["outcome"] == "late_recorded"
    assert late["best_so_far"] is True
    assert server.http.get(f"/v1/studies/{study}/best").json()["items"][0]["id"] == "t_5"


def test_bad_items_are_rejected_one_by_one(server: Server) -> None:
    study = server.create()
    tokens = [t["lease"]["token"] for t in server.ask(study, count=3)["trials"]]
    told = server.tell(
        study,
        {"trial": "t_1", "lease": "1.1.0123456789abcdef01234567", "value": 1},
        {"trial": "t_2", "lease": tokens[0], "value": 1},
        {"trial": "t_99", "value": 1},
        {"trial": "t_3"},
        {"value": 1},
        {"trial": "t_3", "lease": tokens[2], "value": 1},
    )
    assert [r["outcome"] for r in told["results"]] == ["rejected"] * 5 + ["applied"]
    codes = [r["problem"]["code"] for r in told["results"][:5]]
    assert codes == ["lease-unknown", "lease-unknown", "trial-not-found", "non-finite-value", "invalid-input"]
    assert told["results"][3]["problem"]["errors"][0]["pointer"] == "/results/3/value"
    assert told["results"][4]["problem"]["errors"][0]["pointer"] == "/results/4/trial"
    assert all(r["problem"]["hint"] for r in told["results"][:5])
    assert told["applied"] == 1


def test_a_study_may_want_the_token(server: Server) -> None:
    study = server.create(require_lease=True)
    trial = server.ask(study)["trials"][0]
    assert server.outcome(study, trial="t_1", value=1)["problem"]["code"] == "lease-unknown"
    assert server.outcome(study, lease=trial["lease"]["token"], value=1)["outcome"] == "applied"


def test_infeasible_failed_released_stopped(server: Server) -> None:
    study = server.create(lease={"max_attempts": 2})
    server.ask(study, count=4)
    told = server.tell(
        study,
        {"trial": "t_1", "status": "infeasible", "reason": "too heavy"},
        {"trial": "t_2", "status": "failed", "error": {"type": "Oom", "message": "m", "retryable": True}},
        {"trial": "t_3", "status": "released"},
        {"trial": "t_4", "status": "stopped", "value": 3.0, "fidelity": 0.5},
    )
    assert [r["outcome"] for r in told["results"]] == ["applied", "requeued", "released", "applied"]
    assert told["results"][1] == {
        "trial": "t_2", "outcome": "requeued", "state": "QUEUED", "attempt": 2, "attempts_left": 1,
    }  # fmt: skip
    states = [t["state"] for t in server.http.get(f"/v1/studies/{study}/trials").json()["trials"]]
    assert states == ["INFEASIBLE", "QUEUED", "QUEUED", "STOPPED"]
    again = server.ask(study, count=2)["trials"]
    assert {t["id"] for t in again} == {"t_2", "t_3"}
    final = server.outcome(study, trial="t_2", status="failed", error={"retryable": False})
    assert final["state"] == "FAILED"


def test_behaviour_and_sums_are_kept_with_the_trial_and_have_limits(server: Server) -> None:
    study = server.create()
    server.ask(study, count=2)
    sums = {"count": 200, "total": [0.1, 2], "squares": [0.3, 5.5]}
    told = server.outcome(study, trial="t_1", value=1, behaviour=[1, -2.5], sums=sums)
    assert told["outcome"] == "applied"
    extra = server.http.get(f"/v1/studies/{study}/trials/t_1").json()["extra"]
    assert extra == {"behaviour": [1.0, -2.5], "sums": {"count": 200.0, "total": [0.1, 2.0], "squares": [0.3, 5.5]}}
    large = server.outcome(study, trial="t_2", value=1, sums={"total": [1 / 3] * 1000})
    assert (large["outcome"], large["problem"]["code"]) == ("rejected", "too-large")
    assert large["problem"]["errors"][0]["pointer"].endswith("/sums")
    for field, told_, pointer in (
        ("behaviour", [0.0] * 257, "/behaviour"),
        ("behaviour", [0.0, "1"], "/behaviour/1"),
        ("behaviour", [True], "/behaviour/0"),
        ("behaviour", 1.0, "/behaviour"),
        ("sums", {"a": [0.0, None]}, "/sums/a"),
        ("sums", {"a": {"b": 1.0}}, "/sums/a"),
        ("sums", dict.fromkeys(map(str, range(65)), 1.0), "/sums"),
    ):
        answer = server.http.post(f"/v1/studies/{study}/tell", json={"trial": "t_2", "value": 1, field: told_})
        assert assert_problem(answer, 422, "invalid-input")["errors"][0]["pointer"].startswith(pointer)
    assert server.outcome(study, trial="t_2", value=1, behaviour=[0.0] * 256)["outcome"] == "applied"


def test_a_payload_comes_with_the_candidate(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = RandomSearch.ask

    def with_payload(self: RandomSearch, state: Any, lanes: Any, pending: Any) -> Points:
        return replace(ask(self, state, lanes, pending), payload=tuple({"lane": int(lane)} for lane in lanes))

    monkeypatch.setattr(RandomSearch, "ask", with_payload)
    trials = server.ask(server.create(algorithm="random_search"), count=2)["trials"]
    assert [trial["payload"] for trial in trials] == [{"lane": 0}, {"lane": 1}]


def test_info_has_a_limit(server: Server) -> None:
    study = server.create()
    server.ask(study)
    outcome = server.outcome(study, trial="t_1", value=1, info={"log": "x" * 17_000})
    assert outcome["problem"]["code"] == "too-large"
    assert server.outcome(study, trial="t_1", value=1, info={"git": "ab12"})["outcome"] == "applied"
    assert server.http.get(f"/v1/studies/{study}/trials/t_1").json()["extra"]["info"] == {"git": "ab12"}


# Asking again ---------------------------------------------------------------------------------------------------------


def test_a_retried_ask_returns_the_same_leases(each_store: Server) -> None:
    server = each_store
    study = server.create()
    key = {"idempotency-key": "ask-1"}
    first = server.ask(study, headers=key, count=3)
    again = server.ask(study, headers=key, count=3)
    assert [t["id"] for t in again["trials"]] == [t["id"] for t in first["trials"]]
    assert [t["lease"]["token"] for t in again["trials"]] == [t["lease"]["token"] for t in first["trials"]]
    server.tell(study, {"trial": "t_1", "value": 1})
    assert [t["id"] for t in server.ask(study, headers=key, count=3)["trials"]] == ["t_2", "t_3"]


def test_two_keys_of_a_project_do_not_find_each_others_leases(server: Server) -> None:
    study = server.create()
    other = server.key("study:evaluate")
    one = server.ask(study, headers={"idempotency-key": "k"})
    two = server.ask(study, headers={"idempotency-key": "k", **other})
    assert one["trials"][0]["id"] != two["trials"][0]["id"]


def test_resume_gives_the_workers_own_leases_first(server: Server) -> None:
    study = server.create()
    server.ask(study, count=2, worker="w")
    again = server.ask(study, count=3, worker="w", resume=True)["trials"]
    assert [t["id"] for t in again] == ["t_1", "t_2", "t_3"]


def test_a_heartbeat_extends_and_a_report_too(server: Server) -> None:
    study = server.create(lease={"default_seconds": 60})
    token = server.ask(study)["trials"][0]["lease"]["token"]
    server.clock.now += 50
    beat = server.http.post(f"/v1/studies/{study}/heartbeat", json={"leases": [token, "forged"], "extend_seconds": 90})
    one, two = beat.json()["leases"]
    assert one["directive"] == "continue"
    assert one["expires_at"] > "2027"
    assert two["directive"] == "abandon"
    assert two["problem"]["code"] == "lease-unknown"
    server.clock.now += 50
    report = server.http.post(f"/v1/studies/{study}/trials/t_1/reports", json={"lease": token, "step": 3, "value": 0.3})
    assert report.json()["directive"] == "continue"
    assert server.http.post(f"/v1/studies/{study}/trials/t_1/reports", json={"step": 3}).status_code == 200
    server.clock.now += 50
    assert server.ask(study)["trials"][0]["id"] == "t_2"


def test_interim_values_are_kept_with_the_trial_by_attempt_and_step(each_store: Server) -> None:
    study = each_store.create(lease={"default_seconds": 60})
    path = f"/v1/studies/{study}/trials/t_1"
    token = each_store.ask(study)["trials"][0]["lease"]["token"]
    assert each_store.http.get(path).json()["interim"] == []
    for body in ({"step": 3, "value": 0.5}, {"value": 0.25}, {"step": 3, "value": 0.4}, {"step": 9}):
        assert each_store.http.post(f"{path}/reports", json={"lease": token, **body}).status_code == 200
    kept = each_store.http.get(path).json()["interim"]
    assert [(row["attempt"], row["step"], row["value"]) for row in kept] == [(1, 3, 0.4), (1, 4, 0.25)]
    assert kept[0]["at"] == "2027-01-15T08:00:00Z"
    each_store.clock.now += 1000
    assert each_store.ask(study, worker="other")["trials"][0]["id"] == "t_1"
    gone = each_store.http.post(f"{path}/reports", json={"lease": token, "value": 0.1})
    assert gone.json()["directive"] == "abandon"
    assert each_store.http.post(f"{path}/reports", json={"value": 0.2}).json()["directive"] == "continue"
    each_store.tell(study, {"trial": "t_1", "value": 1.0})
    kept = each_store.http.get(path).json()["interim"]
    assert [(row["attempt"], row["step"]) for row in kept] == [(1, 3), (1, 4), (2, 0)]


def test_a_report_with_the_token_of_another_trial_is_refused(server: Server) -> None:
    study = server.create()
    one, two = (trial["lease"]["token"] for trial in server.ask(study, count=2)["trials"])
    path = f"/v1/studies/{study}/trials/t_1/reports"
    for token in (two, "forged"):
        assert_problem(server.http.post(path, json={"lease": token, "value": 1}), 422, "lease-unknown")
    assert server.http.post(path, json={"lease": one, "value": 1}).status_code == 200


def test_of_many_interim_values_the_newest_hundred_stay(server: Server) -> None:
    study = server.create()
    server.ask(study)
    for _ in range(103):
        server.http.post(f"/v1/studies/{study}/trials/t_1/reports", json={"value": 1})
    kept = server.http.get(f"/v1/studies/{study}/trials/t_1").json()["interim"]
    assert [row["step"] for row in kept] == list(range(3, 103))


# Empty asks and long polls --------------------------------------------------------------------------------------------


def test_an_empty_ask_says_why(server: Server) -> None:
    study = server.create(parallelism={"max_leased": 2}, budget={"evaluations": 3})
    assert server.ask(study, count=5)["reason"] == "parallelism_cap"
    assert server.ask(study)["granted"] == 0
    server.tell(study, {"trial": "t_1", "value": 1}, {"trial": "t_2", "value": 1})
    assert server.ask(study)["granted"] == 1
    empty = server.ask(study)
    assert empty["reason"] == "budget_exhausted"
    assert empty["retry_after_seconds"] > 0
    server.http.post(f"/v1/studies/{study}/pause")
    assert server.ask(study)["reason"] == "paused"
    server.http.post(f"/v1/studies/{study}/resume")
    server.tell(study, {"trial": "t_3", "value": 1})
    done = server.ask(study, wait_seconds=20)
    assert done["reason"] == "completed"
    assert done["study"]["reason"] == "budget"
    other = server.create("other")
    server.http.post(f"/v1/studies/{other}/cancel")
    assert server.ask(other)["reason"] == "cancelled"


def _in_thread(call: Any) -> tuple[threading.Thread, list[Any]]:
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(call()))
    thread.start()
    return thread, answers


@pytest.mark.parametrize("what", ["tell", "resume", "complete"])
def test_a_held_ask_wakes_at_once(server: Server, what: str) -> None:
    study = server.create(parallelism={"max_leased": 1})
    server.ask(study)
    if what == "resume":
        server.tell(study, {"trial": "t_1", "value": 1})
        server.http.post(f"/v1/studies/{study}/pause")
    thread, answers = _in_thread(lambda: server.ask(study, wait_seconds=25))
    time.sleep(0.2)
    assert not answers
    started = time.monotonic()
    if what == "tell":
        server.tell(study, {"trial": "t_1", "value": 1})
    else:
        server.http.post(f"/v1/studies/{study}/{what}")
    thread.join(5)
    assert time.monotonic() - started < 0.9  # before the poll of a second
    assert (answers[0]["reason"] == "completed") if what == "complete" else (answers[0]["granted"] == 1)


def test_a_held_ask_notices_a_lapsed_lease_by_itself(server: Server) -> None:
    study = server.create(parallelism={"max_leased": 1}, lease={"default_seconds": 60})
    server.ask(study)
    thread, answers = _in_thread(lambda: server.ask(study, wait_seconds=25))
    time.sleep(0.1)
    server.clock.now += 61
    thread.join(5)
    assert answers[0]["trials"][0]["lease"]["attempt"] == 2


def test_a_held_ask_ends_empty_after_its_time(server: Server) -> None:
    study = server.create(parallelism={"max_leased": 1})
    server.ask(study)
    started = time.monotonic()
    assert server.ask(study, wait_seconds=0.3)["granted"] == 0
    assert 0.25 < time.monotonic() - started < 2


# Study states ---------------------------------------------------------------------------------------------------------


def test_two_failing_workers_pause_the_study(server: Server) -> None:
    study = server.create(lease={"max_attempts": 100})
    server.ask(study, worker="good")
    server.tell(study, {"trial": "t_1", "value": 1}, worker="good")
    for worker in ("bad-1", "bad-2"):
        for _ in range(20):
            trial = server.ask(study, worker=worker)["trials"][0]["id"]
            server.tell(study, {"trial": trial, "status": "failed"}, worker=worker)
        assert server.ask(study, worker=worker)["reason"] in ("worker_backed_off", "paused")
    shape = server.http.get(f"/v1/studies/{study}").json()
    assert shape["state"] == "PAUSED"
    assert "bad-1, bad-2 failed 20 times in a row" in shape["reason"]
    assert server.http.post(f"/v1/studies/{study}/resume").json()["state"] == "ACTIVE"
    assert server.ask(study, worker="bad-1")["granted"] == 1


def test_a_target_and_a_deadline_complete_the_study(server: Server) -> None:
    study = server.create(target=0.5)
    server.ask(study)
    assert server.tell(study, {"trial": "t_1", "value": 0.4})["study"]["reason"] == "target"
    late = server.create("late", budget={"deadline": "2027-01-16T00:00:00Z"})
    assert server.ask(late)["granted"] == 1
    server.clock.now += 40 * 86400
    assert server.ask(late)["study"]["reason"] == "deadline"


def test_a_state_that_does_not_allow_it_is_a_conflict(server: Server) -> None:
    study = server.create()
    server.http.post(f"/v1/studies/{study}/cancel")
    assert_problem(server.http.post(f"/v1/studies/{study}/resume"), 409, "study-state")


def test_evaluators_do_not_read_the_best_value(server: Server) -> None:
    study = server.create()
    key = server.key("study:evaluate")
    server.ask(study, headers=key)
    told = server.http.post(f"/v1/studies/{study}/tell", json={"trial": "t_1", "value": 1}, headers=key).json()
    assert "best" not in told["study"]
    assert server.tell(study, ask={})["study"]["best"] == {"trial": "t_1", "value": 1.0}


def test_the_headers_of_every_answer(server: Server) -> None:
    study = server.create()
    for answer in (
        server.http.post(f"/v1/studies/{study}/ask", json={}),
        server.http.post(f"/v1/studies/{study}/ask", json={"x": 1}),
        server.http.get(f"/v1/studies/{study}"),
    ):
        assert answer.headers["x-request-id"]
        assert "algo;dur=" in answer.headers["server-timing"]
        assert "db;dur=" in answer.headers["server-timing"]
        for word in ("limit", "remaining", "reset"):
            assert answer.headers[f"ratelimit-{word}"].isdigit()

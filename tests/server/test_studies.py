"""Studies and trials as resources; reading them; limits at creation."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from blackbox import recipes, rng
from tests.server.conftest import SPACE, Server, assert_problem

THETA = {"theta": {"type": "vector", "dim": 64, "dtype": "f32"}}


def _run(server: Server, study: str, n: int, worker: str = "w") -> None:
    for _ in range(n):
        trial = server.ask(study, worker=worker)["trials"][0]
        server.tell(study, {"trial": trial["id"], "value": sum(v**2 for v in trial["params"].values())}, worker=worker)


# Creating -------------------------------------------------------------------------------------------------------------


def test_a_created_study_says_what_was_decided(server: Server) -> None:
    answer = server.http.post("/v1/studies", json={"name": "a", "space": SPACE, "budget": {"evaluations": 20}})
    shape = answer.json()
    assert answer.headers["location"] == f"/v1/studies/{shape['id']}"
    assert shape["algorithm"]["resolved"] == "cma_es"
    assert shape["algorithm"]["reason"]
    population = shape["algorithm"]["popsize"]
    assert shape["budget"]["steps_affordable"] == 20 // population
    assert bool(shape["warnings"]) == (20 // population < 5)
    assert shape["links"]["ask"] == f"/v1/studies/{shape['id']}/ask"
    assert shape["created_at"].endswith("Z")


def test_another_spec_under_the_same_name_lists_the_differences(server: Server) -> None:
    server.create("a")
    body = {"name": "a", "space": SPACE, "algorithm": {"name": "random_search"}, "start": "skip"}
    body["direction"] = "maximize"
    problem = assert_problem(server.http.post("/v1/studies", json=body), 409, "study-spec-mismatch")
    assert [fault["pointer"] for fault in problem["errors"]] == ["/direction"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"space": {}}, "invalid-space"),
        ({"space": {"x": {"type": "float", "low": 1, "high": 0}}}, "invalid-space"),
        ({"space": {"x": {"type": "float", "low": 1e-5, "high": -0.1, "scale": "log"}}}, "invalid-space"),
        ({"algorithm": {"name": "cma"}}, "unknown-algorithm"),
        ({"algorithm": {"name": "cma_es", "options": {"popsiz": 4}}}, "invalid-options"),
        ({"algorithm": {"name": "cma_es"}, "space": {"x": {"type": "vector", "dim": 10**6}}}, "too-large"),
        ({"space": {"x": {"type": "vector", "dim": 10**9}}, "algorithm": {"name": "cma_es"}}, "too-large"),
        ({"space": {"x": {"type": "vector", "dim": 10**12}}}, "invalid-space"),
        ({"budget": {"evaluations": 10**30}}, "invalid-input"),
        ({"name": ""}, "invalid-input"),
    ],
)
def test_what_cannot_work_is_refused_at_creation(server: Server, change: dict[str, Any], code: str) -> None:
    started = time.process_time()
    answer = server.http.post("/v1/studies", json={"name": "a", "space": SPACE, **change})
    assert time.process_time() - started < 1.0
    problem = assert_problem(answer, 422, code)
    if code == "too-large":
        assert "GB" in problem["detail"]
    if "popsiz" in str(change):
        assert '"popsize"' in problem["detail"]
    assert server.http.get("/v1/studies").json()["studies"] == []


def test_the_refusal_of_a_large_problem_names_a_method_that_fits(server: Server) -> None:
    body = {"name": "a", "space": {"x": {"type": "vector", "dim": 10**6}}, "algorithm": {"name": "cma_es"}}
    assert "openai_es" in assert_problem(server.http.post("/v1/studies", json=body), 422, "too-large")["hint"]


# Reading and changing -------------------------------------------------------------------------------------------------


def test_studies_are_listed_in_pages(server: Server) -> None:
    made = [server.create(f"s{i}") for i in range(5)]
    found: list[str] = []
    path = "/v1/studies?limit=2"
    while path:
        page = server.http.get(path).json()
        found += [study["id"] for study in page["studies"]]
        path = page["next"]
    assert sorted(found) == sorted(made)


def test_etags_save_the_body_and_guard_changes(server: Server) -> None:
    study = server.create(budget={"evaluations": 5})
    path = f"/v1/studies/{study}"
    etag = server.http.get(path).headers["etag"]
    assert server.http.get(path, headers={"if-none-match": etag}).status_code == 304
    _run(server, study, 1)
    assert server.http.get(path, headers={"if-none-match": etag}).status_code == 200
    changed = server.http.patch(path, json={"budget": {"evaluations": 9}}, headers={"if-match": etag})
    assert changed.json()["budget"]["evaluations"] == 9
    stale = server.http.patch(path, json={"labels": {"a": "b"}}, headers={"if-match": etag})
    assert_problem(stale, 412, "precondition-failed")
    assert_problem(server.http.patch(path, json={"seed": "1"}), 422, "invalid-input")
    best = server.http.get(f"{path}/best").headers["etag"]
    assert server.http.get(f"{path}/best", headers={"if-none-match": best}).status_code == 304


def test_a_larger_budget_goes_on_with_a_completed_study(server: Server) -> None:
    study = server.create(budget={"evaluations": 2})
    _run(server, study, 2)
    assert server.ask(study)["reason"] == "completed"
    server.http.patch(f"/v1/studies/{study}", json={"budget": {"evaluations": 4}})
    assert server.ask(study)["granted"] == 1


def test_a_deleted_study_is_gone(each_store: Server) -> None:
    server = each_store
    study = server.create("a")
    assert server.http.delete(f"/v1/studies/{study}").status_code == 204
    assert_problem(server.http.get(f"/v1/studies/{study}"), 404, "study-not-found")
    assert_problem(server.http.post(f"/v1/studies/{study}/ask", json={}), 404, "study-not-found")
    assert server.create("a") != study


def test_trials_are_paged_filtered_cancelled_and_run_again(each_store: Server) -> None:
    server = each_store
    study = server.create()
    server.ask(study, count=5)
    server.tell(study, {"trial": "t_1", "value": 1})
    path = f"/v1/studies/{study}/trials"
    page = server.http.get(f"{path}?limit=2").json()
    assert [t["id"] for t in page["trials"]] == ["t_1", "t_2"]
    assert set(page["trials"][0]["params"]) == {"x", "y"}
    assert [t["id"] for t in server.http.get(page["next"]).json()["trials"]] == ["t_3", "t_4"]
    assert len(server.http.get(f"{path}?state=LEASED").json()["trials"]) == 4
    assert server.http.post(f"{path}/t_2/cancel").json()["state"] == "CANCELLED"
    assert server.http.post(f"{path}/2/requeue").json()["state"] == "QUEUED"
    assert server.ask(study)["trials"][0]["id"] == "t_2"
    assert_problem(server.http.post(f"{path}/t_1/cancel"), 409, "study-state")
    assert_problem(server.http.post(f"{path}/t_1/requeue"), 409, "study-state")


def test_the_k_best_points_come_with_what_is_known_of_their_values(each_store: Server) -> None:
    study = each_store.create(algorithm="random_search", direction="maximize")
    for value in (1.0, 3.0, 2.0):
        trial = each_store.ask(study)["trials"][0]
        each_store.tell(study, {"trial": trial["id"], "value": value, "stderr": 0.1})
    each_store.tell(study, {"trial": "t_2", "value": 1.0})
    answer = each_store.http.get(f"/v1/studies/{study}/best", params={"k": 2}).json()
    assert [(item["id"], item["estimate"]) for item in answer["items"]] == [
        ("t_2", {"mean": 2.0, "n": 2, "stderr": 1.0}),
        ("t_3", {"mean": 2.0, "n": 1, "stderr": 0.1}),
    ]
    assert "t_3 is the one to trust" in answer["note"]
    assert "the largest of many" in each_store.http.get(f"/v1/studies/{study}/best").json()["note"]


def test_an_edited_study_is_still_found_by_the_script_that_created_it(server: Server) -> None:
    spec = {"name": "edited", "space": SPACE}
    study = server.http.post("/v1/studies", json=spec).json()["id"]
    server.http.patch(f"/v1/studies/{study}", json={"budget": {"evaluations": 7}})
    again = server.http.post("/v1/studies", json=spec)
    assert (again.status_code, again.json()["id"]) == (200, study)
    assert again.json()["budget"]["evaluations"] == 7


def test_lease_defaults_and_parallelism_may_be_edited(server: Server) -> None:
    study = server.create()
    path = f"/v1/studies/{study}"
    edited = server.http.patch(path, json={"lease": {"default_seconds": 90}, "parallelism": {"max_leased": 1}}).json()
    assert (edited["lease"]["default_seconds"], edited["parallelism"]["max_leased"]) == (90.0, 1)
    lease = server.ask(study)["trials"][0]["lease"]
    assert lease["heartbeat_seconds"] == 30.0
    assert server.ask(study)["reason"] == "parallelism_cap"
    for bad in ({"lease": {"default_seconds": 0}}, {"lease": {"seconds": 1}}, {"parallelism": {"max_leased": "many"}}):
        assert_problem(server.http.patch(path, json=bad), 422, "invalid-input")


def test_a_result_taken_back_is_no_longer_the_best(each_store: Server) -> None:
    server = each_store
    study = server.create()
    server.ask(study, count=3)
    server.tell(study, *({"trial": f"t_{i}", "value": i} for i in (1, 2, 3)))
    taken = server.http.post(f"/v1/studies/{study}/trials/t_1/invalidate").json()
    assert taken == {"trial": "t_1", "invalidated": 1, "epoch": 1}
    assert server.http.get(f"/v1/studies/{study}/best").json()["items"][0]["id"] == "t_2"


def test_quarantine_takes_back_all_results_of_a_worker(server: Server) -> None:
    one, two = server.create("one"), server.create("two")
    _run(server, one, 3, "good")
    _run(server, one, 2, "bad")
    _run(server, two, 1, "bad")
    answer = server.http.post("/v1/workers/bad/quarantine").json()
    assert answer == {"worker": "bad", "invalidated": {one: 2, two: 1}, "skipped": {}}


def test_enqueued_points_come_first(server: Server) -> None:
    study = server.create()
    body = {"trials": [{"params": {"x": 1.0, "y": 2.0}}]}
    assert server.http.post(f"/v1/studies/{study}/trials", json=body).json()["trials"][0]["state"] == "QUEUED"
    assert server.ask(study)["trials"][0]["params"] == {"x": 1.0, "y": 2.0}
    bad = server.http.post(f"/v1/studies/{study}/trials", json={"trials": [{"params": {"x": 1.0, "y": 99}}]})
    assert assert_problem(bad, 422, "invalid-space")["errors"][0]["pointer"].endswith("/params/y")


def test_a_fork_shares_the_past(each_store: Server) -> None:
    server = each_store
    study = server.create(algorithm={"name": "cma_es", "options": {"popsize": 4}})
    _run(server, study, 8)
    fork = server.http.post(f"/v1/studies/{study}/fork", json={"name": "branch", "step": 1})
    assert fork.status_code == 201
    shape = fork.json()
    assert shape["parent"] == study
    assert shape["step"] == 1
    assert fork.headers["location"] == shape["links"]["self"]
    assert server.ask(shape["id"])["granted"] == 1
    other = server.http.post(f"/v1/studies/{study}/fork", json={"algorithm": "random_search"}).json()
    assert other["algorithm"]["resolved"] == "random_search"
    assert other["best"]["value"] == server.http.get(f"/v1/studies/{study}").json()["best"]["value"]
    assert_problem(server.http.post(f"/v1/studies/{study}/fork", json={"name": "branch"}), 409, "study-spec-mismatch")


def test_a_snapshot_on_request(each_store: Server) -> None:
    study = each_store.create(algorithm={"name": "cma_es", "options": {"popsize": 4}})
    _run(each_store, study, 4)
    answer = each_store.http.post(f"/v1/studies/{study}/snapshots")
    assert answer.status_code == 201
    assert answer.json()["step"] == 1


# The log --------------------------------------------------------------------------------------------------------------


def test_events_are_the_log_in_order_without_gaps(each_store: Server) -> None:
    server = each_store
    study = server.create(algorithm={"name": "cma_es", "options": {"popsize": 4}})
    _run(server, study, 9)
    server.http.post(f"/v1/studies/{study}/pause", json={"reason": "lunch"})
    seen: list[dict[str, Any]] = []
    after = "0"
    while page := server.http.get(f"/v1/studies/{study}/events?after={after}&limit=4").json():
        if not page["events"]:
            break
        seen += page["events"]
        after = page["next_after"]
    assert [int(e["seq"]) for e in seen] == list(range(1, len(seen) + 1))
    assert sum(e["type"] == "trial.completed" for e in seen) == 9
    assert sum(e["type"] == "step.closed" for e in seen) == 2
    assert seen[-1]["data"] == {"reason": "lunch"}
    only = server.http.get(f"/v1/studies/{study}/events?types=study.paused,study.created&limit=3").json()
    assert [e["type"] for e in only["events"]] == ["study.created"]
    only = server.http.get(f"/v1/studies/{study}/events?types=study.paused&limit=3").json()
    assert [e["type"] for e in only["events"]] == ["study.paused"]


def test_a_held_read_of_events_wakes_on_a_tell(server: Server) -> None:
    import threading

    study = server.create()
    server.ask(study)
    answers: list[Any] = []
    path = f"/v1/studies/{study}/events?after=1&wait_seconds=20&types=trial.completed"
    thread = threading.Thread(target=lambda: answers.append(server.http.get(path).json()))
    thread.start()
    time.sleep(0.2)
    started = time.monotonic()
    server.tell(study, {"trial": "t_1", "value": 1})
    thread.join(5)
    assert time.monotonic() - started < 0.9
    assert answers[0]["events"][0]["data"]["trial"] == "t_1"


def test_the_export_is_the_whole_history(each_store: Server) -> None:
    server = each_store
    study = server.create()
    _run(server, study, 12)
    answer = server.http.get(f"/v1/studies/{study}/export")
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert lines[0]["type"] == "study"
    trials = [line["data"] for line in lines if line["type"] == "trial.completed"]
    assert len(trials) == 12
    assert all(t["value"] == pytest.approx(sum(v**2 for v in t["params"].values())) for t in trials)
    rest = server.http.get(f"/v1/studies/{study}/export?after_seq=5").text.splitlines()
    assert json.loads(rest[1])["seq"] == "6"


def test_the_export_has_trials_that_were_given_up_before_their_value_came(each_store: Server) -> None:
    server = each_store
    lease = {"default_seconds": 1.0, "max_lost": 0}
    study = server.create(lease=lease, algorithm="random_search")
    (trial,) = server.ask(study)["trials"]
    server.clock.now += 5.0
    server.ask(study)
    server.tell(study, {"trial": trial["id"], "lease": trial["lease"]["token"], "value": 0.5})
    types = [json.loads(line)["type"] for line in server.http.get(f"/v1/studies/{study}/export").text.splitlines()]
    assert "trial.completed" in types
    assert len(types) > 2


def test_the_brief_is_short_and_ends_with_the_next_command(server: Server) -> None:
    study = server.create("n" * 200, labels={"a": "b"})
    path = f"/v1/studies/{study}/brief"
    assert (
        server.http.get(path)
        .text.rstrip()
        .splitlines()[-1]
        .startswith(f"next: curl -s http://testserver/v1/studies/{study}/ask")
    )
    _run(server, study, 9)
    text = server.http.get(path).text
    assert "best: " in text
    server.http.post(f"/v1/studies/{study}/pause", json={"reason": "r" * 500})
    text = server.http.get(path).text
    assert len(text.encode()) <= 2048
    assert (
        text.rstrip().splitlines()[-1] == f'next: curl -s -X POST http://testserver/v1/studies/{study}/resume -H "$A"'
    )
    server.http.post(f"/v1/studies/{study}/complete")
    assert "/best?view=recommended" in server.http.get(path).text.splitlines()[-1]


def test_the_recommendation_is_the_best_point_told_and_under_noise_the_best_estimate(server: Server) -> None:
    study = server.create(algorithm={"name": "cma_es", "options": {"popsize": 6}})
    at = f"/v1/studies/{study}/best"
    _run(server, study, 30)
    (observed,) = server.http.get(at).json()["items"]
    answer = server.http.get(f"{at}?view=recommended").json()
    (item,) = answer["items"]
    assert answer["view"] == "recommended"
    assert (item["id"], item["value"], item["estimate"]) == (observed["id"], observed["value"], None)
    assert "recommended:" not in server.http.get(f"/v1/studies/{study}/brief").text
    (proposed,) = server.http.get(f"{at}?view=proposed").json()["items"]
    assert (set(proposed["params"]), proposed["id"], proposed["value"]) == ({"x", "y"}, None, None)

    noisy = server.create("noisy", algorithm={"name": "cma_es", "options": {"popsize": 6}}, noise="present")
    _run(server, noisy, 30)
    answer = server.http.get(f"/v1/studies/{noisy}/best?view=recommended").json()
    estimate = answer["items"][0]["estimate"]
    assert (estimate["n"], answer["items"][0]["value"]) == (30, None)
    assert estimate["stderr"] >= 0
    assert "30 noisy values" in answer["note"]
    assert "recommended: " in server.http.get(f"/v1/studies/{noisy}/brief").text
    assert_problem(server.http.get(f"/v1/studies/{study}/best?view=nicest"), 422, "invalid-input")


# Recipes --------------------------------------------------------------------------------------------------------------


def _theta(server: Server, dim: int = 64) -> str:
    space = {"theta": {**THETA["theta"], "dim": dim}}
    return server.create("big", space=space, algorithm={"name": "openai_es", "options": {}})


def test_a_seed_encoded_trial_rebuilds_to_the_values(each_store: Server) -> None:
    server = each_store
    study = _theta(server)
    for _ in range(2):
        trials = server.ask(study, count=8, encoding="seed")["trials"]
        for trial in trials:
            assert trial["encoding"] == "seed/1"
            assert "params" not in trial
            base = trial["base"]
            blobs = {}
            if base is not None:
                assert base["version"] == trial["step"]
                content = server.http.get(base["href"]).content
                vector = np.frombuffer(content, dtype="<f4")
                assert recipes.digest(vector) == base["sha256"]
                blobs = {base["sha256"]: vector}
            recipe = recipes.from_json({"base": base and base["sha256"], "ops": trial["ops"]})
            key = rng.Key.from_hex(trial["key"]) if hasattr(rng.Key, "from_hex") else None
            stored = server.http.get(f"/v1/studies/{study}/trials/{trial['id']}").json()["params"]["theta"]
            index, value = trial["check"]["index"], trial["check"]["value"]
            assert np.allclose(np.array(stored)[index], value, rtol=1e-6)
            if key is not None:
                assert np.array_equal(recipes.materialise(recipe, key, 64, blobs), np.float32(stored))
        population = server.http.get(f"/v1/studies/{study}").json()["algorithm"]["popsize"] or 8
        left = server.ask(study, count=population)["trials"]
        told = [{"trial": t["id"], "value": float(t["number"])} for t in [*trials, *left]]
        assert server.tell(study, *told)["study"]["step"] >= 1


def test_values_of_a_recipe_study_are_numbers(server: Server) -> None:
    study = _theta(server)
    trial = server.ask(study)["trials"][0]
    assert len(trial["params"]["theta"]) == 64


def test_seeds_are_refused_where_the_method_has_none(server: Server) -> None:
    study = server.create()
    answer = server.http.post(f"/v1/studies/{study}/ask", json={"encoding": "seed"})
    problem = assert_problem(answer, 422, "invalid-input")
    assert problem["errors"][0]["pointer"] == "/encoding"
    assert "values" in problem["hint"]


def test_too_many_numbers_at_once_are_refused(serve: Callable[..., Server]) -> None:
    server = serve(max_values_bytes=64 * 8 * 4)
    study = _theta(server)
    assert server.ask(study, count=4)["granted"] == 4
    problem = assert_problem(server.http.post(f"/v1/studies/{study}/ask", json={"count": 5}), 422, "too-large")
    assert "at most 4" in problem["hint"]
    assert server.ask(study, count=5, encoding="seed")["granted"] == 5


def test_a_base_is_immutable_and_can_be_read_in_parts(server: Server) -> None:
    study = _theta(server)
    base = server.ask(study, encoding="seed")["trials"][0]["base"]
    if base is None:
        pytest.skip("the method starts at the zero vector")
    whole = server.http.get(base["href"])
    assert whole.headers["content-type"] == "application/octet-stream"
    assert "immutable" in whole.headers["cache-control"]
    assert len(whole.content) == 256
    assert server.http.get(base["href"], headers={"if-none-match": whole.headers["etag"]}).status_code == 304
    part = server.http.get(base["href"], headers={"range": "bytes=4-7"})
    assert part.status_code == 206
    assert part.content == whole.content[4:8]
    assert part.headers["content-range"] == "bytes 4-7/256"
    assert server.http.get(base["href"], headers={"range": "bytes=-8"}).content == whole.content[-8:]
    assert server.http.get(base["href"], headers={"range": "bytes=250-"}).content == whole.content[250:]
    refused = server.http.get(base["href"], headers={"range": "bytes=256-"})
    assert_problem(refused, 416, "range-not-satisfiable")
    by_name = server.http.get(f"/v1/studies/{study}/bases/{base['sha256']}")
    assert by_name.content == whole.content


def test_a_lease_without_an_end_is_refused_and_those_stored_before_can_be_read(server: Server) -> None:
    spec = {"name": "forever", "space": SPACE, "lease": {"default_seconds": 1e12, "max_seconds": 1e12}}
    refused = server.http.post("/v1/studies", json=spec)
    assert refused.status_code == 422
    assert {e["pointer"] for e in refused.json()["errors"]} == {"/lease/default_seconds", "/lease/max_seconds"}
    study = server.create(lease={"default_seconds": 1e9, "max_seconds": 1e9})
    assert server.http.patch(f"/v1/studies/{study}", json={"lease": {"max_seconds": 2e9}}).status_code == 422

    def before(tx: Any) -> None:
        head = tx.head(study)
        resolved = head.resolved.replace("1000000000.0", "1e12")
        assert resolved != head.resolved
        tx.put_head(replace(head, resolved=resolved))

    server.store.write(before)
    lease = server.ask(study)["trials"][0]["lease"]
    assert lease["expires_at"].startswith("2058")
    server.store.write(lambda tx: tx.put_trial(replace(tx.trial(study, 1), until=1e12)))  # as granted before
    for path in ("", "/trials", "/trials/1"):
        assert server.http.get(f"/v1/studies/{study}{path}").status_code == 200

"""The client against the application, and against a scripted server where something on the way has to fail."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blackbox_client import Client, RetryPolicy, completed, errors, recipes

from tests.client.conftest import RealServer

SPACE = {"x": {"type": "float", "low": -5, "high": 5}}
QUICK = RetryPolicy(base_seconds=0.001, max_seconds=0.005, give_up_seconds=1.0)
PATH = "/v1/studies/st_1"


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    with Client(server.url, "zok_test", retry=QUICK) as connected:
        yield connected


def test_a_study_is_created_asked_and_told(real: RealServer) -> None:
    client = real.client()
    study = client.create_study(name="demo", direction="minimize", space=SPACE, algorithm="random_search", budget=50)
    assert (study.info.name, study.info.budget.evaluations, study.info.algorithm.resolved) == (
        "demo",
        50,
        "random_search",
    )
    (asked,) = study.ask(worker="w", wait_seconds=0.01).trials
    told = study.tell(asked, np.float64(asked.params["x"]) ** 2)
    assert told.outcome.outcome == "applied"
    (request,) = real.requests("POST", f"/v1/studies/{study.id}/tell")
    assert asked.lease is not None
    assert request.json == {
        "results": [{"trial": asked.id, "lease": asked.lease.token, "value": asked.params["x"] ** 2}]
    }
    assert request.headers["authorization"] == f"Bearer {real.key}"
    assert study.trial(asked).value == asked.params["x"] ** 2


def test_what_a_study_is_created_with_is_what_it_says(real: RealServer) -> None:
    study = real.client().create_study(
        name="all",
        space=SPACE,
        direction="maximize",
        algorithm={"name": "cma_es", "options": {"popsize": 6}},
        budget={"evaluations": 60, "max_cost": 2.5, "deadline": datetime(2030, 1, 1, tzinfo=UTC)},
        target=3.5,
        lease={"default_seconds": 60.0, "max_seconds": 600.0, "max_attempts": 2, "max_lost": 1},
        parallelism=7,
        seed=2**63,
        non_finite="infeasible",
        require_lease=True,
        labels={"team": "a"},
    )
    info = study.refresh()
    assert (info.direction, info.target, info.seed, info.non_finite) == ("maximize", 3.5, str(2**63), "infeasible")
    assert (info.algorithm.requested, info.algorithm.options["popsize"]) == ("cma_es", 6)
    assert (info.budget.evaluations, info.budget.max_cost, info.budget.deadline) == (
        *(60, 2.5, datetime(2030, 1, 1, tzinfo=UTC)),
    )
    lease = info.lease
    assert (lease.default_seconds, lease.max_seconds, lease.max_attempts, lease.max_lost) == (60.0, 600.0, 2, 1)
    assert (info.parallelism.max_leased, info.require_lease, info.labels) == (7, True, {"team": "a"})
    (trial,) = study.ask().trials
    told = study.tell(completed(trial.id, 4.0))
    assert told.rejected, "the lease is required, and an id alone does not carry it"
    assert study.tell(completed(trial, 4.0)).study.state == "COMPLETED", "the target is reached"


def test_a_worker_that_made_its_results_up_is_quarantined(real: RealServer) -> None:
    client = real.client()
    study = client.create_study(name="demo", space=SPACE, algorithm="random_search")
    for worker in ("mallory", "alice", "mallory"):
        study.tell(study.ask(worker=worker).trials[0], 0.5, worker=worker)
    assert client.quarantine("mallory", reason="made up").invalidated == {study.id: 2}
    assert [trial.invalid for trial in study.trials()] == [True, False, True]


def test_a_code_is_explained(real: RealServer) -> None:
    client = real.client()
    with pytest.raises(errors.NotFound) as caught:
        client.study("st_nothing").refresh()
    about = client.explain(caught.value.code)
    assert (about.code, about.status, about.retryable) == (caught.value.code, 404, caught.value.retryable)
    assert about.hint


def test_a_value_that_is_not_finite_never_leaves_the_client(server: Any, client: Client) -> None:
    with pytest.raises(errors.NonFiniteValue, match=r"results\[0\]\.value is NaN"):
        client.study("st_1").tell(1, float("nan"))
    assert not server.received


def test_a_call_is_repeated_through_outages_with_the_same_key_and_body(
    server: Any, client: Client, answer: Any
) -> None:
    said = {"applied": 1, "results": [{"trial": "t_1", "outcome": "applied"}]}
    server.on(
        "POST",
        f"{PATH}/tell",
        answer(cut=0),
        answer({"detail": "busy"}, 503, {"Retry-After": "0.01"}),
        answer("<html>bad gateway", 502),
        answer(said, cut=5),
        answer({"detail": "boom"}, 500),
        answer({"type": "/problems/idempotency-in-progress"}, 409),
        said,
    )
    assert client.study("st_1").tell(completed(1, 0.5)).applied == 1
    requests = server.requests("POST", f"{PATH}/tell")
    assert len(requests) == 7
    assert len({(request.headers["idempotency-key"], request.raw) for request in requests}) == 1


def test_a_server_error_is_repeated_three_times_and_then_raised_with_its_request_id(
    server: Any, client: Client, answer: Any
) -> None:
    server.on("GET", "/v1", answer({"detail": "boom"}, 500))
    with pytest.raises(errors.ServerError, match="request id: req-1"):
        client.service()
    assert len(server.requests("GET", "/v1")) == 4


def test_a_refusal_is_raised_at_once(real: RealServer) -> None:
    client = real.client()
    client.create_study(name="demo", space=SPACE)
    with pytest.raises(errors.StudySpecMismatch) as caught:
        client.create_study(name="demo", space=SPACE, seed=7)
    assert [field.pointer for field in caught.value.diff] == ["/seed"]
    with pytest.raises(errors.InvalidRequest, match="low"):
        client.create_study(name="another", space={"x": {"type": "float", "low": 5, "high": -5}})
    assert len(real.exchanged) == 3


def test_an_absent_server_is_given_up_after_the_patience_is_over() -> None:
    quick = RetryPolicy(base_seconds=0.001, give_up_seconds=0.02)
    with Client("http://127.0.0.1:9", retry=quick) as client, pytest.raises(errors.ConnectionFailed, match="ConnectE"):
        client.service()


def test_address_and_key_come_from_the_environment_and_the_key_is_not_shown(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLACKBOX_URL", server.url + "/v1/")
    monkeypatch.setenv("BLACKBOX_KEY", "zok_env")
    server.on("GET", "/v1", {"name": "blackbox"})
    with Client() as client:
        assert client.service().name == "blackbox"
        assert "zok_env" not in repr(client)
    assert server.received[0].headers["authorization"] == "Bearer zok_env"


def test_a_key_can_come_from_a_file_and_one_that_is_given_goes_first(
    server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("BLACKBOX_KEY", raising=False)
    monkeypatch.setenv("BLACKBOX_KEY_FILE", str(tmp_path / "key"))
    with pytest.raises(ValueError, match=r"BLACKBOX_KEY_FILE .*No such file"):
        Client(server.url)
    (tmp_path / "key").write_text("zok_file\n")
    server.on("GET", "/v1", {"name": "blackbox"}, {"name": "blackbox"}, {"name": "blackbox"})
    with Client(server.url) as client:
        client.service()
    with Client(server.url, "zok_given") as client:
        client.service()
    monkeypatch.setenv("BLACKBOX_KEY", "zok_env")
    with Client(server.url) as client:
        client.service()
    sent = [request.headers["authorization"] for request in server.received]
    assert sent == ["Bearer zok_file", "Bearer zok_given", "Bearer zok_env"]


def test_an_address_without_scheme_is_refused_with_an_example() -> None:
    with pytest.raises(ValueError, match="http://host:port"):
        Client("localhost:8800")


def test_trials_are_read_page_by_page(real: RealServer) -> None:
    study = real.client().create_study(name="demo", space=SPACE, algorithm="random_search")
    numbers = [trial.number for trial in study.ask(5).trials]
    assert [trial.number for trial in study.trials(limit=2)] == numbers
    assert [trial.number for trial in study.trials(state="COMPLETED")] == []
    pages = real.requests("GET", f"/v1/studies/{study.id}/trials")
    assert [request.query.get("cursor") for request in pages] == [None, str(numbers[1]), str(numbers[3]), None]


def test_points_are_queued_and_an_import_that_is_rejected_says_why(real: RealServer) -> None:
    study = real.client().create_study(name="demo", space=SPACE, algorithm="random_search", start="skip")
    (queued,) = study.enqueue([{"params": {"x": np.float64(1.0)}}])
    (imported,) = study.enqueue([{"params": {"x": 2.0}, "value": 0.25, "source": "a file", "info": {"line": 7}}])
    assert (study.ask().trials[0].number, study.trial(imported).source) == (queued.number, "a file")
    with pytest.raises(errors.InvalidRequest, match="x"):
        study.enqueue([{"params": {}, "value": 0.5}])
    assert study.best().value == 0.25


def test_events_are_read_until_there_are_no_more(real: RealServer) -> None:
    study = real.client().create_study(name="demo", space=SPACE, algorithm="random_search")
    for trial in study.ask(3).trials:
        study.tell(trial, 0.5)
    study.pause(reason="lunch")
    told = list(study.events(types=["trial.completed"]))
    assert [event.data["value"] for event in told] == [0.5] * 3
    assert [event.seq for event in study.events()] == list(range(1, study.refresh().seq + 1))


def test_sequence_numbers_may_exceed_what_a_double_holds(server: Any, client: Client) -> None:
    nothing_of_this_type = {"events": [], "next_after": "100"}
    first = {"events": [{"seq": "9007199254740993", "type": "best.improved"}], "next_after": "9007199254740993"}
    last = {"events": [], "next_after": "9007199254740993"}
    server.on("GET", f"{PATH}/events", nothing_of_this_type, first, last)
    assert [event.seq for event in client.study("st_1").events(types=["best.improved"])] == [2**53 + 1]
    assert [request.query["after"] for request in server.received] == ["0", "100", "9007199254740993"]


def test_followed_events_keep_coming_over_quiet_times(server: Any, client: Client) -> None:
    def page(seq: int) -> dict[str, Any]:
        return {"events": [{"seq": str(seq), "type": "x"}], "next_after": str(seq)}

    server.on("GET", f"{PATH}/events", page(1), {"events": [], "next_after": "1"}, page(2))
    events = client.study("st_1").events(follow=True, wait_seconds=0.01)
    assert [next(events).seq, next(events).seq] == [1, 2]


def test_history_goes_on_after_the_last_row_when_the_connection_breaks(
    server: Any, client: Client, answer: Any
) -> None:
    def rows(*seqs: int) -> str:
        return '{"type":"study"}\n' + "".join(json.dumps({"seq": str(seq)}) + "\n" for seq in seqs)

    server.on("GET", f"{PATH}/export", answer(rows(1, 2, 3), cut=len(rows(1, 2)) + 4), rows(3, 4))
    assert [row.get("seq") for row in client.study("st_1").history()] == [None, "1", "2", "3", "4"]
    assert [request.query.get("after_seq") for request in server.received] == [None, "2"]


def test_an_export_may_be_compressed(server: Any, client: Client, answer: Any) -> None:
    body = gzip.compress(b'{"type":"study"}\n{"seq":"1"}\n')
    server.on("GET", f"{PATH}/export", answer(body, headers={"Content-Encoding": "gzip"}))
    assert list(client.study("st_1").export("ndjson")) == ['{"type":"study"}', '{"seq":"1"}']
    assert server.received[0].query["format"] == "ndjson"


def test_an_export_that_is_refused_says_why(real: RealServer) -> None:
    with pytest.raises(errors.NotFound, match="st_nothing"):
        list(real.client().study("st_nothing").export())


def test_an_export_has_the_whole_history(real: RealServer) -> None:
    study = real.client().create_study(name="demo", space=SPACE, algorithm="random_search")
    trials = study.ask(3).trials
    study.tell([completed(trial, float(trial.params["x"])) for trial in trials])
    rows = [row for row in study.history() if row["type"] == "trial.completed"]
    assert [row["data"]["params"] for row in rows] == [trial.params for trial in trials]
    rest = [json.loads(line) for line in study.export("ndjson", after_seq=int(rows[1]["seq"]))]
    assert [row.get("seq") for row in rest] == [None, rows[2]["seq"]], "the study, then what came after"


def test_the_state_of_a_study_is_changed_and_remembered(real: RealServer) -> None:
    study = real.client().create_study(name="demo", space=SPACE)
    assert study.pause(reason="lunch").reason == "lunch"
    assert study.ask().reason == "paused"
    assert study.resume().state == study.info.state == "ACTIVE"
    assert study.fork(name="another").cancel().state == "CANCELLED"
    assert study.complete().state == study.info.state == "COMPLETED"
    assert study.info.ended
    study.delete()
    with pytest.raises(errors.NotFound):
        study.refresh()


def test_a_study_is_changed_unless_somebody_else_did_so_meanwhile(real: RealServer) -> None:
    study = real.client().create_study(name="demo", space=SPACE, budget=50)
    seen = study.refresh().etag
    changed = study.update(
        budget=60, lease={"default_seconds": 30.0}, parallelism=4, labels={"team": "b"}, if_match=seen
    )
    assert (changed.budget.evaluations, changed.lease.default_seconds, changed.parallelism.max_leased) == (60, 30.0, 4)
    assert changed.labels == {"team": "b"}
    with pytest.raises(errors.PreconditionFailed):
        study.update(budget=70, if_match=seen)
    assert study.refresh().budget.evaluations == 60


def test_a_fork_is_a_study_of_its_own(real: RealServer) -> None:
    study = real.client().create_study(name="demo", space=SPACE, algorithm="random_search")
    branch = study.fork(0, name="branch", algorithm="cma_es")
    assert branch.id != study.id
    assert (branch.info.name, branch.info.algorithm.resolved) == ("branch", "cma_es")
    assert (branch.info.parent or "").startswith(study.id)


def test_best_and_brief_are_read(real: RealServer) -> None:
    study = real.client().create_study(name="demo", space=SPACE, algorithm="random_search")
    assert (study.best().params, study.best().value) == ({}, None)
    first, second = study.ask(2).trials
    study.tell([completed(first, 0.5), completed(second, 0.7)])
    best = study.best()
    assert (best.params, best.value, best.items[0].id) == (first.params, 0.5, first.id)
    assert best.items[0].trial is not None
    assert best.items[0].trial.state == "COMPLETED"
    assert [item.estimate and item.estimate.mean for item in study.best(2).items] == [0.5, 0.7]
    assert study.best(view="recommended").items[0].trial is None
    assert "best: 0.5" in study.brief()


def test_a_trial_is_taken_back_requeued_cancelled_and_reported(real: RealServer) -> None:
    study = real.client().create_study(name="demo", space=SPACE, algorithm="random_search")
    first, second = study.ask(2).trials
    report = study.report(first, 3, 0.31)
    assert report.directive == "continue"
    assert report.lease_expires_at is not None
    assert [(interim.step, interim.value) for interim in study.trial(first).interim] == [(3, 0.31)]
    assert study.cancel_trial(first, reason="not that one").state == "CANCELLED"
    assert study.report(first, 4, 0.3).directive == "abandon"
    assert study.requeue(first.id).state == "QUEUED"
    study.tell(second, 0.5)
    taken_back = study.invalidate(second, reason="wrong units")
    assert (taken_back.trial, taken_back.invalidated) == (second.id, 1)
    assert study.trial(second.number).invalid
    told, forged = study.heartbeat([study.ask().trials[0], "7.1.forged"], extend_seconds=90.0).leases
    assert (told.directive, forged.directive) == ("continue", "abandon")
    assert isinstance(forged.problem, errors.LeaseUnknown)


# ---- seed-encoded trials

VECTOR = np.arange(3, dtype=np.float32)


def test_seed_encoded_trials_are_rebuilt_and_their_base_fetched_once(real: RealServer) -> None:
    client = real.client()
    study = client.create_study(
        name="recipes",
        space={"weights": {"type": "vector", "dim": 5, "init": 0.5}},
        algorithm={"name": "openai_es", "options": {"popsize": 4}},
    )
    key = "once more"
    by_recipe = study.ask(4, encoding="seed", idempotency_key=key).trials
    by_numbers = study.ask(4, idempotency_key=key).trials  # the same leases
    for recipe, numbers in zip(by_recipe, by_numbers, strict=True):
        assert list(study.arguments(recipe)) == ["weights"]
        np.testing.assert_array_equal(study.materialise(recipe), np.float32(numbers.params["weights"]))
    with pytest.raises(ValueError, match='ask with encoding="seed"'):
        study.materialise(by_numbers[0])
    fetched = [each.path for each in real.exchanged if "/bases/" in each.path]
    assert len(fetched) == len(set(fetched)) == 1
    evaluator = real.client(client.create_key(["study:evaluate"]).secret).study(study.id)
    assert list(evaluator.arguments(by_recipe[0])) == ["theta"], "this key may not read what the vector is called"


def test_a_base_that_is_not_the_promised_one_is_fetched_again_and_then_refused(
    server: Any, client: Client, answer: Any
) -> None:
    wanted = recipes.Blob.of(VECTOR).sha256
    server.on("GET", f"{PATH}/bases/412", answer(bytes(12)), answer(VECTOR.tobytes()))
    np.testing.assert_array_equal(client.study("st_1").base(412, sha256=wanted).vector, VECTOR)
    server.on("GET", f"{PATH}/bases/413", answer(bytes(12)), answer(bytes(11)))
    with pytest.raises(errors.BaseMismatch, match="no whole number"):
        client.study("st_1").base(413, sha256=recipes.Blob.of(VECTOR + 1).sha256)
    client.study("st_1").base(414, sha256=wanted)  # another step with the same base
    assert not server.requests("GET", f"{PATH}/bases/414")


def test_only_the_few_bases_used_last_are_kept(server: Any, client: Client, answer: Any) -> None:
    study = client.study("st_1")
    for version in range(5):
        server.on("GET", f"{PATH}/bases/{version}", answer(np.array([version], dtype="<f4").tobytes()))
        study.base(version)
    study.base(4)
    study.base(0)
    asked = [request.path.rsplit("/", 1)[-1] for request in server.received]
    assert asked == ["0", "1", "2", "3", "4", "0"]

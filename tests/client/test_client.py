"""The client against a scripted server on loopback."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blackbox_client import Client, RetryPolicy, completed, errors, recipes

STUDY = {"id": "st_1", "name": "demo", "state": "ACTIVE", "budget": {"evaluations": 50, "used": 0}}
QUICK = RetryPolicy(base_seconds=0.001, max_seconds=0.005, give_up_seconds=1.0)
PATH = "/v1/studies/st_1"


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    with Client(server.url, "zok_test", retry=QUICK) as connected:
        yield connected


def test_a_study_is_created_asked_and_told(server: Any, client: Client, answer: Any) -> None:
    trial = {"id": "t_1", "params": {"x": 2.0}, "lease": {"token": "1.1.aa"}}
    server.on("POST", "/v1/studies", answer(STUDY, 201, {"ETag": '"1"'}))
    server.on("POST", f"{PATH}/ask", {"trials": [trial], "granted": 1, "study": {"state": "ACTIVE"}})
    server.on("POST", f"{PATH}/tell", {"applied": 1, "results": [{"trial": "t_1", "outcome": "applied"}]})
    study = client.create_study(name="demo", direction="minimize", space={"x": {"type": "float"}}, budget=50)
    assert (study.id, study.info.budget.evaluations, study.info.etag) == ("st_1", 50, '"1"')
    (asked,) = study.ask(worker="w", wait_seconds=0.01).trials
    told = study.tell(asked, np.float64(asked.params["x"]) ** 2)
    assert told.outcome.outcome == "applied"
    (request,) = server.requests("POST", f"{PATH}/tell")
    assert request.json == {"results": [{"trial": "t_1", "lease": "1.1.aa", "value": 4.0}]}
    assert request.headers["authorization"] == "Bearer zok_test"


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


def test_a_refusal_is_raised_at_once(server: Any, client: Client, answer: Any) -> None:
    server.on("POST", "/v1/studies", answer({"code": "study-spec-mismatch", "detail": "no", "diff": ["seed"]}, 409))
    with pytest.raises(errors.StudySpecMismatch) as caught:
        client.create_study(name="demo", space={})
    assert caught.value.diff == ["seed"]
    assert len(server.received) == 1


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
        assert client.service() == {"name": "blackbox"}
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


def test_trials_are_read_page_by_page(server: Any, client: Client) -> None:
    path = f"{PATH}/trials"
    server.on(
        "GET",
        path,
        {"trials": [{"id": "t_1"}, {"id": "t_2"}], "next": f"https://elsewhere{path}?limit=2&cursor=b"},
        {"trials": [{"id": "t_3"}], "next": None},
    )
    assert [trial.number for trial in client.study("st_1").trials(limit=2)] == [1, 2, 3]
    assert [request.query for request in server.received] == [{"limit": "2"}, {"limit": "2", "cursor": "b"}]


def test_points_are_queued_and_an_import_that_is_rejected_says_why(server: Any, client: Client, answer: Any) -> None:
    study = client.study("st_1")
    server.on("POST", f"{PATH}/trials", answer({"trials": [{"id": "t_5", "state": "QUEUED"}]}, 201))
    assert [trial.number for trial in study.enqueue([{"params": {"x": np.float64(1.0)}}])] == [5]
    rejected = {"id": None, "trial": None, "outcome": "rejected", "problem": {"status": 422, "detail": "x is missing"}}
    server.on("POST", f"{PATH}/trials", answer({"trials": [rejected]}, 201))
    with pytest.raises(errors.InvalidRequest, match="x is missing"):
        study.enqueue([{"params": {}, "value": 0.5}])


def test_events_are_read_until_there_are_no_more(server: Any, client: Client) -> None:
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
    body = gzip.compress(b"trial,value\n1,0.5\n")
    server.on("GET", f"{PATH}/export", answer(body, headers={"Content-Encoding": "gzip"}))
    assert list(client.study("st_1").export("csv")) == ["trial,value", "1,0.5"]
    assert server.received[0].query["format"] == "csv"


def test_an_export_that_is_refused_says_why(server: Any, client: Client, answer: Any) -> None:
    server.on("GET", f"{PATH}/export", answer({"detail": "no such format"}, 422))
    with pytest.raises(errors.InvalidRequest, match="no such format"):
        list(client.study("st_1").export("xml"))


def test_the_state_of_a_study_is_changed_and_remembered(server: Any, client: Client) -> None:
    for verb, state in [("pause", "PAUSED"), ("resume", "ACTIVE"), ("complete", "COMPLETED"), ("cancel", "CANCELLED")]:
        server.on("POST", f"{PATH}/{verb}", {**STUDY, "state": state})
        study = client.study("st_1")
        assert getattr(study, verb)().state == study.info.state == state
    assert study.info.ended


def test_update_sends_the_etag_it_was_given(server: Any, client: Client, answer: Any) -> None:
    server.on("PATCH", PATH, answer({"detail": "changed meanwhile"}, 412))
    with pytest.raises(errors.PreconditionFailed):
        client.study("st_1").update(if_match='"7"', budget={"evaluations": 60})
    assert server.received[0].headers["if-match"] == '"7"'
    assert server.received[0].json == {"budget": {"evaluations": 60}}


def test_a_fork_is_a_study_of_its_own(server: Any, client: Client, answer: Any) -> None:
    server.on("POST", f"{PATH}/fork", answer({**STUDY, "id": "st_2"}, 201))
    assert client.study("st_1").fork(3, algorithm="cbo").id == "st_2"
    assert server.received[0].json == {"step": 3, "algorithm": {"name": "cbo"}}


def test_best_and_brief_are_read(server: Any, client: Client) -> None:
    server.on("GET", f"{PATH}/best", {"view": "observed", "items": [{"params": {"x": 1}, "value": 0.5}]})
    server.on("GET", f"{PATH}/brief", "ACTIVE, best 0.5")
    best = client.study("st_1").best(k=1, view="observed")
    assert (best.params, best.value) == ({"x": 1}, 0.5)
    assert client.study("st_1").brief() == "ACTIVE, best 0.5"


def test_a_trial_is_taken_back_requeued_cancelled_and_reported(server: Any, client: Client) -> None:
    study = client.study("st_1")
    for verb in ("cancel", "requeue", "invalidate"):
        server.on("POST", f"{PATH}/trials/t_4/{verb}", {"id": "t_4"})
    server.on("POST", f"{PATH}/trials/t_4/reports", {"directive": "stop"})
    study.cancel_trial(4)
    study.requeue("t_4")
    study.invalidate(4, reason="wrong units")
    assert study.report(4, 3, 0.31, lease="4.1.aa").directive == "stop"
    assert server.received[2].json == {"reason": "wrong units"}
    assert server.received[3].json == {"lease": "4.1.aa", "step": 3, "value": 0.31}


# ---- seed-encoded trials

KEY = "00112233445566778899aabbccddeeff"
VECTOR = np.arange(3, dtype=np.float32)


def seed_trial(number: int, blob: recipes.Blob) -> dict[str, Any]:
    op = {"op": "normal", "stream": "0", "step": 412, "lane": 7, "scale": 0.5}
    return {
        "id": f"t_{number}",
        "encoding": "seed/1",
        "dim": 3,
        "dtype": "f32",
        "rng": recipes.RNG,
        "key": KEY,
        "base": {"version": 412, "sha256": blob.sha256},
        "ops": [op],
    }


def test_a_seed_encoded_trial_is_rebuilt_and_its_base_fetched_once(server: Any, client: Client, answer: Any) -> None:
    blob = recipes.Blob.of(VECTOR)
    trials = [seed_trial(n, blob) for n in (1, 2)]
    server.on("POST", f"{PATH}/ask", {"trials": trials})
    server.on("GET", f"{PATH}/bases/{blob.sha256}", answer(VECTOR.astype("<f4").tobytes()))
    server.on("GET", PATH, {**STUDY, "space": {"weights": {"type": "vector", "dim": 3}}})
    study = client.study("st_1")
    asked = study.ask(2, encoding="seed").trials
    expected = recipes.rebuild(trials[0], VECTOR)
    for trial in asked:
        np.testing.assert_array_equal(study.materialise(trial), expected)
    assert list(study.arguments(asked[0])) == ["weights"]
    server.on("GET", PATH, answer({"detail": "study:read is missing"}, 403))
    assert list(client.study("st_1").arguments(asked[1])) == ["theta"]
    assert len(server.requests("GET", f"{PATH}/bases/{blob.sha256}")) == 1


def test_a_base_that_is_not_the_promised_one_is_fetched_again_and_then_refused(
    server: Any, client: Client, answer: Any
) -> None:
    wanted = recipes.Blob.of(VECTOR).sha256
    server.on("GET", f"{PATH}/bases/412", answer(bytes(12)), answer(VECTOR.tobytes()))
    np.testing.assert_array_equal(client.study("st_1").base(412, sha256=wanted).vector, VECTOR)
    server.on("GET", f"{PATH}/bases/413", answer(bytes(12)), answer(bytes(11)))
    with pytest.raises(errors.BaseMismatch, match="no whole number"):
        client.study("st_1").base(413, sha256=recipes.Blob.of(VECTOR + 1).sha256)
    client.study("st_1").base(414, sha256=wanted)  # another generation of the same base
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

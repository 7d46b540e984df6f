"""The protocol: what is sent, how answers are read, when calls are repeated; by itself, and with the application."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from blackbox_client import errors, models, protocol
from blackbox_client.protocol import NoAnswer, Raise, Reply, Retry, RetryPolicy, RetryState

from tests.client.conftest import RealServer

POLICY = RetryPolicy()
NAN = float("nan")


def problem(status: int, headers: dict[str, str] | None = None, **document: Any) -> Reply:
    return Reply(status, headers or {}, json.dumps(document).encode())


def body_of(call: protocol.Call[Any]) -> Any:
    assert call.body is not None
    return json.loads(call.body)


# ---- the retry table


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_a_passing_trouble_is_tried_again_with_full_jitter(status: int) -> None:
    for attempt in range(12):
        ceiling = min(30.0, 0.25 * 2**attempt)
        assert POLICY.decide(attempt, Reply(status), elapsed=0.0, random=0.5) == Retry(0.5 * ceiling)
        assert POLICY.decide(attempt, Reply(status), elapsed=0.0, random=0.0) == Retry(0.0)


def test_no_answer_is_tried_again() -> None:
    assert POLICY.decide(3, NoAnswer("ConnectError"), elapsed=5.0, random=0.5) == Retry(1.0)


def test_no_answer_for_a_lasting_reason_is_raised_at_once() -> None:
    decision = POLICY.decide(0, NoAnswer("certificate", repeatable=False), elapsed=0.0, random=0.5)
    assert isinstance(decision, Raise)
    assert isinstance(decision.error, errors.ConnectionFailed)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 412, 413, 415, 418, 422, 501])
def test_what_would_fail_again_is_never_tried_again(status: int) -> None:
    assert isinstance(POLICY.decide(0, Reply(status), elapsed=0.0, random=0.0), Raise)


def test_retry_after_is_the_least_wait() -> None:
    reply = Reply(503, {"retry-after": "12"})
    decision = POLICY.decide(0, reply, elapsed=0.0, random=0.5)
    assert isinstance(decision, Retry)
    assert 12.0 <= decision.delay <= 12.25


def test_retry_after_may_be_a_date_and_is_measured_on_the_server_clock() -> None:
    headers = {"date": "Sat, 21 Nov 2026 22:30:00 GMT", "retry-after": "Sat, 21 Nov 2026 22:30:07 GMT"}
    assert Reply(503, headers).retry_after == 7.0
    assert Reply(503, {"retry-after": "soon"}).retry_after is None
    assert Reply(503, {"retry-after": "-3"}).retry_after == 0.0


def test_a_wait_that_would_outlast_the_patience_is_not_begun() -> None:
    reply = Reply(503, {"retry-after": "60"})
    assert isinstance(POLICY.decide(5, reply, elapsed=539.0, random=0.0), Retry)
    decision = POLICY.decide(5, reply, elapsed=541.0, random=0.0)
    assert isinstance(decision, Raise)
    assert isinstance(decision.error, errors.ServiceUnavailable)


def test_giving_up_says_how_often_and_how_long_it_was_tried() -> None:
    decision = POLICY.decide(26, NoAnswer("ConnectError from http://x"), elapsed=599.9, random=0.99)
    assert isinstance(decision, Raise)
    assert "27 attempt(s) in 599.9 s: ConnectError from http://x" in str(decision.error)


def test_500_is_repeated_three_times_and_then_raised_with_its_request_id() -> None:
    state = RetryState(protocol.service(), POLICY)
    reply = problem(500, {"x-request-id": "01J"}, detail="boom")
    for _ in range(3):
        assert isinstance(state.after(reply, 0.0, 0.5), Retry)
    decision = state.after(reply, 0.0, 0.5)
    assert isinstance(decision, Raise)
    assert isinstance(decision.error, errors.ServerError)
    assert "01J" in str(decision.error)


def test_other_troubles_do_not_use_up_the_patience_for_500() -> None:
    state = RetryState(protocol.service(), POLICY)
    for _ in range(9):
        state.after(Reply(503), 0.0, 0.5)
    assert isinstance(state.after(Reply(500), 0.0, 0.5), Retry)


def test_a_call_still_being_worked_on_is_awaited() -> None:
    reply = problem(409, {"retry-after": "1"}, type="/problems/idempotency-in-progress")
    assert isinstance(POLICY.decide(7, reply, elapsed=1.0, random=0.0), Retry)


def test_deleting_what_a_lost_attempt_deleted_is_a_success() -> None:
    state = RetryState(protocol.delete_study("st_1"), POLICY)
    assert not state.succeeded(Reply(404))
    state.after(NoAnswer("ReadError"), 0.0, 0.0)
    assert state.succeeded(Reply(404))


def test_redirects_are_not_followed_because_they_would_carry_the_key_elsewhere() -> None:
    state = RetryState(protocol.service(), POLICY)
    decision = state.after(Reply(308, {"location": "https://elsewhere"}), 0.0, 0.0)
    assert isinstance(decision, Raise)
    assert "https://elsewhere" in str(decision.error)


# ---- what is sent


def test_every_post_has_a_key_of_its_own_and_keeps_a_given_one() -> None:
    first, second = (protocol.ask("st_1", protocol.ask_body()) for _ in range(2))
    assert len(first.headers["idempotency-key"]) == 32
    assert first.headers["idempotency-key"] != second.headers["idempotency-key"]
    assert protocol.snapshot("st_1", idempotency_key="k").headers["idempotency-key"] == "k"
    assert "idempotency-key" not in protocol.get_study("st_1").headers


def test_create_writes_short_forms_out_in_full_and_seeds_as_text() -> None:
    call = protocol.create_study(name="a", space={}, algorithm="cma_es", budget=50, parallelism=4, seed=2**63)
    assert body_of(call) == {
        "name": "a",
        "space": {},
        "algorithm": {"name": "cma_es"},
        "budget": {"evaluations": 50},
        "parallelism": {"max_leased": 4},
        "seed": "9223372036854775808",
    }


def test_an_ask_names_only_what_differs_from_the_defaults_and_holds_as_long_as_it_polls() -> None:
    assert body_of(protocol.ask("st_1", protocol.ask_body())) == {"count": 1}
    body = protocol.ask_body(8, worker="gpu-3", lease_seconds=900, wait_seconds=20, resume=True, encoding="seed")
    call = protocol.ask("st_1", body)
    assert body_of(call) == body
    assert (call.method, call.path, call.hold_seconds) == ("POST", "/v1/studies/st_1/ask", 20.0)


def test_a_tell_is_written_like_the_example_of_the_contract() -> None:
    lease = models.Lease("41.1.c9")
    trial = models.Trial("t_41", 41, lease=lease)
    results = [
        models.completed(trial, 0.183, stderr=0.004, n=5, cost={"seconds": 61.2}, info={"git": "ab12"}),
        models.infeasible("t_43", "too big", behaviour=np.float32([0.5])),
        models.failed("44", "no memory", error_type="CudaOOM"),
        models.released(45),
        models.stopped(46, 0.5, fidelity=3, sums={"count": 7, "total": np.array([1.0, 2.0])}),
        models.injected({"lr": 0.001}, 0.2, source="previous-study", key="k1"),
    ]
    call = protocol.tell("st_1", results, worker="gpu-3", ask=protocol.ask_body(4, lease_seconds=900))
    assert body_of(call) == {
        "worker": "gpu-3",
        "results": [
            {
                "trial": "t_41",
                "lease": "41.1.c9",
                "value": 0.183,
                "stderr": 0.004,
                "n": 5,
                "cost": {"seconds": 61.2},
                "info": {"git": "ab12"},
            },
            {"trial": "t_43", "status": "infeasible", "reason": "too big", "behaviour": [0.5]},
            {
                "trial": "t_44",
                "status": "failed",
                "error": {"type": "CudaOOM", "message": "no memory", "retryable": True},
            },
            {"trial": "t_45", "status": "released"},
            {
                "trial": "t_46",
                "status": "stopped",
                "value": 0.5,
                "fidelity": 3,
                "sums": {"count": 7, "total": [1.0, 2.0]},
            },
            {"params": {"lr": 0.001}, "value": 0.2, "source": "previous-study", "key": "k1"},
        ],
        "ask": {"count": 4, "lease_seconds": 900},
    }


def test_ids_from_outside_cannot_leave_their_place_in_the_path() -> None:
    assert protocol.get_study("../keys?x=1").path == "/v1/studies/..%2Fkeys%3Fx%3D1"
    assert protocol.delete_key("a/b").path == "/v1/keys/a%2Fb"
    with pytest.raises(ValueError, match="t_41"):
        protocol.get_trial("st_1", "t_41/../../x")


def test_queries_are_text_without_needless_decimals() -> None:
    call = protocol.events("st_1", "18446744073709551615", wait_seconds=25.0, types=["a", "b"])
    assert call.query == {"after": "18446744073709551615", "wait_seconds": "25", "types": "a,b"}
    assert protocol.list_trials("st_1").query == {}


@pytest.mark.parametrize(
    ("call", "method", "path"),
    [
        (protocol.service(), "GET", "/v1"),
        (protocol.limits(), "GET", "/v1/limits"),
        (protocol.algorithms(), "GET", "/v1/algorithms"),
        (protocol.list_studies(), "GET", "/v1/studies"),
        (protocol.get_study("s"), "GET", "/v1/studies/s"),
        (protocol.update_study("s"), "PATCH", "/v1/studies/s"),
        (protocol.delete_study("s"), "DELETE", "/v1/studies/s"),
        (protocol.change_state("s", "pause"), "POST", "/v1/studies/s/pause"),
        (protocol.heartbeat("s", []), "POST", "/v1/studies/s/heartbeat"),
        (protocol.enqueue("s", []), "POST", "/v1/studies/s/trials"),
        (protocol.list_trials("s"), "GET", "/v1/studies/s/trials"),
        (protocol.get_trial("s", 4), "GET", "/v1/studies/s/trials/t_4"),
        (protocol.change_trial("s", 4, "requeue"), "POST", "/v1/studies/s/trials/t_4/requeue"),
        (protocol.report("s", 4, 1, 0.5), "POST", "/v1/studies/s/trials/t_4/reports"),
        (protocol.best("s"), "GET", "/v1/studies/s/best"),
        (protocol.export("s"), "GET", "/v1/studies/s/export"),
        (protocol.brief("s"), "GET", "/v1/studies/s/brief"),
        (protocol.base("s", 412), "GET", "/v1/studies/s/bases/412"),
        (protocol.snapshot("s"), "POST", "/v1/studies/s/snapshots"),
        (protocol.fork("s", 3), "POST", "/v1/studies/s/fork"),
        (protocol.create_key(scopes=[]), "POST", "/v1/keys"),
        (protocol.list_keys(), "GET", "/v1/keys"),
    ],
)
def test_every_endpoint_is_where_the_contract_puts_it(call: protocol.Call[Any], method: str, path: str) -> None:
    assert (call.method, call.path) == (method, path)


# ---- numbers


def test_numbers_of_numpy_and_of_libraries_like_it_are_numbers() -> None:
    tensor = SimpleNamespace(item=lambda: 2.5)
    given = {
        "a": np.float32(0.5),
        "b": np.int64(3),
        "c": np.bool_(True),
        "d": np.array([1.0, 2.0]),
        "e": np.array(4.0),
        "f": tensor,
        "g": (1, None, "x"),
    }
    assert protocol.plain(given) == {
        "a": 0.5,
        "b": 3,
        "c": True,
        "d": [1.0, 2.0],
        "e": 4.0,
        "f": 2.5,
        "g": [1, None, "x"],
    }


@pytest.mark.parametrize("value", [NAN, float("inf"), np.float64(NAN), np.array(NAN), np.array([1.0, NAN])])
def test_what_is_not_finite_is_refused_with_the_hint_of_the_server(value: Any) -> None:
    with pytest.raises(errors.NonFiniteValue) as caught:
        protocol.tell("st_1", [models.completed(1, 0.1), models.completed(2, value)])
    (error,) = caught.value.errors
    assert error.pointer.startswith("/results/1/value")
    assert error.code == "non_finite"
    assert 'send {"status":"infeasible"}' in str(caught.value)


def test_a_time_without_zone_and_a_thing_without_json_form_are_refused_where_they_are() -> None:
    assert protocol.plain(datetime(2026, 12, 1, tzinfo=UTC)) == "2026-12-01T00:00:00+00:00"
    with pytest.raises(errors.InvalidRequest, match="/budget/deadline: a time needs its zone"):
        protocol.plain({"budget": {"deadline": datetime(2026, 12, 1)}})
    with pytest.raises(errors.InvalidRequest, match="/info/a~1b: set has no JSON form"):
        protocol.plain({"info": {"a/b": {1}}})


# ---- what comes back


def test_a_problem_becomes_an_exception_that_shows_all_it_says() -> None:
    error = problem(
        422,
        type="/problems/non-finite-value",
        detail="results[0].value is NaN.",
        errors=[{"pointer": "/results/0/value", "code": "non_finite"}],
        request_id="01J",
        hint="send infeasible",
    ).error()
    assert isinstance(error, errors.NonFiniteValue)
    assert isinstance(error, ValueError)
    assert str(error).splitlines() == [
        "422 non-finite-value: results[0].value is NaN.",
        "  at /results/0/value: non_finite",
        "  hint: send infeasible",
        "  request id: 01J",
    ]


@pytest.mark.parametrize(
    ("reply", "cls"),
    [
        (problem(400), errors.InvalidRequest),
        (problem(401), errors.Unauthorized),
        (problem(403), errors.Forbidden),
        (problem(404), errors.NotFound),
        (problem(408), errors.RequestTimedOut),
        (problem(409), errors.Conflict),
        (problem(409, code="study-spec-mismatch"), errors.StudySpecMismatch),
        (problem(409, type="https://x/problems/study-spec-mismatch"), errors.StudySpecMismatch),
        (problem(409, code="idempotency_in_progress"), errors.IdempotencyInProgress),
        (problem(412), errors.PreconditionFailed),
        (problem(413), errors.TooLarge),
        (problem(415), errors.InvalidRequest),
        (problem(429), errors.RateLimited),
        (problem(500), errors.ServerError),
        (problem(501), errors.ServerError),
        (problem(503), errors.ServiceUnavailable),
        (Reply(502, {}, b"<html>Bad gateway"), errors.ServiceUnavailable),
    ],
)
def test_each_cause_has_its_class(reply: Reply, cls: type[errors.AnsweredWithError]) -> None:
    assert type(reply.error()) is cls


SPACE = {"x": {"type": "float", "low": -5, "high": 5}}


def call_too_often(real: RealServer) -> None:
    for _ in range(100):
        real.client().limits()


def send_too_much(real: RealServer) -> None:
    real.client().create_key(["study:read"], name="n" * 2000)


@pytest.mark.parametrize(
    ("real", "call", "cls"),
    [
        ({}, lambda real: real.client("zok_wrong_key").limits(), errors.Unauthorized),
        ({}, lambda real: real.client(real.client().create_key(["study:evaluate"]).secret).keys(), errors.Forbidden),
        ({}, lambda real: real.client().study("st_nothing").refresh(), errors.NotFound),
        ({}, lambda real: real.client().create_study(name="a", space={}), errors.InvalidRequest),
        (
            {"max_body_bytes": 1024},
            send_too_much,
            errors.TooLarge,
        ),
        ({"rate_per_second": 1.0}, call_too_often, errors.RateLimited),
    ],
    ids=["no key", "no right", "nothing there", "unusable", "too large", "too often"],
    indirect=["real"],
)
def test_each_cause_has_its_class_when_the_application_says_it(
    real: RealServer, call: Callable[[RealServer], Any], cls: type[errors.AnsweredWithError]
) -> None:
    with pytest.raises(cls) as caught:
        call(real)
    assert type(caught.value) is cls
    assert set(caught.value.problem) == errors.Problem.__annotations__.keys() - {"limit"}
    assert all((caught.value.status, caught.value.code, caught.value.hint, caught.value.request_id))


def test_client_and_application_say_the_same_about_what_is_not_finite(real: RealServer) -> None:
    study = real.client().create_study(name="a", space=SPACE)
    (trial,) = study.ask().trials
    with pytest.raises(errors.NonFiniteValue) as ours:
        study.tell(trial, NAN)
    call = protocol.tell(study.id, [models.completed(trial, 0.5)])
    assert call.body is not None
    with pytest.raises(errors.NonFiniteValue) as theirs:
        study.client.send(replace(call, body=call.body.replace(b"0.5", b"NaN")))
    assert (ours.value.detail, ours.value.hint) == (theirs.value.detail, theirs.value.hint)
    assert [field.pointer for field in ours.value.errors] == [field.pointer for field in theirs.value.errors]


def test_what_is_sent_again_with_its_key_is_done_once(real: RealServer) -> None:
    study = real.client().create_study(name="a", space=SPACE, algorithm="random_search")
    ask = protocol.ask(study.id, protocol.ask_body(2))
    first, again = (study.client.send(ask) for _ in range(2))
    assert [trial.lease for trial in first.trials] == [trial.lease for trial in again.trials]
    point = protocol.tell(study.id, [models.injected({"x": 1.0}, 0.25)])
    assert [study.client.send(point).outcome.outcome for _ in range(2)] == ["injected"] * 2
    told = protocol.tell(study.id, [models.completed(trial, 0.5) for trial in first.trials])
    answers = [study.client.send(told) for _ in range(2)]
    assert [[each.outcome for each in answer.outcomes] for answer in answers] == [["applied"] * 2, ["duplicate"] * 2]
    assert (study.refresh().budget.used, len(list(study.trials()))) == (2, 3)


def test_an_answer_that_is_not_ours_is_named_as_such() -> None:
    with pytest.raises(errors.BadAnswer, match="is this the address of a blackbox server"):
        protocol.get_study("st_1").read(Reply(200, {}, b"<html>Welcome"))
    with pytest.raises(errors.BadAnswer, match="expected Study with 'id'"):
        protocol.get_study("st_1").read(Reply(200, {}, b"{}"))


def test_accepted_work_is_not_mistaken_for_done() -> None:
    reply = Reply(202, {"location": "/v1/operations/o_1", "retry-after": "2"})
    with pytest.raises(errors.StillWorking) as caught:
        protocol.fork("st_1", 3).read(reply)
    assert (caught.value.location, caught.value.retry_after) == ("/v1/operations/o_1", 2.0)


def test_the_ask_answer_of_the_contract_is_read_and_unknown_fields_are_kept() -> None:
    raw = {
        "trials": [
            {
                "id": "t_41",
                "number": 41,
                "step": 4,
                "replicate": 0,
                "fidelity": None,
                "new": 1,
                "params": {"lr": 0.00213, "layers": 4, "act": "gelu"},
                "eval_seed": "18446744073709551615",
                "lease": {
                    "token": "41.1.c9",
                    "attempt": 1,
                    "heartbeat_seconds": 300,
                    "expires_at": "2026-11-21T22:30:00Z",
                },
            }
        ],
        "granted": 1,
        "requested": 8,
        "reason": "parallelism_cap",
        "retry_after_seconds": 12,
        "study": {"state": "ACTIVE", "step": 4, "used": 40, "leased": 9, "remaining": 451},
    }
    answer = protocol.ask("st_1", {}).read(Reply(200, {}, json.dumps(raw).encode()))
    (trial,) = answer.trials
    assert (trial.number, trial.eval_seed, trial.raw["new"]) == (41, 2**64 - 1, 1)
    assert trial.lease is not None
    assert trial.lease.expires_at == datetime(2026, 11, 21, 22, 30, tzinfo=UTC)
    assert (answer.reason, answer.retry_after_seconds, answer.study.remaining) == ("parallelism_cap", 12.0, 451)
    assert not answer.study.ended


def test_a_rejected_item_carries_its_problem_and_the_rest_of_the_batch_stands() -> None:
    raw = {
        "results": [
            {"trial": "t_1", "outcome": "applied", "best_so_far": True},
            {"trial": "t_2", "outcome": "rejected", "problem": {"code": "lease-unknown", "detail": "never given"}},
            {"trial": "t_3", "outcome": "requeued", "attempt": 2, "attempts_left": 1},
        ],
        "applied": 1,
        "ask": {"trials": [], "granted": 0},
    }
    answer = protocol.tell("st_1", []).read(Reply(200, {}, json.dumps(raw).encode()))
    assert answer.applied == 1
    (rejected,) = answer.rejected
    assert rejected.trial == "t_2"
    assert isinstance(rejected.problem, errors.LeaseUnknown)
    assert answer.outcomes[2].attempts_left == 1
    assert answer.ask is not None
    with pytest.raises(ValueError, match="got 3"):
        _ = answer.outcome


def test_a_page_is_a_list_under_its_name_and_the_address_of_the_next() -> None:
    for following in (None, "/v1/studies/s/trials?cursor=7"):
        raw = {"trials": [{"id": "t_7"}], "next": following}
        page = protocol.list_trials("s").read(Reply(200, {}, json.dumps(raw).encode()))
        assert ([trial.number for trial in page.items], page.next) == ([7], following)


def test_a_link_to_the_next_page_keeps_its_query_and_loses_its_host() -> None:
    call = protocol.list_trials("s", limit=2)
    page: models.Page[models.Trial] = models.Page(
        (), "https://evil.example/prefix/v1/studies/s/trials?limit=2&cursor=abc"
    )
    following = protocol.next_page(call, page)
    assert following is not None
    assert following.path == "/v1/studies/s/trials?limit=2&cursor=abc"
    assert protocol.next_page(call, models.Page((), None)) is None


def test_a_key_does_not_show_in_what_is_printed() -> None:
    key = protocol.create_key(scopes=["study:read"]).read(Reply(201, {}, b'{"id":"k1","key":"zok_k1_secret"}'))
    assert key.secret == "zok_k1_secret"
    assert "secret" not in repr(key)


def test_text_that_utf_8_cannot_encode_is_named_before_it_is_sent() -> None:
    with pytest.raises(errors.InvalidRequest, match="UTF-8 cannot encode the text near"):
        protocol.encode({"space": {"\udcffx": 1}})

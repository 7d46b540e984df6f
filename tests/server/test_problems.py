"""Bad requests get an answer that says what was wrong, where, and what to do; and change nothing."""

from __future__ import annotations

import inspect
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
from blackbox_server import problems
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import blackbox
from blackbox import errors
from tests.server.conftest import NON_FINITE_HINT, SPACE, Server, assert_problem


def test_every_error_of_the_engine_has_a_row_of_its_own() -> None:
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.BlackboxError)]
    assert {cls.__name__ for cls in classes if cls not in problems.TABLE} == {"BlackboxError"}


def test_every_row_has_a_hint_and_a_code_of_its_own() -> None:
    codes = [row.code for row in problems.TABLE.values()]
    assert len(codes) == len(set(codes))
    assert all(problems.hint(row) and row.title for row in problems.TABLE.values())


def test_an_unexpected_error_says_nothing_of_its_inside() -> None:
    problem = problems.problem(RuntimeError("secret"), "req_1")
    assert problem["status"] == 500
    assert "secret" not in json.dumps(problem)


# Finite numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("literal", "word"),
    [
        ("NaN", "NaN"),
        ("Infinity", "Infinity"),
        ("-Infinity", "-Infinity"),
        ("1e999", "Infinity"),
        ("-1e999", "-Infinity"),
    ],
)
def test_a_value_that_is_not_finite_is_refused_with_its_place(server: Server, literal: str, word: str) -> None:
    study = server.create()
    server.ask(study)
    answer = server.http.post(
        f"/v1/studies/{study}/tell", content=f'{{"results":[{{"trial":"t_1","value":{literal}}}]}}'
    )
    problem = assert_problem(answer, 422, "non-finite-value")
    assert problem["detail"] == f"results[0].value is {word}."
    assert problem["errors"][0]["pointer"] == "/results/0/value"
    assert problem["errors"][0]["code"] == "non_finite"
    assert problem["hint"] == NON_FINITE_HINT
    assert problem["retryable"] is False


@pytest.mark.parametrize("value", ["nan", "inf", "-Infinity", "0.5", True, [1], {"a": 1}, 10**400])
def test_a_value_that_is_no_number_is_refused_with_the_same_hint(server: Server, value: Any) -> None:
    study = server.create()
    server.ask(study)
    answer = server.http.post(f"/v1/studies/{study}/tell", content=json.dumps({"trial": "t_1", "value": value}))
    spelled = value in ("nan", "inf", "-Infinity")
    problem = assert_problem(answer, 422, "non-finite-value" if spelled else "invalid-input")
    assert problem["errors"][0]["pointer"] == "/value"
    assert problem["hint"] == NON_FINITE_HINT


def test_a_study_may_take_what_is_not_finite_as_infeasible(server: Server) -> None:
    study = server.create(non_finite="infeasible")
    server.ask(study)
    answer = server.http.post(f"/v1/studies/{study}/tell", content='{"results":[{"trial":"t_1","value":NaN}]}')
    assert answer.json()["results"][0]["state"] == "INFEASIBLE"
    other = server.http.post(
        f"/v1/studies/{study}/tell", content='{"results":[{"trial":"t_1","value":1,"info":{"loss":NaN}}]}'
    )
    assert assert_problem(other, 422, "non-finite-value")["errors"][0]["pointer"] == "/results/0/info/loss"


@pytest.mark.parametrize("number", [2**64, -(10**30)])
def test_integers_that_do_not_fit_64_bits_are_refused_with_their_place(server: Server, number: int) -> None:
    study = server.create()
    server.ask(study)
    answer = server.http.post(f"/v1/studies/{study}/tell", json={"trial": "t_1", "value": 1, "info": {"n": [number]}})
    assert assert_problem(answer, 422, "invalid-input")["errors"][0]["pointer"] == "/info/n/0"
    assert server.outcome(study, trial="t_1", value=number)["outcome"] == "applied"
    assert server.create("seeded", seed=number) != study


FLOATISH = st.one_of(
    st.floats(),
    st.integers(-(10**30), 10**30),
    st.sampled_from(["nan", "inf", "1", "", "1e999", "NaN"]),
    st.booleans(),
    st.none(),
    st.lists(st.floats(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.floats(), max_size=2),
)


@hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
@given(value=FLOATISH, other=FLOATISH, field=st.sampled_from(["stderr", "info", "cost", "fidelity"]))
def test_whatever_is_told_history_stays_readable(server: Server, value: Any, other: Any, field: str) -> None:
    study = server.create(f"{time.perf_counter()}")
    trial = server.ask(study)["trials"][0]["id"]
    result = {"trial": trial, "value": value, field: {"a": other} if field in ("info", "cost") else other}
    answer = server.http.post(f"/v1/studies/{study}/tell", content=json.dumps({"results": [result]}))
    assert answer.status_code in (200, 422), answer.text
    finite = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not finite and value is not None:
        assert answer.status_code == 422
    for path in ("", "/trials", "/events", "/export", "/best", f"/trials/{trial}"):
        history = server.http.get(f"/v1/studies/{study}{path}")
        assert history.status_code == 200
        for line in history.text.splitlines():
            json.loads(line, parse_constant=pytest.fail)


# Query parameters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/trials?limit=0", "limit"),
        ("/trials?limit=many", "limit"),
        ("/trials?limit=5&limit=5000", "limit"),
        ("/best?view=guessed", "view"),
        ("/events?wait_seconds=nan", "wait_seconds"),
        ("/export?format=csv", "format"),
    ],
)
def test_a_query_parameter_that_cannot_be_used_is_named(server: Server, path: str, name: str) -> None:
    problem = assert_problem(server.http.get(f"/v1/studies/{server.create()}{path}"), 422, "invalid-input")
    assert problem["detail"].startswith(f"query parameter {name}: ")
    assert problem["errors"][0]["pointer"] == f"/{name}"


def test_of_a_query_parameter_that_is_given_twice_the_last_counts(server: Server) -> None:
    study = server.create()
    server.ask(study, count=3)
    page = server.http.get(f"/v1/studies/{study}/trials?limit=1&limit=2").json()
    assert [trial["id"] for trial in page["trials"]] == ["t_1", "t_2"]


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/trials?limt=5", 'did you mean "limit"?'),
        ("/best?colour=red", "known: k, view"),
        ("?limit=5", "This address takes none."),
        ("/ask?count=5", "This address takes none."),
    ],
)
def test_an_unknown_query_parameter_is_an_error_that_names_the_nearest_one(
    server: Server, path: str, hint: str
) -> None:
    address = f"/v1/studies/{server.create()}{path}"
    answer = server.http.post(address, json={}) if "/ask" in path else server.http.get(address)
    problem = assert_problem(answer, 422, "invalid-input")
    assert problem["hint"] == hint
    assert problem["errors"][0]["pointer"] == f"/{path.partition('?')[2].partition('=')[0]}"


# JSON -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("", "malformed-json"),
        ("{", "malformed-json"),
        ('{"count":1}}', "malformed-json"),
        ("count=1", "malformed-json"),
        (b"\xff\xfe", "malformed-json"),
        ('{"count":1,"count":2}', "malformed-json"),
        ('{"worker":"a:b","count":1,"count":2}', "malformed-json"),
        ("[" * 40 + "]" * 40, "malformed-json"),
        ("[" * 100_000 + "]" * 100_000, "malformed-json"),
        ('{"count":' + "9" * 5000 + "}", "malformed-json"),
        ('{"count":' + "9" * 4000 + "}", "invalid-input"),
        ("[1]", "invalid-input"),
        ("null", "invalid-input"),
        ('{"count":true}', "invalid-input"),
        ('{"count":1.0}', "invalid-input"),
        ('{"count":"1"}', "invalid-input"),
        ('{"count":0}', "invalid-input"),
        ('{"count":1001}', "too-large"),
        ('{"wait_seconds":NaN}', "non-finite-value"),
        ('{"lease_seconds":-1}', "invalid-input"),
        ('{"encoding":"jpeg"}', "invalid-input"),
        ('{"worker":""}', "invalid-input"),
    ],
)
def test_a_bad_body_is_refused_fast(server: Server, body: str | bytes, code: str) -> None:
    study = server.create()
    started = time.process_time()
    answer = server.http.post(f"/v1/studies/{study}/ask", content=body)
    assert time.process_time() - started < 0.5
    assert_problem(answer, 400 if code == "malformed-json" else 422, code)
    assert server.http.get(f"/v1/studies/{study}").json()["trials"]["made"] == 0


def test_half_a_surrogate_pair_does_not_break_the_answer(server: Server) -> None:
    answer = server.http.post("/v1/studies", content='{"name":"\\ud800","space":{}}')
    assert_problem(answer, 400, "malformed-json")


@pytest.mark.parametrize(
    ("path", "body", "pointer", "near"),
    [
        ("", {"nmae": "a", "space": SPACE}, "/nmae", "name"),
        ("", {"name": "a", "space": SPACE, "budget": {"evaluation": 5}}, "/budget/evaluation", "evaluations"),
        ("/{}/ask", {"cuont": 1}, "/cuont", "count"),
        ("/{}/tell", {"results": [{"trial": "t_1", "valeu": 1}]}, "/results/0/valeu", "value"),
        ("/{}/tell", {"trial": "t_1", "valeu": 1}, "/valeu", "value"),
        ("/{}/tell", {"results": [], "ask": {"cuont": 1}}, "/ask/cuont", "count"),
        ("/{}/heartbeat", {"leases": [], "extend": 1}, "/extend", "extend_seconds"),
        ("/{}/trials", {"trials": [{"parms": {}}]}, "/trials/0/parms", "params"),
        ("/{}/pause", {"raeson": "x"}, "/raeson", "reason"),
    ],
)
def test_an_unknown_field_names_the_nearest_one(
    server: Server, path: str, body: dict[str, Any], pointer: str, near: str
) -> None:
    study = server.create()
    problem = assert_problem(server.http.post(f"/v1/studies{path.format(study)}", json=body), 422, "invalid-input")
    fault = next(fault for fault in problem["errors"] if fault["pointer"] == pointer)
    assert f'"{near}"' in fault["message"]


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "application/xml"])
def test_other_content_types_are_refused(server: Server, kind: str) -> None:
    study = server.create()
    answer = server.http.post(f"/v1/studies/{study}/ask", content="{}", headers={"content-type": kind})
    assert_problem(answer, 415, "unsupported-media-type")


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "application/json; charset=utf-8"])
def test_what_curl_sends_is_read_as_json(server: Server, kind: str | None) -> None:
    study = server.create()
    headers = {} if kind is None else {"content-type": kind}
    assert server.http.post(f"/v1/studies/{study}/ask", content='{"count":1}', headers=headers).status_code == 200


def test_a_compressed_body_is_refused(server: Server) -> None:
    study = server.create()
    answer = server.http.post(f"/v1/studies/{study}/ask", content="{}", headers={"content-encoding": "gzip"})
    assert_problem(answer, 415, "unsupported-media-type")


def test_a_large_body_is_refused_by_its_length_alone(serve: Any) -> None:
    server = serve(max_body_bytes=2000, max_vector_body_bytes=4000)
    study = server.create()
    big = b" " * 3000 + b"{}"
    assert_problem(server.http.post(f"/v1/studies/{study}/ask", content=big), 413, "body-too-large")
    assert server.http.post(f"/v1/studies/{study}/tell", content=big[:-2] + b'{"results":[]}').status_code == 200
    assert_problem(server.http.post(f"/v1/studies/{study}/tell", content=big * 2), 413, "body-too-large")

    def pieces() -> Any:
        yield from (b" " * 1000 for _ in range(5))

    assert_problem(server.http.post(f"/v1/studies/{study}/ask", content=pieces()), 413, "body-too-large")


# Addresses ------------------------------------------------------------------------------------------------------------


def test_addresses_and_methods_that_do_not_exist(server: Server) -> None:
    study = server.create()
    assert_problem(server.http.get("/v1/study"), 404, "route-not-found")
    answer = server.http.get(f"/v1/studies/{study}/ask")
    assert_problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "POST"
    assert_problem(server.http.get("/v1/studies/st_nobody"), 404, "study-not-found")
    assert_problem(server.http.get(f"/v1/studies/{study}/trials/t_7"), 404, "trial-not-found")
    assert_problem(server.http.get(f"/v1/studies/{study}/trials/seven"), 422, "invalid-input")
    assert_problem(server.http.get(f"/v1/studies/{study}/bases/3"), 404, "base-not-found")
    assert_problem(server.http.get(f"/v1/studies/{study}/trials?limit=0"), 422, "invalid-input")
    assert_problem(server.http.get(f"/v1/studies/{study}/trials?state=DONE"), 422, "invalid-input")
    assert_problem(server.http.get(f"/v1/studies/{study}/export?format=xls"), 422, "invalid-input")


@pytest.mark.parametrize(
    "text", ["'; DROP TABLE studies; --", "../../etc/passwd", "%00", "<script>", "st_" + "9" * 500]
)
def test_hostile_text_is_only_text(server: Server, text: str) -> None:
    study = server.create(name=text[:200], labels={text: text})
    assert server.http.get(f"/v1/studies/{study}").json()["name"] == text[:200]
    for path in (
        f"/v1/studies/{text}",
        f"/v1/studies/{study}/trials/{text}",
        f"/v1/studies/{study}/events?types={text}",
    ):
        assert server.http.get(path).status_code in (200, 404, 422)
    assert server.ask(study, worker=text[:200])["granted"] == 1
    assert server.http.get("/v1/studies").status_code == 200


def test_a_failing_store_answers_503_and_says_that_retrying_is_safe(server: Server) -> None:
    study = server.create()

    async def refuse(work: Any, long: bool) -> Any:
        raise errors.StoreUnavailable("the disk is full")

    server.app.state.service.store.write = refuse
    answer = server.http.post(f"/v1/studies/{study}/ask", json={})
    assert assert_problem(answer, 503, "store-unavailable")["retryable"] is True
    assert answer.headers["retry-after"]


def test_a_programming_error_answers_500_without_its_inside(server: Server) -> None:
    study = server.create()

    async def broken(work: Any, long: bool) -> Any:
        raise RuntimeError("secret")

    server.app.state.service.store.read = broken
    answer = server.http.get(f"/v1/studies/{study}/trials")
    assert_problem(answer, 500, "internal")
    assert "secret" not in answer.text


# Words of earlier releases --------------------------------------------------------------------------------------------


def test_a_field_by_its_old_name_is_refused_with_the_new_one(server: Server) -> None:
    study = server.create()
    fork = server.http.post(f"/v1/studies/{study}/fork", json={"generation": 0})
    assert 'did you mean "step"?' in assert_problem(fork, 422, "invalid-input")["detail"]
    spec = {"name": "old", "space": SPACE, "method": "cma_es"}
    assert (
        'did you mean "algorithm"?'
        in assert_problem(server.http.post("/v1/studies", json=spec), 422, "invalid-input")["detail"]
    )
    events = server.http.get(f"/v1/studies/{study}/events", params={"types": "study.created,generation.closed"})
    problem = assert_problem(events, 422, "invalid-input")
    assert problem["hint"] == 'did you mean "step.closed"?'
    assert problem["errors"][0]["pointer"] == "/types"


def test_every_word_of_an_earlier_release_has_one_of_today() -> None:
    assert not errors.RENAMED.keys() & set(errors.RENAMED.values())


@pytest.mark.parametrize("name", ["worker", "key"])
def test_what_does_nothing_is_not_accepted(server: Server, name: str) -> None:
    study = server.create()
    if name == "worker":
        answer = server.http.post(f"/v1/studies/{study}/heartbeat", json={"leases": [], "worker": "w"})
    else:
        trials = [{"params": {"x": 1.0, "y": 1.0}, "key": "k"}]
        answer = server.http.post(f"/v1/studies/{study}/trials", json={"trials": trials})
    assert assert_problem(answer, 422, "invalid-input")["errors"][0]["pointer"].endswith(f"/{name}")


def test_the_engine_names_no_addresses_of_the_service() -> None:
    folder = Path(blackbox.__file__).parent
    files = [path for path in folder.rglob("*.py") if path.relative_to(folder).parts[0] != "cli"]
    named = re.compile(r"/v1/|\b(GET|POST|PATCH|DELETE) (/|\.\.\.|the study)|openapi\.json")
    assert [path.name for path in files if named.search(path.read_text())] == []


def test_the_hint_of_the_engine_is_followed_by_the_request_that_helps(server: Server) -> None:
    spec = {"name": "new", "space": SPACE, "algorithm": "cma_ess"}
    problem = assert_problem(server.http.post("/v1/studies", json=spec), 422, "unknown-algorithm")
    assert problem["hint"] == 'did you mean "cma_es"? GET /v1/algorithms lists them.'
    problem = assert_problem(server.http.get("/v1/studies/st_nothing"), 404, "study-not-found")
    assert problem["hint"] == "GET /v1/studies lists yours."

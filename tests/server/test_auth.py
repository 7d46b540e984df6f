"""Keys, scopes and tenants."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blackbox_server import auth
from blackbox_server.routes.route import Route
from blackbox_server.settings import Settings

from blackbox.errors import InvalidInput
from blackbox.study.memory import MemoryStore
from tests.server.conftest import SPACE, Server, assert_problem

BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v1/studies"): {"name": "new", "space": SPACE},
    ("POST", "/v1/studies/{study}/tell"): {"results": []},
    ("POST", "/v1/studies/{study}/heartbeat"): {"leases": []},
    ("POST", "/v1/studies/{study}/trials"): {"trials": [{"params": {"x": 0, "y": 0}}]},
    ("POST", "/v1/studies/{study}/trials/{trial}/reports"): {},
    ("POST", "/v1/keys"): {"scopes": ["keys:admin"]},
}


def _routes() -> list[tuple[str, str, str | None]]:
    """Every address with its verb and the scope it needs."""
    from blackbox_server.app import create_app

    routes = [route for route in create_app(Settings(), MemoryStore()).routes if isinstance(route, Route)]
    assert len(routes) > 30
    return sorted((route.method, route.path, route.needs) for route in routes)


def _held(scope: str) -> frozenset[str]:
    return auth.IMPLIED[scope]


def _call(server: Server, verb: str, path: str, study: str, headers: dict[str, str]) -> Any:
    address = path.replace("{study}", study).replace("{trial}", "t_1").replace("{version}", "0")
    address = address.replace("{worker}", "w").replace("{key}", "nokey000").replace("{code}", "internal")
    body = BODIES.get((verb, path), {}) if verb in ("POST", "PATCH") else None
    return server.http.request(verb, address, json=body, headers=headers)


@pytest.mark.parametrize("scope", auth.SCOPES)
def test_each_route_lets_in_who_may_and_hides_what_is_not_yours(serve: Callable[..., Server], scope: str) -> None:
    for verb, path, needed in _routes():
        server = serve()
        key = server.key(scope, project="mine")
        maker = server.key("study:admin", "study:evaluate", "study:read", project="mine")
        foreign = server.create("theirs")
        server.ask(foreign)
        own = server.http.post("/v1/studies", json={"name": "own", "space": SPACE}, headers=maker).json()["id"]
        server.ask(own, headers=maker)
        needs = {"study:read", "study:evaluate"} if path.endswith("/bases/{version}") else {needed}
        allowed = needed is None or (needed == "" and len(needs) == 1) or bool(needs & _held(scope))
        for study in (own, foreign):
            answer = _call(server, verb, path, study, key)
            where = f"{scope} {verb} {path}"
            if not allowed:
                assert answer.status_code == 403, where
                assert_problem(answer, 403, "forbidden")
            elif study == foreign and "{study}" in path:
                assert answer.status_code == 404, where
                assert_problem(answer, 404, "study-not-found")
            else:
                assert answer.status_code not in (401, 403, 500), f"{where}: {answer.text}"
        assert server.http.get(f"/v1/studies/{foreign}").json()["state"] == "ACTIVE"
        assert len(server.http.get(f"/v1/studies/{foreign}/trials").json()["trials"]) == 1


def test_without_a_key_only_the_service_document_is_open(server: Server) -> None:
    study = server.create()
    del server.http.headers["authorization"]
    for verb, path, needed in _routes():
        answer = _call(server, verb, path, study, {})
        if needed is None:
            assert answer.status_code in (200, 404), path
        else:
            assert_problem(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer zok_a_b", "Basic eDp5", "Bearer zok_" + "x" * 5000, "Bearer \xff"]
)
def test_a_bad_authorization_header_is_answered_401(server: Server, header: str) -> None:
    answer = server.http.get("/v1/studies", headers={"authorization": header.encode("latin-1")})  # type: ignore[dict-item]
    assert_problem(answer, 401, "unauthorized")


def test_a_right_id_with_a_wrong_secret_is_unknown(server: Server) -> None:
    text = server.app.state.first_key
    wrong = text[:-1] + ("A" if text[-1] != "A" else "B")
    assert_problem(server.http.get("/v1/studies", headers={"authorization": f"Bearer {wrong}"}), 401, "unauthorized")


def test_the_first_key_is_made_once(serve: Callable[..., Server]) -> None:
    store = MemoryStore()
    assert re.fullmatch("zok_[0-9A-Za-z]{8}_[0-9A-Za-z]{43}", serve(store).app.state.first_key)
    assert serve(store).app.state.first_key is None


def test_a_first_key_in_a_file_is_for_its_owner_alone_and_is_not_shown(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    path, store = tmp_path / "key", MemoryStore()
    server = serve(store, first_key_file=str(path))
    assert server.app.state.first_key is None
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["key"]
    bearer = {"authorization": f"Bearer {path.read_text().strip()}"}
    assert server.http.get("/v1/keys", headers=bearer).json()["keys"][0]["scopes"] == sorted(auth.SCOPES)
    path.unlink()  # read and put away by its operator
    server = serve(store, first_key_file=str(path))
    assert server.http.get("/v1/keys", headers=bearer).status_code == 200
    assert not path.exists()


def test_a_first_key_that_lies_in_the_file_is_taken(serve: Callable[..., Server], tmp_path: Path) -> None:
    given, _ = auth.new_key("first", "default", auth.SCOPES, 0.0)
    (tmp_path / "key").write_text(f"{given}\n")
    server = serve(MemoryStore(), first_key_file=str(tmp_path / "key"))
    assert server.http.get("/v1/keys", headers={"authorization": f"Bearer {given}"}).status_code == 200
    assert (tmp_path / "key").read_text() == f"{given}\n"


@pytest.mark.parametrize("text", ["", "secret", "zok_12345678_" + "a" * 42, "zok_1234567\u00e9_" + "a" * 43])
def test_a_file_without_a_key_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(text)
    with pytest.raises(InvalidInput, match="holds no key") as caught:
        auth.key_of_file(tmp_path / "key")
    assert "zok_" in caught.value.hint
    assert (tmp_path / "key").read_text() == text
    with pytest.raises(InvalidInput, match="No such file"):
        auth.key_of_file(tmp_path / "folder" / "key")


def test_only_a_hash_of_a_key_is_stored(server: Server) -> None:
    text = server.app.state.first_key
    rows = server.store.read(lambda tx: tx.keys(None))
    assert len(rows[0].hash) == 32
    assert text.split("_")[2] not in repr(rows)
    assert text.split("_")[2] not in server.http.get("/v1/keys").text


def test_a_revoked_or_expired_key_is_refused(server: Server) -> None:
    made = server.http.post("/v1/keys", json={"scopes": ["study:read"], "expires_seconds": 60}).json()
    header = {"authorization": f"Bearer {made['key']}"}
    assert server.http.get("/v1/studies", headers=header).status_code == 200
    server.clock.now += 61
    assert_problem(server.http.get("/v1/studies", headers=header), 401, "unauthorized")
    other = server.http.post("/v1/keys", json={"scopes": ["study:read"]}).json()
    header = {"authorization": f"Bearer {other['key']}"}
    assert server.http.get("/v1/studies", headers=header).status_code == 200
    assert server.http.delete(f"/v1/keys/{other['id']}").status_code == 204
    assert_problem(server.http.get("/v1/studies", headers=header), 401, "unauthorized")
    assert_problem(server.http.delete("/v1/keys/nobody00"), 404, "key-not-found")


def test_a_key_gives_no_scope_it_lacks_and_no_other_project(server: Server) -> None:
    keys_only = server.key("keys:admin", project="mine")
    answer = server.http.post("/v1/keys", json={"scopes": ["study:admin"]}, headers=keys_only)
    assert_problem(answer, 403, "forbidden")
    answer = server.http.post("/v1/keys", json={"scopes": ["keys:admin"], "project": "default"}, headers=keys_only)
    assert_problem(answer, 403, "forbidden")
    assert_problem(server.http.post("/v1/keys", json={"scopes": ["study:raed"]}), 422, "invalid-input")
    first = server.app.state.first_key.split("_")[1]
    assert_problem(server.http.delete(f"/v1/keys/{first}", headers=keys_only), 404, "key-not-found")
    assert all(k["project"] == "mine" for k in server.http.get("/v1/keys", headers=keys_only).json()["keys"])


def test_too_many_requests_are_slowed_down(serve: Callable[..., Server]) -> None:
    server = serve(rate_per_second=5)
    answers = [server.http.get("/v1/studies") for _ in range(11)]
    assert [a.status_code for a in answers[:10]] == [200] * 10
    assert assert_problem(answers[10], 429, "rate-limited")["retryable"] is True
    assert answers[10].headers["retry-after"]
    server.ticks.now += 1
    assert server.http.get("/v1/studies").status_code == 200


# Without keys ---------------------------------------------------------------------------------------------------------


def test_no_keys_only_on_loopback() -> None:
    assert Settings(insecure_local=True, host="::1").insecure_local
    with pytest.raises(ValueError, match="loopback"):
        Settings(insecure_local=True, host="0.0.0.0")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:8800"}, 200),
        ({"host": "[::1]:8800"}, 200),
        ({"origin": "http://localhost:3000"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_without_keys_host_and_origin_are_checked(
    serve: Callable[..., Server], headers: dict[str, str], status: int
) -> None:
    assert serve(insecure_local=True).http.get("/v1/studies", headers=headers).status_code == status


def test_without_keys_the_text_for_agents_names_the_header_that_is_needed(serve: Callable[..., Server]) -> None:
    server = serve(insecure_local=True)
    (line,) = (line for line in server.http.get("/llms.txt").text.splitlines() if line.startswith("A="))
    name, value = line[2:].strip('"').split(": ")
    study = server.create()
    assert server.http.post(f"/v1/studies/{study}/ask", content="{}", headers={name: value}).json()["granted"] == 1
    assert server.http.post(f"/v1/studies/{study}/pause", headers={name: value}).status_code == 200
    assert 'A="Authorization: Bearer zok_..."' in serve().http.get("/llms.txt").text


def test_without_keys_a_form_cannot_drive_the_service(serve: Callable[..., Server]) -> None:
    server = serve(insecure_local=True)
    study = server.create()
    for kind in ({"content-type": "application/x-www-form-urlencoded"}, {"content-type": "text/plain"}, {}):
        answer = server.http.post(f"/v1/studies/{study}/ask", content="{}", headers=kind)
        assert_problem(answer, 415, "unsupported-media-type")
        assert_problem(server.http.post(f"/v1/studies/{study}/cancel", headers=kind), 415, "unsupported-media-type")
    assert server.ask(study)["granted"] == 1

"""A server in this process: an application over a store, a client with the first key, a clock that tests move."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # starlette's advice about another HTTP library
    from starlette.testclient import TestClient

from blackbox_server.app import App, create_app
from blackbox_server.settings import Settings

from blackbox.study.memory import MemoryStore
from blackbox.study.rows import Store

SPACE = {"x": {"type": "float", "low": -5, "high": 5}, "y": {"type": "float", "low": -5, "high": 5}}
NON_FINITE_HINT = (
    'If the point cannot be evaluated send {"status":"infeasible"}; if your evaluator broke send {"status":"failed"}; '
    'or create the study with "non_finite":"infeasible".'
)


class Clock:
    """Seconds since the epoch, moved by hand."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class DocumentedClient(TestClient):
    """A client that holds every answer against what `/openapi.json` says of its route."""

    def request(self, method: str, url: Any, **options: Any) -> Any:
        response = super().request(method, url, **options)
        check_documented(method.upper(), response)
        return response


@cache
def document() -> dict[str, Any]:
    """`/openapi.json`."""
    return create_app(Settings(), MemoryStore()).openapi()


@cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    """The documented paths, those without names in them first, as the routes are declared."""
    paths = sorted(document()["paths"], key=lambda path: path.count("{"))
    return [(path, re.compile(re.sub(r"{\w+}", "[^/]+", path))) for path in paths]


@cache
def _validator(path: str, method: str, status: str, kind: str) -> Draft202012Validator:
    responses = document()["paths"][path][method.lower()]["responses"]
    response = responses.get(status, responses["default"])
    if "$ref" in response:
        response = document()["components"]["responses"][response["$ref"].rpartition("/")[2]]
    assert kind in response.get("content", {}), f"{method} {path} does not say that it may answer {status} {kind}"
    return Draft202012Validator({**response["content"][kind]["schema"], "components": document()["components"]})


def check_documented(method: str, response: Any) -> None:
    """Fail if an answer of a documented route is not as its schema says."""
    found = (path for path, pattern in _patterns() if pattern.fullmatch(response.request.url.path))
    path = next((path for path in found if method.lower() in document()["paths"][path]), None)
    if path is None or not response.content:
        return
    status, kind = str(response.status_code), response.headers.get("content-type", "").partition(";")[0]
    validator = _validator(path, method, status, kind)
    if kind in ("application/json", "application/problem+json"):
        fault = best_match(validator.iter_errors(response.json()))
        assert fault is None, f"{method} {path} answered {status} otherwise than documented: {fault}"


class Server:
    """An application that runs, and its client."""

    def __init__(self, app: App, http: TestClient, clock: Clock, ticks: Clock, store: Store) -> None:
        self.app = app
        self.store = store
        self.http = http
        self.clock = clock
        self.ticks = ticks
        if app.state.first_key is not None:
            http.headers["authorization"] = f"Bearer {app.state.first_key}"

    def create(self, name: str = "study", **spec: Any) -> str:
        """A new study's id; unless the spec says otherwise random search over a square, its start no trial."""
        body = {"name": name, "space": SPACE, "algorithm": {"name": "random_search"}, "start": "skip", **spec}
        answer = self.http.post("/v1/studies", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def ask(self, study: str, headers: dict[str, str] | None = None, **body: Any) -> dict[str, Any]:
        """The answer to an ask."""
        answer = self.http.post(f"/v1/studies/{study}/ask", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def tell(self, study: str, *results: dict[str, Any], **body: Any) -> dict[str, Any]:
        """The answer to a tell."""
        answer = self.http.post(f"/v1/studies/{study}/tell", json={"results": list(results), **body})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def outcome(self, study: str, **result: Any) -> dict[str, Any]:
        """What became of one result."""
        return dict(self.tell(study, result)["results"][0])

    def key(self, *scopes: str, project: str = "default") -> dict[str, str]:
        """Headers of a new key."""
        answer = self.http.post("/v1/keys", json={"scopes": list(scopes), "project": project, "name": "test"})
        assert answer.status_code == 201, answer.text
        return {"authorization": f"Bearer {answer.json()['key']}"}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ticks() -> Clock:
    """Seconds of the clock that nobody can set."""
    return Clock()


@pytest.fixture
def serve(clock: Clock, ticks: Clock) -> Iterator[Callable[..., Server]]:
    """Starts servers; they end with the test."""
    running: list[TestClient] = []

    def start(store: Store | None = None, **settings: Any) -> Server:
        store = store if store is not None else MemoryStore()
        app = create_app(Settings(**settings), store, clock, ticks)
        base = "http://localhost" if settings.get("insecure_local") else "http://testserver"
        http = DocumentedClient(app, base_url=base, raise_server_exceptions=False)
        http.__enter__()
        running.append(http)
        return Server(app, http, clock, ticks, store)

    yield start
    for http in running:
        http.__exit__(None, None, None)


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    """A server over a store in memory."""
    return serve()


@pytest.fixture(params=["memory", "sqlite"])
def each_store(request: pytest.FixtureRequest, serve: Callable[..., Server], tmp_path: Path) -> Iterator[Server]:
    """A server over each store."""
    if request.param == "memory":
        yield serve()
        return
    from blackbox_server.store import SqlStore

    store = SqlStore(tmp_path / "studies.db", synchronous="OFF")
    yield serve(store)
    store.close()


def assert_problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    """The problem document of an answer, after checking that it is complete."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert set(problem) == {
        "type", "title", "status", "code", "detail", "hint", "errors", "retryable", "request_id",
    }  # fmt: skip
    assert problem["code"] == code
    assert problem["type"] == f"/problems/{code}"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert problem["hint"]
    assert problem["request_id"] == answer.headers["x-request-id"]
    for fault in problem["errors"]:
        assert set(fault) == {"pointer", "code", "message"}
    return dict(problem)

"""A server in this process: an application over a store, a client with the first key, a clock that tests move."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

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


class Server:
    """An application that runs, and its client."""

    def __init__(self, app: App, http: TestClient, clock: Clock) -> None:
        self.app = app
        self.http = http
        self.clock = clock
        if app.state.first_key is not None:
            http.headers["authorization"] = f"Bearer {app.state.first_key}"

    def create(self, name: str = "study", **spec: Any) -> str:
        """A new study's id; random search over a square unless the spec says otherwise."""
        body = {"name": name, "space": SPACE, "algorithm": {"name": "random_search"}, **spec}
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
def serve(clock: Clock) -> Iterator[Callable[..., Server]]:
    """Starts servers; they end with the test."""
    running: list[TestClient] = []

    def start(store: Store | None = None, **settings: Any) -> Server:
        app = create_app(Settings(**settings), store if store is not None else MemoryStore(), clock)
        base = "http://localhost" if settings.get("insecure_local") else "http://testserver"
        http = TestClient(app, base_url=base, raise_server_exceptions=False)
        http.__enter__()
        running.append(http)
        return Server(app, http, clock)

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

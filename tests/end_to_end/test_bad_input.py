"""The table of bad inputs in clients/README.md: each row is sent, and gets the status and code that it promises."""

import re
from pathlib import Path

import httpx
import pytest

from tests.end_to_end.service import Service

PAGE = Path(__file__).parents[2] / "clients" / "README.md"
ROW = re.compile(r"^\| `(GET|POST|DELETE) (\S+)` \| (?:`(.*)` )?\| (\d+) \| `([\w-]+)` \|$", re.M)
ROWS = ROW.findall(PAGE.read_text())


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with Service(tmp_path_factory.mktemp("bad-input")) as service:
        service.start()
        with httpx.Client(base_url=service.url, timeout=20) as opened:
            yield opened


@pytest.fixture(scope="module")
def study(client):
    space = {"x": {"type": "float", "low": -5, "high": 5}}
    client.post("/v1/studies", json={"name": "taken", "space": space})
    made = client.post("/v1/studies", json={"name": "bad input", "space": space, "algorithm": "random_search"}).json()
    assert client.post(f"/v1/studies/{made['id']}/ask", json={}).json()["trials"][0]["id"] == "t_1"
    return made["id"]


def test_the_table_is_there():
    assert len(ROWS) >= 20


@pytest.fixture(scope="module")
def federated(client):
    space = {"x": {"type": "float", "low": -5, "high": 5}}
    return client.post("/v1/studies", json={"name": "rounds", "space": space, "algorithm": "fedzo"}).json()["id"]


@pytest.mark.parametrize(
    ("verb", "path", "body", "status", "code"), ROWS, ids=[f"{r[4]}-{i}" for i, r in enumerate(ROWS)]
)
def test_bad_input_gets_the_promised_problem(client, study, federated, verb, path, body, status, code):
    headers = {"content-type": "application/json"} if body else {}
    path = path.replace("{s}", study).replace("{f}", federated)
    answer = client.request(verb, path, content=body.encode(), headers=headers)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (int(status), code), problem
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert problem["detail"]
    assert problem["hint"]
    assert problem["request_id"]
    assert problem["retryable"] is False


def test_history_is_readable_after_all_that(client, study):
    assert client.get(f"/v1/studies/{study}/trials").status_code == 200
    assert client.get(f"/v1/studies/{study}/export").status_code == 200
    told = client.post(f"/v1/studies/{study}/tell", json={"trial": "t_1", "value": 1.5}).json()
    assert told["results"][0]["outcome"] == "applied"

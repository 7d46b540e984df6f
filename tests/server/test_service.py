"""What the service says about itself, its settings, and a real process that starts and stops."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from blackbox_server.settings import Settings

from blackbox.algorithm import registry
from blackbox.errors import InvalidInput
from tests.server import tables
from tests.server.conftest import Server


def test_the_service_document_links_to_what_exists(server: Server) -> None:
    answer = server.http.get("/v1")
    document = answer.json()
    study = server.create()
    for name, path in document["links"].items():
        if name in ("ask", "tell", "heartbeat", "fork"):
            continue
        assert server.http.get(path.replace("{study}", study)).status_code == 200, path
    assert server.http.get("/v1", headers={"if-none-match": answer.headers["etag"]}).status_code == 304
    assert server.http.post("/v1/studies", json=document["examples"]["create"]).status_code == 201
    assert server.http.post(f"/v1/studies/{study}/ask", json=document["examples"]["ask"]).status_code == 200
    assert server.http.post(f"/v1/studies/{study}/tell", json=document["examples"]["tell"]).status_code == 200


def test_llms_txt_has_the_loop(server: Server) -> None:
    text = server.http.get("/llms.txt").text
    assert "Z=http://testserver" in text
    assert "while T=$(curl -s $Z/v1/studies/$S/ask" in text
    assert 'curl -s $Z/v1/studies/$S/brief -H "$A"' in text


def test_algorithms_are_those_of_the_registry_with_their_schemas(server: Server) -> None:
    shapes = server.http.get("/v1/algorithms").json()["algorithms"]
    assert [shape["name"] for shape in shapes] == list(registry())
    for shape in shapes:
        assert shape["options"]["type"] == "object"
        assert shape["memory_bytes"]
        assert shape["summary"]


def test_limits_are_those_of_the_settings_and_the_key(serve: Callable[..., Server]) -> None:
    limits = serve(max_count=7).http.get("/v1/limits").json()
    assert limits["count"] == 7
    assert limits["key"]["project"] == "default"
    assert "keys:admin" in limits["key"]["scopes"]


def test_the_schema_names_every_hot_field(server: Server) -> None:
    schema = server.http.get("/openapi.json").json()
    body = schema["paths"]["/v1/studies/{study}/ask"]["post"]["requestBody"]
    assert body["content"]["application/json"]["schema"]["$ref"] == "#/components/schemas/Ask"
    assert "wait_seconds" in schema["components"]["schemas"]["Ask"]["properties"]
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(schema)))
    assert names <= set(schema["components"]["schemas"])


def test_metrics_count_requests_and_results(server: Server) -> None:
    study = server.create()
    server.ask(study)
    server.tell(study, {"trial": "t_1", "value": 1})
    text = server.http.get("/metrics").text
    assert 'blackbox_request_seconds_count{route="/v1/studies/{study}/ask",status="200"} 1.0' in text
    assert 'blackbox_results_total{outcome="applied"} 1.0' in text
    assert study not in text


# Settings -------------------------------------------------------------------------------------------------------------


def test_settings_come_from_the_environment() -> None:
    environ = {"BLACKBOX_PORT": "99", "BLACKBOX_INSECURE_LOCAL": "true", "BLACKBOX_TEST_POSTGRES": "x", "PORT": "1"}
    settings = Settings.from_env(environ, host="127.0.0.1")
    assert settings.port == 99
    assert settings.insecure_local is True


def test_a_wrong_setting_is_named_with_the_nearest_right_one() -> None:
    with pytest.raises(InvalidInput, match="PORT"):
        Settings.from_env({"BLACKBOX_PROT": "99"})
    with pytest.raises(InvalidInput, match="BLACKBOX_PORT"):
        Settings.from_env({"BLACKBOX_PORT": "many"})


def test_every_setting_and_every_quota_stands_in_the_readme() -> None:
    readme = (Path(__file__).parents[2] / "server" / "README.md").read_text()
    assert all(field.description for field in Settings.model_fields.values())
    assert tables.settings_table() in readme
    assert tables.quotas_table() in readme


# A real process -------------------------------------------------------------------------------------------------------


_started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _no_server_outlives_its_test() -> Iterator[None]:
    yield
    while _started:
        process = _started.pop()
        process.kill()
        process.wait()


def _start(tmp_path: Path, **settings: Any) -> tuple[subprocess.Popen[str], str, str | None]:
    code = (
        "import json, sys\nfrom blackbox_server.app import run\nfrom blackbox_server.settings import Settings\n"
        "run(Settings(**json.loads(sys.argv[1])))"
    )
    given = {"port": 0, "database": str(tmp_path / "studies.db"), **settings}
    process = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(given)], stdout=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    _started.append(process)
    assert process.stdout is not None
    url = process.stdout.readline().rpartition(" ")[2].strip()
    assert url.startswith("http://127.0.0.1:"), url
    key = None
    if not settings.get("insecure_local") and not (tmp_path / "started").exists():
        key = process.stdout.readline().rpartition(" ")[2].strip()
        (tmp_path / "started").touch()
    return process, url, key


def _post(url: str, key: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return dict(json.loads(answer.read()))


@pytest.mark.parametrize("how", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_server_prints_its_key_once_stops_on_a_signal_and_keeps_everything(tmp_path: Path, how: int) -> None:
    process, url, key = _start(tmp_path)
    assert key is not None
    assert key.startswith("zok_")
    space = {"x": {"type": "float", "low": 0, "high": 1}}
    study = _post(f"{url}/v1/studies", key, {"name": "a", "space": space})["id"]
    trial = _post(f"{url}/v1/studies/{study}/ask", key, {})["trials"][0]["id"]
    _post(f"{url}/v1/studies/{study}/tell", key, {"trial": trial, "value": 0.25})
    process.send_signal(how)
    rest, _ = process.communicate(timeout=30)
    assert "zok_" not in rest
    process, url, _ = _start(tmp_path)
    try:
        told = _post(f"{url}/v1/studies/{study}/tell", key, {"trial": trial, "value": 0.25})
        assert told["results"][0]["outcome"] == "duplicate"
        assert told["study"]["best"]["value"] == 0.25
    finally:
        process.send_signal(signal.SIGTERM)
        assert "zok_" not in process.communicate(timeout=30)[0]


@pytest.mark.skipif(not all(map(shutil.which, ("bash", "curl", "jq"))), reason="needs bash, curl and jq")
def test_the_loop_of_llms_txt_runs_as_printed(tmp_path: Path) -> None:
    process, url, key = _start(tmp_path)
    try:
        with urllib.request.urlopen(f"{url}/llms.txt") as answer:
            text = answer.read().decode()
        blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
        script = "\n".join(blocks).replace("zok_...", str(key)).replace('"evaluations":50', '"evaluations":6')
        job = tmp_path / "my_job"
        job.write_text("#!/bin/sh\necho \"$1\" | awk '{print ($1 - 1) * ($1 - 1)}'\n")
        job.chmod(0o755)
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=100)
        assert "COMPLETED (budget)" in done.stdout, done
        assert "evaluations: 6 of 6" in done.stdout
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)

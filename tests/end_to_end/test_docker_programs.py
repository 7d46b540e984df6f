"""The small programs of the images, against a real server: preparation, health check, the token of Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from blackbox_client import Client, errors

from tests.end_to_end.service import Command, Service, free_port, until

DOCKER = Path(__file__).parents[2] / "docker"


def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BLACKBOX_")}
    return subprocess.run(
        [str(word) for word in command], env={**environment, **variables}, capture_output=True, text=True, timeout=60
    )


@pytest.mark.slow
def test_the_preparation_makes_a_study_and_a_key_that_only_evaluates(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_bytes((DOCKER / "job.py").read_bytes())
    with Service(tmp_path, keys=True) as server:
        server.start()
        assert server.key is not None
        (tmp_path / "admin").write_text(server.key)
        as_admin = {"BLACKBOX_URL": server.url, "BLACKBOX_KEY_FILE": str(tmp_path / "admin")}
        for _ in range(2):  # the second one changes nothing
            done = run(sys.executable, tmp_path / "job.py", tmp_path / "worker", **as_admin)
            assert done.returncode == 0, done.stderr
            assert done.stdout == ""
        assert (tmp_path / "worker").stat().st_mode & 0o777 == 0o600
        assert len(server.client().keys()) == 2
        (study,) = server.client().studies()
        with Client(server.url, (tmp_path / "worker").read_text()) as worker:
            with pytest.raises(errors.Forbidden):
                worker.create_study(name="another", space={"x": {"type": "float", "low": 0, "high": 1}})
            with pytest.raises(errors.Forbidden):
                worker.study(study.id).cancel()
        as_worker = {"BLACKBOX_URL": server.url, "BLACKBOX_KEY_FILE": str(tmp_path / "worker")}
        with Command(tmp_path, "worker", study.name, "job:evaluate", variables=as_worker) as worker_process:
            until(lambda: server.client().study(study.id).info.budget.used, "the first result", worker_process)

        (tmp_path / "worker").write_text("zok_00000000_" + "0" * 43)  # of a database that is no more
        done = run(sys.executable, tmp_path / "job.py", tmp_path / "worker", **as_admin)
        assert done.returncode == 0, done.stderr
        with Client(server.url, (tmp_path / "worker").read_text()) as worker:
            assert worker.study(study.id).refresh().name == study.name


def test_the_health_check_asks_the_service_that_is_there(tmp_path: Path) -> None:
    with Service(tmp_path) as server:
        server.start()
        assert run(sys.executable, DOCKER / "healthcheck.py", BLACKBOX_PORT=str(server.port)).returncode == 0
        assert run(sys.executable, DOCKER / "healthcheck.py", BLACKBOX_URL=server.url).returncode == 0
    port = free_port()
    sick = run(sys.executable, DOCKER / "healthcheck.py", BLACKBOX_PORT=str(port))
    assert sick.returncode == 1
    assert f"127.0.0.1:{port}/readyz" in sick.stderr


def test_the_token_of_ray_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "token"
    variables = {"RAY_AUTH_TOKEN_PATH": str(path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    missing = run("sh", DOCKER / "ray.sh", "head", **variables)
    assert missing.returncode == 2
    assert "no token" in missing.stderr
    for _ in range(2):
        assert run("sh", DOCKER / "ray.sh", "token", **variables).returncode == 0
        assert path.stat().st_mode & 0o777 == 0o600
    token = path.read_text()
    assert len(token.strip()) == 64
    assert run("sh", DOCKER / "ray.sh", "token", **variables).stdout == ""
    assert path.read_text() == token

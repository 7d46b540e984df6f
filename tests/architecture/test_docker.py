"""What the Dockerfile and compose files promise, as far as reading shows it; `make images` tries it on containers."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PAGE = (DOCKER / "README.md").read_text()
COMPOSE = sorted(DOCKER.glob("compose*.yaml"))
STAGES = re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.M)
RAY_PORTS = ("6379", "8265", "10001")


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe", pure=True).load(path.read_text())
    return found


def services() -> list[Any]:
    return [
        pytest.param(path, name, service, id=f"{path.stem}-{name}")
        for path in COMPOSE
        for name, service in read(path)["services"].items()
    ]


def against_the_schema(*paths: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_compose_files_follow_the_compose_specification(tmp_path: Path) -> None:
    assert [path.name for path in COMPOSE] == ["compose.cluster.yaml", "compose.yaml"]
    done = against_the_schema(*COMPOSE)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "compose.yaml").write_text(COMPOSE[1].read_text().replace("read_only: true", "read_onyl: true"))
    refused = against_the_schema(tmp_path / "compose.yaml")
    assert refused.returncode == 1
    assert "read_onyl" in refused.stdout


@pytest.mark.parametrize(("path", "name", "service"), services())
def test_a_container_has_no_rights_and_writes_only_where_it_must(path: Path, name: str, service: Any) -> None:
    assert service["user"] == "10001:10001"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert [mount.split(":")[0] for mount in service["tmpfs"]] == ["/tmp"]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert not {"privileged", "cap_add", "devices", "network_mode", "pid", "ipc", "userns_mode"} & set(service)
    assert "docker.sock" not in str(service)
    assert not [text for text in service.get("environment", {}).values() if "zok_" in str(text)]


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.stem)
def test_only_the_service_is_published_and_only_to_its_machine(path: Path) -> None:
    found = read(path)["services"]
    assert [name for name, service in found.items() if service.get("ports")] == ["service"]
    assert found["service"]["ports"] == ["127.0.0.1:${BLACKBOX_PUBLISHED_PORT:-8800}:8800"]
    assert not [name for name, service in found.items() if service.get("expose")]


def test_ray_has_a_network_of_its_own_and_a_token() -> None:
    found = read(DOCKER / "compose.cluster.yaml")
    assert found["networks"]["ray"] == {"internal": True}
    ray = {name: service for name, service in found["services"].items() if service["image"] == "blackbox:ray"}
    assert sorted(ray) == ["fleet", "head", "node", "token"]
    assert {name: service["networks"] for name, service in ray.items() if name != "fleet"} == {
        name: ["ray"] for name in ("head", "node", "token")
    }
    others = [service["networks"] for name, service in found["services"].items() if name not in ray]
    assert others == [["front"]] * len(others)
    for name, service in ray.items():
        assert not [key for key in service.get("environment", {}) if key.startswith("RAY_AUTH")], name
        mounts = [mount for mount in service["volumes"] if mount.startswith("token:")]
        assert mounts == ["token:/keys/ray" if name == "token" else "token:/keys/ray:ro"], name
        assert any(how["condition"] != "service_started" for how in service.get("depends_on", {}).values()) or (
            name == "token"
        )
    assert re.search(r"^ENV .*RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=/keys/ray/token", DOCKERFILE, re.M)
    assert "--include-dashboard=false" in (DOCKER / "ray.sh").read_text()


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.stem)
def test_who_has_which_key(path: Path) -> None:
    """The first key is for the service and the preparation; who evaluates has one that may evaluate."""
    holders: dict[str, set[str]] = {"admin": set(), "worker": set()}
    for name, service in read(path)["services"].items():
        for mount in service["volumes"]:
            source, _, rest = mount.partition(":")
            if source in holders:
                holders[source].add(name if rest.endswith(":ro") else f"{name} writes")
    evaluates = {"fleet"} if "cluster" in path.name else {"worker-1", "worker-2"}
    assert holders == {"admin": {"service writes", "prepare"}, "worker": {"prepare writes", *evaluates}}


def test_the_targets_are_there_and_the_service_is_the_default() -> None:
    assert {"service", "ray"} <= set(STAGES)
    assert STAGES[-1] == "service"
    wanted = {
        service["build"]["target"]: service["image"]
        for path in COMPOSE
        for service in read(path)["services"].values()
        if "build" in service
    }
    assert wanted == {"service": "blackbox:service", "ray": "blackbox:ray"}


def test_what_runs_comes_from_stages_without_rights_that_install_nothing() -> None:
    by_stage = dict(zip(STAGES, re.split(r"^FROM .*$", DOCKERFILE, flags=re.M)[1:], strict=True))
    assert re.search(r"^FROM runtime AS (ray|service)$", DOCKERFILE, re.M)
    assert "USER 10001:10001" in by_stage["runtime"]
    for name in ("ray", "service"):
        assert not re.search(r"^(RUN|USER|ADD)", by_stage[name], re.M), name
        assert "HEALTHCHECK" in by_stage[name]
    assert re.findall(r"^EXPOSE (.*)$", DOCKERFILE, re.M) == ["8800"]
    assert not [port for port in RAY_PORTS if f"EXPOSE {port}" in DOCKERFILE]
    assert not re.search(r"(TOKEN|SECRET|PASSWORD|KEY)=", DOCKERFILE)


def test_the_build_copies_only_what_is_there_and_what_dockerignore_lets_through() -> None:
    let_through = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.M)
        for source in line.split()[:-1]
    ]  # fmt: skip
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(Path(source).match(each) or source.startswith(f"{each}/") for each in let_through), source


def test_the_extras_that_images_install_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installed = re.findall(r"install\.sh dependencies (.*)$", DOCKERFILE, re.M)
    assert installed == ["server", "server ray"]
    assert {name for line in installed for name in line.split()} <= set(extras)


def test_everything_that_a_developer_installs_is_pinned() -> None:
    pinned = {line.partition("==")[0].lower() for line in (DOCKER / "constraints.txt").read_text().split()}
    assert {"check-jsonschema", "ruamel.yaml", "hatchling"} <= pinned


@pytest.mark.parametrize("script", sorted(DOCKER.glob("*.sh")), ids=lambda path: path.name)
def test_a_shell_script_has_no_syntax_error_and_refuses_unknown_words(script: Path, tmp_path: Path) -> None:
    subprocess.run(["sh", "-n", script], check=True, timeout=10)
    (tmp_path / "token").write_text("secret")
    variables = {"PATH": "/usr/bin:/bin", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    done = subprocess.run(["sh", script, "nonsense"], env=variables, capture_output=True, text=True, timeout=10)
    assert done.returncode == 2
    assert "nonsense" in done.stderr


def test_the_page_names_files_and_targets_that_exist() -> None:
    commands = [
        line for block in re.findall(r"^```(?:bash)?\n(.*?)^```", PAGE, re.S | re.M) for line in block.splitlines()
    ]
    assert any(line.startswith("docker compose") for line in commands)
    for line in commands:
        for path in re.findall(r"(?:-f|--file) (\S+)", line):
            assert (ROOT / path).is_file(), line
        for target in re.findall(r"--target[ =](\S+)", line):
            assert target in STAGES, line
        for target in re.findall(r"^make (\S+)", line):
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), line

"""Containers for `images.py`: buildah and podman over a store of their own, and a compose file run by them."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

PATIENCE = 180.0
"""Seconds after which anything that should happen in a container has not happened."""


class Failure(Exception):
    """A step that did not work, or a promise that is not kept."""


def check(condition: object, promise: str) -> None:
    """Print that a promise is kept, or raise `Failure`."""
    if not condition:
        raise Failure(f"this is not so: {promise}")
    print(f"  ok  {promise}", flush=True)


def call(*command: str | Path, timeout: float = PATIENCE, may_fail: bool = False, **more: Any) -> str:
    """Run a program to its end; returns what it printed, or an empty text if it may fail and did."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL, text=True, timeout=timeout, **more)
    except subprocess.TimeoutExpired:
        raise Failure(f"{' '.join(words)}: not done after {timeout:.0f} s") from None
    if done.returncode and not may_fail:
        raise Failure(f"{' '.join(words)}: exit code {done.returncode}\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout if not done.returncode else ""


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until a condition holds; raise `Failure` if it does not within `PATIENCE` seconds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise Failure(f"waited {PATIENCE:.0f} s for {what}")
        time.sleep(2.0)  # asking costs a small machine more than waiting


class Engine:
    """buildah and podman over a store of their own, so that nothing of the machine's own is touched.

    Parameters
    ----------
    store : folder of images and layers.
    """

    def __init__(self, store: Path) -> None:
        self.store = store
        store.mkdir(parents=True, exist_ok=True)
        self._at = ("--root", str(store / "images"), "--runroot", str(store / "run"), "--log-level=error")
        limits = []
        for name, number in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
            most = min(resource.getrlimit(number)[1], 16384)  # podman's own may be more than this machine allows
            limits.append(f"{name}={most}:{most}")
        (store / "containers.conf").write_text(
            f"[containers]\ndefault_ulimits = {json.dumps(limits)}\n"
            # crun refuses machines that mix both versions of control groups
            f'[engine]\nruntime = "runc"\nevents_logger = "none"\n'
            f'[network]\nnetwork_backend = "netavark"\nnetwork_config_dir = "{store / "networks"}"\n'
        )
        self._environment = {**os.environ, "CONTAINERS_CONF": str(store / "containers.conf")}

    def buildah(self, *arguments: str | Path, timeout: float = PATIENCE) -> str:
        """Run buildah; see `call`."""
        return call("buildah", *self._at, *arguments, timeout=timeout)

    def podman(self, *arguments: str | Path, timeout: float = PATIENCE, may_fail: bool = False) -> str:
        """Run podman; see `call`."""
        return call("podman", *self._at, *arguments, timeout=timeout, may_fail=may_fail, env=self._environment)

    def inspect(self, kind: str, name: str) -> dict[str, Any]:
        """The description of a container, an image, ..."""
        found: dict[str, Any] = json.loads(self.podman(kind, "inspect", name))[0]
        return found

    def sweep(self) -> None:
        """Remove what a run may have left."""
        self.podman("rm", "--all", "--force", "--time", "2", may_fail=True)
        self.podman("volume", "rm", "--all", "--force", may_fail=True)
        self.podman("network", "prune", "--force", may_fail=True)


class Stack:
    """A compose file, run by podman. A key of the file that this class does not understand is an error.

    Parameters
    ----------
    engine : where the images are.
    file : path of the compose file.
    environ : what its variables are replaced by.
    scale : how many containers a service has, where it is not one.
    """

    def __init__(self, engine: Engine, file: Path, environ: Mapping[str, str], scale: Mapping[str, int]) -> None:
        self.engine = engine
        self.folder = file.parent
        text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: environ.get(found[1], found[2]), file.read_text())
        self.spec = YAML(typ="safe", pure=True).load(text)
        self.services: dict[str, dict[str, Any]] = self.spec["services"]
        self.scale = scale
        self.restarted: dict[str, int] = {}

    def containers(self, service: str) -> list[str]:
        """The names of the containers of a service."""
        return [f"try-{service}-{number}" for number in range(1, self.scale.get(service, 1) + 1)]

    def up(self) -> None:
        """Start the services in the order of their dependencies, each once the conditions on these hold."""
        for name, network in (self.spec.get("networks") or {"default": {}}).items():
            internal = ["--internal"] if (network or {}).get("internal") else []
            # Docker keeps its networks apart; podman does when told to.
            self.engine.podman("network", "create", "--opt=isolate=true", *internal, f"try-{name}")
        started: set[str] = set()
        while len(started) < len(self.services):
            ready = [
                name
                for name, service in self.services.items()
                if name not in started and set(service.get("depends_on", {})) <= started
            ]
            if not ready:
                raise Failure(f"{', '.join(set(self.services) - started)}: they wait for one another")
            for name in ready:
                for other, how in self.services[name].get("depends_on", {}).items():
                    self.wait(other, how["condition"])
                for container in self.containers(name):
                    self.engine.podman("run", "--detach", f"--name={container}", *self._arguments(name))
                started.add(name)

    def wait(self, service: str, condition: str) -> None:
        """Wait for a condition of the compose specification."""
        for container in self.containers(service):
            if condition == "service_healthy":
                test = self.services[service]["healthcheck"]["test"][1:]
                until(lambda c=container, t=test: self._healthy(c, t), f"{container} to be healthy")
            elif condition == "service_completed_successfully":
                code = self.ended(container)
                if code:
                    raise Failure(f"{container} ended with {code}:\n{self.logs(container)}")
            else:
                raise Failure(f"{service}: the condition {condition} is not known here")

    def _healthy(self, container: str, test: list[str]) -> bool:
        if not self.engine.inspect("container", container)["State"]["Running"]:
            service = self.services[container.removeprefix("try-").rpartition("-")[0]]
            self.restarted[container] = self.restarted.get(container, 0) + 1
            if "restart" not in service or self.restarted[container] > 3:
                raise Failure(f"{container} has ended:\n{self.logs(container)}")
            print(f"      {container} has ended and is started again", flush=True)
            self.engine.podman("start", container)
        # podman's own health checks are timers of systemd, which may not run here.
        script = '"$@" >/dev/null 2>&1 && echo ok'
        return "ok" in self.engine.podman("exec", container, "sh", "-c", script, "-", *test, may_fail=True)

    def ended(self, container: str) -> int:
        """Wait until a container has ended; returns its exit code."""
        return int(self.engine.podman("wait", container))

    def logs(self, container: str) -> str:
        """The end of what a container has printed."""
        path = self.engine.inspect("container", container)["HostConfig"]["LogConfig"]["Path"]
        return Path(path).read_text()[-4000:] if path and Path(path).is_file() else ""

    def _arguments(self, name: str) -> list[str]:
        """The arguments of `podman run` for a service."""
        service = dict(self.services[name])
        for done in ("build", "depends_on", "healthcheck", "restart"):
            service.pop(done, None)
        said = ["--no-healthcheck"]
        entrypoint, command = service.pop("entrypoint", None), service.pop("command", [])
        image = f"localhost/{service.pop('image')}"
        for network in service.pop("networks", ["default"]):
            said.append(f"--network=try-{network}:alias={name}")
        for key, value in service.items():
            if key in ("read_only", "init"):
                said += [f"--{key.replace('_', '-')}"] if value else []
            elif key in ("user", "shm_size", "working_dir"):
                said.append(f"--{'workdir' if key == 'working_dir' else key.replace('_', '-')}={value}")
            elif key in ("tmpfs", "cap_drop", "security_opt"):
                said += [f"--{key.replace('_', '-')}={item}" for item in value]
            elif key == "ports":
                said += [f"--publish={item}" for item in value]
            elif key == "environment":
                said += [f"--env={variable}={text}" for variable, text in value.items()]
            elif key == "volumes":
                said += [f"--volume={self._source(item)}" for item in value]
            else:
                raise Failure(f"{name}: {key} is not known here")
        if entrypoint is not None:
            said.append(f"--entrypoint={json.dumps(entrypoint)}")
        return [*said, image, *command]

    def _source(self, volume: str) -> str:
        source, _, rest = volume.partition(":")
        return f"{(self.folder / source).resolve() if source.startswith('.') else f'try-{source}'}:{rest}"

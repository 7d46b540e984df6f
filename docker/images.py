"""Build the images and try them, on a Debian machine without Docker: `make images`, as root.

buildah builds them, with chroot isolation, on a base image bootstrapped here from Debian packages. podman then runs the
compose files as they stand: users, capabilities, read-only file systems, networks, volumes, conditions. What the pages
promise is checked on the running containers. Containers, networks and volumes are removed at the end, also after a
failure; images and layers stay in the folder `--store` for the next run, `--clean` removes that too.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
COMPOSE = {"service": ROOT / "docker" / "compose.yaml", "ray": ROOT / "docker" / "compose.cluster.yaml"}
"""What is run once the image of that target is there."""
NEEDED = {
    "buildah": "buildah",
    "podman": "podman",
    "runc": "runc",
    "iptables": "iptables",
    "mmdebstrap": "mmdebstrap",
    "/usr/lib/podman/netavark": "netavark",
    "/usr/lib/podman/aardvark-dns": "aardvark-dns",
    "/usr/bin/catatonit": "catatonit",
}
"""Programs, and the Debian package of each."""
BASE = "localhost/blackbox-base"
BASE_PACKAGES = "usr-is-merged,python3,python3-venv,ca-certificates"
NOT_IN_BASE = ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*")
MERGED_USR = "/usr/share/mmdebstrap/hooks/merged-usr"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PATIENCE = 180.0
"""Seconds after which anything that should happen in a container has not happened."""
BUILD_SECONDS = 1500.0
STUDY = "rosenbrock"


class Failure(Exception):
    """A step that did not work, or a promise that is not kept."""


def check(condition: object, promise: str) -> None:
    """Say that a promise is kept, or stop."""
    if not condition:
        raise Failure(f"this is not so: {promise}")
    print(f"  ok  {promise}", flush=True)


def call(*command: str | Path, timeout: float = PATIENCE, may_fail: bool = False, **more: Any) -> str:
    """Run a program to its end; what it printed, or an empty text where it may fail and did."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL, text=True, timeout=timeout, **more)
    except subprocess.TimeoutExpired:
        raise Failure(f"{' '.join(words)}: not done after {timeout:.0f} s") from None
    if done.returncode and not may_fail:
        raise Failure(f"{' '.join(words)}: exit code {done.returncode}\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout if not done.returncode else ""


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise Failure(f"waited {PATIENCE:.0f} s for {what}")
        time.sleep(2.0)  # asking costs a small machine more than waiting


# Building -------------------------------------------------------------------------------------------------------------


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
        return call("buildah", *self._at, *arguments, timeout=timeout)

    def podman(self, *arguments: str | Path, timeout: float = PATIENCE, may_fail: bool = False) -> str:
        return call("podman", *self._at, *arguments, timeout=timeout, may_fail=may_fail, env=self._environment)

    def inspect(self, kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.podman(kind, "inspect", name))[0]
        return found

    def sweep(self) -> None:
        """Remove what a run may have left."""
        self.podman("rm", "--all", "--force", "--time", "2", may_fail=True)
        self.podman("volume", "rm", "--all", "--force", may_fail=True)
        self.podman("network", "prune", "--force", may_fail=True)


def bootstrap(engine: Engine, suite: str) -> str:
    """A base image of Debian packages, from where this machine gets its own; made once."""
    name = f"{BASE}:{suite}"
    if engine.podman("image", "ls", "--quiet", name):
        return name
    archive = engine.store / "base.tar"
    sources = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("debian.sources"))]
    call(
        "mmdebstrap", "--variant=apt", f"--include={BASE_PACKAGES}", f"--hook-dir={MERGED_USR}",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in NOT_IN_BASE),
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        suite, archive, *(path for path in sources if path.is_file() and path.stat().st_size),
        timeout=BUILD_SECONDS,
    )  # fmt: skip
    engine.podman("import", archive, name)
    archive.unlink()
    return name


def build(engine: Engine, target: str, base: str, secrets: Mapping[str, Path]) -> None:
    """One target of the Dockerfile."""
    engine.buildah(
        "bud", "--isolation=chroot", "--format=docker", "--layers", "--pull-never", f"--build-arg=BASE={base}",
        *(f"--secret=id={name},src={path}" for name, path in secrets.items()),
        f"--target={target}", f"--tag=blackbox:{target}", ROOT, timeout=BUILD_SECONDS,
    )  # fmt: skip


@contextmanager
def pip_secrets(folder: Path) -> Iterator[dict[str, Path]]:
    """How this machine's pip reaches its index, as secrets of a build. Folders of this machine are left out."""
    given: dict[str, str] = {}
    for line in call(sys.executable, "-m", "pip", "config", "list").splitlines():
        name, _, value = line.partition("=")
        given[name.rpartition(".")[2].replace("default-", "")] = ast.literal_eval(value)
    wanted = {
        name: given[name] for name in ("index-url", "extra-index-url", "trusted-host", "timeout") if name in given
    }
    lines = [f"{name} = {value}" for name, value in wanted.items() if "file:" not in value]
    path = folder / "pip.conf"
    path.touch(0o600)
    path.write_text("\n".join(["[global]", *lines, ""]))
    try:
        yield {"pip.conf": path, **({"ca.crt": CERTIFICATES} if CERTIFICATES.is_file() else {})}
    finally:
        path.unlink()


# Running --------------------------------------------------------------------------------------------------------------


class Stack:
    """A compose file, run by podman. A key of the file that is not understood here is an error.

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
        return [f"try-{service}-{number}" for number in range(1, self.scale.get(service, 1) + 1)]

    def up(self) -> None:
        """Start every service once what it depends on has come as far as it has to."""
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
        """Wait for a container's end; its exit code."""
        return int(self.engine.podman("wait", container))

    def logs(self, container: str) -> str:
        path = self.engine.inspect("container", container)["HostConfig"]["LogConfig"]["Path"]
        return Path(path).read_text()[-4000:] if path and Path(path).is_file() else ""

    def _arguments(self, name: str) -> list[str]:
        """What `podman run` is told about a service."""
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


# Checking -------------------------------------------------------------------------------------------------------------


def check_image(engine: Engine, target: str) -> None:
    """What can be seen without running it."""
    image = f"localhost/blackbox:{target}"
    config = json.loads(engine.buildah("inspect", "--type=image", image))["Docker"]["config"]
    check(config["User"] == "10001:10001", "its user is 10001, without rights")
    check(config["Healthcheck"]["Test"][0] == "CMD", "it has a health check")
    ports = ["8800/tcp"] if target == "service" else []
    check(
        sorted(config.get("ExposedPorts") or ()) == ports, f"it exposes {' '.join(ports) or 'no port'} and nothing else"
    )
    look = "ls /etc/pip.conf /run/ca.crt /opt/tools ~root/.cache 2>/dev/null; true"
    left = engine.podman("run", "--rm", "--network=none", "--no-healthcheck", "--entrypoint=sh", image, "-c", look)
    check(not left.strip(), "nothing of the build is left in it: no pip, no configuration, no certificate")


def check_container(stack: Stack, container: str) -> None:
    """What a program that broke out of Python would find."""
    inside = (
        "import json, os\n"
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "try:\n    open('/new', 'w')\n    error = ''\n"
        "except OSError as raised:\n    error = raised.strerror\n"
        "keys = [value for value in os.environ.values() if 'zok_' in value]\n"
        "print(json.dumps([os.getuid(), status['CapEff'].strip(), status['NoNewPrivs'].strip(), error, keys]))"
    )
    said = json.loads(stack.engine.podman("exec", container, "python", "-c", inside))
    check(
        said == [10001, "0" * 16, "1", "Read-only file system", []],
        f"{container}: no root, no capability, no new privileges, nothing written outside volumes, no key in variables",
    )


def get(url: str, key: str | None = None, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
    """Status and JSON of an answer."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def try_service(stack: Stack, url: str, workers: list[str]) -> None:
    """A study from its creation to its end, with the compose file's own containers."""
    engine, (service,) = stack.engine, stack.containers("service")
    for container in (service, *workers):
        if engine.inspect("container", container)["State"]["Running"]:
            check_container(stack, container)
    began = time.monotonic()
    for worker in workers:
        code = stack.ended(worker)
        check(code == 0, f"{worker} has worked until the study ended: {stack.logs(worker)[-160:].strip()!r}")
    print(f"      after {time.monotonic() - began:.0f} s more")
    admin = engine.podman("exec", service, "cat", "/keys/admin/key").strip()
    _, page = get(f"{url}/v1/studies", admin)
    (study,) = page["studies"]
    _, best = get(f"{url}/v1/studies/{study['id']}/best", admin)
    value = best["items"][0]["value"]
    check((study["state"], study["budget"]["used"]) == ("COMPLETED", 400), "the study completed with 400 evaluations")
    check(value < 1.0, f"the best value is close to the minimum, 0: {value:.2g}")
    check(get(f"{url}/v1/studies")[0] == 401, "without a key the service answers 401")
    owner = stack.services["prepare"]["entrypoint"][-1]
    reader = ("run", "--rm", "--no-healthcheck", "--network=none", "--volume=try-worker:/keys/worker:ro")
    key = engine.podman(*reader, "--entrypoint=cat", "localhost/blackbox:service", owner).strip()
    body = {"name": "another", "space": {"x": {"type": "float", "low": 0, "high": 1}}}
    check(get(f"{url}/v1/studies", key, body)[0] == 403, "the workers' key makes no study")
    told = "".join(stack.logs(container) for name in stack.services for container in stack.containers(name))
    check("serves http" in told and "zok_" not in told, "no key is in any container's log")
    engine.podman("stop", "--time=15", service)
    check(engine.inspect("container", service)["State"]["ExitCode"] in (0, 143), "the service stops when it is told to")
    engine.podman("start", service)
    stack.wait("service", "service_healthy")
    check(get(f"{url}/v1/studies", admin)[1]["studies"][0]["id"] == study["id"], "started again it has its studies")


def taken_by_others() -> set[int]:
    """The ports of this machine on which programs listen, podman's aside, which holds those it publishes."""
    ports: dict[str, int] = {}
    for path in ("tcp", "tcp6"):
        for line in Path("/proc/net", path).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A":
                ports[f"socket:[{words[9]}]"] = int(words[1].rpartition(":")[2], 16)
    taken = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended
            if (process / "comm").read_text().strip() in ("conmon", "podman"):
                continue
            for name in os.listdir(process / "fd"):
                with suppress(OSError, KeyError):  # it is closed, or something else
                    taken.add(ports[os.readlink(process / "fd" / name)])
    return taken


def try_cluster(stack: Stack) -> None:
    """Who can reach Ray."""
    engine, (head,), (service,) = stack.engine, stack.containers("head"), stack.containers("service")
    address = engine.inspect("container", head)["NetworkSettings"]["Networks"]["try-ray"]["IPAddress"]
    look = (
        "rows = [line.split() for path in ('/proc/net/tcp', '/proc/net/tcp6') for line in open(path)]\n"
        "print(*sorted({int(row[1].rpartition(':')[2], 16) for row in rows if row[3] == '0A'}))"
    )
    ports = [int(port) for port in engine.podman("exec", head, "python", "-c", look).split()]
    check(
        6379 in ports and not {8265, 10001} & set(ports), f"the head has neither dashboard nor client server: {ports}"
    )
    scan = (
        "import socket, sys\n"
        "def reached(port):\n"
        "    try:\n        socket.create_connection((sys.argv[1], port), 1).close()\n        return True\n"
        "    except OSError:\n        return False\n"
        "print(*[port for port in map(int, sys.argv[2:]) if reached(port)])"
    )
    numbers = [str(port) for port in ports]
    found = engine.podman("exec", service, "python", "-c", scan, address, *numbers).split()
    check(not found, "the service's network reaches none of the head's ports")
    (node, *_) = stack.containers("node")
    check("6379" in engine.podman("exec", node, "python", "-c", scan, address, *numbers), "a node reaches them")
    here = {int(port) for port in call(sys.executable, "-c", scan, "127.0.0.1", *numbers).split()}
    check(not here - taken_by_others(), "none of them is published on this machine")
    for token, works in (("", True), ("0" * 64, False)):
        variable = [f"RAY_AUTH_TOKEN={token}"] if token else []
        script = "sh /opt/ray.sh healthy >/dev/null 2>&1 && echo welcome"
        said = engine.podman("exec", node, "env", *variable, "sh", "-c", script, may_fail=True)
        check(("welcome" in said) is works, f"with {'the' if works else 'another'} token the head answers: {works}")


def published(engine: Engine) -> list[str]:
    """Every port of the running containers that the machine itself offers."""
    ids = engine.podman("ps", "--quiet").split()
    bindings = [engine.inspect("container", each)["HostConfig"]["PortBindings"] or {} for each in ids]
    return [f"{at['HostIp']}:{inside}" for each in bindings for inside, ats in each.items() for at in ats or ()]


# The command ----------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help="service, ray; default: both")
    parser.add_argument(
        "--base", help="an image to build on, instead of one bootstrapped here; it must be in the store"
    )
    parser.add_argument("--store", type=Path, default=Path("/var/tmp/blackbox-images"), help="default: %(default)s")
    parser.add_argument("--clean", action="store_true", help="remove the store at the end")
    given = parser.parse_args()
    targets = given.targets or list(COMPOSE)
    if unknown := set(targets) - set(COMPOSE):
        parser.error(f"there is no target {', '.join(sorted(unknown))}; there are {', '.join(COMPOSE)}")
    if os.geteuid():
        print("this needs root: chroots and networks are made", file=sys.stderr)
        return 2
    missing = [package for program, package in NEEDED.items() if shutil.which(program) is None]
    if missing:
        print(f"missing programs: apt-get install --no-install-recommends {' '.join(missing)}", file=sys.stderr)
        return 2
    engine = Engine(given.store.resolve())
    try:
        engine.sweep()
        run(engine, targets, given.base)
    except Failure as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    finally:
        engine.sweep()
        if given.clean:
            shutil.rmtree(engine.store)
    return 0


def run(engine: Engine, targets: list[str], base: str | None) -> None:
    """Build and try each target."""
    began = time.monotonic()
    if base is None:
        release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
        base = bootstrap(engine, release.get("VERSION_CODENAME", "bookworm").strip('"'))
    report = [("base", engine.inspect("image", base)["Size"], time.monotonic() - began)]
    for target in COMPOSE if "ray" in targets else targets:  # the cluster's service is the other image
        print(f"{target}: building", flush=True)
        began = time.monotonic()
        with pip_secrets(engine.store) as secrets:
            build(engine, target, base, secrets)
        report.append(
            (target, engine.inspect("image", f"localhost/blackbox:{target}")["Size"], time.monotonic() - began)
        )
        check_image(engine, target)
    for target in targets:
        print(f"{COMPOSE[target].relative_to(ROOT)}: running", flush=True)
        began = time.monotonic()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        stack = Stack(engine, COMPOSE[target], {"BLACKBOX_PUBLISHED_PORT": str(port)}, {"node": 2})
        try:
            stack.up()
            check(published(engine) == ["127.0.0.1:8800/tcp"], "one port is published, the service's, to this machine")
            if target == "ray":
                try_cluster(stack)
            names = [name for name in stack.services if name.startswith("worker") or name == "fleet"]
            try_service(stack, f"http://127.0.0.1:{port}", [each for name in names for each in stack.containers(name)])
        finally:
            engine.sweep()
        print(f"  {time.monotonic() - began:.0f} s")
    for name, size, seconds in report:
        print(f"{name:8} {size / 1e6:6.0f} MB, made in {seconds:.0f} s")


if __name__ == "__main__":
    sys.exit(main())

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
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from containers import Engine, Failure, Stack, call, check

ROOT = Path(__file__).parents[1]
COMPOSE = {"service": ROOT / "docker" / "compose.yaml", "ray": ROOT / "docker" / "compose.cluster.yaml"}
"""The compose file that is run once the image of its target is built."""
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
BUILD_SECONDS = 1500.0


# Building -------------------------------------------------------------------------------------------------------------


def bootstrap(engine: Engine, suite: str) -> str:
    """Make a base image of Debian packages, once, from the package sources of this machine; returns its name."""
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
    """Build one target of the Dockerfile."""
    engine.buildah(
        "bud", "--isolation=chroot", "--format=docker", "--layers", "--pull-never", f"--build-arg=BASE={base}",
        *(f"--secret=id={name},src={path}" for name, path in secrets.items()),
        f"--target={target}", f"--tag=blackbox:{target}", ROOT, timeout=BUILD_SECONDS,
    )  # fmt: skip


@contextmanager
def pip_secrets(folder: Path) -> Iterator[dict[str, Path]]:
    """The configuration of this machine's pip as secrets of a build, without folders of this machine."""
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


# Checking -------------------------------------------------------------------------------------------------------------


def check_image(engine: Engine, target: str) -> None:
    """Check an image as far as possible without running it."""
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
    """Check what a program that broke out of Python could do in a container."""
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
    """Check a study from its creation to its end, with the containers of the compose file."""
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
    """Check who can reach Ray."""
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
    """The command: build, try, clean up; returns its exit code."""
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

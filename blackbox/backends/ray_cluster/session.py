"""The connection of this process to a Ray cluster, which is started here or joined."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from blackbox.errors import BlackboxError, InvalidInput

OLDEST = (2, 54)
"""The first version that is accepted: token authentication in all its parts."""
CONNECT_SECONDS = 30.0
"""Seconds a cluster may take to answer before it counts as dead."""
OBJECT_STORE_BYTES = 512 * 2**20
"""Shared memory of a cluster that is started here, for base vectors and parameters."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class ClusterUnreachable(BlackboxError):
    """There is no Ray cluster that this process may join where one was expected."""


def ray_package() -> ModuleType:
    """The Ray package; raises `InvalidInput` if it is missing or too old."""
    try:
        ray = import_module("ray")
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise InvalidInput("this needs Ray", hint='pip install "blackbox-zoo[ray]"') from None
    if tuple(int(part) for part in ray.__version__.split(".")[:2]) < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise InvalidInput(
            f"Ray >= {wanted} is needed, got {ray.__version__}: older ones do not ask who comes",
            hint='pip install --upgrade "blackbox-zoo[ray]"',
        )
    return ray


@cache
def _token() -> str:
    """The token of every cluster that this process starts: Ray reads it once."""
    return os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)


class Session:
    """The connection of this process to a Ray cluster. A process has one; a second `Session` shares it.

    Parameters
    ----------
    address : host:port of a cluster's head as a node of it sees it, `auto` for the one this machine belongs to, or None
        to start one here: for this process alone, on the loopback interface.
    n_cpus : cores of a cluster started here; None: all.
    runtime_env : Ray's runtime environment of the actors (`{"working_dir": "."}` ships the modules of this folder).
    object_store_bytes : shared memory of a cluster started here.

    Raises
    ------
    ClusterUnreachable
        Within `CONNECT_SECONDS`, if there is no such cluster or it refuses the token. Ray would wait for minutes.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        n_cpus: int | None = None,
        runtime_env: Mapping[str, Any] | None = None,
        object_store_bytes: int = OBJECT_STORE_BYTES,
    ) -> None:
        self._owner = False
        self._environ: dict[str, str | None] = {}
        try:
            if address is None and not _joined():
                self._set(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=_token(), RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")
            elif "RAY_AUTH_MODE" not in os.environ and not _joined():
                self._set(RAY_AUTH_MODE="token")
            self._set(RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")  # says that a future Ray will not hide GPUs; so be it
            self.ray = ray_package()
            if self.ray.is_initialized():
                self._share(address)
                return
            given: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}
            if runtime_env is not None:
                given["runtime_env"] = dict(runtime_env)
            _reread()
            if address is None:
                self._start(n_cpus, object_store_bytes, given)
            else:
                self._join(address, given)
            self._owner = True
        except BaseException:
            self.close()
            raise

    def _start(self, n_cpus: int | None, object_store_bytes: int, given: dict[str, Any]) -> None:
        try:
            self.ray.init(
                address="local",
                num_cpus=n_cpus or len(os.sched_getaffinity(0)),
                include_dashboard=False,
                object_store_memory=object_store_bytes,
                **given,
            )
        except Exception as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise ClusterUnreachable(
                f"Ray could not start a cluster here: {said[0][:300]}",
                hint="Ray gives itself 30 s, which may be too little on a very busy machine: try again",
            ) from error
        at = str(self.ray.get_runtime_context().gcs_address)
        if not at.startswith("127.0.0.1:"):  # Ray was imported before us and has made up its mind
            self.ray.shutdown()
            raise ClusterUnreachable(
                f"a cluster for this process alone must listen on the loopback interface, Ray chose {at}",
                hint="start the backend before ray is imported, or start a cluster yourself and give its address",
            )

    def _join(self, address: str, given: dict[str, Any]) -> None:
        if "://" in address:
            raise InvalidInput(
                f"the address of a cluster is host:port or auto, got {address}",
                hint="Ray Client is not supported: run this on a node of the cluster",
            )
        at = _found(address)
        host, _, port = at.rpartition(":")
        if not host or not port.isdecimal():
            raise InvalidInput(f"the address of a cluster is host:port or auto, got {address!r}")
        probe(self.ray, host.strip("[]"), int(port))
        self.ray.init(address=at, **given)

    def _share(self, address: str | None) -> None:
        """Make do with the cluster that this process drives already, if it is the one that is meant."""
        at = str(self.ray.get_runtime_context().gcs_address)
        host, _, port = (address or "").rpartition(":")
        same = port == at.rpartition(":")[2] and (host in _LOOPBACK or host == at.rpartition(":")[0])
        if address not in (None, "auto") and not same:
            raise InvalidInput(
                f"this process drives the Ray cluster at {at} and cannot drive that at {address} too",
                hint="close the other backend first, or use another process",
            )

    def _set(self, **variables: str) -> None:
        for name, value in variables.items():
            self._environ.setdefault(name, os.environ.get(name))
            os.environ[name] = value

    def close(self) -> None:
        """Leave the cluster, and end it if it was started here."""
        if self._owner:
            self._owner = False
            self.ray.shutdown()
        for name, value in self._environ.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._environ = {}
        if "ray" in sys.modules and not _joined():
            _reread()


def _joined() -> bool:
    """Whether this process is connected to a cluster already; imports nothing."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(getattr(ray, "is_initialized", bool)())


def _reread() -> None:
    """Make a Ray that was imported earlier read the environment again, as one imported now would."""
    raylet = import_module("ray._raylet")
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
    constants = import_module("ray._private.ray_constants")
    alone = os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0" if constants.IS_WINDOWS_OR_OSX else "1")
    setattr(constants, "ENABLE_RAY_CLUSTER", alone != "0")  # noqa: B010 -- it is not in the stubs


def _found(address: str) -> str:
    """The address with `auto` resolved to host:port: from the environment, or of the cluster on this machine."""
    if address != "auto":
        return address
    if at := os.environ.get("RAY_ADDRESS", "").removeprefix("auto"):
        return at
    noted = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    if noted.is_file() and (at := noted.read_text().strip()):
        return at
    raise ClusterUnreachable(
        "no Ray cluster was started on this machine", hint="`ray start --head` starts one; or give host:port"
    )


_PROBE = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='error'); print('joined')"


def probe(ray: ModuleType, host: str, port: int) -> None:
    """Raise `ClusterUnreachable` if no cluster answers there or it refuses the token.

    Ray itself would retry for minutes, and cannot be interrupted meanwhile.
    """
    seen = ray.util.get_node_ip_address() if host in _LOOPBACK else host
    expected = f"expected the head of a Ray cluster at {host}:{port}"
    hint = (
        "it is what `ray start --head` prints; this machine must be a node of that cluster (`ray start --address=...`)"
    )
    try:
        socket.create_connection((seen, port), timeout=5.0).close()
    except OSError as error:
        raise ClusterUnreachable(
            f"{expected}, but nothing answers there: {error.strerror or error}", hint=hint
        ) from None
    program = [sys.executable, "-W", "ignore", "-c", _PROBE, f"{host}:{port}"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        late = threading.Timer(CONNECT_SECONDS, child.kill)
        late.start()
        assert child.stdout is not None
        said = line = ""
        for line in child.stdout:
            if line.strip() == "joined":
                break
            said = line.strip() or said
            if "uthentic" in line:  # it would be tried twenty times
                break
        child.kill()
        timely = late.is_alive()
        late.cancel()
    if line.strip() == "joined":
        return
    if "uthentic" in said:
        raise ClusterUnreachable(
            f"the Ray cluster at {host}:{port} does not take our token",
            hint="set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's",
        )
    why = said[:300] if timely else f"what listens there did not answer as one within {CONNECT_SECONDS:.0f} s"
    raise ClusterUnreachable(f"{expected}: {why}", hint=hint)

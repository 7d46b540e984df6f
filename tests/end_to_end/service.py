"""Real processes for the tests: a command line in a process of its own, and a server that dies and comes back.

Every process runs `blackbox.cli.main()` with the arguments a user would type. It is forked from a process that has the
libraries imported already: ten interpreters that import SciPy anew would take most of the time of these tests.
"""

from __future__ import annotations

import multiprocessing
import os
import pkgutil
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import httpx
from blackbox_client import Client, RetryPolicy

from blackbox import algorithms

PATIENCE = 60.0
"""Seconds after which anything that should happen has not happened, also on a busy machine."""

_context = multiprocessing.get_context("forkserver")
# Not blackbox.cli.commands itself: its consoles must look at the streams of their own process.
_context.set_forkserver_preload(
    [
        *(f"blackbox.algorithms.{module.name}" for module in pkgutil.iter_modules(algorithms.__path__)),
        *("blackbox_server.app", "blackbox_server.store", "blackbox_client", "blackbox.minimize", "typer"),
        *("rich.progress", "rich.table", "uvicorn.protocols.http.httptools_impl", "uvicorn.lifespan.on", "uvloop"),
    ]
)


class Command:
    """`blackbox ARGUMENTS` in a process of its own. Use it as a context manager: leaving it kills the process.

    Parameters
    ----------
    folder : working directory; what the command prints goes into files there.
    variables : environment variables to set; None removes one.
    script : run the installed script in a new interpreter, as a shell would, instead of forking.
    """

    _n_made = 0

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        variables: Mapping[str, str | None] | None = None,
        script: bool = False,
    ) -> None:
        Command._n_made += 1
        self.out_path = folder / f"command-{Command._n_made}.out"
        self.err_path = folder / f"command-{Command._n_made}.err"
        variables = {"COLUMNS": "200", "BLACKBOX_URL": None, "BLACKBOX_KEY": None, **(variables or {})}
        self._process: multiprocessing.process.BaseProcess | subprocess.Popen[bytes]
        if script:
            environment = {name: value for name, value in {**os.environ, **variables}.items() if value is not None}
            program = [str(Path(sys.executable).with_name("blackbox")), *arguments]
            with self.out_path.open("wb") as out, self.err_path.open("wb") as err:
                self._process = subprocess.Popen(program, cwd=folder, env=environment, stdout=out, stderr=err)
        else:
            paths = (str(folder), str(self.out_path), str(self.err_path))
            self._process = _context.Process(target=_command, args=(arguments, variables, *paths))
            self._process.start()

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill9()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.poll() if isinstance(self._process, subprocess.Popen) else self._process.exitcode

    @property
    def running(self) -> bool:
        return self.code is None

    @property
    def out(self) -> str:
        return self.out_path.read_text() if self.out_path.exists() else ""

    @property
    def err(self) -> str:
        return self.err_path.read_text() if self.err_path.exists() else ""

    def signal(self, number: int) -> None:
        if self.running:
            os.kill(self.pid, number)

    def kill9(self) -> None:
        """Kill it where it stands, and see it dead."""
        self.signal(signal.SIGKILL)
        self.ended()

    def ended(self, timeout: float = PATIENCE) -> int:
        """Wait for its end; the exit code."""
        if isinstance(self._process, subprocess.Popen):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
        else:
            self._process.join(timeout)
        assert self.code is not None, f"still running after {timeout} s:\n{self.out}\n{self.err}"
        return self.code


def blackbox(folder: Path, *arguments: str, variables: Mapping[str, str | None] | None = None) -> Command:
    """Run a command to its end."""
    with Command(folder, *arguments, variables=variables) as command:
        command.ended()
    return command


def _command(arguments: tuple[str, ...], variables: Mapping[str, str | None], folder: str, out: str, err: str) -> None:
    """The main function of a process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    for path, number in ((out, 1), (err, 2)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.chdir(folder)
    for name, value in variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    sys.argv = ["blackbox", *arguments]
    from blackbox.cli import main

    main()


def _end_with(sentinel: Any) -> None:
    """Leave no process behind, not even when the tests themselves are killed."""
    wait([sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


class Service:
    """A server on a database file, always at the same address. Leaving it as a context manager kills it.

    Parameters
    ----------
    folder : where the database and the output are.
    keys : whether clients need keys; the first one is in `key` then.
    variables : environment variables to set.
    """

    def __init__(self, folder: Path, *, keys: bool = False, variables: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.database = folder / "blackbox.db"
        self.keys = keys
        self.variables = variables or {}
        self.key: str | None = None
        self.port = 0
        self._command: Command | None = None
        self._clients: list[Client] = []

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()
        if self._command is not None:
            self._command.kill9()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def process(self) -> Command:
        assert self._command is not None, "start it first"
        return self._command

    def client(self, **more: Any) -> Client:
        """A client of this server that repeats itself often rather than patiently."""
        more.setdefault("retry", RetryPolicy(base_seconds=0.05, max_seconds=0.5, give_up_seconds=PATIENCE))
        client = Client(more.pop("url", self.url), self.key, **more)
        self._clients.append(client)
        return client

    def start(self) -> Service:
        """Start it, again at the address it had; returns once it is ready."""
        assert self._command is None or not self._command.running
        for _ in range(5 if self.port == 0 else 1):
            port = self.port or free_port()
            arguments = ["serve", "--port", str(port), "--database", str(self.database)]
            arguments += [] if self.keys else ["--insecure-local"]
            self._command = Command(self.folder, *arguments, variables=self.variables)
            if self._is_ready(f"http://127.0.0.1:{port}"):
                self.port = port
                break
        else:
            raise AssertionError(f"the server did not start: {self.process.out}{self.process.err}")
        if self.keys and self.key is None:
            self.key = self.process.out.rpartition("shown only now: ")[2].split()[0]
        return self

    def _is_ready(self, url: str) -> bool:
        deadline = time.monotonic() + PATIENCE
        while self.process.running and time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                if f"{url}\n" in self.process.out and httpx.get(f"{url}/readyz", timeout=5.0).status_code == 200:
                    return True
            time.sleep(0.005)
        return False

    def kill9(self) -> None:
        """The machine loses its power, as far as the process can tell."""
        self.process.kill9()

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        self.process.signal(signal.SIGTERM)
        return self.process.ended()


def free_port() -> int:
    """A port that nobody listens on, from below the range that outgoing connections take theirs from.

    In that range a client that connects again and again while the server is away can end up connected to itself, and
    the server would find its port taken when it comes back.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def until(condition: Callable[[], Any], what: str, by: Command | None = None, patience: float = PATIENCE) -> None:
    """Wait for something that happens elsewhere; give up at once when the process that does it has ended."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience} s for {what}"
        assert by is None or by.running or condition(), f"no {what}: the process ended with {by.code}\n{by.out}{by.err}"
        time.sleep(0.005)

"""Evaluate on a Ray cluster: one actor per resource request, on this machine or on many.

Every actor has one call in hand and, where the open step can use it, one more waiting behind it, so that short
evaluations do not pay for the way to the driver. Large candidates travel as recipes: the base vector is put once, each
node fetches it once, actors build their points from it. Actors that are lost with their node, and nodes that join, are
noticed within a second or so; what a lost actor had in hand comes back as a `WorkerLost`.

Ray is imported here alone, and only when somebody asks for it. Whoever can reach a Ray cluster's ports can run code on
it: a cluster that is started here listens on the loopback interface only, has no dashboard, and a token of its own; a
cluster that is joined must use token authentication too (RAY_AUTH_MODE=disabled, set on purpose, overrides that).
"""

from __future__ import annotations

import math
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, TypedDict, Unpack

from blackbox.backends import Builder, Done, Objective, Unbuilt, WorkerLost, load
from blackbox.errors import BlackboxError, InvalidInput

OLDEST = (2, 54)
"""The first version that is accepted: token authentication in all its parts."""
CONNECT_SECONDS = 30.0
"""How long a cluster may take to answer before it counts as dead."""
OBJECT_STORE_BYTES = 512 * 2**20
"""Shared memory of a cluster that is started here: base vectors, and parameters on their way."""
LOOK_SECONDS = 1.0
"""How often the cluster is looked at for nodes that came or went."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_KEPT = 3  # sources an actor keeps: those of the open step and of late lanes


class ClusterUnreachable(BlackboxError):
    """There is no Ray cluster of ours where one was expected."""


# The cluster ----------------------------------------------------------------------------------------------------------


def _ray() -> ModuleType:
    """The package, if it is there and new enough."""
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
    """One token for every cluster that this process starts: Ray reads it once."""
    return os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)


class Session:
    """This process as a driver of a Ray cluster. A process has one; a second `Session` shares it.

    Parameters
    ----------
    address : host:port of a cluster's head as a node of it sees it, `auto` for the one this machine belongs to, or None
        to start one here: for this process alone, on the loopback interface.
    n_cpus : of a cluster started here; None: all cores.
    runtime_env : Ray's, for what runs on the cluster (`{"working_dir": "."}` ships the modules of this folder).

    Raises
    ------
    ClusterUnreachable
        Within `CONNECT_SECONDS`, saying what was expected and what came. Ray itself would wait for minutes.
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
            self.ray = _ray()
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
        _probe(self.ray, host.strip("[]"), int(port))
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
        """Leave the cluster; one that was started here ends."""
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
    """Whether this process drives a cluster already, without importing anything."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(getattr(ray, "is_initialized", bool)())


def _reread() -> None:
    """Have a Ray that was imported before look at the environment again, as one imported now would."""
    raylet = import_module("ray._raylet")
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
    constants = import_module("ray._private.ray_constants")
    alone = os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0" if constants.IS_WINDOWS_OR_OSX else "1")
    setattr(constants, "ENABLE_RAY_CLUSTER", alone != "0")  # noqa: B010 -- it is not in the stubs


def _found(address: str) -> str:
    """`auto` as host:port: the environment's, or that of the cluster that was started on this machine."""
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


def _probe(ray: ModuleType, host: str, port: int) -> None:
    """Raise if nothing of ours answers there. Ray would retry for minutes, and cannot be interrupted while it does."""
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


# Evaluating -----------------------------------------------------------------------------------------------------------


class Evaluator:
    """What an actor is: it keeps the objective and the latest sources, and is called with points."""

    def __init__(self, objective: Objective | str) -> None:
        self._objective = load(objective)
        self._sources: OrderedDict[str, Builder] = OrderedDict()

    def place(self) -> str:
        """The id of the node it runs on."""
        return str(_ray().get_runtime_context().get_node_id())

    def evaluate(self, *arguments: Any) -> tuple[Any, BaseException | None]:
        """The objective's value, or what it raised."""
        try:
            return self._objective(*arguments), None
        except Exception as error:
            error.add_note("on a Ray actor:\n" + traceback.format_exc())
            return None, error

    def build_and_evaluate(
        self, recipe: Any, name: str, source: list[Any], *more: Any
    ) -> tuple[Any, BaseException | None]:
        """The same for a point that is built here.

        Parameters
        ----------
        source : [reference]; in a list, so that it is fetched once, not with every call.
        """
        if name not in self._sources:
            self._sources[name] = _ray().get(source[0])
            while len(self._sources) > _KEPT:
                self._sources.popitem(last=False)
        return self.evaluate(self._sources[name].build(recipe), *more)


@dataclass(slots=True, eq=False)
class _Actor:
    handle: Any
    starting: Any
    """Reference to the id of its node, which is there when the actor is."""
    node: str = ""
    out: deque[tuple[int, Any]] = field(default_factory=deque)
    """(ticket, reference) in the order of submission: the first one runs."""


class Placement(TypedDict, total=False):
    """Where actors live and what each asks for.

    Attributes
    ----------
    address, runtime_env, object_store_bytes : see `Session`.
    num_cpus, num_gpus, resources : what each actor asks of its node, in Ray's words; one core if nothing is said.
    """

    address: str | None
    runtime_env: Mapping[str, Any] | None
    object_store_bytes: int
    num_cpus: float
    num_gpus: float
    resources: Mapping[str, float] | None


class _Crew:
    """Makes and ends the actors of one objective."""

    def __init__(self, objective: Objective | str, placement: Placement, n_workers: int | None = None) -> None:
        n_cpus, n_gpus = placement.get("num_cpus", 1.0), placement.get("num_gpus", 0.0)
        others = dict(placement.get("resources") or {})
        request = {"CPU": n_cpus, "GPU": n_gpus, **others}
        self.request = {name: float(amount) for name, amount in request.items() if amount}
        address = placement.get("address")
        self._session = Session(
            address,
            n_cpus=max(1, math.ceil(n_workers * n_cpus)) if n_workers and address is None else None,
            runtime_env=placement.get("runtime_env"),
            object_store_bytes=placement.get("object_store_bytes", OBJECT_STORE_BYTES),
        )
        self.ray = self._session.ray
        self._class = self.ray.remote(Evaluator).options(
            num_cpus=n_cpus,
            num_gpus=n_gpus,
            resources=others,
            max_restarts=0,  # whoever waits for it must know that it was lost
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        try:
            self._objective = self.ray.put(objective)
        except TypeError as error:
            self.close()
            raise InvalidInput(
                f"the objective cannot be sent to another process: {error}",
                hint='name it as "module:function", and the actors import it',
            ) from None

    def start(self) -> _Actor:
        handle = self._class.remote(self._objective)
        return _Actor(handle, handle.place.remote())

    def settle(self, actor: _Actor, timeout: float | None = None) -> bool:
        """Wait until an actor is up; False if it was lost or is not there in time.

        Raises
        ------
        InvalidInput
            If it cannot start, because of what it imports.
        """
        try:
            actor.node = self.ray.get(actor.starting, timeout=timeout)
        except (self.ray.exceptions.RayActorError, self.ray.exceptions.GetTimeoutError) as error:
            if getattr(error, "actor_init_failed", False):
                cause = str(error).strip().splitlines()[-1]
                raise InvalidInput(
                    f"an actor could not start: {cause}",
                    hint="modules that only this machine has can be sent with runtime_env={'working_dir': '.'}",
                ) from None
            return False
        return True

    def end(self, actor: _Actor) -> None:
        with suppress(Exception):  # it may be gone already
            self.ray.kill(actor.handle, no_restart=True)

    def nodes(self) -> list[dict[str, Any]]:
        """The living nodes."""
        return [node for node in self.ray.nodes() if node["Alive"]]

    def lives(self, actor: _Actor) -> bool:
        """Whether its node does."""
        return actor.node in {node["NodeID"] for node in self.nodes()}

    def room(self) -> int:
        """How many actors the living nodes can hold, other jobs aside."""
        return sum(
            int(min(node["Resources"].get(name, 0.0) / amount + 1e-9 for name, amount in self.request.items()))
            for node in self.nodes()
        )

    def nobody(self, seconds: float) -> ClusterUnreachable:
        """The error that says that no actor has come."""
        has = "; ".join(
            ", ".join(f"{name} {amount:g}" for name, amount in sorted(node["Resources"].items()) if ":" not in name)
            for node in self.nodes()
        )
        asked = ", ".join(f"{name} {amount:g}" for name, amount in self.request.items())
        return ClusterUnreachable(
            f"no actor could start within {seconds:g} s: each asks for {asked}, the nodes have {has or 'nothing'}",
            hint="ask for less (num_cpus, num_gpus, resources), or wait for other jobs of the cluster to end",
        )

    def close(self) -> None:
        self._session.close()


class RayBackend:
    """Actors on a Ray cluster.

    Parameters
    ----------
    objective : any callable that cloudpickle takes, lambdas too, or "module:function" to be imported by the actors.
    n_workers : actors to keep alive. None: as many as the cluster's nodes can hold, whenever it grows or shrinks.
    ahead : calls that may wait behind the one an actor works on; taken only as far as the open step needs them.
    start_seconds : how long there may be no actor at all, at the start or after a loss.
    placement : see `Placement`.

    Raises
    ------
    InvalidInput, ClusterUnreachable
        If no actor can start: no cluster, no node that has what was asked for, an objective that cannot be had there.
    """

    builds = True

    def __init__(
        self,
        objective: Objective | str,
        n_workers: int | None = None,
        *,
        ahead: int = 1,
        start_seconds: float = 60.0,
        **placement: Unpack[Placement],
    ) -> None:
        if n_workers is not None and n_workers < 1:
            raise InvalidInput(f"n_workers must be at least 1, got {n_workers}")
        self._n_workers = n_workers
        self._depth = 1 + ahead
        self._start_seconds = start_seconds
        self._actors: list[_Actor] = []
        self._source: tuple[str, Any] | None = None
        self._crew = _Crew(objective, placement, n_workers)
        self._ray = self._crew.ray
        try:
            if not self._crew.request and n_workers is None:
                raise InvalidInput("actors that ask for nothing fit without end", hint="say n_workers")
            self._alone_since = time.monotonic()
            self._look()
            while not self.n_workers:
                self.wait()
        except BaseException:
            self.close()
            raise

    @property
    def n_workers(self) -> int:
        """Actors that are up now."""
        return sum(bool(actor.node) for actor in self._actors)

    @property
    def free(self) -> int:
        """Calls that would begin at once."""
        return sum(bool(actor.node) and not actor.out for actor in self._actors)

    @property
    def ahead(self) -> int:
        """Calls that could wait behind others."""
        return sum(self._depth - max(1, len(actor.out)) for actor in self._actors if actor.node)

    def submit(self, ticket: int, *arguments: Any) -> None:
        point, *more = arguments
        actor = min((actor for actor in self._actors if actor.node), key=lambda actor: len(actor.out))
        if isinstance(point, Unbuilt):
            if self._source is None or self._source[0] != point.name:
                self._source = (point.name, self._ray.put(point.source))  # the one before goes with its last call
            reference = actor.handle.build_and_evaluate.remote(point.recipe, point.name, [self._source[1]], *more)
        else:
            reference = actor.handle.evaluate.remote(point, *more)
        actor.out.append((ticket, reference))

    def wait(self) -> list[Done]:
        """Block until something is done, an actor has come or gone, or a second has passed.

        Raises
        ------
        ClusterUnreachable
            If there was no actor for `start_seconds`.
        """
        waited = {actor.starting: actor for actor in self._actors if not actor.node}
        waited |= {reference: actor for actor in self._actors for _, reference in actor.out}
        ready: list[Any] = []
        if waited:
            ready, rest = self._ray.wait(list(waited), num_returns=1, timeout=LOOK_SECONDS)
            if rest:
                ready += self._ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        else:
            time.sleep(LOOK_SECONDS)  # no actor, nothing out: wait for a node
        done: list[Done] = []
        for reference in ready:
            actor = waited[reference]
            if actor not in self._actors:
                continue  # lost with an earlier reference of this round
            if reference != actor.starting:
                done += self._finished(actor, reference)
            elif not self._crew.settle(actor):
                self._actors.remove(actor)
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._look()
        return done

    def _finished(self, actor: _Actor, reference: Any) -> list[Done]:
        ticket = next(ticket for ticket, other in actor.out if other == reference)
        try:
            value, error = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as raised:  # the answer cannot be sent
            value, error = None, raised.cause if isinstance(raised.cause, Exception) else raised
        except self._ray.exceptions.RayError as lost:
            return self._lost_with(actor, lost)
        actor.out.remove((ticket, reference))
        return [Done(ticket, value, error)]

    def _lost_with(self, actor: _Actor, why: BaseException) -> list[Done]:
        """Everything an actor had in hand. Where its node lives on, the point it worked on is under suspicion."""
        self._actors.remove(actor)
        self._crew.end(actor)
        self._looked = -LOOK_SECONDS  # somebody is missing: look at once
        lives = self._crew.lives(actor)
        said = str(why).strip().splitlines()[-1][:500] if str(why).strip() else type(why).__name__
        return [
            Done(ticket, error=WorkerLost(f"an actor was lost: {said}", suspect=lives and not i))
            for i, (ticket, _) in enumerate(actor.out)
        ]

    def _look(self) -> None:
        """Start the actors that are missing, and give up when there were none for too long."""
        self._looked = time.monotonic()
        wanted = self._n_workers if self._n_workers is not None else self._crew.room()
        self._actors += [self._crew.start() for _ in range(wanted - len(self._actors))]
        if self.n_workers:
            self._alone_since = self._looked
        elif self._looked - self._alone_since > self._start_seconds:
            raise self._crew.nobody(self._start_seconds)

    def close(self) -> None:
        """End the actors, and the cluster if it was started here; what they have in hand is dropped."""
        for actor in self._actors:
            self._crew.end(actor)
        self._actors = []
        self._source = None
        self._crew.close()


class Fleet:
    """Actors for callers that block: a function, to be called from as many threads as there shall be actors.

    Each thread has an actor of its own and gets another one when that is lost; the point is evaluated again, unless it
    seems to kill its actors. Nothing is queued here, so what callers hold leases of is what is under way.

    Parameters
    ----------
    objective, start_seconds, placement : see `RayBackend`.
    spare_seconds : how long a call waits for an actor, before it raises `WorkerLost`.
    max_deaths : actors that one point may take with it, on nodes that live on.
    """

    def __init__(
        self,
        objective: Objective | str,
        *,
        start_seconds: float = 60.0,
        spare_seconds: float = 20.0,
        max_deaths: int = 5,
        **placement: Unpack[Placement],
    ) -> None:
        self._spare_seconds = spare_seconds
        self._max_deaths = max_deaths
        self._sources: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()  # around _sources, _idle and _actors
        self._mine = threading.local()
        self._crew = _Crew(objective, placement)
        self._ray = self._crew.ray
        first = self._crew.start()
        self._actors, self._idle = {first}, [first]
        try:
            if not self._crew.settle(first, start_seconds):
                raise self._crew.nobody(start_seconds)
        except BaseException:
            self.close()
            raise

    def room(self) -> int:
        """How many actors the cluster can hold now."""
        return max(1, self._crew.room()) if self._crew.request else 1

    def __call__(self, point: Any) -> Any:
        n_deaths = 0
        while True:
            actor = self._actor()
            try:
                value, error = self._ray.get(self._sent(actor, point))
            except self._ray.exceptions.RayTaskError:  # the answer cannot be sent
                raise
            except self._ray.exceptions.RayError as lost:
                self._mine.actor = None
                self._end(actor)
                n_deaths += self._crew.lives(actor)
                if n_deaths > self._max_deaths:
                    raise WorkerLost(f"{n_deaths} actors died of this point: {lost}", suspect=True) from None
                continue
            if error is not None:
                raise error
            return value

    def _actor(self) -> _Actor:
        """This thread's, up and running."""
        actor: _Actor | None = getattr(self._mine, "actor", None)
        if actor is None:
            with self._lock:
                actor = self._idle.pop() if self._idle else self._crew.start()
                self._actors.add(actor)
            if not actor.node and not self._crew.settle(actor, self._spare_seconds):
                self._end(actor)
                raise WorkerLost(f"no actor could start within {self._spare_seconds:g} s")
            self._mine.actor = actor
        return actor

    def _end(self, actor: _Actor) -> None:
        self._crew.end(actor)
        with self._lock:
            self._actors.discard(actor)

    def _sent(self, actor: _Actor, point: Any) -> Any:
        if not isinstance(point, Unbuilt):
            return actor.handle.evaluate.remote(point)
        with self._lock:
            if point.name not in self._sources:
                self._sources[point.name] = self._ray.put(point.source)
                while len(self._sources) > _KEPT:
                    self._sources.popitem(last=False)
            source = self._sources[point.name]
        return actor.handle.build_and_evaluate.remote(point.recipe, point.name, [source])

    def close(self) -> None:
        """End the actors, and the cluster if it was started here."""
        for actor in list(self._actors):
            self._end(actor)
        self._sources.clear()
        self._crew.close()


# Parts of updates -----------------------------------------------------------------------------------------------------


class RaySlices:
    """An executor for `blackbox.slices.using`: parts of a large update as tasks, spread over the cluster's nodes.

    A part that the cluster loses is computed here: an update never fails for want of a machine.

    Parameters
    ----------
    address : see `Session`.
    num_cpus : what each task asks of its node. 0 lets tasks run beside actors that hold every core.
    """

    def __init__(self, address: str | None = None, *, num_cpus: float = 0) -> None:
        self._session = Session(address)
        self._ray = self._session.ray
        self._task = self._ray.remote(_computed).options(num_cpus=num_cpus, scheduling_strategy="SPREAD", max_retries=2)

    @property
    def n_workers(self) -> int:
        """Cores of the cluster."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def map(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterator[Any]:
        if not self._ray.is_initialized():  # somebody shut it down; Ray would start one of its own making now
            yield from map(function, items)
            return
        sent = self._ray.put(function)
        parts = [(item, self._task.remote(sent, item)) for item in items]
        for item, reference in parts:
            try:
                result = self._ray.get(reference)
            except self._ray.exceptions.RayError:
                result = function(item)
            yield result

    def close(self) -> None:
        """Leave the cluster."""
        self._session.close()


def _computed(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)

"""Actors that hold an objective, and the factory that places them on the cluster."""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np

from blackbox.backends import Builder, Objective, load
from blackbox.backends.pace import WorkerPace
from blackbox.backends.raised import Raised, exited
from blackbox.backends.ray_cluster.session import OBJECT_STORE_BYTES, ClusterUnreachable, Session, ray_package
from blackbox.errors import InvalidInput

LOOK_SECONDS = 1.0
"""Seconds between checks for nodes that joined or left."""
SOURCES_KEPT = 3
"""Number of sources an actor keeps: those of the open step and of late lanes."""


Answer = tuple[Any, Raised | None, float]
"""The objective's value, or what it raised, and the seconds it took."""
PLAIN = (int, float, np.number)
"""Types of values that certainly arrive."""


@dataclass(frozen=True, slots=True)
class Packed:
    """An `Unbuilt` point as it is sent: its source is sent separately, once."""

    recipe: Any
    name: str


class Evaluator:
    """The class of an actor: it holds the objective and the latest sources, and evaluates points."""

    def __init__(self, objective: Objective | str) -> None:
        try:
            self._objective = load(objective)
        except SystemExit as error:  # Ray would take it for a wish to end, and start the next actor
            raise exited(error) from error
        self._sources: OrderedDict[str, Builder] = OrderedDict()

    def place(self) -> str:
        """The id of the node it runs on."""
        return str(ray_package().get_runtime_context().get_node_id())

    def evaluate(self, calls: Sequence[tuple[Any, ...]], sources: Mapping[str, list[Any]]) -> list[Answer]:
        """One answer per call, in their order.

        Parameters
        ----------
        calls : the arguments of each call. A `Packed` point is built here.
        sources : [reference] of each source of the packed points, by name; in lists, so that Ray does not fetch it with
            every call.
        """
        for name, (source,) in sources.items():
            if name not in self._sources:
                self._sources[name] = ray_package().get(source)
                while len(self._sources) > SOURCES_KEPT:
                    self._sources.popitem(last=False)
        return [self._answer(*arguments) for arguments in calls]

    def _answer(self, point: Any, *more: Any) -> Answer:
        began = time.perf_counter()
        try:
            if isinstance(point, Packed):
                point = self._sources[point.name].build(point.recipe)
            value = self._objective(point, *more)
        except (Exception, SystemExit) as error:
            return None, Raised.of(error, *pickling()), time.perf_counter() - began
        seconds = time.perf_counter() - began
        if not isinstance(value, PLAIN):
            dumps, loads = pickling()
            try:
                loads(dumps(value))
            except Exception as error:
                unfit = TypeError(f"cannot send {type(value).__name__} back: {error}; {value!r}"[:2000])
                return None, Raised.of(unfit, dumps, loads), seconds
        return value, None, seconds


def pickling() -> tuple[Callable[[Any], Any], Callable[[bytes], Any]]:
    """The functions that turn objects into bytes and back as Ray does."""
    made = ray_package().cloudpickle
    return made.dumps, made.loads


def rebuilt(raised: Raised) -> BaseException:
    """What an objective raised on an actor."""
    return raised.rebuilt(pickling()[1], "on a Ray actor")


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """Points sent to an actor in one message, and the reference to their answers."""

    reference: Any
    tickets: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Actor:
    """An actor as the driver sees it."""

    handle: Any
    starting: Any
    """Reference to the id of its node, available once the actor is up."""
    node: str = ""
    """Id of its node; empty until it is up."""
    out: deque[Call] = field(default_factory=deque)
    """Calls in the order of submission: the first one is running."""
    given: list[tuple[int, tuple[Any, ...]]] = field(default_factory=list)
    """(ticket, arguments) assigned to it but not yet sent."""
    pace: WorkerPace = field(default_factory=WorkerPace)

    @property
    def load(self) -> int:
        """Number of points that it has or that are assigned to it."""
        return sum(len(call.tickets) for call in self.out) + len(self.given)


class Placement(TypedDict, total=False):
    """The cluster of the actors, and the resources that each requests.

    Attributes
    ----------
    address, runtime_env, object_store_bytes : see `Session`.
    num_cpus, num_gpus, resources : resources requested by each actor, as in Ray; default: one core.
    """

    address: str | None
    runtime_env: Mapping[str, Any] | None
    object_store_bytes: int
    num_cpus: float
    num_gpus: float
    resources: Mapping[str, float] | None


class ActorFactory:
    """Starts and ends the actors of one objective.

    Parameters
    ----------
    objective, placement, n_workers : see `RayBackend`.

    Attributes
    ----------
    request : resources requested by each actor, by name.
    ray : the Ray package.
    """

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
            max_restarts=0,  # its driver must learn that it was lost
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

    def start(self) -> Actor:
        """Start an actor, without waiting for it."""
        handle = self._class.remote(self._objective)
        return Actor(handle, handle.place.remote())

    def wait_until_up(self, actor: Actor, timeout: float | None = None) -> bool:
        """Wait until an actor is up; False if it was lost, or not up in `timeout` seconds.

        Raises
        ------
        InvalidInput
            If it cannot start because an import fails.
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

    def end(self, actor: Actor) -> None:
        """Kill an actor."""
        with suppress(Exception):  # it may be gone already
            self.ray.kill(actor.handle, no_restart=True)

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that are alive, as Ray describes them."""
        return [node for node in self.ray.nodes() if node["Alive"]]

    def node_is_alive(self, actor: Actor) -> bool:
        """Whether the node of an actor is alive."""
        return actor.node in {node["NodeID"] for node in self.nodes()}

    def capacity(self) -> int:
        """Number of actors that the live nodes can hold, other jobs aside."""
        return sum(
            int(min(node["Resources"].get(name, 0.0) / amount + 1e-9 for name, amount in self.request.items()))
            for node in self.nodes()
        )

    def check_bounded(self, n_workers: int | None) -> None:
        """Raise `InvalidInput` if nothing limits the number of actors."""
        if not self.request and n_workers is None:
            raise InvalidInput("actors that ask for nothing fit without end", hint="say n_workers")

    def target(self, n_workers: int | None) -> int:
        """Number of actors wanted now: `n_workers`, at most what the live nodes can hold; None: that many."""
        if n_workers is None:
            return self.capacity()
        return min(n_workers, self.capacity()) if self.request else n_workers

    def no_actor(self, seconds: float) -> ClusterUnreachable:
        """The error for no actor within `seconds`: says what was requested and what the nodes have."""
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
        """Leave the cluster."""
        self._session.close()

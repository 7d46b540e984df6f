"""Ray actors for blocking callers, used by `blackbox worker --ray`."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Any, Unpack

from blackbox.backends import Objective, Unbuilt, WorkerLost
from blackbox.backends.ray_cluster.actors import (
    LOOK_SECONDS,
    SOURCES_KEPT,
    Actor,
    ActorFactory,
    Packed,
    Placement,
    rebuilt,
)
from blackbox.errors import InvalidInput

WATCH_SECONDS = 0.1
"""Seconds between checks of starting actors while callers wait for one."""
RETRY_SECONDS = 30.0
"""Seconds without starting actors after one failed at an import: a second later it would fail again."""


class Fleet:
    """Actors behind a function, to be called from up to `capacity()` threads at a time.

    A call takes an idle actor. If that is lost it takes another one and evaluates the point again, unless the point
    seems to kill its actors. Nothing is queued here, and the capacity counts only actors that are up: callers hold
    leases only of points that are being evaluated.

    Parameters
    ----------
    objective, n_workers, start_seconds, placement : see `RayBackend`.
    spare_seconds : how long a call waits for an actor before it raises `WorkerLost`.
    max_deaths : number of actors that one point may kill on nodes that stay alive.
    """

    def __init__(
        self,
        objective: Objective | str,
        n_workers: int | None = None,
        *,
        start_seconds: float = 60.0,
        spare_seconds: float = 20.0,
        max_deaths: int = 5,
        **placement: Unpack[Placement],
    ) -> None:
        self._n_workers = n_workers
        self._spare_seconds = spare_seconds
        self._max_deaths = max_deaths
        self._sources: OrderedDict[str, Any] = OrderedDict()
        self._changed = threading.Condition()  # around everything below
        self._actors: set[Actor] = set()
        self._starting: list[Actor] = []
        self._idle: list[Actor] = []
        self._look_at = 0.0
        self._factory = ActorFactory(objective, placement, n_workers)
        self._ray = self._factory.ray
        first = self._factory.start()
        self._actors.add(first)
        try:
            self._factory.check_bounded(n_workers)
            if not self._factory.wait_until_up(first, start_seconds):
                raise self._factory.no_actor(start_seconds)
        except BaseException:
            self.close()
            raise
        self._idle.append(first)

    def capacity(self) -> int:
        """Number of callers that find an actor: those that are up, at least 1. Starts more if the cluster has room."""
        with self._changed:
            self._look()
            return max(1, len(self._actors) - len(self._starting))

    def _look(self) -> None:
        """Start missing actors, and check which are up."""
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_SECONDS
            for _ in range(self._factory.target(self._n_workers) - len(self._actors)):
                self._starting.append(self._factory.start())
                self._actors.add(self._starting[-1])
        if not self._starting:
            return
        by_reference = {actor.starting: actor for actor in self._starting}
        for reference in self._ray.wait(list(by_reference), num_returns=len(by_reference), timeout=0)[0]:
            actor = by_reference[reference]
            self._starting.remove(actor)
            try:
                is_up = self._factory.wait_until_up(actor)
            except InvalidInput:  # a node without its modules; the first actor found them on another
                is_up, self._look_at = False, time.monotonic() + RETRY_SECONDS
            if is_up:
                self._idle.append(actor)
                self._changed.notify()
            else:
                self._actors.discard(actor)

    def __call__(self, point: Any) -> Any:
        n_deaths = 0
        while True:
            actor = self._taken()
            try:
                ((value, error, _),) = self._ray.get(self._sent(actor, point))
            except self._ray.exceptions.RayTaskError:  # the answer cannot be sent
                self._give_back(actor)
                raise
            except self._ray.exceptions.RayError as lost:
                self._end(actor)
                n_deaths += self._factory.node_is_alive(actor)
                if n_deaths > self._max_deaths:
                    raise WorkerLost(f"{n_deaths} actors died of this point: {lost}", suspect=True) from None
                continue
            self._give_back(actor)
            if error is not None:
                raise rebuilt(error)
            return value

    def _taken(self) -> Actor:
        """An idle actor, reserved for the caller until it is given back."""
        until = time.monotonic() + self._spare_seconds
        with self._changed:
            while not self._idle:
                if (left := until - time.monotonic()) <= 0:
                    raise WorkerLost(f"no actor was free within {self._spare_seconds:g} s")
                self._look()
                if not self._idle:
                    self._changed.wait(min(left, WATCH_SECONDS))
            return self._idle.pop()

    def _give_back(self, actor: Actor) -> None:
        with self._changed:
            self._idle.append(actor)
            self._changed.notify()

    def _end(self, actor: Actor) -> None:
        self._factory.end(actor)
        with self._changed:
            self._actors.discard(actor)
            self._look_at = min(self._look_at, time.monotonic())  # perhaps its node is gone

    def _sent(self, actor: Actor, point: Any) -> Any:
        if not isinstance(point, Unbuilt):
            return actor.handle.evaluate.remote([(point,)], {})
        with self._changed:
            if point.name not in self._sources:
                self._sources[point.name] = self._ray.put(point.source)
                while len(self._sources) > SOURCES_KEPT:
                    self._sources.popitem(last=False)
            source = self._sources[point.name]
        return actor.handle.evaluate.remote([(Packed(point.recipe, point.name),)], {point.name: [source]})

    def close(self) -> None:
        """End the actors, and the cluster if it was started here."""
        for actor in list(self._actors):
            self._end(actor)
        self._sources.clear()
        self._factory.close()

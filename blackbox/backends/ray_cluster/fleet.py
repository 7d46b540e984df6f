"""Actors for callers that block: what `blackbox worker --ray` evaluates with."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from typing import Any, Unpack

from blackbox.backends import Objective, Unbuilt, WorkerLost
from blackbox.backends.ray_cluster.actors import KEPT, LOOK_SECONDS, Actor, Crew, Packed, Placement

WATCH_SECONDS = 0.1
"""How long a call looks at an actor that is starting before it looks for an idle one again."""


class Fleet:
    """Actors for callers that block: a function, to be called from as many threads as there is `room` for actors.

    A call takes an idle actor, or starts one where the cluster has room for another. When its actor is lost it takes
    the next one and the point is evaluated again, unless the point seems to kill its actors. Callers beyond the room
    wait.

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
        self._changed = threading.Condition()  # around everything below
        self._actors: set[Actor] = set()
        self._idle: list[Actor] = []
        self._starting: list[Actor] = []
        """Those that nobody watches."""
        self._room, self._looked = 1, -math.inf
        self._crew = Crew(objective, placement)
        self._ray = self._crew.ray
        first = self._crew.start()
        self._actors.add(first)
        try:
            if not self._crew.settle(first, start_seconds):
                raise self._crew.nobody(start_seconds)
        except BaseException:
            self.close()
            raise
        self._idle.append(first)

    def room(self) -> int:
        """How many actors the cluster can hold, as of a second ago; one if they ask for nothing."""
        with self._changed:
            if self._crew.request and time.monotonic() - self._looked > LOOK_SECONDS:
                self._room, self._looked = max(1, self._crew.room()), time.monotonic()
            return self._room

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
                n_deaths += self._crew.lives(actor)
                if n_deaths > self._max_deaths:
                    raise WorkerLost(f"{n_deaths} actors died of this point: {lost}", suspect=True) from None
                continue
            self._give_back(actor)
            if error is not None:
                raise error
            return value

    def _taken(self) -> Actor:
        """An actor for this caller until it gives it back: an idle one, or a new one if that is up before."""
        until = time.monotonic() + self._spare_seconds
        while True:
            with self._changed:
                if self._idle:
                    return self._idle.pop()
                left = until - time.monotonic()
                if left <= 0:
                    raise WorkerLost(f"no actor was free within {self._spare_seconds:g} s")
                if not self._starting and (not self._crew.request or len(self._actors) < self.room()):
                    self._starting.append(self._crew.start())
                    self._actors.add(self._starting[-1])
                watched = self._starting.pop() if self._starting else None
                if watched is None:
                    self._changed.wait(min(left, LOOK_SECONDS))
            if watched is not None and self._up(watched):
                return watched

    def _up(self, actor: Actor) -> bool:
        """Whether an actor that is starting is up in a moment; if not, somebody else may watch it."""
        if not self._ray.wait([actor.starting], timeout=WATCH_SECONDS)[0]:
            with self._changed:
                self._starting.append(actor)
            return False
        if not self._crew.settle(actor):
            self._end(actor)
            return False
        return True

    def _give_back(self, actor: Actor) -> None:
        with self._changed:
            self._idle.append(actor)
            self._changed.notify()

    def _end(self, actor: Actor) -> None:
        self._crew.end(actor)
        with self._changed:
            self._actors.discard(actor)
            self._looked = -math.inf  # perhaps its node is gone
            self._changed.notify()

    def _sent(self, actor: Actor, point: Any) -> Any:
        if not isinstance(point, Unbuilt):
            return actor.handle.evaluate.remote([(point,)], {})
        with self._changed:
            if point.name not in self._sources:
                self._sources[point.name] = self._ray.put(point.source)
                while len(self._sources) > KEPT:
                    self._sources.popitem(last=False)
            source = self._sources[point.name]
        return actor.handle.evaluate.remote([(Packed(point.recipe, point.name),)], {point.name: [source]})

    def close(self) -> None:
        """End the actors, and the cluster if it was started here."""
        for actor in list(self._actors):
            self._end(actor)
        self._sources.clear()
        self._crew.close()

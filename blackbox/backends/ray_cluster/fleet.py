"""Actors for callers that block: what `blackbox worker --ray` evaluates with."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, Unpack

from blackbox.backends import Objective, Unbuilt, WorkerLost
from blackbox.backends.ray_cluster.actors import KEPT, Actor, Crew, Packed, Placement


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
        self._crew = Crew(objective, placement)
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
                ((value, error, _),) = self._ray.get(self._sent(actor, point))
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

    def _actor(self) -> Actor:
        """This thread's, up and running."""
        actor: Actor | None = getattr(self._mine, "actor", None)
        if actor is None:
            with self._lock:
                actor = self._idle.pop() if self._idle else self._crew.start()
                self._actors.add(actor)
            if not actor.node and not self._crew.settle(actor, self._spare_seconds):
                self._end(actor)
                raise WorkerLost(f"no actor could start within {self._spare_seconds:g} s")
            self._mine.actor = actor
        return actor

    def _end(self, actor: Actor) -> None:
        self._crew.end(actor)
        with self._lock:
            self._actors.discard(actor)

    def _sent(self, actor: Actor, point: Any) -> Any:
        if not isinstance(point, Unbuilt):
            return actor.handle.evaluate.remote([(point,)], {})
        with self._lock:
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

"""Actors as a backend of `blackbox.run`: one thread that submits and waits."""

from __future__ import annotations

import time
from typing import Any, Unpack

from blackbox.backends import Done, Objective, Unbuilt, WorkerLost
from blackbox.backends.ray_cluster.actors import Actor, Crew, Placement
from blackbox.errors import InvalidInput

LOOK_SECONDS = 1.0
"""How often the cluster is looked at for nodes that came or went."""


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
        self._actors: list[Actor] = []
        self._source: tuple[str, Any] | None = None
        self._crew = Crew(objective, placement, n_workers)
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

    def _finished(self, actor: Actor, reference: Any) -> list[Done]:
        ticket = next(ticket for ticket, other in actor.out if other == reference)
        try:
            value, error = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as raised:  # the answer cannot be sent
            value, error = None, raised.cause if isinstance(raised.cause, Exception) else raised
        except self._ray.exceptions.RayError as lost:
            return self._lost_with(actor, lost)
        actor.out.remove((ticket, reference))
        return [Done(ticket, value, error)]

    def _lost_with(self, actor: Actor, why: BaseException) -> list[Done]:
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

"""Ray actors as a backend of `blackbox.run`: one thread submits and waits."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Unpack

from blackbox.backends import Done, Objective, Unbuilt, WorkerLost
from blackbox.backends.ray_cluster.actors import LOOK_SECONDS, Actor, ActorFactory, Call, Packed, Placement, rebuilt
from blackbox.errors import InvalidInput

CALL_SECONDS = 0.05
"""Seconds of work in one call: a call costs about 1 ms of processor time in driver and actor, 2 % of this."""
CALL_POINTS = 32
"""Most points in one call: more would save nothing."""


class RayBackend:
    """Actors on a Ray cluster.

    Parameters
    ----------
    objective : any callable that cloudpickle takes, lambdas too, or "module:function" to be imported by the actors.
    n_workers : number of actors to keep alive. None: as many as the nodes can hold, also when the cluster grows.
    ahead : calls queued for an actor behind the running one, if evaluations are short and the open step needs them. 0:
        every point is sent alone, to an idle actor.
    start_seconds : longest time without any actor, at the start or after a loss.
    placement : see `Placement`.

    Raises
    ------
    InvalidInput, ClusterUnreachable
        If no actor can start: no cluster, no node with the requested resources, an objective that cannot be imported.
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
        self._alone: set[int] = set()
        """Tickets of points that may have killed an actor together with others: sent alone from now on."""
        self._start_seconds = start_seconds
        self._actors: list[Actor] = []
        self._source: tuple[str, Any] | None = None
        self._factory = ActorFactory(objective, placement, n_workers)
        self._ray = self._factory.ray
        try:
            self._factory.check_bounded(n_workers)
            self._alone_since = time.monotonic()
            self._look()
            while not self.n_workers:
                self.wait()
        except BaseException:
            self.close()
            raise

    @property
    def n_workers(self) -> int:
        """Number of actors that are up."""
        return sum(bool(actor.node) for actor in self._actors)

    @property
    def free(self) -> int:
        """Number of idle actors."""
        return sum(bool(actor.node) and not actor.load for actor in self._actors)

    @property
    def ahead(self) -> int:
        """Number of points that could be queued behind others."""
        return sum(max(0, self._vacancies(actor)) for actor in self._actors)

    def _vacancies(self, actor: Actor) -> int:
        """Number of points that could be queued for an actor."""
        if self._depth == 1 or not (actor.node and actor.pace.short):
            return 0
        return self._depth * self._together(actor) - max(1, actor.load)

    def _together(self, actor: Actor) -> int:
        """Number of points that one call to this actor may carry."""
        return actor.pace.within(CALL_SECONDS, CALL_POINTS) if self._depth > 1 else 1

    def submit(self, ticket: int, *arguments: Any) -> None:
        """Assign a call to an idle actor, or to the least loaded one; it is sent by `wait`."""
        actor = next((actor for actor in self._actors if actor.node and not actor.load), None) or min(
            (actor for actor in self._actors if actor.node), key=lambda actor: (self._vacancies(actor) <= 0, actor.load)
        )
        actor.given.append((ticket, arguments))

    def _send(self, actor: Actor) -> None:
        """Send the points assigned to an actor, in calls of about equal size. A point sent alone gets an idle actor."""
        alone = [each for each in actor.given if each[0] in self._alone]
        many = [each for each in actor.given if each[0] not in self._alone]
        if any(ticket in self._alone for call in actor.out for ticket in call.tickets):
            return
        if many:
            n = -(-len(many) // self._together(actor))
            for i in range(n):
                self._call(actor, many[len(many) * i // n : len(many) * (i + 1) // n])
        elif not actor.out:
            self._call(actor, [alone.pop(0)])
        actor.given = alone

    def _call(self, actor: Actor, part: list[tuple[int, tuple[Any, ...]]]) -> None:
        calls, sources = [], {}
        for _, (point, *more) in part:
            if isinstance(point, Unbuilt):
                sources[point.name] = [self._reference(point)]
                point = Packed(point.recipe, point.name)
            calls.append((point, *more))
        if not actor.out:
            actor.pace.began(len(calls))
        reference = actor.handle.evaluate.remote(calls, sources)
        actor.out.append(Call(reference, tuple(ticket for ticket, _ in part)))

    def _reference(self, point: Unbuilt) -> Any:
        """Reference to the source of a point; put once, and kept until another source replaces it."""
        if self._source is None or self._source[0] != point.name:
            self._source = (point.name, self._ray.put(point.source))
        return self._source[1]

    def wait(self) -> list[Done]:
        """Block until a call has finished, an actor has started or died, or a second has passed.

        Raises
        ------
        ClusterUnreachable
            If there has been no actor for `start_seconds`.
        """
        for actor in self._actors:
            if actor.given:
                self._send(actor)
        waited = {actor.starting: actor for actor in self._actors if not actor.node}
        waited |= {call.reference: actor for actor in self._actors for call in actor.out}
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
            elif not self._factory.wait_until_up(actor):
                self._actors.remove(actor)
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._look()
        return done

    def _finished(self, actor: Actor, reference: Any) -> list[Done]:
        call = next(call for call in actor.out if call.reference == reference)
        try:
            answers = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as raised:  # an answer cannot be sent
            actor.out.remove(call)
            if len(call.tickets) > 1:
                return self._again(call.tickets, "an answer to points beside it cannot be sent")
            self._alone.difference_update(call.tickets)
            return [Done(call.tickets[0], error=raised.cause if isinstance(raised.cause, Exception) else raised)]
        except self._ray.exceptions.RayError as lost:
            return self._lost_with(actor, lost)
        actor.out.remove(call)
        self._alone.difference_update(call.tickets)
        done = []
        for ticket, (value, error, seconds) in zip(call.tickets, answers, strict=True):
            actor.pace.took(seconds)
            done.append(Done(ticket, value, None if error is None else rebuilt(error)))
        if actor.out:
            actor.pace.began(len(actor.out[0].tickets))
        return done

    def _again(self, tickets: Iterable[int], why: str) -> list[Done]:
        """Points of which one may be to blame: each is sent alone next time."""
        tickets = tuple(tickets)
        self._alone.update(tickets)
        return [Done(ticket, error=WorkerLost(why)) for ticket in tickets]

    def _lost_with(self, actor: Actor, why: BaseException) -> list[Done]:
        """The calls of a lost actor.

        If its node is alive, a point that was sent alone is the suspect. Among several points the suspect is not known,
        as the answers to those before it may be lost as well.
        """
        self._actors.remove(actor)
        self._factory.end(actor)
        self._looked = -LOOK_SECONDS  # somebody is missing: look at once
        said = str(why).strip().splitlines()[-1][:500] if str(why).strip() else type(why).__name__
        said = f"an actor was lost: {said}"
        tickets = [ticket for call in actor.out for ticket in call.tickets]
        done = [Done(ticket, error=WorkerLost(said)) for ticket, _ in actor.given]
        if not self._factory.node_is_alive(actor):
            return done + [Done(ticket, error=WorkerLost(said)) for ticket in tickets]
        if len(tickets) > 1:
            return done + self._again(tickets, said)
        return [*done, Done(tickets[0], error=WorkerLost(said, suspect=True))]

    def _look(self) -> None:
        """Start missing actors; raise if there have been none for too long."""
        self._looked = time.monotonic()
        wanted = self._n_workers if self._n_workers is not None else self._factory.capacity()
        self._actors += [self._factory.start() for _ in range(wanted - len(self._actors))]
        if self.n_workers:
            self._alone_since = self._looked
        elif self._looked - self._alone_since > self._start_seconds:
            raise self._factory.no_actor(self._start_seconds)

    def close(self) -> None:
        """End the actors, and the cluster if it was started here; unfinished calls are dropped."""
        for actor in self._actors:
            self._factory.end(actor)
        self._actors = []
        self._source = None
        self._factory.close()

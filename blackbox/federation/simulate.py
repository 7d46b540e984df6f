"""Rounds in one process, for tests, for examples, and to choose options before anything is deployed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from blackbox import codec
from blackbox.errors import InvalidInput
from blackbox.federation.coordinator import Federation, FederationState
from blackbox.federation.method import accept
from blackbox.federation.payloads import Contribution, Update
from blackbox.records import Matrix, Vector

Objective = Callable[[Matrix], Vector]
"""(k, d) internal points -> (k,) values."""


@dataclass(slots=True)
class Rehearsal:
    """The outcome of a rehearsal.

    Attributes
    ----------
    state : the coordinator's state at the end.
    path : x after each round.
    evaluations : private evaluations spent by all participants after each round, including lost ones.
    updates : the updates of x.
    bytes_up : encoded size of the largest contribution of each phase.
    declined : client -> phases that it declined, because none of its evaluations gave a value to learn from.
    """

    state: FederationState
    path: list[Vector] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)
    bytes_up: dict[str, int] = field(default_factory=dict)
    declined: dict[str, int] = field(default_factory=dict)


def rehearse(
    federation: Federation[Any],
    objectives: Mapping[str, Objective],
    rounds: int,
    *,
    weights: Mapping[str, float] | None = None,
    lost: Callable[[int, str, str], bool] = lambda round, phase, client: False,
    secret: bytes = b"a rehearsal has no secrets",
) -> Rehearsal:
    """Run rounds with every participant in this process; every payload goes through its bytes.

    Parameters
    ----------
    federation : the coordinator.
    objectives : client -> its private objective.
    rounds : number of rounds to run; fewer if the method stops.
    weights : client -> weight; 1 where missing.
    lost : (round, phase, client) -> whether its contribution never arrives. It has evaluated nevertheless.
    secret : source of private randomness, together with the client's name.

    Raises
    ------
    InvalidInput
        If every participant that was invited to a phase declines it: the rounds would end where they began.
    """
    machines = {
        name: accept(
            federation.invitation(),
            client=name,
            weight=(weights or {}).get(name, 1.0),
            secret=secret.ljust(16) + name.encode(),
        )
        for name in sorted(objectives)
    }
    private = {name: machine.init() for name, machine in machines.items()}
    state = federation.init()
    done = Rehearsal(state)
    while state.round < rounds and federation.stopped(state) is None:
        broadcast = federation.broadcast(state)
        arrived = []
        invited = [name for name in machines if federation.invited(state, name)]
        declined = []
        for name in invited:
            machine = machines[name]
            own = machine.start(private[name], broadcast)
            while len(points := machine.ask(own)):
                own = machine.tell(own, objectives[name](points))
            if machine.declines(own):
                declined.append(name)
                private[name] = codec.decode(type(own), codec.encode(own))
                continue
            sent = machine.contribution(own).to_bytes()
            counted = not lost(state.round, broadcast.phase, name)
            if counted:
                arrived.append(Contribution.from_bytes(sent))
                done.bytes_up[broadcast.phase] = max(done.bytes_up.get(broadcast.phase, 0), len(sent))
            own = machine.settle(own, counted)
            private[name] = codec.decode(type(own), codec.encode(own))
        if invited and declined == invited:
            raise InvalidInput(
                f"no evaluation of phase {broadcast.phase!r} in round {state.round} gave a value, at any of "
                f"{', '.join(invited)}",
                hint="the objectives must return finite numbers at and around the start",
            )
        done.declined.update({name: done.declined.get(name, 0) + 1 for name in declined})
        version = state.version
        state = federation.tell(state, arrived)
        if state.update is not None and state.version > version:
            done.updates.append(state.update)
        if state.phase == 0:
            done.path.append(state.x)
            done.evaluations.append(sum(own.work.total for own in private.values()))
    done.state = state
    return done

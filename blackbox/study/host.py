"""A participant of federated rounds as an `Algorithm`, and a broadcast as a row of its log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import make_dataclass
from functools import cache
from typing import Any, Protocol, cast

import numpy as np

from blackbox import federation
from blackbox.algorithm import Algorithm, Traits
from blackbox.federation import Broadcast, FederationOptions, Participant
from blackbox.federation.participant import ParticipantState
from blackbox.records import Pending, Points, Results, Vector, dense


class HostedState(Protocol):
    """State of a `Host`; its class is made by `state_of`."""

    @property
    def step(self) -> int:
        """Steps closed."""

    @property
    def own(self) -> ParticipantState:
        """The participant's private state."""

    @property
    def x(self) -> Vector:
        """(d,) the common point of the current broadcast."""

    @property
    def settled(self) -> int:
        """Step of the broadcast whose contribution was settled last; -1 before the first."""


@cache
def state_of(own: type[Any]) -> type[Any]:
    """The class of a host's state around a private state; the codec builds only classes that annotations name."""
    fields = [("step", int), ("own", own), ("x", np.ndarray), ("settled", int)]
    return make_dataclass(f"Hosted{own.__name__}", fields, frozen=True, slots=True)


class Host(Algorithm[FederationOptions, HostedState]):
    """A participant's machine as an algorithm: a step is one batch of its points, or one message of the coordinator.
    The lanes of a step are the rows of the batch.

    Parameters
    ----------
    machine : the participant.
    """

    name = "hosted"
    traits = Traits(injects=True)

    def __init__(self, machine: Participant[Any, Any]) -> None:
        super().__init__(machine.space, machine.options, machine.key)
        self.machine = machine
        self.State = state_of(cast(Any, machine.State))  # type: ignore[misc]

    def init(self) -> HostedState:
        start = federation.project(self.space.initial, self.space)
        return cast(HostedState, self.State(0, self.machine.init(), start, -1))

    def resting(self, state: HostedState) -> bool:
        """Whether there is nothing to evaluate: before the first broadcast, and after each phase."""
        return not len(state.own.work.points)

    def owes(self, state: HostedState) -> bool:
        """Whether a phase is done and the outcome of its contribution is not yet in the log."""
        return self.machine.done(state.own) and state.settled != state.own.work.broadcast

    def need(self, state: HostedState) -> int:
        return max(1, len(state.own.work.points))

    def lanes(self, state: HostedState, pending: Pending, n: int) -> Sequence[int]:
        return range(pending.fresh, min(pending.fresh + n, len(state.own.work.points)))

    def ask(self, state: HostedState, lanes: Sequence[int], pending: Pending) -> Points:
        points = self.machine.ask(state.own)
        # A study computes whole tiles of lanes; those after the last row are never granted.
        rows = np.array([points[lane] if lane < len(points) else state.x for lane in lanes])
        return dense(rows.reshape(len(lanes), self.space.dim))

    def tell(self, state: HostedState, results: Results) -> HostedState:
        own, x, settled = state.own, state.x, state.settled
        message = next((i for i in range(len(results)) if results.lane[i] < 0), None)
        if message is not None and "broadcast" in results.extra[message]:
            # Results of an older phase are dropped with it.
            broadcast = broadcast_of(results, message)
            own, x = self.machine.start(own, broadcast), broadcast.x
            settled = -1 if settled == broadcast.step else settled  # a phase that was declined begins again
        elif message is not None:
            own, settled = self.machine.settle(own, bool(results.extra[message]["counted"])), own.work.broadcast
        elif not self.resting(state):
            values = np.full(len(own.work.points), math.nan)  # a point that failed for good has no value
            values[results.lane] = results.values[:, 0]
            own = self.machine.tell(own, values)
        return cast(HostedState, self.State(state.step + 1, own, x, settled))

    def recommend(self, state: HostedState) -> Vector:
        return state.x

    def metrics(self, state: HostedState) -> Mapping[str, float]:
        work = state.own.work
        return {
            "round": float(work.round),
            "points": float(len(work.points)),
            "evaluations": float(work.total),
            "settled": float(state.settled == work.broadcast),
        }


def broadcast_row(broadcast: Broadcast) -> tuple[dict[str, Any], bytes, bytes]:
    """A broadcast as the parts of a row: small JSON, the common point, and the other vectors concatenated."""
    rest = b"".join(v.tobytes() for name, v in sorted(broadcast.vectors.items()) if name != "x")
    return broadcast.to_json(), broadcast.x.astype("<f8").tobytes(), rest + bytes(-len(rest) % 8)


def broadcast_of(results: Results, row: int) -> Broadcast:
    """The inverse of `broadcast_row` for one row of results; the vectors are checked against their digests."""
    raw = cast(dict[str, Any], results.extra[row]["broadcast"])
    vectors = {raw["vectors"]["x"]["sha256"]: results.vectors[row]}
    rest, at = results.points.note[row].astype("<i8").tobytes(), 0
    for name, told in sorted(raw["vectors"].items()):
        if name != "x":
            vectors[told["sha256"]] = np.frombuffer(rest, told["dtype"], told["length"], at)
            at += vectors[told["sha256"]].nbytes
    return Broadcast.from_json(raw, vectors)

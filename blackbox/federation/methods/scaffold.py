"""SCAFFOLD: local zeroth-order descent, corrected by the difference of the mean gradient and the participant's own.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh (2020), Stochastic Controlled Averaging for Federated Learning,
arXiv:1910.06378, with finite differences in place of gradients, in the two forms of FZooS's code (shuyao95/FZooS)::

    g <- g + c - c_i          c = sum of p_i c_i

    control = "average" (II)  c_i is the mean of participant i's own estimates in the last round it took part in
    control = "fresh"   (I)   c_i is one more estimate at the new x, in a second phase "control"

II sends the *change* of c_i beside the move. The coordinator keeps the sum, so c counts every participant once with its
last c_i, even if it was absent since; a participant adopts a change only once it was counted. I takes the mean over the
contributions of the last round, and a participant that sent none gets no correction. Nor does a newcomer, without a
c_i.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from blackbox.federation.coordinator import FederationState, weighted_mean
from blackbox.federation.descent import Descent, DescentOptions, DescentParticipant, DescentResolved, DescentState
from blackbox.federation.method import federated
from blackbox.federation.options import Phase
from blackbox.federation.payloads import Broadcast, Contribution
from blackbox.records import Vector


class ScaffoldOptions(DescentOptions):
    """Options of `scaffold`. Lengths are in internal units: bounded parameters are the unit interval."""

    control: Literal["average", "fresh"] = "average"
    """Kind of control variate: the mean of the last round's local estimates (II, no evaluations of its own), or an
    estimate of its own at the new x (I, count + 1 more evaluations and a second phase)."""


class ScaffoldResolved(DescentResolved, ScaffoldOptions):
    """The options with every default filled in."""


class ScaffoldParticipant(DescentParticipant[ScaffoldResolved]):
    """Local descent along corrected gradients."""

    def begin(self, state: DescentState, broadcast: Broadcast) -> DescentState:
        if broadcast.phase == "control":  # directions of t = T, which no local step uses
            return self.probe(replace(state, x=broadcast.x, z=broadcast.x, t=self.options.local_steps))
        begun = super().begin(state, broadcast)
        mean = broadcast.vectors.get("control")
        current = self.options.control == "average" or state.made == broadcast.round - 1
        if mean is None or not len(state.control) or not current:
            return begun
        return replace(begun, correction=mean.astype(np.float64) - state.control)

    def pull(self, state: DescentState) -> Vector | float:
        return state.correction if len(state.correction) else 0.0

    def learn(self, state: DescentState, values: Vector) -> DescentState:
        if state.work.phase != "control":
            return super().learn(state, values)
        if self.informs(state, values):
            state = replace(state, control=self.gradient(state, values), made=state.work.round)
        return self.at_rest(state)

    def informed(self, state: DescentState) -> bool:
        return state.made == state.work.round if state.work.phase == "control" else super().informed(state)

    def result(self, state: DescentState) -> Mapping[str, Vector]:
        if state.work.phase == "control":
            return {"gradient": state.control}
        if self.options.control == "fresh":
            return {"delta": state.z - state.x}
        before = state.control if len(state.control) else 0.0
        return {"delta": state.z - state.x, "control": state.slope / max(state.stepper.t, 1) - before}

    def settle(self, state: DescentState, counted: bool) -> DescentState:
        if self.options.control == "fresh" or not counted or state.made == state.work.round:
            return state
        # the vector as it was sent: clipped, noised and rounded, so that the coordinator's sum stays the sum of these
        change = self.contribution(state).vectors["control"].astype(np.float64)
        control = state.control + change if len(state.control) else change
        return replace(state, control=control, made=state.work.round)


@federated("scaffold")
class Scaffold(Descent[ScaffoldResolved]):
    """Local descent with control variates against the drift of participants that differ (arXiv:1910.06378)."""

    Options = ScaffoldOptions
    Resolved = ScaffoldResolved
    Participant = ScaffoldParticipant
    revision = 2  # 2026-11: a local step without a value moves nothing, and a phase without one contributes nothing

    def make_phases(self) -> tuple[Phase, ...]:
        d = self.space.dim
        if self.options.control == "fresh":
            return (Phase("local", {"delta": d}), Phase("control", {"gradient": d}))
        return (Phase("local", {"delta": d, "control": d}),)

    def absorb(
        self, state: FederationState, phase: Phase, contributions: Sequence[Contribution], weights: Vector
    ) -> FederationState:
        if phase.name == "control":
            if not contributions:
                return replace(state, shared={})
            mean = weighted_mean([c.vectors["gradient"] for c in contributions], weights)
            return replace(state, shared={"control": mean.astype(np.float32)})
        if self.options.control == "fresh" or not contributions:
            return state
        total = state.memory.get("control", np.zeros(self.space.dim)).copy()
        known = {name: client.weight for name, client in state.clients.items()}
        for c in contributions:  # not the weights of the means: a stale change is a change all the same
            known[c.client] = c.weight
            total += c.weight * c.vectors["control"].astype(np.float64)
        mean = total / sum(known[name] for name in sorted(known))
        return replace(state, shared={"control": mean.astype(np.float32)}, memory={"control": total})

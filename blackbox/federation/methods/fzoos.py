"""FZooS: gradients from a model of all evaluations so far, corrected by the models of the other participants.

Shu, Lin, Dai, Low (2023), Federated Zeroth-Order Optimization using Trajectory-Informed Surrogate Gradients,
arXiv:2308.04077, and the authors' code (shuyao95/FZooS). A round has two phases. "local", at each participant, from
z = x with a fresh stepper, t = 1 ... T::

    g = grad mu_i(z)                              mean of a Gaussian process on the nearest evaluations
    z <- z + stepper(g + gamma_t (grad m_w(z) - grad m_wi(z))),   gamma_t = 1/t
    evaluate f_i at z and at those of random points around it where the gradient is least certain (not after step T)

The coordinator moves x by the mean of z_T - x. "transfer", around the new x: evaluate where the gradient is least
certain, fit random features to the nearest evaluations and send their weights w_i; their mean w corrects the next
round. The features m_w(x) = w' phi(x) are drawn from the shared key, so they are never sent.

An absent participant is represented by its last vector, with a weight that fades by the factor `memory` per round::

    mean = sum of w_i memory^age_i v_i / sum of w_i memory^age_i,   age_i = rounds since participant i was counted

Without it the mean is over the contributions that arrive, and at a constant rate the differences of the participants
stay in x as noise. (Gu, Huang, Zhang, Huang 2021, arXiv:2106.04159, keep last updates for ever; with memory < 1 a
participant that left is forgotten.) As in SCAFFOLD a participant sends the *change* of its vector against what the
coordinator has of it, which both sides let fade: so the coordinator only needs weighted sums, and with everybody there
the mean is the plain one.

Unlike the authors' code: gradients are closed forms, repeats of a point are merged, the ridge is not zero, and z_T,
which can be read off the update, is never evaluated. A participant whose own weights are not those of the last round
takes no correction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import pydantic

from blackbox import rng
from blackbox.federation.coordinator import Federation, FederationState
from blackbox.federation.method import federated
from blackbox.federation.options import FederationOptions, Phase
from blackbox.federation.participant import Participant, Work, idle
from blackbox.federation.payloads import FEATURES, Broadcast, Contribution, project
from blackbox.options import Field
from blackbox.records import Matrix, Vector
from blackbox.registry import UNKNOWN, Outlook
from blackbox.space import Space
from blackbox.toolbox import surrogates
from blackbox.toolbox.schedules import AnySchedule, Constant
from blackbox.toolbox.steppers import Adam, AnyStepper, StepperState
from blackbox.toolbox.surrogates import GaussianProcess, Kernel, RandomFeatures

CANDIDATES = 1  # stream of a participant's private candidates


class FZooSOptions(FederationOptions):
    """Options of `fzoos`. Lengths are in internal units: bounded parameters are the unit interval."""

    stepper: AnyStepper = Adam()
    """Stepper that turns gradients into moves; it starts afresh every round."""
    rate: AnySchedule = Constant(value=0.01)
    """Local step size by round. With adam about what every coordinate moves per local step. Near the end the error of
    the surrogate dominates: a falling rate goes closer."""
    spread: float = Field(0.01, ge=1e-12, le=1e12)
    """Half-width of the box around z in which points are tried: as small as the noise of a value allows."""
    initial_points: int = Field(10, ge=1)
    """Points around x that a participant evaluates when it begins."""
    active: int = Field(5, ge=0)
    """Points beside z that are evaluated at each local step."""
    transfer_points: int = Field(50, ge=0)
    """Points beside x that are evaluated for the model that is sent."""
    candidates: int = Field(100, ge=1)
    """Random points among which those of largest gradient variance are chosen, at each local step; twice as many for
    the transfer."""
    neighbours: int = Field(150, ge=2, le=5000)
    """Evaluations in the local model. Its cost grows with the third power."""
    transfer_neighbours: int = Field(500, ge=2, le=10_000)
    """Evaluations in the model that is sent."""
    features: int = Field(2000, ge=1, le=1_000_000)
    """M: random features, so 4 M bytes up and down a round. Well above transfer_neighbours buys nothing."""
    length: float | Literal["likelihood"] | None = None
    """Length of the kernels. None: 0.1155 sqrt(d). likelihood: that of the local model is fitted at every step, that of
    the features is 0.1155 sqrt(d)."""
    noise: float = Field(1e-6, ge=0, le=1)
    """Variance of a value's error, in units of the squared range of values in the local model."""
    ridge: float = Field(1e-5, gt=0)
    """Ridge of the features' weights."""
    correction: Literal["inverse", "constant", "none"] = "inverse"
    """Length of the correction: gamma_t = 1/t, 1, or 0. none also leaves out the transfer phase."""
    memory: float | None = Field(None, ge=0, lt=1)
    """Factor by which the weight of an absent participant's last move and model fades a round. 0: the means are over
    the contributions that arrive. A stale move counts with this power of its age, instead of by `staleness_power`.
    None: 0.8, and 0 where privacy adds noise, because that of past changes would stay for as long."""
    archive: int = Field(2000, ge=10)
    """Evaluations a participant remembers; the newest stay."""

    @pydantic.field_validator("length")
    @classmethod
    def _positive(cls, length: float | str | None) -> float | str | None:
        if isinstance(length, float | int) and not length > 0:
            raise ValueError(f"must be positive, got {length}")
        return length


class FZooSResolved(FZooSOptions):
    """The options with every default filled in."""

    length: float | Literal["likelihood"]
    memory: float


@dataclass(frozen=True, slots=True)
class FZooSState:
    """Private state of a participant. d is the dimension, n the evaluations remembered.

    Attributes
    ----------
    work : see `Work`.
    points, values : (n, d) and (n,) the evaluations.
    x : (d,) the point at which the round began.
    z : (d,) the participant's current point.
    t : local steps taken; negative as long as no evaluation of the phase has given a value.
    rate : step size of this round.
    stepper : of this round.
    shared : (M,) mean weights of all participants; empty: no correction in this round.
    weights : (M,) own weights, fitted at the end of a round; empty before.
    fitted : the round of `weights`; -1 before.
    last_move, last_weights : (d,), (M,) the vectors that the coordinator keeps of this participant; empty: none.
    moved, told : the rounds of these two; -1 before.
    """

    work: Work
    points: Matrix
    values: Vector
    x: Vector
    z: Vector
    t: int
    rate: float
    stepper: StepperState
    shared: Vector
    weights: Vector
    fitted: int
    last_move: Vector
    moved: int
    last_weights: Vector
    told: int


NOTHING = np.empty(0)


def default_length(dim: int) -> float:
    """Return 0.2 sqrt(d/3) = 0.1155 sqrt(d): distances in a cube grow with sqrt(d)."""
    return 0.2 * math.sqrt(dim / 3)


class FZooSParticipant(Participant[FZooSResolved, FZooSState]):
    """The participant of FZooS: a local Gaussian process to descend on, random features to share with others."""

    State = FZooSState

    @cached_property
    def features(self) -> RandomFeatures:
        """The random features that all participants share."""
        length = self.options.length
        width = length if isinstance(length, float) else default_length(self.space.dim)
        return RandomFeatures.draw(self.key.stream(FEATURES), self.options.features, self.space.dim, width)

    def init(self) -> FZooSState:
        d = self.space.dim
        origin, stepper = np.zeros(d), StepperState(0, NOTHING, NOTHING)
        return FZooSState(
            idle(d), np.empty((0, d)), NOTHING, origin, origin, 0, 0.0, stepper, NOTHING, NOTHING, -1, NOTHING, -1,
            NOTHING, -1,
        )  # fmt: skip

    def begin(self, state: FZooSState, broadcast: Broadcast) -> FZooSState:
        x = broadcast.x
        if broadcast.phase == "transfer":
            return self._transfer(state, x)
        shared = broadcast.vectors.get("surrogate", NOTHING).astype(np.float64)
        if state.fitted != broadcast.round - 1 or self.options.correction == "none":
            shared = NOTHING
        state = replace(
            state,
            x=x,
            z=x,
            t=0,
            rate=max(self.options.rate(broadcast.round), 0.0),
            stepper=self.options.stepper.init(self.space.dim),
            shared=shared,
        )
        unknown = [] if _holds(state.points, x) else [x[None]]
        if len(state.points) < self.options.initial_points:
            unknown.append(self._around(state, x, self.options.spread, self.options.initial_points))
        if not unknown:
            return self._step(state)
        return _asking(state, np.concatenate(unknown))

    def learn(self, state: FZooSState, values: Vector) -> FZooSState:
        there = np.isfinite(values)
        points = np.concatenate([state.points, state.work.points[there]])[-self.options.archive :]
        known = np.concatenate([state.values, values[there]])[-self.options.archive :]
        state = replace(state, points=points, values=known)
        if state.work.phase == "transfer":
            return self._model(replace(state, fitted=state.work.round) if there.any() else state)
        return self._step(state, bool(there.any()))

    def informed(self, state: FZooSState) -> bool:
        return state.fitted == state.work.round if state.work.phase == "transfer" else state.t > 0

    def result(self, state: FZooSState) -> Mapping[str, Vector]:
        known = self._known(state)
        if state.work.phase == "transfer":
            return {"weights": state.weights - known}
        return {"delta": state.z - state.x - known}

    def settle(self, state: FZooSState, counted: bool) -> FZooSState:
        transfer = state.work.phase == "transfer"
        if not counted or not self.options.memory or (state.told if transfer else state.moved) == state.work.round:
            return state
        # the vector as it was sent: clipped, noised and rounded, as the coordinator has it
        (change,) = self.contribution(state).vectors.values()
        kept = self._known(state) + change.astype(np.float64)
        if transfer:
            return replace(state, last_weights=kept, told=state.work.round)
        return replace(state, last_move=kept, moved=state.work.round)

    def _known(self, state: FZooSState) -> Vector | float:
        """Return the vector that the coordinator keeps of this participant for the current phase, faded until now."""
        transfer = state.work.phase == "transfer"
        kept, of = (state.last_weights, state.told) if transfer else (state.last_move, state.moved)
        return self.options.memory ** (state.work.round - of) * kept if len(kept) else 0.0

    # -- local

    def _step(self, state: FZooSState, told: bool = False) -> FZooSState:
        """Take a local step; `told`: whether a value came since the last one."""
        t, T = abs(state.t) + 1, self.options.local_steps
        gradient = self.gradient(state, t)
        stepper, move = self.options.stepper.step(state.stepper, gradient, state.rate)
        z = project(state.z + move, self.space)
        state = replace(state, z=z, t=t if told or state.t > 0 else -t, stepper=stepper)
        if t == T:
            return _asking(state, state.points[:0])
        return _asking(state, np.concatenate([z[None], self._least_certain(state, z, self.options.active)]))

    def gradient(self, state: FZooSState, t: int) -> Vector:
        """Return the (d,) corrected gradient at z in local step t = 1, 2, ..."""
        model = self._process(state, state.z)
        gradient = np.zeros(self.space.dim) if model is None else model.gradient(state.z)
        if len(state.shared):
            gamma = 1 / t if self.options.correction == "inverse" else 1.0
            # the features are linear in the weights: one gradient of the difference
            gradient = gradient + gamma * self.features.gradient(state.shared - state.weights, state.z)
        return gradient

    def _process(self, state: FZooSState, x: Vector) -> GaussianProcess | None:
        near = surrogates.nearest(state.points, x, self.options.neighbours)
        if not len(near):
            return None
        points, values = surrogates.distinct(state.points[near], state.values[near])
        length = self.options.length
        if length == "likelihood" and len(points) > 2:
            length = surrogates.likely_length(points, values, noise=self.options.noise)
        width = length if isinstance(length, float) else default_length(self.space.dim)
        return surrogates.fit(points, values, Kernel(width), self.options.noise)

    # -- transfer

    def _transfer(self, state: FZooSState, x: Vector) -> FZooSState:
        half = max(float(np.abs(x - state.z).mean()) / 2, 0.1 * self.options.spread)
        n = self.options.transfer_points
        chosen = self._least_certain(state, x, n, half, 2 * self.options.candidates)
        new = chosen if _holds(state.points, x) else np.concatenate([x[None], chosen])
        state = replace(state, x=x)
        return _asking(state, new) if len(new) else self._model(replace(state, fitted=state.work.round))

    def _model(self, state: FZooSState) -> FZooSState:
        near = surrogates.nearest(state.points, state.x, self.options.transfer_neighbours)
        weights = np.zeros(self.options.features)
        if len(near):
            points, values = surrogates.distinct(state.points[near], state.values[near])
            weights = self.features.fit(points, values, self.options.ridge)
        # What is sent is float32; both sides of the correction should be.
        weights = weights.astype(np.float32).astype(np.float64)
        return _asking(replace(state, weights=weights), state.points[:0])

    # -- where to evaluate

    def _around(self, state: FZooSState, x: Vector, half: float, n: int) -> Matrix:
        """Draw (n, d) points uniformly from the box of the given half-width around x."""
        key, step, d = self.private.stream(CANDIDATES), state.work.step, self.space.dim
        return project(x + half * (2 * rng.uniforms(key, step, range(n), d) - 1), self.space)

    def _least_certain(
        self, state: FZooSState, x: Vector, n: int, half: float | None = None, candidates: int | None = None
    ) -> Matrix:
        """Return the (n, d) of random points around x at which the local model's gradient is least certain."""
        half = self.options.spread if half is None else half
        tried = self._around(state, x, half, max(candidates or self.options.candidates, n))
        model = self._process(state, x)
        if model is None or n == 0:
            return tried[:n]
        order = np.argsort(-model.gradient_variance(tried), kind="stable")
        return tried[np.sort(order[:n])]


def _asking(state: FZooSState, points: Matrix) -> FZooSState:
    return replace(state, work=replace(state.work, points=points))


def _holds(points: Matrix, x: Vector) -> bool:
    return bool(len(points)) and bool((points == x).all(axis=1).any())


@federated("fzoos")
class FZooS(Federation[FZooSResolved]):
    """Federated descent on surrogate gradients that are corrected across participants (arXiv:2308.04077)."""

    Options = FZooSOptions
    Resolved = FZooSResolved
    Participant = FZooSParticipant
    revision = 2  # 2026-11: a phase without a value contributes nothing

    @classmethod
    def resolve(cls, options: FZooSOptions, space: Space, outlook: Outlook = UNKNOWN) -> FZooSResolved:
        noisy = options.privacy is not None and options.privacy.noise > 0
        memory = 0.0 if noisy else 0.8
        return options.with_defaults(FZooSResolved, length=default_length(space.dim), memory=memory)

    @classmethod
    def hosting_memory(cls, options: FZooSResolved, space: Space) -> int:
        tried = 2 * options.candidates + options.neighbours + options.transfer_neighbours + 2 * options.archive
        return 8 * (space.dim * (options.features + tried) + options.features * options.transfer_neighbours)

    def make_phases(self) -> tuple[Phase, ...]:
        local = Phase("local", {"delta": self.space.dim})
        if self.options.correction == "none":
            return (local,)
        return (local, Phase("transfer", {"weights": self.options.features}))

    def absorb(
        self, state: FederationState, phase: Phase, contributions: Sequence[Contribution], weights: Vector
    ) -> FederationState:
        if phase.name != "transfer":
            return state
        if not contributions:  # models around an older x would mislead
            return replace(state, shared={})
        mean, memory = self.mean(state, phase, "weights", contributions, weights)
        return replace(state, shared={"surrogate": mean.astype(np.float32)}, memory=memory)

    def mean(
        self, state: FederationState, phase: Phase, name: str, told: Sequence[Contribution], weights: Vector
    ) -> tuple[Vector, Mapping[str, Vector]]:
        fade, now = self.options.memory, state.round
        if not fade:
            return super().mean(state, phase, name, told, weights)
        clients = {c: (known.weight, known.counted.get(phase.name, -1)) for c, known in state.clients.items()}
        last = max((counted for _, counted in clients.values()), default=-1)
        # the sum of w_i fade^age_i v_i over all participants: the old sum, faded until now, plus the changes
        total = fade ** (now - last) * state.memory.get(name, np.zeros(len(told[0].vectors[name])))
        for c in told:
            total = total + c.weight * fade ** (now - c.round) * c.vectors[name].astype(np.float64)
            clients[c.client] = (c.weight, max(clients.get(c.client, (0.0, -1))[1], c.round))
        shares = [weight * fade ** (now - counted) for _, (weight, counted) in sorted(clients.items()) if counted >= 0]
        return total / math.fsum(shares), {**state.memory, name: total}

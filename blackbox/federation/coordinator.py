"""The coordinator of rounds as a Moore machine: it neither waits nor communicates, and sees only contributions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from blackbox import rng
from blackbox.errors import (
    FieldError,
    InvalidContribution,
    InvalidOptions,
    nearest,
)
from blackbox.federation import privacy as dp
from blackbox.federation.options import FederationOptions, Phase
from blackbox.federation.participant import Participant
from blackbox.federation.payloads import (
    FARTHEST,
    INVITED,
    Broadcast,
    Contribution,
    Invitation,
    Update,
    apply,
    project,
)
from blackbox.federation.vectors import Floats, norm
from blackbox.records import Notice, Stop, Vector
from blackbox.registry import Method
from blackbox.rng import Key
from blackbox.space import Space
from blackbox.validation import invalid, pointer


@dataclass(frozen=True, slots=True)
class Client:
    """The coordinator's record of one participant.

    Attributes
    ----------
    weight : its last weight.
    releases : number of vectors it has released.
    counted : phase -> round of its last contribution to that phase that counted.
    """

    weight: float
    releases: int
    counted: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class FederationState:
    """State of the coordinator; d is the dimension.

    Attributes
    ----------
    step : phases closed.
    round : rounds completed.
    phase : index of the open phase.
    x : (d,) the common point.
    version : updates applied to x.
    shared : name -> float32 vector that is broadcast beside x in the first phase of a round.
    memory : name -> float64 vector that is not broadcast.
    update : the last update of x, or None.
    clients : participants that have contributed.
    counted : contributions in the phase closed last.
    evaluations : private evaluations reported so far.
    bytes_up, bytes_down : raw vectors of one participant in the round closed last (largest); in the open one so far.
    rdp : (orders,) Renyi divergences of all released means.
    """

    step: int
    round: int
    phase: int
    x: Vector
    version: int
    shared: Mapping[str, Floats]
    memory: Mapping[str, Vector]
    update: Update | None
    clients: Mapping[str, Client]
    counted: int
    evaluations: int
    bytes_up: tuple[int, int]
    bytes_down: tuple[int, int]
    rdp: Vector


O = TypeVar("O", bound=FederationOptions)  # noqa: E741 -- as in blackbox.algorithm


class Federation(Method[O], ABC, Generic[O]):
    """The coordinator of rounds: a Moore machine that never sees data and never evaluates. Instances hold constants.

    Parameters
    ----------
    space : real parameters only; points are internal vectors.
    options : resolved options.
    key : the study's noise key. Participants know it too.
    stated : the options as the study states them to its participants, as JSON. None: `options`. The terms are a digest
        of them, and must outlive a release that adds an option.
    """

    kind = "rounds"
    State: ClassVar[type[FederationState]] = FederationState
    Participant: ClassVar[type[Participant[Any, Any]]]

    def __init__(self, space: Space, options: O, key: Key, stated: Mapping[str, Any] | None = None) -> None:
        self.space = space
        self.options = options
        self.key = key
        self._stated = options.model_dump(mode="json") if stated is None else stated
        self.phases = self.make_phases()
        self.terms = self.invitation().terms
        """Digest of the invitation."""

    # -- to be defined by a method

    @classmethod
    def why_not(cls, space: Space, *, maximize: bool = False) -> str | None:
        if foreign := space.kinds - {"float"}:
            return f"it takes float parameters, the space has {', '.join(sorted(foreign))}"
        if space.domain == "convex":
            return "it takes free and bounded parameters, the space has a region"
        if maximize:
            return (
                'it minimises, for its participants\' values never come here; leave out "direction", and let each '
                "participant negate its value"
            )
        return None

    @classmethod
    def check_options(cls, options: O, space: Space) -> None:
        privacy = options.privacy
        if privacy is None:
            return
        travel = {name for phase in cls(space, options, Key.from_seed(0)).phases for name in phase.payload}
        faults = [
            FieldError(pointer("privacy", "clip", name), "missing", "is required: this vector travels")
            for name in sorted(travel - set(privacy.clip))
        ] + [
            FieldError(pointer("privacy", "clip", name), "unknown_vector", f"no such vector; {nearest(name, travel)}")
            for name in sorted(set(privacy.clip) - travel)
        ]
        faults += [
            FieldError(pointer("privacy", "clip", name), "greater_than", f"must be positive and finite, got {clip}")
            for name, clip in privacy.clip.items()
            if not 0 < clip < math.inf
        ]
        if faults:
            raise invalid(InvalidOptions, faults)

    @classmethod
    def memory(cls, options: O, space: Space) -> int:
        """Estimate the bytes of the common point, the vectors broadcast beside it, and the mean of contributions."""
        return 128 * space.dim

    @classmethod
    def hosting_memory(cls, options: O, space: Space) -> int:
        """Estimate the bytes that one participant's machine needs; a service refuses to host what does not
        fit."""
        return 128 * space.dim

    @abstractmethod
    def make_phases(self) -> tuple[Phase, ...]:
        """Return the phases of a round. Exactly one holds "delta" (d) or "coefficients" (L): it moves x."""

    def absorb(
        self, state: FederationState, phase: Phase, contributions: Sequence[Contribution], weights: Vector
    ) -> FederationState:
        """Return the state with `shared` and `memory` updated from the vectors of a phase that do not move x.

        Parameters
        ----------
        state : x has already moved; `clients` are still those before this phase.
        contributions : sorted by client; may be empty.
        weights : (n,) their weights; those of stale ones are already reduced.
        """
        return state

    def mean(
        self, state: FederationState, phase: Phase, name: str, told: Sequence[Contribution], weights: Vector
    ) -> tuple[Vector, Mapping[str, Vector]]:
        """Return the (n,) mean of one vector of a phase over the participants, and the updated memory.

        Parameters
        ----------
        told : sorted by client, at least one.
        weights : (n,) their weights; those of stale ones are already reduced.
        """
        return weighted_mean([c.vectors[name] for c in told], weights), state.memory

    def direction_noise(self) -> Literal["normal", "rademacher"]:
        """Return the kind of noise of the shared directions, for methods that send coefficients."""
        return "normal"

    # -- the machine

    def init(self) -> FederationState:
        """Return the state before the first round."""
        x = project(self.space.initial, self.space)
        none: dict[str, Any] = {}
        return FederationState(0, 0, 0, x, 0, none, none, None, none, 0, 0, (0, 0), (0, 0), np.zeros(len(dp.ORDERS)))

    def invitation(self) -> Invitation:
        """Return what a participant receives when it joins."""
        return Invitation(self.name, self._stated, self.space.to_json(), self.key.hex())

    def broadcast(self, state: FederationState) -> Broadcast:
        """Return the broadcast of the open phase: x, and in the first phase of a round the shared vectors."""
        phase, shared = self.phases[state.phase].name, {} if state.phase else state.shared
        return Broadcast(self.terms, state.step, state.round, phase, state.version, {"x": state.x, **shared})

    def invited(self, state: FederationState, client: str) -> bool:
        """Return whether the client takes part in the open round, drawn with probability `participation`."""
        if self.options.participation >= 1:
            return True
        chance = rng.uniform(self.key.stream(INVITED).child(client), state.round, 0, 1)
        return bool(chance[0] < self.options.participation)

    def need(self, state: FederationState, joined: int) -> int:
        """Return the number of contributions that close the open phase, of the `joined` participants there are now."""
        expected = self.options.quorum * self.options.participation * joined
        return max(self.options.min_clients, math.ceil(expected - 1e-9), 1)

    def admission(self, state: FederationState, round: int, phase: str) -> Literal["now", "later", "late"]:
        """Decide whether a contribution to (round, phase) counts now, may count in a later phase, or never will.

        Raises
        ------
        InvalidContribution
            If there is no such phase, or it has not begun.
        """
        names = [p.name for p in self.phases]
        if phase not in names:
            fault = FieldError("/phase", "unknown_phase", f"{phase!r} is none; {nearest(phase, names)}")
            raise invalid(InvalidContribution, [fault])
        at = names.index(phase)
        if (round, at) > (state.round, state.phase):
            message = f"the open phase is {names[state.phase]!r} of round {state.round}, got {phase!r} of {round}"
            raise invalid(InvalidContribution, [FieldError("/round", "not_begun", message)])
        if (round, at) == (state.round, state.phase):
            return "now"
        if "delta" not in self.phases[at].payload:  # models of a neighbourhood and coefficients of directions expire
            return "late"
        opens = state.round if at >= state.phase else state.round + 1  # the next round in which the phase is open
        if opens - round > self.options.max_staleness:
            return "late"
        return "now" if at == state.phase else "later"

    def check(self, contribution: Contribution) -> None:
        """Check that a contribution is what its phase asks for.

        Raises
        ------
        InvalidContribution
            It names each field at fault: other terms, a vector that is missing, unknown, of the wrong length or not
            finite, and other clipping or less noise than the study demands.
        """
        faults = list(self._faults(contribution))
        if faults:
            raise invalid(InvalidContribution, faults)

    def _faults(self, contribution: Contribution) -> Sequence[FieldError]:
        if contribution.terms != self.terms:
            message = f"these are the terms {contribution.terms!r} of another study, expected {self.terms!r}"
            return [FieldError("/terms", "other_terms", message)]
        phase = next((p for p in self.phases if p.name == contribution.phase), None)
        if phase is None:
            known = nearest(contribution.phase, [p.name for p in self.phases])
            return [FieldError("/phase", "unknown_phase", f"{contribution.phase!r} is none; {known}")]
        faults = []
        if not 0 < contribution.weight < math.inf:
            faults.append(FieldError("/weight", "greater_than", f"must be positive, got {contribution.weight}"))
        for name, length in phase.payload.items():
            vector = contribution.vectors.get(name)
            if vector is None:
                faults.append(FieldError(pointer("vectors", name), "missing", f"is required in phase {phase.name!r}"))
            elif vector.shape != (length,) or vector.dtype != np.float32:
                message = f"must be {length} float32 numbers, got {vector.dtype} of shape {vector.shape}"
                faults.append(FieldError(pointer("vectors", name), "wrong_length", message))
            elif not np.isfinite(vector).all():
                faults.append(FieldError(pointer("vectors", name), "non_finite", "must be finite"))
        faults += [
            FieldError(pointer("vectors", name), "unknown_vector", f"phase {phase.name!r} takes no such vector")
            for name in contribution.vectors
            if name not in phase.payload
        ]
        return faults + self._privacy_faults(contribution, phase)

    def _privacy_faults(self, contribution: Contribution, phase: Phase) -> list[FieldError]:
        wanted, facts = self.options.privacy, contribution.privacy
        if wanted is None:
            return []
        if facts is None:
            return [FieldError("/privacy", "missing", "the study demands clipped and noised contributions")]
        faults = []
        if facts.noise < wanted.noise:
            message = f"must be at least {wanted.noise}, got {facts.noise}"
            faults.append(FieldError("/privacy/noise", "too_little", message))
        for name in phase.payload:
            if facts.clip.get(name) != wanted.clip[name]:  # a smaller clip would add less noise to the mean
                message = f"must be {wanted.clip[name]}, got {facts.clip.get(name)}"
                faults.append(FieldError(pointer("privacy", "clip", name), "other_clip", message))
        return faults

    def tell(self, state: FederationState, contributions: Sequence[Contribution]) -> FederationState:
        """Close the open phase with any subset of contributions, in any order; without any nothing moves.

        Raises
        ------
        InvalidContribution
            If one of them does not fit, does not count now, or a client is there twice for one round.
        """
        phase = self.phases[state.phase]
        told = sorted(contributions, key=lambda c: (c.client, c.round))
        for i, c in enumerate(told):
            self.check(c)
            if self.admission(state, c.round, c.phase) != "now":
                raise InvalidContribution(f"{c.client}'s contribution to {c.phase!r} of round {c.round} is late")
            if i and (told[i - 1].client, told[i - 1].round) == (c.client, c.round):
                raise InvalidContribution(f"{c.client} contributed twice to round {c.round}; keep the first")
        ages = np.array([state.round - c.round for c in told], dtype=np.float64)
        weights = np.array([c.weight for c in told]) * (1 + ages) ** -self.options.staleness_power
        moved = self._moved(state, phase, told, weights)
        moved = self.absorb(moved, phase, told, weights)
        return self._closed(moved, phase, told, weights, self.broadcast(state).nbytes)

    def _moved(
        self, state: FederationState, phase: Phase, told: Sequence[Contribution], weights: Vector
    ) -> FederationState:
        name = next((n for n in ("delta", "coefficients") if n in phase.payload), None)
        if name is None or not told:
            return state
        mean, memory = self.mean(state, phase, name, told, weights)
        step = self.options.server_rate * mean
        travels = np.clip(step, -FARTHEST, FARTHEST).astype(np.float32)
        version = state.version + 1
        if name == "delta":
            update = Update(version, state.round, travels)
        else:
            update = Update(version, state.round, None, travels, self.direction_noise())
        x = apply(state.x, update, self.key, self.space, self.slicer)
        return replace(state, x=x, version=version, update=update, memory=memory)

    def _closed(
        self, state: FederationState, phase: Phase, told: Sequence[Contribution], weights: Vector, sent: int
    ) -> FederationState:
        clients = dict(state.clients)
        for c in told:
            known = clients.get(c.client, Client(c.weight, 0, {}))
            latest = max(known.counted.get(phase.name, -1), c.round)
            counted = {**known.counted, phase.name: latest}
            clients[c.client] = Client(c.weight, known.releases + len(c.vectors), counted)
        up = state.bytes_up[1] + max((c.nbytes for c in told), default=0)
        down = state.bytes_down[1] + sent
        last = state.phase + 1 == len(self.phases)
        return replace(
            state,
            step=state.step + 1,
            round=state.round + last,
            phase=0 if last else state.phase + 1,
            clients=dict(sorted(clients.items())),
            counted=len(told),
            evaluations=state.evaluations + sum(c.evaluations for c in told),
            bytes_up=(up, 0) if last else (state.bytes_up[0], up),
            bytes_down=(down, 0) if last else (state.bytes_down[0], down),
            rdp=state.rdp + self._released(phase, told, weights),
        )

    def _released(self, phase: Phase, told: Sequence[Contribution], weights: Vector) -> Vector:
        """Return the divergence of the means that this phase published: one Gaussian release per vector."""
        if self.options.privacy is None or not told:
            return np.zeros(len(dp.ORDERS))
        noise = min((c.privacy.noise if c.privacy else 0.0) for c in told)
        rate = self.options.participation
        return len(phase.payload) * dp.rdp_sampled_gaussian(rate, dp.mean_noise(weights.tolist(), noise))

    def recommend(self, state: FederationState) -> Vector:
        """Return the (d,) internal point to deploy now."""
        return state.x

    def metrics(self, state: FederationState) -> Mapping[str, float]:
        """Return numbers to plot as they are; names are stable."""
        found = {
            "round": float(state.round),
            "phase": float(state.phase),
            "clients": float(len(state.clients)),
            "counted": float(state.counted),
            "evaluations": float(state.evaluations),
            "bytes_up": float(state.bytes_up[0]),
            "bytes_down": float(state.bytes_down[0]),
        }
        if state.update is not None:
            found["update_norm"] = norm(state.update.numbers) / self.options.server_rate
        privacy = self.options.privacy
        if privacy is not None and privacy.noise > 0 and state.clients:
            found["epsilon_coordinator"] = self.epsilon_coordinator(state)
            found["epsilon_published"] = dp.epsilon(state.rdp, privacy.delta)
        return found

    def epsilon_coordinator(self, state: FederationState, more: int = 0) -> float:
        """Return the largest epsilon of a participant towards the coordinator, which sees each contribution alone.

        Contributions that arrived but were not counted are left out; participants know them (`Participant.epsilon`).

        Parameters
        ----------
        more : further releases to include.
        """
        privacy = self.options.privacy
        if privacy is None or privacy.noise == 0:
            return math.inf
        releases = max((c.releases for c in state.clients.values()), default=0) + more
        return dp.epsilon_of_replacement(releases, privacy.noise, privacy.delta)

    def notices(self, state: FederationState) -> Sequence[Notice]:
        """Return what the study's owner should know of the state; as `Algorithm.notices`."""
        if state.update is None or state.update.numbers.any():
            return ()
        return (
            Notice(
                "nothing_moves",
                f"the mean move of round {state.update.round} is zero: where the participants evaluated, their "
                "objectives are flat",
                {"round": state.update.round, "counted": state.counted},
                "let the probes reach further, or begin elsewhere",
            ),
        )

    def stopped(self, state: FederationState) -> Stop | None:
        """Return why there is nothing more to do, or None."""
        rounds, privacy = self.options.rounds, self.options.privacy
        if rounds is not None and state.round >= rounds:
            return Stop("rounds", f"all {rounds} rounds are done", {"rounds": float(rounds)})
        if privacy is not None and privacy.max_epsilon is not None and state.phase == 0:
            next_round = sum(len(phase.payload) for phase in self.phases)
            after = self.epsilon_coordinator(state, next_round)
            if after > privacy.max_epsilon:
                spent = self.epsilon_coordinator(state)
                detail = f"another round would spend epsilon {after:.3g}, more than {privacy.max_epsilon}"
                return Stop("privacy", detail, {"epsilon": spent} if math.isfinite(spent) else {})
        return None


def weighted_mean(vectors: Sequence[NDArray[Any]], weights: Vector) -> Vector:
    """Return sum w_i v_i / sum w_i in float64, added one after another in the given order."""
    total = np.zeros(len(vectors[0]))
    for vector, weight in zip(vectors, weights.tolist(), strict=True):
        total += weight * vector.astype(np.float64)
    return total / math.fsum(weights.tolist())

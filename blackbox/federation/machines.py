"""Coordinator and participant as Moore machines, and the registry of federated methods.

Neither side waits, sleeps or talks: a transport carries a `Broadcast` down and `Contribution`s up, whatever it is.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from blackbox import codec, rng
from blackbox.errors import (
    Conflict,
    FieldError,
    IncompatibleProblem,
    InvalidContribution,
    InvalidInput,
    InvalidOptions,
    UnknownAlgorithm,
    nearest,
)
from blackbox.federation import privacy as dp
from blackbox.federation.payloads import (
    FARTHEST,
    INVITED,
    Broadcast,
    Contribution,
    ContributionJson,
    Floats,
    Invitation,
    Privacy,
    Update,
    apply,
    norm,
    project,
)
from blackbox.options import Field, Options, parse_options
from blackbox.records import Matrix, Stop, Vector
from blackbox.rng import Key
from blackbox.space import Space
from blackbox.validation import invalid, pointer

LARGEST = 1e100  # a value beyond is none: differences of two, squared, must stay finite


# -- options and states ------------------------------------------------------------------------------------------------


class PrivacyOptions(Options):
    """Clipping and Gaussian noise that every participant applies before anything leaves it."""

    clip: dict[str, float] = Field(min_length=1)
    """Largest Euclidean norm of each vector that travels, by name ("delta", "weights", ...); see the method's page. A
    good start is the median norm without privacy, which the metric `update_norm` shows."""
    noise: float = Field(1.0, ge=0, le=1e6)
    """z: standard deviation of the noise on each coordinate, in units of the clip."""
    delta: float = Field(1e-5, gt=0, lt=1)
    """Probability with which the promise may fail; well below 1 / (number of participants)."""
    max_epsilon: float | None = Field(None, gt=0)
    """Stop before the epsilon towards the coordinator would pass this. None: never."""


class FederationOptions(Options):
    """What every federated method has."""

    rounds: int | None = Field(50, ge=1)
    """Rounds after which it stops. None: never."""
    local_steps: int = Field(10, ge=1, le=10_000)
    """Steps that each participant takes on its own objective per round."""
    server_rate: float = Field(1.0, gt=0, le=100)
    """Factor on the mean move of the participants; 1 goes to the mean of where they ended."""
    quorum: float = Field(0.7, gt=0, le=1)
    """Share of the invited participants whose contributions close a phase. Those who are slower are not waited for."""
    min_clients: int = Field(1, ge=1)
    """Fewest contributions that close a phase."""
    participation: float = Field(1.0, gt=0, le=1)
    """Probability with which a participant is invited to a round, drawn for each anew from the study's key."""
    max_staleness: int = Field(0, ge=0, le=1000)
    """Moves that were computed up to this many rounds ago still count. 0: late ones are dropped."""
    staleness_power: float = Field(0.5, ge=0, le=10)
    """A move of age a rounds has its weight multiplied by (1 + a)^-power."""
    privacy: PrivacyOptions | None = None
    """Clipping and noise at the participants. None: contributions leave as they are."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One exchange of a round: its name, and the vectors (name -> length) that a contribution to it holds."""

    name: str
    payload: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Client:
    """What the coordinator remembers of one participant: its last weight and how many vectors it has released."""

    weight: float
    releases: int


@dataclass(frozen=True, slots=True)
class FederationState:
    """What changes at the coordinator. d is the dimension.

    Attributes
    ----------
    step : phases closed.
    round : rounds completed.
    phase : index of the open phase.
    x : (d,) the common point.
    version : updates applied to x.
    shared : name -> float32 vector that is broadcast beside x in the first phase of a round.
    memory : name -> float64 vector that is not.
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


# -- the coordinator ---------------------------------------------------------------------------------------------------

O = TypeVar("O", bound=FederationOptions)  # noqa: E741 -- as in blackbox.algorithm


class Federation(ABC, Generic[O]):
    """The coordinator of rounds: a Moore machine that never sees data and never evaluates. Instances hold constants.

    Parameters
    ----------
    space : real parameters only; points are internal vectors.
    options : resolved options.
    key : the study's noise key. Participants know it too.
    """

    name: ClassVar[str]
    Options: ClassVar[type[FederationOptions]]
    Participant: ClassVar[type[Participant[Any, Any]]]

    def __init__(self, space: Space, options: O, key: Key) -> None:
        self.space = space
        self.options = options
        self.key = key
        self.phases = self.make_phases()
        self.terms = self.invitation().terms
        """Digest of the invitation."""

    # -- what a method says

    @classmethod
    def resolve(cls, options: O, space: Space) -> O:
        """Options with every default that depends on the problem filled in. The result is stored with the study."""
        return options

    @abstractmethod
    def make_phases(self) -> tuple[Phase, ...]:
        """The phases of a round. Exactly one holds "delta" (d) or "coefficients" (L): it moves x."""

    def absorb(
        self, state: FederationState, phase: Phase, contributions: Sequence[Contribution], weights: Vector
    ) -> FederationState:
        """The state with `shared` and `memory` renewed by the vectors of a phase that do not move x.

        Parameters
        ----------
        state : x has already moved, `clients` still are those before this phase.
        contributions : sorted by client; may be empty.
        weights : (n,) their weights, those of stale ones already reduced.
        """
        return state

    def direction_noise(self) -> Literal["normal", "rademacher"]:
        """Kind of the shared directions, for methods that send coefficients."""
        return "normal"

    # -- the machine

    def init(self) -> FederationState:
        """The state before the first round."""
        x = project(self.space.initial, self.space)
        none: dict[str, Any] = {}
        return FederationState(0, 0, 0, x, 0, none, none, None, none, 0, 0, (0, 0), (0, 0), np.zeros(len(dp.ORDERS)))

    def invitation(self) -> Invitation:
        """What a participant is told when it joins."""
        return Invitation(self.name, self.options.model_dump(mode="json"), self.space.to_json(), self.key.hex())

    def broadcast(self, state: FederationState) -> Broadcast:
        """What participants need for the open phase: x, and in the first phase of a round what is shared beside it."""
        phase, shared = self.phases[state.phase].name, {} if state.phase else state.shared
        return Broadcast(self.terms, state.step, state.round, phase, state.version, {"x": state.x, **shared})

    def invited(self, state: FederationState, client: str) -> bool:
        """Whether the client takes part in the open round, drawn with probability `participation`."""
        if self.options.participation >= 1:
            return True
        chance = rng.uniform(self.key.stream(INVITED).child(client), state.round, 0, 1)
        return bool(chance[0] < self.options.participation)

    def need(self, state: FederationState, joined: int) -> int:
        """Contributions that close the open phase, of `joined` participants that there are now."""
        expected = self.options.quorum * self.options.participation * joined
        return max(self.options.min_clients, math.ceil(expected - 1e-9), 1)

    def admission(self, state: FederationState, round: int, phase: str) -> Literal["now", "later", "late"]:
        """Whether a contribution to (round, phase) counts in the open phase, may count in a later one, or never will.

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
        """Raise if the contribution is not what its phase asks for.

        Raises
        ------
        InvalidContribution
            Naming each field at fault: other terms, a vector that is missing, too many, of the wrong length or not
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
            if facts.clip.get(name) != wanted.clip[name]:  # a smaller one would bring less noise to the mean
                message = f"must be {wanted.clip[name]}, got {facts.clip.get(name)}"
                faults.append(FieldError(pointer("privacy", "clip", name), "other_clip", message))
        return faults

    def tell(self, state: FederationState, contributions: Sequence[Contribution]) -> FederationState:
        """Close the open phase with what arrived: any subset, in any order; nothing arrived moves nothing.

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
        step = self.options.server_rate * weighted_mean([c.vectors[name] for c in told], weights)
        travels = np.clip(step, -FARTHEST, FARTHEST).astype(np.float32)
        version = state.version + 1
        if name == "delta":
            update = Update(version, state.round, travels)
        else:
            update = Update(version, state.round, None, travels, self.direction_noise())
        return replace(state, x=apply(state.x, update, self.key, self.space), version=version, update=update)

    def _closed(
        self, state: FederationState, phase: Phase, told: Sequence[Contribution], weights: Vector, sent: int
    ) -> FederationState:
        clients = dict(state.clients)
        for c in told:
            known = clients.get(c.client)
            clients[c.client] = Client(c.weight, (known.releases if known else 0) + len(c.vectors))
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
        """Divergence of the means that this phase published: one Gaussian release per vector."""
        if self.options.privacy is None or not told:
            return np.zeros(len(dp.ORDERS))
        noise = min((c.privacy.noise if c.privacy else 0.0) for c in told)
        rate = self.options.participation
        return len(phase.payload) * dp.rdp_sampled_gaussian(rate, dp.mean_noise(weights.tolist(), noise))

    def recommend(self, state: FederationState) -> Vector:
        """(d,) the internal point we would deploy now."""
        return state.x

    def metrics(self, state: FederationState) -> Mapping[str, float]:
        """Numbers to plot as they are; names are stable."""
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
            sent = state.update.move if state.update.move is not None else state.update.coefficients
            assert sent is not None
            found["update_norm"] = norm(sent) / self.options.server_rate
        privacy = self.options.privacy
        if privacy is not None and privacy.noise > 0 and state.clients:
            found["epsilon_coordinator"] = self.epsilon_coordinator(state)
            found["epsilon_published"] = dp.epsilon(state.rdp, privacy.delta)
        return found

    def epsilon_coordinator(self, state: FederationState, more: int = 0) -> float:
        """Epsilon towards the coordinator, who sees each contribution alone, of the participant that sent most.

        Contributions that arrived but were not counted are not in it; participants know theirs (`Participant.epsilon`).

        Parameters
        ----------
        more : further releases to count.
        """
        privacy = self.options.privacy
        if privacy is None or privacy.noise == 0:
            return math.inf
        releases = max((c.releases for c in state.clients.values()), default=0) + more
        return dp.epsilon_of_replacement(releases, privacy.noise, privacy.delta)

    def stopped(self, state: FederationState) -> Stop | None:
        """Why there is nothing more to do, or None."""
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
    """Sum of w_i v_i over sum of w_i in float64, one after another in the given order."""
    total = np.zeros(len(vectors[0]))
    for vector, weight in zip(vectors, weights.tolist(), strict=True):
        total += weight * vector.astype(np.float64)
    return total / math.fsum(weights.tolist())


# -- the participant ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Work:
    """What every participant's state holds.

    Attributes
    ----------
    round, phase : of the broadcast at work; -1 and "" before the first.
    broadcast : its step; -1 before the first.
    step : batches begun, ever: the address of private randomness.
    points : (k, d) what is to be evaluated now; none: the phase is done.
    evaluations : spent on this phase.
    total : spent ever.
    released : vectors of finished phases that may have left, before this one.
    """

    round: int
    phase: str
    broadcast: int
    step: int
    points: Matrix
    evaluations: int
    total: int
    released: int


def idle(dim: int) -> Work:
    """Before the first broadcast."""
    return Work(-1, "", -1, 0, np.empty((0, dim)), 0, 0, 0)


class ParticipantState(Protocol):
    """A frozen dataclass with the field `work`."""

    @property
    def work(self) -> Work: ...


S = TypeVar("S", bound=ParticipantState)


class Participant(ABC, Generic[O, S]):
    """One participant: a Moore machine around an objective that only it can evaluate.

    Its state is private: encode it with `blackbox.codec` to survive a restart, and never send it. Only what
    `contribution` returns leaves.

    Parameters
    ----------
    space, options, key : of the invitation.
    client : this participant's name.
    weight : its share in means, such as its number of examples. The coordinator learns it.
    secret : at least 16 bytes nobody else knows (`secrets.token_bytes(32)`), kept as long as the state: privacy noise
        and the choice of points are drawn from it.
    """

    State: ClassVar[type[Any]]

    def __init__(
        self, space: Space, options: O, key: Key, *, client: str, weight: float = 1.0, secret: bytes, terms: str
    ) -> None:
        if len(secret) < 16:
            raise InvalidInput(
                f"the secret must have at least 16 bytes, got {len(secret)}", hint="use secrets.token_bytes(32)"
            )
        ContributionJson(terms=terms, client=client, round=0, phase="", weight=weight, vectors={}, evaluations=0)
        self.space = space
        self.options = options
        self.key = key
        self.client = client
        self.weight = float(weight)
        self.terms = terms
        self._secret = secret
        self.private = Key.from_seed(secret.hex())
        """Key of private randomness."""

    # -- what a method says

    @abstractmethod
    def init(self) -> S:
        """The state before the first broadcast."""

    @abstractmethod
    def begin(self, state: S, broadcast: Broadcast) -> S:
        """Start a phase; `work` already names it. Sets `work.points`, or leaves them empty where nothing is to do."""

    @abstractmethod
    def learn(self, state: S, values: Vector) -> S:
        """Take the values of `work.points` (NaN: none) and set the next points; none: the phase is done."""

    @abstractmethod
    def result(self, state: S) -> Mapping[str, Vector]:
        """The vectors that the phase asks for, before clipping and noise."""

    def settle(self, state: S, counted: bool) -> S:
        """Say whether the coordinator counted the last contribution. Some methods keep what both sides agree on."""
        return state

    # -- the machine

    def start(self, state: S, broadcast: Broadcast) -> S:
        """Begin the phase of a broadcast, giving up an unfinished older one. Begun already: the same state.

        Raises
        ------
        InvalidInput
            If the broadcast is of another study, older than the state, or its vectors do not fit.
        """
        if broadcast.terms != self.terms:
            raise InvalidInput(f"the broadcast has the terms {broadcast.terms!r}, this participant {self.terms!r}")
        work = state.work
        if broadcast.step == work.broadcast:
            return state
        if broadcast.step < work.broadcast:
            raise InvalidInput(
                f"the broadcast of step {broadcast.step} is old, this participant is at {work.broadcast}"
            )
        if "x" not in broadcast.vectors or broadcast.x.shape != (self.space.dim,):
            raise InvalidInput(f"a broadcast needs x of {self.space.dim} numbers")
        if not all(np.isfinite(v).all() for v in broadcast.vectors.values()):
            raise InvalidInput("the vectors of a broadcast must be finite")
        released, none = self._released(state), work.points[:0]
        begun = Work(broadcast.round, broadcast.phase, broadcast.step, work.step + 1, none, 0, work.total, released)
        return self.begin(_with_work(state, begun), broadcast)

    def ask(self, state: S) -> Matrix:
        """(k, d) internal points to evaluate now, `space.decode` makes parameters of them; row = lane, and the same
        rows however often one asks. None: the phase is done."""
        return state.work.points

    def done(self, state: S) -> bool:
        """Whether the open phase needs no more evaluations, so that there is a contribution."""
        return state.work.round >= 0 and not len(state.work.points)

    def tell(self, state: S, values: Sequence[float] | Vector) -> S:
        """Take the values of the points that `ask` gave, in their order.

        Parameters
        ----------
        values : (k,) minimised; NaN or infinity where there is none. Beyond 1e100 counts as infinity.

        Raises
        ------
        InvalidInput
            If there are not exactly as many values as points.
        """
        told = np.asarray(values, dtype=np.float64)
        work = state.work
        if told.shape != (len(work.points),) or not len(told):
            raise InvalidInput(f"expected the values of the {len(work.points)} points asked, got shape {told.shape}")
        told = np.where(np.abs(told) <= LARGEST, told, np.nan)
        n = len(told)
        grown = replace(work, step=work.step + 1, evaluations=work.evaluations + n, total=work.total + n)
        return self.learn(_with_work(state, grown), told)

    def contribution(self, state: S) -> Contribution:
        """What leaves: the update of the phase that is done, clipped and noised. Asked twice, the same bytes.

        Raises
        ------
        Conflict
            If the phase is not done.
        """
        work = state.work
        if not self.done(state):
            raise Conflict(
                f"phase {work.phase!r} of round {work.round} still has {len(work.points)} points to evaluate"
                if work.round >= 0
                else "no phase has begun",
                hint="evaluate what ask returns and tell the values",
            )
        privacy = self.options.privacy
        vectors = {name: self._leaving(v, name, work) for name, v in sorted(self.result(state).items())}
        facts = None if privacy is None else Privacy({name: privacy.clip[name] for name in vectors}, privacy.noise)
        return Contribution(
            self.terms, self.client, work.round, work.phase, self.weight, vectors, work.evaluations, facts
        )

    def epsilon(self, state: S) -> float:
        """What this participant has spent towards the coordinator, whether its contributions were counted or lost."""
        privacy = self.options.privacy
        if privacy is None or privacy.noise == 0:
            return math.inf
        return dp.epsilon_of_replacement(self._released(state), privacy.noise, privacy.delta)

    def _released(self, state: S) -> int:
        return state.work.released + (len(self.result(state)) if self.done(state) else 0)

    def _leaving(self, vector: Vector, name: str, work: Work) -> Floats:
        privacy = self.options.privacy
        if privacy is not None:
            vector = dp.clip(vector, privacy.clip[name])
            if privacy.noise > 0:
                # A phase done again after a crash may end elsewhere; the difference of two vectors under one noise
                # would be bare, so the noise depends on the vector as well.
                mark = codec.digest(vector.tobytes())
                address = f"{self.terms}/{work.round}/{work.phase}/{name}/{mark}"
                noise = dp.gaussian(self._secret, address, len(vector))
                vector = vector + (privacy.noise * privacy.clip[name]) * noise
        return np.clip(np.nan_to_num(vector), -FARTHEST, FARTHEST).astype(np.float32)


def _with_work(state: S, work: Work) -> S:
    changed: S = replace(state, work=work)  # type: ignore[type-var]
    return changed


# -- registry ----------------------------------------------------------------------------------------------------------

F = TypeVar("F", bound=type[Federation[Any]])
_registered: dict[str, type[Federation[Any]]] = {}


def federated(name: str) -> Callable[[F], F]:
    """Register a federated method. The class needs `Options`, `Participant` and a docstring that names its source."""

    def register(cls: F) -> F:
        missing = [part for part in ("Options", "Participant") if not hasattr(cls, part)]
        if missing or not cls.__doc__:
            raise TypeError(f"{cls.__name__} lacks {', '.join(missing) or 'a docstring that names its source'}")
        if name in _registered and _registered[name].__qualname__ != cls.__qualname__:
            raise ValueError(f'the name "{name}" is taken by {_registered[name].__qualname__}')
        cls.name = name
        _registered[name] = cls
        return cls

    return register


@lru_cache(maxsize=1)
def _load() -> None:
    package = importlib.import_module("blackbox.federated")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    for entry in entry_points(group="blackbox.federated"):
        entry.load()


def registry() -> Mapping[str, type[Federation[Any]]]:
    """Every federated method by name: the built-in ones and those of installed packages (entry points)."""
    _load()
    return dict(sorted(_registered.items()))


def lookup(name: str) -> type[Federation[Any]]:
    """The class of that name.

    Raises
    ------
    UnknownAlgorithm
        Naming the nearest known one.
    """
    known = registry()
    if name not in known:
        raise UnknownAlgorithm(f'there is no federated method "{name}"', hint=nearest(name, known))
    return known[name]


def resolve_options(name: str, space: Space, raw: Mapping[str, Any]) -> FederationOptions:
    """Validate `raw` for the method and the space, and fill in every default.

    Raises
    ------
    UnknownAlgorithm, InvalidOptions
    IncompatibleProblem
        If the space has parameters that are not real, or a region.
    """
    cls = lookup(name)
    if foreign := space.kinds - {"real"}:
        raise IncompatibleProblem(f"{name} takes real parameters, the space has {', '.join(sorted(foreign))}")
    if space.domain == "convex":
        raise IncompatibleProblem(f"{name} takes free and bounded parameters, the space has a region")
    resolved: FederationOptions = cls.resolve(parse_options(cls.Options, dict(raw)), space)
    privacy = resolved.privacy
    if privacy is not None:
        travel = {n for phase in cls(space, resolved, Key.from_seed(0)).phases for n in phase.payload}
        faults = [
            FieldError(pointer("privacy", "clip", n), "missing", "is required: this vector travels")
            for n in sorted(travel - set(privacy.clip))
        ] + [
            FieldError(pointer("privacy", "clip", n), "unknown_vector", f"no such vector; {nearest(n, travel)}")
            for n in sorted(set(privacy.clip) - travel)
        ]
        faults += [
            FieldError(pointer("privacy", "clip", n), "greater_than", f"must be positive and finite, got {c}")
            for n, c in privacy.clip.items()
            if not 0 < c < math.inf
        ]
        if faults:
            raise invalid(InvalidOptions, faults)
    return resolved


def build(name: str, space: Space, options: FederationOptions | Mapping[str, Any], key: Key) -> Federation[Any]:
    """A coordinator. `options` may be raw or resolved."""
    raw = options.model_dump() if isinstance(options, FederationOptions) else options
    return lookup(name)(space, resolve_options(name, space, raw), key)


def accept(
    invitation: Invitation | Mapping[str, Any], *, client: str, weight: float = 1.0, secret: bytes
) -> Participant[Any, Any]:
    """The participant that an invitation asks for; see `Participant` for the other parameters."""
    told = invitation if isinstance(invitation, Invitation) else Invitation.from_json(invitation)
    space = Space.from_json(told.space)
    options = resolve_options(told.method, space, told.options)
    participant = lookup(told.method).Participant
    return participant(
        space, options, Key.from_hex(told.key), client=client, weight=weight, secret=secret, terms=told.terms
    )

"""One participant as a Moore machine: its state is private, and only contributions leave."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np

from blackbox.errors import (
    Conflict,
    InvalidInput,
)
from blackbox.federation import privacy as dp
from blackbox.federation.options import FederationOptions
from blackbox.federation.payloads import (
    FARTHEST,
    Broadcast,
    Contribution,
    ContributionJson,
    Privacy,
)
from blackbox.federation.vectors import Floats
from blackbox.recipes.slices import WHOLE, Slicer
from blackbox.records import Matrix, Vector
from blackbox.rng import Key
from blackbox.space import Space

O = TypeVar("O", bound=FederationOptions)  # noqa: E741 -- as in blackbox.algorithm
LARGEST = 1e100  # a larger value counts as missing: squared differences of two must stay finite


@dataclass(frozen=True, slots=True)
class Work:
    """The part that every participant's state has.

    Attributes
    ----------
    round, phase : those of the current broadcast; -1 and "" before the first.
    broadcast : step of the current broadcast; -1 before the first.
    step : batches begun, ever: the address of private randomness.
    points : (k, d) points to evaluate now; none: the phase is done.
    evaluations : evaluations spent on this phase.
    total : evaluations spent in all.
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
    """Return the work before the first broadcast."""
    return Work(-1, "", -1, 0, np.empty((0, dim)), 0, 0, 0)


class ParticipantState(Protocol):
    """A frozen dataclass with the field `work`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

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
    secret : at least 16 bytes that nobody else knows (`secrets.token_bytes(32)`), kept as long as the state: privacy
        noise and the choice of points are drawn from it.
    """

    State: ClassVar[type[Any]]
    slicer: Slicer = WHOLE
    """Computes the parts of large sums; set by whoever builds the participant."""

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

    # -- to be defined by a method

    @abstractmethod
    def init(self) -> S:
        """Return the state before the first broadcast."""

    @abstractmethod
    def begin(self, state: S, broadcast: Broadcast) -> S:
        """Start a phase, which `work` already names: set `work.points`, or leave them empty with nothing to do."""

    @abstractmethod
    def learn(self, state: S, values: Vector) -> S:
        """Learn the values of `work.points` (NaN: missing) and set the next points; none: the phase is done."""

    @abstractmethod
    def result(self, state: S) -> Mapping[str, Vector]:
        """Return the vectors that the phase asks for, before clipping and noise."""

    @abstractmethod
    def informed(self, state: S) -> bool:
        """Return whether anything was learned from the evaluations of this phase."""

    def settle(self, state: S, counted: bool) -> S:
        """Record whether the coordinator counted the last contribution. Some methods keep what both sides agree on."""
        return state

    # -- the machine

    def start(self, state: S, broadcast: Broadcast) -> S:
        """Begin the phase of a broadcast and give up an unfinished older one. If it has begun already, nothing changes,
        unless it `declines`: then it begins again.

        Raises
        ------
        InvalidInput
            If the broadcast is of another study, older than the state, or its vectors do not fit.
        """
        if broadcast.terms != self.terms:
            raise InvalidInput(f"the broadcast has the terms {broadcast.terms!r}, this participant {self.terms!r}")
        work = state.work
        if broadcast.step == work.broadcast and not self.declines(state):
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
        place = broadcast.round, broadcast.phase, broadcast.step
        begun = Work(*place, work.step + 1, none, 0, work.total, released)
        return self.begin(_with_work(state, begun), broadcast)

    def ask(self, state: S) -> Matrix:
        """Return the (k, d) internal points to evaluate now; none: the phase is done.

        `space.decode` turns them into parameters. Row = lane, and every call returns the same rows.
        """
        return state.work.points

    def done(self, state: S) -> bool:
        """Return whether the open phase needs no more evaluations, so that there is a contribution, or none to come."""
        return state.work.round >= 0 and not len(state.work.points)

    def declines(self, state: S) -> bool:
        """Return whether the phase is done and nothing was learned in it, so that there is nothing to contribute.

        A move of zero would say that the objective is flat here. Where no evaluation gave a value, nothing is known.
        """
        return self.done(state) and state.work.evaluations > 0 and not self.informed(state)

    def tell(self, state: S, values: Sequence[float] | Vector) -> S:
        """Learn the values of the points that `ask` returned, in their order.

        Parameters
        ----------
        values : (k,) minimised; NaN or infinity where one is missing. Values beyond 1e100 count as infinity.

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
        """Return the vectors of the finished phase, clipped and noised. A second call returns the same bytes.

        Raises
        ------
        Conflict
            If the phase is not done, or declines.
        """
        work = state.work
        if self.declines(state):
            raise Conflict(
                f"none of the {work.evaluations} evaluations in {work.phase!r} of round {work.round} gave a value, "
                "so there is no contribution",
                hint="decline the phase, and mend the evaluator",
            )
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
        """Return the epsilon spent towards the coordinator, whether contributions were counted or lost."""
        privacy = self.options.privacy
        if privacy is None or privacy.noise == 0:
            return math.inf
        return dp.epsilon_of_replacement(self._released(state), privacy.noise, privacy.delta)

    def _released(self, state: S) -> int:
        leaves = self.done(state) and not self.declines(state)
        return state.work.released + (len(self.result(state)) if leaves else 0)

    def _leaving(self, vector: Vector, name: str, work: Work) -> Floats:
        privacy = self.options.privacy
        if privacy is not None:
            vector = dp.clip(vector, privacy.clip[name])
            if privacy.noise > 0:
                # A phase repeated after a crash may end elsewhere. Two vectors under one noise would reveal their
                # difference, so the noise depends on the vector as well.
                mark = hashlib.sha256(vector.tobytes()).hexdigest()
                address = f"{self.terms}/{work.round}/{work.phase}/{name}/{mark}"
                noise = dp.gaussian(self._secret, address, len(vector))
                vector = vector + (privacy.noise * privacy.clip[name]) * noise
        return np.clip(np.nan_to_num(vector), -FARTHEST, FARTHEST).astype(np.float32)


def _with_work(state: S, work: Work) -> S:
    return replace(state, work=work)

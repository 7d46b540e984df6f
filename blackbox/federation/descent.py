"""Local descent along finite differences: what FedZO, FedProx and SCAFFOLD have in common.

A participant starts at z_0 = x and takes T steps (t = 0 ... T-1) along q directions u_i of its own, or shared ones::

    y_i = (f(z + mu u_i) - f(z)) / mu          forward;  (f(z + mu u_i) - f(z - mu u_i)) / (2 mu)    central
    g   = s/|R| sum over the i in R of y_i u_i                                R: where values arrived
    z  <- z + stepper(g + correction)

with s = d for unit directions and 1 for normal and rademacher ones, so that g estimates the gradient itself. Where f(z)
has no value, the mean of the *other* probes takes its place, which keeps the mean of g.

Payload "vector" sends z_T - x. Payload "scalars" steps along shared directions that the noise key names, and sends the
coefficients a of z_T - x = sum a_l u_l: T q numbers at any dimension (DeComFL: Li et al. 2024, arXiv:2405.15861). Every
update that is linear in the gradients stays in that span.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Generic, Literal, Self, TypeVar

import numpy as np
import pydantic

from blackbox import recipe, rng
from blackbox.federation.machines import Federation, FederationOptions, Participant, Phase, Work, idle
from blackbox.federation.payloads import DIRECTIONS, Broadcast, project
from blackbox.options import Field
from blackbox.records import Matrix, Term, Vector
from blackbox.schedules import AnySchedule, Constant
from blackbox.space import Space
from blackbox.steppers import Adam, AnyStepper, ClipUp, StepperState


class DescentOptions(FederationOptions):
    """Options of the methods that descend along finite differences."""

    directions: int = Field(20, ge=1, le=100_000)
    """q: directions per local step."""
    radius: float = Field(0.01, ge=1e-12, le=1e12)
    """mu: length of a probe, in internal units. Larger than the noise of a value over the slope."""
    difference: Literal["forward", "central"] = "forward"
    """forward: q + 1 evaluations a step; central: 2 q, without the bias of curvature."""
    frame: Literal["orthonormal", "normal", "sphere", "rademacher"] | None = None
    """Kind of directions. orthonormal has the least variance. None: orthonormal; normal where scalars are sent."""
    stepper: AnyStepper | None = None
    """How local gradients become moves; starts afresh every round. None: adam; clipup where scalars are sent."""
    rate: AnySchedule = Constant(value=0.01)
    """Local step size by round. With adam about what every coordinate moves per local step, in internal units; with
    clipup the length of the whole step, or where scalars are sent the root mean square over the coordinates."""

    @pydantic.field_validator("rate")
    @classmethod
    def _starts_positive(cls, schedule: AnySchedule) -> AnySchedule:
        if not schedule(0) > 0:
            raise ValueError(f"must be positive in round 0, got {schedule(0)}")
        return schedule


class ScalarOptions(DescentOptions):
    """Options of the methods that can also send coefficients of named directions."""

    payload: Literal["vector", "scalars"] = "vector"
    """vector: d numbers up per round, private directions. scalars: local_steps * directions numbers, shared ones."""

    @pydantic.model_validator(mode="after")
    def _linear(self) -> Self:
        if self.payload == "scalars":
            if self.frame not in (None, "normal", "rademacher"):
                raise ValueError(
                    f"scalars need directions that are the same bits everywhere: frame normal or rademacher, "
                    f"got {self.frame}"
                )
            if isinstance(self.stepper, Adam):
                raise ValueError("scalars need a stepper that stays in the span of the directions: not adam")
        return self


@dataclass(frozen=True, slots=True)
class DescentState:
    """Private state of a participant. d is the dimension, L = local_steps * directions.

    Attributes
    ----------
    work : see `Work`.
    x : (d,) where the round began.
    z : (d,) where the participant is.
    coefficients : (L,) of z - x in the shared directions; empty where vectors are sent.
    t : local steps taken.
    rate : step size of this round.
    stepper : of this round.
    slope : (d,) sum of this round's gradient estimates; empty where scalars are sent.
    correction : (d,) added to every gradient of this round; empty: none.
    control : (d,) own control variate; empty: none.
    made : round of the control variate; -1: none.
    """

    work: Work
    x: Vector
    z: Vector
    coefficients: Vector
    t: int
    rate: float
    stepper: StepperState
    slope: Vector
    correction: Vector
    control: Vector
    made: int


NOTHING = np.empty(0)
O = TypeVar("O", bound=DescentOptions)  # noqa: E741 -- as in blackbox.algorithm


def sends_scalars(options: DescentOptions) -> bool:
    """Whether coefficients travel instead of vectors."""
    return isinstance(options, ScalarOptions) and options.payload == "scalars"


class Descent(Federation[O]):
    """A coordinator of local descents: one phase, "local"."""

    @classmethod
    def resolve(cls, options: O, space: Space) -> O:
        scalars = sends_scalars(options)
        return options.with_defaults(
            frame="normal" if scalars else "orthonormal", stepper=ClipUp() if scalars else Adam()
        )

    def make_phases(self) -> tuple[Phase, ...]:
        if sends_scalars(self.options):
            return (Phase("local", {"coefficients": self.options.local_steps * self.options.directions}),)
        return (Phase("local", {"delta": self.space.dim}),)

    def direction_noise(self) -> Literal["normal", "rademacher"]:
        return "rademacher" if self.options.frame == "rademacher" else "normal"


class DescentParticipant(Participant[O, DescentState], Generic[O]):
    """A participant that descends along finite differences; methods say what is added to the gradient."""

    State: ClassVar[type[DescentState]] = DescentState

    def init(self) -> DescentState:
        origin = np.zeros(self.space.dim)
        stepper = StepperState(0, NOTHING, NOTHING)
        return DescentState(
            idle(self.space.dim), origin, origin, NOTHING, 0, 0.0, stepper, NOTHING, NOTHING, NOTHING, -1
        )

    @property
    def scalars(self) -> bool:
        """Whether this study sends coefficients."""
        return sends_scalars(self.options)

    def pull(self, state: DescentState) -> Vector | float:
        """What the method adds to the gradient, in the coordinates it steps in."""
        return 0.0

    def begin(self, state: DescentState, broadcast: Broadcast) -> DescentState:
        d, options = self.space.dim, self.options
        n = options.local_steps * options.directions if self.scalars else d
        assert options.stepper is not None
        rate = max(options.rate(broadcast.round), 0.0)
        begun = replace(
            state,
            x=broadcast.x,
            z=broadcast.x,
            coefficients=np.zeros(n if self.scalars else 0),
            t=0,
            rate=rate,
            stepper=options.stepper.init(n),
            slope=np.zeros(0 if self.scalars else d),
            correction=NOTHING,
        )
        return self.probe(begun)

    def learn(self, state: DescentState, values: Vector) -> DescentState:
        assert self.options.stepper is not None
        gradient = self.gradient(state, values)
        if not self.scalars:
            state = replace(state, slope=state.slope + gradient)
        stepper, move = self.options.stepper.step(state.stepper, gradient + self.pull(state), state.rate)
        state = replace(state, t=state.t + 1, stepper=stepper)
        if self.scalars:
            coefficients = state.coefficients + move
            z = state.x + self.combined(coefficients, state.work.round)
            state = replace(state, coefficients=coefficients, z=z)
        else:
            state = replace(state, z=project(state.z + move, self.space))
        return self.probe(state) if state.t < self.options.local_steps else self.at_rest(state)

    def result(self, state: DescentState) -> Mapping[str, Vector]:
        if self.scalars:
            return {"coefficients": state.coefficients}
        return {"delta": state.z - state.x}

    # -- finite differences

    def probe(self, state: DescentState) -> DescentState:
        """The state that asks for the values around z."""
        radius = self.options.radius
        around = radius * self.frame(state.work.round, state.t)
        if self.options.difference == "forward":
            points = np.concatenate([state.z[None], state.z + around])
        else:
            points = np.concatenate([state.z + around, state.z - around])
        return replace(state, work=replace(state.work, points=points))

    @staticmethod
    def at_rest(state: DescentState) -> DescentState:
        """The state whose phase is done."""
        return replace(state, work=replace(state.work, points=state.work.points[:0]))

    def gradient(self, state: DescentState, values: Vector) -> Vector:
        """The estimate at z, (d,) or (L,) coefficients of the shared directions."""
        weights = self.slopes(values)
        if not self.scalars:
            estimate: Vector = weights @ self.frame(state.work.round, state.t)
            return estimate
        q = self.options.directions
        coefficients = np.zeros(len(state.coefficients))
        coefficients[state.t * q : (state.t + 1) * q] = weights
        return coefficients

    def slopes(self, values: Vector) -> Vector:
        """(q,) weights of the directions in the gradient estimate: s / |R| y_i, 0 where a value is missing."""
        q, radius = self.options.directions, self.options.radius
        if self.options.difference == "forward":
            y = (values[1:] - self.base(values)) / radius
        else:
            y = (values[:q] - values[q:]) / (2 * radius)
        there = np.isfinite(y)
        scale = self.space.dim if self.options.frame in ("orthonormal", "sphere") else 1
        return np.where(there, y, 0.0) * (scale / max(int(there.sum()), 1))

    @staticmethod
    def base(values: Vector) -> Vector | float:
        """f(z), or where it is missing for each probe the mean of the other ones."""
        if np.isfinite(values[0]):
            return float(values[0])
        probes = values[1:]
        there = np.isfinite(probes)
        n = int(there.sum())
        if n < 2:
            return math.nan
        others: Vector = (probes[there].sum() - np.where(there, probes, 0.0)) / (n - 1)
        return others

    def frame(self, round: int, t: int) -> Matrix:
        """(q, d) directions of local step t."""
        q, d, kind = self.options.directions, self.space.dim, self.options.frame
        key = (self.key if self.scalars else self.private).stream(DIRECTIONS)
        lanes = range(t * q, (t + 1) * q)
        if kind == "rademacher":
            return np.array([rng.rademacher(key, round, lane, d) for lane in lanes], dtype=np.float64)
        rows = rng.normals(key, round, lanes, d).astype(np.float64)
        if kind == "normal":
            return rows
        if kind == "sphere":
            unit: Matrix = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            return unit
        return np.concatenate([np.linalg.qr(rows[i : i + d].T)[0].T for i in range(0, q, d)])

    def combined(self, coefficients: Vector, round: int) -> Vector:
        """(d,) sum of coefficient times shared direction."""
        kind = "rademacher" if self.options.frame == "rademacher" else "normal"
        terms = [Term(DIRECTIONS, round, lane, c, kind) for lane, c in enumerate(coefficients.tolist()) if c]
        return recipe.weighted_noise_sum(terms, self.key, self.space.dim)


__all__ = ["Descent", "DescentOptions", "DescentParticipant", "DescentState", "ScalarOptions"]

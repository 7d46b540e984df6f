"""Local descent along finite differences: the common base of FedZO, FedProx and SCAFFOLD.

A participant starts at z_0 = x and takes T steps (t = 0 ... T-1) along q directions u_i of `directions`, its own or
shared ones::

    g   = d / |R| sum over the i in R of y_i u_i               slopes y_i of `estimators`, R: where values arrived
    z  <- z + stepper(g + correction)                          not where R is empty: then nothing moves

Payload "vector" sends z_T - x. Payload "scalars" steps along shared directions that the noise key names, and sends the
coefficients a of z_T - x = sum a_l u_l: T q numbers at any dimension (DeComFL: Li et al. 2024, arXiv:2405.15861). Every
update that is linear in the gradients stays in that span.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Generic, Literal, Self, TypeVar

import numpy as np
import pydantic

from blackbox.federation.coordinator import Federation
from blackbox.federation.options import FederationOptions, Phase
from blackbox.federation.participant import Participant, Work, idle
from blackbox.federation.payloads import DIRECTIONS, Broadcast, project
from blackbox.options import Field
from blackbox.recipes import weighted_noise_sum
from blackbox.records import Ints, Term, Vector
from blackbox.registry import UNKNOWN, Outlook
from blackbox.space import Space
from blackbox.toolbox.directions import Directions, Family, default_family
from blackbox.toolbox.estimators import Difference, bounded_radius, differences, roles
from blackbox.toolbox.schedules import AnySchedule, Constant
from blackbox.toolbox.steppers import Adam, AnyStepper, ClipUp, StepperState


class DescentOptions(FederationOptions):
    """Options of the methods that descend along finite differences."""

    count: int = Field(20, ge=1, le=100_000)
    """q: directions per local step."""
    directions: Family | None = None
    """Family of the directions. None: orthonormal frames, which have the least variance; normal numbers in one
    dimension and where scalars are sent."""
    difference: Difference = "forward"
    """forward: q + 1 evaluations a step; central: 2 q, without the bias of curvature."""
    radius: AnySchedule = Constant(value=0.01)
    """Length of a probe by round, in internal units. Larger than the noise of a value over the slope."""
    stepper: AnyStepper | None = None
    """Stepper that turns local gradients into moves; it starts afresh every round. None: adam; clipup with scalars."""
    rate: AnySchedule = Constant(value=0.01)
    """Local step size by round. With adam about what every coordinate moves per local step, in internal units; with
    clipup the length of the whole step, or where scalars are sent the root mean square over the coordinates."""

    @pydantic.field_validator("rate", "radius")
    @classmethod
    def _starts_positive(cls, schedule: AnySchedule) -> AnySchedule:
        if not schedule(0) > 0:
            raise ValueError(f"must be positive in round 0, got {schedule(0)}")
        return schedule


class DescentResolved(DescentOptions):
    """The options with every default filled in."""

    directions: Family
    stepper: AnyStepper


class ScalarOptions(DescentOptions):
    """Options of the methods that can also send coefficients of named directions."""

    payload: Literal["vector", "scalars"] = "vector"
    """vector: d numbers up per round, private directions. scalars: local_steps * count numbers, shared ones."""

    @pydantic.model_validator(mode="after")
    def _linear(self) -> Self:
        if self.payload == "scalars":
            if self.directions not in (None, "normal", "rademacher"):
                raise ValueError(
                    f"scalars need directions that are the same bits everywhere: normal or rademacher, "
                    f"got {self.directions}"
                )
            if isinstance(self.stepper, Adam):
                raise ValueError("scalars need a stepper that stays in the span of the directions: not adam")
        return self


@dataclass(frozen=True, slots=True)
class DescentState:
    """Private state of a participant. d is the dimension, L = local_steps * count.

    Attributes
    ----------
    work : see `Work`.
    x : (d,) the point at which the round began.
    z : (d,) the participant's current point.
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
MAX_RATE = 1e8
O = TypeVar("O", bound=DescentResolved)  # noqa: E741 -- as in blackbox.algorithm


def sends_scalars(options: DescentOptions) -> bool:
    """Return whether coefficients travel instead of vectors."""
    return isinstance(options, ScalarOptions) and options.payload == "scalars"


class Descent(Federation[O]):
    """A coordinator of local descents: one phase, "local"."""

    @classmethod
    def resolve(cls, options: DescentOptions, space: Space, outlook: Outlook = UNKNOWN) -> O:
        scalars = sends_scalars(options)
        family, stepper = ("normal", ClipUp()) if scalars else (default_family(space.dim), Adam())
        resolved: O = options.with_defaults(cls.Resolved, directions=family, stepper=stepper)
        return resolved

    def make_phases(self) -> tuple[Phase, ...]:
        if sends_scalars(self.options):
            return (Phase("local", {"coefficients": self.options.local_steps * self.options.count}),)
        return (Phase("local", {"delta": self.space.dim}),)

    @classmethod
    def hosting_memory(cls, options: O, space: Space) -> int:
        return 8 * space.dim * (16 + 4 * min(options.count, space.dim))

    def direction_noise(self) -> Literal["normal", "rademacher"]:
        return "rademacher" if self.options.directions == "rademacher" else "normal"


class DescentParticipant(Participant[O, DescentState], Generic[O]):
    """A participant that descends along finite differences; a method defines what is added to the gradient."""

    State: ClassVar[type[DescentState]] = DescentState

    def init(self) -> DescentState:
        origin = np.zeros(self.space.dim)
        stepper = StepperState(0, NOTHING, NOTHING)
        return DescentState(
            idle(self.space.dim), origin, origin, NOTHING, 0, 0.0, stepper, NOTHING, NOTHING, NOTHING, -1
        )

    @property
    def scalars(self) -> bool:
        """Whether this study sends coefficients instead of vectors."""
        return sends_scalars(self.options)

    def pull(self, state: DescentState) -> Vector | float:
        """Return the method's addition to the gradient, in the coordinates in which it steps."""
        return 0.0

    def begin(self, state: DescentState, broadcast: Broadcast) -> DescentState:
        d, options = self.space.dim, self.options
        n = options.local_steps * options.count if self.scalars else d
        rate = min(max(options.rate(broadcast.round), 0.0), MAX_RATE)
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

    def informed(self, state: DescentState) -> bool:
        return state.stepper.t > 0  # without a value there is no step

    def informs(self, state: DescentState, values: Vector) -> bool:
        """Return whether these values make a difference along any direction."""
        return bool(len(differences(self.roles, values, self.radius(state))))

    def learn(self, state: DescentState, values: Vector) -> DescentState:
        if self.informs(state, values):  # else neither momentum nor a correction moves anything
            state = self.moved(state, values)
        state = replace(state, t=state.t + 1)
        return self.probe(state) if state.t < self.options.local_steps else self.at_rest(state)

    def moved(self, state: DescentState, values: Vector) -> DescentState:
        """Return the state after the move of a local step."""
        gradient = self.gradient(state, values)
        if not self.scalars:
            state = replace(state, slope=state.slope + gradient)
        stepper, move = self.options.stepper.step(state.stepper, gradient + self.pull(state), state.rate)
        state = replace(state, stepper=stepper)
        if not self.scalars:
            return replace(state, z=project(state.z + move, self.space))
        coefficients = state.coefficients + move
        z = state.x + self.combined(coefficients, state.work.round)
        return replace(state, coefficients=coefficients, z=z)

    def result(self, state: DescentState) -> Mapping[str, Vector]:
        if self.scalars:
            return {"coefficients": state.coefficients}
        return {"delta": state.z - state.x}

    # -- finite differences

    @cached_property
    def directions(self) -> Directions:
        """The private directions, or the shared ones if scalars are sent."""
        options, dim = self.options, self.space.dim
        key = (self.key if self.scalars else self.private).stream(DIRECTIONS)
        return Directions(options.directions, key, dim, min(options.count, dim))

    def probe(self, state: DescentState) -> DescentState:
        """Return the state that asks for the values around z."""
        note, radius, (step, first) = self.roles, self.radius(state), self.address(state)
        rows = self.directions.rows(step, first + note[:, 0])
        points = state.z + (radius * note[:, 1])[:, None] * rows
        return replace(state, work=replace(state.work, points=points))

    @staticmethod
    def at_rest(state: DescentState) -> DescentState:
        """Return the state with its phase done."""
        return replace(state, work=replace(state.work, points=state.work.points[:0]))

    def gradient(self, state: DescentState, values: Vector) -> Vector:
        """Return the gradient estimate at z, (d,), or its (L,) coefficients of the noise of the shared directions."""
        found = differences(self.roles, values, self.radius(state))
        (step, first), d = self.address(state), self.space.dim
        if self.scalars:  # u = noise / sqrt(d)
            coefficients = np.zeros(len(state.coefficients))
            coefficients[first + found.index] = math.sqrt(d) / max(len(found), 1) * found.slope
            return coefficients
        rows = self.directions.rows(step, first + found.index)
        estimate: Vector = d / max(len(found), 1) * (found.slope @ rows)
        return estimate

    @cached_property
    def roles(self) -> Ints:
        """Return (n, 2) direction and sign of each point of a local step."""
        q, central = self.options.count, self.options.difference == "central"
        return roles(range(2 * q if central else q + 1), self.options.difference)

    def radius(self, state: DescentState) -> float:
        """Return the length of this round's probes."""
        return bounded_radius(self.options.radius(state.work.round), 1e12)

    def address(self, state: DescentState) -> tuple[int, int]:
        """Return step and first index of the directions of this local step; a later phase of the round is t = T."""
        if self.scalars:
            return state.work.round, state.t * self.options.count
        return state.work.round * (self.options.local_steps + 1) + state.t, 0

    def combined(self, coefficients: Vector, round: int) -> Vector:
        """Return the (d,) sum of coefficient times shared direction."""
        kind = "rademacher" if self.options.directions == "rademacher" else "normal"
        terms = [Term(DIRECTIONS, round, lane, c, kind) for lane, c in enumerate(coefficients.tolist()) if c]
        return weighted_noise_sum(terms, self.key, self.space.dim, slicer=self.slicer)


__all__ = ["Descent", "DescentOptions", "DescentParticipant", "DescentResolved", "DescentState", "ScalarOptions"]

"""Quantities that change with the step: f(t) for t = 0, 1, 2, ...

Each schedule is a small frozen model with a JSON form, so that options can hold one: a field of type `AnySchedule`
takes a plain number (constant) or an object such as `{"type": "cosine", "start": 0.1, "end": 0, "steps": 500}`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

from blackbox.registry import Outlook
from blackbox.space import Space
from blackbox.validation import Model

__all__ = [
    "AnySchedule",
    "Constant",
    "Cosine",
    "Exponential",
    "Linear",
    "PositiveSchedule",
    "Power",
    "Schedule",
    "Warmup",
    "crossing",
    "falling",
]


class Schedule(Model, ABC):
    """A function of the step."""

    @abstractmethod
    def __call__(self, t: int) -> float:
        """Return the value at step t >= 0."""


class Constant(Schedule):
    """f(t) = value."""

    type: Literal["constant"] = "constant"
    value: float
    """The value at every step."""

    def __call__(self, t: int) -> float:
        return self.value


class Power(Schedule):
    """f(t) = scale / (t + 1 + offset)^exponent.

    Spall's gain sequences (SPSA: exponents 0.602 and 0.101). Frank-Wolfe's 2 / (t + 2) is scale 2, offset 1.
    """

    type: Literal["power"] = "power"
    scale: float
    """The numerator."""
    exponent: float = Field(1.0, ge=0)
    """Rate of the decrease."""
    offset: float = Field(0.0, ge=0)
    """Steps by which the fall is delayed."""

    def __call__(self, t: int) -> float:
        value: float = self.scale / (t + 1 + self.offset) ** self.exponent
        return value


class _Ramp(Schedule):
    """From `start` at step 0 to `end` at step `steps`, constant from there."""

    start: float
    """Value at step 0."""
    end: float = 0.0
    """Value from step `steps` on."""
    steps: int = Field(gt=0)
    """Number of steps that the change takes."""

    def _blend(self, rest: float) -> float:
        """Interpolate: a share `rest` of the start and the remainder of the end; exact where it is 0 or 1."""
        return self.start * rest + self.end * (1.0 - rest)


class Linear(_Ramp):
    """A straight line from start to end, constant from there."""

    type: Literal["linear"] = "linear"

    def __call__(self, t: int) -> float:
        return self._blend(1.0 - min(t / self.steps, 1.0))


class Cosine(_Ramp):
    """Half a cosine from start to end, constant from there.

    Loshchilov and Hutter (2017), arXiv:1608.03983, equation 5, without restarts.
    """

    type: Literal["cosine"] = "cosine"

    def __call__(self, t: int) -> float:
        return self._blend(0.5 * (1.0 + math.cos(math.pi * min(t / self.steps, 1.0))))


class Exponential(Schedule):
    """f(t) = max(start * factor^t, floor)."""

    type: Literal["exponential"] = "exponential"
    start: float = Field(ge=0)
    """Value at step 0."""
    factor: float = Field(gt=0, le=1)
    """Ratio of two successive values."""
    floor: float = Field(0.0, ge=0)
    """It never falls below."""

    def __call__(self, t: int) -> float:
        return max(self.start * self.factor**t, self.floor)


class Warmup(Schedule):
    """A linear rise from 1/steps of another schedule's first value, then that schedule from its beginning."""

    type: Literal["warmup"] = "warmup"
    steps: int = Field(gt=0)
    """Number of steps that the rise takes."""
    then: AnySchedule
    """The schedule that follows."""

    def __call__(self, t: int) -> float:
        if t < self.steps:
            return self.then(0) * ((t + 1) / self.steps)
        return self.then(t - self.steps)


def _number_as_constant(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"type": "constant", "value": value}
    return value


_Tagged: TypeAlias = Constant | Power | Linear | Cosine | Exponential | Warmup
AnySchedule: TypeAlias = Annotated[
    Annotated[_Tagged, Field(discriminator="type")],
    BeforeValidator(_number_as_constant, json_schema_input_type=float | _Tagged),
]
"""Every schedule, told apart by `type`; a plain number is a constant."""


def _positive_at_first(schedule: Schedule) -> Schedule:
    if not schedule(0) > 0:
        raise ValueError(f"must be positive at step 0, got {schedule(0)}")
    return schedule


PositiveSchedule: TypeAlias = Annotated[AnySchedule, AfterValidator(_positive_at_first)]
"""A schedule that is positive at step 0; its users decide how small it may become."""

Warmup.model_rebuild()

CROSSINGS = 4.0
"""Ranges of a box that moves of the default length add up to over a budget: estimates point only half the right way."""


def falling(start: float, outlook: Outlook, popsize: int) -> AnySchedule:
    """Return the schedule that falls linearly to a fiftieth of `start` over the budget; without one it stays."""
    if outlook.evaluations is None:
        return Constant(value=start)
    return Linear(start=start, end=start / 50, steps=max(outlook.evaluations // popsize, 1))


def crossing(
    space: Space, outlook: Outlook, popsize: int, length: float = 1.0, least: float | None = None
) -> AnySchedule:
    """Return the default length of a move by step, for methods whose moves do not depend on the objective's scale.

    Parameters
    ----------
    space, outlook : what is known of the problem. With a budget the moves fall linearly to a fiftieth of the first, and
        add up to `CROSSINGS` ranges of a box; without one they stay.
    popsize : results per step.
    length : of a move of all coordinates by one range, in the norm in which moves are measured.
    least : the length without a budget, and the smallest first one where coordinates are free and a unit says little
        about how far they have to go; None: a hundredth of `length`.
    """
    least = 0.01 * length if least is None else least
    if outlook.evaluations is None:
        return Constant(value=least)
    steps = max(outlook.evaluations // popsize, 1)
    start = length * min(2 * CROSSINGS / steps, 0.25)
    return falling(start if space.domain == "box" else max(start, least), outlook, popsize)

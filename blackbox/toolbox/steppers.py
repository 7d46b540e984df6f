"""Steppers turn a gradient estimate into a move: sgd, momentum, adam and clipup as pure init/step pairs.

A stepper holds constants only; what changes is a `StepperState`, the same class for all, so that an algorithm's state
can hold it whichever stepper is chosen. Gradients point uphill of what is minimised; `delta` is to be *added*.

Every update is elementwise in the precision of the state: a cut of state and gradient by coordinates gives bitwise the
same cut of the result. What is global (the norms of ClipUp) can be given, and `square_sums` computes it from parts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pydantic import Field

from blackbox.records import Vector
from blackbox.validation import Model

__all__ = ["BLOCK", "SGD", "Adam", "AnyStepper", "ClipUp", "Momentum", "Stepper", "StepperState", "norm", "square_sums"]

Array: TypeAlias = NDArray[Any]
"""(d,) float32 or float64."""

BLOCK = 65536
"""Coordinates per partial sum of squares: parts of a norm agree bitwise if cut at multiples of this."""


@dataclass(frozen=True, slots=True)
class StepperState:
    """The moments that a stepper keeps.

    Attributes
    ----------
    t : steps taken.
    velocity : (d,) average of past gradients (Momentum, Adam) or of past moves (ClipUp); empty for SGD.
    square : (d,) average of past squared gradients (Adam); else empty.
    """

    t: int
    velocity: Array
    square: Array

    def cut(self, start: int, stop: int) -> StepperState:
        """Return the state of the coordinates [start, stop), as views."""
        return replace(self, velocity=self.velocity[start:stop], square=self.square[start:stop])


class Stepper(Model, ABC):
    """A first-order update rule."""

    @abstractmethod
    def init(self, dim: int, dtype: DTypeLike = np.float64) -> StepperState:
        """Return the state before the first step, for `dim` coordinates kept as `dtype`."""

    @abstractmethod
    def step(self, state: StepperState, gradient: Array, rate: float) -> tuple[StepperState, Array]:
        """One update.

        Parameters
        ----------
        state : from `init` or the step before.
        gradient : (d,) uphill direction of what is minimised.
        rate : step size: for Adam and ClipUp a distance in parameter space, else parameters per unit of gradient.

        Returns
        -------
        The new state, and `delta` (d,) to add to the parameters.
        """


class SGD(Stepper):
    """delta = -rate * gradient."""

    type: Literal["sgd"] = "sgd"

    def init(self, dim: int, dtype: DTypeLike = np.float64) -> StepperState:
        return StepperState(0, np.empty(0, dtype), np.empty(0, dtype))

    def step(self, state: StepperState, gradient: Array, rate: float) -> tuple[StepperState, Array]:
        return replace(state, t=state.t + 1), -rate * gradient.astype(state.velocity.dtype, copy=False)


class Momentum(Stepper):
    """Momentum as an exponential *average*: v <- momentum v + (1 - momentum) gradient, delta = -rate v.

    The form of the code of Salimans et al. (2017), arXiv:1703.03864; not the usual sum, so that the rate keeps its
    meaning when the momentum changes.
    """

    type: Literal["momentum"] = "momentum"
    momentum: float = Field(0.9, ge=0, lt=1)
    """Share of the past."""

    def init(self, dim: int, dtype: DTypeLike = np.float64) -> StepperState:
        return StepperState(0, np.zeros(dim, dtype), np.empty(0, dtype))

    def step(self, state: StepperState, gradient: Array, rate: float) -> tuple[StepperState, Array]:
        d = gradient.astype(state.velocity.dtype, copy=False)
        v = self.momentum * state.velocity + (1 - self.momentum) * d
        return replace(state, t=state.t + 1, velocity=v), -rate * v


class Adam(Stepper):
    """Adam in the form of Salimans' code, with both bias corrections in the step size.

    Kingma and Ba (2015), arXiv:1412.6980, section 2 (the last remark); epsilon therefore is not corrected.
    """

    type: Literal["adam"] = "adam"
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the average gradient."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the average squared gradient."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to the root, against division by zero."""

    def init(self, dim: int, dtype: DTypeLike = np.float64) -> StepperState:
        return StepperState(0, np.zeros(dim, dtype), np.zeros(dim, dtype))

    def step(self, state: StepperState, gradient: Array, rate: float) -> tuple[StepperState, Array]:
        t = state.t + 1
        d = gradient.astype(state.velocity.dtype, copy=False)
        m = self.beta1 * state.velocity + (1 - self.beta1) * d
        v = self.beta2 * state.square + (1 - self.beta2) * (d * d)
        a = rate * math.sqrt(1 - self.beta2**t) / (1 - self.beta1**t)
        return StepperState(t, m, v), -a * m / (np.sqrt(v) + self.epsilon)


class ClipUp(Stepper):
    """A normalised gradient, momentum, and a speed limit: v <- clip(momentum v - rate g / ||g||), delta = v.

    Toklu, Liskowski, Srivastava (2020), arXiv:2008.02387, algorithm 1. Rate and speed are distances in parameter space;
    the scale of the objective does not matter.
    """

    type: Literal["clipup"] = "clipup"
    momentum: float = Field(0.9, ge=0, lt=1)
    """Share of the past."""
    max_speed: float | None = Field(None, gt=0)
    """Longest move of one step. None: twice the rate."""

    def init(self, dim: int, dtype: DTypeLike = np.float64) -> StepperState:
        return StepperState(0, np.zeros(dim, dtype), np.empty(0, dtype))

    def velocity(self, state: StepperState, gradient: Array, rate: float, gradient_norm: float) -> Array:
        """Return the (d,) velocity before it is clipped; its norm is what `step` takes as `velocity_norm`."""
        d = gradient.astype(state.velocity.dtype, copy=False)
        coasting: Array = self.momentum * state.velocity
        return coasting if gradient_norm == 0 else coasting - rate * (d / gradient_norm)

    def step(
        self,
        state: StepperState,
        gradient: Array,
        rate: float,
        gradient_norm: float | None = None,
        velocity_norm: float | None = None,
    ) -> tuple[StepperState, Array]:
        """One update.

        Parameters
        ----------
        state, gradient, rate : as in `Stepper.step`.
        gradient_norm, velocity_norm : norms over *all* coordinates, where the vectors given are a part; None: computed
            from them. The second is the norm of what `velocity` returns.
        """
        if gradient_norm is None:
            gradient_norm = norm(square_sums(gradient))
        v = self.velocity(state, gradient, rate, gradient_norm)
        if velocity_norm is None:
            velocity_norm = norm(square_sums(v))
        limit = 2 * rate if self.max_speed is None else self.max_speed
        if velocity_norm > limit:
            v = (limit / velocity_norm) * v
        return replace(state, t=state.t + 1, velocity=v), v


AnyStepper: TypeAlias = Annotated[SGD | Momentum | Adam | ClipUp, Field(discriminator="type")]
"""Every stepper, told apart by `type`: what options that hold one declare."""


def square_sums(x: Array) -> Vector:
    """Return the sums of squares of aligned blocks of `BLOCK` coordinates.

    Parameters
    ----------
    x : (d,); a part of a longer vector must start at a multiple of `BLOCK`.

    Returns
    -------
    (ceil(d / BLOCK),) float64. Concatenated over the parts it is bitwise that of the whole.
    """
    starts = range(0, len(x), BLOCK)
    with np.errstate(over="ignore"):  # an infinite norm makes ClipUp's gradient term zero: the best that can be done
        return np.array([np.square(x[i : i + BLOCK], dtype=np.float64).sum() for i in starts], dtype=np.float64)


def norm(sums: Iterable[float] | Vector) -> float:
    """Return the Euclidean norm from sums of squares, exactly rounded, so that the number of parts does not matter."""
    return math.sqrt(math.fsum(sums))

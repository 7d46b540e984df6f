"""Step rules: the step that follows from a gradient and the oracle's answer, with or without values of candidates.

With the averaged gradient gbar, the vertex v = argmin_{v in C} <gbar, v> and the step size gamma_t of the t-th
gradient, a rule moves the iterate w. One that compares values asks for them in a phase of its own; its
candidates are points of the set, and a lost or refused one is followed by others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal, TypeAlias

import numpy as np

from blackbox.records import Ints, Matrix, Vector
from blackbox.toolbox.frank_wolfe.mixtures import Search, most_atoms
from blackbox.toolbox.frank_wolfe.state import ZoFrankWolfeState as State
from blackbox.toolbox.schedules import AnySchedule

__all__ = ["GIVE_UP", "RULES", "Monotone", "Rule", "RuleName", "Searching"]

RuleName: TypeAlias = Literal["open", "monotone", "search"]

GIVE_UP = 3
"""Halvings in vain after which the direction, not the length of the step, is thought wrong."""


class Rule:
    """The open rule: w + gamma (v - w), whatever its value; the choice with noise. Other rules compare values.

    Parameters
    ----------
    step_size : gamma by number of gradients; clipped to [0, 1].
    slack : growth of the value that is still accepted, by rules that compare values.
    comparable : whether values of different steps can be compared: the centres of probes stand back from w equally far.

    Attributes
    ----------
    phase : the phase in which its candidates are evaluated.
    offset : o in its default step sizes 2 / (t + o).
    """

    phase: ClassVar[str] = "gradient"
    offset: ClassVar[float] = 8.0

    def __init__(self, step_size: AnySchedule, slack: float = 0.0, comparable: bool = True) -> None:
        self.step_size, self.slack, self.comparable = step_size, slack, comparable

    @classmethod
    def vectors(cls, dim: int) -> int:
        """Return the number of vectors of `dim` numbers that it keeps."""
        return 0

    def start(self, w: Vector) -> Search:
        """Return the search that a state begins with."""
        return Search.without(w.size)

    def base(self, state: State) -> float | None:
        """Return F at the centre of w if the next gradient need not evaluate it, else None."""
        return None

    def gamma(self, t: int) -> float:
        """Return the step size of the t-th gradient, t = 1, 2, ..."""
        return min(max(self.step_size(max(t - 1, 0)), 0.0), 1.0)

    def metrics(self, state: State) -> Mapping[str, float]:
        """Return the metrics of the rule."""
        return {"step_size": self.gamma(state.t) * 0.5**state.halvings}

    # -- steps without candidates

    def step(self, state: State) -> State:
        """Return the state after a step that is taken without evaluating candidates."""
        return replace(state, w=self.after(state), phase="gradient")

    def after(self, state: State, added: int = 0) -> Vector:
        """Return the (d,) iterate after a step of gamma 2^-(phi + added)."""
        return state.w + self.gamma(state.t) * 0.5 ** (state.halvings + added) * (state.vertex - state.w)

    # -- steps by the values of candidates

    def need(self, state: State) -> int:
        """Return the number of values that decide about the step; 0: it is taken without any."""
        return 0

    def candidates(self, state: State, lanes: Ints) -> tuple[Matrix, Ints]:
        """Return the (n, d) candidates of the lanes, and (n, 2) notes that identify them."""
        return np.tile(self.after(state), (len(lanes), 1)), np.zeros((len(lanes), 2), dtype=np.int64)

    def decided(self, state: State, note: Ints, values: Vector) -> State:
        """Return the state after values of candidates: moved and in the phase "gradient", or still undecided.

        Parameters
        ----------
        note : (n, 2) as `candidates` gave it, none twice.
        values : (n,) at the centres of the candidates; NaN and infinities count as missing.
        """
        return self.step(state)


class Monotone(Rule):
    """A step of gamma 2^-phi is taken only if the value does not grow, else phi grows and stays.

    Carderera, Besancon, Pokutta (2021), Simple steps are all you need, arXiv:2105.13913. Lane l tries phi + l mod 3, so
    idle workers try the next halvings at once; the accepted value is the base of the next forward differences, so a
    step costs no more results than an open one. Unlike the paper's, gradients here are uncertain: after three halvings
    in vain another one is taken and the halvings are forgotten, and phi falls by one after a step that was right at
    once. With phi only growing, steps died out: 1e-2 instead of 3e-4 after 6000 results of the least squares problem of
    the tests.
    """

    phase = "confirm"
    offset = 2.0

    def base(self, state: State) -> float | None:
        return state.value

    def need(self, state: State) -> int:
        return 1

    def candidates(self, state: State, lanes: Ints) -> tuple[Matrix, Ints]:
        note = np.stack([lanes % GIVE_UP, np.zeros_like(lanes)], axis=1)  # a lost long step is tried again
        return np.array([self.after(state, i) for i in note[:, 0].tolist()]).reshape(len(lanes), state.w.size), note

    def decided(self, state: State, note: Ints, values: Vector) -> State:
        """Take the best candidate that is not worse; without one halve again, or in the end take another gradient."""
        finite = np.flatnonzero(np.isfinite(values))
        limit = np.inf if state.value is None else state.value + self.slack
        if len(finite) and values[best := finite[int(values[finite].argmin())]] <= limit:
            # A halving counts if a longer step was refused, not if its result is merely late: otherwise the lanes of
            # many workers would shorten the steps for good.
            added = int(note[best, 0])
            refused = note[~(values <= limit), 0]
            more = int(refused[refused < added].max(initial=-1)) + 1
            return replace(
                state,
                w=self.after(state, added),
                halvings=max(state.halvings + more - (state.tried + more == 0), 0),
                tried=0,
                value=float(values[best]) if self.comparable else None,
                phase="gradient",
            )
        added = int(note[:, 0].max()) + 1
        if state.tried + added < GIVE_UP:
            return replace(state, halvings=state.halvings + added, tried=state.tried + added)
        return replace(state, halvings=state.halvings - state.tried, tried=0, phase="gradient")


class Searching(Rule):
    """Values at two lengths along a Frank-Wolfe and a pairwise step, all asked for at once; see `mixtures.Search`.

    The best point of the parabolas through them is taken: the best rule without noise. Without a value at w there is
    nothing to compare with, and the step is an open one.
    """

    phase = "search"

    @classmethod
    def vectors(cls, dim: int) -> int:
        return 4 * most_atoms(dim)

    def start(self, w: Vector) -> Search:
        return Search.at(w)

    def metrics(self, state: State) -> Mapping[str, float]:
        return {"step_size": float(state.search.reach[0]), "atoms": float(len(state.search.mixture))}

    def step(self, state: State) -> State:
        return self._mixed(state, state.search.toward(state.vertex, self.gamma(state.t)))

    def need(self, state: State) -> int:
        return 0 if state.value is None else state.search.need(state.gradient, state.vertex)

    def candidates(self, state: State, lanes: Ints) -> tuple[Matrix, Ints]:
        return state.search.candidates(state.gradient, state.vertex, lanes)

    def decided(self, state: State, note: Ints, values: Vector) -> State:
        return self._mixed(state, state.search.after(state.gradient, state.vertex, state.value, note, values))

    @staticmethod
    def _mixed(state: State, search: Search) -> State:
        return replace(state, w=search.mixture.point, search=search, phase="gradient")


RULES: Mapping[RuleName, type[Rule]] = {"open": Rule, "monotone": Monotone, "search": Searching}

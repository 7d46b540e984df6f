"""Zeroth-order Frank-Wolfe: minimise over a convex set that is known by its linear oracle only, from values alone.

Sahu, Zaheer, Kar (2019), Towards gradient free and projection free stochastic optimization, arXiv:1810.03233::

    g_t     from values around w_t, see below
    gbar_t  = (1 - rho_t) gbar_{t-1} + rho_t g_t,  gbar_0 = g_0       rho_t = min(1, 4 / (s^(1/3) (t + 8)^(2/3)))
    v_t     = argmin_{v in C} <gbar_t, v>                              the oracle: always an extreme point
    w_{t+1} = w_t + gamma_t (v_t - w_t)                                gamma_t = 2 / (t + 8)

s is the second moment of the estimate for the directions that arrived (`Directions.second_moment`); with the paper's
Gaussian directions it is 1 + (d + 1) / m, so this is the paper's schedule for all three of its estimators:

=========  ===================================================================================  ==================
scheme     g_t                                                                                  results per step
=========  ===================================================================================  ==================
rdsa       one random direction                                                                 2
irdsa      m random directions                                                                  m + 1, central 2 m
kwsa       every coordinate                                                                     d + 1, central 2 d
jaguar     a memory of slopes along coordinates; the B oldest are renewed per step              2 B, at first 2 d
           (Veprikov et al. 2024, arXiv:2409.10442)
vertices   a memory that is corrected, in the least squares sense, to agree with the slopes     m + 1
           along m chords to random vertices: feasible without knowing an inner point
=========  ===================================================================================  ==================

The step rule says what is done with the oracle's answer: open takes the step as above; monotone first tests whether the
value grows (Carderera, Besancon, Pokutta 2021, arXiv:2105.13913); search takes the best point along two segments. Those
two evaluate candidates in a phase of their own, and so does the certificate of the gap. `toolbox.frank_wolfe` has the
schemes, the rules and the certificate; here one of each is composed.

Probes stay inside the set (`toolbox.feasible`): they surround a centre that is w_t moved towards an inner point by a
thousandth by default. w_t itself is what is recommended: a mixture of few vertices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import pydantic

from blackbox.algorithm import Algorithm, Traits, algorithm
from blackbox.errors import FieldError, InvalidOptions
from blackbox.options import Field, Options, Renamed
from blackbox.records import Ints, Pending, Points, Results, Stop, Vector, dense
from blackbox.regions import Region
from blackbox.registry import UNKNOWN, Outlook
from blackbox.rng import Key
from blackbox.space import Space
from blackbox.toolbox.directions import Directions, Family, default_family
from blackbox.toolbox.estimators import (
    STEEPEST,
    Difference,
    Estimator,
    bounded_radius,
    directions_of,
    popsize_of,
    renamed_count,
)
from blackbox.toolbox.feasible import Room
from blackbox.toolbox.frank_wolfe import Certificate, ZoFrankWolfeState, widened
from blackbox.toolbox.frank_wolfe.rules import RULES, RuleName
from blackbox.toolbox.frank_wolfe.schemes import SCHEMES, SchemeName, Tools
from blackbox.toolbox.schedules import AnySchedule, Constant, Power
from blackbox.validation import invalid

__all__ = ["ZoFrankWolfe", "ZoFrankWolfeOptions", "ZoFrankWolfeState"]

PAIRS = 50
"""Default pairs of a certificate."""


class ZoFrankWolfeOptions(Options):
    """Options of `zo_frank_wolfe`. Lengths are in internal units, which in a region are those of the values."""

    scheme: SchemeName | None = None
    """How the gradient is estimated. irdsa: a few random directions and averaging, the best all-round choice; jaguar:
    best in up to about a hundred dimensions and long runs; kwsa: every coordinate in every step; rdsa: one direction;
    vertices: along chords to vertices. None: irdsa, or vertices where no inner point of the region is known."""
    popsize: int | None = Field(None, ge=2)
    """Results that make a gradient: m + 1, with central differences 2 m, for m directions (irdsa) or chords (vertices);
    2 B for B coordinates (jaguar, whose first step takes all). rdsa and kwsa leave no choice. With step_rule monotone
    or search one fewer is needed where the value of the iterate is known. None: that of m = 6 or B = 25, at most d; for
    irdsa as many as there are workers, if those are more."""
    directions: Family | None = None
    """Family of random directions (rdsa, irdsa). None: orthonormal frames, which have the least variance; the paper has
    normal numbers."""
    difference: Difference | None = None
    """None: central for kwsa, whose forward differences have a bias, forward for irdsa and rdsa. jaguar is central."""
    radius: AnySchedule | None = None
    """Length of a probe's displacement, by number of gradients; vertices: share of the chord. None: a thousandth of the
    largest ball in the region, which is right for values without noise; with noise of size s choose as much as 0.1 to
    0.3 of it, because the noise of a slope is s / radius. It is shortened where the region has no room for it."""
    averaging: AnySchedule | None = None
    """rho_t in [0, 1] by number of gradients: the weight of the newest. None: the paper's, see above; 1 for the two
    schemes with a memory, where a smaller one helps against noise."""
    step_size: AnySchedule | None = None
    """gamma_t by number of gradients, clipped to [0, 1]. None: 2 / (t + 8); monotone 2 / (t + 2); jaguar
    2 / (t + max(8, 2 d / B))."""
    step_rule: RuleName = "open"
    """open: always take the step; the choice with noise. monotone: only where the value does not grow, else with
    halvings; a value of every iterate. search: find the best length of the step, or of a move of weight from the worst
    vertex of the mixture to the best one, by up to four more values per step; the best without noise."""
    slack: float = Field(0.0, ge=0)
    """monotone: growth of the value that is still accepted; with noise, two or three of its standard deviations."""
    start: Literal["vertex", "initial"] = "vertex"
    """Where to start: at a random vertex, or at the space's initial point (`init`, else inside the region)."""
    clip: float | None = Field(None, gt=0)
    """Limit on the slope along a direction, in multiples of the step's median: against heavy tails. None: no limit."""
    certify_every: int | None = Field(None, ge=1)
    """Measure the Frank-Wolfe gap after so many gradients, with fresh directions: it is between the metrics `gap_low`
    and `gap_up` in at least 95 % of the measurements. None: never."""
    certify_pairs: int | None = Field(None, ge=4)
    """Pairs of evaluations per certificate. None: 50; up to 2 d the bracket gets tighter."""
    gap_tolerance: float | None = Field(None, gt=0)
    """Stop when `gap_up` is at most this; for a convex objective no feasible point is better by more. Needs
    certify_every. None: never stop."""

    renamed: ClassVar[Mapping[str, Renamed]] = {
        "count": renamed_count(lambda stored: SCHEMES[stored.get("scheme") or "irdsa"].difference)
    }

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> ZoFrankWolfeOptions:
        if self.gap_tolerance is not None and self.certify_every is None:
            raise ValueError("gap_tolerance needs certify_every: the running gap is no bound")
        if self.scheme == "jaguar" and self.difference == "forward":
            raise ValueError("jaguar takes central differences; leave difference out")
        return self


class ZoFrankWolfeResolved(ZoFrankWolfeOptions):
    """The options with every default filled in."""

    scheme: SchemeName
    popsize: int
    directions: Family
    difference: Difference
    radius: AnySchedule
    step_size: AnySchedule
    certify_pairs: int


@algorithm("zo_frank_wolfe", Traits(regions=frozenset({"convex"})))
class ZoFrankWolfe(Algorithm[ZoFrankWolfeResolved, ZoFrankWolfeState]):
    """Projection-free minimisation over a convex region from values alone, with sparse iterates and a gap to read.

    Sahu, Zaheer, Kar (2019), arXiv:1810.03233. For sets where projecting is expensive and a linear problem is not
    (nuclear norm balls, assignments, polytopes), and where few vertices are wanted in the answer. Results of closed
    steps are not told: their directions belong to another iterate.
    """

    Options = ZoFrankWolfeOptions
    Resolved = ZoFrankWolfeResolved
    State = ZoFrankWolfeState

    def __init__(self, space: Space, options: ZoFrankWolfeResolved, key: Key, stream: int = 0) -> None:
        super().__init__(space, options, key, stream)
        d, scheme = space.dim, SCHEMES[options.scheme]
        self.region = _region(space)
        n = directions_of(options.popsize, options.difference)
        self.directions = Directions(scheme.family or options.directions, self.noise, d, min(n, d))
        self.room = Room(space, self.directions.reach)
        clip, tangent = options.clip, self.room.tangent
        self.estimator = Estimator(self.directions, options.difference, n, clip=clip, tangent=tangent)
        self.scheme = scheme(Tools(self.estimator, self.room, self.region, self.noise, self._rho))
        self.rule = RULES[options.step_rule](options.step_size, options.slack, isinstance(options.radius, Constant))
        self.certificate = Certificate(self.room, self.region.lmo, self.noise, options.certify_pairs, clip)

    @classmethod
    def resolve(cls, options: ZoFrankWolfeOptions, space: Space, outlook: Outlook = UNKNOWN) -> ZoFrankWolfeResolved:
        d = space.dim
        inner = _region(space).interior(d)[1]
        name = options.scheme or ("irdsa" if inner > 0 else "vertices")
        scheme, rule = SCHEMES[name], RULES[options.step_rule]
        if inner == 0 and (options.certify_every is not None or not scheme.anywhere):
            raise InvalidOptions(
                "no inner point of this region is known, so only chords to vertices can be probed",
                hint='leave certify_every out, and scheme, or take {"scheme": "vertices"}',
            )
        difference = options.difference or scheme.difference
        popsize = _popsize(options.popsize, name, difference, d)
        if options.popsize is None and name == "irdsa":  # the others' directions are the coordinates, or are few
            popsize = outlook.popsize(popsize, even=difference == "central")
        return options.with_defaults(
            ZoFrankWolfeResolved,
            scheme=name,
            popsize=popsize,
            directions=default_family(d),
            difference=difference,
            radius=max(scheme.radius_for(inner), 1e-12),
            averaging=scheme.averaging,
            step_size=Power(
                scale=2.0, offset=max(rule.offset, scheme.offset(d, directions_of(popsize, difference))) - 1
            ).model_dump(),
            certify_pairs=PAIRS,
        )

    @classmethod
    def memory(cls, options: ZoFrankWolfeResolved, space: Space) -> int:
        n = directions_of(options.popsize, options.difference)
        rows = max(2 * n + 1, 2 * options.certify_pairs if options.certify_every else 0)
        return 8 * space.dim * (16 + 3 * rows + RULES[options.step_rule].vectors(space.dim))

    def init(self) -> ZoFrankWolfeState:
        w = np.array(self.space.initial)
        if self.options.start == "vertex":
            w = self.region.vertex(self.noise.child("vertex"), 0, 0, self.space.dim)
        memory, renewed = self.scheme.blank()
        return ZoFrankWolfeState.at(w, memory, renewed, self.rule.start(w))

    def need(self, state: ZoFrankWolfeState) -> int:
        if state.phase == "gradient":
            return self.scheme.need(state, self.rule.base(state))
        if state.phase == "certify":
            return self.certificate.need
        return self.rule.need(state)

    def ask(self, state: ZoFrankWolfeState, lanes: Sequence[int], pending: Pending) -> Points:
        r, lane = self._radius(state), np.asarray(lanes, dtype=np.int64)
        if state.phase == "gradient":
            return self.scheme.plan(state, lane, r, self.rule.base(state))
        if state.phase == "certify":
            return self.certificate.plan(state.w, state.step, lane, self.scheme.around(r))
        places, note = self.rule.candidates(state, lane)
        return dense(np.array([self._centre(w, r) for w in places]).reshape(places.shape), note)

    def tell(self, state: ZoFrankWolfeState, results: Results) -> ZoFrankWolfeState:
        after = state
        if len(results):
            note, values = results.points.note, results.scalar
            if state.phase == "gradient":
                after = self._stepped(state, note, values)
            elif state.phase == "certify":
                after = self._certified(state, note, values)
            else:
                after = self._certifying(self.rule.decided(state, note, values))
        return replace(after, step=state.step + 1)

    def recommend(self, state: ZoFrankWolfeState) -> Vector:
        return state.w

    def metrics(self, state: ZoFrankWolfeState) -> Mapping[str, float]:
        known = {"value": state.value, "gap_low_error": state.low_error, "gap_up_error": state.up_error}
        known |= dict(zip(("gap_low", "gap_up"), self._gap(state) or (None, None), strict=True))
        return {name: number for name, number in known.items() if number is not None} | {
            "gradients": float(state.t),
            "gap_running_no_bound": state.gap,
            "radius": self._radius(state),
            **self.rule.metrics(state),
        }

    def stopped(self, state: ZoFrankWolfeState) -> Stop | None:
        tolerance = self.options.gap_tolerance
        gap = self._gap(state)
        if tolerance is None or gap is None or state.up_error is None or state.certified_at != state.t:
            return None
        if gap[1] > tolerance:
            return None
        ends = "two standard errors included"
        detail = f"the Frank-Wolfe gap is at most {gap[1]:.3g} ({ends}), tolerance {tolerance:g}"
        return Stop("gap", detail, {"gap_up": gap[1], "gap_up_error": state.up_error})

    @staticmethod
    def _gap(state: ZoFrankWolfeState) -> tuple[float, float] | None:
        """Return the ends of the last certificate, widened to its level; None before the first."""
        ends = (state.gap_low, state.gap_up, state.low_error, state.up_error)
        known = [end for end in ends if end is not None]
        return widened(*known) if len(known) == len(ends) else None

    # -- the phases

    def _stepped(self, state: ZoFrankWolfeState, note: Ints, values: Vector) -> ZoFrankWolfeState:
        """Return the state with gbar_t, v_t, and w_{t+1} or the phase in which the rule evaluates candidates for it."""
        average = self.scheme.reduce(state, note, values, self._radius(state), self.rule.base(state))
        if average is None:
            return state
        vertex = self.region.lmo(average.gradient)
        after = replace(
            state,
            t=state.t + 1,
            gradient=average.gradient,
            memory=average.memory,
            renewed=average.renewed,
            vertex=vertex,
            value=average.value,
            tried=0,
            gap=float(np.clip(average.gradient @ (state.w - vertex), -STEEPEST, STEEPEST)),
        )
        if self.rule.need(after):
            return replace(after, phase=self.rule.phase)
        return self._certifying(self.rule.step(after))

    def _certifying(self, state: ZoFrankWolfeState) -> ZoFrankWolfeState:
        """Return the state, in the phase of the certificate if the step is taken and a certificate is due."""
        every = self.options.certify_every
        due = every is not None and state.t % every == 0
        return replace(state, phase="certify") if due and state.phase == "gradient" else state

    def _certified(self, state: ZoFrankWolfeState, note: Ints, values: Vector) -> ZoFrankWolfeState:
        state = replace(state, phase="gradient")
        gap = self.certificate.reduce(state.w, state.step, note, values, self.scheme.around(self._radius(state)))
        if gap is None:
            return state
        low, up, low_error, up_error = gap
        return replace(state, gap_low=low, gap_up=up, low_error=low_error, up_error=up_error, certified_at=state.t)

    def _centre(self, w: Vector, radius: float) -> Vector:
        return self.scheme.centre(w, radius)

    def _radius(self, state: ZoFrankWolfeState) -> float:
        return bounded_radius(self.options.radius(state.t), self.scheme.longest)

    def _rho(self, t: int, moment: float) -> float:
        schedule = self.options.averaging
        rho = 4 / (moment ** (1 / 3) * (t + 8) ** (2 / 3)) if schedule is None else schedule(t)
        return float(min(max(rho, 0.0), 1.0))


def _popsize(asked: int | None, name: SchemeName, difference: Difference, d: int) -> int:
    """Return the number of results that make a gradient: as asked for, where the scheme leaves a choice.

    Raises
    ------
    InvalidOptions
        If it leaves none and another number was asked for, or the number does not fit the differences.
    """
    scheme = SCHEMES[name]
    default = popsize_of(scheme.directions(d), difference)
    if asked is None:
        return default
    if scheme.fixed and asked != default:
        fault = (
            f"is {default} for {name}, which takes {scheme.fixed}, got {asked}; leave it out, or take irdsa or jaguar"
        )
        raise invalid(InvalidOptions, [FieldError("/popsize", "out_of_range", fault)])
    try:
        directions_of(asked, difference)
    except ValueError as error:
        raise invalid(InvalidOptions, [FieldError("/popsize", "out_of_range", str(error))]) from None
    return asked


def _region(space: Space) -> Region:
    """Return the region of a space that `why_not` has accepted."""
    if space.region is None:
        raise TypeError("zo_frank_wolfe needs a space with a region")
    return space.region

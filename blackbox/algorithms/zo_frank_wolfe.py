"""Zeroth-order Frank-Wolfe: minimise over a convex set of which only a linear oracle is known, from values alone.

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

`step_rule: monotone` is the rule of Carderera, Besancon, Pokutta (2021), Simple steps are all you need,
arXiv:2105.13913: gamma_t 2^-phi with gamma_t = 2 / (t + 2) is taken only if the value does not grow, else phi grows and
stays. Its confirming evaluation is a phase of its own: lane l tries phi + l mod 3, so idle workers try the next
halvings at once; the accepted value is the base of the next forward differences, so a step costs m + 1 results as ever.
Unlike the paper's, gradients here are uncertain: after three halvings in vain another one is taken and the halvings are
forgotten, and phi falls by one after a step that was right at once. With phi only growing, steps died out: 1e-2 instead
of 3e-4 after 6000 results of the least squares problem of the tests.

`step_rule: search` is the best without noise: values at two lengths along each of two segments, a Frank-Wolfe and a
pairwise step, are asked for at once, and the best point of the parabolas through them is taken (`frank_wolfe.Search`).

Probes stay inside the set (`toolbox.feasible`): they surround a centre that is w_t moved towards an inner point by a
thousandth by default. w_t itself is what is recommended: a mixture of few vertices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pydantic

from blackbox.algorithm import Algorithm, Traits, algorithm
from blackbox.errors import InvalidOptions
from blackbox.options import Field, Options
from blackbox.records import Ints, Matrix, Pending, Points, Results, Stop, Vector, dense
from blackbox.regions import Region
from blackbox.rng import Key, permutation
from blackbox.space import Space
from blackbox.toolbox.directions import Directions, Family, default_family
from blackbox.toolbox.estimators import STEEPEST, Difference, Estimator, bounded_radius, differences, roles
from blackbox.toolbox.feasible import Room
from blackbox.toolbox.frank_wolfe import Search, bracket, most_atoms
from blackbox.toolbox.schedules import AnySchedule, Constant, Power

Scheme = Literal["irdsa", "rdsa", "kwsa", "jaguar", "vertices"]
SHARE_OF_ROOM = 1e-3
"""Default radius, as a share of the inner radius of the region."""
GIVE_UP = 3
"""Halvings in vain after which the direction, not the length of the step, is thought wrong."""
DIRECTIONS, BLOCK, PAIRS = 6, 25, 50
"""Default sizes: directions per step, coordinates per step (jaguar), pairs of a certificate."""


class ZoFrankWolfeOptions(Options):
    """What a user may tune. Lengths are in internal units, which in a region are those of the values."""

    scheme: Scheme | None = None
    """How the gradient is estimated. irdsa: a few random directions and averaging, the best all-round choice; jaguar:
    best in up to about a hundred dimensions and long runs; kwsa: every coordinate in every step; rdsa: one direction;
    vertices: along chords to vertices. None: irdsa, or vertices where no inner point of the region is known."""
    count: int | None = Field(None, ge=1)
    """Directions per step (irdsa, vertices) or coordinates per step (jaguar); the others have no choice. None: 6, or 25
    for jaguar; at most d."""
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
    step_rule: Literal["open", "monotone", "search"] = "open"
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
    """Measure the Frank-Wolfe gap after so many gradients, with fresh directions: `gap_low` and `gap_up` of the metrics
    bracket it on average. None: never."""
    certify_pairs: int | None = Field(None, ge=4)
    """Pairs of evaluations per certificate. None: 50; up to 2 d the bracket gets tighter."""
    gap_tolerance: float | None = Field(None, gt=0)
    """Stop when gap_up plus two standard errors is at most this; for a convex objective no feasible point is better by
    more. Needs certify_every. None: never stop."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> ZoFrankWolfeOptions:
        if self.gap_tolerance is not None and self.certify_every is None:
            raise ValueError("gap_tolerance needs certify_every: the running gap is no bound")
        if self.scheme == "jaguar" and self.difference == "forward":
            raise ValueError("jaguar takes central differences; leave difference out")
        if self.scheme in ("rdsa", "kwsa") and self.count is not None:
            raise ValueError(f"{self.scheme} has its own count; leave count out, or take irdsa or jaguar")
        return self


@dataclass(frozen=True, slots=True)
class ZoFrankWolfeState:
    """What changes. d is the dimension.

    Attributes
    ----------
    step : steps closed, of any phase.
    phase : what the open step is for: "gradient", "confirm" (monotone), "search" or "certify".
    t : gradients taken.
    w : (d,) iterate in the region.
    gradient : (d,) averaged gradient gbar.
    memory : (d,) slopes in memory (jaguar, vertices; else empty).
    renewed : (d,) the t at which a coordinate of the memory was renewed, -1 for never (jaguar; else empty).
    vertex : (d,) the vertex of the last step, and the one that a confirming or searching step moves to.
    value : F at the centre of w, if it is known, else None.
    halvings, tried : phi of the monotone rule, and those added since its last gradient.
    search : w as a mixture of atoms, and lengths to try next (search; else without atoms).
    gap : running gap <gbar, w - v>; no bound, usually far too small.
    gap_low, gap_up, low_error, up_error : the last certificate and the standard errors of its ends, or None.
    certified_at : the t of the last certificate, -1 for none.
    """

    step: int
    phase: str
    t: int
    w: Vector
    gradient: Vector
    memory: Vector
    renewed: Ints
    vertex: Vector
    value: float | None
    halvings: int
    tried: int
    search: Search
    gap: float
    gap_low: float | None
    gap_up: float | None
    low_error: float | None
    up_error: float | None
    certified_at: int


@algorithm("zo_frank_wolfe", Traits(regions=frozenset({"convex"})))
class ZoFrankWolfe(Algorithm[ZoFrankWolfeOptions, ZoFrankWolfeState]):
    """Projection-free minimisation over a convex region from values alone, with sparse iterates and a gap to read.

    Sahu, Zaheer, Kar (2019), arXiv:1810.03233. For sets where projecting is expensive and a linear problem is not
    (nuclear norm balls, assignments, polytopes), and where few vertices are wanted in the answer. Results of closed
    steps are not told: their directions belong to another iterate.
    """

    Options = ZoFrankWolfeOptions
    State = ZoFrankWolfeState

    def __init__(self, space: Space, options: ZoFrankWolfeOptions, key: Key, stream: int = 0) -> None:
        options = self.resolve(options, space)
        super().__init__(space, options, key, stream)
        d, scheme = space.dim, options.scheme or "irdsa"
        self.region: Region = _region(space)
        self.scheme = scheme
        self.count = _count(options, scheme, d)
        family: Family = "coordinate" if scheme in ("kwsa", "jaguar") else options.directions or default_family(d)
        directions = Directions(family, self.noise, d, min(self.count, d))
        self.directions = directions
        self.room = Room(space, directions.reach)
        difference = options.difference or "forward"
        self.estimator = Estimator(directions, difference, self.count, True, options.clip, self.room.tangent)
        self.order = permutation(self.noise, 0, 0, d) if scheme == "jaguar" else None
        self.vertex_noise = self.noise.child("vertex")
        # Two halves of a certificate must not share a frame: its rows depend on one another.
        pairs = options.certify_pairs or PAIRS
        keys = [self.noise.child("certify", half) for half in (0, 1)]
        self.halves = [Directions(default_family(d), own, d, min(-(-pairs // 2), d)) for own in keys]
        self.fixed_radius = options.radius is None or isinstance(options.radius, Constant)

    @classmethod
    def resolve(cls, options: ZoFrankWolfeOptions, space: Space) -> ZoFrankWolfeOptions:
        d, region = space.dim, _region(space)
        inner = region.interior(d)[1]
        if inner == 0 and (options.certify_every is not None or options.scheme not in (None, "vertices")):
            raise InvalidOptions(
                "no inner point of this region is known, so only chords to vertices can be probed",
                hint='leave certify_every out, and scheme, or take {"scheme": "vertices"}',
            )
        scheme: Scheme = options.scheme or ("irdsa" if inner > 0 else "vertices")
        count = _count(options, scheme, d)
        radius = SHARE_OF_ROOM if scheme == "vertices" or not np.isfinite(inner) else SHARE_OF_ROOM * inner
        offset = 2.0 if options.step_rule == "monotone" else 8.0
        if scheme == "jaguar":
            offset = max(offset, 2 * d / count)
        filled = options.with_defaults(
            scheme=scheme,
            directions=default_family(d),
            difference="central" if scheme in ("kwsa", "jaguar") else "forward",
            radius=max(radius, 1e-12),
            step_size=Power(scale=2.0, offset=offset - 1).model_dump(),
            certify_pairs=PAIRS,
        )
        if scheme in ("jaguar", "vertices"):
            filled = filled.with_defaults(averaging=1.0)
        return filled if scheme in ("rdsa", "kwsa") else filled.with_defaults(count=count)

    @classmethod
    def memory(cls, options: ZoFrankWolfeOptions, space: Space) -> int:
        count = _count(options, options.scheme or "irdsa", space.dim)
        rows = max(2 * count + 1, 2 * (options.certify_pairs or PAIRS) if options.certify_every else 0)
        return 8 * space.dim * (16 + 3 * rows + (4 * most_atoms(space.dim) if options.step_rule == "search" else 0))

    def init(self) -> ZoFrankWolfeState:
        d = self.space.dim
        if self.options.start == "vertex":
            w = self.region.vertex(self.vertex_noise, 0, 0, d)
        else:
            w = np.array(self.space.initial)
        remembers = self.scheme in ("jaguar", "vertices")
        return ZoFrankWolfeState(
            step=0,
            phase="gradient",
            t=0,
            w=w,
            gradient=np.zeros(d),
            memory=np.zeros(d if remembers else 0),
            renewed=np.full(d if self.scheme == "jaguar" else 0, -1, dtype=np.int64),
            vertex=w.copy(),
            value=None,
            halvings=0,
            tried=0,
            search=Search.at(w) if self.options.step_rule == "search" else Search.without(d),
            gap=0.0,
            gap_low=None,
            gap_up=None,
            low_error=None,
            up_error=None,
            certified_at=-1,
        )

    def need(self, state: ZoFrankWolfeState) -> int:
        if state.phase == "confirm":
            return 1
        if state.phase == "search":
            return state.search.need(state.gradient, state.vertex)
        if state.phase == "certify":
            return 2 * (self.options.certify_pairs or PAIRS)
        if self.scheme == "jaguar":
            return 2 * max(self.count, int(np.count_nonzero(state.renewed < 0)))
        return self._estimator(state).need

    def ask(self, state: ZoFrankWolfeState, lanes: Sequence[int], pending: Pending) -> Points:
        r, lane = self._radius(state), np.asarray(lanes, dtype=np.int64)
        if state.phase == "confirm":
            note = np.stack([lane % GIVE_UP, np.zeros_like(lane)], axis=1)  # a lost long step is tried again
            candidates = [self._centre(self._toward(state, i), r) for i in note[:, 0].tolist()]
            return dense(np.array(candidates).reshape(len(lane), self.space.dim), note)
        if state.phase == "search":
            points, note = state.search.candidates(state.gradient, state.vertex, lane)
            return dense(np.array([self._centre(point, r) for point in points]).reshape(points.shape), note)
        if state.phase == "certify":
            r, note = self._certificate_radius(state), roles(lane, "central")
            u = self._fresh_rows(state.step, note[:, 0])
            return dense(self.room.centre(state.w, r) + (r * note[:, 1])[:, None] * u, note)
        if self.scheme == "jaguar":
            note = roles(lane, "central")
            where = self._oldest(state)[note[:, 0] % self.space.dim]
            u = np.zeros((len(lane), self.space.dim))
            u[np.arange(len(lane)), where] = 1.0
            return dense(self._centre(state.w, r) + (r * note[:, 1])[:, None] * self._tangents(u), note)
        if self.scheme == "vertices":
            note = roles(lane, "forward", self._known_value(state) is None)
            chords = self._chords(state, note[:, 0])
            return dense(state.w + (r * note[:, 1])[:, None] * chords, note)
        return self._estimator(state).plan(self._centre(state.w, r), state.step, lane, r)

    def tell(self, state: ZoFrankWolfeState, results: Results) -> ZoFrankWolfeState:
        if not len(results):
            return replace(state, step=state.step + 1)
        note, values = results.points.note, results.scalar
        if state.phase == "confirm":
            return self._confirmed(state, note, values)
        if state.phase == "search":
            found = state.search.after(state.gradient, state.vertex, state.value, note, values)
            return self._mixed(replace(state, step=state.step + 1), found)
        if state.phase == "certify":
            return self._certified(state, note, values)
        if self.scheme == "jaguar":
            return self._refreshed(state, note, values)
        if self.scheme == "vertices":
            return self._corrected(state, note, values)
        estimate = self._estimator(state).reduce(
            state.step, note, values, self._radius(state), self._known_value(state)
        )
        if not len(estimate):
            return replace(state, step=state.step + 1)
        moment = self.directions.second_moment(len(estimate))
        rho = 1.0 if state.t == 0 else self._rho(state.t, moment)
        gradient = (1 - rho) * state.gradient + rho * estimate.gradient
        return self._moved(state, gradient, estimate.slopes.value)

    def recommend(self, state: ZoFrankWolfeState) -> Vector:
        return state.w

    def metrics(self, state: ZoFrankWolfeState) -> Mapping[str, float]:
        known = {
            "value": state.value,
            "gap_low": state.gap_low,
            "gap_up": state.gap_up,
            "gap_low_error": state.low_error,
            "gap_up_error": state.up_error,
        }
        searches = self.options.step_rule == "search"
        step_size = float(state.search.reach[0]) if searches else self._gamma(state) * 0.5**state.halvings
        return {name: number for name, number in known.items() if number is not None} | {
            "gradients": float(state.t),
            "gap_running_no_bound": state.gap,
            "step_size": step_size,
            "radius": self._radius(state),
            **({"atoms": float(len(state.search.mixture))} if searches else {}),
        }

    def stopped(self, state: ZoFrankWolfeState) -> Stop | None:
        tolerance = self.options.gap_tolerance
        if tolerance is None or state.gap_up is None or state.up_error is None or state.certified_at != state.t:
            return None
        bound = state.gap_up + 2 * state.up_error
        if bound > tolerance:
            return None
        detail = (
            f"the Frank-Wolfe gap is at most {bound:.3g} (upper end plus two standard errors), tolerance {tolerance:g}"
        )
        return Stop("gap", detail, {"gap_up": state.gap_up, "gap_up_error": state.up_error})

    # -- gradients

    def _estimator(self, state: ZoFrankWolfeState) -> Estimator:
        return replace(self.estimator, base=self._known_value(state) is None)

    def _known_value(self, state: ZoFrankWolfeState) -> float | None:
        """F at the centre of w from the confirming evaluation: then no lane of the step needs to evaluate it."""
        return state.value if self.options.step_rule == "monotone" else None

    def _refreshed(self, state: ZoFrankWolfeState, note: Ints, values: Vector) -> ZoFrankWolfeState:
        """JAGUAR: h_i <- y_i for the coordinates that came; those that were lost stay the oldest and come next."""
        slopes = differences(note, values, self._radius(state), self._known_value(state), self.options.clip)
        if not len(slopes):
            return replace(state, step=state.step + 1)
        d = self.space.dim
        where = self._oldest(state)[slopes.index % d]
        old, memory, renewed = state.memory, state.memory.copy(), state.renewed.copy()
        memory[where] = slopes.slope
        renewed[where] = state.t
        rho = self._rho(state.t, 1.0)
        if rho < 1 and not (state.renewed < 0).any():  # h + (d / B) sum_i (y_i - h_i) e_i, without bias
            unbiased = old + d / len(np.unique(where)) * (memory - old)
            gradient = (1 - rho) * state.gradient + rho * unbiased
        else:
            gradient = memory
        return self._moved(replace(state, memory=memory, renewed=renewed), gradient, slopes.value)

    def _corrected(self, state: ZoFrankWolfeState, note: Ints, values: Vector) -> ZoFrankWolfeState:
        """Vertices: the smallest change of the memory h after which <h, v_i - w> are the measured slopes."""
        known = np.isfinite(values)
        at, index, values = note[known, 1] == 0, note[known, 0], values[known]
        base = float(values[at][0]) if at.any() else self._known_value(state)
        chords, y = self._chords(state, index[~at]), values[~at]
        if base is None and len(y) > 1:  # against one another: the mean chord has the mean value
            base = float((y / len(y)).sum())
            chords = chords - chords.mean(axis=0)
        if base is None or not len(y):
            return replace(state, step=state.step + 1)
        slopes = np.clip((y - base) / self._radius(state), -STEEPEST, STEEPEST)
        change = np.linalg.lstsq(chords, slopes - chords @ state.memory, rcond=1e-10)[0]
        memory = state.memory + self._rho(state.t, 1.0) * change
        if not np.isfinite(memory).all():
            return replace(state, step=state.step + 1)
        return self._moved(replace(state, memory=memory), memory, base if at.any() else self._known_value(state))

    def _oldest(self, state: ZoFrankWolfeState) -> Ints:
        """(d,) coordinates, the one untouched for longest first; ties in a random order that stays."""
        order = self.order
        assert order is not None
        return order[np.argsort(state.renewed[order], kind="stable")]

    def _chords(self, state: ZoFrankWolfeState, indices: Ints) -> Matrix:
        """(n, d) v_i - w for random vertices v_i of the open step."""
        step, d = state.step + 1, self.space.dim  # step 0 is the start's
        vertices = [self.region.vertex(self.vertex_noise, step, i, d) for i in indices.tolist()]
        chords: Matrix = np.array(vertices).reshape(len(indices), d) - state.w
        return chords

    def _tangents(self, u: Matrix) -> Matrix:
        return np.array([self.room.tangent(row) for row in u]).reshape(u.shape)

    # -- moves

    def _moved(self, state: ZoFrankWolfeState, gradient: Vector, value: float | None) -> ZoFrankWolfeState:
        """The state after a new averaged gradient: the oracle's answer, and the step towards it or its confirmation."""
        vertex = self.region.lmo(gradient)
        gap = float(np.clip(gradient @ (state.w - vertex), -STEEPEST, STEEPEST))
        state = replace(
            state, step=state.step + 1, t=state.t + 1, gradient=gradient, vertex=vertex, gap=gap, value=value, tried=0
        )
        if self.options.step_rule == "monotone":
            return replace(state, phase="confirm")
        if self.options.step_rule == "search":
            if value is not None:
                return replace(state, phase="search")
            return self._mixed(state, state.search.toward(vertex, self._gamma(state)))
        w = state.w + self._gamma(state) * (vertex - state.w)
        return replace(state, w=w, phase=self._next_phase(state))

    def _confirmed(self, state: ZoFrankWolfeState, note: Ints, values: Vector) -> ZoFrankWolfeState:
        """The best candidate that does not make it worse; none: more halvings, or after some another gradient."""
        state = replace(state, step=state.step + 1)
        finite = np.flatnonzero(np.isfinite(values))
        limit = np.inf if state.value is None else state.value + self.options.slack
        if len(finite) and values[best := finite[int(values[finite].argmin())]] <= limit:
            # Halvings count if a longer step was refused, not if its result is only late: or the lanes of many workers
            # would shorten the steps for good.
            added = int(note[best, 0])
            refused = note[~(values <= limit), 0]
            more = int(refused[refused < added].max(initial=-1)) + 1
            return replace(
                state,
                w=self._toward(state, added),
                halvings=max(state.halvings + more - (state.tried + more == 0), 0),
                tried=0,
                value=float(values[best]) if self.fixed_radius else None,
                phase=self._next_phase(state),
            )
        added = int(note[:, 0].max()) + 1
        if state.tried + added < GIVE_UP:
            return replace(state, halvings=state.halvings + added, tried=state.tried + added)
        return replace(state, halvings=state.halvings - state.tried, tried=0, phase=self._next_phase(state))

    def _mixed(self, state: ZoFrankWolfeState, search: Search) -> ZoFrankWolfeState:
        return replace(state, w=search.mixture.point, search=search, phase=self._next_phase(state))

    def _toward(self, state: ZoFrankWolfeState, added: int) -> Vector:
        """(d,) the iterate after a step of gamma 2^-(phi + added)."""
        return state.w + self._gamma(state) * 0.5 ** (state.halvings + added) * (state.vertex - state.w)

    def _next_phase(self, state: ZoFrankWolfeState) -> str:
        every = self.options.certify_every
        return "certify" if every is not None and state.t % every == 0 else "gradient"

    # -- certificates

    def _fresh_rows(self, step: int, indices: Ints) -> Matrix:
        """(n, d) directions of a certificate: even ones of one half, odd ones of the other."""
        u = np.empty((len(indices), self.space.dim))
        for half, directions in enumerate(self.halves):
            own = indices % 2 == half
            u[own] = directions.rows(step, indices[own] // 2)
        return self._tangents(u)

    def _certified(self, state: ZoFrankWolfeState, note: Ints, values: Vector) -> ZoFrankWolfeState:
        state = replace(state, step=state.step + 1, phase="gradient")
        slopes = differences(note, values, self._certificate_radius(state), clip=self.options.clip)
        own = slopes.index % 2 == 0
        if min(own.sum(), (~own).sum()) < 2:
            return state
        terms = self.space.dim * slopes.slope[:, None] * self._fresh_rows(state.step - 1, slopes.index)
        low, up, low_error, up_error = bracket(state.w, self.region.lmo, terms[own], terms[~own])
        return replace(state, gap_low=low, gap_up=up, low_error=low_error, up_error=up_error, certified_at=state.t)

    # -- numbers

    def _centre(self, w: Vector, radius: float) -> Vector:
        return w if self.scheme == "vertices" else self.room.centre(w, radius)

    def _radius(self, state: ZoFrankWolfeState) -> float:
        schedule = self.options.radius
        wanted = SHARE_OF_ROOM if schedule is None else schedule(state.t)
        return bounded_radius(wanted, 1.0 if self.scheme == "vertices" else self.room.longest)

    def _certificate_radius(self, state: ZoFrankWolfeState) -> float:
        """Of the probes of a certificate: of the schemes' own, or where these go along chords the default."""
        if self.scheme != "vertices":
            return self._radius(state)
        return bounded_radius(min(SHARE_OF_ROOM * self.room.inner, 1.0), self.room.longest)

    def _gamma(self, state: ZoFrankWolfeState) -> float:
        """gamma of the last gradient."""
        schedule = self.options.step_size
        return 0.0 if schedule is None else min(max(schedule(max(state.t - 1, 0)), 0.0), 1.0)

    def _rho(self, t: int, moment: float) -> float:
        schedule = self.options.averaging
        rho = 4 / (moment ** (1 / 3) * (t + 8) ** (2 / 3)) if schedule is None else schedule(t)
        return float(min(max(rho, 0.0), 1.0))


def _count(options: ZoFrankWolfeOptions, scheme: Scheme, d: int) -> int:
    """Directions or coordinates per step."""
    if scheme in ("rdsa", "kwsa"):
        return 1 if scheme == "rdsa" else d
    return options.count or min(BLOCK if scheme == "jaguar" else DIRECTIONS, d)


def _region(space: Space) -> Region:
    """The region of a space that `why_not` has let in."""
    region = space.region
    if region is None:
        raise TypeError("zo_frank_wolfe needs a space with a region")
    return region

"""The contract of an algorithm: a Moore machine, its traits, and the registry.

An algorithm holds constants; everything that changes is in its state. `ask` only reads the state, `tell` advances it.
Randomness is addressed by (key, stream, step, lane), so asking twice, on two replicas or after a crash gives the same
points. `@algorithm` on the class is the whole registration: REST schema, documentation table and contract tests follow
from the registry.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from blackbox.errors import FieldError
from blackbox.options import Options
from blackbox.recipes import digest
from blackbox.recipes.slices import WHOLE, Slicer
from blackbox.records import JSON, Notice, Pending, Points, Results, Stop, Vector
from blackbox.registry import Method, O, Registry
from blackbox.rng import Key
from blackbox.space import Space


class StateLike(Protocol):
    """A state: a frozen dataclass of arrays and scalars that counts its steps."""

    @property
    def step(self) -> int:
        """Number of closed steps."""


S = TypeVar("S", bound=StateLike)


@dataclass(frozen=True, slots=True)
class Traits:
    """The properties of an algorithm, and the problems it can treat.

    Attributes
    ----------
    encoding : "dense" points are vectors; "recipe" points are a base and noise addresses; "structured" points are
        canonical JSON of parameters that are not numbers (text, permutations, ...).
    members : lanes are persistent members, each evaluated at most once at a time; a step closes at every result.
    sequential : needs value k before it can choose point k + 1.
    uses_pending : `ask` depends on the trials in flight.
    injects : `tell` takes points that the algorithm did not choose (lane < 0).
    tells, regions, parameters : the kinds of value, constraint set and parameter it treats. An algorithm that takes
        "convex" regions finds the set in `space.region` and asks only points in it.
    projects : on a convex region it calls `project`, which not every region has (every region has `lmo`).
    max_dim : largest internal dimension, or None.
    """

    encoding: Literal["dense", "recipe", "structured"] = "dense"
    members: bool = False
    sequential: bool = False
    uses_pending: bool = False
    injects: bool = False
    tells: frozenset[str] = frozenset({"scalar"})
    regions: frozenset[str] = frozenset({"free", "box"})
    projects: bool = False
    parameters: frozenset[str] = frozenset({"float"})
    max_dim: int | None = None

    @property
    def kind(self) -> Literal["group", "members", "sequential"]:
        """The rule by which steps close and lanes are granted: "group", "members" or "sequential"."""
        return "members" if self.members else "sequential" if self.sequential else "group"


VALUE_METRICS = frozenset(
    {"best", "value", "step_best", "step_worst", "step_mean", "step_median", "generation_median", "elite"}
)
"""Names of metrics that are values of the objective, whatever the algorithm."""


class Algorithm(Method[O], ABC, Generic[O, S]):
    """A Moore machine. Instances hold constants only; everything that changes is in S.

    Parameters
    ----------
    space : the search space; points are internal vectors of `space.dim` coordinates. Coordinates of bounded parameters
        live in [0, 1] and are folded there when a point is decoded, so an algorithm may step outside. If `space.domain`
        is "convex" nothing is folded: every point asked must lie in `space.region`.
    options : resolved options (`resolve` has filled in every default that depends on the problem), of type `Resolved`.
    key : the study's noise key.
    stream : number of the noise stream; a fork gets a new one.
    """

    traits: ClassVar[Traits]
    State: ClassVar[type[Any]]
    """The class of its states: S."""

    def __init__(self, space: Space, options: O, key: Key, stream: int = 0) -> None:
        self.space = space
        self.options = options
        self.key = key
        self.stream = stream
        self.noise = key.stream(stream)

    @classmethod
    def why_not(cls, space: Space, *, maximize: bool = False) -> str | None:
        """The reason for which the algorithm cannot treat this problem, or None."""
        traits = cls.traits
        if foreign := space.kinds - traits.parameters:
            treated, found = ", ".join(sorted(traits.parameters)), ", ".join(sorted(foreign))
            return f"it takes {treated} parameters, the space has {found}"
        if traits.max_dim is not None and space.dim > traits.max_dim:
            return f"it takes at most {traits.max_dim} internal dimensions, the space has {space.dim}"
        if space.domain not in traits.regions:
            return f"it takes regions of kind {', '.join(sorted(traits.regions))}, the space is of kind {space.domain}"
        if space.domain == "convex" and traits.projects and not (space.region and space.region.has_projection):
            return "it projects onto the region, and this one has only a linear oracle"
        return None

    @classmethod
    def evaluates_start(cls, options: O) -> bool:
        """Whether its first lanes evaluate the initial point of the space, so that a study need not do that before."""
        return False

    @abstractmethod
    def init(self) -> S:
        """The state before the first result; `step` is 0."""

    @abstractmethod
    def need(self, state: S) -> int:
        """Number of results that close the step (>= 1)."""

    def oldest(self, state: S) -> int:
        """Results asked before this step are archived, not told. Default: the open step; members: any."""
        return 0 if self.traits.members or self.traits.sequential else state.step

    def lanes(self, state: S, pending: Pending, n: int) -> Sequence[int]:
        """The lanes to grant next, at most n; () if there is none now.

        Default: the next n unused lanes; for a sequential algorithm lane 0 once per step. Algorithms with members
        override this (see `idle_members`).
        """
        if self.traits.members:
            raise TypeError(f"{self.name} has members and must say which of them are idle")
        if self.traits.sequential:
            return () if 0 in pending.spent else (0,)
        return range(pending.fresh, pending.fresh + n)

    @abstractmethod
    def ask(self, state: S, lanes: Sequence[int], pending: Pending) -> Points:
        """The points of the given lanes at the open step. Pure: the same arguments give the same bytes."""

    @abstractmethod
    def tell(self, state: S, results: Results) -> S:
        """The next state. `step` grows by one, also when `results` is empty (a step closed without results)."""

    @abstractmethod
    def recommend(self, state: S) -> Vector | str:
        """(d,) the internal point to deploy now; for structured points, its canonical JSON."""

    @abstractmethod
    def metrics(self, state: S) -> Mapping[str, float]:
        """Numbers to plot, by name; the names are stable. Those of `VALUE_METRICS` are values of the objective, to be
        minimised; whoever maximises sees them with their own sign."""

    def stopped(self, state: S) -> Stop | None:
        """The reason to stop, or None while there is more to gain."""
        return None

    def notices(self, state: S) -> Sequence[Notice]:
        """What the state shows that the study's owner should know, such as steps in which nothing moved."""
        return ()

    def payload(self, state: S) -> JSON:
        """JSON for the evaluator of the recommended point, such as the statistics by which observations are normalised;
        None: nothing. Asked points have payloads of their own, see `Points.payload`."""
        return None

    def lacks(self, extra: Mapping[str, Any]) -> FieldError | None:
        """The error for a completed result whose `extra` lacks a field that the algorithm needs; None if it has all.

        Such a result is rejected when it is told: better than a study that learns nothing.
        """
        return None

    def base(self, state: S) -> NDArray[np.float32] | None:
        """(d,) the base vector that the recipes of the open step name; None: the zero vector, or points are dense."""
        return None

    def factors(self, state: S) -> Sequence[NDArray[np.float32]]:
        """The (d,) per-coordinate factors that terms of the open step's recipes name as their `weight`."""
        return ()

    def blobs(self, state: S) -> dict[str, NDArray[np.float32]]:
        """Base and factors by digest, the base first, from which the recipes of the open step are materialised."""
        base = self.base(state)
        vectors = [*(() if base is None else (base,)), *self.factors(state)]
        return {digest(vector): vector for vector in vectors}


def idle_members(told_at: NDArray[np.int64], pending: Pending, n: int) -> list[int]:
    """At most n members that are not being evaluated, the one untold for longest first.

    Parameters
    ----------
    told_at : (N,) the step at which each member's last result was told; ties go to the lower index.
    """
    busy = set(pending.lane.tolist()) | pending.spent
    return [int(i) for i in np.argsort(told_at, kind="stable") if int(i) not in busy][:n]


A = TypeVar("A", bound=type[Algorithm[Any, Any]])
ALGORITHMS: Registry[Algorithm[Any, Any]] = Registry("algorithm", "blackbox.algorithms")
registry, lookup, resolve_options = ALGORITHMS.all, ALGORITHMS.lookup, ALGORITHMS.resolve_options


def algorithm(name: str, traits: Traits) -> Callable[[A], A]:
    """Register a class under a name (a decorator). It needs `Options`, `State` and a docstring with its source."""

    def register(cls: A) -> A:
        ALGORITHMS.register(name, cls, ("Options", "State"))
        cls.traits = traits
        cls.kind = traits.kind
        return cls

    return register


def build(
    name: str, space: Space, options: Options, key: Key, stream: int = 0, slicer: Slicer = WHOLE
) -> Algorithm[Any, Any]:
    """An instance from resolved options; `slicer` computes the parts of its large sums.

    Raises
    ------
    UnknownAlgorithm
        If no algorithm of this name is registered.
    """
    method = lookup(name)(space, options, key, stream)
    method.slicer = slicer
    return method

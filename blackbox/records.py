"""Small frozen records that algorithms, studies and stores exchange.

Shapes: `d` internal dimension, `n` rows of a batch, `k` lanes of one ask, `m` values per result. A *step* is one update
of an algorithm's distribution; a *lane* is one point of a step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

Vector: TypeAlias = NDArray[np.float64]
"""(d,) float64."""
Matrix: TypeAlias = NDArray[np.float64]
"""(n, d) float64."""
Ints: TypeAlias = NDArray[np.int64]
"""(n,) or (n, k) int64."""
JSON: TypeAlias = "None | bool | int | float | str | list[JSON] | dict[str, JSON]"


@dataclass(frozen=True, slots=True)
class Term:
    """`scale * noise(address)`, one summand of a recipe.

    The address is (study key, stream, step, lane).

    Attributes
    ----------
    scale : factor of the noise; negative for the mirrored point.
    kind : kind of noise, "normal" or "rademacher".
    weight : digest of a per-coordinate factor, or None.
    """

    stream: int
    step: int
    lane: int
    scale: float
    kind: str = "normal"
    weight: str | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """A point as a sum: the base vector (by digest; None is the zero vector) plus noise terms, in this order."""

    base: str | None
    terms: tuple[Term, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _PointSet:
    """The common part of the three kinds of points, for k lanes.

    Attributes
    ----------
    note : (k, m) int64, private to the algorithm: stored with the trial and returned with the result.
    payload : k JSON values that the evaluator gets beside the point, or ().
    replicates : k replicate numbers, for points that are asked again, or (). Each number within a step has an
        `eval_seed` of its own.
    """

    note: Ints
    payload: tuple[JSON, ...] = ()
    replicates: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.note)

    def take(self, rows: Ints | list[int]) -> Self:
        """The given rows, in the given order."""
        index = np.asarray(rows, dtype=np.int64)
        return replace(
            self,
            **self._picked(index),
            note=self.note[index],
            payload=tuple(self.payload[i] for i in index) if self.payload else (),
            replicates=tuple(self.replicates[i] for i in index) if self.replicates else (),
        )

    def _picked(self, index: Ints) -> dict[str, Any]:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Dense(_PointSet):
    """Points as numbers.

    Attributes
    ----------
    vectors : (k, d) internal points.
    """

    vectors: Matrix

    def _picked(self, index: Ints) -> dict[str, Any]:
        return {"vectors": self.vectors[index]}


@dataclass(frozen=True, slots=True)
class Recipes(_PointSet):
    """Points as sums of noise.

    Attributes
    ----------
    recipes : k recipes.
    """

    recipes: tuple[Recipe, ...]

    def _picked(self, index: Ints) -> dict[str, Any]:
        return {"recipes": tuple(self.recipes[i] for i in index)}


@dataclass(frozen=True, slots=True)
class Structured(_PointSet):
    """Points that are not vectors: text, permutations, subsets, sequences, programs.

    Attributes
    ----------
    candidates : k canonical JSON texts, each an object of all parameters by name. Equal candidates have equal texts.
    """

    candidates: tuple[str, ...]

    def _picked(self, index: Ints) -> dict[str, Any]:
        return {"candidates": tuple(self.candidates[i] for i in index)}

    @property
    def hashes(self) -> tuple[str, ...]:
        """k sha256 of the candidates, 64 hexadecimal digits each."""
        return tuple(hashlib.sha256(candidate.encode()).hexdigest() for candidate in self.candidates)


Points: TypeAlias = Dense | Recipes | Structured
"""The points of k lanes, as `ask` returns them and `tell` gets them back: of the kind of `Traits.encoding`."""


def no_note(k: int) -> Ints:
    """(k, 0) int64: the note of an algorithm that keeps none."""
    return np.empty((k, 0), dtype=np.int64)


def dense(vectors: Matrix, note: Ints | None = None) -> Dense:
    """Dense points; (k, d) vectors, and (k, m) notes or none."""
    return Dense(vectors, note=no_note(len(vectors)) if note is None else note)


@dataclass(frozen=True, slots=True)
class Pending:
    """Trials that are queued or validly leased, sorted by (step, lane).

    Attributes
    ----------
    step, lane : (n,) int64.
    note : (n, m) int64.
    points : their points; set only for algorithms with `uses_pending`.
    fresh : first unused lane of the open step.
    spent : lanes of the open step that must not be granted again (in flight, told or failed).
    """

    step: Ints
    lane: Ints
    note: Ints
    points: Points | None
    fresh: int
    spent: frozenset[int] = frozenset()


_NO_INTS = np.empty(0, dtype=np.int64)
NOTHING_PENDING = Pending(_NO_INTS, _NO_INTS, np.empty((0, 0), dtype=np.int64), None, 0)


@dataclass(frozen=True, slots=True)
class Results:
    """The n results of one `tell`, sorted by (step, lane), never by arrival.

    Attributes
    ----------
    step, lane : (n,) int64, the address of each point. lane < 0: a point that the algorithm did not choose.
    points : the points.
    values : (n, m) float64, minimised; NaN means infeasible. +inf is a barrier value (sequential only).
    constraints : (n, c) float64, feasible where <= 0, or None.
    extra : n mappings of other told fields (stderr, behaviour, sums, ...; see `study.side_data`), or ().
    """

    step: Ints
    lane: Ints
    points: Points
    values: Matrix
    constraints: Matrix | None = None
    extra: tuple[Mapping[str, JSON], ...] = ()

    def __len__(self) -> int:
        return len(self.step)

    @property
    def scalar(self) -> Vector:
        """(n,) the first value column."""
        return self.values[:, 0]

    @property
    def vectors(self) -> Matrix:
        """(n, d) dense points; raises `TypeError` for other points."""
        if not isinstance(self.points, Dense):
            raise TypeError(f"these results carry {type(self.points).__name__} points, not vectors")
        return self.points.vectors

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """n recipes; raises `TypeError` for other points."""
        if not isinstance(self.points, Recipes):
            raise TypeError(f"these results carry {type(self.points).__name__} points, not recipes")
        return self.points.recipes

    @property
    def candidates(self) -> tuple[str, ...]:
        """n canonical JSON texts of structured points; raises `TypeError` for other points."""
        if not isinstance(self.points, Structured):
            raise TypeError(f"these results carry {type(self.points).__name__} points, not structured candidates")
        return self.points.candidates

    def take(self, rows: Ints | list[int]) -> Results:
        """The given rows, in the given order."""
        index = np.asarray(rows, dtype=np.int64)
        return Results(
            step=self.step[index],
            lane=self.lane[index],
            points=self.points.take(index),
            values=self.values[index],
            constraints=None if self.constraints is None else self.constraints[index],
            extra=tuple(self.extra[i] for i in index) if self.extra else (),
        )


@dataclass(frozen=True, slots=True)
class Notice:
    """Something about a study that its owner should know.

    Attributes
    ----------
    code : a stable word, such as `nothing_moves`.
    sentence : what is seen, in one sentence.
    evidence : the numbers behind it, by name.
    action : what to do about it, in one sentence.
    """

    code: str
    sentence: str
    evidence: Mapping[str, JSON]
    action: str


@dataclass(frozen=True, slots=True)
class Stop:
    """The reason for which an algorithm stops.

    Attributes
    ----------
    reason : a stable word.
    detail : a sentence with the numbers.
    facts : numbers by name.
    """

    reason: str
    detail: str = ""
    facts: Mapping[str, float] = field(default_factory=dict)

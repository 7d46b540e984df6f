"""The small frozen records that algorithms, studies and stores exchange.

Shapes: `d` internal dimension, `n` rows of a batch, `k` lanes of one ask, `m` values per result. A *step* is one update
of an algorithm's distribution; a *lane* is one point of a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

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

    The address is (study key, stream, step, lane). A negative scale is the mirrored point. `kind` names the noise
    ("normal" or "rademacher"); `weight` is the digest of a per-coordinate factor, where there is one.
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


@dataclass(frozen=True, slots=True)
class Points:
    """What `ask` returns for k lanes.

    Attributes
    ----------
    vectors : (k, d) internal points of a dense method, else None.
    recipes : k recipes of a recipe method, else None.
    note : (k, m) int64, private to the method: stored on the trial and given back with the result.
    payload : k JSON values the evaluator gets beside the point, or empty.
    replicates : k numbers of the evaluation, where a point is asked again, or empty. Another number is another
        `eval_seed`, and equal numbers within a step share one.
    """

    vectors: Matrix | None
    recipes: tuple[Recipe, ...] | None
    note: Ints
    payload: tuple[JSON, ...] = ()
    replicates: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.note)

    def take(self, rows: Ints | list[int]) -> Points:
        """The given rows, in the given order."""
        index = np.asarray(rows, dtype=np.int64)
        return Points(
            vectors=None if self.vectors is None else self.vectors[index],
            recipes=None if self.recipes is None else tuple(self.recipes[i] for i in index),
            note=self.note[index],
            payload=tuple(self.payload[i] for i in index) if self.payload else (),
            replicates=tuple(self.replicates[i] for i in index) if self.replicates else (),
        )


def dense(vectors: Matrix, note: Ints | None = None) -> Points:
    """Points of a dense method; without a note, an empty one."""
    return Points(vectors, None, np.empty((len(vectors), 0), dtype=np.int64) if note is None else note)


@dataclass(frozen=True, slots=True)
class Pending:
    """Trials that are queued or validly leased, sorted by (step, lane).

    Attributes
    ----------
    step, lane : (n,) int64.
    note : (n, m) int64.
    points : what they were asked; only filled for methods with `uses_pending`.
    fresh : first unused lane of the open step.
    spent : lanes of the open step that must not be handed out again (they are out, told or have failed).
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
    """What `tell` consumes: n results sorted by (step, lane), never by arrival.

    Attributes
    ----------
    step, lane : (n,) int64, when and as which lane the point was asked. lane < 0: a point the method did not choose.
    points : what was asked.
    values : (n, m) float64, minimised; NaN means infeasible. +inf is a barrier value (sequential methods only).
    constraints : (n, c) float64, feasible where <= 0, or None.
    extra : n mappings with what else the evaluator told (stderr, behaviour, sums, ...; see `side_data`), or empty.
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
        """(n, d) the points of a dense method."""
        if self.points.vectors is None:
            raise TypeError("these results carry recipes, not vectors")
        return self.points.vectors

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
class Stop:
    """Why an algorithm has nothing more to gain. `reason` is a stable word, `detail` says the numbers."""

    reason: str
    detail: str = ""
    facts: Mapping[str, float] = field(default_factory=dict)

"""An open step in the memory of one process: its position in the log, its state, the points computed so far."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_json

from blackbox.algorithm import Algorithm
from blackbox.recipes import to_json as recipe_to_json
from blackbox.records import Dense, Pending, Points, Recipes
from blackbox.space import Space
from blackbox.study import log
from blackbox.study.reading import encoded, plain
from blackbox.study.rows import StudyRow
from blackbox.study.spec import canonical

PARAMS_STORED_UPTO = 1000
"""Largest dimension at which decoded parameters are stored with a trial; above, they are decoded when read."""
LANES_AHEAD = 256
"""Most lanes that are computed in advance, for asks that may follow."""
AHEAD_NUMBERS = 2**16
"""Most coordinates that are computed in advance."""

Position = tuple[int, int, int]
"""Position of a study in its log, (step, epoch, upto_seq): a compare-and-swap of the row compares it, so that of two
concurrent writers the second finds that the study has moved on."""


def position_of(row: StudyRow) -> Position:
    """The position of a study's row."""
    return row.step, row.epoch, row.upto_seq


@dataclass(frozen=True, slots=True)
class PreparedPoint:
    """The point of one lane in the form of `rows.PointRow`, and its `replicate` number."""

    vector: bytes | None
    recipe: str | None
    params: str | None
    note: bytes
    payload: str | None
    replicate: int


@dataclass(slots=True)
class OpenStep:
    """An open step. Its points are a function of (state, lane), so they may be kept until it closes."""

    position: Position
    algorithm: Algorithm[Any, Any]
    state: Any
    asks: int = -1
    """The row's `asks` when the points were computed, for algorithms whose asks depend on trials in flight."""
    points: dict[int, PreparedPoint] = field(default_factory=dict)
    blobs: Sequence[tuple[str, int, bytes]] = ()
    """(digest, step to store it under, content) of each vector that the recipes name."""
    blobs_stored: bool = False

    @property
    def epoch(self) -> int:
        """Epoch of the study's row when the step was opened."""
        return self.position[1]

    def compute(self, lanes: Sequence[int], pending: Pending) -> list[PreparedPoint]:
        """The points of these lanes. Changes nothing, so it may run in a thread."""
        return prepared(self.algorithm.space, self.algorithm.ask(self.state, lanes, pending))

    def vectors(self) -> Sequence[tuple[str, int, bytes]]:
        """(digest, step to store it under, content) of each vector that the step's recipes name."""
        # `factors`: the index at which the factors begin among the vectors.
        step, factors = self.state.step, 0 if self.algorithm.base(self.state) is None else 1
        return [
            (name, step if i < factors else log.factor_key(step), content)
            for i, (name, content) in enumerate(encoded(self.algorithm.blobs(self.state)).items())
        ]

    def lanes_to_compute(self, lanes: Sequence[int], ahead: int = 0) -> list[int]:
        """The lanes to compute: those missing, the rest of their tiles, and `ahead` more for asks that may follow."""
        traits = self.algorithm.traits
        if traits.kind != "group" or traits.uses_pending:
            return list(lanes)
        more = min(ahead, LANES_AHEAD, AHEAD_NUMBERS // self.algorithm.space.dim)
        # Whole tiles, because a dense method computes them at once anyway.
        stop = -(-(lanes[-1] + 1 + more) // 8) * 8
        return [lane for lane in range(lanes[0] // 8 * 8, stop) if lane not in self.points]


def prepared(space: Space, points: Points) -> list[PreparedPoint]:
    """Points as bytes and JSON, one `PreparedPoint` per point."""
    ready = []
    has_vectors = any(parameter.type == "vector" for _, parameter in space.items())
    for i in range(len(points)):
        vector = recipe = params = None
        if isinstance(points, Dense):
            vector = points.vectors[i].astype("<f8", copy=False).tobytes()
            if space.dim <= PARAMS_STORED_UPTO:
                decoded = space.decode(points.vectors[i])
                params = to_json(plain(decoded) if has_vectors else decoded).decode()
        elif isinstance(points, Recipes):
            recipe = canonical(recipe_to_json(points.recipes[i]))
        else:
            params = points.candidates[i]
        ready.append(
            PreparedPoint(
                vector,
                recipe,
                params,
                points.note[i].astype("<i8", copy=False).tobytes(),
                json.dumps(points.payload[i]) if points.payload else None,
                points.replicates[i] if points.replicates else 0,
            )
        )
    return ready

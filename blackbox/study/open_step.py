"""An open step as one instance of a study knows it: its position in the log, its state, the points computed so far."""

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
"""Decoded parameters are stored with a trial up to this dimension; above, they are decoded when somebody reads them."""
LANES_AHEAD = 256
AHEAD_NUMBERS = 2**16
"""Coordinates that may be computed for asks that may come."""

Position = tuple[int, int, int]
"""Where a study stands (step, epoch, upto_seq): what a swap of its row compares, so that of two who move it one finds
that it has moved."""


def position_of(row: StudyRow) -> Position:
    """The position of a study's row."""
    return row.step, row.epoch, row.upto_seq


@dataclass(frozen=True, slots=True)
class PreparedPoint:
    """A lane's point, ready to be stored."""

    vector: bytes | None
    recipe: str | None
    params: str | None
    note: bytes
    payload: str | None
    replicate: int


@dataclass(slots=True)
class OpenStep:
    """An open step. Its points are pure in (state, lane), so they may be kept until it closes."""

    position: Position
    algorithm: Algorithm[Any, Any]
    state: Any
    asks: int = -1
    """For methods whose asks depend on what is in flight: the counter these points were computed at."""
    points: dict[int, PreparedPoint] = field(default_factory=dict)
    blobs: Sequence[tuple[str, int, bytes]] = ()
    """Digest, place and content of the vectors that the recipes name."""
    blobs_stored: bool = False

    @property
    def epoch(self) -> int:
        """That of the study's row when the step was opened."""
        return self.position[1]

    def compute(self, lanes: Sequence[int], pending: Pending) -> list[PreparedPoint]:
        """The points of these lanes. Nothing is kept: this may run in a thread."""
        return prepared(self.algorithm.space, self.algorithm.ask(self.state, lanes, pending))

    def vectors(self) -> Sequence[tuple[str, int, bytes]]:
        """The vectors that the step's recipes name, with the place at which each is stored."""
        # Where factors begin among them.
        step, factors = self.state.step, 0 if self.algorithm.base(self.state) is None else 1
        return [
            (name, step if i < factors else log.factor_key(step), content)
            for i, (name, content) in enumerate(encoded(self.algorithm.blobs(self.state)).items())
        ]

    def lanes_to_compute(self, lanes: Sequence[int], ahead: int = 0) -> list[int]:
        """Lanes that are missing, their neighbours in a tile, and so many ahead where others will want them."""
        traits = self.algorithm.traits
        if traits.kind != "group" or traits.uses_pending:
            return list(lanes)
        more = min(ahead, LANES_AHEAD, AHEAD_NUMBERS // self.algorithm.space.dim)
        # Whole tiles, because a dense method computes them at once anyway.
        stop = -(-(lanes[-1] + 1 + more) // 8) * 8
        return [lane for lane in range(lanes[0] // 8 * 8, stop) if lane not in self.points]


def prepared(space: Space, points: Points) -> list[PreparedPoint]:
    """Points as bytes and JSON."""
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

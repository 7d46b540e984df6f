"""A study of trials, opened for reading: its state at any step, its points, its past. Nothing here changes a study."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox import codec
from blackbox.algorithm import Algorithm, Traits, build, lookup
from blackbox.errors import Conflict, IncompatibleProblem, InvalidInput, StudyNotFound, TooLarge
from blackbox.options import Options, parse_options
from blackbox.recipes import PrefixCache, materialise
from blackbox.records import JSON, Recipe, Vector
from blackbox.study import history, log
from blackbox.study.archive import Archive
from blackbox.study.base import BaseStudy
from blackbox.study.effects import Steps, read
from blackbox.study.pace import SNAPSHOT_STEPS
from blackbox.study.rows import FAILED, PointRow, StepRow, StudyHead, StudyRow, TrialRow, Tx

MAX_REBUILT_BYTES = 2**30
PREFIX_BYTES = 2**26
"""What an open study keeps of points whose children it builds."""


class RecordedStudy(BaseStudy):
    """A study whose log is of trials, opened for reading: its state at any step, its points, its past."""

    traits: Traits

    def __init__(self, head: StudyHead) -> None:
        super().__init__(head)
        self.kind = self.traits.kind
        self.prefixes = PrefixCache(PREFIX_BYTES)
        self._vectors = [name for name, parameter in self.space.items() if parameter.type == "vector"]
        self._algorithms: list[tuple[int, Algorithm[Any, Any]]] = []
        self._lineage = ""

    # State ------------------------------------------------------------------------------------------------------------

    def _method(self) -> Options:
        cls = lookup(self.resolved.algorithm)
        self.traits = cls.traits
        return parse_options(cls.Options, self.resolved.options)

    def algorithm(self, row: StudyRow, step: int | None = None) -> Algorithm[Any, Any]:
        """The instance in charge of a step (default: the open one)."""
        if self._lineage != row.lineage:
            self._lineage = row.lineage
            self._algorithms = [
                (first, build(self.resolved.algorithm, self.space, self.options, self.key, stream))
                for first, stream in json.loads(row.lineage)
            ]
        return log.algorithm_at(self._algorithms, row.step if step is None else step)

    def machine(self, row: StudyRow) -> Algorithm[Any, Any]:
        """The instance in charge of the open step."""
        return self.algorithm(row)

    def _state_at(self, row: StudyRow, step: int) -> Steps[Any]:
        cached = self._cached
        if cached is not None and (cached.epoch, cached.step) == (row.epoch, step):
            return cached.state
        if not 0 <= step <= row.step:
            raise InvalidInput(f"step must be between 0 and {row.step}, got {step}")
        behind = cached if cached is not None and cached.epoch == row.epoch and cached.step < step else None
        start, state = (behind.step, behind.state) if behind else (-1, None)
        snapshot = yield from read(lambda tx: tx.snapshot(self.id, row.epoch, step))
        if snapshot is not None and snapshot.step > start:
            algorithm = self.algorithm(row, snapshot.step)
            start, state = snapshot.step, codec.decode(algorithm.State, snapshot.state)
        if start < 0:
            start, state = 0, self.algorithm(row, 0).init()
        while start < step:
            until = min(step, start + SNAPSHOT_STEPS)
            records, told = yield from read(partial(history.stretch, study=self.id, first=start, before=until))
            for record, after, _ in log.replay(self._algorithms, state, records, told, self.maximize):
                state, start = after, record.step + 1
            if start < until:
                raise Conflict(f"the log of {self.id} ends at step {start}, its row says {row.step}")
        if step == row.step:
            self._keep(row.epoch, step, state)
        return state

    # The past ---------------------------------------------------------------------------------------------------------

    def replay(self) -> Steps[Iterator[tuple[StepRow, str]]]:
        """Every recorded step with the digest that a replay from the beginning gives; equal where nothing is wrong."""
        row = yield from self.row()
        records, told = yield from read(lambda tx: history.stretch(tx, self.id, 0, row.step))
        state = self.algorithm(row, 0).init()
        replayed = log.replay(self._algorithms, state, records, told, self.maximize)
        return ((record, digest) for record, _, digest in replayed)

    def _replayed(self, row: StudyRow, first: int) -> Steps[list[tuple[StepRow, Any, str]]]:
        state = yield from self._state_at(row, first)
        records, told = yield from read(lambda tx: history.stretch(tx, self.id, first, row.step))
        self.algorithm(row)
        return list(log.replay(self._algorithms, state, records, told, self.maximize))

    def _rebuilt(self, row: StudyRow) -> Steps[dict[int, bytes]]:
        """Internal points of all told recipes, by number. Their bases are long dropped; a replay makes them again."""
        records, told = yield from read(partial(history.stretch, study=self.id, first=0, before=row.step))
        everything = yield from read(partial(history.results, study=self.id, after_seq=0, upto_seq=row.seq))
        if (size := len(everything) * self.space.dim * 8) > MAX_REBUILT_BYTES:
            raise TooLarge(
                f"{len(everything)} told points of {self.space.dim} dimensions are {size / 1e9:.1f} GB as numbers",
                hint="fork with the same algorithm: then they stay recipes",
            )
        waiting: dict[int, list[log.LoggedResult]] = {}
        for trial, point in everything:
            waiting.setdefault(trial.step, []).append((trial, point))
        vectors: dict[int, bytes] = {}

        def take(step: int, state: Any) -> None:
            blobs = contents(self.algorithm(row, step).blobs(state)) if step in waiting else {}
            for trial, point in waiting.pop(step, ()):
                vectors[trial.number] = self.vector(point, blobs).astype("<f8").tobytes()

        state = self.algorithm(row, 0).init()
        take(0, state)
        for record, after, _ in log.replay(self._algorithms, state, records, told, self.maximize):
            take(record.step + 1, after)
        return vectors

    def archive(self) -> Steps[tuple[Archive, list[int]]]:
        """All told points with what is known of their values, and the number of the first trial of each.

        Values are minimised (negated where the study maximises); values told late for a trial are replicates. Scans the
        whole history.

        Raises
        ------
        IncompatibleProblem
            For a study whose points are recipes: they are not kept as numbers.
        """
        if self.traits.encoding == "recipe":
            raise IncompatibleProblem(
                f"the points of {self.resolved.algorithm} are recipes, which are not compared as numbers",
                hint="the best trial and the recommended point are there all the same",
            )
        row = yield from self.row()
        told = yield from read(partial(history.results, study=self.id, after_seq=0, upto_seq=row.seq))
        late = yield from read(lambda tx: tx.late(self.id, 0, history.MAX_SEQ))
        vectors = {trial.number: point.vector for trial, point in told}
        rows = [
            (trial.number, trial.value, trial.extra) for trial, _ in told if not trial.invalid and trial.state != FAILED
        ]
        rows += [(item.number, item.value, item.extra) for item in late if item.number in vectors]
        sign = -1.0 if self.maximize else 1.0
        values = np.array([np.nan if value is None else sign * value for _, value, _ in rows])
        errors = np.array([history.stderr(extra) for _, _, extra in rows])
        points = np.array([np.frombuffer(vectors[n] or b"", dtype="<f8") for n, _, _ in rows])
        archive = Archive.of(points.reshape(len(rows), self.space.dim), values, errors)
        return archive, [rows[i][0] for i in archive.first]

    # Points -----------------------------------------------------------------------------------------------------------

    def params(self, point: PointRow, blobs: Mapping[str, bytes] | None = None) -> dict[str, Any]:
        """The parameters a trial asks, decoded (vectors as arrays); `blobs` has by digest what a recipe is made of."""
        if point.params is not None:
            params: dict[str, Any] = json.loads(point.params)
            for name in self._vectors:
                params[name] = np.asarray(params[name], dtype=np.float64)
            return params
        return self.space.decode(self.vector(point, blobs))

    def vector(self, point: PointRow, blobs: Mapping[str, bytes] | None = None) -> Vector:
        """(d,) float64 internal point of a trial."""
        if point.vector is not None:
            return np.frombuffer(point.vector, dtype="<f8").copy()
        recipe = log.points_of([point], self.space.dim, True).recipes
        assert recipe is not None
        vectors = {name: np.frombuffer(content, dtype="<f4") for name, content in (blobs or {}).items()}
        return materialise(recipe[0], self.key, self.space.dim, vectors, cache=self.prefixes).astype(np.float64)

    def recipe(self, point: PointRow) -> Recipe | None:
        """The recipe of a point, if it is one."""
        if point.recipe is None:
            return None
        recipes = log.points_of([point], self.space.dim, True).recipes
        return recipes[0] if recipes else None

    def points(self, numbers: Sequence[int]) -> Steps[dict[int, tuple[PointRow, dict[str, bytes]]]]:
        """Points of trials, each with those vectors by digest that its recipe is made of and that are still kept."""

        def work(tx: Tx) -> dict[int, tuple[PointRow, dict[str, bytes]]]:
            found = {}
            for number, point in tx.points(self.id, numbers).items():
                blobs = {name: tx.blob(self.id, name) for name in log.named(point)}
                found[number] = point, {name: blob for name, blob in blobs.items() if blob is not None}
            return found

        return (yield from read(work))

    def best(self) -> Steps[tuple[TrialRow, dict[str, Any]] | None]:
        """The best told trial and its parameters; None before the first value."""
        row = yield from self.row()
        if row.best_trial is None:
            return None
        number = row.best_trial
        trial = yield from read(lambda tx: tx.trial(self.id, number))
        if trial is None:
            raise StudyNotFound(f"study {self.id} was deleted")
        point, blobs = (yield from self.points([number]))[number]
        if len(blobs) < len(log.named(point)):
            # A late result became the best one after its step's vectors were dropped: the log still has that state.
            state = yield from self._state_at(row, trial.step)
            blobs |= contents(self.algorithm(row, trial.step).blobs(state))
        return trial, self.params(point, blobs)

    def _payload(self, row: StudyRow, state: Any) -> JSON:
        return self.algorithm(row).payload(state)

    def eval_seed(self, trial: TrialRow) -> str:
        """A seed for common random numbers: equal for all lanes of one step and replicate of a method of steps."""
        step = trial.step if self.kind == "group" and trial.lane >= 0 else 0
        name = f"{self.key.hex()}/{step}" + (f"/{trial.replicate}" if trial.replicate else "")
        return str(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "little"))

    @cached_property
    def seed_encodable(self) -> bool:
        """Whether candidates can travel as recipes: one unbounded vector, whose internal point is the point itself."""
        return self.traits.encoding == "recipe" and self.space.is_single_vector and self.space.domain == "free"


def contents(vectors: Mapping[str, NDArray[np.float32]]) -> dict[str, bytes]:
    """Vectors as they are stored and served."""
    return {name: np.ascontiguousarray(vector, dtype="<f4").tobytes() for name, vector in vectors.items()}


def plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as JSON values."""
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in params.items()}

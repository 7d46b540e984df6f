"""A study of trials, opened for reading: its state at any step, its points and its past. Changes nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.algorithm import Algorithm, Traits
from blackbox.errors import (
    AlgorithmChanged,
    BlobNotFound,
    Conflict,
    IncompatibleProblem,
    InvalidInput,
    StudyNotFound,
    TooLarge,
)
from blackbox.recipes import PrefixCache, materialise
from blackbox.recipes import from_json as recipe_from_json
from blackbox.recipes.slices import WHOLE, Slicer
from blackbox.records import JSON, Notice, Recipe, Vector
from blackbox.study import history, log, recommending
from blackbox.study.archive import Archive
from blackbox.study.base import BaseStudy
from blackbox.study.effects import Steps, compute, read
from blackbox.study.health import Tally, notices
from blackbox.study.pace import REPLAY_SECONDS, SNAPSHOT_STEPS, Pace
from blackbox.study.recommending import Estimate, Recommendation
from blackbox.study.rows import ACTIVE, FAILED, LEASED, REUSED, PointRow, StepRow, StudyHead, StudyRow, TrialRow, Tx

MAX_REBUILT_BYTES = 2**30
"""Most memory for the points of recipes as numbers, when a fork needs them."""
PREFIX_BYTES = 2**26
"""Size of an open study's cache of parents, from which it builds their children."""


ESTIMATE_SECONDS = 0.1
"""About what an estimate under noise takes."""


@dataclass(frozen=True, slots=True)
class _Recommended:
    """A recommendation that took an estimate, and the study's epoch and results when it was made."""

    epoch: int
    used: int
    answer: Recommendation

    def keeps(self, row: StudyRow) -> bool:
        fresh = row.used == self.used and row.step == self.answer.step
        return row.epoch == self.epoch and (
            fresh or (row.state == ACTIVE and self.used <= row.used < self.used + self.used // 20)
        )


class RecordedStudy(BaseStudy):
    """A study of trials, opened for reading: its state at any step, its points and its past.

    Attributes
    ----------
    traits, kind : traits of its algorithm, and the kind that follows from them.
    prefixes : cache of the points of parents, see `recipes.PrefixCache`.
    """

    traits: Traits

    def __init__(self, head: StudyHead, slicer: Slicer = WHOLE) -> None:
        super().__init__(head, slicer)
        self.kind = self.traits.kind
        self._pace = Pace(self.space.dim)
        self.prefixes = PrefixCache(PREFIX_BYTES)
        self._vectors = [name for name, parameter in self.space.items() if parameter.type == "vector"]
        self._algorithms: list[tuple[int, Algorithm[Any, Any]]] = []
        self._lineage = ""
        self._recommended: _Recommended | None = None

    # State ------------------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self.traits = Traits() if self.stored.cls is None else self.stored.cls.traits

    def algorithm(self, row: StudyRow, step: int | None = None) -> Algorithm[Any, Any]:
        """The instance in charge of a step (default: the open one).

        Raises
        ------
        AlgorithmChanged
            If this release lacks it, or it does not take the stored options.
        """
        if self.stored.cls is None or self.stored.obstacle:
            raise self.changed(self.stored.obstacle)
        if self._lineage != row.lineage:
            self._lineage = row.lineage
            self._algorithms = []
            for first, stream in json.loads(row.lineage):
                algorithm = self.stored.cls(self.space, self.options, self.key, stream)
                algorithm.slicer = self.slicer
                self._algorithms.append((first, algorithm))
        return log.algorithm_at(self._algorithms, row.step if step is None else step)

    def machine(self, row: StudyRow, step: int | None = None) -> Algorithm[Any, Any]:
        """The instance in charge of a step; see `algorithm`."""
        return self.algorithm(row, step)

    def _unreadable(self) -> None:
        self._pace.want_snapshot()

    def _state_at(self, row: StudyRow, step: int) -> Steps[Any]:
        cached = self._cached
        if cached is not None and (cached.epoch, cached.step) == (row.epoch, step):
            return cached.state
        if not 0 <= step <= row.step:
            raise InvalidInput(f"step must be between 0 and {row.step}, got {step}")
        if self.stuck and step == row.step:
            raise self.changed(self.stuck)
        behind = cached if cached is not None and cached.epoch == row.epoch and cached.step < step else None
        start, state = (behind.step, behind.state) if behind else (-1, None)
        stored = yield from self._newest(row, step, start)
        if stored is not None:
            start, state = stored[0].step, stored[1]
        if start < 0:
            start, state = 0, self.algorithm(row, 0).init()
        while start < step:
            until = min(step, start + SNAPSHOT_STEPS)
            records, told = yield from read(partial(history.segment, study=self.id, first=start, before=until))
            if len(records) < until - start:
                raise Conflict(f"the log of {self.id} ends at step {start + len(records)}, its row says {row.step}")
            try:
                work = partial(self._believed, state, records, told)
                state = yield from compute(work, REPLAY_SECONDS * len(records))
            except AlgorithmChanged as error:
                if step == row.step:
                    self.stuck = error.detail
                raise self.changed(error.detail) from error
            start = until
        if step == row.step:
            self._keep(row.epoch, step, state)
        return state

    def _believed(self, state: Any, records: Sequence[StepRow], told: Sequence[log.LoggedResult]) -> Any:
        """The state after recorded steps.

        Raises
        ------
        AlgorithmChanged
            If the revision of the algorithm has changed, and it computes other states than the recorded ones.
        """
        step = records[0].step
        try:
            for record, after, digest in log.replay(self._algorithms, state, records, told, self.maximize):
                if self.stored.revised and digest != record.digest:
                    break
                state, step = after, record.step + 1
            else:
                return state
        except Exception:  # another revision may raise on these results
            if not self.stored.revised:
                raise
        raise AlgorithmChanged(f"{self.stored.revised}, which computes another state after step {step}")

    # The past ---------------------------------------------------------------------------------------------------------

    def replay(self) -> Steps[Iterator[tuple[StepRow, str]]]:
        """Every recorded step with the digest that a replay from the beginning computes; equal to the recorded one.

        If the revision of the algorithm has changed, the replay ends with the first step whose digest differs.
        """
        row = yield from self.row()
        records, told = yield from read(lambda tx: history.segment(tx, self.id, 0, row.step))
        state = self.algorithm(row, 0).init()
        replayed = log.replay(self._algorithms, state, records, told, self.maximize)
        return self._upto_change((record, digest) for record, _, digest in replayed)

    def _replayed(self, row: StudyRow, first: int) -> Steps[list[tuple[StepRow, Any, str]]]:
        state = yield from self._state_at(row, first)
        records, told = yield from read(lambda tx: history.segment(tx, self.id, first, row.step))
        self.algorithm(row)
        return list(log.replay(self._algorithms, state, records, told, self.maximize))

    def _rebuilt(self, row: StudyRow) -> Steps[tuple[dict[int, bytes], int]]:
        """Internal points of told recipes by number, and how many cannot be rebuilt.

        Their bases have been dropped; a replay computes them again. A point is missing if this release computes another
        base.
        """
        records, told = yield from read(partial(history.segment, study=self.id, first=0, before=row.step))
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
            blobs = encoded(self.algorithm(row, step).blobs(state)) if step in waiting else {}
            for trial, point in waiting.pop(step, ()):
                with suppress(BlobNotFound) if self.stored.revised else nullcontext():
                    vectors[trial.number] = self.vector(point, blobs).astype("<f8").tobytes()

        if self.stored.obstacle:
            kept = yield from self.points([trial.number for trial, _ in everything])
            for number, (point, blobs) in kept.items():
                with suppress(BlobNotFound):
                    vectors[number] = self.vector(point, blobs).astype("<f8").tobytes()
            return vectors, len(everything) - len(vectors)
        state = self.algorithm(row, 0).init()
        take(0, state)
        with suppress(Exception) if self.stored.revised else nullcontext():  # as in `_believed`
            for record, after, _ in log.replay(self._algorithms, state, records, told, self.maximize):
                take(record.step + 1, after)
        return vectors, len(everything) - len(vectors)

    def archive(self) -> Steps[tuple[Archive, list[int]]]:
        """All told points with the statistics of their values, and the number of the first trial of each.

        Values are minimised (negated if the study maximises); late values of a trial are replicates. Scans the whole
        history.

        Raises
        ------
        IncompatibleProblem
            For a study whose points are recipes or structured: they are not kept as numbers.
        """
        told: list[log.LoggedResult] = []
        if self.traits.encoding == "dense":
            row = yield from self.row()
            told = yield from read(partial(history.results, study=self.id, after_seq=0, upto_seq=row.seq))
        if self.traits.encoding != "dense" or any(point.vector is None for _, point in told):
            kind = "structured" if self.traits.encoding == "structured" else "recipes"
            raise IncompatibleProblem(
                f"the points of {self.resolved.algorithm} are {kind}, which are not compared as numbers",
                hint="the best trial and the recommended point are there all the same",
            )
        late = yield from read(lambda tx: tx.late(self.id, 0, history.MAX_SEQ))
        vectors = {trial.number: point.vector for trial, point in told}
        rows = [
            (trial.number, trial.value, trial.extra)
            for trial, _ in told
            if not trial.invalid and trial.state != FAILED and trial.source != REUSED
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
        """Decoded parameters of a trial's point (vectors as arrays).

        Parameters
        ----------
        blobs : the vectors that its recipe names, by digest; not needed for a point stored as numbers.
        """
        if point.params is not None:
            params: dict[str, Any] = json.loads(point.params)
            for name in self._vectors:
                params[name] = np.asarray(params[name], dtype=np.float64)
            return params
        return self.space.decode(self.vector(point, blobs))

    def vector(self, point: PointRow, blobs: Mapping[str, bytes] | None = None) -> Vector:
        """(d,) float64 internal point of a trial.

        Parameters
        ----------
        blobs : the vectors that its recipe names, by digest.

        Raises
        ------
        BlobNotFound
            If a vector of the recipe is missing.
        IncompatibleProblem
            If the point is structured, not a vector.
        """
        if point.vector is not None:
            return np.frombuffer(point.vector, dtype="<f8").copy()
        recipe = self.recipe(point)
        if recipe is None:
            raise IncompatibleProblem(f"trial t_{point.number} asks a structured point, which is not a vector")
        vectors = {name: np.frombuffer(content, dtype="<f4") for name, content in (blobs or {}).items()}
        return materialise(recipe, self.key, self.space.dim, vectors, cache=self.prefixes).astype(np.float64)

    def recipe(self, point: PointRow) -> Recipe | None:
        """The recipe of a point; None if it is stored as numbers."""
        if point.recipe is None:
            return None
        return recipe_from_json(json.loads(point.recipe))

    def points(self, numbers: Sequence[int]) -> Steps[dict[int, tuple[PointRow, dict[str, bytes]]]]:
        """Points of trials by number, each with the vectors (by digest) of its recipe that are still stored."""

        def work(tx: Tx) -> dict[int, tuple[PointRow, dict[str, bytes]]]:
            found = {}
            for number, point in tx.points(self.id, numbers).items():
                blobs = {name: tx.blob(self.id, name) for name in log.named_blobs(point)}
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
        if len(blobs) < len(log.named_blobs(point)):
            # A late result became the best one after the vectors of its step were dropped: the log has that state.
            state = yield from self._state_at(row, trial.step)
            blobs |= encoded(self.algorithm(row, trial.step).blobs(state))
        return trial, self.params(point, blobs)

    def _payload(self, row: StudyRow, state: Any) -> JSON:
        return self.algorithm(row).payload(state)

    def recommend(self) -> Steps[Recommendation]:
        """The point to deploy now; see `recommending`.

        An estimate of a running study may be older than its newest results, by a twentieth of them.
        """
        row = yield from self.row()
        if row.best_trial is None:
            return (yield from self.propose())
        tally = Tally.of(row)
        noisy = recommending.is_noisy(self.spec, tally)
        n = recommending.readable(self.space.dim) if self.traits.encoding == "dense" else 0
        known = self._recommended
        if known is not None and known.keeps(row):
            return known.answer
        told: list[log.LoggedResult] = []
        if n and (noisy or (self.spec.noise == "auto" and tally.noise == "unknown" and row.used <= n)):
            told = yield from read(partial(history.newest, row=row, n=n))
            noisy = noisy or _differ(told)
        if not noisy:
            return (yield from self._best_told(row, recommending.BEST_TOLD))
        answer = yield from self._under_noise(row, tally, told)
        self._recommended = _Recommended(row.epoch, row.used, answer)
        return answer

    def health(self, *, now: float) -> Steps[list[Notice]]:
        """What the owner of the study should know; see `health.CODES`, and `Algorithm.notices`."""
        row = yield from self.row()
        leased = yield from read(lambda tx: [t for t in tx.open_trials(self.id) if t.state == LEASED])
        need, group = None, False
        own: Sequence[Notice] = ()
        with suppress(AlgorithmChanged):
            row, state = yield from self.state()
            algorithm = self.algorithm(row)
            need, own = algorithm.need(state), algorithm.notices(state)
            group = self.kind == "group" and algorithm.oldest(state) > 0
        return notices(
            row,
            maximize=self.maximize,
            created_at=self.head.created_at,
            now=now,
            leased=leased,
            need=need,
            group=group,
            own=own,
        )

    def _best_told(self, row: StudyRow, note: str) -> Steps[Recommendation]:
        found = yield from self.best()
        if found is None:
            return (yield from self.propose())
        trial, params = found
        point = (yield from self.points([trial.number]))[trial.number][0]
        payload = None if point.payload is None else json.loads(point.payload)
        return Recommendation(row.step, params, payload, note, trial.number, trial.value)

    def _under_noise(self, row: StudyRow, tally: Tally, told: Sequence[log.LoggedResult]) -> Steps[Recommendation]:
        proposal = yield from self.propose()
        _, state = yield from self.state()
        proposed = self.algorithm(row).recommend(state)
        if isinstance(proposed, str) or not told:
            estimate = recommending.beyond_luck(row, tally, self.maximize)
            if estimate is not None:
                best_told = yield from self._best_told(row, recommending.BEYOND_LUCK)
                return replace(best_told, value=None, estimate=estimate)
            note = recommending.PROPOSED_IN_NOISE.format(n=len(tally.recent))
            return replace(proposal, note=note, estimate=recommending.around(tally))
        sign = -1.0 if self.maximize else 1.0
        points = np.array([np.frombuffer(point.vector or b"", dtype="<f8") for _, point in told])
        values = [sign * (trial.value or 0.0) for trial, _ in told]
        work = partial(recommending.compare, points, values, np.atleast_2d(proposed), recommending.variance_of(tally))
        found = yield from compute(work, ESTIMATE_SECONDS)
        if found is None:
            return (yield from self._best_told(row, recommending.FEW_VALUES))
        estimates, archive = found
        best = estimates.pick()
        estimate = Estimate(sign * float(estimates.mean[best]), float(estimates.stderr[best]), len(told))
        note = recommending.ESTIMATED.format(n=len(told), best=row.best_value)
        if best < len(archive):
            trial, point = told[archive.first[best]]
            payload = None if point.payload is None else json.loads(point.payload)
            return Recommendation(row.step, self.params(point), payload, note, trial.number, None, estimate)
        return replace(proposal, note=note, estimate=estimate)

    def eval_seed(self, trial: TrialRow) -> str:
        """A seed for common random numbers, as decimal text: equal for all lanes of a step and replicate."""
        step = trial.step if self.kind == "group" and trial.lane >= 0 else 0
        name = f"{self.key.hex()}/{step}" + (f"/{trial.replicate}" if trial.replicate else "")
        return str(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "little"))

    @cached_property
    def seed_encodable(self) -> bool:
        """Whether candidates can be sent as recipes: the space is one unbounded vector, equal to its internal point."""
        return self.traits.encoding == "recipe" and self.space.is_single_vector and self.space.domain == "free"


def _differ(told: Sequence[log.LoggedResult]) -> bool:
    """Whether two values of the same point differ."""
    seen: dict[bytes | None, float | None] = {}
    return any(seen.setdefault(point.vector, trial.value) != trial.value for trial, point in told)


def encoded(vectors: Mapping[str, NDArray[np.float32]]) -> dict[str, bytes]:
    """Vectors by digest as little-endian float32 bytes, as they are stored and served."""
    return {name: np.ascontiguousarray(vector, dtype="<f4").tobytes() for name, vector in vectors.items()}


def plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as JSON values: arrays become lists."""
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in params.items()}

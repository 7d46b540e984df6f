"""A study that people may edit: enqueue points, take results back, close steps by hand, fork its past."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from blackbox.errors import AlgorithmChanged, InvalidInput, StudySpecMismatch, StudyStateError, TrialNotFound
from blackbox.options import known_options
from blackbox.study import history, ledger
from blackbox.study.creation import new_head
from blackbox.study.effects import Steps, read, write
from blackbox.study.reading import plain
from blackbox.study.rows import (
    ACTIVE,
    CANCELLED,
    ENQUEUED,
    PAUSED,
    REUSED,
    SUPERSEDED,
    PointRow,
    SnapshotRow,
    StudyHead,
    StudyRow,
    TrialRow,
    Tx,
)
from blackbox.study.spec import parse_spec, resolve, spec_hash
from blackbox.study.trials import TrialStudy


class Study(TrialStudy):
    """A study whose points and past people may change: enqueue, invalidate, close, fork. It is `blackbox.Study`.

    The points and the past of a hosted participant belong to its machine, so `HostedStudy` has none of these. An opened
    study is caches only: a copy, also by pickle, is the study opened anew, with a `slicer` that has no threads.
    """

    def __reduce__(self) -> tuple[type[Study], tuple[StudyHead]]:
        return Study, (self.head,)

    # Points and steps -------------------------------------------------------------------------------------------------

    def enqueue(self, params: Sequence[Mapping[str, Any]], *, now: float) -> Steps[list[int]]:
        """Queue given points; they are granted before any other. Returns the numbers of their trials.

        Raises
        ------
        InvalidSpace
            If a point does not fit the space.
        StudyStateError
            If the study has ended.
        """
        vectors = [self.space.encode(item).astype("<f8").tobytes() for item in params]
        texts = [json.dumps(plain(item)) for item in params]

        def work(tx: Tx) -> tuple[StudyRow, list[int]]:
            row = ledger.locked(tx, self.id)
            if row.state not in (ACTIVE, PAUSED):
                raise StudyStateError(f"the study is {row.state}; points can be enqueued while it is ACTIVE or PAUSED")
            trials, points = [], []
            for vector, text in zip(vectors, texts, strict=True):
                row.trials += 1
                trials.append(TrialRow(self.id, row.trials, row.step, -row.trials, asked_at=now, source=ENQUEUED))
                points.append(PointRow(self.id, row.trials, vector, None, text))
            if trials:
                tx.insert_trials(trials, points)
            row.queued += len(trials)
            tx.put_study(row)
            return row, [trial.number for trial in trials]

        self._row, numbers = yield from write(work)
        return numbers

    def close(self, *, now: float, why: str = "closed") -> Steps[int]:
        """Close the open step with the results so far (as a deadline decided elsewhere); returns the new step."""
        yield from self.advance(now=now)
        while True:
            row, state = yield from self.state()
            if (yield from self._close(row, state, why, now)):
                return row.step + 1

    # History ----------------------------------------------------------------------------------------------------------

    def invalidate(self, *, trial: int | None = None, worker: str | None = None, now: float) -> Steps[int]:
        """Take back one result, or all results of a worker: the state becomes that of a replay without them.

        Snapshots after the first of them are deleted, the epoch grows, and the digests of the recorded steps are
        rewritten. Points that were asked because of these results remain. Returns the number of results taken back.

        Raises
        ------
        TrialNotFound
            If there is no such trial.
        StudyStateError
            If the trial has no result to take back.
        """

        def work(tx: Tx) -> tuple[StudyRow, int]:
            row = ledger.locked(tx, self.id)
            rows = tx.told_by(self.id, worker) if worker is not None else [tx.trial(self.id, trial or 0)]
            if rows == [None]:
                raise TrialNotFound(f"study {self.id} has no trial t_{trial}; its newest is t_{row.trials}")
            taken = [r for r in rows if r is not None and r.seq is not None and not r.invalid]
            if taken and worker is None and self.space.size is not None:
                name = f"t_{trial}"
                copies = [r for r in tx.told(self.id, taken[0].seq or 0, row.seq) if r.source == REUSED]
                taken += [r for r in copies if not r.invalid and json.loads(r.extra or "{}").get("reused") == name]
            if not taken:
                if worker is None:
                    raise StudyStateError(f"t_{trial} has no result to take back")
                return row, 0
            for item in taken:
                item.invalid = True
                tx.put_trial(item)
            first = min(item.seq or 0 for item in taken)
            safe = next((s.step for s in tx.steps(self.id, 0, row.step) if s.upto_seq >= first), row.step)
            kept = [
                tx.snapshot(self.id, row.epoch, step) for step in tx.snapshot_steps(self.id, row.epoch) if step <= safe
            ]
            row.epoch += 1
            row.used = max(0, row.used - sum(ledger.spent(item) for item in taken))
            row.late = max(0, row.late - sum(item.state in (SUPERSEDED, CANCELLED) for item in taken))
            for snapshot in kept:
                if snapshot is not None:
                    tx.insert_snapshot(replace(snapshot, epoch=row.epoch))
            tx.keep_snapshots(self.id, row.epoch, tx.snapshot_steps(self.id, row.epoch))
            tx.put_digests(self.id, [(step, None) for step in range(safe, row.step)])
            best = tx.best(self.id, self.maximize)
            row.best_trial, row.best_value = (best.number, best.value) if best else (None, None)
            numbers = [item.number for item in taken]
            ledger.log_event(tx, row, "trials.invalidated", now, trials=numbers, worker=worker, epoch=row.epoch)
            tx.put_study(row)
            return row, len(taken)

        self._row, count = yield from write(work, long=True)
        if count:
            yield from self._redigest()
        return count

    def _redigest(self) -> Steps[None]:
        """Recompute and write the digests of the steps whose history was rewritten."""
        self.stuck = self.stored.obstacle
        row = yield from self.row()
        records = yield from read(lambda tx: tx.steps(self.id, 0, row.step))
        first = next((record.step for record in records if record.digest is None), None)
        if first is None:
            return
        try:
            replayed = yield from self._replayed(row, first)
        except AlgorithmChanged:
            return  # the result is taken back; only the release that computed the steps can compute their new digests
        digests = [(record.step, digest) for record, _, digest in replayed]

        def work(tx: Tx) -> bool:
            current = ledger.locked(tx, self.id)
            if current.epoch != row.epoch:
                return False
            tx.put_digests(self.id, digests)
            return True

        yield from write(work, long=True)

    def fork(
        self, name: str, *, now: float, step: int | None = None, algorithm: Mapping[str, Any] | None = None
    ) -> Steps[StudyHead]:
        """A new study that shares this one's past up to a step.

        The same algorithm keeps state, noise key and log, and continues with a noise stream of its own. Another
        algorithm starts anew: the parent's results enter as points that it did not choose (lane < 0). So does the same
        algorithm if this release cannot compute the state at that step; `Resolved.reason` then says what had to change.

        Parameters
        ----------
        name : of the new study.
        step : where to branch. None: the open step.
        algorithm : name and options of another algorithm, as in a spec. None: the same.

        Raises
        ------
        InvalidInput
            If the step is out of range, or the new spec cannot be used.
        StudySpecMismatch
            If a study of that name exists.
        TooLarge
            If the points of recipes would take too much memory as numbers.
        """
        row = yield from self.row()
        at = row.step if step is None else step
        if not 0 <= at <= row.step:
            raise InvalidInput(f"step must be between 0 and {row.step}, got {at}", hint="leave it out to fork now")
        changes: dict[str, Any] = {"name": name}
        words: list[str] = []
        if algorithm is None and not (yield from self._computes(row, at)):
            algorithm, words = self._of_today()
        if algorithm is not None:
            changes["algorithm"] = algorithm
        spec = parse_spec({**self.spec.model_dump(mode="json"), **changes})
        resolved = self.resolved.model_copy(update={"spec": spec}) if algorithm is None else resolve(spec)[0]
        rebuilt: dict[int, bytes] = {}
        snapshot: SnapshotRow | None = None
        if algorithm is None:
            newest = yield from self._newest(row, at)
            snapshot = None if newest is None else newest[0]
        elif self.traits.encoding == "recipe" or self.stored.cls is None:
            rebuilt, n_lost = yield from self._rebuilt(row)
            if n_lost:
                words.append(f"{n_lost} results are left out, whose points this release cannot build from recipes")
        if words:
            resolved = resolved.model_copy(update={"reason": "; ".join(filter(None, [resolved.reason, *words]))})
        head = new_head(self.head.project, resolved, spec_hash(spec), now, parent=self.id)
        stream = 1 + int.from_bytes(hashlib.sha256(head.id.encode()).digest()[:4], "little")

        def work(tx: Tx) -> StudyHead:
            if tx.find(head.project, name) is not None:
                raise StudySpecMismatch(f'a study named "{name}" exists', hint="choose another name")
            own = None if algorithm is not None else stream
            history.copy(tx, self.id, head, at, own, row, self.maximize, rebuilt, snapshot)
            return head

        return (yield from write(work, long=True))

    def _computes(self, row: StudyRow, step: int) -> Steps[bool]:
        """Whether this release can compute the state at a step."""
        if not self.stored.revised or self.stored.obstacle:
            return not self.stored.obstacle
        try:
            yield from self._state_at(row, step)
        except AlgorithmChanged:
            return False
        return True

    def _of_today(self) -> tuple[dict[str, Any], list[str]]:
        """The study's algorithm in this release with the options people wrote, and sentences on what differs."""
        name, options = self.resolved.algorithm, self.spec.algorithm.options
        dropped: tuple[str, ...] = ()
        if self.stored.cls is not None:
            options, dropped = known_options(self.stored.cls.Options, options)
        words = [self.stored.obstacle or self.stored.revised, "the results of its parent are told to it anew"]
        return {"name": name, "options": options}, words + [f'the option "{option}" was dropped' for option in dropped]

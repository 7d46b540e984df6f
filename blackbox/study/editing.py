"""What people do to a study: make, pause, edit and end it, enqueue and withdraw points, take results back, fork."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from blackbox.errors import InvalidInput, StudySpecMismatch, StudyStateError, TrialNotFound
from blackbox.study import history, leases
from blackbox.study.effects import Steps, read, write
from blackbox.study.reading import Reading, plain
from blackbox.study.rows import (
    ACTIVE,
    CANCELLED,
    COMPLETED,
    FAILED,
    OPEN_STATES,
    PAUSED,
    QUEUED,
    PointRow,
    StudyHead,
    StudyRow,
    TrialRow,
    Tx,
)
from blackbox.study.spec import Budget, LeaseDefaults, Parallelism, Resolved, parse_spec, resolve, spec_hash


def new_head(project: str, resolved: Resolved, hashed: str, now: float, parent: str | None = None) -> StudyHead:
    study, secret = _identifier(now, secrets.token_bytes(10)), secrets.token_bytes(16)
    return StudyHead(study, project, resolved.spec.name, resolved.model_dump_json(), hashed, secret, now, parent)


def _identifier(now: float, random: bytes) -> str:
    """`st_` and 18 characters of lower-case base32hex: 8 of time in milliseconds (so ids sort by age), 10 of chance."""
    digits = "0123456789abcdefghijklmnopqrstuv"
    number = (int(now * 1000) & (2**40 - 1)) << 50 | int.from_bytes(random, "big") & (2**50 - 1)
    return "st_" + "".join(digits[number >> 5 * i & 31] for i in reversed(range(18)))


class Editing(Reading):
    """An opened study and what people do to it."""

    # Its own state ----------------------------------------------------------------------------------------------------

    def _transition(
        self, state: str, reason: str | None, now: float, allowed: Sequence[str] = (ACTIVE,)
    ) -> Steps[StudyRow]:
        def work(tx: Tx) -> StudyRow:
            row = leases.locked(tx, self.id)
            if row.state == state:
                return row
            if row.state not in allowed:
                raise StudyStateError(
                    f"the study is {row.state}; this needs {' or '.join(allowed)}",
                    hint="GET the study to see its state and reason",
                )
            row.state, row.reason = state, reason
            if state == CANCELLED:
                for trial in tx.open_trials(self.id):
                    leases.change_trial(tx, row, trial.number, _cancelled)
            word = "resumed" if state == ACTIVE else state.lower()
            leases.log_event(tx, row, f"study.{word}", now, reason=reason)
            tx.put_study(row)
            return row

        row = self._row = yield from write(work)
        return row

    def pause(self, *, now: float, reason: str = "by request") -> Steps[StudyRow]:
        """Hand out nothing; take every result."""
        return self._transition(PAUSED, reason, now)

    def resume(self, *, now: float) -> Steps[StudyRow]:
        """Go on after a pause or a failure (whose last step is told again)."""
        return self._transition(ACTIVE, None, now, (PAUSED, FAILED))

    def complete(self, *, now: float) -> Steps[StudyRow]:
        """End the study; results that are out are still taken."""
        return self._transition(COMPLETED, "by request", now, (ACTIVE, PAUSED, FAILED))

    def cancel(self, *, now: float) -> Steps[StudyRow]:
        """End the study and cancel what is out."""
        return self._transition(CANCELLED, "by request", now, (ACTIVE, PAUSED, FAILED))

    def edit(
        self,
        *,
        budget: Budget | None = None,
        labels: dict[str, str] | None = None,
        lease: LeaseDefaults | None = None,
        parallelism: Parallelism | None = None,
    ) -> Steps[StudyHead]:
        """Change the budget, the labels, how long leases run or how many. What is given replaces what was there.

        A completed study whose budget grew is active again. Leases that are out keep their time. The hash stays that of
        the spec as created, so that the script that created the study still finds it.
        """
        asked = {"budget": budget, "labels": labels, "lease": lease, "parallelism": parallelism}
        changes = {name: part for name, part in asked.items() if part is not None}
        spec = self.spec.model_copy(update=changes)
        resolved = self.resolved.model_copy(update={"spec": spec})
        head = replace(self.head, resolved=resolved.model_dump_json())

        def work(tx: Tx) -> StudyRow:
            row = leases.locked(tx, self.id)
            tx.put_head(head)
            limit = spec.budget.evaluations
            if row.state == COMPLETED and row.reason == "budget" and (limit is None or row.used < limit):
                row.state, row.reason = ACTIVE, None
            tx.put_study(row)
            return row

        self._row = yield from write(work)
        self.head, self.resolved, self.spec = head, resolved, spec
        return head

    def _end(self, state: str, reason: str, now: float) -> Steps[None]:
        """Pause or fail a study from inside an operation. One that has ended meanwhile is left as it is: what was told
        is stored, so the operation must not fail for that."""

        def work(tx: Tx) -> StudyRow:
            row = leases.locked(tx, self.id)
            leases.finish(tx, row, state, reason, now)
            tx.put_study(row)
            return row

        self._row = yield from write(work)

    # Trials -----------------------------------------------------------------------------------------------------------

    def enqueue(self, params: Sequence[Mapping[str, Any]], *, now: float) -> Steps[list[int]]:
        """Put given points in the queue; they are handed out before anything else. Returns their numbers."""
        vectors = [self.space.encode(item).astype("<f8").tobytes() for item in params]
        texts = [json.dumps(plain(item)) for item in params]

        def work(tx: Tx) -> tuple[StudyRow, list[int]]:
            row = leases.locked(tx, self.id)
            if row.state not in (ACTIVE, PAUSED):
                raise StudyStateError(f"the study is {row.state}; points can be enqueued while it is ACTIVE or PAUSED")
            trials, points = [], []
            for vector, text in zip(vectors, texts, strict=True):
                row.trials += 1
                trials.append(TrialRow(self.id, row.trials, row.step, -row.trials, asked_at=now, source="enqueued"))
                points.append(PointRow(self.id, row.trials, vector, None, text))
            if trials:
                tx.insert_trials(trials, points)
            row.queued += len(trials)
            tx.put_study(row)
            return row, [trial.number for trial in trials]

        self._row, numbers = yield from write(work)
        return numbers

    def cancel_trial(self, number: int, *, now: float) -> Steps[TrialRow]:
        """Withdraw an open trial; its holder is told to abandon it at the next heartbeat."""

        def change(trial: TrialRow) -> None:
            if trial.state not in OPEN_STATES:
                raise StudyStateError(f"t_{number} is {trial.state}; only queued or leased trials can be cancelled")
            _cancelled(trial)

        return self._change(number, change)

    def requeue_trial(self, number: int, *, now: float) -> Steps[TrialRow]:
        """Run a trial again that is leased, lost, failed or withdrawn, and has no value."""

        def change(trial: TrialRow) -> None:
            if trial.value is not None or trial.seq is not None:
                raise StudyStateError(
                    f"t_{number} is {trial.state} and has a result in the log",
                    hint="enqueue its params to evaluate the same point again",
                )
            trial.state, trial.until, trial.worker, trial.ask_key = QUEUED, None, None, None

        return self._change(number, change)

    def _change(self, number: int, change: Callable[[TrialRow], None]) -> Steps[TrialRow]:
        def work(tx: Tx) -> tuple[StudyRow, TrialRow]:
            row = leases.locked(tx, self.id)
            trial = leases.change_trial(tx, row, number, change)
            row.asks += 1
            tx.put_study(row)
            return row, trial

        self._row, trial = yield from write(work)
        return trial

    # History ----------------------------------------------------------------------------------------------------------

    def invalidate(self, *, trial: int | None = None, worker: str | None = None, now: float) -> Steps[int]:
        """Take back one result, or all of a worker: the state becomes that of a replay without them.

        Snapshots after the first of them are deleted, the epoch grows, and the digests of the recorded steps are
        written anew. Points that the results once influenced stay, as points. Returns how many were taken back.
        """

        def work(tx: Tx) -> tuple[StudyRow, int]:
            row = leases.locked(tx, self.id)
            rows = tx.told_by(self.id, worker) if worker is not None else [tx.trial(self.id, trial or 0)]
            if rows == [None]:
                raise TrialNotFound(f"study {self.id} has no trial t_{trial}; its newest is t_{row.trials}")
            taken = [r for r in rows if r is not None and r.seq is not None and not r.invalid]
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
            row.used = max(0, row.used - sum(item.lane >= 0 or item.source == "enqueued" for item in taken))
            for snapshot in kept:
                if snapshot is not None:
                    tx.insert_snapshot(replace(snapshot, epoch=row.epoch))
            tx.keep_snapshots(self.id, row.epoch, tx.snapshot_steps(self.id, row.epoch))
            tx.put_digests(self.id, [(step, None) for step in range(safe, row.step)])
            best = tx.best(self.id, self.maximize)
            row.best_trial, row.best_value = (best.number, best.value) if best else (None, None)
            numbers = [item.number for item in taken]
            leases.log_event(tx, row, "trials.invalidated", now, trials=numbers, worker=worker, epoch=row.epoch)
            tx.put_study(row)
            return row, len(taken)

        self._row, count = yield from write(work, long=True)
        if count:
            yield from self._redigest()
        return count

    def _redigest(self) -> Steps[None]:
        """Write the digests of the steps whose history was rewritten."""
        row = yield from self.row()
        digests: list[tuple[int, str | None]] = []
        records = yield from read(lambda tx: tx.steps(self.id, 0, row.step))
        first = next((record.step for record in records if record.digest is None), None)
        if first is None:
            return
        for record, _, digest in (yield from self._replayed(row, first)):
            digests.append((record.step, digest))

        def work(tx: Tx) -> bool:
            current = leases.locked(tx, self.id)
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
        algorithm starts fresh: the parent's results enter as points it did not choose (lane < 0).
        """
        row = yield from self.row()
        at = row.step if step is None else step
        if not 0 <= at <= row.step:
            raise InvalidInput(f"step must be between 0 and {row.step}, got {at}", hint="leave it out to fork now")
        changes: dict[str, Any] = {"name": name}
        if algorithm is not None:
            changes["algorithm"] = algorithm
        spec = parse_spec({**self.spec.model_dump(mode="json"), **changes})
        resolved = self.resolved.model_copy(update={"spec": spec}) if algorithm is None else resolve(spec)[0]
        head = new_head(self.head.project, resolved, spec_hash(spec), now, parent=self.id)
        stream = 1 + int.from_bytes(hashlib.sha256(head.id.encode()).digest()[:4], "little")
        rebuilt: dict[int, bytes] = {}
        if algorithm is not None and self.traits.encoding == "recipe":
            rebuilt = yield from self._rebuilt(row)

        def work(tx: Tx) -> StudyHead:
            if tx.find(head.project, name) is not None:
                raise StudySpecMismatch(f'a study named "{name}" exists', hint="choose another name")
            history.copy(tx, self.id, head, at, None if algorithm is not None else stream, row, self.maximize, rebuilt)
            return head

        return (yield from write(work, long=True))


def _cancelled(trial: TrialRow) -> None:
    trial.state, trial.until = CANCELLED, None

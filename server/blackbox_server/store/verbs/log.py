"""Rows of the log beside the trials: closed steps, events, late values; and its caches: snapshots and blobs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from blackbox.study.memory import steps_with_bases
from blackbox.study.rows import EventRow, LateRow, SnapshotRow, StepRow
from blackbox_server.store.verbs.base import Verbs, arguments, columns, insert, no_nan, upsert

INSERT_STEP, STEP_ARGUMENTS = insert("steps", StepRow), arguments(StepRow)
PUT_DIGEST = "UPDATE steps SET digest = ? WHERE study = ? AND step = ?"
STEPS = f"SELECT {columns(StepRow)} FROM steps WHERE study = ? AND step >= ? AND step < ? ORDER BY step"
STEPS_LOGGED = f"SELECT {columns(StepRow)} FROM steps WHERE study = ? AND seq > ? ORDER BY seq LIMIT ?"
INSERT_EVENT, EVENT_ARGUMENTS = insert("events", EventRow), arguments(EventRow)
EVENTS = f"SELECT {columns(EventRow)} FROM events WHERE study = ? AND seq > ? ORDER BY seq LIMIT ?"
INSERT_LATE, LATE_ARGUMENTS = insert("late", LateRow), arguments(LateRow)
LATE = f"SELECT {columns(LateRow)} FROM late WHERE study = ? AND seq > ? ORDER BY seq LIMIT ?"


PUT_SNAPSHOT, SNAPSHOT_ARGUMENTS = upsert("snapshots", SnapshotRow, "study, epoch, step"), arguments(SnapshotRow)
SNAPSHOT = (
    f"SELECT {columns(SnapshotRow)} FROM snapshots WHERE study = ? AND epoch = ? AND step <= ?"
    " ORDER BY step DESC LIMIT 1"
)
SNAPSHOT_PLACES = "SELECT epoch, step FROM snapshots WHERE study = ? ORDER BY epoch, step"
DELETE_SNAPSHOT = "DELETE FROM snapshots WHERE study = ? AND epoch = ? AND step = ?"
# A digest names its content, so a second put only moves it to the newer step.
PUT_BLOB = (
    "INSERT INTO blobs (study, digest, step, content) VALUES (?, ?, ?, ?)"
    " ON CONFLICT (study, digest) DO UPDATE SET step = excluded.step WHERE step <> excluded.step"
)
BLOB = "SELECT content FROM blobs WHERE study = ? AND digest = ?"
BLOB_AT = "SELECT digest, content FROM blobs WHERE study = ? AND step = ? LIMIT 1"
BLOB_STEPS = "SELECT DISTINCT step FROM blobs WHERE study = ?"
DELETE_BLOB = "DELETE FROM blobs WHERE study = ? AND step = ?"


class LogVerbs(Verbs):
    """Verbs of `Tx` about the log and its caches."""

    def insert_steps(self, rows: Sequence[StepRow]) -> None:
        if rows:
            what = f"step {rows[0].step} or one closed with it is in the log"
            self._add(INSERT_STEP, [STEP_ARGUMENTS(row) for row in rows], rows[0].study, what)

    def put_digests(self, study: str, digests: Sequence[tuple[int, str | None]]) -> None:
        self.connection.executemany(PUT_DIGEST, [(digest, study, step) for step, digest in digests])

    def steps(self, study: str, from_step: int, before_step: int) -> list[StepRow]:
        return [StepRow(*row) for row in self._execute(STEPS, (study, from_step, before_step))]

    def steps_logged(self, study: str, after_seq: int, limit: int) -> list[StepRow]:
        return [StepRow(*row) for row in self._execute(STEPS_LOGGED, (study, after_seq, limit))]

    def insert_event(self, row: EventRow) -> None:
        self._add(INSERT_EVENT, [EVENT_ARGUMENTS(row)], row.study, f"event {row.seq} is in the log")

    def events(self, study: str, after_seq: int, limit: int) -> list[EventRow]:
        return [EventRow(*row) for row in self._execute(EVENTS, (study, after_seq, limit))]

    def insert_late(self, row: LateRow) -> None:
        no_nan(row.value)
        self._add(INSERT_LATE, [LATE_ARGUMENTS(row)], row.study, f"late value {row.seq} is in the log")

    def late(self, study: str, after_seq: int, limit: int) -> list[LateRow]:
        return [LateRow(*row) for row in self._execute(LATE, (study, after_seq, limit))]

    # caches and large things

    def insert_snapshot(self, row: SnapshotRow) -> None:
        self._add(PUT_SNAPSHOT, [SNAPSHOT_ARGUMENTS(row)], row.study, "")

    def snapshot(self, study: str, epoch: int, upto_step: int) -> SnapshotRow | None:
        found = self._execute(SNAPSHOT, (study, epoch, upto_step)).fetchone()
        return SnapshotRow(*found) if found else None

    def keep_snapshots(self, study: str, epoch: int, steps: Iterable[int]) -> None:
        kept = {(epoch, step) for step in steps}
        places = self._execute(SNAPSHOT_PLACES, (study,)).fetchall()
        self.connection.executemany(DELETE_SNAPSHOT, [(study, *place) for place in places if place not in kept])

    def snapshot_steps(self, study: str, epoch: int) -> list[int]:
        return [step for e, step in self._execute(SNAPSHOT_PLACES, (study,)) if e == epoch]

    def put_blob(self, study: str, digest: str, step: int, content: bytes) -> None:
        self._add(PUT_BLOB, [(study, digest, step, content)], study, "")

    def blob(self, study: str, digest: str) -> bytes | None:
        found = self._execute(BLOB, (study, digest)).fetchone()
        return found[0] if found else None

    def blob_at(self, study: str, step: int) -> tuple[str, bytes] | None:
        found = self._execute(BLOB_AT, (study, step)).fetchone()
        return (found[0], found[1]) if found else None

    def drop_blobs(self, study: str, before_step: int, keep: Iterable[int]) -> None:
        steps = {step for (step,) in self._execute(BLOB_STEPS, (study,))}
        gone = steps - steps_with_bases(steps, keep)
        self.connection.executemany(DELETE_BLOB, [(study, step) for step in sorted(gone) if step < before_step])

"""The memory store: the contract of `rows` over dictionaries, for one process.

It is one file because it is read beside the contract, verb by verb.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from typing import Any, TypeVar

from blackbox.errors import Conflict
from blackbox.study.rows import (
    LEASED,
    OPEN_STATES,
    QUEUED,
    SUPERSEDED,
    VALUED,
    ContributionRow,
    EventRow,
    Group,
    InterimRow,
    KeyRow,
    LateRow,
    MemberRow,
    PointRow,
    ReplyRow,
    SnapshotRow,
    StepRow,
    StudyHead,
    StudyRow,
    TrialRow,
    Tx,
    UpdateRow,
)

T = TypeVar("T")


@dataclass
class _Tables:
    """All rows of one study."""

    head: StudyHead
    row: StudyRow
    trials: list[TrialRow] = field(default_factory=list)
    """Trial number k is at k - 1."""
    points: list[PointRow] = field(default_factory=list)
    open: dict[int, TrialRow] = field(default_factory=dict)
    withdrawn: dict[int, float] = field(default_factory=dict)
    """End of the lease by number, of superseded trials without a result."""
    lanes: dict[int, set[tuple[int, int]]] = field(default_factory=dict)
    """(lane, replicate) by step."""
    log: list[int] = field(default_factory=list)
    """Numbers of told trials in order of seq; `log_seqs` holds the seqs."""
    log_seqs: list[int] = field(default_factory=list)
    steps: list[StepRow] = field(default_factory=list)
    events: list[EventRow] = field(default_factory=list)
    late: list[LateRow] = field(default_factory=list)
    interim: dict[int, list[InterimRow]] = field(default_factory=dict)
    """By number of the trial, in order of attempt and step."""
    snapshots: dict[tuple[int, int], SnapshotRow] = field(default_factory=dict)
    blobs: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    members: dict[str, MemberRow] = field(default_factory=dict)
    contributions: dict[int, ContributionRow] = field(default_factory=dict)
    """By seq."""
    contributed: dict[tuple[str, int, str], int] = field(default_factory=dict)
    """Seq by (client, round, phase)."""
    updates: dict[int, UpdateRow] = field(default_factory=dict)


_study_values = attrgetter(*(f.name for f in fields(StudyRow)))
_trial_values = attrgetter(*(f.name for f in fields(TrialRow)))


def _study(row: StudyRow) -> StudyRow:
    """A copy; ten times faster than `dataclasses.replace`, and every verb makes one."""
    return StudyRow(*_study_values(row))


def _trial(row: TrialRow) -> TrialRow:
    return TrialRow(*_trial_values(row))


def steps_with_bases(stored: Iterable[int], wanted: Iterable[int]) -> set[int]:
    """The steps among `stored` whose base vector a wanted step names: that step itself, or the next stored one."""
    steps = sorted(stored)
    places = (bisect.bisect_left(steps, step) for step in wanted)
    return {steps[i] for i in places if i < len(steps)}


class MemoryStore:
    """A store in the memory of this process, lost when it ends. The reference for the meaning of the verbs of `Tx`."""

    def __init__(self, tx: _MemoryTx | None = None) -> None:
        self._lock = threading.RLock()
        self._tx = tx or _MemoryTx()
        self._writing = False

    def __reduce__(self) -> tuple[type[MemoryStore], tuple[_MemoryTx]]:
        return MemoryStore, (self._tx,)

    def write(self, work: Callable[[Tx], T]) -> T:
        """Run a work; all it did is undone if it raises. A work that calls this again is a `RuntimeError`."""
        with self._lock:
            if self._writing:
                raise RuntimeError("a work called store.write; use the transaction it was given")
            self._writing = True
            try:
                return work(self._tx)
            except BaseException:
                for step in reversed(self._tx.undo):
                    step()
                raise
            finally:
                self._tx.undo.clear()
                self._writing = False

    def read(self, work: Callable[[Tx], T]) -> T:
        with self._lock:
            return work(self._tx)

    def try_begin(self, again: bool = True, *, wait: bool = True) -> Group:
        """A group of works; always possible here."""
        return _MemoryGroup(self)

    def close(self) -> None:
        """Nothing to do."""


class _MemoryTx:
    """`Tx` over dictionaries. Every change appends its inverse to `undo`."""

    def __init__(self) -> None:
        self.undo: list[Callable[[], object]] = []
        self._studies: dict[str, _Tables] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._keys: dict[str, KeyRow] = {}
        self._replies: dict[tuple[str, str], ReplyRow] = {}

    def _set(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        if key in table:
            old = table[key]
            self.undo.append(lambda: table.__setitem__(key, old))
        else:
            self.undo.append(lambda: table.pop(key, None))
        table[key] = value

    def _delete(self, table: dict[Any, Any], key: Any) -> None:
        if key in table:
            old = table.pop(key)
            self.undo.append(lambda: table.__setitem__(key, old))

    def _insert(self, table: list[Any], at: int, item: Any) -> None:
        self.undo.append(lambda: table.__delitem__(at))
        table.insert(at, item)

    def _remove(self, table: list[Any], at: int) -> None:
        item = table.pop(at)
        self.undo.append(lambda: table.insert(at, item))

    def _append(self, table: list[Any], *items: Any) -> None:
        size = len(table)
        self.undo.append(lambda: table.__delitem__(slice(size, None)))
        table.extend(items)

    # studies

    def insert_study(self, head: StudyHead, row: StudyRow) -> None:
        if head.id in self._studies or (head.project, head.name) in self._names:
            raise Conflict(f'a study named "{head.name}" exists')
        self._set(self._studies, head.id, _Tables(head, _study(row)))
        self._set(self._names, (head.project, head.name), head.id)

    def study(self, study: str) -> StudyRow | None:
        tables = self._studies.get(study)
        return _study(tables.row) if tables else None

    def put_study(self, row: StudyRow) -> None:
        tables = self._studies[row.id]
        old = tables.row
        self.undo.append(lambda: setattr(tables, "row", old))
        tables.row = _study(row)

    def head(self, study: str) -> StudyHead | None:
        tables = self._studies.get(study)
        return tables.head if tables else None

    def put_head(self, head: StudyHead) -> None:
        tables = self._studies[head.id]
        old = tables.head
        if old.name != head.name or old.project != head.project:
            raise Conflict("a study's name and project do not change")
        self.undo.append(lambda: setattr(tables, "head", old))
        tables.head = head

    def find(self, project: str, name: str) -> StudyHead | None:
        study = self._names.get((project, name))
        return self._studies[study].head if study else None

    def studies(self, project: str | None, after: str, limit: int) -> list[tuple[StudyHead, StudyRow]]:
        ids = sorted(i for i, t in self._studies.items() if i > after and project in (None, t.head.project))
        return [(self._studies[i].head, _study(self._studies[i].row)) for i in ids[:limit]]

    def delete_study(self, study: str) -> None:
        tables = self._studies[study]
        self._delete(self._names, (tables.head.project, tables.head.name))
        self._delete(self._studies, study)

    # trials

    def insert_trials(self, trials: Sequence[TrialRow], points: Sequence[PointRow]) -> None:
        if not trials:
            return
        tables = self._studies[trials[0].study]
        if trials[0].number <= len(tables.trials):
            raise Conflict(f"trial {trials[0].number} exists")
        places = {(trial.step, trial.lane, trial.replicate) for trial in trials}
        for step, lane, replicate in places:
            if (lane, replicate) in tables.lanes.get(step, ()):
                raise Conflict(f"step {step}, lane {lane}, replicate {replicate} exists")
        if len(places) < len(trials):
            raise Conflict("two of the trials have the same step, lane and replicate")
        for step, *place in places:
            used = tables.lanes.setdefault(step, set())
            used.add((place[0], place[1]))
            self.undo.append(lambda used=used, place=(place[0], place[1]): used.discard(place))  # type: ignore[misc]
        own = [_trial(trial) for trial in trials]
        self._append(tables.trials, *own)
        self._append(tables.points, *points)
        for trial in own:
            self._index(tables, None, trial)

    def _index(self, tables: _Tables, old: TrialRow | None, new: TrialRow) -> None:
        if new.state in OPEN_STATES:
            self._set(tables.open, new.number, new)
        else:
            self._delete(tables.open, new.number)
        if new.state == SUPERSEDED and new.seq is None and new.until is not None:
            self._set(tables.withdrawn, new.number, new.until)
        elif new.number in tables.withdrawn:
            self._delete(tables.withdrawn, new.number)
        told = None if old is None else old.seq
        if told is not None and told != new.seq:
            at = bisect.bisect_left(tables.log_seqs, told)
            self._remove(tables.log, at)
            self._remove(tables.log_seqs, at)
        if new.seq is not None and told != new.seq:
            at = bisect.bisect_left(tables.log_seqs, new.seq)  # the results of one tell are not put in their order
            self._insert(tables.log, at, new.number)
            self._insert(tables.log_seqs, at, new.seq)

    def trial(self, study: str, number: int) -> TrialRow | None:
        trials = self._studies[study].trials
        return _trial(trials[number - 1]) if 1 <= number <= len(trials) else None

    def trials(self, study: str, numbers: Sequence[int]) -> dict[int, TrialRow]:
        found = {number: self.trial(study, number) for number in numbers}
        return {number: trial for number, trial in found.items() if trial is not None}

    def put_trials(self, rows: Sequence[TrialRow]) -> None:
        for row in rows:
            self.put_trial(row)

    def put_leased(self, rows: Sequence[TrialRow]) -> bool:
        for row in rows:
            old = self.trial(row.study, row.number)
            if old is None or (old.state, old.attempt) != (LEASED, row.attempt):
                return False
            self.put_trial(row)
        return True

    def put_trial(self, row: TrialRow) -> None:
        tables = self._studies[row.study]
        if not 1 <= row.number <= len(tables.trials):
            raise KeyError(row.number)
        own, old = _trial(row), tables.trials[row.number - 1]
        self.undo.append(lambda: tables.trials.__setitem__(row.number - 1, old))
        tables.trials[row.number - 1] = own
        self._index(tables, old, own)

    def points(self, study: str, numbers: Sequence[int]) -> dict[int, PointRow]:
        points = self._studies[study].points
        return {number: points[number - 1] for number in numbers if 1 <= number <= len(points)}

    def _open(self, study: str, state: str) -> list[TrialRow]:
        rows = [trial for trial in self._studies[study].open.values() if trial.state == state]
        return sorted(rows, key=lambda t: t.number)

    def queued(self, study: str, limit: int) -> list[TrialRow]:
        rows = sorted(self._open(study, QUEUED), key=lambda t: (t.lane >= 0, t.number))
        return [_trial(row) for row in rows[:limit]]

    def lapsed(self, study: str, now: float, limit: int) -> list[TrialRow]:
        rows = [t for t in self._open(study, LEASED) if t.until is not None and t.until < now]
        rows.sort(key=lambda t: (t.until, t.number))
        return [_trial(row) for row in rows[:limit]]

    def open_trials(self, study: str) -> list[TrialRow]:
        rows = sorted(self._studies[study].open.values(), key=lambda t: t.number)
        return [_trial(row) for row in rows]

    def lanes_at(self, study: str, step: int) -> frozenset[int]:
        return frozenset(lane for lane, _ in self._studies[study].lanes.get(step, ()) if lane >= 0)

    def leased_under(self, study: str, ask_key: str) -> list[TrialRow]:
        return [_trial(t) for t in self._open(study, LEASED) if t.ask_key == ask_key]

    def leased_by(self, study: str, worker: str) -> list[TrialRow]:
        return [_trial(t) for t in self._open(study, LEASED) if t.worker == worker]

    def told(self, study: str, after_seq: int, upto_seq: int) -> list[TrialRow]:
        tables = self._studies[study]
        start = bisect.bisect_right(tables.log_seqs, after_seq)
        stop = bisect.bisect_right(tables.log_seqs, upto_seq)
        return [_trial(tables.trials[number - 1]) for number in tables.log[start:stop]]

    def told_by(self, study: str, worker: str) -> list[TrialRow]:
        return [_trial(t) for t in self._studies[study].trials if t.worker == worker and t.seq is not None]

    def supersede(self, study: str, queued_before: int, leased_before: int) -> tuple[int, int]:
        counts = [0, 0]
        for trial in list(self._studies[study].open.values()):
            before = queued_before if trial.state == QUEUED else leased_before
            if trial.lane >= 0 and trial.step < before:
                counts[trial.state == LEASED] += 1
                moved = _trial(trial)
                moved.state = SUPERSEDED
                self.put_trial(moved)
        return counts[0], counts[1]

    def withdrawn(self, study: str, now: float) -> int:
        return sum(until >= now for until in self._studies[study].withdrawn.values())

    def page(self, study: str, after: int, limit: int, states: Sequence[str]) -> list[TrialRow]:
        rows = self._studies[study].trials[after:]
        chosen = rows if not states else [t for t in rows if t.state in states]
        return [_trial(row) for row in chosen[:limit]]

    def best(self, study: str, maximize: bool) -> TrialRow | None:
        sign = -1.0 if maximize else 1.0
        rows = [
            t
            for t in self._studies[study].trials
            if t.value is not None and t.seq is not None and not t.invalid and t.state in VALUED
        ]
        return _trial(min(rows, key=lambda t: (sign * (t.value or 0.0), t.seq))) if rows else None

    def put_interim(self, row: InterimRow, keep: int) -> None:
        interim = self._studies[row.study].interim
        rows = [old for old in interim.get(row.number, ()) if (old.attempt, old.step) != (row.attempt, row.step)]
        rows = sorted([*rows, row], key=lambda row: (row.attempt, row.step))
        self._set(interim, row.number, rows[-keep:])

    def interim(self, study: str, number: int) -> list[InterimRow]:
        return list(self._studies[study].interim.get(number, ()))

    # the log

    def insert_steps(self, rows: Sequence[StepRow]) -> None:
        if rows:
            steps = self._studies[rows[0].study].steps
            if rows[0].step < len(steps):
                raise Conflict(f"step {rows[0].step} is in the log")
            self._append(steps, *rows)

    def put_digests(self, study: str, digests: Sequence[tuple[int, str | None]]) -> None:
        steps = self._studies[study].steps
        for step, digest in digests:
            old = steps[step]
            self.undo.append(lambda step=step, old=old: steps.__setitem__(step, old))  # type: ignore[misc]
            steps[step] = replace(old, digest=digest)

    def steps(self, study: str, from_step: int, before_step: int) -> list[StepRow]:
        return self._studies[study].steps[from_step:before_step]

    def steps_logged(self, study: str, after_seq: int, limit: int) -> list[StepRow]:
        return [row for row in self._studies[study].steps if row.seq > after_seq][:limit]

    def insert_event(self, row: EventRow) -> None:
        events = self._studies[row.study].events
        if any(row.seq == other.seq for other in events[-1:]):
            raise Conflict(f"event {row.seq} is in the log")
        self._append(events, row)

    def events(self, study: str, after_seq: int, limit: int) -> list[EventRow]:
        return [row for row in self._studies[study].events if row.seq > after_seq][:limit]

    def insert_late(self, row: LateRow) -> None:
        late = self._studies[row.study].late
        if any(row.seq == other.seq for other in late[-1:]):
            raise Conflict(f"late value {row.seq} is in the log")
        self._append(late, row)

    def late(self, study: str, after_seq: int, limit: int) -> list[LateRow]:
        return [row for row in self._studies[study].late if row.seq > after_seq][:limit]

    # caches and large things

    def insert_snapshot(self, row: SnapshotRow) -> None:
        self._set(self._studies[row.study].snapshots, (row.epoch, row.step), row)

    def snapshot(self, study: str, epoch: int, upto_step: int) -> SnapshotRow | None:
        snapshots = self._studies[study].snapshots
        steps = [step for e, step in snapshots if e == epoch and step <= upto_step]
        return snapshots[epoch, max(steps)] if steps else None

    def keep_snapshots(self, study: str, epoch: int, steps: Iterable[int]) -> None:
        snapshots = self._studies[study].snapshots
        kept = {(epoch, step) for step in steps}
        for key in [key for key in snapshots if key not in kept]:
            self._delete(snapshots, key)

    def snapshot_steps(self, study: str, epoch: int) -> list[int]:
        return sorted(step for e, step in self._studies[study].snapshots if e == epoch)

    def put_blob(self, study: str, digest: str, step: int, content: bytes) -> None:
        self._set(self._studies[study].blobs, digest, (step, content))

    def blob(self, study: str, digest: str) -> bytes | None:
        found = self._studies[study].blobs.get(digest)
        return found[1] if found else None

    def blob_at(self, study: str, step: int) -> tuple[str, bytes] | None:
        for digest, (at, content) in self._studies[study].blobs.items():
            if at == step:
                return digest, content
        return None

    def drop_blobs(self, study: str, before_step: int, keep: Iterable[int]) -> None:
        blobs = self._studies[study].blobs
        kept = steps_with_bases((step for step, _ in blobs.values()), keep)
        for digest in [d for d, (step, _) in blobs.items() if step < before_step and step not in kept]:
            self._delete(blobs, digest)

    # federated rounds

    def put_member(self, row: MemberRow) -> None:
        self._set(self._studies[row.study].members, row.client, row)

    def member(self, study: str, client: str) -> MemberRow | None:
        return self._studies[study].members.get(client)

    def members(self, study: str) -> list[MemberRow]:
        rows = [row for row in self._studies[study].members.values() if row.left_at is None]
        return sorted(rows, key=lambda row: row.client)

    def insert_contribution(self, row: ContributionRow) -> None:
        tables, place = self._studies[row.study], (row.client, row.round, row.phase)
        if place in tables.contributed or row.seq in tables.contributions:
            raise Conflict(f"{row.client} has contributed to {row.phase} of round {row.round}")
        self._set(tables.contributions, row.seq, row)
        self._set(tables.contributed, place, row.seq)

    def contribution(self, study: str, client: str, round: int, phase: str) -> ContributionRow | None:
        tables = self._studies[study]
        seq = tables.contributed.get((client, round, phase))
        return None if seq is None else tables.contributions[seq]

    def contributions(self, study: str, after_seq: int, upto_seq: int) -> list[ContributionRow]:
        rows = self._studies[study].contributions
        return [rows[seq] for seq in sorted(rows) if after_seq < seq <= upto_seq]

    def waiting_contributions(self, study: str) -> list[ContributionRow]:
        rows = self._studies[study].contributions
        return [rows[seq] for seq in sorted(rows) if rows[seq].step is None]

    def settle_contributions(self, study: str, seqs: Sequence[int], step: int, keep: bool) -> None:
        rows = self._studies[study].contributions
        for seq in seqs:
            content = rows[seq].content if keep else None
            self._set(rows, seq, replace(rows[seq], step=step, content=content))

    def insert_update(self, row: UpdateRow) -> None:
        updates = self._studies[row.study].updates
        if row.version in updates:
            raise Conflict(f"the update to version {row.version} is there")
        self._set(updates, row.version, row)

    def updates(self, study: str, after_version: int, limit: int) -> list[UpdateRow]:
        rows = self._studies[study].updates
        return [rows[version] for version in sorted(rows) if version > after_version][:limit]

    # the service's own

    def put_key(self, row: KeyRow) -> None:
        self._set(self._keys, row.id, row)

    def key(self, key_id: str) -> KeyRow | None:
        return self._keys.get(key_id)

    def keys(self, project: str | None) -> list[KeyRow]:
        rows = [row for row in self._keys.values() if project in (None, row.project)]
        return sorted(rows, key=lambda row: (row.created_at, row.id))

    def put_reply(self, row: ReplyRow) -> None:
        self._set(self._replies, (row.project, row.key), row)

    def reply(self, project: str, key: str) -> ReplyRow | None:
        return self._replies.get((project, key))

    def purge_replies(self, before: float) -> None:
        for key in [key for key, row in self._replies.items() if row.at < before]:
            self._delete(self._replies, key)


class _MemoryGroup:
    """`Group` where nothing has to reach a disk: each work is a transaction of its own."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def run(self, work: Callable[[Tx], Any]) -> tuple[Any, BaseException | None]:
        try:
            return self._store.write(work), None
        except BaseException as error:
            return None, error

    def commit(self) -> None:
        """Nothing to do."""

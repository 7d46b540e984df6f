"""Where studies live: row types, the transaction protocol, and the in-memory store.

A store runs *work*: a function of a transaction. `write` returns only when what the work did is durable, and undoes all
of it when the work raises; works of one store never interleave. `read` sees only what was committed. Every rule about
trials and leases is written once, in `study.leases` and `study.settling`, against the few row verbs of `Tx`; a store
only keeps rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

ACTIVE, PAUSED, COMPLETED, CANCELLED, FAILED = "ACTIVE", "PAUSED", "COMPLETED", "CANCELLED", "FAILED"
STUDY_STATES = (ACTIVE, PAUSED, COMPLETED, CANCELLED, FAILED)

QUEUED, LEASED = "QUEUED", "LEASED"
INFEASIBLE, STOPPED, SUPERSEDED = "INFEASIBLE", "STOPPED", "SUPERSEDED"
TRIAL_STATES = (QUEUED, LEASED, COMPLETED, INFEASIBLE, FAILED, STOPPED, SUPERSEDED, CANCELLED)
OPEN_STATES = (QUEUED, LEASED)


@dataclass(frozen=True, slots=True)
class StudyHead:
    """What never changes about a study (a fork or an edit of its budget makes a new `resolved`)."""

    id: str
    project: str
    name: str
    resolved: str
    """JSON of `spec.Resolved`; parameters in the order they were written, which is the layout of points."""
    spec_hash: str
    secret: bytes
    """Key of the lease tokens."""
    created_at: float
    parent: str | None = None
    """Id of the study this one was forked from."""


@dataclass(slots=True)
class StudyRow:
    """What changes: one small row that every ask, tell and advance updates."""

    id: str
    state: str = ACTIVE
    reason: str | None = None
    step: int = 0
    epoch: int = 0
    """Grows when history is rewritten (a result is taken back): cached states of older epochs are void."""
    seq: int = 0
    """Last number of the log. Results, step records and study events share one gap-free sequence."""
    upto_seq: int = 0
    """Results up to here have been consumed by closed steps."""
    waiting: int = 0
    """Results in the log after `upto_seq`: a step can only close when this reaches what the method needs."""
    lanes: int = 0
    """Lanes of the open step that were handed out."""
    trials: int = 0
    """Trials ever made; also the number of the newest."""
    queued: int = 0
    leased: int = 0
    used: int = 0
    """Results that count against the budget."""
    cost: float = 0.0
    best_trial: int | None = None
    best_value: float | None = None
    """As told, not sign-flipped."""
    asks: int = 0
    """Grows with every ask of a method whose asks depend on what is in flight."""
    lineage: str = "[[0,0]]"
    """JSON [[first step, noise stream], ...]: a fork appends a stream."""


@dataclass(slots=True)
class TrialRow:
    """One lane of one step in somebody's hands, without its point."""

    study: str
    number: int
    step: int
    lane: int
    replicate: int = 0
    state: str = QUEUED
    worker: str | None = None
    attempt: int = 0
    until: float | None = None
    """When the lease lapses (seconds since the epoch)."""
    ask_key: str | None = None
    asked_at: float = 0.0
    leased_at: float | None = None
    told_at: float | None = None
    failures: int = 0
    lost: int = 0
    seq: int | None = None
    """Place of its result in the log."""
    value: float | None = None
    """As told."""
    extra: str | None = None
    """JSON: what else was told (stderr, n, cost, info, error, reason)."""
    source: str | None = None
    """None: chosen by the method. Else where the point came from (enqueued, injected, a name)."""
    invalid: bool = False
    """The result was taken back."""


@dataclass(frozen=True, slots=True)
class PointRow:
    """What a trial asks: kept apart from the row that changes, because it is large and never changes."""

    study: str
    number: int
    vector: bytes | None
    """(d,) float64, little-endian; None for a recipe and a structured point."""
    recipe: str | None
    """Canonical JSON of a recipe."""
    params: str | None
    """JSON of the decoded parameters, which is all there is of a structured point; None where only the recipe is sent,
    or the point is large."""
    note: bytes = b""
    """int64, little-endian."""
    payload: str | None = None


@dataclass(frozen=True, slots=True)
class StepRow:
    """The record of a closed step: replay calls `tell` on the results in (previous upto_seq, upto_seq]."""

    study: str
    step: int
    """Step that this record closed; the state after it counts step + 1."""
    upto_seq: int
    why: str
    digest: str | None
    """`codec.digest` of the encoded state after the step."""
    seq: int
    at: float
    told: int


@dataclass(frozen=True, slots=True)
class EventRow:
    """A change of the study itself."""

    study: str
    seq: int
    type: str
    at: float
    data: str


@dataclass(frozen=True, slots=True)
class LateRow:
    """A value told for a trial that already had another one."""

    study: str
    seq: int
    number: int
    worker: str | None
    at: float
    value: float | None
    extra: str | None


@dataclass(frozen=True, slots=True)
class InterimRow:
    """A value that an evaluation reported while it was under way."""

    study: str
    number: int
    attempt: int
    step: int
    """How far the evaluation had got, in its own units: an epoch, a fold, a fraction of the simulated time."""
    value: float
    """As told."""
    at: float


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """An encoded state: a cache of the log."""

    study: str
    epoch: int
    step: int
    state: bytes


@dataclass(frozen=True, slots=True)
class MemberRow:
    """A participant of a federated study."""

    study: str
    client: str
    joined_at: float
    left_at: float | None = None


@dataclass(frozen=True, slots=True)
class ContributionRow:
    """What one participant sent for one phase of a round."""

    study: str
    seq: int
    """Its place in the log."""
    client: str
    round: int
    phase: str
    at: float
    content: bytes | None
    """`federation.Contribution.to_bytes`; None once it is closed and the study does not keep it."""
    step: int | None = None
    """The step that counted it; None while it waits for one. -1: it came too late and was not used."""


@dataclass(frozen=True, slots=True)
class UpdateRow:
    """How the common point of a federated study got to a version."""

    study: str
    version: int
    content: str
    """JSON of `federation.Update`."""


@dataclass(frozen=True, slots=True)
class KeyRow:
    """An API key: only the hash of its secret is kept."""

    id: str
    name: str
    project: str
    hash: bytes
    scopes: str
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None


@dataclass(frozen=True, slots=True)
class ReplyRow:
    """The stored answer of a POST that carried an Idempotency-Key."""

    project: str
    key: str
    request: str
    status: int
    body: str
    at: float


class Tx(Protocol):
    """Row verbs inside one transaction. Rows that come out are the caller's own copies."""

    # studies
    def insert_study(self, head: StudyHead, row: StudyRow) -> None: ...
    def study(self, study: str) -> StudyRow | None: ...
    def put_study(self, row: StudyRow) -> None: ...
    def head(self, study: str) -> StudyHead | None: ...
    def put_head(self, head: StudyHead) -> None: ...
    def find(self, project: str, name: str) -> StudyHead | None: ...
    def studies(self, project: str | None, after: str, limit: int) -> list[tuple[StudyHead, StudyRow]]: ...
    def delete_study(self, study: str) -> None: ...

    # trials
    def insert_trials(self, trials: Sequence[TrialRow], points: Sequence[PointRow]) -> None: ...
    def trial(self, study: str, number: int) -> TrialRow | None: ...
    def trials(self, study: str, numbers: Sequence[int]) -> dict[int, TrialRow]:
        """These trials by number; numbers without one are left out."""
        ...

    def put_trial(self, row: TrialRow) -> None:
        """Change a trial. Its step, lane and replicate never change; nor does its seq, once it has one."""
        ...

    def put_trials(self, rows: Sequence[TrialRow]) -> None:
        """Change several trials of one study."""
        ...

    def put_leased(self, rows: Sequence[TrialRow]) -> bool:
        """Change several trials of one study, if each is still leased for the attempt that its row says.

        After False the transaction must be undone: some may have been changed.
        """
        ...

    def points(self, study: str, numbers: Sequence[int]) -> dict[int, PointRow]:
        """The points of these trials; numbers without a trial are left out."""
        ...

    def queued(self, study: str, limit: int) -> list[TrialRow]:
        """Enqueued points (lane < 0) first, then by number."""
        ...

    def lapsed(self, study: str, now: float, limit: int) -> list[TrialRow]: ...
    def open_trials(self, study: str) -> list[TrialRow]: ...
    def lanes_at(self, study: str, step: int) -> frozenset[int]:
        """Lanes >= 0 of a step that have a trial."""
        ...

    def leased_under(self, study: str, ask_key: str) -> list[TrialRow]: ...
    def leased_by(self, study: str, worker: str) -> list[TrialRow]: ...
    def told(self, study: str, after_seq: int, upto_seq: int) -> list[TrialRow]:
        """Trials with a result in the log in (after_seq, upto_seq], by seq."""
        ...

    def told_by(self, study: str, worker: str) -> list[TrialRow]: ...
    def supersede(self, study: str, queued_before: int, leased_before: int) -> tuple[int, int]:
        """Withdraw chosen trials (lane >= 0) of older steps; returns how many were queued and leased."""
        ...

    def page(self, study: str, after: int, limit: int, states: Sequence[str]) -> list[TrialRow]: ...
    def best(self, study: str, maximize: bool) -> TrialRow | None:
        """The valid trial with the best value, by a scan: only after history was rewritten."""
        ...

    def put_interim(self, row: InterimRow, keep: int) -> None:
        """Keep an interim value, instead of one of the same attempt and step.

        Of its trial the `keep` newest, by attempt and step, stay.
        """
        ...

    def interim(self, study: str, number: int) -> list[InterimRow]:
        """The interim values of a trial, by attempt and step."""
        ...

    # the log
    def insert_steps(self, rows: Sequence[StepRow]) -> None: ...
    def put_digests(self, study: str, digests: Sequence[tuple[int, str | None]]) -> None: ...
    def steps(self, study: str, from_step: int, before_step: int) -> list[StepRow]: ...
    def steps_logged(self, study: str, after_seq: int, limit: int) -> list[StepRow]: ...
    def insert_event(self, row: EventRow) -> None: ...
    def events(self, study: str, after_seq: int, limit: int) -> list[EventRow]: ...
    def insert_late(self, row: LateRow) -> None: ...
    def late(self, study: str, after_seq: int, limit: int) -> list[LateRow]: ...

    # caches and large things
    def insert_snapshot(self, row: SnapshotRow) -> None: ...
    def snapshot(self, study: str, epoch: int, upto_step: int) -> SnapshotRow | None:
        """The newest one of an epoch at or before a step."""
        ...

    def keep_snapshots(self, study: str, epoch: int, steps: Iterable[int]) -> None:
        """Delete all snapshots of the study but these of this epoch."""
        ...

    def snapshot_steps(self, study: str, epoch: int) -> list[int]: ...
    def put_blob(self, study: str, digest: str, step: int, content: bytes) -> None:
        """Keep a vector that recipes name. `step` is a base's, or the place of a factor (`log.factor_key`)."""

    def blob(self, study: str, digest: str) -> bytes | None: ...
    def blob_at(self, study: str, step: int) -> tuple[str, bytes] | None: ...
    def drop_blobs(self, study: str, before_step: int, keep: Iterable[int]) -> None:
        """Delete base vectors last put for a step before `before_step`, but those that a step of `keep` needs.

        Steps that share a base follow one another, so a step's base is the one put for it or for the next step.
        """
        ...

    # federated rounds
    def put_member(self, row: MemberRow) -> None: ...
    def member(self, study: str, client: str) -> MemberRow | None: ...
    def members(self, study: str) -> list[MemberRow]:
        """Those who have not left, by name."""
        ...

    def insert_contribution(self, row: ContributionRow) -> None:
        """Raises `Conflict` if the client has contributed to this phase of this round."""
        ...

    def contribution(self, study: str, client: str, round: int, phase: str) -> ContributionRow | None: ...
    def contributions(self, study: str, after_seq: int, upto_seq: int) -> list[ContributionRow]:
        """Those in the log in (after_seq, upto_seq], by seq."""
        ...

    def waiting_contributions(self, study: str) -> list[ContributionRow]:
        """Those that no step has counted yet, by seq."""
        ...

    def settle_contributions(self, study: str, seqs: Sequence[int], step: int, keep: bool) -> None:
        """Say which step counted them (-1: none); without `keep` their contents are forgotten."""
        ...

    def insert_update(self, row: UpdateRow) -> None: ...
    def updates(self, study: str, after_version: int, limit: int) -> list[UpdateRow]: ...

    # the service's own
    def put_key(self, row: KeyRow) -> None: ...
    def key(self, key_id: str) -> KeyRow | None: ...
    def keys(self, project: str | None) -> list[KeyRow]:
        """Oldest first."""
        ...

    def put_reply(self, row: ReplyRow) -> None: ...
    def reply(self, project: str, key: str) -> ReplyRow | None: ...
    def purge_replies(self, before: float) -> None: ...


class Group(Protocol):
    """A transaction that several works share; it must be committed, after the last of them."""

    def run(self, work: Callable[[Tx], Any]) -> tuple[Any, BaseException | None]:
        """Run a work; its value, or why it failed, in which case what it did is undone and the others stand.

        Raises
        ------
        StoreUnavailable
            If the database failed, not the work: the group has ended, and nothing of it stands.
        """
        ...

    def commit(self) -> None:
        """Make it durable; may be called in another thread than the works were run in.

        Raises
        ------
        StoreUnavailable
        """
        ...


class Store(Protocol):
    """Runs works. See the module's docstring for what is promised. A work uses its transaction, never its store."""

    def write(self, work: Callable[[Tx], T]) -> T: ...
    def read(self, work: Callable[[Tx], T]) -> T: ...
    def try_begin(self, again: bool = True, *, wait: bool = True) -> Group | None:
        """Begin a transaction that works share, now, if possible.

        Parameters
        ----------
        again : where another program holds the database, say so by None, and not by an error: there is time to retry.
        wait : for threads of this program that are writing; else None says that one is.
        """
        ...

    def close(self) -> None: ...

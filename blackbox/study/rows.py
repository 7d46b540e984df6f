"""The contract of a store: its row types, and the protocols of a transaction, a group commit and a store.

It is one file because whoever writes a store needs all of it, and nothing else.

A store runs a *work*: a function of a transaction. `write` returns when the effects of the work are durable, and rolls
all of them back if the work raises; works of one store never interleave. `read` sees only committed rows. The rules
about trials and leases are written once, in `study.leases` and `study.settling`, against the few row verbs of `Tx`; a
store only keeps rows. Times are seconds since the epoch.
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
START, ENQUEUED = "start", "enqueued"
"""Sources of points that the algorithm did not choose and the study has evaluated."""
REUSED = "reuse"
"""Source of a trial whose value is that of an earlier trial of the same point."""
VALUED = (COMPLETED, SUPERSEDED, FAILED)
"""States in which a trial that has a value may be the best: FAILED is a timer's word, a value is evidence."""

UNTOLD = "untold"
"""Source of a random point that nobody has told, granted while the algorithm asks only for known ones."""
REPLICATE = "replicate"
"""Source of a trial by which the study itself looks for noise: its best point once more."""


@dataclass(frozen=True, slots=True)
class StudyHead:
    """The constant part of a study (only an edit of its budget or limits replaces `resolved`)."""

    id: str
    project: str
    name: str
    resolved: str
    """JSON of `spec.Resolved`; parameters in the order they were written, which is the layout of points."""
    spec_hash: str
    secret: bytes
    """Secret key of the lease tokens."""
    created_at: float
    parent: str | None = None
    """Id of the study this one was forked from."""


@dataclass(slots=True)
class StudyRow:
    """The changing part of a study: one small row that every ask, tell and advance updates."""

    id: str
    state: str = ACTIVE
    reason: str | None = None
    step: int = 0
    epoch: int = 0
    """Grows when history is rewritten (a result is taken back): cached states of older epochs are invalid."""
    seq: int = 0
    """Last number in the log. Results, step records and study events share one gap-free sequence."""
    upto_seq: int = 0
    """Results up to here have been consumed by closed steps."""
    waiting: int = 0
    """Results in the log after `upto_seq`: a step can close only if the algorithm needs no more than these."""
    lanes: int = 0
    """Number of lanes of the open step that were granted."""
    trials: int = 0
    """Number of trials so far; also the number of the newest."""
    queued: int = 0
    leased: int = 0
    used: int = 0
    """Number of evaluations that were spent, and so count against the budget: see `ledger.spend`."""
    cost: float = 0.0
    best_trial: int | None = None
    best_value: float | None = None
    """As told, not sign-flipped."""
    asks: int = 0
    """Grows with every ask and tell: points that depend on trials in flight are valid at one value of it only."""
    lineage: str = "[[0,0]]"
    """JSON [[first step, noise stream], ...]: a fork appends a stream."""
    late: int = 0
    """Number of the `used` evaluations whose results came too late to be told to the algorithm."""
    withdrawn: int = 0
    """At least the number of evaluations that are out though their step has closed; `Tx.withdrawn` counts them."""
    health: str = "{}"
    """JSON of what is counted as the log grows, so that reading `health.notices` need not look at it."""


@dataclass(slots=True)
class TrialRow:
    """The evaluation of one lane of one step, without its point."""

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
    """JSON of the other told fields (stderr, n, cost, info, error, reason)."""
    source: str | None = None
    """Origin of a point that the algorithm did not choose (start, enqueued, replicate, a name), or of its value
    (reuse)."""
    invalid: bool = False
    """The result was taken back."""


@dataclass(frozen=True, slots=True)
class PointRow:
    """The point of a trial: kept apart from `TrialRow` because it is large and never changes."""

    study: str
    number: int
    vector: bytes | None
    """(d,) float64, little-endian; None for a recipe and a structured point."""
    recipe: str | None
    """Canonical JSON of a recipe."""
    params: str | None
    """JSON of the decoded parameters, the only form of a structured point; None for recipes and large points."""
    note: bytes = b""
    """int64, little-endian."""
    payload: str | None = None


@dataclass(frozen=True, slots=True)
class StepRow:
    """The record of a closed step: replay calls `tell` on the results in (previous upto_seq, upto_seq]."""

    study: str
    step: int
    """The closed step; the state after it counts step + 1."""
    upto_seq: int
    why: str
    digest: str | None
    """`codec.digest` of the encoded state after the step."""
    seq: int
    at: float
    told: int


@dataclass(frozen=True, slots=True)
class EventRow:
    """An event of the study itself, such as a pause."""

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
    """A value that an evaluation reported before its end."""

    study: str
    number: int
    attempt: int
    step: int
    """Progress of the evaluation in its own units: an epoch, a fold, a fraction of the simulated time."""
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
    """The contribution of one participant to one phase of a round."""

    study: str
    seq: int
    """Its place in the log."""
    client: str
    round: int
    phase: str
    at: float
    content: bytes | None
    """`federation.Contribution.to_bytes`; None after its phase closed, if the study does not keep contents."""
    step: int | None = None
    """The step that used it; None while it waits for one; -1: it came too late and was not used."""


@dataclass(frozen=True, slots=True)
class UpdateRow:
    """The update that took the common point of a federated study to a version."""

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
    """Row verbs inside one transaction. Returned rows are copies that belong to the caller."""

    # studies
    def insert_study(self, head: StudyHead, row: StudyRow) -> None:
        """Raises `Conflict` if the id, or the name in the project, is taken."""

    def study(self, study: str) -> StudyRow | None:
        """The row of a study, to be changed or only read."""

    def put_study(self, row: StudyRow) -> None:
        """Replace the row of a study."""

    def head(self, study: str) -> StudyHead | None:
        """The head of a study."""

    def put_head(self, head: StudyHead) -> None:
        """Replace the head of a study; raises `Conflict` for another name or project."""

    def find(self, project: str, name: str) -> StudyHead | None:
        """The study of this name in a project."""

    def studies(self, project: str | None, after: str, limit: int) -> list[tuple[StudyHead, StudyRow]]:
        """Studies by id, with ids above `after`; project None: of all projects."""

    def delete_study(self, study: str) -> None:
        """Delete a study with all its rows."""

    # trials
    def insert_trials(self, trials: Sequence[TrialRow], points: Sequence[PointRow]) -> None:
        """Insert trials of one study with their points.

        Raises `Conflict` if a number or a (step, lane, replicate) exists.
        """

    def trial(self, study: str, number: int) -> TrialRow | None:
        """One trial."""

    def trials(self, study: str, numbers: Sequence[int]) -> dict[int, TrialRow]:
        """These trials by number; numbers without a trial are left out."""

    def put_trial(self, row: TrialRow) -> None:
        """Replace a trial. Its step, lane and replicate never change."""

    def put_trials(self, rows: Sequence[TrialRow]) -> None:
        """Replace several trials of one study."""

    def put_leased(self, rows: Sequence[TrialRow]) -> bool:
        """Replace several trials of one study, if each is still leased for the attempt in its row.

        After False the transaction must be rolled back: some may have been changed.
        """

    def points(self, study: str, numbers: Sequence[int]) -> dict[int, PointRow]:
        """The points of these trials; numbers without a trial are left out."""

    def queued(self, study: str, limit: int) -> list[TrialRow]:
        """Queued trials: enqueued points (lane < 0) first, then by number."""

    def lapsed(self, study: str, now: float, limit: int) -> list[TrialRow]:
        """Leased trials whose lease ended before `now`, the earliest first."""

    def open_trials(self, study: str) -> list[TrialRow]:
        """Queued and leased trials, by number."""

    def lanes_at(self, study: str, step: int) -> frozenset[int]:
        """Lanes >= 0 of a step that have a trial."""

    def leased_under(self, study: str, ask_key: str) -> list[TrialRow]:
        """Leased trials that were granted to an ask with this idempotency key."""

    def leased_by(self, study: str, worker: str) -> list[TrialRow]:
        """Trials leased to a worker, by number."""

    def told(self, study: str, after_seq: int, upto_seq: int) -> list[TrialRow]:
        """Trials with a result in the log in (after_seq, upto_seq], by seq."""

    def told_by(self, study: str, worker: str) -> list[TrialRow]:
        """Trials with a result in the log that this worker told."""

    def supersede(self, study: str, queued_before: int, leased_before: int) -> tuple[int, int]:
        """Withdraw open trials of lanes >= 0: queued ones of steps < `queued_before`, leased ones of < `leased_before`.

        Returns the number of queued and of leased trials withdrawn.
        """

    def withdrawn(self, study: str, now: float) -> int:
        """Number of superseded trials without a result whose lease has not lapsed."""

    def page(self, study: str, after: int, limit: int, states: Sequence[str]) -> list[TrialRow]:
        """Trials by number, with numbers above `after`; states () means all."""

    def best(self, study: str, maximize: bool) -> TrialRow | None:
        """The valid trial with the best value, by a full scan: needed only after history was rewritten."""

    def put_interim(self, row: InterimRow, keep: int) -> None:
        """Store an interim value, replacing one of the same attempt and step.

        Only the `keep` newest of the trial, by attempt and step, are kept.
        """

    def interim(self, study: str, number: int) -> list[InterimRow]:
        """The interim values of a trial, by attempt and step."""

    # the log
    def insert_steps(self, rows: Sequence[StepRow]) -> None:
        """Append step records; raises `Conflict` if a step is recorded already."""

    def put_digests(self, study: str, digests: Sequence[tuple[int, str | None]]) -> None:
        """Replace the digests of recorded steps, given as (step, digest)."""

    def steps(self, study: str, from_step: int, before_step: int) -> list[StepRow]:
        """Records of the steps from_step .. before_step - 1, in order."""

    def steps_logged(self, study: str, after_seq: int, limit: int) -> list[StepRow]:
        """Step records after a place in the log, in order."""

    def insert_event(self, row: EventRow) -> None:
        """Append an event; raises `Conflict` if its seq is taken."""

    def events(self, study: str, after_seq: int, limit: int) -> list[EventRow]:
        """Events after a place in the log, in order."""

    def insert_late(self, row: LateRow) -> None:
        """Append a late value; raises `Conflict` if its seq is taken."""

    def late(self, study: str, after_seq: int, limit: int) -> list[LateRow]:
        """Late values after a place in the log, in order."""

    # caches and large things
    def insert_snapshot(self, row: SnapshotRow) -> None:
        """Store a snapshot, replacing one of the same epoch and step."""

    def snapshot(self, study: str, epoch: int, upto_step: int) -> SnapshotRow | None:
        """The newest snapshot of an epoch at or before a step."""

    def keep_snapshots(self, study: str, epoch: int, steps: Iterable[int]) -> None:
        """Delete all snapshots of the study except those of this epoch and these steps."""

    def snapshot_steps(self, study: str, epoch: int) -> list[int]:
        """Steps of the snapshots of an epoch, ascending."""

    def put_blob(self, study: str, digest: str, step: int, content: bytes) -> None:
        """Store a vector that recipes name, under the step of a base, or `log.factor_key` of the step of a factor."""

    def blob(self, study: str, digest: str) -> bytes | None:
        """The content of a vector."""

    def blob_at(self, study: str, step: int) -> tuple[str, bytes] | None:
        """Digest and content of a vector stored under a step."""

    def drop_blobs(self, study: str, before_step: int, keep: Iterable[int]) -> None:
        """Delete vectors last stored under a step before `before_step`, except those that a step of `keep` needs.

        Steps that share a base are consecutive, so a step's base is stored under it or under a later step.
        """

    # federated rounds
    def put_member(self, row: MemberRow) -> None:
        """Insert or replace a participant."""

    def member(self, study: str, client: str) -> MemberRow | None:
        """A participant, also one that has left."""

    def members(self, study: str) -> list[MemberRow]:
        """The participants that have not left, by name."""

    def insert_contribution(self, row: ContributionRow) -> None:
        """Raises `Conflict` if the client has contributed to this phase of this round."""

    def contribution(self, study: str, client: str, round: int, phase: str) -> ContributionRow | None:
        """The contribution of a participant to a phase."""

    def contributions(self, study: str, after_seq: int, upto_seq: int) -> list[ContributionRow]:
        """Contributions with seq in (after_seq, upto_seq], by seq."""

    def waiting_contributions(self, study: str) -> list[ContributionRow]:
        """Contributions that no step has used yet, by seq."""

    def settle_contributions(self, study: str, seqs: Sequence[int], step: int, keep: bool) -> None:
        """Record which step used these contributions (-1: none); without `keep` their contents are deleted."""

    def insert_update(self, row: UpdateRow) -> None:
        """Raises `Conflict` if the version exists."""

    def updates(self, study: str, after_version: int, limit: int) -> list[UpdateRow]:
        """Updates to versions above `after_version`, in order."""

    # the service's own
    def put_key(self, row: KeyRow) -> None:
        """Insert or replace an API key."""

    def key(self, key_id: str) -> KeyRow | None:
        """An API key by its id."""

    def keys(self, project: str | None) -> list[KeyRow]:
        """API keys of a project (None: of all), the oldest first."""

    def put_reply(self, row: ReplyRow) -> None:
        """Insert or replace a stored answer."""

    def reply(self, project: str, key: str) -> ReplyRow | None:
        """The stored answer to a request with this idempotency key."""

    def purge_replies(self, before: float) -> None:
        """Delete stored answers older than a time."""


class Group(Protocol):
    """A transaction that several works share; it must be committed after the last of them."""

    def run(self, work: Callable[[Tx], Any]) -> tuple[Any, BaseException | None]:
        """Run a work; returns its value, or the exception it raised after its own changes were rolled back.

        Raises
        ------
        StoreUnavailable
            If the database failed rather than the work: the group has ended, and all of it is rolled back.
        """

    def commit(self) -> None:
        """Make the group durable; may be called from another thread than `run`.

        Raises
        ------
        StoreUnavailable
            If the database failed: nothing of the group is stored.
        """


class Store(Protocol):
    """Runs works, as the docstring of the module promises. A work uses its transaction, never the store."""

    def write(self, work: Callable[[Tx], T]) -> T:
        """Run a work, make its effects durable and return its result."""

    def read(self, work: Callable[[Tx], T]) -> T:
        """Run a work on committed rows and return its result."""

    def try_begin(self, again: bool = True, *, wait: bool = True) -> Group | None:
        """Begin a group now, if possible.

        Parameters
        ----------
        again : whether the caller will retry: then None, not an error, says that another program holds the database.
        wait : whether to wait for other threads of this program that write; otherwise None says that one does.
        """

    def close(self) -> None:
        """Release the store's resources."""

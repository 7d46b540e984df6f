"""The rules of leases, as functions of one transaction; `study.settling` has the rules of results.

Every evaluator holds a lease: a laptop, an LLM judge, a process pool, a person with curl. There is one trial table and
one state machine::

    QUEUED --grant--> LEASED --settle--> COMPLETED | INFEASIBLE | STOPPED | FAILED
       ^                |
       +-- released, retryable failure, lapsed lease (re-granted with attempt + 1)
    QUEUED at step close, LEASED once older than the method accepts --> SUPERSEDED;  cancel --> CANCELLED

A lapsed lease is reclaimed inside the grant itself, so nobody has to watch for dead workers.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from blackbox.errors import (
    BlackboxError,
    Conflict,
    LeaseUnknown,
    StudyStateError,
    TrialNotFound,
)
from blackbox.study.health import Tally
from blackbox.study.ledger import LOST, close_trial, uncount
from blackbox.study.rows import (
    CANCELLED,
    FAILED,
    LEASED,
    OPEN_STATES,
    QUEUED,
    SUPERSEDED,
    InterimRow,
    PointRow,
    StudyRow,
    TrialRow,
    Tx,
)
from blackbox.study.spec import StudySpec

Kind = Literal["group", "members", "sequential"]


@dataclass(frozen=True, slots=True)
class Lease:
    """A trial leased to a worker, its point, and the token that its result is told with."""

    trial: TrialRow
    point: PointRow
    token: str


class LeaseChanged(Conflict):
    """Leases have changed since they were read: read them again."""


def token(secret: bytes, number: int, attempt: int) -> str:
    """The lease token of an attempt: `number.attempt.mac`, checkable for old attempts without storing it."""
    mac = hashlib.blake2b(b"%d.%d" % (number, attempt), key=secret, digest_size=12).hexdigest()
    return f"{number}.{attempt}.{mac}"


def read_token(secret: bytes, text: str) -> tuple[int, int]:
    """Trial number and attempt of a token.

    Raises
    ------
    LeaseUnknown
        If the token was not made with this secret.
    """
    parts = text.split(".")
    if len(parts) == 3 and parts[0].isdecimal() and parts[1].isdecimal() and len(parts[0]) + len(parts[1]) < 30:
        number, attempt = int(parts[0]), int(parts[1])
        if hmac.compare_digest(token(secret, number, attempt).encode(), text.encode()):
            return number, attempt
    raise LeaseUnknown(
        f"the lease token {text[:60]!r} was not given out by this study",
        hint="send the `lease.token` of the ask answer unchanged",
    )


# Granting -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Claim:
    """The existing trials that an ask takes, the number of new lanes it needs, and the limit that it meets."""

    live: list[TrialRow]
    """Leases of the same request (same key) or worker (resume): granted again."""
    lapsed: list[TrialRow]
    """Leases of other workers that ran out: to be granted to this one."""
    lost: list[TrialRow]
    """Leases that lapsed once too often: FAILED."""
    stale: list[TrialRow]
    """Lapsed or queued trials of a closed step: SUPERSEDED."""
    queued: list[TrialRow]
    """Queued trials to be granted."""
    n_new: int
    """New lanes needed beside these."""
    reason: str | None
    """The limit that keeps the grant below the request, or None."""


def claim(
    tx: Tx,
    row: StudyRow,
    spec: StudySpec,
    kind: Kind,
    *,
    worker: str,
    count: int,
    now: float,
    key: str | None,
    resume: bool,
) -> Claim:
    """Decide which trials an ask takes. `apply_claim` carries it out; here only `row.withdrawn` is counted anew.

    Parameters
    ----------
    row : the study's row in this transaction.
    count : how many leases are requested.
    now : seconds since the epoch.
    key : idempotency key of the request, or None.
    resume : whether the worker's own live leases come first.
    """
    live: list[TrialRow] = []
    if key is not None:
        live = tx.leased_under(row.id, key)
        if live:
            return Claim(live, [], [], [], [], 0, None)
    if resume:
        live = tx.leased_by(row.id, worker)[:count]
    wanted = count - len(live)
    lapsed: list[TrialRow] = []
    lost: list[TrialRow] = []
    stale: list[TrialRow] = []
    for trial in tx.lapsed(row.id, now, max(64, count)) if row.leased else ():
        if any(trial.number == other.number for other in live):
            continue
        if is_stale(trial, row, kind):
            stale.append(trial)
        elif trial.lost >= spec.lease.max_lost:
            lost.append(trial)
        else:
            lapsed.append(trial)
    out = row.leased - len(lapsed) - len(lost) - len(stale)
    limits = [(spec.parallelism.max_leased - out, "parallelism_cap")]
    if spec.budget.evaluations is not None:
        left = spec.budget.evaluations - row.used - len(lost) - out
        if left - row.withdrawn < wanted and row.withdrawn:
            row.withdrawn = tx.withdrawn(row.id, now)  # some of them have lapsed, and no longer stand in the way
        limits.append((left - row.withdrawn, "budget_exhausted"))
    room, limit = min(limits)
    n = max(0, min(wanted, room))
    queued: list[TrialRow] = []
    reclaimed = lapsed[:n]
    if row.queued and n > len(reclaimed):
        for trial in tx.queued(row.id, n - len(reclaimed) + 64):
            if is_stale(trial, row, kind):
                stale.append(trial)
            elif len(queued) < n - len(reclaimed):
                queued.append(trial)
    return Claim(
        live, reclaimed, lost, stale, queued, n - len(reclaimed) - len(queued), limit if room < wanted else None
    )


def is_stale(trial: TrialRow, row: StudyRow, kind: Kind) -> bool:
    """Whether a trial that nobody holds belongs to a closed step of an algorithm that works in groups."""
    return kind == "group" and trial.lane >= 0 and trial.step < row.step


def apply_claim(
    tx: Tx, row: StudyRow, chosen: Claim, *, worker: str, now: float, seconds: float, key: str | None
) -> list[TrialRow]:
    """Carry out a claim; returns the trials now leased to the worker."""
    granted = list(chosen.live)
    n_lost = len(chosen.lost)
    if chosen.lapsed or chosen.stale:
        n_lost += sum(trial.state == LEASED for trial in (*chosen.lapsed, *chosen.stale))
    if n_lost:
        tally = Tally.take(row)
        tally.lost += n_lost
        tally.store(row)
    for trial in chosen.live:
        trial.until = max(trial.until or 0.0, now + seconds)
        tx.put_trial(trial)
    for trial in chosen.lost:
        trial.lost += 1
        trial.extra = json.dumps({"error": {"type": LOST, "message": f"{trial.lost} leases lapsed without a result"}})
        row.leased -= 1
        close_trial(row, trial, FAILED, None, now)
        tx.put_trial(trial)
    for trial in chosen.stale:
        uncount(row, trial)
        trial.state = SUPERSEDED
        tx.put_trial(trial)
    for trial in (*chosen.lapsed, *chosen.queued):
        if trial.state == LEASED:
            trial.lost += 1
        uncount(row, trial)
        lease_to(trial, worker=worker, now=now, seconds=seconds, key=key)
        row.leased += 1
        tx.put_trial(trial)
        granted.append(trial)
    return granted


def lease_to(trial: TrialRow, *, worker: str, now: float, seconds: float, key: str | None) -> None:
    """Lease a trial to a worker: the next attempt begins `now` and lapses after `seconds`."""
    trial.state, trial.worker, trial.ask_key = LEASED, worker, key
    trial.attempt += 1
    trial.leased_at, trial.until = now, now + seconds


# Renewing and taking back ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Renewal:
    """The answer to the renewal of one lease.

    Attributes
    ----------
    token : the token of the lease, as sent.
    directive : whether the worker should go on with the evaluation.
    until : when the lease lapses now (seconds since the epoch); None if abandoned.
    error : what is wrong with the token, if something is.
    """

    token: str
    directive: Literal["continue", "abandon"]
    until: float | None = None
    error: BlackboxError | None = None


def renew(tx: Tx, row: StudyRow, secret: bytes, tokens: Sequence[str], *, now: float, seconds: float) -> list[Renewal]:
    """Extend leases that are still held; answer `abandon` for trials that are closed or leased to somebody else."""
    answers = []
    for text in tokens:
        try:
            number, attempt = read_token(secret, text)
        except LeaseUnknown as error:
            answers.append(Renewal(text, "abandon", error=error))
            continue
        trial = tx.trial(row.id, number)
        if trial is None or trial.state != LEASED or trial.attempt != attempt:
            answers.append(Renewal(text, "abandon"))
            continue
        trial.until = max(trial.until or 0.0, now + seconds)
        tx.put_trial(trial)
        answers.append(Renewal(text, "continue", trial.until))
    return answers


def cancel(trial: TrialRow) -> None:
    """Withdraw an open trial; used with `change_trial`, which keeps the counters right.

    Raises
    ------
    StudyStateError
        If the trial is closed.
    """
    if trial.state not in OPEN_STATES:
        raise StudyStateError(f"t_{trial.number} is {trial.state}; only queued or leased trials can be cancelled")
    trial.state, trial.until = CANCELLED, None


def requeue(trial: TrialRow) -> None:
    """Queue a trial without a result again; used with `change_trial`, which keeps the counters right.

    Raises
    ------
    StudyStateError
        If the trial has a result.
    """
    if trial.value is not None or trial.seq is not None:
        raise StudyStateError(
            f"t_{trial.number} is {trial.state} and has a result in the log",
            hint="enqueue its params to evaluate the same point again",
        )
    trial.state, trial.until, trial.worker, trial.ask_key = QUEUED, None, None, None


INTERIM_KEPT = 100
"""Most interim values kept of one trial (the newest)."""


def report(
    tx: Tx,
    row: StudyRow,
    secret: bytes,
    text: str,
    *,
    step: int | None,
    value: float | None,
    now: float,
    seconds: float,
) -> Renewal:
    """Extend a lease and store the interim value that its holder sends along.

    Parameters
    ----------
    text : the lease token.
    step : progress of the evaluation; None: one more than its newest report. The last value of a step counts.
    value : the interim value as the user sees it; None: only extend the lease.
    """
    renewal = renew(tx, row, secret, [text], now=now, seconds=seconds)[0]
    if value is not None and renewal.directive == "continue":
        number, attempt = read_token(secret, text)
        if step is None:
            step = max((old.step for old in tx.interim(row.id, number) if old.attempt == attempt), default=-1) + 1
        tx.put_interim(InterimRow(row.id, number, attempt, step, value, now), INTERIM_KEPT)
    return renewal


def change_trial(tx: Tx, row: StudyRow, number: int, change: Callable[[TrialRow], None]) -> TrialRow:
    """Read a trial, apply `change`, write it, and keep the counters of open trials right.

    Raises
    ------
    TrialNotFound
        If there is no trial of this number.
    """
    trial = tx.trial(row.id, number)
    if trial is None:
        raise TrialNotFound(f"study {row.id} has no trial t_{number}; its newest is t_{row.trials}")
    uncount(row, trial)
    change(trial)
    if trial.state == QUEUED:
        row.queued += 1
    elif trial.state == LEASED:
        row.leased += 1
    tx.put_trial(trial)
    return trial

"""Who evaluates what: the rules of leases and tells, as functions of one transaction.

Every evaluator holds a lease: a laptop, an LLM judge, a process pool, a person with curl. There is one trial table and
one state machine::

    QUEUED --grant--> LEASED --settle--> COMPLETED | INFEASIBLE | STOPPED | FAILED
       ^                |
       +-- released, retryable failure, lapsed lease (re-granted with attempt + 1)
    QUEUED at step close, LEASED once older than the method accepts --> SUPERSEDED;  cancel --> CANCELLED

A lapsed lease is reclaimed inside the grant itself, so nobody has to watch for dead workers. A terminal transition, its
place in the log and the study's counters are one transaction, so two tells cannot both win.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from blackbox.errors import (
    BlackboxError,
    Conflict,
    FieldError,
    InvalidInput,
    LeaseUnknown,
    NonFiniteValue,
    StudyNotFound,
    TrialNotFound,
)
from blackbox.study.rows import (
    ACTIVE,
    CANCELLED,
    COMPLETED,
    FAILED,
    INFEASIBLE,
    LEASED,
    OPEN_STATES,
    QUEUED,
    STOPPED,
    SUPERSEDED,
    EventRow,
    InterimRow,
    LateRow,
    PointRow,
    StudyRow,
    TrialRow,
    Tx,
)
from blackbox.study.spec import StudySpec

Kind = Literal["group", "members", "sequential"]
Status = Literal["completed", "infeasible", "failed", "stopped", "released"]

NON_FINITE_HINT = (
    'If the point cannot be evaluated send {"status":"infeasible"}; if your evaluator broke send {"status":"failed"}; '
    'or create the study with "non_finite":"infeasible".'
)


@dataclass(frozen=True, slots=True)
class Lease:
    """A trial in somebody's hands."""

    trial: TrialRow
    point: PointRow
    token: str


@dataclass(frozen=True, slots=True)
class Report:
    """One told result, as it comes from outside.

    Attributes
    ----------
    trial : its number; None for a point the study did not choose (then `vector` and `params` are set).
    token : the lease token, or None where the study does not require it.
    value : the objective as the user sees it (not sign-flipped).
    extra : what else was told: stderr, n, cost, info, error, reason, ...
    retryable : for a failure, whether another attempt may help.
    """

    trial: int | None = None
    token: str | None = None
    status: Status = "completed"
    value: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    retryable: bool = True
    vector: bytes | None = None
    params: str | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one report: applied, injected, requeued, released, duplicate, late_recorded or rejected."""

    trial: int | None
    outcome: str
    state: str | None = None
    attempt: int | None = None
    attempts_left: int | None = None
    best_so_far: bool = False
    error: BlackboxError | None = None


def token(secret: bytes, number: int, attempt: int) -> str:
    """The lease token of an attempt: `number.attempt.mac`, checkable for old attempts without storing it."""
    mac = hashlib.blake2b(b"%d.%d" % (number, attempt), key=secret, digest_size=12).hexdigest()
    return f"{number}.{attempt}.{mac}"


def read_token(secret: bytes, text: str) -> tuple[int, int]:
    """Trial number and attempt of a token.

    Raises
    ------
    LeaseUnknown
        If it was not made with this secret.
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


def locked(tx: Tx, study: str) -> StudyRow:
    """The study's row, to be changed in this transaction."""
    row = tx.study(study)
    if row is None:
        raise StudyNotFound(f"there is no study {study}", hint="GET /v1/studies lists yours")
    return row


def log_event(tx: Tx, row: StudyRow, kind: str, now: float, **facts: Any) -> None:
    """Write a change of the study itself into its log."""
    row.seq += 1
    tx.insert_event(EventRow(row.id, row.seq, kind, now, json.dumps(facts, sort_keys=True)))


def finish(tx: Tx, row: StudyRow, state: str, reason: str, now: float) -> None:
    """End (or pause) a study that is active, with the reason in its log."""
    if row.state == ACTIVE:
        row.state, row.reason = state, reason
        log_event(tx, row, f"study.{state.lower()}", now, reason=reason)


# Granting -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Claim:
    """What an ask can take before any new lane is needed, and why it cannot have all it wants."""

    live: list[TrialRow]
    """Leases of this very request (same key) or worker (resume): given again."""
    lapsed: list[TrialRow]
    """Leases of others that ran out: to be given to this worker."""
    lost: list[TrialRow]
    """Lapsed once too often: FAILED."""
    stale: list[TrialRow]
    """Lapsed or queued in a step that is closed: SUPERSEDED."""
    queued: list[TrialRow]
    n_new: int
    """New lanes wanted beside these."""
    reason: str | None
    """The limit that keeps the grant below the request, if one does."""


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
    """Decide what an ask takes. Changes nothing."""
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
        limits.append((spec.budget.evaluations - row.used - len(lost) - out, "budget_exhausted"))
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
    """Whether a trial that nobody holds belongs to a closed step of a method that works in steps."""
    return kind == "group" and trial.lane >= 0 and trial.step < row.step


def apply_claim(
    tx: Tx, row: StudyRow, chosen: Claim, *, worker: str, now: float, seconds: float, key: str | None
) -> list[TrialRow]:
    """Carry out a claim; returns the trials now leased to the worker."""
    granted = list(chosen.live)
    for trial in chosen.live:
        trial.until = max(trial.until or 0.0, now + seconds)
        tx.put_trial(trial)
    for trial in chosen.lost:
        trial.lost += 1
        trial.extra = json.dumps({"error": {"type": "lost", "message": f"{trial.lost} leases lapsed without a result"}})
        row.leased -= 1
        _close(row, trial, FAILED, None, now)
        tx.put_trial(trial)
    for trial in chosen.stale:
        _leave(row, trial)
        trial.state = SUPERSEDED
        tx.put_trial(trial)
    for trial in (*chosen.lapsed, *chosen.queued):
        if trial.state == LEASED:
            trial.lost += 1
        _leave(row, trial)
        lease_to(trial, worker=worker, now=now, seconds=seconds, key=key)
        row.leased += 1
        tx.put_trial(trial)
        granted.append(trial)
    return granted


def lease_to(trial: TrialRow, *, worker: str, now: float, seconds: float, key: str | None) -> None:
    """Put a trial into a worker's hands."""
    trial.state, trial.worker, trial.ask_key = LEASED, worker, key
    trial.attempt += 1
    trial.leased_at, trial.until = now, now + seconds


def _leave(row: StudyRow, trial: TrialRow) -> None:
    """Take an open trial out of the study's counters."""
    if trial.state == QUEUED:
        row.queued -= 1
    elif trial.state == LEASED:
        row.leased -= 1


def _close(row: StudyRow, trial: TrialRow, state: str, value: float | None, now: float) -> None:
    """Give a trial its terminal state and its place in the log. The caller has taken it out of the open counters."""
    row.seq += 1
    row.used += 1
    row.waiting += 1
    trial.state, trial.value, trial.seq, trial.told_at, trial.until = state, value, row.seq, now, None


# Telling --------------------------------------------------------------------------------------------------------------


class LeaseMoved(Conflict):
    """What was known of leases is not so any more: read them again."""


class Desk:
    """Where the results of one tell are settled: reads their trials at once, and writes what changed at once.

    Parameters
    ----------
    row : the study's row, changed in place; the caller writes it.
    numbers : of the trials that the reports are about.
    leased : those of them that the caller knows to be leased, as they are leased; changed in place.
    lacks : what a completed result with this `extra` must bring and does not, see `Algorithm.lacks`.
    """

    def __init__(
        self,
        tx: Tx,
        row: StudyRow,
        spec: StudySpec,
        secret: bytes,
        kind: Kind,
        numbers: Sequence[int],
        leased: Mapping[int, Lease],
        lacks: Callable[[Mapping[str, Any]], FieldError | None] = lambda extra: None,
        *,
        worker: str | None,
        now: float,
    ) -> None:
        self.tx, self.row, self.spec, self.secret, self.kind, self.lacks = tx, row, spec, secret, kind, lacks
        self.worker, self.now = worker, now
        unknown = [number for number in numbers if number not in leased] if leased else numbers
        self.trials = tx.trials(row.id, unknown) if unknown else {}
        self.trials.update((number, lease.trial) for number, lease in leased.items())
        self._leased = leased
        self._may_end = may_end(spec)
        self.changed: dict[int, TrialRow] = {}
        """Trials of the study's own that a report has changed, by number."""

    def settle(self, report: Report) -> Outcome:
        """Apply one report. Never raises for a bad item: the outcome says what was wrong with it."""
        try:
            report = _checked(report, self.spec)
            if report.status in ("completed", "stopped") and (lack := self.lacks(report.extra)) is not None:
                name = lack.pointer[1:]
                raise InvalidInput(
                    f"the study's method needs {name} beside the value: {lack.message}",
                    hint=f'send {{"value": ..., "{name}": ...}}',
                    errors=[lack],
                )
            if report.trial is None:
                return self._inject(report)
            trial = self.trials.get(report.trial)
            if trial is None:
                raise TrialNotFound(
                    f"study {self.row.id} has no trial t_{report.trial}; its newest is t_{self.row.trials}",
                    hint="tell the `id` of a trial that ask gave out",
                )
            attempt = self._attempt(report, trial)
            if trial.state not in OPEN_STATES:
                return self._late(trial, report, attempt)
            if report.status in ("released", "failed"):
                return self._give_back(trial, report, attempt)
            return self._apply(trial, report, attempt)
        except BlackboxError as error:
            return Outcome(report.trial, "rejected", error=error)

    def write(self) -> None:
        """Write the trials that changed.

        Raises
        ------
        LeaseMoved
            If one of those that the caller knew is leased differently by now. The transaction must be undone.
        """
        known = [trial for number, trial in self.changed.items() if number in self._leased]
        others = [trial for number, trial in self.changed.items() if number not in self._leased]
        if others:
            self.tx.put_trials(others)
        if known and not self.tx.put_leased(known):
            raise LeaseMoved(f"leases of {self.row.id} have changed")

    def _attempt(self, report: Report, trial: TrialRow) -> int:
        """The attempt a report speaks for."""
        if report.token is None:
            if self.spec.require_lease:
                raise LeaseUnknown(
                    f"this study wants the lease token with every result, t_{trial.number} came without one",
                    hint='add "lease": the `lease.token` of the ask answer',
                )
            return trial.attempt
        lease = self._leased.get(trial.number)
        if lease is not None and hmac.compare_digest(lease.token.encode(), report.token.encode()):
            return trial.attempt
        number, attempt = read_token(self.secret, report.token)
        if number != trial.number or attempt > trial.attempt:
            raise LeaseUnknown(
                f"the lease token is for t_{number}, the result for t_{trial.number}",
                hint="send each result with the token of its own trial",
            )
        return attempt

    def _apply(self, trial: TrialRow, report: Report, attempt: int) -> Outcome:
        """A result for an open trial, whoever holds it now."""
        state = {"completed": COMPLETED, "infeasible": INFEASIBLE, "stopped": STOPPED}[report.status]
        _leave(self.row, trial)
        trial.worker = self.worker or trial.worker
        trial.extra = _dumped(report.extra)
        _close(self.row, trial, state, None if state == INFEASIBLE else report.value, self.now)
        best = improves(self.row, self.spec, trial)
        self.changed[trial.number] = trial
        self._spend(report)
        return Outcome(trial.number, "applied", state, attempt, best_so_far=best)

    def _give_back(self, trial: TrialRow, report: Report, attempt: int) -> Outcome:
        """An open trial is released or its evaluation failed."""
        left = self.spec.lease.max_attempts - trial.failures
        if attempt < trial.attempt or (trial.state == QUEUED and report.status == "released"):
            # Somebody else holds it, or it is free already: what this attempt did changes nothing.
            return Outcome(trial.number, "duplicate", trial.state, attempt, left)
        failed = report.status == "failed"
        if failed:
            trial.failures += 1
            left -= 1
            trial.extra = _dumped(report.extra)
        _leave(self.row, trial)
        self.changed[trial.number] = trial
        if failed and (not report.retryable or left <= 0):
            _close(self.row, trial, FAILED, None, self.now)
            self._spend(report)
            return Outcome(trial.number, "applied", FAILED, attempt, 0)
        trial.until, trial.worker, trial.ask_key = None, None, None
        if is_stale(trial, self.row, self.kind):
            trial.state = SUPERSEDED
        else:
            trial.state = QUEUED
            self.row.queued += 1
        return Outcome(trial.number, "requeued" if failed else "released", trial.state, attempt + 1, left)

    def _late(self, trial: TrialRow, report: Report, attempt: int) -> Outcome:
        """A result for a closed trial: a repetition, or one more value worth keeping."""
        if report.status == "released":
            return Outcome(trial.number, "duplicate", trial.state, attempt)
        said = {COMPLETED: "completed", INFEASIBLE: "infeasible", STOPPED: "stopped", FAILED: "failed"}.get(trial.state)
        withdrawn = trial.state in (SUPERSEDED, CANCELLED)
        if withdrawn and trial.seq is not None:
            said = "completed" if trial.value is not None else "infeasible"
        if said == report.status and trial.value == (report.value if report.status != "infeasible" else None):
            return Outcome(trial.number, "duplicate", trial.state, attempt)
        self.row.seq += 1
        extra = _dumped(report.extra)
        if not (withdrawn and trial.seq is None and report.status in ("completed", "infeasible")):
            late = LateRow(self.row.id, self.row.seq, trial.number, self.worker, self.now, report.value, extra)
            self.tx.insert_late(late)
            return Outcome(trial.number, "late_recorded", trial.state, attempt)
        self.row.waiting += 1
        trial.value = report.value if report.status == "completed" else None
        trial.seq, trial.told_at, trial.extra, trial.worker = self.row.seq, self.now, extra, self.worker or trial.worker
        best = trial.state == SUPERSEDED and improves(self.row, self.spec, trial)
        self.changed[trial.number] = trial
        self._spend(report)
        return Outcome(trial.number, "late_recorded", trial.state, attempt, best_so_far=best)

    def _inject(self, report: Report) -> Outcome:
        """A point the study did not choose, with its value: told to methods that take such points."""
        row = self.row
        row.trials += 1
        number = row.trials
        trial = TrialRow(row.id, number, row.step, -number, asked_at=self.now, worker=self.worker)
        trial.source, trial.extra = report.source or "injected", _dumped(report.extra)
        row.seq += 1
        row.waiting += 1
        trial.state = {"completed": COMPLETED, "infeasible": INFEASIBLE}.get(report.status, STOPPED)
        trial.value, trial.seq, trial.told_at = report.value, row.seq, self.now
        best = improves(row, self.spec, trial)
        self.tx.insert_trials([trial], [PointRow(row.id, number, report.vector, None, report.params)])
        return Outcome(number, "injected", trial.state, best_so_far=best)

    def _spend(self, report: Report) -> None:
        """Count the cost, and end the study when target or budget is reached."""
        if "cost" in report.extra:
            cost = report.extra["cost"]
            usd = cost.get("usd") if isinstance(cost, Mapping) else None
            if isinstance(usd, int | float) and not isinstance(usd, bool) and math.isfinite(usd) and usd > 0:
                self.row.cost += usd
        if self._may_end:
            end_if_spent(self.tx, self.row, self.spec, self.now)


def _checked(report: Report, spec: StudySpec) -> Report:
    """The report with its value checked; a non-finite one is refused or taken as infeasible, as the study says."""
    if report.status not in ("completed", "stopped"):
        return report
    if report.value is None:
        raise NonFiniteValue(
            f'a result with status "{report.status}" needs a value',
            hint='send {"value": 0.5}, or a status of "infeasible", "failed" or "released"',
            errors=[FieldError("/value", "missing", "no value")],
        )
    if math.isfinite(report.value):
        return report
    if spec.non_finite == "infeasible":
        reason = {**report.extra, "reason": f"value was {report.value}"}
        return replace(report, status="infeasible", value=None, extra=reason)
    raise NonFiniteValue(
        f"value is {report.value}, expected a finite number",
        hint=NON_FINITE_HINT,
        errors=[FieldError("/value", "non_finite", f"got {report.value}")],
    )


def _dumped(extra: Mapping[str, Any]) -> str | None:
    return json.dumps(extra, sort_keys=True) if extra else None


def improves(row: StudyRow, spec: StudySpec, trial: TrialRow) -> bool:
    """Take a trial as the best one if it is; says whether it was."""
    if trial.value is None or trial.state == STOPPED:
        return False
    sign = 1.0 if spec.direction == "minimize" else -1.0
    if row.best_value is not None and sign * trial.value >= sign * row.best_value:
        return False
    row.best_trial, row.best_value = trial.number, trial.value
    return True


def may_end(spec: StudySpec) -> bool:
    """Whether there is anything that could complete the study, its method aside."""
    budget = spec.budget
    limits = (spec.target, budget.evaluations, budget.max_cost, budget.deadline)
    return any(limit is not None for limit in limits)


def end_if_spent(tx: Tx, row: StudyRow, spec: StudySpec, now: float) -> None:
    """Complete the study when its target, its evaluations or its money are reached, or its time is over."""
    if spec.target is not None and row.best_value is not None:
        sign = 1.0 if spec.direction == "minimize" else -1.0
        if sign * row.best_value <= sign * spec.target:
            finish(tx, row, COMPLETED, "target", now)
    if spec.budget.evaluations is not None and row.used >= spec.budget.evaluations:
        finish(tx, row, COMPLETED, "budget", now)
    if spec.budget.max_cost is not None and row.cost >= spec.budget.max_cost:
        finish(tx, row, COMPLETED, "max_cost", now)
    if spec.budget.deadline is not None and now >= spec.budget.deadline.timestamp():
        finish(tx, row, COMPLETED, "deadline", now)


# Renewing and taking back ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Renewal:
    """The answer to one renewed lease: continue until then, or abandon it."""

    token: str
    directive: Literal["continue", "abandon"]
    until: float | None = None
    error: BlackboxError | None = None


def renew(tx: Tx, row: StudyRow, secret: bytes, tokens: Sequence[str], *, now: float, seconds: float) -> list[Renewal]:
    """Extend leases that are still held; say `abandon` for those that somebody else has or that are closed."""
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


INTERIM_KEPT = 100
"""Interim values that are kept of one trial: the newest."""


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
    """Extend a lease, and keep the interim value that its holder sends along.

    Parameters
    ----------
    step : how far the evaluation has got; None: one further than its newest report. Of one step the last value counts.
    value : as the user sees it; None: nothing is kept.
    """
    renewal = renew(tx, row, secret, [text], now=now, seconds=seconds)[0]
    if value is not None and renewal.directive == "continue":
        number, attempt = read_token(secret, text)
        if step is None:
            step = max((old.step for old in tx.interim(row.id, number) if old.attempt == attempt), default=-1) + 1
        tx.put_interim(InterimRow(row.id, number, attempt, step, value, now), INTERIM_KEPT)
    return renewal


def change_trial(tx: Tx, row: StudyRow, number: int, change: Callable[[TrialRow], None]) -> TrialRow:
    """Read a trial, keep the open counters right around `change`, and write it."""
    trial = tx.trial(row.id, number)
    if trial is None:
        raise TrialNotFound(f"study {row.id} has no trial t_{number}; its newest is t_{row.trials}")
    _leave(row, trial)
    change(trial)
    if trial.state == QUEUED:
        row.queued += 1
    elif trial.state == LEASED:
        row.leased += 1
    tx.put_trial(trial)
    return trial

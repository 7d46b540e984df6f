"""A hosted participant: a study whose algorithm is one participant's machine in the rounds of another study.

A participant that can only evaluate (a program behind curl, a judge behind an API) lets its machine run where the
studies are kept. The points that the machine asks are ordinary trials, with leases, attempts and late values. The
federated study sees a participant like any other: one contribution per phase, counted by the same quorum, missed at
the same deadline.

The log of this study is the truth about the private state. Beside told values it holds the coordinator's messages, as
rows that nobody asked for (lane < 0): a broadcast, whose point is the common one, or the outcome of a contribution.
Each closes the open step in the transaction that records it. A replay therefore needs this log only, and the next call
makes up for a process that died at any point: a contribution is a function of the state, so sent twice it is the same
and counts once, and a broadcast that was begun is not begun again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from blackbox.errors import AlgorithmChanged, IncompatibleProblem, StudyStateError
from blackbox.federation import Invitation
from blackbox.recipes.slices import WHOLE, Slicer
from blackbox.rng import Key
from blackbox.study import history, ledger, log
from blackbox.study.answers import AskAnswer, AskRequest, Grant, StepsClosed, TellAnswer
from blackbox.study.effects import Steps, compute, read
from blackbox.study.host import Host, HostedState, broadcast_row
from blackbox.study.participants import LEFT, is_type
from blackbox.study.recommending import PROPOSED, Recommendation
from blackbox.study.rounds import FederatedStudy
from blackbox.study.rows import (
    ACTIVE,
    CANCELLED,
    COMPLETED,
    FAILED,
    INFEASIBLE,
    PAUSED,
    MemberRow,
    PointRow,
    StudyHead,
    StudyRow,
    TrialRow,
    Tx,
)
from blackbox.study.settling import Report
from blackbox.study.spec import Resolved
from blackbox.study.trials import TrialStudy

BETWEEN = "between_rounds"
"""Reason of an empty ask: this participant's part of the open phase is done, or no phase is open."""
COORDINATOR = "coordinator"
"""Source of the rows that hold messages of the coordinator instead of evaluations."""


def hosted_by(rounds: FederatedStudy) -> Steps[list[HostedStudy]]:
    """The studies of the hosted participants of a federated study that have not ended."""

    def work(tx: Tx) -> list[StudyHead]:
        found = [tx.find(rounds.head.project, rounds.hosted_name(member.client)) for member in tx.members(rounds.id)]
        heads = [head for head in found if head is not None and Resolved.model_validate_json(head.resolved).hosted]
        return [head for head in heads if (row := tx.study(head.id)) is not None and row.state in (ACTIVE, PAUSED)]

    heads = yield from read(work)
    return [HostedStudy(head, rounds.slicer) for head in heads]


class HostedStudy(TrialStudy):
    """The study of a hosted participant.

    Attributes
    ----------
    hosted : whose participant it is, as stored.
    parent : the federated study, once it was needed. A caller that has it open may set it, so that both share caches.
    """

    def __init__(self, head: StudyHead, slicer: Slicer = WHOLE) -> None:
        super().__init__(head, slicer)
        self._algorithms = [] if self._host is None else [(0, self._host)]
        self.parent: FederatedStudy | None = None
        self._seen_signature: tuple[Any, ...] | None = None
        self._closes_at: float | None = None

    def _build(self) -> None:
        hosted = self.resolved.hosted
        assert hosted is not None
        self.hosted = hosted
        self.traits = Host.traits
        self._host: Host | None = None
        if self.stored.cls is None or self.stored.obstacle:
            return
        machine = self.stored.cls.Participant(
            self.space,
            self.options,
            Key.from_hex(hosted.key),
            client=hosted.client,
            weight=hosted.weight,
            secret=hashlib.blake2b(b"hosted participant", key=self.head.secret, digest_size=32).digest(),
            terms=Invitation(self.resolved.algorithm, self.resolved.options, self.space.to_json(), hosted.key).terms,
        )
        machine.slicer = self.slicer
        self._host = Host(machine)

    @property
    def host(self) -> Host:
        """The participant's machine as an algorithm.

        Raises
        ------
        AlgorithmChanged
            If this release lacks it, or it does not take the stored options.
        """
        if self._host is None:
            raise self.changed(self.stored.obstacle)
        return self._host

    def algorithm(self, row: StudyRow, step: int | None = None) -> Host:
        """The participant's machine as an algorithm; the same at every step."""
        return self.host

    def not_its_own(self) -> IncompatibleProblem:
        """The error for a request to change the points or the past of a hosted participant."""
        return IncompatibleProblem(
            f"{self.id} is the hosted participant {self.hosted.client} of {self.hosted.study}: its points and its past "
            "are its machine's",
            hint="it takes ask, tell and heartbeat; fork the federated study, or start another one, to try again",
        )

    # Ask and tell -----------------------------------------------------------------------------------------------------

    def tell(
        self, reports: Sequence[Report], *, now: float, worker: str | None = None, ask: AskRequest | None = None
    ) -> Steps[TellAnswer]:
        """As `TrialStudy.tell`.

        Raises
        ------
        IncompatibleProblem
            If a report is about a point that the machine did not ask.
        """
        if any(report.trial is None for report in reports):
            raise self.not_its_own()
        told = yield from super().tell(reports, now=now, worker=worker, ask=ask)
        if told.asked is not None and told.asked.reason == BETWEEN:
            told = replace(told, asked=None)  # the results may have opened the next phase: ask again
        return told

    def _grant(self, tx: Tx, row: StudyRow, request: AskRequest, now: float, n_reused: int = 0) -> Grant:
        step = self._known.step_of(row)
        if row.state == ACTIVE and step is not None and self.host.resting(step.state):
            tx.put_study(row)
            return AskAnswer((), request.count, BETWEEN, 1.0, row)
        return super()._grant(tx, row, request, now, n_reused)

    # Keeping in step with the rounds ----------------------------------------------------------------------------------

    def due(self) -> bool:
        """True unless the study is stuck: the rounds may have moved on."""
        return not self.stuck

    def advance(self, *, now: float) -> Steps[int]:
        """Close complete steps, send a finished contribution, begin an open phase; returns the number of steps."""
        total = yield from super().advance(now=now)
        with suppress(AlgorithmChanged):  # this study's, or that of the rounds
            while (yield from self._sync(now)):
                total += 1 + (yield from super().advance(now=now))
        return total

    def complete(self, *, now: float) -> Steps[StudyRow]:
        """End the study, and leave the rounds."""
        row = yield from super().complete(now=now)
        yield from self.advance(now=now)
        return row

    def cancel(self, *, now: float) -> Steps[StudyRow]:
        """End the study, cancel its open trials, and leave the rounds."""
        row = yield from super().cancel(now=now)
        yield from self.advance(now=now)
        return row

    def propose(self) -> Steps[Recommendation]:
        """The current common point of the rounds."""
        row = yield from self.row()
        rounds = yield from self._rounds()
        if rounds is None:
            _, state = yield from self.state()
            return Recommendation(row.step, self.space.decode(self.host.recommend(state)), None, PROPOSED)
        return replace((yield from rounds.propose()), step=row.step)

    def recommend(self) -> Steps[Recommendation]:
        """The current common point of the rounds: its own best point is that of its own objective."""
        return self.propose()

    def _rounds(self) -> Steps[FederatedStudy | None]:
        """The federated study; None if it was deleted."""
        if self.parent is None:
            head = yield from read(lambda tx: tx.head(self.hosted.study))
            self.parent = None if head is None else FederatedStudy(head, self.slicer)
        return self.parent

    def _sync(self, now: float) -> Steps[bool]:
        """Take one step together with the rounds, if there is one; False if there is not."""
        row, state = yield from self._current()
        if row.state not in (ACTIVE, PAUSED):
            yield from self.row()  # it may have been resumed since
            row, state = yield from self._current()
        rounds = yield from self._rounds()

        def look(tx: Tx) -> tuple[StudyRow | None, MemberRow | None]:
            parent_row = tx.study(self.hosted.study)
            return parent_row, None if parent_row is None else tx.member(self.hosted.study, self.hosted.client)

        parent_row, member = yield from read(look)
        away = member is None or member.left_at is not None
        if row.state not in (ACTIVE, PAUSED):
            if rounds is not None and parent_row is not None and parent_row.state in (ACTIVE, PAUSED) and not away:
                yield from rounds.leave(rounds.token(self.hosted.client), now=now)
                yield from rounds.advance(now=now)
            return False
        if rounds is None or parent_row is None:
            yield from self._finish(CANCELLED, f"{self.hosted.study} was deleted", now)
            return False
        if self.host.owes(state):
            return (yield from self._contribute(rounds, row, state, now))
        if parent_row.state not in (ACTIVE, PAUSED):
            yield from self._finish(parent_row.state, f"{parent_row.id}: {parent_row.reason}", now)
            return False
        if away:
            yield from self._finish(COMPLETED, LEFT, now)
            return False
        if row.state == PAUSED and not self.host.resting(state):
            yield from self._decline_unfinished(rounds, parent_row, row, now)
            return False
        return (yield from self._begin(rounds, parent_row, row, state, now))

    def _finish(self, end: str, reason: str, now: float) -> Steps[None]:
        yield from self._transition(end, reason, now, (ACTIVE, PAUSED))

    def _contribute(self, rounds: FederatedStudy, row: StudyRow, state: HostedState, now: float) -> Steps[bool]:
        """Send the contribution of the finished phase, or decline it, and record the outcome; one sent before is a
        duplicate."""
        token, work = rounds.token(self.hosted.client), state.own.work
        if self.host.machine.declines(state.own):
            error = yield from self._last_error(row)
            with suppress(StudyStateError):  # the rounds have ended
                yield from rounds.decline(token, work.round, work.phase, error, now=now)
            yield from self._record({"counted": False}, b"", b"", "declined", row, state, now)
            return True
        contribution = yield from compute(partial(self.host.machine.contribution, state.own))
        try:
            received = yield from rounds.contribute(token, contribution, now=now)
            counted = received.counted
        except StudyStateError:  # the rounds have ended: it was not counted and will not be
            counted = False
        yield from self._record({"counted": counted}, b"", b"", "settled", row, state, now)
        return True  # also if another process was faster: look again

    def _last_error(self, row: StudyRow) -> Steps[str | None]:
        """Type of an error in the newest step."""
        _, told = yield from read(lambda tx: history.segment(tx, self.id, row.step - 1, row.step))
        return _error_of([trial for trial, _ in told])

    def _decline_unfinished(
        self, rounds: FederatedStudy, parent_row: StudyRow, row: StudyRow, now: float
    ) -> Steps[None]:
        """Decline the open phase, also a newer one, while the study is paused because all evaluations have failed.

        Somebody has to mend the evaluators first. If the phase is open then, the contribution counts after all.
        """
        if parent_row.state != ACTIVE or self._seen_signature == (signature := _signature(parent_row, row)):
            return
        told = yield from read(lambda tx: tx.told(self.id, row.upto_seq, row.seq))
        if told and all(trial.state == FAILED for trial in told):
            token = rounds.token(self.hosted.client)
            phase = yield from rounds.phase(now=now, token=token)
            if phase.broadcast is not None and phase.invited and not phase.contributed:
                at = phase.broadcast
                with suppress(StudyStateError):
                    yield from rounds.decline(token, at.round, at.phase, _error_of(told), now=now)
        self._seen_signature = signature

    def _begin(
        self, rounds: FederatedStudy, parent_row: StudyRow, row: StudyRow, state: HostedState, now: float
    ) -> Steps[bool]:
        """Begin the open phase, if it is a new one and this participant is invited."""
        late = self._closes_at is not None and now >= self._closes_at
        if self._seen_signature == _signature(parent_row, row) and not late:
            return False  # nothing has happened since
        phase = yield from rounds.phase(now=now, token=rounds.token(self.hosted.client))
        self._closes_at = phase.closes_at
        broadcast, work = phase.broadcast, state.own.work
        declined = broadcast is not None and self.host.machine.declines(state.own) and broadcast.step == work.broadcast
        new = broadcast is not None and (broadcast.step > work.broadcast or declined)
        wanted = new and phase.invited and not phase.contributed
        if wanted and not self.host.resting(state):
            _, common = yield from rounds.state()
            # A contribution that is still accepted when late is worth finishing.
            wanted = rounds.federation.admission(common, work.round, work.phase) == "late"
        if not wanted or broadcast is None:
            self._seen_signature = _signature(phase.row, row)
            return False
        message, x, rest = broadcast_row(broadcast)
        yield from self._record({"broadcast": message}, x, rest, "broadcast", row, state, now)
        return True

    def _record(
        self,
        message: Mapping[str, Any],
        x: bytes,
        rest: bytes,
        why: str,
        seen: StudyRow,
        state: HostedState,
        now: float,
    ) -> Steps[None]:
        """Record a message of the coordinator and close the open step with it, if it is still open.

        Parameters
        ----------
        message : JSON of the message.
        x, rest : point and note of the row, see `broadcast_row`.
        why : reason of the step record.
        seen, state : row and state that the message was based on.
        """
        number, seq = seen.trials + 1, seen.seq + 1
        trial = TrialRow(
            self.id, number, seen.step, -number, state=INFEASIBLE, asked_at=now, told_at=now, seq=seq,
            extra=json.dumps(message, sort_keys=True), source=COORDINATOR,
        )  # fmt: skip
        point = PointRow(self.id, number, x or state.x.astype("<f8").tobytes(), None, None, rest)
        told = yield from read(lambda tx: history.results(tx, self.id, seen.upto_seq, seen.seq))
        rows = [*told, (trial, point)]
        results = log.batch(self.host, state, rows, False)
        closed = yield from compute(
            partial(log.close, self.host, state, results, seq, len(rows), why), self._pace.tell_seconds, self._pace.told
        )

        def work(tx: Tx) -> StepsClosed | None:
            row = ledger.locked(tx, self.id)
            if (row.step, row.epoch, row.seq, row.trials) != (seen.step, seen.epoch, seen.seq, seen.trials):
                return None
            row.trials, row.seq, row.waiting = number, seq, row.waiting + 1
            tx.insert_trials([trial], [point])
            moved = self._closer.close(tx, row, self.host, [closed], now)
            tx.put_study(row)
            return moved

        moved = yield from self._written(work)
        if moved is None:
            yield from self.row()
            return
        self._row = moved.row
        self._moved(moved)


def _error_of(trials: Sequence[TrialRow]) -> str | None:
    """Type of the error of the last of these trials that failed; None if there is none that is the name of a type."""
    failed = [trial for trial in trials if trial.state == FAILED]
    told = json.loads(failed[-1].extra or "{}").get("error") if failed else None
    name = told.get("type") if isinstance(told, dict) else None
    return name if isinstance(name, str) and is_type(name) else None


def _signature(parent_row: StudyRow, row: StudyRow) -> tuple[Any, ...]:
    """A value that changes whenever there may be a new phase to begin; before the first round, when somebody joins."""
    joined = -1 if parent_row.step else parent_row.seq
    return parent_row.step, parent_row.epoch, parent_row.state, joined, row.step, row.state

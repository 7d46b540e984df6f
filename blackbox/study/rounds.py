"""A federated study: joining, broadcasts, contributions, closing phases, replay. Pure logic over a store.

The machines are those of `blackbox.federation`; this is to them what `study.trials` is to algorithms. The coordinator
evaluates nothing and sees no points: a participant sends one contribution per (round, phase), which is stored before it
is answered. A phase closes when the method's quorum is reached, or at the deadline, in the next call by anybody: no
process has to watch. A participant whose evaluations gave no value declines the phase: it contributes nothing, and is
not waited for. Where nobody is left who could contribute, the study is paused.

The log is the truth here too. Contributions and step records share the study's sequence; a step record says up to which
contribution it looked. At that point every unused contribution is considered again: it counts now, waits for a later
phase (a contribution that may be stale), or is too late. A replay therefore needs nothing but the log.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from blackbox import codec
from blackbox.errors import (
    AlgorithmChanged,
    Conflict,
    FieldError,
    InvalidContribution,
    LeaseUnknown,
    StudyStateError,
)
from blackbox.federation import Broadcast, Contribution, Federation, FederationState
from blackbox.recipes.slices import WHOLE, Slicer
from blackbox.records import Notice
from blackbox.study import history, ledger, participants
from blackbox.study.answers import ContributeAnswer, OpenPhase
from blackbox.study.base import BaseStudy
from blackbox.study.effects import Steps, compute, read, write
from blackbox.study.participants import Decline, JoinAnswer
from blackbox.study.quorum import Quorum
from blackbox.study.rows import (
    ACTIVE,
    COMPLETED,
    PAUSED,
    ContributionRow,
    MemberRow,
    SnapshotRow,
    StepRow,
    StudyHead,
    StudyRow,
    Tx,
    UpdateRow,
)
from blackbox.study.spec import Hosted
from blackbox.validation import invalid

LATE = -1  # the step of a contribution that came too late for any
MAX_UPDATES = 1000  # in one answer


class FederatedStudy(BaseStudy):
    """A study whose objective is spread over participants."""

    def __init__(self, head: StudyHead, slicer: Slicer = WHOLE) -> None:
        super().__init__(head, slicer)
        self._tell_seconds = 0.0  # of the last computation that closed a phase

    def _build(self) -> None:
        self._federation: Federation[Any] | None = None
        if self.stored.cls is not None and not self.stored.obstacle:
            self._federation = self.stored.cls(self.space, self.options, self.key, self.resolved.options)
            self._federation.slicer = self.slicer

    @property
    def federation(self) -> Federation[Any]:
        """The coordinator.

        Raises
        ------
        AlgorithmChanged
            If this release lacks it, or it does not take the stored options.
        """
        if self._federation is None:
            raise self.changed(self.stored.obstacle)
        return self._federation

    def machine(self, row: StudyRow, step: int | None = None) -> Federation[Any]:
        """The coordinator; the same at every step."""
        return self.federation

    def _unreadable(self) -> None:
        """Nothing to do: a snapshot is stored at every phase that closes."""

    def due(self) -> bool:
        """True unless the study is stuck: a deadline may have passed."""
        return not self.stuck

    # State ------------------------------------------------------------------------------------------------------------

    def _state_at(self, row: StudyRow, step: int) -> Steps[Any]:
        cached = self._cached
        if cached is not None and (cached.epoch, cached.step) == (row.epoch, step):
            return cached.state
        if self.stuck and step == row.step:
            raise self.changed(self.stuck)
        stored = yield from self._newest(row, step)
        start, state = (0, self.federation.init()) if stored is None else (stored[0].step, stored[1])
        records, rows = yield from read(partial(_log_before, study=self.id, before=step))
        try:
            for record, after, digest in self._replayed_from(start, state, records, rows):
                if self.stored.revised and digest != record.digest:
                    raise AlgorithmChanged(f"{self.stored.revised}, which computes another state after step {start}")
                state, start = after, record.step + 1
        except Conflict as error:  # also if contributions were not kept, because a snapshot was to replace them
            self.stuck = error.detail
            raise self.changed(error.detail) from error
        if start < step:
            raise Conflict(f"the log of {self.id} ends at step {start}, its row says {row.step}")
        if step == row.step:
            self._keep(row.epoch, step, state)
        return state

    def _replayed_from(
        self, first: int, state: FederationState, records: Sequence[StepRow], rows: Sequence[ContributionRow]
    ) -> Iterator[tuple[StepRow, FederationState, str]]:
        """States after the recorded steps from `first` on.

        The rows of contributions say which step used them, so that a replay can begin at a snapshot.
        """
        for record in records:
            if record.step < first:
                continue
            used = [row for row in rows if row.step == record.step]
            if any(row.content is None for row in used):
                raise Conflict(
                    f"the contributions of step {record.step} were not kept",
                    hint='create the study with "rounds": {"keep": "all"} to replay it from the beginning',
                )
            state = self.federation.tell(state, [Contribution.from_bytes(row.content or b"") for row in used])
            yield record, state, codec.digest_like(record.digest, codec.encode(state))

    def replay(self) -> Steps[Iterator[tuple[StepRow, str]]]:
        """Every recorded step with the digest that a replay computes. Checks also that each step used exactly the
        contributions that the rule of the log admits."""
        row = yield from self.row()
        records, rows = yield from read(partial(_log_before, study=self.id, before=row.step))
        return self._upto_change(self._checked(records, rows))

    def _checked(self, records: Sequence[StepRow], rows: Sequence[ContributionRow]) -> Iterator[tuple[StepRow, str]]:
        state, waiting, last = self.federation.init(), list[ContributionRow](), 0
        for record, after, digest in self._replayed_from(0, state, records, rows):
            waiting += [row for row in rows if last < row.seq <= record.upto_seq]
            counted, waiting, _ = self._by_admission(state, waiting)
            if [row.seq for row in counted] != [row.seq for row in rows if row.step == record.step]:
                raise Conflict(f"step {record.step} of {self.id} used other contributions than its log admits")
            yield record, digest
            state, last = after, record.upto_seq

    def _by_admission(
        self, state: FederationState, rows: Sequence[ContributionRow]
    ) -> tuple[list[ContributionRow], list[ContributionRow], list[ContributionRow]]:
        """Contributions that count in the open phase, those that wait for a later one, and those that are too late."""
        kinds: dict[str, list[ContributionRow]] = {"now": [], "later": [], "late": []}
        for row in rows:
            kinds[self.federation.admission(state, row.round, row.phase)].append(row)
        return kinds["now"], kinds["later"], kinds["late"]

    # Participants -----------------------------------------------------------------------------------------------------

    def join(self, client: str, *, now: float) -> Steps[JoinAnswer]:
        """Join under a name. A participant comes back by joining again: same name, same token.

        Raises
        ------
        InvalidContribution
            If the name is not allowed.
        StudyStateError
            If the study has ended.
        Conflict
            If the name is that of a hosted participant.
        """
        participants.check(client, 1.0)
        self._row = yield from write(partial(participants.join, study=self.head, client=client, now=now))
        return self._joined(client, self._row)

    def host(self, client: str, weight: float = 1.0, *, now: float) -> Steps[tuple[JoinAnswer, StudyHead]]:
        """Join under a name, with the participant's machine running here.

        Its points are the trials of a study of its own, which its evaluators ask and tell. Hosting again returns the
        same study, and resumes one that left the rounds or failed.

        Raises
        ------
        InvalidContribution
            If the name is not allowed, or the weight is not positive.
        StudyStateError
            If the study has ended.
        Conflict
            If the name is that of a participant that runs its own machine, or is hosted with another weight.
        """
        participants.check(client, weight)
        hosted = Hosted(study=self.id, client=client, weight=weight, key=self.key.hex())
        fresh = participants.hosted_head(self.head, self.resolved, hosted, now)
        work = partial(participants.host, study=self.head, hosted=hosted, fresh=fresh, now=now)
        self._row, head = yield from write(work)
        return self._joined(client, self._row), head

    def _joined(self, client: str, row: StudyRow) -> JoinAnswer:
        return JoinAnswer(client, self.token(client), self.federation.invitation(), row)

    def leave(self, token: str, *, now: float) -> Steps[StudyRow]:
        """Leave the rounds: the quorum no longer counts on this participant."""
        work = partial(participants.leave, study=self.head, client=self.client(token), now=now)
        row = self._row = yield from write(work)
        return row

    def hosted_name(self, client: str) -> str:
        """The name of a hosted participant's study; study names are unique in a project."""
        return participants.hosted_name(self.id, client)

    def token(self, client: str) -> str:
        """The token that authenticates a participant: `name~mac`."""
        return participants.token(self.head.secret, client)

    def client(self, token: str) -> str:
        """The name of the participant that a token belongs to.

        Raises
        ------
        LeaseUnknown
            If this study did not issue it.
        """
        return participants.read_token(self.head.secret, token)

    # Rounds -----------------------------------------------------------------------------------------------------------

    def phase(self, *, now: float, token: str | None = None) -> Steps[OpenPhase]:
        """The open phase, after closing phases that are due; with a token also whether that participant is invited."""
        client = None if token is None else self.client(token)
        yield from self.advance(now=now)
        row, _, quorum = yield from self._looked()
        begun = row.state == ACTIVE and self._has_begun(row, quorum.members)
        broadcast = self.federation.broadcast(quorum.state) if begun else None
        closes_at = yield from self._closes_at(row, quorum.members)
        if broadcast is not None:
            yield from self._publish(row, broadcast)
        declined = {one.client: one.error for one in quorum.declined}
        return OpenPhase(
            row,
            broadcast,
            None if client is None else self.federation.invited(quorum.state, client) and client not in declined,
            client in quorum.came,
            len(quorum.members),
            len(quorum.counted),
            quorum.need,
            declined,
            closes_at,
        )

    def _has_begun(self, row: StudyRow, members: Sequence[MemberRow]) -> bool:
        return row.step > 0 or len(members) >= self.spec.rounds.min_joined

    def _closes_at(self, row: StudyRow, members: Sequence[MemberRow]) -> Steps[float | None]:
        seconds = self.spec.rounds.deadline_seconds
        if seconds is None or not self._has_begun(row, members):
            return None
        if row.step:
            last = yield from read(lambda tx: tx.steps(self.id, row.step - 1, row.step))
            return last[0].at + seconds
        joined = sorted(member.joined_at for member in members)
        return joined[self.spec.rounds.min_joined - 1] + seconds

    def _publish(self, row: StudyRow, broadcast: Broadcast) -> Steps[None]:
        """Store the vectors of a broadcast by digest, for participants to fetch."""
        vectors = broadcast.blobs()
        missing = yield from read(lambda tx: [digest for digest in vectors if tx.blob(self.id, digest) is None])
        if not missing:
            return

        def work(tx: Tx) -> None:
            for digest in missing:
                content = np.ascontiguousarray(vectors[digest]).tobytes()
                tx.put_blob(self.id, digest, row.step, content)

        yield from write(work, long=self.large)

    def contribute(self, token: str, contribution: Contribution, *, now: float) -> Steps[ContributeAnswer]:
        """Store a contribution; durable when this returns. Sending it again changes nothing.

        Raises
        ------
        LeaseUnknown
            If the token is of another participant.
        InvalidContribution
            If it does not fit its phase, or its phase has not begun.
        StudyStateError
            If the study has ended.
        """
        client = self.client(token)
        if contribution.client != client:
            raise LeaseUnknown(
                f"the token is {client}'s, the contribution {contribution.client}'s",
                hint="send each contribution with the token of its own participant",
            )
        self.federation.check(contribution)
        content = contribution.to_bytes()
        place = (client, contribution.round, contribution.phase)
        while True:
            seen, state = yield from self.state()
            kind = self.federation.admission(state, contribution.round, contribution.phase)
            if not self.federation.invited(replace(state, round=contribution.round), client):
                message = f"{client} was not invited to round {contribution.round}"
                hint = "contribute to rounds whose open phase says that this participant is invited"
                raise invalid(InvalidContribution, [FieldError("/round", "not_invited", message)], hint)

            def work(tx: Tx, seen: StudyRow = seen, kind: str = kind) -> tuple[str, StudyRow, ContributionRow] | None:
                row = ledger.locked(tx, self.id)
                known = tx.contribution(self.id, *place)
                if known is not None:
                    return "duplicate", row, known
                if row.state not in (ACTIVE, PAUSED):
                    raise StudyStateError(f"the study is {row.state}; it takes no contributions any more")
                if (row.step, row.epoch) != (seen.step, seen.epoch):
                    return None  # the phase may have closed meanwhile: decide again whether it counts
                row.seq += 1
                late = kind == "late"
                keep = self.spec.rounds.keep == "all" or not late
                stored = ContributionRow(
                    self.id, row.seq, *place, now, content if keep else None, LATE if late else None
                )
                tx.insert_contribution(stored)
                row.waiting += not late
                tx.put_study(row)
                return {"now": "applied", "later": "held", "late": "late"}[kind], row, stored

            answer = yield from write(work, long=self.large)
            if answer is not None:
                break
            yield from self.row()
        outcome, self._row, stored = answer
        yield from self.advance(now=now)
        return (yield from self._answered(outcome, stored.step is None or stored.step >= 0))

    def _answered(self, outcome: str, used: bool) -> Steps[ContributeAnswer]:
        row, _, quorum = yield from self._looked()
        return ContributeAnswer(outcome, used, len(quorum.counted), quorum.need, row)

    def decline(self, token: str, round: int, phase: str, error: str | None, *, now: float) -> Steps[ContributeAnswer]:
        """Note that a participant has nothing to contribute to the open phase, because no evaluation gave a value.

        The phase does not wait for it. It is asked again in the next phase, or once it joined again, or once the study
        was resumed. `error`: type of its evaluator's last error, such as "MemoryError"; None: values were not finite.

        Raises
        ------
        LeaseUnknown
            If the token was not given out by this study.
        InvalidContribution
            If there is no such phase, or it has not begun, or `error` is more than the name of a type.
        StudyStateError
            If the study has ended.
        """
        client = self.client(token)
        participants.check_error(error)
        while True:
            seen, state = yield from self.state()
            current = self.federation.phases[state.phase].name
            self.federation.admission(state, round, phase)  # raises, if it has not begun
            late = (round, phase) != (state.round, current)
            outcome = yield from write(
                partial(
                    participants.decline,
                    study=self.head, seen=seen, client=client, place=(round, phase), error=error, late=late, now=now,
                )
            )  # fmt: skip
            if outcome is not None:
                break
            yield from self.row()
        yield from self.advance(now=now)
        return (yield from self._answered(outcome, False))

    def advance(self, *, now: float) -> Steps[int]:
        """Close every phase whose quorum is reached or whose deadline has passed; returns how many were closed."""
        total = 0
        while True:
            if self.stuck:
                yield from self.row()
                return total
            seen, rows, quorum = yield from self._looked()
            self._row = seen
            if seen.state != ACTIVE or not self._has_begun(seen, quorum.members):
                return total
            closes_at = yield from self._closes_at(seen, quorum.members)
            due = closes_at is not None and now >= closes_at
            why = quorum.closes(due)
            if why is None:
                if quorum.hopeless and (due or closes_at is None):
                    name = self.federation.phases[quorum.state.phase].name
                    reason = participants.hopeless(name, len(quorum.counted), quorum.fewest, quorum.declined)
                    work = partial(participants.pause, study=self.head, seen=seen, reason=reason, now=now)
                    self._row = yield from write(work)
                return total
            contributions = [Contribution.from_bytes(item.content or b"") for item in quorum.counted]
            tell = partial(self.federation.tell, quorum.state, contributions)
            try:
                after = yield from compute(tell, self._tell_seconds, self._took)
            except Exception as error:
                yield from self._fail(error, now)
                return total
            total += yield from self._close_phase(seen, rows, quorum.counted, quorum.state, after, why, now)

    def _took(self, seconds: float) -> None:
        self._tell_seconds = seconds

    def _looked(self) -> Steps[tuple[StudyRow, Sequence[ContributionRow], Quorum]]:
        """The study's row, the contributions that no phase has used yet, and the participants of the open phase."""

        def look(tx: Tx) -> tuple[StudyRow, list[MemberRow], list[ContributionRow], Mapping[str, Decline]]:
            row = ledger.locked(tx, self.id)
            return row, tx.members(self.id), tx.waiting_contributions(self.id), participants.declined(tx, row)

        row, members, rows, declines = yield from read(look)
        state = yield from self._state_at(row, row.step)
        counted, _, _ = self._by_admission(state, rows)
        return row, rows, Quorum(self.federation, state, members, counted, declines)

    def _close_phase(
        self,
        seen: StudyRow,
        rows: Sequence[ContributionRow],
        counted: Sequence[ContributionRow],
        before: FederationState,
        after: FederationState,
        why: str,
        now: float,
    ) -> Steps[int]:
        """Record that the open phase closes with these contributions, if it is still open; returns 1, or 0 if not."""
        encoded = codec.encode(after)
        upto = max((row.seq for row in rows), default=seen.upto_seq)
        _, _, late = self._by_admission(after, [row for row in rows if row not in counted])
        moved = after.update if after.version > before.version else None
        stop = self.federation.stopped(after)
        keep = self.spec.rounds.keep == "all"
        vectors = self.federation.broadcast(after).blobs() if stop is None else {}

        def work(tx: Tx) -> StudyRow | None:
            row = ledger.locked(tx, self.id)
            if (row.step, row.epoch, row.waiting) != (seen.step, seen.epoch, seen.waiting):
                return None  # closed meanwhile, or more has come: a contribution answered "applied" must count
            row.seq += 1
            upto_seq, digest = max(upto, row.upto_seq), codec.digest(encoded)
            tx.insert_steps([StepRow(self.id, row.step, upto_seq, why, digest, row.seq, now, len(counted))])
            tx.settle_contributions(self.id, [item.seq for item in counted], row.step, keep)
            tx.settle_contributions(self.id, [item.seq for item in late], LATE, keep)
            if moved is not None:
                tx.insert_update(UpdateRow(self.id, moved.version, json.dumps(moved.to_json())))
            row.step, row.upto_seq = row.step + 1, upto_seq
            row.waiting -= len(counted) + len(late)
            row.used = after.evaluations
            tx.insert_snapshot(SnapshotRow(self.id, row.epoch, row.step, encoded))
            tx.keep_snapshots(self.id, row.epoch, history.worth_keeping(tx.snapshot_steps(self.id, row.epoch)))
            for digest, vector in vectors.items():
                tx.put_blob(self.id, digest, row.step, np.ascontiguousarray(vector).tobytes())
            # Vectors of the phase just closed stay for participants that have yet to fetch them.
            tx.drop_blobs(self.id, row.step - 1, ())
            if stop is not None:
                ledger.finish(tx, row, COMPLETED, stop.reason, now)
            ledger.end_if_spent(tx, row, self.spec, now)
            tx.put_study(row)
            return row

        row = yield from write(work, long=self.large)
        if row is None:
            return 0
        self._row = row
        self._keep(row.epoch, row.step, after)
        return 1

    def health(self, *, now: float) -> Steps[list[Notice]]:
        """What the study's owner should know of its rounds and its participants."""
        told = yield from read(partial(participants.notices, study=self.id))
        state = None if self.stuck else (yield from self.state())[1]
        return told if state is None else [*self.federation.notices(state), *told]

    def updates(self, after: int = 0, limit: int = MAX_UPDATES) -> Steps[list[UpdateRow]]:
        """Updates of the common point after a version, from which an absent participant rebuilds it."""
        return (yield from read(lambda tx: tx.updates(self.id, after, limit)))

    def closed(self, round: int) -> Steps[list[tuple[str, StepRow]]]:
        """(name, step record) of each closed phase of a round."""
        phases = self.federation.phases
        n = len(phases)
        records = yield from read(lambda tx: tx.steps(self.id, n * round, n * (round + 1)))
        return [(phases[record.step % n].name, record) for record in records]


def _log_before(tx: Tx, study: str, before: int) -> tuple[list[StepRow], list[ContributionRow]]:
    """All step records before a step, and all contributions."""
    return tx.steps(study, 0, before), tx.contributions(study, 0, history.MAX_SEQ)

"""Participants of federated rounds: names, tokens, joining, leaving, hosting. Functions of one transaction."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from blackbox import federation
from blackbox.errors import Conflict, FieldError, InvalidContribution, LeaseUnknown, StudyStateError
from blackbox.records import JSON, Notice
from blackbox.study import ledger
from blackbox.study.creation import new_head
from blackbox.study.rows import ACTIVE, COMPLETED, FAILED, PAUSED, MemberRow, StudyHead, StudyRow, Tx
from blackbox.study.spec import Budget, Hosted, Resolved, Rounds, spec_hash
from blackbox.validation import invalid

LEFT = "left the rounds"
"""Reason for which the study of a hosted participant ends when the participant leaves."""
DECLINED = "participant.declined"
NOT_FINITE = "values that are not finite"
MAX_EVENTS = 2**31
MAX_TYPE = 100  # characters of the name of an error's type


@dataclass(frozen=True, slots=True)
class JoinAnswer:
    """The answer to a participant that joins: its token, the invitation, and the study's row."""

    client: str
    token: str
    invitation: federation.Invitation
    row: StudyRow


@dataclass(frozen=True, slots=True)
class Decline:
    """What a participant said that has nothing to contribute to a phase.

    Attributes
    ----------
    client, round, phase : who, and what it declined.
    error : type of its evaluator's last error; None: its values were not finite. Neither the message nor data leave.
    """

    client: str
    round: int
    phase: str
    error: str | None


# Names and tokens -----------------------------------------------------------------------------------------------------


def check(client: str, weight: float) -> None:
    """Raise `InvalidContribution` if no contribution could carry this name and weight."""
    federation.ContributionJson(terms="", client=client, round=0, phase="", weight=weight, vectors={}, evaluations=0)


def is_type(error: str) -> bool:
    """Whether a text can be the name of an error's type: no message fits in there, so no data."""
    return len(error) <= MAX_TYPE and all(part.isidentifier() for part in error.split("."))


def check_error(error: str | None) -> None:
    """Raise `InvalidContribution` if the error of a participant that declines is more than the name of a type."""
    if error is not None and not is_type(error):
        message = f"must be the name of a type such as MemoryError, got {error[:40]!r}"
        raise invalid(InvalidContribution, [FieldError("/error", "pattern", message)])


def hosted_name(study: str, client: str) -> str:
    """The name of a hosted participant's study; study names are unique in a project."""
    return f"{study}/{client}"


def token(secret: bytes, client: str) -> str:
    """The token that authenticates a participant: `name~mac`."""
    mac = hashlib.blake2b(b"participant/" + client.encode(), key=secret, digest_size=12).hexdigest()
    return f"{client}~{mac}"


def read_token(secret: bytes, text: str) -> str:
    """The name of the participant that a token belongs to.

    Raises
    ------
    LeaseUnknown
        If the token was not made with this secret.
    """
    name = text.rpartition("~")[0]
    if not name or not hmac.compare_digest(token(secret, name).encode(), text.encode()):
        raise LeaseUnknown(
            f"the participant's token {text[:60]!r} was not given out by this study",
            hint="send the `token` of the join answer unchanged",
        )
    return name


# Works ----------------------------------------------------------------------------------------------------------------


def join(tx: Tx, study: StudyHead, client: str, now: float) -> StudyRow:
    """Register a participant that runs its own machine; returns the study's row.

    Raises
    ------
    StudyStateError
        If the study has ended.
    Conflict
        If the name is that of a hosted participant.
    """
    row = _open(tx, study.id)
    if (hosted := tx.find(study.project, hosted_name(study.id, client))) is not None:
        raise Conflict(
            f"{client} is a hosted participant, study {hosted.id}: two machines under one name would "
            "contradict each other",
            hint=f"ask and tell at {hosted.id}, or join under another name",
        )
    _enter(tx, row, client, now)
    return row


def hosted_head(study: StudyHead, resolved: Resolved, hosted: Hosted, now: float) -> StudyHead:
    """The head of a new study for a hosted participant: the spec of the federated study with its own name and seed."""
    spec = resolved.spec.model_copy(
        update={
            "name": hosted_name(study.id, hosted.client),
            "budget": Budget(),
            "target": None,
            "rounds": Rounds(),
            "labels": {},
            "seed": f"{resolved.spec.seed}/{hosted.client}",
        }
    )
    own = resolved.model_copy(update={"spec": spec, "federated": False, "reason": "", "hosted": hosted})
    return new_head(study.project, own, spec_hash(spec), now)


def host(tx: Tx, study: StudyHead, hosted: Hosted, fresh: StudyHead, now: float) -> tuple[StudyRow, StudyHead]:
    """Register a hosted participant.

    Parameters
    ----------
    fresh : the head of its study, used if it has none yet.

    Returns
    -------
    The row of the federated study, and the head of the participant's.

    Raises
    ------
    StudyStateError
        If the federated study has ended.
    Conflict
        If the name is taken by a participant that runs its own machine, by another study, or with another weight.
    """
    client = hosted.client
    row = _open(tx, study.id)
    known = tx.find(study.project, hosted_name(study.id, client))
    if known is None:
        member = tx.member(study.id, client)
        if member is not None and member.left_at is None:
            raise Conflict(
                f"{client} takes part already and runs its own machine",
                hint="choose another name, or let it leave first",
            )
        own = StudyRow(fresh.id)
        tx.insert_study(fresh, own)
        ledger.log_event(tx, own, "study.created", now, name=fresh.name)
        tx.put_study(own)
    else:
        _check_same(known, hosted)
        own = ledger.locked(tx, known.id)
        if (own.state, own.reason) == (COMPLETED, LEFT) or own.state == FAILED:
            own.state, own.reason = ACTIVE, None
            ledger.log_event(tx, own, "study.resumed", now, reason=None)
            tx.put_study(own)
    _enter(tx, row, client, now, hosted=(known or fresh).id)
    return row, known or fresh


def leave(tx: Tx, study: StudyHead, client: str, now: float) -> StudyRow:
    """Record that a participant leaves, if it takes part; returns the study's row."""
    row = ledger.locked(tx, study.id)
    member = tx.member(study.id, client)
    if member is not None and member.left_at is None:
        tx.put_member(replace(member, left_at=now))
        ledger.log_event(tx, row, "participant.left", now, client=client)
        tx.put_study(row)
    return row


# Declined phases ------------------------------------------------------------------------------------------------------


def declined(tx: Tx, row: StudyRow, before: int = 0) -> dict[str, Decline]:
    """Who declined the open phase, or one of so many phases before it, by name, with what it said last.

    Who joins again is asked again, and so is everybody once the study is resumed.
    """
    step = row.step - before
    last = tx.steps(row.id, step - 1, step) if step > 0 else []
    found: dict[str, Decline] = {}
    for event in tx.events(row.id, last[0].seq if last else 0, MAX_EVENTS):
        facts = json.loads(event.data)
        if event.type == DECLINED:
            found[facts["client"]] = Decline(**facts)
        elif event.type == "study.resumed":
            found.clear()
        elif event.type in ("participant.joined", "participant.left"):
            found.pop(facts["client"], None)
    return found


def decline(
    tx: Tx,
    study: StudyHead,
    seen: StudyRow,
    client: str,
    place: tuple[int, str],
    error: str | None,
    late: bool,
    now: float,
) -> str | None:
    """Log that a participant declines a phase (round, name); returns the outcome, or None if `seen` is out of date.

    Raises
    ------
    StudyStateError
        If the study has ended.
    """
    row = ledger.locked(tx, study.id)
    if tx.contribution(study.id, client, *place) is not None:
        return "duplicate"
    if row.state not in (ACTIVE, PAUSED):
        raise StudyStateError(f"the study is {row.state}; its rounds are over")
    if (row.step, row.epoch) != (seen.step, seen.epoch):
        return None
    if late:
        return "late"
    if client in declined(tx, row):
        return "duplicate"
    ledger.log_event(tx, row, DECLINED, now, client=client, round=place[0], phase=place[1], error=error)
    tx.put_study(row)
    return "declined"


def pause(tx: Tx, study: StudyHead, seen: StudyRow, reason: str, now: float) -> StudyRow:
    """Pause a study if nothing has come since its row was `seen`; returns the row."""
    row = ledger.locked(tx, study.id)
    if row.seq == seen.seq:
        ledger.finish(tx, row, PAUSED, reason, now)
        tx.put_study(row)
    return row


def hopeless(phase: str, n: int, fewest: int, declines: Sequence[Decline]) -> str:
    """The reason for which a study is paused when nobody is left who could contribute to its open phase."""
    return (
        f"phase {phase!r} of round {declines[0].round} has {n} of the {fewest} contributions it needs, and no more can "
        f"come: {_who(declines)} had no value to learn from; mend the evaluators, then resume"
    )


def notices(tx: Tx, study: str) -> list[Notice]:
    """What the study's owner should know of those that declined the open phase or the one before."""
    declines = list(declined(tx, ledger.locked(tx, study), 1).values())
    if not declines:
        return []
    names: list[JSON] = [one.client for one in declines]
    errors: list[JSON] = [*sorted({one.error or NOT_FINITE for one in declines})]
    return [
        Notice(
            "participants_declined",
            f"{_who(declines)} had no value to learn from, and contributed nothing",
            {"participants": names, "errors": errors},
            "look at their logs, where the messages are; a participant that joins again is asked again",
        )
    ]


def _who(declines: Sequence[Decline]) -> str:
    ordered = sorted(declines, key=lambda one: one.client)
    named = ", ".join(f"{one.client} ({one.error or NOT_FINITE})" for one in ordered[:5])
    return named + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")


def _open(tx: Tx, study: str) -> StudyRow:
    row = ledger.locked(tx, study)
    if row.state not in (ACTIVE, PAUSED):
        raise StudyStateError(
            f"the study is {row.state}; nobody can join it", hint="its recommended point is the result"
        )
    return row


def _enter(tx: Tx, row: StudyRow, client: str, now: float, **facts: str) -> None:
    member = tx.member(row.id, client)
    fresh = member is None or member.left_at is not None
    if fresh:
        tx.put_member(MemberRow(row.id, client, now))
    if fresh or client in declined(tx, row):
        ledger.log_event(tx, row, "participant.joined", now, client=client, **facts)
        tx.put_study(row)


def _check_same(known: StudyHead, wanted: Hosted) -> None:
    """Raise `Conflict` if the study with a hosted participant's name is not its study."""
    found = Resolved.model_validate_json(known.resolved).hosted
    if found is None or found.study != wanted.study:
        raise Conflict(f"the study {known.id} has the name {known.name!r} and hosts nobody", hint="rename or delete it")
    if found.weight != wanted.weight:
        raise Conflict(
            f"{wanted.client} is hosted with the weight {found.weight}, got {wanted.weight}",
            hint="send the same weight, or join under another name",
        )

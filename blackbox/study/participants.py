"""Participants of federated rounds: names, tokens, joining, leaving, hosting. Functions of one transaction."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, replace

from blackbox import federation
from blackbox.errors import Conflict, LeaseUnknown, StudyStateError
from blackbox.study import ledger
from blackbox.study.creation import new_head
from blackbox.study.rows import ACTIVE, COMPLETED, FAILED, PAUSED, MemberRow, StudyHead, StudyRow, Tx
from blackbox.study.spec import Budget, Hosted, Resolved, Rounds, spec_hash

LEFT = "left the rounds"
"""Reason for which the study of a hosted participant ends when the participant leaves."""


@dataclass(frozen=True, slots=True)
class JoinAnswer:
    """The answer to a participant that joins: its token, the invitation, and the study's row."""

    client: str
    token: str
    invitation: federation.Invitation
    row: StudyRow


# Names and tokens -----------------------------------------------------------------------------------------------------


def check(client: str, weight: float) -> None:
    """Raise `InvalidContribution` if no contribution could carry this name and weight."""
    federation.ContributionJson(terms="", client=client, round=0, phase="", weight=weight, vectors={}, evaluations=0)


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


def _open(tx: Tx, study: str) -> StudyRow:
    row = ledger.locked(tx, study)
    if row.state not in (ACTIVE, PAUSED):
        raise StudyStateError(
            f"the study is {row.state}; nobody can join it", hint="its recommended point is the result"
        )
    return row


def _enter(tx: Tx, row: StudyRow, client: str, now: float, **facts: str) -> None:
    member = tx.member(row.id, client)
    if member is None or member.left_at is not None:
        tx.put_member(MemberRow(row.id, client, now))
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

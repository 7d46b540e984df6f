"""Who takes part in federated rounds: names, tokens, joining, leaving, hosting. Functions of one transaction."""

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
"""Why the study of a hosted participant is over that has left."""


@dataclass(frozen=True, slots=True)
class Joined:
    """What a participant gets when it joins: its token, and what it must know once."""

    client: str
    token: str
    invitation: federation.Invitation
    row: StudyRow


# Names and tokens -----------------------------------------------------------------------------------------------------


def check(client: str, weight: float) -> None:
    """Raise what a contribution under that name and weight would."""
    federation.ContributionJson(terms="", client=client, round=0, phase="", weight=weight, vectors={}, evaluations=0)


def seat(study: str, client: str) -> str:
    """Name of the study of a hosted participant; a project's studies have different names."""
    return f"{study}/{client}"


def token(secret: bytes, client: str) -> str:
    """What a participant shows with everything it sends: `name~mac`."""
    mac = hashlib.blake2b(b"participant/" + client.encode(), key=secret, digest_size=12).hexdigest()
    return f"{client}~{mac}"


def read_token(secret: bytes, text: str) -> str:
    """Whose token it is.

    Raises
    ------
    LeaseUnknown
        If it was not made with this secret.
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
    """Enter a participant that runs its own machine; returns the study's row."""
    row = _open(tx, study.id)
    if (hosted := tx.find(study.project, seat(study.id, client))) is not None:
        raise Conflict(
            f"{client} is a hosted participant, study {hosted.id}: two machines under one name would "
            "contradict each other",
            hint=f"ask and tell at {hosted.id}, or join under another name",
        )
    _enter(tx, row, client, now)
    return row


def hosted_head(study: StudyHead, resolved: Resolved, place: Hosted, now: float) -> StudyHead:
    """The head of a new study for a hosted participant: the spec of its rounds, with a name and a seed of its own."""
    spec = resolved.spec.model_copy(
        update={
            "name": seat(study.id, place.client),
            "budget": Budget(),
            "target": None,
            "rounds": Rounds(),
            "labels": {},
            "seed": f"{resolved.spec.seed}/{place.client}",
        }
    )
    own = resolved.model_copy(update={"spec": spec, "federated": False, "reason": "", "hosted": place})
    return new_head(study.project, own, spec_hash(spec), now)


def host(tx: Tx, study: StudyHead, place: Hosted, fresh: StudyHead, now: float) -> tuple[StudyRow, StudyHead]:
    """Enter a hosted participant.

    Parameters
    ----------
    fresh : the head of its study, where it has none yet.

    Returns
    -------
    The row of the rounds' study, and the head of the participant's.
    """
    client = place.client
    row = _open(tx, study.id)
    known = tx.find(study.project, seat(study.id, client))
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
        _check_same(known, place)
        own = ledger.locked(tx, known.id)
        if (own.state, own.reason) == (COMPLETED, LEFT) or own.state == FAILED:
            own.state, own.reason = ACTIVE, None
            ledger.log_event(tx, own, "study.resumed", now, reason=None)
            tx.put_study(own)
    _enter(tx, row, client, now, hosted=(known or fresh).id)
    return row, known or fresh


def leave(tx: Tx, study: StudyHead, client: str, now: float) -> StudyRow:
    """Let a participant go, if it takes part; returns the study's row."""
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
    """Raise if a study that has the name of a hosted participant is not that of this one."""
    found = Resolved.model_validate_json(known.resolved).hosted
    if found is None or found.study != wanted.study:
        raise Conflict(f"the study {known.id} has the name {known.name!r} and hosts nobody", hint="rename or delete it")
    if found.weight != wanted.weight:
        raise Conflict(
            f"{wanted.client} is hosted with the weight {found.weight}, got {wanted.weight}",
            hint="send the same weight, or join under another name",
        )

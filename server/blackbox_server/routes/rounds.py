"""Federated rounds: join, read the open phase, contribute, catch up. No route takes points or values."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from starlette.responses import Response

from blackbox.errors import FieldError, InvalidContribution, InvalidInput, RoundNotFound
from blackbox.federation import Contribution, ContributionJson
from blackbox.study.answers import ContributeAnswer, OpenPhase
from blackbox.study.effects import Steps
from blackbox.study.kinds import as_kind
from blackbox.study.participants import hosted_name
from blackbox.study.rounds import FederatedStudy
from blackbox.study.rows import Tx
from blackbox_server import limits
from blackbox_server.routes import shapes
from blackbox_server.routes.call import Call
from blackbox_server.routes.responses import answer
from blackbox_server.routes.route import Routes
from blackbox_server.schemas import answers, parsing
from blackbox_server.schemas.requests import Decline, Join, Nothing, RoundQuery, UpdatesQuery
from blackbox_server.service import OpenStudy, Service

routes = Routes()

TOKEN = b"participant-token"
BYTES = "application/octet-stream"
TOKEN_HEADER = {"Participant-Token": "The `token` of the join answer."}


@routes("POST /v1/studies/{study}/rounds/join", "study:evaluate", {200: answers.JoinAnswer}, body=Join)
async def join(call: Call) -> Response:
    """Take part under a name. A participant that comes back joins again with the same name."""
    opened, study = await _federated(call)
    body = await call.body(Join)
    await _within_participants(call, study, body.client)
    hosted: answers.HostedStudyLinks | None = None
    if body.hosted:
        limits.within_hosting(call.settings, study.resolved, study.space)
        project, name = study.head.project, hosted_name(study.id, body.client)
        await call.service.usage.check_studies(project, name)
        new = await call.service.read(lambda tx: tx.find(project, name)) is None
        weight = 1.0 if body.weight is None else body.weight
        joined, head = await call.service.drive(study.host(body.client, weight, now=call.now))
        call.service.usage.made(project, int(new))
        hosted = {"study": head.id, "links": shapes.links(head.id, False, study.id)}
    elif body.weight is not None:
        fault = FieldError("/weight", "only_hosted", "belongs into the contributions of who runs its own machine")
        raise InvalidInput("only a hosted participant joins with a weight", errors=[fault])
    else:
        joined = await call.service.drive(study.join(body.client, now=call.now))
    opened.changed()
    return answer(
        {
            "client": joined.client,
            "token": joined.token,
            "hosted": hosted,
            "invitation": joined.invitation.to_json(),
            "terms": joined.invitation.terms,
            "study": shapes.progress(study, joined.row, False),
            "links": {name: f"/v1/studies/{study.id}/{path}" for name, path in LINKS.items()},
        }
    )


LINKS = {
    "current": "rounds/current",
    "contributions": "rounds/{round}/contributions",
    "decline": "rounds/{round}/decline",
    "updates": "updates",
}


@routes(
    "POST /v1/studies/{study}/rounds/leave", "study:evaluate", {200: answers.LeaveAnswer},
    body=Nothing, required=False, headers=TOKEN_HEADER,
)  # fmt: skip
async def leave(call: Call) -> Response:
    """Stop taking part: rounds no longer wait for this participant."""
    opened, study = await _federated(call)
    await call.body(Nothing)
    await call.service.drive(study.leave(_token(call), now=call.now))
    if await call.service.drive(study.advance(now=call.now)):
        opened.changed()
    return answer({"study": shapes.progress(study, await call.service.row(opened), False)})


@routes(
    "GET /v1/studies/{study}/rounds/{round}", "study:evaluate", {200: answers.OpenPhaseInfo | answers.RoundInfo},
    query=RoundQuery, headers=TOKEN_HEADER,
)  # fmt: skip
async def read(call: Call) -> Response:
    """The open phase (`current`), held until its step is after `after_step`; or a past round, by number."""
    wanted = call.query(RoundQuery)
    opened, study = await _federated(call)
    if call.path["round"] != "current":
        return answer(await _past(call.service, study, _number(call.path["round"])))
    token = call.header(TOKEN)
    loop, service = asyncio.get_running_loop(), call.service
    until = loop.time() + call.wait(wanted.wait_seconds)
    while True:
        phase = await service.drive(study.phase(now=call.now, token=token))
        remaining = 0.0 if service.stopping else until - loop.time()
        over = phase.row.state in ("COMPLETED", "CANCELLED", "FAILED")
        if over or (phase.broadcast is not None and phase.row.step > wanted.after_step) or remaining <= 0:
            return answer(_phase(study, phase, await service.drive(study.metrics())))
        with service.metrics.waiting.track_inprogress():
            # Nobody calls at the deadline, so a waiting request has to look then.
            left = remaining if phase.closes_at is None else max(0.05, phase.closes_at - call.now)
            await opened.asks.wait(min(1.0, remaining, left))
        call.recheck()


def _phase(study: FederatedStudy, phase: OpenPhase, metrics: Mapping[str, float]) -> dict[str, Any]:
    """The open phase as JSON; of its vectors it has the names, and where to fetch them."""
    broadcast = None
    if phase.broadcast is not None:
        broadcast = phase.broadcast.to_json()
        for vector in broadcast["vectors"].values():
            vector["href"] = f"/v1/studies/{study.id}/bases/{vector['sha256']}"
    return {
        "state": phase.row.state,
        "reason": phase.row.reason,
        "step": phase.row.step,
        "broadcast": broadcast,
        "invited": phase.invited,
        "contributed": phase.contributed,
        "joined": phase.joined,
        "received": phase.received,
        "need": phase.need,
        "declined": len(phase.declined),
        "closes_at": shapes.at(phase.closes_at),
        "metrics": metrics,
    }


async def _past(service: Service, study: FederatedStudy, number: int) -> answers.RoundInfo:
    """A past round: for each phase, how it closed.

    Raises
    ------
    RoundNotFound
    """
    closed = await service.drive(study.closed(number))
    if not closed:
        raise RoundNotFound(f"round {number} of {study.id} has not closed a phase")
    phases: list[answers.ClosedPhase] = [
        {"phase": name, "counted": step.told, "why": step.why, "closed_at": shapes.at(step.at), "digest": step.digest}
        for name, step in closed
    ]
    over = len(closed) == len(study.federation.phases)
    return {"round": number, "state": "AGGREGATED" if over else "OPEN", "phases": phases}


@routes(
    "POST /v1/studies/{study}/rounds/{round}/contributions", "study:evaluate", {200: answers.ContributionAnswer},
    body=ContributionJson, kinds=(BYTES,), vectors=True, headers=TOKEN_HEADER,
)  # fmt: skip
async def contribute(call: Call) -> Response:
    """Contribute to the open phase, as JSON or (application/octet-stream) in the canonical binary form."""
    opened, study = await _federated(call)
    if (call.header(b"content-type") or "").partition(";")[0].strip().lower() == BYTES:
        raw = await call.read(kinds=(call.headers[b"content-type"],))
        contribution = await asyncio.to_thread(Contribution.from_bytes, raw)
    else:
        value, finite = await call.json()
        if not finite:
            await call.work(partial(parsing.refuse_not_finite, value, kind=InvalidContribution))
        await call.work(partial(parsing.within_width, value))
        contribution = await asyncio.to_thread(Contribution.from_json, value)
    number = _number(call.path["round"])
    if contribution.round != number:
        fault = FieldError("/round", "mismatch", f"the path says {number}, the contribution {contribution.round}")
        raise InvalidContribution("the contribution is of another round than its path", errors=[fault])
    return await _received(call, opened, study, study.contribute(_token(call), contribution, now=call.now))


@routes(
    "POST /v1/studies/{study}/rounds/{round}/decline", "study:evaluate", {200: answers.ContributionAnswer},
    body=Decline, headers=TOKEN_HEADER,
)  # fmt: skip
async def decline(call: Call) -> Response:
    """Say that there is nothing to contribute to the open phase, because no evaluation gave a value."""
    opened, study = await _federated(call)
    body, number = await call.body(Decline), _number(call.path["round"])
    return await _received(
        call, opened, study, study.decline(_token(call), number, body.phase, body.error, now=call.now)
    )


async def _received(call: Call, opened: OpenStudy, study: FederatedStudy, steps: Steps[ContributeAnswer]) -> Response:
    before = study.seen
    received = await call.service.drive(steps)
    if before is None or received.row.step > before.step or received.row.state != before.state:
        opened.changed()
    else:
        opened.log.wake()
    return answer(
        {
            "outcome": received.outcome,
            "counted": received.counted,
            "received": received.received,
            "need": received.need,
            "study": shapes.progress(study, received.row, False),
        }
    )


@routes("GET /v1/studies/{study}/updates", "study:evaluate", {200: answers.UpdatesPage}, query=UpdatesQuery)
async def updates(call: Call) -> Response:
    """Updates of the common point after a version, from which a participant that was away rebuilds it."""
    wanted = call.query(UpdatesQuery)
    _, study = await _federated(call)
    # Many updates are many bytes, so they are read beside the event loop.
    rows = await call.service.drive_beside(study.updates(wanted.after, wanted.limit))
    shape = [shapes.stored(row.content) for row in rows]
    return answer({"updates": shape, "next_after": rows[-1].version if rows else wanted.after})


async def _within_participants(call: Call, study: FederatedStudy, client: str) -> None:
    """Refuse one more name when as many take part as may; who comes back is among them.

    Raises
    ------
    QuotaExceeded
    """

    def count(tx: Tx) -> int:
        known = tx.member(study.id, client)
        return 0 if known is not None else len(tx.members(study.id))

    limits.QUOTAS["participants"].check(call.settings, await call.service.read(count))


async def _federated(call: Call) -> tuple[OpenStudy, FederatedStudy]:
    opened = await call.opened()
    return opened, as_kind(opened.study, FederatedStudy)


def _token(call: Call) -> str:
    token = call.header(TOKEN)
    if token is None:
        raise InvalidInput(
            "a participant shows its token in the header Participant-Token",
            hint="POST .../rounds/join gives it.",
            errors=[FieldError("", "missing", "the header Participant-Token is required")],
        )
    return token


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 15:
        raise InvalidInput(f"a round is named by its number or by `current`, got {text[:40]!r}")
    return int(text)

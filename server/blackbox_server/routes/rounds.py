"""Federated rounds: join, see the open phase, contribute, catch up. No route takes points or values."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from blackbox.errors import FieldError, InvalidContribution, InvalidInput, RoundNotFound
from blackbox.federation import Contribution, ContributionJson
from blackbox.study.effects import perform
from blackbox.study.kinds import as_kind
from blackbox.study.rounds import FederatedStudy, OpenPhase
from blackbox_server import limits
from blackbox_server.routes import shapes
from blackbox_server.routes.http import (
    answer,
    body_of,
    header,
    needs,
    opened,
    parse,
    read_bytes,
    router,
    service,
    settings,
)
from blackbox_server.schemas import Join, Nothing
from blackbox_server.service import Open, Service

routes = router()

TOKEN = b"participant-token"


@routes.post("/v1/studies/{study}/rounds/join", **needs("study:evaluate", Join))
async def join(request: Request) -> Response:
    """Take part under a name. Joining again with the same name is how a participant comes back."""
    open, study = await _federated(request)
    body, _ = await body_of(request, Join)
    service_ = service(request)
    hosted: dict[str, Any] | None = None
    if body.hosted:
        limits.within_hosting(settings(request), study.resolved, study.space)
        weight = 1.0 if body.weight is None else body.weight
        joined, head = await service_.drive(study.host(body.client, weight, now=service_.clock()))
        hosted = {"study": head.id, "links": shapes.links(head.id, False, study.id)}
    elif body.weight is not None:
        fault = FieldError("/weight", "only_hosted", "belongs into the contributions of who runs its own machine")
        raise InvalidInput("only a hosted participant joins with a weight", errors=[fault])
    else:
        joined = await service_.drive(study.join(body.client, now=service_.clock()))
    open.changed()
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


LINKS = {"current": "rounds/current", "contributions": "rounds/{round}/contributions", "updates": "updates"}


@routes.post("/v1/studies/{study}/rounds/leave", **needs("study:evaluate", Nothing, required=False))
async def leave(request: Request) -> Response:
    """Take part no more: rounds do not wait for this participant."""
    open, study = await _federated(request)
    await body_of(request, Nothing, allow_empty=True)
    service_ = service(request)
    await service_.drive(study.leave(_token(request), now=service_.clock()))
    await _advance(service_, open, study)
    return answer({"study": shapes.progress(study, service_.row(open), False)})


@routes.get("/v1/studies/{study}/rounds/{round}", **needs("study:evaluate"))
async def read(
    request: Request,
    after_step: Annotated[int, Query(ge=-1, le=2**53)] = -1,
    wait_seconds: Annotated[float, Query(ge=0, allow_inf_nan=False)] = 0.0,
) -> Response:
    """The open phase (`current`), held while its step is not after `after_step`; or a round that is over, by number."""
    open, study = await _federated(request)
    service_ = service(request)
    named = request.path_params["round"]
    if named != "current":
        return answer(await _past(service_, study, _number(named)))
    token = _token(request) if header(request, TOKEN) is not None else None
    loop = asyncio.get_running_loop()
    until = loop.time() + min(wait_seconds, settings(request).max_wait_seconds)
    while True:
        phase = await service_.drive(study.phase(now=service_.clock(), token=token))
        remaining = 0.0 if service_.stopping else until - loop.time()
        over = phase.row.state in ("COMPLETED", "CANCELLED", "FAILED")
        if over or (phase.broadcast is not None and phase.row.step > after_step) or remaining <= 0:
            return answer(_phase(study, phase, await service_.drive(study.metrics())))
        with service_.metrics.waiting.track_inprogress():
            # At the deadline nobody calls, so who waits looks then.
            left = remaining if phase.closes_at is None else max(0.05, phase.closes_at - service_.clock())
            await open.asks.wait(min(1.0, remaining, left))


def _phase(study: FederatedStudy, phase: OpenPhase, metrics: Mapping[str, float]) -> dict[str, Any]:
    """The open phase as JSON; its vectors are named, with where to get them."""
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
        "closes_at": shapes.at(phase.closes_at),
        "metrics": metrics,
    }


async def _past(service_: Service, study: FederatedStudy, number: int) -> dict[str, Any]:
    """A round that is over: how each of its phases closed."""
    closed = await service_.drive(study.closed(number))
    if not closed:
        raise RoundNotFound(f"round {number} of {study.id} has not closed a phase")
    phases = [
        {"phase": name, "counted": step.told, "why": step.why, "closed_at": shapes.at(step.at), "digest": step.digest}
        for name, step in closed
    ]
    over = len(closed) == len(study.federation.phases)
    return {"round": number, "state": "AGGREGATED" if over else "OPEN", "phases": phases}


@routes.post("/v1/studies/{study}/rounds/{round}/contributions", **needs("study:evaluate", ContributionJson))
async def contribute(request: Request) -> Response:
    """One participant's update for the open phase, as JSON or (application/octet-stream) as its canonical bytes."""
    limit = settings(request).max_vector_body_bytes
    kind = (header(request, b"content-type") or b"").split(b";")[0].strip().lower()
    open, study = await _federated(request)
    if kind == b"application/octet-stream":
        raw = await read_bytes(request, limit, kinds=(kind,))
        contribution = await asyncio.to_thread(Contribution.from_bytes, raw)
    else:
        value, finite = await parse(await read_bytes(request, limit))
        if not finite:
            raise InvalidContribution("a number in the contribution is not finite")
        contribution = await asyncio.to_thread(Contribution.from_json, value)
    number = _number(request.path_params["round"])
    if contribution.round != number:
        fault = FieldError("/round", "mismatch", f"the path says {number}, the contribution {contribution.round}")
        raise InvalidContribution("the contribution is of another round than its path", errors=[fault])
    service_ = service(request)
    before = study.seen
    received = await service_.drive(study.contribute(_token(request), contribution, now=service_.clock()))
    if before is None or received.row.step > before.step or received.row.state != before.state:
        open.changed()
    else:
        open.log.wake()
    return answer(
        {
            "outcome": received.outcome,
            "counted": received.counted,
            "received": received.received,
            "need": received.need,
            "study": shapes.progress(study, received.row, False),
        }
    )


@routes.get("/v1/studies/{study}/updates", **needs("study:evaluate"))
async def updates(
    request: Request,
    after: Annotated[int, Query(ge=0, le=2**53)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
) -> Response:
    """How the common point moved after a version: a participant that was away rebuilds it from these."""
    _, study = await _federated(request)
    # Many moves are many bytes, so they are read beside the event loop.
    rows = await asyncio.to_thread(perform, service(request).store, study.updates(after, limit))
    shape = [shapes.stored(row.content) for row in rows]
    return answer({"updates": shape, "next_after": rows[-1].version if rows else after})


async def _federated(request: Request) -> tuple[Open, FederatedStudy]:
    open = await opened(request)
    return open, as_kind(open.study, FederatedStudy)


async def _advance(service_: Service, open: Open, study: FederatedStudy) -> None:
    if await service_.drive(study.advance(now=service_.clock())):
        open.changed()


def _token(request: Request) -> str:
    found = header(request, TOKEN)
    if found is None:
        raise InvalidInput(
            "a participant shows its token in the header Participant-Token",
            hint="POST .../rounds/join gives it.",
            errors=[FieldError("", "missing", "the header Participant-Token is required")],
        )
    return found.decode("latin-1")


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 15:
        raise InvalidInput(f"a round is named by its number or by `current`, got {text[:40]!r}")
    return int(text)

"""Studies: create, list, read, change, end, branch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from blackbox.errors import InvalidInput
from blackbox.space import Space
from blackbox.study import creation as engine
from blackbox.study.base import BaseStudy
from blackbox.study.editing import Study
from blackbox.study.effects import Steps
from blackbox.study.kinds import as_kind
from blackbox.study.rows import StudyHead, StudyRow, Tx
from blackbox.study.spec import StudySpec, parse_spec, resolve
from blackbox_server import limits, schemas
from blackbox_server import service as services
from blackbox_server.problems import PreconditionFailed
from blackbox_server.routes import shapes
from blackbox_server.routes.http import (
    Bytes,
    answer,
    body_limit,
    body_of,
    dumps,
    exchange,
    needs,
    once,
    opened,
    parse,
    read_bytes,
    router,
    service,
    settings,
    tagged,
)
from blackbox_server.schemas import Edit, Fork, Nothing, Reason

routes = router()


def _created(tx: Tx, made: Any) -> tuple[int, bytes]:
    head, new = made
    row = tx.study(head.id)
    assert row is not None
    return (201 if new else 200), dumps(shapes.study_json(head, row))


@routes.post("/v1/studies", **needs("study:admin", StudySpec))
async def create(request: Request) -> Response:
    """Create a study, or get the one of the same name and spec."""
    raw = await read_bytes(request, body_limit(request, vectors=True))
    value, finite = await parse(raw)
    if not finite:
        schemas.refuse_not_finite(value)
    if not isinstance(value, dict):
        raise InvalidInput(f"expected an object, got {type(value).__name__}", hint="Send a study's spec.")
    spec = parse_spec(value)
    limits.within_reach(settings(request), Space.from_json(spec.space))
    resolved, space = resolve(spec)
    limits.within_memory(settings(request), resolved, space)
    made = engine.create(exchange(request).principal.project, spec, service(request).clock())
    done = await service(request).once(once(request, raw), made, _created)
    location = dict(_location(done.result[0].id)) if done.result is not None else {}
    return Bytes(done.body, done.status, [(k.encode(), v.encode()) for k, v in location.items()])


def _location(study: str) -> list[tuple[str, str]]:
    return [("location", f"/v1/studies/{study}")]


@routes.get("/v1/studies", **needs("study:read"))
async def list_studies(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """Studies of the key's project, oldest first."""
    project = exchange(request).principal.project
    found = service(request).read(lambda tx: tx.studies(project, cursor, limit + 1))
    page = found[:limit]
    following = f"/v1/studies?limit={limit}&cursor={page[-1][0].id}" if len(found) > limit else None
    return answer({"studies": [shapes.study_json(head, row) for head, row in page], "next": following})


@routes.get("/v1/studies/{study}", **needs("study:read"))
async def read(request: Request) -> Response:
    """One study."""
    open = await opened(request)
    head, row = open.study.head, service(request).row(open)
    return tagged(request, shapes.study_json(head, row), shapes.study_etag(head, row))


@routes.patch("/v1/studies/{study}", **needs("study:admin", Edit))
async def edit(request: Request) -> Response:
    """Change budget, labels, lease defaults or parallelism.

    If-Match is compared with the part of the ETag before the dot: the spec's version.
    """
    changes, _ = await body_of(request, Edit)
    open, service_ = await opened(request), service(request)
    study = open.study
    condition = request.headers.get("if-match")
    if condition is not None and condition != "*":
        versions = [word.strip().strip('"').partition(".")[0] for word in condition.split(",")]
        if shapes.spec_version(study.head) not in versions:
            raise PreconditionFailed(f"the spec of {study.id} has changed since {condition[:80]}")
    await service_.drive(
        study.edit(budget=changes.budget, labels=changes.labels, lease=changes.lease, parallelism=changes.parallelism)
    )
    open.changed()
    row = service_.row(open)
    return tagged(request, shapes.study_json(study.head, row), shapes.study_etag(study.head, row))


@routes.delete("/v1/studies/{study}", **needs("study:admin"))
async def delete(request: Request) -> Response:
    """Delete a study with all its rows."""
    open = await opened(request)
    await service(request).drive(services.delete(open.study.id))
    service(request).forget(open.study.id)
    return Response(status_code=204)


# State ----------------------------------------------------------------------------------------------------------------


async def _transition(request: Request, change: Callable[[BaseStudy, str | None], Steps[StudyRow]]) -> Response:
    body, raw = await body_of(request, Reason, allow_empty=True)
    open = await opened(request)
    head = open.study.head

    def render(tx: Tx, row: StudyRow) -> tuple[int, bytes]:
        return 200, dumps(shapes.study_json(head, row))

    done = await service(request).once(once(request, raw), change(open.study, body.reason), render)
    open.changed()
    return Bytes(done.body, done.status)


@routes.post("/v1/studies/{study}/pause", **needs("study:admin", Reason, required=False))
async def pause(request: Request) -> Response:
    """Hand out nothing; take every result."""
    now = service(request).clock()
    return await _transition(request, lambda study, reason: study.pause(now=now, reason=reason or "by request"))


@routes.post("/v1/studies/{study}/resume", **needs("study:admin", Reason, required=False))
async def resume(request: Request) -> Response:
    """Go on after a pause or a failure."""
    now = service(request).clock()
    return await _transition(request, lambda study, _: study.resume(now=now))


@routes.post("/v1/studies/{study}/complete", **needs("study:admin", Reason, required=False))
async def complete(request: Request) -> Response:
    """End the study; results that are out are still taken."""
    now = service(request).clock()
    return await _transition(request, lambda study, _: study.complete(now=now))


@routes.post("/v1/studies/{study}/cancel", **needs("study:admin", Reason, required=False))
async def cancel(request: Request) -> Response:
    """End the study and cancel what is out."""
    now = service(request).clock()
    return await _transition(request, lambda study, _: study.cancel(now=now))


# Branches and snapshots -----------------------------------------------------------------------------------------------


@routes.post("/v1/studies/{study}/fork", **needs("study:admin", Fork, required=False))
async def fork(request: Request) -> Response:
    """A study that shares this one's past up to a generation."""
    body, raw = await body_of(request, Fork, allow_empty=True)
    open, service_ = await opened(request), service(request)
    now = service_.clock()
    name = body.name or f"{open.study.spec.name[:150]}-fork-{int(now * 1000):x}"
    algorithm = {"name": body.algorithm} if isinstance(body.algorithm, str) else body.algorithm

    def render(tx: Tx, head: StudyHead) -> tuple[int, bytes]:
        return _created(tx, (head, True))

    steps = as_kind(open.study, Study).fork(name, now=now, step=body.step, algorithm=algorithm)
    done = await service_.once(once(request, raw), steps, render)
    location = [] if done.result is None else [(b"location", f"/v1/studies/{done.result.id}".encode())]
    return Bytes(done.body, done.status, location)


@routes.post("/v1/studies/{study}/snapshots", **needs("study:admin", Nothing, required=False))
async def snapshot(request: Request) -> Response:
    """Store the state of the open generation now."""
    await body_of(request, Nothing, allow_empty=True)
    open, service_ = await opened(request), service(request)
    await service_.advance(open)
    step, size = await service_.drive(services.snapshot(open.study))
    return answer({"generation": step, "step": step, "bytes": size}, 201)

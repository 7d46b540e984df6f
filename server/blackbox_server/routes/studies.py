"""Studies: create, list, read, edit, end, fork."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.responses import Response

from blackbox import codec
from blackbox.errors import InvalidInput, StudyNotFound
from blackbox.space import Space
from blackbox.study import creation as engine
from blackbox.study.base import BaseStudy
from blackbox.study.editing import Study
from blackbox.study.effects import Steps, write
from blackbox.study.kinds import as_kind
from blackbox.study.rows import SnapshotRow, StudyHead, StudyRow, Tx
from blackbox.study.spec import StudySpec, parse_spec, resolve
from blackbox_server import limits
from blackbox_server.problems import PreconditionFailed
from blackbox_server.routes import shapes
from blackbox_server.routes.call import Call
from blackbox_server.routes.responses import JsonResponse, answer, dumps, tagged
from blackbox_server.routes.route import Routes
from blackbox_server.schemas import parsing
from blackbox_server.schemas.answers import SnapshotTaken, StudiesPage, StudyInfo
from blackbox_server.schemas.requests import Edit, Fork, Nothing, Reason, StudiesQuery
from blackbox_server.service import LARGE_SPEC
from blackbox_server.settings import Settings

routes = Routes()

PAGE_CHARACTERS = 4_000_000
"""Specs of more characters than this in total go to several pages."""


def _created(tx: Tx, made: tuple[StudyHead, bool]) -> tuple[int, bytes]:
    head, new = made
    row = tx.study(head.id)
    assert row is not None
    return (201 if new else 200), dumps(shapes.study_json(head, row))


def _location(head: StudyHead | None) -> list[tuple[bytes, bytes]]:
    return [] if head is None else [(b"location", f"/v1/studies/{head.id}".encode())]


@routes("POST /v1/studies", "study:admin", {200: StudyInfo, 201: StudyInfo}, body=StudySpec, vectors=True)
async def create(call: Call) -> Response:
    """Create a study, or get the existing one of the same name and spec."""
    value, finite = await call.json()
    if not finite:
        await call.work(partial(parsing.refuse_not_finite, value))
    if not isinstance(value, dict):
        raise InvalidInput(f"expected an object, got {type(value).__name__}", hint="Send a study's spec.")
    spec = await call.work(partial(_checked, call.settings, value))
    await call.service.usage.check_studies(call.principal.project, spec.name)
    done = await call.once(engine.create(call.principal.project, spec, call.now), _created)
    if done.status == 201 and done.result is not None:
        call.service.usage.made(call.principal.project)
    return JsonResponse(done.body, done.status, _location(None if done.result is None else done.result[0]))


def _checked(settings: Settings, value: dict[str, Any]) -> StudySpec:
    """A spec that can be used, and whose algorithm has the memory it needs."""
    parsing.within_width({name: part for name, part in value.items() if name != "space"})
    spec = parse_spec(value)
    limits.within_labels(settings, spec.labels)
    limits.within_reach(settings, Space.from_json(spec.space))
    resolved, space = resolve(spec)
    limits.within_memory(settings, resolved, space)
    shapes.described(resolved.model_dump_json())  # so that the answer, made in the transaction, finds it read
    return spec


async def _read_specs(call: Call, *heads: StudyHead) -> None:
    """Read large specs in a thread, so that the answer finds them read."""
    for head in heads:
        if len(head.resolved) >= LARGE_SPEC:
            await call.service.beside(partial(shapes.described, head.resolved))


@routes("GET /v1/studies", "study:read", {200: StudiesPage}, query=StudiesQuery)
async def list_studies(call: Call) -> Response:
    """Studies of the key's project, oldest first."""
    wanted, project = call.query(StudiesQuery), call.principal.project
    found = await call.service.read(lambda tx: tx.studies(project, wanted.cursor, wanted.limit + 1))
    page = found[: limits.fitting((len(head.resolved) for head, _ in found[: wanted.limit]), PAGE_CHARACTERS)]
    more = len(found) > len(page)
    await _read_specs(call, *(head for head, _ in page))
    following = f"/v1/studies?limit={wanted.limit}&cursor={page[-1][0].id}" if more else None
    return answer({"studies": [shapes.study_json(head, row) for head, row in page], "next": following})


@routes("GET /v1/studies/{study}", "study:read", {200: StudyInfo, 304: None})
async def read(call: Call) -> Response:
    """One study."""
    opened = await call.opened()
    head, row = opened.study.head, await call.service.row(opened)
    await _read_specs(call, head)
    return tagged(call, shapes.study_json(head, row), shapes.study_etag(head, row))


@routes(
    "PATCH /v1/studies/{study}", "study:admin", {200: StudyInfo, 304: None},
    body=Edit, headers={"If-Match": "ETag of the study; only the part before the dot counts: the spec's version."},
)  # fmt: skip
async def edit(call: Call) -> Response:
    """Edit budget, labels, lease defaults or parallelism.

    If-Match is compared with the part of the ETag before the dot: the spec's version.
    """
    changes = await call.body(Edit)
    limits.within_labels(call.settings, changes.labels or {})
    opened = await call.opened()
    study, condition = opened.study, call.header(b"if-match")
    if condition is not None and condition != "*":
        versions = [word.strip().strip('"').partition(".")[0] for word in condition.split(",")]
        if shapes.spec_version(study.head) not in versions:
            raise PreconditionFailed(f"the spec of {study.id} has changed since {condition[:80]}")
    await call.service.drive(
        study.edit(budget=changes.budget, labels=changes.labels, lease=changes.lease, parallelism=changes.parallelism)
    )
    opened.changed()
    row = await call.service.row(opened)
    await _read_specs(call, study.head)
    return tagged(call, shapes.study_json(study.head, row), shapes.study_etag(study.head, row))


@routes("DELETE /v1/studies/{study}", "study:admin", {204: None})
async def delete(call: Call) -> Response:
    """Delete a study with all its rows."""
    opened = await call.opened()
    await call.service.drive(_delete(opened.study.id))
    call.service.forget(opened.study.id)
    call.service.usage.made(call.principal.project, -1)
    return Response(status_code=204)


# State ----------------------------------------------------------------------------------------------------------------


async def _transition(call: Call, change: Callable[[BaseStudy, str | None], Steps[StudyRow]]) -> Response:
    body = await call.body(Reason)
    opened = await call.opened()
    head = opened.study.head
    await _read_specs(call, head)

    def render(tx: Tx, row: StudyRow) -> tuple[int, bytes]:
        return 200, dumps(shapes.study_json(head, row))

    done = await call.once(change(opened.study, body.reason), render)
    opened.changed()
    return JsonResponse(done.body, done.status)


@routes("POST /v1/studies/{study}/pause", "study:admin", {200: StudyInfo}, body=Reason, required=False)
async def pause(call: Call) -> Response:
    """Hand out no trials; results are still taken."""
    return await _transition(call, lambda study, reason: study.pause(now=call.now, reason=reason or "by request"))


@routes("POST /v1/studies/{study}/resume", "study:admin", {200: StudyInfo}, body=Reason, required=False)
async def resume(call: Call) -> Response:
    """Go on after a pause or a failure."""
    return await _transition(call, lambda study, _: study.resume(now=call.now))


@routes("POST /v1/studies/{study}/complete", "study:admin", {200: StudyInfo}, body=Reason, required=False)
async def complete(call: Call) -> Response:
    """End the study; results of leased trials are still taken."""
    return await _transition(call, lambda study, _: study.complete(now=call.now))


@routes("POST /v1/studies/{study}/cancel", "study:admin", {200: StudyInfo}, body=Reason, required=False)
async def cancel(call: Call) -> Response:
    """End the study and cancel its open trials."""
    return await _transition(call, lambda study, _: study.cancel(now=call.now))


# Branches and snapshots -----------------------------------------------------------------------------------------------


@routes("POST /v1/studies/{study}/fork", "study:admin", {201: StudyInfo}, body=Fork, required=False)
async def fork(call: Call) -> Response:
    """A study that shares this one's past up to a step."""
    body = await call.body(Fork)
    study, now = as_kind((await call.opened()).study, Study), call.now
    name = body.name or f"{study.spec.name[:150]}-fork-{int(now * 1000):x}"
    algorithm = {"name": body.algorithm} if isinstance(body.algorithm, str) else body.algorithm

    def render(tx: Tx, head: StudyHead) -> tuple[int, bytes]:
        return _created(tx, (head, True))

    await call.service.usage.check_studies(call.principal.project, name)
    done = await call.once(study.fork(name, now=now, step=body.step, algorithm=algorithm), render)
    if done.result is not None:
        call.service.usage.made(call.principal.project)
    return JsonResponse(done.body, done.status, _location(done.result))


@routes("POST /v1/studies/{study}/snapshots", "study:admin", {201: SnapshotTaken}, body=Nothing, required=False)
async def snapshot(call: Call) -> Response:
    """Store the state of the open step now."""
    await call.body(Nothing)
    opened = await call.opened()
    await call.service.advance(opened)
    step, size = await call.service.drive(_snapshot(opened.study))
    return answer({"step": step, "bytes": size}, 201)


def _snapshot(study: BaseStudy) -> Steps[tuple[int, int]]:
    """Store the state of the open step now; returns the step and the size of the state in bytes."""
    while True:
        row, state = yield from study.state()
        encoded = codec.encode(state)
        place = (row.epoch, row.step)

        def work(tx: Tx, place: tuple[int, int] = place, encoded: bytes = encoded) -> bool:
            current = tx.study(study.id)
            if current is None:
                raise StudyNotFound(f"there is no study {study.id}")
            if (current.epoch, current.step) != place:
                return False
            tx.insert_snapshot(SnapshotRow(study.id, *place, encoded))
            return True

        if (yield from write(work, long=True)):
            return row.step, len(encoded)


def _delete(study: str) -> Steps[None]:
    """Delete a study with all its rows."""

    def work(tx: Tx) -> None:
        if tx.study(study) is None:
            raise StudyNotFound(f"there is no study {study}")
        tx.delete_study(study)

    yield from write(work, long=True)

"""Trials: enqueue, import, read, cancel, run again, take back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from blackbox.errors import FieldError, InvalidInput, LeaseUnknown, TrialNotFound, nearest
from blackbox.study import leases
from blackbox.study.editing import Study
from blackbox.study.effects import Steps
from blackbox.study.kinds import as_kind
from blackbox.study.open_step import PARAMS_STORED_UPTO
from blackbox.study.rows import TRIAL_STATES, StudyHead, StudyRow, TrialRow, Tx
from blackbox.study.trials import TrialStudy
from blackbox_server import limits, schemas
from blackbox_server.problems import IdempotencyKeyRequired
from blackbox_server.routes import hot, shapes
from blackbox_server.routes.http import (
    Bytes,
    answer,
    body_of,
    dumps,
    exchange,
    idempotency_key,
    needs,
    once,
    opened,
    router,
    service,
    settings,
    tagged,
    trial_in_path,
)
from blackbox_server.schemas import Enqueue, InterimReport, Reason

routes = router()


@routes.post("/v1/studies/{study}/trials", **needs("study:admin", Enqueue))
async def enqueue(request: Request) -> Response:
    """Put given points in the queue, or import finished ones (with a value, or infeasible)."""
    body, raw = await body_of(request, Enqueue, vectors=True)
    limits.within_count(settings(request), body.trials, "/trials")
    open, service_ = await opened(request), service(request)
    finished = [item.value is not None or item.status == "infeasible" for item in body.trials]
    if not any(finished):

        def render(tx: Tx, queued: tuple[StudyRow, list[int]]) -> tuple[int, bytes]:
            trials = [{"id": f"t_{n}", "number": n, "state": "QUEUED"} for n in queued[1]]
            return 201, dumps({"trials": trials})

        steps = as_kind(open.study, Study).enqueue([item.params for item in body.trials], now=service_.clock())
        done = await service_.once(once(request, raw), steps, render)
        open.changed()
        return Bytes(done.body, done.status)
    if not all(finished):
        raise InvalidInput(
            "either all trials are finished or none is",
            hint="Send points to evaluate and finished ones in two requests.",
            errors=[FieldError("/trials", "mixed", "some have a value, some have none")],
        )
    if idempotency_key(request) is None:
        raise IdempotencyKeyRequired("imported results would count twice if they were sent twice")
    items = [
        schemas.Result(params=item.params, value=item.value, status=item.status, source=item.source, info=item.info)
        for item in body.trials
    ]
    reports = [hot.report(open.study, item, settings(request).max_info_bytes) for item in items]
    own = exchange(request)

    def imported(tx: Tx, told: Any) -> tuple[int, bytes]:
        shape = [shapes.outcome_json(o, own.request_id, f"/trials/{i}") for i, o in enumerate(told.outcomes)]
        return 201, dumps({"trials": [{**item, "id": item["trial"]} for item in shape]})

    steps_ = as_kind(open.study, TrialStudy).tell(reports, now=service_.clock(), worker=own.principal.name)
    done_ = await service_.once(once(request, raw), steps_, imported)
    if done_.result is not None:
        await service_.told(open, done_.result)
    return Bytes(done_.body, done_.status)


@routes.get("/v1/studies/{study}/trials", **needs("study:read"))
async def page(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[int, Query(ge=0, le=schemas.MAX_TRIAL)] = 0,
    state: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """Trials by number, with their parameters; a recipe whose base is no longer kept is shown as the recipe."""
    open, service_ = await opened(request), service(request)
    states = _states(state)
    study = open.study

    def work(tx: Tx) -> tuple[list[TrialRow], dict[int, Any]]:
        rows = tx.page(study.id, cursor, limit + 1, states)
        small = study.space.dim <= PARAMS_STORED_UPTO
        return rows, tx.points(study.id, [row.number for row in rows[:limit]]) if small and rows else {}

    rows, points = await service_.read_much(work)
    shown = rows[:limit]
    asks = [points[row.number] for row in shown] if points else []
    params = await shapes.points_json(service_, as_kind(study, TrialStudy), asks, past=True) if asks else []
    now = service_.clock()
    trials = [{**shapes.trial_json(row, now), **(params[i] if params else {})} for i, row in enumerate(shown)]
    following = None
    if len(rows) > limit:
        following = f"/v1/studies/{study.id}/trials?limit={limit}&cursor={shown[-1].number}"
        following += f"&state={','.join(states)}" if states else ""
    return answer({"trials": trials, "next": following})


def _states(text: str) -> list[str]:
    states = [word.strip().upper() for word in text.split(",") if word.strip()]
    for state in states:
        if state not in TRIAL_STATES:
            fault = FieldError("/state", "unknown", nearest(state, TRIAL_STATES))
            raise InvalidInput(f'there is no trial state "{state}"', hint=nearest(state, TRIAL_STATES), errors=[fault])
    return states


@routes.get("/v1/studies/{study}/trials/{trial}", **needs("study:read"))
async def read(request: Request) -> Response:
    """One trial, with its parameters."""
    open, service_ = await opened(request), service(request)
    number = trial_in_path(request)
    study = open.study
    found = service_.read(lambda tx: _one(tx, study.id, number))
    if found is None:
        raise TrialNotFound(f"study {study.id} has no trial t_{number}")
    limits.within_values(settings(request), study.space.dim, 1)
    point = (await shapes.points_json(service_, as_kind(study, TrialStudy), [found[1]], past=True))[0]
    return tagged(request, {**shapes.trial_json(found[0], service_.clock()), **point})


def _one(tx: Tx, study: str, number: int) -> tuple[TrialRow, Any] | None:
    row = tx.trial(study, number)
    return None if row is None else (row, tx.points(study, [number])[number])


async def _change(request: Request, change: Callable[[TrialStudy, int], Steps[TrialRow]]) -> Response:
    _, raw = await body_of(request, Reason, allow_empty=True)
    open, service_ = await opened(request), service(request)
    number = trial_in_path(request)

    def render(tx: Tx, changed: tuple[StudyRow, TrialRow]) -> tuple[int, bytes]:
        return 200, dumps(shapes.trial_json(changed[1], service_.clock()))

    done = await service_.once(once(request, raw), change(as_kind(open.study, TrialStudy), number), render)
    open.changed()
    return Bytes(done.body, done.status)


@routes.post("/v1/studies/{study}/trials/{trial}/cancel", **needs("study:admin", Reason, required=False))
async def cancel(request: Request) -> Response:
    """Withdraw an open trial."""
    now = service(request).clock()
    return await _change(request, lambda study, number: study.cancel_trial(number, now=now))


@routes.post("/v1/studies/{study}/trials/{trial}/requeue", **needs("study:admin", Reason, required=False))
async def requeue(request: Request) -> Response:
    """Run a trial again that has no value."""
    now = service(request).clock()
    return await _change(request, lambda study, number: study.requeue_trial(number, now=now))


@routes.post("/v1/studies/{study}/trials/{trial}/invalidate", **needs("study:admin", Reason, required=False))
async def invalidate(request: Request) -> Response:
    """Take a result back: the state becomes that of a replay without it."""
    _, raw = await body_of(request, Reason, allow_empty=True)
    open, service_ = await opened(request), service(request)
    number = trial_in_path(request)

    def render(tx: Tx, taken: tuple[StudyRow, int]) -> tuple[int, bytes]:
        return 200, dumps({"trial": f"t_{number}", "invalidated": taken[1], "epoch": taken[0].epoch})

    steps = as_kind(open.study, Study).invalidate(trial=number, now=service_.clock())
    done = await service_.once(once(request, raw), steps, render)
    open.changed()
    return Bytes(done.body, done.status)


def _studies(tx: Tx, project: str, after: str) -> list[tuple[StudyHead, StudyRow]]:
    return tx.studies(project, after, 100)


@routes.post("/v1/workers/{worker}/quarantine", **needs("study:admin", Reason, required=False))
async def quarantine(request: Request) -> Response:
    """Take back all results of a worker, in every study of the project."""
    await body_of(request, Reason, allow_empty=True)
    service_, project = service(request), exchange(request).principal.project
    worker = request.path_params["worker"]
    taken: dict[str, int] = {}
    after = ""
    while found := await service_.read_much(partial(_studies, project=project, after=after)):
        after = found[-1][0].id
        for head, _ in found:
            open = await service_.open(head.id, project)
            count = await service_.drive(as_kind(open.study, Study).invalidate(worker=worker, now=service_.clock()))
            if count:
                taken[head.id] = count
                open.changed()
    return answer({"worker": worker, "invalidated": taken, "blocked": False})


@routes.post("/v1/studies/{study}/trials/{trial}/reports", **needs("study:evaluate", InterimReport))
async def interim(request: Request) -> Response:
    """An interim value. It extends the lease; the answer says whether to go on."""
    body, _ = await body_of(request, InterimReport)
    open, service_ = await opened(request), service(request)
    number = trial_in_path(request)
    study = open.study
    token = body.lease
    if token is None:
        trial = service_.read(lambda tx: tx.trial(study.id, number))
        if trial is None:
            raise TrialNotFound(f"study {study.id} has no trial t_{number}")
        if study.spec.require_lease:
            raise LeaseUnknown("this study wants the lease token with every report")
        token = leases.token(study.head.secret, number, trial.attempt)
    renewal = (await service_.drive(as_kind(study, TrialStudy).heartbeat([token], now=service_.clock())))[0]
    if renewal.error is not None:
        raise renewal.error
    return answer({"directive": renewal.directive, "lease_expires_at": shapes.at(renewal.until)})

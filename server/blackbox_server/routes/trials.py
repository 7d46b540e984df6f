"""Trials: enqueue, import, read, cancel, requeue, invalidate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.responses import Response

from blackbox.errors import FieldError, IncompatibleProblem, InvalidInput, LeaseUnknown, TrialNotFound, nearest
from blackbox.study import leases
from blackbox.study.editing import Study
from blackbox.study.effects import Steps
from blackbox.study.kinds import as_kind
from blackbox.study.open_step import PARAMS_STORED_UPTO
from blackbox.study.rows import TRIAL_STATES, InterimRow, PointRow, StudyHead, StudyRow, TrialRow, Tx
from blackbox.study.trials import TrialStudy
from blackbox_server import limits
from blackbox_server.problems import IdempotencyKeyRequired
from blackbox_server.routes import hot, shapes
from blackbox_server.routes.call import Call
from blackbox_server.routes.responses import JsonResponse, answer, dumps, tagged
from blackbox_server.routes.route import Routes
from blackbox_server.schemas import answers
from blackbox_server.schemas.requests import Enqueue, InterimReport, Reason, Result, TrialsQuery
from blackbox_server.service import OpenStudy

routes = Routes()


@routes("POST /v1/studies/{study}/trials", "study:admin", {201: answers.Enqueued}, body=Enqueue, vectors=True)
async def enqueue(call: Call) -> Response:
    """Enqueue points to evaluate, or import finished ones (with a value, or infeasible)."""
    body = await call.body(Enqueue)
    finished = [item.value is not None or item.status == "infeasible" for item in body.trials]
    opened = await call.opened()
    row = await call.service.row(opened)
    limits.QUOTAS["trials"].check(call.settings, row.trials, len(body.trials))
    if not any(finished):
        limits.QUOTAS["queued"].check(call.settings, row.queued, len(body.trials))
        return await _enqueue(call, opened, body)
    if not all(finished):
        raise InvalidInput(
            "either all trials are finished or none is",
            hint="Send points to evaluate and finished ones in two requests.",
            errors=[FieldError("/trials", "mixed", "some have a value, some have none")],
        )
    if call.idempotency_key is None:
        raise IdempotencyKeyRequired("imported results would count twice if they were sent twice")
    return await _import(call, opened, body)


async def _enqueue(call: Call, opened: OpenStudy, body: Enqueue) -> Response:
    def render(tx: Tx, queued: tuple[StudyRow, list[int]]) -> tuple[int, bytes]:
        trials = [{"id": f"t_{n}", "number": n, "state": "QUEUED"} for n in queued[1]]
        return 201, dumps({"trials": trials})

    steps = as_kind(opened.study, Study).enqueue([item.params for item in body.trials], now=call.now)
    done = await call.once(steps, render)
    opened.changed()
    return JsonResponse(done.body, done.status)


async def _import(call: Call, opened: OpenStudy, body: Enqueue) -> Response:
    study = as_kind(opened.study, TrialStudy)
    call.inject(len(body.trials))
    items = [Result(**item.model_dump()) for item in body.trials]
    reports = await call.work(lambda: [hot.report(study, item, call.settings.max_info_bytes) for item in items])

    def render(tx: Tx, told: Any) -> tuple[int, bytes]:
        shape = [shapes.outcome_json(o, call.request_id, f"/trials/{i}") for i, o in enumerate(told.outcomes)]
        return 201, dumps({"trials": [{**item, "id": item["trial"]} for item in shape]})

    done = await call.once(study.tell(reports, now=call.now, worker=call.principal.name), render)
    if done.result is not None:
        await call.service.told(opened, done.result)
    return JsonResponse(done.body, done.status)


@routes("GET /v1/studies/{study}/trials", "study:read", {200: answers.TrialsPage}, query=TrialsQuery)
async def page(call: Call) -> Response:
    """Trials by number, with their parameters, or as a recipe if its base vector is no longer kept."""
    wanted = call.query(TrialsQuery)
    states = _states(wanted.state)
    study = (await call.opened()).study

    def work(tx: Tx) -> tuple[list[TrialRow], dict[int, PointRow]]:
        rows = tx.page(study.id, wanted.cursor, wanted.limit + 1, states)
        small = study.space.dim <= PARAMS_STORED_UPTO
        return rows, tx.points(study.id, [row.number for row in rows[: wanted.limit]]) if small and rows else {}

    rows, points = await call.service.read(work, long=True)
    shown = rows[: wanted.limit]
    asks = [points[row.number] for row in shown] if points else []
    params = await shapes.points_json(call.service, as_kind(study, TrialStudy), asks, past=True) if asks else []
    now = call.now
    trials = [{**shapes.trial_json(row, now), **(params[i] if params else {})} for i, row in enumerate(shown)]
    following = None
    if len(rows) > wanted.limit:
        following = f"/v1/studies/{study.id}/trials?limit={wanted.limit}&cursor={shown[-1].number}"
        following += f"&state={','.join(states)}" if states else ""
    return answer({"trials": trials, "next": following})


def _states(text: str) -> list[str]:
    states = [word.strip().upper() for word in text.split(",") if word.strip()]
    for state in states:
        if state not in TRIAL_STATES:
            fault = FieldError("/state", "unknown", nearest(state, TRIAL_STATES))
            raise InvalidInput(f'there is no trial state "{state}"', hint=nearest(state, TRIAL_STATES), errors=[fault])
    return states


@routes("GET /v1/studies/{study}/trials/{trial}", "study:read", {200: answers.TrialDetail, 304: None})
async def read(call: Call) -> Response:
    """One trial, with its parameters and interim values."""
    study, number = (await call.opened()).study, call.trial
    found = await call.service.read(lambda tx: _one(tx, study.id, number))
    if found is None:
        raise TrialNotFound(f"study {study.id} has no trial t_{number}")
    limits.within_values(call.settings, study.space.dim, 1)
    trial, asked, interim = found
    point = (await shapes.points_json(call.service, as_kind(study, TrialStudy), [asked], past=True))[0]
    return tagged(call, {**shapes.trial_json(trial, call.now), **point, "interim": shapes.interim_json(interim)})


def _one(tx: Tx, study: str, number: int) -> tuple[TrialRow, PointRow, list[InterimRow]] | None:
    row = tx.trial(study, number)
    return None if row is None else (row, tx.points(study, [number])[number], tx.interim(study, number))


async def _change(call: Call, change: Callable[[TrialStudy, int], Steps[Any]]) -> Response:
    await call.body(Reason)
    opened, number = await call.opened(), call.trial

    def render(tx: Tx, changed: tuple[StudyRow, TrialRow]) -> tuple[int, bytes]:
        return 200, dumps(shapes.trial_json(changed[1], call.now))

    done = await call.once(change(as_kind(opened.study, TrialStudy), number), render)
    opened.changed()
    return JsonResponse(done.body, done.status)


@routes(
    "POST /v1/studies/{study}/trials/{trial}/cancel", "study:admin", {200: answers.TrialInfo},
    body=Reason, required=False,
)  # fmt: skip
async def cancel(call: Call) -> Response:
    """Withdraw an open trial."""
    return await _change(call, lambda study, number: study.cancel_trial(number, now=call.now))


@routes(
    "POST /v1/studies/{study}/trials/{trial}/requeue", "study:admin", {200: answers.TrialInfo},
    body=Reason, required=False,
)  # fmt: skip
async def requeue(call: Call) -> Response:
    """Queue a trial that has no value once more."""
    return await _change(call, lambda study, number: study.requeue_trial(number, now=call.now))


@routes(
    "POST /v1/studies/{study}/trials/{trial}/invalidate", "study:admin", {200: answers.Invalidated},
    body=Reason, required=False,
)  # fmt: skip
async def invalidate(call: Call) -> Response:
    """Take a result back: the state becomes that of a replay without it."""
    await call.body(Reason)
    opened, number = await call.opened(), call.trial

    def render(tx: Tx, taken: tuple[StudyRow, int]) -> tuple[int, bytes]:
        return 200, dumps({"trial": f"t_{number}", "invalidated": taken[1], "epoch": taken[0].epoch})

    done = await call.once(as_kind(opened.study, Study).invalidate(trial=number, now=call.now), render)
    opened.changed()
    return JsonResponse(done.body, done.status)


def _studies(tx: Tx, project: str, after: str) -> list[tuple[StudyHead, StudyRow]]:
    return tx.studies(project, after, 100)


@routes("POST /v1/workers/{worker}/quarantine", "study:admin", {200: answers.Quarantined}, body=Reason, required=False)
async def quarantine(call: Call) -> Response:
    """Take back all results of a worker, in every study of the project that has results to take back.

    Of federated studies and their hosted participants nothing is taken; the answer says so for each.
    """
    await call.body(Reason)
    service, project, worker = call.service, call.principal.project, call.path["worker"]
    taken: dict[str, int] = {}
    skipped: dict[str, str] = {}
    after = ""
    while found := await service.read(partial(_studies, project=project, after=after), long=True):
        after = found[-1][0].id
        for head, _ in found:
            opened = await service.open(head.id, project)
            try:
                study = as_kind(opened.study, Study)
            except IncompatibleProblem as error:
                skipped[head.id] = error.detail
                continue
            count = await service.drive(study.invalidate(worker=worker, now=call.now))
            if count:
                taken[head.id] = count
                opened.changed()
    return answer({"worker": worker, "invalidated": taken, "skipped": skipped})


@routes(
    "POST /v1/studies/{study}/trials/{trial}/reports", "study:evaluate", {200: answers.InterimAnswer},
    body=InterimReport,
)  # fmt: skip
async def interim(call: Call) -> Response:
    """Report an interim value, of which the newest 100 stay with the trial. It extends the lease; the answer says
    whether to continue."""
    body = await call.body(InterimReport)
    study, number = as_kind((await call.opened()).study, TrialStudy), call.trial
    token = body.lease
    if token is None:
        trial = await call.service.read(lambda tx: tx.trial(study.id, number))
        if trial is None:
            raise TrialNotFound(f"study {study.id} has no trial t_{number}")
        if study.spec.require_lease:
            raise LeaseUnknown("this study wants the lease token with every report")
        token = leases.token(study.head.secret, number, trial.attempt)
    elif leases.read_token(study.head.secret, token)[0] != number:
        raise LeaseUnknown(f"the lease token is not for t_{number}")
    renewal = await call.service.drive(study.report(token, step=body.step, value=body.value, now=call.now))
    if renewal.error is not None:
        raise renewal.error
    return answer({"directive": renewal.directive, "lease_expires_at": shapes.at(renewal.until)})

"""The hot path: ask, tell, heartbeat. Bytes in, bytes out, nothing in between that is not needed."""

from __future__ import annotations

import json
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from blackbox.errors import AlgorithmChanged, BlackboxError, FieldError, InvalidInput, TooLarge
from blackbox.study.answers import AskAnswer, AskRequest
from blackbox.study.base import BaseStudy
from blackbox.study.kinds import as_kind
from blackbox.study.rows import StudyRow, Tx
from blackbox.study.settling import Outcome, Report
from blackbox.study.trials import TrialStudy
from blackbox_server import limits, schemas
from blackbox_server.problems import IdempotencyKeyRequired, problem
from blackbox_server.routes import shapes
from blackbox_server.routes.http import (
    Exchange,
    answer,
    body_of,
    dumps,
    exchange,
    idempotency_key,
    needs,
    once,
    opened,
    parse,
    read_bytes,
    router,
    service,
    settings,
)
from blackbox_server.schemas import Ask, Heartbeat, Result, Tell
from blackbox_server.service import Once, Open, Service

routes = router()


@routes.post("/v1/studies/{study}/ask", **needs("study:evaluate", Ask))
async def ask(request: Request) -> Response:
    """Lease up to `count` trials."""
    wanted, _ = await body_of(request, Ask)
    open = await opened(request)
    wish = _wish(request, open, wanted, wanted.worker)
    return answer(await _ask(request, service(request), open, wanted, wish))


@routes.post("/v1/studies/{study}/tell", **needs("study:evaluate", Tell))
async def tell(request: Request) -> Response:
    """Results, item by item, and perhaps the next ask. The short form is one result without `results`."""
    raw = await read_bytes(request, settings(request).max_vector_body_bytes)
    value, finite = await parse(raw)
    open = await opened(request)
    told, short = _long_form(value)
    body = schemas.fit(Tell, told, shorten="/results/0" if short else "")
    if not finite:
        schemas.refuse_not_finite(value, tolerant=open.study.spec.non_finite == "infeasible")
    limits.within_count(settings(request), body.results, "/results")
    own, service_ = exchange(request), service(request)
    wish = None if body.ask is None else _wish(request, open, body.ask, body.ask.worker or body.worker)
    asked: AskAnswer | None = None
    worker = body.worker or own.principal.name
    if any(item.params is not None for item in body.results):
        outcomes = await _tell_injected(request, service_, open, body, worker, raw, short)
        row = service_.row(open)
    else:
        outcomes, row, asked = await _tell(own, service_, open, body.results, worker, short, wish)
    shape: dict[str, Any] = {
        "applied": sum(outcome["outcome"] == "applied" for outcome in outcomes),
        "results": outcomes,
        "study": shapes.progress(open.study, row, own.principal.may("study:read")),
    }
    if body.ask is not None and wish is not None:
        try:
            shape["ask"] = await _ask(request, service_, open, body.ask, wish, asked)
            shape["study"] = shape["ask"].pop("study")
        except AlgorithmChanged as error:  # what was told is stored, so this request has not failed
            shape["ask"] = {
                "trials": [], "granted": 0, "requested": wish.count, "reason": "algorithm_changed",
                "retry_after_seconds": None, "problem": problem(error, own.request_id),
            }  # fmt: skip
    return answer(shape)


@routes.post("/v1/studies/{study}/heartbeat", **needs("study:evaluate", Heartbeat))
async def heartbeat(request: Request) -> Response:
    """Renew leases; the answer says what to do with each."""
    body, _ = await body_of(request, Heartbeat)
    limits.within_count(settings(request), body.leases, "/leases")
    open = await opened(request)
    service_ = service(request)
    renewals = await service_.drive(
        as_kind(open.study, TrialStudy).heartbeat(body.leases, now=service_.clock(), extend_seconds=body.extend_seconds)
    )
    leases = []
    for renewal in renewals:
        shape: dict[str, Any] = {"token": renewal.token, "directive": renewal.directive}
        if renewal.until is not None:
            shape["expires_at"] = shapes.at(renewal.until)
        if renewal.error is not None:
            shape["problem"] = problem(renewal.error, exchange(request).request_id)
        leases.append(shape)
    return answer({"leases": leases, "commands": []})


# Asking ---------------------------------------------------------------------------------------------------------------


def _wish(request: Request, open: Open, wanted: Ask, worker: str | None) -> AskRequest:
    """What an ask wants, within the limits: looked at before anything is told, or a stored tell would answer 422."""
    study, own = open.study, exchange(request)
    limits.within_count(settings(request), wanted.count, "/count")
    if wanted.encoding == "seed":
        _check_seed_encodable(study)
    else:
        limits.within_values(settings(request), study.space.dim, wanted.count)
    seconds = None if wanted.lease_seconds == "auto" else wanted.lease_seconds
    key = _ask_key(own, idempotency_key(request))
    return AskRequest(worker or own.principal.name, wanted.count, seconds, key, wanted.resume)


async def _ask(
    request: Request, service_: Service, open: Open, wanted: Ask, wish: AskRequest, asked: AskAnswer | None = None
) -> dict[str, Any]:
    asked = await service_.ask(open, wish, wait_seconds=wanted.wait_seconds, gone=_Gone(request).wait, asked=asked)
    return await shapes.asked_json(
        service_, as_kind(open.study, TrialStudy), asked, wanted.encoding, exchange(request).principal.may("study:read")
    )


def _ask_key(own: Exchange, key: str | None) -> str | None:
    """The key as it is kept on the leased rows: two API keys of one project must not find each other's leases."""
    return None if key is None else f"{own.principal.key_id}/{key}"


class _Gone:
    """Whether the client has left. After the body, the next message can only be that."""

    def __init__(self, request: Request) -> None:
        self._receive = request.receive

    async def wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _check_seed_encodable(study: BaseStudy) -> None:
    if not (isinstance(study, TrialStudy) and study.seed_encodable):
        raise InvalidInput(
            f"{study.resolved.algorithm} on this space does not send its points as seeds",
            hint='Ask with "encoding":"values". Seeds need one unbounded vector and a method that works on noise '
            "addresses; GET /v1/algorithms marks those.",
            errors=[FieldError("/encoding", "not_seed_encodable", "this study sends values")],
        )


# Telling --------------------------------------------------------------------------------------------------------------


def _long_form(value: Any) -> tuple[Any, bool]:
    """`{"trial": ..., "value": ...}` as `{"results": [...]}`; whether it was the short form."""
    if type(value) is not dict or "results" in value or not ("trial" in value or "params" in value or "lease" in value):
        return value, False
    outer = {name: value[name] for name in ("worker", "ask") if name in value}
    inner = {name: item for name, item in value.items() if name not in outer}
    return {**outer, "results": [inner]}, True


async def _tell(
    own: Exchange, service_: Service, open: Open, items: list[Result], worker: str, short: bool, wish: AskRequest | None
) -> tuple[list[dict[str, Any]], StudyRow, AskAnswer | None]:
    reports: list[Report] = []
    refused: dict[int, BlackboxError] = {}
    for i, item in enumerate(items):
        try:
            reports.append(report(open.study, item, service_.settings.max_info_bytes))
        except BlackboxError as error:
            refused[i] = error
    told, row = await service_.tell(open, reports, worker, wish)
    outcomes = iter(told.outcomes)
    shape = [
        shapes.outcome_json(
            Outcome(item.trial, "rejected", error=refused[i]) if i in refused else next(outcomes),
            own.request_id,
            "" if short else f"/results/{i}",
        )
        for i, item in enumerate(items)
    ]
    return shape, row, told.asked


async def _tell_injected(
    request: Request, service_: Service, open: Open, body: Tell, worker: str, raw: bytes, short: bool
) -> list[dict[str, Any]]:
    """A tell with points that nobody asked for: each must be recognised when it is told again.

    With the header the whole tell is remembered; with keys on the items each of those is.
    """
    own = exchange(request)
    if idempotency_key(request) is not None:
        return await _tell_once(own, service_, open, body.results, worker, once(request, raw), short)
    outcomes: list[dict[str, Any]] = []
    for i, item in enumerate(body.results):
        if item.params is not None and item.key is None:
            pointer = "" if short else f"/results/{i}"
            raise IdempotencyKeyRequired(
                f"{schemas.dotted(pointer) if pointer else 'the result'} has params: told twice, it would count twice",
                errors=[FieldError(f"{pointer}/key", "missing", "or the header Idempotency-Key")],
            )
    for i, item in enumerate(body.results):
        if item.params is None:
            outcomes += (await _tell(own, service_, open, [item], worker, True, None))[0]
        else:
            content = orjson.dumps(item.model_dump(exclude_none=True))
            call = Once.of(own.principal.project, f"{open.study.id}/item/{item.key}", content)
            outcomes += await _tell_once(own, service_, open, [item], worker, call, True)
        for fault in outcomes[-1].get("problem", {}).get("errors", ()):
            fault["pointer"] = fault["pointer"] if short else f"/results/{i}{fault['pointer']}"
    return outcomes


async def _tell_once(
    own: Exchange, service_: Service, open: Open, items: list[Result], worker: str, call: Once, short: bool
) -> list[dict[str, Any]]:
    reports, refused = [], {}
    for i, item in enumerate(items):
        try:
            reports.append(report(open.study, item, service_.settings.max_info_bytes))
        except BlackboxError as error:
            refused[i] = Outcome(item.trial, "rejected", error=error)

    def render(tx: Tx, told: Any) -> tuple[int, bytes]:
        outcomes = iter(told.outcomes)
        shape = [
            shapes.outcome_json(refused.get(i) or next(outcomes), own.request_id, "" if short else f"/results/{i}")
            for i in range(len(items))
        ]
        return 200, dumps(shape)

    steps = as_kind(open.study, TrialStudy).tell(reports, now=service_.clock(), worker=worker)
    done = await service_.once(call, steps, render)
    if done.result is not None:
        await service_.told(open, done.result)
    outcomes: list[dict[str, Any]] = orjson.loads(done.body)
    return outcomes


EXTRA = frozenset({"stderr", "n", "cost", "behaviour", "sums", "info", "reason", "fidelity"})
"""What is kept with a result beside its value."""
LIMITED = (
    ("info", "Keep artefacts elsewhere and send their address."),
    ("sums", "Add up over blocks of numbers, or send fewer digits."),
)


def report(study: BaseStudy, item: Result, max_info_bytes: int) -> Report:
    """One told result as the engine takes it.

    Raises
    ------
    InvalidInput
        If it names no trial, or its point does not fit the space.
    TooLarge
        If its `info` or its `sums` are.
    """
    extra: dict[str, Any] = {}
    if told := item.model_fields_set & EXTRA:
        for name, hint in LIMITED:
            if name in told and len(dumps(getattr(item, name))) > max_info_bytes:
                raise TooLarge(
                    f"{name} is larger than {max_info_bytes} bytes",
                    hint=hint,
                    errors=[FieldError(f"/{name}", "too_large", f"at most {max_info_bytes} bytes of JSON")],
                )
        extra = {name: value for name in EXTRA if (value := getattr(item, name)) is not None}
    retryable = True
    if item.error is not None:
        extra["error"] = item.error.model_dump()
        retryable = item.error.retryable
    if item.params is not None:
        if item.trial is not None or item.status in ("failed", "released"):
            raise InvalidInput(
                "a result with params is of no trial, and is completed, infeasible or stopped",
                hint="Leave out trial and lease, or leave out params.",
                errors=[FieldError("/params", "not_with_trial", "params are for points the study did not choose")],
            )
        vector = study.space.encode(item.params).astype("<f8").tobytes()
        source = item.source or "injected"
        return Report(None, None, item.status, item.value, extra, retryable, vector, json.dumps(item.params), source)
    trial = item.trial
    if trial is None and item.lease is not None:
        head = item.lease.split(".", 1)[0]
        trial = int(head) if head.isdecimal() and len(head) < 16 else None
    if trial is None:
        raise InvalidInput(
            "a result needs its trial",
            hint='Send {"trial":"t_41","value":0.183} with the `id` that ask gave.',
            errors=[FieldError("/trial", "missing", "this field is required")],
        )
    return Report(trial, item.lease, item.status, item.value, extra, retryable)

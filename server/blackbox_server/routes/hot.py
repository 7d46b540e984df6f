"""The hot path: ask, tell, heartbeat. Only what is needed happens between the bytes that come in and go out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import orjson
from starlette.responses import Response

from blackbox.errors import AlgorithmChanged, BlackboxError, FieldError, InvalidInput, TooLarge
from blackbox.study.answers import AskAnswer, AskRequest
from blackbox.study.base import BaseStudy
from blackbox.study.kinds import as_kind
from blackbox.study.rows import StudyRow, Tx
from blackbox.study.settling import Outcome, Report
from blackbox.study.side_data import TOLD
from blackbox.study.trials import TrialStudy
from blackbox_server import limits
from blackbox_server.problems import IdempotencyKeyRequired, Unauthorized
from blackbox_server.routes import shapes
from blackbox_server.routes.call import Call
from blackbox_server.routes.responses import answer, dumps
from blackbox_server.routes.route import Routes
from blackbox_server.schemas import answers, parsing
from blackbox_server.schemas.requests import Ask, Failure, Heartbeat, Result, ShortTell, Tell
from blackbox_server.service import IdempotentRequest, OpenStudy

routes = Routes()


@routes("POST /v1/studies/{study}/ask", "study:evaluate", {200: answers.AskAnswer}, body=Ask)
async def ask(call: Call) -> Response:
    """Lease up to `count` trials."""
    wanted = await call.body(Ask)
    opened = await call.opened()
    ask_request = _ask_request(call, opened.study, wanted, wanted.worker)
    asked = await call.service.ask(
        opened, ask_request, wait_seconds=call.wait(wanted.wait_seconds), gone=call.gone, again=call.recheck
    )
    granted = await shapes.granted_json(call.service, opened.study, asked, wanted.encoding)
    return answer({**granted, "study": shapes.progress(opened.study, asked.row, call.may_read)})


@routes(
    "POST /v1/studies/{study}/tell", "study:evaluate", {200: answers.TellAnswer}, body=Tell | ShortTell, vectors=True
)
async def tell(call: Call) -> Response:
    """Tell results, and perhaps ask for the next trials. Each result is taken or refused on its own."""
    value, finite = await call.json()
    opened = await call.opened()
    short = _is_short(value)
    body = (await call.fit(ShortTell, value)).written_out() if short else await call.fit(Tell, value)
    if not finite:
        tolerant = opened.study.spec.non_finite == "infeasible"
        await call.work(partial(parsing.refuse_not_finite, value, tolerant=tolerant))
    tell_request = _TellRequest(call, opened, body.worker or call.principal.name, short)
    ask_request = None
    if body.ask is not None:
        ask_request = _ask_request(call, opened.study, body.ask, body.ask.worker or body.worker)
    asked: AskAnswer | None = None
    if n_injected := sum(item.params is not None for item in body.results):
        limits.QUOTAS["trials"].check(call.settings, (await call.service.row(opened)).trials, n_injected)
        call.inject(n_injected)
        outcomes = await tell_request.injected(body.results)
        row = await call.service.row(opened)
    else:
        outcomes, row, asked = await tell_request.trials(body.results, ask_request)
    shape: answers.TellAnswer = {
        "applied": sum(outcome["outcome"] == "applied" for outcome in outcomes),
        "results": outcomes,
        "study": shapes.progress(opened.study, row, call.may_read),
    }
    if body.ask is not None and ask_request is not None:
        try:
            asked = await call.service.ask(
                opened, ask_request, wait_seconds=call.wait(body.ask.wait_seconds), gone=call.gone, again=call.recheck,
                asked=asked,
            )  # fmt: skip
            shape["ask"] = await shapes.granted_json(call.service, opened.study, asked, body.ask.encoding)
            shape["study"] = shapes.progress(opened.study, asked.row, call.may_read)
        except (AlgorithmChanged, Unauthorized) as error:  # what was told is stored, so this request has not failed
            shape["ask"] = shapes.nothing_granted(ask_request.count, error, call.request_id)
    return answer(shape)


@routes("POST /v1/studies/{study}/heartbeat", "study:evaluate", {200: answers.HeartbeatAnswer}, body=Heartbeat)
async def heartbeat(call: Call) -> Response:
    """Renew leases; the answer says for each whether to continue."""
    body = await call.body(Heartbeat)
    study = as_kind((await call.opened()).study, TrialStudy)
    renewals = await call.service.drive(study.heartbeat(body.leases, now=call.now, extend_seconds=body.extend_seconds))
    return answer({"leases": [shapes.renewal_json(renewal, call.request_id) for renewal in renewals]})


# Asking ---------------------------------------------------------------------------------------------------------------


def _ask_request(call: Call, study: BaseStudy, wanted: Ask, worker: str | None) -> AskRequest:
    """The body of an ask as the engine takes it.

    It is checked before anything is told: else a tell whose results are stored would be answered with an error.

    Raises
    ------
    TooLarge
        If more trials, or more numbers, are asked for than one request may have.
    InvalidInput
        If seeds are asked of a study that has none to send.
    """
    limits.within_count(call.settings, wanted.count, "/count")
    if wanted.encoding == "seed":
        _check_seed_encodable(study)
    else:
        limits.within_values(call.settings, study.space.dim, wanted.count)
    seconds = None if wanted.lease_seconds == "auto" else wanted.lease_seconds
    key = call.idempotency_key
    if key is not None:  # kept on the leased rows: two API keys of one project must not find each other's leases
        key = f"{call.principal.key_id}/{key}"
    return AskRequest(worker or call.principal.name, wanted.count, seconds, key, wanted.resume)


def _check_seed_encodable(study: BaseStudy) -> None:
    if not (isinstance(study, TrialStudy) and study.seed_encodable):
        raise InvalidInput(
            f"{study.resolved.algorithm} on this space does not send its points as seeds",
            hint='Ask with "encoding":"values". Seeds need one unbounded vector and an algorithm that works on noise '
            "addresses; GET /v1/algorithms marks those.",
            errors=[FieldError("/encoding", "not_seed_encodable", "this study sends values")],
        )


# Telling --------------------------------------------------------------------------------------------------------------


def _is_short(value: Any) -> bool:
    """Whether a body is a `ShortTell`: it has no `results`, and names a trial, a lease or a point itself."""
    return type(value) is dict and "results" not in value and not value.keys().isdisjoint(("trial", "params", "lease"))


@dataclass(frozen=True, slots=True)
class _TellRequest:
    """Tells the results of one request.

    Attributes
    ----------
    short : the request was a `ShortTell`, so the pointers of errors begin at the result itself.
    """

    call: Call
    opened: OpenStudy
    worker: str
    short: bool

    async def trials(
        self, items: Sequence[Result], ask: AskRequest | None
    ) -> tuple[list[answers.OutcomeInfo], StudyRow, AskAnswer | None]:
        """Tell results of trials that were leased."""
        reports, refused = await self.call.work(partial(self._reports, items))
        told, row = await self.call.service.tell(self.opened, reports, self.worker, ask)
        return self._shape(items, refused, told.outcomes), row, told.asked

    async def injected(self, items: Sequence[Result]) -> list[answers.OutcomeInfo]:
        """Tell results some of which are of points that the study did not choose; a retry must not count them twice.

        With an Idempotency-Key header the answer to the whole tell is remembered, otherwise that to each keyed item.
        """
        call = self.call
        if call.idempotency_key is not None:
            return await self._once(items, call.idempotent)
        for i, item in enumerate(items):
            if item.params is not None and item.key is None:
                pointer = "" if self.short else f"/results/{i}"
                raise IdempotencyKeyRequired(
                    f"{parsing.dotted(pointer) if pointer else 'the result'} has params: told twice, it would count "
                    "twice",
                    errors=[FieldError(f"{pointer}/key", "missing", "or the header Idempotency-Key")],
                )
        outcomes: list[answers.OutcomeInfo] = []
        alone = replace(self, short=True)
        for i, item in enumerate(items):
            if item.params is None:
                outcomes += (await alone.trials([item], None))[0]
            else:
                content = await call.work(partial(_content, item))
                key = f"{self.opened.study.id}/item/{item.key}"
                outcomes += await alone._once([item], IdempotentRequest.of(call.principal.project, key, content))
            if not self.short and "problem" in outcomes[-1]:
                for fault in outcomes[-1]["problem"]["errors"]:
                    fault["pointer"] = f"/results/{i}{fault['pointer']}"
        return outcomes

    async def _once(self, items: Sequence[Result], request: IdempotentRequest) -> list[answers.OutcomeInfo]:
        reports, refused = await self.call.work(partial(self._reports, items))

        def render(tx: Tx, told: Any) -> tuple[int, bytes]:
            return 200, dumps(self._shape(items, refused, told.outcomes))

        service, study = self.call.service, as_kind(self.opened.study, TrialStudy)
        steps = study.tell(reports, now=self.call.now, worker=self.worker)
        done = await service.once(request, steps, render)
        if done.result is not None:
            await service.told(self.opened, done.result)
        outcomes: list[answers.OutcomeInfo] = orjson.loads(done.body)
        return outcomes

    def _reports(self, items: Sequence[Result]) -> tuple[list[Report], dict[int, BlackboxError]]:
        """The results as the engine takes them, and by index the errors of those that it does not get to see."""
        reports: list[Report] = []
        refused: dict[int, BlackboxError] = {}
        for i, item in enumerate(items):
            try:
                reports.append(report(self.opened.study, item, self.call.settings.max_info_bytes))
            except BlackboxError as error:
                refused[i] = error
        return reports, refused

    def _shape(
        self, items: Sequence[Result], refused: Mapping[int, BlackboxError], told: Sequence[Outcome]
    ) -> list[answers.OutcomeInfo]:
        outcomes = iter(told)
        return [
            shapes.outcome_json(
                Outcome(item.trial, "rejected", error=refused[i]) if i in refused else next(outcomes),
                self.call.request_id,
                "" if self.short else f"/results/{i}",
            )
            for i, item in enumerate(items)
        ]


def _content(item: Result) -> bytes:
    """A digest of a result, by which a repetition is recognised."""
    return hashlib.sha256(orjson.dumps(item.model_dump(exclude_none=True))).digest()


_SIDE_DATA = frozenset(TOLD)


def report(study: BaseStudy, item: Result, max_info_bytes: int) -> Report:
    """One result as the engine takes it.

    Raises
    ------
    InvalidInput
        If it names no trial, or its point does not fit the space.
    TooLarge
        If a field beside the value exceeds `max_info_bytes` as JSON.
    """
    extra: dict[str, Any] = {}
    for name in item.model_fields_set & _SIDE_DATA:
        if (value := getattr(item, name)) is None:
            continue
        if (hint := TOLD[name].too_large) is not None and len(dumps(value)) > max_info_bytes:
            raise TooLarge(
                f"{name} is larger than {max_info_bytes} bytes",
                hint=hint,
                errors=[FieldError(f"/{name}", "too_large", f"at most {max_info_bytes} bytes of JSON")],
            )
        extra[name] = value
    retryable = True
    if item.error is not None:
        extra["error"] = item.error.model_dump()
        retryable = item.error.retryable
    elif item.status == "failed" and "reason" in extra:  # what a person writes who does not know of `error`
        extra["error"] = Failure(message=extra["reason"]).model_dump()
    if item.params is not None:
        if item.trial is not None or item.status in ("failed", "released"):
            raise InvalidInput(
                "a result with params is of no trial, and is completed, infeasible or stopped",
                hint="Leave out trial and lease, or leave out params.",
                errors=[FieldError("/params", "not_with_trial", "params are for points the study did not choose")],
            )
        vector = study.space.encode(item.params).astype("<f8").tobytes()
        source = item.source or "injected"
        text = dumps(item.params).decode()
        return Report(None, None, item.status, item.value, extra, retryable, vector, text, source)
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

"""Reading a study: best, events, export, brief, base vectors."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from math import isnan
from typing import cast

from starlette.responses import PlainTextResponse, Response, StreamingResponse

from blackbox.errors import RENAMED, AlgorithmChanged, BlobNotFound, FieldError, InvalidInput, nearest
from blackbox.study.answers import OpenPhase
from blackbox.study.base import BaseStudy
from blackbox.study.hosting import HostedStudy
from blackbox.study.kinds import as_kind
from blackbox.study.participants import NOT_FINITE
from blackbox.study.rounds import FederatedStudy
from blackbox.study.rows import StudyRow, Tx
from blackbox.study.trials import TrialStudy
from blackbox_server import limits
from blackbox_server.problems import RangeNotSatisfiable
from blackbox_server.routes import shapes
from blackbox_server.routes.call import Call
from blackbox_server.routes.responses import answer, dumps, tagged
from blackbox_server.routes.route import Routes
from blackbox_server.schemas import answers
from blackbox_server.schemas.requests import BestQuery, EventsQuery, ExportQuery, trial_number
from blackbox_server.service import OpenStudy, Service

routes = Routes()


@routes("GET /v1/studies/{study}/best", "study:read", {200: answers.BestAnswer, 304: None}, query=BestQuery)
async def best(call: Call) -> Response:
    """The best told trial, the k best points with estimated values, the point to deploy, or the algorithm's own."""
    wanted = call.query(BestQuery)
    opened = await call.opened()
    limits.within_values(call.settings, opened.study.space.dim, wanted.k)
    found: tuple[answers.Items, str | None]
    if wanted.view != "observed":
        found = await _recommended(call, opened, proposed=wanted.view == "proposed")
    elif wanted.k > 1:
        found = await _best_points(call.service, as_kind(opened.study, TrialStudy), wanted.k)
    else:
        found = await _best_trial(call, opened.study)
    items, note = found
    return tagged(call, {"view": wanted.view, "items": items, "note": note})


async def _recommended(call: Call, opened: OpenStudy, *, proposed: bool) -> tuple[list[answers.RecommendedPoint], str]:
    await call.service.advance(opened)
    study = opened.study
    found = await call.service.drive(study.propose() if proposed else study.recommend())
    estimate: answers.Estimate | None = None
    if found.estimate is not None:
        estimate = {"mean": found.estimate.mean, "n": found.estimate.n, "stderr": found.estimate.stderr}
    item: answers.RecommendedPoint = {
        "id": None if found.trial is None else f"t_{found.trial}",
        "step": found.step,
        "params": found.params,
        "value": found.value,
        "estimate": estimate,
    }
    if found.payload is not None:
        item["payload"] = found.payload
    return [item], found.note


async def _best_points(service: Service, study: TrialStudy, k: int) -> tuple[list[answers.EstimatedPoint], str]:
    # A scan of the whole history, so not in the event loop; one best point is kept up to date and costs nothing.
    archive, numbers = await service.drive_beside(study.archive())
    rows = archive.best(k)
    points = await service.drive(study.points([numbers[row] for row in rows]))
    sign = -1.0 if study.maximize else 1.0
    items: list[answers.EstimatedPoint] = []
    for row in rows:
        error = float(archive.stderr[row])
        estimate: answers.Estimate = {
            "mean": sign * float(archive.mean[row]), "n": int(archive.n[row]), "stderr": None if isnan(error) else error
        }  # fmt: skip
        items.append({"id": f"t_{numbers[row]}", "params": study.params(*points[numbers[row]]), "estimate": estimate})
    incumbent = archive.incumbent()
    trusted = "" if incumbent is None else f"; t_{numbers[incumbent]} is the one to trust, noise considered"
    return items, f"by mean value; equal points are replicates of one another{trusted}"


async def _best_trial(call: Call, study: BaseStudy) -> tuple[list[answers.TrialWithPoint], str | None]:
    found = await call.service.drive(study.best()) if isinstance(study, TrialStudy) else None
    if found is None:
        return [], None
    trial, params = found
    extreme = "largest" if study.maximize else "smallest"
    note = f"one evaluation; under noise the {extreme} of many values is better than the point is"
    return [cast(answers.TrialWithPoint, {**shapes.trial_json(trial, call.now), "params": params})], note


@routes("GET /v1/studies/{study}/health", "study:read", {200: answers.StudyHealth})
async def health(call: Call) -> Response:
    """What the study's owner should know: code, sentence, numbers, what to do; no items mean that all is well."""
    opened = await call.opened()
    await call.service.advance(opened)
    found = await call.service.drive(opened.study.health(now=call.now))
    return answer({"items": [asdict(notice) for notice in found]})


@routes("GET /v1/studies/{study}/events", "study:read", {200: answers.EventsPage}, query=EventsQuery)
async def events(call: Call) -> Response:
    """The log after a sequence number; with `wait_seconds`, held until there is something to show."""
    wanted = call.query(EventsQuery)
    opened, service = await call.opened(), call.service
    types = _types(wanted.types)
    after, loop = wanted.after, asyncio.get_running_loop()
    until = loop.time() + call.wait(wanted.wait_seconds)
    while True:
        work = partial(shapes.log_page, study=opened.study.id, after=after, limit=wanted.limit)
        page, last = await service.read(work)
        page = [event for event in page if not types or event["type"] in types]
        remaining = 0.0 if service.stopping else until - loop.time()
        if page or (remaining <= 0 and last == after):
            return answer({"events": page, "next_after": str(last)})
        if last > after:
            after = last  # other types only: look on
            continue
        with service.metrics.waiting.track_inprogress():
            await opened.log.wait(min(1.0, remaining))
        call.recheck()


def _types(text: str) -> set[str]:
    """The types of events in a list with commas.

    Raises
    ------
    InvalidInput
        For a type that has another name now; one that is merely unknown has no events.
    """
    types = {word.strip() for word in text.split(",") if word.strip()}
    for word in sorted(types & RENAMED.keys()):
        hint = nearest(word, [RENAMED[word]])
        raise InvalidInput(
            f'there are no events of the type "{word}"', hint=hint, errors=[FieldError("/types", "unknown", hint)]
        )
    return types


@routes("GET /v1/studies/{study}/export", "study:read", {200: "application/x-ndjson"}, query=ExportQuery)
async def export(call: Call) -> Response:
    """The whole log as lines of JSON: the study, then its events by number, results with their parameters."""
    wanted = call.query(ExportQuery)
    opened, service = await call.opened(), call.service
    row = await service.row(opened)
    head = opened.study.head
    first = {"type": "study", "at": shapes.at(head.created_at), "data": shapes.study_json(head, row)}

    async def lines() -> AsyncIterator[bytes]:
        yield dumps(first) + b"\n"
        at = wanted.after_seq
        while True:
            chunk, last = await service.read(partial(_chunk, study=opened.study, after=at), long=True)
            if last == at:
                return
            yield chunk
            at = last

    return StreamingResponse(lines(), media_type="application/x-ndjson")


def _chunk(tx: Tx, study: BaseStudy, after: int) -> tuple[bytes, int]:
    page, last = shapes.log_page(tx, study.id, after, 500)
    told = [event for event in page if event["type"].startswith("trial.") and isinstance(event["data"], dict)]
    told = [event for event in told if event["type"] != "trial.late"]
    numbers = [int(event["data"]["trial"][2:]) for event in told]
    points = tx.points(study.id, numbers) if numbers else {}
    for event, number in zip(told, numbers, strict=True):
        point = points[number]
        if point.params is not None:
            event["data"]["params"] = shapes.stored(point.params)
        elif point.recipe is not None:
            event["data"]["recipe"] = shapes.stored(point.recipe)
        extra = tx.trial(study.id, number)
        if extra is not None and extra.extra is not None:
            event["data"]["extra"] = shapes.stored(extra.extra)
    return b"".join(dumps(event) + b"\n" for event in page), last


@routes("GET /v1/studies/{study}/brief", "study:read", {200: "text/plain"})
async def brief(call: Call) -> Response:
    """State, best, budget, health and the next command, in at most 2 kB of plain text."""
    opened = await call.opened()
    await call.service.advance(opened)
    return PlainTextResponse(await brief_of(call.service, opened, call.origin))


async def brief_of(service: Service, opened: OpenStudy, origin: str) -> str:
    """The text of a brief, of at most 2 kB."""
    study, row = opened.study, await service.row(opened)
    spec, evaluations = study.spec, study.spec.budget.evaluations
    used = f"{row.used}" if evaluations is None else f"{row.used} of {evaluations}"
    used += f", {row.late} of them late" if row.late else ""
    lines = [
        f"study {study.id} {_short(spec.name)!r}: {row.state}" + (f" ({_short(row.reason)})" if row.reason else ""),
        f"{spec.direction} over {len(study.space)} parameters ({study.space.dim} internal dimensions) "
        f"with {study.resolved.algorithm}",
    ]
    try:
        seen = await service.drive(study.metrics())
    except AlgorithmChanged:  # only another release can compute them from the log
        seen = {}
    lines += [f"release: {note}" for note in study.stored.notes(study.resolved.algorithm)]
    if isinstance(study, HostedStudy):
        client, rounds = study.hosted.client, study.hosted.study
        lines.append(f"hosted participant {client!r} of {rounds}: it asks, this server computes")
    if isinstance(study, FederatedStudy):
        if not study.stuck:
            lines += _standing(study, await service.drive(study.phase(now=service.clock())), seen)
    else:
        lines.append(f"evaluations: {used}; step {row.step}; {row.leased} leased, {row.queued} queued")
        if row.best_trial is None:
            lines.append("best: none yet")
        else:
            found = None
            with suppress(AlgorithmChanged):
                found = await service.drive(as_kind(study, TrialStudy).best())
            words = dumps(found[1]).decode() if found is not None and study.space.dim <= 50 else "(see GET .../best)"
            lines.append(f"best: {row.best_value!r} at t_{row.best_trial} {words[:700]}")
            lines += await _noise(service, study)
    if seen:
        lines.append("algorithm: " + ", ".join(f"{name}={value:.4g}" for name, value in list(seen.items())[:8]))
    noticed = await service.drive(study.health(now=service.clock()))
    lines += [f"health: {item.code}: {_short(item.sentence)}; {_short(item.action)}" for item in noticed[:3]]
    lines += [f"health: {len(noticed) - 3} more, see GET .../health"] if len(noticed) > 3 else []
    if study.stuck:
        lines.append(f"it cannot go on: {study.stuck}; what is told waits in its log")
    text = "\n".join(lines)
    return f"{text[:1700]}\nnext: {_following(study, row, origin)}\n"


async def _noise(service: Service, study: BaseStudy) -> list[str]:
    """A line on the point to deploy, where it is not the best one told."""
    try:
        found = await service.drive(study.recommend())
    except AlgorithmChanged:
        return []
    if found.estimate is None:
        return []
    place = "not evaluated" if found.trial is None else f"t_{found.trial}"
    value = f"{found.estimate.mean:.6g} +- {found.estimate.stderr:.2g}"
    return [f"recommended: {value} ({place}); {found.note}"]


def _following(study: BaseStudy, row: StudyRow, origin: str) -> str:
    """The shell command that is most likely to be needed next."""
    url = f"{origin}/v1/studies/{study.id}"
    in_rounds = isinstance(study, FederatedStudy | HostedStudy)
    if row.state in ("COMPLETED", "CANCELLED"):
        return f'curl -s "{url}/best{"" if study.stuck else "?view=recommended"}" -H "$A"'
    if study.stuck and not in_rounds:
        other = "" if study.stored.cls is not None else """ -d '{"algorithm":"auto"}'"""
        return f'curl -s -X POST {url}/fork -H "$A"{other}'
    if study.stuck:
        return f'curl -s {url}/export -H "$A"'
    if row.state != "ACTIVE":
        return f'curl -s -X POST {url}/resume -H "$A"'
    if isinstance(study, FederatedStudy):
        return f"blackbox participant {study.id} my_job:evaluate --client NAME --url {origin}"
    return f'curl -s {url}/ask -H "$A" -d \'{{"wait_seconds":20}}\''


def _standing(study: FederatedStudy, phase: OpenPhase, metrics: dict[str, float]) -> list[str]:
    """Lines about the rounds. The values stay with the participants, so there is no best one to show."""
    options, row = study.federation.options, phase.row
    n = len(study.federation.phases)
    rounds = f"{row.step // n}" + ("" if options.rounds is None else f" of {options.rounds}")
    lines = [
        f"rounds: {rounds} done; {phase.joined} joined; participants report {row.used} evaluations, and keep the values"
    ]
    if phase.broadcast is not None:
        closes = "" if phase.closes_at is None else f", closes at {shapes.at(phase.closes_at)}"
        name = phase.broadcast.phase
        lines.append(f"open: phase {name!r}, {phase.received} of {phase.need} contributions received{closes}")
    elif row.state == "ACTIVE":
        lines.append(f"open: nothing yet, {study.spec.rounds.min_joined} must join")
    if phase.declined:
        named = ", ".join(f"{name} ({error or NOT_FINITE})" for name, error in sorted(phase.declined.items())[:5])
        lines.append(f"declined: {len(phase.declined)} had no value to learn from: {named}")
    if options.privacy is not None:
        coordinator, published = metrics.get("epsilon_coordinator", 0.0), metrics.get("epsilon_published", 0.0)
        lines.append(
            f"privacy: epsilon {coordinator:.3g} towards the coordinator and {published:.3g} published so far, "
            f"at delta {options.privacy.delta:g}; noise {options.privacy.noise:g}"
        )
    return lines


def _short(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."


# Base vectors ---------------------------------------------------------------------------------------------------------


@routes(
    "GET /v1/studies/{study}/bases/{version}", "",
    {200: "application/octet-stream", 206: "application/octet-stream", 304: None},
    headers={"Range": "A single range of bytes.", "If-Range": "ETag without which the range is not looked at."},
)  # fmt: skip
async def base(call: Call) -> Response:
    """The base vector of a step, or any vector that a recipe names, by its sha256.

    Raw little-endian float32, immutable, with range requests.
    """
    if not call.may_read:
        call.principal.require("study:evaluate")
    version, study = call.path["version"], (await call.opened()).study.id
    digest = version.removeprefix("sha256:")
    if re.fullmatch("[0-9a-f]{64}", digest):
        content = await call.service.read(lambda tx: tx.blob(study, digest), long=True)
    else:
        try:
            step = trial_number(version)
        except ValueError:
            raise InvalidInput(f"a base is named by a step or a sha256, got {version[:80]!r}") from None
        found = await call.service.read(lambda tx: tx.blob_at(study, step), long=True)
        digest, content = found if found is not None else ("", None)
    if content is None:
        raise BlobNotFound(f"study {study} has no base vector {version[:80]}")
    etag = f'"{digest}"'
    headers = {
        "etag": etag,
        "cache-control": "private, max-age=31536000, immutable",
        "accept-ranges": "bytes",
        "x-sha256": digest,
    }
    if call.names_etag(etag):
        return Response(status_code=304, headers=headers)
    wanted, condition = call.header(b"range"), call.header(b"if-range")
    span = None if wanted is None or condition not in (None, etag) else _span(wanted, len(content))
    if span is None:
        return Response(content, 200, headers, "application/octet-stream")
    first, last = span
    headers["content-range"] = f"bytes {first}-{last}/{len(content)}"
    return Response(content[first : last + 1], 206, headers, "application/octet-stream")


def _span(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a single range; None for what may be ignored (several ranges, other units)."""
    found = re.fullmatch(r"\s*bytes\s*=\s*(\d{0,18})-(\d{0,18})\s*", header)
    if found is None or found.group(1) == found.group(2) == "":
        return None
    first, last = found.groups()
    span = (max(0, size - int(last)), size - 1) if first == "" else (int(first), min(int(last or size), size - 1))
    if span[0] > span[1]:
        raise RangeNotSatisfiable(f"bytes {header[:80]} of {size}")
    return span

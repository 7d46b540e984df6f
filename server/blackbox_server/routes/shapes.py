"""Rows and answers of the engine as JSON: studies, trials, leases, outcomes, events."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, overload

import numpy as np
import orjson

from blackbox.errors import BlackboxError
from blackbox.recipes import seed_encoded
from blackbox.recipes import to_json as recipe_to_json
from blackbox.space import Space
from blackbox.study import log
from blackbox.study.answers import AskAnswer
from blackbox.study.base import BaseStudy
from blackbox.study.kinds import as_kind
from blackbox.study.leases import Lease, Renewal
from blackbox.study.rows import EventRow, InterimRow, LateRow, PointRow, StepRow, StudyHead, StudyRow, TrialRow, Tx
from blackbox.study.settling import Outcome
from blackbox.study.spec import Resolved, StudySpec, stored_algorithm
from blackbox.study.trials import TrialStudy
from blackbox_server.problems import problem, row_of
from blackbox_server.schemas import answers
from blackbox_server.service import LARGE_DIM, LARGE_SPEC, Service

stored: Any = orjson.Fragment
"""Wraps JSON text that was stored, to be sent unchanged."""


FIRST, LAST = -62135596800.0, 253402300799.0
"""The years 1 to 9999 in seconds since the epoch: the calendar of `datetime`, and of RFC 3339."""


@overload
def at(seconds: float) -> datetime: ...
@overload
def at(seconds: None) -> None: ...
@overload
def at(seconds: float | None) -> datetime | None: ...
def at(seconds: float | None) -> datetime | None:
    """A time in seconds since the epoch as one with its zone, UTC. What lies beyond the calendar is its last second."""
    return None if seconds is None else datetime.fromtimestamp(min(max(seconds, FIRST), LAST), UTC)


def described(text: str) -> tuple[Resolved, int | None, list[str]]:
    """The resolved spec of a study, its results per step, and what has changed since it was resolved.

    It is made once for each of the last studies; few large ones are kept, whose space takes a second to read.
    """
    return _described(text) if len(text) < LARGE_SPEC else _large_described(text)


def _describe(text: str) -> tuple[Resolved, int | None, list[str]]:
    resolved = Resolved.model_validate_json(text)
    stored = stored_algorithm(resolved, Space.from_json(resolved.spec.space))
    size = None if stored.cls is None or stored.options is None else stored.cls.results_per_step(stored.options)
    return resolved, size, stored.notes(resolved.algorithm)


_described = lru_cache(maxsize=1024)(_describe)
_large_described = lru_cache(maxsize=16)(_describe)


def forget_descriptions() -> None:
    """Describe every study anew: for whoever changes a registry while the process runs."""
    _described.cache_clear()
    _large_described.cache_clear()


# Studies --------------------------------------------------------------------------------------------------------------


def links(study: str, federated: bool, rounds: str | None = None) -> dict[str, str]:
    """The addresses of what a study takes; `rounds` is the federated study of a hosted participant."""
    base = f"/v1/studies/{study}"
    names = ("best", "health", "events", "export", "brief", "pause", "resume")
    if federated:
        paths = {"join": "rounds/join", "current": "rounds/current", "updates": "updates"}
        return {"self": base, **{name: f"{base}/{path}" for name, path in paths.items()}, **_below(base, names)}
    own = {"fork": f"{base}/fork"} if rounds is None else {"rounds": f"/v1/studies/{rounds}"}
    return {"self": base, **_below(base, ("ask", "tell", "heartbeat", "trials", *names)), **own}


def _below(base: str, names: Sequence[str]) -> dict[str, str]:
    return {name: f"{base}/{name}" for name in names}


def study_json(head: StudyHead, row: StudyRow) -> answers.StudyInfo:
    """A study, with everything decided and where it stands."""
    resolved, size, notes = described(head.resolved)
    spec = resolved.spec
    budget = spec.budget
    remaining = _remaining(spec, row)
    affordable = remaining // size if remaining is not None and size else None
    warnings = []
    if affordable is not None and affordable < 5 and row.step == 0:
        warnings.append(f"the budget pays for {affordable} steps of {size}; adaptive algorithms need more")
    warnings += notes
    return {
        "id": head.id,
        "name": head.name,
        "project": head.project,
        "state": row.state,
        "reason": row.reason,
        "created_at": at(head.created_at),
        "spec_hash": head.spec_hash,
        "parent": head.parent,
        "hosted": _place(resolved),
        "direction": spec.direction,
        "space": spec.space,
        "algorithm": {
            "requested": spec.algorithm.name,
            "resolved": resolved.algorithm,
            "reason": resolved.reason or None,
            "options": resolved.options,
            "popsize": size,
        },
        "budget": {
            "evaluations": budget.evaluations,
            "max_cost": budget.max_cost,
            "deadline": budget.deadline,
            "used": row.used,
            "late": row.late,
            "cost": min(row.cost, sys.float_info.max),  # costs of 1e308 add up to infinity, which JSON lacks
            "leased": row.leased,
            "remaining": remaining,
            "steps_affordable": affordable,
        },
        "target": spec.target,
        "lease": spec.lease.model_dump(mode="json"),
        "parallelism": spec.parallelism.model_dump(mode="json"),
        "start": spec.start,
        "duplicates": spec.duplicates,
        "seed": spec.seed,
        "noise": spec.noise,
        "non_finite": spec.non_finite,
        "require_lease": spec.require_lease,
        "labels": spec.labels,
        "step": row.step,
        "epoch": row.epoch,
        "seq": str(row.seq),
        "trials": {"made": row.trials, "queued": row.queued, "leased": row.leased},
        "best": _best(row),
        "warnings": warnings,
        "links": links(head.id, resolved.federated, None if resolved.hosted is None else resolved.hosted.study),
    }


def _remaining(spec: StudySpec, row: StudyRow) -> int | None:
    """Evaluations that are neither spent nor leased; None without a budget."""
    evaluations = spec.budget.evaluations
    return None if evaluations is None else max(0, evaluations - row.used - row.leased)


def _place(resolved: Resolved) -> answers.HostedPlace | None:
    """The place of a hosted participant in its federated study; None for any other study."""
    hosted = resolved.hosted
    return None if hosted is None else {"study": hosted.study, "client": hosted.client, "weight": hosted.weight}


def study_etag(head: StudyHead, row: StudyRow) -> str:
    """The ETag of a study: the version of its spec, a dot, and a hash of its row."""
    rest = hashlib.blake2b(repr(row).encode(), digest_size=6).hexdigest()
    return f'"{spec_version(head)}.{rest}"'


def spec_version(head: StudyHead) -> str:
    """The part of the ETag that PATCH changes. If-Match compares only this, or no busy study could be edited."""
    return hashlib.blake2b(head.resolved.encode(), digest_size=6).hexdigest()


def _best(row: StudyRow) -> answers.BestTrial | None:
    return None if row.best_trial is None else {"trial": f"t_{row.best_trial}", "value": row.best_value}


def progress(study: BaseStudy, row: StudyRow, with_best: bool) -> answers.Progress:
    """The state of a study in short, which comes with every ask and tell."""
    words: answers.Progress = {
        "state": row.state,
        "step": row.step,
        "used": row.used,
        "late": row.late,
        "leased": row.leased,
        "remaining": _remaining(study.spec, row),
    }
    if row.reason is not None:
        words["reason"] = row.reason
    if with_best and (best := _best(row)) is not None:
        words["best"] = best
    return words


# Trials ---------------------------------------------------------------------------------------------------------------


async def granted_json(service: Service, asked_of: BaseStudy, asked: AskAnswer, encoding: str) -> answers.Granted:
    """The leased trials of an answer to an ask."""
    study = as_kind(asked_of, TrialStudy)
    points = await points_json(service, study, [lease.point for lease in asked.leases], encoding)
    seeds: dict[tuple[int, int, bool], str] = {}
    times: dict[float, datetime] = {}
    trials: list[answers.LeasedTrial] = []
    for lease, point in zip(asked.leases, points, strict=True):
        trial = lease.trial
        place = (trial.step, trial.replicate, trial.lane >= 0)
        if (seed := seeds.get(place)) is None:
            seed = seeds[place] = study.eval_seed(trial)
        until = trial.until or 0.0
        if (expires := times.get(until)) is None:
            expires = times[until] = datetime.fromtimestamp(until, UTC)
        trials.append(_leased(study, lease, point, seed, expires))
    return {
        "trials": trials,
        "granted": len(trials),
        "requested": asked.requested,
        "reason": asked.reason,
        "retry_after_seconds": asked.retry_after,
    }


def nothing_granted(requested: int, error: BlackboxError, request_id: str) -> answers.Granted:
    """The answer to an ask along with a tell, where the results are stored but nothing can be asked for."""
    return {
        "trials": [],
        "granted": 0,
        "requested": requested,
        "reason": row_of(error).code.replace("-", "_"),
        "retry_after_seconds": None,
        "problem": problem(error, request_id),
    }


def _leased(
    study: TrialStudy, lease: Lease, point: dict[str, Any], seed: str, expires: datetime
) -> answers.LeasedTrial:
    trial = lease.trial
    until = trial.until or 0.0
    if (base := point.get("base")) is not None:
        base["version"] = trial.step
        base["href"] = f"/v1/studies/{study.id}/bases/{base['sha256']}"  # several steps may share it
    return {
        "id": f"t_{trial.number}",
        "number": trial.number,
        "step": trial.step,
        "replicate": trial.replicate,
        **point,  # type: ignore[typeddict-item]
        "eval_seed": seed,
        "lease": {
            "token": lease.token,
            "attempt": trial.attempt,
            "expires_at": expires,
            "heartbeat_seconds": round((until - (trial.leased_at or until)) / 3.0, 3),
        },
    }


async def points_json(
    service: Service, study: TrialStudy, points: Sequence[PointRow], encoding: str = "values", past: bool = False
) -> list[dict[str, Any]]:
    """The points of trials: their parameters, or how to make them.

    The vectors that the recipe of a `past` trial refers to may have been deleted; then the recipe itself is shown.
    """
    if encoding == "values" and all(point.params is not None for point in points):
        return [_stored(point) for point in points]

    def work() -> list[dict[str, Any]]:
        return [_made(study, point, blobs, encoding, past) for point in points]

    named = {name for point in points for name in log.named_blobs(point)}
    blobs = await service.read(lambda tx: _blobs(tx, study.id, named)) if named else {}
    if encoding == "values" and study.space.dim * len(points) > LARGE_DIM:
        return await asyncio.to_thread(work)
    return work()


def _stored(point: PointRow) -> dict[str, Any]:
    shape: dict[str, Any] = {"params": stored(point.params or "{}")}
    if point.payload is not None:
        shape["payload"] = stored(point.payload)
    return shape


def _made(study: TrialStudy, point: PointRow, blobs: Mapping[str, bytes], encoding: str, past: bool) -> dict[str, Any]:
    if point.params is not None:
        return _stored(point)
    recipe = study.recipe(point)
    if encoding == "seed" and recipe is not None:
        vectors = {name: np.frombuffer(blob, dtype="<f4") for name, blob in blobs.items()}
        shape: dict[str, Any] = dict(seed_encoded(recipe, study.key, study.space.dim, vectors, study.prefixes))
    elif past and recipe is not None and not blobs.keys() >= set(log.named_blobs(point)):
        shape = {"recipe": recipe_to_json(recipe)}
    else:
        shape = {"params": study.params(point, blobs)}
    if point.payload is not None:
        shape["payload"] = stored(point.payload)
    return shape


def _blobs(tx: Tx, study: str, names: set[str]) -> dict[str, bytes]:
    return {name: blob for name in names if (blob := tx.blob(study, name)) is not None}


def trial_json(trial: TrialRow, now: float) -> answers.TrialInfo:
    """A trial without its point; `now` in seconds since the epoch."""
    shape: answers.TrialInfo = {
        "id": f"t_{trial.number}",
        "number": trial.number,
        "state": trial.state,
        "step": trial.step,
        "lane": trial.lane if trial.lane >= 0 else None,
        "replicate": trial.replicate,
        "source": trial.source,
        "worker": trial.worker,
        "attempt": trial.attempt,
        "failures": trial.failures,
        "lost": trial.lost,
        "asked_at": at(trial.asked_at),
        "leased_at": at(trial.leased_at),
        "told_at": at(trial.told_at),
        "lease_expires_at": at(trial.until),
        "lapsed": trial.until is not None and trial.until < now,
        "value": trial.value,
        "seq": None if trial.seq is None else str(trial.seq),
        "invalid": trial.invalid,
    }
    if trial.extra is not None:
        shape["extra"] = stored(trial.extra)
    return shape


def interim_json(rows: Sequence[InterimRow]) -> list[answers.InterimInfo]:
    """The interim values of a trial."""
    return [{"attempt": row.attempt, "step": row.step, "value": row.value, "at": at(row.at)} for row in rows]


def renewal_json(renewal: Renewal, request_id: str) -> answers.RenewalInfo:
    """The renewal of a lease, or the reason to abandon it."""
    shape: answers.RenewalInfo = {"token": renewal.token, "directive": renewal.directive}
    if renewal.until is not None:
        shape["expires_at"] = at(renewal.until)
    if renewal.error is not None:
        shape["problem"] = problem(renewal.error, request_id)
    return shape


def outcome_json(outcome: Outcome, request_id: str, pointer: str) -> answers.OutcomeInfo:
    """The outcome of one result; `pointer` leads to it in the request."""
    shape: answers.OutcomeInfo = {
        "trial": None if outcome.trial is None else f"t_{outcome.trial}",
        "outcome": outcome.outcome,
    }
    if outcome.best_so_far:
        shape["best_so_far"] = True
    if outcome.error is not None:
        shape["problem"] = problem(outcome.error, request_id, pointer)
    elif outcome.outcome != "applied" or outcome.state != "COMPLETED":
        shape["state"] = outcome.state
        if outcome.attempts_left is not None:
            shape["attempt"] = outcome.attempt
            shape["attempts_left"] = outcome.attempts_left
    return shape


# The log --------------------------------------------------------------------------------------------------------------


def log_page(tx: Tx, study: str, after: int, limit: int) -> tuple[list[answers.Event], int]:
    """Events with a sequence number in (after, after + limit], and the last number looked at.

    Results, late values, step records and study events share one gap-free sequence, so a window of numbers is a page.
    """
    row = tx.study(study)
    upto = after if row is None else min(row.seq, after + limit)
    if upto <= after:
        return [], after
    events = [_told_event(trial) for trial in tx.told(study, after, upto)]
    events += [_step_event(step) for step in tx.steps_logged(study, after, limit) if step.seq <= upto]
    events += [_study_event(event) for event in tx.events(study, after, limit) if event.seq <= upto]
    events += [_late_event(late) for late in tx.late(study, after, limit) if late.seq <= upto]
    events.sort(key=lambda event: int(event["seq"]))
    return events, upto


def _event(seq: int, kind: str, seconds: float | None, data: Any) -> answers.Event:
    return {"seq": str(seq), "type": kind, "at": at(seconds), "data": data}


def _told_event(trial: TrialRow) -> answers.Event:
    data: dict[str, Any] = {
        "trial": f"t_{trial.number}",
        "value": trial.value,
        "worker": trial.worker,
        "step": trial.step,
        "attempt": trial.attempt,
    }
    if trial.source is not None:
        data["source"] = trial.source
    if trial.invalid:
        data["invalid"] = True
    return _event(trial.seq or 0, f"trial.{trial.state.lower()}", trial.told_at, data)


def _step_event(step: StepRow) -> answers.Event:
    data = {
        "step": step.step, "upto_seq": str(step.upto_seq), "results": step.told, "why": step.why,
        "digest": step.digest,
    }  # fmt: skip
    return _event(step.seq, "step.closed", step.at, data)


def _study_event(event: EventRow) -> answers.Event:
    return _event(event.seq, event.type, event.at, stored(event.data))


def _late_event(late: LateRow) -> answers.Event:
    data = {"trial": f"t_{late.number}", "value": late.value, "worker": late.worker}
    return _event(late.seq, "trial.late", late.at, data)

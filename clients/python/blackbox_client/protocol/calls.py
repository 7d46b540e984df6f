"""A function per call: it says what may be given, and returns the `Call` that sends it.

Members that are not given are left out, so that the server's defaults are the only ones. It is one file because it is
the list of all calls, read beside that of the routes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias, TypeVar
from urllib.parse import urlsplit

from blackbox_client.errors import StillWorking
from blackbox_client.models import (
    Algorithms,
    ApiKey,
    AskAnswer,
    Best,
    Contributed,
    EventPage,
    Health,
    HeartbeatAnswer,
    Invalidated,
    Joined,
    Left,
    Limits,
    OpenPhase,
    Page,
    PastRound,
    ProblemInfo,
    Quarantined,
    Queued,
    ReportAnswer,
    Result,
    ServiceDocument,
    Snapshot,
    Study,
    TellAnswer,
    Trial,
    TrialRef,
    Updates,
    trial_number,
)
from blackbox_client.models import bodies as send
from blackbox_client.protocol import routes
from blackbox_client.protocol.encoding import encode
from blackbox_client.protocol.retrying import Call, Reply, new_key
from blackbox_client.protocol.routes import Route

T = TypeVar("T")
StateVerb: TypeAlias = Literal["pause", "resume", "complete", "cancel"]
TrialVerb: TypeAlias = Literal["cancel", "requeue"]

_JSON = {"accept": "application/json"}
_STATE = {"pause": routes.PAUSE, "resume": routes.RESUME, "complete": routes.COMPLETE, "cancel": routes.CANCEL}
_TRIAL = {"cancel": routes.CANCEL_TRIAL, "requeue": routes.REQUEUE_TRIAL}


# ---- building calls


def _get(
    route: Route[T],
    query: Mapping[str, Any] | None = None,
    *,
    hold_seconds: float = 0.0,
    accept: str = "application/json",
    **parts: str,
) -> Call[T]:
    given = {
        name: f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in (query or {}).items()
        if value is not None
    }
    path = route.at(**parts)
    return Call(route.method, path, route.read, given, headers={"accept": accept}, hold_seconds=hold_seconds)


def _post(
    route: Route[T],
    body: Mapping[str, Any],
    *,
    idempotency_key: str | None = None,
    hold_seconds: float = 0.0,
    **parts: str,
) -> Call[T]:
    headers = {**_JSON, "content-type": "application/json", "idempotency-key": idempotency_key or new_key()}
    read = _finished(route.read)
    return Call(route.method, route.at(**parts), read, body=encode(body), headers=headers, hold_seconds=hold_seconds)


def _finished(read: Callable[[Reply], T]) -> Callable[[Reply], T]:
    def read_finished(reply: Reply) -> T:
        if reply.status == 202:
            raise StillWorking(reply.headers.get("location", ""), reply.retry_after)
        return read(reply)

    return read_finished


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _as_participant(call: Call[T], token: str) -> Call[T]:
    """The call with a participant's token."""
    return replace(call, headers={**call.headers, "participant-token": token})


def _id(trial: TrialRef) -> str:
    return f"t_{trial_number(trial)}"


def algorithm_choice(algorithm: str | send.AlgorithmChoice | None) -> send.AlgorithmChoice | None:
    """A bare name written out in full."""
    return {"name": algorithm} if isinstance(algorithm, str) else algorithm


def budget_of(budget: int | send.Budget | None) -> send.Budget | None:
    """A bare number of evaluations written out in full."""
    return {"evaluations": budget} if isinstance(budget, int) else budget


def parallelism_of(parallelism: int | send.Parallelism | None) -> send.Parallelism | None:
    """A bare number of leases written out in full."""
    return {"max_leased": parallelism} if isinstance(parallelism, int) else parallelism


def next_page(call: Call[Page[T]], page: Page[T]) -> Call[Page[T]] | None:
    """The call for the page after this one; None after the last.

    Only path and query of the link are used: a key never goes to another host.
    """
    if page.next is None:
        return None
    link = urlsplit(page.next)
    at = link.path.find("/v1/")  # whatever a proxy put before it is in the client's address already
    path = link.path[at:] if at >= 0 else call.path
    return Call("GET", f"{path}?{link.query}" if link.query else path, call.read, headers=call.headers)


# ---- the service


def service() -> Call[ServiceDocument]:
    """The front page: links and examples."""
    return _get(routes.SERVICE)


def limits() -> Call[Limits]:
    """The limits of this key."""
    return _get(routes.LIMITS)


def algorithms() -> Call[Algorithms]:
    """The algorithms of the server."""
    return _get(routes.ALGORITHMS)


def problem(code: str) -> Call[ProblemInfo]:
    """The meaning of a problem's code."""
    return _get(routes.PROBLEM, code=code)


# ---- studies


def create_study(
    *,
    name: str,
    space: Mapping[str, Any],
    direction: send.Direction | None = None,
    algorithm: str | send.AlgorithmChoice | None = None,
    budget: int | send.Budget | None = None,
    target: float | None = None,
    lease: send.LeaseDefaults | None = None,
    parallelism: int | send.Parallelism | None = None,
    rounds: send.Rounds | None = None,
    start: send.StartPolicy | None = None,
    duplicates: send.DuplicatesPolicy | None = None,
    seed: int | str | None = None,
    noise: send.Noise | None = None,
    non_finite: send.NonFinitePolicy | None = None,
    require_lease: bool | None = None,
    labels: Mapping[str, str] | None = None,
    idempotency_key: str | None = None,
) -> Call[Study]:
    """A new study. A bare algorithm name, number of evaluations or number of leases is written out in full."""
    body = _given(
        name=name,
        space=space,
        direction=direction,
        algorithm=algorithm_choice(algorithm),
        budget=budget_of(budget),
        target=target,
        lease=lease,
        parallelism=parallelism_of(parallelism),
        rounds=rounds,
        start=start,
        duplicates=duplicates,
        seed=None if seed is None else str(seed),
        noise=noise,
        non_finite=non_finite,
        require_lease=require_lease,
        labels=labels,
    )
    return _post(routes.CREATE_STUDY, body, idempotency_key=idempotency_key)


def list_studies(*, limit: int | None = None, cursor: str | None = None) -> Call[Page[Study]]:
    """Studies of the key's project."""
    return _get(routes.LIST_STUDIES, {"limit": limit, "cursor": cursor})


def get_study(study: str) -> Call[Study]:
    """One study."""
    return _get(routes.GET_STUDY, study=study)


def update_study(
    study: str,
    *,
    budget: int | send.Budget | None = None,
    labels: Mapping[str, str] | None = None,
    lease: send.LeaseDefaults | None = None,
    parallelism: int | send.Parallelism | None = None,
    if_match: str | None = None,
) -> Call[Study]:
    """Change parts of a study; each replaces the one that was there."""
    body = _given(budget=budget_of(budget), labels=labels, lease=lease, parallelism=parallelism_of(parallelism))
    headers = {**_JSON, "content-type": "application/json", **_given(**{"if-match": if_match})}
    route = routes.UPDATE_STUDY
    return Call(route.method, route.at(study=study), route.read, body=encode(body), headers=headers)


def delete_study(study: str) -> Call[None]:
    """Delete a study with all its trials."""
    return Call(routes.DELETE_STUDY.method, routes.DELETE_STUDY.at(study=study), routes.DELETE_STUDY.read)


def change_state(
    study: str, verb: StateVerb, *, reason: str | None = None, idempotency_key: str | None = None
) -> Call[Study]:
    """Pause, resume, complete or cancel a study."""
    return _post(_STATE[verb], _given(reason=reason), study=study, idempotency_key=idempotency_key)


def snapshot(study: str, *, idempotency_key: str | None = None) -> Call[Snapshot]:
    """Store the state of the open step now."""
    return _post(routes.SNAPSHOT, {}, study=study, idempotency_key=idempotency_key)


def fork(
    study: str,
    step: int | None = None,
    *,
    name: str | None = None,
    algorithm: str | send.AlgorithmChoice | None = None,
    idempotency_key: str | None = None,
) -> Call[Study]:
    """A fork at a step."""
    body = _given(step=step, name=name, algorithm=algorithm_choice(algorithm))
    return _post(routes.FORK, body, study=study, idempotency_key=idempotency_key)


# ---- the hot path


def ask_body(
    count: int = 1,
    *,
    worker: str | None = None,
    lease_seconds: float | Literal["auto"] | None = None,
    wait_seconds: float | None = None,
    resume: bool = False,
    encoding: send.Encoding = "values",
) -> send.Ask:
    """The body of an ask, also the `ask` of a tell; defaults are left out."""
    body: send.Ask = {"count": count}
    if worker is not None:
        body["worker"] = worker
    if lease_seconds is not None:
        body["lease_seconds"] = lease_seconds
    if wait_seconds:
        body["wait_seconds"] = wait_seconds
    if resume:
        body["resume"] = True
    if encoding != "values":
        body["encoding"] = encoding
    return body


def ask(study: str, body: send.Ask, *, idempotency_key: str | None = None) -> Call[AskAnswer]:
    """Lease trials. `body` comes from `ask_body`."""
    hold = float(body.get("wait_seconds") or 0.0)
    return _post(routes.ASK, body, study=study, idempotency_key=idempotency_key, hold_seconds=hold)


def tell(
    study: str,
    results: Iterable[Result],
    *,
    worker: str | None = None,
    ask: send.Ask | None = None,
    idempotency_key: str | None = None,
) -> Call[TellAnswer]:
    """Tell a batch, and with `ask` (from `ask_body`) lease the next trials in the same answer."""
    body = _given(worker=worker, results=[result.item() for result in results], ask=ask)
    hold = float((ask or {}).get("wait_seconds") or 0.0)
    return _post(routes.TELL, body, study=study, idempotency_key=idempotency_key, hold_seconds=hold)


def heartbeat(
    study: str,
    leases: Iterable[str],
    *,
    extend_seconds: float | None = None,
    idempotency_key: str | None = None,
) -> Call[HeartbeatAnswer]:
    """Renew leases, by their tokens."""
    body = _given(leases=list(leases), extend_seconds=extend_seconds)
    return _post(routes.HEARTBEAT, body, study=study, idempotency_key=idempotency_key)


# ---- trials


def enqueue(study: str, trials: Iterable[send.Enqueued], *, idempotency_key: str | None = None) -> Call[Page[Queued]]:
    """Queue points, or import finished ones; those that were rejected say so in their `outcome`."""
    return _post(routes.ENQUEUE, {"trials": list(trials)}, study=study, idempotency_key=idempotency_key)


def list_trials(
    study: str, *, state: str | None = None, limit: int | None = None, cursor: str | None = None
) -> Call[Page[Trial]]:
    """Trials by number; of some states (separated by commas) only."""
    return _get(routes.LIST_TRIALS, {"state": state, "limit": limit, "cursor": cursor}, study=study)


def get_trial(study: str, trial: TrialRef) -> Call[Trial]:
    """One trial."""
    return _get(routes.GET_TRIAL, study=study, trial=_id(trial))


def change_trial(
    study: str, trial: TrialRef, verb: TrialVerb, *, reason: str | None = None, idempotency_key: str | None = None
) -> Call[Trial]:
    """Withdraw an open trial, or have one without a value run again."""
    return _post(_TRIAL[verb], _given(reason=reason), study=study, trial=_id(trial), idempotency_key=idempotency_key)


def invalidate(
    study: str, trial: TrialRef, *, reason: str | None = None, idempotency_key: str | None = None
) -> Call[Invalidated]:
    """Take a result back."""
    body = _given(reason=reason)
    return _post(routes.INVALIDATE_TRIAL, body, study=study, trial=_id(trial), idempotency_key=idempotency_key)


def quarantine(worker: str, *, reason: str | None = None, idempotency_key: str | None = None) -> Call[Quarantined]:
    """Take back all results of a worker, in every study of the project."""
    return _post(routes.QUARANTINE, _given(reason=reason), worker=worker, idempotency_key=idempotency_key)


def report(
    study: str,
    trial: TrialRef,
    step: int | None = None,
    value: Any = None,
    *,
    lease: str | None = None,
    idempotency_key: str | None = None,
) -> Call[ReportAnswer]:
    """An interim value; extends the lease."""
    if lease is None and isinstance(trial, Trial) and trial.lease:
        lease = trial.lease.token
    body = _given(lease=lease, step=step, value=value)
    return _post(routes.REPORT, body, study=study, trial=_id(trial), idempotency_key=idempotency_key)


# ---- reading a study


def best(study: str, *, k: int | None = None, view: send.View | None = None) -> Call[Best]:
    """The best points."""
    return _get(routes.BEST, {"k": k, "view": view}, study=study)


def events(
    study: str,
    after: int | str = 0,
    *,
    wait_seconds: float | None = None,
    types: Iterable[str] | None = None,
    limit: int | None = None,
) -> Call[EventPage]:
    """One page of the log, held back up to `wait_seconds` while there is nothing new."""
    query = {
        "after": after,
        "wait_seconds": wait_seconds or None,
        "types": ",".join(types) if types else None,
        "limit": limit,
    }
    return _get(routes.EVENTS, query, study=study, hold_seconds=wait_seconds or 0.0)


def export(study: str, *, format: send.ExportFormat | None = None, after_seq: int | str | None = None) -> Call[str]:
    """The whole log: read it line by line; `read` takes it at once."""
    return _get(routes.EXPORT, {"format": format, "after_seq": after_seq}, study=study, accept="*/*")


def health(study: str) -> Call[Health]:
    """What the study's owner should know."""
    return _get(routes.HEALTH, study=study)


def brief(study: str) -> Call[str]:
    """A summary of the study in plain text."""
    return _get(routes.BRIEF, study=study, accept="text/plain")


def base(study: str, version: int | str) -> Call[bytes]:
    """The raw little-endian numbers of a base vector."""
    return _get(routes.BASE, study=study, version=str(version), accept="application/octet-stream")


# ---- federated rounds


def join(study: str, client: str) -> Call[Joined]:
    """Take part; joining again gives the same token and invitation."""
    return _post(routes.JOIN, {"client": client}, study=study)


def host(study: str, client: str, weight: float | None = None) -> Call[Joined]:
    """Take part by evaluating only, where `hosted.study` of the answer says; joining again gives the same."""
    body = {"client": client, "hosted": True, **_given(weight=None if weight is None else float(weight))}
    return _post(routes.JOIN, body, study=study)


def leave(study: str, token: str) -> Call[Left]:
    """Take part no more: rounds do not wait for this participant."""
    return _as_participant(_post(routes.LEAVE, {}, study=study), token)


def current_round(
    study: str, token: str | None = None, *, after_step: int = -1, wait_seconds: float = 0.0
) -> Call[OpenPhase]:
    """The open phase, held while its step is not after `after_step`; with a token, what it asks of the participant."""
    wait = float(wait_seconds)
    query = {"after_step": after_step, "wait_seconds": wait or None}
    call = _get(routes.CURRENT_ROUND, query, study=study, round="current", hold_seconds=wait)
    return call if token is None else _as_participant(call, token)


def past_round(study: str, round: int) -> Call[PastRound]:
    """A past round: how its phases closed."""
    return _get(routes.PAST_ROUND, study=study, round=str(int(round)))


def contribute(study: str, round: int, token: str, contribution: bytes | send.Contribution) -> Call[Contributed]:
    """One update for the open phase: canonical bytes, or a JSON object. Sent again, it is a duplicate."""
    route = routes.CONTRIBUTE
    if isinstance(contribution, bytes):
        kind, body = "application/octet-stream", contribution
    else:
        kind, body = "application/json", encode(contribution)
    headers = {**_JSON, "content-type": kind, "idempotency-key": new_key()}
    path = route.at(study=study, round=str(int(round)))
    return _as_participant(Call(route.method, path, route.read, body=body, headers=headers), token)


def decline(study: str, round: int, token: str, phase: str, error: str | None = None) -> Call[Contributed]:
    """Nothing to contribute, for no evaluation gave a value; `error` is the type of the last error, and no more."""
    body = {"phase": phase, "error": error}
    return _as_participant(_post(routes.DECLINE, body, study=study, round=str(int(round))), token)


def updates(study: str, after: int = 0, *, limit: int | None = None) -> Call[Updates]:
    """Updates of the common point after a version."""
    return _get(routes.UPDATES, {"after": after, "limit": limit}, study=study)


# ---- keys


def create_key(
    *,
    scopes: Sequence[str],
    name: str | None = None,
    project: str | None = None,
    expires_seconds: float | None = None,
    idempotency_key: str | None = None,
) -> Call[ApiKey]:
    """A new key. The answer shows its secret, once."""
    body = _given(scopes=list(scopes), name=name, project=project, expires_seconds=expires_seconds)
    return _post(routes.CREATE_KEY, body, idempotency_key=idempotency_key)


def list_keys() -> Call[Page[ApiKey]]:
    """Keys of the project, without their secrets."""
    return _get(routes.LIST_KEYS)


def delete_key(key_id: str) -> Call[None]:
    """Revoke a key."""
    return Call(routes.DELETE_KEY.method, routes.DELETE_KEY.at(key=key_id), routes.DELETE_KEY.read)

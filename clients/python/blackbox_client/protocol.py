"""The protocol without input and output: what to send, how to read what comes, when to repeat.

A function per endpoint returns a `Call`: method, path, query, body, headers, and the function that reads the answer. An
`Exchange` is one such call under way: fed with what came of each attempt it says what to do next. `RetryPolicy` is the
table of the contract. Nothing here opens a socket, sleeps or reads a clock, so a client with threads, one with
coroutines and one in a test share all of it.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Generic, Literal, TypeAlias, TypeVar
from urllib.parse import quote, urlsplit

import numpy as np

from blackbox_client.errors import (
    NON_FINITE_HINT,
    AnsweredWithError,
    BadAnswer,
    BlackboxClientError,
    ConnectionFailed,
    FieldError,
    IdempotencyInProgress,
    InvalidRequest,
    NonFiniteValue,
    StillWorking,
    error_of,
)
from blackbox_client.models import (
    AlgorithmInfo,
    ApiKey,
    AskAnswer,
    Best,
    EventPage,
    HeartbeatAnswer,
    Json,
    Page,
    ReportAnswer,
    Result,
    Snapshot,
    Study,
    TellAnswer,
    Trial,
    trial_number,
)
from blackbox_client.models import Outcome as ItemOutcome

T = TypeVar("T")
TrialRef: TypeAlias = "Trial | int | str"
Encoding = Literal["values", "seed"]
View = Literal["observed", "recommended", "pareto"]

# ---- JSON out


def plain(value: Any, pointer: str = "") -> Any:
    """A value as JSON has it: NumPy scalars and arrays become numbers and lists, times become text.

    Parameters
    ----------
    value : nested mappings, sequences, numbers, text; array scalars of any library that has ``.item()``.
    pointer : JSON pointer of the value, for the message.

    Raises
    ------
    NonFiniteValue
        If there is NaN or infinity anywhere; the pointer says where.
    InvalidRequest
        If something has no JSON form.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _non_finite(value, pointer)
        return float(value)
    if isinstance(value, Mapping):
        return {_name(key, pointer): plain(entry, f"{pointer}/{_escape(key)}") for key, entry in value.items()}
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise _unusable(pointer, "time_zone", f"a time needs its zone, got {value.isoformat()}")
        return value.isoformat()
    if isinstance(value, np.ndarray) and value.ndim:
        return [plain(entry, f"{pointer}/{i}") for i, entry in enumerate(value.tolist())]
    if isinstance(value, list | tuple):
        return [plain(entry, f"{pointer}/{i}") for i, entry in enumerate(value)]
    item = getattr(value, "item", None)  # NumPy, and whoever looks like it
    if callable(item):
        try:
            return plain(item(), pointer)
        except (TypeError, ValueError) as error:
            if isinstance(error, InvalidRequest):
                raise
    raise _unusable(
        pointer, "not_json", f"{type(value).__name__} has no JSON form; send numbers, text, lists or mappings"
    )


def encode(body: Mapping[str, Any]) -> bytes:
    """The JSON bytes of a request body; see `plain` for what it takes and refuses."""
    return json.dumps(plain(body), allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode()


def _non_finite(value: float, pointer: str) -> NonFiniteValue:
    name = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    told = pointer.startswith("/results/") or pointer == "/value"
    parts = pointer.split("/")[1:]
    words = "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in parts).removeprefix(".") or "the value"
    return NonFiniteValue(
        f"{words} is {name}.",
        code="non-finite-value",
        hint=NON_FINITE_HINT if told else "Send finite numbers.",
        errors=[FieldError(pointer, "non_finite")],
    )


def _unusable(pointer: str, code: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid-request", errors=[FieldError(pointer, code, message)])


def _name(key: Any, pointer: str) -> str:
    if not isinstance(key, str):
        raise _unusable(pointer, "not_json", f"names are text in JSON, got {key!r}")
    return str(key)


def _escape(key: Any) -> str:
    return str(key).replace("~", "~0").replace("/", "~1")


# ---- calls and replies


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer; header names in lower case."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def etag(self) -> str:
        return self.headers.get("etag", "")

    @property
    def retry_after(self) -> float | None:
        """`Retry-After` in seconds, also where it is a date (measured against the answer's own `Date`)."""
        text = self.headers.get("retry-after", "").strip()
        try:
            seconds = float(text)
        except ValueError:
            try:
                seconds = (
                    parsedate_to_datetime(text) - parsedate_to_datetime(self.headers.get("date", ""))
                ).total_seconds()
            except (TypeError, ValueError):
                return None
        return max(seconds, 0.0) if math.isfinite(seconds) else None

    def json(self) -> Any:
        """The body as JSON.

        Raises
        ------
        BadAnswer
            If it is not JSON: a proxy's page, a cut-off body.
        """
        try:
            return json.loads(self.body)
        except ValueError:
            raise BadAnswer(
                f"expected JSON with status {self.status}, got {self.body[:120]!r}; is this the address of a blackbox "
                "server, and does a proxy stand before it?"
            ) from None

    def object(self) -> Json:
        """The body as a JSON object; an empty body is an empty object."""
        value = self.json() if self.body.strip() else {}
        if not isinstance(value, dict):
            raise BadAnswer(f"expected a JSON object, got {self.body[:120]!r}")
        return value

    def error(self) -> AnsweredWithError:
        """The exception this answer stands for; also where the body is no problem document."""
        try:
            problem: Json = self.object()
        except BadAnswer:
            problem = {"detail": f"the server answered {self.status}: {self.body[:200].decode(errors='replace')}"}
        return error_of(
            problem,
            status=self.status,
            request_id=self.headers.get("x-request-id", ""),
            retry_after=self.retry_after,
        )


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """An attempt that ended without an answer. Not `repeatable`: a bad address, an untrusted certificate."""

    reason: str
    repeatable: bool = True


Outcome: TypeAlias = "Reply | NoAnswer"


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One logical call: what to send, the same at every attempt, and how to read the answer.

    `hold_seconds` is how long the server may hold the answer back (long poll); time-outs grow by it.
    """

    method: str
    path: str
    read: Callable[[Reply], T]
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    hold_seconds: float = 0.0


def new_key() -> str:
    """A fresh idempotency key: one per logical call, kept over its repetitions."""
    return uuid.uuid4().hex


# ---- repeating


@dataclass(frozen=True, slots=True)
class Retry:
    """Wait so many seconds, then send the same call again."""

    delay: float


@dataclass(frozen=True, slots=True)
class Raise:
    """Stop trying."""

    error: BlackboxClientError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The retry table of the contract.

    Parameters
    ----------
    base_seconds, max_seconds : attempt n waits a random part of ``base_seconds * 2**n``, at most `max_seconds`.
    give_up_seconds : no repetition is started later than this after the first attempt; 0 never repeats.
    n_server_errors : so many answers 500 are repeated.
    """

    base_seconds: float = 0.25
    max_seconds: float = 30.0
    give_up_seconds: float = 600.0
    n_server_errors: int = 3

    def decide(
        self, attempt: int, outcome: Outcome, elapsed: float, random: float, *, server_errors: int | None = None
    ) -> Retry | Raise:
        """What to do after a failed attempt.

        Parameters
        ----------
        attempt : repetitions so far, 0 after the first try.
        outcome : the answer (status >= 400), or that there was none.
        elapsed : seconds since the first try began.
        random : a number in [0, 1).
        server_errors : answers 500 before this one; `attempt` where not told.
        """
        if isinstance(outcome, NoAnswer):
            error: BlackboxClientError = ConnectionFailed(
                f"no answer after {attempt + 1} attempt(s) in {elapsed:.1f} s: {outcome.reason}"
            )
            if not outcome.repeatable:
                return Raise(error)
            asked = None
        else:
            error = outcome.error()
            asked = outcome.retry_after
            seen = attempt if server_errors is None else server_errors
            repeatable = (
                outcome.status in (408, 429, 502, 503, 504)
                or (outcome.status == 500 and seen < self.n_server_errors)
                or isinstance(error, IdempotencyInProgress)
            )
            if not repeatable:
                return Raise(error)
        ceiling = min(self.max_seconds, self.base_seconds * 2.0 ** min(attempt, 64))
        delay = random * ceiling  # full jitter
        if asked is not None:
            delay = max(delay, asked + random * self.base_seconds)  # not all at the same moment
        return Retry(delay) if elapsed + delay <= self.give_up_seconds else Raise(error)


class Exchange(Generic[T]):
    """One call under way. Feed it what came of each attempt; it says what to do next.

    Parameters
    ----------
    call : what is being sent.
    policy : when to repeat.
    """

    def __init__(self, call: Call[T], policy: RetryPolicy) -> None:
        self.call = call
        self.policy = policy
        self.attempt = 0
        self._server_errors = 0

    def succeeded(self, outcome: Outcome) -> bool:
        """Whether this outcome ends the exchange well, so that `Call.read` may read it.

        A repeated DELETE that finds nothing has been done by an attempt whose answer was lost.
        """
        if not isinstance(outcome, Reply):
            return False
        return outcome.status < 300 or (self.call.method == "DELETE" and self.attempt > 0 and outcome.status == 404)

    def after(self, outcome: Outcome, elapsed: float, random: float) -> Retry | Raise:
        """What to do after an attempt that did not succeed; counts it."""
        if isinstance(outcome, Reply) and outcome.status < 400:
            return Raise(
                BadAnswer(
                    f"{self.call.method} {self.call.path} was answered with a redirect ({outcome.status} to "
                    f"{outcome.headers.get('location', 'nowhere')}), which is not followed; use the final address"
                )
            )
        decision = self.policy.decide(self.attempt, outcome, elapsed, random, server_errors=self._server_errors)
        self.attempt += 1
        self._server_errors += isinstance(outcome, Reply) and outcome.status == 500
        return decision


# ---- building calls


def _get(path: str, read: Callable[[Reply], T], *, hold_seconds: float = 0.0, **query: Any) -> Call[T]:
    given = {
        name: f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in query.items()
        if value is not None
    }
    return Call("GET", path, read, given, headers={"accept": "application/json"}, hold_seconds=hold_seconds)


def _post(
    path: str,
    body: Mapping[str, Any],
    read: Callable[[Reply], T],
    *,
    idempotency_key: str | None = None,
    hold_seconds: float = 0.0,
) -> Call[T]:
    headers = {
        "accept": "application/json",
        "content-type": "application/json",
        "idempotency-key": idempotency_key or new_key(),
    }
    return Call("POST", path, _finished(read), body=encode(body), headers=headers, hold_seconds=hold_seconds)


def _finished(read: Callable[[Reply], T]) -> Callable[[Reply], T]:
    def read_finished(reply: Reply) -> T:
        if reply.status == 202:
            raise StillWorking(reply.headers.get("location", ""), reply.retry_after)
        return read(reply)

    return read_finished


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _study(study: str, *rest: str) -> str:
    return "/".join(["/v1/studies", quote(study, safe=""), *rest])


def _trial(study: str, trial: TrialRef, *rest: str) -> str:
    return _study(study, "trials", f"t_{trial_number(trial)}", *rest)


def _object(reply: Reply) -> Json:
    return reply.object()


def _nothing(reply: Reply) -> None:
    return None


def _text(reply: Reply) -> str:
    return reply.body.decode()


def _bytes(reply: Reply) -> bytes:
    return reply.body


def _a_study(reply: Reply) -> Study:
    return Study.of(reply.object(), reply.etag)


def _a_trial(reply: Reply) -> Trial:
    raw = reply.object()
    inner = raw.get("trial")
    return Trial.of(inner if isinstance(inner, dict) else raw, reply.etag)


def _enqueued(reply: Reply) -> tuple[Trial, ...]:
    def taken(entry: Json) -> Trial:
        if entry.get("outcome") == "rejected":
            raise ItemOutcome.of(entry).problem or BadAnswer(f"rejected without a reason: {dict(entry)!r:.200}")
        return Trial.of(entry)

    return Page.of(reply.json(), "trials", taken).items


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


def service() -> Call[Json]:
    """GET /v1: the service document."""
    return _get("/v1", _object)


def limits() -> Call[Json]:
    """GET /v1/limits: what this key may do."""
    return _get("/v1/limits", _object)


def algorithms() -> Call[Page[AlgorithmInfo]]:
    """GET /v1/algorithms."""
    return _get("/v1/algorithms", lambda reply: Page.of(reply.json(), "algorithms", AlgorithmInfo.of))


# ---- studies


def create_study(
    *,
    name: str,
    space: Mapping[str, Any],
    direction: str | None = None,
    objectives: Sequence[Mapping[str, Any]] | None = None,
    constraints: Sequence[Mapping[str, Any]] | None = None,
    algorithm: str | Mapping[str, Any] | None = None,
    budget: int | Mapping[str, Any] | None = None,
    lease: Mapping[str, Any] | None = None,
    parallelism: int | Mapping[str, Any] | None = None,
    noise: Mapping[str, Any] | None = None,
    seed: int | str | None = None,
    non_finite: str | None = None,
    require_lease: bool | None = None,
    labels: Mapping[str, str] | None = None,
    more: Mapping[str, Any] | None = None,
    idempotency_key: str | None = None,
) -> Call[Study]:
    """POST /v1/studies. A bare algorithm name, number of evaluations or number of leases is written out in full."""
    body = _given(
        name=name,
        direction=direction,
        space=space,
        objectives=objectives,
        constraints=constraints,
        algorithm={"name": algorithm} if isinstance(algorithm, str) else algorithm,
        budget=budget if budget is None or isinstance(budget, Mapping) else {"evaluations": budget},
        lease=lease,
        parallelism=parallelism
        if parallelism is None or isinstance(parallelism, Mapping)
        else {"max_leased": parallelism},
        noise=noise,
        seed=None if seed is None else str(seed),
        non_finite=non_finite,
        require_lease=require_lease,
        labels=labels,
    )
    return _post("/v1/studies", {**body, **(more or {})}, _a_study, idempotency_key=idempotency_key)


def list_studies(*, limit: int | None = None, cursor: str | None = None) -> Call[Page[Study]]:
    """GET /v1/studies."""
    return _get("/v1/studies", lambda reply: Page.of(reply.json(), "studies", Study.of), limit=limit, cursor=cursor)


def get_study(study: str) -> Call[Study]:
    """GET /v1/studies/{s}."""
    return _get(_study(study), _a_study)


def update_study(study: str, changes: Mapping[str, Any], *, if_match: str | None = None) -> Call[Study]:
    """PATCH /v1/studies/{s}: budget, labels, lease defaults."""
    headers = {"accept": "application/json", "content-type": "application/json"} | _given(**{"if-match": if_match})
    return Call("PATCH", _study(study), _a_study, body=encode(changes), headers=headers)


def delete_study(study: str) -> Call[None]:
    """DELETE /v1/studies/{s}."""
    return Call("DELETE", _study(study), _nothing)


def change_state(
    study: str,
    verb: Literal["pause", "resume", "complete", "cancel"],
    *,
    reason: str | None = None,
    idempotency_key: str | None = None,
) -> Call[Study]:
    """POST /v1/studies/{s}/pause, /resume, /complete, /cancel."""
    return _post(_study(study, verb), _given(reason=reason), _a_study, idempotency_key=idempotency_key)


def snapshot(study: str, *, idempotency_key: str | None = None) -> Call[Snapshot]:
    """POST /v1/studies/{s}/snapshots."""
    return _post(
        _study(study, "snapshots"), {}, lambda reply: Snapshot.of(reply.object()), idempotency_key=idempotency_key
    )


def fork(
    study: str,
    step: int | None = None,
    *,
    name: str | None = None,
    algorithm: str | Mapping[str, Any] | None = None,
    more: Mapping[str, Any] | None = None,
    idempotency_key: str | None = None,
) -> Call[Study]:
    """POST /v1/studies/{s}/fork: a branch at a step."""
    body = _given(step=step, name=name, algorithm={"name": algorithm} if isinstance(algorithm, str) else algorithm)
    return _post(_study(study, "fork"), {**body, **(more or {})}, _a_study, idempotency_key=idempotency_key)


# ---- the hot path


def ask_body(
    count: int = 1,
    *,
    worker: str | None = None,
    lease_seconds: float | str | None = None,
    wait_seconds: float | None = None,
    resume: bool = False,
    encoding: Encoding = "values",
) -> dict[str, Any]:
    """The body of an ask, also the `ask` of a tell; defaults are left out."""
    return _given(
        count=count,
        worker=worker,
        lease_seconds=lease_seconds,
        wait_seconds=wait_seconds or None,
        resume=True if resume else None,
        encoding=None if encoding == "values" else encoding,
    )


def ask(study: str, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> Call[AskAnswer]:
    """POST /v1/studies/{s}/ask. `body` comes from `ask_body`."""
    return _post(
        _study(study, "ask"),
        body,
        lambda reply: AskAnswer.of(reply.object()),
        idempotency_key=idempotency_key,
        hold_seconds=float(body.get("wait_seconds") or 0.0),
    )


def tell(
    study: str,
    results: Iterable[Result],
    *,
    worker: str | None = None,
    ask: Mapping[str, Any] | None = None,
    idempotency_key: str | None = None,
) -> Call[TellAnswer]:
    """POST /v1/studies/{s}/tell: a batch, and with `ask` (from `ask_body`) the next trials in the same answer."""
    body = _given(worker=worker, results=[result.item() for result in results], ask=ask)
    return _post(
        _study(study, "tell"),
        body,
        lambda reply: TellAnswer.of(reply.object()),
        idempotency_key=idempotency_key,
        hold_seconds=float((ask or {}).get("wait_seconds") or 0.0),
    )


def heartbeat(
    study: str,
    leases: Iterable[str],
    *,
    worker: str | None = None,
    extend_seconds: float | None = None,
    idempotency_key: str | None = None,
) -> Call[HeartbeatAnswer]:
    """POST /v1/studies/{s}/heartbeat."""
    body = _given(worker=worker, leases=list(leases), extend_seconds=extend_seconds)
    return _post(
        _study(study, "heartbeat"),
        body,
        lambda reply: HeartbeatAnswer.of(reply.object()),
        idempotency_key=idempotency_key,
    )


# ---- trials


def enqueue(
    study: str, trials: Iterable[Mapping[str, Any]], *, idempotency_key: str | None = None
) -> Call[tuple[Trial, ...]]:
    """POST /v1/studies/{s}/trials: ``{"params": ...}`` to evaluate, with a `value` besides to import.

    Reading the answer raises the problem of the first trial that was rejected; the others have been taken.
    """
    return _post(_study(study, "trials"), {"trials": list(trials)}, _enqueued, idempotency_key=idempotency_key)


def list_trials(
    study: str, *, state: str | None = None, limit: int | None = None, cursor: str | None = None
) -> Call[Page[Trial]]:
    """GET /v1/studies/{s}/trials."""
    return _get(
        _study(study, "trials"),
        lambda reply: Page.of(reply.json(), "trials", Trial.of),
        state=state,
        limit=limit,
        cursor=cursor,
    )


def get_trial(study: str, trial: TrialRef) -> Call[Trial]:
    """GET /v1/studies/{s}/trials/{t}."""
    return _get(_trial(study, trial), _a_trial)


def change_trial(
    study: str,
    trial: TrialRef,
    verb: Literal["cancel", "requeue", "invalidate"],
    *,
    reason: str | None = None,
    idempotency_key: str | None = None,
) -> Call[Json]:
    """POST .../trials/{t}/cancel, /requeue, /invalidate."""
    return _post(_trial(study, trial, verb), _given(reason=reason), _object, idempotency_key=idempotency_key)


def report(
    study: str,
    trial: TrialRef,
    step: int,
    value: Any,
    *,
    lease: str | None = None,
    idempotency_key: str | None = None,
) -> Call[ReportAnswer]:
    """POST .../trials/{t}/reports: an interim value; extends the lease."""
    if lease is None and isinstance(trial, Trial) and trial.lease:
        lease = trial.lease.token
    return _post(
        _trial(study, trial, "reports"),
        _given(lease=lease, step=step, value=value),
        lambda reply: ReportAnswer.of(reply.object()),
        idempotency_key=idempotency_key,
    )


# ---- reading a study


def best(study: str, *, k: int | None = None, view: View | None = None) -> Call[Best]:
    """GET /v1/studies/{s}/best."""
    return _get(_study(study, "best"), lambda reply: Best.of(reply.object(), reply.etag), k=k, view=view)


def events(
    study: str,
    after: int | str = 0,
    *,
    wait_seconds: float | None = None,
    types: Iterable[str] | None = None,
    limit: int | None = None,
) -> Call[EventPage]:
    """GET /v1/studies/{s}/events: one page, held back up to `wait_seconds` while there is nothing new."""
    return _get(
        _study(study, "events"),
        lambda reply: EventPage.of(reply.object(), int(after)),
        hold_seconds=wait_seconds or 0.0,
        after=after,
        wait_seconds=wait_seconds or None,
        types=",".join(types) if types else None,
        limit=limit,
    )


def export(study: str, *, format: str = "ndjson", after_seq: int | str | None = None) -> Call[str]:
    """GET /v1/studies/{s}/export: read it line by line; `read` takes it whole."""
    call = _get(_study(study, "export"), _text, format=format, after_seq=after_seq)
    return Call(call.method, call.path, call.read, call.query, headers={"accept": "*/*"})


def brief(study: str) -> Call[str]:
    """GET /v1/studies/{s}/brief: how it goes, in plain text."""
    return Call("GET", _study(study, "brief"), _text, headers={"accept": "text/plain"})


def base(study: str, version: int | str) -> Call[bytes]:
    """GET /v1/studies/{s}/bases/{v}: the raw little-endian numbers of a base vector."""
    path = _study(study, "bases", quote(str(version), safe=""))
    return Call("GET", path, _bytes, headers={"accept": "application/octet-stream"})


# ---- federated rounds


def join(study: str, client: str) -> Call[Json]:
    """POST /v1/studies/{s}/rounds/join: the participant's token and the invitation. Joining again gives the same."""
    return _post(_study(study, "rounds", "join"), {"client": client}, _object)


def host(study: str, client: str, weight: float = 1.0) -> Call[Json]:
    """POST /v1/studies/{s}/rounds/join: `hosted.study` of the answer is where this participant's points are asked and
    told; the server runs its machine. Joining again gives the same."""
    body = {"client": client, "hosted": True, "weight": float(weight)}
    return _post(_study(study, "rounds", "join"), body, _object)


def leave(study: str, token: str) -> Call[Json]:
    """POST /v1/studies/{s}/rounds/leave."""
    return _shown(_post(_study(study, "rounds", "leave"), {}, _object), token)


def current_round(study: str, token: str, *, after_step: int = -1, wait_seconds: float = 0.0) -> Call[Json]:
    """GET /v1/studies/{s}/rounds/current: the open phase, held while its step is not after `after_step`."""
    path = _study(study, "rounds", "current")
    wait = float(wait_seconds)
    return _shown(_get(path, _object, hold_seconds=wait, after_step=after_step, wait_seconds=wait), token)


def watch_round(study: str, *, after_step: int = -1, wait_seconds: float = 0.0) -> Call[Json]:
    """The same of nobody in particular."""
    path, wait = _study(study, "rounds", "current"), float(wait_seconds)
    return _get(path, _object, hold_seconds=wait, after_step=after_step, wait_seconds=wait)


def contribute(study: str, round: int, token: str, contribution: bytes) -> Call[Json]:
    """POST /v1/studies/{s}/rounds/{r}/contributions: canonical bytes. Sent again, they are a duplicate."""
    headers = {"accept": "application/json", "content-type": "application/octet-stream"}
    path = _study(study, "rounds", str(round), "contributions")
    return _shown(Call("POST", path, _object, body=contribution, headers=headers), token)


def updates(study: str, after: int) -> Call[Json]:
    """GET /v1/studies/{s}/updates: how the common point moved after a version."""
    return _get(_study(study, "updates"), _object, after=after)


def _shown(call: Call[T], token: str) -> Call[T]:
    """The call with a participant's token."""
    return replace(call, headers={**call.headers, "participant-token": token})


# ---- keys


def create_key(
    *,
    scopes: Sequence[str],
    name: str | None = None,
    more: Mapping[str, Any] | None = None,
    idempotency_key: str | None = None,
) -> Call[ApiKey]:
    """POST /v1/keys. The answer shows the secret, once."""
    body = {**_given(name=name, scopes=list(scopes)), **(more or {})}
    return _post("/v1/keys", body, lambda reply: ApiKey.of(reply.object()), idempotency_key=idempotency_key)


def list_keys() -> Call[Page[ApiKey]]:
    """GET /v1/keys."""
    return _get("/v1/keys", lambda reply: Page.of(reply.json(), "keys", ApiKey.of))


def delete_key(key_id: str) -> Call[None]:
    """DELETE /v1/keys/{id}."""
    return Call("DELETE", f"/v1/keys/{quote(key_id, safe='')}", _nothing)

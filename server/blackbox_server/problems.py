"""The mapping of exceptions to problem documents (RFC 9457): one table.

Every problem has type, title, status, code, detail, hint, errors, retryable and request_id. `code` is stable and for
programs, `detail` and `hint` are for people.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, NotRequired

import orjson
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict  # as pydantic wants it before Python 3.12

from blackbox import errors
from blackbox.errors import BlackboxError

MAX_FAULTS = 100
"""Faults that a problem lists."""
documented = with_config(ConfigDict(extra="forbid", use_attribute_docstrings=True))
"""Decorates the typed dictionaries of answers: they are closed, and their docstrings go into `/openapi.json`."""


class MalformedJson(errors.InvalidInput):
    """The body is not JSON, or JSON that could be read in two ways."""


class UnsupportedMediaType(BlackboxError):
    """The content type of the body is not JSON."""


class BodyTooLarge(BlackboxError):
    """The body exceeds the limit of its route."""


class BodyCut(errors.InvalidInput):
    """The connection ended before the body did. Nothing was executed."""


class HeadTooLarge(BlackboxError):
    """The request line and the headers are larger than a request needs."""


class HeadTimeout(BlackboxError):
    """The request line and the headers did not arrive in time."""


class TooManyConnections(BlackboxError):
    """The server has as many connections as it keeps."""


class OverLimit(BlackboxError):
    """A limit that the problem's member `limit` names.

    Attributes
    ----------
    name, value, used : the name of the limit, what it is, and how much of it is taken.
    """

    def __init__(self, name: str, value: float, used: float, detail: str, *, hint: str) -> None:
        super().__init__(detail, hint=hint)
        self.name, self.value, self.used = name, value, used


class QuotaExceeded(OverLimit):
    """What is kept for the key, the project or the study has reached its limit: something has to go first."""


class TooMuchAtOnce(OverLimit):
    """What is being worked on for the key or the project has reached its limit: later there is room again."""


class BodyTimeout(BlackboxError):
    """The body did not arrive in time."""


class Unauthorized(BlackboxError):
    """No key, or an unknown one."""


class Forbidden(BlackboxError):
    """The key does not allow this."""


class RouteNotFound(errors.NotFound):
    """There is nothing at this address."""


class KeyNotFound(errors.NotFound):
    """No API key of that id."""


class MethodNotAllowed(BlackboxError):
    """The address does not take this HTTP method."""


class PreconditionFailed(BlackboxError):
    """The resource changed since its ETag was read."""


class RangeNotSatisfiable(BlackboxError):
    """The range of bytes is outside the resource."""


class RateLimited(BlackboxError):
    """Too many requests."""


class IdempotencyKeyRequired(errors.InvalidInput):
    """Without a key a repeated request would count twice."""


class IdempotencyKeyReused(errors.InvalidInput):
    """The key belongs to another request."""


class Row(NamedTuple):
    """The wire form of a class of errors."""

    status: int
    code: str
    title: str
    retryable: bool = False
    hint: str = ""
    """Advice for errors that bring none."""
    over_http: str = ""
    """The request that helps, appended to any hint: the engine knows no addresses, so its own hints speak of Python."""


SCHEMA_HINT = "See /openapi.json for the fields and their ranges."

TABLE: Mapping[type[Exception], Row] = {
    errors.InvalidInput: Row(422, "invalid-input", "The input cannot be used", hint=SCHEMA_HINT),
    errors.InvalidSpace: Row(
        422, "invalid-space", "The search space, or a point, does not fit",
        hint='A space looks like {"x":{"type":"float","low":-5,"high":5}}; a point names every parameter of it.',
    ),
    errors.InvalidOptions: Row(
        422, "invalid-options", "The algorithm does not take these options",
        over_http="GET /v1/algorithms lists every option with its range.",
    ),
    errors.InvalidContribution: Row(
        422,
        "invalid-contribution",
        "The contribution is not what the open phase asks for",
        hint="Send exactly the vectors that the open phase asks for.",
        over_http="GET .../rounds/current says what is open, and who is invited.",
    ),
    errors.RoundNotFound: Row(
        404, "round-not-found", "No such round", over_http="GET .../rounds/current is the open one."
    ),
    errors.InvalidRegion: Row(422, "invalid-region", "The constraint set cannot be used", hint=SCHEMA_HINT),
    errors.NonFiniteValue: Row(422, "non-finite-value", "Value is not a finite number", hint="Send finite numbers."),
    errors.IncompatibleProblem: Row(
        422, "incompatible-problem", "The algorithm cannot treat this problem",
        over_http="GET /v1/algorithms says what each one treats, the `links` of a study what can be done with it.",
    ),
    errors.TooLarge: Row(422, "too-large", "More than the limits allow", hint="GET /v1/limits lists them."),
    errors.UnknownAlgorithm: Row(
        422, "unknown-algorithm", "There is no such algorithm", over_http="GET /v1/algorithms lists them."
    ),
    errors.NotFound: Row(404, "not-found", "Not found", hint="GET /v1 lists what there is."),
    errors.StudyNotFound: Row(404, "study-not-found", "No such study", over_http="GET /v1/studies lists yours."),
    errors.TrialNotFound: Row(
        404, "trial-not-found", "No such trial", hint="Use the `id` of a trial that ask or GET trials gave."
    ),
    errors.BlobNotFound: Row(
        404, "base-not-found", "No such base vector",
        hint="A base is kept while an open trial or the best one needs it: ask for a new trial and use its base.href.",
    ),
    errors.Conflict: Row(409, "conflict", "The request contradicts what is stored", hint="Read the resource again."),
    errors.AlgorithmChanged: Row(
        409, "algorithm-changed", "This release cannot go on with what another release computed",
        hint="Results can still be told; fork the study to continue it with an algorithm of this release.",
        over_http="POST .../fork makes a fork, GET .../export writes out the log.",
    ),
    errors.StudySpecMismatch: Row(
        409, "study-spec-mismatch", "A study of this name has another spec", hint="Choose another name."
    ),
    errors.StudyStateError: Row(
        409, "study-state", "The state does not allow this",
        over_http="GET the study: it says its state and reason, and its `links` where its best point is."
    ),
    errors.LeaseUnknown: Row(
        422, "lease-unknown", "The lease token was not given for this trial",
        hint="Send the `lease.token` of the ask answer unchanged.",
    ),
    errors.NumericalError: Row(
        500, "numerical-error", "The algorithm failed numerically",
        hint="Nothing was lost; POST .../resume tells the last step again.",
    ),
    errors.SolverFailed: Row(
        500, "solver-failed", "The algorithm's solver raised an exception",
        hint="Nothing was lost; POST .../resume tries again, or fork the study with another algorithm.",
    ),
    errors.SolverStalled: Row(
        500, "solver-stalled", "The algorithm's solver does not answer", True,
        hint="Ask again; if it stays so fork the study with another algorithm.",
    ),
    errors.CodecError: Row(500, "codec-error", "A stored state cannot be read", hint="Report it with the request_id."),
    errors.ReplayMismatch: Row(
        500, "replay-mismatch", "A replayed state differs from the log", hint="Report it with the request_id."
    ),
    errors.StoreUnavailable: Row(
        503, "store-unavailable", "The store cannot take this now", True,
        hint="Nothing was stored; send the same request again, with the same Idempotency-Key.",
    ),
    MalformedJson: Row(400, "malformed-json", "The body is not valid JSON", hint="Send one JSON object in UTF-8."),
    UnsupportedMediaType: Row(
        415, "unsupported-media-type", "The body must be JSON", hint="Send content-type: application/json, or none."
    ),
    BodyTooLarge: Row(413, "body-too-large", "The body is too large", hint="Send smaller batches; GET /v1/limits."),
    HeadTooLarge: Row(431, "head-too-large", "The head is too large", hint="Send fewer and shorter headers."),
    HeadTimeout: Row(408, "head-timeout", "The head did not arrive in time", True, hint="Send it again, faster."),
    TooManyConnections: Row(
        503, "too-many-connections", "Too many connections", True, hint="Wait a moment; reuse your connections."
    ),
    QuotaExceeded: Row(
        403, "quota-exceeded", "A quota is used up", over_http="GET /v1/limits says what is used of each."
    ),
    TooMuchAtOnce: Row(
        429, "too-much-at-once", "Too much at once", True, over_http="GET /v1/limits says what is used of each limit."
    ),
    BodyCut: Row(400, "body-cut", "The body is not whole", hint="Send the request again, whole: nothing was done."),
    BodyTimeout: Row(408, "body-timeout", "The body did not arrive in time", True, hint="Send it again, faster."),
    Unauthorized: Row(
        401, "unauthorized", "A key is needed", hint='Send the header "Authorization: Bearer zok_...".'
    ),
    Forbidden: Row(403, "forbidden", "The key does not allow this", hint="Use a key with the scope that is named."),
    RouteNotFound: Row(404, "route-not-found", "Nothing at this address", hint="GET /v1 lists what there is."),
    KeyNotFound: Row(404, "key-not-found", "No such key", hint="GET /v1/keys lists yours."),
    MethodNotAllowed: Row(405, "method-not-allowed", "Not with this method", hint="See /openapi.json."),
    PreconditionFailed: Row(
        412, "precondition-failed", "The resource has changed", hint="GET it again and send its new ETag in If-Match."
    ),
    RangeNotSatisfiable: Row(416, "range-not-satisfiable", "No such range", hint="Ask for bytes inside the resource."),
    RateLimited: Row(
        429, "rate-limited", "Too many requests", True, hint="Wait as Retry-After says; ask and tell in batches."
    ),
    IdempotencyKeyRequired: Row(
        422, "idempotency-key-required", "An idempotency key is needed",
        hint='Add the header "Idempotency-Key", or a "key" to each item with params: a retry must not count twice.',
    ),
    IdempotencyKeyReused: Row(
        422, "idempotency-key-reused", "The idempotency key belongs to another request",
        hint="Make a new key for each new request; repeat a request only with the same body.",
    ),
}  # fmt: skip

INTERNAL = Row(
    500, "internal", "The server failed", True,
    hint="Repeat the request with the same Idempotency-Key; if it fails again report the request_id.",
)  # fmt: skip


@documented
class ProblemField(TypedDict):
    """One faulty place of a request."""

    pointer: str
    """JSON pointer into the body; for a query parameter, a slash and its name."""
    code: str
    message: str


@documented
class LimitReached(TypedDict):
    """The limit that a request would exceed."""

    name: str
    """As in `GET /v1/limits`."""
    value: float
    used: float
    """How much of it is taken, without the request."""


@documented
class Problem(TypedDict):
    """An error (RFC 9457)."""

    type: str
    """Path of the page that explains it."""
    title: str
    status: int
    code: str
    """Stable, for programs."""
    detail: str
    hint: str
    """Advice to people."""
    errors: list[ProblemField]
    retryable: bool
    """Whether the same request may succeed later, unchanged."""
    request_id: str
    limit: NotRequired[LimitReached]
    """Of quota-exceeded and too-much-at-once: which limit it is."""


def row_of(error: BaseException) -> Row:
    """The row of an error in the table: that of its most specific class there."""
    return next((TABLE[cls] for cls in type(error).__mro__ if cls in TABLE), INTERNAL)


def hint(row: Row, said: str = "") -> str:
    """Advice to the client: the hint of the error, or else of its row, followed by the request that helps.

    >>> hint(TABLE[errors.UnknownAlgorithm], 'did you mean "cbo"?')
    'did you mean "cbo"? GET /v1/algorithms lists them.'
    """
    words = said or row.hint
    if not words or not row.over_http:
        return words or row.over_http
    return f"{words}{' ' if words[-1] in '.?!' else '; '}{row.over_http}"


def problem(error: BaseException, request_id: str, prefix: str = "") -> Problem:
    """The problem document of an error.

    Parameters
    ----------
    prefix : JSON pointer of the item to which the error's own pointers are relative.
    """
    row = row_of(error)
    known = isinstance(error, BlackboxError)
    document: Problem = {
        "type": f"/problems/{row.code}",
        "title": row.title,
        "status": row.status,
        "code": row.code,
        "detail": error.detail if known else "an unexpected error; the server's log has it under the request_id",  # type: ignore[attr-defined]
        "hint": hint(row, error.hint if known else ""),  # type: ignore[attr-defined]
        "errors": [
            {"pointer": prefix + fault.pointer, "code": fault.code, "message": fault.message}
            for fault in (error.errors[:MAX_FAULTS] if known else ())  # type: ignore[attr-defined]
        ],
        "retryable": row.retryable,
        "request_id": request_id,
    }
    if isinstance(error, OverLimit):
        document["limit"] = {"name": error.name, "value": error.value, "used": error.used}
    return document


def encode(document: Problem) -> bytes:
    """The bytes of a problem document. Quoted input may contain lone surrogates, which UTF-8 cannot encode."""
    try:
        return orjson.dumps(document)
    except TypeError:
        clean = {k: v.encode("utf-8", "replace").decode() if isinstance(v, str) else v for k, v in document.items()}
        return orjson.dumps({**clean, "errors": []})

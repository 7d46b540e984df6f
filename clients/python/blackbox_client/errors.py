"""Exceptions of the client: one class per cause.

::

    BlackboxClientError
    ├── ConnectionFailed               no answer came, and the time to keep trying is over
    ├── CallInterrupted                the caller asked to stop while a call was waiting to be repeated
    ├── BadAnswer                      an answer came that is not what the contract says
    │   └── BaseMismatch               a base vector whose bytes do not have the promised sha256
    ├── StillWorking                   202: the server goes on working; `location` names the operation
    ├── ResultsUndelivered             a worker could not tell these results; `results` holds them
    └── AnsweredWithError              the server answered with a problem; `status`, `code`, `detail`, `hint`, ...
        ├── InvalidRequest (ValueError)    400, 415, 422; `errors` points at the fields
        │   └── NonFiniteValue             NaN or infinity where a finite number is needed
        ├── Unauthorized               401
        ├── Forbidden                  403
        ├── NotFound (LookupError)     404, 410
        ├── Conflict                   409
        │   ├── StudySpecMismatch      the name is taken by a study with another spec; `diff`
        │   └── IdempotencyInProgress  the same call is still being worked on
        ├── PreconditionFailed         412
        ├── TooLarge                   413
        ├── RateLimited                429; `retry_after`
        ├── RequestTimedOut            408
        ├── LeaseUnknown               a token that was never given for this trial
        ├── ServerError                500 and other 5xx
        └── ServiceUnavailable         502, 503, 504; `retry_after`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

if TYPE_CHECKING:
    from blackbox_client.models import Result


class ProblemField(TypedDict):
    """One place of a request that is at fault."""

    pointer: str
    code: str
    message: str


class LimitReached(TypedDict):
    """The limit that a request would exceed: what it is, and how much of it is taken."""

    name: str
    value: float
    used: float


class Problem(TypedDict):
    """A problem document, as the server sends it."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    hint: str
    errors: list[ProblemField]
    retryable: bool
    request_id: str
    limit: NotRequired[LimitReached]


NON_FINITE_HINT = (
    'If the point cannot be evaluated send {"status":"infeasible"}; if your evaluator broke send {"status":"failed"}; '
    'or create the study with "non_finite":"infeasible".'
)
"""The server's hint about a NaN; the client gives the same one before sending it."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """One bad field: where it is (JSON pointer), a stable code, and what is wrong with it."""

    pointer: str
    code: str = ""
    message: str = ""

    def __str__(self) -> str:
        return f"{self.pointer}: {self.message or self.code or 'invalid'}"


class BlackboxClientError(Exception):
    """Base of every error the client raises on purpose."""


class ConnectionFailed(BlackboxClientError):
    """No answer came, and the time to keep trying is over."""


class CallInterrupted(BlackboxClientError):
    """The caller asked to stop while the call was waiting to be repeated."""


class BadAnswer(BlackboxClientError):
    """An answer that is not what the contract says: a proxy's page, a truncated body, another service."""


class BaseMismatch(BadAnswer):
    """The bytes of a base vector do not have the promised sha256."""


class StillWorking(BlackboxClientError):
    """The server accepted the work and goes on with it.

    Parameters
    ----------
    location : where to read how it is going.
    retry_after : seconds after which asking again makes sense.
    """

    def __init__(self, location: str, retry_after: float | None = None) -> None:
        super().__init__(f"the server is still working on this; read {location} for its outcome")
        self.location = location
        self.retry_after = retry_after


class ObjectiveUnusable(BlackboxClientError):
    """An evaluating process cannot begin, above all because importing the objective fails; the message says how."""


class ResultsUndelivered(BlackboxClientError):
    """A worker could not tell these results. They are in `results`; the cause is chained.

    Parameters
    ----------
    results : what was not delivered.
    why : the reason in words.
    """

    def __init__(self, results: Sequence[Result], why: str) -> None:
        names = ", ".join(str(result.trial) for result in results)
        super().__init__(f"{len(results)} result(s) could not be told ({names}): {why}")
        self.results = tuple(results)
        self.why = why

    def with_more(self, results: Sequence[Result]) -> ResultsUndelivered:
        """This error, extended by further results."""
        error = ResultsUndelivered([*self.results, *results], self.why)
        error.__cause__ = self.__cause__
        return error


class AnsweredWithError(BlackboxClientError):
    """The server answered with a problem.

    Parameters
    ----------
    detail : what was expected and what came.
    status : HTTP status; 0 when the client itself refused before sending.
    code : the stable code, such as ``study-spec-mismatch``.
    hint : what to do about it.
    errors : the fields at fault.
    request_id : what to quote when reporting it.
    retry_after : seconds, where the server named them.
    problem : the whole document; `Problem` names its members.
    """

    def __init__(
        self,
        detail: str,
        *,
        status: int = 0,
        code: str = "",
        hint: str = "",
        errors: Sequence[FieldError] = (),
        request_id: str = "",
        retry_after: float | None = None,
        problem: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status
        self.code = code
        self.hint = hint
        self.errors = tuple(errors)
        self.request_id = request_id
        self.retry_after = retry_after
        self.problem: Mapping[str, Any] = problem or {}

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later, as the server says."""
        return self.problem.get("retryable") is True

    def __str__(self) -> str:
        head = " ".join(word for word in (str(self.status) if self.status else "", self.code) if word)
        lines = [f"{head}: {self.detail}" if head else self.detail]
        lines += [f"  at {error}" for error in self.errors]
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        if self.request_id:
            lines.append(f"  request id: {self.request_id}")
        return "\n".join(lines)


class InvalidRequest(AnsweredWithError, ValueError):
    """The request cannot be used. Nothing was changed."""


class NonFiniteValue(InvalidRequest):
    """NaN or infinity where a finite number is needed."""


class Unauthorized(AnsweredWithError):
    """No key, or one the server does not know."""


class Forbidden(AnsweredWithError):
    """The key does not allow this."""


class NotFound(AnsweredWithError, LookupError):
    """No such thing (or not yours)."""


class Conflict(AnsweredWithError):
    """The request contradicts what is stored."""


class StudySpecMismatch(Conflict):
    """A study of this name exists with another spec."""

    @property
    def diff(self) -> tuple[FieldError, ...]:
        """The fields that differ."""
        return self.errors


class IdempotencyInProgress(Conflict):
    """An earlier attempt of the same call is still being worked on."""


class PreconditionFailed(AnsweredWithError):
    """The resource changed since its ETag was read."""


class TooLarge(AnsweredWithError):
    """The body, or what was asked for, is over a limit."""


class RateLimited(AnsweredWithError):
    """Too many requests for this key."""


class RequestTimedOut(AnsweredWithError):
    """The server waited too long for the request."""


class LeaseUnknown(AnsweredWithError):
    """A lease token that was never given for this trial."""


class ServerError(AnsweredWithError):
    """The server failed; quote the request id."""


class ServiceUnavailable(AnsweredWithError):
    """The server, or something before it, cannot answer now."""


BY_CODE: Mapping[str, type[AnsweredWithError]] = {
    "study-spec-mismatch": StudySpecMismatch,
    "idempotency-in-progress": IdempotencyInProgress,
    "non-finite-value": NonFiniteValue,
    "lease-unknown": LeaseUnknown,
}
BY_STATUS: Mapping[int, type[AnsweredWithError]] = {
    400: InvalidRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    408: RequestTimedOut,
    409: Conflict,
    410: NotFound,
    412: PreconditionFailed,
    413: TooLarge,
    415: InvalidRequest,
    422: InvalidRequest,
    429: RateLimited,
    502: ServiceUnavailable,
    503: ServiceUnavailable,
    504: ServiceUnavailable,
}


def problem_code(problem: Mapping[str, Any]) -> str:
    """The stable code of a problem document: its `code`, else the last part of its `type`.

    >>> problem_code({"type": "/problems/non-finite-value"})
    'non-finite-value'
    """
    code = problem.get("code")
    if isinstance(code, str) and code:
        return code.replace("_", "-")
    kind = problem.get("type")
    return kind.rstrip("/").rsplit("/", 1)[-1] if isinstance(kind, str) and kind != "about:blank" else ""


def error_of(
    problem: Mapping[str, Any], *, status: int = 0, request_id: str = "", retry_after: float | None = None
) -> AnsweredWithError:
    """The exception for a problem document.

    Parameters
    ----------
    problem : the document; may lack anything.
    status : HTTP status of the answer; the document's own where an item of a batch carries it.
    request_id, retry_after : from the headers, where there were some.

    Returns
    -------
    an exception, not raised.
    """
    stated = problem.get("status")
    status = status or (stated if isinstance(stated, int) else 0)
    code = problem_code(problem)
    cls = BY_CODE.get(code) or BY_STATUS.get(status) or (ServerError if status >= 500 else AnsweredWithError)
    listed = problem.get("errors")
    return cls(
        str(problem.get("detail") or problem.get("title") or f"the server answered {status} without an explanation"),
        status=status,
        code=code,
        hint=str(problem.get("hint") or ""),
        errors=[_field_error(entry) for entry in listed if isinstance(entry, Mapping)]
        if isinstance(listed, list)
        else (),
        request_id=str(problem.get("request_id") or request_id),
        retry_after=retry_after,
        problem=problem,
    )


def _field_error(entry: Mapping[str, Any]) -> FieldError:
    message = entry.get("message") or entry.get("detail") or ""
    return FieldError(str(entry.get("pointer", "")), str(entry.get("code", "")), str(message))

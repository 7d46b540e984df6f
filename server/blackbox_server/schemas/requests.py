"""Models of requests: bodies and query parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, create_model

from blackbox.study.side_data import TOLD
from blackbox.study.spec import Budget, LeaseDefaults, Parallelism
from blackbox_server.schemas.parsing import Query, Wire

MAX_TRIAL = 2**53
MAX_SEQ = 2**62


def trial_number(value: Any) -> int:
    """The number of a trial written as 41, "41" or "t_41"."""
    if type(value) is str:
        digits = value.removeprefix("t_")
        if digits.isascii() and digits.isdecimal() and len(digits) <= 16:
            return int(digits)
    elif type(value) is int and 0 <= value <= MAX_TRIAL:
        return value
    raise ValueError('expected a trial such as "t_41" or 41')


TrialNumber = Annotated[int, BeforeValidator(trial_number, json_schema_input_type=str | int)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Seconds = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Params = dict[str, Any]


class Ask(Wire):
    """Lease trials."""

    count: int = Field(1, ge=1, le=10**9)
    """How many at most; GET /v1/limits has the largest."""
    worker: Name | None = None
    """Who evaluates; by default the name of the key."""
    lease_seconds: Seconds | Literal["auto"] | None = None
    """How long it lasts without a heartbeat; by default as the study says."""
    wait_seconds: float = Field(0.0, ge=0, allow_inf_nan=False)
    """How long to wait when nothing is free (at most 30)."""
    resume: bool = False
    """First return the leases that the worker still holds."""
    encoding: Literal["values", "seed"] = "values"
    """seed: vectors as a base and noise addresses, if the algorithm makes its points that way."""


class Failure(Wire):
    """Why an evaluation failed."""

    model_config = ConfigDict(extra="allow", strict=True, use_attribute_docstrings=True)

    type: str = ""
    message: str = ""
    retryable: bool = True
    """Whether another attempt may help."""


class _TrialResult(Wire):
    """The trial of a result, and its value or failure."""

    trial: TrialNumber | None = None
    """The trial's id, such as "t_41"."""
    lease: Annotated[str, Field(max_length=200)] | None = None
    """The `lease.token` of the ask answer."""
    status: Literal["completed", "infeasible", "failed", "stopped", "released"] = "completed"
    value: float | None = None
    """The objective: a finite number."""


if TYPE_CHECKING:
    _ResultWithSideData = _TrialResult
else:
    _ResultWithSideData = create_model(
        "_ResultWithSideData",
        __base__=_TrialResult,
        **{name: (told.type | None, Field(None, description=told.about)) for name, told in TOLD.items()},
    )


class Result(_ResultWithSideData):
    """One result: of a leased trial, or, with `params`, of a point that the study did not choose.

    Besides its own fields it has those of `blackbox.study.side_data.TOLD`.
    """

    error: Failure | None = None
    """Why an evaluation failed."""
    params: Params | None = None
    """A point that the study did not choose."""
    source: Name | None = None
    """The origin of such a point."""
    key: Name | None = None
    """Idempotency key of such an item."""


class Tell(Wire):
    """Results, and perhaps the next ask."""

    counted = "results"
    results: list[Result]
    worker: Name | None = None
    ask: Ask | None = None
    """Lease the next trials in the same answer."""


class ShortTell(Result):
    """The short form of a tell: one result, without a list around it."""

    worker: Name | None = None
    ask: Ask | None = None
    """Lease the next trials in the same answer."""

    def written_out(self) -> Tell:
        """The long form of the same tell."""
        told = {name: getattr(self, name) for name in self.model_fields_set & Result.model_fields.keys()}
        return Tell(results=[Result(**told)], worker=self.worker, ask=self.ask)


class Heartbeat(Wire):
    """Renew leases."""

    counted = "leases"
    leases: list[Annotated[str, Field(max_length=200)]]
    """The `lease.token` of each trial."""
    extend_seconds: Seconds | None = None
    """How long from now; by default as long as the lease was granted for."""


class Enqueued(Wire):
    """A point to evaluate; with a value it is imported as finished."""

    params: Params
    value: float | None = None
    status: Literal["completed", "infeasible"] = "completed"
    source: Name | None = None
    info: dict[str, Any] | None = None


class Enqueue(Wire):
    """Points to evaluate, or finished ones."""

    counted = "trials"
    trials: list[Enqueued] = Field(min_length=1)


class InterimReport(Wire):
    """An interim value; extends the lease."""

    lease: Annotated[str, Field(max_length=200)] | None = None
    """The `lease.token` of the ask answer."""
    step: int | None = Field(None, ge=0, le=MAX_TRIAL)
    """How far the evaluation has got, in its own units; by default one further than the report before."""
    value: float | None = None
    """The objective so far; without it only the lease is extended."""


class Join(Wire):
    """Take part in federated rounds."""

    client: Name
    """The participant's name, unique in the study: letters, digits and . _ : @ - behind a letter or digit."""
    hosted: bool = False
    """Whether the server runs the participant's half of the algorithm, and so sees points and values. The answer then
    names a study whose trials are these points, where only asking and telling is left to do."""
    weight: Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)] | None = None
    """The share of a hosted participant in means, such as its number of examples; default 1."""


class Decline(Wire):
    """Nothing to contribute: no evaluation of the phase gave a value to learn from."""

    phase: Annotated[str, Field(max_length=64)]
    """The phase of the broadcast that this answers."""
    error: Annotated[str, Field(max_length=100)] | None = None
    """Type of the evaluator's last error, such as MemoryError: a name, neither message nor data. null: the values were
    not finite."""


class Reason(Wire):
    """A reason, for the log."""

    reason: Annotated[str, Field(max_length=500)] | None = None


class Edit(Wire):
    """Changes of a study. Each part replaces the one that was there."""

    budget: Annotated[Budget, Field(strict=False)] | None = None
    labels: dict[str, str] | None = None
    lease: Annotated[LeaseDefaults, Field(strict=False)] | None = None
    parallelism: Annotated[Parallelism, Field(strict=False)] | None = None


class Fork(Wire):
    """A fork of a study."""

    name: Name | None = None
    step: int | None = Field(None, ge=0)
    """Step at which the fork leaves; now by default."""
    algorithm: dict[str, Any] | str | None = None
    """Another algorithm starts fresh, with the parent's results as points it did not choose."""


class NewKey(Wire):
    """A key to make."""

    counted = "scopes"
    scopes: list[str] = Field(min_length=1)
    name: Name = "unnamed"
    project: Name | None = None
    """Another project than yours: only for key administrators of the root project."""
    expires_seconds: Seconds | None = None


class Nothing(Wire):
    """An empty object."""


# Query parameters -----------------------------------------------------------------------------------------------------

Limit = Annotated[int, Field(ge=1, le=1000)]
Wait = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class StudiesQuery(Query):
    """A page of studies."""

    limit: Limit = 100
    """How many at most."""
    cursor: Annotated[str, Field(max_length=64)] = ""
    """Id of a study: the page begins after it."""


class TrialsQuery(Query):
    """A page of trials."""

    limit: Limit = 100
    """How many at most."""
    cursor: int = Field(0, ge=0, le=MAX_TRIAL)
    """Number of a trial: the page begins after it."""
    state: Annotated[str, Field(max_length=200)] = ""
    """States to show, with commas between; all by default."""


class BestQuery(Query):
    """Which of the best points, and how many."""

    view: Literal["observed", "recommended", "proposed"] = "observed"
    """observed: the best of what was told. recommended: the point to deploy, which is the same unless values are noisy.
    proposed: the point that the algorithm itself would deploy, evaluated or not."""
    k: int = Field(1, ge=1, le=100)
    """How many of the observed ones."""


class EventsQuery(Query):
    """A page of the log."""

    after: int = Field(0, ge=0, le=MAX_SEQ)
    """Sequence number: the page begins after it."""
    limit: Limit = 100
    """How many numbers to look at."""
    wait_seconds: Wait = 0.0
    """How long to wait while there is nothing (at most 30)."""
    types: Annotated[str, Field(max_length=500)] = ""
    """Types of events to show, with commas between; all by default."""


class ExportQuery(Query):
    """The form of an export."""

    format: Literal["ndjson"] = "ndjson"
    """One JSON document a line."""
    after_seq: int = Field(0, ge=0, le=MAX_SEQ)
    """Sequence number: only what came after it."""


class RoundQuery(Query):
    """How long to hold the answer for the next phase."""

    after_step: int = Field(-1, ge=-1, le=MAX_TRIAL)
    """Wait until the step of the open phase is after this one."""
    wait_seconds: Wait = 0.0
    """How long (at most 30)."""


class UpdatesQuery(Query):
    """A page of updates."""

    after: int = Field(0, ge=0, le=MAX_TRIAL)
    """Version: the page begins after it."""
    limit: Limit = 1000
    """How many at most."""

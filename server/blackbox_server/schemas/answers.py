"""The answers of the service as typed dictionaries.

`/openapi.json` is made from these declarations, and mypy checks the shapes of the routes against them; at run time an
answer is a plain dictionary. A member that may be missing is `NotRequired`, and there are no undeclared ones.
It is one file because it declares every member of every answer, and no other file does.
"""

# No `from __future__ import annotations`: `NotRequired` has to be visible when a class is made.

from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired

import pydantic
from pydantic import GetJsonSchemaHandler, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from typing_extensions import TypedDict

from blackbox.space import Parameter
from blackbox.study.rows import STUDY_STATES, TRIAL_STATES
from blackbox.study.spec import LeaseDefaults, Parallelism
from blackbox_server.problems import Problem, documented


def _one_of(*words: str) -> WithJsonSchema:
    """The schema of a string that is one of these words."""
    return WithJsonSchema({"type": "string", "enum": list(words)})


StudyState = Annotated[str, _one_of(*STUDY_STATES)]
TrialState = Annotated[str, _one_of(*TRIAL_STATES)]
Outcome = Annotated[
    str, _one_of("applied", "injected", "requeued", "released", "duplicate", "late_recorded", "rejected")
]
Params = dict[str, Any]
"""Parameters by name."""


class _Shown:
    """Shows the JSON schema of another type, where an answer holds its JSON."""

    def __init__(self, of: Any) -> None:
        self._of = of

    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(pydantic.TypeAdapter(self._of).core_schema)


# Studies --------------------------------------------------------------------------------------------------------------


@documented
class BestTrial(TypedDict):
    """The best trial so far, by its value."""

    trial: str
    value: float | None


@documented
class Progress(TypedDict):
    """The state of a study, which comes with every ask and tell."""

    state: StudyState
    step: int
    used: int
    """Evaluations spent: results, failed attempts, and values that came too late."""
    late: int
    """Those of them whose results came too late to be told to the algorithm."""
    leased: int
    remaining: int | None
    """Evaluations neither spent nor leased; null: no limit."""
    reason: NotRequired[str]
    """Why it is not active."""
    best: NotRequired[BestTrial]
    """Only for keys that may read."""


@documented
class HostedPlace(TypedDict):
    """The participant of a federated study that this study is."""

    study: str
    client: str
    weight: float


@documented
class ResolvedAlgorithm(TypedDict):
    """The algorithm of a study, as it was requested and as it runs."""

    requested: str
    resolved: str
    reason: str | None
    """Why `auto` chose it."""
    options: dict[str, Any]
    popsize: int | None
    """Results per step, if the options determine it."""


@documented
class BudgetUse(TypedDict):
    """The limits of a study, and what it has used of them."""

    evaluations: int | None
    max_cost: float | None
    deadline: datetime | None
    used: int
    """Evaluations spent: results, failed attempts, and values that came too late."""
    late: int
    """Those of them whose results came too late to be told to the algorithm."""
    cost: float
    leased: int
    remaining: int | None
    """Evaluations neither spent nor leased; null: no limit."""
    steps_affordable: int | None


@documented
class TrialCounts(TypedDict):
    """Trials of a study: how many were ever made, are queued, are leased."""

    made: int
    queued: int
    leased: int


@documented
class StudyInfo(TypedDict):
    """A study."""

    id: str
    name: str
    project: str
    state: StudyState
    reason: str | None
    created_at: datetime
    spec_hash: str
    parent: str | None
    """The study it was forked from."""
    hosted: HostedPlace | None
    direction: Literal["minimize", "maximize"]
    space: dict[str, Annotated[dict[str, Any], _Shown(Parameter)]]
    algorithm: ResolvedAlgorithm
    budget: BudgetUse
    target: float | None
    lease: Annotated[dict[str, Any], _Shown(LeaseDefaults)]
    parallelism: Annotated[dict[str, Any], _Shown(Parallelism)]
    start: Literal["evaluate", "skip"]
    duplicates: Literal["auto", "evaluate", "reuse"]
    seed: str | int
    noise: Literal["auto", "none", "present"]
    non_finite: Literal["reject", "infeasible"]
    require_lease: bool
    labels: dict[str, str]
    step: int
    epoch: int
    """Incremented when the past is rewritten."""
    seq: str
    """Sequence number of the last entry of the log."""
    trials: TrialCounts
    best: BestTrial | None
    warnings: list[str]
    links: dict[str, str]


@documented
class StudiesPage(TypedDict):
    """A page of studies."""

    studies: list[StudyInfo]
    next: str | None
    """Path and query of the next page; null on the last."""


@documented
class SnapshotTaken(TypedDict):
    """A state that was stored: after which step, and its size."""

    step: int
    bytes: int


# Trials ---------------------------------------------------------------------------------------------------------------


@documented
class LeaseInfo(TypedDict):
    """The right to tell about a trial until the lease expires."""

    token: str
    attempt: int
    expires_at: datetime
    heartbeat_seconds: float
    """Interval at which to renew it, in seconds."""


@documented
class Base(TypedDict):
    """The vector that a recipe starts from."""

    sha256: str
    version: int
    href: str


@documented
class SomeCoordinates(TypedDict):
    """A few coordinates of a point: their indices and float32 values."""

    index: list[int]
    value: list[float]


@documented
class LeasedTrial(TypedDict):
    """A trial to evaluate: its parameters; or, with the encoding seed, how to make them."""

    id: str
    number: int
    step: int
    replicate: int
    params: NotRequired[Params]
    encoding: NotRequired[Literal["seed/1"]]
    dim: NotRequired[int]
    dtype: NotRequired[Literal["f32"]]
    base: NotRequired[Base | None]
    """null: the zero vector."""
    ops: NotRequired[list[dict[str, Any]]]
    rng: NotRequired[str]
    key: NotRequired[str]
    check: NotRequired[SomeCoordinates]
    """Coordinates that the finished point must have, as a check."""
    payload: NotRequired[Any]
    """Data of the algorithm for the evaluator, beside the point."""
    eval_seed: str
    lease: LeaseInfo


@documented
class Granted(TypedDict):
    """Trials to evaluate."""

    trials: list[LeasedTrial]
    granted: int
    requested: int
    reason: str | None
    """Why there are fewer than requested."""
    retry_after_seconds: float | None
    problem: NotRequired[Problem]
    """Why this release cannot go on with the study; what was told along with the ask is stored."""


@documented
class AskAnswer(Granted):
    """The answer to an ask."""

    study: Progress


@documented
class OutcomeInfo(TypedDict):
    """The outcome of one result."""

    trial: str | None
    outcome: Outcome
    best_so_far: NotRequired[bool]
    problem: NotRequired[Problem]
    """Why it was rejected."""
    state: NotRequired[TrialState | None]
    attempt: NotRequired[int | None]
    attempts_left: NotRequired[int]


@documented
class TellAnswer(TypedDict):
    """The answer to a tell."""

    applied: int
    results: list[OutcomeInfo]
    """In the order in which they were told."""
    study: Progress
    ask: NotRequired[Granted]


@documented
class RenewalInfo(TypedDict):
    """The renewal of one lease, or the reason to abandon it."""

    token: str
    directive: Literal["continue", "abandon"]
    expires_at: NotRequired[datetime]
    problem: NotRequired[Problem]


@documented
class HeartbeatAnswer(TypedDict):
    """The renewals, in the order of the tokens that were sent."""

    leases: list[RenewalInfo]


@documented
class InterimAnswer(TypedDict):
    """Whether to continue an evaluation, and until when its lease lasts now."""

    directive: Literal["continue", "abandon"]
    lease_expires_at: datetime | None


@documented
class QueuedTrial(TypedDict):
    """A point that was queued."""

    id: str
    number: int
    state: Literal["QUEUED"]


@documented
class ImportedTrial(OutcomeInfo):
    """A finished point that was imported; a rejected one has no id."""

    id: str | None


@documented
class Enqueued(TypedDict):
    """The trials in the order of their points: all queued, or all imported."""

    trials: list[QueuedTrial] | list[ImportedTrial]


@documented
class InterimInfo(TypedDict):
    """An interim value; its step is how far the evaluation had got, in its own units."""

    attempt: int
    step: int
    value: float
    at: datetime


@documented
class TrialInfo(TypedDict):
    """A trial without its point."""

    id: str
    number: int
    state: TrialState
    step: int
    lane: int | None
    """null: a point that the study did not choose."""
    replicate: int
    source: str | None
    worker: str | None
    attempt: int
    failures: int
    lost: int
    asked_at: datetime
    leased_at: datetime | None
    told_at: datetime | None
    lease_expires_at: datetime | None
    lapsed: bool
    value: float | None
    seq: str | None
    invalid: bool
    """Whether its result was taken back."""
    extra: NotRequired[dict[str, Any]]
    """Fields that were told beside the value."""


@documented
class TrialWithPoint(TrialInfo):
    """A trial."""

    params: NotRequired[Params]
    recipe: NotRequired[dict[str, Any]]
    """Instead of parameters, if a vector that it refers to is no longer kept."""
    payload: NotRequired[Any]


@documented
class TrialDetail(TrialWithPoint):
    """A trial with what its evaluation reported."""

    interim: list[InterimInfo]


@documented
class TrialsPage(TypedDict):
    """A page of trials."""

    trials: list[TrialWithPoint]
    next: str | None
    """Path and query of the next page; null on the last."""


@documented
class Invalidated(TypedDict):
    """A result that was taken back."""

    trial: str
    invalidated: int
    """Number of results taken back; 0: it was taken back before."""
    epoch: int


@documented
class Quarantined(TypedDict):
    """A worker whose results were taken back."""

    worker: str
    invalidated: dict[str, int]
    """Number of results taken back, by study."""
    skipped: dict[str, str]
    """Studies that have no results to take back, with the reason."""


# Reading --------------------------------------------------------------------------------------------------------------


@documented
class Estimate(TypedDict):
    """Mean and standard error of the value of a point, and how many told values they rest on."""

    mean: float
    n: int
    stderr: float | None


@documented
class EstimatedPoint(TypedDict):
    """A point with an estimate of its value."""

    id: str
    params: Params
    estimate: Estimate


@documented
class RecommendedPoint(TypedDict):
    """The point to deploy after this step, with the value told of it, or under noise an estimate."""

    id: str | None
    """Trial in which it was evaluated."""
    step: int
    params: Params
    value: float | None
    estimate: Estimate | None
    payload: NotRequired[Any]


Items = list[TrialWithPoint] | list[EstimatedPoint] | list[RecommendedPoint]


@documented
class BestAnswer(TypedDict):
    """The best points of a view."""

    view: Literal["observed", "recommended", "proposed"]
    items: Items
    note: str | None
    """How to read the values."""


@documented
class HealthItem(TypedDict):
    """Something that the owner of a study should know."""

    code: str
    """A stable word."""
    sentence: str
    """What is seen."""
    evidence: dict[str, Any]
    """The numbers behind it, by name."""
    action: str
    """What to do about it."""


@documented
class StudyHealth(TypedDict):
    """The health of a study; no items mean that all is well."""

    items: list[HealthItem]


@documented
class Event(TypedDict):
    """An entry of the log."""

    seq: str
    type: str
    at: datetime | None
    data: dict[str, Any]


@documented
class EventsPage(TypedDict):
    """A page of the log."""

    events: list[Event]
    next_after: str
    """`after` of the next page."""


# Federated rounds -----------------------------------------------------------------------------------------------------


@documented
class HostedStudyLinks(TypedDict):
    """The study in which the trials of a hosted participant are asked and told."""

    study: str
    links: dict[str, str]


@documented
class InvitationInfo(TypedDict):
    """All that a participant's half of the algorithm is made from."""

    method: str
    """The algorithm, by its name; the digest in `terms` is over this member, so it keeps its old name."""
    options: dict[str, Any]
    space: dict[str, Any]
    key: str
    noise: str


@documented
class JoinAnswer(TypedDict):
    """A participant's place in the rounds."""

    client: str
    token: str
    """To be sent in the header Participant-Token."""
    hosted: HostedStudyLinks | None
    invitation: InvitationInfo
    terms: str
    study: Progress
    links: dict[str, str]


@documented
class LeaveAnswer(TypedDict):
    """The study after a participant has left."""

    study: Progress


@documented
class NamedVector(TypedDict):
    """A vector of a broadcast, by its digest, and where to fetch it."""

    sha256: str
    dtype: str
    length: int
    href: str


@documented
class BroadcastInfo(TypedDict):
    """The data that the coordinator sends to all participants of a phase."""

    terms: str
    step: int
    round: int
    phase: str
    version: int
    vectors: dict[str, NamedVector]


@documented
class OpenPhaseInfo(TypedDict):
    """The phase that is open."""

    state: StudyState
    reason: str | None
    step: int
    broadcast: BroadcastInfo | None
    """null: too few participants have joined, or the study has ended."""
    invited: bool | None
    contributed: bool
    joined: int
    received: int
    need: int
    declined: int
    """Participants that have no value to learn from in this phase, and are not waited for."""
    closes_at: datetime | None
    metrics: dict[str, float]


@documented
class ClosedPhase(TypedDict):
    """How a phase was closed."""

    phase: str
    counted: int
    why: str
    closed_at: datetime
    digest: str | None


@documented
class RoundInfo(TypedDict):
    """A round of which at least one phase has closed."""

    round: int
    state: Literal["AGGREGATED", "OPEN"]
    phases: list[ClosedPhase]


@documented
class ContributionAnswer(TypedDict):
    """The outcome of a contribution, and the state of its phase."""

    outcome: str
    counted: bool
    received: int
    need: int
    study: Progress


@documented
class UpdatesPage(TypedDict):
    """Updates of the common point, oldest first."""

    updates: list[dict[str, Any]]
    next_after: int


# The service ----------------------------------------------------------------------------------------------------------


@documented
class KeyInfo(TypedDict):
    """An API key, without its text."""

    id: str
    name: str
    project: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


@documented
class MadeKey(KeyInfo):
    """A key, with its text where it was made just now."""

    key: NotRequired[str]


@documented
class KeysPage(TypedDict):
    """The keys of the project."""

    keys: list[KeyInfo]


@documented
class ServiceInfo(TypedDict):
    """The service: its links, and example bodies."""

    name: Literal["blackbox"]
    version: str
    links: dict[str, str]
    examples: dict[str, dict[str, Any]]


@documented
class Status(TypedDict):
    """The health of the service."""

    status: Literal["ok", "ready"]


@documented
class ProblemKind(TypedDict):
    """The meaning of a problem's `type`."""

    code: str
    status: int
    title: str
    retryable: bool
    hint: str
    about: str | None


@documented
class KeyUse(TypedDict):
    """The key of this request."""

    id: str
    name: str
    project: str
    scopes: list[str]


@documented
class QuotaUse(TypedDict):
    """A quota, and what is used of it."""

    name: str
    per: Literal["project", "key", "study"]
    value: float
    used: float | None
    """null: it is counted for each study."""
    about: str


@documented
class Limits(TypedDict):
    """The limits of this key."""

    body_bytes: int
    vector_body_bytes: int
    binary_body_bytes: int
    head_bytes: int
    head_seconds: float
    body_seconds: float
    connections_per_address: int
    """0: no limit."""
    json_depth: int
    json_values: int
    """Commas of a body where points are sent. What looks like these inside of texts counts in all five."""
    json_plain_values: int
    """Commas of any other body."""
    json_objects: int
    """Opening brackets."""
    json_members: int
    """Colons."""
    json_texts: int
    """Pairs of quotation marks."""
    json_name: int
    """Characters of a member's name."""
    json_digits: int
    """Digits of an integer."""
    count: int
    values_bytes: int
    algorithm_bytes: int
    info_bytes: int
    wait_seconds: float
    requests_per_second: float
    requests_left: int
    quotas: list[QuotaUse]
    key: KeyUse


@documented
class AlgorithmInfo(TypedDict):
    """An optimization algorithm."""

    name: str
    summary: str
    about: str
    options: dict[str, Any]
    """JSON schema."""
    parameters: list[str]
    regions: list[str]
    projects: bool
    tells: list[str]
    max_dim: int | None
    kind: Literal["group", "members", "sequential"]
    asynchronous: bool
    injects: bool
    seed_encoded: bool
    memory_bytes: dict[str, int]
    """Estimated bytes by dimension, with default options."""


@documented
class FederatedAlgorithmInfo(TypedDict):
    """An algorithm that works in rounds of participants."""

    name: str
    summary: str
    about: str
    options: dict[str, Any]
    """JSON schema."""


@documented
class Algorithms(TypedDict):
    """The algorithms of the service: those that work on trials, and those that work in federated rounds."""

    algorithms: list[AlgorithmInfo]
    federated: list[FederatedAlgorithmInfo]

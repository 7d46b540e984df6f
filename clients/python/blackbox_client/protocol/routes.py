"""The table of routes: every path of the service, what its requests carry, and how its answers are read.

The functions of `protocol.calls` send nothing that is not declared here, and `tests/client/test_twin.py` holds this
table, with the types it names, to the server's own `/openapi.json`: name by name, in both directions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

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
    ServiceDocument,
    Snapshot,
    Study,
    TellAnswer,
    Trial,
    Updates,
)
from blackbox_client.models import bodies as send
from blackbox_client.models.model import Model, Tagged
from blackbox_client.protocol.retrying import Reply

T = TypeVar("T")
M = TypeVar("M", bound=Model)


# ---- how answers are read


@dataclass(frozen=True, slots=True)
class One(Generic[M]):
    """One object."""

    model: type[M]

    def __call__(self, reply: Reply) -> M:
        if issubclass(self.model, Tagged):
            return self.model.of(reply.object(), reply.etag)
        return self.model.of(reply.object())


@dataclass(frozen=True, slots=True)
class Listed(Generic[M]):
    """A page of objects: a list under its name, and `next`, the address of the following page."""

    name: str
    model: type[M]

    def __call__(self, reply: Reply) -> Page[M]:
        raw = reply.object()
        following = raw.get("next")
        items = raw.get(self.name)
        found = items if isinstance(items, list) else []
        return Page(tuple(self.model.of(item) for item in found), following or None, raw)


@dataclass(frozen=True, slots=True)
class Plain(Generic[T]):
    """No JSON: text, bytes, or nothing."""

    convert: Callable[[bytes], T]

    def __call__(self, reply: Reply) -> T:
        return self.convert(reply.body)


TEXT = Plain(bytes.decode)
BYTES = Plain(bytes)
NOTHING: Plain[None] = Plain(lambda body: None)


# ---- routes


@dataclass(frozen=True, slots=True)
class Route(Generic[T]):
    """One route.

    Attributes
    ----------
    method : of HTTP.
    path : with the names of its parts in braces.
    read : how the answer is read: `One`, `Listed` or `Plain`.
    body, query : the type that declares what a request may carry there (`models.bodies`); None: nothing.
    """

    method: str
    path: str
    read: Callable[[Reply], T]
    body: type | None = None
    query: type | None = None

    def at(self, **parts: str) -> str:
        """The path with its parts filled in; what comes from outside cannot leave its place."""
        return self.path.format(**{name: quote(part, safe="") for name, part in parts.items()})


_STUDY = "/v1/studies/{study}"
_TRIAL = f"{_STUDY}/trials/{{trial}}"
_ROUND = f"{_STUDY}/rounds/{{round}}"

SERVICE = Route("GET", "/v1", One(ServiceDocument))
LIMITS = Route("GET", "/v1/limits", One(Limits))
ALGORITHMS = Route("GET", "/v1/algorithms", One(Algorithms))
PROBLEM = Route("GET", "/problems/{code}", One(ProblemInfo))

CREATE_STUDY = Route("POST", "/v1/studies", One(Study), body=send.StudySpec)
LIST_STUDIES = Route("GET", "/v1/studies", Listed("studies", Study), query=send.PageQuery)
GET_STUDY = Route("GET", _STUDY, One(Study))
UPDATE_STUDY = Route("PATCH", _STUDY, One(Study), body=send.Edit)
DELETE_STUDY = Route("DELETE", _STUDY, NOTHING)
PAUSE = Route("POST", f"{_STUDY}/pause", One(Study), body=send.Reason)
RESUME = Route("POST", f"{_STUDY}/resume", One(Study), body=send.Reason)
COMPLETE = Route("POST", f"{_STUDY}/complete", One(Study), body=send.Reason)
CANCEL = Route("POST", f"{_STUDY}/cancel", One(Study), body=send.Reason)
FORK = Route("POST", f"{_STUDY}/fork", One(Study), body=send.Fork)
SNAPSHOT = Route("POST", f"{_STUDY}/snapshots", One(Snapshot), body=send.Nothing)

ASK = Route("POST", f"{_STUDY}/ask", One(AskAnswer), body=send.Ask)
TELL = Route("POST", f"{_STUDY}/tell", One(TellAnswer), body=send.Tell)
HEARTBEAT = Route("POST", f"{_STUDY}/heartbeat", One(HeartbeatAnswer), body=send.Heartbeat)

ENQUEUE = Route("POST", f"{_STUDY}/trials", Listed("trials", Queued), body=send.Enqueue)
LIST_TRIALS = Route("GET", f"{_STUDY}/trials", Listed("trials", Trial), query=send.TrialsQuery)
GET_TRIAL = Route("GET", _TRIAL, One(Trial))
CANCEL_TRIAL = Route("POST", f"{_TRIAL}/cancel", One(Trial), body=send.Reason)
REQUEUE_TRIAL = Route("POST", f"{_TRIAL}/requeue", One(Trial), body=send.Reason)
INVALIDATE_TRIAL = Route("POST", f"{_TRIAL}/invalidate", One(Invalidated), body=send.Reason)
REPORT = Route("POST", f"{_TRIAL}/reports", One(ReportAnswer), body=send.InterimReport)
QUARANTINE = Route("POST", "/v1/workers/{worker}/quarantine", One(Quarantined), body=send.Reason)

BEST = Route("GET", f"{_STUDY}/best", One(Best), query=send.BestQuery)
HEALTH = Route("GET", f"{_STUDY}/health", One(Health))
EVENTS = Route("GET", f"{_STUDY}/events", One(EventPage), query=send.EventsQuery)
EXPORT = Route("GET", f"{_STUDY}/export", TEXT, query=send.ExportQuery)
BRIEF = Route("GET", f"{_STUDY}/brief", TEXT)
BASE = Route("GET", f"{_STUDY}/bases/{{version}}", BYTES)

JOIN = Route("POST", f"{_STUDY}/rounds/join", One(Joined), body=send.Join)
LEAVE = Route("POST", f"{_STUDY}/rounds/leave", One(Left), body=send.Nothing)
CURRENT_ROUND = Route("GET", _ROUND, One(OpenPhase), query=send.RoundQuery)
PAST_ROUND = Route("GET", _ROUND, One(PastRound), query=send.RoundQuery)
CONTRIBUTE = Route("POST", f"{_ROUND}/contributions", One(Contributed), body=send.Contribution)
DECLINE = Route("POST", f"{_ROUND}/decline", One(Contributed), body=send.Decline)
UPDATES = Route("GET", f"{_STUDY}/updates", One(Updates), query=send.UpdatesQuery)

CREATE_KEY = Route("POST", "/v1/keys", One(ApiKey), body=send.NewKey)
LIST_KEYS = Route("GET", "/v1/keys", Listed("keys", ApiKey))
DELETE_KEY = Route("DELETE", "/v1/keys/{key}", NOTHING)

ROUTES: tuple[Route[Any], ...] = (
    *(SERVICE, LIMITS, ALGORITHMS, PROBLEM),
    *(CREATE_STUDY, LIST_STUDIES, GET_STUDY, UPDATE_STUDY, DELETE_STUDY),
    *(PAUSE, RESUME, COMPLETE, CANCEL, FORK, SNAPSHOT),
    *(ASK, TELL, HEARTBEAT),
    *(ENQUEUE, LIST_TRIALS, GET_TRIAL, CANCEL_TRIAL, REQUEUE_TRIAL, INVALIDATE_TRIAL, REPORT, QUARANTINE),
    *(BEST, HEALTH, EVENTS, EXPORT, BRIEF, BASE),
    *(JOIN, LEAVE, CURRENT_ROUND, PAST_ROUND, CONTRIBUTE, DECLINE, UPDATES),
    *(CREATE_KEY, LIST_KEYS, DELETE_KEY),
)
"""All of them. `CURRENT_ROUND` and `PAST_ROUND` are one path that answers in two ways."""

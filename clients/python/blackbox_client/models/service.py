"""The service itself, its algorithms and its keys, as the server describes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from blackbox_client.models.model import Json, Model, Tagged, wire


@dataclass(frozen=True, slots=True)
class ServiceDocument(Tagged):
    """The front page of a server: links by name, and example bodies."""

    name: str = ""
    version: str = ""
    links: Json = field(default_factory=dict)
    examples: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KeyInUse(Model):
    """The key that a request was sent with."""

    id: str = ""
    name: str = ""
    project: str = ""
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class QuotaUse(Model):
    """A quota, and what is used of it.

    Attributes
    ----------
    per : for what it is counted: ``project``, ``key`` or ``study``.
    value, used : how much it is, and how much is taken; None: it is counted for each study.
    """

    name: str = ""
    per: str = ""
    value: float = 0.0
    used: float | None = None
    about: str = ""


@dataclass(frozen=True, slots=True)
class Limits(Model):
    """The limits of one key.

    Attributes
    ----------
    body_bytes, vector_body_bytes, binary_body_bytes : largest body in JSON, largest of those that carry vectors, and
        largest contribution in the binary form.
    head_bytes, head_seconds, body_seconds : size of a request line with headers, and the time that this and the body
        may take.
    connections_per_address : most open connections; 0: no limit.
    json_depth : most levels of objects and arrays.
    json_values, json_plain_values, json_objects, json_members, json_texts : most commas in a body with points and in
        any other, opening brackets, colons and pairs of quotation marks, those inside of texts included.
    json_name, json_digits : most characters of a member's name, and digits of an integer.
    count : most trials, results or leases in one request.
    values_bytes : largest answer that lists points as numbers.
    algorithm_bytes : most memory that a study's state may take.
    info_bytes : largest `info`, and largest `sums`, of a result, as JSON.
    wait_seconds : longest time that an answer is held back.
    requests_per_second, requests_left : average rate that is allowed, and how many may be sent at once now.
    quotas : what may be kept for the key, its project and a study.
    """

    body_bytes: int | None = None
    vector_body_bytes: int | None = None
    binary_body_bytes: int | None = None
    head_bytes: int | None = None
    head_seconds: float | None = None
    body_seconds: float | None = None
    connections_per_address: int | None = None
    json_values: int | None = None
    json_plain_values: int | None = None
    json_objects: int | None = None
    json_members: int | None = None
    json_texts: int | None = None
    json_name: int | None = None
    json_digits: int | None = None
    json_depth: int | None = None
    count: int | None = None
    values_bytes: int | None = None
    algorithm_bytes: int | None = None
    info_bytes: int | None = None
    wait_seconds: float | None = None
    requests_per_second: float | None = None
    requests_left: int | None = None
    quotas: tuple[QuotaUse, ...] = ()
    key: KeyInUse | None = None


@dataclass(frozen=True, slots=True)
class AlgorithmInfo(Model):
    """An algorithm that works on trials.

    Attributes
    ----------
    summary, about : its description, in one line and whole.
    options : JSON schema of its options.
    parameters, regions : types of parameters and of regions that it treats.
    projects : whether it keeps its points in a region by projecting them.
    tells : kinds of results that it takes: ``scalar``, ...
    max_dim : most dimensions; None: no limit of its own.
    kind : how its steps close: ``group``, ``members`` or ``sequential``.
    asynchronous : whether several workers can evaluate for it at a time.
    injects : whether it learns from points that it did not choose.
    seed_encoded : whether its points can travel as recipes.
    memory_bytes : estimated memory of its state, by dimension (as text), with default options.
    """

    name: str
    summary: str = ""
    about: str = ""
    options: Json = field(default_factory=dict)
    parameters: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    projects: bool = False
    tells: tuple[str, ...] = ()
    max_dim: int | None = None
    kind: str = ""
    asynchronous: bool = False
    injects: bool = False
    seed_encoded: bool = False
    memory_bytes: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FederatedInfo(Model):
    """An algorithm that works in rounds of participants; `options` is the JSON schema of its options."""

    name: str
    summary: str = ""
    about: str = ""
    options: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Algorithms(Tagged):
    """The algorithms of a server: those that work on trials, and those that work in federated rounds."""

    algorithms: tuple[AlgorithmInfo, ...] = ()
    federated: tuple[FederatedInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class ProblemInfo(Model):
    """The meaning of a problem's code, independent of the request.

    Attributes
    ----------
    status, title, hint : as every problem of this code has them.
    retryable : whether sending the same again may help.
    about : when it happens.
    """

    code: str
    status: int | None = None
    title: str = ""
    retryable: bool = False
    hint: str = ""
    about: str = ""


@dataclass(frozen=True, slots=True)
class ApiKey(Model):
    """A key of the service. `secret` is there once, when it is created, and is not shown by `repr`."""

    id: str
    name: str = ""
    project: str = ""
    scopes: tuple[str, ...] = ()
    created_at: datetime | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    secret: str = field(default="", repr=False, metadata=wire("key"))

"""The spec from which a study is created, and its resolution to an algorithm and options.

The spec is stored with the *resolved* algorithm and options: a later change of a default, or of the choice by `auto`,
cannot alter a replay. It keeps the order it was written in, because the order of parameters is the layout of points.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from blackbox.algorithm import ALGORITHMS
from blackbox.algorithms import auto
from blackbox.errors import FieldError, InvalidInput, InvalidOptions, InvalidSpace, UnknownAlgorithm, nearest
from blackbox.federation.method import FEDERATED
from blackbox.options import Options, known_options, parse_options
from blackbox.registry import Outlook, Registry
from blackbox.space import Parameter, Space
from blackbox.validation import Model, field_errors, invalid, not_text

MAX_SAFE_INTEGER = 2**53
MAX_SECONDS = 1e9
"""Seconds of the longest lease, thirty years: the end of any lease is a time that can be written."""
REGISTRIES: tuple[Registry[Any], ...] = (ALGORITHMS, FEDERATED)


class _ParameterSchema:
    """Gives a parameter's JSON schema to a field that keeps the object as written (`Space` reads it)."""

    @staticmethod
    def __get_pydantic_json_schema__(_: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(pydantic.TypeAdapter(Parameter).core_schema)


class AlgorithmChoice(Model):
    """An algorithm and its options."""

    name: str = "auto"
    """The name of an algorithm, or `auto`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of that algorithm; the others get defaults that fit the problem."""


class Budget(Model):
    """Limits after which a study completes."""

    evaluations: Annotated[int, Field(ge=1, le=MAX_SAFE_INTEGER)] | None = None
    """Told results after which the study completes. None: no limit."""
    max_cost: Annotated[float, Field(gt=0)] | None = None
    """Sum of the told `cost.usd` after which the study completes."""
    deadline: datetime | None = None
    """Time (with a zone) after which nothing more is granted."""

    @pydantic.field_validator("deadline")
    @classmethod
    def _zoned(cls, value: datetime | None) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("expected a time with a zone, such as 2026-12-01T00:00:00Z")
        return value


class LeaseDefaults(Model):
    """Duration of leases, and failures of a trial."""

    default_seconds: Annotated[float, Field(gt=0, le=MAX_SECONDS)] | Literal["auto"] = "auto"
    """Seconds a worker may keep a trial without renewing its lease. auto: three times the 95th percentile of evaluation
    times, at least 60 s; 600 s until five results are in."""
    max_seconds: float = Field(86400.0, gt=0, le=MAX_SECONDS)
    """Seconds of the longest lease that a worker may request."""
    max_attempts: int = Field(3, ge=1)
    """Number of retryable failures after which a trial is FAILED."""
    max_lost: int = Field(5, ge=0)
    """Number of lapsed leases after which a trial is FAILED."""


class Parallelism(Model):
    """Limit on evaluations in parallel."""

    max_leased: int = Field(256, ge=1, le=1_000_000)
    """Most leases at a time; further asks get an empty answer with reason `parallelism_cap`."""
    workers: int | None = Field(None, ge=1, le=1_000_000)
    """Evaluations that will be made at a time, as far as it is known when the study is created: default populations are
    at least as large. None: unknown."""


class Rounds(Model):
    """Settings of federated studies; other studies ignore them."""

    min_joined: int = Field(1, ge=1, le=1_000_000)
    """Participants that must have joined before the first round begins."""
    deadline_seconds: float | None = Field(None, gt=0)
    """A phase that has been open for so long closes with the contributions so far, if these are at least the
    algorithm's `min_clients`. None: it waits for the quorum."""
    keep: Literal["all", "open"] = "all"
    """all: contributions stay in the log, so that the study replays from the beginning. open: the contents of used
    contributions are deleted, and a replay begins at the newest snapshot."""


class StudySpec(Model):
    """A study as people write it."""

    name: str = Field(min_length=1, max_length=200)
    """Unique in its project; creating the same spec again returns the existing study."""
    space: dict[str, Annotated[dict[str, Any], _ParameterSchema]]
    """Parameters by name. A vector may live in a convex region; all other parameters must then be bounded."""
    direction: Literal["minimize", "maximize"] = "minimize"
    algorithm: AlgorithmChoice = AlgorithmChoice()
    budget: Budget = Budget()
    target: float | None = None
    """The study completes when a told value is at least this good."""
    lease: LeaseDefaults = LeaseDefaults()
    parallelism: Parallelism = Parallelism()
    rounds: Rounds = Rounds()
    start: Literal["evaluate", "skip"] = "evaluate"
    """Whether the start point, `init` or the middle of the bounds, is the first trial. Methods that evaluate it
    themselves have no such trial. skip: its value is known, or costs too much."""
    duplicates: Literal["auto", "evaluate", "reuse"] = "auto"
    """Treatment of points that were told before, in a space of integers and choices only. reuse: their value is told to
    the algorithm again and costs nothing; a study that has told every point ends (`space_exhausted`). auto: as reuse
    once three points were told twice with equal values, and as evaluate after any two values that differ."""
    seed: str | int = "0"
    """Seed of all randomness; a string on the wire because it may pass 2^53."""
    noise: Literal["auto", "none", "present"] = "auto"
    """Whether two evaluations of a point may differ. auto: the study finds out, by evaluating its best point again
    after 30 results (after half a budget below 60, never with one below 30), and more often if the values differ.
    none: they are equal. present: they differ. Under noise the recommended point is chosen by estimates."""
    non_finite: Literal["reject", "infeasible"] = "reject"
    """Treatment of a told NaN or infinity: reject it with a hint, or take the point as infeasible."""
    require_lease: bool = False
    """Whether a tell must carry its lease token."""
    labels: dict[str, str] = Field(default_factory=dict)

    @pydantic.field_validator("algorithm", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @pydantic.field_validator("seed")
    @classmethod
    def _as_text(cls, value: str | int) -> str:
        return str(value)


class Hosted(Model):
    """Marks the study of a hosted participant, whose machine runs where the study is kept."""

    study: str
    """Id of the federated study."""
    client: str
    """Name of the participant there."""
    weight: float
    """Its weight in means."""
    key: str
    """Noise key of the federated study, hexadecimal: part of the invitation, like algorithm, options and space."""


class Resolved(Model):
    """A spec with every choice made: the form that a study stores and replays from."""

    spec: StudySpec
    algorithm: str
    options: dict[str, Any]
    reason: str
    """Why `auto` chose this algorithm, or the changes that a fork had to make; otherwise empty."""
    revision: int = 1
    """Revision of the algorithm that computed the states; studies older than this field have the first."""
    federated: bool = False
    """Whether the algorithm works in rounds of participants (`blackbox.federation`)."""
    hosted: Hosted | None = None
    """Set for a hosted participant; `algorithm` and `options` are then those of the federated study."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _writable_times(cls, stored: Any) -> Any:
        """Studies that were stored before leases had a longest duration are read with it."""
        match stored:
            case {"spec": {"lease": {} as lease}}:
                for name in ("default_seconds", "max_seconds"):
                    if isinstance(lease.get(name), int | float):
                        lease[name] = min(lease[name], MAX_SECONDS)
        return stored


def parse_spec(raw: Mapping[str, Any]) -> StudySpec:
    """Validate a spec.

    Raises
    ------
    InvalidInput
        With a JSON pointer per bad field and the nearest valid name for an unknown one.
    """
    if unfit := list(not_text(raw)):
        raise invalid(InvalidSpace if unfit[0].pointer.startswith("/space") else InvalidInput, unfit)
    try:
        return StudySpec.model_validate(dict(raw))
    except pydantic.ValidationError as error:
        raise invalid(InvalidInput, field_errors(error, StudySpec)) from None


def resolve(spec: StudySpec) -> tuple[Resolved, Space]:
    """Decide algorithm and options for a spec.

    Raises
    ------
    InvalidSpace, InvalidOptions, UnknownAlgorithm, IncompatibleProblem
        If space, options or algorithm cannot be used, or do not fit one another.
    """
    space = Space.from_json(spec.space)
    outlook = Outlook(spec.budget.evaluations, spec.parallelism.workers)
    name, reason, chosen = spec.algorithm.name, "", spec.algorithm.options
    if name == "auto":
        if spec.algorithm.options:
            raise InvalidInput(
                "auto takes no options yet, got " + ", ".join(sorted(spec.algorithm.options)),
                hint="name the algorithm that these options belong to",
                errors=[FieldError("/algorithm/options", "extra_forbidden", "auto takes no options")],
            )
        name, reason = auto.choose(space, spec.budget.evaluations)
    kind = next((registry for registry in REGISTRIES if name in registry.all()), None)
    if kind is None:
        known = [*(known for registry in REGISTRIES for known in registry.all()), "auto"]
        raise UnknownAlgorithm(f'there is no algorithm "{name}"', hint=nearest(name, known))
    options = kind.resolve_options(name, space, chosen, maximize=spec.direction == "maximize", outlook=outlook)
    cls = kind.lookup(name)
    resolved = Resolved(
        spec=spec,
        algorithm=name,
        options=options.model_dump(mode="json"),
        reason=reason,
        revision=cls.revision,
        federated=cls.kind == "rounds",
    )
    return resolved, space


@dataclass(frozen=True, slots=True)
class StoredAlgorithm:
    """The stored algorithm and options of a study as this release reads them.

    Attributes
    ----------
    cls : the `Algorithm` or `Federation` of that name; None if this release has none.
    options : the stored options, resolved; None if this release cannot use them.
    obstacle : why nothing can be computed; empty if something can.
    revised : a sentence on the change of revision; empty if the study's and this release's are the same.
    dropped : stored options that this release does not know. They do not affect what is computed, or the revision would
        have been raised, so they are ignored.
    """

    cls: type[Any] | None
    options: Options | None
    obstacle: str = ""
    revised: str = ""
    dropped: tuple[str, ...] = ()

    def notes(self, name: str) -> list[str]:
        """Sentences on the differences for people who look at the study; [] without differences."""
        words = [f'this release\'s {name} has no option "{option}": it is ignored' for option in self.dropped]
        return [word for word in (self.obstacle, self.revised) if word] + words


def stored_algorithm(resolved: Resolved, space: Space) -> StoredAlgorithm:
    """The algorithm of a stored study in this release. Never raises: whatever has changed, a study can be read."""
    name = resolved.algorithm
    in_rounds = resolved.federated or resolved.hosted is not None
    cls: type[Any] | None = (FEDERATED if in_rounds else ALGORITHMS).all().get(name)
    if cls is None:
        return StoredAlgorithm(None, None, f'this release has no algorithm "{name}"')
    revised = ""
    if cls.revision != resolved.revision:
        revised = f"it was computed by revision {resolved.revision} of {name}, this release has revision {cls.revision}"
    known, dropped = known_options(cls.Options, resolved.options)
    try:
        options = parse_options(cls.Options, known)
        if cls.Options.model_fields.keys() <= known.keys():
            options = parse_options(cls.Resolved, known)
        else:  # options that came with a later release get the default that fits the problem
            options = cls.resolve(options, space)
    except InvalidOptions as error:
        return StoredAlgorithm(
            cls, None, f"this release's {name} does not take the stored options: {error.detail}", revised, dropped
        )
    return StoredAlgorithm(cls, options, "", revised, dropped)


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def spec_hash(spec: StudySpec) -> str:
    """`sha256:` digest of the spec as written."""
    return "sha256:" + hashlib.sha256(canonical(spec.model_dump(mode="json")).encode()).hexdigest()


def under_todays_names(resolved: Resolved) -> StudySpec:
    """Return the spec of a stored study with its options as this release calls them."""
    spec = resolved.spec
    kind = FEDERATED if resolved.federated else ALGORITHMS
    cls: type[Any] | None = kind.all().get(spec.algorithm.name)
    if cls is None:
        return spec
    options, _ = known_options(cls.Options, spec.algorithm.options)
    return spec.model_copy(update={"algorithm": AlgorithmChoice(name=spec.algorithm.name, options=options)})


def differences(old: StudySpec, new: StudySpec) -> list[FieldError]:
    """The top-level fields in which two specs differ."""
    a, b = old.model_dump(mode="json"), new.model_dump(mode="json")
    return [
        FieldError(f"/{key}", "mismatch", f"the existing study has {reprlib.repr(a[key])}, got {reprlib.repr(b[key])}")
        for key in a
        if a[key] != b[key]
    ]

"""A trial: one point to evaluate, perhaps leased, perhaps told."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self, TypeAlias

from blackbox_client.errors import BadAnswer
from blackbox_client.models.model import Json, Model, Tagged, as_integer, inline, read_members

TrialRef: TypeAlias = "Trial | int | str"
"""A trial, or its id: ``41``, ``"41"`` or ``"t_41"``."""


def trial_number(trial: TrialRef) -> int:
    """The number of a trial given as an object, ``41``, ``"41"`` or ``"t_41"``.

    Raises
    ------
    ValueError
        If it is none of these.

    >>> trial_number("t_41")
    41
    """
    if isinstance(trial, Trial):
        return trial.number
    number = as_integer(trial.removeprefix("t_") if isinstance(trial, str) else trial)
    if number is None or number < 0:
        raise ValueError(f'a trial is 41, "41" or "t_41", got {trial!r}')
    return number


@dataclass(frozen=True, slots=True)
class Lease(Model):
    """The right to tell about a trial, until it lapses; renew it every `heartbeat_seconds`."""

    token: str
    attempt: int = 1
    expires_at: datetime | None = None
    heartbeat_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Base(Model):
    """The base vector of a recipe: its digest, the step it belongs to, and where its bytes are."""

    sha256: str
    version: int | None = None
    href: str = ""


@dataclass(frozen=True, slots=True)
class Check(Model):
    """A few coordinates of a point: their indices, and the float32 numbers that must be there."""

    index: tuple[int, ...] = ()
    value: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class SeedCandidate(Model):
    """A point as a recipe: a base vector and the noise to add to it. `recipes.rebuild` reads `raw`.

    Attributes
    ----------
    encoding, dtype, rng : what the recipe is written in, see clients/NOISE.md.
    dim : coordinates of the point.
    base : None: the zero vector.
    ops : the noise to add, in this order.
    key : of all noise of the study, hexadecimal.
    check : to prove that the point was rebuilt as it is meant.
    """

    encoding: str
    dim: int
    dtype: str = "f32"
    base: Base | None = None
    ops: tuple[Json, ...] = ()
    rng: str = ""
    key: str = ""
    check: Check | None = None

    @property
    def base_sha256(self) -> str:
        """Digest of the base vector; empty where there is none."""
        return "" if self.base is None else self.base.sha256


@dataclass(frozen=True, slots=True)
class Interim(Model):
    """A value that was reported while a trial was evaluated: in which attempt, how far it had got, and when."""

    attempt: int | None = None
    step: int | None = None
    value: float | None = None
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Trial(Tagged):
    """One point to evaluate. An ask fills in what an evaluation needs, reading a trial what became of it.

    Attributes
    ----------
    params : by name; empty where the point comes as a recipe (`candidate`, or `recipe` where it is past).
    step, lane, replicate : the step that asked for it, its place there (None for a point that was given), and
        the number of the evaluation where a point is evaluated again.
    eval_seed : for common random numbers: the same for all points of a step and replicate.
    lease : present while the trial is yours.
    payload : data of the algorithm for the evaluator, beside the point.
    source : the origin of a point that was given.
    worker, attempt, failures, lost : who has or had it, the number of the attempt, and how many earlier ones failed or
        were lost.
    lease_expires_at, lapsed : when its lease ends, and whether it has.
    value, extra, seq : the result: its value, the fields told beside it, and its sequence number in the log.
    invalid : whether the result was taken back.
    interim : what was reported while it was evaluated, where a single trial is read.
    """

    id: str
    number: int
    params: Json = field(default_factory=dict)
    state: str = ""
    step: int | None = None
    lane: int | None = None
    replicate: int = 0
    eval_seed: int | None = None
    lease: Lease | None = None
    candidate: SeedCandidate | None = field(default=None, metadata=inline("encoding"))
    payload: Any = None
    source: str | None = None
    worker: str | None = None
    attempt: int | None = None
    failures: int = 0
    lost: int = 0
    asked_at: datetime | None = None
    leased_at: datetime | None = None
    told_at: datetime | None = None
    lease_expires_at: datetime | None = None
    lapsed: bool = False
    value: float | None = None
    seq: int | None = None
    invalid: bool = False
    extra: Json = field(default_factory=dict)
    recipe: Json = field(default_factory=dict)
    interim: tuple[Interim, ...] = ()

    @classmethod
    def of(cls, raw: Json, etag: str = "") -> Self:
        """Read a trial; its number also from its id alone."""
        if "number" in raw:
            return cls(**read_members(cls, raw), raw=raw, etag=etag)
        try:
            number = trial_number(raw["id"])
        except (KeyError, ValueError):
            raise BadAnswer(f"expected a trial with its id, got {dict(raw)!r:.200}") from None
        return cls(**read_members(cls, {**raw, "number": number}), raw=raw, etag=etag)

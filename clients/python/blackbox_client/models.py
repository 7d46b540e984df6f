"""What comes back from the server, and the one thing that goes there: a result.

Everything is a frozen dataclass that ignores fields it does not know, so that a newer server does not break an older
client; the whole document stays in `raw`. Seeds and sequence numbers are strings on the wire and integers here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from blackbox_client.errors import AnsweredWithError, BadAnswer, error_of

T = TypeVar("T")
Json = Mapping[str, Any]
Status = Literal["completed", "infeasible", "failed", "stopped", "released"]

ENDED = frozenset({"COMPLETED", "CANCELLED", "FAILED", "DELETED"})
"""Study states in which nothing is handed out any more."""


# ---- reading JSON tolerantly


def _integer(value: Any) -> int | None:
    """An integer written as a number or as a string; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _object(value: Any) -> Json:
    return value if isinstance(value, Mapping) else {}


def _objects(value: Any) -> list[Json]:
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []


def _time(value: Any) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return None


def trial_number(trial: Trial | int | str) -> int:
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
    number = _integer(trial.removeprefix("t_") if isinstance(trial, str) else trial)
    if number is None or number < 0:
        raise ValueError(f'a trial is 41, "41" or "t_41", got {trial!r}')
    return number


# ---- studies


@dataclass(frozen=True, slots=True)
class Budget:
    """What a study may spend and has spent, in evaluations."""

    evaluations: int | None = None
    used: int = 0
    leased: int = 0
    remaining: int | None = None
    generations_affordable: int | None = None
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json) -> Budget:
        return cls(
            _integer(raw.get("evaluations")),
            _integer(raw.get("used")) or 0,
            _integer(raw.get("leased")) or 0,
            _integer(raw.get("remaining")),
            _integer(raw.get("generations_affordable")),
            raw,
        )


@dataclass(frozen=True, slots=True)
class Study:
    """A study as the server describes it."""

    id: str
    name: str = ""
    state: str = ""
    spec_hash: str = ""
    created_at: datetime | None = None
    algorithm: Json = field(default_factory=dict)
    budget: Budget = Budget()
    warnings: tuple[Any, ...] = ()
    links: Json = field(default_factory=dict)
    etag: str = ""
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json, etag: str = "") -> Study:
        if not _text(raw.get("id")):
            raise BadAnswer(f"a study without an id: {dict(raw)!r:.200}")
        warnings = raw.get("warnings") or raw.get("warning") or ()
        return cls(
            raw["id"],
            _text(raw.get("name")),
            _text(raw.get("state")),
            _text(raw.get("spec_hash")),
            _time(raw.get("created_at")),
            _object(raw.get("algorithm")),
            Budget.of(_object(raw.get("budget"))),
            tuple(warnings) if isinstance(warnings, list | tuple) else (warnings,),
            _object(raw.get("links")),
            etag,
            raw,
        )

    @property
    def ended(self) -> bool:
        """Whether nothing is handed out any more."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True)
class Progress:
    """The few words about the study that come with every ask and tell."""

    state: str = ""
    generation: int | None = None
    used: int | None = None
    leased: int | None = None
    remaining: int | None = None
    best: Json = field(default_factory=dict)
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json) -> Progress:
        return cls(
            _text(raw.get("state")),
            _integer(raw.get("generation")),
            _integer(raw.get("used")),
            _integer(raw.get("leased")),
            _integer(raw.get("remaining")),
            _object(raw.get("best")),
            raw,
        )

    @property
    def ended(self) -> bool:
        """Whether nothing is handed out any more."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True)
class AlgorithmInfo:
    """One registered algorithm; spaces, options and limits are in `raw`."""

    name: str
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json) -> AlgorithmInfo:
        return cls(_text(raw.get("name")), raw)


# ---- trials


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to tell about a trial, until it lapses."""

    token: str
    attempt: int = 1
    expires_at: datetime | None = None
    heartbeat_seconds: float | None = None
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json) -> Lease | None:
        token = _text(raw.get("token"))
        if not token:
            return None
        return cls(
            token,
            _integer(raw.get("attempt")) or 1,
            _time(raw.get("expires_at")),
            _number(raw.get("heartbeat_seconds")),
            raw,
        )


@dataclass(frozen=True, slots=True)
class SeedCandidate:
    """A candidate as a recipe: a base vector and the noise to add to it."""

    encoding: str
    dim: int
    dtype: str
    base_version: int | None
    base_sha256: str
    ops: tuple[Json, ...]
    rng: str
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json) -> SeedCandidate | None:
        encoding = _text(raw.get("encoding"))
        if not encoding.startswith("seed/"):
            return None
        dim = _integer(raw.get("dim"))
        if dim is None:
            raise BadAnswer(f"a seed-encoded candidate without dim: {dict(raw)!r:.200}")
        base = _object(raw.get("base"))
        return cls(
            encoding,
            dim,
            _text(raw.get("dtype")) or "f32",
            _integer(base.get("version")),
            _text(base.get("sha256")).removeprefix("sha256:"),
            tuple(_objects(raw.get("ops"))),
            _text(raw.get("rng")),
            raw,
        )


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate: a lane of a generation, perhaps leased to you. `payload` is what the method says beside it."""

    id: str
    number: int
    params: Json = field(default_factory=dict)
    state: str = ""
    generation: int | None = None
    replicate: int = 0
    fidelity: Any = None
    eval_seed: int | None = None
    value: float | None = None
    values: Json = field(default_factory=dict)
    lease: Lease | None = None
    candidate: SeedCandidate | None = None
    payload: Any = None
    etag: str = ""
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json, etag: str = "") -> Trial:
        number = _integer(raw.get("number"))
        name = raw.get("id", number)
        if number is None:
            try:
                number = trial_number(name)
            except ValueError:
                raise BadAnswer(f"a trial without an id: {dict(raw)!r:.200}") from None
        return cls(
            name if isinstance(name, str) and name.startswith("t_") else f"t_{number}",
            number,
            _object(raw.get("params")),
            _text(raw.get("state")),
            _integer(raw.get("generation")),
            _integer(raw.get("replicate")) or 0,
            raw.get("fidelity"),
            _integer(raw.get("eval_seed")),
            _number(raw.get("value")),
            _object(raw.get("values")),
            Lease.of(_object(raw.get("lease"))),
            SeedCandidate.of(raw),
            raw.get("payload"),
            etag,
            raw,
        )


@dataclass(frozen=True, slots=True)
class AskAnswer:
    """Leased trials, and when there are fewer than asked for, why and when to come back."""

    trials: tuple[Trial, ...] = ()
    granted: int = 0
    requested: int | None = None
    reason: str | None = None
    retry_after_seconds: float | None = None
    study: Progress = Progress()
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json) -> AskAnswer:
        trials = tuple(Trial.of(entry) for entry in _objects(raw.get("trials")))
        granted = _integer(raw.get("granted"))
        return cls(
            trials,
            len(trials) if granted is None else granted,
            _integer(raw.get("requested")),
            _text(raw.get("reason")) or None,
            _number(raw.get("retry_after_seconds")),
            Progress.of(_object(raw.get("study"))),
            raw,
        )


# ---- results


_ITEM = (
    *("trial", "lease", "params", "value", "values", "stderr", "n", "constraints", "fidelity", "reason", "error"),
    *("cost", "behaviour", "sums", "info", "source", "key"),
)


@dataclass(frozen=True, slots=True)
class Result:
    """What an evaluation gave: one item of a tell.

    An objective run by a `Worker` may return ``Result(value=..., info=...)``; the worker fills in trial and lease. By
    hand use `completed`, `infeasible`, `failed`, `stopped`, `released` and `injected`.

    Parameters
    ----------
    value, values : one objective value, or one per named objective.
    stderr, n : standard error of the value and the number of samples behind it.
    constraints : value of each named constraint.
    cost : what it took, such as ``{"seconds": 61.2, "usd": 0.03}``.
    behaviour : what the point did, at most 256 finite numbers; novelty search needs it.
    sums : finite numbers, and lists of them, to add up over results: ``{"count": n, "total": [...]}``.
    info : anything small worth keeping.
    status : ``"completed"`` is not written on the wire: a value says it.
    reason : why a point is infeasible.
    error : ``{"type", "message", "retryable"}`` of a failed evaluation.
    fidelity : how far a stopped evaluation got.
    trial, lease : whose result it is.
    params, source, key : for an injected point: where, from whom, and the idempotency key of the item.
    """

    value: Any = None
    values: Mapping[str, Any] | None = None
    stderr: Any = None
    n: int | None = None
    constraints: Mapping[str, Any] | None = None
    cost: Mapping[str, Any] | None = None
    info: Mapping[str, Any] | None = None
    status: Status = "completed"
    reason: str | None = None
    error: Mapping[str, Any] | None = None
    fidelity: Any = None
    trial: str | None = None
    lease: str | None = None
    params: Mapping[str, Any] | None = None
    source: str | None = None
    key: str | None = None
    behaviour: Any = None
    sums: Mapping[str, Any] | None = None

    def item(self) -> dict[str, Any]:
        """The item as the wire wants it: only what is set."""
        item = {name: getattr(self, name) for name in _ITEM if getattr(self, name) is not None}
        if self.status != "completed":
            item["status"] = self.status
        return item

    def of_trial(self, trial: Trial | int | str) -> Result:
        """The same result, addressed to a trial (with its lease where it is known)."""
        return replace(self, **_address(trial))


def _address(trial: Trial | int | str) -> dict[str, Any]:
    lease = trial.lease.token if isinstance(trial, Trial) and trial.lease else None
    return {"trial": f"t_{trial_number(trial)}", "lease": lease}


def completed(
    trial: Trial | int | str,
    value: Any = None,
    *,
    values: Mapping[str, Any] | None = None,
    stderr: Any = None,
    n: int | None = None,
    constraints: Mapping[str, Any] | None = None,
    cost: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
    behaviour: Any = None,
    sums: Mapping[str, Any] | None = None,
) -> Result:
    """A finished evaluation.

    >>> completed("t_41", 0.183, n=5).item()
    {'trial': 't_41', 'value': 0.183, 'n': 5}
    """
    more = {"behaviour": behaviour, "sums": sums}
    return Result(value, values, stderr, n, constraints, cost, info, **more, **_address(trial))


def infeasible(
    trial: Trial | int | str,
    reason: str = "",
    *,
    constraints: Mapping[str, Any] | None = None,
    behaviour: Any = None,
    sums: Mapping[str, Any] | None = None,
) -> Result:
    """A point that cannot be evaluated: the algorithm learns from it."""
    more = {"constraints": constraints, "behaviour": behaviour, "sums": sums}
    return Result(status="infeasible", reason=reason or None, **more, **_address(trial))


def failed(
    trial: Trial | int | str, message: str = "", *, error_type: str = "EvaluationError", retryable: bool = True
) -> Result:
    """An evaluator that broke: the algorithm ignores it; with `retryable` somebody tries again."""
    error = {"type": error_type, "message": message, "retryable": retryable}
    return Result(status="failed", error=error, **_address(trial))


def stopped(
    trial: Trial | int | str,
    value: Any,
    *,
    fidelity: Any = None,
    behaviour: Any = None,
    sums: Mapping[str, Any] | None = None,
) -> Result:
    """An evaluation ended early: the partial value, and how far it got."""
    more = {"fidelity": fidelity, "behaviour": behaviour, "sums": sums}
    return Result(value, status="stopped", **more, **_address(trial))


def released(trial: Trial | int | str) -> Result:
    """A trial given back unevaluated; counts against nothing."""
    return Result(status="released", **_address(trial))


def injected(
    params: Mapping[str, Any], value: Any = None, *, source: str | None = None, key: str | None = None, **more: Any
) -> Result:
    """The value of a point nobody asked for. `more` is what `Result` takes besides."""
    return Result(value, params=params, source=source, key=key, **more)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one item of a tell.

    `outcome` is ``applied``, ``injected``, ``requeued``, ``released``, ``duplicate``, ``late_recorded`` or
    ``rejected``; a rejected item carries its `problem`.
    """

    trial: str
    outcome: str
    best_so_far: bool = False
    attempt: int | None = None
    attempts_left: int | None = None
    problem: AnsweredWithError | None = None
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json) -> Outcome:
        outcome = _text(raw.get("outcome"))
        problem = None
        if outcome == "rejected":
            problem = error_of(next((raw[k] for k in ("problem", "error") if isinstance(raw.get(k), Mapping)), raw))
        trial = raw.get("trial")
        return cls(
            trial if isinstance(trial, str) else f"t_{trial}" if trial is not None else "",
            outcome,
            raw.get("best_so_far") is True,
            _integer(raw.get("attempt")),
            _integer(raw.get("attempts_left")),
            problem,
            raw,
        )


@dataclass(frozen=True, slots=True)
class TellAnswer:
    """What became of the items of a tell, and the trials asked for in the same breath."""

    outcomes: tuple[Outcome, ...] = ()
    applied: int = 0
    study: Progress = Progress()
    ask: AskAnswer | None = None
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json) -> TellAnswer:
        asked = raw.get("ask")
        outcomes = tuple(Outcome.of(entry) for entry in _objects(raw.get("results")))
        applied = _integer(raw.get("applied"))
        return cls(
            outcomes,
            sum(outcome.outcome == "applied" for outcome in outcomes) if applied is None else applied,
            Progress.of(_object(raw.get("study"))),
            AskAnswer.of(asked) if isinstance(asked, Mapping) else None,
            raw,
        )

    @property
    def outcome(self) -> Outcome:
        """The outcome of a tell of one item.

        Raises
        ------
        ValueError
            If there is not exactly one.
        """
        if len(self.outcomes) != 1:
            raise ValueError(f"expected the outcome of one result, got {len(self.outcomes)}; read .outcomes")
        return self.outcomes[0]

    @property
    def rejected(self) -> tuple[Outcome, ...]:
        """The items the server did not take."""
        return tuple(outcome for outcome in self.outcomes if outcome.outcome == "rejected")


@dataclass(frozen=True, slots=True)
class LeaseDirective:
    """What a heartbeat says about one lease: ``continue``, ``stop`` (send what you have) or ``abandon``."""

    token: str
    directive: str = "continue"
    expires_at: datetime | None = None
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json) -> LeaseDirective:
        directive = _text(raw.get("directive")) or "continue"
        return cls(_text(raw.get("token")), directive, _time(raw.get("expires_at")), raw)


@dataclass(frozen=True, slots=True)
class HeartbeatAnswer:
    """The control channel: what to do about each lease, and commands to the worker such as ``drain``."""

    leases: tuple[LeaseDirective, ...] = ()
    commands: tuple[Json, ...] = ()
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json) -> HeartbeatAnswer:
        leases = tuple(LeaseDirective.of(entry) for entry in _objects(raw.get("leases")))
        return cls(leases, tuple(_objects(raw.get("commands"))), raw)

    @property
    def drain(self) -> bool:
        """Whether the worker is asked to finish what it has and leave."""
        return any(command.get("type") == "drain" for command in self.commands)


@dataclass(frozen=True, slots=True)
class ReportAnswer:
    """What an interim report is answered with; it also extends the lease."""

    directive: str = "continue"
    lease_expires_at: datetime | None = None
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json) -> ReportAnswer:
        return cls(_text(raw.get("directive")) or "continue", _time(raw.get("lease_expires_at")), raw)


# ---- reading a study


@dataclass(frozen=True, slots=True)
class Best:
    """The best trials of a view: ``observed``, ``recommended`` or ``pareto``."""

    view: str = ""
    items: tuple[Json, ...] = ()
    estimate: Json = field(default_factory=dict)
    note: str = ""
    etag: str = ""
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json, etag: str = "") -> Best:
        return cls(
            _text(raw.get("view")),
            tuple(_objects(raw.get("items"))),
            _object(raw.get("estimate")),
            _text(raw.get("note")),
            etag,
            raw,
        )

    @property
    def params(self) -> Json:
        """Parameters of the first item; empty while there is none."""
        return _object(self.items[0].get("params")) if self.items else {}

    @property
    def value(self) -> float | None:
        """Value of the first item; None while there is none."""
        return _number(self.items[0].get("value")) if self.items else None


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a study's log."""

    seq: int
    type: str
    at: datetime | None = None
    data: Json = field(default_factory=dict)
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json) -> Event:
        seq = _integer(raw.get("seq"))
        if seq is None:
            raise BadAnswer(f"an event without seq: {dict(raw)!r:.200}")
        return cls(seq, _text(raw.get("type")), _time(raw.get("at")), _object(raw.get("data")), raw)


@dataclass(frozen=True, slots=True)
class EventPage:
    """Some events, and the sequence number to go on after."""

    events: tuple[Event, ...] = ()
    next_after: int = 0
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json, after: int = 0) -> EventPage:
        events = tuple(Event.of(entry) for entry in _objects(raw.get("events")))
        following = _integer(raw.get("next_after"))
        return cls(events, max([after, *(event.seq for event in events)]) if following is None else following, raw)


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list; `next` is the path and query of the following one, None on the last."""

    items: tuple[T, ...] = ()
    next: str | None = None
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, raw: Any, name: str, item: Callable[[Json], T]) -> Page[T]:
        """Reads a list that is bare, under `items`, or under its own name."""
        if isinstance(raw, list):
            return cls(tuple(item(entry) for entry in _objects(raw)))
        raw = _object(raw)
        listed = raw.get(name) if isinstance(raw.get(name), list) else raw.get("items")
        following = raw.get("next") or _object(raw.get("links")).get("next")
        return cls(tuple(item(entry) for entry in _objects(listed)), _text(following) or None, raw)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A stored state of a study."""

    step: int | None = None
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json) -> Snapshot:
        return cls(_integer(raw.get("step", raw.get("generation"))), raw)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key of the service. `secret` is there once, when it is created, and is not shown by `repr`."""

    id: str
    name: str = ""
    scopes: Sequence[str] = ()
    expires_at: datetime | None = None
    secret: str = field(default="", repr=False)
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json) -> ApiKey:
        scopes = raw.get("scopes")
        return cls(
            _text(raw.get("id")),
            _text(raw.get("name")),
            tuple(str(scope) for scope in scopes) if isinstance(scopes, list) else (),
            _time(raw.get("expires_at")),
            _text(raw.get("key")) or _text(raw.get("secret")),
            raw,
        )

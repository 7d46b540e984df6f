"""The health of a study: what its owner should know, and when its evaluators are broken.

What it takes is counted as the log grows, in one small JSON text on the study's row (`StudyRow.health`), so that a read
looks at no other rows and nothing is forgotten when a process restarts. The codes are listed once, in `CODES`.

Every tell counts, so its cost matters: a tally that is counted on is not parsed again (`Tally.take`), and of its values
only the new one is written as digits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from statistics import median
from typing import Any, Literal

from blackbox.records import JSON, Notice
from blackbox.study.rows import ACTIVE, FAILED, StudyRow, TrialRow

CODES = {
    "no_result_yet": "nothing was told for ten minutes after the study was made",
    "evaluations_fail": "evaluations fail: the newest ones in a row, or a fifth of all",
    "no_point_feasible": "results come, but none of them has a value",
    "evaluations_hang": "an evaluation takes far longer than all before it",
    "lost_leases": "workers vanish: their leases lapse without a result",
    "nothing_moves": "the newest values are all equal, or the algorithm's steps move nothing",
    "values_get_worse": "the newest values are worse than all of the first ones",
    "more_workers_than_useful": "more evaluations run at a time than the algorithm learns from",
}
"""What each code of the study's own notices says; an algorithm may add others with `Algorithm.notices`."""

FEW_FAILURES = 5
"""Evaluations that fail for good in a row, with the same type of error and before any other result, until the study is
paused. A smaller budget is spent before, which ends the study."""
MANY_FAILURES = 20
"""The same after other results, and whatever the errors are."""
QUIET_SECONDS, HANGING_SECONDS, HANGING_TIMES = 600.0, 60.0, 5.0
KEPT = 16
"""First and newest values that are kept."""
EQUAL_VALUES = 20
MAX_MESSAGE = 300
MAX_SQUARE = 1e300
"""Squares of finite values need not be finite."""

NoiseSign = Literal["unknown", "none", "seen"]


@dataclass(slots=True)
class Tally:
    """What is counted of a study.

    Attributes
    ----------
    results : results told, whatever they are.
    values : results with a value.
    failed : evaluations that failed for good.
    failing : evaluations that failed in a row until now, each attempt counted.
    given_up, alike : evaluations that failed for good in a row until now; those of them with the newest type of error.
    error : type, message and worker of the newest failure.
    lost : leases that lapsed without a result.
    seconds, longest : usual (a moving mean) and longest duration of an evaluation; None before the first.
    equal : newest values in a row that are equal.
    early, newest : the first and the newest values, as digits; `first` and `recent` are the numbers.
    noise : whether two evaluations of a point are known to differ: `seen`, or `none` after two equal ones.
    pairs, square : second values of a point, and the sum of their squared differences from the first.
    variances, variance : told standard errors, and the mean of their squares.
    replicate : number of the newest trial by which the study looks for noise, the value that it is compared with, and
        how many results there were.
    """

    results: int = 0
    values: int = 0
    failed: int = 0
    failing: int = 0
    given_up: int = 0
    alike: int = 0
    error: dict[str, str] = field(default_factory=dict)
    lost: int = 0
    seconds: float | None = None
    longest: float | None = None
    equal: int = 0
    early: list[str] = field(default_factory=list)
    newest: list[str] = field(default_factory=list)
    noise: NoiseSign = "unknown"
    pairs: int = 0
    square: float = 0.0
    variances: int = 0
    variance: float = 0.0
    replicate: tuple[int, float, int] | None = None

    @classmethod
    def of(cls, row: StudyRow) -> Tally:
        """What was counted so far; nothing, for a study of an older release. Unknown names are passed over."""
        stored: dict[str, Any] = json.loads(row.health)
        tally = cls(**{name: value for name, value in stored.items() if name in cls.__slots__})
        if tally.replicate is not None:
            number, value, results = tally.replicate
            tally.replicate = (number, value, results)
        return tally

    @classmethod
    def take(cls, row: StudyRow) -> Tally:
        """As `of`, to count on and then `store`: without parsing, where the text was written here."""
        return _STORED.pop(row.health, None) or cls.of(row)

    def store(self, row: StudyRow) -> None:
        """Put it on the study's row, which the caller writes. It is not to be changed afterwards: `take` it again."""
        row.health = self._text()
        if len(_STORED) >= MAX_STORED:
            _STORED.clear()
        _STORED[row.health] = self

    def _text(self) -> str:
        """JSON. Made by hand: every tell does it."""
        parts = [_WRITTEN % _numbers(self)]
        if self.seconds is not None:
            parts.append(f'"seconds":{self.seconds!r},"longest":{self.longest!r}')
        if self.noise != "unknown":
            parts.append(f'"noise":"{self.noise}"')
        if self.error:
            parts.append(f'"error":{json.dumps(self.error)}')
        if self.replicate is not None:
            parts.append('"replicate":[{!r},{!r},{!r}]'.format(*self.replicate))
        if self.early:
            parts.append(f'"early":["{_SEPARATOR.join(self.early)}"],"newest":["{_SEPARATOR.join(self.newest)}"]')
        return f"{{{','.join(parts)}}}"

    @property
    def first(self) -> list[float]:
        """The first values, as told."""
        return [float(digits) for digits in self.early]

    @property
    def recent(self) -> list[float]:
        """The newest values, as told."""
        return [float(digits) for digits in self.newest]

    # Counting ---------------------------------------------------------------------------------------------------------

    def told(self, trial: TrialRow, extra: Mapping[str, Any], seconds: float | None) -> None:
        """Count the result of a trial that was evaluated, with a value or without one.

        Parameters
        ----------
        seconds : duration of the evaluation; None if nobody knows it.
        """
        self.results += 1
        self.failing = self.given_up = self.alike = 0
        if seconds is not None and seconds >= 0:
            self.seconds = seconds if self.seconds is None else 0.9 * self.seconds + 0.1 * seconds
            self.longest = max(seconds, self.longest or 0.0)
        value = trial.value
        if value is None:
            return
        self.values += 1
        digits = repr(value + 0.0)  # -0.0 is 0.0
        self.equal = self.equal + 1 if self.newest and self.newest[-1] == digits else 1
        if len(self.early) < KEPT:
            self.early.append(digits)
        self.newest.append(digits)
        if len(self.newest) > KEPT:
            del self.newest[0]
        stderr = extra.get("stderr")
        if isinstance(stderr, int | float) and stderr > 0:
            self.noise = "seen"
            self.variances += 1
            self.variance += (min(float(stderr) * stderr, MAX_SQUARE) - self.variance) / self.variances
        if self.replicate is not None and self.replicate[0] == trial.number:
            self.compared(value, self.replicate[1])

    def compared(self, value: float, other: float) -> None:
        """Count two values of the same point."""
        self.pairs += 1
        self.square = min(self.square + (value - other) * (value - other), MAX_SQUARE)
        if value != other:
            self.noise = "seen"
        elif self.noise == "unknown":
            self.noise = "none"

    def attempt_failed(self, error: JSON, worker: str | None) -> None:
        """Count an evaluation that failed, whether or not the trial is given up."""
        told = error if isinstance(error, Mapping) else {}
        kind, message = str(told.get("type") or "error"), str(told.get("message") or "")
        if kind != self.error.get("type"):
            self.alike = 0
        self.failing += 1
        self.error = {"type": kind, "message": message[:MAX_MESSAGE], "worker": worker or "unknown"}

    def trial_failed(self) -> None:
        """Count a trial that is given up, after `attempt_failed`."""
        self.results += 1
        self.failed += 1
        self.given_up += 1
        self.alike += 1

    def of_fork(self) -> Tally:
        """What a fork knows from the start: whether there is noise. Everything else is counted anew."""
        known = {name: getattr(self, name) for name in ("noise", "pairs", "square", "variances", "variance")}
        return Tally(**known)

    # Judging ----------------------------------------------------------------------------------------------------------

    @property
    def only_failures(self) -> bool:
        """Whether all that was told so far are failures."""
        return self.failing > 0 and self.results == self.failed

    def broken(self) -> str | None:
        """Why the study should pause instead of spending its budget on evaluators that are broken, or None."""
        if self.only_failures and self.alike >= FEW_FAILURES:
            return self.verdict(f"the first {self.given_up} evaluations")
        if self.given_up >= MANY_FAILURES:
            return self.verdict(f"the last {self.given_up} evaluations")
        return None

    def verdict(self, subject: str) -> str:
        """A sentence on failures in a row, with the newest error."""
        words = f"{self.error.get('type', 'error')}: {self.error.get('message', '')}".rstrip(": ")
        return f"{subject} all failed, the last with {words}"

    def forgiven(self) -> None:
        """Start counting failures anew: somebody has looked at them and resumed the study."""
        self.failing = self.given_up = self.alike = 0


_NUMBERS = [each.name for each in fields(Tally) if each.default == 0]
_WRITTEN = ",".join(f'"{name}":%r' for name in _NUMBERS)
_numbers = attrgetter(*_NUMBERS)
_SEPARATOR = '","'
_STORED: dict[str, Tally] = {}
"""Tallies by the text that was made of them, until they are counted on."""
MAX_STORED = 1024


def notices(
    row: StudyRow,
    *,
    maximize: bool,
    created_at: float,
    now: float,
    leased: Sequence[TrialRow] = (),
    need: int | None = None,
    group: bool = False,
    own: Iterable[Notice] = (),
) -> list[Notice]:
    """What the owner of a study should know, the most urgent first; [] if all is well.

    Parameters
    ----------
    created_at, now : seconds since the epoch.
    leased : the trials that are being evaluated.
    need : results that close the open step; None: unknown.
    group : whether results of earlier steps are of no use to the algorithm.
    own : notices of the algorithm.
    """
    tally = Tally.of(row)
    checks = (
        _failures(row, tally),
        _no_result(row, tally, now - created_at),
        _infeasible(tally),
        _hanging(tally, leased, now),
        _lost(tally),
        _still(tally, need),
        _worse(tally, maximize),
        _crowd(row, need, group),
    )
    found = [notice for notice in checks if notice is not None]
    method = list(own)
    codes = {notice.code for notice in method}
    return [notice for notice in found if notice.code not in codes] + method


def _no_result(row: StudyRow, tally: Tally, seconds: float) -> Notice | None:
    if row.state != ACTIVE or tally.results or tally.failing or row.used or seconds < QUIET_SECONDS:
        return None
    asked = f"{row.trials} points were asked for" if row.trials else "nobody has asked for a point"
    return Notice(
        "no_result_yet",
        f"no result was told in the {_span(seconds)} since the study was made; {asked}",
        {"seconds": round(seconds), "trials": row.trials, "leased": row.leased},
        "look at the log of a worker" if row.trials else "start a worker, or ask and tell",
    )


def _failures(row: StudyRow, tally: Tally) -> Notice | None:
    evidence: dict[str, JSON] = {
        "in_a_row": tally.failing,
        "failed": tally.failed,
        "results": tally.results,
        **{f"error_{name}": text for name, text in tally.error.items()},
    }
    action = f"repair the evaluation on {tally.error.get('worker', 'the workers')}"
    if row.state in ("PAUSED", FAILED):
        action += ", then resume the study"
    if tally.failing >= 3:
        return Notice("evaluations_fail", tally.verdict(f"the last {tally.failing} evaluations"), evidence, action)
    if tally.failed >= 3 and tally.failed >= 0.2 * tally.results:
        share = f"{tally.failed} of {tally.results} evaluations"
        words = f"{tally.error.get('type')}: {tally.error.get('message')}".rstrip(": ")
        return Notice("evaluations_fail", f"{share} failed, the last with {words}", evidence, action)
    return None


def _infeasible(tally: Tally) -> Notice | None:
    without = tally.results - tally.failed
    if tally.values or without < 10:
        return None
    return Notice(
        "no_point_feasible",
        f"none of {without} evaluated points has a value",
        {"evaluated": without, "values": 0},
        "check that the objective returns finite numbers, and that the space holds feasible points",
    )


def _hanging(tally: Tally, leased: Sequence[TrialRow], now: float) -> Notice | None:
    if tally.longest is None or tally.seconds is None:
        return None
    limit = max(HANGING_SECONDS, HANGING_TIMES * tally.longest)
    hanging = [trial for trial in leased if trial.leased_at is not None and now - trial.leased_at > limit]
    if not hanging:
        return None
    oldest = min(hanging, key=lambda trial: trial.leased_at or now)
    age = now - (oldest.leased_at or now)
    return Notice(
        "evaluations_hang",
        f"t_{oldest.number} has been with {oldest.worker} for {_span(age)}; the longest evaluation so far took "
        f"{_span(tally.longest)}",
        {
            "hanging": len(hanging),
            "trial": f"t_{oldest.number}",
            "worker": oldest.worker,
            "seconds": round(age),
            "usual_seconds": round(tally.seconds, 3),
            "longest_seconds": round(tally.longest, 3),
        },
        f"look at {oldest.worker}; requeue the trial to have it evaluated elsewhere",
    )


def _lost(tally: Tally) -> Notice | None:
    if tally.lost < 3 or tally.lost < 0.1 * tally.results:
        return None
    return Notice(
        "lost_leases",
        f"{tally.lost} leases lapsed without a result, beside {tally.results} results",
        {"lost": tally.lost, "results": tally.results},
        "lengthen `lease.default_seconds`, send heartbeats, or find out why workers vanish",
    )


def _still(tally: Tally, need: int | None) -> Notice | None:
    if tally.equal < max(EQUAL_VALUES, 2 * (need or 0)):
        return None
    return Notice(
        "nothing_moves",
        f"the last {tally.equal} values are all {tally.recent[-1]!r}",
        {"values": tally.equal, "value": tally.recent[-1]},
        "check that the objective depends on its parameters; widen the space or the initial step size",
    )


def _worse(tally: Tally, maximize: bool) -> Notice | None:
    if tally.values < 3 * KEPT:
        return None
    early, late = median(tally.first), median(tally.recent)
    if late >= min(tally.first) if maximize else late <= max(tally.first):
        return None
    return Notice(
        "values_get_worse",
        f"the median of the last {KEPT} values is {late:.4g}, worse than each of the first {KEPT} (median {early:.4g})",
        {"early_median": early, "late_median": late, "values": tally.values},
        "use a smaller step size or learning rate, or another algorithm; check the study's direction",
    )


def _crowd(row: StudyRow, need: int | None, group: bool) -> Notice | None:
    if need is None or not group:
        return None
    late = row.late >= 10 and row.late >= 0.1 * row.used
    if not late and row.leased < 3 * need:
        return None
    return Notice(
        "more_workers_than_useful",
        f"{row.leased} evaluations run at a time and a step needs {need}; {row.late} of {row.used} results came too "
        "late to be learned from",
        {"leased": row.leased, "results_per_step": need, "late": row.late, "used": row.used},
        "use fewer workers or a larger population (`parallelism.workers` sets it when a study is made)",
    )


def _span(seconds: float) -> str:
    """A duration in words."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.3g} s"

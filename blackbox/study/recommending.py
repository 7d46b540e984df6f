"""What a study recommends: the point one would deploy.

Without noise that is the best point told, whose value is known. With noise the best reading is partly luck: then the
points told lately and the algorithm's own proposal are compared by estimated values (`estimating`). Whether there is
noise is told (a standard error, `StudySpec.noise`), or seen: two values of one point differ. A study that is left to
find out evaluates its best point once more, which costs one evaluation where there is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from blackbox.records import JSON, Matrix, Vector
from blackbox.study.archive import Archive
from blackbox.study.estimating import MAX_POINTS, Estimates, estimate, noise_variance
from blackbox.study.health import Tally
from blackbox.study.rows import ACTIVE, StudyRow
from blackbox.study.spec import StudySpec

REPLICATE_AFTER = 30
"""Results after which the best point is evaluated again; after half the budget, if that is less."""
MIN_BUDGET = 30
"""A study with a smaller budget spends nothing on finding out whether there is noise."""
MIN_ESTIMATED = 8
"""Fewest values that are worth a regression."""
MAX_NUMBERS = 4_000_000
"""Most coordinates of points that are read for an estimate."""

PROPOSED = "the point that the algorithm proposes; it has not necessarily been evaluated"
BEST_TOLD = "the best point told; no two values of one point were seen to differ"
FEW_VALUES = "the best point told; the values are noisy, and too few to tell luck from quality"
ESTIMATED = "estimated from {n} noisy values; the best single value told was {best!r}"
BEYOND_LUCK = "the best point told: its noisy value is better than the newest ones by more than luck"
PROPOSED_IN_NOISE = "the point that the algorithm proposes, with the mean of the newest {n} values told; they are noisy"


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimated value of a point, as the user sees it.

    Attributes
    ----------
    mean, stderr : the value and its standard error.
    n : told values that it rests on.
    """

    mean: float
    stderr: float
    n: int


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A point to deploy.

    Attributes
    ----------
    step : the open step.
    params : its parameters.
    payload : JSON for its evaluation, such as statistics of observations, or None.
    note : why it is this one.
    trial : number of the trial in which it was evaluated; None if it was not.
    value : what was told of it, if that is its value: not under noise.
    estimate : its estimated value under noise.
    """

    step: int
    params: dict[str, Any]
    payload: JSON
    note: str
    trial: int | None = None
    value: float | None = None
    estimate: Estimate | None = None

    @property
    def expected(self) -> float | None:
        """Its value, told or estimated; None if nothing is known of it."""
        return self.value if self.estimate is None else self.estimate.mean


def is_noisy(spec: StudySpec, tally: Tally) -> bool:
    """Whether a told value may differ from another one of the same point, as far as is known."""
    return spec.noise == "present" or (spec.noise == "auto" and tally.noise == "seen")


def replicate_due(row: StudyRow, spec: StudySpec, tally: Tally) -> bool:
    """Whether it is time to evaluate the best point again.

    Once, to see whether its value is the same; and after twice as many results each time, while values differ and
    nobody tells their standard error.
    """
    if row.state != ACTIVE or row.best_trial is None or spec.noise != "auto" or spec.duplicates == "reuse":
        return False  # who has told values reused says that there is no noise
    if tally.noise == "none" or tally.variances:
        return False
    budget = spec.budget.evaluations
    if tally.replicate is not None:
        return tally.noise == "seen" and tally.results >= 2 * tally.replicate[2]
    if budget is None:
        return tally.results >= REPLICATE_AFTER
    return budget >= MIN_BUDGET and tally.results >= min(REPLICATE_AFTER, budget // 2)


def variance_of(tally: Tally) -> float | None:
    """Variance of one value, from told standard errors or from pairs of values; None if nothing is known of it."""
    return tally.variance if tally.variances else noise_variance(tally.square, tally.pairs)


def around(tally: Tally) -> Estimate | None:
    """A rough value of the point that an algorithm proposes: mean and spread of the newest values, told around it."""
    if not tally.recent:
        return None
    recent = np.array(tally.recent)
    return Estimate(float(recent.mean()), float(recent.std()), len(recent))


def beyond_luck(row: StudyRow, tally: Tally, maximize: bool) -> Estimate | None:
    """A rough value of the best point told, if it is better than what is proposed; where points are not compared.

    The lowest of n values with normal noise is low by at most about sqrt(2 ln n) standard deviations. With so much
    added it must still be below the newest values by their spread, because the proposed point is better than those
    around it.
    """
    noise, rough = variance_of(tally), around(tally)
    if noise is None or rough is None or row.best_value is None:
        return None
    luck = math.sqrt(2 * math.log(max(tally.values, 2)) * noise)
    sign = -1.0 if maximize else 1.0
    if sign * row.best_value + luck >= sign * rough.mean - rough.stderr:
        return None
    return Estimate(row.best_value + sign * luck / 2, luck / 2, 1)


def readable(dim: int) -> int:
    """How many points of so many dimensions are read for an estimate; 0 if they are too large."""
    n = min(MAX_POINTS, MAX_NUMBERS // dim)
    return n if n >= MIN_ESTIMATED else 0


def compare(
    points: Matrix, values: Sequence[float], proposed: Matrix, noise: float | None
) -> tuple[Estimates, Archive] | None:
    """Estimated values of told and proposed points.

    Parameters
    ----------
    points, values : (n, d) points and their values, minimised; equal points are replicates.
    proposed : (m, d) points that need not have been evaluated.
    noise : variance of one value, or None.

    Returns
    -------
    The estimates, of the archive's points and then of the proposed ones, and the archive. None if there are too few
    values, or they are too large to compute with.
    """
    if len(values) < MIN_ESTIMATED:
        return None
    archive = Archive.of(points, np.asarray(values, dtype=np.float64))
    counts: Vector = archive.n.astype(np.float64)
    if len(archive) < 2:
        return None
    with np.errstate(all="ignore"):
        found = estimate(archive.points, archive.mean, counts, proposed, noise)
    if not (np.isfinite(found.mean).all() and np.isfinite(found.stderr).all()):
        return None
    return found, archive

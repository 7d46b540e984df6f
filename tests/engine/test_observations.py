"""Observation statistics: sums add up, what does not fit is counted, and what evaluators get is finite."""

from __future__ import annotations

import json
import math
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import pytest

import blackbox
from blackbox.errors import InvalidInput
from blackbox.toolbox.observations import FLOOR, Moments, lack


def told(rows: Any) -> dict[str, Any]:
    """Sums as the evaluator of one result tells them."""
    seen = np.array(rows, dtype=np.float64)
    return {"sums": {"count": len(seen), "total": seen.sum(axis=0).tolist(), "squares": (seen**2).sum(axis=0).tolist()}}


def test_mean_and_deviation_are_those_of_all_observations() -> None:
    chance = np.random.default_rng(3)
    episodes = [chance.normal([0.0, 5.0, -3.0], [1.0, 0.1, 20.0], size=(n, 3)) for n in (200, 1, 57)]
    sums = Moments.zero(3).plus([told(seen) for seen in episodes[:2]]).plus([told(episodes[2])])
    everything = np.concatenate(episodes)
    assert sums.count == 258
    for j in range(3):
        assert sums.mean[j] == pytest.approx(fmean(everything[:, j].tolist()), rel=1e-12)
        assert sums.std[j] == pytest.approx(pstdev(everything[:, j].tolist()), rel=1e-9)


def test_what_the_evaluator_gets_is_json_and_the_identity_at_first() -> None:
    before = json.loads(json.dumps(Moments.zero(2).payload(), allow_nan=False))
    assert before == {"observations": {"count": 0.0, "mean": [0.0, 0.0], "std": [1.0, 1.0]}}
    after = json.loads(json.dumps(Moments.zero(2).plus([told([[1.0, 4.0], [3.0, 4.0]])]).payload(), allow_nan=False))
    assert after == {"observations": {"count": 2.0, "mean": [2.0, 4.0], "std": [1.0, FLOOR]}}


def test_a_single_observation_says_nothing_of_the_deviation() -> None:
    assert Moments.zero(1).plus([told([[7.0]])]).std.tolist() == [1.0]


def test_a_coordinate_that_never_moves_is_not_blown_up() -> None:
    """1 + 1e-9 has a variance that is lost in rounding: the difference may even be negative."""
    seen = np.full((1000, 1), 1.0 + 1e-9)
    seen[::2] = 1.0
    assert Moments.zero(1).plus([told(seen)]).std.tolist() == [FLOOR]


@pytest.mark.parametrize(
    "sums",
    [
        {"count": 2, "total": [1.0], "squares": [1.0]},
        {"count": 2, "total": [1.0, 2.0, 3.0], "squares": [1.0, 2.0]},
        {"count": 2, "total": 1.0, "squares": 1.0},
        {"count": -1, "total": [1.0, 2.0], "squares": [1.0, 2.0]},
        {"count": [2, 2], "total": [1.0, 2.0], "squares": [1.0, 2.0]},
        {"count": True, "total": [1.0, 2.0], "squares": [1.0, 2.0]},
        {"count": 2, "total": [1.0, 2.0], "squares": [1.0, -2.0]},
        {"count": 2, "total": [1.0, math.nan], "squares": [1.0, 2.0]},
        {"count": 2, "total": [1.0, 2.0], "squares": [1.0, math.inf]},
        {"count": 2, "total": [1e300, 2.0], "squares": [1.0, 1.0]},
        {"count": 2, "total": [10**400, 2.0], "squares": [1.0, 1.0]},
        {"count": 2, "total": ["a", 2.0], "squares": [1.0, 1.0]},
        {"count": 2, "total": [[1.0], [2.0, 3.0]], "squares": [1.0, 1.0]},
        {"count": 2, "total": [1.0, 2.0]},
        [2, [1.0, 2.0], [1.0, 2.0]],
    ],
)
def test_sums_that_do_not_fit_are_left_out_and_counted(sums: Any) -> None:
    good = told([[1.0, 2.0], [3.0, 5.0]])
    after = Moments.zero(2).plus([good, {"sums": sums}, good])
    assert after.ignored == 1
    assert after.count == 4
    np.testing.assert_array_equal(after.mean, [2.0, 3.5])
    assert np.isfinite(after.std).all()


def test_a_result_is_refused_with_what_was_expected_and_what_came() -> None:
    assert lack(told([[1.0, 2.0]]), 2) is None
    assert lack({"sums": {"count": 0, "total": [0, 0], "squares": [0, 0]}}, 2) is None
    missing, other = lack({}, 17), lack(told([[1.0, 2.0]]), 17)
    assert missing is not None
    assert other is not None
    assert (missing.pointer, other.pointer) == ("/sums", "/sums")
    assert "17 numbers each" in missing.message
    assert other.message.endswith("got count, total of 2, squares of 2")
    study = {"w": {"type": "vector", "dim": 2}}
    for method in ("ars", "openai_es", "pgpe"):
        with pytest.raises(InvalidInput, match=r"needs sums beside the value: expected .* of 3 numbers each"):
            blackbox.minimize(lambda w: float(w @ w), study, method, 20, options={"observations": 3})


def test_a_result_that_tells_no_sums_adds_nothing() -> None:
    after = Moments.zero(2).plus([{}, {"stderr": 0.1}, {"sums": None}])
    assert (after.count, after.ignored) == (0.0, 0)


def test_no_number_of_large_sums_makes_the_state_infinite() -> None:
    sums = Moments.zero(1)
    for _ in range(3):
        sums = sums.plus([{"sums": {"count": 1e149, "total": [9e149], "squares": [8e299]}}] * 10)
        assert np.isfinite([sums.count, *sums.total, *sums.squares, *sums.mean, *sums.std]).all()
    assert sums.ignored > 0


def test_where_nobody_asks_for_observations_nothing_is_said_of_them() -> None:
    none = Moments.zero(None)
    assert none.plus([told([[1.0]]), {"sums": {"count": 1, "total": [], "squares": []}}]) is none
    assert (none.payload(), none.metrics(), lack({}, None)) == (None, {}, None)
    assert Moments.zero(1).metrics() == {"observed": 0.0, "sums_ignored": 0.0}

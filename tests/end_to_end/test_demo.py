"""`blackbox demo`: the main job, as a user starts it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.end_to_end.service import Command


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_demo_runs_to_its_end_and_prints_its_table(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    pytest.importorskip("gymnasium")
    with Command(tmp_path, "demo", "--episodes", "20", script=True) as demo:
        assert demo.ended(170.0) == 0, demo.err
    assert re.search(r"service on http://127\.0\.0\.1:\d+", demo.out)
    assert "best return" in demo.out
    rows = [[cell.strip() for cell in row.split("│")[1:-1]] for row in demo.out.splitlines() if row.startswith("│")]
    assert [row[0] for row in rows] == ["cma_es", "random_search"]
    assert all(float(row[1]) > -100.0 for row in rows)
    assert "evaluations: 20 of 20" in demo.out


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_federated_demo_runs_to_its_end_and_prints_its_table(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend")
    arguments = ("demo-federated", "--rounds", "2", "--participants", "2", "--noise", "0.1")
    with Command(tmp_path, *arguments, script=True) as demo:
        assert demo.ended(220.0) == 0, demo.err
    rows = [[cell.strip() for cell in row.split("│")[1:-1]] for row in demo.out.splitlines() if row.startswith("│")]
    assert [row[0] for row in rows] == ["fzoos", "fedzo", "sep_cma_es, centralised"]
    assert all(float(row[1]) < 20.0 for row in rows)
    # One participant and round: the moves of 784 pixels as float32; fzoos sends 1,000 weights, too.
    assert [row[5] for row in rows] == [str(4 * (784 + 1000)), str(4 * 784), "everything"]
    assert "rounds: 2 of 2 done; 2 joined" in demo.out
    assert "privacy: epsilon" in demo.out

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

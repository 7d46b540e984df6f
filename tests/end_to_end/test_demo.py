"""`blackbox demo`: the main job, as a user starts it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from service import Command


@pytest.mark.slow
def test_the_demo_runs_to_its_end_and_prints_its_table(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    pytest.importorskip("gymnasium")
    with Command(tmp_path, "demo", "--episodes", "20", script=True) as demo:
        assert demo.ended(110.0) == 0, demo.err
    assert re.search(r"service on http://127\.0\.0\.1:\d+", demo.out)
    assert "best return" in demo.out
    rows = {row.split()[1]: row for row in demo.out.splitlines() if row.startswith("│")}
    assert set(rows) == {"cma_es", "random_search"}
    for row in rows.values():
        assert re.search(r"│ +-?\d+\.\d +│ +20 +│", row)
    assert "evaluations: 20 of 20" in demo.out

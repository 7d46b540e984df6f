"""The loop with curl, as it is printed in the README and in /llms.txt, against a server with keys."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.end_to_end.service import Service

README = Path(__file__).parents[2] / "README.md"
CLIENTS = README.parent / "clients" / "README.md"
MY_JOB = """#!/bin/sh
exec awk "BEGIN { print ($1 - 1) ^ 2 }"
"""


def blocks_in(text: str) -> list[str]:
    """The bash blocks of a page."""
    return re.findall(r"```bash\n(.*?)```", text, re.S)


def loop_in(text: str) -> str:
    """The first one that asks."""
    return next(block for block in blocks_in(text) if "/ask" in block)


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="needs curl and jq")
def test_the_loop_with_curl_works_as_printed(guarded_server: Service, tmp_path: Path) -> None:
    told = httpx.get(f"{guarded_server.url}/llms.txt").text
    printed = loop_in(README.read_text())
    assert loop_in(told) == printed
    assert f"Z={guarded_server.url}\n" in told
    (tmp_path / "my_job").write_text(MY_JOB)
    (tmp_path / "my_job").chmod(0o755)
    script = f"set -u\nZ={guarded_server.url}\nA='Authorization: Bearer {guarded_server.key}'\n{printed}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert "COMPLETED (budget)" in done.stdout
    assert "evaluations: 50 of 50" in done.stdout
    (study,) = guarded_server.client().studies()
    best = guarded_server.client().study(study.id).best().items[0]
    assert best.value == pytest.approx((best.params["x"] - 1) ** 2, abs=1e-4)
    assert best.value < 0.5


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="needs curl and jq")
def test_a_judge_with_curl_takes_part_in_federated_rounds(guarded_server: Service, tmp_path: Path) -> None:
    """The same loop, at the study that joining hosted gives: nothing but ask and tell."""
    rounds = guarded_server.client().create_study(
        name="judged",
        space={"x": {"type": "float", "low": -5, "high": 5}},
        algorithm={"name": "fedzo", "options": {"rounds": 4, "local_steps": 4, "count": 1, "quorum": 1.0}},
    )
    (tmp_path / "my_job").write_text(MY_JOB)
    (tmp_path / "my_job").chmod(0o755)
    joining = next(block for block in blocks_in(CLIENTS.read_text()) if "rounds/join" in block)
    _, while_, loop = loop_in(README.read_text()).partition("while ")
    head = f"set -u\nZ={guarded_server.url}\nA='Authorization: Bearer {guarded_server.key}'\nS={rounds.id}\n"
    script = head + joining + while_ + loop
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"hosted participant 'judge' of {rounds.id}" in done.stdout
    seen = rounds.refresh()
    assert (seen.state, seen.budget.used) == ("COMPLETED", 4 * 4 * 2)
    found = rounds.best(view="recommended").params["x"]
    assert 0.0 < found <= 1.5, "from 0 towards 1"


def test_without_the_key_the_loop_is_refused_with_a_hint(guarded_server: Service) -> None:
    for headers in ({}, {"Authorization": "Bearer zok_00000000_nothing"}):
        answer = httpx.post(f"{guarded_server.url}/v1/studies", json={"name": "demo"}, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["hint"]

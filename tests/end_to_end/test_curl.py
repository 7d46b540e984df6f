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
MY_JOB = """#!/bin/sh
exec awk "BEGIN { print ($1 - 1) ^ 2 }"
"""


def loop_in(text: str) -> str:
    """The first bash block that asks."""
    return next(block for block in re.findall(r"```bash\n(.*?)```", text, re.S) if "/ask" in block)


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
    assert best["value"] == pytest.approx((best["params"]["x"] - 1) ** 2, abs=1e-4)
    assert best["value"] < 0.5


def test_without_the_key_the_loop_is_refused_with_a_hint(guarded_server: Service) -> None:
    for headers in ({}, {"Authorization": "Bearer zok_00000000_nothing"}):
        answer = httpx.post(f"{guarded_server.url}/v1/studies", json={"name": "demo"}, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["hint"]

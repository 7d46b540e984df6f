"""`server`, `clients`, `tests` and `docker` are folders, never import names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDERS = ("server", "clients", "tests", "docker")
PACKAGES = ("blackbox", "blackbox_server", "blackbox_client")

LOOK = """
import importlib.util, sys
for name in sys.argv[1:]:
    print(name, importlib.util.find_spec(name) is not None)
"""


def test_only_the_three_packages_are_importable_from_elsewhere(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-c", LOOK, *PACKAGES, *FOLDERS],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = dict(line.split() for line in told.stdout.splitlines())
    assert [name for name, importable in found.items() if importable == "True"] == list(PACKAGES)

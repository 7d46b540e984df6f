"""The job of the compose files: an objective, and the preparation before workers start. Replace it by yours.

Workers run `blackbox worker rosenbrock job:evaluate`. Before them `python job.py FILE` runs once, with the first key:
it makes the study, and a key for the workers, which can do nothing but evaluate and read. Run again it changes nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from blackbox_client import Client
from blackbox_client.errors import Unauthorized

SPACE = {name: {"type": "float", "low": -2, "high": 2} for name in ("x", "y")}


def evaluate(params: dict[str, float]) -> float:
    """Rosenbrock's valley; zero at (1, 1)."""
    return (1 - params["x"]) ** 2 + 100 * (params["y"] - params["x"] ** 2) ** 2


def prepare(path: Path) -> None:
    """Make the study and the workers' key, unless they are there."""
    with Client() as client:
        client.create_study(name="rosenbrock", space=SPACE, direction="minimize", algorithm="cma_es", budget=400)
        if not _is_good(path):
            key = client.create_key(["study:evaluate", "study:read"], name="workers")
            draft = path.with_suffix(".draft")
            draft.unlink(missing_ok=True)
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(key.secret)
            draft.rename(path)


def _is_good(path: Path) -> bool:
    try:
        with Client(key=path.read_text()) as client:
            client.limits()
    except (FileNotFoundError, Unauthorized):
        return False
    return True


if __name__ == "__main__":
    prepare(Path(sys.argv[1]))

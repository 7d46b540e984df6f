"""Golden files: recorded runs that a method repeats.

`BLACKBOX_WRITE_GOLDEN=1 pytest tests/engine/test_NAME.py` writes the file of a test anew; say in the commit why.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parents[1] / "golden"


def assert_golden(name: str, found: Any, rtol: float = 1e-9, atol: float = 0.0) -> None:
    """Compare a run with its recording: real numbers within the tolerances, everything else exactly.

    Parameters
    ----------
    name : of the file, without its suffix.
    found : JSON.
    """
    path = FOLDER / f"{name}.json"
    if os.environ.get("BLACKBOX_WRITE_GOLDEN"):
        path.write_text(json.dumps(found, indent=1) + "\n")
    _compare(found, json.loads(path.read_text()), name, rtol, atol)


def _compare(found: Any, expected: Any, at: str, rtol: float, atol: float) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), at
        for key, item in expected.items():
            _compare(found[key], item, f"{at}.{key}", rtol, atol)
    elif isinstance(expected, list):
        assert len(found) == len(expected), at
        for i, item in enumerate(expected):
            _compare(found[i], item, f"{at}[{i}]", rtol, atol)
    elif isinstance(expected, float):
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol, err_msg=at)
    else:
        assert found == expected, at

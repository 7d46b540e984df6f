"""What an objective returns: its value, and the told fields beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from blackbox.errors import InvalidInput
from blackbox.study.side_data import TOLD

_SIDE = {name: told.read for name, told in TOLD.items() if told.read is not None}


def told_by(returned: Any) -> tuple[float, dict[str, Any]]:
    """The value that an objective returned, and its other told fields."""
    side: dict[str, Any] = {}
    value = returned
    if isinstance(returned, Mapping):
        if "value" not in returned or set(returned) - {"value", *_SIDE}:
            what = f"got the names {', '.join(map(repr, returned))}"
            names = " and ".join(f'"{name}"' for name in _SIDE)
            raise InvalidInput(f'a mapping returned by the objective has "value", {names}; {what}')
        value = returned["value"]
        side = {name: read(returned[name]) for name, read in _SIDE.items() if returned.get(name) is not None}
    if isinstance(value, np.ndarray | np.generic) and np.ndim(value) == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInput(
            f"the objective must return a number, got {type(value).__name__} ({value!r:.80})",
            hint="return float('nan') for a point that cannot be evaluated",
        )
    return float(value), side

"""What people give `minimize`: the space, and points as their objective gets them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from blackbox.errors import InvalidSpace
from blackbox.space import Space

Bounds = Sequence[tuple[float, float]]


def space_of(space: Any) -> Space:
    """The space that a `Space`, parameters by name (objects or JSON), or a list of (low, high) describes."""
    if isinstance(space, Space):
        return space
    if isinstance(space, Mapping):
        if all(isinstance(value, Mapping) for value in space.values()):
            return Space.from_json(dict(space))
        return Space(dict(space))
    try:
        pairs = [(float(low), float(high)) for low, high in space]
    except (TypeError, ValueError):
        raise InvalidSpace(
            f"expected a Space, parameters by name, or a list of (low, high), got {type(space).__name__}",
            hint='for example [(-5, 5), (0, 1)] or {"x": Float(low=-5, high=5)}',
        ) from None
    return Space.from_json(
        {f"x{i}": {"type": "float", "low": low, "high": high} for i, (low, high) in enumerate(pairs)}
    )


def array_of(params: dict[str, Any]) -> Any:
    """(d,) parameters as an array: of one vector, or of scalars in their order."""
    values = list(params.values())
    return np.asarray(values[0] if len(values) == 1 and np.ndim(values[0]) == 1 else values, dtype=np.float64)


def spec_of(
    space: Space,
    algorithm: str,
    budget: int | None,
    *,
    name: str,
    options: Mapping[str, Any] | None,
    direction: str,
    target: float | None,
    seed: int | str,
    noise: str,
    workers: int | None,
) -> dict[str, Any]:
    """The spec of a study that is evaluated in this process; `workers`: evaluations at a time, if known."""
    return {
        "name": name,
        "space": space.to_json(),
        "direction": direction,
        "algorithm": {"name": algorithm, "options": dict(options or {})},
        "budget": {"evaluations": budget},
        "target": target,
        "seed": seed,
        "noise": noise,
        "non_finite": "infeasible",
        # Nobody else waits for these points, and batches are as large as their steps.
        "lease": {"max_seconds": 1e9},
        "parallelism": {"max_leased": 1_000_000, "workers": workers},
    }

"""The state shared by schemes, rules and certificates; each reads its own part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from blackbox.records import Ints, Vector
from blackbox.toolbox.frank_wolfe.mixtures import Search

__all__ = ["ZoFrankWolfeState"]


@dataclass(frozen=True, slots=True)
class ZoFrankWolfeState:
    """State of `zo_frank_wolfe` between two steps; d is the dimension.

    Attributes
    ----------
    step : steps closed, of any phase; the address of the open step's noise.
    phase : what the open step is for: "gradient", "confirm" (monotone), "search" or "certify".
    t : gradients taken.
    w : (d,) iterate in the region.
    gradient : (d,) averaged gradient gbar.
    memory : (d,) slopes in memory (jaguar, vertices; else empty).
    renewed : (d,) the t at which a coordinate of the memory was renewed, -1 for never (jaguar; else empty).
    vertex : (d,) the vertex of the last step, and the one that a confirming or searching step moves to.
    value : F at the centre of w, if it is known, else None.
    halvings, tried : phi of the monotone rule, and those added since its last gradient.
    search : w as a mixture of atoms, and lengths to try next (search; else without atoms).
    gap : running gap <gbar, w - v>; no bound, usually far too small.
    gap_low, gap_up, low_error, up_error : the last certificate and the standard errors of its ends, or None.
    certified_at : the t of the last certificate, -1 for none.
    """

    step: int
    phase: str
    t: int
    w: Vector
    gradient: Vector
    memory: Vector
    renewed: Ints
    vertex: Vector
    value: float | None
    halvings: int
    tried: int
    search: Search
    gap: float
    gap_low: float | None
    gap_up: float | None
    low_error: float | None
    up_error: float | None
    certified_at: int

    @classmethod
    def at(cls, w: Vector, memory: Vector, renewed: Ints, search: Search) -> ZoFrankWolfeState:
        """Return the state before the first result, with the iterate at the point w."""
        return cls(
            step=0,
            phase="gradient",
            t=0,
            w=w,
            gradient=np.zeros(w.size),
            memory=memory,
            renewed=renewed,
            vertex=w.copy(),
            value=None,
            halvings=0,
            tried=0,
            search=search,
            gap=0.0,
            gap_low=None,
            gap_up=None,
            low_error=None,
            up_error=None,
            certified_at=-1,
        )

"""The result of a study in SciPy's form."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from blackbox.study.editing import Study
from blackbox.study.effects import perform
from blackbox.study.rows import ACTIVE, COMPLETED, FAILED, Store

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult


def summary(study: Study, store: Store, point: Callable[[dict[str, Any]], Any] = dict) -> OptimizeResult:
    """The result of a study so far, in SciPy's form; see `minimize`."""
    from scipy.optimize import OptimizeResult

    row = perform(store, study.row())
    best = perform(store, study.best())
    step, recommended, payload = perform(store, study.recommend())
    reason = row.reason or row.state.lower()
    return OptimizeResult(
        x=None if best is None else point(best[1]),
        fun=None if best is None else best[0].value,
        nfev=row.used,
        nit=step,
        success=row.state in (ACTIVE, COMPLETED) and best is not None,
        status=1 if row.state == FAILED else 0,
        message=f"{row.state.lower()}: {reason}" if row.reason else reason,
        recommended=point(recommended),
        payload=payload,
        algorithm=study.resolved.algorithm,
        study=study,
        store=store,
    )

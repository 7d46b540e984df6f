"""The result of a study in SciPy's form, also of one that an exception has ended."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
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
    found, proposed = perform(store, study.recommend()), perform(store, study.propose())
    deployed = None if best is None else point(found.params)
    reason = row.reason or row.state.lower()
    if row.state == COMPLETED and best is None and (last := _last_reason(study, store, row.trials)):
        reason += f"; no evaluation gave a value, the last: {last}"
    return OptimizeResult(
        x=deployed,
        fun=found.expected,
        stderr=None if found.estimate is None else found.estimate.stderr,
        x_observed=None if best is None else point(best[1]),
        fun_observed=None if best is None else best[0].value,
        nfev=row.used,
        nit=found.step,
        success=row.state in (ACTIVE, COMPLETED) and best is not None,
        status=1 if row.state == FAILED else 0,
        message=f"{row.state.lower()}: {reason}" if row.reason else reason,
        recommended=point(found.params),
        proposed=point(proposed.params),
        payload=found.payload,
        algorithm=study.resolved.algorithm,
        study=study,
        store=store,
    )


def _last_reason(study: Study, store: Store, n_trials: int) -> str:
    """Why the newest point has no value, as its evaluation has said; empty if it has not."""
    newest = store.read(lambda tx: tx.page(study.id, max(0, n_trials - 1), 1, ()))
    return str(json.loads(newest[0].extra or "{}").get("reason", "")) if newest else ""


def without_store(result: OptimizeResult) -> OptimizeResult:
    """A result without the handles of a store that is closed."""
    result.study = result.store = None
    return result


def keep_work(error: BaseException, result: Callable[[], OptimizeResult]) -> None:
    """Give an exception that ends a run the result so far, as its attribute `result`, and say the best in a note.

    The exception keeps its type, so whoever catches it needs no other name; the note is printed with its traceback, of
    `KeyboardInterrupt` too.
    """
    with suppress(Exception):  # whatever is wrong with the study, the error is told
        so_far = result()
        found = "no value"
        if so_far.fun is not None:
            found = f"the best value is {so_far.fun:.6g} at {so_far.x!r:.300}"
        error.add_note(f"evaluations so far: {so_far.nfev}, {found}; this exception has it all as its `result`")
        error.result = so_far  # type: ignore[attr-defined]

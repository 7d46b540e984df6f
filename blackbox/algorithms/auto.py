"""`auto`: the choice of an algorithm for a problem, with its reason.

Today `auto` is resolved to one registered algorithm when a study is created. It is no algorithm itself.
"""

from __future__ import annotations

from typing import Any

from blackbox.algorithm import registry
from blackbox.errors import IncompatibleProblem
from blackbox.space import Space

FULL_COVARIANCE_LIMIT = 2000
"""Up to here a d x d covariance fits in 32 MB and its amortised update stays below a second."""

SEPARABLE_LIMIT = 100_000
"""`sep_cma_es` takes no more: its points are float64 vectors."""
ONE_RUN = 1000
"""Evaluations per dimension that a run of CMA-ES seldom uses up: on the unimodal functions of BBOB in ten dimensions it
needs 150 to 1200 to 1e-8 (tests/benchmarks/ACCEPTANCE.md)."""


def choose(space: Space, evaluations: int | None) -> tuple[str, str]:
    """Choose the algorithm for a space and a budget; return its name and the reason in words.

    Parameters
    ----------
    space : the search space.
    evaluations : the budget, or None when there is no limit.

    Raises
    ------
    IncompatibleProblem
        If no registered method treats the space.

    Notes
    -----
    A convex region goes to the best method that treats it: Frank-Wolfe, which needs nothing but its linear oracle.

    CMA-ES is the strongest all-round method here. Within its first two steps it has adapted nothing, and uniform
    sampling is the honest choice. Above a few thousand dimensions the covariance no longer fits, and an evolution
    strategy on noise addresses takes over: on a sphere in 3000 bounded dimensions it reaches a quarter of the start
    value in 5 evaluations per dimension, where sep_cma_es is above the start after 30, because its first step size
    is made for few dimensions. Integers and choices need a method that takes them, which is sep_cma_es.
    """
    d = space.dim
    words = f"{d} continuous-like dimension{'s' if d != 1 else ''}, " + (
        f"budget {evaluations}" if evaluations else "no evaluation limit"
    )
    if space.domain == "convex":
        return _on_region(space), f"{words}, in a convex region"
    if d > FULL_COVARIANCE_LIMIT and space.kinds <= {"float"}:
        return "openai_es", f"{words}: a full covariance would need {8 * d * d * 2 / 1e9:.1f} GB"
    if d > FULL_COVARIANCE_LIMIT:
        if d <= SEPARABLE_LIMIT:
            return "sep_cma_es", f"{words}, not all of them real: a full covariance would not fit, a diagonal one does"
        return "random_search", f"{words}, not all of them real: no method here adapts that many"
    if evaluations is not None and evaluations < 12:
        return "random_search", f"{words}: fewer than two steps of any adaptive method"
    if options("cma_es", space, evaluations):
        words += ", more than one run uses: restarts spend the rest"
    return "cma_es", words


def options(name: str, space: Space, evaluations: int | None) -> dict[str, Any]:
    """Return the options that `auto` sets besides the defaults of the algorithm that it chose.

    Notes
    -----
    CMA-ES restarts (BIPOP) where the budget is known and larger than what one run uses: the rest is then spent
    on the search for a better minimum elsewhere. Without a budget a run that has converged ends the study: nobody said
    that more evaluations may be paid for.
    """
    if name == "cma_es" and evaluations is not None and evaluations >= ONE_RUN * space.dim:
        return {"restarts": "bipop"}
    return {}


def _on_region(space: Space) -> str:
    known = registry()
    for name in ("zo_frank_wolfe", "random_search"):
        if name in known and known[name].why_not(space) is None:
            return name
    raise IncompatibleProblem(
        "no registered method treats this convex region together with the other parameters of the space",
        hint="the traits of each algorithm in `blackbox.algorithm.registry()` name the regions and parameters it takes",
    )

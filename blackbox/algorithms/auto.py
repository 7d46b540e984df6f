"""`auto`: the choice of an algorithm for a problem, with its reason.

Today `auto` is resolved to one registered algorithm when a study is created. It is no algorithm itself.
"""

from __future__ import annotations

from blackbox.algorithm import registry
from blackbox.errors import IncompatibleProblem
from blackbox.space import Space

FULL_COVARIANCE_LIMIT = 2000
"""Up to here a d x d covariance fits in 32 MB and its amortised update stays below a second."""

SEPARABLE_LIMIT = 100_000
"""`sep_cma_es` takes no more: its points are float64 vectors."""


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
    value in 5 evaluations per dimension. Integers and choices need a method that takes them, which is sep_cma_es.
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
    if evaluations is not None:
        words += "; restarts spend what a run leaves of it"
    return "cma_es", words


def _on_region(space: Space) -> str:
    known = registry()
    for name in ("zo_frank_wolfe", "random_search"):
        if name in known and known[name].why_not(space) is None:
            return name
    raise IncompatibleProblem(
        "no registered method treats this convex region together with the other parameters of the space",
        hint="the traits of each algorithm in `blackbox.algorithm.registry()` name the regions and parameters it takes",
    )

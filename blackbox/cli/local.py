"""`blackbox minimize`: a function at hand, without a service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.table import Table

from blackbox.cli.arguments import json_object, load_objective, renamed
from blackbox.cli.show import console, errors, failing_politely, progress, short


def minimize(
    objective: Annotated[str, typer.Argument(help="module:function; gets a dict of parameters, returns a number.")],
    space: Annotated[str, typer.Option(help='JSON, or a file of it: {"x": {"type": "float", "low": -5, "high": 5}}.')],
    algorithm: Annotated[str, typer.Option(help="A name from `blackbox algorithms`, or auto.")] = "auto",
    budget: Annotated[int, typer.Option(min=1, help="Most evaluations.")] = 1000,
    target: Annotated[Optional[float], typer.Option(help="Stop at a value this good.")] = None,  # noqa: UP045
    options: Annotated[str, typer.Option(help="JSON options of the algorithm.")] = "{}",
    maximize: Annotated[bool, typer.Option("--maximize", help="Maximize instead.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 evaluates in this one.")] = 0,
    seed: Annotated[str, typer.Option(help="Seed of all randomness.")] = "0",
    store: Annotated[Optional[Path], typer.Option(help="A file to keep it in: the same command goes on.")] = None,  # noqa: UP045
    name: Annotated[str, typer.Option(help="Name of the study in that file.")] = "minimize",
    timeout: Annotated[Optional[float], typer.Option(help="Longest evaluation, in s; with --workers.")] = None,  # noqa: UP045
    deadline: Annotated[Optional[float], typer.Option(help="Seconds after which no evaluation begins.")] = None,  # noqa: UP045
    skip_errors: Annotated[bool, typer.Option("--skip-errors", help="Go on after an exception.")] = False,
    repeatable: Annotated[bool, typer.Option("--repeatable", help="Equal results for any number of workers.")] = False,
    method: Annotated[Optional[str], typer.Option(hidden=True, callback=renamed)] = None,  # noqa: UP045
) -> None:
    """Optimize a Python function on this machine, without a service."""
    from blackbox.errors import InvalidInput
    from blackbox.minimize import minimize as solve

    with failing_politely():
        if timeout is not None and not workers:
            raise InvalidInput("--timeout needs evaluations that can be killed", hint="add --workers 1, or more")
        function = load_objective(objective)
        parameters = json_object(Path(space).read_text() if Path(space).is_file() else space, "--space")
        with progress(errors) as bars:
            task = bars.add_task(algorithm, total=budget, best="")

            def show(result: Any) -> None:
                best = "" if result.fun is None else f"best {result.fun:.6g}"
                bars.update(task, completed=result.nfev, best=best)

            try:
                result = solve(
                    function,
                    parameters,
                    algorithm,
                    budget,
                    options=json_object(options, "--options"),
                    backend="processes" if workers else "inline",
                    n_workers=workers or None,
                    seed=seed,
                    direction="maximize" if maximize else "minimize",
                    target=target,
                    callback=show,
                    store=store,
                    name=name,
                    timeout_seconds=timeout,
                    deadline_seconds=deadline,
                    on_error="infeasible" if skip_errors else "raise",
                    repeatable=repeatable,
                )
            except BaseException as error:
                bars.stop()
                if (so_far := getattr(error, "result", None)) is not None:
                    _print_result(so_far)
                if isinstance(error, KeyboardInterrupt):
                    raise typer.Exit(130) from None
                raise
    _print_result(result)


def _print_result(result: Any) -> None:
    noisy = result.stderr is not None
    table = Table("parameter", "recommended", *(("best reading",) if noisy else ()))
    read = result.x_observed if isinstance(result.x_observed, dict) else {"x": result.x_observed}
    advised = result.recommended if isinstance(result.recommended, dict) else {"x": result.recommended}
    for name in advised:
        table.add_row(name, short(advised[name]), *((short(read.get(name)),) if noisy else ()))
    console.print(table)
    value = f"{result.fun}"
    if noisy:
        value = f"{result.fun:.6g} +- {result.stderr:.2g} (estimated; the best reading was {result.fun_observed})"
    console.print(f"{value} after {result.nfev} evaluations ({result.algorithm}, {result.message})")

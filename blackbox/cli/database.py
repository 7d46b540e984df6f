"""`blackbox db`: maintenance of the database of `blackbox serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from blackbox.cli.show import console, errors, failing_politely

if TYPE_CHECKING:
    from blackbox_server.store.upkeep import Health

app = typer.Typer(help="The database of a service: check it, upgrade it, back it up.", no_args_is_help=True)

Database = Annotated[
    Optional[str],  # noqa: UP045 -- typer reads the annotation at run time
    typer.Option(help="Path of the SQLite file; default: the environment's BLACKBOX_DATABASE, else blackbox.db."),
]


@app.command()
def check(database: Database = None) -> None:
    """Look for damage and contradictions, study by study. Changes nothing; the service may be running."""
    from blackbox_server.store import upkeep

    with failing_politely():
        _report(upkeep.check(_database(database)))


@app.command()
def upgrade(database: Database = None) -> None:
    """Bring a database to the schema of this release. The service must not be running; it would do the same."""
    from blackbox_server.store import upkeep

    with failing_politely():
        done = upkeep.upgrade(_database(database))
    for line in done:
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"{len(done)} steps done" if done else "nothing to do: it has the schema of this release")


@app.command()
def backup(
    target: Annotated[Path, typer.Argument(help="File to write; it must not exist.")], database: Database = None
) -> None:
    """Copy a database as it is at one moment and check the copy. The service may be running."""
    from blackbox_server.store import upkeep

    with failing_politely():
        _report(upkeep.backup(_database(database), target))


def _database(given: str | None) -> str:
    """The file that `blackbox serve` would use in this environment."""
    from blackbox_server.settings import Settings

    return Settings.from_env(**({} if given is None else {"database": given})).database


def _report(health: Health) -> None:
    """Print a line for each study; exit with code 1 if something is wrong."""
    for study in health.studies:
        found = "; ".join(study.faults) or "sound"
        line = f"{study.id} {study.name!r}: {study.n_trials} trials, {study.n_steps} steps: {found}"
        console.print(line, style="red" if study.faults else None, highlight=False, soft_wrap=True, markup=False)
    for fault in health.faults:
        errors.print(fault, style="red", highlight=False, soft_wrap=True, markup=False)
    if health.sound:
        console.print(f"{health.path} is sound", highlight=False, soft_wrap=True)
        return
    errors.print(f"[red]error:[/] {health.path} is damaged", highlight=False, soft_wrap=True)
    errors.print(
        "[yellow]hint:[/] stop the service, keep a copy of the file, and serve the newest backup that is sound; "
        "server/README.md says how",
        highlight=False,
        soft_wrap=True,
    )
    raise typer.Exit(1)

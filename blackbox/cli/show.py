"""Output of the command line: progress bars and errors."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from blackbox.errors import BlackboxError

console = Console()
errors = Console(stderr=True)


@contextmanager
def failing_politely() -> Iterator[None]:
    """Print errors of ours with their hints and exit with code 2; all others keep their tracebacks."""
    try:
        yield
    except BlackboxError as error:
        errors.print(f"[red]error:[/] {error.detail}", highlight=False, soft_wrap=True)
        if error.hint:
            errors.print(f"[yellow]hint:[/] {error.hint}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None


def progress(console: Console) -> Progress:
    """A bar with a count, the time, and the task field `best`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[best]}"),
        console=console,
    )


def short(value: object) -> str:
    """A value as text, cut after a hundred characters."""
    text = str(value)
    return text if len(text) <= 100 else text[:97] + "..."

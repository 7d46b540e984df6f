"""The arguments that commands share: where the service is, a study, an objective, JSON."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from blackbox.backends import load
from blackbox.cli.show import errors
from blackbox.errors import RENAMED, BlackboxError, InvalidInput

if TYPE_CHECKING:
    from blackbox_client import Client, StudyHandle

Url = Annotated[
    Optional[str],  # noqa: UP045 -- typer reads the annotation at run time
    typer.Option(help="Address of the service; default: the environment's BLACKBOX_URL, else http://127.0.0.1:8800."),
]
Key = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="API key; default: the environment's BLACKBOX_KEY, or the content of the file BLACKBOX_KEY_FILE."
    ),
]


def renamed(parameter: typer.CallbackParam, value: str | None) -> None:
    """Refuse an option by the name that it had in earlier releases."""
    if value is not None:
        raise typer.BadParameter(f"its name is --{RENAMED[str(parameter.name)]} now")


@contextmanager
def failing_politely_over_http() -> Iterator[None]:
    """Print errors of the service and its client, with their hints, and exit with code 2."""
    from blackbox_client import BlackboxClientError

    try:
        yield
    except (BlackboxClientError, ValueError) as error:
        errors.print(f"[red]error:[/] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None


def find_study(client: Client, text: str) -> StudyHandle:
    """The study of an id or of a name.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    if text.startswith("st_"):
        return client.study(text)
    for study in client.studies():
        if study.name == text:
            return client.study(study.id)
    raise ValueError(f"there is no study named {text!r} at {client.url}; `blackbox studies` lists them")


def load_objective(name: str) -> Callable[..., Any]:
    """The function that `module:function` names; modules of the working directory are found."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return load(name)
    except BlackboxError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        at = next((frame for frame in reversed(frames) if frame.filename.startswith(os.getcwd())), frames[-1])
        raise InvalidInput(
            f"importing {name} failed: {type(error).__name__}: {error} ({at.filename}, line {at.lineno})"
        ) from None


def json_object(text: str, what: str) -> dict[str, Any]:
    """The JSON object in an argument; `what` names it in messages."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"{what} is not JSON: {error}", hint="or the path of a file that is") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"{what} must be a JSON object, got {type(value).__name__}")
    return value

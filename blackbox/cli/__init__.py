"""The command line: `blackbox demo | serve | worker | participant | minimize | studies | algorithms | replay | db`.

The only part of the engine that knows the clock, the server and the client; each is imported inside the command that
needs it, so that `blackbox minimize` works without them.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the `blackbox` script."""
    try:
        from blackbox.cli.commands import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f'the command line needs the package {error.name}; install "blackbox-zoo[server]"')
    app()

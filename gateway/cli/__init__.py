"""The `gateway` command."""

from __future__ import annotations


def main() -> None:
    """Runs the command line; imported late, so that the package itself costs nothing."""
    from gateway.cli.commands import main as run

    run()

"""What several commands read alike: the configuration, a request's headers, who types."""

from __future__ import annotations

import getpass
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from .settings import Loaded

DEFAULT_FILE = Path("config/gateway.yaml")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="The YAML file; config/gateway.yaml where it is there.", show_default=False),
]


def found(path: Path | None) -> Path | None:
    """The configuration's file: the one that was named, or the usual one where it is there."""
    return DEFAULT_FILE if path is None and DEFAULT_FILE.exists() else path


def loaded(path: Path | None, options: dict[str, str] | None = None) -> Loaded:
    """The configuration, its warnings told. Raises ConfigError."""
    from .settings import load

    read = load(found(path), options=options)
    for warning in read.warnings:
        typer.secho(f"warning: {warning}", err=True, fg="yellow")
    return read


def counted(number: int, what: str) -> str:
    """`1 route`, `2 routes`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def folded(text: str) -> str:
    """A message in lines that a terminal has room for; as it is where standard error is no terminal."""
    if not sys.stderr.isatty():
        return text
    width = min(100, shutil.get_terminal_size().columns)
    return textwrap.fill(text, width, subsequent_indent="      ", break_long_words=False, break_on_hyphens=False)


def operator() -> str:
    """The name of who types, for the audit list."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def read_header(text: str) -> tuple[str, str]:
    """A header as it is typed, `Name: value`; the name in lower case. Raises typer.BadParameter."""
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise typer.BadParameter(f"{text!r} is no header; write -H 'Name: value'")
    return name.strip().lower(), value.strip()

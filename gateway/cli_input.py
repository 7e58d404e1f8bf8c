"""What several commands read alike: the configuration, a request's headers, who types."""

from __future__ import annotations

import getpass
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .config import Config
    from .settings import Loaded

DEFAULT_FILES = (Path("config/gateway.yaml"), Path("gateway.yaml"))

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="The YAML file; config/gateway.yaml or gateway.yaml where it is there.",
        show_default=False,
    ),
]
AdminUrlOption = Annotated[
    str | None,
    typer.Option("--admin-url", help="The admin listener: a URL, host:port or unix:/path.", show_default=False),
]


def found(path: Path | None) -> Path | None:
    """The configuration's file: the one that was named, or the usual one where it is there."""
    return path if path is not None else next((usual for usual in DEFAULT_FILES if usual.exists()), None)


def nothing_served(path: Path | None, config: Config) -> str | None:
    """Where no request can be answered: what is missing."""
    if config.routes or config.include:
        return None
    file = found(path)
    if file is None:
        return "there is no configuration file: neither config/gateway.yaml nor gateway.yaml is here; name one by -c"
    return f"nothing is served: {file} has neither `routes` nor `include`"


def loaded(path: Path | None, options: dict[str, str] | None = None) -> Loaded:
    """The configuration, its warnings told. Raises ConfigError."""
    from .settings import load

    read = load(found(path), options=options)
    for warning in read.warnings:
        typer.secho(f"warning: {warning}", err=True, fg="yellow")
    return read


def ask(
    path: str,
    order: dict[str, Any] | None = None,
    *,
    method: str | None = None,
    config: Path | None = None,
    admin_url: str | None = None,
) -> dict[str, Any]:
    """What a running gateway's admin listener answers. Raises AdminError, ConfigError."""
    from .remote import admin_address, ask_admin

    return ask_admin(path, order, method=method, at=admin_address(config, admin_url))


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

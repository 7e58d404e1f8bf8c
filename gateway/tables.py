"""What the commands print, as tables."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

from .config import Config, show_duration
from .overrides import instant
from .settings import Setting
from .templates import PathTemplate

WIDE = 1000


def show(table: Table) -> None:
    """Print it: where no terminal reads it, a row a line without blanks at its end, however long; a terminal has a
    width of its own."""
    if sys.stdout.isatty():
        Console(markup=False, emoji=False).print(table)
        return
    written = StringIO()
    Console(soft_wrap=True, markup=False, emoji=False, width=WIDE, file=written).print(table)
    for line in written.getvalue().splitlines():
        print(line.rstrip())


def table_of(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False, header_style="bold")


def settings_table(settings: Iterable[Setting]) -> Table:
    """Every setting as it is in force, those that nobody set in dim letters."""
    table = table_of("setting", "value", "from")
    for setting in settings:
        table.add_row(setting.key, setting.value, setting.source, style=None if setting.source != "default" else "dim")
    return table


def routes_table(config: Config) -> Table:
    """The routes in the order in which they are tried."""
    table = table_of("route", "path", "asks", "ttl", "stale", "on error", "tags")
    for name, route in sorted(config.routes.items(), key=lambda each: PathTemplate(each[1].path).specificity):
        ttl = route.ttl if isinstance(route.ttl, str) else show_duration(route.ttl)
        ttl = "of its parts" if route.parts else ttl
        table.add_row(
            name,
            route.path,
            f"{route.upstream}:{route.target_text}" if not route.parts else f"parts: {', '.join(route.parts)}",
            ttl,
            "-" if route.stale_while_revalidate is None else show_duration(route.stale_while_revalidate),
            "-" if route.stale_if_error is None else show_duration(route.stale_if_error),
            " ".join(route.tags),
        )
    for place in config.include:
        table.add_row("", place, "Python", "", "", "", "")
    return table


def overrides_table(overrides: Iterable[Mapping[str, Any]]) -> Table:
    """Live overrides, as the admin listener tells them."""
    table = table_of("setting", "value", "until", "set by", "at")
    for each in overrides:
        key = f"{each['route']}.{each['setting']}"
        table.add_row(key, each["value"], instant(each["until"]), each["by"], instant(each["at"]))
    return table


def events_table(events: Iterable[Mapping[str, Any]]) -> Table:
    """The audit list, as the admin listener tells it."""
    table = table_of("when", "by", "what", "detail")
    for each in events:
        table.add_row(instant(each["at"]), each["by"], each["what"], each["detail"])
    return table

"""The tables that commands print."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from gateway.cli.include_check import Handler
from gateway.config.loader import Setting
from gateway.config.models import Config
from gateway.config.overrides import instant
from gateway.config.route import RouteConfig
from gateway.config.types import show_duration
from gateway.http.path_template import PathTemplate
from gateway.policy.rules import DEFAULT_STALE_IF_ERROR

MOST_ROWS = 2000
"""Rows that are laid out for a terminal, which takes milliseconds a row; more are printed as they are."""


@dataclass
class Table:
    """Rows of text below the names of their columns; `dim` are the rows that matter less."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    dim: set[int] = field(default_factory=set)

    def add_row(self, *cells: str, dim: bool = False) -> None:
        if dim:
            self.dim.add(len(self.rows))
        self.rows.append(cells)

    def lines(self) -> Iterable[str]:
        """A row a line, without blanks at its end, however long."""
        cells = [self.columns, *self.rows]
        widths = [max(len(row[at]) for row in cells) for at in range(len(self.columns))]
        for row in cells:
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def show(table: Table) -> None:
    """Print it; within the terminal's width, unless it has very many rows."""
    if not sys.stdout.isatty() or len(table.rows) > MOST_ROWS:
        for line in table.lines():
            print(line)
        return
    from rich.console import Console
    from rich.table import Table as RichTable

    laid_out = RichTable(*table.columns, box=None, pad_edge=False, header_style="bold")
    for number, row in enumerate(table.rows):
        laid_out.add_row(*row, style="dim" if number in table.dim else None)
    Console(markup=False, emoji=False).print(laid_out)


def table_of(*columns: str) -> Table:
    return Table(columns)


def settings_table(settings: Iterable[Setting]) -> Table:
    """Every setting in force, defaults dimmed."""
    table = table_of("setting", "value", "from")
    for setting in settings:
        table.add_row(setting.key, setting.value, setting.source, dim=setting.source == "default")
    return table


def routes_table(config: Config, handlers: Iterable[Handler]) -> Table:
    """The routes in the order in which they are tried; `handlers` are those of the Python code that is included."""
    table = table_of("route", "path", "asks", "ttl", "stale", "on error", "tags", "edge")
    rows = [(PathTemplate(each.path).specificity, _route_row(name, each)) for name, each in config.routes.items()]
    rows += [(each.order, _handler_row(each)) for each in handlers]
    for _, row in sorted(rows, key=lambda each: each[0]):
        table.add_row(*row)
    return table


def _route_row(name: str, route: RouteConfig) -> tuple[str, ...]:
    ttl = "off" if not route.cache else route.ttl if isinstance(route.ttl, str) else show_duration(route.ttl)
    return (
        name,
        route.path,
        _asked(route),
        "of its parts" if route.parts else ttl,
        _window(route, route.stale_while_revalidate, "origin"),
        _window(route, route.stale_if_error, f"origin, {show_duration(timedelta(seconds=DEFAULT_STALE_IF_ERROR))}"),
        " ".join(route.tags),
        "yes" if route.cache else "no: nothing is cached",
    )


def _asked(route: RouteConfig) -> str:
    if route.parts:
        return f"parts: {', '.join(route.parts)}"
    return f"{route.upstream}:{route.target_text}{', also by WebSocket' if route.websocket else ''}"


def _handler_row(handler: Handler) -> tuple[str, ...]:
    if not handler.cached:
        return handler.name, handler.path, "Python", "-", "-", "-", "", "no: nothing is cached"
    windows = [handler.ttl, handler.stale_while_revalidate, handler.stale_if_error]
    shown = ("origin" if each is None else show_duration(timedelta(seconds=each)) for each in windows)
    return (handler.name, handler.path, "Python", *shown, " ".join(handler.tags), handler.edge)


def _window(route: RouteConfig, set_to: timedelta | None, default: str) -> str:
    """A stale window; if it is not set, the upstream's own, or else the default."""
    if route.parts or not route.cache:
        return "-"
    return default if set_to is None else show_duration(set_to)


def overrides_table(overrides: Iterable[Mapping[str, Any]]) -> Table:
    """Live overrides, from the admin listener."""
    table = table_of("setting", "value", "until", "set by", "at")
    for each in overrides:
        key = f"{each['route']}.{each['setting']}"
        table.add_row(key, each["value"], instant(each["until"]), each["by"], instant(each["at"]))
    return table


def events_table(events: Iterable[Mapping[str, Any]]) -> Table:
    """The audit list, from the admin listener."""
    table = table_of("when", "by", "what", "detail")
    for each in events:
        table.add_row(instant(each["at"]), each["by"], each["what"], each["detail"])
    return table


def keys_table(keys: Iterable[Mapping[str, Any]]) -> Table:
    """API keys, from the admin listener; those that have ended dimmed."""
    table = table_of("id", "identity", "owner", "plan", "scopes", "created", "ends", "state")
    for each in keys:
        end = min((one for one in (each["expires"], each["revoked"]) if one is not None), default=None)
        texts = (each["id"], each["identity"], each["owner"], each["plan"], " ".join(each["scopes"]))
        ends = "never" if end is None else instant(end)
        table.add_row(*texts, instant(each["created"]), ends, each["state"], dim=each["state"] != "in force")
    return table

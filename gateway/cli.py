"""The command line: `gateway serve`, `check`, `routes`, `purge`, `explain`."""

from __future__ import annotations

import asyncio
import getpass
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from .config import Config, show_duration
from .errors import ConfigError, GatewayError
from .settings import Loaded, effective, load
from .targets import TRACKING_PARAMETERS
from .templates import PathTemplate

if TYPE_CHECKING:
    from .explain import Trace

app = typer.Typer(
    help="A cached, read-heavy API gateway.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
DEFAULT_FILE = Path("config/gateway.yaml")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="The YAML file; config/gateway.yaml where it is there.", show_default=False),
]


@app.command()
def serve(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on, over the configuration.")] = None,
    port: Annotated[
        int | None,
        typer.Option(help="The port to listen on, over the configuration; 0 takes a free one.", min=0, max=65535),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="How many processes answer, over the configuration.", min=1, max=128)
    ] = None,
) -> None:
    """Run the gateway until Ctrl-C or SIGTERM.

    SIGHUP reloads the configuration without a failed request, SIGUSR2 replaces the workers one by one. On SIGTERM
    /readyz says 503 for `stop_delay`, then what is in flight ends within `stop_timeout`; a second one ends at once.
    """
    from .spawning import log_to_stderr, spawn
    from .watching import Files

    log_to_stderr()
    given = (("host", host), ("port", port), ("workers", workers))
    options = {name: str(value) for name, value in given if value is not None}
    spare = spawn()  # it imports what a worker needs while the configuration is read
    try:
        files = Files(path for path in (_found(config), Path(".env")) if path is not None)
        loaded = _load(config, options)
        from .supervisor import supervise

        supervise(loaded, lambda: load(_found(config), options=options), spare, files)
    finally:
        spare.abandon()


@app.command()
def check(config: ConfigOption = None) -> None:
    """Validate the configuration; print all of it, and where each value came from."""
    loaded = _load(config)
    table = Table("setting", "value", "from", box=None, pad_edge=False, header_style="bold")
    for setting in effective(loaded):
        table.add_row(setting.key, setting.value, setting.source, style=None if setting.source != "default" else "dim")
    _console().print(table)
    counts = f"{len(loaded.config.routes)} routes, {len(loaded.config.upstreams)} upstreams"
    typer.echo(f"\nThe configuration is valid: {counts}.")


@app.command()
def routes(config: ConfigOption = None) -> None:
    """The routes, in the order in which they are tried, and how long their answers live."""
    _console().print(routes_table(_load(config).config))


@app.command()
def purge(
    key: Annotated[
        list[str] | None, typer.Option(help="A URL of the gateway's, or its path; may stand several times.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag; may stand several times.")] = None,
    route: Annotated[list[str] | None, typer.Option(help="A route's name; may stand several times.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that is stored.")] = False,
    soft: Annotated[bool, typer.Option("--soft", help="End freshness only; the old may still stand in.")] = False,
) -> None:
    """Purge what a running gateway has stored, in all its workers.

    It asks the admin listener at GATEWAY_ADMIN_URL (http://127.0.0.1:9000 if not set) with GATEWAY_ADMIN_TOKEN. Exit
    status: 0 where every living worker confirmed, 3 where not all have yet, 2 where it was refused.
    """
    order = {
        "keys": key or [],
        "tags": tag or [],
        "routes": route or [],
        "all": everything,
        "soft": soft,
        "by": _operator(),
    }
    from .remote import ask_admin

    report = ask_admin("/purge", order)
    took = f"{report['seconds'] * 1000:.0f} ms"
    typer.echo(f"{report['confirmed']} of {report['workers']} workers have confirmed, in {took}.")
    if not report["complete"]:
        typer.secho("The rest will hear of it as soon as Redis can be reached.", err=True, fg="yellow")
        raise typer.Exit(3)


@app.command()
def explain(
    method: Annotated[str, typer.Argument(help="The request's method, such as GET.")],
    target: Annotated[str, typer.Argument(help="Its path and query, or one of the gateway's own URLs.")],
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", help="A request header, as `Name: value`; several times.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="Explain by this configuration alone, without a running gateway."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Why a request is answered as it is: route, key, TTL and where that came from, what is stored, what would happen.

    Without --config it asks the admin listener at GATEWAY_ADMIN_URL (http://127.0.0.1:9000 if not set) with
    GATEWAY_ADMIN_TOKEN. Nothing is fetched, stored or counted. Without an Accept of its own, the request has curl's.
    """
    import msgspec

    from .explain import Trace
    from .explain_text import render

    fields = [_field(text) for text in header or []]
    if not any(name == "accept" for name, _ in fields):
        fields.append(("accept", "*/*"))  # as curl sends it
    if config is not None:
        trace = asyncio.run(_explain_dry(_load(config), method.upper(), target, fields))
    else:
        from .remote import ask_admin

        order = {"method": method, "target": target, "headers": fields}
        trace = msgspec.convert(ask_admin("/explain", order), Trace)
    typer.echo(msgspec.json.encode(trace).decode() if as_json else render(trace))


@app.command()
def warm(
    source: Annotated[
        Path, typer.Option("--from", help="URLs or paths, one a line; or an access log.", show_default=False)
    ],
    top: Annotated[int | None, typer.Option(help="Only so many, the most wanted first.", min=1)] = None,
    rate: Annotated[str | None, typer.Option(help="At most so many a second, such as 50/s.")] = None,
    concurrency: Annotated[int, typer.Option(help="At most so many at once.", min=1, max=1000)] = 8,
    url: Annotated[str, typer.Option(envvar="GATEWAY_URL", help="Where it listens.")] = "http://127.0.0.1:8000",
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", help="A request header, as `Name: value`; several times.")
    ] = None,
) -> None:
    """Ask a running gateway for what will be wanted, so that its cache has it before anyone waits.

    Exit status: 0 where every request was answered, 3 where some failed.
    """
    from rich.progress import Progress

    from .tuning import parse_rate
    from .warm import wanted
    from .warm import warm as run

    found = wanted(source, top=top, drop_query=TRACKING_PARAMETERS)
    if found.skipped:
        typer.secho(f"{found.skipped} lines had a query, whose values no log holds: left out.", err=True, fg="yellow")
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("warming", total=len(found.targets))
        warmed = asyncio.run(
            run(
                url,
                found.targets,
                rate=parse_rate(rate, "--rate") if rate is not None else None,
                concurrency=concurrency,
                told=lambda: progress.advance(task),
                headers=dict(_field(text) for text in header or []),
            )
        )
    typer.echo(f"{len(found.targets)} asked for: " + ", ".join(f"{n} {what}" for what, n in warmed.outcomes.items()))
    if warmed.failed:
        typer.secho(f"failed: {', '.join(warmed.failed)} …", err=True, fg="red")
        raise typer.Exit(3)


ttl_commands = typer.Typer(help="What TTLs do, and what others would do.", no_args_is_help=True)
app.add_typer(ttl_commands, name="ttl")


@ttl_commands.command()
def advise(
    route: Annotated[str | None, typer.Argument(help="One route, with all TTLs of the ladder.")] = None,
    max_outdated: Annotated[
        str | None, typer.Option(help="At most this share of answers may be outdated, such as 1%.", show_default=False)
    ] = None,
    max_upstream: Annotated[
        str | None, typer.Option(help="At most so many requests to the upstream, such as 50/s.", show_default=False)
    ] = None,
    log: Annotated[Path | None, typer.Option(help="Advise by this access log instead of a running gateway.")] = None,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="All figures as JSON.")] = False,
) -> None:
    """What each TTL would do: hit ratio, load on the upstream, share of outdated answers; and which meets a target.

    It asks the admin listener at GATEWAY_ADMIN_URL (http://127.0.0.1:9000 if not set) with GATEWAY_ADMIN_TOKEN, or
    reads an access log. Without a target it takes --max-outdated 1%.
    """
    import msgspec

    from .advice import Advice
    from .tuning import advice_of_log, ladder_table, parse_rate, parse_share, table

    outdated = parse_share(max_outdated) if max_outdated is not None else None
    upstream = parse_rate(max_upstream, "--max-upstream") if max_upstream is not None else None
    if outdated is None and upstream is None:
        outdated = 0.01
    if log is not None:
        found = advice_of_log(log, _ttls(_load(config).config))
    else:
        from .remote import ask_admin

        found = msgspec.convert(ask_admin("/advice")["routes"], list[Advice])
    chosen = [each for each in found if route in (None, each.route)]
    if not chosen:
        known = ", ".join(each.route for each in found) or "none yet"
        typer.secho(f"Nothing was seen of {route or 'any route'} so far (seen: {known}).", err=True, fg="yellow")
        raise typer.Exit(3)
    if as_json:
        typer.echo(msgspec.json.encode(chosen).decode())
        return
    _console().print(table(chosen, max_outdated=outdated, max_upstream=upstream))
    if route is not None:
        typer.echo()
        _console().print(ladder_table(chosen[0]))


RouteArgument = Annotated[str, typer.Argument(help="The route's name; of a @cached handler, module.function.")]
SettingOption = Annotated[
    str, typer.Option(help="ttl, stale_while_revalidate, stale_if_error, negative_ttl or client_ttl.")
]


@ttl_commands.command("set")
def set_ttl(
    route: RouteArgument,
    value: Annotated[str, typer.Argument(help="A duration such as 10s, or origin.")],
    lasts: Annotated[str, typer.Option("--for", help="How long it is in force; at most 7d.")] = "1h",
    setting: SettingOption = "ttl",
) -> None:
    """Set a live override: in force on every worker and replica within a second, gone when its time has come.

    It stands over file and environment, and acts on what is stored already. Asks the admin listener at
    GATEWAY_ADMIN_URL with GATEWAY_ADMIN_TOKEN.
    """
    from .overrides import instant
    from .remote import ask_admin

    order = {"route": route, "setting": setting, "value": value, "for": lasts, "by": _operator()}
    made = ask_admin("/overrides", order)
    typer.echo(f"{route}.{setting} is {value} until {instant(made['until'])}.")


@ttl_commands.command("reset")
def reset_ttl(route: RouteArgument, setting: SettingOption = "ttl") -> None:
    """End a live override before its time."""
    from urllib.parse import quote

    from .remote import ask_admin

    ask_admin(f"/overrides/{quote(route, safe='')}/{quote(setting, safe='')}?by={quote(_operator())}", method="DELETE")
    typer.echo(f"The override of {route}.{setting} has ended.")


@ttl_commands.command("list")
def list_ttls() -> None:
    """The live overrides that are in force, who set them, and until when."""
    from .overrides import instant
    from .remote import ask_admin

    table = Table("setting", "value", "until", "set by", "at", box=None, pad_edge=False, header_style="bold")
    for each in ask_admin("/overrides")["overrides"]:
        key = f"{each['route']}.{each['setting']}"
        table.add_row(key, each["value"], instant(each["until"]), each["by"], instant(each["at"]))
    _console().print(table)


@app.command()
def audit() -> None:
    """Who changed what while the gateway ran: overrides and purges, the newest first."""
    from .overrides import instant
    from .remote import ask_admin

    table = Table("when", "by", "what", "detail", box=None, pad_edge=False, header_style="bold")
    for each in ask_admin("/audit")["events"]:
        table.add_row(instant(each["at"]), each["by"], each["what"], each["detail"])
    _console().print(table)


def _operator() -> str:
    """The name of who types, for the audit list."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def _ttls(config: Config) -> dict[str, float | None]:
    return {
        name: None if isinstance(route.ttl, str) else route.ttl.total_seconds() for name, route in config.routes.items()
    }


def _field(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise typer.BadParameter(f"{text!r} is no header; write -H 'Name: value'")
    return name.strip().lower(), value.strip()


async def _explain_dry(loaded: Loaded, method: str, target: str, fields: list[tuple[str, str]]) -> Trace:
    from .app import create_app
    from .explain import Explainer

    alone = replace(loaded, config=loaded.config.model_copy(update={"redis_url": "none"}))
    gateway = create_app(alone)  # which is not started: it opens no connection
    explainer = Explainer(gateway.declared, gateway.origins, None, gateway.aggregates, gateway.handler_routes())
    try:
        return await explainer.explain(method, target, tuple((name.encode(), value.encode()) for name, value in fields))
    finally:
        for upstream in gateway.upstreams.values():
            await upstream.aclose()


def routes_table(config: Config) -> Table:
    table = Table(
        "route",
        "path",
        "asks",
        "ttl",
        "stale",
        "on error",
        "tags",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
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


def _found(path: Path | None) -> Path | None:
    return DEFAULT_FILE if path is None and DEFAULT_FILE.exists() else path


def _load(path: Path | None, options: dict[str, str] | None = None) -> Loaded:
    loaded = load(_found(path), options=options)
    for warning in loaded.warnings:
        typer.secho(f"warning: {warning}", err=True, fg="yellow")
    return loaded


def _console() -> Console:
    # Wide enough for scripts that read it by lines; a terminal has a width of its own.
    return Console(soft_wrap=True, markup=False, emoji=False, width=None if sys.stdout.isatty() else 240)


def main() -> None:
    """The console script. What the operator can mend is one message, without a traceback; its exit status is 2."""
    try:
        app()
    except ConfigError as error:
        count = len(error.problems)
        typer.secho(f"The configuration is refused ({count} problem{'s' if count > 1 else ''}):", err=True, fg="red")
        for problem in error.problems:
            typer.echo(f"  {problem}", err=True)
        sys.exit(2)
    except GatewayError as error:
        typer.secho(str(error), err=True, fg="red")
        sys.exit(2)

"""The command line: `gateway serve`, `check`, `routes`, `purge`, `explain`, `warm`, `ttl`, `audit`.

A command imports what it needs when it is run. `serve` starts its first worker before it imports more than this: both
then import at the same time.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import cli_ttl
from .cli_input import ConfigOption, counted, folded, found, loaded, operator, read_header
from .errors import ConfigError, GatewayError

if TYPE_CHECKING:
    from .explain_trace import Trace
    from .settings import Loaded

app = typer.Typer(
    help="A cached, read-heavy API gateway.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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

    spare = spawn()  # it imports what a worker needs while the configuration is read
    try:
        from .settings import load
        from .supervisor import supervise
        from .watching import Files

        log_to_stderr()
        given = (("host", host), ("port", port), ("workers", workers))
        options = {name: str(value) for name, value in given if value is not None}
        files = Files(path for path in (found(config), Path(".env")) if path is not None)
        supervise(loaded(config, options), lambda: load(found(config), options=options), spare, files)
    finally:
        spare.abandon()


@app.command()
def check(
    config: ConfigOption = None,
    running: Annotated[
        bool, typer.Option("--running", help="What is in force in a running gateway, live overrides among it.")
    ] = False,
) -> None:
    """Validate the configuration; print all of it, and where each value came from.

    With --running it asks the admin listener at GATEWAY_ADMIN_URL (http://127.0.0.1:9000 if not set) with
    GATEWAY_ADMIN_TOKEN instead.
    """
    from .settings import Setting, effective
    from .tables import settings_table, show

    if running:
        from .remote import ask_admin

        show(settings_table(Setting(**each) for each in ask_admin("/settings")["settings"]))
        return
    read = loaded(config)
    show(settings_table(effective(read)))
    counts = f"{counted(len(read.config.routes), 'route')}, {counted(len(read.config.upstreams), 'upstream')}"
    typer.echo(f"\nThe configuration is valid: {counts}.")


@app.command()
def routes(config: ConfigOption = None) -> None:
    """The routes, in the order in which they are tried, and how long their answers live."""
    from .tables import routes_table, show

    show(routes_table(loaded(config).config))


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
        "by": operator(),
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

    from .explain_text import render
    from .explain_trace import Trace

    fields = [read_header(text) for text in header or []]
    if not any(name == "accept" for name, _ in fields):
        fields.append(("accept", "*/*"))  # as curl sends it
    if config is not None:
        trace = asyncio.run(_explain_dry(loaded(config), method.upper(), target, fields))
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
    from rich.console import Console
    from rich.progress import Progress

    from .targets import TRACKING_PARAMETERS
    from .tuning import parse_rate
    from .warm import wanted
    from .warm import warm as run

    listed = wanted(source, top=top, drop_query=TRACKING_PARAMETERS)
    if listed.skipped:
        lines = counted(listed.skipped, "line")
        typer.secho(f"{lines} had a query, whose values no log holds: left out.", err=True, fg="yellow")
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("warming", total=len(listed.targets))
        warmed = asyncio.run(
            run(
                url,
                listed.targets,
                rate=parse_rate(rate, "--rate") if rate is not None else None,
                concurrency=concurrency,
                told=lambda: progress.advance(task),
                headers=dict(read_header(text) for text in header or []),
            )
        )
    typer.echo(f"{len(listed.targets)} asked for: " + ", ".join(f"{n} {what}" for what, n in warmed.outcomes.items()))
    if warmed.failed:
        typer.secho(f"failed: {', '.join(warmed.failed)} …", err=True, fg="red")
        raise typer.Exit(3)


app.add_typer(cli_ttl.app, name="ttl")


@app.command()
def audit() -> None:
    """Who changed what while the gateway ran: overrides and purges, the newest first."""
    from .remote import ask_admin
    from .tables import events_table, show

    show(events_table(ask_admin("/audit")["events"]))


async def _explain_dry(read: Loaded, method: str, target: str, fields: list[tuple[str, str]]) -> Trace:
    from .app import create_app

    alone = replace(read, config=read.config.model_copy(update={"redis_url": "none"}))
    gateway = create_app(alone)  # which is not started: it opens no connection
    try:
        return await gateway.explainer(running=False).explain(
            method, target, tuple((name.encode(), value.encode()) for name, value in fields)
        )
    finally:
        for upstream in gateway.upstreams.values():
            await upstream.aclose()


def main() -> None:
    """The console script. What the operator can mend is one message, without a traceback; its exit status is 2.

    What `include` names is looked for where one is, too, as `python -m gateway` and `uvicorn` do.
    """
    if (here := os.getcwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        app()
    except ConfigError as error:
        for warning in error.warnings:
            typer.secho(f"warning: {warning}", err=True, fg="yellow")
        told = counted(len(error.problems), "problem")
        typer.secho(f"The configuration is refused ({told}):", err=True, fg="red")
        for problem in error.problems:
            typer.echo(folded(f"  {problem}"), err=True)
        sys.exit(2)
    except GatewayError as error:
        typer.secho(str(error), err=True, fg="red")
        sys.exit(2)

"""The command line: `gateway COMMAND`.

A command imports what it needs when it is run. `serve` starts its first worker before it imports more than this: both
then import at the same time.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli import credentials, setup, ttl
from gateway.cli.options import (
    AdminUrlOption,
    AppArgument,
    ConfigOption,
    app_source,
    ask,
    folded,
    found,
    loaded,
    loaded_app,
    memory_only,
    nothing_served,
    operator,
    read_data,
    read_header,
    show_report,
)
from gateway.config.names import counted
from gateway.errors import ConfigError, ConfigProblem, GatewayError, OrderError

if TYPE_CHECKING:
    from gateway.cli.include_check import Included
    from gateway.config.loader import Loaded, Setting
    from gateway.config.models import Config
    from gateway.explain.trace import Trace


app = typer.Typer(
    help="A cached, read-heavy API gateway.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # with others, a paragraph of the help breaks where its line in the source does
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from gateway import __version__

        typer.echo(f"gateway {__version__}")
        raise typer.Exit


@app.callback()
def _all_commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    app: AppArgument = None,
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on; overrides the configuration.")] = None,
    port: Annotated[
        int | None,
        typer.Option(help="The port to listen on; overrides the configuration. 0: a free one.", min=0, max=65535),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Number of workers; overrides the configuration.", min=1, max=128)
    ] = None,
    root_path: Annotated[
        str | None,
        typer.Option(help="The path prefix under which clients reach the gateway; overrides the configuration."),
    ] = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="Replace the workers when Python files below this folder change.")
    ] = False,
) -> None:
    """Run the gateway, or a FastAPI app with its cache, until Ctrl-C or SIGTERM.

    SIGHUP reloads the configuration without failing requests; SIGUSR2 replaces the workers one by one. On SIGTERM,
    /readyz returns 503 for `shutdown_delay`; requests in flight then have `shutdown_timeout` to finish. A second
    SIGTERM stops at once.
    """
    from gateway.server.bootstrap import leave_out
    from gateway.server.process import spawn

    spare = spawn()  # it imports a worker's modules while the configuration is read
    try:
        leave_out()
        from gateway.config.loader import load
        from gateway.observability.log import log_to_stderr
        from gateway.server.reload import Code, Files
        from gateway.server.supervisor import supervise

        log_to_stderr()
        given = {"host": host, "port": port, "workers": workers, "root_path": root_path}
        files = Files(path for path in (found(config), Path(".env")) if path is not None)
        watched = [files, *([Code()] if reload else [])]
        if app is not None:
            reread = _rereading(app, config, {name: value for name, value in given.items() if value is not None})
            supervise(reread(), reread, spare, watched)
            return
        options = {name: str(value) for name, value in given.items() if value is not None}
        read = loaded(config, options)
        if (missing := nothing_served(config, read.config)) is not None:
            if found(config) is None:
                raise OrderError(missing)
            typer.secho(f"warning: {missing}", err=True, fg="yellow")
        supervise(read, lambda: load(found(config), options=options), spare, watched)
    finally:
        spare.abandon()


def _rereading(place: str, config: Path | None, options: dict[str, str | int]) -> Callable[[], Loaded]:
    """Reads the configuration of the app at `place`; `config` is that of an app whose code names none."""
    from gateway.server.served_app import configuration_of

    return partial(configuration_of, app_source(place, config, options))


@app.command()
def demo(
    host: Annotated[str | None, typer.Option(help="The address that the gateway listens on.")] = None,
    port: Annotated[
        int | None, typer.Option(help="The port that the gateway listens on. 0: a free one.", min=0, max=65535)
    ] = None,
) -> None:
    """Run a slow demo shop and the gateway in front of it, and print what to try, until Ctrl-C."""
    from gateway.demo.runner import demo as run

    raise typer.Exit(run(host, port))


@app.command()
def check(
    app: AppArgument = None,
    config: ConfigOption = None,
    running: Annotated[
        bool, typer.Option("--running", help="Show a running gateway's settings, with live overrides.")
    ] = False,
    admin_url: AdminUrlOption = None,
    changed: Annotated[bool, typer.Option("--changed", help="Show only settings that aren't the default.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings and problems only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print settings and problems as JSON.")] = False,
) -> None:
    """Validate the configuration, or that of a FastAPI app and its handlers, and print every setting and its source.

    All problems are reported at once, in the order of the file. Exit status: 0 if the configuration is valid, 2 if
    it is not or if it serves nothing. With --running, the settings come from the admin listener of a running gateway.
    """
    from gateway.cli.tables import settings_table, show
    from gateway.config.loader import Setting, effective

    if running:
        settings = [Setting(**each) for each in ask("/settings", config=config, admin_url=admin_url)["settings"]]
        summary = ""
        problems: list[ConfigProblem] = []
        warnings, notes = tuple[str, ...](), list[str]()
    else:
        settings, summary, problems, warnings, notes = _checked(app, config, effective, as_json=as_json)
    shown = [each for each in settings if not changed or each.source != "default"]
    if as_json:
        typer.echo(_as_json(shown, warnings, problems, notes))
    elif not quiet and not problems:
        show(settings_table(shown))
        for note in notes:
            typer.secho(f"note: {note}", err=True, fg="yellow")
        if summary:
            typer.echo(f"\nThe configuration is valid: {summary}.")
    if problems and not as_json:
        raise ConfigError(problems, warnings)
    if problems:
        raise typer.Exit(2)


def _checked(
    app: str | None, path: Path | None, effective: Callable[[Loaded], list[Setting]], *, as_json: bool
) -> tuple[list[Setting], str, list[ConfigProblem], tuple[str, ...], list[str]]:
    """The settings, a summary, problems, warnings and notes."""
    from gateway.config.loader import load

    try:
        read = loaded_app(app, path) if app is not None else load(found(path)) if as_json else loaded(path)
    except ConfigError as error:
        return [], "", error.problems, error.warnings, []
    counts = f"{counted(len(read.config.routes), 'route')}, {counted(len(read.config.upstreams), 'upstream')}"
    missing = nothing_served(path, read.config) if app is None else None
    problems = [ConfigProblem("", "", missing)] if missing else []
    if any(each.issuer for each in read.config.identity.values()):
        problems += _missing_extra()
    if read.config.include or app is not None:
        included = _included(app, path)
        counts += f", {counted(len(included.handlers), 'handler')}"
        problems += included.problems
    counts += _certificate(read.config)
    problems += credentials.refused_keys(read.config)
    notes = [*_changes(read.config), *credentials.risks(read.config), *_lost_quotas(read.config)]
    return effective(read), counts, problems, read.warnings if as_json else (), notes


def _certificate(config: Config) -> str:
    """When the listener's certificate expires; a warning tells of one that has, or whose date can't be read."""
    from gateway.config.tls import expired, expiry_of

    tls = config.listen.tls
    return "" if tls is None or expired(tls) else f", a certificate until {expiry_of(tls.cert):%Y-%m-%d}"


def _included(app: str | None, path: Path | None) -> Included:
    from gateway.cli.include_check import included_by

    file = found(path)
    return included_by(str(file) if file is not None else None, app)


def _missing_extra() -> list[ConfigProblem]:
    from gateway.identity.providers import check_extra

    try:
        check_extra()
    except ConfigError as error:
        return error.problems
    return []


def _changes(config: Config) -> list[str]:
    """What the next release does differently with this configuration."""
    routes = [name for name, route in config.routes.items() if route.reads_by_default]
    if not routes:
        return []
    return [
        f"methods is not set for {', '.join(routes)}: the next release responds 405 to methods other than GET and HEAD"
        " there, because these routes have a ttl of their own. Set methods to what shall pass, or to any"
    ]


def _lost_quotas(config: Config) -> list[str]:
    """Quotas whose use a restart forgets."""
    quotas = [name for name, limit in config.rate_limits.items() if limit.quota is not None]
    if not quotas or (config.redis_url != "none" and (config.redis_url != "embedded" or config.redis_dir is not None)):
        return []
    return [
        f"a restart forgets what was used of {', '.join(quotas)} (rate_limits with a quota): set redis_dir, or"
        " redis_url to a Redis that keeps its data"
    ]


def _as_json(
    settings: list[Setting], warnings: tuple[str, ...], problems: list[ConfigProblem], notes: list[str]
) -> str:
    import msgspec

    answer = {"valid": not problems, "problems": problems, "warnings": warnings, "notes": notes, "settings": settings}
    return msgspec.json.format(msgspec.json.encode(answer)).decode()


@app.command()
def routes(app: AppArgument = None, config: ConfigOption = None) -> None:
    """List the routes of the configuration, or of a FastAPI app, in matching order.

    They have their TTLs, and whether the edge answers their hits.

    Of a Python handler that is not answered at the edge, the last column says why.
    """
    from gateway.cli.tables import routes_table, show

    read = (loaded_app(app, config) if app is not None else loaded(config)).config
    if not read.include and app is None:
        return show(routes_table(read, []))
    included = _included(app, config)
    if included.problems:
        raise ConfigError(included.problems)
    return show(routes_table(read, included.handlers))


@app.command()
def purge(
    key: Annotated[list[str] | None, typer.Option(help="A URL of the gateway, or its path; repeatable.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag; repeatable.")] = None,
    route: Annotated[list[str] | None, typer.Option(help="A route name; repeatable.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Purge all entries.")] = False,
    soft: Annotated[bool, typer.Option("--soft", help="Mark entries stale instead of removing them.")] = False,
    config: ConfigOption = None,
    admin_url: AdminUrlOption = None,
) -> None:
    """Purge entries of a running gateway, in all its workers.

    The admin listener is --admin-url, else GATEWAY_ADMIN_URL, else `admin_listen` of the configuration. The token is
    GATEWAY_ADMIN_TOKEN, also from `.env`. Exit status: 0 if every live worker confirmed, 3 if some have not yet, 2 if
    the purge was refused.
    """
    order = {
        "keys": key or [],
        "tags": tag or [],
        "routes": route or [],
        "all": everything,
        "soft": soft,
        "by": operator(),
    }
    _refuse_what_purges_nothing(key or [], tag or [], route or [], everything=everything)
    report = ask("/purge", order, config=config, admin_url=admin_url)
    names = [f"{what} {name}" for what, given in (("key", key), ("tag", tag), ("route", route)) for name in given or ()]
    names += ["everything"] if everything else []
    typer.echo(f"Purged{' softly' if soft else ''}: {', '.join(names)}.")
    show_report(report)


def _refuse_what_purges_nothing(keys: list[str], tags: list[str], routes: list[str], *, everything: bool) -> None:
    """Raises OrderError for a purge of nothing, before any gateway is contacted."""
    if not (keys or tags or routes or everything):
        raise OrderError("nothing to purge: set --key, --tag, --route or --all")
    for text in keys:
        if not re.match(r"/|https?://", text):
            raise OrderError(f"--key {text}: write a path such as /items/1, or a URL of the gateway's")
    if "" in tags:
        raise OrderError("--tag: a tag is empty")
    if "" in routes:
        raise OrderError("--route: a route's name is empty")


@app.command()
def explain(
    method: Annotated[str, typer.Argument(help="The request method, such as GET.")],
    target: Annotated[str, typer.Argument(help="The path and query, or a URL of the gateway.")],
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", help="A request header, as `Name: value`; repeatable.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", help="The body of a QUERY, or of another read with one; @FILE reads a file."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="Use this configuration file instead of a running gateway."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    admin_url: AdminUrlOption = None,
) -> None:
    """Explain a response: route, cache key, TTL and its source, stored entries, and what the gateway would do.

    Without --config, the command asks the admin listener: --admin-url, else GATEWAY_ADMIN_URL, else `admin_listen` of
    the configuration. The token is GATEWAY_ADMIN_TOKEN, also from `.env`. Nothing is fetched, stored or counted. The
    default Accept header is curl's, and with --data the default Content-Type is application/json.
    """
    import msgspec

    from gateway.explain.trace import Trace, render

    fields = [read_header(text) for text in header or []]
    if not any(name == "accept" for name, _ in fields):
        fields.append(("accept", "*/*"))  # as curl sends it
    if data is not None and not any(name == "content-type" for name, _ in fields):
        fields.append(("content-type", "application/json"))
    content = read_data(data)
    if config is not None:
        trace = asyncio.run(_explain_dry(loaded(config), method.upper(), target, fields, content))
    else:
        order = {"method": method, "target": target, "headers": fields, "data": content}
        trace = msgspec.convert(ask("/explain", order, admin_url=admin_url), Trace)
    typer.echo(msgspec.json.encode(trace).decode() if as_json else render(trace))


@app.command()
def warm(
    source: Annotated[
        Path,
        typer.Option("--from", help="File of URLs, paths or `QUERY /path BODY`; or an access log.", show_default=False),
    ],
    top: Annotated[int | None, typer.Option(help="Maximum number of URLs, most requested first.", min=1)] = None,
    rate: Annotated[str | None, typer.Option(help="Maximum request rate, such as 50/s.")] = None,
    concurrency: Annotated[int, typer.Option(help="Maximum concurrent requests.", min=1, max=1000)] = 8,
    url: Annotated[str, typer.Option(envvar="GATEWAY_URL", help="URL of the gateway.")] = "http://127.0.0.1:8000",
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", help="A request header, as `Name: value`; repeatable.")
    ] = None,
) -> None:
    """Fill the cache of a running gateway by requesting URLs.

    Exit status: 0 if every response was a success or a redirect, 3 if some requests failed.
    """
    from rich.console import Console
    from rich.progress import Progress

    from gateway.cli.ttl_report import parse_rate
    from gateway.cli.warm import wanted
    from gateway.cli.warm import warm as run
    from gateway.http.target import TRACKING_PARAMETERS

    listed = wanted(source, top=top, drop_query=TRACKING_PARAMETERS)
    if listed.skipped:
        lines = counted(listed.skipped, "line")
        typer.secho(f"{lines} skipped: they had a query, and logs don't contain query values.", err=True, fg="yellow")
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
    typer.echo(f"{len(listed.targets)} requested: " + ", ".join(f"{n} {what}" for what, n in warmed.outcomes.items()))
    if warmed.failed:
        more = warmed.outcomes["failed"] - len(warmed.failed)
        for target, why in warmed.reasons.items():
            typer.secho(f"failed: {target}: {why}", err=True, fg="red")
        if more:
            typer.secho(f"and {more} more", err=True, fg="red")
        raise typer.Exit(3)


app.add_typer(ttl.app, name="ttl")
app.add_typer(credentials.app, name="keys")
app.command()(credentials.revoke)
app.command()(setup.init)
app.command()(setup.schema)
app.command()(setup.openapi)


@app.command()
def audit(config: ConfigOption = None, admin_url: AdminUrlOption = None) -> None:
    """List overrides and purges, newest first, and who made them."""
    from gateway.cli.tables import events_table, show

    show(events_table(ask("/audit", config=config, admin_url=admin_url)["events"]))


async def _explain_dry(
    read: Loaded, method: str, target: str, fields: list[tuple[str, str]], content: str | None
) -> Trace:
    from gateway.app.gateway import create_app

    gateway = create_app(memory_only(read))  # which is not started: it opens no connection
    try:
        return await gateway.explainer(running=False).explain(
            method,
            target,
            tuple((name.encode(), value.encode()) for name, value in fields),
            None if content is None else content.encode(),
        )
    finally:
        for upstream in gateway.upstreams.values():
            await upstream.aclose()


def main() -> None:
    """The console script. An error that the operator can fix is one message, without a traceback; its exit status is 2.

    The current folder is on the import path, for `include`, as with `python -m gateway` and `uvicorn`.
    """
    if (here := os.getcwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        app()
    except ConfigError as error:
        for warning in error.warnings:
            typer.secho(f"warning: {warning}", err=True, fg="yellow")
        count = counted(len(error.problems), "problem")
        typer.secho(f"The configuration is refused ({count}):", err=True, fg="red")
        for problem in error.problems:
            typer.echo(folded(f"  {problem}"), err=True)
        sys.exit(2)
    except GatewayError as error:
        typer.secho(str(error), err=True, fg="red")
        sys.exit(2)

"""The commands below `gateway ttl`: what each TTL would do, and live overrides."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.options import AdminUrlOption, ConfigOption, ask, loaded, operator
from gateway.config.names import did_you_mean
from gateway.errors import OrderError

if TYPE_CHECKING:
    from gateway.config.models import Config


app = typer.Typer(help="Show TTL advice and manage live overrides.", no_args_is_help=True, rich_markup_mode="markdown")


@app.command()
def advise(
    route: Annotated[str | None, typer.Argument(help="Show one route, with all candidate TTLs.")] = None,
    max_outdated: Annotated[
        str | None, typer.Option(help="Maximum share of outdated responses, such as 1%.", show_default=False)
    ] = None,
    max_upstream: Annotated[
        str | None, typer.Option(help="Maximum upstream request rate, such as 50/s.", show_default=False)
    ] = None,
    log: Annotated[Path | None, typer.Option(help="Use this access log instead of a running gateway.")] = None,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    admin_url: AdminUrlOption = None,
) -> None:
    """Estimate hit ratio, upstream load and share of outdated responses for each TTL, and which TTL meets a target.

    The figures come from the admin listener (--admin-url, else GATEWAY_ADMIN_URL, else `admin_listen` of the
    configuration; the token is GATEWAY_ADMIN_TOKEN) or from an access log. The default target is --max-outdated 1%.
    """
    import msgspec

    from gateway.advisor.advice import Advice
    from gateway.cli.tables import show
    from gateway.cli.ttl_report import advice_of_log, ladder_table, parse_rate, parse_share, report

    outdated = parse_share(max_outdated) if max_outdated is not None else None
    upstream = parse_rate(max_upstream, "--max-upstream") if max_upstream is not None else None
    if outdated is None and upstream is None:
        outdated = 0.01
    read = loaded(config).config if log is not None else None
    if read is not None and log is not None:
        wholes = [name for name, each in read.routes.items() if each.parts]
        found = [each for each in advice_of_log(log, _ttls(read)) if each.route not in wholes]
    else:
        found = msgspec.convert(ask("/advice", config=config, admin_url=admin_url)["routes"], list[Advice])
    chosen = [each for each in found if route in (None, each.route)]
    if not chosen:
        if route is not None:
            known = list(read.routes) if read is not None else _known_routes(config, admin_url)
            _refuse_unknown(route, [*known, *(each.route for each in found)])
        typer.secho(_why_nothing(route, [each.route for each in found]), err=True, fg="yellow")
        raise typer.Exit(3)
    if as_json:
        typer.echo(msgspec.json.encode(chosen).decode())
        return
    for line in report(chosen, max_outdated=outdated, max_upstream=upstream):
        typer.echo(line)
    if route is not None:
        typer.echo()
        show(ladder_table(chosen[0]))


def _known_routes(config: Path | None, admin_url: str | None) -> list[str]:
    return [each["name"] for each in ask("/routes", config=config, admin_url=admin_url)["routes"]]


def _refuse_unknown(route: str, known: list[str]) -> None:
    """Raises OrderError if it is neither a route nor an aggregate whose parts are routes."""
    wholes = {name.rpartition(".")[0] for name in known if "." in name}
    if route not in known and route not in wholes:
        hint = did_you_mean(route, known) or f"; there are: {', '.join(known) or 'none'}"
        raise OrderError(f"there is no route {route}{hint}")


def _why_nothing(route: str | None, seen: list[str]) -> str:
    parts = [name for name in seen if name.rpartition(".")[0] == route]
    if parts:
        return f"{route} is an aggregate; each of its parts has its own TTL: {', '.join(parts)}."
    return f"Nothing was seen of {route or 'any route'} so far (seen: {', '.join(seen) or 'none yet'})."


RouteArgument = Annotated[
    str, typer.Argument(help="The route name; home.offers for a part, module.function for a @cached handler.")
]
SettingOption = Annotated[
    str, typer.Option(help="ttl, stale_while_revalidate, stale_if_error, negative_ttl or client_ttl.")
]


@app.command("set")
def set_ttl(
    route: RouteArgument,
    value: Annotated[str, typer.Argument(help="A duration such as 10s, or origin.")],
    lasts: Annotated[str, typer.Option("--for", help="How long the override is in force; at most 7d.")] = "1h",
    setting: SettingOption = "ttl",
    config: ConfigOption = None,
    admin_url: AdminUrlOption = None,
) -> None:
    """Set a live override. It applies on every worker and replica within a second, and expires on its own.

    It takes precedence over file and environment, and applies to stored entries too.
    """
    from gateway.config.overrides import instant

    order = {"route": route, "setting": setting, "value": value, "for": lasts, "by": operator()}
    made = ask("/overrides", order, config=config, admin_url=admin_url)
    typer.echo(f"{route}.{setting} is {value} until {instant(made['until'])}.")


@app.command("reset")
def reset_ttl(
    route: RouteArgument, setting: SettingOption = "ttl", config: ConfigOption = None, admin_url: AdminUrlOption = None
) -> None:
    """Remove a live override before it expires."""
    from urllib.parse import quote

    place = f"/overrides/{quote(route, safe='')}/{quote(setting, safe='')}?by={quote(operator())}"
    ask(place, method="DELETE", config=config, admin_url=admin_url)
    typer.echo(f"The override of {route}.{setting} has ended.")


@app.command("list")
def list_ttls(config: ConfigOption = None, admin_url: AdminUrlOption = None) -> None:
    """List live overrides, who set them and when they expire."""
    from gateway.cli.tables import overrides_table, show

    show(overrides_table(ask("/overrides", config=config, admin_url=admin_url)["overrides"]))


def _ttls(config: Config) -> dict[str, float | None]:
    return {
        name: None if isinstance(route.ttl, str) else route.ttl.total_seconds() for name, route in config.routes.items()
    }

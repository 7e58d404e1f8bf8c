"""The commands for API keys (`gateway keys`), `gateway revoke`, and what `gateway check` says about keys.

A key is made here, and shown once: the gateway gets its SHA-256.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.options import AdminUrlOption, ConfigOption, ask, operator, show_report
from gateway.errors import ConfigError, ConfigProblem, OrderError

if TYPE_CHECKING:
    from gateway.config.models import Config

app = typer.Typer(help="Create, list, rotate and revoke API keys.", no_args_is_help=True, rich_markup_mode="markdown")
OwnerOption = Annotated[str, typer.Option(help="Who has the key; the claim `sub`. Default: the key's ID.")]
KeyArgument = Annotated[str, typer.Argument(help="The key's ID, or the beginning of it.", show_default=False)]


@app.command()
def create(
    owner: OwnerOption = "",
    plan: Annotated[str, typer.Option(help="The claim `plan`.")] = "",
    scope: Annotated[list[str] | None, typer.Option(help="A scope; repeatable.")] = None,
    expires: Annotated[
        str | None, typer.Option(help="When it ends: a date such as 2027-01-31, or a duration such as 90d.")
    ] = None,
    identity: Annotated[str, typer.Option(help="The identity with `keys: redis`, if there are several.")] = "",
    entry: Annotated[
        bool, typer.Option("--entry", help="Ask no gateway, and print an entry for a file of keys (`keys: file:PATH`).")
    ] = False,
    config: ConfigOption = None,
    admin_url: AdminUrlOption = None,
) -> None:
    """Create an API key, and print it: it is shown once, and can't be found out later.

    Standard output has the key alone; with --entry, it has the entry, and the key is on standard error. Exit status: 0
    if the key is accepted by every live worker, 3 if some have not confirmed it yet, 2 if it was refused.
    """
    from gateway.identity.api_keys import digest_of, new_key

    key = new_key()
    digest = digest_of(key.encode())
    if entry:
        typer.secho(f"The key, shown once: {key}", err=True)
        typer.echo(_entry(digest, owner, plan, scope or [], expires))
        return
    order = {
        "sha256": digest,
        "identity": identity,
        "owner": owner,
        "plan": plan,
        "scopes": scope or [],
        "expires": expires,
        "by": operator(),
    }
    made = ask("/keys", order, config=config, admin_url=admin_url)
    (shown,) = made["keys"]
    typer.echo(key)
    typer.secho(f"The key {shown['id']} of {shown['identity']} is shown once. {_ends(shown)}", err=True)
    _report(made)


def _entry(digest: str, owner: str, plan: str, scopes: list[str], expires: str | None) -> str:
    """An item of the list `keys`. Raises OrderError."""
    from datetime import UTC, datetime

    import yaml

    from gateway.config.types import parse_duration
    from gateway.identity.api_keys import checked_scopes, checked_text, parse_instant

    item: dict[str, Any] = {"sha256": digest}
    try:
        item |= {name: checked_text(name, text) for name, text in (("owner", owner), ("plan", plan)) if text}
        item |= {"scopes": [*checked_scopes([*scopes])]} if scopes else {}
        if expires is not None:
            try:
                end = datetime.now(UTC) + parse_duration(expires)
            except ValueError:
                end = datetime.fromtimestamp(parse_instant(expires), UTC)
            item["expires"] = end.strftime("%Y-%m-%dT%H:%M:%SZ")
    except ValueError as error:
        raise OrderError(str(error)) from None
    text: str = yaml.safe_dump([item], sort_keys=False, allow_unicode=True)
    return "".join(f"  {line}\n" for line in text.splitlines()).rstrip("\n")


@app.command("list")
def list_keys(config: ConfigOption = None, admin_url: AdminUrlOption = None) -> None:
    """List API keys, the latest first; those that ended in the last 30 days too."""
    from gateway.cli.tables import keys_table, show

    show(keys_table(ask("/keys", config=config, admin_url=admin_url)["keys"]))


@app.command()
def rotate(
    key: KeyArgument,
    overlap: Annotated[str, typer.Option(help="How long the old key is still accepted.")] = "24h",
    config: ConfigOption = None,
    admin_url: AdminUrlOption = None,
) -> None:
    """Create a key in the place of another, with all that it has, and print it; the old one ends after the overlap.

    A key with an end is replaced by one that lives as long. Exit status as of `create`.
    """
    from gateway.identity.api_keys import digest_of, new_key

    fresh = new_key()
    order = {"sha256": digest_of(fresh.encode()), "overlap": overlap, "by": operator()}
    made = ask(f"/keys/{_quoted(key)}/rotate", order, config=config, admin_url=admin_url)
    new, old = made["keys"]
    typer.echo(fresh)
    typer.secho(f"The key {new['id']} of {new['identity']} is shown once. {_ends(new)}", err=True)
    typer.secho(f"The key {old['id']} is still accepted. {_ends(old)}", err=True)
    _report(made)


@app.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(help="The key's ID, or the beginning of it.", show_default=False)] = "",
    owner: Annotated[str, typer.Option(help="Revoke all keys of this owner.")] = "",
    config: ConfigOption = None,
    admin_url: AdminUrlOption = None,
) -> None:
    """Revoke an API key, or all keys of an owner.

    Exit status: 0 if it is refused by every live worker, 3 if some have not confirmed it yet, 2 if nothing was revoked.
    """
    if bool(key) == bool(owner):
        raise OrderError("name a key by its ID, or an owner by --owner")
    by = f"by={_quoted(operator())}"
    place = f"/keys/{_quoted(key)}?{by}" if key else f"/keys?owner={_quoted(owner)}&{by}"
    made = ask(place, method="DELETE", config=config, admin_url=admin_url)
    typer.echo(f"Revoked: {', '.join(each['id'] for each in made['keys'])}.")
    _report(made)


def revoke(
    sub: Annotated[str, typer.Option(help="Tokens of this subject.")] = "",
    jti: Annotated[str, typer.Option(help="The token of this ID.")] = "",
    client: Annotated[str, typer.Option(help="Tokens of this client (`client_id`, `azp` or `cid`).")] = "",
    issued_before: Annotated[
        str | None,
        typer.Option(
            help="Tokens issued before this date, such as 2026-11-29T12:00:00Z, or `now`.", show_default=False
        ),
    ] = None,
    issuer: Annotated[str, typer.Option(help="Only tokens of this identity.")] = "",
    config: ConfigOption = None,
    admin_url: AdminUrlOption = None,
) -> None:
    """Revoke tokens, in all workers: of a subject, a client, or all that were issued before an instant.

    Without --issued-before that is now, and the `leeway` of the issuer: its clock may be ahead by that. API keys are
    revoked by `gateway keys revoke`. Exit status: 0 if every live worker has confirmed, 3 if some have not yet, 2 if
    nothing was revoked.
    """
    from gateway.config.overrides import instant

    named = {name: text for name, text in (("sub", sub), ("jti", jti), ("client", client)) if text}
    if len(named) > 1 or not (named or issued_before):
        raise OrderError("name what is revoked: one of --sub, --jti and --client, or --issued-before")
    order = {**named, "issuer": issuer, "issued_before": issued_before, "by": operator()}
    made = ask("/revocations", order, config=config, admin_url=admin_url)
    what = f"Tokens of this {next(iter(named))}" if named else "All tokens"
    before = instant(made["revocation"]["issued_before"])
    typer.echo(f"{what}{f' of {issuer}' if issuer else ''} that were issued before {before} are refused.")
    _report(made)


def _quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")


def _ends(key: Mapping[str, Any]) -> str:
    from gateway.config.overrides import instant

    return f"It ends at {instant(key['expires'])}." if key["expires"] is not None else "It does not end."


def _report(made: Mapping[str, Any]) -> None:
    """Print how far a change is in force, and for how long. Raises Exit with status 3 where it isn't certain to be in
    all workers."""
    if not made["kept"]:
        typer.secho(
            "It ends with the gateway: set redis_dir, or redis_url to a Redis that keeps it.", err=True, fg="yellow"
        )
    show_report(made, err=True)


# --- what `gateway check` says ---


def refused_keys(config: Config) -> list[ConfigProblem]:
    """What is wrong with the files of API keys."""
    from gateway.config.yaml_document import read_document
    from gateway.identity.api_keys import keys_of

    problems = []
    for name, issuer in config.identity.items():
        if issuer.keys is not None and issuer.keys.startswith("file:"):
            try:
                keys_of(name, read_document(Path(issuer.keys.removeprefix("file:"))))
            except ConfigError as error:
                problems += error.problems
    return problems


def risks(config: Config) -> list[str]:
    """Why the Redis that keeps API keys may lose them, if it can be reached."""
    if config.redis_url == "embedded" or not any(each.keys == "redis" for each in config.identity.values()):
        return []
    from gateway.cache.redis.connection import connect
    from gateway.cache.redis.errors import UNANSWERED, reason_of, risks_of_loss

    async def asked() -> list[str]:
        client = connect(config.redis_url, 1.0)
        try:
            return [f"API keys are kept in a Redis that may lose them: {risk}" for risk in await risks_of_loss(client)]
        except UNANSWERED as error:
            return [f"whether Redis keeps API keys can't be checked from here: {reason_of(error).text}"]
        finally:
            await client.aclose()

    return asyncio.run(asked())

"""Shared by several commands: finding the configuration, parsing headers, and requests to the admin listener.

Decides where a command finds its configuration and the admin listener, and how it reports a failure to connect to it.
"""

from __future__ import annotations

import getpass
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.errors import ConfigError, GatewayError, OrderError

if TYPE_CHECKING:
    from gateway.config.loader import AppSource, Loaded
    from gateway.config.models import Config
    from gateway.upstreams.httpx_api import httpx


DEFAULT_FILES = (Path("gateway.yaml"), Path("config/gateway.yaml"))

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="The YAML file. Default: GATEWAY_CONFIG, else gateway.yaml or config/gateway.yaml, if present.",
        show_default=False,
    ),
]
AdminUrlOption = Annotated[
    str | None,
    typer.Option("--admin-url", help="The admin listener: a URL, host:port or unix:/path.", show_default=False),
]


def found(path: Path | None) -> Path | None:
    """The configuration file: the given one, that of GATEWAY_CONFIG (also from `.env`), or a default one that exists.
    Raises ConfigError where `.env` can't be read."""
    if path is not None:
        return path
    from gateway.config.environment import CONFIG_FILE, known_variables

    if named := known_variables(Path(".env"), os.environ).get(CONFIG_FILE):
        return Path(named)
    return next((usual for usual in DEFAULT_FILES if usual.exists()), None)


AppArgument = Annotated[
    str | None,
    typer.Argument(help="A FastAPI app as `module:attribute`, such as main:app; without it, the configuration's."),
]


def app_source(place: str, config: Path | None, options: Mapping[str, str | int] | None = None) -> AppSource:
    """The app at `place`; `config` is the configuration file of an app whose code names none. Raises OrderError."""
    from gateway.config.loader import AppSource

    if ":" not in place:
        raise OrderError(f"{place}: name the app as module:attribute, such as main:app")
    file = found(config)
    return AppSource(place, str(file) if file is not None else None, options or {})


def loaded_app(app: str, config: Path | None) -> Loaded:
    """The configuration of an app. Raises ConfigError, OrderError."""
    from gateway.server.served_app import configuration_of

    return configuration_of(app_source(app, config))


def nothing_served(path: Path | None, config: Config) -> str | None:
    """The reason why the gateway would have nothing to serve; None if it has."""
    if config.routes or config.include:
        return None
    file = found(path)
    if file is None:
        return WHAT_TO_DO
    return f"nothing to serve: {file} has neither `routes` nor `include`"


WHAT_TO_DO = """no configuration file, and no variable sets a route.
Neither -c nor GATEWAY_CONFIG names a file, and gateway.yaml and config/gateway.yaml don't exist here. To begin:

  gateway init http://localhost:3000     writes a gateway.yaml for the API at that address
  gateway init --openapi openapi.json    writes one with a route for each path of an OpenAPI document
  gateway demo                           runs a slow API and the gateway in front of it"""


def memory_only(read: Loaded) -> Loaded:
    """The same without a shared tier, to make an app that is not started."""
    return replace(read, config=read.config.model_copy(update={"redis_url": "none"}))


def loaded(path: Path | None, options: dict[str, str] | None = None) -> Loaded:
    """The configuration; prints its warnings. Raises ConfigError."""
    from gateway.config.loader import load

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
    """The response of a running gateway's admin listener. Raises AdminError, ConfigError."""
    return request_admin(path, order, method=method, at=admin_address(config, admin_url))


def show_report(report: Mapping[str, Any], *, err: bool = False) -> None:
    """Print how many workers have confirmed a purge or another change, to standard error with `err`. Where it isn't
    certain that all have, print why, and raise Exit with status 3."""
    have = "worker has" if report["workers"] == 1 else "workers have"
    took = f"{report['seconds'] * 1000:.0f} ms"
    typer.echo(f"{report['confirmed']} of {report['workers']} {have} confirmed, in {took}.", err=err)
    if not report["complete"]:
        typer.secho(report["detail"], err=True, fg="yellow")
        raise typer.Exit(3)


def folded(text: str) -> str:
    """A message wrapped for the terminal; unchanged if standard error isn't a terminal, or if the message has lines of
    its own."""
    if not sys.stderr.isatty() or "\n" in text.strip():
        return text
    width = min(100, shutil.get_terminal_size().columns)
    return textwrap.fill(text, width, subsequent_indent="      ", break_long_words=False, break_on_hyphens=False)


def operator() -> str:
    """The name of the user, for the audit list."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def read_header(text: str) -> tuple[str, str]:
    """A typed header, `Name: value`; the name in lower case. Raises typer.BadParameter."""
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise typer.BadParameter(f"{text!r} isn't a valid header; expected -H 'Name: value'")
    return name.strip().lower(), value.strip()


def read_data(text: str | None) -> str | None:
    """A typed body: itself, or with `@` before its name the content of a file. Raises typer.BadParameter."""
    if text is None or not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"--data {text}: the file can't be read: {error}") from None


ANSWER_SECONDS = 10
_ELSEWHERE = (404, 405)


class AdminError(GatewayError):
    """The admin listener can't be reached, or refused the request; the message says what to do."""


@dataclass(frozen=True)
class AdminAddress:
    """The address of the admin listener (`http://host:port` or `unix:/path`), the source of that setting, and the
    token."""

    url: str
    source: str
    token: str | None = field(default=None, repr=False)

    @property
    def socket(self) -> str | None:
        return self.url.removeprefix("unix:") if self.url.startswith("unix:") else None

    @property
    def base(self) -> str:
        return "http://localhost" if self.socket is not None else self.url

    def client(self) -> httpx.Client:
        from gateway.upstreams.httpx_api import httpx

        transport = httpx.HTTPTransport(uds=self.socket) if self.socket is not None else None
        return httpx.Client(trust_env=False, timeout=ANSWER_SECONDS, transport=transport)


def admin_address(config: Path | None = None, url: str | None = None) -> AdminAddress:
    """The address that `url` (of --admin-url) names, else GATEWAY_ADMIN_URL of the environment or `.env`, else
    `admin_listen` as `serve` reads it from `config` or the usual file. The token is GATEWAY_ADMIN_TOKEN, likewise.

    Raises AdminError, OrderError where the file of the token can't be read, and ConfigError where a file that was named
    can't be.
    """
    from gateway.config.loader import AdminSettings, admin_settings

    try:
        settings = admin_settings(found(config))
    except ConfigError:
        if config is not None:
            raise
        try:
            settings = admin_settings(None)
        except ConfigError:
            settings = AdminSettings()
    if url is not None:
        return AdminAddress(_url(url), "--admin-url", settings.token)
    if settings.url is not None:
        return AdminAddress(_url(settings.url), "GATEWAY_ADMIN_URL", settings.token)
    if settings.listen == "none":
        raise AdminError(f"admin_listen is none ({settings.source}): there is no admin listener to connect to")
    return AdminAddress(_url(settings.listen), f"admin_listen, {settings.source}", settings.token)


def _url(text: str) -> str:
    """`host:port` and `unix:/path` as `admin_listen` has them, or a URL. An address for all interfaces is this
    machine's own."""
    text = text.strip().rstrip("/")
    if text.startswith("unix:"):
        return "unix:/" + text.removeprefix("unix:").lstrip("/")
    scheme, separator, rest = text.rpartition("://")
    for everywhere, loopback in (("0.0.0.0:", "127.0.0.1:"), ("[::]:", "[::1]:"), (":::", "[::1]:")):
        rest = loopback + rest.removeprefix(everywhere) if rest.startswith(everywhere) else rest
    return f"{scheme if separator else 'http'}://{rest}"


def request_admin(
    path: str, order: dict[str, Any] | None = None, *, method: str | None = None, at: AdminAddress | None = None
) -> dict[str, Any]:
    """POST `order` to the admin listener; GET if there is none. `method` is any other. Raises AdminError."""
    from gateway.upstreams.httpx_api import httpx

    at = at or admin_address()
    headers = {"authorization": f"Bearer {at.token}"} if at.token else {}
    try:
        with at.client() as client:
            verb = method or ("GET" if order is None else "POST")
            response = client.request(verb, at.base + path, json=order, headers=headers)
    except httpx.TimeoutException:
        raise AdminError(f"{at.url} ({at.source}) did not answer within {ANSWER_SECONDS} s") from None
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise AdminError(
            f"can't connect to {at.url} ({_reason(error)}), set by {at.source}; set GATEWAY_ADMIN_URL or --admin-url "
            "to the gateway's admin_listen"
        ) from None
    body = _json(response, at)
    if response.status_code == 401:
        missing, refused = (
            "requires a token: set GATEWAY_ADMIN_TOKEN to",
            "refused this GATEWAY_ADMIN_TOKEN; set it to",
        )
        raise AdminError(f"the gateway at {at.url} {refused if at.token else missing} the one that it was started with")
    if response.status_code >= 400:
        raise AdminError(str(body.get("detail", f"it returned {response.status_code}")))
    return body


def _reason(error: Exception) -> str:
    text = str(error)
    return text.partition("] ")[2] or text


def _no_listener(at: AdminAddress) -> AdminError:
    return AdminError(
        f"{at.url} ({at.source}) isn't an admin listener; is it the public port? Set GATEWAY_ADMIN_URL or "
        "--admin-url to the gateway's admin_listen, 127.0.0.1:9000 by default"
    )


def _json(response: httpx.Response, at: AdminAddress) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        if response.status_code in _ELSEWHERE:
            raise _no_listener(at) from None
        raise AdminError(f"{response.url} isn't a gateway's admin listener: the response isn't JSON") from None
    if not isinstance(body, dict):
        raise AdminError(f"{response.url} isn't a gateway's admin listener")
    if response.status_code in _ELSEWHERE and body.get("detail") in (None, "Not Found", "Method Not Allowed"):
        raise _no_listener(at)
    return body

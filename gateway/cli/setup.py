"""`gateway init`, `schema` and `openapi`: files to begin with, and files for other tools."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.options import AppArgument, ConfigOption, app_source, loaded, memory_only
from gateway.config.names import counted
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from gateway.config.loader import AppSource
    from gateway.importers.draft import Draft

FETCH_SECONDS = 30
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="The file to write. Default: standard output.", show_default=False)
]


def init(
    upstream: Annotated[
        list[str] | None,
        typer.Argument(help="The URLs of APIs, each as URL or NAME=URL, such as catalog=http://localhost:3000."),
    ] = None,
    openapi: Annotated[
        list[str] | None,
        typer.Option(help="An OpenAPI document of an API, a URL or a file: its paths become routes; repeatable."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The configuration to write.")] = Path("gateway.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
) -> None:
    """Write a commented configuration for given APIs, `.env.example`, and the configuration's JSON Schema for editors.

    With --openapi, each path of the document becomes a route: a GET without credentials gets a ttl, one with
    credentials follows the API's own headers. The nth UPSTREAM is the address of the nth document's API;
    without one it is the document's first server.
    """
    from gateway.importers.draft import SCHEMA_FILE, as_yaml_text, environment_example

    draft = _drafted(upstream or [], openapi or [])
    _drop_what_is_refused(draft)
    folder = output.parent
    files = {
        output: as_yaml_text(draft),
        folder / ".env.example": environment_example(draft),
        folder / SCHEMA_FILE: _schema_text(),
    }
    if output.exists() and not force:
        raise typer.BadParameter(f"{output} exists; --force replaces it, --output names another file")
    kept = [path for path in files if path.exists() and not force and path.name != SCHEMA_FILE]
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        if path not in kept:
            path.write_text(text, encoding="utf-8")
    _report(draft, output, [path for path in files if path not in kept], kept)


def _report(draft: Draft, output: Path, written: list[Path], kept: list[Path]) -> None:
    from gateway.importers.draft import one_line

    counts = f"{counted(len(draft.routes), 'route')} of {counted(len(draft.upstreams), 'upstream')}"
    typer.echo(f"Wrote {', '.join(map(str, written))}: {counts}.")
    for path in kept:
        typer.echo(f"{path} exists and stays as it is.")
    for note in draft.notes:
        typer.secho(f"left out: {one_line(note)}", err=True, fg="yellow")
    usual = output in (Path("gateway.yaml"), Path("config/gateway.yaml"))
    option = "" if usual else f" -c {output}"
    typer.echo(
        f"\nNext:\n  gateway routes{option}   lists the routes\n  gateway serve{option}    serves them\n"
        f"  curl -i http://127.0.0.1:8000{_example(draft)}"
    )


def _example(draft: Draft) -> str:
    """A path to ask for: of the first route without parameters, if there is one."""
    paths = [str(route.settings["path"]) for route in draft.routes]
    plain = [path for path in paths if "{" not in path]
    return (plain or [path.partition("{")[0] for path in paths])[0]


def _drafted(upstreams: list[str], documents: list[str]) -> Draft:
    from gateway.importers.draft import Draft, ImportFailed, draft_of
    from gateway.importers.openapi import add_document, parse_document

    if not upstreams and not documents:
        raise typer.BadParameter("name the URL of an API, such as http://localhost:3000, or --openapi")
    if not documents:
        return draft_of(upstreams)
    draft = Draft()
    rest = upstreams[len(documents) :]
    for number, source in enumerate(documents):
        document = parse_document(_text_of(source), source)
        given = upstreams[number] if number < len(upstreams) else None
        add_document(draft, document, source, given, prefixed=len(documents) + len(rest) > 1)
    if rest:
        raise ImportFailed(f"{rest[0]} has no document: give each UPSTREAM its --openapi, or none of them")
    if not draft.routes:
        raise ImportFailed(
            f"{', '.join(documents)}: no path can be a route: {'; '.join(draft.notes) or 'there is none'}"
        )
    return draft


def _text_of(source: str) -> str:
    """The document at a URL, or in a file. Raises ImportFailed."""
    from gateway.importers.draft import ImportFailed

    if not source.startswith(("http://", "https://")):
        try:
            return Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ImportFailed(
                f"{source} can't be read: {getattr(error, 'strerror', None) or 'it is not text'}"
            ) from None
    from gateway.upstreams.httpx_api import httpx

    try:
        response = httpx.get(source, timeout=FETCH_SECONDS, follow_redirects=True)
    except httpx.HTTPError as error:
        raise ImportFailed(f"{source} can't be fetched: {str(error) or type(error).__name__}") from None
    if not response.is_success:
        raise ImportFailed(f"{source} returned {response.status_code} {response.reason_phrase}")
    return response.text


def _drop_what_is_refused(draft: Draft) -> None:
    """A path that no route can have is left out, with the reason. Raises ConfigError for anything else."""
    from gateway.importers.draft import as_yaml_text

    while True:
        try:
            return _check_text(as_yaml_text(draft))
        except ConfigError as error:
            refused = {
                each.key.split(".")[1]: each.message for each in error.problems if each.key.startswith("routes.")
            }
            kept = [route for route in draft.routes if route.name not in refused]
            if not refused or not kept:
                raise ConfigError([replace(each, source="") for each in error.problems]) from None
            left_out = [route for route in draft.routes if route.name in refused]
            draft.notes += [_note(str(route.settings["path"]), refused[route.name]) for route in left_out]
            draft.routes = kept


def _note(path: str, message: str) -> str:
    return message if path in message else f"{path}: {message}"


def _check_text(text: str) -> None:
    import tempfile

    from gateway.config.loader import load

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gateway.yaml"
        path.write_text(text, encoding="utf-8")
        load(path, environ={}, dotenv=None)


def schema(output: OutputOption = None) -> None:
    """Print the JSON Schema of the configuration, with which editors complete and check `gateway.yaml`.

    An editor with yaml-language-server finds it by a first line of `# yaml-language-server: $schema=FILE`.
    """
    _write(_schema_text(), output)


def _schema_text() -> str:
    import json

    from gateway.config.json_schema import config_schema

    return json.dumps(config_schema(), indent=1, ensure_ascii=False) + "\n"


def openapi(app: AppArgument = None, config: ConfigOption = None, output: OutputOption = None) -> None:
    """Print the OpenAPI document of the gateway's routes, or of a FastAPI app, as JSON, without starting it."""
    import json

    from gateway.app.gateway import create_app

    if app is not None:
        document = _document_of(app_source(app, config))
    else:
        document = create_app(memory_only(loaded(config))).openapi()  # it is not started: it opens no connection
    _write(json.dumps(document, indent=2, ensure_ascii=False) + "\n", output)


def _document_of(app: AppSource) -> Any:
    """The OpenAPI document of an app. Raises ConfigError."""
    import json

    from gateway.cli.include_check import included_by

    found = included_by(app.file, app.place)
    if found.problems:
        raise ConfigError(found.problems)
    return json.loads(found.openapi)


def _write(text: str, output: Path | None) -> None:
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")

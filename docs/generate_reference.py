"""The reference pages of the documentation, made from what they describe: the configuration's models, the commands.

    python -m docs.generate_reference     writes docs/configuration.md, docs/commands.md and docs/gateway.schema.json
    (`make docs`)

A test holds that the pages are what this would write.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import typer
import yaml
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo
from typer.core import TyperArgument, TyperGroup

from gateway.cli.commands import app
from gateway.config.json_schema import config_schema, default_of, meanings
from gateway.config.models import Config, CorsConfig, LimitsConfig
from gateway.config.names import RENAMED
from gateway.config.route import RouteConfig
from gateway.config.types import parse_size, show_size
from gateway.config.upstream import UpstreamConfig

DOCS = Path(__file__).parent
Command = Any  # click's or typer's own copy of it, by typer's version

_NOTE = "<!-- Made by `make docs` from {source}; edit that. -->"

_CONFIGURATION = """# Configuration

One YAML file, overridden by `.env`, then by the environment. `gateway check` prints every setting in force and
its source.

`gateway init` writes a file to begin with. `gateway schema` prints the JSON Schema of the file, with which editors
complete and check it; it is also in [gateway.schema.json](gateway.schema.json).

## How a value is written

- a **duration** is a number and a unit: `250ms`, `30s`, `5m`, `1h`, `2d`; `0` needs no unit
- a **size** is a number and a unit: `512B`, `64KiB`, `256MiB`, `1GiB`; `0` needs no unit
- a **list** is YAML's, or in a variable `a,b` or `["a", "b"]`
- names of routes, upstreams and the like are lower-case words joined by `_`, such as `price_list`

A variable is the path of a setting in the file, in capitals, joined by two underscores:

```
GATEWAY_ROUTES__PRODUCT__TTL=10s          routes: {product: {ttl: 10s}}
GATEWAY_UPSTREAMS__CATALOG__URL=http://…  upstreams: {catalog: {url: http://…}}
GATEWAY_CORS__ALLOW_ORIGINS=https://a,https://b
GATEWAY_MEMORY=1GiB                       memory: 1GiB
```

An unknown key in the file is refused with the nearest known name; an unknown `GATEWAY_…` variable is a warning only,
since orchestrators set variables of their own. A changed TTL applies to stored entries: their freshness is
computed when they are read.

Four variables are not part of the file: `GATEWAY_CONFIG`, the file itself, where `-c` names none (default:
`gateway.yaml` or `config/gateway.yaml`, if present); `GATEWAY_ADMIN_TOKEN`, the token for the admin listener
(also in `.env`; or in the file that `GATEWAY_ADMIN_TOKEN_FILE` names); `GATEWAY_ADMIN_URL`, that listener's address for
commands (default: `http://127.0.0.1:9000`); and `GATEWAY_URL`, the gateway's public address for `gateway warm`
(default: `http://127.0.0.1:8000`).
"""

_DEPRECATED = """## Deprecated names

The gateway still accepts these names in the file, in `.env`, in environment variables and in Python, and logs a warning
with the place. `gateway check` prints the warnings. A file that sets both names is refused.

| deprecated | use |
|---|---|"""

_COMMANDS = """# Commands

`gateway COMMAND`, or `python -m gateway COMMAND`. Exit status 0 is success; 2 is an error
that the operator can fix, named in the message.
"""


# The configuration ----------------------------------------------------------------------------------------


def configuration_page() -> str:
    sections: list[tuple[str, str, type[BaseModel]]] = [
        ("The whole", "", Config),
        ("An upstream", "upstreams.NAME", UpstreamConfig),
        ("A route", "routes.NAME", RouteConfig),
        ("CORS", "cors", CorsConfig),
        ("Limits", "limits", LimitsConfig),
        *_further_models(),
    ]
    parts = [_NOTE.format(source="gateway/config/*.py"), _CONFIGURATION]
    parts += [_section(title, prefix, model) for title, prefix, model in sections]
    parts.append("\n".join([_DEPRECATED, *(f"| `{old}` | `{new}` |" for old, new in RENAMED.items())]))
    return "\n\n".join(part.strip() for part in parts) + "\n"


_TITLED = (Config, UpstreamConfig, RouteConfig, CorsConfig, LimitsConfig)


def _further_models() -> Iterator[tuple[str, str, type[BaseModel]]]:
    """Models that have no title of their own above, under the path that leads to them."""
    seen = set(_TITLED)
    waiting: list[tuple[str, type[BaseModel]]] = [
        ("", Config),
        ("upstreams.NAME", UpstreamConfig),
        ("routes.NAME", RouteConfig),
        ("cors", CorsConfig),
        ("limits", LimitsConfig),
    ]
    for prefix, model in waiting:  # grows while it is walked
        for name, field in model.model_fields.items():
            for inner, many in _models_in(field.annotation):
                if inner not in seen:
                    seen.add(inner)
                    path = ".".join(part for part in (prefix, name, "NAME" if many else "") if part)
                    waiting.append((path, inner))
                    yield f"`{path}`", path, inner


def _models_in(annotation: Any, many: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, many
    for inner in get_args(annotation):
        yield from _models_in(inner, many or get_origin(annotation) is dict)


def _section(title: str, prefix: str, model: type[BaseModel]) -> str:
    where = f"Under `{prefix}`. " if prefix else ""
    lines = [f"## {title}", "", where + " ".join((model.__doc__ or "").split()), ""]
    lines += ["| setting | value | default | meaning |", "|---|---|---|---|"]
    said = meanings(model)
    lines += [_row(name, field, said.get(name, "")) for name, field in model.model_fields.items()]
    return "\n".join(lines)


def _row(name: str, field: FieldInfo, meaning: str) -> str:
    cells = (f"`{name}`", _kind_of(field), _default(field), meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _kind_of(field: FieldInfo) -> str:
    return _kind(field.annotation, field.metadata)


def _kind(annotation: Any, metadata: list[Any]) -> str:
    """What a value may be, in an operator's words."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return _kind(inner, [*metadata, *more])
    if origin in (Union, UnionType):
        kinds = [_kind(each, metadata) for each in get_args(annotation) if each is not type(None)]
        return " or ".join(dict.fromkeys(kinds))
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(annotation))
    if origin is list:
        return "list"
    if origin is dict:
        return "mapping"
    return _plain_kind(annotation, metadata)


def _plain_kind(annotation: Any, metadata: list[Any]) -> str:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    if annotation is int and any(isinstance(each, BeforeValidator) and each.func is parse_size for each in metadata):
        return "size" + _range(metadata, show_size)
    words = {timedelta: "duration", bool: "`true` or `false`", int: "whole number", float: "number", str: "text"}
    return words.get(annotation, "text") + (_range(metadata, "{:,}".format) if annotation in (int, float) else "")


def _range(metadata: list[Any], show: Any) -> str:
    low = [each.ge for each in metadata if isinstance(each, annotated_types.Ge)]
    high = [each.le for each in metadata if isinstance(each, annotated_types.Le)]
    if low and high:
        return f", {show(low[-1])} to {show(high[-1])}"
    return f", at least {show(low[-1])}" if low and low[-1] else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "not set"
    if isinstance(value, BaseModel):
        return "see below"
    plain = default_of(field)
    text = yaml.safe_dump(plain, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return f"`{text.removesuffix(chr(10)).removesuffix(chr(10) + '...')}`"


# The commands ---------------------------------------------------------------------------------------------


def commands_page() -> str:
    parts = [_NOTE.format(source="gateway/cli/commands.py, credentials.py, setup.py and ttl.py"), _COMMANDS]
    parts += [_command(name, command) for name, command in commands()]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def commands() -> Iterator[tuple[str, Command]]:
    """Every command with its whole name, such as `gateway serve`."""
    yield from _commands_in(typer.main.get_command(app), "gateway")


def _commands_in(command: Command, name: str) -> Iterator[tuple[str, Command]]:
    if not isinstance(command, TyperGroup):
        yield name, command
        return
    for each, inner in command.commands.items():
        yield from _commands_in(inner, f"{name} {each}")


def _command(name: str, command: Command) -> str:
    arguments = [each for each in command.params if isinstance(each, TyperArgument)]
    options = [each for each in command.params if not isinstance(each, TyperArgument) and not each.hidden]
    usage = " ".join([name, *(_upper(each) for each in arguments)])
    lines = [f"## `{usage}`", "", _paragraphs(command.help or ""), ""]
    if command.params:
        lines += ["| | |", "|---|---|"]
        lines += [f"| `{_upper(each)}` | {each.help} |" for each in arguments]
        lines += [f"| {_names(each)} | {' '.join((each.help or '').split())} |" for each in options]
    return "\n".join(lines)


def _upper(argument: Command) -> str:
    return str(argument.name).upper()


def _names(option: Command) -> str:
    return ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def schema_file() -> str:
    return json.dumps(config_schema(), indent=1, ensure_ascii=False) + "\n"


PAGES = {
    "configuration.md": configuration_page,
    "commands.md": commands_page,
    "gateway.schema.json": schema_file,
}


def write(directory: Path = DOCS) -> None:
    """Write all the pages into `directory`."""
    for name, page in PAGES.items():
        (directory / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write()

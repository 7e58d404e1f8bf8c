"""How a value of the configuration is shown: as in YAML, not too long, and without what is secret."""

from __future__ import annotations

import re
from functools import lru_cache

import yaml

from .config_shape import choices, shape_at
from .document import Key, Value, shortened
from .targets import HIDDEN, is_credential

_SECRET_NAME = re.compile("token|secret|password|authorization", re.IGNORECASE)
# What may be meant to be one of a setting's choices (`authorization: forward`), and is no credential.
_MODE = re.compile("[a-z_]{1,12}")
# Up to the last @: a password with a slash in it is no valid URL, and is a password all the same.
_USER_INFO = re.compile(r"://\S*@")
_PARAMETER = re.compile(r"([?&]([^=&\s?]+)=)[^&\s]*")


def redact(key: Key, text: str) -> str:
    """`text`, a value of `key`, with `***` for what is secret: headers of upstreams, tokens, passwords, the
    credentials in a URL."""
    if _is_secret(key) and text not in ("{}", "null") and not (choices(shape_at(key)) and _MODE.fullmatch(text)):
        return "***"
    return without_credentials(text)


def without_credentials(text: str) -> str:
    """`text` with `***` for the passwords and for the credentials in the queries of the URLs in it."""
    return _PARAMETER.sub(_hidden, _USER_INFO.sub("://***@", text))


def _hidden(parameter: re.Match[str]) -> str:
    return parameter[1] + HIDDEN if is_credential(parameter[2]) else parameter[0]


def _is_secret(key: Key) -> bool:
    return bool(key and _SECRET_NAME.search(key[-1])) or (key[:1] == ("upstreams",) and "headers" in key[2:3])


def as_yaml(value: Value) -> str:
    """As YAML writes it in one line."""
    if isinstance(value, dict | list):
        return _dumped(value) if value else str(value)
    return _scalar(type(value).__name__, value)


@lru_cache(maxsize=10_000)
def _scalar(_: str, value: str | float | None) -> str:  # by type too: 1, 1.0 and True are equal
    return _dumped(value)


def _dumped(value: Value) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def shown(key: Key, value: Value) -> str:
    short = clipped(value)
    return redact(key, short if isinstance(short, str) and short.isprintable() else as_yaml(short))


def clipped(value: Value) -> Value:
    match value:
        case str():
            return shortened(value)
        case list():
            return [_clipped_item(item) for item in value[:20]] + (["…"] if len(value) > 20 else [])
        case dict():
            return {name: _clipped_item(item) for name, item in list(value.items())[:20]}
    return value


def _clipped_item(item: Value) -> Value:
    return "…" if isinstance(item, list | dict) else clipped(item)

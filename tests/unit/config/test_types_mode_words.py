"""Settings that read as something else: a word that means a mode is refused where a list of names stands."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from gateway.config.models import Config
from gateway.config.names import refuse_modes

MODES = ["all", "none", "any", "off", "ignore", "key", "*", "All", "NONE", True, False]
ROUTE: dict[str, Any] = {"path": "/a", "upstream": "api", "ttl": "1s"}
PART: dict[str, Any] = {"upstream": "api", "path": "/a", "ttl": "1s"}
WRITE = {
    "query": "leave query out for all parameters, write [] for none",
    "drop_query": "write [] to drop none",
    "vary": "leave vary out for accept and accept-language, write [] for none",
    "cookies": "write pass, ignore, or a list of cookies' names",
    "tags": "leave tags out for none",
    "allow": "leave allow out for all",
    "deny": "leave deny out for none",
    "allow_methods": "expected a list of methods, such as [GET, HEAD, POST]",
    "expose_headers": "list the headers, write [] for none",
    "allow_headers": "write '*' for all, [] for none",
}


def config_with(where: str, setting: str, value: object) -> Config:
    route = ROUTE
    if where == "route":
        route = {**ROUTE, setting: value}
    elif where == "part":
        route = {"path": "/a", "parts": {"one": {**PART, setting: value}}}
    settings = {"upstreams": {"api": {"url": "http://api.test"}}, "routes": {"a": route}}
    if where == "gateway":
        settings[setting] = value  # type: ignore[assignment]
    if where == "cors":
        settings["cors"] = {"allow_origins": ["https://a.test"], setting: value}
    return Config.model_validate(settings)


PLACES = [
    *(("route", setting) for setting in ("query", "drop_query", "vary", "cookies", "tags")),
    *(("part", setting) for setting in ("query", "vary", "cookies", "tags", "allow", "deny")),
    *(("cors", setting) for setting in ("allow_methods", "allow_headers", "expose_headers")),
    ("gateway", "drop_query"),
]


@pytest.mark.parametrize(("where", "setting"), PLACES)
@pytest.mark.parametrize("listed", [False, True], ids=["alone", "in a list"])
def test_a_word_that_means_a_mode_is_no_name(where: str, setting: str, listed: bool) -> None:
    for word in MODES:
        if listed and isinstance(word, bool):  # no text, as in any list
            continue
        if (setting, word) in (("cookies", "ignore"), ("allow_headers", "*")) and (word == "*" or not listed):
            continue
        if setting == "tags" and listed and str(word).lower() not in ("none", "*"):
            config_with(where, setting, [word])  # a tag is a word of the operator's own
            continue
        with pytest.raises(ValidationError) as raised:
            config_with(where, setting, [word] if listed else word)
        assert WRITE[setting] in str(raised.value), word


@pytest.mark.parametrize(
    "value", ["all, none", ["all", "any"], ["page", "none"], ["page", "*"], "page,*", ["page", "NONE"]]
)
def test_modes_beside_modes_or_beside_names_are_refused(value: object) -> None:
    with pytest.raises(ValidationError, match="is a mode, not a name"):
        config_with("route", "query", value)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("query", ["origin", "destination"]),
        ("query", "key,page"),
        ("query", []),
        ("drop_query", ["utm_*"]),
        ("vary", ["origin"]),
        ("vary", []),
        ("cookies", ["sid", "all"]),
        ("cookies", "pass"),
        ("tags", ["all", "products"]),
    ],
)
def test_names_are_names(setting: str, value: object) -> None:
    config = config_with("route", setting, value)
    expected = value.split(",") if isinstance(value, str) and "," in value else value
    assert getattr(config.routes["a"], setting) == expected


def test_what_is_no_list_is_left_to_who_reads_it() -> None:
    for value in (None, 7, {"a": 1}, [7, None], []):
        refuse_modes("query", value)


@pytest.mark.parametrize("method", ["get", "Post", "patch"])
def test_a_method_that_is_not_in_capitals_is_refused_with_what_to_write(method: str) -> None:
    with pytest.raises(ValidationError, match=f"write {method.upper()}"):
        config_with("cors", "allow_methods", ["GET", method])


@pytest.mark.parametrize("method", ["", "GET POST", "get/post"])
def test_what_is_no_method_is_refused(method: str) -> None:
    with pytest.raises(ValidationError, match="isn't a valid method"):
        config_with("cors", "allow_methods", ["GET", method])

"""Deprecated names of settings: accepted by every source, with a warning that names the place."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from gateway.app.gateway import create_app
from gateway.cli.commands import app
from gateway.config import names, overrides
from gateway.config.loader import effective
from gateway.config.models import Config
from gateway.config.names import RENAMED, current_name, nearest, refuse_modes
from gateway.config.overrides import Override, in_force
from gateway.config.schema import is_container, known_keys, shape_at
from gateway.config.upstream import UpstreamConfig
from gateway.errors import ConfigError
from gateway.routing.handler_settings import Arguments
from tests.support.settings import Load

FILE = """\
purge_blind: 7s
uncacheable_for: 9s
upstreams:
  shop:
    url: http://shop
    max_waiting: 5
    breaker_rest: 3s
"""


def test_every_new_name_is_a_setting_and_no_old_one_is() -> None:
    known = list(known_keys(Config, {"upstreams": {"a": {}}, "routes": {"a": {"parts": {"b": {}}}}}, ()))
    settings = {key[-1] for key in known}
    assert set(RENAMED.values()) <= settings
    assert not settings & set(RENAMED)
    assert not any(is_container(shape_at(key)) for key in known if key[-1] in RENAMED.values())


def test_a_file_with_old_names_is_read_and_each_is_a_warning_with_its_line(read: Load) -> None:
    loaded = read(FILE)
    shop = loaded.config.upstreams["shop"]
    assert loaded.config.purge_disconnect_grace == timedelta(seconds=7)
    assert loaded.config.hit_for_miss == timedelta(seconds=9)
    assert (shop.max_queue, shop.breaker_open_for) == (5, timedelta(seconds=3))
    assert loaded.warnings == (
        "gateway.yaml line 1: purge_blind is deprecated; use purge_disconnect_grace",
        "gateway.yaml line 2: uncacheable_for is deprecated; use hit_for_miss",
        "gateway.yaml line 6: upstreams.shop.max_waiting is deprecated; use max_queue",
        "gateway.yaml line 7: upstreams.shop.breaker_rest is deprecated; use breaker_open_for",
    )
    shown = {setting.key: setting for setting in effective(loaded)}
    assert shown["upstreams.shop.max_queue"].source == "gateway.yaml line 6"
    assert "upstreams.shop.max_waiting" not in shown


def test_a_wrong_value_of_an_old_name_is_reported_where_it_stands(read: Load) -> None:
    with pytest.raises(ConfigError) as caught:
        read(FILE.replace("max_waiting: 5", "max_waiting: many"))
    [problem] = caught.value.problems
    assert (problem.source, problem.key) == ("gateway.yaml line 6", "upstreams.shop.max_queue")


def test_a_route_may_have_the_name_of_an_old_setting(read: Load) -> None:
    loaded = read(
        "upstreams: {max_waiting: {url: 'http://a'}}\nroutes: {stop_delay: {path: /, upstream: max_waiting}}\n"
    )
    assert (list(loaded.config.upstreams), list(loaded.config.routes)) == (["max_waiting"], ["stop_delay"])
    assert loaded.warnings == ()


def test_an_old_name_where_the_setting_does_not_belong_is_unknown(read: Load) -> None:
    with pytest.raises(ConfigError, match=r"max_waiting: is unknown"):
        read("max_waiting: 5\n")


@pytest.mark.parametrize("old_first", [True, False])
def test_both_names_in_one_file_are_refused_with_both_lines(read: Load, old_first: bool) -> None:
    pair = ["purge_blind: 7s\n", "purge_disconnect_grace: 8s\n"]
    with pytest.raises(ConfigError) as caught:
        read("".join(pair if old_first else reversed(pair)))
    old, new = (1, 2) if old_first else (2, 1)
    [problem] = caught.value.problems
    assert (problem.source, problem.key) == (f"gateway.yaml line {new}", "purge_disconnect_grace")
    assert f"purge_blind (gateway.yaml line {old}) is its deprecated name" in problem.message


def test_variables_with_old_names_are_read_with_a_warning(read: Load) -> None:
    loaded = read(
        "upstreams: {shop: {url: 'http://shop'}, news: {url: 'http://news'}}\n",
        "# shared\n\nGATEWAY_UNCACHEABLE_FOR=4s\n",
        GATEWAY_UPSTREAMS__SHOP__MAX_WAITING="6",
        GATEWAY_UPSTREAMS__NEWS='{"breaker_rest": "8s"}',
        gateway_stop_delay="0s",
    )
    assert loaded.config.hit_for_miss == timedelta(seconds=4)
    assert loaded.config.shutdown_delay == timedelta()
    assert loaded.config.upstreams["shop"].max_queue == 6
    assert loaded.config.upstreams["news"].breaker_open_for == timedelta(seconds=8)
    assert sorted(loaded.warnings) == [
        ".env line 3: GATEWAY_UNCACHEABLE_FOR is deprecated; use GATEWAY_HIT_FOR_MISS",
        "environment: GATEWAY_UPSTREAMS__SHOP__MAX_WAITING is deprecated; use GATEWAY_UPSTREAMS__SHOP__MAX_QUEUE",
        "environment: gateway_stop_delay is deprecated; use GATEWAY_SHUTDOWN_DELAY",
        "environment: upstreams.news.breaker_rest in GATEWAY_UPSTREAMS__NEWS is deprecated; use breaker_open_for",
    ]


@pytest.mark.parametrize("in_file", ["purge_blind", "purge_disconnect_grace"])
@pytest.mark.parametrize("in_dotenv", ["PURGE_BLIND", "PURGE_DISCONNECT_GRACE"])
@pytest.mark.parametrize("in_environment", ["PURGE_BLIND", "PURGE_DISCONNECT_GRACE", None])
def test_sources_override_each_other_by_either_name(
    read: Load, in_file: str, in_dotenv: str, in_environment: str | None
) -> None:
    environ = {f"GATEWAY_{in_environment}": "3s"} if in_environment else {}
    loaded = read(f"{in_file}: 1s\n", f"GATEWAY_{in_dotenv}=2s\n", **environ)
    assert loaded.config.purge_disconnect_grace == timedelta(seconds=3 if in_environment else 2)
    kinds = [source.kind for source in loaded.sources["purge_disconnect_grace",]]
    assert kinds == [*(["environment"] if in_environment else []), "dotenv", "file"]


def test_both_names_in_one_dotenv_are_refused_with_both_lines(read: Load) -> None:
    with pytest.raises(ConfigError) as caught:
        read("", "GATEWAY_PURGE_DISCONNECT_GRACE=1s\nGATEWAY_PURGE_BLIND=2s\n")
    [problem] = caught.value.problems
    assert str(problem) == (
        ".env line 1 GATEWAY_PURGE_DISCONNECT_GRACE: purge_disconnect_grace: is set twice: "
        "purge_blind (.env line 2 GATEWAY_PURGE_BLIND) is its deprecated name; remove that one"
    )


def test_both_names_in_the_environment_are_refused(read: Load) -> None:
    with pytest.raises(ConfigError, match=r"is set twice.*environment GATEWAY_PURGE_BLIND"):
        read("", GATEWAY_PURGE_DISCONNECT_GRACE="1s", GATEWAY_PURGE_BLIND="1s")


def test_a_configuration_in_python_is_read_with_a_warning() -> None:
    with pytest.warns(FutureWarning, match="max_waiting is deprecated; use max_queue"):
        assert UpstreamConfig.model_validate({"url": "http://a", "max_waiting": 1}).max_queue == 1
    with pytest.warns(FutureWarning, match="purge_blind is deprecated; use purge_disconnect_grace"):
        create_app({"redis_url": "none", "purge_blind": "forever"})
    with pytest.raises(ValidationError, match="max_queue is set twice: max_waiting is its deprecated name"):
        UpstreamConfig.model_validate({"url": "http://a", "max_waiting": 1, "max_queue": 1})


def test_arguments_of_decorators_and_live_overrides_follow_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RENAMED, "fresh_for", "ttl")  # type: ignore[arg-type]
    with pytest.warns(FutureWarning, match="fresh_for is deprecated; use ttl"):
        assert Arguments.model_validate({"fresh_for": "3s"}).ttl == timedelta(seconds=3)
    stored = [
        Override(route="item", setting="fresh_for", value="10s", by="ops", at=2.0, until=9.0),
        Override(route="item", setting="ttl", value="20s", by="ops", at=1.0, until=9.0),
    ]
    assert [(key, each.setting, each.value) for key, each in in_force(stored, 5.0).items()] == [
        ("item.ttl", "ttl", "10s")
    ]


def test_check_prints_the_warnings_and_succeeds(read: Load) -> None:
    read(FILE + "routes: {item: {path: /item, upstream: shop}}\n")
    result = CliRunner().invoke(app, ["check"])
    assert result.exit_code == 0
    assert "warning: gateway.yaml line 1: purge_blind is deprecated; use purge_disconnect_grace" in result.stderr
    answer = json.loads(CliRunner().invoke(app, ["check", "--json"]).stdout)
    assert answer["valid"]
    assert "gateway.yaml line 1: purge_blind is deprecated; use purge_disconnect_grace" in answer["warnings"]


def test_a_name_is_current_unless_the_model_has_the_new_one() -> None:
    assert current_name("max_waiting", ("max_queue",)) == "max_queue"
    assert current_name("max_waiting", ("workers",)) == "max_waiting"
    assert names.RENAMED is RENAMED
    assert "max_waiting" not in overrides.SETTINGS


def test_a_variable_that_names_a_file_may_have_an_old_name(read: Load) -> None:
    Path("grace").write_text("7s\n")
    loaded = read("purge_blind: 1s\n", GATEWAY_PURGE_BLIND_FILE="grace")
    assert loaded.config.purge_disconnect_grace == timedelta(seconds=7)
    assert (
        "environment: GATEWAY_PURGE_BLIND_FILE is deprecated; use GATEWAY_PURGE_DISCONNECT_GRACE_FILE"
        in loaded.warnings
    )
    with pytest.raises(ConfigError, match=r"purge_blind_file .* is its deprecated name; remove that one"):
        read("", GATEWAY_PURGE_BLIND_FILE="grace", GATEWAY_PURGE_DISCONNECT_GRACE="1s")
    with pytest.raises(ConfigError, match=r"memory_file .* is the same setting; remove one"):
        read("", GATEWAY_MEMORY_FILE="grace", GATEWAY_MEMORY="1MiB")


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


def test_nearest_finds_a_misspelt_name_in_any_case() -> None:
    assert nearest("MEMROY", ["host", "memory"]) == "memory"


def test_nearest_finds_none_where_none_is_like_it() -> None:
    assert nearest("zzz", ["host", "memory"]) is None

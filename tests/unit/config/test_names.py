"""Deprecated names of settings: accepted by every source, with a warning that names the place."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from gateway.app.gateway import create_app
from gateway.cli.commands import app
from gateway.config import names, overrides
from gateway.config.loader import Loaded, effective, load
from gateway.config.models import Config
from gateway.config.names import RENAMED, current_name
from gateway.config.overrides import Override, in_force
from gateway.config.schema import is_container, known_keys, shape_at
from gateway.config.upstream import UpstreamConfig
from gateway.errors import ConfigError
from gateway.routing.handler_settings import Arguments

FILE = """\
purge_blind: 7s
uncacheable_for: 9s
upstreams:
  shop:
    url: http://shop
    max_waiting: 5
    breaker_rest: 3s
"""
Load = Callable[..., Loaded]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.chdir(tmp_path)

    def read(text: str, dotenv: str = "", **environ: str) -> Loaded:
        Path("gateway.yaml").write_text(text)
        Path(".env").write_text(dotenv)
        return load(Path("gateway.yaml"), environ=environ)

    return read


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

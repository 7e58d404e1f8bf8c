"""Settings from environment variables and dotenv: names, values, precedence, and what is warned of."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from gateway.config.environment import OTHER_VARIABLES, SettingSource
from gateway.config.loader import effective, load
from gateway.config.models import Config
from tests.support.settings import SHOP, Load, Refused, places, texts


def test_the_environment_overrides_dotenv_and_dotenv_the_file(read: Load) -> None:
    loaded = read("memory: 1MiB\n", dotenv="GATEWAY_MEMORY=2MiB\n", GATEWAY_MEMORY="3MiB")
    assert loaded.config.memory == 3 * 1024**2
    assert loaded.sources["memory",] == (
        SettingSource("environment", "environment GATEWAY_MEMORY", "3MiB"),
        SettingSource("dotenv", ".env GATEWAY_MEMORY", "2MiB"),
        SettingSource("file", "gateway.yaml line 1", "1MiB"),
    )


def test_a_variable_changes_one_field_of_an_entry(read: Load) -> None:
    loaded = read(SHOP, GATEWAY_ROUTES__PRODUCT__TTL="10s")
    product = loaded.config.routes["product"]
    assert (product.path, product.ttl) == ("/products/{id}", timedelta(seconds=10))


def test_a_variable_sets_a_field_that_the_file_does_not(read: Load) -> None:
    loaded = read(SHOP, GATEWAY_ROUTES__PRICE_LIST__STALE_IF_ERROR="1h")
    assert loaded.config.routes["price_list"].stale_if_error == timedelta(hours=1)


def test_names_of_variables_may_be_in_lower_case_and_capitals_win(read: Load) -> None:
    loaded = read(gateway_memory="1MiB", GATEWAY_MEMORY="2MiB", gateway_max_body="1KiB")
    assert (loaded.config.memory, loaded.config.max_body) == (2 * 1024**2, 1024)


def test_variables_of_others_are_left_alone(read: Load) -> None:
    loaded = read(MEMORY="1", MY_GATEWAY_MEMORY="1", GATEWAYS="1")
    assert (loaded.sources, loaded.warnings) == ({}, ())


def test_the_environment_is_this_process_s_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_REDIS_PREFIX", "here:")
    assert load(None, dotenv=None).config.redis_prefix == "here:"


def test_a_comma_list_is_a_list(read: Load) -> None:
    loaded = read(GATEWAY_CORS__ALLOW_ORIGINS="https://a, https://b")
    assert loaded.config.cors.allow_origins == ["https://a", "https://b"]


def test_a_json_list_is_a_list(read: Load) -> None:
    loaded = read(SHOP, GATEWAY_ROUTES__PRODUCT__QUERY='["a,b", "c"]', GATEWAY_DROP_QUERY="[]")
    assert loaded.config.routes["product"].query == ["a,b", "c"]
    assert loaded.config.drop_query == []


def test_a_pattern_in_brackets_is_no_json(read: Load) -> None:
    assert read(GATEWAY_DROP_QUERY="[a-z]*,b").config.drop_query == ["[a-z]*", "b"]


def test_a_json_object_is_merged_and_single_variables_go_over_it(read: Load) -> None:
    loaded = read(
        "cors: {max_age: 1h, allow_origins: [https://a]}",
        GATEWAY_CORS='{"max_age": "5m", "allow_methods": ["GET"]}',
        GATEWAY_CORS__MAX_AGE="6m",
    )
    cors = loaded.config.cors
    assert (cors.max_age, cors.allow_methods, cors.allow_origins) == (timedelta(minutes=6), ["GET"], ["https://a"])
    assert places(loaded, "cors", "max_age") == [
        "environment GATEWAY_CORS__MAX_AGE",
        "environment GATEWAY_CORS",
        "gateway.yaml line 1",
    ]


def test_an_empty_json_object_takes_nothing_away(read: Load) -> None:
    loaded = read(SHOP, GATEWAY_ROUTES="{}")
    assert set(loaded.config.routes) == {"product", "price_list"}


def test_a_variable_meets_a_header_that_the_file_writes_with_dashes(read: Load) -> None:
    loaded = read(SHOP, GATEWAY_UPSTREAMS__CATALOG__HEADERS__X_API_KEY="k-456")
    assert loaded.config.upstreams["catalog"].headers.sent == {"x-api-key": "k-456"}


def test_headers_in_json_keep_their_dashes(read: Load) -> None:
    loaded = read(SHOP, GATEWAY_UPSTREAMS__CATALOG__HEADERS='{"x-api-key": "k-456", "X-More": "1"}')
    assert loaded.config.upstreams["catalog"].headers.sent == {"x-api-key": "k-456", "x-more": "1"}
    assert len(loaded.sources["upstreams", "catalog", "headers", "X-Api-Key"]) == 2


@pytest.mark.parametrize("value", ["yes", '{"max_age": ', "[1]", '{"a":' * 5000])
def test_a_mapping_that_is_no_json_object_is_refused(refused: Refused, value: str) -> None:
    assert texts(refused("", GATEWAY_CORS=value)) == [
        'environment GATEWAY_CORS: cors: must be a JSON object such as {"name": "value"}; or set GATEWAY_CORS__…=…'
    ]


def test_a_list_that_begins_as_json_and_is_none_is_refused(refused: Refused) -> None:
    assert texts(refused("", GATEWAY_INCLUDE='["a:b"')) == [
        'environment GATEWAY_INCLUDE: include: is not a valid JSON list; expected ["a", "b"] or a,b'
    ]


def test_a_variable_hides_no_wrong_value_above_it(refused: Refused) -> None:
    assert texts(refused("cors: 5\n", GATEWAY_CORS__MAX_AGE="1h")) == ["gateway.yaml line 1: cors: 5 must be a mapping"]


def test_dotenv_knows_export_quotes_comments_and_variables(read: Load) -> None:
    dotenv = 'export GATEWAY_HOST="::1" # here\nNAME=a\nGATEWAY_REDIS_PREFIX=${NAME}${B}${C:-c}:\nGATEWAY_PORT\n'
    config = read(dotenv=dotenv, B="b").config
    assert (config.host, config.redis_prefix, config.port) == ("::1", "abc:", 8000)


def test_a_variable_in_a_value_of_dotenv_is_the_environment_s_first(read: Load) -> None:
    assert read(dotenv="NAME=a\nGATEWAY_REDIS_PREFIX=${NAME}:\n", NAME="b").config.redis_prefix == "b:"


def test_a_missing_dotenv_is_none(tmp_path: Path) -> None:
    assert load(None, environ={}, dotenv=tmp_path / ".env").config == Config()


def test_a_broken_line_of_ours_in_dotenv_is_refused(refused: Refused) -> None:
    assert texts(refused("", "A=1\n\n\nGATEWAY_HOST 5\nGATEWAY_PORT=5\n")) == [
        ".env line 4: is not NAME=value; a value with quotes, spaces or # in it is put in quotes"
    ]


def test_broken_lines_of_others_in_dotenv_are_left_alone(read: Load) -> None:
    assert read(dotenv="WHAT IS THIS\nGATEWAY_PORT=5\n").config.port == 5


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("GATEWAY_MEMROY", "GATEWAY_MEMORY"),
        ("GATEWAY_ROUTES__PRODUCT__TLL", "GATEWAY_ROUTES__PRODUCT__TTL"),
        ("GATEWAY_CORZ__MAX_AGE", "GATEWAY_CORS__MAX_AGE"),
        ("GATEWAY_CORS_MAX_AGE", "GATEWAY_CORS__MAX_AGE"),
        ("GATEWAY_ROUTES_PRICE_LIST_TTL", "GATEWAY_ROUTES__PRICE_LIST__TTL"),
        ("GATEWAY_ADMIN_TOKE", "GATEWAY_ADMIN_TOKEN"),
    ],
)
def test_an_unknown_variable_is_a_warning_with_the_nearest(read: Load, name: str, meant: str) -> None:
    assert read(SHOP, **{name: "1s"}).warnings == (f"{name} is unknown; did you mean {meant}?",)


@pytest.mark.parametrize(
    "name",
    ["GATEWAY_SERVICE_HOST", "GATEWAY_PORT_80_TCP", "GATEWAY_PORT_80_TCP_ADDR", "GATEWAY_", "GATEWAY_MEMORY__X"],
)
def test_an_unknown_variable_that_is_like_none_is_ignored_with_a_warning(read: Load, name: str) -> None:
    assert read(**{name: "1"}).warnings == (f"{name} is unknown; it is ignored",)


def test_an_unknown_variable_in_dotenv_names_the_file(read: Load) -> None:
    assert read(dotenv="GATEWAY_MEMROY=1").warnings == (
        "GATEWAY_MEMROY in .env is unknown; did you mean GATEWAY_MEMORY?",
    )


def test_an_unknown_name_in_json_is_a_warning(read: Load) -> None:
    loaded = read(GATEWAY_CORS='{"max_aeg": "1h", "max_age": "2h"}')
    assert loaded.config.cors.max_age == timedelta(hours=2)
    assert loaded.warnings == ("cors.max_aeg in GATEWAY_CORS is unknown; did you mean GATEWAY_CORS__MAX_AGE?",)


def test_the_admin_s_variables_are_known(read: Load) -> None:
    assert read(**dict.fromkeys(OTHER_VARIABLES, "x")).warnings == ()


@pytest.mark.parametrize("value", ["tcp://10.0.0.1:80", "udp://10.0.0.1:53"])
def test_the_port_that_kubernetes_sets_is_ignored_with_a_warning(read: Load, value: str) -> None:
    loaded = read("port: 1234", GATEWAY_PORT=value)
    assert loaded.config.port == 1234
    assert loaded.warnings == ("GATEWAY_PORT is ignored: Kubernetes sets it for a service named gateway",)


def test_a_variable_of_a_route_that_does_not_exist_is_ignored_with_the_nearest(read: Load) -> None:
    loaded = read(SHOP, GATEWAY_ROUTES__PRODUKT__TTL="1s")
    assert set(loaded.config.routes) == {"product", "price_list"}
    assert loaded.warnings == (
        "GATEWAY_ROUTES__PRODUKT__TTL is ignored: there is no produkt in routes; did you mean product?",
    )


def test_where_no_route_is_near_the_warning_says_what_makes_a_new_one(read: Load) -> None:
    assert read(GATEWAY_ROUTES__X__TTL="1s").warnings == (
        "GATEWAY_ROUTES__X__TTL is ignored: there is no x in routes;"
        " a new one needs GATEWAY_ROUTES__X__PATH and GATEWAY_ROUTES__X__UPSTREAM",
    )


def test_variables_that_make_a_whole_route_create_it(read: Load) -> None:
    dotenv = "GATEWAY_ROUTES__NEW__PATH=/new\nGATEWAY_ROUTES__NEW__TTL=1s\n"
    loaded = read(SHOP, dotenv, GATEWAY_ROUTES__NEW__UPSTREAM="catalog")
    assert loaded.config.routes["new"].ttl == timedelta(seconds=1)
    assert loaded.warnings == ()


def test_a_variable_with_a_url_creates_an_upstream(read: Load) -> None:
    loaded = read(GATEWAY_UPSTREAMS__NEW__URL="http://new", GATEWAY_UPSTREAMS__OLD__TIMEOUT="1s")
    assert set(loaded.config.upstreams) == {"new"}
    assert loaded.warnings == (
        "GATEWAY_UPSTREAMS__OLD__TIMEOUT is ignored: there is no old in upstreams;"
        " a new one needs GATEWAY_UPSTREAMS__OLD__URL",
    )


def test_entries_of_a_file_that_are_no_mapping_are_told_where_a_variable_adds_one(refused: Refused) -> None:
    assert texts(refused("upstreams: [a]\n", GATEWAY_UPSTREAMS__NEW__URL="http://new")) == [
        "gateway.yaml line 1: upstreams: [a] must be a mapping"
    ]


def test_what_is_wrong_between_file_and_variable_names_both(refused: Refused) -> None:
    assert texts(refused(SHOP, GATEWAY_UPSTREAMS__CATALOG__URLS="http://a,http://b")) == [
        "gateway.yaml line 2, environment GATEWAY_UPSTREAMS__CATALOG__URLS: upstreams.catalog: "
        "needs exactly one of `url` and `urls`"
    ]


def test_what_is_wrong_in_an_entry_made_by_variables_names_them(refused: Refused) -> None:
    problems = refused("", GATEWAY_UPSTREAMS__A__URL="http://a", GATEWAY_UPSTREAMS__A__URLS="http://b")
    assert problems[0].source == "environment GATEWAY_UPSTREAMS__A__URL, environment GATEWAY_UPSTREAMS__A__URLS"


def test_the_admin_token_may_stand_in_dotenv_and_is_never_shown(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("GATEWAY_ADMIN_TOKEN=hush-hush\n")
    loaded = load(None, environ={}, dotenv=tmp_path / ".env")
    assert loaded.admin_token == "hush-hush"
    assert "hush-hush" not in repr(loaded)
    assert all("secret" not in setting.value for setting in effective(loaded))

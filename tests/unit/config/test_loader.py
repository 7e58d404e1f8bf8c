"""What `settings.load` makes of files and variables, and how it tells what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import pytest

from gateway.config.environment import OTHER_VARIABLES, SettingSource
from gateway.config.loader import Loaded, Setting, effective, load
from gateway.config.models import Config
from gateway.config.names import nearest
from gateway.config.schema import redact
from gateway.config.yaml_document import MAX_FILE, MAX_NODES
from gateway.errors import ConfigError, ConfigProblem

SHOP = """\
upstreams:
  catalog:
    url: http://catalog:8080
    headers:
      X-Api-Key: k-123
routes:
  product:
    path: /products/{id}
    upstream: catalog
    ttl: 30s
  price_list:
    path: /prices
    upstream: catalog
"""

Load = Callable[..., Loaded]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads `gateway.yaml` with the given text, seen from the directory that it is in."""
    monkeypatch.chdir(tmp_path)

    def read(text: str | bytes = "", dotenv: str | None = None, **environ: str) -> Loaded:
        Path("gateway.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        if dotenv is not None:
            Path(".env").write_text(dotenv)
        return load(Path("gateway.yaml"), environ=environ)

    return read


@pytest.fixture
def refused(read: Load) -> Callable[..., list[ConfigProblem]]:
    def refused(*args: Any, **environ: str) -> list[ConfigProblem]:
        with pytest.raises(ConfigError) as caught:
            read(*args, **environ)
        return caught.value.problems

    return refused


Refused = Callable[..., list[ConfigProblem]]


def texts(problems: list[ConfigProblem]) -> list[str]:
    return [str(problem) for problem in problems]


def places(loaded: Loaded, *key: str) -> list[str]:
    return [source.place for source in loaded.sources[key]]


# The file


def test_without_a_file_all_is_default() -> None:
    loaded = load(None, environ={}, dotenv=None)
    assert (loaded.config, loaded.sources, loaded.warnings) == (Config(), {}, ())


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "{}", "\ufeff"])
def test_an_empty_file_is_an_empty_configuration(read: Load, text: str) -> None:
    loaded = read(text)
    assert (loaded.config, loaded.sources) == (Config(), {})


def test_a_value_of_the_file_has_its_line(read: Load) -> None:
    loaded = read(SHOP)
    assert loaded.config.routes["product"].ttl == timedelta(seconds=30)
    assert loaded.sources["routes", "product", "ttl"] == (SettingSource("file", "gateway.yaml line 10", "30s"),)


def test_a_list_is_one_value(read: Load) -> None:
    loaded = read("drop_query:\n  - a\n  - b\n")
    assert loaded.sources["drop_query",] == (SettingSource("file", "gateway.yaml line 1", "[a, b]"),)


def test_mappings_with_nothing_under_them_are_empty(read: Load) -> None:
    loaded = read("cors:\nroutes:\nupstreams:\n  a:\n    url: http://a\n    headers:\n")
    assert loaded.config.upstreams["a"].headers.sent == {}
    assert loaded.config.cors == Config().cors


def test_a_byte_order_mark_is_left_out(read: Load) -> None:
    assert read(b"\xef\xbb\xbfmemory: 1MiB\n").config.memory == 1024**2


def test_dates_and_signs_are_text(read: Load) -> None:
    loaded = read(SHOP + "    summary: 2026-11-25\n    description: =\n")
    route = loaded.config.routes["price_list"]
    assert (route.summary, route.description) == ("2026-11-25", "=")


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: does not exist; create it"):
        load(tmp_path / "none.yaml", environ={}, dotenv=None)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory; give the path of a file in it"):
        load(tmp_path, environ={}, dotenv=None)


class Unreadable(type(Path())):  # type: ignore[misc]
    """A path that may not be read, to root neither."""

    def open(self, *args: Any, **kwargs: Any) -> IO[Any]:
        raise PermissionError(13, "Permission denied")


def test_a_file_that_may_not_be_read_says_what_to_change() -> None:
    with pytest.raises(ConfigError, match="isn't readable by the gateway's user"):
        load(Unreadable("gateway.yaml"), environ={}, dotenv=None)


def test_another_error_of_the_system_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="can't be read: Not a directory"):
        load(tmp_path / "file" / "gateway.yaml", environ={}, dotenv=None)


def test_a_path_that_can_be_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="isn't a valid file path"):
        load(Path("a\0b"), environ={}, dotenv=None)


def test_a_file_of_more_than_a_mebibyte_is_refused(refused: Refused) -> None:
    assert texts(refused("#" * (MAX_FILE + 1))) == ["gateway.yaml: is larger than 1024 KiB"]


def test_a_file_that_is_not_utf_8_is_refused_with_the_line(refused: Refused) -> None:
    assert texts(refused(b"host: a\nredis_prefix: \xff\n")) == [
        "gateway.yaml line 2: is not UTF-8; save the file as UTF-8"
    ]


def test_a_tab_is_refused_with_line_column_and_advice(refused: Refused) -> None:
    [problem] = refused("cors:\n\tmax_age: 1h\n")
    assert problem.source == "gateway.yaml line 2 column 1"
    assert problem.message.endswith("YAML is indented with spaces, not tabs")


def test_a_syntax_error_tells_line_column_and_what_is_wrong(refused: Refused) -> None:
    assert texts(refused("host: a\ninclude: [a:b\n")) == [
        "gateway.yaml line 3 column 1: while parsing a flow sequence: expected ',' or ']', but got '<stream end>'"
    ]


def test_an_unknown_alias_is_refused(refused: Refused) -> None:
    assert texts(refused("host: *a")) == ["gateway.yaml line 1 column 7: found undefined alias 'a'"]


def test_a_control_character_is_refused_with_line_and_column(refused: Refused) -> None:
    [problem] = texts(refused("host: a\nport: \x00"))
    assert problem == "gateway.yaml line 2 column 7: contains a character that YAML doesn't allow"


def test_an_escape_beyond_unicode_is_refused(refused: Refused) -> None:
    [problem] = refused('host: "\\U99999999"')
    assert problem.message.startswith("has an invalid escape")


def test_a_second_document_is_refused(refused: Refused) -> None:
    assert texts(refused("host: a\n---\nhost: b\n")) == [
        "gateway.yaml line 2 column 1: has a second document; expected one, without ---"
    ]


@pytest.mark.parametrize("text", ["- a", "text", "5"])
def test_the_top_must_be_a_mapping(refused: Refused, text: str) -> None:
    assert texts(refused(text)) == ["gateway.yaml: must be a mapping, such as `memory: 256MiB`, at the top"]


def test_a_second_key_is_refused_with_both_lines(refused: Refused) -> None:
    assert texts(refused("host: a\nport: 1\nhost: b\n")) == [
        "gateway.yaml line 3: the key host is a duplicate; the first is on line 1"
    ]


@pytest.mark.parametrize("key", ["404", "on", "null", "2026-11-25"])
def test_a_key_that_is_not_text_is_refused(refused: Refused, key: str) -> None:
    [problem] = refused(f"routes:\n  {key}: {{path: /a, upstream: b}}\n")
    assert str(problem) == f"gateway.yaml line 2: the key {key} isn't text; put it in quotes"


def test_a_key_that_is_a_list_is_refused(refused: Refused) -> None:
    assert texts(refused("? [a]\n: b\n")) == ["gateway.yaml line 1: a key isn't text; put it in quotes"]


@pytest.mark.parametrize("value", ["!!python/object:os.system {}", "!!binary aGk=", "!!set {a}", "!mine a"])
def test_tags_of_other_types_are_refused(refused: Refused, value: str) -> None:
    [problem] = refused(f"host: {value}\n")
    assert problem.key == "host"
    assert problem.message.endswith("isn't a supported tag; remove it")


@pytest.mark.parametrize("value", ["!!int x", "!!bool x", "!!float x", "0b_", "9" * 5000])
def test_a_value_that_is_not_what_its_tag_says_is_told_once(refused: Refused, value: str) -> None:
    [problem] = refused(f"port: {value}\n")
    assert problem.message.endswith("put it in quotes if it is text")


def test_a_wrong_value_met_twice_by_an_alias_is_told_at_both_keys(refused: Refused) -> None:
    assert [problem.key for problem in refused("port: &a !!int x\nmemory: *a\n")] == ["port", "memory"]


# Aliases and merge keys


def test_an_alias_stands_for_its_value(read: Load) -> None:
    loaded = read("memory: &size 1MiB\nredis_memory: *size\n")
    assert loaded.config.redis_memory == 1024**2
    assert places(loaded, "redis_memory") == ["gateway.yaml line 2"]


def test_a_merge_key_brings_in_what_is_not_written(read: Load) -> None:
    loaded = read(SHOP.replace("product:", "product: &p") + "  other:\n    <<: *p\n    path: /o\n")
    other = loaded.config.routes["other"]
    assert (other.path, other.ttl) == ("/o", timedelta(seconds=30))
    assert places(loaded, "routes", "other", "path") == ["gateway.yaml line 16"]
    assert places(loaded, "routes", "other", "ttl") == ["gateway.yaml line 10"]


def test_what_is_written_wins_over_a_merge_key_below_it(read: Load) -> None:
    loaded = read(SHOP.replace("product:", "product: &p") + "  other:\n    path: /o\n    <<: *p\n")
    assert loaded.config.routes["other"].path == "/o"
    assert places(loaded, "routes", "other", "path") == ["gateway.yaml line 15"]


def test_of_a_list_of_merged_mappings_the_first_wins(read: Load) -> None:
    anchors = "  a: &a {path: /a, upstream: catalog, ttl: 1s}\n  b: &b {path: /b, upstream: catalog, ttl: 2s}\n"
    loaded = read(SHOP + anchors + "  c:\n    <<: [*a, *b]\n    path: /c\n")
    assert loaded.config.routes["c"].ttl == timedelta(seconds=1)


def test_a_merge_key_takes_mappings_only(refused: Refused) -> None:
    assert texts(refused("<<: 5")) == ["gateway.yaml line 1: << takes a mapping or a list of mappings"]


def test_two_merge_keys_are_refused(refused: Refused) -> None:
    assert texts(refused("cors: &a {}\n<<: *a\n<<: *a\n")) == [
        "gateway.yaml line 3: the key << is a duplicate; the first is on line 2"
    ]


def test_aliases_that_explode_are_refused(refused: Refused) -> None:
    text = "l0: &l0 [x]\n"
    text += "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 20))
    [problem] = refused(text)
    assert problem.message == f"has more than {MAX_NODES} values, aliases counted in full"


def test_merge_keys_that_explode_are_refused(refused: Refused) -> None:
    text = "l0: &l0 {a: 1}\n"
    text += "".join(f"l{n}: &l{n} {{<<: [{', '.join([f'*l{n - 1}'] * 9)}]}}\n" for n in range(1, 20))
    [problem] = refused(text)
    assert problem.message == f"has more than {MAX_NODES} values, aliases counted in full"


def test_a_long_text_repeated_by_aliases_is_refused(refused: Refused) -> None:
    [problem] = refused(f"host: &a {'x' * 500_000}\ninclude: [{'*a,' * 10}]")
    assert problem.message.startswith("has more than")


def test_an_alias_that_contains_itself_is_refused(refused: Refused) -> None:
    assert texts(refused("include: &a [*a]")) == ["gateway.yaml line 1: has an alias that contains itself"]


def test_values_nested_too_deep_are_refused(refused: Refused) -> None:
    assert texts(refused("include: " + "[" * 40 + "]" * 40)) == ["gateway.yaml line 1: is nested more than 32 deep"]


def test_values_nested_deeper_than_python_goes_are_refused(refused: Refused) -> None:
    assert texts(refused("[" * 100_000)) == ["gateway.yaml: is nested too deeply"]


# Environment over .env over file


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


# .env


def test_dotenv_knows_export_quotes_comments_and_variables(read: Load) -> None:
    dotenv = 'export GATEWAY_HOST="::1" # here\nNAME=a\nGATEWAY_REDIS_PREFIX=${NAME}${B}${C:-c}:\nGATEWAY_PORT\n'
    config = read(dotenv=dotenv, B="b").config
    assert (config.host, config.redis_prefix, config.port) == ("::1", "abc:", 8000)


def test_a_variable_in_a_value_of_dotenv_is_the_environment_s_first(read: Load) -> None:
    assert read(dotenv="NAME=a\nGATEWAY_REDIS_PREFIX=${NAME}:\n", NAME="b").config.redis_prefix == "b:"


def test_a_missing_dotenv_is_none(tmp_path: Path) -> None:
    assert load(None, environ={}, dotenv=tmp_path / ".env").config == Config()


def test_a_dotenv_that_is_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory"):
        load(None, environ={}, dotenv=tmp_path)


def test_a_broken_line_of_ours_in_dotenv_is_refused(refused: Refused) -> None:
    assert texts(refused("", "A=1\n\n\nGATEWAY_HOST 5\nGATEWAY_PORT=5\n")) == [
        ".env line 4: is not NAME=value; a value with quotes, spaces or # in it is put in quotes"
    ]


def test_broken_lines_of_others_in_dotenv_are_left_alone(read: Load) -> None:
    assert read(dotenv="WHAT IS THIS\nGATEWAY_PORT=5\n").config.port == 5


# Unknown variables


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


KEEPS_IDENTITIES = """
upstreams: {api: {url: "http://api.test"}}
routes:
  mine: {path: /mine, upstream: api, ttl: 1s, %s}
  whole: {path: /whole, parts: {one: {upstream: api, path: /one, ttl: 1s, %s}}}
"""


@pytest.mark.parametrize("setting", ["authorization: key", "cookies: [sid]", "vary: [x-api-key]"])
def test_digests_of_credentials_with_a_key_that_lies_beside_them_are_warned_of(read: Load, setting: str) -> None:
    (warning,) = read(KEEPS_IDENTITIES % (setting, setting), GATEWAY_REDIS_URL="redis://h").warnings
    assert warning.startswith("redis_secret is not set: ")
    assert "(mine, whole)" in warning


@pytest.mark.parametrize(
    ("setting", "warns"),
    [
        ('path: "/one/{header.x-user-id}"', True),
        ('path: "/one?u={header.Authorization}"', True),
        ('path: /one, tags: ["user:{header.x-user-id}"]', True),
        ('path: "/one?t={header.x-tenant}"', False),
        ('path: /one, headers: {x-user-id: "{header.x-user-id}"}', False),
    ],
)
def test_an_identity_in_a_path_or_tag_of_a_part_is_warned_of(read: Load, setting: str, warns: bool) -> None:
    part = f"upstream: api, ttl: 1s, {setting}"
    text = f'upstreams: {{api: {{url: "http://a"}}}}\nroutes: {{whole: {{path: /whole, parts: {{one: {{{part}}}}}}}}}\n'
    warnings = read(text).warnings
    assert len(warnings) == warns
    assert all("routes.whole.parts.one has {header." in each for each in warnings)


@pytest.mark.parametrize(
    ("setting", "variables"),
    [
        ("authorization: key", {"GATEWAY_REDIS_SECRET": "0123456789abcdef", "GATEWAY_REDIS_URL": "redis://h"}),
        ("authorization: key", {"GATEWAY_REDIS_URL": "none"}),
        ("authorization: key", {}),
        ("cookies: ignore, authorization: ignore, vary: [accept]", {"GATEWAY_REDIS_URL": "redis://h"}),
    ],
    ids=["a secret", "memory alone", "embedded", "no identity"],
)
def test_where_no_digest_can_be_tested_nothing_is_warned_of(
    read: Load, setting: str, variables: dict[str, str]
) -> None:
    assert read(KEEPS_IDENTITIES % (setting, setting), **variables).warnings == ()


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


# What is wrong with values


def test_an_unknown_key_of_the_file_is_refused_with_the_nearest(refused: Refused) -> None:
    assert texts(refused("cors:\n  max_aeg: 1h\n")) == [
        "gateway.yaml line 2: cors.max_aeg: is unknown; did you mean max_age?"
    ]


def test_an_unknown_key_that_is_like_none_is_refused_with_all_known(refused: Refused) -> None:
    [problem] = refused("zzz: 1\n")
    assert problem.message.startswith("is unknown. Allowed here: public_url, host, port")


def test_all_problems_are_told_each_with_its_place(refused: Refused) -> None:
    text = SHOP.replace("30s", "30") + "prot: 1\nhost: [a]\n"
    problems = refused(text, GATEWAY_PORT="99999", GATEWAY_CORS="x")
    assert {(problem.source, problem.key) for problem in problems} == {
        ("environment GATEWAY_CORS", "cors"),
        ("environment GATEWAY_PORT", "port"),
        ("gateway.yaml line 10", "routes.product.ttl"),
        ("gateway.yaml line 14", "prot"),
        ("gateway.yaml line 15", "host"),
    }


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "memory: 5MB",
            "invalid size 5MB; expected a number and a unit, such as 64KiB or 256MiB (units: B, KiB, MiB, GiB); "
            "write 5MiB",
        ),
        ("port: 80a", "80a must be a whole number"),
        ("port: 65536", "65536 must be less than or equal to 65535"),
        ("access_log: sometimes", "sometimes must be true or false"),
        ("host: 5", "5 must be text; put it in quotes"),
        ("host: [a]", "[a] must be text"),
        ("include: 5", "5 must be a list"),
        ("include: [a]", "'a' must be module:attribute, such as shop.routes:router"),
        ("docs: 5", "5 must be a path such as /docs, or off"),
        ("public_url: ftp://a", "ftp://a must be an http:// or https:// URL with a host, such as http://catalog:8080"),
    ],
)
def test_a_wrong_value_is_shown_with_what_is_allowed(refused: Refused, setting: str, message: str) -> None:
    [problem] = refused(setting + "\n")
    assert (problem.source, problem.message) == ("gateway.yaml line 1", message)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("cookies: 5", "5 must be 'pass' or 'ignore' or a list"),
        ("cookies: [1]", "[1] must be 'pass' or 'ignore' or a list of text"),
        (
            "ttl: -5s",
            "invalid duration -5s; expected a number and a unit, such as 250ms or 30s (units: ms, s, m, h, d)",
        ),
        ("examples: {id: [1]}", "[1] must be text or a whole number or a number or true or false"),
        ("authorization: 5", "*** must be 'pass', 'ignore' or 'key'"),
        ("authorization: igonre", "igonre must be 'pass', 'ignore' or 'key'; did you mean ignore?"),
        ("request_directives: honor", "honor must be 'honour' or 'ignore'; did you mean honour?"),
        ("tags: [a b]", "the tag 'a b' is empty or has a space, comma or control character"),
        ("query: [1, 2]", "1 must be text; put it in quotes; 2 must be text; put it in quotes"),
        (
            "query: [no]",
            "false must be text; put it in quotes (YAML reads yes, no, on and off as true and false)",
        ),
        ("path: a", "a must begin with a slash"),
        ("path: /a/%2F", "The path contains an encoded slash, backslash or control character (it is /a/%2F)"),
    ],
)
def test_a_wrong_value_of_a_route_is_one_problem(refused: Refused, setting: str, message: str) -> None:
    text = "upstreams: {a: {url: http://a}}\nroutes:\n  r: {path: /x, upstream: a}\n"
    name = setting.partition(":")[0]
    text = (
        text.replace("path: /x", setting)
        if name == "path"
        else text.replace("upstream: a}", f"upstream: a, {setting}}}")
    )
    [problem] = refused(text)
    assert problem.message == message
    assert problem.key.startswith(f"routes.r.{name}")


def test_a_missing_field_is_told_where_it_is_missed(refused: Refused) -> None:
    assert texts(refused("routes:\n  a:\n    path: /a\n")) == ["gateway.yaml line 2: routes.a.upstream: is missing"]


def test_what_is_wrong_between_fields_is_told_at_the_field_it_names(refused: Refused) -> None:
    assert texts(refused(SHOP + "    vary: [accept]\n")) == [
        "gateway.yaml line 14: routes.price_list: vary requires a duration as ttl; "
        "with `ttl: origin` the upstream's Vary applies"
    ]


def test_what_is_wrong_between_file_and_variable_names_both(refused: Refused) -> None:
    assert texts(refused(SHOP, GATEWAY_UPSTREAMS__CATALOG__URLS="http://a,http://b")) == [
        "gateway.yaml line 2, environment GATEWAY_UPSTREAMS__CATALOG__URLS: upstreams.catalog: "
        "needs exactly one of `url` and `urls`"
    ]


def test_what_is_wrong_in_an_entry_made_by_variables_names_them(refused: Refused) -> None:
    problems = refused("", GATEWAY_UPSTREAMS__A__URL="http://a", GATEWAY_UPSTREAMS__A__URLS="http://b")
    assert problems[0].source == "environment GATEWAY_UPSTREAMS__A__URL, environment GATEWAY_UPSTREAMS__A__URLS"


def test_a_long_value_is_cut_in_messages(refused: Refused) -> None:
    problems = refused(f"memory: {'x' * 5000}\nport: [{'a, ' * 500}]\nhost: {{a: {'y' * 5000}}}\n{'z' * 1000}: 1\n")
    assert len(problems) == 4
    assert all(len(str(problem)) < 800 for problem in problems)


# Between entries


def test_a_route_to_no_upstream_is_refused_with_the_nearest(refused: Refused) -> None:
    assert texts(refused(SHOP, GATEWAY_ROUTES__PRODUCT__UPSTREAM="catalgo")) == [
        "environment GATEWAY_ROUTES__PRODUCT__UPSTREAM: routes.product.upstream: "
        "there is no upstream catalgo; did you mean catalog?"
    ]


@pytest.mark.parametrize(("upstreams", "there"), [("{zzz: {url: http://z}}", "zzz"), ("{}", "none")])
def test_a_route_to_no_upstream_is_refused_with_all_there_are(refused: Refused, upstreams: str, there: str) -> None:
    text = f"upstreams: {upstreams}\nroutes:\n  a: {{path: /a, upstream: catalog}}\n"
    assert texts(refused(text)) == [
        f"gateway.yaml line 3: routes.a.upstream: there is no upstream catalog; there are: {there}"
    ]


def test_two_routes_with_paths_of_the_same_shape_are_refused(refused: Refused) -> None:
    assert texts(refused(SHOP.replace("/prices", "/products/{name}"))) == [
        "gateway.yaml line 12: routes.price_list.path: /products/{name} matches the same requests "
        "as the path of the route product (gateway.yaml line 8)"
    ]


def test_a_path_that_takes_all_that_follows_is_another_shape(read: Load) -> None:
    assert len(read(SHOP.replace("/prices", "/products/{rest:path}")).config.routes) == 2


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/%68ealthz"])
def test_the_gateway_s_own_paths_are_refused(refused: Refused, path: str) -> None:
    [problem] = refused(SHOP.replace("/prices", path))
    assert problem.source == "gateway.yaml line 12"
    assert problem.message.endswith("is reserved for the gateway; choose another path")


def test_entries_that_are_no_mappings_are_told_once(refused: Refused) -> None:
    assert texts(refused("routes:\n  a: 5\n  b: {path: 5, upstream: [x]}\n")) == [
        "gateway.yaml line 2: routes.a: 5 must be a mapping",
        "gateway.yaml line 3: routes.b.path: 5 must be text; put it in quotes",
        "gateway.yaml line 3: routes.b.upstream: [x] must be text",
    ]


# What is secret


@pytest.mark.parametrize(
    ("key", "text", "shown"),
    [
        ("upstreams.a.headers.x-key", "k", "***"),
        ("upstreams.a.headers", "{}", "{}"),
        ("routes.a.examples.access_token", "t", "***"),
        ("routes.a.examples.Secret", "t", "***"),
        ("routes.a.examples.password", "t", "***"),
        ("routes.a.examples.authorization", "t", "***"),
        ("routes.a.authorization", "ignore", "ignore"),
        ("routes.a.authorization", "Bearer t", "***"),
        ("routes.token.path", "/a", "/a"),
        ("redis_url", "redis://user:pass@h:1/0", "redis://***@h:1/0"),
        ("redis_url", "redis://:pa/ss@h", "redis://***@h"),
        ("redis_url", "redis://h?password=p&db=1", "redis://h?password=***&db=1"),
        ("routes.a.upstream_path", "/x?api_key=k", "/x?api_key=***"),
        ("routes.a.upstream_path", "/x?page=1&X-Amz-Signature=k&sig=l", "/x?page=1&X-Amz-Signature=***&sig=***"),
        ("memory", "1MiB", "1MiB"),
    ],
)
def test_secrets_are_masked(key: str, text: str, shown: str) -> None:
    assert redact(tuple(key.split(".")), text) == shown


def test_sources_do_not_show_secrets(read: Load) -> None:
    loaded = read(SHOP, GATEWAY_REDIS_URL="redis://u:hush@h/0")
    shown = str(loaded.sources)
    assert "k-123" not in shown
    assert "hush" not in shown


@pytest.mark.parametrize(
    ("text", "environ"),
    [
        ("redis_url: redi://u:hush@h\n", {}),
        ("upstreams: {a: {url: 'http://u:hush@h'}}\n", {}),
        ("upstreams: {a: {url: http://h, headers: hush}}\n", {}),
        ("upstreams: {a: {url: http://h, headers: {x: [hush]}}}\n", {}),
        ('upstreams: {a: {url: http://h, headers: {x: "hush\\n"}}}\n', {}),
        ("routes: {a: {path: /a, upstream: b, authorization: Bearer hush}}\n", {}),
        ("", {"GATEWAY_UPSTREAMS__A__HEADERS": "hush"}),
    ],
)
def test_messages_do_not_show_secrets(refused: Refused, text: str, environ: Mapping[str, str]) -> None:
    assert "hush" not in str(refused(text, **environ))


# gateway check


def test_effective_lists_every_leaf_with_its_source(read: Load) -> None:
    loaded = read(SHOP, "GATEWAY_ROUTES__PRODUCT__TTL=20s\n", GATEWAY_ROUTES__PRODUCT__TTL="10s")
    settings = {setting.key: setting for setting in effective(loaded)}
    assert settings["routes.product.ttl"] == Setting(
        "routes.product.ttl",
        "10s",
        "environment GATEWAY_ROUTES__PRODUCT__TTL, over .env GATEWAY_ROUTES__PRODUCT__TTL, gateway.yaml line 10",
    )
    assert settings["routes.product.stale_if_error"] == Setting("routes.product.stale_if_error", "null", "default")
    assert settings["upstreams.catalog.headers.x-api-key"] == Setting(
        "upstreams.catalog.headers.x-api-key", "***", "gateway.yaml line 5"
    )


def test_effective_is_ordered_as_the_models(read: Load) -> None:
    keys = [setting.key.partition(".")[0] for setting in effective(read(SHOP))]
    assert list(dict.fromkeys(keys)) == list(Config.model_fields)


def test_effective_shows_values_as_yaml(read: Load) -> None:
    shown = {
        setting.key: setting.value for setting in effective(read("include: [a:b]\ndocs: off\nredis_prefix: '5'\n"))
    }
    assert (shown["include"], shown["docs"], shown["redis_prefix"]) == ("['a:b']", "'off'", "'5'")
    assert (shown["memory"], shown["redis_budget"], shown["upstreams"]) == ("256MiB", "50ms", "{}")


def test_what_effective_shows_can_be_read_again(read: Load) -> None:
    settings = effective(read("memory: 1GiB\n"))
    text = "".join(f"{setting.key}: {setting.value}\n" for setting in settings if "." not in setting.key)
    assert read(text).config == Config(memory=1024**3)


# nearest


def test_nearest_finds_a_misspelt_name_in_any_case() -> None:
    assert nearest("MEMROY", ["host", "memory"]) == "memory"


def test_nearest_finds_none_where_none_is_like_it() -> None:
    assert nearest("zzz", ["host", "memory"]) is None


@pytest.mark.parametrize("address", ["0.0.0.0:9000", "[::]:9000", "192.0.2.7:9000", "admin.example.com:9000"])
def test_an_admin_listener_that_others_can_reach_needs_a_token(address: str) -> None:
    environ = {"GATEWAY_ADMIN_LISTEN": address}
    with pytest.raises(ConfigError, match="set GATEWAY_ADMIN_TOKEN, or listen"):
        load(None, environ=environ, dotenv=None)
    assert load(None, environ={**environ, "GATEWAY_ADMIN_TOKEN": "secret"}, dotenv=None).admin_token == "secret"


@pytest.mark.parametrize(
    "address", ["127.0.0.1:9000", "[::1]:9000", "localhost:9000", "unix:/run/gateway.sock", "none"]
)
def test_an_admin_listener_of_this_machine_needs_none(address: str) -> None:
    assert load(None, environ={"GATEWAY_ADMIN_LISTEN": address}, dotenv=None).admin_token is None


def test_the_admin_token_may_stand_in_dotenv_and_is_never_shown(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("GATEWAY_ADMIN_TOKEN=hush-hush\n")
    loaded = load(None, environ={}, dotenv=tmp_path / ".env")
    assert loaded.admin_token == "hush-hush"
    assert "hush-hush" not in repr(loaded)
    assert all("secret" not in setting.value for setting in effective(loaded))

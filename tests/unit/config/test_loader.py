"""What `settings.load` makes of files and variables, and how it tells what is wrong with them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from gateway.config.environment import SettingSource
from gateway.config.loader import Setting, effective, load
from gateway.config.models import Config
from gateway.errors import ConfigError
from tests.support.settings import SHOP, Load, Refused, texts

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


def test_a_path_that_can_be_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="isn't a valid file path"):
        load(Path("a\0b"), environ={}, dotenv=None)


# Aliases and merge keys


# Environment over .env over file


# .env


# Unknown variables


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
    absent = ("listen", "admin_identity")  # sections of the gateway that have no default
    assert list(dict.fromkeys(keys)) == [name for name in Config.model_fields if name not in absent]


# nearest


@pytest.mark.parametrize("address", ["0.0.0.0:9000", "[::]:9000", "192.0.2.7:9000", "admin.example.com:9000"])
def test_an_admin_listener_that_others_can_reach_needs_a_token(address: str) -> None:
    environ = {"GATEWAY_ADMIN_LISTEN": address}
    with pytest.raises(ConfigError, match="set GATEWAY_ADMIN_TOKEN, or listen"):
        load(None, environ=environ, dotenv=None)
    assert load(None, environ={**environ, "GATEWAY_ADMIN_TOKEN": "secret"}, dotenv=None).admin_token == "secret"


def test_the_admin_token_may_be_in_a_file(tmp_path: Path) -> None:
    file, dotenv = tmp_path / "token", tmp_path / ".env"
    file.write_text("secret\n")
    named = {"GATEWAY_ADMIN_LISTEN": "0.0.0.0:9000", "GATEWAY_ADMIN_TOKEN_FILE": str(file)}
    loaded = load(None, environ=named, dotenv=None)
    assert (loaded.admin_token, loaded.warnings) == ("secret", ())
    dotenv.write_text("GATEWAY_ADMIN_TOKEN=other\n")
    assert load(None, environ=named, dotenv=dotenv).admin_token == "secret"
    with pytest.raises(ConfigError, match="GATEWAY_ADMIN_TOKEN_FILE are set; remove one"):
        load(None, environ={**named, "GATEWAY_ADMIN_TOKEN": "other"}, dotenv=None)
    file.unlink()
    with pytest.raises(ConfigError, match=r"names .*token, which can't be read: No such file"):
        load(None, environ=named, dotenv=None)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:9000", "[::1]:9000", "localhost:9000", "unix:/run/gateway.sock", "none"]
)
def test_an_admin_listener_of_this_machine_needs_none(address: str) -> None:
    assert load(None, environ={"GATEWAY_ADMIN_LISTEN": address}, dotenv=None).admin_token is None

"""setting_problems: all that is wrong is reported at once, in the file's order, and says what to write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.app.gateway import create_app
from gateway.config.loader import load
from gateway.config.names import misspelt
from gateway.errors import ConfigError

HEAD = 'redis_url: none\nupstreams: {api: {url: "http://api"}}\n'


def problems(tmp_path: Path, text: str, **environ: str) -> list[str]:
    """What is wrong, without the file's name."""
    path = tmp_path / "gateway.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load(path, environ=environ, dotenv=None)
    return [str(each).removeprefix(f"{path} ") for each in refused.value.problems]


ALL_WRONG = """\
port: http
upstreams:
  Catalog: {url: "http://a", retry_budget: 10%, timout: 3s}
  api: {url: "ftp://a"}
routes:
  Bad-Name: {path: /x, upstream: api, ttl: 30S}
  other: {path: "/y/{id}", upstream: apy, vary: [accept], ttl: 5}
  both: {path: /z, upstream: api, parts: {One: {upstream: api, path: /one, tll: 5s, deny: [a], allow: [b]}}}
  circle:
    path: /c
    parts:
      five: {upstream: api, path: "/five/{six.id}", foo: 1, body: {a: 1}}
      six: {upstream: api, path: "/six/{five.id}"}
      seven: {upstream: nope, path: "/seven/{user}"}
cors: {max_age: 1h30m}
"""
ALL_TOLD = [
    "line 1: port: http must be a whole number",
    "line 3: upstreams.Catalog: 'Catalog' isn't a valid name; expected lower-case words joined by _, such as catalog",
    "line 3: upstreams.Catalog.retry_budget: 10% must be a number; write 0.1",
    "line 3: upstreams.Catalog.timout: is unknown; did you mean timeout?",
    "line 4: upstreams.api.url: ftp://a must be an http:// or https:// URL",
    "line 6: routes.Bad-Name: 'Bad-Name' isn't a valid name; expected lower-case words joined by _, such as bad_name",
    "line 6: routes.Bad-Name.ttl: invalid duration 30S",
    "line 7: routes.other.ttl: invalid duration 5",
    "line 7: routes.other.upstream: there is no upstream apy; did you mean api?",
    "line 8: routes.both.parts.One: 'One' isn't a valid name",
    "line 8: routes.both.parts.One.tll: is unknown; did you mean ttl?",
    "line 8: routes.both.parts.One: deny can't be combined with `allow`",
    "line 8: routes.both: upstream can't be combined with `parts`",
    "line 12: routes.circle.parts.five.foo: is unknown. Allowed here: ",
    "line 12: routes.circle.parts.five: body requires `method: POST`",
    "line 12: routes.circle.parts.five: parts depend on each other in a cycle: five → six → five",
    "line 14: routes.circle.parts.seven.path: /seven/{user} uses {user}, which the aggregate's path does not have",
    "line 14: routes.circle.parts.seven.upstream: there is no upstream nope",
    "line 15: cors.max_age: invalid duration 1h30m",
]


def test_all_problems_are_reported_at_once_in_the_files_order(tmp_path: Path) -> None:
    told = problems(tmp_path, ALL_WRONG)
    assert [each[: len(wanted)] for each, wanted in zip(told, ALL_TOLD, strict=True)] == ALL_TOLD


def test_what_another_problem_brought_about_is_not_reported(tmp_path: Path) -> None:
    told = problems(tmp_path, 'upstreams: {api: {url: "x y"}}\nroutes: {a: {path: a, upstream: api, tags: ["{id}"]}}\n')
    assert [each.split(":")[1] for each in told] == [" upstreams.api.url", " routes.a.path"]


def test_an_entry_that_is_right_hides_nothing_of_others(tmp_path: Path) -> None:
    many = "".join(f'  r{n}: {{path: "/r{n}", upstream: api, ttl: {n}, stale: 1}}\n' for n in range(1, 41))
    assert len(problems(tmp_path, f"{HEAD}routes:\n{many}")) == 80


def test_the_settings_are_listed_once_and_not_where_a_near_one_is_found(tmp_path: Path) -> None:
    unknown = "  a: {path: /a, upstream: api, zzz: 1}\n  b: {path: /b, upstream: api, zzz: 1, tll: 1s}\n"
    told = problems(tmp_path, f"{HEAD}routes:\n{unknown}")
    assert [each.count("Allowed here") for each in told] == [1, 0, 0]


def test_the_warnings_are_there_where_anything_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("port: http\n")
    with pytest.raises(ConfigError) as refused:
        load(path, environ={"GATEWAY_WROKERS": "2"}, dotenv=None)
    assert refused.value.warnings == ("GATEWAY_WROKERS is unknown; did you mean GATEWAY_WORKERS?",)


@pytest.mark.parametrize(
    ("setting", "written"),
    [
        ("limits: {request_line: 1MiB}", "1MiB must be less than or equal to 64KiB"),
        ("limits: {request_head: 100B}", "100B must be greater than or equal to 1KiB"),
        ("workers: 1000", "1000 must be less than or equal to 128"),
        ("memory: 64k", "; write 64KiB"),
        ("memory: 1.5 gb", "; write 1.5GiB"),
        ("shutdown_delay: 1h30m", "; write 90m"),
        ("shutdown_delay: 30S", "; write 30s"),
        ("shutdown_delay: 5 minutes", "; write 5m"),
        ("shutdown_delay: 2min 30sec", "; write 150s"),
        ("shutdown_delay: 30", "; write 30s for seconds"),
        ("shutdown_delay: none", "; for none write 0s"),
        ("shutdown_delay: yes", "YAML reads yes and on as true"),
        ("log_hits: 10 %", "; write 0.1"),
        ("purge_disconnect_grace: never", "; for none write 0s; or write 'forever'"),
        ("cors: {allow_methods: [get]}", "write GET"),
        ("host: localhost:8000", "write host: localhost and port: 8000"),
        ('host: "[::1]:8000"', "write host: ::1 and port: 8000"),
        ("host: http://localhost", "must be a host name or an IP address"),
    ],
)
def test_a_wrong_value_is_told_with_what_to_write(tmp_path: Path, setting: str, written: str) -> None:
    (told,) = problems(tmp_path, HEAD + setting)
    assert written in told
    assert "did you mean" not in told


@pytest.mark.parametrize("host", ["::1", "[::1]", "localhost", "0.0.0.0", "gateway.internal"])
def test_a_host_is_a_name_or_an_address(tmp_path: Path, host: str) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(f'host: "{host}"\n')
    assert load(path, environ={}, dotenv=None).config.host == host.strip("[]")


def test_a_choice_is_shown_and_a_credential_in_its_place_is_not(tmp_path: Path) -> None:
    route = HEAD + "routes: {a: {path: /a, upstream: api, authorization: %s}}\n"
    assert "authorization: forward must be 'pass', 'ignore' or 'key'" in problems(tmp_path, route % "forward")[0]
    assert "authorization: *** must be" in problems(tmp_path, route % "Bearer s3cret")[0]


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("never", ""),
        ("igonre", "; did you mean ignore?"),
        ("Pass", "; did you mean pass?"),
        ("forevr", "; did you mean forever?"),
        ("", ""),
    ],
)
def test_a_choice_is_proposed_for_a_slip_and_not_for_another_word(word: str, hint: str) -> None:
    assert misspelt(word, ["pass", "ignore", "key", "forever"]) == hint


@pytest.mark.parametrize("value", ["a ${KEY}", "${KEY}", "$KEY"])
def test_what_looks_like_a_variable_in_the_file_is_a_warning(tmp_path: Path, value: str) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(
        f'upstreams: {{a: {{url: "http://a"}}}}\nroutes: {{r: {{path: /a, upstream: a, summary: "{value}"}}}}\n'
    )
    (warning,) = load(path, environ={}, dotenv=None).warnings
    assert "line 2: routes.r.summary: $" in warning
    assert "isn't expanded; set GATEWAY_ROUTES__R__SUMMARY instead" in warning


def test_a_header_that_looks_like_a_variable_without_braces_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text('upstreams:\n  api: {url: "http://api", headers: {x-key: "$KEY"}}\n')
    (warning,) = load(path, environ={}, dotenv=None).warnings
    assert "line 2: upstreams.api.headers.x-key: " in warning
    assert "isn't expanded; set GATEWAY_UPSTREAMS__API__HEADERS__X_KEY instead" in warning
    assert "Bearer" not in warning


@pytest.mark.parametrize(
    ("given", "key", "message"),
    [
        ({"routes": {"a": {"path": "/a", "upstream": "nope"}}}, "routes.a.upstream", "there is no upstream nope"),
        ({"nonsense": 1}, "nonsense", "not permitted"),
        ({"port": "x"}, "port", "integer"),
    ],
)
def test_a_wrong_mapping_is_a_configuration_error(given: dict[str, Any], key: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        create_app({"redis_url": "none", **given})
    (problem,) = raised.value.problems
    assert problem.key == key
    assert message in problem.message

"""field_changes: which fields can be set, added and removed, where their values come from, and who sees them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config.loader import Loaded, effective, load
from gateway.errors import ConfigError

HEAD = "upstreams:\n  up:\n    url: http://up.test\n"
ROUTE = "routes:\n  r:\n    path: /a\n    upstream: up\n"


def read(tmp_path: Path, text: str, **environ: str) -> Loaded:
    path = tmp_path / "gateway.yaml"
    path.write_text(text)
    return load(path, environ=environ, dotenv=None)


def refused(tmp_path: Path, text: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as raised:
        read(tmp_path, text, **environ)
    [problem] = raised.value.problems
    return f"{problem.source.rpartition('/')[2]}: {problem.key}: {problem.message}"


@pytest.mark.parametrize(
    ("side", "change", "told"),
    [
        ("request", "set: {Content-Length: '3'}", "request.set.Content-Length: Content-Length can't be changed"),
        ("request", "set: {transfer-encoding: chunked}", "request.set.transfer-encoding: transfer-encoding can't be"),
        ("request", "add: {Connection: close}", "request.add.Connection: Connection can't be changed: it belongs to"),
        (
            "request",
            "set: {Host: a.test}",
            "request.set.Host: Host can't be changed: it is the upstream's setting `host`",
        ),
        ("request", "remove: [If-None-Match]", "request.remove: If-None-Match can't be changed: it is a condition"),
        ("response", "set: {Age: '1'}", "response.set.Age: Age can't be changed: it says how old"),
        ("response", "remove: [Content-Length]", "response.remove: Content-Length can't be changed"),
        ("response", "set: {ETag: x}", "response.set.ETag: ETag can't be changed: it distinguishes representations"),
        ("response", "remove: [Cache-Status]", "response.remove: Cache-Status can't be changed: it is made by"),
        ("response", "set: {a b: c}", "response.set.a b: 'a b' isn't a valid header name"),
        ("response", 'set: {x: "a\\r\\nSet-Cookie: b"}', "response.set.x: the value of x has a character"),
        ("response", "add: {Content-Type: a/b}", "response.add.Content-Type: Content-Type stands once"),
        ("response", "{set: {X-A: b}, remove: [x-a]}", "response.remove: x-a is there twice: under `set` and `remove`"),
        ("response", "sett: {X-A: b}", "response.sett: is unknown; did you mean set?"),
        ("response", "set: {X-A: [1]}", "response.set.X-A: "),
    ],
)
def test_what_the_gateway_keeps_to_itself_is_refused_with_its_place(
    tmp_path: Path, side: str, change: str, told: str
) -> None:
    body = change if change.startswith("{") else f"{{{change}}}"
    text = f"{HEAD}{ROUTE}    headers:\n      {side}: {body}\n"
    assert f"gateway.yaml line 9: routes.r.headers.{told}" in refused(tmp_path, text)


def test_requests_of_an_aggregate_are_those_of_its_parts(tmp_path: Path) -> None:
    parts = "routes: {r: {path: /a, parts: {p: {upstream: up, path: /p}}, headers: {request: {remove: [X-A]}}}}\n"
    assert "in an aggregate, set `headers` on each part" in refused(tmp_path, HEAD + parts)


def test_an_upstreams_constants_are_written_in_short_or_in_full(tmp_path: Path) -> None:
    short = read(tmp_path, HEAD + "    headers: {X-Key: a, Host: t.test}\n").config.upstreams["up"]
    full = read(tmp_path, HEAD + "    headers: {request: {set: {X-Key: a, Host: t.test}}}\n").config.upstreams["up"]
    assert short.headers.sent == full.headers.sent == {"x-key": "a", "host": "t.test"}
    assert short.host_sent == full.host_sent == "t.test"


@pytest.mark.parametrize("place", ["short", "full", "route"])
def test_a_value_comes_from_a_variable_or_a_mounted_file(tmp_path: Path, place: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("from-file\n")
    written = "X-A: '${KEY}', X-B: 'Bearer ${TOKEN}', X-C: '$${KEY}'"
    changes = f"headers: {{{written}}}" if place == "short" else f"headers: {{request: {{set: {{{written}}}}}}}"
    text = HEAD + ROUTE + f"    {changes}\n" if place == "route" else HEAD + f"    {changes}\n" + ROUTE
    loaded = read(tmp_path, text, KEY="from-env", TOKEN_FILE=str(secret))
    config = loaded.config.routes["r"] if place == "route" else loaded.config.upstreams["up"]
    assert dict(config.headers.request.changes.added) == {
        b"x-a": b"from-env",
        b"x-b": b"Bearer from-file",
        b"x-c": b"${KEY}",
    }
    assert loaded.warnings == ()
    shown = "\n".join(f"{each.key} {each.value} {each.source}" for each in effective(loaded))
    assert "from-env" not in shown
    assert "from-file" not in shown
    assert "x-a *** gateway.yaml line" in shown.replace(f"{tmp_path}/", "")


def test_a_whole_setting_comes_from_a_mounted_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a secret of some length\n")
    variables = {"GATEWAY_REDIS_SECRET_FILE": str(secret), "GATEWAY_UPSTREAMS__UP__HEADERS__X_KEY_FILE": str(secret)}
    config = read(tmp_path, HEAD + "    headers: {X-Key: other}\n", **variables).config
    assert config.record_secret == b"a secret of some length"
    assert config.upstreams["up"].headers.sent == {"x-key": "a secret of some length"}


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({}, "${KEY}: neither KEY nor KEY_FILE is set"),
        ({"KEY_FILE": "/nowhere/at/all"}, "KEY_FILE names /nowhere/at/all, which can't be read: No such file"),
        ({"KEY": "a\nb"}, "the value of X-A has a character that isn't allowed in a header"),
    ],
)
def test_a_variable_that_gives_no_value_is_refused(tmp_path: Path, environ: dict[str, str], told: str) -> None:
    text = HEAD + "    headers:\n      X-Other: b\n      X-A: 'a ${KEY}'\n"
    assert refused(tmp_path, text, **environ) == f"gateway.yaml line 6: upstreams.up.headers.X-A: {told}" or (
        refused(tmp_path, text, **environ).startswith(f"gateway.yaml line 6: upstreams.up.headers.X-A: {told}")
    )
    assert "a\nb" not in refused(tmp_path, text, **environ)


def test_fields_of_cors_are_left_to_it(tmp_path: Path) -> None:
    changes = "    headers: {response: {set: {Access-Control-Allow-Origin: '*'}}}\n"
    assert read(tmp_path, HEAD + ROUTE + changes)
    cors = "cors: {allow_origins: [https://a.test]}\n"
    told = "line 8: routes.r.headers.response: access-control-allow-origin can't be changed: `cors` makes it"
    assert told in refused(tmp_path, HEAD + ROUTE + changes + cors)

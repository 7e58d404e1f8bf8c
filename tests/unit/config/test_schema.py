"""Values as they are shown: no secrets, as YAML, and short enough for a message."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from gateway.config.loader import effective
from gateway.config.models import Config
from gateway.config.schema import redact
from tests.support.settings import SHOP, Load, Refused


def test_a_long_value_is_cut_in_messages(refused: Refused) -> None:
    problems = refused(f"memory: {'x' * 5000}\nport: [{'a, ' * 500}]\nhost: {{a: {'y' * 5000}}}\n{'z' * 1000}: 1\n")
    assert len(problems) == 4
    assert all(len(str(problem)) < 1000 for problem in problems)


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

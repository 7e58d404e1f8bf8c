"""`gateway keys` and `gateway revoke`, against the admin listener of a gateway that runs here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from typer.testing import CliRunner, Result

from gateway.admin.app import create_admin
from gateway.app.gateway import create_app
from gateway.cache.redis.store import RedisStore
from gateway.cli.commands import app as cli
from gateway.cli.tables import keys_table
from gateway.clock import SystemClock
from gateway.config.yaml_document import read_document
from gateway.errors import ConfigError, OrderError
from gateway.identity.api_keys import digest_of, is_well_formed, keys_of
from gateway.server.embedded_redis import Embedded
from gateway.testing import StubUpstream
from tests.support.commands import configured, run
from tests.support.gateways import json_answer, served

SECRET = "0123456789abcdef0123456789abcdef"
SHOP = {"issuer": "https://id.example.com", "audience": ["a"], "algorithms": ["HS256"], "secret": SECRET}


@pytest.fixture
async def admin(valkey: Embedded, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """The gateway, which the commands find by its variables."""
    clock = SystemClock()
    store = RedisStore(valkey.url, prefix=f"{uuid4().hex}:", budget=1.0, clock=clock)
    identity = {"partner": {"keys": "redis"}, "shop": SHOP}
    config = {"redis_url": valkey.url, "upstreams": {"api": {"url": "http://api.test"}}, "identity": identity}
    app = create_app(config, transport=StubUpstream(json_answer()), clock=clock, store=store)
    await app.start()
    async with served(create_admin(app, "secret")) as url:
        monkeypatch.setenv("GATEWAY_ADMIN_URL", url)
        monkeypatch.setenv("GATEWAY_ADMIN_TOKEN", "secret")
        yield app
    await app.stop()


async def ran(*arguments: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, cli, list(arguments))


async def test_a_key_is_printed_alone_once_and_works(admin: Any) -> None:
    made = await ran("keys", "create", "--owner", "acme", "--plan", "gold", "--scope", "x", "--expires", "90d")
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    assert is_well_formed(key.encode())
    assert "is shown once. It ends at 20" in made.stderr
    assert "1 of 1 worker has confirmed" in made.stderr
    assert key not in made.stderr
    principal = admin.worker_state.providers["partner"].known(key.encode())
    assert (principal.subject, principal.scopes) == ("acme", {"x"})
    listed = (await ran("keys", "list")).stdout
    assert key not in listed
    row = listed.splitlines()[1].split()
    assert row[1:5] == ["partner", "acme", "gold", "x"]
    assert row[-2:] == ["in", "force"]
    rotated = await ran("keys", "rotate", row[0][:8], "--overlap", "1h")
    assert is_well_formed(rotated.stdout.strip().encode())
    assert "is still accepted" in rotated.stderr
    revoked = await ran("keys", "revoke", "--owner", "acme")
    assert revoked.stdout.startswith("Revoked: ")
    assert [each["state"] for each in json.loads(json.dumps(_states(admin)))] == ["revoked", "revoked"]


def _states(app: Any) -> list[dict[str, str]]:
    keys = app.worker_state.credentials.records.keys.values()
    return [{"state": "revoked" if key.revoked is not None else "in force"} for key in keys]


async def test_tokens_are_revoked_and_it_is_said_up_to_when(admin: Any) -> None:
    made = await ran("revoke", "--sub", "anna", "--issuer", "shop")
    assert made.exit_code == 0, made.output
    assert made.stdout.startswith("Tokens of this sub of shop that were issued before 20")
    made = await ran("revoke", "--issued-before", "now")
    assert made.stdout.startswith("All tokens that were issued before 20")
    assert len(admin.worker_state.credentials.records.revocations) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("revoke",), "name what is revoked"),
        (("revoke", "--sub", "a", "--jti", "b"), "name what is revoked"),
        (("keys", "revoke"), "name a key by its ID"),
        (("keys", "revoke", "abc", "--owner", "acme"), "name a key by its ID"),
        (("keys", "create", "--entry", "--expires", "soon"), "isn't a date"),
        (("keys", "create", "--entry", "--scope", "a b"), "without spaces"),
    ],
)
def test_an_order_that_means_nothing_is_refused_before_any_gateway_is_asked(
    arguments: tuple[str, ...], said: str
) -> None:
    result = run(*arguments)
    assert isinstance(result.exception, OrderError)
    assert said in str(result.exception)


def test_an_entry_for_a_file_has_the_digest_and_the_key_is_apart(tmp_path: Path) -> None:
    made = run("keys", "create", "--entry", "--owner", "acme", "--scope", "x", "--expires", "2027-01-31")
    key = made.stderr.strip().rpartition(" ")[2]
    assert is_well_formed(key.encode())
    path = tmp_path / "keys.yaml"
    path.write_text(f"keys:\n{made.stdout}")
    assert yaml.safe_load(path.read_text())["keys"][0]["sha256"] == digest_of(key.encode())
    (found,) = keys_of("partner", read_document(path)).values()
    assert (found.owner, found.scopes) == ("acme", ("x",))
    assert key not in made.stdout


def test_a_table_of_keys_dims_those_that_have_ended() -> None:
    key = {"id": "1", "identity": "p", "owner": "", "plan": "", "scopes": [], "created": 0, "expires": 10.0}
    table = keys_table(
        [{**key, "revoked": 5.0, "state": "revoked"}, {**key, "expires": None, "revoked": None, "state": "in force"}]
    )
    assert table.dim == {0}
    assert [row[6] for row in table.rows] == ["1970-01-01 00:00:05Z", "never"]


def test_check_says_what_is_wrong_in_a_file_of_keys(tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").write_text("keys:\n  - {sha256: gwk_x}\n")
    path = configured(tmp_path, identity={"partner": {"keys": f"file:{tmp_path}/keys.yaml"}})
    result = run("check", "-c", path)
    assert isinstance(result.exception, ConfigError)
    assert "keys.yaml line 2: keys.0: sha256 must be" in str(result.exception.problems[0])


@pytest.mark.parametrize("answers", [True, False])
def test_check_says_why_redis_may_lose_keys(tmp_path: Path, valkey: Embedded, answers: bool) -> None:
    url = valkey.url if answers else "unix:///nonexistent/redis.sock"
    path = configured(tmp_path, redis_url=url, identity={"partner": {"keys": "redis"}})
    said = run("check", "-c", path).stderr
    assert ("writes nothing to disk: set appendonly yes" if answers else "can't be checked from here") in said


def test_keys_in_an_embedded_redis_that_forgets_them_are_refused(tmp_path: Path) -> None:
    for url, said in (("embedded", "set redis_dir to a folder"), ("none", "redis_url is none")):
        result = run("check", "-c", configured(tmp_path, redis_url=url, identity={"partner": {"keys": "redis"}}))
        assert isinstance(result.exception, ConfigError)
        assert said in str(result.exception.problems[0])
        assert "gateway.yaml line" in str(result.exception.problems[0])

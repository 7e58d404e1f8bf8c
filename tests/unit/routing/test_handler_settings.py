"""Arguments of `@cached`: checked as the configuration is, where they are written."""

from typing import Any

import pytest

from gateway import cached
from tests.support.handlers import app_of, asked, is_hit, of


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"ttl": 10}, "ttl=10: invalid duration; .* write 10s for seconds"),
        ({"ttl": "30s", "authorization": "Key"}, "authorization='Key' may be .* did you mean key"),
        ({"ttl": "30s", "authorization": "ignored"}, "authorization='ignored' may be .* did you mean ignore"),
        ({"ttl": "30s", "vary": "x-tenant"}, r"vary='x-tenant' must be a list, such as \['x-tenant'\]"),
        ({"ttl": "30s", "vary": ["authorization"]}, "authorization can't be part of the cache key"),
        ({"ttl": "30s", "cookies": "sid"}, r"cookies='sid' may be .*\['sid'\]"),
        ({"ttl": "30s", "cookies": ["none"]}, "'none' is a mode, not a name; write pass"),
        ({"ttl": "30s", "query": ["all"]}, "'all' is a mode, not a name; leave query out"),
        ({"ttl": "30s", "max_body": "2 megabytes"}, "max_body='2 megabytes': invalid size"),
        ({"ttl": "30s", "edge": "yes"}, "edge='yes'"),
        ({"ttl": "30s", "tags": "all"}, "tags='all' must be a list"),
        ({"ttl": "origin", "vary": ["x-a"]}, "vary requires a duration as ttl"),
        ({"ttl": "30s", "key": ["usr"]}, r"key=\['usr'\] 'usr' isn't a parameter .* did you mean user"),
        ({"ttl": "30s", "key": "user"}, r"write key=\['user'\]"),
        ({"ttl": "30s", "key": ["user"], "edge": True}, "key can't be combined with edge=True"),
    ],
)
def test_an_argument_that_means_nothing_is_refused_where_it_stands(arguments: Any, said: str) -> None:
    async def handler(user: str) -> str:
        return user

    with pytest.raises(ValueError, match=rf"@cached on .*handler: .*{said}"):
        cached(**arguments)(handler)


async def test_a_size_is_written_as_in_the_configuration() -> None:
    async def handler() -> str:
        return "x" * 2000

    small, large = app_of(of(handler, max_body="1KiB")), app_of(of(handler, max_body="2MiB"))
    assert [is_hit((await asked(app, {}, {}))[1]) for app in (small, large)] == [False, True]

"""expressions: whatever a client sends, no expression of an aggregate makes its answer a 500."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx
import pytest

from gateway import create_app
from gateway.config.expressions import Expression
from gateway.testing import StubUpstream, running
from tests.support.scale import size

VALUES = [
    *("1", "", "1e999", "-1e999", "1e-999", "1e99999999999999999999", "NaN", "Infinity", "-0", "9" * 5000, "0x10"),
    *("null", "true", "[]", "{}", '"', "'", "\\", "a b", "é", "\U0001f600", "\ud800", "../../x", "{item}", "%", "`1`"),
    *("x" * 3000, ",,,", "1,2,1e999", "-", "+1", "1_000", "١", "1e", ".5", "@", "&a", "\t", "\x7f"),
]
OF = "query.n"
NUMBERS = [f"{name}(to_number({OF}))" for name in ("abs", "ceil", "floor", "to_string", "not_null", "type")]
TEXTS = [f"{name}({OF})" for name in ("length", "reverse", "keys", "values", "sort", "max", "to_array", "to_string")]
COMPARED = [f"to_number({OF}) {sign} `1`" for sign in ("<", "<=", ">", ">=", "==", "!=")]
OTHERS = [
    f"sum([to_number({OF}), `1`])",
    f"avg([to_number({OF}), `1`])",
    f"max([to_number({OF}), `1e400`])",
    f"sort([to_number({OF}), `1`])",
    f"sort_by([to_number({OF}), `1`], &@)",
    f"max_by([{OF}, `1`], &@)",
    f"join(',', [{OF}, `1`])",
    f"contains({OF}, `1`)",
    f"starts_with({OF}, '1')",
    f"map(&to_number(@), [{OF}])",
    f"merge({OF}, @)",
    f"{OF}[0]",
    f"{OF}[::-1]",
    f"{OF} && to_number({OF}) < {OF}",
    f"[?{OF} > `1`]",
    f"ceil(avg([to_number({OF})]))",
    f"floor(sum([to_number({OF}), to_number({OF})]))",
]
EXPRESSIONS = [*NUMBERS, *TEXTS, *COMPARED, *OTHERS]


def kinds() -> dict[str, Any]:
    """A route for each place where an expression or a template may take what a client sends."""
    up: dict[str, Any] = {"upstream": "api", "path": "/p", "ttl": "5s"}
    routes: dict[str, Any] = {}
    for number, text in enumerate(EXPRESSIONS):
        echo = {"upstream": "api", "path": "/echo?n={query.n}", "ttl": "5s"}
        own = text.replace(OF, "n")
        routes[f"when{number}"] = {"path": f"/when{number}", "parts": {"p": {**up, "when": text}}}
        routes[f"select{number}"] = {"path": f"/select{number}", "parts": {"p": {**echo, "select": own}}}
        each = {**up, "path": "/p/{item}", "for_each": f"e.[{own}]"}
        routes[f"each{number}"] = {"path": f"/each{number}", "parts": {"e": echo, "p": each}}
    templates = {
        "path": {**up, "path": "/p/{query.n}"},
        "pair": {**up, "path": "/p?n={query.n}"},
        "headers": {**up, "headers": {"x-n": "{query.n}"}},
        "tags": {**up, "tags": ["t-{query.n}"]},
        "body": {"upstream": "api", "path": "/p", "method": "POST", "body": {"n": "{query.n}"}},
    }
    routes |= {
        name: {"path": f"/{name}", "parts": {"p": {**part, "optional": True}}} for name, part in templates.items()
    }
    return routes


async def test_what_a_client_sends_never_makes_a_500(caplog: pytest.LogCaptureFixture) -> None:
    def echo(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"n": request.url.params.get("n")})

    routes = kinds()
    base = {"redis_url": "none", "access_log": False, "upstreams": {"api": {"url": "http://api.test"}}}
    async with running(create_app({**base, "routes": routes}, transport=StubUpstream(echo))) as http:
        for number, value in enumerate(VALUES):
            sent = quote(value.encode("utf-8", "surrogatepass"), safe="")
            for name in (
                each for at, each in enumerate(routes) if (number + at) % len(VALUES) < size("expression_values")
            ):
                answer = await http.get(f"/{name}?n={sent}")
                assert answer.status_code != 500, (name, value)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_value_too_deep_for_a_text_is_said_to_be_so() -> None:
    deep: Any = 1
    for _ in range(600):
        deep = [deep]
    with pytest.raises(ValueError, match="deep"):
        Expression("to_string(@)").search({"a": deep})

"""httpbin on waitress, an API that no one here wrote, behind the gateway: every read and write of it comes out right.

What the gateway answers is compared with what httpbin answers when it is asked directly: the status, the body, the
end-to-end fields. Where they rightly differ, that stands in the tables below, with the reason.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
import zlib
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import brotlicffi
import httpx
import pytest

from tests.support.processes import LISTENING, ROOT, Child, GatewayProcess

# Fields of a hop, or of a moment.
HOP = {"connection", "keep-alive", "transfer-encoding", "date"}
# What the gateway tells with every answer.
ADDED = {"x-request-id", "x-process-time", "server-timing", "cache-status", "age"}
SOFTWARE = {"server"}
"""What the gateway keeps to itself: it names the upstream's software."""
# On a route with a ttl of its own the promise is the gateway's, and so is the tag where httpbin gives none.
PROMISE = {"cache-control", "expires", "pragma"}
# Request fields, as httpbin echoes them, that rightly differ: of the hop, the gateway's own, and `Cache-Control`, by
# which the test passes by the cache. (httpbin itself hides X-Forwarded-* and Via.)
ECHOED = {"Connection", "X-Request-Id", "Via", "Surrogate-Capability", "Cache-Control"}
# What a route with a ttl of its own does not forward: it is in no key. The gateway asks in its own name.
NOT_FORWARDED = {"User-Agent", "Accept-Encoding"}


@dataclass(frozen=True)
class Read:
    """`compare` is `bytes`; `echo` where the answer tells of the request; `status` where it is random."""

    path: str
    headers: dict[str, str] = field(default_factory=dict)
    compare: str = "bytes"
    random: frozenset[str] = frozenset()
    """Response fields that differ each time."""
    unlike: frozenset[str] = frozenset()
    """Response fields that rightly differ: an upstream's own address in `Location` becomes the gateway's."""

    def __str__(self) -> str:
        return " ".join([self.path, *(f"{name}={value}" for name, value in self.headers.items())])


def echo(path: str, **headers: str) -> Read:
    return Read(path, {name.replace("_", "-"): value for name, value in headers.items()}, "echo")


FRESH_TAGS = frozenset(("etag", "last-modified"))
BASIC = {"Authorization": "Basic dXNlcjpwYXNz"}  # user:pass

READS = [
    Read("/robots.txt"),
    Read("/deny"),
    Read("/html"),
    Read("/xml"),
    Read("/json"),
    Read("/encoding/utf8"),
    Read("/forms/post"),
    Read("/links/5/2"),
    Read("/base64/R0FURVdBWQ=="),
    Read("/image", {"Accept": "image/webp"}),
    Read("/image", {"Accept": "image/jpeg"}),
    Read("/image", {"Accept": "text/plain"}),
    Read("/image/png"),
    Read("/image/svg"),
    Read("/bytes/1024?seed=1"),
    Read("/stream-bytes/2048?seed=1&chunk_size=100"),
    Read("/drip?duration=0.1&numbytes=5&code=200"),
    Read("/range/100"),
    Read("/range/100", {"Range": "bytes=10-19"}),
    Read("/range/100", {"Range": "bytes=-5"}),
    Read("/status/204"),
    Read("/status/401"),
    Read("/status/404"),
    Read("/status/418"),
    Read("/status/500"),
    Read("/status/503"),
    Read("/redirect/1"),
    Read("/relative-redirect/2"),
    Read("/absolute-redirect/1", unlike=frozenset(("location",))),
    Read("/redirect-to?url=https%3A%2F%2Fexample.com%2F&status_code=307"),
    Read("/response-headers?X-One=1&X-Two=a&X-Two=b"),
    Read("/response-headers?Cache-Control=max-age%3D60&Vary=Accept-Language"),
    Read("/response-headers?Set-Cookie=a%3Db%3B%20Path%3D%2F"),
    Read("/response-headers?ETag=%22quoted%22&Cache-Control=no-cache"),
    Read("/cookies/set?one=1&two=2"),
    Read("/cookies/set/three/3"),
    Read("/cookies/delete?one"),
    Read("/cookies", {"Cookie": "one=1; two=2"}),
    Read("/basic-auth/user/pass"),
    Read("/basic-auth/user/pass", BASIC),
    Read("/hidden-basic-auth/user/pass"),
    Read("/bearer"),
    Read("/bearer", {"Authorization": "Bearer a.b.c"}),
    Read("/etag/x", {"If-None-Match": "x"}),
    Read("/etag/x", {"If-Match": '"y"'}),
    Read("/uuid", compare="status"),
    echo("/etag/x"),
    Read("/cache", compare="echo", random=FRESH_TAGS),
    Read("/cache/60", compare="echo", random=FRESH_TAGS),
    echo("/get"),
    echo("/get?a=1&a=0&b=2&empty=&pct=%C3%A9%2F%26&plus=a+b"),
    echo("/headers", X_Own="1", Accept_Language="de, en;q=0.5"),
    echo("/headers", Accept="application/json"),
    echo("/ip"),
    echo("/gzip"),
    echo("/deflate"),
    echo("/brotli"),
    echo("/stream/3"),
    echo("/delay/0"),
    echo("/anything/a%20b/%C3%A9;v=1?x=1"),
]
# On a route with a ttl of its own these rightly differ: what is in no key is not forwarded; listed fields are forwarded
# in the form in which they are compared; a range outside of what is stored is refused by the gateway itself.
NOT_WITH_OWN_TTL = [
    echo("/user-agent"),
    echo("/headers", X_Own="1", Referer="https://example.com/"),
    Read("/range/100", {"Range": "bytes=200-"}),
]
# Passed by the cache alone: otherwise conditions are the gateway's to judge, and httpbin calls everything unmodified.
ONLY_PAST = [Read("/cache", {"If-Modified-Since": "Wed, 25 Nov 2026 00:00:00 GMT"}, random=FRESH_TAGS)]


class Behind:
    """httpbin, and a gateway in front of it."""

    def __init__(self, upstream: str, gateway: GatewayProcess) -> None:
        self.upstream = upstream
        self.gateway = gateway
        self.client = httpx.Client(timeout=10, headers={"Accept-Encoding": "br, deflate, gzip"})

    def direct(self, method: str, path: str, headers: dict[str, str], **more: Any) -> httpx.Response:
        return self._ask(method, self.upstream + path, headers, **more)

    def through(self, method: str, path: str, headers: dict[str, str], **more: Any) -> httpx.Response:
        return self._ask(method, self.gateway.url + path, headers, **more)

    def _ask(self, method: str, url: str, headers: dict[str, str], **more: Any) -> httpx.Response:
        """A response whose content is as it came, not decoded."""
        self.client.cookies.clear()
        with self.client.stream(method, url, headers=headers, **more) as response:
            raw = b"".join(response.iter_raw())
        kept = [(name, value) for name, value in response.headers.multi_items() if name != "content-encoding"]
        answer = httpx.Response(response.status_code, headers=kept, content=raw)
        answer.extensions["coding"] = response.headers.get("content-encoding")
        return answer


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    directory = tmp_path_factory.mktemp("httpbin")
    upstream = Child(
        [sys.executable, "-m", "tests.support.httpbin_upstream"], output=directory / "httpbin.out", cwd=ROOT
    )
    try:
        url = upstream.said(LISTENING)[1]
        kept = {"upstream": "api", "upstream_path": "/{path}", "ttl": "60s"}
        settings = {
            "compression": [],  # so that bytes and headers can be compared
            "upstreams": {"api": {"url": url}},
            "routes": {
                "rest": {"path": "/{path:path}", "upstream": "api"},
                "kept": {"path": "/kept/{path:path}", **kept, "vary": ["accept", "accept-language", "x-own"]},
                "keyed": {"path": "/keyed/{path:path}", **kept, "authorization": "key", "cookies": ["user"]},
            },
        }
        gateway = GatewayProcess(directory, settings)
        try:
            found = Behind(url, gateway)
            yield found
            found.client.close()
        finally:
            gateway.end()
    finally:
        upstream.end()


def fields(response: httpx.Response, without: set[str]) -> list[tuple[str, str]]:
    coding = response.extensions["coding"]
    unlike = HOP | ADDED | SOFTWARE | without
    found = [(name, value) for name, value in response.headers.multi_items() if name not in unlike]
    return sorted([*found, ("content-encoding", coding)] if coding else found)


def varying(response: httpx.Response) -> set[str]:
    return {name.strip().lower() for name in response.headers.get_list("vary", split_commas=True)}


def told(response: httpx.Response, without: set[str]) -> Any:
    """What an answer tells of the request: JSON, a document a line, without what rightly differs."""
    coding = response.extensions["coding"]
    decode = {"gzip": gzip.decompress, "deflate": zlib.decompress, "br": brotlicffi.decompress, None: bytes}[coding]
    text = decode(response.content).decode()
    documents = [json.loads(line) for line in text.splitlines()] if "}\n{" in text else [json.loads(text)]
    for document in documents:
        for name in without & set(document.get("headers", {})):
            del document["headers"][name]
    return documents


def assert_same(read: Read, direct: httpx.Response, through: httpx.Response, *, own_ttl: bool = False) -> None:
    assert through.status_code == direct.status_code
    differ = set(read.random | read.unlike)
    if own_ttl and direct.status_code in (200, 203, 204, 206, 301, 304, 308, 404, 410):
        differ |= PROMISE
        if "etag" not in direct.headers:
            differ.add("etag")
    # The whole of a streamed body is known once it is stored; what httpbin says of another request has another length.
    both = "content-length" in direct.headers and "content-length" in through.headers
    if read.compare != "bytes" or not both:
        differ.add("content-length")
    if own_ttl:  # what the key holds is said as well, and what passed by the cache is private
        differ.add("vary")
        assert varying(direct) <= varying(through)
        if "fwd=bypass" in through.headers["cache-status"]:
            differ.add("cache-control")
            assert "private" in through.headers["cache-control"]
    assert fields(through, differ) == fields(direct, differ)
    if read.compare == "bytes":
        assert through.content == direct.content
    elif read.compare == "echo":
        ignored = ECHOED | (NOT_FORWARDED if own_ttl else set())
        assert told(through, ignored) == told(direct, ignored)
    if "content-length" in through.headers and through.status_code not in (204, 304):
        assert int(through.headers["content-length"]) == len(through.content)


def test_a_304_that_nobody_asked_for_is_an_error_of_the_upstream(behind: Behind) -> None:
    assert behind.through("GET", "/status/304", {}).status_code == 502


@pytest.mark.parametrize("read", [*READS, *NOT_WITH_OWN_TTL, *ONLY_PAST], ids=str)
def test_a_read_passed_by_the_cache_is_as_httpbin_gives_it(behind: Behind, read: Read) -> None:
    direct = behind.direct("GET", read.path, read.headers)
    through = behind.through("GET", read.path, {**read.headers, "Cache-Control": "no-store"})
    assert through.headers["cache-status"].startswith("gateway; fwd=bypass")
    assert_same(read, direct, through)


@pytest.mark.parametrize("read", [*READS, *NOT_WITH_OWN_TTL], ids=str)
def test_a_read_is_as_httpbin_gives_it_twice_on_a_route_that_follows_it(behind: Behind, read: Read) -> None:
    direct = behind.direct("GET", read.path, read.headers)
    for _ in range(2):
        assert_same(read, direct, behind.through("GET", read.path, read.headers))


@pytest.mark.parametrize("read", READS, ids=str)
def test_a_read_is_as_httpbin_gives_it_twice_on_a_route_with_a_ttl_of_its_own(behind: Behind, read: Read) -> None:
    direct = behind.direct("GET", read.path, read.headers)
    for _ in range(2):
        assert_same(read, direct, behind.through("GET", "/kept" + read.path, read.headers), own_ttl=True)


@pytest.mark.parametrize(
    "path", ["/json", "/image/png", "/bytes/1024?seed=1", "/encoding/utf8", "/status/404", "/gzip", "/stream/3"]
)
def test_the_second_read_on_a_route_with_a_ttl_of_its_own_is_a_hit_with_the_same_bytes(
    behind: Behind, path: str
) -> None:
    first, second = (behind.through("GET", "/kept" + path, {"X-Own": "twice"}) for _ in range(2))
    assert first.headers["cache-status"].startswith("gateway; fwd=miss; stored")
    assert second.headers["cache-status"].startswith("gateway; hit")
    assert second.content == first.content
    assert fields(second, set()) == fields(first, set())


def test_what_httpbin_allows_to_be_kept_is_a_hit_and_what_it_only_tags_is_validated(behind: Behind) -> None:
    first, second = (behind.through("GET", "/cache/61", {}) for _ in range(2))
    assert second.headers["cache-status"].startswith("gateway; hit")
    assert second.content == first.content
    first, second = (behind.through("GET", "/etag/y", {}) for _ in range(2))
    assert "fwd-status=304" in second.headers["cache-status"]
    assert second.content == first.content
    assert second.headers["etag"] == "y"


@pytest.mark.parametrize(
    ("wanted", "part", "span"),
    [
        ("bytes=10-19", slice(10, 20), "bytes 10-19/150"),
        ("bytes=140-", slice(140, 150), "bytes 140-149/150"),
        ("bytes=-5", slice(145, 150), "bytes 145-149/150"),
    ],
)
def test_a_range_of_a_stored_answer_is_the_same_bytes_as_httpbins(
    behind: Behind, wanted: str, part: slice, span: str
) -> None:
    whole = behind.through("GET", "/kept/range/150", {})
    direct = behind.direct("GET", "/range/150", {"Range": wanted})
    through = behind.through("GET", "/kept/range/150", {"Range": wanted})
    assert through.headers["cache-status"].startswith("gateway; hit")
    assert (through.status_code, through.content) == (206, whole.content[part])
    assert through.content == direct.content
    assert through.headers["content-range"] == direct.headers["content-range"] == span


@pytest.mark.parametrize("path", ["/json", "/image/png", "/range/100", "/status/404", "/redirect/1", "/cache/60"])
@pytest.mark.parametrize("prefix", ["", "/kept"])
def test_head_has_the_fields_of_httpbins_head_and_no_body(behind: Behind, prefix: str, path: str) -> None:
    read = Read(path, random=FRESH_TAGS if "cache" in path else frozenset())
    direct = behind.direct("HEAD", path, {})
    for _ in range(2):
        through = behind.through("HEAD", prefix + path, {})
        assert through.content == b""
        differ = set(read.random) | ((PROMISE | {"etag", "vary"}) if prefix else set())
        if "cache" in path:  # its length is that of what it says of the request
            differ.add("content-length")
        assert through.status_code == direct.status_code
        assert fields(through, differ) == fields(direct, differ)


BODIES: list[tuple[str, dict[str, Any]]] = [
    ("json", {"json": {"a": [1, "é", None]}}),
    ("form", {"data": {"a": "1", "b": ["x y", "&="]}}),
    ("file", {"files": {"file": ("a.bin", bytes(range(256)), "application/octet-stream")}}),
    ("binary", {"content": bytes(range(256)) * 64}),
    ("chunked", {"content": "chunked"}),
    ("none", {}),
]


@pytest.mark.parametrize("body", [more for _, more in BODIES], ids=[name for name, _ in BODIES])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("prefix", ["", "/kept"])
def test_httpbin_gets_what_is_sent_and_its_echo_comes_back(
    behind: Behind, prefix: str, method: str, body: dict[str, Any]
) -> None:
    def more() -> dict[str, Any]:
        return {"content": iter([b"one ", b"two ", b"three"])} if body.get("content") == "chunked" else body

    headers = {"Content-Type": "multipart/form-data; boundary=edge"} if "files" in body else {}
    path = f"/{method.lower()}?q=1"
    direct = behind.direct(method, path, headers, **more())
    through = behind.through(method, prefix + path, headers, **more())
    assert direct.status_code == through.status_code == 200
    # An upstream that is told no length is told that there is none: it need not wait for a body.
    ignored = ECHOED | (set() if body else {"Content-Length"})
    assert told(through, ignored) == told(direct, ignored)
    differ = {"content-length", *({"vary", "cache-control"} if prefix else ())}  # a shared cache may keep none of these
    assert fields(through, differ) == fields(direct, differ)


def test_the_names_of_a_query_reach_the_upstream_sorted_their_values_in_their_order_trackers_not_at_all(
    behind: Behind,
) -> None:
    path = "/get?b=2&utm_source=x&a=2&a=1&gclid=y"
    direct, through = (ask("GET", path, {}).content for ask in (behind.direct, behind.through))
    assert json.loads(through)["url"] == f"{behind.upstream}/get?a=2&a=1&b=2"
    assert json.loads(through)["args"] == {"a": ["2", "1"], "b": "2"}
    assert json.loads(direct)["args"] == {"a": ["2", "1"], "b": "2", "utm_source": "x", "gclid": "y"}


def test_only_an_upstreams_own_address_in_a_redirect_becomes_the_gateways(behind: Behind) -> None:
    inside = behind.through("GET", "/absolute-redirect/1", {})
    outside = behind.through("GET", "/redirect-to?url=https%3A%2F%2Fexample.com%2Fget", {})
    assert inside.status_code == outside.status_code == 302
    assert inside.headers["location"].startswith("/")
    assert behind.upstream not in inside.headers["location"]
    assert outside.headers["location"] == "https://example.com/get"


USERS = 24


@pytest.mark.parametrize("prefix", ["", "/kept", "/keyed"], ids=["follows the upstream", "passes by", "keyed"])
async def test_the_cookies_and_credentials_of_users_never_cross(behind: Behind, prefix: str) -> None:
    url = behind.gateway.url + prefix

    async def asked(client: aiohttp.ClientSession, path: str, **headers: str) -> Any:
        async with client.get(url + path, headers=headers) as response:
            assert response.status == 200, (path, response.status, await response.text(), response.headers)
            return await response.json()

    async def one(client: aiohttp.ClientSession, user: str) -> list[str]:
        basic = "Basic " + b64encode(f"{user}:secret".encode()).decode()
        cookie, bearer = f"user={user}", f"Bearer {user}"
        async with client.get(f"{url}/cookies/set?user={user}", allow_redirects=False) as response:
            set_cookie = response.headers["Set-Cookie"].partition(";")[0]
        answers = [
            set_cookie.partition("=")[2],
            (await asked(client, "/cookies", Cookie=cookie))["cookies"]["user"],
            (await asked(client, "/bearer", Authorization=bearer))["token"],
            (await asked(client, "/headers", Authorization=bearer))["headers"]["Authorization"].partition(" ")[2],
            (await asked(client, "/headers", Cookie=cookie))["headers"]["Cookie"].partition("=")[2],
            (await asked(client, f"/basic-auth/{user}/secret", Authorization=basic))["user"],
        ]
        return [f"{user} got {answer}" for answer in answers if answer != user]

    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as client:
        wrong = await asyncio.gather(*(one(client, f"user{number}") for _ in range(4) for number in range(USERS)))
        async with client.get(f"{url}/bearer") as anonymous:
            assert anonymous.status == 401
        assert await asked(client, "/cookies") == {"cookies": {}}
    assert [what for each in wrong for what in each] == []

"""What is asked for, as a phone asks, and what the upstream and therefore every peer answers."""

from __future__ import annotations

KIB = 1024
PHONE = (
    "Host: 127.0.0.1",
    "User-Agent: ShopApp/7.2.1 (iPhone; iOS 19.1; Scale/3.00)",
    "Accept: application/json",
    "Accept-Language: en-GB,en;q=0.9",
    "Accept-Encoding: gzip, br",
    "X-App-Version: 7.2.1",
    "X-Platform: ios",
)
"""The eighth field is `X-Request-ID`, another for each request."""
SIZES = {"64B": 64, "1KiB": KIB, "16KiB": 16 * KIB, "256KiB": 256 * KIB}
AGGREGATES = ("joined", "spliced", "fanned")
"""First segments of the paths of aggregates of two parts in peers/compare.yaml."""


def body(size: int, number: str) -> bytes:
    """A JSON text of exactly `size` bytes that tells its number."""
    head = b'{"number":"%s","text":"' % number.encode()
    return head + b"x" * (size - len(head) - 2) + b'"}'


def path(size: str, number: int | str) -> str:
    return f"/cached/{size}/{number}"


def uncached_path(number: int | str) -> str:
    return f"/uncached/1KiB/{number}"


def request(path: str, number: int, *headers: str, content: str = "") -> bytes:
    """A phone's request for `path`, a POST if it has `content`; its X-Request-ID ends in `number` (below 10^11)."""
    identity = f"X-Request-ID: 5f0c2f6e-8b1d-4c3e-9a55-{100_000_000_000 + number}"
    line = f"{'POST' if content else 'GET'} {path} HTTP/1.1"
    return "\r\n".join((line, *PHONE, *headers, *content_fields(content), identity, "", content)).encode()


def content_fields(content: str) -> tuple[str, ...]:
    """The field lines of a request with this JSON text, in ASCII."""
    return ("Content-Type: application/json", f"Content-Length: {len(content)}") if content else ()

"""URLs inside the fields of an answer by which a client goes on: `Location`, `Content-Location`, `Link`, `Refresh`.

This finds the URLs; what becomes of one that names an upstream, the caller says.
"""

from __future__ import annotations

import re
from collections.abc import Callable

REFERRING = frozenset((b"location", b"content-location", b"link", b"refresh"))

_LINKED = re.compile(r"<([^<>]*)>")  # RFC 8288 §3: each target in angle brackets
# HTML's "shared declarative refresh steps": a time, a separator, perhaps `url=`, perhaps a quote.
_REFRESHED = re.compile(r"""(\s*[\d.]+\s*[;,\s]\s*(?:url\s*=\s*)?["']?)([^"']*)(.*)""", re.IGNORECASE | re.DOTALL)


# A browser drops tabs and line breaks from a URL, and takes a backslash for a slash (the URL Standard).
_LIKE_A_HOST = re.compile(r"[\s]*/[\s]*[/\\]")


def rooted(reference: str) -> str:
    """`reference`, a path with what follows it, so that nobody takes its beginning for another host: `//a/b` becomes
    `/.//a/b`, which is the same path (RFC 3986 §4.2, §5.2.4)."""
    return "/." + reference if _LIKE_A_HOST.match(reference) else reference


def replaced(name: bytes, value: bytes, public: Callable[[str], str]) -> bytes:
    """A field's value with `public` of each URL reference in it."""
    text = value.decode("latin-1")
    if name == b"link":
        text = _LINKED.sub(lambda found: f"<{public(found[1])}>", text)
    elif name == b"refresh":
        found = _REFRESHED.fullmatch(text)
        text = found[1] + public(found[2].strip()) + found[3] if found is not None else text
    else:
        text = public(text)
    return text.encode("latin-1")

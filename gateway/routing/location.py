"""URLs in the response fields that clients follow: `Location`, `Content-Location`, `Link`, `Refresh`.

This module finds the URLs; the caller replaces them.
"""

from __future__ import annotations

import re
from collections.abc import Callable

REFERRING = frozenset((b"location", b"content-location", b"link", b"refresh"))

DROPPED_IN_URLS = dict.fromkeys(map(ord, "\t\r\n"))
"""Characters that browsers, and `urlsplit`, remove from a URL: with them it would denote another target."""

MOST_LINKS = 100
"""Maximum number per field line: finding the public URL of one takes some 50 µs."""
# RFC 8288 §3: a target in angle brackets, its parameters, some of them quoted; then a comma or the end.
_LINK = re.compile(r"""[\s,]*<([^<>]*)>((?:[^",<>]|"(?:[^"\\]|\\.)*")*)(?:,|$)""")
_ANCHOR = re.compile(r"""(;\s*anchor\s*=\s*)("(?:[^"\\]|\\.)*"|[^\s;,"]+)""", re.IGNORECASE)
# HTML's "shared declarative refresh steps": a time, a separator, perhaps `url=`, perhaps a quote.
_REFRESHED = re.compile(r"""(\s*[\d.]+\s*[;,\s]\s*(?:url\s*=\s*)?["']?)([^"']*)(.*)""", re.IGNORECASE | re.DOTALL)


# A browser drops tabs and line breaks from a URL, and takes a backslash for a slash (the URL Standard).
_LIKE_A_HOST = re.compile(r"[\s]*/[\s]*[/\\]")


def rooted(reference: str) -> str:
    """`reference`, a path with its suffix, so that its beginning can't be taken for a host: `//a/b` becomes `/.//a/b`,
    which is the same path (RFC 3986 §4.2, §5.2.4)."""
    return "/." + reference if _LIKE_A_HOST.match(reference) else reference


def replaced(name: bytes, value: bytes, public: Callable[[str], str | None]) -> bytes | None:
    """A field's value with `public` of each URL reference in it. A link without one is removed; None if nothing is
    left."""
    text = value.decode("latin-1")
    if name == b"link":
        replacement = _links(text, public)
    elif name == b"refresh":
        replacement = _refresh(text, public)
    else:
        replacement = public(text)
    return None if replacement is None else replacement.encode("latin-1")


def _refresh(text: str, public: Callable[[str], str | None]) -> str | None:
    found = _REFRESHED.fullmatch(text)
    if found is None:
        return text
    replacement = public(found[2].strip())
    return None if replacement is None else found[1] + replacement + found[3]


def _links(text: str, public: Callable[[str], str | None]) -> str | None:
    """A malformed link is removed with everything behind it (RFC 8288, B.2); so are links beyond the limit."""
    links: list[str | None] = []
    end = 0
    while end < len(text) and len(links) < MOST_LINKS and (found := _LINK.match(text, end)) is not None:
        links.append(_link(found[1], found[2], public))
        end = found.end()
    return ", ".join(filter(None, links)) or (None if text.strip() else text)


def _link(target: str, parameters: str, public: Callable[[str], str | None]) -> str | None:
    replacement = public(target)
    if replacement is None:
        return None
    anchor = _ANCHOR.search(parameters)
    if anchor is not None:
        context = public(anchor[2].strip('"'))
        if context is None:  # of another place than clients can see
            return None
        parameters = f'{parameters[: anchor.start()]}{anchor[1]}"{context}"{parameters[anchor.end() :]}'
    return f"<{replacement}>{parameters.rstrip()}"

"""Targets in forms that must not lead away from an upstream's base."""

from __future__ import annotations

FORMS = [
    *("//evil.test/x", "///evil.test/x", "/\\evil.test/x", "\\\\evil.test/x", "/\\/evil.test", "@evil.test/"),
    *(":80@evil.test/", ".evil.test/", ":8080/x", "http://evil.test/", "https:evil.test", "/http://evil.test/"),
    *("/../secret", "/a/../../secret", "/./x", "/..", "/a/..", "/x/../../../etc/passwd"),
    *("", "x", "?x=1", "/x#fragment", "/x y", "/x\r\nHost: evil.test", "/x\0y"),
]

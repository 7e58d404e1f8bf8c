"""Structured fields, as far as a cache reads them: a dictionary's members (RFC 9651 §3.2, §4.2.2).

Pure. A field that breaks the syntax anywhere is no dictionary at all: it is to be ignored as a whole (§4.2), never
understood in part.
"""

from __future__ import annotations

import re

# What cannot be told apart by its first character alone stands before what can.
_KEY = r"[a-z*][a-z0-9_.*-]*"
_BARE_ITEM = (
    r"(?:-?[0-9]{1,12}\.[0-9]{1,3}(?![0-9.])"  # decimal
    r"|-?[0-9]{1,15}(?![0-9.])"  # integer
    r'|%"(?:[\x20-\x21\x23\x24\x26-\x7e]|%[0-9a-f]{2})*"'  # display string
    r'|"(?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*"'  # string
    r"|[A-Za-z*][A-Za-z0-9!#$%&'*+\-.^_`|~:/]*"  # token
    r"|:[A-Za-z0-9+/]*={0,2}:"  # byte sequence
    r"|\?[01]"  # boolean
    r"|@-?[0-9]{1,15})"  # date
)
_PARAMETERS = rf"(?:; *{_KEY}(?:={_BARE_ITEM})?)*"
_INNER_LIST = rf"\( *(?:{_BARE_ITEM}{_PARAMETERS}(?: +{_BARE_ITEM}{_PARAMETERS})* *)?\)"
_MEMBER = re.compile(rf"({_KEY})(?:=({_BARE_ITEM}|{_INNER_LIST}))?{_PARAMETERS}")
_COMMA = re.compile(r"[ \t]*,[ \t]*")


def dictionary(text: str) -> dict[str, str] | None:
    """The members of a dictionary, each value as it is written and without its parameters; a key alone is `?1`.

    Of a key that stands twice the last counts. None where `text` is not a dictionary; an empty one is.
    """
    members: dict[str, str] = {}
    text, position = text.strip(" "), 0
    while position < len(text):
        match = _MEMBER.match(text, position)
        if match is None:
            return None
        members[match[1]] = match[2] if match[2] is not None else "?1"
        position = match.end()
        if position == len(text):
            break
        comma = _COMMA.match(text, position)
        if comma is None or comma.end() == len(text):
            return None
        position = comma.end()
    return members

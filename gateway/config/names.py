"""Names in the configuration: deprecated names, words that mean a mode, the nearest known name, counts.

Pure. `query: all` would be the one parameter `all`: all others would be dropped, and two pages become one entry. So
such a word is refused with what to write. A list that has other names may hold one: `query: [origin, destination]`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping

RENAMED: Mapping[str, str] = {
    "breaker_rest": "breaker_open_for",
    "max_waiting": "max_queue",
    "purge_blind": "purge_disconnect_grace",
    "stop_delay": "shutdown_delay",
    "stop_timeout": "shutdown_timeout",
    "uncacheable_for": "hit_for_miss",
}
"""Deprecated names of settings, and the current ones. Every source accepts both, with a warning for the former."""


def current_name(name: str, fields: Iterable[str]) -> str:
    """The current name of a setting of a model with `fields`; `name` itself if it isn't a deprecated one."""
    current = RENAMED.get(name, name)
    return current if current in fields else name


_MODES = frozenset(
    (
        *("all", "none", "any", "off", "on", "ignore", "pass", "key", "origin", "default", "auto", "honour"),
        *("true", "false", "yes", "no", "null", "~"),
    )
)
_NEVER_NAMES = frozenset(("none", "*"))
"""Words that mean a mode beside other names, too."""
_NAMES_ALL_THE_SAME = {"vary": frozenset(("origin",)), "allow_headers": frozenset(("*",))}
_WRITE = {
    "query": "leave query out for all parameters, write [] for none",
    "drop_query": "write [] to drop none, and `query: []` on a route for no parameter at all",
    "vary": "leave vary out for accept and accept-language, write [] for none",
    "cookies": "write pass, ignore, or a list of cookies' names",
    "tags": "leave tags out for none",
    "allow_methods": "expected a list of methods, such as [GET, HEAD, POST]",
    "allow_headers": "write '*' for all, [] for none",
    "expose_headers": "list the headers, write [] for none",
    "allow": "leave allow out for all, or list the paths to keep",
    "deny": "leave deny out for none, or list the paths to remove",
}


def refuse_modes(setting: str, value: object) -> None:
    """Raises ValueError where `value`, a list of names or one name, is nothing but words that mean a mode. `setting` is
    the last word of the setting's key."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} isn't a name; {_what_to_write(setting)}")
    given = value.split(",") if isinstance(value, str) else value
    names = [each.strip() if isinstance(each, str) else each for each in given] if isinstance(given, Iterable) else []
    texts = [name.lower() if isinstance(name, str) else "" for name in names]
    known = _NAMES_ALL_THE_SAME.get(setting, frozenset[str]())
    if setting == "tags" and not isinstance(value, str):
        known = _MODES - _NEVER_NAMES  # tags are words of the operator's own: `tags: [all]` is the tag all
    modes = [text for text in texts if text in _MODES | _NEVER_NAMES and text not in known]
    if modes and (len(modes) == len(texts) or not _NEVER_NAMES.isdisjoint(modes)):
        raise ValueError(f"{modes[0]!r} is a mode, not a name; {_what_to_write(setting)}")


def no_modes(setting: str) -> Callable[[object], object]:
    """A validator that `refuse_modes` of a setting."""

    def check(value: object) -> object:
        refuse_modes(setting, value)
        return value

    return check


def _what_to_write(setting: str) -> str:
    return _WRITE.get(setting, "list the names, write [] for none")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `name` was probably meant to be, or None."""
    found = difflib.get_close_matches(name.lower(), list(known), n=1)
    return found[0] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    near = nearest(name, known)
    return f"; did you mean {near}?" if near else ""


def misspelt(word: str, choices: Iterable[str]) -> str:
    """A hint for one of a few choices that the message lists anyway: only if the word is one or two edits away. A
    similar word may mean the opposite, such as never and forever."""
    near = [choice for choice in choices if _edits(word.lower(), choice.lower()) <= max(1, min(2, len(choice) // 3))]
    return f"; did you mean {near[0]}?" if len(near) == 1 else ""


def _edits(one: str, other: str) -> int:
    """The number of letters to add, remove, replace or swap with the next (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        older, before, row = before, row, [i]
        for j, wanted in enumerate(other, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != wanted)))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                row[-1] = min(row[-1], older[j - 2] + 1)
    return row[-1]


def counted(number: int, what: str) -> str:
    """`1 route`, `2 routes`."""
    return f"{number} {what}{'' if number == 1 else 's'}"

"""What a name that is not known was probably meant to be, and numbers of things in words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `name` was probably meant to be, or None."""
    found = difflib.get_close_matches(name.lower(), list(known), n=1)
    return found[0] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    near = nearest(name, known)
    return f"; did you mean {near}?" if near else ""


def misspelt(word: str, choices: Iterable[str]) -> str:
    """The hint for one of few choices that a message lists anyway: where it is a slip of one or two letters. What is
    merely alike may mean the opposite, as never and forever."""
    near = [choice for choice in choices if _edits(word.lower(), choice.lower()) <= max(1, min(2, len(choice) // 3))]
    return f"; did you mean {near[0]}?" if len(near) == 1 else ""


def _edits(one: str, other: str) -> int:
    """How many letters must be added, left out, replaced or swapped with the next (optimal string alignment)."""
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

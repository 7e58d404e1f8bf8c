"""Changes of a message's fields that are the same for all messages of a route or an upstream. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.http.headers import Headers

Field = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class FieldChanges:
    """Fields that are taken out, then those that are put in; names are in lower case. One that is set is in both."""

    removed: frozenset[bytes] = frozenset()
    added: tuple[Field, ...] = ()

    @classmethod
    def of(cls, put: Mapping[str, str], added: Mapping[str, Sequence[str]], removed: Sequence[str]) -> FieldChanges:
        """`put` replaces fields of its names, `added` comes beside them."""
        pairs = [*put.items(), *((name, value) for name, values in added.items() for value in values)]
        names = (name.encode("latin-1") for name in (*put, *removed))
        lines = tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs)
        return cls(frozenset(names), lines) if lines or removed else NO_CHANGES

    def __bool__(self) -> bool:
        return bool(self.removed or self.added)

    @property
    def names(self) -> frozenset[bytes]:
        return self.removed | {name for name, _ in self.added}

    def applied(self, headers: Headers) -> list[Field]:
        return [*(pair for pair in headers if pair[0] not in self.removed), *self.added]

    def then(self, later: FieldChanges) -> FieldChanges:
        """These changes, and `later` ones after them."""
        if self is NO_CHANGES or later is NO_CHANGES:
            return later if self is NO_CHANGES else self
        kept = (pair for pair in self.added if pair[0] not in later.removed)
        return FieldChanges(self.removed | later.removed, (*kept, *later.added))

    def without(self, name: bytes) -> FieldChanges:
        """These changes but for those of one field."""
        kept = tuple(pair for pair in self.added if pair[0] != name)
        left = self.removed - {name}
        return FieldChanges(left, kept) if left or kept else NO_CHANGES

    @property
    def text(self) -> str:
        """Identifies these changes."""
        names = sorted(name.decode("latin-1") for name in self.removed)
        lines = [f"{name.decode('latin-1')}:{value.decode('latin-1')}" for name, value in self.added]
        return "\n".join([",".join(names), *lines])


NO_CHANGES = FieldChanges()
"""The result of `of` without changes, comparable by identity."""

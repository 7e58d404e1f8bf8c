"""Tags that name claims of a principal: `user:{claim.sub}`. Pure.

Tags are stored in Redis, which must not contain personal values: of such a tag, what is stored is the text before its
first value and a keyed digest of the whole. A purge of `user:alice` finds the entries by the same digest, so the purge
stream doesn't have the name either.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from gateway.policy.identity_key import IdentityKey

_VALUE = re.compile(r"\{(?:claim\.(?P<claim>[^{}]+)|(?P<parameter>[A-Za-z_][A-Za-z0-9_]*))\}")


def claims_of(template: str) -> tuple[str, ...]:
    """The claims that a tag names."""
    return tuple(found["claim"] for found in _VALUE.finditer(template) if found["claim"] is not None)


def hidden(template: str, text: str, identity_key: IdentityKey) -> str:
    """The stored form of a tag that names claims; `text` is the tag with its values."""
    return f"{template.partition('{')[0]}~{identity_key.digest('tag', text)}"


def render_tags(
    templates: Iterable[str],
    parameters: Mapping[str, str],
    claims: Mapping[str, str],
    identity_key: IdentityKey,
) -> tuple[str, ...]:
    """Tags with values of path parameters and claims; without those that name a claim which isn't there, as none is in
    a request without a credential. An unknown parameter stays as it is written."""
    return tuple(
        tag for template in templates if (tag := _rendered(template, parameters, claims, identity_key)) is not None
    )


def _rendered(
    template: str, parameters: Mapping[str, str], claims: Mapping[str, str], identity_key: IdentityKey
) -> str | None:
    names = claims_of(template)
    if any(name not in claims for name in names):
        return None

    def value(found: re.Match[str]) -> str:
        return claims[found["claim"]] if found["claim"] is not None else parameters.get(found["parameter"], found[0])

    text = _VALUE.sub(value, template)
    return hidden(template, text, identity_key) if names else text


class TagNames:
    """All tags of a configuration, by which a purge finds the stored form of a tag."""

    def __init__(self, templates: Iterable[str]) -> None:
        templates = [*dict.fromkeys(templates)]
        self._hidden = [(each, _pattern(each)) for each in templates if claims_of(each)]
        self._clear = [_pattern(each) for each in templates if not claims_of(each)] if self._hidden else []

    def stored(self, tags: Iterable[str], identity_key: IdentityKey) -> list[str]:
        """The stored forms of `tags`: the tag itself, unless it can only be one that names claims."""
        found: dict[str, None] = {}
        for tag in tags:
            forms = [hidden(template, tag, identity_key) for template, each in self._hidden if each.fullmatch(tag)]
            if not forms or any(each.fullmatch(tag) for each in self._clear):
                forms.append(tag)
            found.update(dict.fromkeys(forms))
        return list(found)


def _pattern(template: str) -> re.Pattern[str]:
    pieces = _VALUE.split(template)[::3]  # between the values, each of which is two groups
    return re.compile(".+".join(map(re.escape, pieces)), re.DOTALL)

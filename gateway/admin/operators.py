"""Who may do what at the admin listener: the one token for everything, named tokens with roles, and signed tokens of an
issuer whose claim gives roles.

Decides who sent a request and what that allows; `admin.app` refuses what it doesn't.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hmac import compare_digest

from gateway.app.generation import Generation
from gateway.config.admin import ROLES, AdminIdentityConfig, Role
from gateway.identity.admission import NotAdmitted
from gateway.identity.principal import MissingClaim, Principal

LONGEST_NAME = 64


def printable(name: str) -> str:
    """A name for the log and the audit list: without control characters, of a bounded length."""
    return "".join(char for char in name if char.isprintable())[:LONGEST_NAME].strip()


@dataclass(frozen=True)
class Operator:
    """The sender of a valid admin credential. `name` is empty for the one token that all operators share."""

    name: str
    roles: frozenset[str]

    def who(self, given: str, address: str) -> str:
        """Who made a change: the name of the credential, the name that the client gave, and its address. Only the first
        is verified."""
        said = printable(given)
        named = f"{self.name}, for {said}" if self.name and said else self.name or said
        return f"{named} ({address})" if named else address


class Operators:
    """`gateway` returns the current generation; `token` is the one for everything."""

    def __init__(self, gateway: Callable[[], Generation], token: str | None) -> None:
        self._gateway = gateway
        self._token = token

    def __repr__(self) -> str:
        return f"<Operators {' '.join(self._gateway().config.admin_tokens)}>"

    @property
    def exist(self) -> bool:
        """Whether any credential is accepted."""
        config = self._gateway().config
        return bool(self._token or config.admin_tokens or config.admin_identity)

    async def of(self, credential: str) -> Operator | None:
        """The sender of a credential; None if it is invalid. Raises NotAdmitted (503) if it can't be verified now."""
        given, found = credential.encode(), None
        # All are compared, so that the time tells nothing.
        if self._token and compare_digest(given, self._token.encode()):
            found = Operator("", ROLES)
        for name, each in self._gateway().config.admin_tokens.items():
            if compare_digest(given, each.token.get_secret_value().encode()):
                found = found or Operator(name, frozenset(each.roles))
        return found or await self._of_issuer(given)

    async def _of_issuer(self, credential: bytes) -> Operator | None:
        gateway = self._gateway()
        config = gateway.config.admin_identity
        if config is None or credential.count(b".") != 2:
            return None
        try:
            principal = await gateway.worker_state.providers[config.issuer].verified(credential)
        except NotAdmitted as refused:
            if refused.status == 503:
                raise
            return None
        return Operator(_name(principal), roles_of(principal, config))


def roles_of(principal: Principal, config: AdminIdentityConfig) -> frozenset[str]:
    """The roles that a principal's claim gives."""
    try:
        value = principal.claim(config.claim)
    except MissingClaim:
        return frozenset()
    values = value if isinstance(value, list) else [value]
    roles: list[Role] = [role for each in values if isinstance(each, str) for role in config.roles.get(each, ())]
    return frozenset(roles)


def _name(principal: Principal) -> str:
    return printable(f"{principal.subject or 'unnamed'} of {principal.provider}")

"""The configuration of `identity`: who issues credentials, and how they are verified. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, create_model, field_validator, model_validator

from gateway.config.names import did_you_mean
from gateway.config.types import FIELD_NAME, NEVER_CONSTANT, Duration, Model, TextList, check_url
from gateway.http.headers import HOP_BY_HOP, is_dangerous

ASYMMETRIC = (*("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519", "EdDSA"),)
SYMMETRIC = ("HS256", "HS384", "HS512")
LEAST_SECRET = {"HS256": 32, "HS384": 48, "HS512": 64}
"""Bytes (RFC 7518 §3.2)."""
_COOKIE_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def _check_jwks(value: Any) -> Any:
    if value == "auto" or isinstance(value, dict):
        return value
    if isinstance(value, str) and value.startswith("file:") and len(value) > len("file:"):
        return value
    if isinstance(value, str) and value.startswith(("http://", "https://")):
        return check_url(value.partition("?")[0]) and value
    raise ValueError("must be auto (discovery), a URL, file:PATH, or the key set itself (`{keys: [...]}`)")


def _check_algorithms(names: list[str]) -> list[str]:
    for name in names:
        if name.lower() == "none":
            raise ValueError("`none` is no signature; list algorithms such as RS256, ES256, Ed25519")
        if name not in ASYMMETRIC and name not in SYMMETRIC:
            raise ValueError(f"{name!r} isn't a supported algorithm; expected some of {', '.join(ASYMMETRIC)}")
    if not names:
        raise ValueError("must list at least one algorithm, such as RS256")
    return names


def _check_sources(sources: list[str]) -> list[str]:
    checked = []
    for source in sources:
        kind, _, name = source.partition(":")
        if kind.lower() == "cookie" and _COOKIE_NAME.fullmatch(name):
            checked.append(f"cookie:{name}")
        elif not FIELD_NAME.fullmatch(source):
            raise ValueError(f"{source!r} is neither a header nor `cookie:NAME`")
        else:
            checked.append(source.lower())
    if not checked:
        raise ValueError("must list at least one header or cookie, such as authorization")
    return checked


def _check_keys(value: str) -> str:
    if value == "redis" or (value.startswith("file:") and len(value) > len("file:")):
        return value
    raise ValueError("must be redis, or file:PATH for a file of keys such as file:keys.yaml")


def _check_header(value: str) -> str:
    if not FIELD_NAME.fullmatch(value):
        raise ValueError("must be a header's name, such as x-api-key")
    return value.lower()


class IntrospectConfig(Model):
    """The endpoint that says whether a token is valid, and what it says (RFC 7662)."""

    upstream: str
    """The name of the upstream that is asked."""
    path: Annotated[str, AfterValidator(lambda value: _check_path(value))] = "/introspect"
    """The path of the endpoint there."""
    client_id: str
    """The gateway's name there, sent by Basic authentication."""
    client_secret: SecretStr
    """Its secret. Set it by an environment variable, or a file that one names."""
    cache: Annotated[Duration, Field(le=timedelta(hours=1))] = timedelta(seconds=60)
    """How long a worker remembers that a token is valid: at most until the token ends. So long a token that is revoked
    there may still be accepted; `0s` asks for each request."""
    negative: Annotated[Duration, Field(le=timedelta(hours=1))] = timedelta(seconds=10)
    """How long it remembers that a token is not."""

    @field_validator("client_id")
    @classmethod
    def _named(cls, value: str) -> str:
        if not value:
            raise ValueError("must be the gateway's name at the endpoint")
        return value


def _check_path(value: str) -> str:
    if not value.startswith("/") or any(char in value for char in "?# "):
        raise ValueError("must be a path such as /introspect")
    return value


class _IssuerConfig(Model):
    # All of IssuerConfig but `from`.

    issuer: str = ""
    """For signed tokens (JWT): the issuer's URL. A token's `iss` is equal to it, character by character."""
    keys: Annotated[str, AfterValidator(_check_keys)] | None = None
    """For API keys: where they are. `redis`: made by `gateway keys create`, in force in the whole fleet. `file:PATH`: a
    YAML file of digests, which is read again when it changes."""
    header: Annotated[str, AfterValidator(_check_header)] = "x-api-key"
    """With `keys`: the request header that has the key; `authorization` for `Bearer`."""
    introspect: IntrospectConfig | None = None
    """For opaque tokens: the endpoint that knows them (RFC 7662)."""
    jwks: Annotated[str | dict[str, Any], BeforeValidator(_check_jwks)] = "auto"
    """Where its keys are: `auto` (OpenID Connect Discovery, RFC 8414), the URL of a JWK Set, `file:PATH`, or the set
    itself."""
    audience: TextList = []
    """The audiences for which tokens are accepted; a token's `aud` has one of them. Required for signed tokens."""
    algorithms: Annotated[TextList, AfterValidator(_check_algorithms)] = ["RS256", "ES256", "Ed25519"]
    """The algorithms of accepted signatures. HS256, HS384 and HS512 require `secret`; `EdDSA` is the older name of
    `Ed25519`."""
    secret: SecretStr | None = None
    """The secret that the issuer shares with the gateway, for HS256, HS384 and HS512: at least as many bytes as the
    digest (32, 48, 64). Set it by an environment variable."""
    leeway: Annotated[Duration, Field(le=timedelta(minutes=10))] = timedelta(seconds=30)
    """How far the issuer's clock may differ."""
    jwks_refresh: Annotated[Duration, Field(ge=timedelta(seconds=10))] = timedelta(minutes=5)
    """How often keys are fetched. A key that the issuer has removed is refused within that time."""
    jwks_stale: Annotated[Duration, Field(ge=timedelta(minutes=1))] = timedelta(hours=24)
    """How long the last keys are used while the issuer can't be reached. Afterwards its tokens get 503."""
    unknown_kid_every: Annotated[Duration, Field(ge=timedelta(seconds=1))] = timedelta(seconds=10)
    """How often, in the whole fleet, a token signed with an unknown key makes the gateway fetch the keys."""
    tokens: Annotated[int, Field(ge=0, le=1_000_000)] = 10_000
    """How many verified tokens each worker remembers."""
    ca_file: str | None = None
    """A file of trusted certificate authorities (PEM) for requests to the issuer. Default: as for upstreams."""

    @field_validator("issuer")
    @classmethod
    def _issuer(cls, value: str) -> str:
        if not value:
            return value
        parts = urlsplit(value)
        if any(char.isspace() for char in value):
            raise ValueError("must be the issuer's URL, such as https://id.example.com")
        if parts.scheme in ("http", "https") and not parts.hostname:
            raise ValueError("must be a URL with a host, such as https://id.example.com")
        return value

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        kinds = [name for name in KINDS if getattr(self, name)]
        if len(kinds) != 1:
            if not kinds and "issuer" in self.model_fields_set:
                raise ValueError("issuer must be the issuer's URL, such as https://id.example.com")
            found = f"can't be combined: {' and '.join(kinds)}; give each an entry of its own" if kinds else _KINDLESS
            raise ValueError(found)
        for name in self.model_fields_set:
            if name not in KINDS and name not in KINDS[kinds[0]]:
                owner = next(kind for kind, settings in KINDS.items() if name in settings)
                raise ValueError(f"{name} requires `{owner}`, and can't be combined with `{kinds[0]}`")
        return self._of_tokens() if self.issuer else self

    def _of_tokens(self) -> Self:
        symmetric = [name for name in self.algorithms if name in SYMMETRIC]
        if symmetric and self.secret is None:
            raise ValueError(f"{symmetric[0]} requires `secret`, which the issuer shares with the gateway")
        if self.secret is not None:
            if not symmetric or len(symmetric) < len(self.algorithms):
                raise ValueError("`secret` is for HS256, HS384 and HS512 alone: list only these as algorithms")
            least = max(LEAST_SECRET[name] for name in symmetric)
            if len(self.secret.get_secret_value().encode()) < least:
                raise ValueError(
                    f"secret must have at least {least} bytes, such as the output of `openssl rand -hex 32`"
                )
        elif self.jwks == "auto" and urlsplit(self.issuer).scheme not in ("http", "https"):
            raise ValueError("jwks: auto requires an http:// or https:// URL as issuer; set jwks")
        if not self.audience:
            raise ValueError("audience is required: tokens for other services must not be accepted; list the gateway's")
        return self

    @property
    def sources(self) -> list[str]:
        """The settings `header` and `from`, of which one applies."""
        found: list[str] = [self.header] if self.keys is not None else getattr(self, "from")
        return found

    @property
    def issues_by_url(self) -> bool:
        """Whether clients can find where to get tokens: by the issuer's metadata (RFC 8414)."""
        return self.issuer.startswith(("https://", "http://"))

    @property
    def other_fields(self) -> list[str]:
        """Those of its sources that have no meaning in HTTP."""
        return [name for name in self.sources if name != "authorization" and not name.startswith("cookie:")]


_KINDLESS = "needs issuer (signed tokens), keys (API keys) or introspect (opaque tokens)"
KINDS = {
    "issuer": (
        *("jwks", "audience", "algorithms", "secret", "leeway", "jwks_refresh", "jwks_stale", "unknown_kid_every"),
        *("tokens", "ca_file", "from"),
    ),
    "keys": ("header",),
    "introspect": ("audience", "leeway", "tokens", "from"),
}
"""The setting that tells each kind of credentials, and what else applies to it."""
_FROM = """Where tokens are: `authorization` (as `Bearer`), another header, or `cookie:NAME`. The first that is present
counts."""

if TYPE_CHECKING:

    class IssuerConfig(_IssuerConfig): ...

else:
    # `from` is a keyword: no class statement can have a field of that name.
    IssuerConfig = create_model(
        "IssuerConfig",
        __base__=_IssuerConfig,
        __doc__="An issuer of credentials that the gateway verifies: signed tokens (JWT), API keys, or opaque tokens.",
        __module__=__name__,
        **{
            "from": (
                Annotated[TextList, AfterValidator(_check_sources), Field(description=" ".join(_FROM.split()))],
                ["authorization"],
            )
        },
    )


class RequireConfig(Model):
    """What a credential must say for a request to be let in; otherwise the response is 403."""

    scopes: TextList = []
    """Scopes, all of which the credential must have."""
    claims: dict[str, Annotated[list[str | int | bool], BeforeValidator(lambda value: _listed(value))]] = {}
    """Claims by name, and the accepted values: one of them must be the claim's, or in it if the claim is a list."""


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


OF_IDENTITY = ("optional", "require", "per", "forward", "forward_token", "downstream")
"""The settings of a route that require `identity`."""


def check_claim_field(name: str) -> str:
    """The name, in lower case, of a request header that is made of a claim. Raises ValueError."""
    lower = name.lower()
    encoded = lower.encode("latin-1", "replace")
    if not FIELD_NAME.fullmatch(name):
        raise ValueError(f"{name!r} isn't a valid header name")
    if (
        encoded in NEVER_CONSTANT
        or encoded in HOP_BY_HOP
        or is_dangerous(encoded)
        or lower in ("cookie", "authorization")
    ):
        raise ValueError(f"{name} can't be made of a claim: it has a meaning of its own")
    return lower


def needs_of_issuers(
    issuers: Mapping[str, IssuerConfig], upstreams: Iterable[str], redis_url: str, redis_dir: str | None
) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """What issuers of credentials need that is not there: the setting, what is wrong, and its value."""
    known = list(upstreams)
    for name, issuer in issuers.items():
        if issuer.introspect is not None and (upstream := issuer.introspect.upstream) not in known:
            hint = did_you_mean(upstream, known) or f"; there are: {', '.join(known) or 'none'}"
            yield ("identity", name, "introspect", "upstream"), f"there is no upstream {upstream!r}{hint}", upstream
        if issuer.keys == "redis" and (lack := _lacks_for_keys(redis_url, redis_dir)) is not None:
            yield ("identity", name, "keys"), f"requires a Redis that keeps its data: {lack}", "redis"


def _lacks_for_keys(redis_url: str, redis_dir: str | None) -> str | None:
    """Why Redis would lose API keys; None if that can't be said from here."""
    if redis_url == "none":
        return "redis_url is none; set it to a Redis, or keys to file:PATH"
    if redis_url == "embedded" and redis_dir is None:
        return "the embedded one loses all when it ends; set redis_dir to a folder, or keys to file:PATH"
    return None

"""Admission: which credential counts, and what a request looks like behind it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.config.route import RouteConfig
from gateway.identity.admission import Admission, Epoch, NotAdmitted, admission_of, as_field_value
from gateway.identity.principal import Principal
from gateway.policy.identity_key import IdentityKey

KEY = IdentityKey(b"k" * 32)


class Stub:
    """A provider whose credentials are users' names, behind its prefix."""

    def __init__(self, name: str, *sources: str, prefix: bytes = b"") -> None:
        self.name = name
        self.sources = sources or ("authorization",)
        self.prefix = prefix
        self.epoch = Epoch()
        self.remembered: dict[bytes, Principal] = {}

    def known(self, credential: bytes) -> Principal | None:
        return self.remembered.get(credential)

    def holds_until(self, principal: Principal) -> float:
        return 100.0

    def recognises(self, credential: bytes) -> bool:
        return credential.startswith(self.prefix)

    def verified_at_once(self, credential: bytes) -> Principal | None:
        return None if credential.endswith(b" waits") else self._verified(credential)

    async def verified(self, credential: bytes) -> Principal:
        return self._verified(credential)

    def _verified(self, credential: bytes) -> Principal:
        if not self.recognises(credential):
            raise NotAdmitted(401, "invalid_token", "The token is invalid.", "form")
        user = credential.removeprefix(self.prefix).decode("latin-1")
        principal = Principal(provider=self.name, issuer=self.name, claims={"sub": user}, scopes=frozenset({"a", "b"}))
        self.remembered[credential] = principal
        return principal


async def admitted(admission: Admission, *headers: tuple[bytes, bytes]) -> tuple[dict[bytes, bytes], Principal | None]:
    fields, principal = await admission.admit(list(headers), KEY)
    return dict(fields), principal


async def refusal(admission: Admission, *headers: tuple[bytes, bytes]) -> NotAdmitted:
    with pytest.raises(NotAdmitted) as refused:
        await admission.admit(list(headers), KEY)
    return refused.value


async def test_the_credential_leaves_and_its_partition_comes() -> None:
    admission = Admission((Stub("shop"),), per=("sub",), claims={"x-user": "sub"})
    fields, principal = await admitted(admission, (b"authorization", b"Bearer anna"), (b"accept", b"a/b"))
    assert set(fields) == {b"accept", b":principal", b"x-user"}
    assert fields[b"x-user"] == b"anna"
    assert b"anna" not in fields[b":principal"]
    assert principal is not None
    assert principal.subject == "anna"


@pytest.mark.parametrize("value", [b"Bearer  anna", b"bearer anna", b"BEARER anna "])
async def test_the_scheme_is_read_in_any_case(value: bytes) -> None:
    _, principal = await admitted(Admission((Stub("shop"),)), (b"authorization", value))
    assert principal is not None


@pytest.mark.parametrize("value", [b"Bearer", b"Bearer ", b"Bearer a b", b"bearer: anna"])
async def test_a_bearer_field_without_one_token_is_malformed(value: bytes) -> None:
    refused = await refusal(Admission((Stub("shop"),)), (b"authorization", value))
    assert (refused.status, refused.error) == (400, "invalid_request")


@given(
    st.text(" \tBEARERbearer.a\x00\x1c\x85\xa0\xff", max_size=12)
    | st.text(" \t\x0b\x1f\xa0a", max_size=6).map("Bearer ".__add__)
)
@example("bearer a")
async def test_a_bearer_field_is_its_scheme_spaces_and_one_word(text: str) -> None:
    field = [(b"authorization", text.encode("latin-1"))]
    match = re.fullmatch(r"(?i:bearer) +(\S+) *", text)
    shop, status = Stub("shop"), 0
    try:
        await Admission((shop,), optional=True).principal(field)
    except NotAdmitted as refused:
        status = refused.status
    assert [*shop.remembered] == ([] if match is None else [match[1].encode("latin-1")])
    assert status == (400 if match is None and text.lower().startswith("bearer") else 0)


@pytest.mark.parametrize("value", [b"Basic YTpi", b"", b"anna"])
async def test_another_scheme_is_no_credential(value: bytes) -> None:
    refused = await refusal(Admission((Stub("shop"),)), (b"authorization", value))
    assert (refused.status, refused.error, refused.reason) == (401, "", "missing")


async def test_what_clients_may_not_say_is_removed_with_and_without_a_credential() -> None:
    admission = Admission((Stub("shop"),), optional=True, per=("sub",), claims={"x-user": "sub"})
    forged = [(b"x-user", b"berta"), (b":principal", b"0"), (b"x-user", b"carla")]
    fields, principal = await admitted(admission, *forged)
    assert (fields, principal) == ({}, None)
    fields, _ = await admitted(admission, *forged, (b"authorization", b"Bearer anna"), (b"connection", b"x-user, x-b"))
    assert fields[b"x-user"] == b"anna"
    assert b"connection" not in fields


async def test_the_framing_of_a_body_stays_whatever_connection_names() -> None:
    named = (b"connection", b"content-length, transfer-encoding, x-a")
    fields, _ = await admitted(
        Admission((Stub("shop"),)), (b"authorization", b"Bearer a"), named, (b"content-length", b"3"), (b"x-a", b"1")
    )
    assert set(fields) == {b"content-length", b":principal"}


async def test_of_several_providers_the_one_that_recognises_the_credential_verifies_it() -> None:
    admission = Admission((Stub("one", prefix=b"1:"), Stub("two", prefix=b"2:")))
    for credential, name in ((b"1:anna", "one"), (b"2:anna", "two")):
        _, principal = await admitted(admission, (b"authorization", b"Bearer " + credential))
        assert principal is not None
        assert principal.provider == name
    assert (await refusal(admission, (b"authorization", b"Bearer 3:anna"))).status == 401


async def test_a_header_or_cookie_is_a_source_of_its_own() -> None:
    admission = Admission((Stub("token"), Stub("key", "x-api-key", "cookie:key")))
    _, principal = await admitted(admission, (b"x-api-key", b"anna"))
    assert principal is not None
    assert principal.provider == "key"
    fields, principal = await admitted(admission, (b"cookie", b"a=1; key=anna"), (b"cookie", b"key2=c"))
    assert principal is not None
    assert [fields[b"cookie"]] == [b"key2=c"]


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")],
        [(b"cookie", b"t=a; t=b")],
        [(b"cookie", b"t=a"), (b"cookie", b"t=b")],
    ],
)
async def test_two_credentials_of_one_source_are_refused(headers: Any) -> None:
    admission = Admission((Stub("shop", "authorization", "cookie:t"),))
    assert (await refusal(admission, *headers)).status == 400


@pytest.mark.parametrize("line", [b"t=anna", b"t=anna;", b"; t=anna; ;"])
async def test_a_cookie_header_with_nothing_else_is_removed_whole(line: bytes) -> None:
    fields, _ = await admitted(Admission((Stub("shop", "cookie:t"),)), (b"cookie", line))
    assert set(fields) == {b":principal"}


async def test_the_credential_stays_where_the_route_forwards_it() -> None:
    admission = Admission((Stub("shop", "authorization", "cookie:t"),), forward_token=True)
    fields, _ = await admitted(admission, (b"authorization", b"Bearer anna"), (b"cookie", b"t=b"))
    assert (fields[b"authorization"], fields[b"cookie"]) == (b"Bearer anna", b"t=b")


async def test_all_scopes_and_one_value_of_each_claim_are_required() -> None:
    user = (b"authorization", b"Bearer anna")
    await admitted(Admission((Stub("shop"),), scopes=("a", "b"), required={"sub": ("berta", "anna")}), user)
    lacking = await refusal(Admission((Stub("shop"),), scopes=("a", "c")), user)
    assert (lacking.status, lacking.error, lacking.scopes) == (403, "insufficient_scope", ("a", "c"))
    for required in ({"sub": ("berta",)}, {"tenant": ("a",)}):
        assert (await refusal(Admission((Stub("shop"),), required=required), user)).status == 403


@pytest.mark.parametrize(("value", "text"), [("anna", "anna"), (7, "7"), (True, "true"), (False, "false"), ("", "")])
def test_a_claim_as_a_header_value(value: Any, text: str) -> None:
    assert as_field_value(value) == text


@pytest.mark.parametrize("value", ["a\nb", "a\r", "ä", " a", "a ", "\x7f", None, 1.5, ["a"], {"a": 1}])
def test_a_claim_that_can_not_be_a_header_value(value: Any) -> None:
    with pytest.raises(ValueError, match="header"):
        as_field_value(value)


def test_a_routes_settings_make_its_admission() -> None:
    route = RouteConfig(
        path="/home",
        upstream="shop",
        ttl="30s",
        identity=["shop"],
        per=["sub"],
        forward={"X-User": "sub"},
        require={"scopes": ["a"], "claims": {"tenant": "b"}},
    )
    shop = Stub("shop")
    admission = admission_of(route, {"shop": shop})
    assert admission == Admission(
        (shop,), scopes=("a",), required={"tenant": ("b",)}, per=("sub",), claims={"x-user": "sub"}
    )
    assert admission_of(RouteConfig(path="/", upstream="shop"), {}) is None


ANNA = [(b"authorization", b"Bearer anna"), (b"accept", b"a/b")]


async def test_what_was_verified_before_is_admitted_the_same_without_verifying() -> None:
    shop = Stub("shop")
    admission = Admission((shop,), per=("sub",), claims={"x-user": "sub"}, scopes=("a",))
    assert admission.known(ANNA, KEY) is None
    fields, principal = await admission.admit(ANNA, KEY)
    known = admission.known(ANNA, KEY)
    assert known is not None
    assert (known.fields, known.principal) == (fields, principal)
    assert [known.holds(now) for now in (0.0, 99.9, 100.0)] == [True, True, False]
    shop.epoch.version += 1
    assert not known.holds(0.0)
    assert "anna" not in repr(known)


async def test_what_is_verified_without_a_wait_is_admitted_as_it_would_be_with_one() -> None:
    shop = Stub("shop", "x-key", prefix=b"k")
    admission = Admission((shop,), per=("sub",), scopes=("a",))
    found = admission.known([(b"x-key", b"kanna")], KEY, verify=True)
    assert found is not None
    assert (found.fields, found.principal) == await admission.admit([(b"x-key", b"kanna")], KEY)
    assert found.epoch is shop.epoch
    for credential in (b"k waits", b"anna"):
        assert admission.known([(b"x-key", credential)], KEY, verify=True) is None
    assert Admission((shop,), scopes=("c",)).known([(b"x-key", b"kanna")], KEY, verify=True) is None


@pytest.mark.parametrize(
    "settings",
    [
        {"scopes": ("c",)},
        {"required": {"sub": ("berta",)}},
        {"per": ("plan",)},
        {"per": ("sub",), "claims": {"x": "y"}},
    ],
)
async def test_what_would_be_refused_is_not_known(settings: dict[str, Any]) -> None:
    shop = Stub("shop")
    await shop.verified(b"anna")
    assert Admission((shop,), **settings).known(ANNA, KEY) is None


async def test_nobody_is_known_for_ever_where_that_is_allowed() -> None:
    admission = Admission((Stub("shop"),), optional=True, claims={"x-user": "sub"})
    known = admission.known([(b"accept", b"a/b"), (b"x-user", b"berta")], KEY)
    assert known is not None
    assert (known.fields, known.principal, known.holds(1e12)) == ([(b"accept", b"a/b")], None, True)
    assert Admission((Stub("shop"),)).known([], KEY) is None
    assert admission.known([(b"authorization", b"Bearer a b")], KEY) is None

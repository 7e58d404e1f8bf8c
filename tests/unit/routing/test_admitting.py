"""What becomes of a request before its route: who sent it, or its refusal."""

from __future__ import annotations

from gateway.context import RequestContext
from gateway.identity.admission import Admission, NotAdmitted
from gateway.identity.principal import Principal
from gateway.observability.metrics import Metrics
from gateway.policy.identity_key import UNKEYED
from gateway.policy.keys import PRINCIPAL
from gateway.routing.admitting import admitted, is_preflight, not_admitted


class Names:
    """A provider whose credentials are users' names."""

    name = "names"
    sources = ("authorization",)

    def recognises(self, credential: bytes) -> bool:
        return True

    async def verified(self, credential: bytes) -> Principal:
        return Principal(provider="names", issuer="names", claims={"sub": credential.decode()})


ADMISSION = Admission((Names(),), per=("sub",))


def exchange(method: str, *headers: tuple[bytes, bytes]) -> RequestContext:
    return RequestContext("1", 0.0, method, "", "http", headers=headers)


async def test_an_admitted_request_has_its_principal_and_no_credential() -> None:
    found = exchange("GET", (b"authorization", b"Bearer anna"))
    assert await admitted(ADMISSION, found, UNKEYED, Metrics()) is None
    assert found.principal is not None
    assert found.principal.subject == "anna"
    assert [name for name, _ in found.headers] == [PRINCIPAL]


async def test_a_refused_request_is_counted_and_answered() -> None:
    metrics = Metrics()
    refusal = await admitted(ADMISSION, exchange("GET"), UNKEYED, metrics)
    assert refusal is not None
    assert refusal.status == 401
    assert b'gateway_refused_requests_total{reason="identity-missing"} 1.0' in metrics.render()


async def test_preflights_and_purges_need_no_credential() -> None:
    preflight = exchange(
        "OPTIONS", (b"origin", b"https://a.example"), (b"access-control-request-method", b"GET"), (b"x-a", b"1")
    )
    assert is_preflight(preflight)
    assert await admitted(ADMISSION, preflight, UNKEYED, Metrics()) is None
    assert await admitted(ADMISSION, exchange("PURGE"), UNKEYED, Metrics()) is None
    assert await admitted(ADMISSION, exchange("OPTIONS"), UNKEYED, Metrics()) is not None


def test_a_refusal_says_what_is_required_in_valid_characters() -> None:
    refused = NotAdmitted(403, "insufficient_scope", 'A "scope" is missing.', "scope", ["a", "b\\"])
    answer = not_admitted(exchange("GET"), refused)
    fields = dict(answer.headers)
    assert fields[b"www-authenticate"] == (
        b'Bearer error="insufficient_scope", error_description="A ?scope? is missing.", scope="a b?"'
    )
    assert fields[b"cache-control"] == b"no-store"


def test_a_503_says_when_to_come_back_and_asks_for_no_credential() -> None:
    answer = not_admitted(exchange("GET"), NotAdmitted(503, "", "No keys.", "keys", (), 10))
    fields = dict(answer.headers)
    assert fields[b"retry-after"] == b"10"
    assert b"www-authenticate" not in fields

"""What becomes of a request before its route: who sent it, or its refusal."""

from __future__ import annotations

from gateway.context import RequestContext
from gateway.errors import LimitReached
from gateway.identity.admission import Admission, NotAdmitted
from gateway.identity.principal import Principal
from gateway.observability.metrics import Metrics
from gateway.policy.identity_key import UNKEYED
from gateway.policy.keys import PRINCIPAL
from gateway.routing.admitting import is_preflight, let_in, not_admitted, over_limit


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
    assert await let_in(ADMISSION, None, found, UNKEYED, Metrics()) is None
    assert found.principal is not None
    assert found.principal.subject == "anna"
    assert [name for name, _ in found.headers] == [PRINCIPAL]


async def test_a_refused_request_is_counted_and_answered() -> None:
    metrics = Metrics()
    refusal = await let_in(ADMISSION, None, exchange("GET"), UNKEYED, metrics)
    assert refusal is not None
    assert refusal.status == 401
    assert b'gateway_refused_requests_total{reason="identity-missing"} 1.0' in metrics.render()


async def test_preflights_and_purges_need_no_credential() -> None:
    preflight = exchange(
        "OPTIONS", (b"origin", b"https://a.example"), (b"access-control-request-method", b"GET"), (b"x-a", b"1")
    )
    assert is_preflight(preflight)
    assert await let_in(ADMISSION, None, preflight, UNKEYED, Metrics()) is None
    assert await let_in(ADMISSION, None, exchange("PURGE"), UNKEYED, Metrics()) is None
    assert await let_in(ADMISSION, None, exchange("OPTIONS"), UNKEYED, Metrics()) is not None


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


def test_a_request_over_a_limit_is_counted_and_its_cause_is_kept() -> None:
    metrics, found = Metrics(), exchange("GET")
    answer = over_limit(found, LimitReached(("user",), 2.5), metrics)
    assert (answer.status, dict(answer.headers)[b"retry-after"]) == (429, b"3")
    assert b'gateway_refused_requests_total{reason="rate-limit"} 1.0' in metrics.render()
    assert found.failure == LimitReached(("user",), 2.5).why

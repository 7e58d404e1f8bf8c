"""New tokens at the edge: verified there as the app would, and refused by the app alone."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.identity import tokens
from gateway.identity.records import Revocation
from gateway.testing import TurnedClock
from tests.support.token_site import OWN, Site, issuer


async def test_a_signature_is_checked_once_whoever_refuses_it(
    clock: TurnedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(clock, all={})
    await site.ask("all", site.token())
    checked: list[bytes] = []
    verifier: Any = tokens._VERIFIERS["Ed25519"]
    verify = verifier.verify

    def counting(signed: bytes, signature: bytes, key: Any) -> bool:
        checked.append(signed)
        return bool(verify(signed, signature, key))

    monkeypatch.setattr(verifier, "verify", counting)
    forged = site.token().rpartition(b".")[0] + b"." + b"A" * 86
    for _ in range(2):
        assert (await site.ask("all", forged))[0] == 401
    assert len(checked) == 1
    assert await site.at_edge("all", site.token(jti="2"))
    assert len(checked) == 2


async def test_a_token_that_has_to_be_waited_for_is_left_to_the_app(clock: TurnedClock) -> None:
    site = Site(clock, all={})
    await site.ask("all", site.token())
    shop: Any = site.app.worker_state.providers["shop"]
    looks = 0

    async def look() -> None:
        nonlocal looks
        looks += 1

    shop.source.look_for_unknown = look
    unknown = issuer.sign("Ed25519", {"kid": "new"}, iat=clock.now(), exp=clock.now() + 600)
    assert (await site.ask("all", unknown))[0] == 401
    assert looks == 1
    shop._records.known = False
    assert (await site.ask("all", site.token(jti="2")))[0] == 503
    shop._records.known = True
    assert await site.at_edge("all", site.token(jti="2"))
    shop._most = 0  # each is verified, by the app alone: nothing of it is remembered anywhere
    assert not await site.at_edge("all", site.token(jti="3"))


async def test_a_client_that_was_refused_often_is_counted_before_its_token_is_verified(clock: TurnedClock) -> None:
    limits = {"bad": {"by": "client", "rate": "2/m", "counts": "refused"}}
    site = Site(clock, {"rate_limits": limits}, all={"rate_limits": ["bad"]})
    known = site.token()
    await site.ask("all", known)
    assert await site.at_edge("all", site.token(jti="2"))
    answers = [(await site.ask("all", b"a.b.%d" % number))[0] for number in range(5)]
    assert answers == [401, 401, 401, 429, 429]
    new = site.token(jti="3")
    assert (await site.ask("all", new))[0] == 429
    assert site.app.worker_state.providers["shop"].known(new) is None
    assert await site.at_edge("all", known)
    clock.turn(120)
    assert (await site.ask("all", new))[0] == 200  # the app asks the limit, and takes it back
    assert await site.at_edge("all", site.token(jti="4"))


async def test_a_request_that_differs_by_its_token_alone_is_not_parsed(clock: TurnedClock) -> None:
    site = Site(clock, own=OWN)
    for user in ("anna", "berta"):
        await site.ask("own", site.token(user))
    site.line.protocol._take = fail  # type: ignore[method-assign]
    for number in range(3):
        for user in ("anna", "berta"):
            asked_before = site.counted.asked
            assert await site.ask("own", site.token(user, jti=str(number))) == (200, user.encode())
            assert site.counted.asked == asked_before


async def test_what_is_revoked_is_left_to_the_app_at_once(clock: TurnedClock) -> None:
    site = Site(clock, all={})
    anna, berta = site.token(), site.token("berta")
    for token in (anna, berta) * 3:
        await site.ask("all", token)
    records = site.app.worker_state.providers.credentials.records
    digest = records.digest("sub", "anna", salt := records.salt())
    now = clock.now()
    revoked = Revocation(kind="sub", digest=digest, salt=salt, before=now + 1, until=now + 1e7, at=now)
    records.apply((1, 0), revoked)
    for token in (anna, anna, site.token(jti="2")):
        before = site.counted.asked
        assert (await site.ask("all", token))[0] == 401
        assert site.counted.asked == before + 1
    assert await site.at_edge("all", berta)  # what is not about it still holds


async def test_what_selects_a_response_is_worked_out_once_for_the_tokens_of_a_partition(clock: TurnedClock) -> None:
    site = Site(clock, own=OWN)
    for user in ("anna", "berta"):
        await site.ask("own", site.token(user))
    tokens_of = {user: [site.token(user, jti=str(number)) for number in range(3)] for user in ("anna", "berta")}
    views = {}
    for user, own in tokens_of.items():
        for token in own:
            assert await site.ask("own", token) == (200, user.encode())
        blocks = [block for (_, value), block in site.edge._credentials._blocks.items() if value[7:] in own]
        views[user] = [view for block in blocks for view in block.views.values()]
        assert len(views[user]) == 3
        assert len({id(view.bases) for view in views[user]}) == len({id(view.vary) for view in views[user]}) == 1
    assert views["anna"][0].bases != views["berta"][0].bases
    assert views["anna"][0].vary is not views["berta"][0].vary


async def test_what_selects_responses_is_bounded(clock: TurnedClock) -> None:
    site = Site(clock, own=OWN)
    await site.ask("own", site.token())
    credentials = site.edge._credentials
    credentials._most = 5 * 16
    for number in range(12):
        await site.ask("own", site.token(f"user-{number}"))
        await site.ask("own", site.token(f"user-{number}", jti="2"))
    assert len(credentials._selecting) == 5
    await site.ask("own", site.token("a" * 1100))
    await site.ask("own", site.token("a" * 1100, jti="2"))
    assert all(len(value) < 1100 for _, fields in credentials._selecting for _, value in fields)
    site.edge.forget()
    assert not credentials._selecting


def fail(data: bytes) -> None:
    raise AssertionError("a head was parsed of which all but the credential repeats")

"""The bytes of response heads: those of a template are those that the app would send."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.context import Outcome, PartState, RequestContext, Result
from gateway.edge.head_template import (
    _DECISIVE,
    CLOSES,
    KEEPS,
    MARK,
    TICKS,
    Ending,
    Heads,
    HitHeads,
    MakeHead,
    _decides,
    head_of,
    interim_head,
    lines_of,
    template_of,
    with_last,
)
from gateway.http.field_changes import NO_CHANGES, FieldChanges
from gateway.http.headers import Headers
from gateway.http.response_parser import HeadForm, read_head
from gateway.observability.response_headers import Texts, complete, diagnostics, in_milliseconds
from gateway.policy.downstream import NOTHING, Downstream
from gateway.policy.keys import Keying
from tests.support.policy_values import stored

FIELDS = [
    (b"content-type", b"text/plain"),
    (b"age", b"3"),
    (b"x-share", b"100%"),
    (b"content-length", b"4"),
    (b"date", b"now"),
]


def context(*, parts: bool = False) -> RequestContext:
    made = RequestContext("id-1", 0.0, "GET", "127.0.0.1", "http")
    made.outcome = Outcome(Result.HIT, ttl=17, tier="memory")
    if parts:
        made.spent["memory"] = 0.000_2
    return made


@pytest.mark.parametrize("elapsed", [0.0, 0.000_000_4, 0.000_123, (TICKS - 1) / 1e6, TICKS / 1e6, 0.25, 61.5])
def test_the_end_of_a_head_is_what_the_app_sends(elapsed: float) -> None:
    ending, exchange = Ending(context()), context()
    texts = Texts("id-1", f"{elapsed:.6f}", in_milliseconds(elapsed), in_milliseconds)
    sent = lines_of(diagnostics(exchange, texts)) + b"\r\n"
    assert ending.start + b"id-1" + ending.timing(elapsed) + ending.status(17.0) == sent


def test_a_time_is_made_beforehand_for_each_microsecond_where_the_total_is_all() -> None:
    ending = Ending(context())
    assert len(ending.ticks) == TICKS
    assert [ending.ticks[tick] for tick in (0, 7, 999)] == [ending.timing(tick / 1e6) for tick in (0, 7, 999)]


def test_a_time_spent_on_something_stands_before_the_total() -> None:
    ending = Ending(context(parts=True))
    assert ending.ticks == []
    text = ending.timing(0.5, 0.125)
    assert text.index(b"125.000") < text.index(b"500.000")


def test_a_template_takes_the_values_that_vary_and_nothing_else() -> None:
    template = template_of(200, FIELDS, (b"age",))
    assert template is not None
    assert template % b"99" + b"\r\n" == head_of(200, [FIELDS[0], (b"age", b"99"), *FIELDS[2:]])


@pytest.mark.parametrize(
    ("headers", "varying"),
    [
        (FIELDS, (b"age", b"cache-control")),
        (FIELDS, (b"expires",)),
        ([*FIELDS, (b"age", b"4")], (b"age",)),
        ([(b"b", b"1"), (b"a", b"2")], (b"a", b"b")),
    ],
    ids=["one is missing", "it is not there", "twice", "in another order"],
)
def test_there_is_no_template_where_the_fields_that_vary_are_not_there_once_in_order(
    headers: list[tuple[bytes, bytes]], varying: tuple[bytes, ...]
) -> None:
    assert template_of(200, headers, varying) is None


def test_an_interim_response_has_neither_framing_nor_an_upstreams_cors() -> None:
    fields = [
        *((b"link", b"</a>; rel=preload"), (b"content-length", b"2"), (b"connection", b"close")),
        *((b"transfer-encoding", b"chunked"), (b"access-control-allow-origin", b"*")),
    ]
    assert interim_head(103, fields) == b"HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n"


@pytest.mark.parametrize("field", [CLOSES, KEEPS])
def test_a_last_field_stands_at_the_end_of_a_head(field: bytes) -> None:
    assert with_last(head_of(200, FIELDS), field) == head_of(200, FIELDS)[:-2] + field + b"\r\n"


PUBLIC, OWN = Keying(vary=("accept",)), Keying(vary=("authorization",), authorization="key")
DOWNSTREAM = {keying: Downstream.of(keying, made=False) for keying in (PUBLIC, OWN)}
MISSED = [(b"content-type", b"a/b; c=100%"), (b"cache-control", b"max-age=59"), (b"date", b"then"), (b"age", b"0")]
TAGGED = [*MISSED, (b"etag", b'"%b"'), (b"content-length", b"4")]


class Making:
    """Makes heads as a pass-through does, and counts how many."""

    def __init__(self, exchange: RequestContext, *, status: int = 200) -> None:
        self.exchange, self.status, self.made = exchange, status, 0

    def __call__(self, headers: Headers, texts: Texts | None) -> bytes:
        self.made += 1
        return head_of(self.status, complete(self.exchange, headers, texts))


class Told:
    """What is done to a response's own fields before they are sent, counted."""

    def __init__(self, keying: Keying = PUBLIC) -> None:
        self.keying, self.times = keying, 0

    def __call__(self, headers: Headers) -> Headers:
        self.times += 1
        return DOWNSTREAM[self.keying].told(headers, ("accept",))

    def around_age(self, status: int, headers: Headers) -> tuple[bytes, bytes] | None:
        """As it is without a template that is kept."""
        template = template_of(status, self(headers), (b"age",))
        return None if template is None else tuple((template % MARK).split(MARK))  # type: ignore[return-value]


def missed(request_id: str, *, keying: Keying = PUBLIC, spent: tuple[str, ...] = ("upstream",)) -> RequestContext:
    exchange = RequestContext(request_id, time.perf_counter(), "GET", "127.0.0.1", "http", route="goods")
    exchange.outcome = Outcome(Result.MISS, forward="miss", forward_status=200, stored=True)
    exchange.downstream = DOWNSTREAM[keying]
    exchange.stored = stored()
    for number, name in enumerate(spent):
        exchange.spent[name] = 0.25 + number
    return exchange


def lines(head: bytes) -> list[bytes]:
    """A head's lines without those that tell how long it took."""
    return [re.sub(rb"total;dur=.*|(?<=x-process-time: ).*", b"", line) for line in head.split(b"\r\n")]


def head(heads: Heads, exchange: RequestContext, headers: Headers, make: MakeHead, origin: str | None = None) -> bytes:
    return heads.head(exchange, 200, headers, dict(headers), origin, make, close=False)


@pytest.mark.parametrize("keying", [PUBLIC, OWN])
@pytest.mark.parametrize("spent", [(), ("upstream",), ("upstream", "cache"), ("cache", "upstream")])
def test_a_head_by_a_template_is_the_one_that_is_made(keying: Keying, spent: tuple[str, ...]) -> None:
    heads = Heads()
    first = missed("id-1", keying=keying, spent=spent)
    making = Making(first)
    for made in (1, 3):  # the second time by its fields and by marked ones
        assert lines(head(heads, first, TAGGED, making)) == lines(Making(first)(TAGGED, None))
        assert making.made == made
    second = missed("id-2", keying=keying, spent=spent)
    unused = Making(second)
    others = [(b"content-type", b"a/b; c=100%"), (b"cache-control", b"max-age=7"), (b"date", b"%b"), (b"age", b"12")]
    others += [(b"etag", b'W/"\xe4%"'), (b"content-length", b"123456")]
    assert lines(head(heads, second, others, unused)) == lines(Making(second)(others, None))
    assert (making.made, unused.made) == (3, 0)


@pytest.mark.parametrize("spent", [("upstream",), ("upstream", "cache")])
def test_a_head_by_the_form_of_its_response_is_the_one_that_is_made(spent: tuple[str, ...]) -> None:
    heads, form = Heads(), object()
    assert heads.of_form(missed("id"), form, TAGGED, None, close=False) is None
    for number in range(3):
        exchange = missed(f"id-{number}", spent=spent)
        heads.head(exchange, 200, TAGGED, dict(TAGGED), None, Making(exchange), close=False, form=form)
    others = [(name, b"max-age=7" if name == b"cache-control" else b"a/b; c=100%") for name, _ in TAGGED]
    exchange = missed("id-9", spent=spent)
    by_form = heads.of_form(exchange, form, others, None, close=False)
    assert by_form is not None
    assert lines(by_form) == lines(Making(exchange)(others, None))
    assert heads.of_form(exchange, form, others, "https://a.test", close=False) is None
    assert heads.of_form(exchange, form, others, None, close=True) is None
    assert heads.of_form(exchange, form, others[:-1], None, close=False) is None
    assert heads.of_form(exchange, object(), others, None, close=False) is None
    exchange.rate_limit = ((b"ratelimit", b"1"),)
    assert heads.of_form(exchange, form, others, None, close=False) is None
    other = missed("id-9", keying=OWN, spent=spent)
    assert heads.of_form(other, form, others, None, close=False) is None


def test_what_decides_about_a_head_has_one_value_in_a_form() -> None:
    """But for a cookie, with which a head has none."""
    names = {*_DECISIVE, b"cache-control", b"x-cache-control", b"access-control-allow-origin"}
    assert all(_decides(name) for name in names)
    names -= {b"set-cookie", b"transfer-encoding"}
    lines = b"".join(name + b": a\r\n" for name in sorted(names))
    form = HeadForm(read_head(b"HTTP/1.1 200 OK\r\n" + lines + b"X-Other: a\r\n\r\n", bodiless=False))
    assert form.constant == names


def joined(request_id: str, *states: str, spent: tuple[str, ...] = ("upstream",)) -> RequestContext:
    exchange = missed(request_id, spent=spent)
    exchange.parts = tuple(PartState(f"p{n}", text, n * 0.125 + len(request_id)) for n, text in enumerate(states))
    return exchange


def test_a_joined_response_has_a_template_for_each_states_of_its_parts() -> None:
    heads = Heads()
    for states in (("miss", "hit"), ("hit", "miss"), ('skipped;missing="100%"', "miss"), ("miss",) * 40, ()):
        for request_id, made in (("a", 1), ("bb", 2), ("ccc", 0)):
            for spent in (("upstream",), ("upstream", "cache")):
                exchange = joined(request_id, *states, spent=spent)
                making = Making(exchange)
                by_template = head(heads, exchange, TAGGED, making)
                assert lines(by_template) == lines(Making(exchange)(TAGGED, None))
                assert making.made == made
    assert repr(heads) == "<Heads 10 templates>"


def test_each_deciding_field_has_a_template_of_its_own() -> None:
    heads = Heads()
    for number, headers in enumerate(
        (
            TAGGED,
            MISSED,
            [*TAGGED, (b"vary", b"accept-language")],
            [*TAGGED, (b"vary", b"accept")],
            [*TAGGED, (b"cache-control", b"max-age=60")],  # two lifetimes have no template
            [*TAGGED, (b"cache-control", b"no-cache, max-age=60")],
            [(b"x-other", b"7291046385"), *TAGGED],
            [(b"x-other", b"\xff"), *reversed(TAGGED)],
        )
    ):
        for asked in ("a", "b", "c"):
            exchange = missed(f"{asked}{number}")
            made = head(heads, exchange, headers, Making(exchange))
            assert lines(made) == lines(Making(exchange)(headers, None))


def test_no_more_templates_are_kept_than_allowed() -> None:
    heads = Heads()
    for number in range(1030):
        for _ in range(2):
            exchange = missed("id")
            headers = [(b"vary", b"x-%d" % number), *TAGGED]
            head(heads, exchange, headers, Making(exchange))
    assert repr(heads) == "<Heads 6 templates>"


COPIED = [b"x-other", b"cf-ray", b"content-type", b"etag"]
DECIDING = [b"cache-control", b"vary", b"expires", b"cdn-cache-control", b"surrogate-control", b"x-accel-expires"]
VALUES = [b"", b"0", b"%b", b"\xff", b"accept", b"max-age=7", b"max-age=7291046385", b"public, max-age=7291046385"]
CHANGES = FieldChanges.of({"expires": "0", "x-other": "0"}, {"cdn-cache-control": ["max-age=7"]}, ["etag"])


@given(
    names=st.lists(st.sampled_from([*COPIED, *DECIDING, b"access-control-allow-origin"]), max_size=11),
    texts=st.lists(st.lists(st.sampled_from(VALUES), min_size=11, max_size=11), min_size=4, max_size=6),
    keying=st.sampled_from([PUBLIC, OWN]),
    changes=st.sampled_from([NO_CHANGES, CHANGES]),
)
def test_a_head_is_the_one_that_is_made_whatever_the_values_of_its_fields(
    names: list[bytes], texts: list[list[bytes]], keying: Keying, changes: FieldChanges
) -> None:
    heads, hits, downstream = Heads(), HitHeads(), Downstream.of(keying, made=False, changes=changes)
    for each in texts:
        headers = [(b"date", b"then"), (b"age", b"0"), (b"content-length", b"4"), *zip(names, each, strict=False)]
        exchange = missed("id")
        exchange.downstream = downstream
        assert lines(head(heads, exchange, headers, Making(exchange))) == lines(Making(exchange)(headers, None))
        around, template = hits.around_age(200, headers, (), None, downstream.told), downstream.told(headers)
        assert around == HitHeads().around_age(200, [*template], (), None, list)


@pytest.mark.parametrize("field", [(b"expires", b"7291046385"), (b"surrogate-control", b"max-age=7291046385")])
def test_a_placeholder_that_stands_in_a_response_takes_no_value(field: tuple[bytes, bytes]) -> None:
    heads, hits = Heads(), HitHeads()
    for lifetime in (7291046385, 7291046385, 7291046385, 5, 7291046385):
        headers = [(b"cache-control", b"max-age=%d" % lifetime), field, *TAGGED[2:]]
        exchange = missed("id")
        assert lines(head(heads, exchange, headers, Making(exchange))) == lines(Making(exchange)(headers, None))
        assert hits.around_age(200, headers, (), None, Told()) == Told().around_age(200, headers)


def test_a_date_that_is_taken_out_gives_way_to_that_of_the_moment() -> None:
    heads, downstream = Heads(), Downstream.of(PUBLIC, made=False, changes=FieldChanges.of({}, {}, ["date"]))
    for _ in range(4):
        exchange = missed("id")
        exchange.downstream = downstream
        head(heads, exchange, TAGGED, Making(exchange))
    assert repr(heads) == "<Heads 0 templates>"


@pytest.mark.parametrize("names", [(b"x-other",), (b"x-other", b"x-another", b"x-other")])
def test_copied_fields_with_a_new_value_each_time_have_one_template(names: tuple[bytes, ...]) -> None:
    heads, hits = Heads(), HitHeads()
    for number in range(10):
        copied = [(name, b"%d" % (number + place)) for place, name in enumerate(names)]
        exchange, headers = missed("id"), [*copied, *TAGGED]
        making, told = Making(exchange), Told()
        head(heads, exchange, headers, making)
        hits.around_age(200, headers, (), None, told)
        assert (making.made, told.times) == ((1, 1), (2, 2), (0, 0))[min(number, 2)]


@pytest.mark.parametrize("name", DECIDING)
def test_deciding_fields_with_a_new_value_each_time_have_no_template(name: bytes) -> None:
    heads, hits = Heads(), HitHeads()
    others = [pair for pair in TAGGED if pair[0] != name]
    for number in range(3000):
        exchange, headers = missed("id"), [(name, b"x-%d" % number), *others]
        making, told = Making(exchange), Told()
        head(heads, exchange, headers, making)
        hits.around_age(200, headers, (), None, told)
        assert (making.made, told.times) == (1, 1)
    assert (repr(heads), repr(hits)) == ("<Heads 0 templates>", "<HitHeads 0 templates>")


def test_a_response_that_is_not_stored_has_a_template_if_it_has_a_date() -> None:
    heads = Heads()
    for headers, kept in ((TAGGED, True), ([pair for pair in TAGGED if pair[0] != b"date"], False)):
        for number in range(3):
            exchange = missed(f"id-{number}")
            exchange.stored = None
            making = Making(exchange)
            made = head(heads, exchange, headers, making)
            assert lines(made) == lines(Making(exchange)(headers, None))
        assert (making.made == 0) is kept


def test_a_long_head_has_no_template() -> None:
    heads = Heads()
    headers = [(b"x-other", b"a" * 5000), *TAGGED]
    for number in range(2):
        exchange = missed(f"id-{number}")
        making = Making(exchange)
        assert lines(head(heads, exchange, headers, making)) == lines(Making(exchange)(headers, None))
        assert making.made == 1
    assert repr(heads) == "<Heads 0 templates>"


def test_no_template_is_kept_with_a_long_origin() -> None:
    heads = Heads()
    for origin, templates in (("https://" + "a" * 5000, 0), ("https://a.test", 1)):
        for number in range(3):
            exchange = missed(f"id-{number}")
            making = Making(exchange)
            made = head(heads, exchange, TAGGED, making, origin)
            assert lines(made) == lines(Making(exchange)(TAGGED, None))
        assert repr(heads) == f"<Heads {templates} templates>"


OTHER = [(b"content-type", b"a/b; c=100%"), (b"cache-control", b"max-age=7"), (b"date", b"%b 7"), (b"age", b"12")]


@pytest.mark.parametrize("keying", [PUBLIC, OWN])
def test_a_hit_by_a_template_has_the_head_that_is_made(keying: Keying) -> None:
    heads, told = HitHeads(), Told(keying)
    for times in (1, 3):  # the second time of the response, and of the marked one
        assert heads.around_age(200, TAGGED, (), None, told) == Told(keying).around_age(200, TAGGED)
        assert told.times == times
    other = [*OTHER, (b"etag", b'W/"\xe4%"'), (b"content-length", b"123456")]
    assert heads.around_age(200, other, (), None, told) == Told(keying).around_age(200, other)
    assert told.times == 3


@pytest.mark.parametrize(
    "headers",
    [
        MISSED,
        [pair for pair in TAGGED if pair[0] != b"age"],
        [pair for pair in TAGGED if pair[0] != b"date"],
        [*TAGGED, (b"age", b"4")],
        [*TAGGED, (b"x-a", b"1"), (b"x-a", b"2")],
        [*TAGGED, (b"connection", b"close")],
        [*TAGGED, (b"x-bad", b"a\r\nb: c")],
        [*TAGGED, (b"x bad", b"a")],
        [(b"x-other", b"7291046385"), *TAGGED],
        [(b"x-other", b"a" * 5000), *TAGGED],
        [(b"x-other", b"\xff"), *reversed(TAGGED)],
        [*OTHER, (b"content-length", b"1"), (b"vary", b"x")],
    ],
)
def test_a_hit_has_the_same_head_with_a_template_and_without(headers: Headers) -> None:
    heads = HitHeads()
    for status in (200, 404, 200, 404, 200):
        assert heads.around_age(status, headers, (), None, Told()) == Told().around_age(status, headers)


@pytest.mark.parametrize("bad", [b"a\r\nset-cookie: b", b"\0", b"a\x7f"])
def test_a_template_takes_no_value_that_no_field_may_have(bad: bytes) -> None:
    heads = HitHeads()
    for tag in (b'"a"', b'"a"', bad, b'"b"'):
        headers = [*MISSED, (b"etag", tag), (b"content-length", b"4")]
        around = heads.around_age(200, headers, (), None, Told())
        assert around == Told().around_age(200, headers)
        assert (around is None) is (tag is bad)


def test_hits_that_differ_besides_have_templates_of_their_own() -> None:
    heads, told = HitHeads(), {keying: Told(keying) for keying in (PUBLIC, OWN)}
    for _ in range(3):
        for keying in (PUBLIC, OWN):
            assert heads.around_age(200, TAGGED, keying.vary or (), None, told[keying]) == Told(keying).around_age(
                200, TAGGED
            )
    assert repr(heads) == "<HitHeads 2 templates>"


def test_no_more_templates_of_hits_are_kept_than_allowed() -> None:
    heads = HitHeads()
    for number in range(130):
        for _ in range(2):
            heads.around_age(200, [(b"vary", b"x-%d" % number), *TAGGED], (), None, Told())
    assert repr(heads) == "<HitHeads 2 templates>"


def test_a_response_of_no_route_has_the_head_that_is_made_each_time() -> None:
    heads = Heads()
    for number in range(3):
        exchange = missed(f"id-{number}")
        exchange.downstream = NOTHING
        made = head(heads, exchange, TAGGED, Making(exchange))
        assert lines(made) == lines(Making(exchange)(TAGGED, None))


def test_nothing_is_kept_of_a_response_that_sets_a_cookie() -> None:
    heads = Heads()
    headers = [*TAGGED, (b"set-cookie", b"session=1")]
    for number in range(3):
        exchange = missed(f"id-{number}")
        assert lines(head(heads, exchange, headers, Making(exchange))) == lines(Making(exchange)(headers, None))
    assert not heads._forms

"""benchmarks: a figure is told only when every response was right, and a stall can't hide."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import pages, report
from benchmarks.load import Answer, Figure, Pattern, check
from benchmarks.machine import BenchmarkError
from benchmarks.open_loop import run
from benchmarks.rows import Bar, Row, rows
from benchmarks.run import Measured, check_misses
from benchmarks.traffic import PHONE, body, path, request

ROW = Row("hit", "a hit", Pattern("hot", path("1KiB", 0)), ("ours", "theirs"), (Bar("theirs", 1.1, 1.5),))


def answer(content: bytes, status: int = 200) -> Answer:
    return Answer(status, {}, content, len(content))


@pytest.mark.parametrize(
    "wrong",
    [answer(body(1024, "8")), answer(body(1024, "7")[:-1]), answer(b""), answer(body(1024, "7"), 500)],
    ids=["another's body", "cut", "empty", "an error"],
)
def test_an_answer_that_is_not_the_upstreams_is_refused(wrong: Answer) -> None:
    check(answer(body(1024, "7")), path("1KiB", 7))
    with pytest.raises(BenchmarkError):
        check(wrong, path("1KiB", 7))


def test_a_304_has_no_body_to_check_but_must_be_one() -> None:
    check(answer(b"", 304), path("1KiB", 7), 304)
    with pytest.raises(BenchmarkError):
        check(answer(body(1024, "7")), path("1KiB", 7), 304)


def test_bodies_have_the_size_they_are_named_for() -> None:
    assert [len(body(size, "12345")) for size in (64, 1024, 256 * 1024)] == [64, 1024, 256 * 1024]


def test_a_phone_sends_eight_fields_and_another_request_id_each_time() -> None:
    first, second = request("/", 1), request("/", 2)
    assert first.count(b"\r\n") - 2 == len(PHONE) + 1 == 8
    assert first != second


def test_a_ratio_is_taken_round_by_round() -> None:
    """Of one round in which the machine was slow, both columns are."""
    measured = Measured(ROW, {"ours": [100.0, 10.0, 110.0], "theirs": [50.0, 5.0, 50.0]})
    assert measured.ratio(ROW.bars[0]) == 2.0


def test_a_peer_that_is_left_out_leaves_no_figure_but_its_reason() -> None:
    measured = Measured(ROW, {"ours": [100.0]}, left_out={"theirs": "not installed"})
    text = report.table([report.result(measured)])
    assert "theirs is left out: not installed" in text
    assert "| a hit | ours | 100 | 100 to 100 | requests/s | |  |  |" in text


@pytest.mark.parametrize(("ratio", "mark"), [(1.2, "✓"), (1.0, "✗")])
def test_the_table_says_which_bars_are_met(ratio: float, mark: str) -> None:
    measured = Measured(ROW, {"ours": [ratio], "theirs": [1.0]})
    assert f"| a hit | theirs | {ratio:.2f} |  | 1.1 | 1.5 | {mark} |" in report.table([report.result(measured)])


@pytest.mark.parametrize(
    ("load", "told"),
    [(0.8, "| 1.00 | 1.25 | 1.1 | 1.5 | ✗ |"), (0.99, "| (1.00: wrk was the limit) | **1.25** | 1.1 | 1.5 | ✓ |")],
)
def test_where_wrk_was_the_limit_processor_time_counts_and_else_the_rate(load: float, told: str) -> None:
    ours, theirs = Figure(100.0, 1, 1, 100, server=0.8, load=load), Figure(100.0, 1, 1, 100, server=1.0, load=0.5)
    measured = Measured(ROW, {"ours": [100.0], "theirs": [100.0]}, {"ours": [ours], "theirs": [theirs]})
    text = report.table([report.result(measured)])
    assert told in text
    assert f"| a hit | ours | 100 | 100 to 100 | requests/s | 125 | 80% | {load:.0%} |" in text


@pytest.mark.parametrize(
    ("asked", "requests", "share", "right"),
    [
        *((0, 10_000, 0, True), (1, 10_000, 0, False), (2, 200_000, 0, True), (11, 200_000, 0, False)),
        *((1_040, 10_000, 0.1, True), (1_200, 10_000, 0.1, False), (800, 10_000, 0.1, False)),
        (10_030, 10_000, 1, True),
    ],
)
def test_the_upstream_must_get_the_requests_for_new_keys_and_no_others(
    asked: int, requests: int, share: float, right: bool
) -> None:
    if right:
        check_misses("ours", asked, requests, share)
        return
    with pytest.raises(BenchmarkError, match="asked the upstream"):
        check_misses("ours", asked, requests, share)


def test_a_row_of_cost_compares_processor_time_for_a_request_where_less_is_better() -> None:
    row = replace(ROW, cost=True, bars=(Bar("theirs", 1.6, 1.3, lower=True),))
    loads = {"ours": [Figure(100.0, 1, 1, 100, load=0.99)], "theirs": [Figure(100.0, 1, 1, 100)]}
    found = report.result(Measured(row, {"ours": [500.0], "theirs": [400.0]}, loads))
    assert (found.unit, found.verdicts[0].ratio, found.verdicts[0].met) == ("µs", 1.25, True)
    assert (found.verdicts[0].by_cpu, found.verdicts[0].limited) == (None, False)


def test_a_bar_may_be_a_difference_in_the_rows_unit() -> None:
    row = replace(ROW, cost=True, bars=(Bar("theirs", 60, 55, lower=True, difference=True),))
    measured = Measured(row, {"ours": [70.0, 75.0, 71.0], "theirs": [12.0, 13.0, 12.0]})
    assert "| a hit | theirs | +59 |  | at most +60 | at most +55 | ✓ |" in report.table([report.result(measured)])


def test_a_token_goes_to_the_peers_that_want_one_alone() -> None:
    row = next(row for row in rows() if row.key == "identity")
    patterns = {name: row.pattern_of(name) for name in row.columns}
    with_token = {name for name, pattern in patterns.items() if any("Bearer" in each for each in pattern.headers)}
    assert with_token == {"gateway, with tokens", "Envoy, with tokens", "Envoy, with tokens, remembered"}
    (line,) = patterns["gateway, with tokens"].headers
    assert 935 <= len(line) <= 945


def test_a_search_goes_by_post_to_the_peer_that_reads_it_alone() -> None:
    row = next(row for row in rows() if row.key == "post")
    assert [bool(row.pattern_of(name).content) for name in row.columns] == [True, False]
    sent = request("/cached/1KiB/0", 0, content=row.pattern_of(row.columns[0]).content)
    head, _, content = sent.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /cached/1KiB/0 HTTP/1.1\r\n")
    assert b"\r\nContent-Length: %d\r\n" % len(content) in head
    assert len(content) == 60


@pytest.mark.parametrize("name", pages.PAGES, ids=str)
def test_a_table_of_figures_is_what_the_results_would_make_of_it(name: Path) -> None:
    page = (pages.ROOT / name).read_text(encoding="utf-8")
    assert "<!-- bench:" in page
    assert page == pages.filled(page, report.read(pages.RESULTS).values()), "run `make docs`"


def test_the_table_of_servers_shows_the_best_and_the_missing() -> None:
    figures = {"gateway": [13_600.0], "nginx": [30_000.0], "Varnish": [26_000.0]}
    row = Row("mixed", "mixed", Pattern("mixed", path("1KiB", "")), tuple(figures), (Bar("Varnish", 1, 1.3),))
    table = pages.servers([report.result(Measured(row, figures))])
    assert table.endswith("| mixed | 13.6 k | **30 k** | 26 k | – | – | – |")


def test_the_picture_shows_each_server_with_its_figure() -> None:
    measured = Measured(ROW, {"ours": [91_000.0], "theirs": [83_000.0]})
    drawn = report.picture([report.result(measured)], "2 cores")
    assert all(text in drawn for text in ("<svg", "a hit", "ours", "theirs", "91,000", "83,000", "2 cores"))


def test_every_bar_stands_against_a_column_of_its_row() -> None:
    assert [(row.key, bar.peer) for row in rows() for bar in row.bars if bar.peer not in row.columns[1:]] == []


@pytest.fixture
def stalling() -> Iterator[int]:
    """A server that answers at once but for the 20th request, before which it does nothing for 0.3 s."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked, lock = 0, threading.Lock()

    def serve(connection: socket.socket) -> None:
        nonlocal asked
        with connection:
            while connection.recv(65536):
                with lock:
                    asked += 1
                    if asked == 20:
                        time.sleep(0.3)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n" + body(64, "0"))

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


def test_a_stall_counts_for_all_requests_that_should_have_left_during_it(stalling: int) -> None:
    found = run(stalling, 200.0, 1.0, length=64, paths=[path("64B", 0)])
    assert (found.requests, found.wrong, found.unanswered) == (200, 0, 0)
    # A fifth of a second of requests were due meanwhile: a closed loop would have shown one slow answer.
    assert found.p99 > 150_000

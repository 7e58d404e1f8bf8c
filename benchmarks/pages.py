"""The tables of README.md and docs/performance.md, made from benchmarks/results/results.json.

    python -m benchmarks.pages     writes them, between the comments that name each (`make docs`, and `make bench` too)

A test holds that the pages are what this would write.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from benchmarks import peers, report
from benchmarks.report import Column, Result, Verdict

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results") / "results.json"
PAGES = (Path("README.md"), Path("docs/performance.md"))
_SERVERS = (peers.NGINX, peers.VARNISH, peers.HAPROXY, peers.TRAFFIC_SERVER, peers.ENVOY)


def servers(results: Iterable[Result]) -> str:
    """Thousands of requests a second of the gateway and of the servers written in C and C++; the best is bold."""
    lines = [f"| requests a second | gateway | {' | '.join(_SERVERS)} |", "|---" * (2 + len(_SERVERS)) + "|"]
    return "\n".join((*lines, *(_servers_line(each) for each in results if _is_of_servers(each))))


def ratios(results: Iterable[Result]) -> str:
    """What the other table does not show: latency, what one would write in Python, other settings of the gateway."""
    lines = ["| what | against | ratio | goal | repeat it with |", "|---|---|---|---|---|"]
    return "\n".join((*lines, *(_ratio_line(each, verdict) for each in results for verdict in _others(each))))


def goals(results: Iterable[Result]) -> str:
    """Every ratio beside its bar."""
    return report.verdicts(results)


TABLES = {"servers": servers, "ratios": ratios, "goals": goals}


def filled(page: str, results: Collection[Result]) -> str:
    """`page` with its tables; raises KeyError for the name of a table that there is not."""

    def table(found: re.Match[str]) -> str:
        return f"{found[1]}\n{TABLES[found[2]](results)}\n{found[3]}"

    return re.sub(r"(<!-- bench:(\w+).*?-->)\n.*?(<!-- /bench -->)", table, page, flags=re.DOTALL)


def write(root: Path = ROOT) -> None:
    results = report.read(RESULTS).values()
    for name in PAGES:
        page = root / name
        page.write_text(filled(page.read_text(encoding="utf-8"), results), encoding="utf-8")


def _is_of_servers(result: Result) -> bool:
    return result.unit == "requests/s" and any(column.peer in _SERVERS for column in result.columns)


def _servers_line(result: Result) -> str:
    ours, *others = result.columns
    by_name = {column.peer: column for column in others}
    cells = [ours, *(by_name.get(name) for name in _SERVERS)]
    best = max(cell.median for cell in cells if cell)
    return f"| {result.title} | {' | '.join(_cell(cell, best) for cell in cells)} |"


def _cell(column: Column | None, best: float) -> str:
    if column is None:
        return "–"
    thousands = column.median / 1000
    text = f"{thousands:,.0f} k" if thousands >= 20 else f"{thousands:.1f} k"
    return f"**{text}**" if column.median == best else text


def _others(result: Result) -> list[Verdict]:
    shown = _SERVERS if _is_of_servers(result) else ()
    return [verdict for verdict in result.verdicts if verdict.peer not in shown]


def _ratio_line(result: Result, verdict: Verdict) -> str:
    goal = f"{'' if verdict.lower else 'at least '}{verdict.goal}{'' if verdict.met else ', not met'}"
    command = f"`make bench ROWS={result.key}`"
    return f"| {result.title} | {verdict.peer} | {verdict.text} | {goal} | {command} |"


if __name__ == "__main__":
    write()

"""`make bench`: measure, print the table, keep it and its picture, and put the figures into README.md and docs/.

    python -m benchmarks                      all rows
    python -m benchmarks --quick              all rows, shorter, fewer keys and entries: to see that all is well
    python -m benchmarks --rows hit,304       these rows; the others keep what an earlier run found. `handlers` names
                                              all rows whose keys begin with it
    python -m benchmarks --rounds 9           that many rounds of each row, instead of 9
    python -m benchmarks --output DIRECTORY   where results.json, table.md and chart.svg go (benchmarks/results)

Exit status: 0 the figures are there, bars met or not; 2 a figure could not be had, or a response was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks import pages, report
from benchmarks.machine import BenchmarkError, describe
from benchmarks.peers import Lab
from benchmarks.rows import Row, rows
from benchmarks.run import Plan, measure

_FULL, _QUICK = Plan(rounds=9, seconds=2), Plan(rounds=1, seconds=1, keys=5_000, entries=100_000)


def main() -> int:
    options = _options()
    plan = _QUICK if options.quick else replace(_FULL, rounds=options.rounds)
    wanted = [row for row in rows(keys=plan.keys, entries=plan.entries) if _is_wanted(row, options.rows)]
    results = {} if options.quick else report.read(options.output / "results.json")
    try:
        _measure_all(wanted, plan, results)
    except BenchmarkError as error:
        print(f"no figures: {error}", file=sys.stderr)
        return 2
    ordered = [results[row.key] for row in rows() if row.key in results]
    print(report.table(ordered))
    if not options.quick:
        _keep(options.output, ordered)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round; results are printed, not kept")
    parser.add_argument("--rows", default="", help="keys of rows, separated by commas: " + ", ".join(_keys()))
    parser.add_argument("--rounds", type=int, default=_FULL.rounds, help="rounds of each row (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results"))
    options = parser.parse_args()
    unknown = set(filter(None, options.rows.split(","))) - set(_keys())
    if unknown:
        parser.error(f"unknown rows: {', '.join(sorted(unknown))}; there are {', '.join(_keys())}")
    return options


def _keys() -> list[str]:
    return [row.key for row in rows()]


def _is_wanted(row: Row, listed: str) -> bool:
    return not listed or bool({row.key, row.key.partition("-")[0]}.intersection(listed.split(",")))


def _measure_all(wanted: list[Row], plan: Plan, results: dict[str, report.Result]) -> None:
    with contextlib.ExitStack() as stack:
        lab = Lab(stack, entries=plan.entries)
        try:
            for row in wanted:
                results[row.key] = report.result(measure(lab, row, plan, lambda text: print(text, file=sys.stderr)))
        finally:
            lab.end()


def _keep(output: Path, results: list[report.Result]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    machine = describe()
    report.write(output / "results.json", results, machine, "python -m benchmarks")
    (output / "table.md").write_text(report.table(results))
    (output / "chart.svg").write_text(report.picture(results, machine))
    if (output / "results.json").samefile(pages.RESULTS):
        pages.write()


if __name__ == "__main__":
    sys.exit(main())

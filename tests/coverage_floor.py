"""`python -m tests.coverage_floor`: holds what the unit tests have run, as the last `pytest --cov` wrote it.

Of the pure ring every line and branch, of all the rest together 90 % of both.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coverage import Coverage

from tests.support.layers import PURE

REST_PERCENT = 90.0


@dataclass(frozen=True)
class Share:
    """What of a file was run: lines and branches, added up."""

    covered: int
    of: int
    missing: str = ""

    @property
    def percent(self) -> float:
        return 100.0 * self.covered / self.of if self.of else 100.0


def measured() -> Mapping[str, Share]:
    coverage = Coverage()
    coverage.load()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        coverage.json_report(outfile=file.name)
        files: dict[str, Any] = json.loads(Path(file.name).read_text())["files"]
    return {
        ".".join(Path(name).with_suffix("").parts[1:]): share(found)
        for name, found in files.items()
        if Path(name).parts[0] == "gateway"
    }


def share(found: dict[str, Any]) -> Share:
    summary = found["summary"]
    branches = [f"{start}->{end}" for start, end in found["missing_branches"]]
    return Share(
        summary["covered_lines"] + summary["covered_branches"],
        summary["num_statements"] + summary["num_branches"],
        ", ".join([*map(str, found["missing_lines"]), *branches]),
    )


def main() -> int:
    found = measured()
    pure = {name: each for name, each in found.items() if name in PURE}
    rest = {name: each for name, each in found.items() if name not in PURE}
    total = Share(sum(each.covered for each in rest.values()), sum(each.of for each in rest.values()))
    for name, each in sorted(rest.items(), key=lambda item: item[1].percent):
        if each.percent < REST_PERCENT:
            print(f"  {name}: {each.percent:.1f} %")
    print(f"all but the pure ring: {total.percent:.1f} % of lines and branches; it must be {REST_PERCENT:.0f} %")
    holes = {name: each for name, each in pure.items() if each.covered < each.of}
    for name, each in holes.items():
        print(f"  {name}: {each.percent:.1f} %, not run: {each.missing}")
    print(f"the pure ring: {len(pure) - len(holes)} of {len(pure)} modules whole; it must be all")
    unseen = PURE - set(pure)
    return 1 if holes or unseen or total.percent < REST_PERCENT else 0


if __name__ == "__main__":
    sys.exit(main())

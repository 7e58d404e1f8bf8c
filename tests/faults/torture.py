"""`make torture`: the rows of docs/reliability.md at full length, each as promise, figure demanded, figure seen.

    python -m tests.faults.torture [part …] [--soak 1h]

Without arguments all parts are run but the soak, which `--soak` runs at the length given. `peers` measures nginx and
Varnish beside the gateway, where they are installed; their rows are never unmet. Ends with 1 where a row is not met, or
a part broke off.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.faults import inside_rows, outside_rows
from tests.faults.rows import Row, Rows
from tests.support.processes import Valkey

Part = Callable[[str, Path], Rows]
PARTS: dict[str, Part] = {
    "identity": inside_rows.identity,
    "cancellation": inside_rows.cancellation,
    "upstream": inside_rows.upstream,
    "redis": inside_rows.redis,
    "redis_load": outside_rows.redis_under_load,
    "overload": outside_rows.overload_alone,
    "overload_redis": outside_rows.overload_with_redis,
    "memory": outside_rows.memory,
    "slow": outside_rows.slow,
    "deploys": outside_rows.deploys,
    "peers": outside_rows.peers,
    "theorem": outside_rows.theorem,
    "openapi": outside_rows.openapi,
}


async def rows_of(name: str, part: Part, redis_url: str, directory: Path) -> Rows:
    """A part's rows; where it breaks off, a row that says so."""
    try:
        async for row in part(redis_url, directory):
            yield row
    except Exception as error:  # one part that breaks off must not take the others' figures along
        traceback.print_exc()
        yield Row(name, "", f"broke off: {error!r}", met=False)


async def torture(parts: dict[str, Part]) -> bool:
    console, table = Console(width=200), Table("promise", "demanded", "seen", "met", title="torture")
    met = True
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        valkey = Valkey(directory, unix=False)
        stack.callback(valkey.end)
        await asyncio.to_thread(valkey.start)
        for name, part in parts.items():
            began = time.monotonic()
            place = directory / name
            place.mkdir()
            async for row in rows_of(name, part, valkey.url, place):
                told = {True: "yes", False: "NO", None: ""}[row.met]
                table.add_row(row.promise, row.demanded, row.seen, told)
                print(f"{told or '-':3} {row.promise}: {row.seen}", flush=True)
                met = met and row.met is not False
            print(f"--- {name}: {time.monotonic() - began:.1f} s", flush=True)
    console.print(table)
    return met


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.torture")
    parser.add_argument("--soak", metavar="LENGTH", help="adds the soak, of this length, such as 1h")
    parser.add_argument("parts", metavar="part", nargs="*", help=f"one of {', '.join(PARTS)}; all without names")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    names = arguments.parts or ([] if arguments.soak else list(PARTS))
    parts = {name: PARTS[name] for name in names}
    if arguments.soak:
        parts["soak"] = partial(outside_rows.soak, length=arguments.soak)
    sys.exit(0 if asyncio.run(torture(parts)) else 1)


if __name__ == "__main__":
    main()

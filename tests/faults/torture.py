"""`make torture`: the rows of docs/reliability.md at full length, each as promise, figure demanded, figure seen.

    python -m tests.faults.torture [part …]

Without names all parts are run, the soak only where `SOAK=1h` says how long. `peers` measures nginx and Varnish beside
the gateway, where they are installed; their rows are never unmet. `OVERLOAD` and `REDIS_SECONDS` are the lengths of
those rows in seconds (60), `KEYS` the distinct queries (40000), `FUZZ_EXAMPLES` and `OPENAPI_EXAMPLES` how much is
tried of each kind (100). Ends with 1 where a row is not met, or a part broke off.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.faults import inside_rows, outside_rows
from tests.faults.rows import Row, Rows
from tests.support.processes import Valkey

PARTS: dict[str, Callable[[str, Path], Rows]] = {
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
    "soak": outside_rows.soak,
}


async def part(name: str, redis_url: str, directory: Path) -> Rows:
    """A part's rows; where it breaks off, a row that says so."""
    try:
        async for row in PARTS[name](redis_url, directory):
            yield row
    except Exception as error:  # one part that breaks off must not take the others' figures along
        traceback.print_exc()
        yield Row(name, "", f"broke off: {error!r}", met=False)


async def torture(names: list[str]) -> bool:
    console, table = Console(width=200), Table("promise", "demanded", "seen", "met", title="torture")
    met = True
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        valkey = Valkey(directory, unix=False)
        stack.callback(valkey.end)
        await asyncio.to_thread(valkey.start)
        for name in names:
            began = time.monotonic()
            place = directory / name
            place.mkdir()
            async for row in part(name, valkey.url, place):
                told = {True: "yes", False: "NO", None: ""}[row.met]
                table.add_row(row.promise, row.demanded, row.seen, told)
                print(f"{told or '-':3} {row.promise}: {row.seen}", flush=True)
                met = met and row.met is not False
            print(f"--- {name}: {time.monotonic() - began:.1f} s", flush=True)
    console.print(table)
    return met


def main() -> None:
    names = sys.argv[1:] or list(PARTS)
    unknown = set(names) - set(PARTS)
    if unknown:
        sys.exit(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    sys.exit(0 if asyncio.run(torture(names)) else 1)


if __name__ == "__main__":
    main()

"""Two versions of the gateway beside each other: what a request costs each, as ratios of one run.

    python -m benchmarks.compare TREE [--rows hit,304] [--pairs 9] [--seconds 2]

TREE is a checkout of the other version. Both run on the same interpreter and packages, one worker each, on one core,
with the configuration of `peers/compare.yaml`; wrk, the upstream and Valkey share the other core. The versions take
turns, and each pair gives one ratio of the requests for a second of the worker's processor time: above 1, this checkout
is faster. Processor time depends less than a rate on what else the machine does.

Exit status: 0 the figures are there, 2 a figure could not be had, or a response was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from benchmarks.load import Pattern, warm, wrk
from benchmarks.machine import BenchmarkError, cores, free_port, running
from benchmarks.peers import Peer, Site, origin_command, valkey_command
from benchmarks.traffic import path, uncached_path

_HERE = Path(__file__).parents[1]
_KEYS = 100_000
_SPLICED = 30_000
"""Request lines, so many that each joined response has expired before its line comes again."""

ROWS = {
    "hit": Pattern("hot", path("1KiB", 0)),
    "304": Pattern("hot", path("1KiB", 0), headers=('If-None-Match: "1KiB-0"',), status=304),
    "uncached": Pattern("unique", uncached_path("")),
    "miss": Pattern("unique", path("1KiB", "")),
    "miss-redis": Pattern("unique", path("1KiB", "")),
    "mixed": Pattern("mixed", path("1KiB", ""), 1000),
    "redis": Pattern("spread", path("1KiB", ""), 1000),
    "zipf": Pattern("zipf", path("1KiB", ""), _KEYS),
    "joined": Pattern("hot", "/joined/1KiB/0"),
    "spliced": Pattern("spread", "/spliced/1KiB/", _SPLICED),
    "fanned": Pattern("unique", "/fanned/1KiB/"),
}
"""What is requested in each row. `redis` and `miss-redis` have Redis, and in `redis` nothing is kept in memory."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Requests for a second of the worker's processor time: of this checkout, and of the other."""

    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


def compare(tree: Path, row: str, *, pairs: int, seconds: float) -> list[Pair]:
    """Raises BenchmarkError where a response is wrong, or a gateway doesn't start."""
    pattern = ROWS[row]
    server_core, load_core = cores()
    with _both(tree, row, server_core, load_core) as peers:
        for peer in peers:
            _prepare(peer, pattern)

        def measure(peer: Peer) -> float:
            found = wrk(peer.port, pattern, pid=peer.pid, core=load_core, seconds=seconds)
            return found.per_cpu_second

        found = []
        for number in range(pairs):
            figures = {peer.name: measure(peer) for peer in (peers if number % 2 else peers[::-1])}
            found.append(Pair(figures["ours"], figures["theirs"]))
        return found


def _prepare(peer: Peer, pattern: Pattern) -> None:
    kept = Pattern(pattern.kind, pattern.path, pattern.count)
    if pattern.kind == "unique":
        return
    for _ in range(3):
        warm(peer.port, kept.paths(kept.count))


@contextlib.contextmanager
def _both(tree: Path, row: str, server_core: int, load_core: int) -> Iterator[list[Peer]]:
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compare-")))

        def start(site: Site, command: Sequence[str], core: int, root: Path) -> int:
            environment = {"PYTHONPATH": str(root)}
            log = site.directory / "log"
            child = running(command, cores={core}, port=site.port, log=log, environment=environment, directory=root)
            return stack.enter_context(child).pid

        def site(name: str, origin: int = 0, redis: int = 0) -> Site:
            (directory / name).mkdir()
            return Site(free_port(), origin, redis, directory / name, 0)

        upstream, valkey = site("upstream"), site("valkey")
        start(upstream, origin_command(upstream), load_core, _HERE)
        start(valkey, valkey_command(valkey), load_core, _HERE)
        peers = []
        for number, (name, root) in enumerate((("ours", _HERE), ("theirs", tree))):
            place = site(name, upstream.port)
            redis = f"redis://127.0.0.1:{valkey.port}/{number}" if "redis" in row else "none"
            config = place.file("compare.yaml", memory="0" if row == "redis" else "1GiB", redis=redis)
            serve = [sys.executable, "-m", "gateway", "serve", "--config", config]
            peers.append(Peer(name, place.port, start(place, serve, server_core, root)))
        yield peers


def _line(row: str, pairs: Sequence[Pair]) -> str:
    ratios = [pair.ratio for pair in pairs]
    ours, theirs = (1e6 / statistics.median(figures) for figures in zip(*map(astuple, pairs), strict=True))
    spread = f"{statistics.median(ratios):.3f} | {min(ratios):.3f} | {max(ratios):.3f}"
    return f"| {row} | {spread} | {ours:.1f} | {theirs:.1f} |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.partition("\n")[0])
    parser.add_argument("tree", type=Path, help="a checkout of the other version")
    parser.add_argument("--rows", default=",".join(ROWS), help="separated by commas; all: %(default)s")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2, help="for each version in each pair")
    options = parser.parse_args()
    rows = options.rows.split(",")
    if unknown := set(rows) - set(ROWS):
        parser.error(f"unknown rows: {', '.join(sorted(unknown))}; the rows are {', '.join(ROWS)}")
    print("| row | ratio | least | greatest | µs a request | other version, µs |")
    print("|---|---|---|---|---|---|", flush=True)
    try:
        for row in rows:
            pairs = compare(options.tree.resolve(), row, pairs=options.pairs, seconds=options.seconds)
            print(_line(row, pairs), flush=True)
    except BenchmarkError as error:
        print(f"no figures: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

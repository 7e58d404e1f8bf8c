"""The house: three rings, imports only inwards, and what stands nowhere in it. Held by reading the sources."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent / "gateway"

# A name a line, so that two changes seldom meet.
PURE = frozenset(
    (
        "admission",
        "advice",
        "breakers",
        "changes",
        "codings",
        "clients_config",
        "config",
        "config_types",
        "downstream",
        "epochs",
        "errors",
        "exchange",
        "explain_trace",
        "explain_words",
        "expressions",
        "framing",
        "governor",
        "inside",
        "headers",
        "heads",
        "identity_key",
        "joining",
        "json_text",
        "keys",
        "ladder",
        "merge",
        "mode_words",
        "outcome",
        "part_config",
        "part_plan",
        "part_said",
        "policy",
        "preconditions",
        "proxies",
        "ranges",
        "record",
        "records",
        "redis_urls",
        "response_heads",
        "route_config",
        "rules",
        "s3fifo",
        "spelling",
        "structured",
        "targets",
        "templates",
        "totals",
        "upstream_config",
        "validation",
        "vary",
    )
)
IO = frozenset(
    (
        "access_log",
        "aggregate",
        "aggregate_routes",
        "answering",
        "answers",
        "asks",
        "attempts",
        "background",
        "bulkhead",
        "deadlines",
        "client",
        "clock",
        "collectors",
        "direct",
        "door",
        "edge",
        "edge_joins",
        "edge_shared",
        "edge_pass",
        "embedded",
        "engine",
        "fastapi_cache2",
        "fastapi_cache2_coder",
        "fetched",
        "fetching",
        "figures",
        "fleet_key",
        "flight",
        "flying",
        "garbage",
        "handler_answers",
        "handler_endpoint",
        "handler_inputs",
        "handler_key",
        "handler_replay",
        "handler_request",
        "handler_settings",
        "handler_tags",
        "handler_tree",
        "handler_value",
        "handlers",
        "head_template",
        "hit_log",
        "hits",
        "hosts",
        "joinable",
        "joints",
        "lag",
        "hottest",
        "leases",
        "listeners",
        "live",
        "memory",
        "memos",
        "metrics",
        "middleware",
        "part_origin",
        "part_run",
        "part_source",
        "passing",
        "plain_connections",
        "plain_requests",
        "prepared",
        "problems",
        "processes",
        "purge_stream",
        "purges",
        "redis_clients",
        "references",
        "redis_leases",
        "redis_reasons",
        "redis_pipe",
        "redis_reads",
        "redis_values",
        "remembered",
        "repeats",
        "response_headers",
        "routes",
        "runtime",
        "shapes",
        "shared",
        "slashes",
        "spawning",
        "storing",
        "tiers",
        "trace_context",
        "tracing",
        "traffic",
        "transport",
        "typed_parts",
        "underway",
        "uploads",
        "upstreams",
        "value_trees",
        "workshop",
    )
)
WIRING = frozenset(
    (
        "__init__",
        "__main__",
        "admin",
        "admin_host",
        "app",
        "beginning",
        "binding",
        "cli",
        "cli_input",
        "cli_ttl",
        "console",
        "document",
        "documentation",
        "explain",
        "explain_handlers",
        "explain_local",
        "explain_stores",
        "explain_text",
        "explaining",
        "included",
        "lasting",
        "operations",
        "overrides",
        "reference",
        "control",
        "generations",
        "members",
        "reloading",
        "supervisor",
        "worker",
        "server",
        "config_shape",
        "merging",
        "redaction",
        "remote",
        "setting_problems",
        "settings",
        "variables",
        "validation_rounds",
        "tables",
        "trial",
        "tuning",
        "warm",
        "watching",
    )
)
MODULES = sorted(path.stem for path in HOUSE.rglob("*.py"))

# What a pure module may import besides the standard library.
PURE_PACKAGES = frozenset(
    (*("brotli", "jmespath", "msgspec", "orjson", "pydantic", "pydantic_core", "xmltodict", "xxhash", "zstandard"),)
)
# What of the standard library reads a clock, waits, draws lots, or touches the world outside.
IMPURE = frozenset(
    (
        *(
            "asyncio",
            "concurrent",
            "contextvars",
            "ctypes",
            "fcntl",
            "fileinput",
            "ftplib",
            "getpass",
            "glob",
            "imaplib",
        ),
        *("io", "logging", "mmap", "multiprocessing", "os", "pathlib", "pickle", "pty", "queue", "random"),
        *("resource", "sched", "secrets", "select", "selectors", "shelve", "shutil", "signal", "smtplib", "socket"),
        *("socketserver", "sqlite3", "ssl", "subprocess", "sys", "syslog", "tempfile", "termios", "threading", "time"),
        *("urllib.request", "urllib.robotparser", "uuid", "webbrowser", "xmlrpc"),
        *("http.client", "http.cookiejar", "http.server"),
    )
)


def tree(module: str) -> ast.Module:
    return ast.parse((HOUSE / f"{module}.py").read_text())


def absolute_imports(module: str) -> Iterator[str]:
    """The dotted names that a module imports from outside the package: `http.HTTPStatus`, `re`."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(module: str) -> Iterator[str]:
    """The modules of the package that a module imports."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and node.level and node.module:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.level:
            # The version is a constant of the package; nothing is wired by it.
            names = [alias.name for alias in node.names if alias.name != "__version__"]
            yield from (name if name in MODULES else "__init__" for name in names)


def within(name: str, names: frozenset[str]) -> bool:
    """Whether a dotted name is one of `names`, or in one of them."""
    parts = name.split(".")
    return any(".".join(parts[:length]) in names for length in range(1, len(parts) + 1))


# --- the rings ---------------------------------------------------------------------------------------------


def test_every_module_belongs_to_one_ring() -> None:
    assert sorted([*PURE, *IO, *WIRING]) == MODULES


def test_the_package_has_no_rooms_within_rooms() -> None:
    rooms = {path.name for path in HOUSE.iterdir() if path.is_dir()} - {"__pycache__"}
    assert rooms == {"console"}  # what a browser is given, and nothing that Python runs
    assert not list((HOUSE / "console").rglob("*.py"))


@pytest.mark.parametrize("module", MODULES)
def test_the_package_imports_itself_relatively(module: str) -> None:
    assert not [name for name in absolute_imports(module) if within(name, frozenset(("gateway",)))]


@pytest.mark.parametrize("module", sorted(PURE))
def test_a_pure_module_imports_pure_modules_alone(module: str) -> None:
    assert set(own_imports(module)) <= PURE


@pytest.mark.parametrize("module", sorted(PURE))
def test_a_pure_module_imports_nothing_that_reaches_outside(module: str) -> None:
    impure = [name for name in absolute_imports(module) if within(name, IMPURE)]
    foreign = {name.partition(".")[0] for name in absolute_imports(module)} - sys.stdlib_module_names - PURE_PACKAGES
    assert (impure, foreign) == ([], set())


@pytest.mark.parametrize("module", sorted(PURE))
def test_a_pure_module_waits_for_nothing(module: str) -> None:
    waits = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    assert not [node.lineno for node in ast.walk(tree(module)) if isinstance(node, waits)]


@pytest.mark.parametrize("module", sorted(PURE))
def test_a_pure_module_opens_no_file_and_reads_no_clock(module: str) -> None:
    calls = [node.func for node in ast.walk(tree(module)) if isinstance(node, ast.Call)]
    names = {node.id for node in calls if isinstance(node, ast.Name)}
    attributes = {node.attr for node in calls if isinstance(node, ast.Attribute)}
    assert not names & {"open", "print", "input", "exec", "eval", "__import__"}
    assert not attributes & {"now", "utcnow", "today", "import_module"}


@pytest.mark.parametrize("module", sorted(IO))
def test_a_module_that_does_io_never_imports_the_wiring(module: str) -> None:
    assert set(own_imports(module)) <= PURE | IO


# --- what stands nowhere -----------------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_nothing_that_executes_what_it_reads_is_imported(module: str) -> None:
    assert not [
        name
        for name in absolute_imports(module)
        if within(name, frozenset(("pickle", "cloudpickle", "dill", "marshal", "shelve")))
    ]


@pytest.mark.parametrize("module", sorted({*MODULES} - {"s3fifo"}))  # whose shards and ghosts never leave the process
def test_no_hash_that_differs_in_each_process_is_taken(module: str) -> None:
    assert not [
        node.lineno
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hash"
    ]


@pytest.mark.parametrize("module", MODULES)
def test_no_middleware_hides_that_a_client_has_left(module: str) -> None:
    assert not [name for name in absolute_imports(module) if name.endswith("BaseHTTPMiddleware")]
    assert not [
        node.lineno
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node).endswith("BaseHTTPMiddleware")
    ]


BUILT = frozenset(
    (
        *("FastAPI", "Starlette", "APIRouter", "Gateway", "create_app", "Config", "load", "Upstream", "SystemClock"),
        *(
            "Client",
            "AsyncClient",
            "HTTPTransport",
            "AsyncHTTPTransport",
            "Transport",
            "Redis",
            "from_url",
            "RedisStore",
        ),
        *("ClientSession", "Memory", "Engine", "Metrics", "CollectorRegistry", "Lock", "Event", "Semaphore"),
    )
)


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """What is evaluated when a module is imported: not the bodies of its functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            for part in (*child.decorator_list, *child.args.defaults, *child.args.kw_defaults):
                if part is not None:
                    yield part
                    yield from at_import(part)
        elif not isinstance(child, ast.Lambda):
            yield child
            yield from at_import(child)


@pytest.mark.parametrize("module", MODULES)
def test_nothing_that_does_io_is_built_at_import(module: str) -> None:
    calls = [node for node in at_import(tree(module)) if isinstance(node, ast.Call)]
    assert not [
        f"{node.lineno}: {ast.unparse(node.func)}"
        for node in calls
        if ast.unparse(node.func).rpartition(".")[2] in BUILT
    ]


def catches_everything(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or ast.unparse(kind) in ("Exception", "BaseException") for kind in kinds)


def does_nothing(body: list[ast.stmt]) -> bool:
    return all(
        isinstance(statement, ast.Pass | ast.Continue | ast.Break)
        or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
        or (isinstance(statement, ast.Return) and statement.value is None)
        for statement in body
    )


def suppresses_everything(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call) or ast.unparse(node.func) not in ("suppress", "contextlib.suppress"):
        return False
    return any(ast.unparse(argument) in ("Exception", "BaseException") for argument in node.args)


@pytest.mark.parametrize("module", MODULES)
def test_no_error_is_swallowed_whatever_it_is(module: str) -> None:
    handlers = [node for node in ast.walk(tree(module)) if isinstance(node, ast.ExceptHandler)]
    assert not [node.lineno for node in handlers if catches_everything(node) and does_nothing(node.body)]


@pytest.mark.parametrize("module", MODULES)
def test_no_error_is_suppressed_whatever_it_is(module: str) -> None:
    assert not [node.lineno for node in ast.walk(tree(module)) if suppresses_everything(node)]

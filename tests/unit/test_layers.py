"""The layers, and what stands nowhere in the package. Held by reading the sources.

Which package may import which stands in `.importlinter`, and is checked by `make check`.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator

import pytest

from tests.support.layers import MODULES, PACKAGE, PURE, PURE_MODULES

LONGEST = 500
"""Lines of a module."""

# What a pure module may import besides the standard library.
PURE_LIBRARIES = frozenset(
    (
        *("backports", "brotli", "compression", "http_sf", "jmespath", "joserfc", "msgspec", "orjson", "pydantic"),
        *("pydantic_core", "xmltodict", "xxhash"),
    )
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
    return ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())


def absolute_imports(module: str) -> Iterator[str]:
    """The dotted names that a module imports from outside the package: `http.HTTPStatus`, `re`."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(module: str) -> Iterator[str]:
    """The modules of the package that a module imports."""
    for name in absolute_imports(module):
        parts = name.split(".")
        if parts[0] == "gateway":
            found = [
                ".".join(parts[1:end]) for end in (len(parts), len(parts) - 1) if ".".join(parts[1:end]) in MODULES
            ]
            yield found[0] if found else "__init__"


def within(name: str, names: frozenset[str]) -> bool:
    """Whether a dotted name is one of `names`, or in one of them."""
    parts = name.split(".")
    return any(".".join(parts[:length]) in names for length in range(1, len(parts) + 1))


# --- layers ------------------------------------------------------------------------------------------------


def test_every_pure_module_is_there() -> None:
    assert PURE_MODULES - set(MODULES) == set()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_can_be_read_at_a_sitting(module: str) -> None:
    lines = len((PACKAGE / f"{module.replace('.', '/')}.py").read_text().splitlines())
    assert lines <= LONGEST


SHORT = 80
"""Lines of a module that needs a reason of its own where one other imports it."""
ALONE = {
    "server.start_message": "`server/supervisor.py`, its importer, is near its limit of lines",
    "server.bootstrap": "what a process runs before it imports the rest; nothing imports it",
    "upstreams.health": "`upstreams/client.py`, its importer, is near its limit of lines",
}


def test_a_short_module_has_two_importers_or_a_reason() -> None:
    importers: dict[str, set[str]] = {module: set() for module in MODULES}
    for module in MODULES:
        for name in own_imports(module):
            importers.get(name, set()).add(module)
    found = {
        module
        for module in MODULES
        if not module.endswith("__init__")
        and len((PACKAGE / f"{module.replace('.', '/')}.py").read_text().splitlines()) < SHORT
        and len(importers[module]) <= 1
    }
    assert found == set(ALONE)


@pytest.mark.parametrize("module", [name for name in MODULES if name.endswith("__init__")])
def test_a_package_re_exports_nothing(module: str) -> None:
    """But the public names, late, so that importing a module costs no more than it needs."""
    late = (ast.FunctionDef, ast.Assign, ast.AnnAssign, ast.If)
    plain = [node for node in tree(module).body if not isinstance(node, (*late, ast.Expr))]
    assert all(isinstance(node, ast.Import | ast.ImportFrom) for node in plain)
    names = {
        name.partition(".")[0]
        for node in plain
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names])
    }
    assert names <= sys.stdlib_module_names


@pytest.mark.parametrize("module", sorted(PURE))
def test_a_pure_module_imports_pure_modules_alone(module: str) -> None:
    assert set(own_imports(module)) <= PURE


@pytest.mark.parametrize("module", sorted(PURE))
def test_a_pure_module_imports_nothing_that_reaches_outside(module: str) -> None:
    impure = [name for name in absolute_imports(module) if within(name, IMPURE)]
    foreign = {name.partition(".")[0] for name in absolute_imports(module)} - sys.stdlib_module_names - PURE_LIBRARIES
    foreign.discard("gateway")
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


# --- what stands nowhere -----------------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_nothing_that_executes_what_it_reads_is_imported(module: str) -> None:
    assert not [
        name
        for name in absolute_imports(module)
        if within(name, frozenset(("pickle", "cloudpickle", "dill", "marshal", "shelve")))
    ]


@pytest.mark.parametrize(
    "module", sorted({*MODULES} - {"cache.memory", "cache.flight"})
)  # whose shards, ghosts and marks never leave the process
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
    if module == "demo.shop":
        return  # an app as users write one, with routers at module level
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

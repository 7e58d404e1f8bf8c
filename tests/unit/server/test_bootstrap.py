"""A worker's imports are most of the time until it answers: which packages it may import, and how it begins."""

from __future__ import annotations

import json
import subprocess
import sys

# A name a line, and why it is needed to answer. Another one makes every start, and every replacement of a worker,
# longer: import it where it is used, or add it here with its reason.
MAY_IMPORT = frozenset(
    (
        # The server, and what its protocols need.
        "uvicorn",
        "uvloop",
        "httptools",
        "click",  # by uvicorn
        "watchfiles",  # by uvicorn
        # Routes and typed handlers.
        "fastapi",
        "starlette",
        "anyio",
        "annotated_doc",
        "opentelemetry",  # by fastapi, and redis
        # The configuration's models.
        "pydantic",
        "pydantic_core",
        "annotated_types",
        "typing_extensions",
        "typing_inspection",
        "email_validator",  # FastAPI, where it is installed
        "python_multipart",  # Starlette, where it is installed
        # Upstreams.
        "httpx",
        "aiohttp",
        "aiohappyeyeballs",
        "aiosignal",
        "attr",
        "frozenlist",
        "idna",
        "multidict",
        "propcache",
        "sniffio",
        "yarl",
        "brotli",
        "brotlicffi",
        "backports.zstd",
        # The shared tier.
        "redis",
        "hiredis",
        "xxhash",
        # Structured fields; compression; of `cryptography` redis-py imports nothing but the version.
        "http_sf",
        "backports",
        "cryptography",
        "zstandard",  # httpx, where it is installed
        # Records, messages, answers joined of parts, metrics.
        "msgspec",
        "orjson",
        "jmespath",
        "xmltodict",
        # The log.
        "structlog",
        "greenlet",  # structlog, where it is installed
        # Reading the configuration; not needed, but met on the way.
        "yaml",
        "dotenv",
        "prometheus_client",
    )
)
LOOK = """
import json, sys
before = set(sys.modules)
from gateway.server import bootstrap
bootstrap.leave_out()
import gateway.server.worker
import gateway.app.gateway
new = [name for name, found in sys.modules.items() if found and name not in before]
print(json.dumps(sorted({name.partition(".")[0] for name in new})))
"""


def imported() -> set[str]:
    ran = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    names: list[str] = json.loads(ran.stdout)
    return {name for name in names if not name.startswith("_") and name not in sys.stdlib_module_names}


def test_a_worker_imports_nothing_that_is_not_needed_to_answer() -> None:
    machinery = {"gateway", "cython_runtime"}
    assert imported() - machinery - MAY_IMPORT == set()


def test_the_command_line_imports_no_more_than_it_needs_to_start_the_first_worker() -> None:
    look = LOOK.replace(
        "import gateway.server.worker\nimport gateway.app.gateway",
        "import gateway.cli.commands, gateway.server.process",
    )
    ran = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    heavy = {"pydantic", "fastapi", "httpx", "aiohttp", "redis", "rich", "yaml", "msgspec"}
    assert heavy & set(json.loads(ran.stdout)) == set()


def test_the_supervisor_imports_nothing_that_serves() -> None:
    look = LOOK.replace("import gateway.app.gateway\n", "").replace("server.worker", "server.supervisor")
    ran = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert {"fastapi", "uvicorn", "httpx", "aiohttp", "redis"} & set(json.loads(ran.stdout)) == set()


def test_an_app_may_import_what_was_left_out_at_the_start() -> None:
    code = "from gateway.server.bootstrap import leave_out; leave_out(); import rich.console; print(rich.__name__)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "rich\n"


def test_httpx_still_works_without_its_command_line() -> None:
    code = "import sys; sys.modules['httpx._main'] = None; import httpx; print(httpx.URL('http://a/b').path)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "/b\n"

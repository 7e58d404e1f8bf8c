"""`python -m tests.own_coverage`: holds each module of `http` and `policy` to what its own file of tests runs.

Every line and branch of `gateway/http/headers.py` is run by `tests/unit/http/test_headers.py` alone. Words as arguments
measure those modules alone whose name holds one of them.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import sys
import tempfile
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest
from coverage import Coverage

from tests.coverage_floor import Share, share
from tests.support.layers import MODULES, PURE_PACKAGES

ROOT = Path(__file__).parent.parent
PROCESSES = 2
# What pytest and the package import, once for all processes. Nothing of the package: its import is measured.
PRELOADED = (
    *("_hypothesis_pytestplugin", "hypothesis.strategies", "schemathesis.pytest.plugin", "pytest_asyncio.plugin"),
    *("pytest_cov.plugin", "xdist.plugin", "aiohttp", "fastapi", "httpx", "httpx_aiohttp", "prometheus_client"),
    *("pydantic", "redis.asyncio", "uvicorn", "yaml"),
)


class Found(NamedTuple):
    module: str
    share: Share
    failed: str = ""
    """What pytest printed where a test failed."""


def own_file(module: str) -> Path:
    package, _, name = module.rpartition(".")
    return ROOT / "tests" / "unit" / package / f"test_{name}.py"


def measured(module: str) -> Found:
    """Runs in a process of its own, which imports the package while it is measured."""
    source = ROOT / "gateway" / f"{module.replace('.', '/')}.py"
    coverage = Coverage(data_file=None, branch=True, source=[str(source.parent)])
    printed = io.StringIO()
    coverage.start()
    with redirect_stdout(printed):
        status = pytest.main(
            ["--assert=plain", "-n", "0", "-p", "no:cacheprovider", "--timeout", "300", str(own_file(module))]
        )
    coverage.stop()
    with tempfile.NamedTemporaryFile(suffix=".json") as file, redirect_stdout(io.StringIO()):
        coverage.json_report(morfs=[str(source)], outfile=file.name)
        (found,) = json.loads(Path(file.name).read_text())["files"].values()
    return Found(module, share(found), printed.getvalue() if status else "")


def main(words: list[str]) -> int:
    modules = [
        name
        for name in MODULES
        if name.partition(".")[0] in PURE_PACKAGES
        and not name.endswith("__init__")
        and (not words or any(word in name for word in words))
    ]
    for name in PRELOADED:
        import_module(name)
    with multiprocessing.get_context("fork").Pool(PROCESSES, maxtasksperchild=1) as pool:
        found = list(pool.imap(measured, modules, chunksize=1))
    wrong = [each for each in found if each.failed or each.share.covered < each.share.of]
    for each in wrong:
        print(each.failed)
        print(f"  {each.module}: {each.share.percent:.1f} % by {own_file(each.module).relative_to(ROOT)} alone", end="")
        print(f", not run: {each.share.missing}")
    print(f"{len(found) - len(wrong)} of {len(found)} modules are run whole by their own file of tests; it must be all")
    return 1 if wrong or not found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

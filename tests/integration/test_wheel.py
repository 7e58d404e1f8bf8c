"""What a user gets: the wheel built here, in an empty environment, in an empty folder."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import venv
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement

from tests.support.made_once import MadeOnce
from tests.support.processes import ROOT, clean_environment

MEGABYTE = 1_000_000
MOST_MEGABYTES = 90
DEMO_SECONDS = 10.0
SLOWEST = 6.0
"""How much slower a loaded machine may be than the bound that a user gets."""
pytestmark = pytest.mark.timeout(600)


def environment() -> dict[str, str]:
    """Without the path to this checkout: the installed package is what is tested."""
    return {name: value for name, value in clean_environment().items() if name != "PYTHONPATH"}


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(made_once: MadeOnce) -> Path:
    """A folder with the wheel and the source distribution, built of the files under version control."""
    return made_once("built", build) / "dist"


def build(folder: Path) -> None:
    source = folder / "source"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", cwd=source)


@pytest.fixture(scope="module")
def installed(built: Path, made_once: MadeOnce) -> Path:
    """The `bin` of an environment with the wheel and what it requires, and nothing else. The dependencies are copied
    from this process's environment, which has the versions of constraints.txt: to download and compile them again
    takes a minute. `pip check` confirms that they are what the wheel requires."""
    [wheel] = built.glob("*.whl")
    return made_once("installed", partial(install, wheel)) / "bin"


def install(wheel: Path, folder: Path) -> None:
    venv.create(folder)
    [packages] = folder.glob("lib/python*/site-packages")
    for dependency in required(metadata_of(wheel)):
        copy(dependency, packages)
    pip(folder, "install", "-q", "--no-deps", wheel)
    pip(folder, "check")


def pip(environment: Path, *arguments: str | Path) -> None:
    run(sys.executable, "-m", "pip", "--python", environment / "bin/python", *arguments, cwd=environment)


def metadata_of(wheel: Path) -> Distribution:
    [information] = [each for each in zipfile.Path(wheel).iterdir() if each.name.endswith(".dist-info")]
    return PathDistribution(information)  # type: ignore[arg-type]  # a zipfile.Path does as well


def required(package: Distribution) -> list[Distribution]:
    """What a package requires, directly or not, as it is installed here."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()

    def follow(package: Distribution, extras: Iterable[str]) -> None:
        for extra in ("", *extras):
            if (key := (package.name, extra)) in seen:
                continue
            seen.add(key)
            for requirement in map(Requirement, package.requires or ()):
                if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                    found[requirement.name] = distribution(requirement.name)
                    follow(found[requirement.name], requirement.extras)

    follow(package, ())
    return list(found.values())


def copy(package: Distribution, packages: Path) -> None:
    for file in package.files or ():
        (target := packages / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file.locate(), target)  # type: ignore[arg-type]  # it is a path


def files_of(environment: Path) -> list[Path]:
    return [path for path in environment.rglob("*") if path.is_file() and not path.is_symlink()]


@contextmanager
def running(*command: str | Path, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command, cwd=cwd, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def slowness() -> float:
    """1 on a machine that has a processor for each process that wants one."""
    return min(SLOWEST, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answered(url: str, seconds: float) -> httpx.Response:
    until = time.monotonic() + seconds
    while True:
        try:
            return httpx.get(url, trust_env=False, timeout=5)
        except httpx.TransportError:
            assert time.monotonic() < until, f"{url} did not respond within {seconds} s"
            time.sleep(0.05)


def test_the_distributions_pass_the_checks_of_the_index(built: Path) -> None:
    files = sorted(map(str, built.iterdir()))
    assert len(files) == 2
    run(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=built)
    run(sys.executable, "-m", "check_wheel_contents", *[name for name in files if name.endswith(".whl")], cwd=built)


def test_the_source_distribution_has_all_that_is_under_version_control(built: Path) -> None:
    [archive] = built.glob("*.tar.gz")
    listed = run("tar", "tzf", archive, cwd=built).splitlines()
    inside = {name.partition("/")[2] for name in listed}
    tracked = run("git", "ls-files", cwd=ROOT).splitlines()
    assert [name for name in tracked if name not in inside and (ROOT / name).exists()] == [".gitignore"]


def test_the_installation_takes_at_most_90_megabytes(installed: Path) -> None:
    tools = ("pip", "setuptools", "_distutils_hack")
    size = sum(
        path.stat().st_size
        for path in files_of(installed.parent)
        if not any(part.partition("-")[0] in tools for part in path.parts) and path.suffix != ".pyc"
    )
    print(f"{size / MEGABYTE:.1f} MB installed, without pip and compiled files")
    assert size <= MOST_MEGABYTES * MEGABYTE


def test_the_demo_answers_within_ten_seconds(installed: Path, tmp_path: Path) -> None:
    port = free_port()
    began = time.monotonic()
    with running(installed / "gateway", "demo", "--port", str(port), cwd=tmp_path) as demo:
        answer = answered(f"http://127.0.0.1:{port}/products/7", DEMO_SECONDS * slowness())
        print(f"the demo answered after {time.monotonic() - began:.1f} s")
        assert (answer.status_code, answer.json()["id"]) == (200, 7)
        assert demo.poll() is None
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def json_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("json_server")
    installing = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "json-server@0.17"]
    if subprocess.run(installing, cwd=folder, capture_output=True, timeout=300).returncode:
        pytest.skip("json-server can't be installed")
    (folder / "db.json").write_text(json.dumps({"countries": [{"id": 1, "name": "Portugal"}]}))
    port = free_port()
    command = (folder / "node_modules/.bin/json-server", "--port", str(port), "--host", "127.0.0.1", "db.json")
    with running(*command, cwd=folder):
        answered(f"http://127.0.0.1:{port}/countries/1", 60)
        yield f"http://127.0.0.1:{port}"


def test_init_then_serve_answers_through_a_real_json_server(installed: Path, json_server: str, tmp_path: Path) -> None:
    port = free_port()
    run(installed / "gateway", "init", json_server, cwd=tmp_path)
    with running(installed / "gateway", "serve", "--port", str(port), cwd=tmp_path):
        url = f"http://127.0.0.1:{port}/countries/1"
        answers = [answered(url, DEMO_SECONDS * slowness()), answered(url, 1)]
    assert [(answer.status_code, answer.json()["name"]) for answer in answers] == [(200, "Portugal")] * 2
    assert all(answer.headers["cache-status"].startswith("gateway; ") for answer in answers)


def test_uninstalling_leaves_nothing(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "venv"
    venv.create(folder)
    before = {path for path in files_of(folder) if path.suffix != ".pyc"}
    [wheel] = built.glob("*.whl")
    pip(folder, "install", "-q", "--no-deps", wheel)
    pip(folder, "uninstall", "-q", "-y", "cached-gateway")
    after = {path for path in files_of(folder) if path.suffix != ".pyc"}
    assert after - before == set()
    assert not [path for path in folder.rglob("gateway*") if path.is_dir() and os.listdir(path)]

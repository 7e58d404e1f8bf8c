"""A release: version, changelog, tests, sdist, wheel, their check, a bill of materials, and a tag.

    python deploy/release.py 0.2.0            tries all of it in a clone; this checkout stays as it is
    python deploy/release.py 0.2.0 --tag      then takes over the commit and its tag

Nothing is uploaded or pushed: the last lines say how. What was built is in `dist/`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from packaging.version import InvalidVersion, Version

VERSION_FILE, CHART, CHANGELOG = "gateway/__init__.py", "deploy/helm/cached-gateway/Chart.yaml", "CHANGELOG.md"
UNRELEASED = "## [Unreleased]\n"


class ReleaseError(Exception):
    """The release can't be made; the message says why."""


def run(*command: str | Path, cwd: Path, **variables: str) -> None:
    print("$", *command, flush=True)
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **variables}, check=False)
    if done.returncode:
        raise ReleaseError(f"{' '.join(map(str, command))} ended with {done.returncode}")


def output(*command: str, cwd: Path) -> str:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout.strip()


# --- the texts that change ---------------------------------------------------------------------------------


def version_of(text: str) -> str:
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise ReleaseError(f"{VERSION_FILE} has no __version__")
    return found[1]


def checked(new: str, old: str) -> str:
    """The new version in its normal form. Raises ReleaseError."""
    try:
        version = Version(new)
    except InvalidVersion as error:
        raise ReleaseError(f"{new} is no version: {error}") from None
    if version.local or not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", str(version)):
        raise ReleaseError(f"{new} is not of the form 1.2.3 or 1.2.3rc1")
    if version < Version(old):
        raise ReleaseError(f"{version} is older than {old}, the present version")
    return str(version)


def with_version(text: str, version: str) -> str:
    """`gateway/__init__.py` with another version."""
    return re.sub(r'^__version__ = "[^"]+"$', f'__version__ = "{version}"', text, flags=re.MULTILINE)


def chart_with_version(text: str, version: str) -> str:
    text = re.sub(r"^version: \S+$", f"version: {version}", text, flags=re.MULTILINE)
    return re.sub(r"^appVersion: \S+$", f'appVersion: "{version}"', text, flags=re.MULTILINE)


def unreleased(changelog: str) -> str:
    """What the changelog has of the next release. Raises ReleaseError if that is nothing."""
    if UNRELEASED not in changelog:
        raise ReleaseError(f"{CHANGELOG} has no {UNRELEASED.strip()}")
    text = changelog.partition(UNRELEASED)[2].partition("\n## [")[0].strip()
    if not re.search(r"^- ", text, re.MULTILINE):
        raise ReleaseError(f"{CHANGELOG} has nothing under {UNRELEASED.strip()}")
    return text


def released(changelog: str, version: str, day: str) -> str:
    """The changelog with its unreleased part under the version."""
    if f"## [{version}]" in changelog:
        raise ReleaseError(f"{CHANGELOG} has a release {version} already")
    return changelog.replace(UNRELEASED, f"{UNRELEASED}\n## [{version}] - {day}\n", 1)


# --- the steps ---------------------------------------------------------------------------------------------


def prepare(clone: Path, new: str) -> str:
    """Write version and changelog, and commit them; gives the tag."""
    read = {name: (clone / name).read_text(encoding="utf-8") for name in (VERSION_FILE, CHART, CHANGELOG)}
    version = checked(new, version_of(read[VERSION_FILE]))
    if output("git", "tag", "--list", f"v{version}", cwd=clone):
        raise ReleaseError(f"the tag v{version} exists")
    unreleased(read[CHANGELOG])
    day = datetime.now(UTC).date().isoformat()
    (clone / VERSION_FILE).write_text(with_version(read[VERSION_FILE], version), encoding="utf-8")
    (clone / CHART).write_text(chart_with_version(read[CHART], version), encoding="utf-8")
    (clone / CHANGELOG).write_text(released(read[CHANGELOG], version, day), encoding="utf-8")
    run("git", "commit", "-q", "-m", f"release: {version}", VERSION_FILE, CHART, CHANGELOG, cwd=clone)
    return f"v{version}"


def build(clone: Path, dist: Path) -> Path:
    """The sdist and the wheel of the clone, checked; gives the wheel."""
    run(sys.executable, "-m", "build", "--outdir", dist, cwd=clone)
    run(sys.executable, "-m", "twine", "check", "--strict", *sorted(dist.iterdir()), cwd=clone)
    return next(dist.glob("*.whl"))


def bill_of_materials(clone: Path, wheel: Path, tag: str, target: Path) -> None:
    """What an installation of the wheel consists of, as CycloneDX. It is the same for the same packages: it has no time
    and no serial number."""
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder) / "bin/python"
        run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=clone)
        pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install", "--quiet")
        # By its name, since an installation from a path records the path.
        package = f"cached-gateway=={tag.removeprefix('v')}"
        run(*pip, "--find-links", wheel.parent, "--constraint", "constraints.txt", package, cwd=clone)
        command = ("cyclonedx_py", "environment", python, "--pyproject", "pyproject.toml", "--output-reproducible")
        run(sys.executable, "-m", *command, "--output-file", target, cwd=clone)
    bill = json.loads(target.read_text(encoding="utf-8"))
    bill["metadata"]["component"]["version"] = tag.removeprefix("v")  # pyproject.toml has none: it is `dynamic`
    target.write_text(json.dumps(bill, indent=1), encoding="utf-8")


def release(root: Path, new: str, *, tag: bool, tests: Sequence[str], dist: Path) -> None:
    """Raises ReleaseError."""
    if dirty := output("git", "status", "--porcelain", cwd=root):
        raise ReleaseError(f"there are changes that are not committed:\n{dirty}")
    dist.mkdir(parents=True, exist_ok=True)
    if any(dist.iterdir()):
        raise ReleaseError(f"{dist} is not empty")
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "cached-gateway"
        run("git", "clone", "-q", root, clone, cwd=root)
        for name in ("user.name", "user.email"):
            run("git", "config", name, output("git", "config", name, cwd=root), cwd=clone)
        made = prepare(clone, new)
        if tests:
            run(*tests, cwd=clone)
        wheel = build(clone, dist)
        bill_of_materials(clone, wheel, made, dist / f"cached-gateway-{made.removeprefix('v')}.cdx.json")
        if not tag:
            print(
                f"\nA dry run: all steps of {made} succeeded, and this checkout is as it was. With --tag it is tagged."
            )
            return
        run("git", "tag", "-a", made, "-m", made, cwd=clone)
        run("git", "fetch", "-q", clone, "HEAD", "tag", made, cwd=root)
        run("git", "merge", "-q", "--ff-only", made, cwd=root)
    print(
        f"\n{made} is tagged. To publish it:\n\n  git push --follow-tags\n  twine upload {dist}/*.whl {dist}/*.tar.gz"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Make a release; a dry run unless --tag is given.")
    parser.add_argument("version", help="such as 0.2.0")
    parser.add_argument("--tag", action="store_true", help="commit the version and tag it in this checkout")
    parser.add_argument("--dist", type=Path, default=Path("dist"), help="where the files go (default: %(default)s)")
    parser.add_argument(
        "--tests", default="make check test", help='what must pass (default: "%(default)s"); "" skips it'
    )
    given = parser.parse_args()
    root = Path(__file__).resolve().parents[1]
    try:
        release(root, given.version, tag=given.tag, tests=given.tests.split(), dist=given.dist.absolute())
    except ReleaseError as error:
        print(f"\nno release: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The Dockerfile: hadolint takes it, and what it makes is small and serves as containers run in production."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.support import scale
from tests.support.image import ROOT, Image, instructions
from tests.support.processes import free_port

LARGEST = 150 * 10**6
"""Bytes of the image's files, uncompressed."""
full = pytest.mark.skipif(
    scale.current != "full" or os.getuid() != 0 or not Path("/etc/debian_version").exists(),
    reason="building the image's files takes minutes, root and Debian: --scale=full",
)


def test_hadolint_takes_the_dockerfile() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run((hadolint, ROOT / "Dockerfile"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_dockerfile_copies_is_sent_to_the_builder() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [rest.split()[:-1] for name, rest in instructions((ROOT / "Dockerfile").read_text())[0] if name == "COPY"]
    assert set().union(*copied) == sent
    assert [name for name in sent if not (ROOT / name).exists()] == []


def test_the_image_is_used_as_its_own_user_with_a_mounted_configuration() -> None:
    last = instructions((ROOT / "Dockerfile").read_text())[-1]
    image = dict(last)
    assert image["USER"].partition(":")[0].isdecimal()  # Kubernetes' runAsNonRoot can't check a name
    assert image["USER"] != "0:0"
    assert image["CMD"] == '["serve", "--config", "/etc/gateway/gateway.yaml"]'


@pytest.mark.parametrize(
    ("extras", "more"), [("", []), ("identity", ["joserfc"]), ("otel identity", ["opentelemetry", "joserfc"])]
)
def test_extras_are_installed_by_an_argument(extras: str, more: list[str]) -> None:
    command = next(rest for name, rest in instructions((ROOT / "Dockerfile").read_text())[0] if "tomllib" in rest)
    listed = subprocess.check_output(
        ("sh", "-c", command.partition(" > ")[0].replace("python", sys.executable, 1)),
        cwd=ROOT,
        env={"EXTRAS": extras},
        text=True,
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    added = [line for line in listed.splitlines() if line not in project["dependencies"]]
    assert set(project["dependencies"]) <= set(listed.splitlines())
    assert sorted({re.split("[>-]", each)[0] for each in added}) == sorted(more)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    made = Image(tmp_path_factory.mktemp("image"))
    made.build()
    return made


@pytest.fixture
def serving(image: Image, tmp_path: Path, origin: str) -> Iterator[tuple[subprocess.Popen[str], str, dict[str, str]]]:
    """The image's default command with a mounted file: the process, its URL and its environment."""
    settings = {
        "upstreams": {"api": {"url": origin}},
        "routes": {"rest": {"path": "/{p:path}", "upstream": "api", "ttl": "60s"}},
    }
    folder = tmp_path / "mounted"
    folder.mkdir()
    (folder / "gateway.yaml").write_text(yaml.safe_dump(settings))
    environment = {"GATEWAY_PORT": str(free_port()), "GATEWAY_ADMIN_LISTEN": "none", "GATEWAY_WORKERS": "2"}
    process = image.started(image.command, folder, environment)
    try:
        yield process, f"http://127.0.0.1:{environment['GATEWAY_PORT']}", environment
    finally:
        process.kill()
        process.communicate()


def first_process(process: subprocess.Popen[str]) -> int:
    """The pid of the container's first process, seen from here."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


def answers(url: str) -> bool:
    for _ in range(600):
        try:
            return httpx.get(f"{url}/healthz", timeout=5).is_success
        except httpx.TransportError:
            time.sleep(0.1)
    return False


@full
def test_its_files_are_small(image: Image) -> None:
    assert image.size < LARGEST


@full
def test_it_serves_with_an_embedded_valkey_on_a_read_only_file_system_without_privileges(
    serving: tuple[subprocess.Popen[str], str, dict[str, str]], image: Image, tmp_path: Path
) -> None:
    process, url, environment = serving
    assert answers(url)
    assert httpx.get(f"{url}/counted").headers["cache-status"].startswith("gateway; fwd=miss; stored")
    for _ in range(20):
        assert httpx.get(f"{url}/counted").headers["cache-status"].startswith("gateway; hit")
    status = Path(f"/proc/{first_process(process)}/status").read_text()
    assert "Uid:\t65532\t65532\t65532\t65532" in status
    assert "CapEff:\t0000000000000000" in status
    check = image.started(image.health_check, tmp_path / "mounted", environment)
    assert check.wait(30) == 0, check.communicate()
    check = image.started(image.health_check, tmp_path / "mounted", {"GATEWAY_PORT": str(free_port())})
    check.communicate(timeout=30)
    assert check.returncode != 0


@full
def test_the_first_process_ends_on_sigterm_with_status_0(
    serving: tuple[subprocess.Popen[str], str, dict[str, str]],
) -> None:
    process, url, _ = serving
    assert answers(url)
    os.kill(first_process(process), signal.SIGTERM)
    assert process.wait(60) == 0


@full
def test_without_a_mounted_file_it_ends_and_names_the_file(image: Image, tmp_path: Path) -> None:
    output, _ = image.started(image.command, tmp_path, {}).communicate(timeout=60)
    assert "/etc/gateway/gateway.yaml" in output

"""The systemd unit: systemd takes it, and its settings are those of the gateway."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "deploy/systemd/cached-gateway.service"


def service() -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), flags=re.MULTILINE))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing (Debian: systemd)")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """With a program that exists; systemd refuses one that doesn't."""
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", UNIT.read_text(), flags=re.MULTILINE))
    done = subprocess.run(("systemd-analyze", "verify", copy), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing (Debian: systemd)")
def test_systemd_finds_the_unit_well_confined() -> None:
    command = ("systemd-analyze", "security", "--offline=true", "--threshold=20", UNIT)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-200:]


def test_the_unit_waits_for_readiness_reloads_and_has_a_watchdog() -> None:
    found = service()
    assert found["Type"] == "notify"
    assert found["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert int(found["WatchdogSec"]) > 0
    assert found["KillMode"] == "mixed"  # SIGTERM to the supervisor alone, which stops the workers in order
    assert int(found["LimitNOFILE"]) >= 65536

"""compose.yaml and its demo: valid by Compose's specification, with files, ports and variables that are there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from gateway.config.loader import load
from tests.support.image import instructions

ROOT = Path(__file__).parents[2]
PRODUCTION = ROOT / "compose.yaml"
DEMO = ROOT / "deploy/compose/demo.yaml"


class _Loader(yaml.SafeLoader):
    """Reads `!override` as what it stands before."""


_Loader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node))


def services(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.load(path.read_text(), _Loader)["services"]
    return found


def interpolated(text: str, **variables: str) -> str:
    """Compose's `${NAME:-default}` and `${NAME:?message}`."""
    return re.sub(r"\$\{(\w+)(?::([-?])([^}]*))?\}", lambda found: variables.get(found[1]) or found[3] or "", text)


@pytest.mark.parametrize("path", [PRODUCTION, DEMO], ids=lambda path: path.name)
def test_it_is_valid_by_the_specification(path: Path) -> None:
    text = interpolated(path.read_text()).replace("!override", "")
    assert set(PyCompose.from_yaml(text).service_names()) == set(services(path))


def test_the_parser_refuses_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="prots"):
        PyCompose.from_yaml(interpolated(PRODUCTION.read_text()).replace("    ports:", "    prots:", 1))


def test_all_mounted_files_are_there() -> None:
    mounts = [
        mount.partition(":")[0]
        for path in (PRODUCTION, DEMO)
        for each in services(path).values()
        for mount in each.get("volumes", ())
    ]
    files = [mount for mount in mounts if mount.startswith("./")]
    assert len(files) == 6
    assert [file for file in files if not (ROOT / file).exists()] == []
    volumes = yaml.safe_load(PRODUCTION.read_text())["volumes"]
    assert [name for name in mounts if re.fullmatch(r"\w+", name) and name not in volumes] == []


@pytest.mark.parametrize("path", [PRODUCTION, DEMO], ids=lambda path: path.name)
def test_the_variables_are_settings_of_the_gateway(path: Path, tmp_path: Path) -> None:
    given = services(path)["gateway"]["environment"]
    variables = {name: interpolated(value) or "token" for name, value in given.items()}
    loaded = load(
        ROOT / "gateway/demo/gateway.yaml", environ={"GATEWAY_ADMIN_TOKEN": "token", **variables}, dotenv=None
    )
    assert loaded.warnings == ()
    assert {
        source.place for sources in loaded.sources.values() for source in sources if source.kind == "environment"
    } == {f"environment {name}" for name in variables if name != "GATEWAY_ADMIN_TOKEN"}


def test_the_gateway_is_confined_and_publishes_no_admin_listener() -> None:
    gateway = services(PRODUCTION)["gateway"]
    assert gateway["read_only"] is True
    assert gateway["cap_drop"] == ["ALL"]
    assert gateway["security_opt"] == ["no-new-privileges:true"]
    assert [port.rpartition(":")[2] for port in gateway["ports"]] == ["8000"]
    exposed = next(rest for name, rest in instructions((ROOT / "Dockerfile").read_text())[-1] if name == "EXPOSE")
    assert exposed.split() == ["8000", gateway["environment"]["GATEWAY_ADMIN_LISTEN"].rpartition(":")[2]]


def test_prometheus_watches_each_replica_by_the_rules_job() -> None:
    config = yaml.safe_load((ROOT / "deploy/compose/prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    assert found["names"] == ["gateway"]
    assert f":{found['port']}" in services(PRODUCTION)["gateway"]["environment"]["GATEWAY_ADMIN_LISTEN"]
    assert f'up{{job="{job["job_name"]}"}}' in (ROOT / "config/prometheus/rules.yml").read_text()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is missing (Debian: apt-get install prometheus)")
def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    for name in ("deploy/compose/prometheus.yml", "config/prometheus/rules.yml"):
        shutil.copy(ROOT / name, tmp_path)
    command = ("promtool", "check", "config", "prometheus.yml")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_has_the_dashboard_and_its_data_source() -> None:
    mounts = dict(mount.split(":")[:2] for mount in services(PRODUCTION)["grafana"]["volumes"])
    provider = yaml.safe_load((ROOT / "deploy/compose/grafana/dashboards.yml").read_text())["providers"][0]
    assert Path(mounts["./config/grafana/gateway.json"]).parent == Path(provider["options"]["path"])
    source = yaml.safe_load((ROOT / "deploy/compose/grafana/datasource.yml").read_text())["datasources"][0]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")

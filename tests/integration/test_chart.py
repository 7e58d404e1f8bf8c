"""The Helm chart: linted, rendered by Helm itself, valid by the schemas of Kubernetes, and as the gateway runs."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python as helm
import httpx
import pytest
import yaml

from gateway import __version__
from gateway.config.loader import load
from tests.support.processes import LISTENING, Child, MakeValkey, free_port

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/cached-gateway"
VALUES: dict[str, Any] = {
    "config": {
        "upstreams": {"api": {"url": "http://api.test"}},
        "routes": {"rest": {"path": "/{path:path}", "upstream": "api", "ttl": "60s"}},
    },
    "redis": {"url": "redis://redis:6379/0"},
    "admin": {"existingSecret": "gateway"},
    "serviceMonitor": {"enabled": True},
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    "dashboard": {"enabled": True},
}
OF_THE_OPERATOR = ("ServiceMonitor", "PrometheusRule")
INFO = 1


def rendered(**values: Any) -> dict[str, dict[str, Any]]:
    """The objects by kind; the services by their component."""
    with helm.Chart.load(CHART) as chart:
        texts = chart.render({**VALUES, **values}, name="shop", namespace="prod")
    objects: dict[str, dict[str, Any]] = {}
    for name, text in texts.items():
        if name.endswith(".txt"):
            continue
        for each in filter(None, yaml.safe_load_all(text)):
            part = each["metadata"]["labels"].get("app.kubernetes.io/component", "")
            kind = f"{each['kind']} {part}" if part else each["kind"]
            assert kind not in objects or kind == "ConfigMap"
            objects["ConfigMap dashboard" if "dashboard" in each["metadata"]["name"] else kind] = each
    return objects


def container(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    (found,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def environment(objects: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container(objects)["env"] if "value" in each}


def test_lint_finds_nothing() -> None:
    report = helm.lint(CHART, VALUES, strict=True)
    assert report["errors"] == []
    assert [each for each in report["messages"] if each["severity"] > INFO] == []


def test_all_objects_are_rendered() -> None:
    assert set(rendered()) == {
        *("ConfigMap", "ConfigMap dashboard", "Deployment", "HorizontalPodAutoscaler", "NetworkPolicy"),
        *("PodDisruptionBudget", "PrometheusRule", "Service admin", "Service public", "ServiceMonitor"),
    }


@pytest.mark.parametrize(
    "values",
    [
        {},
        {
            "redis": {"existingSecret": "redis"},
            "env": [{"name": "API_TOKEN", "value": "x"}],
            "autoscaling": {"enabled": False},
        },
        {"existingConfigMap": "mine", "networkPolicy": {"egress": [{"ports": [{"port": 53, "protocol": "UDP"}]}]}},
        {
            "podLabels": {"a": "b"},
            "podAnnotations": {"c": "d"},
            "nodeSelector": {"e": "f"},
            "imagePullSecrets": [{"name": "g"}],
        },
    ],
    ids=["plain", "secrets", "a ConfigMap of one's own", "pods"],
)
def test_each_object_is_valid_by_the_schemas_of_kubernetes(values: dict[str, Any]) -> None:
    import kubernetes_validate  # here: for 2 s it compiles grammars, in each process that collects tests

    for each in rendered(**values).values():
        if each["kind"] not in OF_THE_OPERATOR:
            kubernetes_validate.validate(each, "1.34", strict=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"redis": {}}, "redis.url or redis.existingSecret is required"),
        ({"admin": {}}, "admin.existingSecret is required"),
        ({"config": {}}, "config.routes is empty"),
        ({"replicas": 0}, "/replicas"),
        ({"redis": {"url": "redis:6379"}}, "/redis/url"),
        ({"config": {**VALUES["config"], "port": 9}}, "/config"),
        ({"resorces": {}}, "resorces"),
    ],
)
def test_wrong_values_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(helm.HelmError, match=message):
        rendered(**values)


def test_the_versions_are_those_of_the_gateway() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


def test_a_changed_configuration_starts_new_pods() -> None:
    def checksum(**values: Any) -> str:
        return str(rendered(**values)["Deployment"]["spec"]["template"]["metadata"]["annotations"]["checksum/config"])

    routes = {"rest": {**VALUES["config"]["routes"]["rest"], "ttl": "61s"}}
    assert checksum() == checksum()
    assert checksum() != checksum(config={**VALUES["config"], "routes": routes})


def test_selectors_ports_and_names_refer_to_each_other() -> None:
    objects = rendered()
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    ports = {port["name"] for port in container(objects)["ports"]}
    selectors = [objects[kind]["spec"]["selector"] for kind in ("Service public", "Service admin")]
    selectors += [objects[kind]["spec"]["selector"]["matchLabels"] for kind in ("Deployment", "PodDisruptionBudget")]
    selectors += [objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]]
    for spread in objects["Deployment"]["spec"]["template"]["spec"]["topologySpreadConstraints"]:
        selectors.append(spread["labelSelector"]["matchLabels"])
    assert all(selector.items() <= labels.items() for selector in selectors)
    for kind in ("Service public", "Service admin"):
        assert {port["targetPort"] for port in objects[kind]["spec"]["ports"]} <= ports
    monitored = objects["ServiceMonitor"]["spec"]
    assert monitored["selector"]["matchLabels"].items() <= objects["Service admin"]["metadata"]["labels"].items()
    assert not monitored["selector"]["matchLabels"].items() <= objects["Service public"]["metadata"]["labels"].items()
    assert [port["name"] for port in objects["Service admin"]["spec"]["ports"]] == [monitored["endpoints"][0]["port"]]
    scaled = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert scaled["name"] == objects["Deployment"]["metadata"]["name"]
    assert "replicas" not in objects["Deployment"]["spec"]


def test_the_admin_listener_is_closed_to_clients() -> None:
    rules = rendered()["NetworkPolicy"]["spec"]["ingress"]
    assert [("from" in rule) for rule in rules if rule["ports"] == [{"port": "admin"}]] == [True]
    assert [port["name"] for port in rendered()["Service public"]["spec"]["ports"]] == ["http"]


def test_the_grace_period_covers_the_hook_and_the_shutdown() -> None:
    objects = rendered(shutdown={"preStopSeconds": 7, "timeoutSeconds": 20})
    assert environment(objects)["GATEWAY_SHUTDOWN_TIMEOUT"] == "20s"
    assert objects["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 7 + 20
    assert "time.sleep(7)" in container(objects)["lifecycle"]["preStop"]["exec"]["command"][2]


def test_secrets_are_referred_to_and_never_rendered() -> None:
    objects = rendered(redis={"existingSecret": "redis", "secretKey": "url"})
    found = {
        each["name"]: each["valueFrom"]["secretKeyRef"] for each in container(objects)["env"] if "valueFrom" in each
    }
    assert found == {
        "GATEWAY_ADMIN_TOKEN": {"name": "gateway", "key": "admin-token"},
        "GATEWAY_REDIS_URL": {"name": "redis", "key": "url"},
    }
    assert "Secret" not in objects


def test_the_user_is_that_of_the_image() -> None:
    pod = rendered()["Deployment"]["spec"]["template"]["spec"]["securityContext"]
    assert f"USER {pod['runAsUser']}:{pod['runAsGroup']}\n" in (ROOT / "Dockerfile").read_text()


# --- monitoring --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("copy", "original"), [("rules.yml", "prometheus/rules.yml"), ("dashboard.json", "grafana/gateway.json")]
)
def test_the_charts_copies_are_those_of_config(copy: str, original: str) -> None:
    assert (CHART / "files" / copy).read_bytes() == (ROOT / "config" / original).read_bytes(), f"cp config/{original}"


def test_the_alert_rules_pass_through_the_template_unchanged() -> None:
    spec = rendered()["PrometheusRule"]["spec"]
    assert spec == yaml.safe_load((ROOT / "config/prometheus/rules.yml").read_text())
    dashboard = rendered()["ConfigMap dashboard"]["data"]["cached-gateway.json"]
    assert json.loads(dashboard) == json.loads((ROOT / "config/grafana/gateway.json").read_text())


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is missing (Debian: apt-get install prometheus)")
def test_prometheus_takes_the_rendered_rules(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rendered()["PrometheusRule"]["spec"]))
    command = ("promtool", "check", "rules", "rules.yml")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_monitor_names_the_job_that_the_rules_look_for() -> None:
    (endpoint,) = rendered()["ServiceMonitor"]["spec"]["endpoints"]
    jobs = [each["replacement"] for each in endpoint["relabelings"] if each["targetLabel"] == "job"]
    assert f'up{{job="{jobs[0]}"}}' in (ROOT / "config/prometheus/rules.yml").read_text()


# --- the gateway as the chart starts it --------------------------------------------------------------------


class Pod:
    """A process with a container's arguments, environment and configuration, its ports replaced by free ones."""

    def __init__(self, objects: dict[str, dict[str, Any]], directory: Path, redis_url: str) -> None:
        found = container(objects)
        values = environment(objects)
        containers = {port["name"]: str(port["containerPort"]) for port in found["ports"]}
        assert values["GATEWAY_PORT"] == containers["http"]
        assert values["GATEWAY_ADMIN_LISTEN"] == f"0.0.0.0:{containers['admin']}"
        self.ports = {name: free_port() for name in containers}
        values["GATEWAY_PORT"] = str(self.ports["http"])
        values["GATEWAY_ADMIN_LISTEN"] = f"127.0.0.1:{self.ports['admin']}"
        values |= {"GATEWAY_REDIS_URL": redis_url, "GATEWAY_ADMIN_TOKEN": "of the Secret"}
        (directory / "gateway.yaml").write_text(objects["ConfigMap"]["data"]["gateway.yaml"])
        (mount,) = (each for each in found["volumeMounts"] if each["name"] == "config")
        arguments = [each.replace(mount["mountPath"], str(directory)) for each in found["args"]]
        command = [sys.executable, "-m", "gateway", *arguments]
        self.child = Child(command, output=directory / "out", cwd=directory, environment=values)

    def probe(self, probe: dict[str, Any]) -> httpx.Response:
        asked = probe["httpGet"]
        return httpx.get(f"http://127.0.0.1:{self.ports[asked['port']]}{asked['path']}", timeout=10)


@pytest.fixture
def pod(tmp_path: Path, make_valkey: MakeValkey, origin: str) -> Iterator[Pod]:
    config = {**VALUES["config"], "upstreams": {"api": {"url": origin}}}
    made = Pod(rendered(config=config, workers=2), tmp_path, make_valkey().url)
    try:
        made.child.said(LISTENING)
        yield made
    finally:
        made.child.end()


@pytest.mark.timeout(180)
def test_probes_metrics_and_routes_are_there_as_the_chart_says(pod: Pod) -> None:
    found = container(rendered())
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert pod.probe(found[name]).status_code == 200, name
    assert pod.probe(found["readinessProbe"]).json()["redis"] == "available"
    (endpoint,) = rendered()["ServiceMonitor"]["spec"]["endpoints"]
    metrics = pod.probe({"httpGet": {"port": endpoint["port"], "path": endpoint["path"]}})
    assert "gateway_workers 2.0" in metrics.text
    assert httpx.get(f"http://127.0.0.1:{pod.ports['http']}/counted").headers["cache-status"].startswith("gateway; fwd")
    assert subprocess.run(
        [sys.executable, *found["lifecycle"]["preStop"]["exec"]["command"][1:]], check=True, timeout=60
    )
    pod.child.signal(signal.SIGTERM)
    assert pod.child.wait(rendered()["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]) == 0


def test_the_rendered_configuration_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(rendered()["ConfigMap"]["data"]["gateway.yaml"])
    assert list(load(file, environ={}, dotenv=None).config.routes) == ["rest"]

"""config/prometheus and config/grafana ask for metrics and labels that the gateway has, and Prometheus takes them."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from gateway.app.gateway import create_app

ROOT = Path(__file__).parents[2]
RULES = ROOT / "config/prometheus/rules.yml"
DASHBOARD = ROOT / "config/grafana/gateway.json"
ROW = re.compile(r"^\| `(gateway_\w+)` \| ([^|]*)\|", re.MULTILINE)
SELECTOR = re.compile(r"(?<![\w:])(gateway_\w+)(?:\{([^}]*)\})?")
BY = re.compile(r"by \(([^)]*)\)")
Expressions = Callable[[], Iterator[str]]
OF_PROMETHEUS = {"job", "instance", "le"}

promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is missing (Debian: apt-get install prometheus)"
)


def rule_expressions() -> Iterator[str]:
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def dashboard_expressions() -> Iterator[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))


def documented() -> dict[str, set[str]]:
    """The metrics of docs/operations.md with their labels."""
    page = (ROOT / "docs/operations.md").read_text()
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in ROW.findall(page)}


def samples() -> set[str]:
    """The names of all samples that a gateway can tell: those of a worker, of its supervisor, and of what only some
    configurations have."""
    gateway = create_app({"redis_url": "redis://cache", "upstreams": {"shop": {"url": "http://shop"}}})
    names = set()
    for family in gateway.metrics.registry.collect():
        ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        names |= {family.name + end for end in ends}
    parsed = [ast.parse(path.read_text()) for path in sorted((ROOT / "gateway/server").glob("*.py"))]
    for node in (each for module in parsed for each in ast.walk(module)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("_family", "Family"):
            name, kind = (str(each.value) if isinstance(each, ast.Constant) else "" for each in node.args[:2])
            names.add(f"{name}_total" if kind == "counter" else name)
    return names - {""} | configured_samples()


def configured_samples() -> set[str]:
    names = set()
    for path in (ROOT / "gateway/app/collectors.py", ROOT / "gateway/edge/certificate.py"):
        text = path.read_text()
        names |= {f"{name}_total" for name in re.findall(r'CounterMetricFamily\(\s*"(\w+)"', text)}
        names |= set(re.findall(r'(?:GaugeMetricFamily|_gauge)\(\s*"(\w+)"', text))
    return names


@pytest.mark.parametrize("expressions", [rule_expressions, dashboard_expressions])
async def test_every_metric_that_is_asked_for_is_one_of_the_gateways(expressions: Expressions) -> None:
    asked = {name for expression in expressions() for name, _ in SELECTOR.findall(expression)}
    assert len(asked) > 10
    assert sorted(asked - samples()) == []


@pytest.mark.parametrize("expressions", [rule_expressions, dashboard_expressions])
def test_every_label_that_is_asked_for_is_one_of_its_metric(expressions: Expressions) -> None:
    known = documented()
    for expression in expressions():
        have = OF_PROMETHEUS.copy()
        for name, matchers in SELECTOR.findall(expression):
            labels = known[re.sub(r"_(bucket|sum|count)$", "", name)]
            have |= labels
            assert set(re.findall(r"(\w+)\s*[!=]", matchers)) <= labels | OF_PROMETHEUS, expression
        for grouped in BY.findall(expression):
            assert {label.strip() for label in grouped.split(",")} <= have, expression


def test_the_dashboard_shows_every_metric_of_the_gateway() -> None:
    asked = {name for expression in dashboard_expressions() for name, _ in SELECTOR.findall(expression)}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    assert sorted(set(documented()) - shown) == []


def test_panels_have_titles_ids_of_their_own_and_do_not_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["title"] for panel in panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells


@promtool
@pytest.mark.parametrize(
    "command",
    [("check", "rules", "rules.yml"), ("check", "config", "prometheus.yml"), ("test", "rules", "rules_test.yml")],
    ids=" ".join,
)
def test_prometheus_takes_the_rules_and_they_fire_on_what_they_are_for(command: tuple[str, ...]) -> None:
    done = subprocess.run(("promtool", *command), cwd=RULES.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr

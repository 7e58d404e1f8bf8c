"""The JSON Schema of the configuration takes what the gateway takes, and refuses what an editor can see is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from gateway.config.json_schema import all_models, config_schema
from gateway.config.models import Config

ROOT = Path(__file__).parents[3]
SCHEMA = config_schema()
VALIDATOR = jsonschema_rs.validator_for(SCHEMA)


def problems(settings: dict[str, Any]) -> list[str]:
    return [".".join(map(str, error.instance_path)) for error in VALIDATOR.iter_errors(settings)]


def test_the_demos_configuration_is_valid() -> None:
    assert problems(yaml.safe_load((ROOT / "gateway/demo/gateway.yaml").read_text())) == []


def test_the_defaults_are_valid() -> None:
    whole = Config().model_dump(mode="json")
    assert problems({name: value for name, value in whole.items() if value is not None}) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"memory": 1024, "memory_": None},
        {"cached": True},
        {"routes": {"Bad-Name": {"path": "/"}}},
        {"routes": {"a": {"path": "/", "ttl": "30 seconds"}}},
        {"routes": {"a": {"upstream": "x"}}},
        {"upstreams": {"a": {"url": "http://x", "timeout": "2x"}}},
        {"redis_memory": "1GB"},
        {"log_hits": 2},
    ],
)
def test_what_an_editor_can_see_is_refused(settings: dict[str, Any]) -> None:
    assert problems(settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"memory": "1GiB", "compression": "br,gzip", "shutdown_delay": 0},
        {"stop_delay": "1s"},
        {"routes": {"a": {"path": "/", "upstream": "x", "cache": "off", "ttl": "1.5s", "methods": "any"}}},
        {"upstreams": {"a": {"url": "http://x", "headers": {"X-Key": "1"}}}},
    ],
)
def test_what_the_gateway_reads_is_taken(settings: dict[str, Any]) -> None:
    assert problems(settings) == []


def test_every_setting_has_its_meaning_and_its_default_as_it_is_written() -> None:
    for model in all_models():
        known = SCHEMA if model is Config else SCHEMA["$defs"][model.__name__]
        assert [name for name in model.model_fields if not known["properties"][name]["description"]] == []
    assert SCHEMA["properties"]["memory"]["default"] == "256MiB"
    assert SCHEMA["$defs"]["UpstreamConfig"]["properties"]["timeout"]["default"] == "5s"

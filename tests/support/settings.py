"""Sections of a configuration with only the settings that a test names, and what is wrong with one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.config.loader import Loaded
from gateway.config.models import Config, CorsConfig
from gateway.config.route import RouteConfig
from gateway.config.upstream import UpstreamConfig
from gateway.errors import ConfigProblem

URL = "http://catalog:8080"


def route(**settings: object) -> RouteConfig:
    return RouteConfig.model_validate({"path": "/p/{id}", "upstream": "catalog", **settings})


def upstream(**settings: object) -> UpstreamConfig:
    return UpstreamConfig.model_validate({"url": URL, **settings})


def cors(**settings: object) -> CorsConfig:
    return CorsConfig.model_validate(settings)


def config(**settings: object) -> Config:
    return Config.model_validate(settings)


def complaint(settings: Mapping[str, Any]) -> str:
    """What is said of the one thing that is wrong: its place and the message."""
    with pytest.raises(ValidationError) as caught:
        Config.model_validate(settings)
    (error,) = caught.value.errors()
    return f"{'.'.join(map(str, error['loc']))}: {error['msg'].removeprefix('Value error, ')}"


Load = Callable[..., Loaded]
Refused = Callable[..., list[ConfigProblem]]


SHOP = """\
upstreams:
  catalog:
    url: http://catalog:8080
    headers:
      X-Api-Key: k-123
routes:
  product:
    path: /products/{id}
    upstream: catalog
    ttl: 30s
  price_list:
    path: /prices
    upstream: catalog
"""


def texts(problems: list[ConfigProblem]) -> list[str]:
    return [str(problem) for problem in problems]


def places(loaded: Loaded, *key: str) -> list[str]:
    return [source.place for source in loaded.sources[key]]

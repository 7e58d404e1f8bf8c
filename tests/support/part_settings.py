"""Aggregates with only the parts that a test names."""

from __future__ import annotations

from typing import Any

from gateway.config.models import Config
from gateway.config.route import RouteConfig

UPSTREAMS = {"shop": {"url": "http://shop"}, "promo": {"urls": ["http://a", "http://b"]}}


def config(parts: dict[str, Any], **settings: Any) -> Config:
    routes = {
        "home": {"path": "/home/{user}", "parts": parts, **settings},
        "product": {"path": "/products/{id}", "upstream": "shop"},
        "profile": {"path": "/profiles/{user}", "upstream": "shop"},
    }
    return Config.model_validate({"upstreams": UPSTREAMS, "routes": routes})


def home(parts: dict[str, Any]) -> RouteConfig:
    return config(parts).routes["home"]


def part(path: str = "/x", **settings: Any) -> dict[str, Any]:
    return {"upstream": "shop", "path": path, **settings}

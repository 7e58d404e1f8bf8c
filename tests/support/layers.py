"""The modules of the package, and which of them are pure."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "gateway"
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.name != "__main__.py"
)
# Pure: no `await`, no clock, no I/O. Whole packages, and single modules of others.
PURE_PACKAGES = ("http", "policy")
PURE_MODULES = frozenset(
    (
        "advisor.advice",
        "advisor.ttl_ladder",
        "aggregates.lifetime",
        "aggregates.merge",
        "config.admin",
        "config.expressions",
        "config.field_changes",
        "config.identity",
        "config.models",
        "config.upstream",
        "config.names",
        "config.rate_limits",
        "config.part",
        "config.part_graph",
        "config.part_identity",
        "config.route",
        "config.types",
        "context",
        "identity.key_set",
        "identity.principal",
        "identity.tokens",
        "routing.location",
        "server.metrics_totals",
        "errors",
        "config.part_values",
    )
)
PURE = frozenset(
    module
    for module in MODULES
    if module in PURE_MODULES or (module.startswith(tuple(f"{name}." for name in PURE_PACKAGES)))
)

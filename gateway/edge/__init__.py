"""The uvicorn protocol: guards the connection and answers cache hits before ASGI."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """`gateway.edge:GatewayProtocol`, the name that users give to uvicorn, imported on first use.

    Raises UnknownVersion: without it, uvicorn serves the app by its own protocol, and hits take longer."""
    if name != "GatewayProtocol":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gateway.edge.client_connection import INTERNALS
    from gateway.edge.protocol import GatewayProtocol
    from gateway.internals import require

    require("uvicorn", INTERNALS)
    return GatewayProtocol

"""Speaking to a running gateway's admin listener, for the command line."""

from __future__ import annotations

import os
from typing import Any

import httpx

from .errors import GatewayError

DEFAULT_URL = "http://127.0.0.1:9000"


class AdminError(GatewayError):
    """The admin listener cannot be reached, or refuses; the message says what to do."""


def ask_admin(path: str, order: dict[str, Any] | None = None, *, method: str | None = None) -> dict[str, Any]:
    """POST `order` to the admin listener of GATEWAY_ADMIN_URL, with GATEWAY_ADMIN_TOKEN; GET where there is none.

    `method` is another than these two.

    Raises AdminError.
    """
    url = os.environ.get("GATEWAY_ADMIN_URL", DEFAULT_URL).rstrip("/")
    token = os.environ.get("GATEWAY_ADMIN_TOKEN", "")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        with httpx.Client(trust_env=False, timeout=10) as client:
            verb = method or ("GET" if order is None else "POST")
            response = client.request(verb, url + path, json=order, headers=headers)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise AdminError(f"no gateway answers at {url} ({error}); set GATEWAY_ADMIN_URL to its admin_listen") from None
    body = _json(response)
    if response.status_code == 401:
        wants, refuses = (
            "wants a token: set GATEWAY_ADMIN_TOKEN to",
            "refuses the GATEWAY_ADMIN_TOKEN set here; give it",
        )
        raise AdminError(f"the gateway at {url} {refuses if token else wants} the one that it was started with")
    if response.status_code >= 400:
        raise AdminError(str(body.get("detail", f"it answered {response.status_code}")))
    return body


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        raise AdminError(f"{response.url} is no gateway's admin listener: it does not speak JSON") from None
    if not isinstance(body, dict):
        raise AdminError(f"{response.url} is no gateway's admin listener")
    return body

"""An upstream that answers with what it sees of a request: each field by which users may differ.

`plain` says only that its answers live for a minute; whoever decides the life must know the inputs. `honest` names in
`Vary` all that it reads.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs

from tests.shared_caches.rows import ECHOED

_QUERY = ("page", "utm_source")
FIELDS = tuple(name for name in ECHOED if name not in (*_QUERY, "host"))


def echo(*, honest: bool) -> Any:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        sent = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        query = parse_qs(scope["query_string"].decode())
        seen = {name: sent[name] for name in FIELDS if name in sent}
        seen |= {name: query[name][0] for name in _QUERY if name in query}
        if "x-forwarded-host" in sent:
            seen["host"] = sent["x-forwarded-host"]
        body = json.dumps(seen).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        headers.append((b"cache-control", b"max-age=60"))
        if honest:
            headers.append((b"vary", ", ".join((*FIELDS, "x-forwarded-host")).encode()))
        status = 500 if scope["path"] == "/failing" else 200
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app

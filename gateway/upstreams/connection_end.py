"""How a connection to an upstream has ended: on purpose, or cut.

A body without a length ends with its connection (RFC 9112 §8), so it is whole only where the upstream ended that on
purpose.
"""

from __future__ import annotations

import asyncio
import ssl


def ends_on_purpose(transport: asyncio.BaseTransport) -> bool:
    """Whether the other side of a connection, of which nothing more comes, has ended it: by a FIN, and over TLS by a
    `close_notify`, without which anybody on the way may have cut it (RFC 8446 §6.1). asyncio takes both for an end."""
    tls = transport.get_extra_info("ssl_object")
    if tls is None:
        return True
    try:
        return bool(tls.read(1) == b"")  # there is nothing left to read; empty is its end, anything else an error
    except ssl.SSLZeroReturnError:
        return True
    except (ssl.SSLError, ValueError):
        return False

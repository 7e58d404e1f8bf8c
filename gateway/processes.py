"""Which processes of this machine are gone, told by the names that they gave themselves.

A name begins with the place where its process number means something: this boot of this machine, and this namespace of
processes. Of a process elsewhere nothing is known.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

BOOT = Path("/proc/sys/kernel/random/boot_id")
NAMESPACE = Path("/proc/self/ns/pid")


def own_name() -> str:
    """A name for this process, another each time; `gone` can judge it where the kernel is Linux."""
    return f"{_place()}.{os.getpid()}.{uuid4().hex}"


def gone(name: str) -> bool:
    """Whether the process of that name certainly runs no more."""
    place, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    if not place or not number.isdigit() or place != _place():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _place() -> str:
    try:
        text = f"{BOOT.read_text()} {os.readlink(NAMESPACE)}"
    except OSError:
        return ""
    return blake2b(text.encode(), digest_size=8).hexdigest()

"""What the gateway uses of uvicorn, redis-py and aiohttp beyond their documentation, looked for at run time.

Each module that reaches into one of them lists what it uses as `INTERNALS`. Tests hold the lists against the pinned
versions. A version that nobody has tried is found out when the gateway starts: it refuses to start, or takes a slower
way, and says why.
"""

from __future__ import annotations

import dis
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from types import CodeType
from typing import Any

from gateway.errors import GatewayError

TESTED = {"uvicorn": "0.54.0", "redis": "8.1.0", "aiohttp": "3.14.5"}
"""The versions that this release was tested with, as constraints.txt has them."""


class UnknownVersion(GatewayError):
    """A version of a package lacks what the gateway uses of it; the message says what to install."""


def missing(internals: Mapping[Any, Iterable[str]]) -> list[str]:
    """Those attributes, as `Class.name`, that a class neither has nor sets in its methods."""
    return [f"{kind.__name__}.{name}" for kind, names in internals.items() for name in _unknown(kind, names)]


def _unknown(kind: type, names: Iterable[str]) -> list[str]:
    unknown = [name for name in names if not hasattr(kind, name)]
    methods = [each for base in kind.__mro__ for each in vars(base).items()]
    for _, method in sorted(methods, key=lambda each: each[0] != "__init__"):
        if not unknown:
            break
        stored = _stored(getattr(method, "__code__", None))
        unknown = [name for name in unknown if name not in stored]
    return unknown


def _stored(code: CodeType | None) -> set[str]:
    """The names of attributes that a function sets."""
    return {each.argval for each in dis.get_instructions(code) if each.opname == "STORE_ATTR"} if code else set()


def unknown_version(package: str, what: str) -> str:
    """`package` (its name on PyPI) lacks `what`: the installed version, and the one to install."""
    try:
        installed = version(package)
    except PackageNotFoundError:
        installed = "of an unknown version"
    return (
        f"{package} {installed} has no {what}; this release of the gateway was tested with {package} {TESTED[package]}"
    )


def require(package: str, internals: Mapping[Any, Iterable[str]]) -> None:
    """Raises UnknownVersion where a class lacks what is used of it."""
    if lacking := missing(internals):
        text = unknown_version(package, ", ".join(lacking))
        raise UnknownVersion(f"{text}: pip install {package}=={TESTED[package]}")


def explained(error: ImportError) -> str | None:
    """What to do about a name that one of these packages does not have; None for another one."""
    package = (error.name or "").partition(".")[0]
    if package not in TESTED:
        return None
    return f"{unknown_version(package, f'such module or name ({error})')}: pip install {package}=={TESTED[package]}"

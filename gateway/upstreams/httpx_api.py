"""httpx, as all of the gateway uses it: the only module that imports it.

Its maintained fork, httpx2, has the same API: to take it, import it here and name it in `pyproject.toml`
(docs/decisions/0024). Until then the code keeps to what both have; a test runs the gateway on the fork.
"""

from __future__ import annotations

import httpx

__all__ = ["httpx"]

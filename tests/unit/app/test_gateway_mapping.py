"""gateway: a mapping that is no configuration is refused as a file is."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.app.gateway import create_app
from gateway.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "key", "message"),
    [
        ({"routes": {"a": {"path": "/a", "upstream": "nope"}}}, "routes.a.upstream", "there is no upstream nope"),
        ({"nonsense": 1}, "nonsense", "not permitted"),
        ({"port": "x"}, "port", "integer"),
    ],
)
def test_a_wrong_mapping_is_a_configuration_error(given: dict[str, Any], key: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        create_app({"redis_url": "none", **given})
    (problem,) = raised.value.problems
    assert problem.key == key
    assert message in problem.message

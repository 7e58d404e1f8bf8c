"""conformance: what is written of the tests that are not passed agrees with what is held."""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parents[2]
CONFORMANCE = HERE / "conformance"


def test_no_test_that_passes_has_a_reason_for_failing() -> None:
    expected, reasons = (json.loads((CONFORMANCE / name).read_text()) for name in ("expected.json", "reasons.json"))
    assert not set(expected) & set(reasons)
    assert expected == sorted(set(expected))


def test_the_documentation_has_a_line_for_each_test_not_passed() -> None:
    text = (HERE / "docs" / "conformance.md").read_text()
    for test, reason in json.loads((CONFORMANCE / "reasons.json").read_text()).items():
        assert f"| `{test}` | {reason} |" in text


def test_nothing_in_the_gateway_knows_the_suite() -> None:
    for source in (HERE / "gateway").rglob("*.py"):
        text = source.read_text().lower()
        for word in ("cache-tests", "cache_tests", "test-id", "req-num", "server-request-count", "conformance"):
            assert word not in text, f"{source.name}: {word}"

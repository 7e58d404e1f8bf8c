"""Shared streams that request again at once."""

from __future__ import annotations

import pytest

from gateway.streams import shared_stream
from gateway.streams.shared_stream import SharedStreams


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> SharedStreams:
    monkeypatch.setattr(shared_stream, "RETRY", 0.001)
    return SharedStreams(chance=lambda: 0.5)

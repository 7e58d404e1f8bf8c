"""OpenTelemetry on an app: FastAPI's own telemetry, and opentelemetry-instrumentation-fastapi, which patches classes
and so runs in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

CODE = """
import json, sys
from fastapi import FastAPI
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from gateway import Cache, Gateway, cached

kind, how = sys.argv[1:]
spans, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
given = {"telemetry": {"tracer_provider": provider}} if how == "native" else {}
quiet = {"redis_url": "none", "access_log": False}
app = Gateway(quiet, **given) if kind == "gateway" else FastAPI(**given)
if kind == "cache":
    Cache(app, quiet)

@app.get("/things/{id}")
@cached(ttl="30s")
async def thing(id: int) -> int:
    return id

@app.get("/boom")
def boom() -> None:
    raise ValueError

if how == "instrumented":
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    FastAPIInstrumentor.instrument_app(app, tracer_provider=provider, exclude_spans=["send", "receive"])
if kind == "cache after":
    Cache(app, quiet)
with TestClient(app, raise_server_exceptions=False) as client:
    hits = [client.get("/things/1").headers["cache-status"].split(";")[1].strip() for _ in range(2)]
    assert client.get("/boom").status_code == 500
found = [(span.name, span.attributes.get("http.route")) for span in spans.get_finished_spans() if span.parent is None]
print(json.dumps([hits, found]))
"""


@pytest.mark.parametrize("kind", ["gateway", "cache", "cache after"])
@pytest.mark.parametrize("how", ["native", "instrumented"])
def test_each_request_has_a_span_with_its_route_hits_too(kind: str, how: str) -> None:
    run = subprocess.run([sys.executable, "-c", CODE, kind, how], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    hits, spans = json.loads(run.stdout.splitlines()[-1])
    assert hits == ["fwd=miss", "hit"]
    assert spans == [["GET /things/{id}", "/things/{id}"]] * 2 + [["GET /boom", "/boom"]]

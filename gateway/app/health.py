"""`/healthz` and `/readyz`: whether a worker is alive, and whether it should get requests.

Decides the body and the status of both. The supervisor stops workers, and `cache.redis` determines the state of Redis.
"""

from __future__ import annotations

from typing import Protocol

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse

from gateway.app.worker_state import WorkerState
from gateway.cache.shared_store import NoShared, SharedStore
from gateway.config.models import Config


class Reporting(Protocol):
    """The source of the readiness state: a gateway. `stopping` is true from the moment it accepts no new requests."""

    config: Config
    shared: SharedStore
    stopping: bool
    worker_state: WorkerState


def add_health(app: FastAPI) -> None:
    app.add_api_route("/healthz", _alive, methods=["GET", "HEAD"], include_in_schema=False)
    app.add_api_route("/readyz", _ready, methods=["GET", "HEAD"], include_in_schema=False)


def readiness(gateway: Reporting) -> dict[str, object]:
    """The body of `/readyz`. A worker without Redis is slower, but ready; one that stops is not, nor one whose lifespan
    has not run."""
    shared = gateway.shared
    redis = "none" if isinstance(shared, NoShared) else ("available" if shared.available else "away")
    status = "stopping" if gateway.stopping else "ready" if gateway.worker_state.started else "not started"
    answer: dict[str, object] = {"status": status, "redis": redis, "routes": len(gateway.config.routes)}
    if away := gateway.worker_state.upstreams_away:
        answer["upstreams_without_host"] = away
    if without := gateway.worker_state.providers.without_keys:
        answer["identity_without_keys"] = without
    if unanswered := gateway.worker_state.providers.unanswered:
        answer["identity_without_answers"] = unanswered
    if gateway.worker_state.providers.without_records:
        answer["identity_without_revocations"] = True
    if (certificate := gateway.worker_state.certificate) is not None:
        if certificate.expires is not None:
            answer["certificate_expires"] = certificate.expires.isoformat()
        if certificate.problem is not None:
            answer["certificate_problem"] = "the changed certificate can't be used; the log has the reason"
    if gateway.worker_state.limits_by_share:
        answer["rate_limits"] = "by share"
    workers = gateway.worker_state.workers
    if workers is not None and workers[0] < workers[1]:
        answer["workers_answering"], answer["workers"] = workers
    if redis == "away" and (reason := getattr(shared, "reason", None)):
        answer["redis_reason"] = reason
    return answer


def ready_response(gateway: Reporting) -> JSONResponse:
    """The response to `/readyz`: 200, or 503 while the gateway is stopping, or if its lifespan has not run."""
    body = readiness(gateway)
    return JSONResponse(body, 200 if body["status"] == "ready" else 503, headers={"cache-control": "no-store"})


async def _alive() -> JSONResponse:
    return JSONResponse({"status": "alive"})


async def _ready(request: Request) -> JSONResponse:
    return ready_response(request.app)

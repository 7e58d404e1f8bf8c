"""The certificate of the public listener, read again when its files change.

Decides which context new connections get, and what is said of a certificate that can't be used: the previous one stays
in use, it is logged once, counted, and shown by `/readyz`. Connections that are open keep theirs.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Iterable
from datetime import datetime

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.config.models import ListenTlsConfig
from gateway.config.tls import TlsFileError, expired, expiry_of, fingerprint, server_context
from gateway.observability.log import state

logger = logging.getLogger("gateway")
TOPIC = "certificate of the listener"


class Certificate(Collector):
    """Raises TlsFileError where its first files can't be used."""

    def __init__(self, config: ListenTlsConfig) -> None:
        self.config = config
        self.context: ssl.SSLContext = server_context(config)
        """That of new connections."""
        self.expires: datetime | None = _expiry(config)
        self.failures = 0
        """How many changed certificates could not be used."""
        self.problem: str | None = None
        """Why the files as they are now can't be used; None if they are in use."""
        self._seen = self._now()

    def __repr__(self) -> str:
        return f"<Certificate {self.config.cert} until {self.expires}{' stale' if self.problem else ''}>"

    def _now(self) -> bytes:
        return fingerprint((self.config.cert, self.config.key_file))

    def look(self) -> None:
        """Use the files as they are now, if they have changed."""
        now = self._now()
        if now != self._seen:
            self._seen = now
            self._renew()

    def configure(self, config: ListenTlsConfig) -> None:
        """Use other settings, and the files as they are now."""
        changed, self.config = config != self.config, config
        if changed:
            self._seen = self._now()
            self._renew()
        else:
            self.look()

    def _renew(self) -> None:
        try:
            context = server_context(self.config)
        except TlsFileError as error:
            self.failures += 1
            self.problem = f"listen.tls.{error.setting}: {error}"
            self._log(logging.ERROR, "%s; the previous certificate stays in use", self.problem)
            return
        self.context, self.expires, self.problem = context, _expiry(self.config), None
        warning = "".join(f"; {each}" for each in expired(self.config))
        until = f", which expires on {self.expires:%Y-%m-%d}" if self.expires is not None and not warning else warning
        level = logging.WARNING if warning else logging.INFO
        self._log(level, "new connections get the changed certificate of %s%s", self.config.cert, until)

    def _log(self, level: int, text: str, *arguments: object) -> None:
        logger.log(level, text, *arguments, extra=state(TOPIC, self._seen.hex()))

    async def run(self) -> None:
        """Look again every `reload`, until it is cancelled."""
        while True:
            await asyncio.sleep(self.config.reload.total_seconds())
            self.look()

    def collect(self) -> Iterable[Metric]:
        expires = GaugeMetricFamily(
            "gateway_certificate_expiry_seconds", "Seconds until the listener's certificate expires; below 0 it has."
        )
        if self.expires is not None:
            expires.add_metric((), self.expires.timestamp() - time.time())
        failures = CounterMetricFamily(
            "gateway_certificate_failures", "Changed certificates that could not be used: the previous one stays."
        )
        failures.add_metric((), float(self.failures))
        yield from (expires, failures)


def _expiry(config: ListenTlsConfig) -> datetime | None:
    try:
        return expiry_of(config.cert)
    except (OSError, ValueError):
        return None

"""The listener's certificate: a changed one is used, one that can't be used leaves the previous one in use."""

from __future__ import annotations

import asyncio
import logging
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from gateway.config.models import ListenTlsConfig
from gateway.edge.certificate import Certificate
from gateway.observability.log import Marked, Unrepeated
from tests.support.tls import Authority


@pytest.fixture
def files(tmp_path: Path, ours: Authority) -> ListenTlsConfig:
    place(ours, tmp_path, "first")
    return ListenTlsConfig(cert=str(tmp_path / "cert.pem"), key=str(tmp_path / "key.pem"))


def place(authority: Authority, folder: Path, name: str, *, days: int = 2) -> None:
    certificate, key = authority.issue(name, days=days)
    shutil.copy(certificate, folder / "cert.pem")
    shutil.copy(key, folder / "key.pem")


def metrics(certificate: Certificate) -> dict[str, float]:
    return {sample.name: sample.value for family in certificate.collect() for sample in family.samples}


def test_unchanged_files_change_nothing(files: ListenTlsConfig) -> None:
    certificate = Certificate(files)
    context = certificate.context
    certificate.look()
    certificate.configure(files)
    assert certificate.context is context
    assert metrics(certificate)["gateway_certificate_failures_total"] == 0


def test_changed_files_are_used_from_then_on(files: ListenTlsConfig, tmp_path: Path, ours: Authority) -> None:
    certificate = Certificate(files)
    context, expires = certificate.context, certificate.expires
    place(ours, tmp_path, "second", days=9)
    certificate.look()
    assert certificate.context is not context
    assert expires is not None
    assert certificate.expires is not None
    assert certificate.expires - expires > timedelta(days=6)
    assert 8 < metrics(certificate)["gateway_certificate_expiry_seconds"] / 86400 < 10


def test_one_that_cannot_be_used_is_counted_and_said_once_and_leaves_the_previous_one(
    files: ListenTlsConfig, tmp_path: Path, ours: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    certificate = Certificate(files)
    context = certificate.context
    shutil.copy(ours.issue("third")[1], tmp_path / "key.pem")
    for _ in range(3):
        certificate.look()
    assert certificate.context is context
    assert certificate.problem is not None
    assert "is not the key of the certificate" in certificate.problem
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert metrics(certificate)["gateway_certificate_failures_total"] == 1
    place(ours, tmp_path, "fourth")
    certificate.look()
    assert certificate.problem is None
    assert certificate.context is not context


def test_other_settings_are_used_as_well(files: ListenTlsConfig) -> None:
    certificate = Certificate(files)
    context = certificate.context
    certificate.configure(files.model_copy(update={"min": "1.3"}))
    assert certificate.context.minimum_version > context.minimum_version


def test_several_workers_say_it_once(files: ListenTlsConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    workers, unrepeated = [Certificate(files), Certificate(files)], Unrepeated()
    (tmp_path / "cert.pem").write_text("")
    for certificate in workers:
        certificate.look()
    marked = [Marked.of(record) for record in caplog.records]
    assert [unrepeated.is_news(number, each.mark) for number, each in enumerate(marked) if each] == [True, False]


async def test_it_looks_again_and_again(files: ListenTlsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = Certificate(files.model_copy(update={"reload": timedelta(seconds=0.001)}))
    looked = asyncio.Event()
    monkeypatch.setattr(certificate, "look", looked.set)
    task = asyncio.ensure_future(certificate.run())
    await looked.wait()
    task.cancel()

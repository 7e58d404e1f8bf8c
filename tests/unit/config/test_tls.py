"""Files of certificates and keys: each that can't be used is refused with its setting and the reason."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from gateway.app.gateway import create_app
from gateway.config.loader import load
from gateway.config.tls import expiry_of, fingerprint
from gateway.errors import ConfigError
from tests.support.tls import Authority


def written(folder: Path, **settings: object) -> Path:
    file = folder / "gateway.yaml"
    lines = [f"    {name}: {value}" for name, value in settings.items()]
    file.write_text("\n".join(["redis_url: none", "upstreams:", "  up:", "    url: https://up.test", *lines, ""]))
    return file


@pytest.fixture
def files(tmp_path: Path, ours: Authority, others: Authority) -> dict[str, str]:
    certificate, key = ours.issue("gateway")
    text, locked = tmp_path / "text.pem", tmp_path / "locked.key"
    text.write_text("no certificate\n")
    ours._openssl("ec", "-in", key, "-aes128", "-passout", "pass:secret", "-out", locked)
    return {
        "{away}": str(tmp_path / "away.pem"),
        "{folder}": str(tmp_path),
        "{text}": str(text),
        "{locked}": str(locked),
        "{cert}": str(certificate),
        "{key}": str(key),
        "{other}": str(others.issue("gateway")[1]),
    }


@pytest.mark.parametrize(
    ("settings", "line", "key", "message"),
    [
        ({"ca_file": "{away}"}, 5, "ca_file", "can't be read: No such file or directory"),
        ({"ca_file": "{folder}"}, 5, "ca_file", "can't be read: Is a directory"),
        ({"ca_file": "{text}"}, 5, "ca_file", "contains no certificates in PEM format"),
        ({"client_cert": "{away}"}, 5, "client_cert", "can't be read"),
        ({"client_cert": "{text}", "client_key": "{key}"}, 5, "client_cert", "contains no certificate in PEM format"),
        ({"client_cert": "{cert}", "client_key": "{away}"}, 6, "client_key", "can't be read"),
        ({"client_cert": "{cert}", "client_key": "{text}"}, 6, "client_key", "contains no private key"),
        ({"client_cert": "{cert}", "client_key": "{other}"}, 6, "client_key", "is not the key of the certificate"),
        ({"client_cert": "{cert}", "client_key": "{locked}"}, 6, "client_key", "without a passphrase"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_place(
    settings: dict[str, str], line: int, key: str, message: str, files: dict[str, str], tmp_path: Path
) -> None:
    named = {name: files.get(value, value) for name, value in settings.items()}
    with pytest.raises(ConfigError) as raised:
        load(written(tmp_path, **named), environ={}, dotenv=None)
    [problem] = raised.value.problems
    assert problem.source.endswith(f"gateway.yaml line {line}")
    assert problem.key == f"upstreams.up.{key}"
    assert message in problem.message
    upstream = {"url": "https://up.test", **named}
    with pytest.raises(ConfigError, match=f"upstreams.up.{key}"):
        create_app({"redis_url": "none", "upstreams": {"up": upstream}})


def test_ssl_cert_file_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"SSL_CERT_FILE: /nowhere\.pem can't be read"):
        load(written(tmp_path), environ={"SSL_CERT_FILE": "/nowhere.pem"}, dotenv=None)


@pytest.mark.parametrize(
    ("settings", "key", "message"),
    [
        ({"cert": "{away}", "key": "{key}"}, "cert", "can't be read: No such file or directory"),
        ({"cert": "{text}", "key": "{key}"}, "cert", "contains no certificate in PEM format"),
        ({"cert": "{cert}", "key": "{away}"}, "key", "can't be read"),
        ({"cert": "{cert}"}, "key", "contains no private key"),
        ({"cert": "{cert}", "key": "{other}"}, "key", "is not the key of the certificate"),
        ({"cert": "{cert}", "key": "{rsa}"}, "key", "is not the key of the certificate"),
        ({"cert": "{cert}", "key": "{locked}"}, "key", "without a passphrase"),
    ],
)
def test_a_file_of_the_listener_that_cannot_be_used_is_refused_with_its_place(
    settings: dict[str, str], key: str, message: str, files: dict[str, str], ours: Authority, tmp_path: Path
) -> None:
    ours._openssl("genrsa", "-out", rsa := tmp_path / "rsa.key", "2048")
    named = {name: {**files, "{rsa}": str(rsa)}.get(value, value) for name, value in settings.items()}
    file = tmp_path / "gateway.yaml"
    file.write_text(
        "redis_url: none\nlisten:\n  tls:\n" + "".join(f"    {name}: {value}\n" for name, value in named.items())
    )
    with pytest.raises(ConfigError) as raised:
        load(file, environ={}, dotenv=None)
    [problem] = raised.value.problems
    assert problem.key == f"listen.tls.{key}"
    assert message in problem.message
    assert "gateway.yaml line " in problem.source


def test_an_expired_certificate_of_the_listener_is_a_warning(ours: Authority, tmp_path: Path) -> None:
    certificate, key = ours.issue("expired", days=-1)
    file = tmp_path / "gateway.yaml"
    file.write_text(f"redis_url: none\nlisten: {{tls: {{cert: {certificate}, key: {key}}}}}\n")
    [warning] = load(file, environ={}, dotenv=None).warnings
    assert "expired on" in warning
    assert str(certificate) in warning


@pytest.mark.parametrize("days", [-1, 2, 12_000, 60_000])
def test_the_expiry_is_what_openssl_says(days: int, ours: Authority) -> None:
    certificate, _ = ours.issue("expiry", days=days)
    command = ["openssl", "x509", "-noout", "-enddate", "-dateopt", "iso_8601", "-in", str(certificate)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said == f"notAfter={expiry_of(str(certificate)):%Y-%m-%d %H:%M:%SZ}\n"


@pytest.mark.parametrize("text", ["", "-----BEGIN CERTIFICATE-----\nMAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_has_no_expiry(text: str, tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text(text)
    with pytest.raises(ValueError, match="certificate"):
        expiry_of(str(tmp_path / "cert.pem"))


def test_a_fingerprint_differs_with_the_content_alone(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    before = fingerprint([str(one), None])
    one.write_text("a")
    first = fingerprint([str(one), None])
    other.write_text("a")
    assert before != first == fingerprint([str(other), None])
    one.write_text("b")
    assert fingerprint([str(one), None]) != first

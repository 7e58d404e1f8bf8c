"""TLS contexts from their files: of the public listener, and of connections to upstreams.

Decides which file is wrong and why, and when a certificate expires. It must not know who looks for changed files.
"""

from __future__ import annotations

import hashlib
import os
import ssl
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from gateway.config.models import ListenTlsConfig
from gateway.config.upstream import UpstreamConfig

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
LARGEST_FILE = 1024 * 1024
"""Bytes of a file of certificates or a key."""


class TlsFileError(ValueError):
    """A file can't be used. `setting` names it: a setting of the upstream, or a variable."""

    def __init__(self, setting: str, message: str) -> None:
        self.setting = setting
        super().__init__(message)


def client_context(config: UpstreamConfig, environ: Mapping[str, str] = os.environ) -> ssl.SSLContext:
    """The TLS settings of an upstream's connections. Trusted are the authorities in `ca_file`, else those of
    SSL_CERT_FILE or SSL_CERT_DIR, as for other programs that use OpenSSL, else certifi's. Raises TlsFileError."""
    if not config.uses_tls:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts no authority: reading a list of authorities takes 20 ms
    context = _trusting(config, environ) if config.verify else _unverified()
    if config.client_cert:
        _show(context, ("client_cert", config.client_cert), ("client_key", config.client_key or config.client_cert))
    return context


def server_context(config: ListenTlsConfig) -> ssl.SSLContext:
    """The TLS settings of the public listener: from version `min`, without renegotiation, ALPN `http/1.1`. Raises
    TlsFileError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = VERSIONS[config.min]
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    _show(context, ("cert", config.cert), ("key", config.key_file))
    return context


def fingerprint(paths: Iterable[str | None]) -> bytes:
    """Differs once the content of a file differs; a file that can't be read has none."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        try:
            with open(path, "rb") as file:  # type: ignore[arg-type]
                content = file.read(LARGEST_FILE)
        except (OSError, TypeError):
            content = b""
        digest.update(b"%d:" % len(content) + content)
    return digest.digest()


def files_of(config: UpstreamConfig) -> tuple[str, ...]:
    """The files of an upstream's TLS settings."""
    return tuple(path for path in (config.ca_file, config.client_cert, config.client_key) if path)


def expiry_of(certificate: str) -> datetime:
    """When the first certificate of a PEM file expires (`notAfter`, RFC 5280 §4.1.2.5). Raises ValueError."""
    with open(certificate, encoding="latin-1") as file:
        text = file.read(LARGEST_FILE)
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    start, stop = text.find(begin), text.find(end)
    if start < 0 or stop < start:
        raise ValueError("there is no certificate in PEM format")
    der = ssl.PEM_cert_to_DER_cert(text[start : stop + len(end)] + "\n")
    return _not_after(der)


def expired(config: ListenTlsConfig, now: datetime | None = None) -> tuple[str, ...]:
    """A warning, if the listener's certificate has expired."""
    try:
        expires = expiry_of(config.cert)
    except (OSError, ValueError) as error:
        return (f"listen.tls.cert: when {config.cert} expires can't be read: {error}",)
    if expires > (now or datetime.now(UTC)):
        return ()
    return (f"listen.tls.cert: {config.cert} expired on {expires:%Y-%m-%d}; clients refuse it",)


def _not_after(der: bytes) -> datetime:
    certificate, _ = _element(der, 0)
    body, _ = _element(certificate, 0)
    at = 0
    for _ in range(3 + (body[:1] == b"\xa0")):  # version, serial number, signature, issuer; the first may be left out
        _, at = _element(body, at)
    validity, _ = _element(body, at)
    _, at = _element(validity, 0)
    text, _ = _element(validity, at)
    kind = validity[at : at + 1]
    # UTCTime has two digits of the year: 50 to 99 are of the last century (RFC 5280 §4.1.2.5.1).
    century = "" if kind == b"\x18" else "20" if text[:2] < b"50" else "19"
    return datetime.strptime(century + text.decode("ascii"), "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _element(der: bytes, at: int) -> tuple[bytes, int]:
    """The content of the DER element at `at`, and where the next one begins. Raises ValueError."""
    if at + 2 > len(der):
        raise ValueError("the certificate is cut off")
    length, start = der[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        length, start = int.from_bytes(der[start : start + size], "big"), start + size
    if start + length > len(der):
        raise ValueError("the certificate is cut off")
    return der[start : start + length], start + length


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _trusting(config: UpstreamConfig, environ: Mapping[str, str]) -> ssl.SSLContext:
    for setting, path in (("ca_file", config.ca_file), ("SSL_CERT_FILE", environ.get("SSL_CERT_FILE"))):
        if path:
            _check_readable(setting, path)
            try:
                return ssl.create_default_context(cafile=path)
            except (ssl.SSLError, OSError):
                raise TlsFileError(setting, f"{path} contains no certificates in PEM format") from None
    if folder := environ.get("SSL_CERT_DIR"):
        if not os.path.isdir(folder):
            raise TlsFileError("SSL_CERT_DIR", f"{folder} is not a directory")
        return ssl.create_default_context(capath=folder)
    import certifi  # workers that speak no TLS don't need it

    return ssl.create_default_context(cafile=certifi.where())


def _show(context: ssl.SSLContext, certificate: tuple[str, str], key: tuple[str, str]) -> None:
    """Load a certificate and its key, each by the name of its setting and its file."""
    for setting, path in (certificate, key):
        _check_readable(setting, path)
    try:
        context.load_cert_chain(certificate[1], key[1], password=_no_password)
    except _Encrypted:
        message = f"{key[1]} is encrypted; the gateway needs a key without a passphrase"
        raise TlsFileError(key[0], message) from None
    except (ssl.SSLError, OSError) as error:
        if getattr(error, "reason", None) in _MISMATCHES:
            raise TlsFileError(key[0], f"{key[1]} is not the key of the certificate in {certificate[1]}") from None
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(certificate[1])
        except (ssl.SSLError, OSError):
            message = f"{certificate[1]} contains no certificate in PEM format"
            raise TlsFileError(certificate[0], message) from None
        if (reason := getattr(error, "reason", None)) in _WEAK:
            message = f"{certificate[1]}: OpenSSL refuses the certificate as too weak ({reason})"
            raise TlsFileError(certificate[0], message) from None
        raise TlsFileError(key[0], f"{key[1]} contains no private key in PEM format") from None


_MISMATCHES = ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED")  # of one kind of key, of two
_WEAK = ("EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK")


class _Encrypted(Exception):
    pass


def _no_password() -> str:
    raise _Encrypted


def _check_readable(setting: str, path: str) -> None:
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise TlsFileError(setting, f"{path} can't be read: {error.strerror}") from None

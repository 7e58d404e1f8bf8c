"""TLS to upstreams: the certificates that are trusted, and the one that the gateway shows, from their files."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping

from gateway.config.upstream import UpstreamConfig


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
        _show(context, config.client_cert, config.client_key or config.client_cert)
    return context


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


def _show(context: ssl.SSLContext, certificate: str, key: str) -> None:
    _check_readable("client_cert", certificate)
    _check_readable("client_key", key)
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except _Encrypted:
        raise TlsFileError("client_key", f"{key} is encrypted; the gateway needs a key without a passphrase") from None
    except (ssl.SSLError, OSError) as error:
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            raise TlsFileError("client_key", f"{key} is not the key of the certificate in {certificate}") from None
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(certificate)
        except (ssl.SSLError, OSError):
            raise TlsFileError("client_cert", f"{certificate} contains no certificate in PEM format") from None
        raise TlsFileError("client_key", f"{key} contains no private key in PEM format") from None


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

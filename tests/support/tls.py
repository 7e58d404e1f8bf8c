"""Certificates for tests, made by OpenSSL's command: an authority, and what it signs."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path


class Authority:
    """A certificate authority; its files are in `folder`. `certificate` is its own, in PEM."""

    def __init__(self, folder: Path, name: str = "test authority") -> None:
        self.folder = folder
        self.certificate, self._key = folder / "ca.pem", folder / "ca.key"
        self._openssl(
            *("req", "-x509", *_KEY, "-days", "2", "-subj", f"/CN={name}"),
            *("-keyout", self._key, "-out", self.certificate),
        )

    def issue(self, name: str, *, alternative: str = "", days: int = 2) -> tuple[Path, Path]:
        """A certificate for `name`, for servers and clients alike, and its key. `alternative` has other names, as
        `DNS:other.test,IP:127.0.0.1`; with `days` below 0 it has expired."""
        stem = self.folder / name
        certificate, key, asked = stem.with_suffix(".pem"), stem.with_suffix(".key"), stem.with_suffix(".csr")
        extensions = stem.with_suffix(".ext")
        extensions.write_text(f"subjectAltName={alternative or f'DNS:{name}'}\n")
        self._openssl("req", *_KEY, "-subj", f"/CN={name}", "-keyout", key, "-out", asked)
        self._openssl(
            *("x509", "-req", "-in", asked, "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial"),
            *("-days", str(days), "-extfile", extensions, "-out", certificate),
        )
        return certificate, key

    def server(self, name: str, *, alternative: str = "", clients: bool = False, days: int = 2) -> ssl.SSLContext:
        """The context of a server called `name`; with `clients` it wants certificates of this authority from them."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.issue(name, alternative=alternative, days=days))
        if clients:
            context.load_verify_locations(self.certificate)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _openssl(self, *arguments: str | Path) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")

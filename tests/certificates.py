"""Certificates of a test's own, made with openssl."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Authority:
    """Somebody who signs."""

    folder: Path
    certificate: Path
    key: Path

    def sign(self, name: str, host: str = "127.0.0.1") -> tuple[Path, Path]:
        """(certificate, key) for a host, signed by this authority."""
        certificate, key, request = (self.folder / f"{name}.{end}" for end in ("pem", "key", "csr"))
        kind = "IP" if host[:1].isdigit() else "DNS"
        (self.folder / "san").write_text(f"subjectAltName={kind}:{host}\n")
        _openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        signed = ("-CA", self.certificate, "-CAkey", self.key, "-CAcreateserial", "-extfile", self.folder / "san")
        _openssl("x509", "-req", "-in", request, "-out", certificate, "-days", "2", *signed)
        return certificate, key


def authority(folder: Path) -> Authority:
    """A new one; skips the test where there is no openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make certificates with")
    folder.mkdir()
    certificate, key = folder / "ca.pem", folder / "ca.key"
    _openssl(
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        key,
        "-out",
        certificate,
        "-days",
        "2",
        "-subj",
        "/CN=ca",
    )
    return Authority(folder, certificate, key)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

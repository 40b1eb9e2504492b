"""Whether a member's certificate still counts when it is to open the coordinator's own page; called by the command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from server.enrolment.registry import Registry
from server.monitor.web.readers import Readers
from shared_model.errors import ConfigError
from shared_model.private_files import read_private


def with_registry(readers: Readers, home: Path | None) -> Readers:
    """The readers, of whom the coordinator's registry is asked besides where they come under its own authority: who is
    revoked or has a newer certificate reads no more.

    Args:
        home: of the coordinator that the study belongs to; None on one machine.

    Raises:
        ConfigError: the coordinator's authority, and no names. StorageError: the registry cannot be read.
    """
    own = home / "ca" / "ca.pem" if home is not None else None
    if home is None or own is None or not own.is_file():
        return readers
    if _key(_only(read_private(own))) not in map(_key, _all(readers.ca)):  # by key: a renewed certificate is the same
        return readers
    if not readers.names:
        raise ConfigError("every member of the consortium would see the numbers of all sites here",
                          found=f"--client-ca {readers.ca}", expected="--reader NAME beside it",
                          remedy="name those who may; a member sees its own by `mammofed monitor "
                          "https://HOST:PORT --home HOME` at its place")  # fmt: skip
    return replace(readers, admit=Registry(home / "registry").admit)


def _only(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def _key(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _all(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError):
        return []  # said by `page_context`

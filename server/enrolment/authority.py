"""The coordinator's certificate authority on disk; called by enrolment and by whoever starts the gateway.

    <folder>/ca.key      EC P-256, PKCS8, mode 0600; whoever has it can make sites: back it up, offline and encrypted
    <folder>/ca.pem      its certificate, ten years; travels in every invitation
    <folder>/server.pem  key and certificate of the gateway, for its host names; made anew below 60 days
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared_model.certificates import (
    BACKDATED,
    LEAF_DAYS,
    Member,
    check_window,
    der,
    end_entity,
    host_names,
    key_pem,
    load_key,
    names,
    new_tls_key,
    pem,
)  # fmt: skip
from shared_model.errors import CertificateError, ConfigError, StorageError
from shared_model.private_files import make_private_folder, read_private, write_private

CA_DAYS = 3650  # a study with its follow-up; a new CA means that every site enrols again
SERVER_DAYS = 365
SERVER_RENEW_BELOW_DAYS = 60
MAX_HOSTS = 16
CRL_DAYS = 7  # the daemon makes it anew every day; a week without the daemon and nginx shuts everybody out


class Authority:
    """Signs certificates of members and of the gateway; see :meth:`create` and :meth:`open`."""

    def __init__(self, folder: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate,
                 clock: Callable[[], float]) -> None:  # fmt: skip
        self.folder, self.certificate = folder, certificate
        self._key, self._clock = key, clock

    @classmethod
    def create(cls, folder: Path, *, name: str, clock: Callable[[], float] = time.time) -> Authority:
        """Make a new authority. One that was killed while it was made is finished.

        Args:
            name: of the consortium or coordinator, as people read it.

        Raises:
            ConfigError: there is one already, or no name. StorageError: the disk refuses.
        """
        if not 1 <= len(name) <= 64 or not name.isprintable():
            raise ConfigError("not a name for a coordinator", expected="1 to 64 characters")
        make_private_folder(folder)
        with _locked(folder):
            if (folder / "ca.pem").exists():
                raise ConfigError(f"{folder} has a certificate authority already",
                                  remedy="use it; a new one would shut out every site")  # fmt: skip
            key = new_tls_key()
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
            certificate = (
                _dated(subject, subject, key.public_key(), clock(), CA_DAYS)
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(_ca_usage(), critical=True)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
                .sign(key, hashes.SHA256())
            )
            write_private(folder / "ca.key", key_pem(key))  # first: without its certificate it is not there yet
            write_private(folder / "ca.pem", pem(certificate))
        return cls(folder, key, certificate, clock)

    @classmethod
    def open(cls, folder: Path, *, clock: Callable[[], float] = time.time) -> Authority:
        """Use the authority of a folder.

        Raises:
            ConfigError: there is none. StorageError: it is open to other users. CertificateError: damaged or expired.
        """
        if not (folder / "ca.pem").exists():
            raise ConfigError(f"{folder} has no certificate authority", remedy="run `mammofed server init`")
        key = load_key(read_private(folder / "ca.key"), ec.SECP256R1)
        try:
            certificate = x509.load_pem_x509_certificate(read_private(folder / "ca.pem"))
        except ValueError:
            raise _not_a_pair(folder) from None
        if certificate.public_key() != key.public_key():
            raise _not_a_pair(folder)
        check_window(certificate, clock())
        return cls(folder, key, certificate, clock)

    @property
    def ca_der(self) -> bytes:
        """The CA's certificate as invitations carry it."""
        return der(self.certificate)

    @property
    def ca_pem(self) -> str:
        """The CA's certificate as TLS contexts take it."""
        return pem(self.certificate).decode("ascii")

    def issue(self, member: Member, key: ec.EllipticCurvePublicKey) -> x509.Certificate:
        """A certificate of 30 days for a member. The caller has checked who asks, and records it."""
        subject, alternative = names(member)
        builder = _dated(subject, self.certificate.subject, key, self._clock(), LEAF_DAYS)
        return self._sign(builder.add_extension(alternative, critical=False), key, ExtendedKeyUsageOID.CLIENT_AUTH)

    def server_credentials(self, hosts: Sequence[str]) -> Path:
        """Key and certificate of the gateway for these host names, as one PEM file; made when it must be.

        Raises:
            ConfigError: no host names, or ones that cannot stand in a certificate.
        """
        path = self.folder / "server.pem"
        if not 1 <= len(hosts) <= MAX_HOSTS:
            raise ConfigError("the gateway needs its host names", expected=f"1 to {MAX_HOSTS}",
                              remedy="name the host that sites connect to")  # fmt: skip
        try:
            wanted = host_names(hosts)
        except ValueError:
            raise ConfigError("not host names", found=list(hosts), expected="ASCII names or IP addresses") from None
        with _locked(self.folder):
            if not self._serves(path, wanted):
                key = new_tls_key()
                subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
                builder = _dated(subject, self.certificate.subject, key.public_key(), self._clock(), SERVER_DAYS)
                certificate = self._sign(builder.add_extension(wanted, critical=False), key.public_key(),
                                         ExtendedKeyUsageOID.SERVER_AUTH)  # fmt: skip
                write_private(path, key_pem(key) + pem(certificate))
        return path

    def revocation_list(self, shut_out: Sequence[tuple[x509.Certificate, x509.ReasonFlags]]) -> bytes:
        """A list of certificates that no longer admit (CRL version 2, RFC 5280 5), as PEM; for nginx.

        It is good for CRL_DAYS: whoever reads it shuts everybody out afterwards, so it is made anew before that.
        """
        now = datetime.fromtimestamp(self._clock(), UTC).replace(microsecond=0)
        key = self._key.public_key()
        builder = (
            x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject).last_update(now - BACKDATED)
            .next_update(now + timedelta(days=CRL_DAYS))
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key), critical=False)
            .add_extension(x509.CRLNumber(int(self._clock() * 1000)), critical=False)
        )  # fmt: skip
        for certificate, reason in shut_out:
            entry = (
                x509.RevokedCertificateBuilder().serial_number(certificate.serial_number).revocation_date(now)
                .add_extension(x509.CRLReason(reason), critical=False)
            )  # fmt: skip
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def _sign(
        self, builder: x509.CertificateBuilder, key: ec.EllipticCurvePublicKey, use: x509.ObjectIdentifier
    ) -> x509.Certificate:
        return end_entity(builder, key, self._key.public_key(), use).sign(self._key, hashes.SHA256())

    def _serves(self, path: Path, wanted: x509.SubjectAlternativeName) -> bool:
        if not path.exists():
            return False
        try:
            certificate = x509.load_pem_x509_certificate(read_private(path))
            names_there = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, x509.ExtensionNotFound, InvalidSignature, StorageError):
            return False
        left = certificate.not_valid_after_utc.timestamp() - self._clock()
        return names_there == wanted and left > SERVER_RENEW_BELOW_DAYS * 86400


def _dated(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: float, days: int
) -> x509.CertificateBuilder:
    begins = datetime.fromtimestamp(now, UTC).replace(microsecond=0)
    return (
        x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins - BACKDATED).not_valid_after(begins + timedelta(days=days))
    )  # fmt: skip


def _ca_usage() -> x509.KeyUsage:
    return x509.KeyUsage(digital_signature=False, content_commitment=False, key_encipherment=False,
                         data_encipherment=False, key_agreement=False, key_cert_sign=True, crl_sign=True,
                         encipher_only=False, decipher_only=False)  # fmt: skip


def _not_a_pair(folder: Path) -> CertificateError:
    return CertificateError(f"{folder}: ca.key and ca.pem do not belong together", reason="unknown",
                            remedy="restore both from the same backup")  # fmt: skip


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time makes files here; the kernel gives the lock back when its holder dies."""
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)

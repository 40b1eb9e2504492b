"""A site's keys and certificate on its disk, enrolment and renewal; called by `site init`, the tunnel and doctor.

    <folder>/site.json    who and where: site, role, coordinator's host and port
    <folder>/ca.pem       the coordinator's CA, from the invitation: the only one that is trusted
    <folder>/node.key     Flower node key, EC P-384, in OpenSSH's format (Flower reads no other); never leaves
    <folder>/node.pub     its public half, as Flower's registration takes it
    <folder>/next.key     TLS key of the request under way; next.csr is that request
    <folder>/invite       the invitation, until the certificate is here
    <folder>/tls.pem      TLS key and its certificate in one file, so that both change in one rename
    <folder>/local.pem    key and certificate of the tunnel's own loopback listener; local-ca.pem is for SuperNode

Whatever is interrupted is asked again with the same keys, and the coordinator answers the same request the same way.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared_model.certificates import (
    ALPN,
    REFUSALS,
    RENEW_BELOW_DAYS,
    Member,
    Role,
    check_window,
    client_context,
    enrolling_context,
    key_pem,
    load_certificate,
    load_key,
    load_node_key,
    loopback_credentials,
    loopback_server_context,
    make_csr,
    member_of,
    new_node_key,
    new_tls_key,
    node_key_file,
    pem,
    spki,
)  # fmt: skip
from shared_model.enrolment import (
    EnrolReply,
    EnrolRequest,
    Fingerprint,
    Invite,
    RenewRequest,
    decode,
    enrol_request,
    key_words,
    renew_request,
)  # fmt: skip
from shared_model.errors import CertificateError, ConfigError, EnrolmentError, StorageError
from shared_model.private_files import make_private_folder, read_private, remove_private, sync_folder, write_private

DAY_S = 86400.0
_FILES = ("site.json", "invite", "tls.pem", "next.key", "next.csr", "node.pub", "node.key", "ca.pem", "local.pem",
          "local-ca.pem")  # fmt: skip


class SiteFile(BaseModel):
    """site.json. host, port: where the coordinator's gateway is reached; enrol_port: its door for enrolment."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    site: str
    role: Role
    host: Annotated[str, Field(pattern=r"^[A-Za-z0-9.:_-]{1,253}$")]
    port: Annotated[int, Field(ge=1, le=65535)]
    enrol_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """None: the one after `port`."""

    @property
    def enrolling(self) -> int:
        """The port of the door for enrolment."""
        return self.enrol_port or self.port % 65535 + 1


class Stage(StrEnum):
    """Where a site is with its certificate."""

    ENROLLING = "enrolling"
    READY = "ready"
    RENEW = "renew"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A stage in words. days_left: of the certificate; None without one."""

    stage: Stage
    words: str
    days_left: float | None = None


class SiteIdentity:
    """The identity in `folder`; made by :meth:`begin`, used again by :meth:`open`."""

    def __init__(self, folder: Path, settings: SiteFile, *, clock: Callable[[], float]) -> None:
        self.folder, self.settings = folder, settings
        self.member = Member(settings.site, settings.role)
        self._clock = clock
        self._ca = _certificate(folder / "ca.pem")

    @classmethod
    def begin(
        cls, folder: Path, invite: Invite, *, host: str, port: int, enrol_port: int | None = None,
        again: bool = False, clock: Callable[[], float] = time.time,
    ) -> SiteIdentity:  # fmt: skip
        """Make the site's keys. With the same invitation again: goes on with the keys that are there.

        Args:
            again: the site was enrolled before, and its certificate has run out or was revoked: its old keys are put
                aside into `retired-<time>/`. Ledger and audit logs are elsewhere and go on.

        Raises:
            ConfigError: another identity lives in the folder, or no usable host and port. StorageError: the disk.
        """
        try:
            settings = SiteFile(site=invite.member.site, role=invite.member.role, host=host, port=port,
                                enrol_port=enrol_port)  # fmt: skip
        except ValidationError:
            raise ConfigError("not an address of a coordinator", found=f"{host}:{port}",
                              expected="a host name or IP address, and a port") from None  # fmt: skip
        make_private_folder(folder)
        if again:
            _retire(folder, invite, clock())
        _refuse_another(folder, invite)
        write_private(folder / "invite", invite.text.encode())
        write_private(folder / "ca.pem", pem(load_certificate(invite.ca)))
        if not (folder / "node.key").exists():
            write_private(folder / "node.key", node_key_file(new_node_key()))
        if not (folder / "local-ca.pem").exists():
            both, public = loopback_credentials(now=clock())
            write_private(folder / "local.pem", both)
            write_private(folder / "local-ca.pem", public)
        node = load_node_key(read_private(folder / "node.key")).public_key()
        write_private(folder / "node.pub", node.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
        write_private(folder / "site.json", settings.model_dump_json(indent=1).encode())
        identity = cls(folder, settings, clock=clock)
        identity._next_csr()
        return identity

    @classmethod
    def open(cls, folder: Path, *, clock: Callable[[], float] = time.time) -> SiteIdentity:
        """The identity of a folder.

        Raises:
            ConfigError: there is none. StorageError: unreadable, or open to other users. CertificateError: damaged.
        """
        if not (folder / "site.json").exists():
            raise ConfigError(f"{folder} holds no site", remedy="run `mammofed site init` with an invitation")
        try:
            settings = SiteFile.model_validate_json(read_private(folder / "site.json"))
        except ValidationError:
            raise ConfigError(f"{folder / 'site.json'} is damaged", remedy="restore it from a backup") from None
        return cls(folder, settings, clock=clock)

    # --- what is shown ---

    def words(self, fingerprint: Fingerprint) -> dict[str, str]:
        """Six words for each key, to be read to the coordinator over the phone.

        While a request is under way its key is meant, else that of the certificate.
        """
        key_file = self.folder / ("next.key" if (self.folder / "next.key").exists() else "tls.pem")
        tls = load_key(read_private(key_file), ec.SECP256R1).public_key()
        return key_words(fingerprint, tls=spki(tls), node=self.node_spki)

    @property
    def node_spki(self) -> bytes:
        """The public node key (SPKI, DER)."""
        return spki(self._node_key().public_key())

    def certificate(self) -> x509.Certificate | None:
        """The certificate that there is, valid or not."""
        path = self.folder / "tls.pem"
        return _certificate(path) if path.exists() else None

    def standing(self) -> Standing:
        """Where the site is with its certificate, in words for a human."""
        certificate, now = self.certificate(), self._clock()
        if certificate is None:
            return Standing(stage=Stage.ENROLLING, words=REFUSALS["unconfirmed"])
        days = (certificate.not_valid_after_utc.timestamp() - now) / DAY_S
        until = f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        if days <= 0:
            return Standing(stage=Stage.EXPIRED, days_left=days,
                            words=f"the certificate ran out on {until}; {_remedy('expired')}")  # fmt: skip
        if now < certificate.not_valid_before_utc.timestamp():
            return Standing(stage=Stage.NOT_YET_VALID, days_left=days,
                            words=f"this machine's clock says {datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M} UTC, "
                            "before the certificate begins; set the clock (NTP)")  # fmt: skip
        if days < RENEW_BELOW_DAYS:
            return Standing(stage=Stage.RENEW, days_left=days,
                            words=f"valid until {until}; it is renewed as soon as the coordinator answers")  # fmt: skip
        return Standing(stage=Stage.READY, days_left=days, words=f"valid until {until}")

    # --- requests ---

    def request(self) -> bytes | None:
        """The document that the control service is to be sent now: to enrol or to renew; None when nothing is due.

        Raises:
            CertificateError: `expired`: a human has to ask for a new invitation. `not_yet_valid`: set the clock.
        """
        stage = self.standing().stage
        if stage is Stage.READY:
            return None
        if stage is Stage.ENROLLING:
            return self._enrol_request().encode()
        certificate = self.certificate()
        assert certificate is not None
        check_window(certificate, self._clock())
        return self._renew_request().encode()

    def accept(self, reply: bytes) -> bool:
        """Take the coordinator's answer; True once the new certificate is on the disk, False while it is pending.

        Raises:
            EnrolmentError: not an answer. CertificateError: not a certificate of our CA for our key and name.
        """
        answer = decode(reply, EnrolReply)
        if answer.status == "pending":
            return False
        certificate = load_certificate(answer.certificate or b"")
        if not (self.folder / "next.key").exists():  # an answer that came twice: it is in place already
            self._check(certificate, load_key(read_private(self.folder / "tls.pem"), ec.SECP256R1))
            return True
        key_file = read_private(self.folder / "next.key")
        self._check(certificate, load_key(key_file, ec.SECP256R1))
        write_private(self.folder / "tls.pem", key_file + pem(certificate))
        for name in ("invite", "next.csr", "next.key"):
            remove_private(self.folder / name)
        return True

    # --- TLS ---

    def context(self, *, alpn: str = ALPN) -> ssl.SSLContext:
        """TLS for connections to the coordinator, with the newest certificate.

        Args:
            alpn: what is to be spoken: Flower's routes, or `CONTROL_ALPN`.

        Raises:
            CertificateError: none yet (`unconfirmed`), `expired` or `not_yet_valid`, said before anything is sent.
        """
        certificate = self.certificate()
        if certificate is None:
            raise CertificateError("this site has no certificate yet", reason="unconfirmed",
                                   remedy=REFUSALS["unconfirmed"])  # fmt: skip
        check_window(certificate, self._clock())
        read_private(self.folder / "tls.pem")  # refuses a key that others can read
        return client_context(self.folder / "tls.pem", ca_pem=self.ca_pem, alpn=alpn)

    def enrolling_context(self, *, alpn: str = ALPN) -> ssl.SSLContext:
        """TLS for the first connection, which has no certificate of its own."""
        return enrolling_context(ca_pem=self.ca_pem, alpn=alpn)

    def local_context(self) -> ssl.SSLContext:
        """TLS for the tunnel's loopback listener; SuperNode is given `--root-certificates local-ca.pem`."""
        read_private(self.folder / "local.pem")
        return loopback_server_context(self.folder / "local.pem")

    @property
    def ca_pem(self) -> str:
        """The coordinator's CA."""
        return pem(self._ca).decode("ascii")

    # --- inside ---

    def _node_key(self) -> ec.EllipticCurvePrivateKey:
        return load_node_key(read_private(self.folder / "node.key"))

    def _next_csr(self) -> bytes:
        """The request under way; key first, so that a request on the disk always has its key."""
        key_file, csr_file = self.folder / "next.key", self.folder / "next.csr"
        certificate = self.certificate()
        if key_file.exists() and certificate is not None:
            key = load_key(read_private(key_file), ec.SECP256R1)
            if key.public_key() == certificate.public_key():  # killed between taking the answer and tidying up
                remove_private(key_file)
        if not key_file.exists():
            write_private(key_file, key_pem(new_tls_key()))
            remove_private(csr_file)
        if not csr_file.exists():
            write_private(csr_file, make_csr(load_key(read_private(key_file), ec.SECP256R1), self.member))
        return read_private(csr_file)

    def _enrol_request(self) -> EnrolRequest:
        if not (self.folder / "invite").exists():
            raise EnrolmentError("the invitation is gone and there is no certificate",
                                 remedy="ask the coordinator for a new invitation")  # fmt: skip
        invite = Invite.parse(read_private(self.folder / "invite").decode("ascii", "replace"))
        return enrol_request(invite.secret, ca=invite.ca, csr=self._next_csr(), node_key=self._node_key())

    def _renew_request(self) -> RenewRequest:
        ca = self._ca.public_bytes(Encoding.DER)
        return renew_request(ca=ca, csr=self._next_csr(), node_key=self._node_key())

    def _check(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        wrong = CertificateError("the coordinator's answer is not a certificate for this site", reason="foreign",
                                 expected=f"{self.member.uri}, this site's key, the invitation's CA",
                                 remedy="call the coordinator")  # fmt: skip
        try:
            certificate.verify_directly_issued_by(self._ca)
        except (ValueError, TypeError, InvalidSignature):
            raise wrong from None
        if certificate.public_key() != key.public_key() or member_of(certificate) != self.member:
            raise wrong


def _refuse_another(folder: Path, invite: Invite) -> None:
    """Keys are born in an empty folder, or go on with the invitation that they were born for."""
    if (folder / "tls.pem").exists() or (folder / "site.json").exists() or (folder / "node.key").exists():
        there = folder / "invite"
        if not there.exists() or read_private(there) != invite.text.encode():
            raise ConfigError(f"{folder} holds the keys of a site already", expected="an empty folder",
                              remedy="use them; if they have run out or were revoked, `mammofed site init --again` "
                              "puts them aside")  # fmt: skip


def _retire(folder: Path, invite: Invite, now: float) -> None:
    """Put the files of an identity aside. Killed meanwhile, it goes on with those that are left.

    Raises:
        ConfigError: they are another site's: its ledger is not this one's. StorageError: the disk refuses.
    """
    if (folder / "invite").exists() and read_private(folder / "invite") == invite.text.encode():
        return  # begun already with this invitation
    if (folder / "site.json").exists():
        there = SiteIdentity.open(folder).member
        if there != invite.member:
            raise ConfigError(f"{folder} holds the keys of another member", found=there.uri, expected=invite.member.uri,
                              remedy="enrol into another folder")  # fmt: skip
    aside = folder / f"retired-{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%SZ}"
    make_private_folder(aside)
    for name in _FILES:
        if (folder / name).exists():
            (folder / name).rename(aside / name)
    sync_folder(aside)
    sync_folder(folder)


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(read_private(path))
    except ValueError:
        raise StorageError(f"{path} is damaged", expected="a certificate", remedy="restore it from a backup") from None


def _remedy(reason: str) -> str:
    return REFUSALS[reason].partition("; ")[2]

"""Keys, certificates and TLS settings that coordinator and sites must hold identically; called by both ends.

A member's certificate carries its name (common name) and `urn:mammofed:ROLE:NAME` (subject alternative name, RFC 5280
4.2.1.6), is good for TLS clients only, and lives 30 days. Keys are EC P-256 for TLS and EC P-384 for Flower's node
authentication. Only TLS 1.3 is spoken (RFC 8446), with both ends authenticated.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared_model.errors import CertificateError, EnrolmentError

LEAF_DAYS = 30
RENEW_BELOW_DAYS = 23.0
"""Renew when less is left: a site that is then away for three weeks comes back with two days to spare."""
BACKDATED = timedelta(minutes=5)
"""Leaves begin earlier than they are made, for clocks that are late; Flower allows 5 s ahead and 305 s behind."""
MAX_DER_BYTES = 8192  # a request or certificate here has some 600
ALPN = "http/1.1"
CONTROL_ALPN = "mammofed-control/1"
"""Names the control service (`shared_model.control`) at the coordinator's door; no name or `ALPN`: Flower's routes."""

REFUSALS: dict[str, str] = {
    "unknown": "the coordinator does not know this certificate; enrol again with a new invitation",
    "unconfirmed": "the coordinator has not confirmed this site's fingerprints yet; compare them over the phone",
    "revoked": "the coordinator has revoked this site; call the coordinator, who can send a new invitation "
    "(`mammofed site init --again`)",
    "superseded": "a newer certificate of this site has taken the place of this one; start with the newest",
    "expired": "the certificate has run out; ask the coordinator for a new invitation and enrol again "
    "(`mammofed site init --again`)",
    "not_yet_valid": "the certificate is not valid yet; check this machine's clock (NTP)",
    "wrong_role": "this door is for another role; connect to the address that belongs to yours",
    "foreign": "the other end does not accept the issuer of this certificate; enrol with this coordinator",
    "busy": "this site has too many connections open; end a second tunnel or SuperNode if one is running",
    "unavailable": "the coordinator cannot read its registry and admits nobody; it has to repair it, then this goes on",
}
"""Reason -> what the site reads: why it is not admitted and what to do."""

REFUSED = "MammoFed-"
"""Before the reason, in the reason phrase of the one answer that a refused connection gets (RFC 9112 4)."""

# What cryptography raises on malformed X.509 beside ValueError; they have no common root of their own.
_X509_ERRORS = (x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


class Role(StrEnum):
    """What an enrolled member is: a hospital that trains, or the coordinator's evaluator."""

    SITE = "site"
    EVALUATOR = "evaluator"


@dataclass(frozen=True, order=True)
class Member:
    """Who a certificate is for.

    Raises:
        EnrolmentError: no valid name (lower-case letters, digits, - and _, at most 63).
    """

    site: str
    role: Role = Role.SITE

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.site):
            raise EnrolmentError("not a name for a site", expected="a-z, 0-9, - and _; at most 63 of them",
                                 remedy="choose a name such as north or site-2")  # fmt: skip

    @property
    def uri(self) -> str:
        """The name in the certificate."""
        return f"urn:mammofed:{self.role}:{self.site}"


# --- keys ---


def new_tls_key() -> ec.EllipticCurvePrivateKey:
    """A key for TLS (P-256: the curve that every TLS library has)."""
    return ec.generate_private_key(ec.SECP256R1())


def new_node_key() -> ec.EllipticCurvePrivateKey:
    """A key for Flower's node authentication (P-384; Flower refuses Ed25519)."""
    return ec.generate_private_key(ec.SECP384R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PKCS8; belongs in a file of mode 0600 (`write_private`)."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(pem: bytes, curve: type[ec.EllipticCurve]) -> ec.EllipticCurvePrivateKey:
    """A private key back from its file.

    Raises:
        CertificateError: damaged, or of another kind.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, curve):
        raise CertificateError("a private key is damaged or of another kind", reason="unknown",
                               expected=f"{curve.name} as PKCS8",
                               remedy="restore it from a backup, or enrol again")  # fmt: skip
    return key


def node_key_file(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A node key in OpenSSH's format, the only one that Flower's SuperNode reads."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def load_node_key(data: bytes) -> ec.EllipticCurvePrivateKey:
    """A node key back from its file.

    Raises:
        CertificateError: damaged, or of another kind.
    """
    try:
        key = serialization.load_ssh_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise CertificateError("the node key is damaged or of another kind", reason="unknown",
                               expected="EC P-384 in OpenSSH's format",
                               remedy="restore it from a backup, or enrol again")  # fmt: skip
    return key


def spki(key: ec.EllipticCurvePublicKey) -> bytes:
    """A public key as DER (SubjectPublicKeyInfo): what is compared, stored and fingerprinted."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def load_spki(der: bytes, curve: type[ec.EllipticCurve]) -> ec.EllipticCurvePublicKey:
    """A public key from another party.

    Raises:
        EnrolmentError: not one of this curve, or not in its one encoding.
    """
    try:
        key = serialization.load_der_public_key(der) if len(der) <= MAX_DER_BYTES else None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, curve) or spki(key) != der:
        raise EnrolmentError("not a public key of the right kind", expected=curve.name,
                             remedy="make the keys with this release's `mammofed site init`")  # fmt: skip
    return key


def sign(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """ECDSA over SHA-256."""
    return key.sign(message, ec.ECDSA(hashes.SHA256()))


def signed_by(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    """Whether the signature is this key's."""
    try:
        key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


# --- requests and certificates ---


def names(member: Member) -> tuple[x509.Name, x509.SubjectAlternativeName]:
    """Subject and alternative name of a member's request and certificate."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, member.site)])
    return subject, x509.SubjectAlternativeName([x509.UniformResourceIdentifier(member.uri)])


def make_csr(key: ec.EllipticCurvePrivateKey, member: Member) -> bytes:
    """A certificate request (PKCS #10, DER): it proves that its sender has the key."""
    subject, alternative = names(member)
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(alternative, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def read_csr(der: bytes, member: Member) -> ec.EllipticCurvePublicKey:
    """The public key of a request that asks for exactly the names of `member` and for nothing else.

    Raises:
        EnrolmentError: malformed, other names, further wishes (another role, a CA), not signed by its own key.
    """
    wrong = EnrolmentError("the certificate request is not one for this invitation", expected=member.uri,
                           remedy="make it with this release's `mammofed site init`")  # fmt: skip
    if len(der) > MAX_DER_BYTES:
        raise wrong
    try:
        request = x509.load_der_x509_csr(der)
        subject, alternative = names(member)
        asked = [extension.value for extension in request.extensions]
        if request.subject != subject or asked != [alternative] or not request.is_signature_valid:
            raise wrong
        key = request.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, *_X509_ERRORS):
        raise wrong from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise wrong
    return key


def load_certificate(der: bytes) -> x509.Certificate:
    """A certificate from DER.

    Raises:
        CertificateError: it is none.
    """
    try:
        if len(der) <= MAX_DER_BYTES:
            return x509.load_der_x509_certificate(der)
    except (ValueError, TypeError, *_X509_ERRORS):
        pass
    raise CertificateError("not a certificate", reason="unknown", remedy=REFUSALS["unknown"])


def member_of(certificate: x509.Certificate) -> Member:
    """Who a member's certificate is for, whoever signed it.

    Raises:
        CertificateError: it has other names than a member's.
    """
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = extension.get_values_for_type(x509.UniformResourceIdentifier)
        scheme, product, role, site = uris[0].split(":")
        member = Member(site, Role(role))
        if (scheme, product) == ("urn", "mammofed") and names(member) == (certificate.subject, extension):
            return member
    except (x509.ExtensionNotFound, ValueError, IndexError, EnrolmentError, *_X509_ERRORS):
        pass
    raise CertificateError("the certificate names no member", reason="wrong_role", expected="urn:mammofed:ROLE:NAME",
                           remedy=REFUSALS["wrong_role"])  # fmt: skip


def pem(certificate: x509.Certificate) -> bytes:
    """A certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def der(certificate: x509.Certificate) -> bytes:
    """A certificate as DER, which is what is hashed."""
    return certificate.public_bytes(serialization.Encoding.DER)


def check_window(certificate: x509.Certificate, now: float) -> None:
    """Check the time.

    Args:
        now: seconds since 1970.

    Raises:
        CertificateError: `expired` or `not_yet_valid`.
    """
    if now >= certificate.not_valid_after_utc.timestamp():
        raise CertificateError("the certificate has run out", reason="expired",
                               found=f"valid until {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
                               remedy=REFUSALS["expired"])  # fmt: skip
    if now < certificate.not_valid_before_utc.timestamp():
        raise CertificateError("the certificate is not valid yet", reason="not_yet_valid",
                               found=f"valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC",
                               remedy=REFUSALS["not_yet_valid"])  # fmt: skip


def loopback_credentials(*, now: float, days: int = 3650) -> tuple[bytes, bytes]:
    """A self-signed certificate for this machine's own loopback: (key and certificate as PEM, certificate as PEM).

    Flower wants TLS wherever nodes are authenticated, also between two processes of one machine. Nothing but the
    process that is given the second file trusts it.
    """
    key = new_tls_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    begins = datetime.fromtimestamp(now, UTC).replace(microsecond=0) - BACKDATED
    builder = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=days))
        .add_extension(host_names(["localhost", "127.0.0.1", "::1"]), critical=False)
    )  # fmt: skip
    certificate = end_entity(builder, key.public_key(), key.public_key(), ExtendedKeyUsageOID.SERVER_AUTH).sign(
        key, hashes.SHA256()
    )
    return key_pem(key) + pem(certificate), pem(certificate)


def host_names(hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    """DNS names and IP addresses of a TLS server."""
    general: list[x509.GeneralName] = []
    for host in hosts:
        try:
            general.append(x509.IPAddress(ip_address(host)))
        except ValueError:
            general.append(x509.DNSName(host))
    return x509.SubjectAlternativeName(general)


def end_entity(
    builder: x509.CertificateBuilder, subject: ec.EllipticCurvePublicKey, issuer: ec.EllipticCurvePublicKey,
    use: x509.ObjectIdentifier,
) -> x509.CertificateBuilder:  # fmt: skip
    """What every leaf has: no CA, signatures only, one use (RFC 5280 4.2.1)."""
    usage = x509.KeyUsage(digital_signature=True, content_commitment=False, key_encipherment=False,
                          data_encipherment=False, key_agreement=False, key_cert_sign=False, crl_sign=False,
                          encipher_only=False, decipher_only=False)  # fmt: skip
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(subject), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
    )


# --- TLS ---


def server_context(credentials: Path, *, ca_pem: str) -> ssl.SSLContext:
    """TLS 1.3 for the coordinator: nobody comes in without a certificate of this CA for TLS clients.

    Args:
        credentials: key and certificate in one PEM file.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    # A resumed session would skip the certificate's check, and a revoked site is to knock in full each time.
    context.num_tickets = 0
    return _strict(context, credentials, ca_pem, (ALPN, CONTROL_ALPN))


def enrolling_server_context(credentials: Path, *, ca_pem: str) -> ssl.SSLContext:
    """TLS 1.3 for the coordinator's enrolment door: who knocks has no certificate yet, and knows ours.

    Args:
        credentials: key and certificate in one PEM file.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    return _strict(context, credentials, ca_pem, (CONTROL_ALPN,))


def client_context(credentials: Path, *, ca_pem: str, alpn: str = ALPN) -> ssl.SSLContext:
    """TLS 1.3 for a site: only the coordinator's CA is trusted, never the machine's list, and the host is checked."""
    return _strict(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), credentials, ca_pem, (alpn,))


def enrolling_context(*, ca_pem: str, alpn: str = ALPN) -> ssl.SSLContext:
    """TLS 1.3 for a site that has no certificate yet: it knows the coordinator's CA from its invitation."""
    return _strict(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), None, ca_pem, (alpn,))


def loopback_server_context(credentials: Path) -> ssl.SSLContext:
    """TLS 1.3 on this machine's loopback, for a process that is told to trust `loopback_credentials`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(credentials)
    return context


def _strict(
    context: ssl.SSLContext, credentials: Path | None, ca_pem: str, alpn: Sequence[str]
) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.options |= ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(list(alpn))
    context.load_verify_locations(cadata=ca_pem)
    if credentials is not None:
        try:
            context.load_cert_chain(credentials)
        except (OSError, ssl.SSLError):
            raise CertificateError(f"{credentials} is absent or damaged", reason="unknown",
                                   expected="a key and its certificate",
                                   remedy=REFUSALS["unknown"]) from None  # fmt: skip
    return context

"""Certificate requests and certificates (X.509, RFC 5280): made and read."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared_model.certificates.keys import MAX_DER_BYTES, key_pem, new_tls_key
from shared_model.certificates.member import Member, Role
from shared_model.certificates.refusals import REFUSALS
from shared_model.errors import CertificateError, EnrolmentError

LEAF_DAYS = 30
RENEW_BELOW_DAYS = 23.0
"""Renew when less is left: a site that is then away for three weeks comes back with two days to spare."""
BACKDATED = timedelta(minutes=5)
"""Leaves begin earlier than they are made, for clocks that are late; Flower allows 5 s ahead and 305 s behind."""

# What cryptography raises on malformed X.509 beside ValueError; they have no common root of their own.
_X509_ERRORS = (x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)


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

"""The elliptic keys of members and coordinator: made, kept, compared, signed with."""

from __future__ import annotations

from collections.abc import Callable

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shared_model.errors import CertificateError, EnrolmentError

MAX_DER_BYTES = 8192  # a request or certificate here has some 600


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
    return _loaded(serialization.load_pem_private_key, pem, curve, what="a private key", form=f"{curve.name} as PKCS8")


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
    return _loaded(serialization.load_ssh_private_key, data, ec.SECP384R1, what="the node key",
                   form="EC P-384 in OpenSSH's format")  # fmt: skip


def _loaded(
    load: Callable[..., object], data: bytes, curve: type[ec.EllipticCurve], *, what: str, form: str
) -> ec.EllipticCurvePrivateKey:  # fmt: skip
    try:
        key = load(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, curve):
        raise CertificateError(f"{what} is damaged or of another kind", reason="unknown", expected=form,
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

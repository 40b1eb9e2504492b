"""What site and coordinator say to each other at enrolment and renewal: invitation, requests, reply; used by both ends.

    invitation   mfi1.SITE.ROLE.SECRET.CA.CHECK   over a channel of its own (mail, phone, paper); holds the CA itself,
                 so that the site's very first connection is already authenticated
    enrol        secret, certificate request, node key, and the node key's signature over all of it
    renew        certificate request and the node key's signature; sent over TLS with the old certificate
    reply        `pending` until the coordinator has confirmed the fingerprints, then `issued` with the certificate

A request is repeated until it is answered: the same request gets the same answer, so a lost reply costs nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError

from shared_model.certificates import Member, Role, load_certificate, load_spki, sign, signed_by, spki
from shared_model.errors import CertificateError, EnrolmentError
from shared_model.signed_protocol import Coordinator

SECRET_BYTES = 20  # 160 bits: not to be guessed, so its plain SHA-256 may lie on the coordinator's disk
MAX_DOCUMENT_BYTES = 64 << 10
COURIER_SUFFIX = "-courier"  # of the name under which a site's courier keeps its audit log; no site is called so
_PREFIX = "mfi1"

Fingerprint = Callable[[bytes], str]
"""Bytes of a public key -> six words, the same at both ends (`shared_model.signing`)."""


def _unbase64(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64") from None


Base64 = Annotated[
    bytes, BeforeValidator(_unbase64), PlainSerializer(lambda value: base64.b64encode(value).decode("ascii"))
]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def encode(self) -> bytes:
        """As JSON bytes."""
        return self.model_dump_json().encode()


class EnrolRequest(_Document):
    """A site's first request. node: public node key (SPKI); proof: signature by it."""

    kind: Literal["enrol"] = "enrol"
    secret: Base64
    csr: Base64
    node: Base64
    proof: Base64


class RenewRequest(_Document):
    """A request for the next certificate."""

    kind: Literal["renew"] = "renew"
    csr: Base64
    proof: Base64


class EnrolReply(_Document):
    """The coordinator's answer. With `issued` only: certificate (DER), and whose signatures the site is to believe."""

    status: Literal["pending", "issued"]
    certificate: Base64 | None = None
    coordinator: Coordinator | None = None


_D = TypeVar("_D", bound=_Document)


def decode(data: bytes, *kinds: type[_D]) -> _D:
    """One of the documents, checked.

    Raises:
        EnrolmentError: too long, or none of them.
    """
    if len(data) <= MAX_DOCUMENT_BYTES:
        for kind in kinds:
            try:
                return kind.model_validate_json(data)
            except ValidationError:
                continue
    raise EnrolmentError("not a document of the enrolment", expected=" or ".join(kind.__name__ for kind in kinds),
                         remedy="use the same release at both ends")  # fmt: skip


def proof_message(kind: Literal["enrol", "renew"], *, ca: bytes, csr: bytes, secret: bytes = b"") -> bytes:
    """What the node key signs: it binds node key, TLS key, names, invitation and this one coordinator."""
    parts = b"".join(hashlib.sha256(part).digest() for part in (ca, csr, secret))
    return b"mammofed enrolment 1\0" + kind.encode() + b"\0" + parts


def enrol_request(secret: bytes, *, ca: bytes, csr: bytes, node_key: ec.EllipticCurvePrivateKey) -> EnrolRequest:
    """The first request; called by the site."""
    proof = sign(node_key, proof_message("enrol", ca=ca, csr=csr, secret=secret))
    return EnrolRequest(secret=secret, csr=csr, node=spki(node_key.public_key()), proof=proof)


def renew_request(*, ca: bytes, csr: bytes, node_key: ec.EllipticCurvePrivateKey) -> RenewRequest:
    """A later request; called by the site."""
    return RenewRequest(csr=csr, proof=sign(node_key, proof_message("renew", ca=ca, csr=csr)))


def check_proof(request: EnrolRequest | RenewRequest, *, node: bytes, ca: bytes) -> None:
    """Check that the holder of the node key made the request for this coordinator.

    Raises:
        EnrolmentError: it did not.
    """
    secret = request.secret if isinstance(request, EnrolRequest) else b""
    message = proof_message(request.kind, ca=ca, csr=request.csr, secret=secret)
    if not signed_by(load_spki(node, ec.SECP384R1), request.proof, message):
        raise EnrolmentError("the node key has not signed the request", expected="a signature by the site's node key",
                             remedy="send it from the machine that holds the site's keys")  # fmt: skip



def courier_name(site: str) -> str:
    """The owner of the audit log of a site's courier; that of its trainer's is the site itself."""
    return site[: 63 - len(COURIER_SUFFIX)] + COURIER_SUFFIX


@dataclass(frozen=True)
class Invite:
    """An invitation: for one member, once. secret: for nobody but its receiver; ca: the CA's certificate, DER."""

    member: Member
    ca: bytes
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(SECRET_BYTES), repr=False)

    @property
    def text(self) -> str:
        """As it is sent."""
        parts = (_PREFIX, self.member.site, self.member.role, _url(self.secret), _url(self.ca))
        body = ".".join(parts)
        return f"{body}.{_check(body)}"

    @property
    def sha256(self) -> str:
        """What the coordinator keeps of the secret."""
        return secret_sha256(self.secret)

    @classmethod
    def parse(cls, text: str) -> Invite:
        """An invitation as it arrived; line breaks of a mail are forgiven.

        Raises:
            EnrolmentError: incomplete, mistyped, or of another release. The message holds nothing of the invitation.
        """
        body, _, check = re.sub(r"\s+", "", text[: 4 * MAX_DOCUMENT_BYTES]).rpartition(".")
        parts: list[Any] = body.split(".")
        if len(parts) != 5 or parts[0] != _PREFIX or not secrets.compare_digest(_check(body).encode(), check.encode()):
            raise _mistyped()
        try:
            member, secret, ca = Member(parts[1], Role(parts[2])), _from_url(parts[3]), _from_url(parts[4])
            load_certificate(ca)
        except (ValueError, EnrolmentError, CertificateError):
            raise _mistyped() from None
        if len(secret) != SECRET_BYTES:
            raise _mistyped()
        return cls(member, ca, secret)


def secret_sha256(secret: bytes) -> str:
    """What the coordinator keeps of an invitation's secret."""
    return hashlib.sha256(secret).hexdigest()


def key_words(fingerprint: Fingerprint, *, tls: bytes, node: bytes) -> dict[str, str]:
    """Six words for each of a member's keys, as coordinator and site show them: `certificate` and `node`."""
    return {"certificate": fingerprint(tls), "node": fingerprint(node)}


def _mistyped() -> EnrolmentError:
    return EnrolmentError("the invitation is incomplete or mistyped", expected=f"{_PREFIX}.… as it was sent",
                          remedy="copy the whole of it, or ask for a new one")  # fmt: skip


def _check(body: str) -> str:
    """Eight digits against slips of the hand; forgery is kept out by the secret."""
    return hashlib.sha256(body.encode()).hexdigest()[:8]


def _url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _from_url(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)

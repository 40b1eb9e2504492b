"""A study protocol under the coordinator's signature: written by `propose`, read by every site before anything else.

What is signed is who proposes (name and key) together with the protocol's canonical bytes. A file has one form only, so
that any changed byte of it is found, spaces included; and nothing of a protocol is interpreted before its signature
fits the key that enrolment gave.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import ValidationError

from shared_model.bounded import read_at_most
from shared_model.errors import ProtocolError, SignatureError
from shared_model.protocol import MAX_PROTOCOL_BYTES, Name, Protocol, Sha256, Terms
from shared_model.signing import Purpose, SigningKey, VerifyKey

MAX_SIGNED_BYTES: Final = MAX_PROTOCOL_BYTES + 4096
_MEMBERS: Final = {"coordinator", "protocol", "schema_version", "sha256", "signature"}
_AGAIN: Final = "take the protocol from the coordinator again; should it fail again, compare the six words of its key"


class Coordinator(Terms):
    """Who signs: its name and its public Ed25519 key in hex, as enrolment brought them to the site."""

    name: Name
    key: Sha256

    @classmethod
    def of(cls, name: str, key: VerifyKey) -> Self:
        """The identity of a coordinator.

        Raises:
            ProtocolError: no such name.
        """
        try:
            return cls(name=name, key=key.hex)
        except ValidationError:
            raise ProtocolError("coordinator: a name of a wrong form",
                                expected="lower-case letters, digits, `-` and `_`") from None  # fmt: skip

    @property
    def verify_key(self) -> VerifyKey:
        """The key to check signatures with.

        Raises:
            SignatureError: it is none.
        """
        return VerifyKey.from_hex(self.key)


class SignedProtocol(Terms):
    """A protocol, who proposes it, and the signature over both. Made by :meth:`sign`, read by :meth:`from_json`."""

    schema_version: Literal[1] = 1
    coordinator: Coordinator
    protocol: Protocol
    signature: str

    @classmethod
    def sign(cls, protocol: Protocol, *, name: str, key: SigningKey) -> Self:
        """Sign a protocol as coordinator `name`.

        Raises:
            ProtocolError: the name has a wrong form.
        """
        coordinator = Coordinator.of(name, key.public)
        signature = key.sign(Purpose.PROTOCOL, _payload(coordinator, protocol.canonical()))
        return cls(coordinator=coordinator, protocol=protocol, signature=signature)

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the protocol: what is approved, and what every request names."""
        return self.protocol.sha256

    def to_json(self) -> str:
        """The one form of the file, indented for reading."""
        members = {
            "schema_version": self.schema_version, "coordinator": self.coordinator.model_dump(mode="json"),
            "protocol": self.protocol.model_dump(mode="json"), "sha256": self.sha256, "signature": self.signature,
        }  # fmt: skip
        return json.dumps(members, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, data: bytes, *, coordinator: Coordinator, release: str, source: str = "signed protocol") -> Self:
        """Read a file that is not trusted.

        Args:
            coordinator: whom this site enrolled with.
            release: what is installed here; a protocol of another is refused.

        Raises:
            SignatureError: signed by another, or changed after it was signed.
            ProtocolError: too large, of another form or release, or not a valid protocol.
        """
        values = _members(data, source)
        if values["coordinator"] != coordinator.model_dump(mode="json"):
            raise SignatureError(f"{source} is not of the coordinator that this site enrolled with",
                                 expected=f"{coordinator.name}, key {coordinator.key[:16]}", remedy=_AGAIN)  # fmt: skip
        canonical = _canonical(values["protocol"], source)
        try:
            coordinator.verify_key.verify(Purpose.PROTOCOL, _payload(coordinator, canonical), values["signature"])
        except SignatureError as error:
            raise SignatureError(f"{source}: {error.problem}", found=error.found, expected=error.expected,
                                 remedy=_AGAIN) from None  # fmt: skip
        if values["protocol"].get("release") != release:
            raise ProtocolError(f"{source} is for another release than the one installed here",
                                found=str(values["protocol"].get("release"))[:32], expected=release,
                                remedy="install the protocol's release at every party")  # fmt: skip
        signed = cls(coordinator=coordinator, protocol=Protocol.create(values["protocol"], source=source),
                     signature=values["signature"])  # fmt: skip
        if data != signed.to_json().encode():
            raise ProtocolError(f"{source} was changed or formatted anew after it was signed", remedy=_AGAIN)
        return signed

    @classmethod
    def read(cls, path: Path, *, coordinator: Coordinator, release: str) -> Self:
        """Read a file of bounded size; see :meth:`from_json`."""
        data = read_at_most(path, MAX_SIGNED_BYTES, error=ProtocolError, what=f"the signed protocol {path}")
        return cls.from_json(data, coordinator=coordinator, release=release, source=str(path))


def _members(data: bytes, source: str) -> dict[str, Any]:
    if len(data) > MAX_SIGNED_BYTES:
        raise ProtocolError(f"{source} is too large", found=len(data), expected=f"at most {MAX_SIGNED_BYTES} bytes")
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        raise ProtocolError(f"{source} is not JSON", remedy=_AGAIN) from None
    if not isinstance(values, dict) or set(values) != _MEMBERS:
        raise ProtocolError(f"{source} has not the members of a signed protocol", expected=sorted(_MEMBERS))
    if not (isinstance(values["signature"], str) and isinstance(values["protocol"], dict)):
        raise ProtocolError(f"{source}: `signature` is a text and `protocol` an object")
    return values


def _canonical(protocol: dict[str, Any], source: str) -> bytes:
    """The bytes of `Protocol.canonical` of the very values that came, before anything is made of them."""
    try:
        return json.dumps(protocol, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise ProtocolError(f"{source} holds what JSON does not have", remedy=_AGAIN) from None


def _payload(coordinator: Coordinator, canonical: bytes) -> bytes:
    # A JSON text of ours has no zero byte, so the two parts cannot be cut in another place.
    identity = json.dumps(coordinator.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return identity.encode("ascii") + b"\0" + canonical

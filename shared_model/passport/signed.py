"""A passport under a signature: one form of the file only, so that any changed byte of it is found, spaces included.

Who signs is `coordinator`, with the key that its sites know from enrolment, or `run`: a key that was made for this one
passport and forgotten at once. The latter shows that nothing was changed since; it cannot show who made it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import ValidationError

from shared_model.errors import PassportError, SignatureError
from shared_model.passport.document import Part, Passport
from shared_model.protocol import Name, Sha256
from shared_model.signing import Purpose, SigningKey, VerifyKey

MAX_PASSPORT_BYTES: Final = 8 << 20  # a hundred sites over a thousand rounds have some 100 KB
AGAIN: Final = "take model and passport from their owner again"
_MEMBERS: Final = {"schema_version", "signer", "passport", "signature"}


class Signer(Part):
    """kind: see the module. key: public, Ed25519, hex."""

    kind: Literal["coordinator", "run"]
    name: Name
    key: Sha256

    @property
    def verify_key(self) -> VerifyKey:
        """The key to check signatures with.

        Raises:
            SignatureError: it is none.
        """
        return VerifyKey.from_hex(self.key)


@dataclass(frozen=True)
class SignedPassport:
    """Made by :meth:`sign` or read by :meth:`read`; then the signature fits the key that the file itself names."""

    signer: Signer
    passport: Passport
    signature: str

    @classmethod
    def sign(cls, passport: Passport, *, kind: Literal["coordinator", "run"], name: str, key: SigningKey) -> Self:
        """Sign a passport."""
        signer = Signer(kind=kind, name=name, key=key.public.hex)
        return cls(signer, passport, key.sign(Purpose.PASSPORT, _payload(signer.model_dump(), passport.plain())))

    def to_json(self) -> bytes:
        """The one form of the file, indented for reading."""
        members = {
            "schema_version": 1, "signer": self.signer.model_dump(), "passport": self.passport.plain(),
            "signature": self.signature,
        }  # fmt: skip
        return (json.dumps(members, indent=1, allow_nan=False, ensure_ascii=True) + "\n").encode("ascii")

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the file."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @classmethod
    def from_json(cls, data: bytes, *, key: VerifyKey | None = None, source: str = "passport") -> Self:
        """Read a file that is not trusted. key: of whom it should be, known from elsewhere; None: the file's own word.

        Raises:
            SignatureError: of another key than `key`, or changed after it was signed.
            PassportError: too large, or no passport of this release's form.
        """
        values = _members(data, source)
        try:
            signer = Signer.model_validate(values["signer"])
        except ValidationError:
            raise PassportError(f"{source}: `signer` is malformed", remedy=AGAIN) from None
        if key is not None and signer.verify_key != key:
            raise SignatureError(f"{source} is signed with another key", found=signer.key[:16], expected=key.hex[:16],
                                 remedy=AGAIN)  # fmt: skip
        try:
            payload = _payload(values["signer"], values["passport"])
            signer.verify_key.verify(Purpose.PASSPORT, payload, values["signature"])
        except SignatureError as error:
            raise SignatureError(f"{source}: {error.problem}", found=error.found, expected=error.expected,
                                 remedy=AGAIN) from None  # fmt: skip
        except (ValueError, RecursionError):
            raise PassportError(f"{source} holds what JSON does not have", remedy=AGAIN) from None
        try:
            read = cls(signer, Passport.model_validate_json(json.dumps(values["passport"])), values["signature"])
        except ValidationError as error:
            wrong = error.errors(include_url=False)[:5]
            faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in wrong)
            raise PassportError(f"{source} is no passport of this release: {faults}",
                                remedy="read it with the release that made it") from None  # fmt: skip
        if data != read.to_json():
            raise PassportError(f"{source} was formatted anew or changed after it was signed", remedy=AGAIN)
        return read

    @classmethod
    def read(cls, path: Path, *, key: VerifyKey | None = None) -> Self:
        """Read a file of bounded size; see :meth:`from_json`."""
        try:
            with path.open("rb") as stream:
                data = stream.read(MAX_PASSPORT_BYTES + 1)
        except OSError as error:
            raise PassportError(f"cannot read {path}: {error.strerror}", expected="passport.json",
                                remedy="name the passport, or the folder that it lies in") from None  # fmt: skip
        return cls.from_json(data, key=key, source=str(path))


def _members(data: bytes, source: str) -> dict[str, Any]:
    if len(data) > MAX_PASSPORT_BYTES:
        raise PassportError(f"{source} is too large", expected=f"at most {MAX_PASSPORT_BYTES} bytes")
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        raise PassportError(f"{source} is not JSON", remedy=AGAIN) from None
    if not isinstance(values, dict) or set(values) != _MEMBERS or values["schema_version"] != 1:
        raise PassportError(f"{source} has not the members of a signed passport", expected=sorted(_MEMBERS),
                            remedy="read it with the release that made it")  # fmt: skip
    if not isinstance(values["signature"], str) or not all(
        isinstance(values[name], dict) for name in ("signer", "passport")
    ):
        raise PassportError(f"{source}: `signature` is a text, `signer` and `passport` are objects", remedy=AGAIN)
    return values


def _payload(signer: dict[str, Any], passport: dict[str, Any]) -> bytes:
    # Of the very values that came, before anything is made of them; a JSON text of ours has no zero byte.
    parts = (json.dumps(v, sort_keys=True, separators=(",", ":"), allow_nan=False) for v in (signer, passport))
    return b"\0".join(part.encode("ascii") for part in parts)

"""A signed protocol: every changed byte is found, and nothing is interpreted that the coordinator did not sign."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared_model.errors import MammoFedError, ProtocolError, SignatureError
from shared_model.protocol import Protocol
from shared_model.signed_protocol import MAX_SIGNED_BYTES, Coordinator, SignedProtocol
from shared_model.signing import Purpose, SigningKey
from tests.handmade_run import protocol_values

KEY = SigningKey.generate()
WHO = Coordinator.of("consortium", KEY.public)
RELEASE = "0.1.0"
GOOD = SignedProtocol.sign(Protocol.create(protocol_values()), name="consortium", key=KEY).to_json().encode()


def read(data: bytes, *, coordinator: Coordinator = WHO, release: str = RELEASE) -> SignedProtocol:
    return SignedProtocol.from_json(data, coordinator=coordinator, release=release)


def changed(**members: Any) -> bytes:
    return (json.dumps(json.loads(GOOD) | members, indent=2) + "\n").encode()


def signed_anyway(protocol: dict[str, Any]) -> bytes:
    """What a coordinator gets that signs whatever it is given: the form is right, the content may not be."""
    canonical = json.dumps(protocol, sort_keys=True, separators=(",", ":")).encode()
    identity = json.dumps(WHO.model_dump(), sort_keys=True, separators=(",", ":")).encode()
    return changed(protocol=protocol, signature=KEY.sign(Purpose.PROTOCOL, identity + b"\0" + canonical))


def test_what_was_signed_comes_back(tmp_path: Path) -> None:
    signed = read(GOOD)
    assert signed.protocol == Protocol.create(protocol_values()) and signed.sha256 == signed.protocol.sha256
    assert signed.to_json().encode() == GOOD
    (tmp_path / "p.json").write_bytes(GOOD)
    assert SignedProtocol.read(tmp_path / "p.json", coordinator=WHO, release=RELEASE) == signed
    with pytest.raises(ProtocolError, match="cannot read"):
        SignedProtocol.read(tmp_path / "absent.json", coordinator=WHO, release=RELEASE)


def test_what_is_signed_is_the_coordinators_identity_and_the_canonical_protocol() -> None:
    signed = read(GOOD)
    identity = json.dumps({"key": KEY.public.hex, "name": "consortium"}, separators=(",", ":")).encode()
    KEY.public.verify(Purpose.PROTOCOL, identity + b"\0" + signed.protocol.canonical(), signed.signature)


def test_each_changed_byte_is_found() -> None:
    for at in range(len(GOOD)):
        bad = bytearray(GOOD)
        bad[at] ^= (0x01, 0x20, 0x80, 0x08)[at % 4]
        with pytest.raises((ProtocolError, SignatureError)):
            read(bytes(bad))


@settings(max_examples=100)
@given(start=st.integers(0, len(GOOD)), length=st.integers(0, 40), new=st.binary(max_size=8))
@example(start=len(GOOD), length=0, new=b"\n")
@example(start=0, length=0, new=b" ")
def test_inserted_and_removed_bytes_are_found(start: int, length: int, new: bytes) -> None:
    bad = GOOD[:start] + new + GOOD[start + length :]
    if bad != GOOD:
        with pytest.raises((ProtocolError, SignatureError)):
            read(bad)


def test_another_coordinator_name_or_key_is_refused() -> None:
    other = SigningKey.generate()
    protocol = Protocol.create(protocol_values())
    for name, key in (("consortium", other), ("another", KEY)):
        with pytest.raises(SignatureError, match="not of the coordinator") as caught:
            read(SignedProtocol.sign(protocol, name=name, key=key).to_json().encode())
        assert caught.value.exit_code == 33
    with pytest.raises(SignatureError, match="does not fit"):  # the name and key of one, the signature of another
        read(changed(signature=SignedProtocol.sign(protocol, name="consortium", key=other).signature))
    with pytest.raises(ProtocolError, match="name"):
        SignedProtocol.sign(protocol, name="../x", key=KEY)


def test_a_signature_for_another_purpose_is_none() -> None:
    signed = read(GOOD)
    identity = json.dumps(WHO.model_dump(), sort_keys=True, separators=(",", ":")).encode()
    wrong = KEY.sign(Purpose.REQUEST, identity + b"\0" + signed.protocol.canonical())
    with pytest.raises(SignatureError):
        read(changed(signature=wrong))


def test_another_release_is_refused_before_its_fields_are_read() -> None:
    with pytest.raises(ProtocolError, match="another release"):
        read(GOOD, release="0.2.0")
    newer = protocol_values() | {"release": "0.9.0", "a_field_of_the_future": 1}
    with pytest.raises(ProtocolError, match="another release") as caught:
        read(signed_anyway(newer))
    assert caught.value.found == "0.9.0"


@pytest.mark.parametrize(("change", "words"), [
    ({"url": "https://example.org/code.py"}, "url"), ({"import": "os.system"}, "import"),
    ({"pickle": "gASVAAAA"}, "pickle"), ({"study": "../../etc"}, "study"), ({"seed": -1}, "seed"),
    ({"model": {"size": "tiny", "fusion": "gated", "module": "evil"}}, "model.module"),
])  # fmt: skip
def test_even_under_a_good_signature_only_a_declared_protocol_passes(change: dict[str, Any], words: str) -> None:
    values = Protocol.create(protocol_values()).model_dump(mode="json") | change
    with pytest.raises(ProtocolError, match=words):
        read(signed_anyway(values))


def test_a_signed_protocol_in_another_form_is_refused() -> None:
    """One that leaves a default out means the same, but is not what `propose` writes; so with `1` for `1.0`."""
    values = Protocol.create(protocol_values()).model_dump(mode="json")
    del values["federation"]["personal"]
    with pytest.raises(ProtocolError, match="formatted anew"):
        read(signed_anyway(values))
    with pytest.raises(ProtocolError, match="formatted anew"):
        read(json.dumps(json.loads(GOOD)).encode())
    with pytest.raises(ProtocolError, match="formatted anew"):
        read(GOOD.replace(b'"schema_version": 1,\n  "coord', b'"schema_version": 2,\n  "coord'))


@pytest.mark.parametrize("data", [
    b"", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, changed(extra=1), changed(signature=None),
    changed(protocol=[]), changed(signature=""), changed(coordinator=None), changed(sha256="0" * 64),
    b"x" * (MAX_SIGNED_BYTES + 1),
    changed(protocol={"a": "NAN"}).replace(b'"NAN"', b"NaN"),
])  # fmt: skip
def test_what_is_no_signed_protocol_is_refused_in_words(data: bytes) -> None:
    with pytest.raises((ProtocolError, SignatureError)) as caught:
        read(data)
    assert isinstance(caught.value, MammoFedError) and len(str(caught.value)) < 600

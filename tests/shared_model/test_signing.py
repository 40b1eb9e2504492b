"""Keys on disk, signatures for one purpose, and the six words that two people compare."""

from __future__ import annotations

import copy
import errno
import hashlib
import math
import os
import pickle
import stat
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_model import fingerprint
from shared_model.errors import SignatureError, StorageError
from shared_model.fingerprint import BITS, LIST_SIZE, WORDS, same_words, six_words, words
from shared_model.signing import _SMALL_ORDER_Y, Purpose, SigningKey, VerifyKey

PRIME = 2**255 - 19


def test_a_key_is_pkcs8_for_its_owner_alone_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    old = os.umask(0)
    try:
        made = SigningKey.create(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    assert [p.name for p in tmp_path.iterdir()] == ["site.key"]
    loaded = SigningKey.load(path)
    assert loaded.public == made.public and hash(loaded.public) == hash(made.public)
    made.public.verify(Purpose.REQUEST, b"x", loaded.sign(Purpose.REQUEST, b"x"))
    assert VerifyKey.from_hex(made.public.hex) == made.public != SigningKey.generate().public


def test_openssl_reads_the_key_and_agrees(tmp_path: Path) -> None:
    key = SigningKey.create(tmp_path / "k")
    try:
        shown = subprocess.run(["openssl", "pkey", "-in", str(tmp_path / "k"), "-pubout", "-outform", "DER"],
                               capture_output=True, check=True).stdout  # fmt: skip
    except FileNotFoundError:
        pytest.skip("no openssl here")
    assert shown == key.public.spki


def test_a_key_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "k"
    SigningKey.create(path)
    before = path.read_bytes()
    with pytest.raises(StorageError, match="never replaced"):
        SigningKey.create(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_leaves_no_half_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space"):
        SigningKey.create(tmp_path / "k")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o601, 0o666])
def test_a_key_that_others_could_read_is_refused(tmp_path: Path, mode: int) -> None:
    SigningKey.create(tmp_path / "k")
    (tmp_path / "k").chmod(mode)
    with pytest.raises(SignatureError, match="read by others") as caught:
        SigningKey.load(tmp_path / "k")
    assert caught.value.exit_code == 33


def test_what_is_no_key_is_refused_in_words_without_content(tmp_path: Path) -> None:
    path = tmp_path / "k"
    pem = b"-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n"
    for content in (b"", b"secret words", pem, b"x" * 5000):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(SignatureError) as caught:
            SigningKey.load(path)
        assert "secret" not in str(caught.value)
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(pem)
    with pytest.raises(SignatureError, match="another kind"):
        SigningKey.load(path)
    with pytest.raises(StorageError):
        SigningKey.load(tmp_path / "absent")
    SigningKey.create(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StorageError):
        SigningKey.load(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(SignatureError, match="regular"):
        SigningKey.load(tmp_path / "pipe")


def test_a_private_key_is_not_shown_copied_or_pickled() -> None:
    key = SigningKey.generate()
    raw = key._key.private_bytes_raw().hex()
    assert raw not in repr(key) and raw not in str(vars(key)["public"])
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            attempt(key)


@settings(max_examples=60)
@given(payload=st.binary(max_size=64), bit=st.integers(0, 511), other=st.binary(max_size=64))
def test_any_changed_bit_and_any_other_content_or_purpose_or_key_is_found(
    payload: bytes, bit: int, other: bytes
) -> None:
    key = SigningKey.generate()
    good = key.sign(Purpose.PROTOCOL, payload)
    key.public.verify(Purpose.PROTOCOL, payload, good)
    flipped = (int(good, 16) ^ (1 << bit)).to_bytes(64, "big").hex()
    wrong = [
        (key, Purpose.PROTOCOL, payload, flipped),
        (key, Purpose.REQUEST, payload, good),
        (key, Purpose.AUDIT_HEAD, payload, good),
        (SigningKey.generate(), Purpose.PROTOCOL, payload, good),
    ]
    if other != payload:
        wrong.append((key, Purpose.PROTOCOL, other, good))
    for who, purpose, content, signature in wrong:
        with pytest.raises(SignatureError):
            who.public.verify(purpose, content, signature)


@pytest.mark.parametrize("text", ["", "0" * 127, "0" * 129, "G" * 128, "A" * 128, "٠" * 128, " " * 128])
def test_a_signature_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(SignatureError, match="wrong form"):
        SigningKey.generate().public.verify(Purpose.PROTOCOL, b"", text)


def test_purposes_hold_no_zero_byte_and_stay_what_they_are() -> None:
    assert {p.value for p in Purpose} >= {"audit-head", "protocol", "request"}
    assert all("\0" not in p.value for p in Purpose)


@pytest.mark.parametrize("raw", [
    bytes(32), (1).to_bytes(32, "little"), (PRIME - 1).to_bytes(32, "little"), PRIME.to_bytes(32, "little"),
    (PRIME + 1).to_bytes(32, "little"), bytes(31) + b"\x80", (1 | 1 << 255).to_bytes(32, "little"),
    *(y.to_bytes(32, "little") for y in sorted(_SMALL_ORDER_Y)),
])  # fmt: skip
def test_keys_of_small_order_are_refused(raw: bytes) -> None:
    with pytest.raises(SignatureError, match="small order"):
        VerifyKey(raw)


def test_why_they_are_refused_one_signature_would_fit_any_message() -> None:
    """The neutral point as key, R the neutral point, S = 0: S*B = R + h*A for every h, hence for every message."""
    neutral = (1).to_bytes(32, "little")
    for message in (b"yes", b"no"):
        Ed25519PublicKey.from_public_bytes(neutral).verify(neutral + bytes(32), message)


def test_the_points_of_order_eight_are_each_others_opposites_on_the_curve() -> None:
    d = -121665 * pow(121666, -1, PRIME) % PRIME
    eight = [y for y in _SMALL_ORDER_Y if y not in (0, 1, PRIME - 1)]
    assert sum(eight) == PRIME
    for y in eight:  # twice such a point has order four, hence y = 0: y^2 + x^2 = 0 on -x^2 + y^2 = 1 + d x^2 y^2
        x2 = (y * y - 1) * pow(d * y * y + 1, -1, PRIME) % PRIME
        assert (y * y + x2) % PRIME == 0


def test_the_list_is_2048_plain_words_in_order_and_six_carry_66_bits() -> None:
    listed = words()
    assert len(listed) == len(set(listed)) == LIST_SIZE and list(listed) == sorted(listed)
    assert all(word.isascii() and word.isalpha() and word.islower() and 4 <= len(word) <= 11 for word in listed)
    assert WORDS * math.log2(LIST_SIZE) == BITS == 66


def test_no_two_words_are_one_letter_apart() -> None:
    """Two words within one edit share themselves or a form with one letter left out."""
    seen: dict[str, str] = {}
    for word in words():
        for form in {word, *(word[:at] + word[at + 1 :] for at in range(len(word)))}:
            other = seen.setdefault(form, word)
            assert other == word or (len(other) == len(word) and _differences(other, word) > 1), (other, word)


def _differences(one: str, other: str) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


def test_a_changed_list_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = files("shared_model").joinpath("words.txt").read_bytes()
    assert hashlib.sha256(data).hexdigest() == fingerprint.WORDS_SHA256
    monkeypatch.setattr(fingerprint, "WORDS_SHA256", "0" * 64)
    words.cache_clear()
    with pytest.raises(StorageError):
        words()
    monkeypatch.undo()
    assert words()


def test_the_words_of_a_key_never_change() -> None:
    # The key of RFC 8032, section 7.1, test 1.
    key = VerifyKey.from_hex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    assert key.fingerprint == "ability gazelle authentic thesaurus hardback journalist"
    assert key.fingerprint == six_words(key.spki)


def test_the_words_use_all_bits_of_the_digest_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {0: [0] * 6, (1 << 66) - 1: [2047] * 6, 1: [0, 0, 0, 0, 0, 1], 1 << 55: [1, 0, 0, 0, 0, 0]}
    for number, expected in cases.items():
        digest = (number << 6).to_bytes(9, "big")
        monkeypatch.setattr(fingerprint.hashlib, "scrypt", lambda *_, digest=digest, **__: digest)
        assert [words().index(word) for word in six_words(b"").split()] == expected


@pytest.mark.parametrize(("typed", "same"), [
    ("acorn banjo cedar", True), (" Acorn, BANJO-cedar.\n", True), ("acorn banjo", False),
    ("acorn banjo cedars", False), ("banjo acorn cedar", False), ("", False), ("acorn banjo cedar cedar", False),
])  # fmt: skip
def test_words_are_compared_as_they_are_said(typed: str, same: bool) -> None:
    assert same_words(typed, "acorn banjo cedar") is same

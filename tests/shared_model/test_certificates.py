"""Names, requests, keys, contexts and private files that both ends hold identically."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from shared_model.certificates import (
    MAX_DER_BYTES,
    REFUSALS,
    Member,
    Role,
    check_window,
    key_pem,
    load_certificate,
    load_key,
    load_node_key,
    load_spki,
    loopback_credentials,
    loopback_server_context,
    make_csr,
    member_of,
    names,
    new_node_key,
    new_tls_key,
    node_key_file,
    read_csr,
    sign,
    signed_by,
    spki,
)  # fmt: skip
from shared_model.errors import CertificateError, EnrolmentError, StorageError
from shared_model.private_files import make_private_folder, read_private, remove_private, write_private

NORTH = Member("north")


@pytest.mark.parametrize("name", ["", "North", "n h", "n.h", "../x", "-n", "n" * 64, "nörth", "n\n", "n:m", "n/m"])
def test_a_name_is_plain(name: str) -> None:
    with pytest.raises(EnrolmentError, match="not a name"):
        Member(name)


def test_a_request_has_its_names_and_key() -> None:
    key = new_tls_key()
    assert read_csr(make_csr(key, NORTH), NORTH) == key.public_key()


def test_every_changed_byte_of_a_request_is_found() -> None:
    """Either it is refused, or what it says is still the same: DER leaves a bit or two without meaning."""
    key = new_tls_key()
    request = make_csr(key, NORTH)
    taken = 0
    for place in range(len(request)):
        changed = request[:place] + bytes([request[place] ^ 0x20]) + request[place + 1 :]
        try:
            assert read_csr(changed, NORTH) == key.public_key()
            taken += 1
        except EnrolmentError:
            continue
    assert taken == 0
    for cut in range(len(request)):
        with pytest.raises(EnrolmentError):
            read_csr(request[:cut], NORTH)
    with pytest.raises(EnrolmentError):
        read_csr(request + bytes(MAX_DER_BYTES), NORTH)


def wished(*extensions: x509.ExtensionType, member: Member = NORTH, key: object = None) -> bytes:
    subject, alternative = names(member)
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    for extension in extensions or (alternative,):
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key or new_tls_key(), hashes.SHA256()).public_bytes(serialization.Encoding.DER)  # type: ignore[arg-type]


def test_a_request_with_further_wishes_is_refused() -> None:
    _, alternative = names(NORTH)
    two = x509.SubjectAlternativeName([*alternative, x509.DNSName("coordinator.example")])
    for request in (
        wished(alternative, x509.BasicConstraints(ca=True, path_length=None)),
        wished(alternative, x509.ExtendedKeyUsage([x509.ObjectIdentifier("1.3.6.1.5.5.7.3.1")])),
        wished(two), wished(member=Member("north", Role.EVALUATOR)), wished(member=Member("south")),
        wished(x509.BasicConstraints(ca=False, path_length=None)),
        wished(key=ec.generate_private_key(ec.SECP384R1())), wished(key=rsa.generate_private_key(65537, 2048)),
    ):  # fmt: skip
        with pytest.raises(EnrolmentError, match="not one for this invitation"):
            read_csr(request, NORTH)
    assert read_csr(wished(), NORTH)


def test_keys_are_of_their_kind() -> None:
    assert load_key(key_pem(new_tls_key()), ec.SECP256R1)
    other = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for data in (key_pem(new_node_key()), other, b"", b"-----BEGIN PRIVATE KEY-----\n"):
        with pytest.raises(CertificateError, match="another kind"):
            load_key(data, ec.SECP256R1)
    node = new_node_key()
    assert load_node_key(node_key_file(node)).public_key() == node.public_key()
    for data in (key_pem(node), node_key_file(new_tls_key()), b"", node_key_file(node)[:100]):
        with pytest.raises(CertificateError, match="another kind"):
            load_node_key(data)
    good = spki(node.public_key())
    assert spki(load_spki(good, ec.SECP384R1)) == good
    for data in (good + b"\0", good[:-1], b"", spki(new_tls_key().public_key()), bytes(MAX_DER_BYTES + 1)):
        with pytest.raises(EnrolmentError, match="right kind"):
            load_spki(data, ec.SECP384R1)


def test_signatures() -> None:
    key = new_node_key()
    signature = sign(key, b"message")
    assert signed_by(key.public_key(), signature, b"message")
    assert not signed_by(key.public_key(), signature, b"another")
    assert not signed_by(new_node_key().public_key(), signature, b"message")
    assert not signed_by(key.public_key(), b"", b"message")


def test_a_certificate_of_something_else_names_no_member() -> None:
    _, public = loopback_credentials(now=time.time())
    with pytest.raises(CertificateError) as refused:
        member_of(x509.load_pem_x509_certificate(public))
    assert refused.value.reason == "wrong_role"
    for data in (b"", b"x", bytes(MAX_DER_BYTES + 1)):
        with pytest.raises(CertificateError):
            load_certificate(data)


def test_the_ends_of_a_certificate_s_time() -> None:
    _, public = loopback_credentials(now=1e9, days=1)
    certificate = x509.load_pem_x509_certificate(public)
    begins, ends = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    assert begins == 1e9 - 300, "clocks may be five minutes late"
    check_window(certificate, begins)
    check_window(certificate, ends - 1)
    for now, reason in ((begins - 1, "not_yet_valid"), (ends, "expired")):
        with pytest.raises(CertificateError) as refused:
            check_window(certificate, now)
        assert refused.value.reason == reason and REFUSALS[reason] in str(refused.value)


def test_each_reason_says_what_to_do() -> None:
    assert all("; " in words and len(words) < 160 for words in REFUSALS.values())


def test_the_loopback_certificate_serves_a_strict_client(tmp_path: Path) -> None:
    both, public = loopback_credentials(now=time.time())
    write_private(tmp_path / "local.pem", both)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=public.decode())
    server = loopback_server_context(tmp_path / "local.pem")
    for host in ("localhost", "127.0.0.1"):
        ours, theirs = socket.socketpair()
        answering = threading.Thread(target=lambda end=theirs: server.wrap_socket(end, server_side=True).close())
        answering.start()
        with context.wrap_socket(ours, server_hostname=host) as tls:
            assert tls.version() == "TLSv1.3"
        answering.join()


# --- private files ---


def test_a_private_file_is_private_from_its_first_byte(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_private_folder(tmp_path / "a" / "b")
        write_private(tmp_path / "a" / "b" / "key", b"secret")
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "a" / "b" / "key").stat().st_mode & 0o777 == 0o600
    assert read_private(tmp_path / "a" / "b" / "key") == b"secret"
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o602])
def test_what_others_may_touch_is_not_read(tmp_path: Path, mode: int) -> None:
    write_private(tmp_path / "key", b"secret")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(StorageError, match="open to other users"):
        read_private(tmp_path / "key")


def test_links_long_files_and_absent_ones_are_not_read(tmp_path: Path) -> None:
    write_private(tmp_path / "key", b"secret")
    (tmp_path / "link").symlink_to(tmp_path / "key")
    for path, limit in ((tmp_path / "link", 100), (tmp_path / "absent", 100), (tmp_path / "key", 5)):
        with pytest.raises(StorageError):
            read_private(path, limit=limit)
    remove_private(tmp_path / "key")
    remove_private(tmp_path / "key")
    assert not (tmp_path / "key").exists()


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_private(tmp_path / "key", b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        write_private(tmp_path / "key", b"new")
    assert (tmp_path / "key").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1

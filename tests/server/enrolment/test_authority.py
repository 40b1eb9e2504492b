"""The certificate authority on its disk, and what it signs."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

import server.enrolment.authority as module
from server.enrolment.authority import Authority
from shared_model.certificates import LEAF_DAYS, Member, Role, member_of, new_tls_key
from shared_model.errors import CertificateError, ConfigError, StorageError
from tests.enrolled import DAY, Clock


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", name="Test consortium")


def test_its_key_is_its_owner_s_alone(authority: Authority) -> None:
    authority.server_credentials(["h"])
    modes = {path.name: path.stat().st_mode & 0o777 for path in authority.folder.iterdir()}
    assert modes == {"ca.key": 0o600, "ca.pem": 0o600, "server.pem": 0o600, "lock": 0o600}
    assert authority.folder.stat().st_mode & 0o777 == 0o700
    (authority.folder / "ca.key").chmod(0o644)
    with pytest.raises(StorageError, match="open to other users"):
        Authority.open(authority.folder)


def test_opened_again_it_is_the_same_and_never_made_anew(authority: Authority) -> None:
    assert Authority.open(authority.folder).ca_der == authority.ca_der
    with pytest.raises(ConfigError, match="shut out every site"):
        Authority.create(authority.folder, name="Another")
    assert Authority.open(authority.folder).ca_der == authority.ca_der


def test_killed_while_it_is_made_it_is_made_by_the_next_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(path: Path, data: bytes) -> None:
        if path.name == "ca.pem":
            raise KeyboardInterrupt
        write(path, data)

    write = module.write_private
    monkeypatch.setattr(module, "write_private", stop)
    with pytest.raises(KeyboardInterrupt):
        Authority.create(tmp_path, name="Test")
    with pytest.raises(ConfigError, match="server init"):
        Authority.open(tmp_path)
    monkeypatch.undo()
    made = Authority.create(tmp_path, name="Test")
    assert Authority.open(tmp_path).ca_der == made.ca_der


def test_damage_and_age_are_said(authority: Authority, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other", name="Test consortium")
    with pytest.raises(CertificateError) as old:
        Authority.open(authority.folder, clock=Clock(Clock().now + 3651 * DAY))
    assert old.value.reason == "expired"
    (authority.folder / "ca.pem").write_bytes((other.folder / "ca.pem").read_bytes())
    with pytest.raises(CertificateError, match="do not belong together"):
        Authority.open(authority.folder)
    (authority.folder / "ca.pem").write_bytes(b"")
    with pytest.raises(CertificateError, match="do not belong together"):
        Authority.open(authority.folder)


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb"])
def test_its_name_is_for_people(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        Authority.create(tmp_path, name=name)


def test_a_member_s_certificate_says_what_it_should_and_no_more(authority: Authority) -> None:
    key = new_tls_key().public_key()
    certificate = authority.issue(Member("north", Role.EVALUATOR), key)
    certificate.verify_directly_issued_by(authority.certificate)
    assert member_of(certificate) == Member("north", Role.EVALUATOR) and certificate.public_key() == key
    value = {type(extension.value): extension for extension in certificate.extensions}
    basic = value[x509.BasicConstraints]
    assert basic.critical and not basic.value.ca  # type: ignore[attr-defined]
    assert list(value[x509.ExtendedKeyUsage].value) == [ExtendedKeyUsageOID.CLIENT_AUTH]  # type: ignore[call-overload]
    usage = value[x509.KeyUsage].value
    assert usage.digital_signature and not usage.key_cert_sign  # type: ignore[attr-defined]
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert (life.days, LEAF_DAYS) == (30, 30)
    assert authority.issue(Member("north"), key).serial_number != certificate.serial_number
    ca = authority.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert ca.critical and ca.value.ca and ca.value.path_length == 0


def test_the_gateway_s_certificate_is_made_when_it_must_be(tmp_path: Path) -> None:
    clock = Clock()
    authority = Authority.create(tmp_path / "ca", name="Test", clock=clock)

    def serial(*hosts: str) -> int:
        return x509.load_pem_x509_certificate(authority.server_credentials(hosts).read_bytes()).serial_number

    first = serial("a.example", "10.0.0.1")
    clock.now += 300 * DAY
    assert serial("a.example", "10.0.0.1") == first
    other = serial("b.example")
    assert other != first
    clock.now += 306 * DAY
    younger = serial("b.example")
    assert younger != other, "made anew in time"
    (authority.folder / "server.pem").write_bytes(b"damaged")
    assert serial("b.example") not in (younger, other)
    stranger = Authority.create(tmp_path / "other", name="Test", clock=clock)
    (authority.folder / "server.pem").write_bytes(stranger.server_credentials(["b.example"]).read_bytes())
    theirs = x509.load_pem_x509_certificate((authority.folder / "server.pem").read_bytes()).serial_number
    assert serial("b.example") != theirs


@pytest.mark.parametrize("hosts", [[], ["h"] * 17, ["hösts"]])
def test_the_gateway_s_hosts_are_checked(authority: Authority, hosts: list[str]) -> None:
    with pytest.raises(ConfigError, match="host names"):
        authority.server_credentials(hosts)

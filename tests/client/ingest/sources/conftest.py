"""Fixtures of the tests of network sources."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from client.ingest.sources import Received
from client.ingest.sources.intake import Intake
from tests.orthanc import Orthanc, skip_without_orthanc
from tests.pacs_films import HashingDeidentifier, write_hospital


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Received]:
    """An empty store."""
    with Received(tmp_path / "store") as received:
        yield received


@pytest.fixture
def intake(store: Received) -> Intake:
    """An intake into `store`."""
    return Intake(store, HashingDeidentifier())


@pytest.fixture(scope="session")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sixteen films of four women."""
    folder = tmp_path_factory.mktemp("hospital") / "films"
    assert write_hospital(folder) == 16
    return folder


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory, hospital: Path) -> Iterator[Orthanc]:
    """An Orthanc that has the hospital's films; tests put back what they take away."""
    skip_without_orthanc()
    with Orthanc(tmp_path_factory.mktemp("orthanc") / "orthanc") as running:
        assert running.store(hospital) == 16
        yield running


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, and for pacs, us and (of another authority) stranger: NAME.pem and NAME.key."""
    folder = tmp_path_factory.mktemp("tls")
    for authority, names in (("ca", ("pacs", "us")), ("other-ca", ("stranger",))):
        # RSA for the authority's children: dcmtk of 2022 offers no suite for others in its default profile
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, authority)])
        _write(folder / f"{authority}.pem", _certificate(name, name, key.public_key(), key, authority=True))
        for child in names:
            child_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
            subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, child)])
            _write(folder / f"{child}.pem", _certificate(subject, name, child_key.public_key(), key, authority=False))
            (folder / f"{child}.key").write_bytes(child_key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ))  # fmt: skip
    return folder


def _certificate(
    subject: x509.Name, issuer: x509.Name, public: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePrivateKey, *, authority: bool,
) -> x509.Certificate:  # fmt: skip
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
        .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )  # fmt: skip
    if not authority:
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _write(path: Path, certificate: x509.Certificate) -> None:
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

"""Client certificates for the page: real handshakes with the consortium's certificates and with a hospital's own."""

from __future__ import annotations

import datetime
import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from server.monitor.admission import with_registry
from server.monitor.cli import monitor
from server.monitor.web import readers as readers_module
from server.monitor.web.guard import check_exposure
from server.monitor.web.readers import Readers
from shared_model.certificates import end_entity, key_pem, pem
from shared_model.errors import ConfigError
from simulations.benchmarks.staged_run import StagedRun, staged_protocol
from tests.browser import Sight, chromium, served
from tests.certificates_for_tests import self_signed
from tests.enrolled import HANG_S, Coordinator

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


class Hospital:
    """An authority that has nothing to do with the consortium."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.key = folder, ec.generate_private_key(ec.SECP256R1())
        folder.mkdir()
        public = self.key.public_key()
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "A hospital's authority")])
        certificate = (
            self._dated(self.name, public, days=10)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.KeyUsage(False, False, False, False, False, True, True, False, False), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(pem(certificate))

    def _dated(self, subject: x509.Name, key: Any, *, days: float) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key)
                .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=5))
                .not_valid_after(now + datetime.timedelta(days=days)))  # fmt: skip

    def issue(self, name: str, *, use: x509.ObjectIdentifier = CLIENT, days: float = 5) -> Path:
        """Key and certificate in one file."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._dated(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key.public_key(), days=days)
        certificate = end_entity(builder, key.public_key(), self.key.public_key(), use).sign(self.key, hashes.SHA256())
        path = self.folder / f"{name}-{use.dotted_string}-{days}.pem"
        path.write_bytes(key_pem(key) + pem(certificate))
        return path


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    staged = StagedRun(tmp_path / "run", staged_protocol(sites=("north", "south"), rounds=3), started=time.time())
    with staged:
        staged.begin()
        yield staged.run_dir


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return self_signed(tmp_path / "tls")


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path / "hospital")


def context_of(pair: tuple[Path, Path], credentials: Path | None, **versions: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(pair[0]))
    if credentials is not None:
        context.load_cert_chain(credentials)
    for name, version in versions.items():
        setattr(context, name, version)
    return context


def fetch(url: str, context: ssl.SSLContext) -> int:
    """The status of an answer; an `OSError` where TLS lets nobody in."""
    try:
        with urllib.request.urlopen(f"{url}api/runs", context=context, timeout=HANG_S) as answer:
            assert json.load(answer)["first"] == "run"
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_certificate_of_the_authority_is_all_that_is_needed(
    run: Path, pair: tuple[Path, Path], hospital: Hospital
) -> None:
    with served(run, cert=pair[0], key=pair[1], readers=Readers(ca=hospital.ca)) as url:
        assert "token" not in url
        assert fetch(url, context_of(pair, hospital.issue("anna"))) == 200


def test_none_an_expired_a_servers_and_a_strangers_certificate_come_not_in(
    run: Path, pair: tuple[Path, Path], hospital: Hospital, tmp_path: Path
) -> None:
    others = Hospital(tmp_path / "others")
    with served(run, cert=pair[0], key=pair[1], readers=Readers(ca=hospital.ca)) as url:
        for credentials in (None, hospital.issue("anna", days=-1), hospital.issue("anna", use=SERVER),
                            others.issue("anna")):  # fmt: skip
            with pytest.raises(OSError):
                fetch(url, context_of(pair, credentials))
        assert fetch(url, context_of(pair, hospital.issue("anna"))) == 200, "the others were refused for their own sake"


@pytest.mark.slow
def test_a_browser_with_the_certificate_sees_the_page_and_one_without_nothing(
    run: Path, pair: tuple[Path, Path], hospital: Hospital
) -> None:
    anna = str(hospital.issue("anna"))
    with served(run, cert=pair[0], key=pair[1], readers=Readers(ca=hospital.ca)) as url, chromium() as browser:
        mine = [{"origin": url.rstrip("/"), "certPath": anna, "keyPath": anna}]
        sight = Sight(browser.new_context(ignore_https_errors=True, client_certificates=mine).new_page())
        sight.open(url)
        sight.says("before the first round")
        stranger = browser.new_context(ignore_https_errors=True).new_page()
        with pytest.raises(Exception, match="net::ERR"):
            stranger.goto(url)


def test_nothing_below_tls_1_3_is_spoken(run: Path, pair: tuple[Path, Path], hospital: Hospital) -> None:
    old = {"maximum_version": ssl.TLSVersion.TLSv1_2}
    with served(run, cert=pair[0], key=pair[1], readers=Readers(ca=hospital.ca)) as url, pytest.raises(OSError):
        fetch(url, context_of(pair, hospital.issue("anna"), **old))
    with served(run, cert=pair[0], key=pair[1], token="a" * 20) as url, pytest.raises(OSError):
        fetch(url.partition("?")[0], context_of(pair, None, **old))


def test_where_names_are_given_the_others_are_told_no(run: Path, pair: tuple[Path, Path], hospital: Hospital) -> None:
    with served(run, cert=pair[0], key=pair[1], readers=Readers(ca=hospital.ca, names=frozenset({"anna"}))) as url:
        assert fetch(url, context_of(pair, hospital.issue("anna"))) == 200
        assert fetch(url, context_of(pair, hospital.issue("berta"))) == 403


def test_a_member_s_certificate_opens_it_by_name_alone(run: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The page shows all sites' numbers, which the watch stream keeps from other members."""
    hub = Coordinator(tmp_path / "hub", clock=time.time)
    north = hub.enrol("north").folder / "tls.pem"
    ca = hub.folder / "ca" / "ca.pem"
    with served(run, cert=pair[0], key=pair[1], readers=Readers(ca=ca)) as url:
        assert fetch(url, context_of(pair, north)) == 403
    with served(run, cert=pair[0], key=pair[1], readers=Readers(ca=ca, names=frozenset({"north"}))) as url:
        assert fetch(url, context_of(pair, north)) == 200
        server = hub.authority.server_credentials(["localhost"])
        with pytest.raises(OSError):
            fetch(url, context_of(pair, server))  # the gateway's own certificate is for servers


def test_at_its_coordinators_page_a_revoked_member_reads_no_more(
    run: Path, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers_module, "AGAIN_S", 0.05)
    hub = Coordinator(tmp_path / "hub", clock=time.time)
    north, ca = hub.enrol("north").folder / "tls.pem", hub.folder / "ca" / "ca.pem"
    readers = with_registry(Readers(ca=ca, names=frozenset({"north"})), hub.folder)
    with served(run, cert=pair[0], key=pair[1], readers=readers) as url:
        context = context_of(pair, north)
        assert fetch(url, context) == 200
        stream = urllib.request.urlopen(f"{url}api/stream?run=run", context=context, timeout=HANG_S)
        assert stream.readline().startswith(b"id: ")
        hub.enrolment.revoke("north", reason="keys were lost")
        with pytest.raises(http.client.IncompleteRead):  # a stream that was under way ends, too
            for _ in range(10):
                stream.read1(4096)
        assert fetch(url, context) == 403


def test_the_consortiums_own_authority_wants_names(tmp_path: Path, hospital: Hospital) -> None:
    hub = Coordinator(tmp_path / "hub", clock=time.time)
    with pytest.raises(ConfigError, match="every member of the consortium"):
        with_registry(Readers(ca=hub.folder / "ca" / "ca.pem"), hub.folder)
    renewed = tmp_path / "renewed.pem"  # another certificate over the same key admits the same members
    key, old = hub.authority._key, x509.load_pem_x509_certificate((hub.folder / "ca" / "ca.pem").read_bytes())
    builder = x509.CertificateBuilder(old.issuer, old.subject, old.public_key(), x509.random_serial_number(),
                                      old.not_valid_before_utc, old.not_valid_after_utc)  # fmt: skip
    renewed.write_bytes(pem(builder.sign(key, hashes.SHA256())))
    with pytest.raises(ConfigError, match="every member of the consortium"):
        with_registry(Readers(ca=renewed), hub.folder)
    other = Readers(ca=hospital.ca)
    assert with_registry(other, hub.folder) is other and with_registry(other, None) is other


def test_off_this_machine_certificates_are_enough_and_need_tls(tmp_path: Path, hospital: Hospital) -> None:
    check_exposure("0.0.0.0", tls=True, token=None, certificates=True)
    for tls, certificates in ((True, False), (False, True), (False, False)):
        with pytest.raises(ConfigError):
            check_exposure("0.0.0.0", tls=tls, token=None, certificates=certificates)
    (tmp_path / "runs").mkdir()
    wrong = ["--client-ca", str(hospital.ca)], ["--reader", "anna"]
    for options in wrong:
        found = CliRunner().invoke(monitor, [str(tmp_path / "runs"), "--no-open", "--port", "0", *options])
        assert isinstance(found.exception, ConfigError), options


def test_a_file_that_holds_no_authority_is_said(run: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "none.pem").write_text("nothing")
    with pytest.raises(ConfigError, match="no certificate authority"), \
            served(run, cert=pair[0], key=pair[1], readers=Readers(ca=tmp_path / "none.pem")):  # fmt: skip
        pass

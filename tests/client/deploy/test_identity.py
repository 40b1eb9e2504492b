"""A site's keys and certificate on its disk: where they are born, how they survive, what the site reads about them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

import client.deploy.identity as module
from client.deploy.identity import SiteIdentity, Stage
from shared_model.certificates import Member, Role, der, new_tls_key, pem, spki
from shared_model.enrolment import EnrolReply
from shared_model.errors import CertificateError, ConfigError, EnrolmentError, MammoFedError, StorageError
from tests.enrolled import DAY, Clock, Coordinator, words


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def coordinator(tmp_path: Path, clock: Clock) -> Coordinator:
    return Coordinator(tmp_path, clock)


def test_private_keys_are_their_owner_s_alone_whatever_the_mask(coordinator: Coordinator) -> None:
    before = os.umask(0)
    try:
        north = coordinator.enrol("north")
    finally:
        os.umask(before)
    assert {path.name for path in north.folder.iterdir()} == {
        "site.json", "ca.pem", "node.key", "node.pub", "tls.pem", "local.pem", "local-ca.pem"
    }  # fmt: skip
    assert {path.stat().st_mode & 0o777 for path in north.folder.iterdir()} == {0o600}
    assert north.folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["node.key", "tls.pem"])
def test_a_key_that_others_can_read_is_not_used(coordinator: Coordinator, clock: Clock, name: str) -> None:
    north = coordinator.enrol("north")
    clock.now += 8 * DAY
    (north.folder / name).chmod(0o640)
    with pytest.raises(StorageError, match=r"open to other users.*0640"):
        north.context()
        north.request()


def test_the_private_halves_never_leave(coordinator: Coordinator) -> None:
    north = coordinator.begin("north")
    request = north.request() or b""
    for name in ("node.key", "next.key", "local.pem"):
        secret = (north.folder / name).read_bytes().split(b"-----")[2].replace(b"\n", b"")
        assert secret[:60] not in request.replace(b"\n", b"")
    assert b"PRIVATE" not in request


def test_the_node_key_is_what_flower_registers(coordinator: Coordinator) -> None:
    north = coordinator.begin("north")
    public = load_ssh_public_key((north.folder / "node.pub").read_bytes())
    assert isinstance(public, ec.EllipticCurvePublicKey) and spki(public) == north.node_spki
    assert public.curve.name == "secp384r1"


def test_the_same_invitation_goes_on_with_the_same_keys(coordinator: Coordinator, tmp_path: Path) -> None:
    invite = coordinator.enrolment.invite(Member("north"))
    first = SiteIdentity.begin(tmp_path / "n", invite, host="h", port=1)
    shown = first.words(words)
    again = SiteIdentity.begin(tmp_path / "n", invite, host="other.host", port=2)
    assert again.words(words) == shown and again.settings.host == "other.host"


def test_a_folder_with_a_site_takes_no_other(coordinator: Coordinator, clock: Clock) -> None:
    north = coordinator.begin("north")
    other = coordinator.enrolment.invite(Member("south"))
    with pytest.raises(ConfigError, match="keys of a site already"):
        SiteIdentity.begin(north.folder, other, host="h", port=1)
    ready = coordinator.enrol("east")
    with pytest.raises(ConfigError, match="keys of a site already"):
        SiteIdentity.begin(ready.folder, other, host="h", port=1)
    assert SiteIdentity.open(ready.folder, clock=clock).standing().stage is Stage.READY


@pytest.mark.parametrize(("host", "port"), [("", 1), ("a b", 1), ("h", 0), ("h", 65536), ("h/path", 1), ("u@h", 1)])
def test_an_address_is_checked(coordinator: Coordinator, tmp_path: Path, host: str, port: int) -> None:
    invite = coordinator.enrolment.invite(Member("north"))
    with pytest.raises(ConfigError, match="address"):
        SiteIdentity.begin(tmp_path / "n", invite, host=host, port=port)
    assert not (tmp_path / "n").exists()


class Killed(BaseException):
    """The power goes."""


def writes(monkeypatch: pytest.MonkeyPatch, allowed: int) -> list[str]:
    """Let so many changes of the disk happen, then kill; returns the names that were touched."""
    touched: list[str] = []
    real = {name: getattr(module, name) for name in ("write_private", "remove_private")}

    def counted(name: str) -> object:
        def change(path: Path, *rest: bytes) -> None:
            if len(touched) >= allowed:
                raise Killed
            touched.append(path.name)
            real[name](path, *rest)

        return change

    for name in real:
        monkeypatch.setattr(module, name, counted(name))
    return touched


@pytest.mark.parametrize("allowed", range(10))
def test_killed_at_any_write_while_keys_are_made_it_goes_on(
    coordinator: Coordinator, tmp_path: Path, allowed: int
) -> None:
    invite = coordinator.enrolment.invite(Member("north"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        writes(patch, allowed)
        SiteIdentity.begin(tmp_path / "n", invite, host="h", port=1)
        raise Killed
    north = SiteIdentity.begin(tmp_path / "n", invite, host="h", port=1)
    assert not coordinator.exchange(north)
    coordinator.enrolment.confirm("north", north.words(words))
    assert coordinator.exchange(north)


@pytest.mark.parametrize("allowed", range(9))
def test_killed_at_any_write_of_a_renewal_it_goes_on(
    coordinator: Coordinator, clock: Clock, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    north = coordinator.enrol("north")
    old = north.certificate()
    clock.now += 8 * DAY
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        writes(patch, allowed)
        coordinator.exchange(north, peer=der(old) if old else None)
        raise Killed
    for _ in range(2):  # once more later on: nothing of the first time is in the way
        again = SiteIdentity.open(north.folder, clock=clock)
        now_there = again.certificate()
        assert now_there is not None and coordinator.registry.admit(der(now_there))
        if again.request() is not None:
            assert coordinator.exchange(again, peer=der(now_there))
        assert again.standing().stage is Stage.READY
        again.context()
        clock.now += 8 * DAY


def test_an_answer_that_comes_twice_is_taken_once(coordinator: Coordinator) -> None:
    north = coordinator.begin("north")
    coordinator.exchange(north)
    coordinator.enrolment.confirm("north", north.words(words))
    reply = coordinator.enrolment.answer(north.request() or b"")
    assert north.accept(reply) and north.accept(reply)


def test_a_certificate_that_is_not_ours_is_not_taken(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.begin("north")
    key = module.load_key((north.folder / "next.key").read_bytes(), ec.SECP256R1).public_key()
    other = Coordinator(tmp_path / "other").authority
    issue = coordinator.authority.issue
    wrong = [issue(Member("south"), key), issue(Member("north"), new_tls_key().public_key()),
             other.issue(Member("north"), key), coordinator.authority.certificate]  # fmt: skip
    for certificate in wrong:
        with pytest.raises(CertificateError):
            north.accept(EnrolReply(status="issued", certificate=der(certificate)).encode())
    for reply in (b"", EnrolReply(status="issued").encode(), EnrolReply(status="issued", certificate=b"x").encode()):
        with pytest.raises(MammoFedError):
            north.accept(reply)
    assert north.certificate() is None and not (north.folder / "tls.pem").exists()
    assert north.accept(EnrolReply(status="issued", certificate=der(issue(Member("north"), key))).encode())


def test_the_standing_is_told_in_words(coordinator: Coordinator, clock: Clock) -> None:
    north = coordinator.begin("north")
    assert north.standing().stage is Stage.ENROLLING and "phone" in north.standing().words
    coordinator.exchange(north)
    coordinator.enrolment.confirm("north", north.words(words))
    coordinator.exchange(north)
    told = {}
    for days in (0, 7.1, 29.9, 30.1, -1):
        clock.now, before = clock.now + days * DAY, clock.now
        standing = north.standing()
        told[days] = (standing.stage, standing.words)
        clock.now = before
    assert [stage for stage, _ in told.values()] == [
        Stage.READY, Stage.RENEW, Stage.RENEW, Stage.EXPIRED, Stage.NOT_YET_VALID
    ]  # fmt: skip
    assert "new invitation" in told[30.1][1] and "clock" in told[-1][1] and "renewed as soon" in told[7.1][1]


def test_damage_is_said(coordinator: Coordinator, clock: Clock, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no site"):
        SiteIdentity.open(tmp_path / "nothing")
    north = coordinator.enrol("north")
    for name, kind in (("tls.pem", CertificateError), ("node.key", CertificateError), ("ca.pem", StorageError),
                       ("site.json", ConfigError)):  # fmt: skip
        path = north.folder / name
        good = path.read_bytes()
        clock.now += 8 * DAY
        path.write_bytes(good[: len(good) // 2] if name == "node.key" else b"{}")
        with pytest.raises((kind, StorageError)):
            there = SiteIdentity.open(north.folder, clock=clock)
            there.context()
            there.request()
        path.write_bytes(good)
        clock.now -= 8 * DAY
    SiteIdentity.open(north.folder, clock=clock).context()


def test_without_invitation_and_certificate_a_human_is_asked(coordinator: Coordinator) -> None:
    north = coordinator.begin("north")
    (north.folder / "invite").unlink()
    with pytest.raises(EnrolmentError, match="new invitation"):
        north.request()


def test_the_machine_s_own_authorities_are_not_trusted(coordinator: Coordinator) -> None:
    north = coordinator.enrol("north")
    for context in (north.context(), north.enrolling_context()):
        (trusted,) = context.get_ca_certs(binary_form=True)
        assert trusted == coordinator.authority.ca_der
        assert context.check_hostname and context.verify_mode.name == "CERT_REQUIRED"
        assert context.minimum_version.name == "TLSv1_3"
    assert pem(coordinator.authority.certificate).decode() == north.ca_pem


# --- enrolled again ---


def test_a_site_that_ran_out_enrols_again_in_its_folder_and_its_old_keys_are_put_aside(tmp_path: Path) -> None:
    clock = Clock()
    coordinator = Coordinator(tmp_path, clock)
    north = coordinator.enrol("north")
    old, old_node = {path.name: path.read_bytes() for path in north.folder.iterdir()}, north.node_spki
    clock.now += 31 * DAY
    coordinator.enrolment.revoke("north")
    invite = coordinator.enrolment.invite(Member("north"))
    with pytest.raises(ConfigError, match="--again"):
        SiteIdentity.begin(north.folder, invite, host="localhost", port=1, clock=clock)
    fresh = SiteIdentity.begin(north.folder, invite, host="localhost", port=1, again=True, clock=clock)
    (aside,) = north.folder.glob("retired-*")
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == old
    assert fresh.node_spki != old_node
    assert not coordinator.exchange(fresh)
    coordinator.enrolment.confirm("north", fresh.words(words))
    assert coordinator.exchange(fresh) and fresh.standing().stage is Stage.READY


def test_again_goes_on_after_a_kill_and_does_not_put_new_keys_aside(tmp_path: Path) -> None:
    coordinator = Coordinator(tmp_path)
    north = coordinator.enrol("north")
    old_node = north.node_spki
    coordinator.enrolment.revoke("north")
    (north.folder / "site.json").unlink()  # killed after the first file was put aside
    invite = coordinator.enrolment.invite(Member("north"))
    first = SiteIdentity.begin(north.folder, invite, host="h", port=1, again=True)
    second = SiteIdentity.begin(north.folder, invite, host="h", port=1, again=True)
    assert first.node_spki == second.node_spki != old_node
    assert len(list(north.folder.glob("retired-*"))) == 1


def test_again_is_for_the_same_member_alone(tmp_path: Path) -> None:
    coordinator = Coordinator(tmp_path)
    north = coordinator.enrol("north")
    for member in (Member("south"), Member("other", Role.EVALUATOR)):
        with pytest.raises(ConfigError, match="another member"):
            SiteIdentity.begin(north.folder, coordinator.enrolment.invite(member), host="h", port=1, again=True)
    assert north.standing().stage is Stage.READY

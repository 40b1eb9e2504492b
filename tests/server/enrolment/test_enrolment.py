"""Invite, enrol, confirm, renew, revoke: who gets a certificate, and who does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.deploy.identity import SiteIdentity, Stage
from server.enrolment.authority import Authority
from server.enrolment.enrolment import MAX_INVITE_HOURS, Enrolment
from server.enrolment.registry import MemberState, Registry
from shared_model.certificates import (
    Member,
    Role,
    der,
    load_certificate,
    make_csr,
    member_of,
    new_node_key,
    new_tls_key,
)  # fmt: skip
from shared_model.enrolment import EnrolReply, EnrolRequest, Invite, decode, enrol_request, renew_request
from shared_model.errors import CertificateError, EnrolmentError
from tests.enrolled import DAY, Clock, Coordinator, words


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def coordinator(tmp_path: Path, clock: Clock) -> Coordinator:
    return Coordinator(tmp_path, clock)


def certificate(identity: SiteIdentity) -> bytes:
    there = identity.certificate()
    assert there is not None
    return der(there)


def test_nothing_is_served_before_a_human_has_compared_the_words(coordinator: Coordinator) -> None:
    north = coordinator.begin("north")
    assert coordinator.enrolment.pending() == []
    assert not coordinator.exchange(north)
    (waiting,) = coordinator.enrolment.pending()
    assert waiting.member == Member("north") and waiting.words == north.words(words)
    assert set(waiting.words) == {"certificate", "node"} and len(set(waiting.words.values())) == 2
    assert not coordinator.exchange(north) and north.certificate() is None, "asking again changes nothing"
    coordinator.enrolment.confirm("north", waiting.words)
    assert coordinator.exchange(north)
    assert coordinator.registry.admit(certificate(north)).member == Member("north")
    assert north.standing().stage is Stage.READY


def test_words_are_read_as_people_speak(coordinator: Coordinator) -> None:
    north = coordinator.begin("north")
    coordinator.exchange(north)
    spoken = {use: "  ".join(six.upper().split()) + "\n" for use, six in north.words(words).items()}
    coordinator.enrolment.confirm("north", spoken)
    coordinator.enrolment.confirm("north", spoken)
    assert coordinator.exchange(north)


@pytest.mark.parametrize("use", ["certificate", "node", ""])
def test_other_words_confirm_nobody(coordinator: Coordinator, use: str) -> None:
    north = coordinator.begin("north")
    coordinator.exchange(north)
    heard = {**north.words(words), use: "other words"} if use else {}
    with pytest.raises(EnrolmentError, match="not the same at both ends"):
        coordinator.enrolment.confirm("north", heard)
    assert not coordinator.exchange(north)


def test_an_invitation_is_for_one_set_of_keys(coordinator: Coordinator, tmp_path: Path) -> None:
    """A thief who is first is found when the site tries, and by the words; one who is second gets nothing."""
    invite = coordinator.enrolment.invite(Member("north"))
    first = SiteIdentity.begin(tmp_path / "first", invite, host="h", port=1)
    second = SiteIdentity.begin(tmp_path / "second", invite, host="h", port=1)
    assert not coordinator.exchange(first)
    with pytest.raises(EnrolmentError, match=r"other keys.*call the coordinator at once"):
        coordinator.exchange(second)
    with pytest.raises(EnrolmentError, match="not the same"):
        coordinator.enrolment.confirm("north", second.words(words))
    assert not coordinator.exchange(first), "the second one's try does not disturb the first"


def test_a_lost_reply_costs_nothing(coordinator: Coordinator) -> None:
    north = coordinator.begin("north")
    request = north.request()
    assert request is not None
    coordinator.enrolment.answer(request)
    coordinator.enrolment.confirm("north", north.words(words))
    replies = {coordinator.enrolment.answer(north.request() or b"") for _ in range(3)}
    assert len(replies) == 1, "one certificate for one key, however often it is asked for"
    assert north.accept(replies.pop())


def test_an_invitation_runs_out(coordinator: Coordinator, clock: Clock) -> None:
    north = coordinator.begin("north")
    clock.now += 73 * 3600
    with pytest.raises(EnrolmentError, match="run out"):
        coordinator.exchange(north)


def test_an_invitation_used_in_time_waits_for_its_confirmation(coordinator: Coordinator, clock: Clock) -> None:
    north = coordinator.begin("north")
    coordinator.exchange(north)
    clock.now += 200 * 3600
    coordinator.enrolment.confirm("north", north.words(words))
    assert coordinator.exchange(north)


def test_a_newer_invitation_withdraws_the_older(coordinator: Coordinator, tmp_path: Path) -> None:
    older = coordinator.begin("north")
    newer = coordinator.begin("north", folder=tmp_path / "again")
    with pytest.raises(EnrolmentError, match="withdrawn"):
        coordinator.exchange(older)
    assert not coordinator.exchange(newer)


def test_an_enrolled_name_is_not_invited_again(coordinator: Coordinator) -> None:
    coordinator.enrol("north")
    with pytest.raises(EnrolmentError, match="revoke north first"):
        coordinator.enrolment.invite(Member("north"))
    with pytest.raises(EnrolmentError, match="enrolled already"):
        coordinator.enrolment.invite(Member("north", Role.EVALUATOR))


@pytest.mark.parametrize("hours", [0, -1, MAX_INVITE_HOURS + 1, float("nan"), float("inf")])
def test_an_invitation_is_short_lived(coordinator: Coordinator, hours: float) -> None:
    with pytest.raises(EnrolmentError, match="short-lived"):
        coordinator.enrolment.invite(Member("north"), hours=hours)


def test_only_a_hash_of_the_secret_is_on_the_disk(coordinator: Coordinator) -> None:
    invite = coordinator.enrolment.invite(Member("north"))
    stored = b"".join(path.read_bytes() for path in coordinator.registry.path.parent.iterdir())
    assert invite.sha256.encode() in stored
    assert invite.secret not in stored and invite.secret.hex().encode() not in stored
    assert invite.text.split(".")[3].encode() not in stored
    assert invite.text.split(".")[3] not in repr(invite) and repr(invite.secret) not in repr(invite)


def test_names_in_the_request_are_those_of_the_invitation(coordinator: Coordinator) -> None:
    invite = coordinator.enrolment.invite(Member("north"))
    for member in (Member("south"), Member("north", Role.EVALUATOR)):
        request = enrol_request(invite.secret, ca=invite.ca, csr=make_csr(new_tls_key(), member),
                                node_key=new_node_key())  # fmt: skip
        with pytest.raises(EnrolmentError, match="not one for this invitation"):
            coordinator.enrolment.answer(request.encode())


def test_every_changed_field_of_a_request_is_found(coordinator: Coordinator) -> None:
    invite = coordinator.enrolment.invite(Member("north"))
    good = enrol_request(invite.secret, ca=invite.ca, csr=make_csr(new_tls_key(), Member("north")),
                         node_key=new_node_key())  # fmt: skip
    other = enrol_request(invite.secret, ca=b"another coordinator", csr=make_csr(new_tls_key(), Member("north")),
                          node_key=new_node_key())  # fmt: skip
    for field in ("secret", "csr", "node", "proof"):
        changed = bytes(20) if field == "secret" else getattr(other, field)
        with pytest.raises(EnrolmentError):
            coordinator.enrolment.answer(good.model_copy(update={field: changed}).encode())
    with pytest.raises(EnrolmentError, match="node key has not signed"):
        coordinator.enrolment.answer(other.encode())
    assert decode(coordinator.enrolment.answer(good.encode()), EnrolReply).status == "pending"


def test_keys_of_somebody_else_are_refused(coordinator: Coordinator, tmp_path: Path) -> None:
    """Also the keys of a member that was revoked: a copy of its disk stays worthless."""
    coordinator.enrol("north")
    for site in ("south", "north"):
        if site == "north":
            coordinator.enrolment.revoke("north")
        thief = coordinator.begin(site, folder=tmp_path / f"thief-{site}")
        node = (coordinator.folder / "sites" / "north" / "node.key").read_bytes()
        (thief.folder / "node.key").write_bytes(node)
        with pytest.raises(EnrolmentError, match="is or was in use"):
            coordinator.exchange(thief)


# --- renewal ---


def test_a_certificate_is_renewed_with_the_old_one(coordinator: Coordinator, clock: Clock) -> None:
    north = coordinator.enrol("north")
    before, node = certificate(north), north.node_spki
    assert north.request() is None
    clock.now += 8 * DAY
    assert north.standing().stage is Stage.RENEW
    assert coordinator.exchange(north, peer=before)
    after = certificate(north)
    assert load_certificate(after).public_key() != load_certificate(before).public_key()
    admitted = coordinator.registry.admit(after)
    assert (admitted.member, admitted.node) == (Member("north"), node)
    assert coordinator.registry.admit(before), "connections of the old one go on"
    assert north.standing().stage is Stage.READY and north.request() is None


def test_a_site_that_was_away_for_three_weeks_needs_no_human(coordinator: Coordinator, clock: Clock) -> None:
    """Whatever the age at which it left: while it was online it renewed as soon as that was due."""
    north = coordinator.enrol("north")
    for online in range(1, 12):
        clock.now += 1 * DAY
        if north.request() is not None:
            coordinator.exchange(north, peer=certificate(north))
        north_left = clock.now
        clock.now += 21 * DAY
        assert north.standing().stage in (Stage.READY, Stage.RENEW), f"left after {online} days"
        assert coordinator.registry.admit(certificate(north))
        clock.now = north_left


def test_a_lost_reply_to_a_renewal_costs_nothing(coordinator: Coordinator, clock: Clock) -> None:
    north = coordinator.enrol("north")
    clock.now += 8 * DAY
    first = coordinator.enrolment.answer(north.request() or b"", peer=certificate(north))
    clock.now += 1 * DAY
    again = SiteIdentity.open(north.folder, clock=clock)
    second = coordinator.enrolment.answer(again.request() or b"", peer=certificate(again))
    assert first == second and again.accept(second)


def test_the_one_before_last_is_superseded(coordinator: Coordinator, clock: Clock) -> None:
    north = coordinator.enrol("north")
    kept = [certificate(north)]
    for _ in range(2):
        clock.now += 8 * DAY
        coordinator.exchange(north, peer=kept[-1])
        kept.append(certificate(north))
    with pytest.raises(CertificateError) as refused:
        coordinator.registry.admit(kept[0])
    assert refused.value.reason == "superseded"
    assert coordinator.registry.admit(kept[1]) and coordinator.registry.admit(kept[2])


def test_a_stolen_certificate_does_not_renew_without_the_node_key(coordinator: Coordinator) -> None:
    north = coordinator.enrol("north")
    request = renew_request(ca=coordinator.authority.ca_der, csr=make_csr(new_tls_key(), Member("north")),
                            node_key=new_node_key())  # fmt: skip
    with pytest.raises(EnrolmentError, match="node key has not signed"):
        coordinator.enrolment.answer(request.encode(), peer=certificate(north))
    with pytest.raises(EnrolmentError, match="needs the old certificate"):
        coordinator.enrolment.answer(request.encode())


def test_one_site_cannot_renew_as_another(coordinator: Coordinator, clock: Clock) -> None:
    north, south = coordinator.enrol("north"), coordinator.enrol("south")
    clock.now += 8 * DAY
    with pytest.raises(EnrolmentError):
        coordinator.enrolment.answer(north.request() or b"", peer=certificate(south))


def test_an_expired_certificate_renews_nothing_and_the_site_is_told(coordinator: Coordinator, clock: Clock) -> None:
    north = coordinator.enrol("north")
    clock.now += 8 * DAY
    request, old = north.request() or b"", certificate(north)
    clock.now += 23 * DAY
    with pytest.raises(CertificateError, match="new invitation") as told:
        north.request()
    assert told.value.reason == "expired" and "new invitation" in north.standing().words
    with pytest.raises(CertificateError) as refused:
        coordinator.enrolment.answer(request, peer=old)
    assert refused.value.reason == "expired"


def test_the_first_request_does_not_make_a_certificate_live_longer(coordinator: Coordinator, clock: Clock) -> None:
    """It is on somebody's disk or wire: sent again after a month, it must not stand for a human."""
    north = coordinator.begin("north")
    request = north.request() or b""
    coordinator.exchange(north)
    coordinator.enrolment.confirm("north", north.words(words))
    coordinator.exchange(north)
    clock.now += 31 * DAY
    with pytest.raises(CertificateError) as refused:
        coordinator.enrolment.answer(request)
    assert refused.value.reason == "expired"


# --- revocation ---


def test_a_revoked_site_is_out_and_comes_back_with_new_keys_only(
    coordinator: Coordinator, clock: Clock, tmp_path: Path
) -> None:
    dropped: list[str] = []
    enrolment = Enrolment(coordinator.authority, coordinator.registry, fingerprint=words, clock=clock,
                          dropped=dropped.append)  # fmt: skip
    north = coordinator.enrol("north")
    old = certificate(north)
    enrolment.revoke("north", reason="laptop lost")
    enrolment.revoke("north", reason="again")
    assert dropped == ["north", "north"]
    there = coordinator.registry.member("north")
    assert (there.state, there.reason) == (MemberState.REVOKED, "laptop lost")
    clock.now += 8 * DAY
    with pytest.raises(CertificateError) as refused:
        enrolment.answer(north.request() or b"", peer=old)
    assert refused.value.reason == "revoked"
    again = coordinator.begin("north", folder=tmp_path / "new-laptop")
    coordinator.exchange(again)
    coordinator.enrolment.confirm("north", again.words(words))
    assert coordinator.exchange(again) and coordinator.registry.admit(certificate(again))
    with pytest.raises(CertificateError) as still:
        coordinator.registry.admit(old)
    assert still.value.reason == "revoked"


def test_a_pending_site_whose_words_differ_is_revoked(coordinator: Coordinator) -> None:
    north = coordinator.begin("north")
    coordinator.exchange(north)
    coordinator.enrolment.revoke("north")
    with pytest.raises(CertificateError) as refused:
        coordinator.exchange(north)
    assert refused.value.reason == "revoked"
    with pytest.raises(EnrolmentError, match="revoked"):
        coordinator.enrolment.confirm("north", north.words(words))


def test_revoking_withdraws_an_open_invitation(coordinator: Coordinator) -> None:
    north = coordinator.begin("north")
    coordinator.enrolment.revoke("north")
    with pytest.raises(EnrolmentError, match="withdrawn"):
        coordinator.exchange(north)
    with pytest.raises(EnrolmentError, match="no member"):
        coordinator.enrolment.revoke("nobody")


@pytest.mark.parametrize("document", [b"", b"{}", b"[]", b"\xff", b'{"kind":"renew"}', b"x" * (1 << 20)])
def test_what_is_no_document_is_refused(coordinator: Coordinator, document: bytes) -> None:
    with pytest.raises(EnrolmentError, match="not a document"):
        coordinator.enrolment.answer(document)


def test_another_coordinator_s_site_is_unknown(coordinator: Coordinator, tmp_path: Path) -> None:
    other = Coordinator(tmp_path / "other")
    north = other.enrol("north")
    with pytest.raises(CertificateError) as refused:
        coordinator.registry.admit(certificate(north))
    assert refused.value.reason == "unknown"
    with pytest.raises(EnrolmentError, match="not known"):
        coordinator.enrolment.answer(other.begin("south").request() or b"")


def test_two_processes_see_one_registry(coordinator: Coordinator, tmp_path: Path) -> None:
    """The operator's command and the control service are two."""
    north = coordinator.begin("north")
    with Registry(coordinator.registry.path.parent) as registry:
        service = Enrolment(Authority.open(coordinator.authority.folder), registry, fingerprint=words)
        assert not north.accept(service.answer(north.request() or b""))
        coordinator.enrolment.confirm("north", north.words(words))
        assert north.accept(service.answer(north.request() or b""))
    assert member_of(load_certificate(certificate(north))) == Member("north")
    assert isinstance(decode(enrol_request(b"s", ca=b"", csr=b"", node_key=new_node_key()).encode(), EnrolRequest),
                      EnrolRequest)  # fmt: skip
    assert Invite.parse(coordinator.enrolment.invite(Member("south")).text).member == Member("south")

"""A coordinator that lies in a secure sum, at the trainer's real handler: refused, and no share leaves for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from client.trainer.peers import confirm_peers, read_peers
from shared_model.errors import ConfigError, MessageError, PrivacyError, ProtocolError, SignatureError
from shared_model.messages import ErrorReply
from shared_model.secagg import Peer, Server
from shared_model.secagg.documents import Opening, Survivors
from shared_model.signing import SigningKey
from tests.signed import KEY
from tests.summed import STEPS, Hall, make_summed, marks

Make = Callable[..., Any]
INVENTED = SigningKey.generate()


@pytest.fixture
def hall(small_study: Make) -> Iterator[Hall]:
    made = Hall(make_summed(small_study))
    made.train()
    yield made
    made.close()


def refused(reply: Any) -> ErrorReply:
    assert isinstance(reply.message, ErrorReply) and not reply.arrays, reply.message
    return reply.message


def opening(hall: Hall, terms: Any, *, attempt: int = 1, **changes: Any) -> Any:
    document = Opening.model_construct(session=terms.digest, terms=terms).signed(KEY).to_bytes()
    return hall.exchange("site-01", hall.request("keys", document, attempt=attempt, **changes))


def peers_with(hall: Hall, **changes: Any) -> tuple[Peer, ...]:
    """The true peers, with site-03 changed."""
    return tuple(peer.model_copy(update=changes) if peer.site == "site-03" else peer for peer in hall.terms().peers)


@pytest.mark.parametrize(("lie", "error", "words"), [
    (lambda h: {"peers": peers_with(h, key=INVENTED.public.hex)}, PrivacyError, "has not confirmed"),
    (lambda h: {"peers": peers_with(h, key=h.keys["site-02"].hex)}, MessageError, ""),
    (lambda h: {"peers": (*h.terms().peers, Peer(site="site-99", key=INVENTED.public.hex, coefficient=0.1))},
     PrivacyError, "has not confirmed"),
    (lambda h: {"peers": peers_with(h, coefficient=1e-9)}, PrivacyError, "counts site-03 otherwise"),
    (lambda h: {"peers": h.terms().peers[1:]}, PrivacyError, "does not name this site"),
    (lambda h: {"peers": h.terms().peers[:1]}, MessageError, ""),
    (lambda h: {"round": 2}, PrivacyError, "another round"),
    (lambda h: {"attempt": 7}, PrivacyError, "another attempt"),
    (lambda h: {"what": "scores"}, PrivacyError, "another quantity"),
    (lambda h: {"protocol_sha256": "0" * 64}, PrivacyError, "another protocol"),
    (lambda h: {"study": "other"}, PrivacyError, "another study"),
    (lambda h: {"bits": 64}, PrivacyError, "another width"),
    (lambda h: {"length": 3}, MessageError, "another length"),
    (lambda h: {"coordinator": INVENTED.public.hex}, MessageError, "other terms"),
])  # fmt: skip
def test_terms_that_bend_the_sum_are_refused_before_a_key_is_made(
    hall: Hall, lie: Any, error: Any, words: str
) -> None:
    reply = refused(opening(hall, hall.terms(**lie(hall))))
    assert reply.code == error.exit_code and words in reply.reason
    assert not list(hall.study.config("site-01").state.glob("secure/*/*.sum"))


def test_the_sum_of_one_site_cannot_be_opened(hall: Hall) -> None:
    """The smallest peers that the schema takes are three; with two of them invented it is one site's values."""
    alone = tuple(peer.model_copy(update={"key": SigningKey.generate().public.hex}) if peer.site != "site-01" else peer
                  for peer in hall.terms(sites=["site-01", "site-02", "site-03"]).peers)  # fmt: skip
    assert "has not confirmed" in refused(opening(hall, hall.terms(peers=alone))).reason


@pytest.mark.parametrize("signer", [INVENTED, None], ids=["another's", "none"])
def test_a_step_needs_the_coordinator_s_signature_twice(hall: Hall, signer: SigningKey | None) -> None:
    """Over the request, which the courier carries, and over the document in it."""
    terms = hall.terms()
    document = Opening(session=terms.digest, terms=terms)
    by_other = hall.request("keys", document.signed(signer or INVENTED).to_bytes())
    assert refused(hall.exchange("site-01", by_other)).code == SignatureError.exit_code
    request = hall.request("keys", document.signed(KEY).to_bytes(), attempt=2)
    if signer is not None:
        assert refused(hall.exchange("site-01", request, key=signer)).code == SignatureError.exit_code


def test_a_document_that_the_signed_request_does_not_name_is_refused(hall: Hall) -> None:
    request = hall.request("keys", Server(hall.terms(), KEY).opening())
    other = request.model_copy(update={"document": request.document.replace('"round":1', '"round":2')})
    assert "not the one that its request names" in refused(hall.exchange("site-01", other)).reason


def test_other_survivors_to_others_get_no_share(hall: Hall) -> None:
    """site-01 is told that site-04 fell out, the others that it did not: with both kinds of shares of site-04 its
    values could be read."""
    server = Server(hall.terms(), KEY)
    hall.play(server, until="confirm")
    true = server.survivors()
    false = Survivors.from_bytes(true).model_copy(
        update={"survivors": ("site-01", "site-02", "site-03")}).signed(KEY).to_bytes()  # fmt: skip
    for name in hall.names:
        body = false if name == "site-01" else true
        reply = hall.exchange(name, hall.request("confirm", body))
        if name != "site-01":
            server.take_statement(reply.message.document.encode())
    statements = server.statements()
    # site-01 gets statements of a list that it was not told, the others too few of theirs or one that differs.
    reply = refused(hall.exchange("site-01", hall.request("unmask", statements)))
    assert reply.code == PrivacyError.exit_code
    assert "site-01" not in marks(hall.study)
    again = hall.exchange("site-01", hall.request("confirm", true))  # nor does it state a second list
    assert refused(again).code == MessageError.exit_code


def test_values_that_were_summed_are_summed_with_nobody_again(hall: Hall) -> None:
    server = Server(hall.terms(), KEY)
    hall.play(server)
    assert server.result().survivors == tuple(hall.names) and marks(hall.study) == set(hall.names)
    second = refused(opening(hall, hall.terms(attempt=2, sites=hall.names[:3]), attempt=2))
    assert second.code == PrivacyError.exit_code and "summed before" in second.reason


@pytest.mark.parametrize("private", [True, False])
def test_of_two_sums_that_were_begun_over_the_same_values_one_is_opened(small_study: Make, private: bool) -> None:
    """Both were masked before one was opened: over four sites and over three, which differ by one site's update."""
    hall = Hall(make_summed(small_study, private=private))
    try:
        hall.train()
        four, three = Server(hall.terms(), KEY), Server(hall.terms(attempt=2, sites=hall.names[:3]), KEY)
        hall.play(four, until="unmask")
        hall.play(three, until="unmask", attempt=2)
        hall.play_step(four, "unmask")
        assert four.result().survivors == tuple(hall.names)
        statements = three.statements()
        for name in hall.names[:3]:
            reply = refused(hall.exchange(name, hall.request("unmask", statements, attempt=2)))
            assert reply.code == PrivacyError.exit_code and "in another attempt" in reply.reason
    finally:
        hall.close()


@pytest.mark.parametrize("private", [True, False])
def test_training_again_gives_another_sum_where_it_draws_other_noise_only(small_study: Make, private: bool) -> None:
    """Without noise the same round gives the same update whenever it is trained."""
    hall = Hall(make_summed(small_study, private=private))
    try:
        hall.train()
        hall.play(Server(hall.terms(), KEY))
        hall.train(attempt=2)
        reply = opening(hall, hall.terms(attempt=2, sites=hall.names[:3]), attempt=2, asked=2)
        assert reply.message.kind == "secure_summed" if private else "summed before" in refused(reply).reason
    finally:
        hall.close()


def test_an_attempt_that_revealed_nothing_may_be_made_again_over_other_sites(hall: Hall) -> None:
    hall.play(Server(hall.terms(), KEY), until="unmask")
    assert marks(hall.study) == set()
    three = hall.names[:3]
    reply = opening(hall, hall.terms(attempt=2, sites=three), attempt=2)
    assert reply.message.kind == "secure_summed"


@pytest.mark.parametrize("step", STEPS[1:])
def test_a_later_step_cannot_bring_other_values_than_the_opening_named(hall: Hall, step: str) -> None:
    """The training request's number is part of what was judged: with another one there is no sum to go on with."""
    hall.train(attempt=2)
    server = Server(hall.terms(), KEY)
    hall.play(server, until=step)
    request = hall.request(step, hall.documents(server, step)["site-01"], asked=2)
    assert refused(hall.exchange("site-01", request)).code == MessageError.exit_code


@pytest.mark.parametrize("private", [True, False])
def test_joint_counts_are_made_for_one_sum_of_a_study(small_study: Make, private: bool) -> None:
    """Under another round, or at another temperature, a second sum over almost the same sites would tell one apart."""
    hall = Hall(make_summed(small_study, private=private, privacy__metrics="joint"))
    try:
        def ask(round_number: int, **changes: Any) -> Any:
            request = hall.study.evaluate("site", round_number=round_number, **changes)
            return hall.exchange("site-01", request, hall.study.arrays).message

        ask(0, image_only=True)
        first = ask(1)
        assert first.outcome == "evaluated" and ask(1) == first
        assert "already answered" in ask(2).reason and "already answered" in ask(1, temperature=2.0).reason
        kept = [path.name for path in hall.study.config("site-01").state.glob("secure/*/*.f32")]
        assert kept == ["scores-000001-00.f32"]
    finally:
        hall.close()


def test_what_was_never_trained_is_not_summed(hall: Hall) -> None:
    reply = refused(opening(hall, hall.terms(), asked=3))
    assert reply.code == PrivacyError.exit_code and "no values" in reply.reason


@pytest.mark.parametrize("what", ["scores", "counts"])
def test_what_the_protocol_does_not_sum_is_refused(hall: Hall, what: str) -> None:
    assert refused(opening(hall, hall.terms(what=what), what=what)).code == ProtocolError.exit_code


def test_each_step_survives_a_restart_and_a_repetition_gets_the_same_bytes(hall: Hall) -> None:
    server = Server(hall.terms(), KEY)
    for index, step in enumerate(STEPS):
        hall.open("site-01")
        document = hall.documents(server, step)["site-01"]
        first = hall.raw("site-01", hall.request(step, document))
        hall.open("site-01")
        assert hall.raw("site-01", hall.request(step, document)) == first
        hall.play_step(server, step)
        assert len(list(hall.study.config("site-01").state.glob("secure/*/*.sum"))) == 1, index
    assert server.result().survivors == tuple(hall.names)


@pytest.mark.parametrize("damage", ["forget", "swap"])
def test_a_site_trains_for_no_sum_whose_peers_it_has_not_confirmed(small_study: Make, damage: str) -> None:
    study = make_summed(small_study)
    folder = study.files["site-01"].parent
    if damage == "forget":
        (folder / "peers.json").unlink()
    else:
        confirm_peers(folder, {"site-02": INVENTED.public})
    hall = Hall(study)
    try:
        reply = hall.exchange("site-01", study.train(), study.arrays)
        if damage == "forget":
            assert refused(reply).code == PrivacyError.exit_code
            assert not (study.config("site-01").state / "secure").exists()
        else:
            assert "has not confirmed" in refused(opening(hall, hall.terms())).reason
    finally:
        hall.close()


def test_without_a_coordinator_nothing_is_summed(small_study: Make) -> None:
    study = make_summed(small_study)
    path = study.files["site-01"]
    path.write_text(study.config("site-01").model_copy(update={"coordinator": None}).to_json())
    (path.parent / "protocols" / "approved.json").write_text(study.protocol.to_json())
    import threading

    from client.trainer.service import TrainerService
    from shared_model.messages import Frame, decode, encode

    service = TrainerService(study.config("site-01"), compute=threading.Lock())
    try:
        frame = Frame(study.train(), study.arrays)
        reply = decode(service.exchange(encode(frame), wanted=lambda: True))
        assert refused(reply).code == ConfigError.exit_code
    finally:
        service.close()


def test_a_damaged_list_of_peers_is_no_list(small_study: Make) -> None:
    folder = make_summed(small_study).files["site-01"].parent
    path = folder / "peers.json"
    path.write_text(path.read_text().replace("site-02", "SITE 02"))
    with pytest.raises(ConfigError, match="damaged"):
        read_peers(folder)

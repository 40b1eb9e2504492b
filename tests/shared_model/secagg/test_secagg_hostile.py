"""A coordinator that lies, a site that lies, and what the coordinator sees."""

from __future__ import annotations

from hashlib import sha256
from itertools import pairwise

import numpy as np
import pytest

from shared_model.errors import MammoFedError, MessageError, PrivacyError, RoundError, SignatureError, StorageError
from shared_model.secagg import Contribution, Server, Site, shamir
from shared_model.secagg.documents import (
    Delivery,
    Directory,
    Document,
    Keys,
    Masked,
    Opening,
    Parcel,
    Shares,
    Statement,
    Statements,
    Survivors,
    Unmasking,
)
from shared_model.signing import SigningKey
from tests.shared_model.secagg.sums import COORDINATOR, STEPS, Play, join, key_of, names, session


def forged(kind: type[Document], data: bytes, **changes: object) -> bytes:
    """The coordinator's own document with other content, under its own good signature."""
    return kind.from_bytes(data).model_copy(update=changes).signed(COORDINATOR).to_bytes()


def keys_of(play: Play) -> dict[str, Keys]:
    return {keys.site: keys for keys in Directory.from_bytes(play.server.directory()).keys}


def test_an_invented_peer_is_refused_before_a_key_is_made() -> None:
    terms = session(4)
    opening = Server(terms, COORDINATOR).opening()
    with pytest.raises(PrivacyError, match="site-03 with a key that this site has not confirmed"):
        join(opening, "site-00", names(3))
    confirmed = {name: key_of(name).public for name in names(3)} | {"site-03": SigningKey.generate().public}
    with pytest.raises(PrivacyError, match="site-03"):
        Site.join(opening, site="site-00", signing=key_of("site-00"), coordinator=COORDINATOR.public,
                  confirmed=confirmed, revealed=())  # fmt: skip


def test_values_that_were_summed_are_not_summed_again_over_other_sites() -> None:
    play = Play(session(4))
    play.run()
    again = session(3, attempt=1)
    assert again.subject == play.sites["site-00"].session.subject and again.slot != play.terms.slot
    with pytest.raises(PrivacyError, match="summed before"):
        join(Server(again, COORDINATOR).opening(), "site-00", names(3), revealed={play.terms.subject})
    later = session(3, round=2)
    assert join(Server(later, COORDINATOR).opening(), "site-00", names(3), revealed={play.terms.subject}).keys()


@pytest.mark.parametrize("count", [1, 2])
def test_a_round_of_one_or_two_sites_cannot_be_written_down(count: int) -> None:
    with pytest.raises(ValueError, match="at least 3"):
        session(count)


def test_a_site_may_ask_for_more_sites_and_not_for_fewer() -> None:
    opening = Server(session(4), COORDINATOR).opening()
    with pytest.raises(PrivacyError, match="fewer sites"):
        join(opening, "site-00", names(4), least_sites=4)
    assert join(opening, "site-00", names(4), least_sites=1).session.threshold == 3


def test_a_site_that_is_not_named_takes_no_part() -> None:
    with pytest.raises(PrivacyError, match="does not name this site"):
        join(Server(session(3), COORDINATOR).opening(), "site-07", names(8))


def test_one_signing_key_does_not_stand_for_two_parties() -> None:
    peers = session(3).peers
    with pytest.raises(ValueError, match="one signing key"):
        session(3, peers=(*peers[:2], peers[2].model_copy(update={"key": peers[0].key})))
    with pytest.raises(ValueError, match="order"):
        session(3, peers=peers[::-1])


def test_only_the_coordinator_of_the_enrolment_opens_a_sum() -> None:
    other = SigningKey.generate()
    opening = Server(session(3, coordinator=other.public.hex), other).opening()
    with pytest.raises(SignatureError):
        join(opening, "site-00", names(3))


@pytest.mark.parametrize("change", ["round", "attempt", "study", "what", "peers"])
def test_replayed_keys_of_another_sum_are_refused(change: str) -> None:
    old = session(4)
    other = {"round": 2, "attempt": 1, "study": "other", "what": "other", "peers": old.peers[:3]}[change]
    before, play = Play(old).until("share"), Play(session(4, **{change: other})).until("share")
    keys = keys_of(play) | {"site-01": keys_of(before)["site-01"]}
    lie = forged(Directory, play.server.directory(), keys=tuple(keys.values()))
    with pytest.raises(MessageError, match="another secure sum"):
        play.sites["site-00"].share(lie)
    rebound = keys["site-01"].model_copy(update={"session": play.terms.digest})
    lie = forged(Directory, play.server.directory(), keys=tuple((keys | {"site-01": rebound}).values()))
    with pytest.raises(SignatureError):
        play.sites["site-00"].share(lie)


def test_swapped_repeated_missing_and_own_keys_are_refused() -> None:
    play = Play(session(4)).until("share")
    keys, site, directory = keys_of(play), play.sites["site-00"], play.server.directory()
    swapped = keys["site-01"].model_copy(update={"mask_key": keys["site-02"].mask_key})
    renamed = keys["site-02"].model_copy(update={"site": "site-01"})
    for wrong in (swapped, renamed):
        with pytest.raises(SignatureError):
            site.share(forged(Directory, directory, keys=tuple((keys | {"site-01": wrong}).values())))
    copied = swapped.signed(key_of("site-01"))  # a site that takes another's key for its own
    again = Keys.from_bytes(join(play.server.opening(), "site-00", names(4)).keys())  # this site's, of another time
    for wrong in (copied, again):
        with pytest.raises(PrivacyError, match="one key twice"):
            site.share(forged(Directory, directory, keys=tuple((keys | {wrong.site: wrong}).values())))
    for few in (["site-00", "site-01"], ["site-01", "site-02", "site-03"], ["site-00", "site-01", "site-01"]):
        with pytest.raises(PrivacyError):
            site.share(forged(Directory, directory, keys=tuple(keys[name] for name in few)))
    assert site.state.step == "keyed"


def test_a_point_of_small_order_gives_no_key() -> None:
    play = Play(session(3)).until("share")
    weak = keys_of(play)["site-01"].model_copy(update={"sealing_key": "00" * 32}).signed(key_of("site-01"))
    with pytest.raises(MessageError, match="small order"):
        play.sites["site-00"].share(forged(Directory, play.server.directory(),
                                           keys=tuple((keys_of(play) | {"site-01": weak}).values())))  # fmt: skip


def test_shares_for_another_site_or_of_another_sender_do_not_open() -> None:
    play = Play(session(4)).until("mask")
    deliveries = play.server.deliveries()
    mine, other = (Delivery.from_bytes(deliveries[name]) for name in ("site-00", "site-01"))
    turned = Parcel(sender="site-02", receiver="site-00", sealed=other.parcels[1].sealed)
    assert other.parcels[1].sender == "site-02"
    swapped = Parcel(sender="site-02", receiver="site-00", sealed=mine.parcels[0].sealed)
    for wrong in (turned, swapped):
        lie = forged(Delivery, deliveries["site-00"], parcels=(mine.parcels[0], wrong, mine.parcels[2]))
        with pytest.raises(MessageError, match="cannot be opened"):
            play.sites["site-00"].mask(lie, play.values["site-00"])
    with pytest.raises(MessageError, match="another site"):
        play.sites["site-00"].mask(deliveries["site-01"], play.values["site-00"])
    lie = forged(Delivery, deliveries["site-00"], sharers=("site-00", "site-01"), parcels=mine.parcels[:1])
    with pytest.raises(PrivacyError, match="too few sharers"):
        play.sites["site-00"].mask(lie, play.values["site-00"])
    assert play.sites["site-00"].state.step == "shared"


def test_a_server_that_names_other_survivors_to_others_gets_no_share() -> None:
    """The attack: with both shares of a site, from two halves that believe in two lists, its values could be read."""
    play = Play(session(4)).until("confirm")
    full, less = play.server.survivors(), ("site-00", "site-01", "site-02")
    lie = forged(Survivors, full, survivors=less)
    heard = {name: lie if name == "site-00" else full for name in names(4)}
    told = {name: Statement.from_bytes(play.sites[name].confirm(heard[name])) for name in names(4)}
    mixed = Statements(session=play.terms.digest, statements=tuple(told.values())).signed(COORDINATOR).to_bytes()
    for name in names(4):  # site-00 does not believe in the fourth, and the others see what site-00 was told
        with pytest.raises(PrivacyError, match="cannot be there" if name == "site-00" else "the coordinator lies"):
            play.sites[name].unmask(mixed)
    alone = forged(Statements, mixed, statements=(told["site-00"],))
    with pytest.raises(PrivacyError, match="too few statements"):
        play.sites["site-00"].unmask(alone)
    bent = told["site-01"].model_copy(update={"survivors": less})
    with pytest.raises(SignatureError):
        play.sites["site-00"].unmask(forged(Statements, mixed, statements=(told["site-00"], bent, told["site-02"])))
    assert all(play.sites[name].state.step == "stated" for name in names(4))
    with pytest.raises(MessageError, match="another body"):  # and no site signs a second list
        play.sites["site-00"].confirm(full)


def test_different_sharers_named_to_different_sites_are_noticed() -> None:
    play = Play(session(4)).until("mask")
    deliveries = play.server.deliveries()
    mine = Delivery.from_bytes(deliveries["site-00"])
    lie = forged(Delivery, deliveries["site-00"], sharers=tuple(names(3)), parcels=mine.parcels[:2])
    document = play.sites["site-00"].mask(lie, play.values["site-00"])
    with pytest.raises(MessageError, match="another list of sharers"):
        play.server.take_masked(document.document, document.words)
    for name in names(4)[1:]:
        sent = play.sites[name].mask(deliveries[name], play.values[name])
        play.server.take_masked(sent.document, sent.words)
    with pytest.raises(PrivacyError, match="other sharers"):
        play.sites["site-00"].confirm(play.server.survivors())


def test_survivors_below_the_threshold_or_without_this_site_get_no_statement() -> None:
    play = Play(session(4)).until("confirm")
    full = play.server.survivors()
    for wrong in (("site-00",), ("site-00", "site-01"), ("site-01", "site-02", "site-03"),
                  ("site-00", "site-00", "site-01"), ("site-00", "site-01", "site-09")):  # fmt: skip
        with pytest.raises(PrivacyError):
            play.sites["site-00"].confirm(forged(Survivors, full, survivors=wrong))
    assert play.sites["site-00"].state.step == "contributed"


def test_never_both_shares_of_a_site_leave() -> None:
    play = Play(session(4), {"site-03": 2}).until("unmask")
    play.unmask()
    for name in names(3):
        given = Unmasking.from_bytes(play.sent[name][-1])
        assert [s.owner for s in given.seeds] == names(3) and [s.owner for s in given.mask_keys] == ["site-03"]
        assert set(play.sites[name].state.model_dump()) == {"step", "unmasking"}


def test_each_step_is_taken_once_and_a_repetition_gets_the_same_bytes() -> None:
    """Every cell of the table state by request: under one mask two vectors would show their difference."""
    play = Play(session(3))
    play.keys()
    states, bodies, replies = [play.sites["site-00"].to_bytes()], [], []
    for step, ask in (("share", play.server.directory), ("mask", lambda: play.server.deliveries()["site-00"]),
                      ("confirm", play.server.survivors), ("unmask", play.server.statements)):  # fmt: skip
        bodies.append(ask())
        getattr(play, step)()
        sent = play.sent["site-00"]
        replies.append(Contribution(sent[-2], sent[-1]) if step == "mask" else sent[-1])
        states.append(play.sites["site-00"].to_bytes())
    for done, state in enumerate(states):
        for place, step in enumerate(STEPS[1:]):
            site = Site.from_bytes(state, signing=key_of("site-00"))
            extra = (np.zeros(7),) if step == "mask" else ()  # other values than the first time
            if place == done:  # the next step: taken
                assert getattr(site, step)(bodies[place], *extra) is not None
            elif place == done - 1:  # the last step again
                assert getattr(site, step)(bodies[place], *extra) == replies[place]
                with pytest.raises(MessageError, match="another body"):
                    getattr(site, step)(bodies[place] + b" ", *extra)
            else:
                with pytest.raises(MessageError, match="not where"):
                    getattr(site, step)(bodies[place], *extra)
        if done:
            with pytest.raises(MessageError, match="not where"):
                Site.from_bytes(state, signing=key_of("site-00")).keys()


def test_the_server_takes_the_first_document_of_a_site_and_no_other() -> None:
    play = Play(session(3)).until("share")
    first = play.sent["site-00"][0]
    again = Play(session(3))
    again.keys()
    play.server.directory()
    with pytest.raises(MessageError, match="not open"):
        play.server.take_keys(first)
    again.server.take_keys(again.sent["site-00"][0])
    with pytest.raises(MessageError, match="two different documents"):
        again.server.take_keys(first)
    masked = Play(session(3)).until("mask")
    sent = masked.sites["site-00"].mask(masked.server.deliveries()["site-00"], masked.values["site-00"])
    for _ in range(2):  # a repetition does not count twice
        masked.server.take_masked(sent.document, sent.words)
    assert masked.server.to_bytes().endswith(sent.words)


def test_false_shares_and_false_words_are_found() -> None:
    play = Play(session(3)).until("unmask")
    statements = play.server.statements()
    for name in names(3):
        given = Unmasking.from_bytes(play.sites[name].unmask(statements))
        if name == "site-01":
            false = given.seeds[0].model_copy(update={"share": shamir.to_hex(5)})
            given = given.model_copy(update={"seeds": (false, *given.seeds[1:])}).signed(key_of(name))
        play.server.take_unmasking(given.to_bytes())
    with pytest.raises(RoundError, match="shares of site-00 do not fit"):
        play.server.result()

    play = Play(session(3)).until("mask")
    for name in names(3):
        sent = play.sites[name].mask(play.server.deliveries()[name], play.values[name])
        document, words = Masked.from_bytes(sent.document), sent.words
        if name == "site-01":
            words = (np.frombuffer(words, dtype="<u4") + np.uint32(1 << 31)).tobytes()
            document = document.model_copy(update={"words_sha256": sha256(words).hexdigest()}).signed(key_of(name))
        play.server.take_masked(document.to_bytes(), words)
    play.confirm()
    play.unmask()
    with pytest.raises(RoundError, match="false words"):
        play.server.result()


def flips(data: bytes) -> list[bytes]:
    """The document with one byte changed, for some of its places, and with a byte more and less."""
    places = range(0, len(data), max(1, len(data) // 150))
    changed = [data[:p] + bytes([data[p] ^ 1]) + data[p + 1 :] for p in places]
    return [*changed, data + b" ", b" " + data, data[:-1], b""]


def test_one_changed_byte_anywhere_is_refused_at_both_ends() -> None:
    play = Play(session(3))
    opening = play.server.opening()
    for bad in flips(opening):
        with pytest.raises(MammoFedError):
            join(bad, "site-00", names(3))
    play.keys()
    tried = 0
    for step, ask in (("share", play.server.directory), ("mask", lambda: play.server.deliveries()["site-00"]),
                      ("confirm", play.server.survivors), ("unmask", play.server.statements)):  # fmt: skip
        good, site, extra = ask(), play.sites["site-00"], (play.values["site-00"],) if step == "mask" else ()
        before = site.to_bytes()
        for bad in flips(good):
            with pytest.raises(MammoFedError):
                getattr(site, step)(bad, *extra)
            tried += 1
        assert site.to_bytes() == before
        getattr(play, step)()
    assert tried > 400

    taken = Play(session(3))
    server = taken.server
    opened = server.opening()
    for take, step in ((server.take_keys, "keys"), (server.take_shares, "share"), (server.take_statement, "confirm"),
                       (server.take_unmasking, "unmask")):  # fmt: skip
        if step == "confirm":
            taken.mask()
        if step == "keys":
            taken.sites = {name: join(opened, name, names(3)) for name in names(3)}
            replies = {name: site.keys() for name, site in taken.sites.items()}
        else:
            asked = {"share": server.directory, "confirm": server.survivors, "unmask": server.statements}[step]()
            replies = {name: getattr(site, step)(asked) for name, site in taken.sites.items()}
        for bad in flips(replies["site-00"]):
            with pytest.raises(MammoFedError):
                take(bad)
        for reply in replies.values():
            take(reply)
    assert np.abs(server.result().total - taken.plain()).max() < 1e-7


def test_a_changed_word_is_refused_and_adds_nothing() -> None:
    play = Play(session(3)).until("mask")
    sent = play.sites["site-00"].mask(play.server.deliveries()["site-00"], play.values["site-00"])
    before = play.server.to_bytes()
    for bad in flips(sent.words):
        with pytest.raises(MessageError, match="words"):
            play.server.take_masked(sent.document, bad)
    for bad in flips(sent.document):
        with pytest.raises(MammoFedError):
            play.server.take_masked(bad, sent.words)
    assert play.server.to_bytes() == before


def test_a_damaged_or_foreign_state_is_not_gone_on_with() -> None:
    play = Play(session(3)).until("confirm")
    site, server = play.sites["site-00"].to_bytes(), play.server.to_bytes()
    for bad in flips(site):
        with pytest.raises(StorageError):
            Site.from_bytes(bad, signing=key_of("site-00"))
    with pytest.raises(StorageError, match="another site"):
        Site.from_bytes(site, signing=key_of("site-01"))
    with pytest.raises(StorageError, match="another coordinator"):
        Server.from_bytes(server, signing=key_of("site-00"))
    with pytest.raises(StorageError):
        Server.from_bytes(site, signing=COORDINATOR)


def test_what_the_server_sees_of_one_site_is_uniform_and_nothing_of_its_values() -> None:
    """All values equal: the words still spread evenly, in every byte (chi-square with 255 degrees of freedom)."""
    terms = session(3, length=20_000)
    play = Play(terms, values={name: np.full(terms.length, 0.5) for name in names(3)}).until("confirm")
    words = [np.frombuffer(play.sent[name][-1], dtype="<u4") for name in names(3)]
    for block in words:
        for place in range(4):
            counts = np.bincount(block.view(np.uint8)[place::4], minlength=256)
            assert float((((counts - len(block) / 256) ** 2) / (len(block) / 256)).sum()) < 400  # p about 1e-8
    for one, other in pairwise(words):
        assert len(np.intersect1d(one, other)) < 5


def test_after_masking_a_site_holds_nothing_that_takes_its_mask_off() -> None:
    play = Play(session(3)).until("mask")
    state = play.sites["site-00"].state
    play.mask()
    kept = play.sites["site-00"].to_bytes()
    for secret in (state.seed, state.mask_private, state.sealing_private):
        assert secret.encode() not in kept


def test_a_private_state_is_in_no_message_and_secrets_are_fresh() -> None:
    play, other = Play(session(3)).until("mask"), Play(session(3)).until("mask")
    states = [p.sites[name].state for p in (play, other) for name in names(3)]
    secrets = [secret for state in states for secret in (state.seed, state.mask_private, state.sealing_private)]
    assert len(set(secrets)) == len(secrets) == 18
    spoken = b"".join(part for parts in play.sent.values() for part in parts)
    assert not any(secret.encode() in spoken for secret in secrets)


def test_oversize_and_garbage_are_refused_before_they_are_read() -> None:
    for kind in (Opening, Keys, Directory, Shares, Delivery, Masked, Survivors, Statement, Statements, Unmasking):
        with pytest.raises(MessageError, match="too large"):
            kind.from_bytes(b"[" * (1 << 20) + b"[")
        for garbage in (b"", b"{}", b"[]", b"\xff", b"null", b"[" * 100_000):
            with pytest.raises(MessageError):
                kind.from_bytes(garbage)

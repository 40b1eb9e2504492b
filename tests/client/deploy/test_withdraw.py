"""A site leaves a study for good: nothing more is trained, sent or approved for it, and what it gave is said."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client.deploy.home import Party, SiteHome
from client.deploy.withdraw import Withdrawal, _ranges, withdraw, words_of
from client.privacy.accountant import Account
from client.trainer.config import SiteConfig
from client.trainer.consent import approve
from client.trainer.service import TrainerService
from client.trainer.withdrawn import FOLDER, withdrawn
from shared_model.certificates import Role
from shared_model.errors import ConfigError, ProtocolError
from shared_model.messages import ErrorReply, Frame, TrainReply, decode, encode
from shared_model.private_files import make_private_folder, write_private
from shared_model.protocol import Protocol
from shared_model.signed_protocol import SignedProtocol
from tests.signed import COORDINATOR, KEY, NAME, seal

RELEASE = "0.1.0"
Make = Callable[..., Any]


@pytest.fixture
def study(small_study: Make) -> Any:
    return small_study(private=True)


@pytest.fixture
def home(tmp_path: Path, study: Any, monkeypatch: pytest.MonkeyPatch) -> SiteHome:
    """A site that approved the study; the courier's files are another test's matter."""
    cohort = SiteConfig.read(study.files["site-01"]).cohort
    made = SiteHome.create(tmp_path / "home", cohort=cohort, role=Role.SITE)
    write_private(made.courier / "coordinator.json", COORDINATOR.model_dump_json().encode())
    write_private(made.trainer / "party.json", Party(site="site-01", role=Role.SITE).model_dump_json().encode())
    write_private(made.trainer / "coordinator.json", COORDINATOR.model_dump_json().encode())
    monkeypatch.setattr(SiteHome, "trust", lambda *_: None)
    approve(made, offer(made, study.protocol))
    return made


def offer(home: SiteHome, protocol: Protocol) -> SignedProtocol:
    make_private_folder(home.inbox)
    signed = SignedProtocol.sign(protocol, name=NAME, key=KEY)
    write_private(home.inbox / f"{protocol.study}-{signed.sha256[:16]}.json", signed.to_json().encode())
    return signed


@pytest.fixture
def service(home: SiteHome) -> Iterator[TrainerService]:
    opened = TrainerService(home.trainer_config(), compute=threading.Lock())
    yield opened
    opened.close()


def train(service: TrainerService, study: Any, number: int) -> Any:
    request = study.train(number)
    frame = encode(Frame(request, study.arrays, seal(request)))
    return decode(service.exchange(frame, wanted=lambda: True)).message


def test_a_site_that_left_says_what_it_gave_and_sends_nothing_more(
    home: SiteHome, study: Any, service: TrainerService
) -> None:
    for number in (1, 2):
        assert isinstance(train(service, study, number), TrainReply)
    found = withdraw(home, "unit", release=RELEASE, reason="the board said so")
    assert (found.rounds, found.unsent, found.noised, found.removed) == ((1, 2), (), True, 2)
    sigma, rate, steps = 1.0, 0.25, 2
    expected = Account().add(noise_multiplier=sigma, sample_rate=rate, steps=2 * steps).epsilon(delta=1e-5)
    assert found.epsilon == pytest.approx(expected) and found.total == pytest.approx(expected)
    words = "\n".join(words_of(found, site="site-01"))
    for part in ("left unit for good", "rounds 1-2", f"epsilon {expected:.2f}", "server rollback HOME unit --without"):
        assert part in words, words
    for number in (2, 3):  # a repetition of what left already, and a new one
        reply = train(service, study, number)
        assert isinstance(reply, ErrorReply) and reply.code == ProtocolError.exit_code
        assert "withdrawn from unit for good" in reply.reason and "board" not in reply.reason
    assert len(service.site.ledger.records()) == 2, "the ledger forgets nothing, and nothing was charged since"
    assert not list((home.state / "replies").glob("unit-*"))


def test_leaving_twice_says_the_same(home: SiteHome, study: Any, service: TrainerService) -> None:
    train(service, study, 1)
    first = withdraw(home, "unit", release=RELEASE, reason="one")
    again = withdraw(home, "unit", release=RELEASE, reason="two")
    mark = withdrawn(home.trainer, "unit")
    assert mark is not None and mark.reason == "one"
    assert (again.since, again.rounds, again.epsilon) == (first.since, first.rounds, first.epsilon)


def test_no_later_protocol_of_that_name_can_be_approved(home: SiteHome, study: Any) -> None:
    withdraw(home, "unit", release=RELEASE)
    later = Protocol.create(study.protocol.model_dump(mode="json") | {"seed": 99})
    for protocol in (study.protocol, later):
        with pytest.raises(ProtocolError, match="for good"):
            approve(home, offer(home, protocol))
    other = Protocol.create(study.protocol.model_dump(mode="json") | {"study": "unit-2"})
    assert approve(home, offer(home, other)).exists()


def test_an_approval_that_lies_there_all_the_same_is_not_served(
    home: SiteHome, study: Any, service: TrainerService
) -> None:
    path = next(home.protocols.glob("*.json"))
    data = path.read_bytes()
    withdraw(home, "unit", release=RELEASE)
    write_private(path, data)  # a backup that was put back
    assert "for good" in train(service, study, 1).reason
    (home.trainer / FOLDER / "unit.json").write_text("{}")
    (home.trainer / FOLDER / "unit.json").chmod(0o600)
    assert "is damaged" in train(service, study, 1).reason


def test_charged_rounds_of_which_nothing_left_are_named(
    home: SiteHome, study: Any, service: TrainerService, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(service, study, 1)
    monkeypatch.setattr(service._site, "trained", lambda *_: frozenset())  # the gate then lets nothing go
    assert isinstance(train(service, study, 2), ErrorReply)
    found = withdraw(home, "unit", release=RELEASE)
    assert (found.rounds, found.unsent) == ((1,), (2,))


def test_a_study_whose_name_begins_alike_is_left_alone(home: SiteHome, study: Any, service: TrainerService) -> None:
    train(service, study, 1)
    other = home.state / "replies" / f"unit-2-{'0' * 16}"
    other.mkdir()
    (other / "round-000001-01.frame").write_bytes(b"x")
    withdraw(home, "unit", release=RELEASE)
    assert other.exists()
    with pytest.raises(ConfigError, match="nothing is known"):
        withdraw(home, "uni", release=RELEASE)
    with pytest.raises(ConfigError, match="nothing is known"):
        withdraw(home, "*", release=RELEASE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rounds": (), "epsilon": None}, "nothing of this site's patients left"),
        ({"noised": False, "epsilon": None}, "without differential privacy"),
    ],
)
def test_words_promise_no_more_than_was_kept(changes: dict[str, Any], words: str) -> None:
    values: dict[str, Any] = {"study": "s", "since": "2026-11-26T10:00:00+00:00", "rounds": (3,), "unsent": (),
                              "epsilon": 1.0, "total": 1.0, "delta": 1e-5, "noised": True, "removed": 0}  # fmt: skip
    text = "\n".join(words_of(Withdrawal(**values | changes), site="north"))
    assert words in text and "Covered      those" not in text


def test_ranges() -> None:
    assert [_ranges(numbers) for numbers in ((1,), (1, 2), (1, 3, 4, 9))] == ["1", "1-2", "1, 3-4, 9"]

"""Consent is the site's: what is approved is what was read, and it is taken back whatever the courier does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.deploy.home import Party, SiteHome
from client.deploy.join import TRAINER, TrainerSide
from client.deploy.overview import _why_not
from client.deploy.policy_file import Policy
from client.trainer.config import SiteConfig
from client.trainer.consent import approve, decline, proposals, refused
from shared_model.certificates import Role
from shared_model.private_files import make_private_folder, write_private
from shared_model.protocol import Protocol
from shared_model.signed_protocol import SignedProtocol
from tests.conftest import SmallStudy
from tests.signed import COORDINATOR, KEY, NAME

RELEASE = "0.1.0"


@pytest.fixture
def study(small_study: Callable[..., SmallStudy]) -> SmallStudy:
    return small_study()


@pytest.fixture
def home(tmp_path: Path, study: SmallStudy) -> SiteHome:
    config = SiteConfig.read(study.files["site-01"])
    made = SiteHome.create(tmp_path / "home", cohort=config.cohort, role=Role.SITE)
    write_private(made.courier / "coordinator.json", COORDINATOR.model_dump_json().encode())
    write_private(made.trainer / "party.json", Party(site="site-01", role=Role.SITE).model_dump_json().encode())
    write_private(made.trainer / "coordinator.json", COORDINATOR.model_dump_json().encode())
    return made


def offer(home: SiteHome, protocol: Protocol) -> SignedProtocol:
    """As presence puts it into the inbox."""
    make_private_folder(home.inbox)
    signed = SignedProtocol.sign(protocol, name=NAME, key=KEY)
    write_private(home.inbox / f"{protocol.study}-{signed.sha256[:16]}.json", signed.to_json().encode())
    return signed


def another(protocol: Protocol) -> Protocol:
    return Protocol.create(protocol.model_dump(mode="json") | {"seed": protocol.seed + 1})


@pytest.fixture
def approving(monkeypatch: pytest.MonkeyPatch) -> None:
    """`trust` asks the courier's files for the name, which are another test's matter."""
    monkeypatch.setattr(SiteHome, "trust", lambda *_: None)


def test_of_two_protocols_under_one_name_neither_can_be_approved(home: SiteHome, study: SmallStudy) -> None:
    """Or one would be read and another be approved."""
    first = offer(home, study.protocol)
    assert proposals(home, release=RELEASE) == {study.protocol.study: first}
    offer(home, another(study.protocol))
    assert proposals(home, release=RELEASE) == {}
    words = refused(home, release=RELEASE)
    assert len(words) == 2 and all("signed 2 protocols" in why for why in words.values())


@pytest.mark.usefixtures("approving")
def test_what_was_approved_stays_the_one_that_is_shown(home: SiteHome, study: SmallStudy) -> None:
    first = offer(home, study.protocol)
    approve(home, first)
    second = offer(home, another(study.protocol))
    assert proposals(home, release=RELEASE) == {study.protocol.study: first}
    assert list(refused(home, release=RELEASE)) == [f"{study.protocol.study}-{second.sha256[:16]}.json"]


@pytest.mark.usefixtures("approving")
@pytest.mark.parametrize("gone", ["nothing", "proposal", "coordinator"])
def test_an_approval_is_taken_back_whatever_the_courier_has(home: SiteHome, study: SmallStudy, gone: str) -> None:
    signed = offer(home, study.protocol)
    approve(home, signed)
    if gone == "proposal":
        for path in home.inbox.iterdir():
            path.unlink()
    elif gone == "coordinator":
        other = COORDINATOR.model_copy(update={"name": "somebody"})
        write_private(home.courier / "coordinator.json", other.model_dump_json().encode())
    neighbour = home.protocols / f"{study.protocol.study}-x-{signed.sha256[:16]}.json"
    write_private(neighbour, b"{}")
    assert decline(home, study.protocol.study, release=RELEASE)
    assert list(home.protocols.iterdir()) == [neighbour]
    assert not decline(home, "unheard-of", release=RELEASE)


class Told:
    """A supervisor that notes what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def add(self, service: Any) -> None:
        self.said.append(f"add {service.name}")

    def restart(self, name: str) -> None:
        self.said.append(f"restart {name}")

    def remove(self, name: str) -> None:
        self.said.append(f"remove {name}")


def test_a_stricter_policy_holds_for_the_trainer_that_runs(home: SiteHome) -> None:
    """`policy.yaml` says that it is read at every start: one by the supervisor after a crash is a start, too."""
    told = Told()
    side = TrainerSide(home, told)  # type: ignore[arg-type]
    side.step()
    side.step()
    assert told.said == [f"add {TRAINER}"]
    policy = Policy.read(home.policy_file).model_copy(update={"epsilon_limit": 1.0})
    write_private(home.policy_file, policy.to_yaml().encode())
    side.step()
    side.step()
    assert told.said == [f"add {TRAINER}", f"restart {TRAINER}"]
    assert SiteConfig.read(home.trainer / "trainer.json").epsilon_limit == 1.0
    os.utime(home.policy_file)  # touched, and the same
    side.step()
    assert len(told.said) == 2


def test_a_policy_that_cannot_be_read_ends_the_trainer_that_an_older_one_let_run(home: SiteHome) -> None:
    told = Told()
    side = TrainerSide(home, told)  # type: ignore[arg-type]
    side.step()
    (home.trainer / "logs" / "trainer.log").write_text("2026-01-01 INFO ready\n")
    good = home.policy_file.read_bytes()
    write_private(home.policy_file, b"no policy")
    for _ in range(3):
        side.step()
    assert told.said == [f"add {TRAINER}", f"remove {TRAINER}"]
    assert "no valid policy" in _why_not(home)
    write_private(home.policy_file, good)
    for _ in range(3):
        side.step()
    assert told.said == [f"add {TRAINER}", f"remove {TRAINER}", f"add {TRAINER}"]

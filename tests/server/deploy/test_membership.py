"""SuperLink's list of nodes follows the registry through crashes at any step, a lost database, and new keys."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client.deploy.identity import SiteIdentity
from server.deploy import membership, nodes
from server.deploy.home import CoordinatorFile, CoordinatorHome
from server.deploy.membership import RETRY_S, Membership
from server.deploy.nodes import Node, Nodes
from server.enrolment.registry import MemberState
from shared_model.certificates import Member, Role
from shared_model.errors import RoundError, StorageError
from shared_model.fingerprint import six_words
from tests.enrolled import Clock
from tests.fake_superlink import FakeLink, FakeSuperLink


class Killed(BaseException):
    """The daemon dies here."""


class Scene:
    """A coordinator, and SuperLink beside it; `daemon` is a new process of the daemon's, which knows the disk alone."""

    def __init__(self, folder: Path) -> None:
        settings = CoordinatorFile(name="hub", title="Hub", hosts=("localhost",), port=1, enrol_port=2, link_port=3)
        there = (folder / "hub").exists()
        self.folder, self.superlink = folder, FakeSuperLink()
        self.home = CoordinatorHome.open(folder / "hub") if there else CoordinatorHome.create(folder / "hub", settings)
        self.link, self.registry, self.clock = FakeLink(self.home, self.superlink), self.home.registry(), Clock(0.0)
        self.said: list[tuple[str, str]] = []
        self._keys = itertools.count()

    def enrol(self, site: str, role: Role = Role.SITE) -> None:
        """Enrolled under new keys."""
        with self.home.enrolment() as enrolment:
            invite = enrolment.invite(Member(site, role))
            place = self.folder / f"{site}-{next(self._keys)}"
            identity = SiteIdentity.begin(place, invite, host="localhost", port=1)
            request = identity.request()
            assert request is not None
            enrolment.answer(request)
            enrolment.confirm(site, identity.words(six_words))

    def copy(self, folder: Path) -> Scene:
        """The same once more, with a life of its own."""
        shutil.copytree(self.folder, folder)
        other = Scene(folder)
        other.superlink.nodes.update(self.superlink.nodes)
        return other

    def revoke(self, site: str) -> None:
        with self.home.enrolment() as enrolment:
            enrolment.revoke(site)

    def daemon(self) -> Membership:
        return Membership(self.home, self.link, self.registry, clock=self.clock,
                          report=lambda site, words: self.said.append((site, words)))  # fmt: skip

    def check(self, *sites: str) -> None:
        """Registry, record and SuperLink say the same, of exactly these sites."""
        confirmed = {m.member.site: m for m in self.registry.members() if m.state is MemberState.CONFIRMED}
        record = self.link.nodes.read()
        assert sorted(node.site for node in record.values()) == sorted(sites) == sorted(confirmed)
        for number, node in record.items():
            member = confirmed[node.site]
            assert self.superlink.live()[number] == member.node
            assert node == Node(site=node.site, role=member.member.role.value,
                                key=hashlib.sha256(member.node).hexdigest())  # fmt: skip
        assert set(self.superlink.live()) == set(record), "nobody else is let in"


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.registry.close()


def test_who_is_confirmed_is_let_in_once_and_who_is_revoked_is_shut_out(scene: Scene) -> None:
    scene.enrol("north")
    scene.enrol("judge", Role.EVALUATOR)
    daemon = scene.daemon()
    daemon.step()
    scene.check("judge", "north")
    calls = len(scene.superlink.calls)
    daemon.step()
    assert len(scene.superlink.calls) == calls, "SuperLink is not asked while nothing has changed"
    scene.revoke("north")
    daemon.step()
    scene.check("judge")
    assert scene.said == [("judge", "its node is let in"), ("north", "its node is let in"),
                          ("north", "its node is shut out")]  # fmt: skip


def test_a_pending_member_is_nobody(scene: Scene) -> None:
    with scene.home.enrolment() as enrolment:
        identity = SiteIdentity.begin(scene.folder / "north", enrolment.invite(Member("north", Role.SITE)),
                                      host="localhost", port=1)  # fmt: skip
        request = identity.request()
        assert request is not None
        enrolment.answer(request)
    scene.daemon().step()
    assert scene.superlink.live() == {} and scene.link.nodes.read() == {}


def test_keys_of_a_second_enrolment_take_the_place_of_the_first(scene: Scene) -> None:
    scene.enrol("north")
    daemon = scene.daemon()
    daemon.step()
    first = set(scene.superlink.live())
    scene.revoke("north")
    scene.enrol("north")  # the daemon sees both at once
    daemon.step()
    scene.check("north")
    assert not first & set(scene.superlink.live())


def test_a_superlink_that_lost_its_database_gets_every_node_again(scene: Scene) -> None:
    for site in ("north", "south"):
        scene.enrol(site)
    daemon = scene.daemon()
    daemon.step()
    before = set(scene.link.nodes.read())
    scene.superlink.nodes.clear()
    daemon.step()
    assert scene.superlink.live() == {}, "nobody has told it yet"
    daemon.check_again()
    daemon.step()
    scene.check("north", "south")
    assert not before & set(scene.link.nodes.read())


def test_a_record_that_is_gone_while_superlink_has_nodes_is_said_with_the_cure(scene: Scene) -> None:
    scene.enrol("north")
    daemon = scene.daemon()
    daemon.step()
    scene.link.nodes.path.unlink()
    daemon.check_again()
    with pytest.raises(StorageError, match="is gone") as told:
        daemon.step()
    assert "state.db" in told.value.remedy
    assert scene.superlink.live(), "nobody is shut out by guessing"
    scene.superlink.nodes.clear()  # as it says
    daemon.step()
    scene.check("north")


def kill_at(number: int, monkeypatch: pytest.MonkeyPatch, superlink: FakeSuperLink) -> Callable[[], int]:
    """From now on the `number`-th deed that lasts is the last: even numbers die before it, odd ones right after it.

    Returns how many deeds there were.
    """
    done = itertools.count()
    count = [0]

    def mortal(deed: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            count[0] = next(done) + 1
            if count[0] * 2 == number:
                raise Killed
            found = deed(*arguments, **options)
            if count[0] * 2 + 1 == number:
                raise Killed
            return found

        return run

    monkeypatch.setattr(membership, "write_private", mortal(membership.write_private))
    monkeypatch.setattr(membership, "remove_private", mortal(membership.remove_private))
    monkeypatch.setattr(nodes, "write_private", mortal(nodes.write_private))
    monkeypatch.setattr(superlink, "answer", mortal(superlink.answer))
    return lambda: count[0]


def test_a_daemon_killed_between_any_two_deeds_is_set_right_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is revoked, one has new keys, one is new: each deed on the disk and at SuperLink is where the daemon dies."""
    first = Scene(tmp_path / "first")
    for site in ("north", "south", "west"):
        first.enrol(site)
    first.daemon().step()
    first.revoke("north")
    first.revoke("south")
    first.enrol("south")
    first.enrol("east")
    first.registry.close()
    kills = 0
    for number in itertools.count(2):
        scene = first.copy(tmp_path / str(number))
        with monkeypatch.context() as patches:
            deeds = kill_at(number, patches, scene.superlink)
            with contextlib.suppress(Killed):
                scene.daemon().step()
                scene.registry.close()
                assert deeds() * 2 + 1 < number, "it was not killed although there was something to do"
                break
        kills += 1
        scene.daemon().step()
        scene.check("east", "south", "west")
        scene.registry.close()
    assert kills >= 20


def test_an_answer_that_was_lost_on_the_way_is_found_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.enrol("north")
    register = scene.link.register

    def lost(site: str, node: bytes) -> int:
        register(site, node)
        raise RoundError("SuperLink does not answer")

    monkeypatch.setattr(scene.link, "register", lost)
    scene.daemon().step()
    scene.check("north")


def test_a_superlink_that_is_away_is_an_error_and_all_is_right_once_it_is_back(scene: Scene) -> None:
    scene.enrol("north")
    daemon = scene.daemon()
    scene.superlink.silent = True
    with pytest.raises(RoundError, match="does not answer"):
        daemon.step()
    scene.superlink.silent = False
    daemon.step()
    scene.check("north")


def test_a_node_that_is_refused_keeps_nobody_else_out_is_said_once_and_tried_again(scene: Scene) -> None:
    for site in ("east", "north", "south"):
        scene.enrol(site)
    key = scene.registry.member("east").node
    scene.superlink.refused.add(key)
    daemon = scene.daemon()
    for _ in range(5):
        daemon.step()
    assert {node.site for node in scene.link.nodes.read().values()} == {"north", "south"}
    assert [words for site, words in scene.said if site == "east"] == [
        "SuperLink does not take its node: SuperLink refuses `flwr supernode`; found: Public key already in use."
    ]
    calls = len(scene.superlink.calls)
    daemon.step()
    assert len(scene.superlink.calls) == calls, "Flower's commands are not run again and again"
    scene.superlink.refused.clear()
    scene.clock.now += RETRY_S
    daemon.step()
    scene.check("east", "north", "south")


def test_a_node_that_somebody_registered_by_hand_is_nobodys(scene: Scene) -> None:
    scene.enrol("north")
    scene.daemon().step()
    scene.superlink.nodes[77] = (b"by hand", "registered")
    scene.enrol("south")
    scene.daemon().step()
    record = scene.link.nodes.read()
    assert 77 not in record and sorted(node.site for node in record.values()) == ["north", "south"]


def test_a_marker_that_was_left_behind_gives_no_stranger_a_name(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the record was written and before the marker was taken away; then a node is registered by hand."""
    scene.enrol("north")
    with monkeypatch.context() as patches:
        def killed(path: Path) -> None:
            raise Killed

        patches.setattr(membership, "remove_private", killed)
        with contextlib.suppress(Killed):
            scene.daemon().step()
    scene.superlink.nodes[77] = (b"by hand", "registered")
    scene.daemon().step()
    assert 77 not in scene.link.nodes.read()


@pytest.mark.parametrize("text", [
    b"", b"{", b"[]", b'{"1": {}}', b'{"one": {"site": "a", "role": "site", "key": "k"}}', b'{"1": null}', b"null",
])  # fmt: skip
def test_a_damaged_record_of_nodes_is_said(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "nodes.json"
    path.touch(mode=0o600)
    path.write_bytes(text)
    with pytest.raises(StorageError, match="damaged"):
        Nodes(path).read()


def test_the_record_holds_numbers_that_json_does_not(tmp_path: Path) -> None:
    found = {2**64 - 1: Node(site="a", role="site", key="k"), 3: Node(site="b", role="evaluator", key="l")}
    Nodes(tmp_path / "nodes.json").write(found)
    assert Nodes(tmp_path / "nodes.json").read() == found

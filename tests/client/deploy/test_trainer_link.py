"""What the courier asks of the trainer, whatever the trainer answers; and how Flower's node is told of both."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args

from client.deploy import trainer_link
from client.deploy.home import SiteHome
from client.deploy.identity import SiteIdentity
from client.deploy.join import SUPERNODE, prepare_courier, supernode, trainer_environment
from client.deploy.trainer_link import TrainerLink
from shared_model.certificates import Member, Role
from shared_model.control import TrainerState
from shared_model.errors import TrainerError
from shared_model.flower_gate import BUNDLES, bundle_sha256
from shared_model.messages import DescribeReply, ErrorReply, Frame, encode
from shared_model.signing import SigningKey
from tests.conftest import write_cohort
from tests.enrolled import HANG_S, Coordinator

SHA = "a" * 64
DESCRIBED = encode(Frame(DescribeReply(site="north", role="site", release="0.1.0", device="cpu", protocols=(SHA,))))


class Answers:
    """Stands for the socket."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer: bytes | Exception = DESCRIBED
        self.up = True
        self.asked = 0
        self.may = threading.Event()
        self.may.set()
        monkeypatch.setattr(trainer_link, "listens", lambda socket: self.up)
        monkeypatch.setattr(trainer_link, "call", self.call)

    def call(self, socket: Path, site: str, data: bytes, timeout: float) -> bytes:
        self.asked += 1
        assert self.may.wait(HANG_S)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def until(true: Callable[[], bool]) -> None:
    """Wait for what another thread brings about."""
    deadline = time.monotonic() + HANG_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def asking() -> Iterator[Callable[[], list[threading.Thread]]]:
    """The links' threads that ask. A test ends after its own: a late one would ask the next test's trainer."""

    def those() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "trainer"]

    yield those
    for thread in those():
        thread.join(HANG_S)
    assert not those()


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, asking: object) -> Iterator[Answers]:
    found = Answers(monkeypatch)
    yield found
    found.may.set()


@pytest.fixture
def link() -> TrainerLink:
    return TrainerLink(Path("/nowhere.sock"), "north")


def test_a_trainer_that_serves_is_up_with_what_it_approved(answers: Answers, link: TrainerLink) -> None:
    assert link.state() == TrainerState(up=True, device="cpu")
    assert link.decided() == ((SHA,), ())


@pytest.mark.parametrize("answer", [
    b"", b"no message", TrainerError("it is just being started"), encode(Frame(ErrorReply(code=1, reason="no"))),
], ids=["nothing", "nonsense", "away", "refused"])  # fmt: skip
def test_whatever_else_comes_the_trainer_is_down_and_the_heartbeat_goes_on(
    answers: Answers, link: TrainerLink, answer: bytes | Exception
) -> None:
    answers.answer = answer
    assert link.state() == TrainerState(up=False)
    with pytest.raises(TrainerError):
        link.audit(0, None)


def test_one_that_hangs_is_told_of_and_the_heartbeat_does_not_wait_for_it(
    tmp_path: Path, asking: Callable[[], list[threading.Thread]]
) -> None:
    """A socket of a real kernel, whose owner accepts nobody, as of a process that was stopped."""
    path = tmp_path / "trainer.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as hangs:
        hangs.bind(str(path))
        hangs.listen(8)
        link = TrainerLink(path, "north", beat_s=0.0, call_s=HANG_S, first_s=0.0)
        for _ in range(3):
            assert link.state() == TrainerState(up=False)
            with pytest.raises(TrainerError, match="has not answered yet"):
                link.audit(0, None)
        assert len(asking()) == 1, "it is asked once"


def test_one_that_is_slow_stays_up_until_its_time_is_over(answers: Answers) -> None:
    link = TrainerLink(Path("/nowhere.sock"), "north", beat_s=0.0)
    until(lambda: link.state().up)
    answers.may.clear()
    asked = answers.asked + 1
    until(lambda: link.state().up and answers.asked == asked)
    assert link.state().up and link.state().up and answers.asked == asked, "it is busy, or hangs"
    answers.answer = TrainerError("trainer of north did not answer in time")
    answers.may.set()
    until(lambda: not link.state().up)


def test_the_first_heartbeat_waits_for_one_that_is_slow(answers: Answers) -> None:
    """A courier that begins beside a busy trainer does not tell the coordinator that it is down."""
    link = TrainerLink(Path("/nowhere.sock"), "north", beat_s=0.0, call_s=HANG_S)
    answers.may.clear()
    found: list[TrainerState] = []
    beat = threading.Thread(target=lambda: found.append(link.state()))
    beat.start()
    until(lambda: answers.asked == 1)
    answers.may.set()
    beat.join(HANG_S)
    assert found == [TrainerState(up=True, device="cpu")]


def test_one_of_which_nothing_is_known_yet_keeps_its_published_key(answers: Answers, tmp_path: Path) -> None:
    """Other sites compare it: it must not be missing because the trainer is slow."""
    key = SigningKey.generate().public.hex
    (tmp_path / "trainer.pub").write_text(key)
    answers.may.clear()
    link = TrainerLink(Path("/nowhere.sock"), "north", key=tmp_path / "trainer.pub", beat_s=0.0, first_s=0.0)
    assert link.state() == TrainerState(up=False, key=key)


def test_who_does_not_listen_is_not_asked(answers: Answers, link: TrainerLink) -> None:
    answers.up, answers.answer = False, AssertionError("asked")
    assert link.state() == TrainerState(up=False) and answers.asked == 0


def test_an_answer_to_another_question_is_no_statement(answers: Answers, link: TrainerLink) -> None:
    with pytest.raises(TrainerError, match=r"another question.*described"):
        link.audit(0, None)
    answers.answer = encode(Frame(ErrorReply(code=71, reason="the log was rewritten")))
    with pytest.raises(TrainerError, match="the log was rewritten"):
        link.audit(0, None)


# --- SuperNode ---


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    write_cohort(tmp_path / "cohort", site="north", patients=4, seed=1)
    made = SiteHome.create(tmp_path / "a site's home", cohort=tmp_path / "cohort", role=Role.SITE)
    coordinator = Coordinator(tmp_path / "hub")
    invitation = coordinator.enrolment.invite(Member("north", Role.SITE))
    SiteIdentity.begin(made.folder / "identity", invitation, host="localhost", port=1)
    coordinator.registry.close()
    prepare_courier(made)
    return made


def test_the_node_reaches_the_tunnel_alone_and_finds_the_trainers_socket(home: SiteHome) -> None:
    service = supernode(home, tunnel_port=4711)
    line = list(service.command)
    assert line[line.index("--superlink") + 1] == "127.0.0.1:4711" and "--insecure" not in line
    assert line[line.index("--host") + 1] == "127.0.0.1"
    told = parse_config_args([line[line.index("--node-config") + 1]])
    assert set(told.values()) == {str(home.socket), "north"}, "a path with a space and a quote arrives as it is"


def test_the_node_runs_our_loader_first_takes_one_bundle_and_knows_no_secret(
    home: SiteHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MAMMOFED_PROXY", "HTTPS_PROXY", "PYTHONPATH", "AWS_SECRET_ACCESS_KEY", "LD_PRELOAD"):
        monkeypatch.setenv(name, "secret")
    service = supernode(home, tunnel_port=1)
    assert "secret" not in str(dict(service.environment)) + str(trainer_environment())
    first = Path(service.environment["PATH"].split(os.pathsep)[0])
    assert first == home.courier.resolve() / "bin" and os.access(first / "flwr-clientapp", os.X_OK)
    assert Path(service.environment[BUNDLES]).read_text().split() == [bundle_sha256()]
    assert service.name == SUPERNODE and list(service.folder.iterdir()) == []

"""Studies on a coordinator's disk: what is proposed, what is wanted, and how the reconciler brings it about.

SuperLink is a stand-in here, so that each of its answers can be had at will; the real one is in `tests/end_to_end`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from server.deploy.board import StudyBoard
from server.deploy.explore import exploration_of
from server.deploy.home import CoordinatorFile, CoordinatorHome
from server.deploy.link import RunStatus
from server.deploy.status import show, status_of
from server.deploy.studies import (
    LOOK_S,
    MAX_FAILED,
    STARTING_S,
    Reconciler,
    StudyFolder,
    Wish,
    find_study,
    propose,
    start,
    stop,
    studies,
)  # fmt: skip
from server.rounds import follow
from server.rounds.follow import EventReader
from server.rounds.journal import Journal
from server.rounds.states import StudyStep
from shared_model.certificates import Member, Role
from shared_model.control import plain
from shared_model.enrolment import EnrolReply, decode
from shared_model.errors import ConfigError, ProtocolError, WeightsError
from shared_model.messages import weights_sha256
from shared_model.private_files import make_private_folder, write_private
from shared_model.proposal import read_protocol
from shared_model.protocol import Protocol
from shared_model.signed_protocol import SignedProtocol
from tests.conftest import SmallStudy as Study
from tests.enrolled import Clock

from client.deploy.identity import SiteIdentity  # isort: skip
from shared_model.fingerprint import six_words  # isort: skip


@pytest.fixture
def study_terms(small_study: Callable[..., Study]) -> Study:
    """A study whose protocol names the weights that are there."""
    study = small_study()
    values = study.protocol.model_dump(mode="json")
    values["initial_weights"]["sha256"] = weights_sha256(study.arrays)
    return replace(study, protocol=Protocol.create(values))


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    settings = CoordinatorFile(name="hub", title="Hub", hosts=("localhost",), port=1, enrol_port=2, link_port=3)
    return CoordinatorHome.create(tmp_path / "hub", settings)


def enrol(home: CoordinatorHome, site: str, role: Role = Role.SITE) -> None:
    with home.enrolment() as enrolment:
        invite = enrolment.invite(Member(site, role))
        identity = SiteIdentity.begin(home.folder.parent / site, invite, host="localhost", port=1)
        request = identity.request()
        assert request is not None and decode(enrolment.answer(request), EnrolReply).status == "pending"
        enrolment.confirm(site, identity.words(six_words))


@pytest.fixture
def members(home: CoordinatorHome, study_terms: Study) -> CoordinatorHome:
    for site in study_terms.protocol.federation.sites:
        enrol(home, site.name)
    enrol(home, "evaluator", Role.EVALUATOR)
    return home


@pytest.fixture
def weights(study_terms: Study, tmp_path: Path) -> Path:
    from safetensors.numpy import save_file

    path = tmp_path / "initial.safetensors"
    save_file(dict(study_terms.arrays), path)
    return path


class Link:
    """Says of runs what it is told to."""

    def __init__(self) -> None:
        self.submitted: list[Path] = []
        self.stopped: list[int] = []
        self.status = RunStatus(status="running", details="")

    def submit(self, study: Path, *, patience_s: float) -> int:
        self.submitted.append(study)
        self.status = RunStatus(status="running", details="")
        return 10**18 + len(self.submitted)  # larger than a JSON number may be

    def run_status(self, run_id: int) -> RunStatus:
        assert run_id == 10**18 + len(self.submitted)
        return self.status

    def stop(self, run_id: int) -> None:
        self.stopped.append(run_id)
        self.status = RunStatus(status="finished:stopped", details="")


class Scene:
    def __init__(self, home: CoordinatorHome, study: StudyFolder) -> None:
        self.home, self.study, self.link, self.clock = home, study, Link(), Clock()
        self.said: list[str] = []
        self.reconciler = Reconciler(
            home, self.link, patience_s=1.0, report=lambda name, words: self.said.append(words),  # type: ignore[arg-type]
            clock=self.clock,
        )  # fmt: skip

    def step(self, seconds: float = LOOK_S) -> None:
        self.clock.now += seconds
        self.reconciler.step()

    def lose_run(self, details: str = "No heartbeat") -> None:
        self.link.status = RunStatus(status="finished:failed", details=details)

    def journal(self, *steps: StudyStep) -> None:
        """What a round loop would have written, then died or ended."""
        with Journal(self.study.journal, lambda _: None) as journal:
            for step in steps:
                with journal.study_step(step):
                    pass


@pytest.fixture
def scene(members: CoordinatorHome, study_terms: Study, weights: Path) -> Scene:
    study = propose(members, study_terms.protocol, weights)
    start(members, study.name, again=False)
    return Scene(members, study)


# --- proposing ---


def test_what_is_proposed_is_signed_and_lies_with_its_weights(
    members: CoordinatorHome, study_terms: Study, weights: Path
) -> None:
    study = propose(members, study_terms.protocol, weights)
    signed = SignedProtocol.read(study.path / "signed.json", coordinator=members.coordinator,
                                 release=study_terms.protocol.release)  # fmt: skip
    assert signed.protocol == study_terms.protocol
    assert [s.name for s in studies(members)] == [study_terms.protocol.study]
    assert study.wanted().wish is Wish.PROPOSED
    propose(members, study_terms.protocol, weights)  # the same again is fine


def test_a_proposal_never_changes(members: CoordinatorHome, study_terms: Study, weights: Path) -> None:
    propose(members, study_terms.protocol, weights)
    other = Protocol.create({**study_terms.protocol.model_dump(mode="json"), "seed": 77})
    with pytest.raises(ProtocolError, match="with another protocol"):
        propose(members, other, weights)


def test_a_site_that_is_not_enrolled_or_a_missing_evaluator_is_named(
    home: CoordinatorHome, study_terms: Study, weights: Path
) -> None:
    with pytest.raises(ProtocolError, match="not enrolled; found: site-01"):
        propose(home, study_terms.protocol, weights)
    for site in study_terms.protocol.federation.sites:
        enrol(home, site.name)
    with pytest.raises(ProtocolError, match="nobody would evaluate"):
        propose(home, study_terms.protocol, weights)
    enrol(home, "evaluator")  # as a hospital, which evaluates nothing
    with pytest.raises(ProtocolError, match="nobody would evaluate"):
        propose(home, study_terms.protocol, weights)


def test_other_weights_are_refused(members: CoordinatorHome, study_terms: Study, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    arrays = {name: array + 1 for name, array in study_terms.arrays.items()}
    save_file(arrays, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="other weights than the protocol names"):
        propose(members, study_terms.protocol, tmp_path / "other.safetensors")
    assert studies(members) == []


def test_a_protocol_is_read_from_yaml_and_from_json(study_terms: Study, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(study_terms.protocol.model_dump(mode="json")))
    (tmp_path / "p.json").write_text(study_terms.protocol.to_json())
    assert read_protocol(tmp_path / "p.yaml") == read_protocol(tmp_path / "p.json") == study_terms.protocol


# --- what is wanted ---


def test_start_stop_and_resume_want_what_they_say_and_refuse_what_makes_no_sense(
    members: CoordinatorHome, study_terms: Study, weights: Path
) -> None:
    name = propose(members, study_terms.protocol, weights).name
    with pytest.raises(ConfigError, match="not begun before"):
        start(members, name, again=True)
    with pytest.raises(ConfigError, match="does not run"):
        stop(members, name)
    study = start(members, name, again=False)
    with pytest.raises(ConfigError, match="is running already"):
        start(members, name, again=False)
    stop(members, name)
    assert study.wanted().wish is Wish.STOPPED
    with pytest.raises(ConfigError, match="begun before"):
        start(members, name, again=False)
    assert start(members, name, again=True).wanted().wish is Wish.RUNNING
    with pytest.raises(ConfigError, match="there is no study other"):
        find_study(members, "other")


def test_stop_leaves_the_round_that_is_running_to_its_end(scene: Scene) -> None:
    with leased(scene.study):
        stop(scene.home, scene.study.name)
    assert (scene.study.path / "stop").exists() and scene.study.wanted().wish is Wish.RUNNING


def test_commands_are_on_record(scene: Scene) -> None:
    with scene.home.audit_log() as log:
        kinds = [entry.kind for entry in log.entries()]
    assert kinds[-2:] == ["study_proposed", "study_started"]


def test_a_command_while_the_daemon_holds_the_log_is_on_record_after_it(home: CoordinatorHome) -> None:
    with home.audit_log() as log:
        home.record("invited", site="north")
        assert "invited" not in [entry.kind for entry in log.entries()]
        home.drain(log)
        assert [entry.fields["site"] for entry in log.entries() if entry.kind == "invited"] == ["north"]
    assert not list((home.folder / "audit-spool").iterdir())


# --- the reconciler ---


class leased:
    """Somebody works on a study."""

    def __init__(self, study: StudyFolder) -> None:
        self._path = study.path / "journal.lock"

    def __enter__(self) -> None:
        self._stream = self._path.open("w")
        fcntl.flock(self._stream, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def test_a_wanted_study_is_submitted_once_and_left_alone_while_somebody_works_on_it(scene: Scene) -> None:
    scene.step()
    assert scene.link.submitted == [scene.study.path]
    with leased(scene.study):
        scene.lose_run()  # whatever Flower says: there is the lease
        for _ in range(5):
            scene.step()
    assert len(scene.link.submitted) == 1


def test_a_lost_run_is_followed_by_a_new_one(scene: Scene) -> None:
    scene.step()
    scene.journal(StudyStep.START)
    scene.lose_run()
    for _ in range(3):
        scene.step()
    assert len(scene.link.submitted) == 2 and scene.study.wanted().wish is Wish.RUNNING
    assert any("was lost (No heartbeat)" in words for words in scene.said)


def test_a_run_whose_process_died_is_given_up_before_flower_knows(scene: Scene) -> None:
    scene.step()
    scene.journal(StudyStep.START)  # it has begun, and nobody holds the lease
    scene.step()
    assert scene.link.stopped and any("left by its process" in words for words in scene.said)


def test_a_run_that_begins_while_it_is_looked_at_is_not_taken_for_a_dead_one(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.step()
    lease = leased(scene.study)
    running = scene.link.run_status

    def begins(run_id: int) -> RunStatus:
        lease.__enter__()
        scene.journal(StudyStep.START)
        return running(run_id)

    monkeypatch.setattr(scene.link, "run_status", begins)
    scene.step()
    lease.__exit__()
    assert scene.link.stopped == []


def test_a_run_that_never_begins_is_given_up(scene: Scene) -> None:
    scene.step()
    scene.step(STARTING_S + 1)
    assert scene.link.stopped and any("did not begin" in words for words in scene.said)
    scene.step(60.0)
    assert len(scene.link.submitted) == 2


def test_runs_that_bring_it_no_further_end_in_a_stop_with_the_reason(scene: Scene) -> None:
    for _ in range(40):
        scene.step(60.0)
        scene.lose_run("the disk is full")
    assert len(scene.link.submitted) == MAX_FAILED
    assert scene.study.wanted().wish is Wish.STOPPED
    assert "brought it no further: the disk is full" in scene.study.wanted().reason


@pytest.mark.parametrize(("step", "state"), [(StudyStep.GIVE_UP, "INCOMPLETE"), (StudyStep.STOP, "STOPPED")])
def test_a_study_that_gave_up_or_was_stopped_waits_for_a_person(scene: Scene, step: StudyStep, state: str) -> None:
    scene.step()
    scene.journal(StudyStep.START, step)
    scene.lose_run()
    for _ in range(4):
        scene.step(60.0)
    assert len(scene.link.submitted) == 1
    assert scene.study.wanted().wish is Wish.STOPPED and scene.study.wanted().reason.startswith(state)


def test_a_resumed_study_is_not_taken_for_the_end_that_it_came_from(scene: Scene) -> None:
    scene.step()
    scene.journal(StudyStep.START, StudyStep.GIVE_UP)
    scene.lose_run()
    scene.step()
    start(scene.home, scene.study.name, again=True)
    scene.step()
    assert len(scene.link.submitted) == 2 and scene.study.wanted().wish is Wish.RUNNING
    scene.lose_run("no heartbeat")  # before it journalled anything: the old INCOMPLETE is not this run's
    scene.step(60.0)
    assert len(scene.link.submitted) == 3


def test_a_damaged_wish_is_said_and_nothing_is_submitted(scene: Scene) -> None:
    from shared_model.errors import StorageError

    write_private(scene.study.path / "wanted.json", b"{")
    with pytest.raises(StorageError, match="damaged"):
        scene.step()
    assert scene.link.submitted == []


def test_a_damaged_study_does_not_keep_back_the_others(scene: Scene) -> None:
    from shared_model.errors import StorageError

    other = StudyFolder(scene.home.study("a-damaged-one"))
    make_private_folder(other.path)
    write_private(other.path / "wanted.json", b"{")
    with pytest.raises(StorageError, match="damaged"):
        scene.step()
    assert scene.link.submitted == [scene.study.path]
    offered = [p.study for p in StudyBoard(scene.home).proposals(Member("evaluator", Role.EVALUATOR))]
    assert offered == [scene.study.name]
    shown = {study["study"]: study["state"] for study in status_of(scene.home)["studies"]}
    assert shown[other.name] == "damaged" and len(shown) == 2


def test_a_journal_that_nobody_writes_is_not_opened_again_and_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each site that watches asks for events every second, through months in which nothing happens."""
    scene.journal(StudyStep.START)
    for path in scene.study.path.glob("journal.sqlite*"):
        os.utime(path, (1e9, 1e9))  # what is written later has another time, however coarse the file system's are
    now = Clock(0.0)
    reader, opened, read = EventReader(now), list[int](), follow.read_events
    monkeypatch.setattr(follow, "read_events", lambda *a, **k: opened.append(1) or read(*a, **k))
    monkeypatch.setattr(follow, "SETTLED_NS", 0)  # as if it were some seconds later
    first = reader.read(scene.study.journal, after=0)
    last = first[-1][0] if first else 0
    for _ in range(5):
        assert reader.read(scene.study.journal, after=last) == []
    assert len(opened) <= 3, "reading leaves SQLite's own files behind, once"
    before = len(opened)
    assert reader.read(scene.study.journal, after=last - 1) == first[-1:], "who has seen less is told"
    scene.journal(StudyStep.STOP)
    assert [number for number, _ in reader.read(scene.study.journal, after=last)] or len(opened) > before
    now.now += follow.LOOK_AGAIN_S
    before = len(opened)
    reader.read(scene.study.journal, after=10**6)
    assert len(opened) == before + 1


def test_a_report_that_cannot_be_written_does_not_keep_a_study_from_its_end(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(_: Path) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("server.deploy.studies.write_report", breaks)
    scene.step()
    scene.journal(StudyStep.START, StudyStep.STOP)
    scene.lose_run()
    scene.step()
    assert scene.study.wanted().wish is Wish.STOPPED and any("report" in words for words in scene.said)


def test_a_stop_reaches_a_run_that_is_on_its_way(scene: Scene) -> None:
    """Submitted, and not begun: nobody holds the lease. What was asked must still hold when the run begins."""
    scene.step()
    assert not scene.study.busy()
    stop(scene.home, scene.study.name)
    assert (scene.study.path / "stop").exists() and scene.study.wanted().wish is Wish.STOPPED
    start(scene.home, scene.study.name, again=True)
    assert not (scene.study.path / "stop").exists()


@pytest.mark.parametrize("words", ["[/b]", "[bold red]all is well[/bold red] [/]", "two\nlines \x1b[2J"])
def test_what_a_site_says_of_itself_is_no_markup_at_the_coordinator(
    scene: Scene, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`[/b]` as its device's name would end `server status` with an error."""
    status = status_of(scene.home)
    for member in status["members"]:
        member |= {"trainer": plain(words), "words": words}
    for study in status["studies"]:
        study["reason"] = words
    show(status, as_json=False)
    assert "\x1b[2J" not in capsys.readouterr().out


def test_an_exploration_has_no_round_to_count(
    home: CoordinatorHome, study_terms: Study, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was shown as "0 of 1" after its end."""
    three = [{"name": f"site-0{n}", "patients": 30, "weight": 1.0} for n in (1, 2, 3)]
    terms = study_terms.protocol.model_dump(mode="json")
    terms["federation"] |= {"sites": three, "sites_per_round": 3}
    for site in three:
        enrol(home, site["name"])
    enrol(home, "evaluator", Role.EVALUATOR)
    propose(home, exploration_of(Protocol.create(terms)), weights)
    (study,) = (status := status_of(home))["studies"]
    assert study["exploration"] is True
    show(status, as_json=False)
    shown = capsys.readouterr().out
    assert "it counts" in shown and "0 of" not in shown


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A report of a study without rounds is another test's matter."""
    monkeypatch.setattr("server.deploy.studies.write_report", lambda path: None)
    yield

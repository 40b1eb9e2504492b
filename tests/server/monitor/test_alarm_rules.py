"""The file of alarms: defaults, what a coordinator changes, and what is refused; the keeper that reads it again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from server.monitor.alarms import Machine
from server.monitor.keeper import Keeper
from server.monitor.notify import Notifier, Told
from server.monitor.rules import MonitorFile
from server.rounds.journal import Journal
from server.rounds.states import StudyStep
from shared_model.errors import ConfigError
from shared_model.protocol import Protocol
from tests.handmade_run import protocol_values


def read(folder: Path, text: str) -> MonitorFile:
    (folder / "monitor.yaml").write_text(text)
    return MonitorFile.read(folder / "monitor.yaml")


def test_without_a_file_of_its_own_the_defaults_stand(tmp_path: Path) -> None:
    file = MonitorFile.read(tmp_path / "monitor.yaml")
    assert file == MonitorFile.read() and file.send.webhook is None and file.send.command is None
    assert file.rules.epsilon_near_budget.share == 0.8
    assert read(tmp_path, "") == file and read(tmp_path, "# nothing") == file


def test_a_file_of_its_own_names_only_what_differs(tmp_path: Path) -> None:
    file = read(tmp_path, "rules: {disk_low: {free_gb: 20}, clock_skew: {enabled: false}}\n"
                          "send: {command: {argv: [/bin/true, -x]}}\n")  # fmt: skip
    assert (file.rules.disk_low.free_gb, file.rules.disk_low.severity) == (20.0, "error")
    assert not file.rules.clock_skew.enabled and file.send.repeat_h == MonitorFile.read().send.repeat_h
    assert file.send.command is not None and file.send.command.argv == ("/bin/true", "-x")


@pytest.mark.parametrize(("text", "words"), [
    ("rules: {disk_lo: {free_gb: 1}}", "rules.disk_lo"), ("rules: {disk_low: {free_gb: -1}}", "rules.disk_low.free_gb"),
    ("rules: {disk_low: {severity: loud}}", "rules.disk_low.severity"), ("- a", "no mapping"), ("a: [", "no YAML"),
    ("send: {webhook: {url: 'ftp://x'}}", "https"), ("send: {command: {argv: [page]}}", "absolute path"),
    ("send: {webhook: {url: 'http://evil'}}", "https"), ("send: {command: {argv: []}}", "send.command.argv"),
    ("send: {command: {argv: '/bin/page me'}}", "send.command.argv"),
    ("send: {command: {argv: [/bin/x], shell: true}}", "send.command.shell"),
    ("rules: {auc_falling: {drop: .nan}}", "rules.auc_falling.drop"), ("rules: 5", "rules"),
    ("a: &x 1\nb: *x", "alias"),
    ("send: {log: true, log: false}", "stands twice"), ("x: " + "y" * 70_000, "too long"),
])  # fmt: skip
def test_a_wrong_file_is_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read(tmp_path, text)


@pytest.mark.parametrize("url", ["https://alerts.example/hook", "http://127.0.0.1:9/x", "http://[::1]:9",
                                 "http://localhost"])  # fmt: skip
def test_a_webhook_is_encrypted_or_on_this_machine(tmp_path: Path, url: str) -> None:
    file = read(tmp_path, f"send: {{webhook: {{url: '{url}'}}}}")
    assert file.send.webhook is not None and file.send.webhook.url == url


# --- the keeper ---


class Ear:
    """A channel that remembers."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, str]] = []

    def __call__(self, told: Told) -> None:
        self.told.append((told.what, told.study, told.alarm.rule))

    def notifier(self, file: MonitorFile) -> Notifier:
        return Notifier(file.send.model_copy(update={"hold_s": 0.0}), channels={"ear": self})


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study that somebody began and left: its process is gone. How full this machine's disk is, is not asked."""
    monkeypatch.setattr("server.monitor.keeper.machine_of", lambda folder: Machine())
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "protocol.json").write_text(Protocol.create(protocol_values()).to_json())
    step(folder, StudyStep.START)
    return folder


def step(run_dir: Path, *steps: StudyStep) -> None:
    with Journal(run_dir / "journal.sqlite", lambda _: None) as journal:
        for each in steps:
            with journal.study_step(each):
                pass


def keeper(ear: Ear, run_dir: Path, **options: Any) -> Keeper:
    return Keeper(lambda: [run_dir] if run_dir.exists() else [], notifier=ear.notifier, **options)


def test_it_tells_what_begins_once_and_what_is_over(run_dir: Path) -> None:
    ear = Ear()
    watch = keeper(ear, run_dir)
    for _ in range(3):
        watch.step()
    assert ear.told == [("begins", "quick", "study_failed")]
    step(run_dir, StudyStep.CHOOSE, StudyStep.TEST, StudyStep.COMPLETE)
    for _ in range(2):
        watch.step()
    assert ear.told[1:] == [("over", "quick", "study_failed")]


def test_its_last_look_comes_after_the_study(run_dir: Path) -> None:
    ear = Ear()
    with keeper(ear, run_dir, step_s=3600.0):
        step(run_dir, StudyStep.GIVE_UP)
    assert ear.told == [("begins", "quick", "study_failed")]


def test_rules_are_read_again_and_a_damaged_file_changes_nothing(
    run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own, ear = tmp_path / "monitor.yaml", Ear()
    watch = keeper(ear, run_dir, own=own)
    watch.step()
    own.write_text("rules: [")
    with caplog.at_level(logging.ERROR):
        watch.step()
        watch.step()
    assert sum("rules from before go on" in record.message for record in caplog.records) == 1
    assert len(ear.told) == 1
    own.write_text("rules: {study_failed: {severity: error, enabled: false}}")
    watch.step()
    assert ear.told[1:] == [("over", "quick", "study_failed")]


def test_a_file_that_is_wrong_at_the_start_is_refused(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "monitor.yaml").write_text("rules: [")
    with pytest.raises(ConfigError):
        keeper(Ear(), run_dir, own=tmp_path / "monitor.yaml")


def test_a_study_that_goes_away_takes_its_alarms_with_it(run_dir: Path) -> None:
    ear = Ear()
    watch = keeper(ear, run_dir)
    watch.step()
    run_dir.rename(run_dir.with_name("archived"))
    watch.step()
    assert ear.told[-1] == ("over", "quick", "study_failed")


def test_an_error_of_the_watch_is_said_once_and_it_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> list[Path]:
        raise RuntimeError("folders")

    with caplog.at_level(logging.ERROR), Keeper(broken, step_s=0.001) as watch:
        while not watch._fault:
            pass
    assert sum("the watch for alarms" in record.message for record in caplog.records) == 1

"""The engine `deployment` without its processes: whom it makes of a run directory, and what it says of an end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from server.deploy.studies import StudyFolder, Wanted, Wish
from server.rounds.journal import Journal
from server.rounds.states import StudyStep
from shared_model.certificates import Role
from shared_model.errors import ConfigError, RoundError, TrainerError
from simulations.engine.deployment import rehearsal, run
from simulations.engine.deployment.rehearsal import Rehearsal, call
from simulations.engine.deployment.run import _outcome, parties, run_deployment
from tests.conftest import SmallStudy


@pytest.mark.parametrize("private", [True, False])
def test_each_party_is_as_its_site_file_says(small_study: Callable[..., SmallStudy], private: bool) -> None:
    study = small_study(private=private)
    found = {party.name: party for party in parties(list(study.files.values()), study.protocol)}
    assert set(found) == {"site-01", "site-02", "evaluator"}
    for name, party in found.items():
        config = study.config(name)
        assert (party.cohort, party.salt, party.device) == (config.cohort, config.salt, config.device)
        assert party.test_fraction == config.fractions["test"]
        assert party.role is (Role.EVALUATOR if name == "evaluator" else Role.SITE)
        assert party.private_only is (private and name != "evaluator"), "a rehearsal asks no more than its study gives"


def ended(folder: Path, *steps: StudyStep, reason: str = "") -> StudyFolder:
    study = StudyFolder(folder)
    study.want(Wanted(wish=Wish.STOPPED, reason=reason))
    with Journal(study.journal, lambda _: None) as journal:
        for step in steps:
            with journal.study_step(step):
                pass
    return study


def test_a_subset_is_never_called_a_success(tmp_path: Path) -> None:
    for step, status in ((StudyStep.GIVE_UP, "INCOMPLETE"), (StudyStep.STOP, "STOPPED")):
        folder = tmp_path / status
        folder.mkdir()
        found = _outcome(ended(folder, StudyStep.START, step, reason="too few"), None, stopped=False)
        assert (found.status, found.reason, found.rounds_completed) == (status, "too few", 0)


def test_an_end_without_an_end_is_an_error_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(RoundError, match=r"ended before its end; found: 8 runs.*resume"):
        _outcome(ended(tmp_path, StudyStep.START, reason="8 runs in a row brought it no further"), None,
                 stopped=False)  # fmt: skip


def test_a_complete_run_starts_nobody_again(
    small_study: Callable[..., SmallStudy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small_study()
    (tmp_path / "protocol.json").write_text(study.protocol.to_json())
    monkeypatch.setattr(run, "is_complete", lambda journal: True)
    monkeypatch.setattr(run, "Rehearsal", lambda *a, **k: pytest.fail("somebody was started"))
    found = run_deployment({"start_timeout_s": 1.0}, run_dir=tmp_path, site_files=list(study.files.values()),
                           observe=lambda event: None, stop=threading.Event(), say=lambda words: None)  # fmt: skip
    assert (found.status, found.rounds_completed) == ("COMPLETE", study.protocol.rounds)


def test_what_does_not_happen_in_time_is_said_with_where_to_look(tmp_path: Path) -> None:
    there = Rehearsal(tmp_path, [], timeout_s=0.0)
    with pytest.raises(TrainerError, match=rf"it did not come.*read the logs in {tmp_path}"):
        there.until(lambda: False, "it did not come")
    there.until(lambda: True, "never said")


def test_a_rehearsal_that_cannot_begin_leaves_no_supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Rehearsal) -> None:
        raise ConfigError("no")

    monkeypatch.setattr(Rehearsal, "_begin", fails)
    there, before = Rehearsal(tmp_path, [], timeout_s=1.0), set(threading.enumerate())
    with pytest.raises(ConfigError, match="no"):
        there.__enter__()
    left = set(threading.enumerate()) - before  # and not those of other tests in this process
    assert not any(thread.name == "supervisor" and thread.is_alive() for thread in left)


def test_a_command_is_called_as_it_is_typed_and_its_errors_are_errors() -> None:
    @click.command()
    @click.argument("word")
    def say(word: str) -> None:
        click.echo(word)
        click.echo("aside", err=True)
        if word == "bad":
            raise ConfigError("no")

    group: Any = click.Group(commands={"say": say})
    assert call(group, "say", "good") == "good\n"
    with pytest.raises(ConfigError):
        call(group, "say", "bad")
    with pytest.raises(click.UsageError):
        call(group, "nothing")


def test_a_proposal_counts_as_offered_only_under_its_own_name(tmp_path: Path) -> None:
    from client.deploy.home import SiteHome

    home = SiteHome(tmp_path)
    assert not rehearsal._offered(home, "a")
    home.inbox.mkdir(parents=True)
    (home.inbox / "ab-0123.json").touch()
    assert not rehearsal._offered(home, "a") and rehearsal._offered(home, "ab")

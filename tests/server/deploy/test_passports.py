"""The coordinator's daemon signs the passport of a study that has ended; a person can where it could not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.deploy.home import CoordinatorFile, CoordinatorHome
from server.deploy.passports import sign_passport
from server.deploy.studies import Reconciler, StudyFolder, Wanted, Wish
from shared_model.audit import verify as verify_log
from shared_model.errors import ConfigError
from shared_model.passport import PASSPORT, verify
from tests.finished import finish

ROUNDS = [{"name": "all", "rounds": 3, "objective": "fusion", "learning_rate": 0.05, "encoder_rate": 1.0}]


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    settings = CoordinatorFile(name="hub", title="Hub", hosts=("localhost",), port=1, enrol_port=2, link_port=3)
    return CoordinatorHome.create(tmp_path / "hub", settings)


@pytest.fixture
def ended(home: CoordinatorHome, study_maker: Callable[..., Any]) -> StudyFolder:
    study = StudyFolder(finish(study_maker(home.study("unit"), private=True, training__phases=ROUNDS)))
    study.want(Wanted(wish=Wish.RUNNING))
    return study


def test_the_daemon_signs_with_the_coordinator_s_key_and_its_log_s_head(
    home: CoordinatorHome, ended: StudyFolder
) -> None:
    said: list[str] = []
    with home.audit_log() as log:
        Reconciler(home, None, patience_s=1.0, report=lambda name, words: said.append(words), head=log.head).step()  # type: ignore[arg-type]
    found = verify(ended.path, key=home.signing_key.public).signed
    assert (found.signer.kind, found.signer.name) == ("coordinator", "hub")
    head = found.passport.record.head
    assert head is not None and verify_log(home.audit_file, heads=[head]).covered == head.head.sequence
    assert f"passport {found.sha256}" in said and ended.wanted().wish is Wish.ENDED
    assert (ended.path / "report.html").exists()


def test_a_passport_that_cannot_be_made_does_not_keep_a_study_from_its_end(
    home: CoordinatorHome, ended: StudyFolder
) -> None:
    (ended.path / "summary.json").rename(ended.path / "elsewhere")
    said: list[str] = []
    Reconciler(home, None, patience_s=1.0, report=lambda name, words: said.append(words)).step()  # type: ignore[arg-type]
    assert ended.wanted().wish is Wish.ENDED and any("passport could not be made" in words for words in said)
    (ended.path / "elsewhere").rename(ended.path / "summary.json")
    with home.audit_log():  # the daemon holds it: it is only read
        path, signed = sign_passport(home, "unit")
    assert path == ended.path / PASSPORT and verify(path, key=home.signing_key.public).signed.sha256 == signed.sha256


def test_an_exploration_has_no_model_and_so_no_passport(home: CoordinatorHome, ended: StudyFolder) -> None:
    (ended.path / "model.safetensors").unlink()
    said: list[str] = []
    Reconciler(home, None, patience_s=1.0, report=lambda name, words: said.append(words)).step()  # type: ignore[arg-type]
    assert ended.wanted().wish is Wish.ENDED and not any("passport" in words for words in said)


def test_a_study_that_is_not_complete_gets_none(home: CoordinatorHome, ended: StudyFolder) -> None:
    (ended.path / "journal.sqlite").unlink()
    with pytest.raises(ConfigError, match="not complete"):
        sign_passport(home, "unit")
    command = [sys.executable, "-m", "mammofed", "server", "passport", str(home.folder), "unit"]
    assert subprocess.run(command, check=False, capture_output=True, env=dict(os.environ)).returncode == 10

"""What a person at a site meets first: `site init` with a wrong cohort, and a status that says why nothing goes on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from client.cli import site as site_group
from client.deploy.audit_exchange import courier_log
from client.deploy.home import SiteHome
from client.deploy.overview import status_of
from client.deploy.presence import STATUS
from client.deploy.status import CourierStatus
from shared_model.certificates import Member, Role
from shared_model.errors import CohortError, ConfigError, EnrolmentError, MammoFedError
from shared_model.private_files import write_private
from tests.conftest import write_cohort
from tests.enrolled import Coordinator


def invitation(folder: Path, name: str, role: Role = Role.SITE) -> str:
    hub = Coordinator(folder / "hub")
    text = hub.enrolment.invite(Member(name, role)).text
    hub.registry.close()
    return text


def init(folder: Path, *arguments: str) -> MammoFedError | None:
    done = CliRunner().invoke(site_group, ["init", str(folder / "home"), "--server", "localhost:1", *arguments])
    assert done.exit_code == 0 or isinstance(done.exception, MammoFedError), done.output
    return done.exception if isinstance(done.exception, MammoFedError) else None


@pytest.fixture
def cohort(tmp_path: Path) -> str:
    write_cohort(tmp_path / "cohort", site="north", patients=8, seed=1)
    return str(tmp_path / "cohort")


def test_another_site_s_cohort_is_refused_before_keys_are_made(tmp_path: Path, cohort: str) -> None:
    error = init(tmp_path, "--invite", invitation(tmp_path, "south"), "--cohort", cohort)
    assert isinstance(error, CohortError) and "found: north; expected: south" in str(error)
    assert not (tmp_path / "home").exists()


def test_the_evaluator_s_cohort_may_have_any_name(tmp_path: Path, cohort: str) -> None:
    text = invitation(tmp_path, "evaluator", Role.EVALUATOR)
    assert isinstance(init(tmp_path, "--invite", text, "--cohort", cohort), ConfigError)  # says --role evaluator
    assert init(tmp_path, "--invite", text, "--cohort", cohort, "--role", "evaluator") is None


def test_a_folder_without_a_cohort_and_a_torn_invitation_are_refused(tmp_path: Path, cohort: str) -> None:
    (tmp_path / "empty").mkdir()
    text = invitation(tmp_path, "north")
    assert isinstance(init(tmp_path, "--invite", text, "--cohort", str(tmp_path / "empty")), ConfigError)
    assert isinstance(init(tmp_path, "--invite", text[:-9], "--cohort", cohort), EnrolmentError)
    assert not (tmp_path / "home").exists()


@pytest.fixture
def home(tmp_path: Path, cohort: str) -> SiteHome:
    assert init(tmp_path, "--invite", invitation(tmp_path, "north"), "--cohort", cohort) is None
    return SiteHome.open(tmp_path / "home")


def test_status_says_why_the_trainer_does_not_run(home: SiteHome) -> None:
    assert "nothing was approved" in status_of(home)["trainer_words"]
    write_private(home.trainer / "coordinator.json", b"{}")
    log = home.trainer / "logs" / "trainer.log"
    log.write_text("2026-11-26 07:48:49,485 ERROR the cohort was prepared for another site; found: site_01\n")
    assert status_of(home)["trainer_words"] == "the cohort was prepared for another site; found: site_01"


def test_a_courier_that_was_killed_a_moment_ago_is_not_said_to_run(home: SiteHome) -> None:
    status = CourierStatus(site="north", time=time.time(), stage="ready", connected=True, words="connected")
    write_private(home.courier / STATUS, status.model_dump_json().encode())
    with courier_log(home.courier, "north"):
        assert status_of(home)["courier"]["runs"] and status_of(home)["courier"]["connected"]
    found = status_of(home)["courier"]
    assert (found["runs"], found["connected"], found["words"]) == (False, False, "")

"""The Flower ServerApp: it takes its place from the run configuration, and a study that fails is a run that fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from safetensors.numpy import save_file

from server.app import _initial, app
from server.deploy.home import CoordinatorFile, CoordinatorHome
from server.deploy.studies import StudyFolder, Wanted, Wish
from server.rounds.loop import StudyOutcome
from shared_model.errors import ConfigError, QuorumError, WeightsError
from shared_model.flower_app import HOME
from shared_model.messages import weights_sha256
from shared_model.protocol import Protocol
from shared_model.weights import public_weights
from tests import fake_grid as fake


def context(**run_config: str | float) -> Context:
    return Context(1, 0, {}, RecordDict(), {name.replace("_", "-"): value for name, value in run_config.items()})


def lay_out(folder: Path) -> fake.Protocol:
    protocol = fake.make_protocol()
    (folder / "protocol.json").write_text(protocol.to_json())
    save_file(fake.initial_weights(), folder / "initial.safetensors")
    return protocol


def test_app_runs_the_study_of_its_run_directory(tmp_path: Path) -> None:
    protocol = lay_out(tmp_path)
    app(fake.make_grid(protocol), context(run_dir=str(tmp_path), patience_seconds=0.0))
    assert (tmp_path / "model.safetensors").exists() and (tmp_path / "summary.json").exists()


def test_a_study_without_quorum_is_a_failed_run(tmp_path: Path) -> None:
    grid = fake.make_grid(lay_out(tmp_path))
    for name in fake.SITES:
        grid.party(name).faults[1] = fake.lost
    with pytest.raises(QuorumError, match=r"the study is INCOMPLETE.*no quorum after 2 attempts"):
        app(grid, context(run_dir=str(tmp_path), patience_seconds=0.0))


@pytest.mark.parametrize("enrolled", [True, False])
def test_only_enrolled_parties_are_waited_for_when_they_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enrolled: bool
) -> None:
    settings = CoordinatorFile(name="hub", title="Hub", hosts=("localhost",), port=1, enrol_port=2, link_port=3)
    home = CoordinatorHome.create(tmp_path / "hub", settings)
    folder = home.study("breast")
    folder.mkdir()
    protocol, asked = lay_out(folder), list[bool]()
    StudyFolder(folder).want(Wanted(wish=Wish.RUNNING))

    def run(*, waits_for_lost: bool, **_: object) -> StudyOutcome:
        asked.append(waits_for_lost)
        return StudyOutcome(status="COMPLETE", rounds_completed=4, reason="")

    monkeypatch.setattr("server.app.run_study", run)
    if enrolled:
        monkeypatch.setenv(HOME, str(home.folder))
    app(fake.make_grid(protocol), context(run_dir=str(folder), study="breast", patience_seconds=1.0))
    assert asked == [enrolled]


@pytest.mark.parametrize("given", [{}, {"run_dir": "relative", "patience_seconds": 0.0}, {"run_dir": "/tmp"}])
def test_incomplete_run_configuration_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"run-dir .absolute path. and patience-seconds"):
        app(fake.FakeGrid([]), context(**given))


def test_a_file_named_stop_stops_the_study(tmp_path: Path) -> None:
    protocol = lay_out(tmp_path)
    (tmp_path / "stop").touch()
    with pytest.raises(QuorumError, match="the study is STOPPED"):
        app(fake.make_grid(protocol), context(run_dir=str(tmp_path), patience_seconds=0.0))
    assert not (tmp_path / "stop").exists()
    app(fake.make_grid(protocol), context(run_dir=str(tmp_path), patience_seconds=0.0))
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "COMPLETE"


def test_a_stop_is_not_forgotten_by_a_run_that_dies_before_it_has_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = lay_out(tmp_path)
    (tmp_path / "stop").touch()
    with monkeypatch.context() as patch:
        patch.setattr("server.app.run_study", _dies)
        with pytest.raises(SystemError):
            app(fake.make_grid(protocol), context(run_dir=str(tmp_path), patience_seconds=0.0))
    with pytest.raises(QuorumError, match="the study is STOPPED"):
        app(fake.make_grid(protocol), context(run_dir=str(tmp_path), patience_seconds=0.0))


def _dies(**_: object) -> None:
    raise SystemError("killed, after it has seen that it should stop")


def test_other_initial_weights_than_the_protocol_names_are_refused(tmp_path: Path) -> None:
    protocol = lay_out(tmp_path)
    save_file(fake.initial_weights(seed=1), tmp_path / "initial.safetensors")
    with pytest.raises(WeightsError, match="not those that the protocol names"):
        app(fake.make_grid(protocol), context(run_dir=str(tmp_path), patience_seconds=0.0))


def test_initial_weights_may_be_the_package_s_public_ones(tmp_path: Path) -> None:
    arrays, info = public_weights("tiny")
    terms = {"sha256": info.sha256, "origin": "public", "recipe": info.recipe}
    values = fake.make_protocol().model_dump(mode="json") | {"initial_weights": terms}
    found = _initial(tmp_path, Protocol.create(values))
    assert weights_sha256(found) == weights_sha256(arrays) == info.sha256
    (tmp_path / "protocol.json").write_text(fake.make_protocol().to_json())
    with pytest.raises(WeightsError, match="no public weights of this release have that hash"):
        app(fake.FakeGrid([]), context(run_dir=str(tmp_path), patience_seconds=0.0))

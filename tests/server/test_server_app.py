"""The Flower ServerApp: it takes its place from the run configuration, and a study that fails is a run that fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from safetensors.numpy import save_file

from server.app import app
from shared_model.errors import ConfigError, QuorumError
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


@pytest.mark.parametrize("given", [{}, {"run_dir": "relative", "patience_seconds": 0.0}, {"run_dir": "/tmp"}])
def test_incomplete_run_configuration_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"run-dir .absolute path. and patience-seconds"):
        app(fake.FakeGrid([]), context(**given))

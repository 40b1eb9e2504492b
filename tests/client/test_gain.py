"""`site gain`: the site's own women, a model trained alone without noise, nothing written to the trainer's state."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console
from safetensors.numpy import save_file

from client.cli import site as command
from client.gain.at_home import study_at_home
from client.gain.show import sentence, show, sites_of_evidence
from client.gain.study import alone, studies_of_run, work_out
from shared_model.cohort import Cohort, split_indices
from shared_model.errors import ConfigError, StorageError
from shared_model.evaluation.gain import gain
from tests.conftest import SmallStudy, make_study


@pytest.fixture
def run_dir(tmp_path: Path) -> tuple[Path, SmallStudy]:
    """A private study's run directory, as the simulator leaves it."""
    study = make_study(tmp_path, patients=40, private=True, training__phases=[
        {"name": "all", "rounds": 2, "objective": "fusion", "learning_rate": 0.05, "encoder_rate": 1.0}])  # fmt: skip
    (tmp_path / "protocol.json").write_text(study.protocol.to_json())
    arrays = {name: np.ascontiguousarray(a) for name, a in study.arrays.items()}
    save_file(arrays, tmp_path / "initial.safetensors")
    save_file({name: a * 1.01 for name, a in arrays.items()}, tmp_path / "model.safetensors",
              metadata={"protocol": study.protocol.sha256})  # fmt: skip
    held_out = {"models": {"fused": {"threshold": 0.1}}}
    (tmp_path / "summary.json").write_text(json.dumps({"metrics": {"held_out": held_out}}))
    return tmp_path, study


def test_a_run_directory_is_worked_out_site_by_site(run_dir: tuple[Path, SmallStudy]) -> None:
    folder, study = run_dir
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    found = studies_of_run(folder, site="site-02", model=None, initial=None, summary=None)
    assert [s.config.site for s in found] == ["site-02"]
    rounds: list[tuple[int, int]] = []
    document = work_out(found[0], local=True, tell=lambda done, of: rounds.append((done, of)))
    assert rounds == [(1, 2), (2, 2)]
    cohort = Cohort.open(study.config("site-02").cohort)
    test = split_indices(cohort, salt="unit", fractions={"train": 0.7, "test": 0.3})["test"]
    assert (document["n"], document["positives"]) == (len(test), int(cohort.labels[test].sum()))
    assert set(document["models"]) == {"shared", "public", "local"}
    assert document["transfer"]["wanted"] == 0.85 and document["transfer"]["specificity"] is not None
    json.dumps(document, allow_nan=False)
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}, "nothing is written"
    again = work_out(found[0], local=True)
    assert again == document, "without noise the own model is the same each time"


def test_alone_means_without_noise(run_dir: tuple[Path, SmallStudy]) -> None:
    _, study = run_dir
    terms = alone(study.protocol)
    assert study.protocol.private and not terms.private and terms.rounds == study.protocol.rounds


def test_command(run_dir: tuple[Path, SmallStudy], tmp_path: Path) -> None:
    folder, _ = run_dir
    done = CliRunner().invoke(command, ["gain", str(folder), "--no-local", "--output", str(tmp_path / "gain.json")])
    assert done.exit_code == 0, done.output
    assert "own test women" in done.output and "public weights" in done.output
    assert [row["site"] for row in json.loads((tmp_path / "gain.json").read_text())] == ["site-01", "site-02"]


def test_what_is_missing_is_named(run_dir: tuple[Path, SmallStudy], tmp_path: Path) -> None:
    folder, _ = run_dir
    nothing = {"model": None, "initial": None, "summary": None}
    with pytest.raises(ConfigError, match="no such site"):
        studies_of_run(folder, site="east", **nothing)
    with pytest.raises(ConfigError, match="neither a site's home nor a run directory"):
        study_at_home(folder / "sites", **nothing)
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(StorageError, match="damaged"):
        studies_of_run(folder, site=None, **nothing)
    (tmp_path / "evidence.json").write_text('{"arms": {"a": {"sites": {}}}, "study": "s"}')
    with pytest.raises(ConfigError, match="no such site"):
        sites_of_evidence(tmp_path / "evidence.json", site="x")


def test_words_follow_the_interval() -> None:
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [300, 100])
    good, bad = rng.normal(2 * y, 1), rng.normal(0.3 * y, 1)
    for shared, local, word in ((good, bad, "gained"), (bad, good, "lost"), (good, good, "is not shown")):
        document = gain(y, {"shared": shared, "local": local}, thresholds={"shared": 0.5}, confidence=0.95,
                        replicates=20)  # fmt: skip
        assert word in sentence({"site": "north", **document})
    few = gain([0, 1], {"shared": [0.0, 1.0], "local": [0.0, 1.0]}, thresholds={}, confidence=0.95, replicates=20)
    assert "too few" in sentence({"site": "north", **few})
    console = Console(record=True, width=120)
    show(console, {"site": "north", "study": "unit", **document})
    assert "slope" in console.export_text()

"""A package beside this one brings ultrasound; a protocol that names it is all that a federated study needs.

Nothing of the trainer is touched and nothing is registered by hand: the trainers are processes of their own, which find
the package by its entry point. One of three sites has no ultrasound at all.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from server.rounds.checkpoint import read_safetensors
from server.rounds.journal import Journal
from server.rounds.loop import run_study
from shared_model.cohort import Cohort
from shared_model.cohort.others import drop_stale, others_folder, write_other
from shared_model.errors import CohortError, ConfigError, ProtocolError
from shared_model.fusion import FusionConfig, build_model
from shared_model.fusion.modalities import find, forget, registered
from shared_model.messages import weights_sha256
from shared_model.protocol import Protocol
from simulations.engine import LocalGrid, TrainerPool
from tests.conftest import SmallStudy, make_study

PACKAGE = """
from torch import nn
from shared_model.fusion.modalities import Modality

class Encoder(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.project = nn.Linear(6, width)

    def forward(self, values):
        return self.project(values).tanh()

ULTRASOUND = Modality(build=lambda config: Encoder(config.spec.embedding), shape=(6,))
BROKEN = 3
"""
ENTRY_POINTS = "[mammofed.modalities]\nultrasound = our_ultrasound:ULTRASOUND\nbroken = our_ultrasound:BROKEN\n"
ROUNDS = [{"name": "all", "rounds": 2, "objective": "fusion", "learning_rate": 0.05, "encoder_rate": 1.0}]
SETTINGS = {"sites": 3, "private": True, "training__phases": ROUNDS, "federation__deadline_s": 600.0,
            "model__modalities": ["image", "clinical", "ultrasound"]}  # fmt: skip


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Installed, as pip leaves it, for this process and those that it starts."""
    folder = tmp_path / "site-packages"
    (folder / "our_ultrasound-1.0.dist-info").mkdir(parents=True)
    (folder / "our_ultrasound.py").write_text(PACKAGE)
    (folder / "our_ultrasound-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: our-ultrasound\n"
                                                                      "Version: 1.0\n")  # fmt: skip
    (folder / "our_ultrasound-1.0.dist-info" / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(folder))
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    importlib.invalidate_caches()
    yield
    forget("ultrasound")
    sys.modules.pop("our_ultrasound", None)


def examined(study: SmallStudy, *parties: str) -> None:
    """Two in three women of these parties have an ultrasound."""
    for seed, party in enumerate(parties):
        cohort, random = Cohort.open(study.config(party).cohort), np.random.default_rng(seed)
        write_other(cohort, "ultrasound", {
            pseudonym: (random.normal(size=6) + cohort.labels[row]).astype(np.float32)
            for row, pseudonym in enumerate(cohort.pseudonyms) if row % 3
        })  # fmt: skip


def test_a_federated_study_by_protocol_only(package: None, tmp_path: Path) -> None:
    sha256 = weights_sha256(make_study(tmp_path / "first", **SETTINGS).arrays)
    study = make_study(tmp_path / "study", initial_weights__sha256=sha256, **SETTINGS)
    examined(study, "site-01", "site-02", "evaluator")
    run = tmp_path / "run"
    run.mkdir()
    with TrainerPool(list(study.files.values()), log_dir=tmp_path / "logs", processes=1, start_timeout_s=600.0) as pool:
        grid = LocalGrid(pool)
        done = run_study(grid=grid, protocol=study.protocol, run_dir=run, initial=study.arrays,
                         observer=lambda event: None, stop=threading.Event())  # fmt: skip
        grid.close()
    assert (done.status, done.rounds_completed) == ("COMPLETE", 2), done
    weights, _ = read_safetensors(run / "model.safetensors", "model")
    mine = {name for name in weights if name.startswith("others.ultrasound.")}
    assert {f"others.ultrasound.{n}" for n in ("encoder.project.weight", "other_head.weight")} <= mine
    assert all(not np.array_equal(weights[name], study.arrays[name]) for name in mine), "it learned, under privacy"
    with Journal(run / "journal.sqlite", lambda event: None) as journal:
        outcomes = journal.rows("SELECT site, outcome FROM participation")
        tested = journal.rows("SELECT document FROM reports WHERE scope = 'test'")
    assert len(outcomes) == 6 and {outcome for _, outcome in outcomes} == {"contributed"}
    assert json.loads(tested[0][0])["models"]["fused"]["auc"] is not None


def test_what_no_machine_has_is_refused_with_what_it_has(package: None) -> None:
    assert registered() == ("image", "clinical", "broken", "ultrasound")
    with pytest.raises(ConfigError, match="expected: image, clinical, broken, ultrasound") as raised:
        find("mri")
    assert "install the package" in str(raised.value)
    with pytest.raises(ConfigError, match="is none"):
        find("broken")


def test_of_two_packages_that_bring_one_modality_none_is_loaded(package: None, tmp_path: Path) -> None:
    other = tmp_path / "site-packages" / "other-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[mammofed.modalities]\nultrasound = other_module:ULTRASOUND\n")
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match="more than one installed package"):
        find("ultrasound")
    assert "our_ultrasound" not in sys.modules


def test_a_protocol_of_films_and_table_is_what_it_was(small_study: Callable[..., SmallStudy]) -> None:
    study = small_study()
    values = study.protocol.model_dump(mode="json")
    assert "modalities" not in values["model"], "earlier protocols keep their hash"
    values["model"]["modalities"] = ["image", "clinical"]
    assert Protocol.create(values).sha256 == study.protocol.sha256
    for wrong in (["clinical", "image"], ["image"], ["image", "clinical", "us", "us"], ["image", "us", "clinical"]):
        values["model"]["modalities"] = wrong
        with pytest.raises(ProtocolError, match="modalities"):
            Protocol.create(values)
    values["model"] = {"size": "tiny", "fusion": "mid", "modalities": ["image", "clinical", "us"]}
    with pytest.raises(ProtocolError, match="gated or late"):
        Protocol.create(values)
    values["model"]["fusion"] = "gated"
    with pytest.raises(ConfigError, match="no such modality is registered; found: us"):
        build_model(FusionConfig.of(Protocol.create(values)), seed=1, prevalence=0.3)


def test_what_a_site_has_is_good_for_the_import_that_it_was_written_for(small_study: Callable[..., SmallStudy]) -> None:
    study = small_study()
    path = study.config("site-01").cohort
    cohort = Cohort.open(path)
    assert cohort.batch([0, 1]).others == {} and not others_folder(path).exists()
    known = dict.fromkeys(cohort.pseudonyms[1:3], np.ones(6, dtype=np.float32))
    file = write_other(cohort, "ultrasound", known)
    batch = Cohort.open(path).batch([2, 0])
    assert batch.others["ultrasound"].mask_B.tolist() == [True, False]
    assert batch.others["ultrasound"].values.tolist() == [[1.0] * 6, [0.0] * 6]
    for wrong in ({"nobody": np.ones(6)}, {}, {**known, cohort.pseudonyms[0]: np.ones(5)},
                  {cohort.pseudonyms[0]: np.full(6, np.nan)}):  # fmt: skip
        with pytest.raises(CohortError):
            write_other(cohort, "ultrasound", wrong)  # type: ignore[arg-type]
    other = Cohort.open(study.config("site-02").cohort)
    others_folder(other.path).mkdir()
    (others_folder(other.path) / "ultrasound.safetensors").write_bytes(file.read_bytes())
    other = Cohort.open(other.path)
    other.require_others(())
    assert other.batch([0]).others == {}, "a study that does not name it goes on"
    with pytest.raises(CohortError, match="another import"):
        other.require_others(("ultrasound",))
    assert drop_stale(other) == ["ultrasound"] and not list(others_folder(other.path).iterdir())
    assert drop_stale(cohort) == [] and file.exists(), "what fits stays"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(CohortError, match="damaged"):
        Cohort.open(path).require_others(("ultrasound",))

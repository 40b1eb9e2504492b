"""What a coordinator hands out is the chosen model with its own thresholds, and nothing that is not measured."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from server.release import write_release
from server.rounds.checkpoint import write_safetensors
from server.rounds.schema import JOURNAL_VERSION, TABLES
from shared_model.errors import RoundError, StorageError
from shared_model.messages import weights_sha256
from shared_model.protocol import Protocol
from shared_model.released import ReleasedModel
from tests.handmade_run import protocol_values

WEIGHTS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
SELECTION = {"n": 120, "positives": 30, "thresholds": {"fused": -1.25, "image": -1.0, "clinical": -0.5},
             "temperature": 1.4, "auc": {"fused": 0.9}}  # fmt: skip


def make_run(folder: Path, *, chosen: bool = True) -> Path:
    """As much of a run directory as a release is made of; a journal without seals, as an older release wrote it."""
    folder.mkdir()
    (folder / "protocol.json").write_text(Protocol.create(protocol_values()).to_json())
    write_safetensors(folder / "model.safetensors", WEIGHTS, "model", {"round": 11})
    database = sqlite3.connect(folder / "journal.sqlite")
    database.executescript(TABLES)
    database.execute("INSERT INTO meta VALUES ('journal_version', ?)", (json.dumps(JOURNAL_VERSION),))
    if chosen:
        database.execute("INSERT INTO meta VALUES ('chosen', ?)", (json.dumps({"round": 11}),))
    database.execute("INSERT INTO reports VALUES (11, 'selection', 'evaluator', 'x', ?, 1.0, 0, 0)",
                     (json.dumps(SELECTION),))  # fmt: skip
    database.commit()
    database.close()
    return folder


def test_a_release_is_whole_and_checked(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    written = write_release(run, tmp_path / "model")
    made = written.release
    assert written.vouched.signed is None and "no passport" in written.vouched.words
    read = ReleasedModel.read(tmp_path / "model")
    assert read.release == made and read.maps is None
    assert made.model_sha256 == weights_sha256(WEIGHTS) and made.round == 11
    assert made.protocol_sha256 == Protocol.read(run / "protocol.json").sha256
    assert made.thresholds == SELECTION["thresholds"] and made.temperature == 1.4
    assert made.prevalence == 0.25 and made.specificity == 0.85
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"protocol.json", "model.safetensors",
                                                                      "release.json"}  # fmt: skip


def test_without_a_choice_there_is_no_release(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", chosen=False)
    with pytest.raises(RoundError, match="no chosen model"):
        write_release(run, tmp_path / "model")
    (run / "journal.sqlite").unlink()
    with pytest.raises(StorageError, match="journal"):
        write_release(run, tmp_path / "model")

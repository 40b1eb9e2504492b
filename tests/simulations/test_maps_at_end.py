"""Heat maps at a study's end: measured, too few, switched off, unknown lesions, or failed; never a crash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from shared_model.errors import CohortError
from shared_model.map_figures import LOCALISATION, read_map_figures
from shared_model.messages import weights_sha256
from simulations import maps_at_end
from simulations.composition import compose_config

WEIGHTS = {"encoder.stem.weight": np.ones((2, 2), np.float32)}


class Ending:
    """A finished study whose test women have as many lesions as a test says."""

    def __init__(self, run_dir: Path, monkeypatch: pytest.MonkeyPatch, *, women: int) -> None:
        self.run_dir, self.said, self.calls = run_dir, list[str](), list[tuple[Any, ...]]()
        save_file(WEIGHTS, run_dir / "model.safetensors")
        monkeypatch.setattr(maps_at_end, "sources", lambda *a, **k: {"held_out": run_dir / "women"})
        monkeypatch.setattr(maps_at_end, "unseen_women", lambda *a, **k: lambda name: True)
        monkeypatch.setattr(maps_at_end, "count_women", lambda source, wanted: women)

    def end(self, *overrides: str) -> None:
        maps_at_end.measure_maps(compose_config(["study=quick", *overrides]), self.run_dir, self.said.append, self.call)

    def call(self, function: Any, *arguments: Any) -> str:
        self.calls.append(arguments)
        return "the sentence"


@pytest.mark.parametrize(("overrides", "most"), [([], 120), (["localise=30"], 30)])
def test_enough_women_are_measured_and_no_more_than_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], most: int
) -> None:
    ending = Ending(tmp_path, monkeypatch, women=20)
    ending.end(*overrides)
    ((run_dir, config, source, asked),) = ending.calls
    assert (run_dir, source, asked) == (tmp_path, tmp_path / "women", most) and config["seed"] == 1
    assert len(ending.said) == 2 and str(most) in ending.said[0] and ending.said[1] == "Heat maps: the sentence"


def test_few_women_leave_a_reason_and_start_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ending = Ending(tmp_path, monkeypatch, women=19)
    ending.end()
    found = read_map_figures(tmp_path / LOCALISATION, model_sha256=weights_sha256(WEIGHTS), remedy="")
    assert found is not None and not found.methods and "19" in found.reason
    assert not ending.calls and not ending.said


@pytest.mark.parametrize("overrides", [["localise=0"], ["cohort=mini_mias", "cohort.source=films"]])
def test_switched_off_or_unknown_lesions_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    ending = Ending(tmp_path, monkeypatch, women=100)
    ending.end(*overrides)
    assert not ending.calls and not ending.said and not (tmp_path / LOCALISATION).exists()


def test_a_complete_study_stays_complete_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ending = Ending(tmp_path, monkeypatch, women=100)

    def fail(function: Any, *arguments: Any) -> str:
        raise CohortError("the cohort is gone")

    monkeypatch.setattr(ending, "call", fail)
    ending.end()
    assert ending.said[1:] == ["Heat maps were not measured: the cohort is gone"]

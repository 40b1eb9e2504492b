"""Radiologists' decisions reach the evaluator's cohort as attributes, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.ingest.readings import read_readings
from client.ingest.tables.columns import Plan, TableOptions
from shared_model.contract import load_contract
from shared_model.errors import ContractError, LeakageError
from shared_model.readings import ARBITER, READER
from simulations.hospitals import default_hospitals
from simulations.population.women import draw_woman
from simulations.readers import SKILLS, read_films


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "readings.csv"
    path.write_text(text)
    return path


def test_decisions_by_pseudonym(tmp_path: Path) -> None:
    text = f"patient_id,{READER},{ARBITER}\nA,yes,0\nB,,\nC, NO ,\n"
    found = read_readings(written(tmp_path, text), str.lower)
    assert found == {"a": {READER: "yes", ARBITER: "no"}, "c": {READER: "no"}}
    assert read_readings(written(tmp_path, f"patient_id,{READER}\nA,1\n"), str.lower) == {"a": {READER: "yes"}}


@pytest.mark.parametrize(("text", "words"), [
    ("", "other columns"), (f"{READER},patient_id\nyes,A\n", "other columns"),
    (f"patient_id,{READER}\nA,BI-RADS 4\n", "row 1: not a decision"), (f"patient_id,{READER}\nA\n", "row 1"),
    (f"patient_id,{READER}\nA,yes\nA,no\n", "row 2: a woman stands twice"),
])  # fmt: skip
def test_a_file_that_is_no_readings_is_refused_without_its_cells(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ContractError, match=words) as caught:
        read_readings(written(tmp_path, text), str)
    assert "BI-RADS" not in str(caught.value)


def test_a_reading_under_a_field_s_name_is_refused_too() -> None:
    options = TableOptions(columns={READER: "palpable_lump"})
    with pytest.raises(LeakageError, match="this very read"):
        Plan(["patient_id", "label", READER], options, load_contract(), source="clinical.csv")


def test_invented_readers_have_their_published_shares_and_miss_what_shows_little() -> None:
    population = default_hospitals(sites=1, patients=20, held_out=1500, seed=3, film_height=80, film_width=64,
                                   film_spacing_mm=2.5, conspicuity=5.0)  # fmt: skip
    spec = population.held_out
    found = read_films(population, spec)
    assert found == read_films(population, spec) and all(set(said) == {READER, ARBITER} for said in found.values())
    women = [draw_woman(population, spec, index) for index in range(1500)]
    read = [woman for woman in women if woman.patient_id in found]
    assert {woman.patient_id for woman in read} == {woman.patient_id for woman in women if woman.views}
    label = np.array([woman.label for woman in read])
    for reader, skill in SKILLS.items():
        yes = np.array([found[woman.patient_id][reader] == "yes" for woman in read])
        for share, mean, n in ((yes[label == 1].mean(), skill.sensitivity, (label == 1).sum()),
                               (1 - yes[label == 0].mean(), skill.specificity, (label == 0).sum())):  # fmt: skip
            assert abs(share - mean) < 4 * np.sqrt(mean * (1 - mean) / n)
        contrast = np.array([0.0 if woman.finding is None else woman.finding.contrast for woman in read])
        assert contrast[(label == 1) & yes].mean() > contrast[(label == 1) & ~yes].mean() + 0.05

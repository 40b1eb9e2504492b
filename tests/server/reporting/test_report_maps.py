"""Heat maps in report and passport: this model's figure with n and interval, or that nobody measured it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.reporting.facts import read_facts
from server.reporting.limits import limits_of
from server.reporting.maps import arms_part, maps_part
from server.reporting.report import write_report
from shared_model.map_figures import LOCALISATION, NOT_MEASURED, MapFigures, write_map_figures, write_reason
from tests.handmade_run import SHA, write_run_dir
from tests.shared_model.test_map_figures import figure, share


def measured(*, moved: float = 0.041, pointing: float = 0.6) -> MapFigures:
    row = figure(share(pointing, pointing - 0.05), cohort="synthetic women", initial=figure(share(0.73, 0.67)),
                 lesions={"mass": figure(share(0.7, 0.6), 80), "calcification": figure(share(0.2, 0.1), 40)},
                 randomised={"pointing": share(0.43, 0.36), "rank_correlation": 0.25})  # fmt: skip
    return MapFigures.model_validate({"model_sha256": SHA, "cohort": "synthetic women", "methods": {"hirescam": row},
                                      "encoder": {"moved": moved, "private": True}})  # fmt: skip


def text_of(run_dir: Path) -> str:
    return " ".join(write_report(run_dir).read_text().split())


def test_the_report_has_the_figure_with_its_n_interval_and_controls(tmp_path: Path) -> None:
    write_run_dir(tmp_path)
    write_map_figures(tmp_path / LOCALISATION, measured())
    text = text_of(tmp_path)
    for words in ("Heat maps: do they point to lesions?", "60% (55% to 65%)", "120 (240)", "73% (67% to 79%)",
                  "HiResCAM, calcification", "view encoder drawn anew", "0.25", "moved by 4.1% of their norm",
                  "under differential privacy"):
        assert words in text, words
    assert text.count("within 5 mm of the lesion in 60% of films") == 1, "the model card refers to the section"


def test_the_passport_says_it_among_its_limits(tmp_path: Path) -> None:
    write_run_dir(tmp_path)
    facts = read_facts(tmp_path)
    assert sum(NOT_MEASURED in words for words in limits_of(facts)) == 1
    write_map_figures(tmp_path / LOCALISATION, measured(pointing=0.5))
    (said,) = [words for words in limits_of(facts) if words.startswith("Heat maps")]
    assert "in 50% of films" in said and "not shown to be right in at least half" in said and len(said) <= 1000


def test_without_a_measurement_no_figure_of_another_model_stands_in(tmp_path: Path) -> None:
    write_run_dir(tmp_path)
    assert "It was not measured how well" in text_of(tmp_path)
    write_reason(tmp_path / LOCALISATION, model_sha256=SHA, cohort="synthetic women", reason="7 women, fewer than 20")
    assert "(7 women, fewer than 20.)" in text_of(tmp_path)
    write_map_figures(tmp_path / LOCALISATION, measured().model_copy(update={"model_sha256": "0" * 64}))
    text = text_of(tmp_path)
    assert "measured on another model" in text and "60%" not in text
    (tmp_path / LOCALISATION).write_text("{")
    assert "is damaged" in text_of(tmp_path)


@pytest.mark.parametrize(("moved", "words"), [(0.0, "left it as it is"), (0.2, "moved by 20.0%")])
def test_whether_the_encoder_was_trained_is_said(tmp_path: Path, moved: float, words: str) -> None:
    write_map_figures(tmp_path / LOCALISATION, measured(moved=moved))
    assert words in str(maps_part(tmp_path, SHA)["encoder"])


def test_arms_of_a_comparison_stand_side_by_side() -> None:
    maps: dict[str, Any] = {"women": 240, "films": 470, "chance": 0.14, "moved": 0.3, "rank_correlation": 0.2,
                            "pointing": 0.8, "pointing_low": 0.7, "pointing_high": 0.9, "initial": 0.7,
                            "initial_low": None, "initial_high": None}  # fmt: skip
    first, second = arms_part({"none": {"maps": maps}, "epsilon_8": {"maps": {**maps, "moved": 0.0, "initial": None}},
                               "old": {}})  # fmt: skip
    assert (first["pointing"], first["initial"], first["moved"]) == ("80% (70% to 90%)", "70%", "by 30.0%")
    assert (second["arm"], second["initial"], second["moved"]) == ("epsilon 8", "the same", "not")

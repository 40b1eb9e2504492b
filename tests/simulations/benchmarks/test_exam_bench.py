"""The exam's time by part: parts belong to the exam that was read, and every figure is there; no time is asserted."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.inference.scorer import Scorer
from shared_model.contract import load_contract
from shared_model.errors import ImagingError
from shared_model.imaging import VIEWS
from shared_model.released import ReleasedModel
from simulations.benchmarks import exam
from simulations.benchmarks.films import SIZES, SYNTAXES, write_films
from simulations.composition import compose_config
from simulations.plan import pipeline_of
from simulations.untrained import write_untrained_release

SMALL = list(SIZES)[1]


def test_four_films_to_score_and_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exam, "SIZE", SMALL)
    monkeypatch.setattr(exam, "REPEATS", 1)
    monkeypatch.setattr(exam, "real_exam", dict)
    rows = {row.name: row for row in exam.measure()}
    assert [name for name in rows if name.endswith("to the score")] == [
        f"four films of {SMALL}, {syntax}: to the score" for syntax in SYNTAXES
    ]
    assert all(row.unit == "CPU-s" and row.value >= 0 for row in rows.values())
    whole = rows[f"four films of {SMALL}, JPEG 2000: to the score"]
    assert whole.ratio is not None and whole.against == "uncompressed"
    assert whole.value > rows["  of it model"].value > 0
    assert rows["  maps on the films, read again"].value >= rows["  heat maps, HiResCAM"].value > 0


def test_an_exam_that_cannot_be_read_is_no_figure(tmp_path: Path) -> None:
    write_untrained_release(tmp_path / "model")
    scorer = Scorer(ReleasedModel.read(tmp_path / "model"), load_contract())
    rules = exam.Rules(pipeline=pipeline_of(compose_config([])))
    paths = {view: write_films(tmp_path, size=SMALL, view=view, syntaxes=["RLE"])["RLE"] for view in VIEWS}
    assert len({path.read_bytes() for path in paths.values()}) == 4  # four films, not one four times
    paths["R_CC"].write_bytes(paths["R_CC"].read_bytes()[:-2000])
    with pytest.raises(ImagingError):
        exam.exam_parts(scorer, paths, rules, repeats=1)

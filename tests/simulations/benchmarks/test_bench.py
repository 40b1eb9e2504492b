"""The bench: rows and bounds, choice of sections, a failing section, JSON; real sections measure what they say."""

from __future__ import annotations

import importlib
import io
import json
import types
from pathlib import Path

import pytest
from rich.console import Console

from shared_model.errors import ConfigError, MammoFedError, RoundError
from shared_model.imaging import PipelineConfig, prepare_view, read_header
from simulations.benchmarks import bench, cohorts, films, rounds
from simulations.benchmarks.table import Row, draw


def text_of(rows: list[Row], *, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(draw("Title", rows))
    return console.export_text()


@pytest.mark.parametrize(
    ("row", "met"),
    [
        (Row(name="a", value=1.0, unit="s"), None),
        (Row(name="a", value=1.0, unit="s", ratio=0.6, at_least=0.5), True),
        (Row(name="a", value=9.0, unit="s", ratio=0.4, at_least=0.5), False),
        (Row(name="a", value=0.4, unit="s", at_most=0.3), False),
        (Row(name="a", value=0.2, unit="s", at_least=0.1, at_most=0.3), True),
        (Row(name="a", value=0.2, unit="s", ratio=float("nan"), at_least=0.1), False),
    ],
)
def test_a_bound_is_on_the_ratio_where_there_is_one(row: Row, met: bool | None) -> None:
    assert row.met is met


def test_table_shows_value_ratio_bound_and_baseline() -> None:
    text = text_of([Row(name="loop", value=12.345, unit="patients/s", ratio=0.61, against="batch", at_least=0.5)])
    for words in ("loop", "12.35 patients/s", "0.61", ">= 0.5", "batch"):
        assert words in text


def test_at_eighty_columns_words_wrap_and_figures_are_whole() -> None:
    long = {"name": "a refresh after a whole round, 500 rounds of 50 sites, readers beside it each 0.05 s",
            "against": "the journal alone, in turns on the same cores"}  # fmt: skip
    rows = [Row(**long, value=12345.6, unit="patients/s", ratio=1234.56, at_least=0.125, at_most=1.25),
            Row(**long, value=709.1, unit="ms", ratio=0.03, at_most=0.2)]  # fmt: skip
    lines = text_of(rows, width=80).splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in "".join(lines)
    for figure in ("1.235e+04 patients/s", "1234.56", ">= 0.125 <= 1.25", "709.1 ms", "0.03", "<= 0.2", "Ratio"):
        assert any(figure in line for line in lines), figure
    assert "".join("".join(lines).split()).count("refresh") == 2


def test_unknown_section_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"\['no'\].*films"):
        bench.run_bench(json_path=None, only=["no"])


@pytest.mark.parametrize("name", bench.SECTIONS)
def test_every_section_can_be_measured(name: str) -> None:
    assert callable(importlib.import_module(bench.SECTIONS[name][1]).measure)


def test_a_failing_section_does_not_stop_the_others_and_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> list[Row]:
        raise RoundError("a trainer died")

    modules = {
        "good": types.SimpleNamespace(measure=lambda: [Row(name="x", value=2.0, unit="s", at_most=1.0)]),
        "bad": types.SimpleNamespace(measure=fail),
    }
    monkeypatch.setattr(bench, "SECTIONS", {"bad": ("Bad", "bad"), "good": ("Good", "good")})
    monkeypatch.setattr(bench.importlib, "import_module", modules.__getitem__)
    stream = io.StringIO()
    with pytest.raises(MammoFedError, match="bad"):
        bench.run_bench(json_path=tmp_path / "b.json", only=[], console=Console(file=stream, width=120))
    document = json.loads((tmp_path / "b.json").read_text())
    assert document["failures"] == {"bad": "RoundError: a trainer died"}
    assert document["sections"]["good"][0]["met"] is False and document["machine"]["torch"]
    assert "a trainer died" in stream.getvalue() and "Good" in stream.getvalue()


def test_films_of_all_syntaxes_are_the_same_film(tmp_path: Path) -> None:
    files = films.write_films(tmp_path, size="160 x 128")
    config = PipelineConfig(height=112, width=84, spacing_mm=1.75, percentiles=(1.0, 99.0), denoise="none",
                            max_pixels=1 << 24, max_bytes=1 << 26)  # fmt: skip
    views = {name: prepare_view(path, config).pixels for name, path in files.items()}
    assert set(views) == {"uncompressed", "RLE", "JPEG lossless", "JPEG-LS", "JPEG 2000"}
    for view in views.values():
        assert (view == views["uncompressed"]).all() and view.std() > 0.1
    assert len({path.read_bytes() for path in files.values()}) == 5
    assert all(read_header(path, config).view == "L_MLO" for path in files.values())


def test_sections_measure_small_things(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohorts, "PATIENTS", 40)
    monkeypatch.setattr(films, "SIZES", {"160 x 128": films.SIZES["160 x 128"]})
    rows = [*cohorts.measure(), *films.measure()]
    assert len(rows) == 3 + 5
    assert all(row.value > 0 for row in rows)


@pytest.mark.slow
def test_round_section_runs_a_real_study(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {row.name: row for row in rounds.measure()}
    assert rows["round of 4 sites"].value > rows["longest training in it, one step"].value > 0
    assert rows["bytes from a site a round"].met and rows["bytes to a site a round"].met

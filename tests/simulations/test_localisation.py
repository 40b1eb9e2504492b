"""`simulate localise`: the figure goes with the model, and is printed beside its maps; another model refuses it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from client.inference.scorer import Scorer
from shared_model.contract import load_contract
from shared_model.errors import ConfigError, WeightsError
from shared_model.released import LOCALISATION, ReleasedModel
from simulations.cli import simulate
from simulations.hospitals import default_hospitals
from simulations.population import generate
from simulations.untrained import write_untrained_release


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    population = default_hospitals(sites=1, patients=1, held_out=6, seed=7, film_height=160, film_width=128,
                                   film_spacing_mm=1.25, conspicuity=5.0, calcification_share=0.0)  # fmt: skip
    ill = replace(population, held_out=replace(population.held_out, prevalence=0.97))
    return generate(ill, tmp_path_factory.mktemp("made"), workers=1)[ill.held_out.name]


def test_the_figure_goes_with_the_model(source: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    write_untrained_release(model)
    done = CliRunner().invoke(simulate, ["localise", str(model), str(source), "--women", "3", "--method", "hirescam"])
    assert done.exit_code == 0, done.output
    document = json.loads((model / LOCALISATION).read_text())
    found = document["methods"]["hirescam"]
    assert found["women"] == 3 and 0 <= found["pointing"]["low"] <= found["pointing"]["high"] <= 1
    words = Scorer(ReleasedModel.read(model), load_contract()).map_words()
    assert words.startswith("On 3 synthetic women") and "chance" in words
    document["model_sha256"] = "0" * 64
    (model / LOCALISATION).write_text(json.dumps(document))
    with pytest.raises(WeightsError, match="another model"):
        ReleasedModel.read(model)


def test_what_cannot_be_measured_is_refused(source: Path, tmp_path: Path) -> None:
    write_untrained_release(tmp_path / "model")
    for arguments in (["--method", "attention"], []):
        place = source if arguments else tmp_path
        done = CliRunner().invoke(simulate, ["localise", str(tmp_path / "model"), str(place), *arguments])
        assert isinstance(done.exception, ConfigError)

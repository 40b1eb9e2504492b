"""`simulate localise`: the figure goes with the model, and is printed beside its maps; another model refuses it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from client.inference.scorer import Scorer
from server.rounds.checkpoint import read_arrays
from shared_model.contract import load_contract
from shared_model.errors import ConfigError, WeightsError
from shared_model.map_figures import LOCALISATION, NOT_MEASURED
from shared_model.protocol import Protocol
from shared_model.released import PROTOCOL, WEIGHTS, ReleasedModel
from simulations.cli import simulate
from simulations.hospitals import default_hospitals
from simulations.lesions import cancers, count_women, lesion_types
from simulations.localisation import default_pipeline
from simulations.localise import Run, localise_run
from simulations.population import generate
from simulations.untrained import write_untrained_release


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    population = default_hospitals(sites=1, patients=1, held_out=8, seed=7, film_height=160, film_width=128,
                                   film_spacing_mm=1.25, conspicuity=5.0, calcification_share=0.4)  # fmt: skip
    ill = replace(population, held_out=replace(population.held_out, prevalence=0.97))
    return generate(ill, tmp_path_factory.mktemp("made"), workers=1)[ill.held_out.name]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released") / "model"
    write_untrained_release(folder)
    return folder


def run_of(model: Path, *, moved: float) -> Run:
    """A study that began with these weights and moved each number of the view encoder by a share of itself."""
    initial = read_arrays(model / WEIGHTS)
    weights = {name: (array * (1 + moved) if name.startswith("encoder.") else array).astype(np.float32)
               for name, array in initial.items()}  # fmt: skip
    return Run(protocol=Protocol.read(model / PROTOCOL), weights=weights, initial=initial, wanted=lambda name: True,
               pipeline=default_pipeline(height=112, width=84, spacing_mm=1.75))  # fmt: skip


def test_the_figure_goes_with_the_model(source: Path, model: Path) -> None:
    assert Scorer(ReleasedModel.read(model), load_contract()).map_words() == NOT_MEASURED
    done = CliRunner().invoke(simulate, ["localise", str(model), str(source), "--women", "3", "--method", "hirescam"])
    assert done.exit_code == 0, done.output
    document = json.loads((model / LOCALISATION).read_text())
    found = document["methods"]["hirescam"]
    assert found["women"] == 3 and 0 <= found["pointing"]["low"] <= found["pointing"]["high"] <= 1
    assert sum(kind["women"] for kind in found["lesions"].values()) == 3
    assert -1 <= found["randomised"]["rank_correlation"] <= 1
    words = Scorer(ReleasedModel.read(model), load_contract()).map_words()
    assert words.startswith("On 3 synthetic women") and "chance" in words
    assert Scorer(ReleasedModel.read(model), load_contract()).map_words("gradcam") == NOT_MEASURED
    kept = (model / LOCALISATION).read_bytes()
    document["model_sha256"] = "0" * 64
    for text, words in ((json.dumps(document), "another model"), (kept.decode()[:-9], "damaged"), ("{}", "damaged")):
        (model / LOCALISATION).write_text(text)
        with pytest.raises(WeightsError, match=words):
            ReleasedModel.read(model)
    (model / LOCALISATION).write_bytes(kept)


def test_a_trained_encoder_stands_beside_what_it_began_from(source: Path, model: Path, tmp_path: Path) -> None:
    found = localise_run(tmp_path, run_of(model, moved=0.5), source, women=2, methods=("hirescam",))
    assert found.encoder is not None and found.encoder.moved == pytest.approx(0.5) and not found.encoder.private
    assert found.methods["hirescam"].initial is not None
    again = localise_run(tmp_path, run_of(model, moved=0.5), source, women=2, methods=("gradcam",))
    assert set(again.methods) == {"hirescam", "gradcam"}, "what was measured of this model stays"
    same = localise_run(tmp_path, run_of(model, moved=0.0), source, women=2, methods=("hirescam",))
    assert set(same.methods) == {"hirescam"}, "what was measured of another model goes"
    assert same.encoder is not None and same.encoder.moved == 0 and same.methods["hirescam"].initial is None


def test_few_women_give_no_figure_but_a_reason(source: Path, model: Path, tmp_path: Path) -> None:
    found = localise_run(tmp_path, run_of(model, moved=0.0), source, women=50, methods=("hirescam",), least=20)
    assert not found.methods and "fewer than 20" in found.reason
    assert found.words("hirescam") == NOT_MEASURED


def test_only_wanted_women_are_explained(source: Path, model: Path, tmp_path: Path) -> None:
    names = list(dict.fromkeys(row["patient_id"] for row in cancers(source)))
    assert count_women(source, lambda name: name in names[:3]) == 3
    some = replace(run_of(model, moved=0.0), wanted=lambda name: name in names[:3])
    assert localise_run(tmp_path, some, source, women=50, methods=("hirescam",)).methods["hirescam"].women <= 3


def test_kinds_of_lesions_are_those_of_cancers(source: Path) -> None:
    found = lesion_types(source)
    assert set(found.values()) == {"mass", "calcification"}
    assert set(found) == {row["patient_id"] for row in cancers(source)}


def test_what_cannot_be_measured_is_refused(source: Path, model: Path, tmp_path: Path) -> None:
    for arguments in ([source, "--method", "attention"], [tmp_path], []):
        done = CliRunner().invoke(simulate, ["localise", str(model), *map(str, arguments)])
        assert isinstance(done.exception, ConfigError)

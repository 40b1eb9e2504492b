"""A small synthetic hospital with a site.yaml, and a released model that nobody trained."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from client.inference.cases import Cases, read_cases
from client.inference.predict import Prediction, predict
from client.inference.scorer import Scorer
from client.ingest.example import write_example
from client.ingest.site_file import SiteFile, read_site
from shared_model.contract import load_contract
from shared_model.fusion import arrays_of
from shared_model.messages import weights_sha256
from shared_model.released import RELEASE, WEIGHTS, ReleasedModel
from simulations.hospitals import default_hospitals
from simulations.population import generate
from simulations.untrained import write_untrained_release

WOMEN = 14


@dataclass(frozen=True)
class Hospital:
    """site_yaml: its file. source: of the generator, with truth. ids: the hospital's, of all women."""

    site_yaml: Path
    source: Path
    ids: tuple[str, ...]

    @property
    def site(self) -> SiteFile:
        return read_site(self.site_yaml)


def alive(folder: Path) -> None:
    """No head stays at zero, so that every modality says something."""
    released = ReleasedModel.read(folder)
    model = Scorer(released, load_contract()).model
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    from safetensors.numpy import save_file

    arrays = arrays_of(model)
    save_file(arrays, folder / WEIGHTS)
    release = released.release.model_copy(update={
        "model_sha256": weights_sha256(arrays), "calibration": ((0.08, 0.05, 300), (0.25, 0.28, 300), (0.6, 0.7, 10)),
        "temperature": 1.3,
    })  # fmt: skip
    (folder / RELEASE).write_text(release.model_dump_json())


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    write_untrained_release(folder)
    alive(folder)
    return folder


@pytest.fixture(scope="session")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    folder = tmp_path_factory.mktemp("hospital")
    population = default_hospitals(sites=1, patients=WOMEN, held_out=1, seed=5, film_height=160, film_width=128,
                                   film_spacing_mm=1.25, conspicuity=5.0)  # fmt: skip
    source = generate(population, folder / "made", workers=1)[population.hospitals[0].name]
    path = write_example(folder / "north")
    path.with_name("importer.key").write_bytes(bytes(range(32)))  # its own would put another woman first each time
    values = yaml.safe_load(path.read_text())
    values["films"] = [{"kind": "folder", "path": str(source / "dicom")}]
    values["clinical"][0]["path"] = str(source / "clinical.csv")
    values["workers"] = 1
    path.write_text(yaml.safe_dump(values))
    with (source / "clinical.csv").open(newline="") as stream:
        ids = tuple(row["patient_id"] for row in csv.DictReader(stream))
    return Hospital(path, source, ids)


@pytest.fixture(scope="session")
def scorer(model_folder: Path) -> Scorer:
    return Scorer(ReleasedModel.read(model_folder), load_contract())


@pytest.fixture(scope="session")
def cases(hospital: Hospital) -> Cases:
    return read_cases(hospital.site, contract=load_contract())


@pytest.fixture(scope="session")
def predictions(hospital: Hospital, scorer: Scorer, cases: Cases) -> list[Prediction]:
    return predict(scorer, cases.cases, pipeline=hospital.site.imaging.pipeline(), reference=None)

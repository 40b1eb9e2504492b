"""Women with films only or a table only at a site, and models of a further modality that no site's command reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from fastapi.testclient import TestClient

from client.inference.cli import explain, predict
from client.inference.reference import _measured
from client.inference.scorer import Scorer
from client.inference.serve import Service, make_app
from shared_model.cohort.batch import OtherInput, PatientBatch
from shared_model.contract import load_contract
from shared_model.released import ReleasedModel
from simulations.untrained import write_untrained_release
from tests.client.inference.conftest import Hospital
from tests.end_to_end.test_third_modality import package  # noqa: F401 (a fixture)

WITHOUT = "Scored as without ultrasound, which the model knows and this command does not read."


def changed(hospital: Hospital, folder: Path, **values: Any) -> Path:
    """The hospital with another site.yaml."""
    folder.mkdir()
    shutil.copy(hospital.site_yaml.with_name("importer.key"), folder / "importer.key")
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(hospital.site_yaml.read_text()) | values))
    return path


def scored(site_yaml: Path, model: Path, out: Path, *more: str) -> tuple[str, list[dict[str, Any]]]:
    done = CliRunner().invoke(predict, [str(site_yaml), "--model", str(model), "--out", str(out), *more])
    assert done.exit_code == 0, done.output or done.exception
    return done.output, json.loads((out / "predictions.json").read_text())["predictions"]


def test_films_only_are_said_plainly_and_scored_as_without_a_table(
    hospital: Hospital, model_folder: Path, tmp_path: Path
) -> None:
    said, found = scored(changed(hospital, tmp_path / "films", clinical=None), model_folder, tmp_path / "a", "--fhir")
    assert found and {row["modalities"] for row in found} == {"image"}
    assert all(row["clinical_logit"] is None and row["gate"]["clinical"] == 0 for row in found)
    assert f"Rests on    films only {len(found)}" in said
    note = json.loads(next((tmp_path / "a" / "fhir").iterdir()).read_text())["note"]
    assert "Rests on films only." in [entry["text"] for entry in note]
    empty = tmp_path / "empty.csv"
    empty.write_text("patient_id,label,exam_date\n")
    source = {"kind": "csv", "path": str(empty)}
    _, before = scored(changed(hospital, tmp_path / "empty", clinical=[source]), model_folder, tmp_path / "b")
    assert [row["logit"] for row in found] == [row["logit"] for row in before], "as the empty table that it replaces"


def test_a_table_only_is_scored_as_without_films(hospital: Hospital, model_folder: Path, tmp_path: Path) -> None:
    said, found = scored(changed(hospital, tmp_path / "table", films=None), model_folder, tmp_path / "out")
    assert found and {row["modalities"] for row in found} == {"table"}
    assert all(row["image_logit"] is None and row["gate"]["image"] == 0 for row in found)
    assert f"Rests on    clinical table only {len(found)}" in said


@pytest.fixture
def three(package: None, tmp_path: Path) -> Path:  # noqa: F811
    """A model that knows ultrasound."""
    write_untrained_release(tmp_path / "three", overrides=["fusion.modalities=[image,clinical,ultrasound]"])
    return tmp_path / "three"


@pytest.fixture
def service(hospital: Hospital, three: Path) -> Iterator[TestClient]:
    scorer = Scorer(ReleasedModel.read(three), load_contract())
    with TestClient(make_app(Service(hospital.site, scorer, None, workers=1), token=None),
                    base_url="http://127.0.0.1") as running:  # fmt: skip
        yield running


def test_a_modality_that_is_not_read_is_said_by_predict_and_explain(
    hospital: Hospital, three: Path, tmp_path: Path
) -> None:
    ids = hospital.ids[:2]
    said, _ = scored(hospital.site_yaml, three, tmp_path / "out", "--patient", ids[0])
    assert f"! {WITHOUT}" in said
    done = CliRunner().invoke(explain, [str(hospital.site_yaml), *ids, "--model", str(three), "--out",
                                        str(tmp_path / "pages")])  # fmt: skip
    assert done.exit_code == 0 and f"! {WITHOUT}" in done.output
    pages = list((tmp_path / "pages").iterdir())
    assert len(pages) == 3 and all(WITHOUT in path.read_text() for path in pages)


def test_the_service_says_it_in_each_answer_and_of_its_model(service: TestClient) -> None:
    found = service.post("/v1/predictions", json={"clinical": {"age": 61}}).json()
    assert found["without"] == [WITHOUT] == service.get("/v1/model").json()["without"]


class Women:
    """Three women of a cohort, with an ultrasound each or without."""

    def __init__(self, *, examined: bool) -> None:
        features = torch.randn(3, load_contract().n_features, generator=torch.Generator().manual_seed(1))
        others = {"ultrasound": OtherInput(torch.ones(3, 6), torch.ones(3, dtype=torch.bool))} if examined else {}
        self.rows = PatientBatch(torch.zeros(3, 4, 2, 112, 84), torch.zeros(3, 4, dtype=torch.bool), features,
                                 torch.ones(3, dtype=torch.bool), torch.zeros(3), others)  # fmt: skip

    def __len__(self) -> int:
        return 3

    def batch(self, rows: Any) -> PatientBatch:
        return self.rows


def test_whom_she_is_compared_with_is_scored_without_it_too(three: Path) -> None:
    scorer = Scorer(ReleasedModel.read(three), load_contract())
    with torch.no_grad():
        for parameter in scorer.model.parameters():
            parameter.add_(0.1)
        rows = Women(examined=True).rows
        assert not torch.equal(scorer.model(rows).logit_B, scorer.model(Women(examined=False).rows).logit_B)
    known, plain = (_measured(scorer, Women(examined=found)).scores for found in (True, False))  # type: ignore[arg-type]
    assert known.tolist() == plain.tolist()

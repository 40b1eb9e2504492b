"""Scores of a site's women: the ones that an evaluation would give, without labels, with what they rest on."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.covariance import ledoit_wolf

from client.inference.cases import Cases, read_cases
from client.inference.predict import Prediction, predict
from client.inference.records import to_csv, to_fhir, to_json
from client.inference.reference import SiteReference, image_token, site_reference
from client.inference.scorer import BAND_NAMES, EDGES, Scorer
from client.ingest.exclusion import exclude_patient
from client.ingest.imports import import_site
from client.ingest.site_file import read_site
from shared_model.cohort import Cohort
from shared_model.contract import load_contract
from shared_model.errors import CohortError, ConfigError, WeightsError
from shared_model.evaluation import evaluate_cohort
from shared_model.released import RELEASE, WEIGHTS, ReleasedBand, ReleasedModel
from tests.client.inference.conftest import Hospital


@pytest.fixture(scope="module")
def elsewhere(hospital: Hospital, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same hospital's site.yaml with another work folder and cohort."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(hospital.site_yaml.with_name("importer.key"), folder / "importer.key")
    shutil.copy(hospital.site_yaml, folder / "site.yaml")
    return folder / "site.yaml"


def test_scores_are_those_of_the_prepared_cohort(
    elsewhere: Path, scorer: Scorer, predictions: list[Prediction]
) -> None:
    """The way from DICOM to logit is the importer's and the evaluator's, to the bit."""
    site = read_site(elsewhere)
    import_site(site)
    cohort = Cohort.open(site.cohort)
    found = evaluate_cohort(scorer.model, cohort, range(len(cohort)), batch_size=1, device=torch.device("cpu"))
    logits = dict(zip(cohort.pseudonyms, found.fused.tolist(), strict=True))
    assert len(predictions) == len(cohort)
    for one in predictions:
        assert one.score.logit == pytest.approx(logits[one.case.pseudonym], abs=1e-6)


def test_women_without_labels_are_scored(hospital: Hospital, cases: Cases, tmp_path: Path) -> None:
    rows = list(csv.DictReader((hospital.source / "clinical.csv").open(newline="")))
    with (tmp_path / "unlabelled.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, [name for name in rows[0] if name != "label"])
        table.writeheader()
        table.writerows({name: cell for name, cell in row.items() if name != "label"} for row in rows)
    values = yaml.safe_load(hospital.site_yaml.read_text())
    values["clinical"][0]["path"] = str(tmp_path / "unlabelled.csv")
    shutil.copy(hospital.site_yaml.with_name("importer.key"), tmp_path / "importer.key")
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(values))
    found = read_cases(read_site(tmp_path / "site.yaml"), contract=load_contract())
    assert [case.pseudonym for case in found.cases] == [case.pseudonym for case in cases.cases]
    for one, other in zip(found.cases, cases.cases, strict=True):
        assert one.modalities == other.modalities
        assert one.features is None or np.array_equal(one.features, other.features)  # type: ignore[arg-type]


def test_one_woman_is_found_by_the_hospitals_id(hospital: Hospital) -> None:
    found = read_cases(hospital.site, contract=load_contract(), patients=[hospital.ids[3]])
    assert [case.patient_id for case in found.cases] == [hospital.ids[3]]
    with pytest.raises(ConfigError, match="none of the site's sources"):
        read_cases(hospital.site, contract=load_contract(), patients=["NOBODY"])


def test_a_woman_who_objected_is_not_scored(elsewhere: Path, hospital: Hospital) -> None:
    site = read_site(elsewhere)
    list(exclude_patient(site, hospital.ids[0], is_pseudonym=False, ledgers=(), undo=False))
    found = read_cases(site, contract=load_contract())
    assert hospital.ids[0] not in {case.patient_id for case in found.cases}
    with pytest.raises(ConfigError, match="objected"):
        read_cases(site, contract=load_contract(), patients=[hospital.ids[0]])


def test_probability_band_and_threshold_are_consistent(scorer: Scorer, predictions: list[Prediction]) -> None:
    release = scorer.released.release
    for one in predictions:
        score = one.score
        assert score.probability == pytest.approx(1 / (1 + np.exp(-score.logit / release.temperature)))
        assert score.positive == (score.logit > release.thresholds["fused"])
        assert (score.band == "low") == (score.probability < EDGES[0])
        assert (score.image_logit is None) == (not one.case.films)
    bands = {band.name: band for band in scorer.bands()}
    assert bands["moderate"].n == 300 and bands["moderate"].observed == pytest.approx(0.05)
    assert bands["high"].n == 10 and bands["high"].observed is None, "ten women tell no rate"


def test_bands_are_those_of_the_studys_report(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [{"low": low, "high": high, "n": n, "rate": 0.1, "rate_low": 0.01, "rate_high": 0.3}
            for low, high, n in ((0, 0.02, None), (0.02, 0.1, 19), (0.1, 0.3, 20), (0.3, 1, 300))]
    release = scorer.released.release.model_copy(update={"bands": tuple(ReleasedBand(**row) for row in told)})
    monkeypatch.setattr(scorer, "released", replace(scorer.released, release=release))
    found = scorer.bands()
    assert [band.n for band in found] == [None, 19, 20, 300] and [band.name for band in found] == list(BAND_NAMES)
    assert [band.observed for band in found] == [None, None, 0.1, 0.1], "fewer than 20 women tell no rate"


def test_another_prevalence_shifts_the_odds(scorer: Scorer) -> None:
    own = scorer.probability(0.3, prevalence=scorer.released.release.prevalence)
    assert own == pytest.approx(scorer.probability(0.3))
    assert scorer.probability(0.3, prevalence=0.006) < 0.05


def test_csv_json_and_fhir_say_what_the_score_rests_on(scorer: Scorer, predictions: list[Prediction]) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(predictions, scorer))))
    document = json.loads(to_json(predictions, scorer, {"x": "nothing_usable"}))
    assert len(rows) == len(document["predictions"]) == len(predictions)
    release = scorer.released.release
    for row, one in zip(rows, predictions, strict=True):
        assert row["model_sha256"] == release.model_sha256 and row["protocol_sha256"] == release.protocol_sha256
        assert row["modalities"] == one.case.modalities and float(row["probability"]) == round(one.score.probability, 6)
        assert not one.case.films or row["out_of_distribution"] != "no", "without a cohort no film is called usual"
        resource = to_fhir(one, scorer)
        assert resource["resourceType"] == "RiskAssessment" and resource["status"] == "preliminary"
        assert resource["subject"]["identifier"]["value"] == one.case.patient_id
        assert 0 <= resource["prediction"][0]["probabilityDecimal"] <= 1
        assert release.model_sha256 in resource["method"]["text"]
    assert document["not_scored"] == {"x": "nothing_usable"}


@pytest.mark.parametrize("patient_id", ["=HYPERLINK(1)", "@SUM", "-3", "+4"])
def test_an_id_is_no_formula(scorer: Scorer, predictions: list[Prediction], patient_id: str) -> None:
    one = replace(predictions[0], case=replace(predictions[0].case, patient_id=patient_id))
    assert f"'{patient_id}" in to_csv([one], scorer)


def test_films_of_another_pipeline_are_refused(hospital: Hospital, scorer: Scorer, cases: Cases) -> None:
    other = replace(hospital.site.imaging.pipeline(), spacing_mm=2.0)
    with pytest.raises(CohortError, match="another way"):
        predict(scorer, cases.cases, pipeline=other, reference=None)


def test_a_case_unlike_the_cohort_is_flagged(scorer: Scorer, hospital: Hospital, cases: Cases) -> None:
    """A reference of usual women: they are usual; a film whose greys are inverted is not."""
    pipeline = hospital.site.imaging.pipeline()
    whole = [case for case in cases.cases if case.films]
    tokens = np.concatenate([image_token(scorer, case.batch(pipeline, scorer.contract.n_features)) for case in whole])
    reference = SiteReference(scores=np.linspace(-4, 2, 100), centre=tokens.mean(axis=0),
                              precision=np.linalg.pinv(ledoit_wolf(tokens)[0]), limit=0.0)  # fmt: skip
    reference = replace(reference, limit=1.3 * max(reference.distance(token) or 0.0 for token in tokens))
    usual = predict(scorer, whole, pipeline=pipeline, reference=reference)
    assert not any("unlike those" in why for one in usual for why in one.why)
    inverted = {view: replace(film, view=replace(film.view, pixels=1 - film.view.pixels))
                for view, film in whole[0].films.items()}  # fmt: skip
    found = predict(scorer, [replace(whole[0], films=inverted)], pipeline=pipeline, reference=reference)[0]
    assert found.unusual and "her films are unlike those of this site's cohort" in found.why
    assert found.percentile is not None and 0 <= found.percentile <= 1


def test_the_sites_reference_is_made_once_and_kept(elsewhere: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch,
                                                   tmp_path: Path) -> None:  # fmt: skip
    site = read_site(elsewhere)
    import_site(site)
    assert site_reference(scorer, site.cohort, tmp_path) is None, "too few women to call one of them unusual"
    monkeypatch.setattr("client.inference.reference.LEAST_WOMEN", 8)
    first = site_reference(scorer, site.cohort, tmp_path)
    assert first is not None and first.centre is not None
    monkeypatch.setattr("client.inference.reference._measured", lambda *_: pytest.fail("it is kept"))
    again = site_reference(scorer, site.cohort, tmp_path)
    assert again is not None and np.array_equal(first.scores, again.scores) and again.limit == first.limit
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir())


@pytest.mark.parametrize("name", [WEIGHTS, RELEASE])
def test_a_changed_release_is_refused(model_folder: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "model")
    data = bytearray((folder / name).read_bytes())
    data[-40] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(WeightsError):
        ReleasedModel.read(Path(folder))

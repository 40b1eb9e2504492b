"""Results as DICOM and pages: valid by dciodvfy and dcmtk, taken by a real Orthanc, in the film's own geometry."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import yaml
from pydicom.dataset import Dataset

from client.inference.case_report import explain, page
from client.inference.explain import write_pages
from client.inference.originals import Originals
from client.inference.pictures import explained_films
from client.inference.predict import Prediction
from client.inference.scorer import Scorer
from client.inference.write import objects_of, write_results
from client.ingest.deidentify import Deidentifier
from client.ingest.site_file import SiteFile, read_site
from client.ingest.sources.objects import to_file
from shared_model.errors import ConfigError
from shared_model.released import ReleasedModel
from tests.client.inference.conftest import Hospital
from tests.orthanc import Orthanc, skip_without_orthanc

SC, SR = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.88.33"
NATIVE = "1.2.840.10008.1.2.1"


@pytest.fixture(scope="module")
def chosen(predictions: list[Prediction]) -> Prediction:
    """A woman with all four films and a table."""
    return next(p for p in predictions if len(p.case.films) == 4 and p.case.features is not None)


def made(site: SiteFile, scorer: Scorer, prediction: Prediction) -> list[Dataset]:
    with Originals(site, Deidentifier(site.read_key())) as originals:
        return objects_of(site, scorer, prediction, originals)


@pytest.fixture(scope="module")
def objects(hospital: Hospital, scorer: Scorer, chosen: Prediction) -> list[Dataset]:
    return made(hospital.site, scorer, chosen)


def test_one_capture_a_film_and_one_report(objects: list[Dataset], chosen: Prediction, hospital: Hospital) -> None:
    assert [str(o.SOPClassUID) for o in objects] == [SC] * 4 + [SR]
    films = {str(pydicom.dcmread(f.path, stop_before_pixels=True).SOPInstanceUID) for f in chosen.case.films.values()}
    assert {str(o.SourceImageSequence[0].ReferencedSOPInstanceUID) for o in objects[:4]} == films
    for one in objects:
        assert one.PatientID == chosen.case.patient_id and str(one.PatientName).startswith("SYNTH^")
        assert str(one.StudyInstanceUID) not in ("", "None") and one.SeriesNumber in (9101, 9102)
    assert len({str(o.SOPInstanceUID) for o in objects}) == 5
    assert len({str(o.SeriesInstanceUID) for o in objects}) == 2


def test_the_same_result_is_the_same_object(
    hospital: Hospital, scorer: Scorer, chosen: Prediction, objects: list[Dataset]
) -> None:
    again = made(hospital.site, scorer, chosen)
    assert [str(o.SOPInstanceUID) for o in again] == [str(o.SOPInstanceUID) for o in objects]


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy (apt-get install dicom3tools)")
def test_dciodvfy_finds_no_error(objects: list[Dataset], tmp_path: Path) -> None:
    for number, one in enumerate(objects):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(to_file(one, NATIVE))
        said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        lines = (said.stdout + said.stderr).splitlines()
        assert [line for line in lines if line.startswith("Error")] == []
        assert any("SCImage" in line or "ComprehensiveSR" in line for line in lines)


@pytest.mark.skipif(shutil.which("dsrdump") is None, reason="needs dcmtk")
def test_dcmtk_reads_the_report(objects: list[Dataset], tmp_path: Path, chosen: Prediction) -> None:
    path = tmp_path / "sr.dcm"
    path.write_bytes(to_file(objects[-1], NATIVE))
    said = subprocess.run(["dsrdump", str(path)], capture_output=True, text=True, check=False)
    assert said.returncode == 0 and "error" not in said.stderr.lower()
    assert "Probability of cancer" in said.stdout
    assert f'"{100 * chosen.score.probability:.2f}'.rstrip("0") in said.stdout
    assert "Imaging Measurement Report" in said.stdout


def test_the_map_lies_on_the_stored_film(hospital: Hospital, scorer: Scorer, chosen: Prediction) -> None:
    """The film's own size, and a right breast's map is at the right breast's side."""
    site = hospital.site
    films = explained_films(scorer, chosen.case, pipeline=site.imaging.pipeline(), policy=site.film_policy.admission(),
                            declared_spacing_mm=None)  # fmt: skip
    for view, film in films.items():
        header = pydicom.dcmread(chosen.case.films[view].path, stop_before_pixels=True)
        assert film.shown.shape == film.heat.shape == (header.Rows, header.Columns)
        assert film.overlaid().shape == (header.Rows, header.Columns, 3)
        half = film.shown.shape[1] // 2
        left, right = film.shown[:, :half].mean(), film.shown[:, half:].mean()
        assert (left > right) == (view[0] == "L")
        if film.heat.max() > 0:
            weight = film.heat.sum(axis=0)
            middle = float((weight * np.arange(len(weight))).sum() / weight.sum())
            assert (middle < half) == (view[0] == "L"), "the map is on the breast's side of the film"


def test_a_capture_keeps_the_films_pixels_in_place(
    objects: list[Dataset], hospital: Hospital, scorer: Scorer, chosen: Prediction
) -> None:
    header = pydicom.dcmread(chosen.case.films["R_CC"].path)
    capture = next(o for o in objects[:4] if o.SourceImageSequence[0].ReferencedSOPInstanceUID == header.SOPInstanceUID)
    factor = capture.Columns // header.Columns
    assert capture.Rows > factor * header.Rows, "words stand below the film and not on it"
    assert list(capture.PatientOrientation) == list(header.PatientOrientation)
    assert capture.BurnedInAnnotation == "NO" and capture.Laterality == "R"


def test_files_are_their_owners_alone_and_named_by_nobody(
    hospital: Hospital, scorer: Scorer, chosen: Prediction, tmp_path: Path
) -> None:
    done = write_results(hospital.site, scorer, [chosen], {}, tmp_path / "out", fhir=True, dicom=True, send=False)
    assert (done.objects, done.fhir, done.sent) == (5, 1, None)
    paths = list((tmp_path / "out").rglob("*"))
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in paths)
    assert not [path for path in paths if chosen.case.patient_id in path.name]
    with pytest.raises(ConfigError, match="results"):
        write_results(hospital.site, scorer, [chosen], {}, tmp_path / "o", fhir=False, dicom=False, send=True)


@pytest.mark.slow
def test_a_real_orthanc_takes_them(
    hospital: Hospital, scorer: Scorer, chosen: Prediction, tmp_path: Path, objects: list[Dataset]
) -> None:
    skip_without_orthanc()
    with Orthanc(tmp_path / "orthanc") as pacs:
        values = yaml.safe_load(hospital.site_yaml.read_text())
        values["results"] = {"host": "127.0.0.1", "port": pacs.dicom_port, "called_ae": "PACS"}
        values["key"] = str(hospital.site_yaml.with_name("importer.key"))
        (tmp_path / "site.yaml").write_text(yaml.safe_dump(values))
        done = write_results(read_site(tmp_path / "site.yaml"), scorer, [chosen], {}, tmp_path / "out", fhir=False,
                             dicom=False, send=True)  # fmt: skip
        assert done.sent is not None and (done.sent.sent, done.sent.waiting, dict(done.sent.failed)) == (5, 0, {})
        there = {pacs.rest(f"instances/{i}/simplified-tags")["SOPInstanceUID"] for i in pacs.instances()}
        assert there == {str(o.SOPInstanceUID) for o in objects}
        series = {pacs.rest(f"series/{s}")["MainDicomTags"]["Modality"] for s in pacs.rest("series")}
        assert series == {"OT", "SR"}


def test_the_case_report_explains_without_naming(
    hospital: Hospital, scorer: Scorer, chosen: Prediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = hospital.site
    films = explained_films(scorer, chosen.case, pipeline=site.imaging.pipeline(), policy=site.film_policy.admission(),
                            declared_spacing_mm=None)  # fmt: skip
    explanation = explain(scorer, chosen, films, pipeline=site.imaging.pipeline())
    text = page(explanation, scorer, None)
    assert explanation.shares is not None and explanation.shares.gap < 1e-4
    assert explanation.shares.full == pytest.approx(chosen.score.logit, abs=1e-4)
    assert chosen.case.patient_id not in text and "SYNTH" not in text
    assert not re.search(r"(src|href)=\"(?!data:)", text), "nothing is loaded from elsewhere"
    assert text.count("<img") == 8 and "Research use only" in text
    assert "It was not measured how well" in text, "a model without a figure says so beside its maps"
    assert "attention" in text and "worse than chance" in text
    assert "At a screening prevalence of 0.6 %" in text
    protocol = scorer.released.protocol
    terms = protocol.evaluation.model_copy(update={"prevalence": 0.02})
    other = replace(scorer.released, protocol=protocol.model_copy(update={"evaluation": terms}))
    monkeypatch.setattr(scorer, "released", other)
    assert "At a screening prevalence of 2 %" in page(explanation, scorer, None), "the one that the study's report has"


def test_pages_and_a_board_list(hospital: Hospital, model_folder: Path, tmp_path: Path) -> None:
    model = ReleasedModel.read(model_folder)
    paths = write_pages(hospital.site, model, hospital.ids[:2], tmp_path / "p", method="gradcam")
    assert [path.name for path in paths][-1] == "board.html" and len(paths) == 3
    text = paths[-1].read_text()
    assert all(path.name in text for path in paths[:-1])
    assert not any(patient in text for patient in hospital.ids)
    with pytest.raises(ConfigError, match="method"):
        write_pages(hospital.site, model, hospital.ids[:1], tmp_path / "q", method="attention")

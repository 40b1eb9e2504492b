"""Results of films that a PACS sent de-identified come back to the right woman's own study, in a real Orthanc.

Orthanc has films of three women. They are imported de-identified, scored, and what is sent must lie in the very studies
that the films came from; under another key or another woman's id nothing is found.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
import yaml
from click.testing import CliRunner
from pydicom.dataset import Dataset

from client.inference.cases import Case, read_cases
from client.inference.cli import predict as command
from client.inference.originals import NotPlacedError, Originals
from client.inference.scorer import Scorer
from client.ingest.deidentify import Deidentifier
from client.ingest.site_file import SiteFile, read_site
from client.ingest.sources.retry import Backoff
from shared_model.contract import load_contract
from shared_model.errors import SourceError
from tests.client.inference.conftest import Hospital
from tests.orthanc import Orthanc, skip_without_orthanc

NAME, BORN, ACCESSION = "WINTERHÄLTER^ÅSA", "19610203", "ACC-77"
SC, SR = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.88.33"


@dataclass(frozen=True)
class Archive:
    """pacs: with films of `ids`. films: SOP Instance UID -> header as the hospital has it."""

    pacs: Orthanc
    ids: tuple[str, ...]
    films: dict[str, Dataset]
    folder: Path

    def of(self, patient: str) -> list[Dataset]:
        return [header for header in self.films.values() if header.PatientID == patient]


@pytest.fixture(scope="module")
def archive(hospital: Hospital, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    skip_without_orthanc()
    folder = tmp_path_factory.mktemp("archive")
    by_patient: dict[str, list[Path]] = {}
    for path in sorted(hospital.source.joinpath("dicom").rglob("*.dcm")):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        by_patient.setdefault(str(header.PatientID), []).append(path)
    ids = tuple(sorted(patient for patient, paths in by_patient.items() if len(paths) == 4)[:3])
    films: dict[str, Dataset] = {}
    (folder / "films").mkdir()
    for patient in ids:
        for path in by_patient[patient]:
            ds = pydicom.dcmread(path)
            ds.SpecificCharacterSet = "ISO_IR 100"
            ds.PatientName, ds.PatientBirthDate, ds.AccessionNumber = NAME, BORN, ACCESSION
            ds.save_as(folder / "films" / f"{len(films)}.dcm")
            films[str(ds.SOPInstanceUID)] = ds
    with Orthanc(folder / "orthanc") as pacs:
        pacs.store(folder / "films")
        yield Archive(pacs, ids, films, folder / "films")


def site_at(hospital: Hospital, archive: Archive, folder: Path, way: str) -> Path:
    """A site whose films come from the PACS, and whose results go there."""
    pacs, period = archive.pacs, {"from": "1990-01-01", "to": "2030-12-31", "patients": str(folder / "ids.csv")}
    patience = {"studies": period, "quiet_seconds": 0.0, "retries": 1, "timeout_seconds": 120}
    dimse = {"host": pacs.host, "port": pacs.dicom_port, "called_ae": "PACS"}
    source = {"kind": "dicomweb", "url": pacs.url} if way == "dicomweb" else {"kind": "dimse", **dimse, "retrieve": way}
    if way == "move":
        source |= {"receive_port": pacs.receive_port, "receive_address": "127.0.0.1"}
    values = yaml.safe_load(hospital.site_yaml.read_text())
    values |= {"films": [source | patience], "results": dimse}
    rows = list(csv.DictReader((hospital.source / "clinical.csv").open(newline="")))
    with (folder / "clinical.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(row for row in rows if row["patient_id"] in archive.ids[:1])
    values["clinical"][0]["path"] = "clinical.csv"
    (folder / "ids.csv").write_text("\n".join(archive.ids) + "\n")
    shutil.copy(hospital.site_yaml.with_name("importer.key"), folder / "importer.key")
    (folder / "site.yaml").write_text(yaml.safe_dump(values))
    return folder / "site.yaml"


@pytest.fixture(scope="module")
def site(hospital: Hospital, archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> SiteFile:
    return read_site(site_at(hospital, archive, tmp_path_factory.mktemp("site"), "get"))


@pytest.fixture(scope="module")
def case(site: SiteFile, archive: Archive) -> Case:
    return read_cases(site, contract=load_contract(), patients=archive.ids[:1]).cases[0]


def found(pacs: Orthanc) -> dict[str, dict[str, Any]]:
    """SOP Instance UID -> tags of results in the PACS."""
    tags = (pacs.rest(f"instances/{i}/simplified-tags") for i in pacs.instances())
    return {t["SOPInstanceUID"]: t for t in tags if t["SOPClassUID"] in (SC, SR)}


@pytest.mark.parametrize("way", ["move", "dicomweb"])
def test_results_come_to_the_study_that_the_films_are_in(
    hospital: Hospital, archive: Archive, model_folder: Path, tmp_path: Path, way: str
) -> None:
    path, pacs, patient = site_at(hospital, archive, tmp_path, way), archive.pacs, archive.ids[1]
    (tmp_path / "worklist.csv").write_text(f"patient_id,why\n{patient},board on Monday\n")
    arguments = [path, "--model", model_folder, "--out", tmp_path / "out", "--worklist", tmp_path / "worklist.csv"]
    said = CliRunner().invoke(command, [*map(str, arguments), "--send"], catch_exceptions=False)
    assert said.exit_code == 0 and "5 sent, 0 waiting" in said.output, said.output
    try:
        results, hers = found(pacs), archive.of(patient)
        assert sorted(t["SOPClassUID"] for t in results.values()) == [SC] * 4 + [SR]
        for tags in results.values():
            assert (tags["PatientID"], tags["PatientBirthDate"], tags["AccessionNumber"]) == (patient, BORN, ACCESSION)
            assert tags["StudyInstanceUID"] == hers[0].StudyInstanceUID and tags["StudyDate"] == hers[0].StudyDate
        assert len(pacs.rest("studies")) == len(archive.ids), "no study is new"
        written = [pydicom.dcmread(p) for p in (tmp_path / "out" / "dicom").iterdir()]
        assert {str(o.SOPInstanceUID) for o in written} == results.keys()
        assert {str(o.PatientName) for o in written} == {NAME}
        captures = [o for o in written if o.SOPClassUID == SC]
        films = {str(o.SourceImageSequence[0].ReferencedSOPInstanceUID) for o in captures}
        report = next(o for o in written if o.SOPClassUID == SR)
        series = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
        evidence = {(str(s.SeriesInstanceUID), str(r.ReferencedSOPInstanceUID), str(r.ReferencedSOPClassUID))
                    for s in series for r in s.ReferencedSOPSequence}  # fmt: skip
        assert films == {str(header.SOPInstanceUID) for header in hers}
        assert evidence == {(str(h.SeriesInstanceUID), str(h.SOPInstanceUID), str(h.SOPClassUID)) for h in hers}
    finally:
        for instance in pacs.instances():
            if pacs.rest(f"instances/{instance}/simplified-tags")["SOPInstanceUID"] not in archive.films:
                pacs.remove(instance)
    own = [p for p in (tmp_path / "importer").rglob("*") if p.is_file() and "outbox" not in str(p)]
    kept = b"".join(p.read_bytes() for p in own)
    secrets = [patient, "WINTERH", ACCESSION, *(str(header.SOPInstanceUID) for header in hers)]
    assert not [secret for secret in secrets if secret.encode() in kept], "what the importer keeps gives nobody away"
    assert not [secret for secret in secrets if secret in said.output]


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy (apt-get install dicom3tools)")
def test_they_are_the_objects_that_the_films_themselves_give_and_valid(
    hospital: Hospital, archive: Archive, model_folder: Path, site: SiteFile, tmp_path: Path
) -> None:
    """From the folder and from the PACS the same woman's results are the same objects, by UID and by dciodvfy."""
    values = yaml.safe_load(hospital.site_yaml.read_text())
    values["films"] = [{"kind": "folder", "path": str(archive.folder)}]
    shutil.copy(hospital.site_yaml.with_name("importer.key"), tmp_path / "importer.key")
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(values))
    uids = []
    for name, path in (("pacs", site.key.with_name("site.yaml")), ("folder", tmp_path / "site.yaml")):
        arguments = [path, "--model", model_folder, "--out", tmp_path / name, "--patient", archive.ids[0], "--dicom"]
        said = CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)
        assert said.exit_code == 0, said.output
        made = sorted((tmp_path / name / "dicom").iterdir())
        uids.append({str(pydicom.dcmread(p).SOPInstanceUID) for p in made})
        for p in made if name == "pacs" else ():
            checked = subprocess.run(["dciodvfy", str(p)], capture_output=True, text=True, check=False)
            lines = (checked.stdout + checked.stderr).splitlines()
            assert [line for line in lines if line.startswith("Error")] == []
    assert len(uids[0]) == 5 and uids[0] == uids[1]


def test_another_key_or_another_woman_leads_nowhere(site: SiteFile, archive: Archive, case: Case) -> None:
    with Originals(site, Deidentifier(b"another key of 32 bytes, or more")) as originals:
        with pytest.raises(NotPlacedError, match="key") as raised:
            originals.of(case)
        assert raised.value.reason == "unknown_patient"
    deidentifier = Deidentifier(site.read_key())
    with Originals(site, deidentifier) as originals:
        assert {str(h.PatientID) for h in originals.of(case).values()} == {archive.ids[0]}
        for wrong in (archive.ids[1], "", "NOBODY"):
            with pytest.raises(NotPlacedError) as raised:
                originals.of(replace(case, patient_id=wrong))
            assert raised.value.reason == "unknown_patient"

    class Believing(Deidentifier):
        """Believes every id: then her study still has to be found by its UID."""

        def pseudonym(self, patient_id: str) -> str:
            return case.pseudonym

    with Originals(site, Believing(site.read_key())) as originals:
        for wrong, reason in ((archive.ids[1], "not_in_pacs"), ("NOBODY", "not_in_pacs"), ("*", "id_not_askable")):
            with pytest.raises(NotPlacedError) as raised:
                originals.of(replace(case, patient_id=wrong))
            assert raised.value.reason == reason


def test_a_woman_without_a_way_back_is_scored_and_named_and_the_others_are_sent(
    site: SiteFile, archive: Archive, model_folder: Path, case: Case, tmp_path: Path
) -> None:
    """One of her films is gone from the PACS. The score stays; nothing half of her is sent."""
    pacs = archive.pacs
    victim = archive.of(archive.ids[0])[0]
    place = pacs.rest("tools/lookup", str(victim.SOPInstanceUID).encode())[0]["ID"]
    pacs.remove(place)
    try:
        with Originals(site, Deidentifier(site.read_key())) as originals, pytest.raises(NotPlacedError) as raised:
            originals.of(case)
        assert raised.value.reason == "film_not_in_pacs"
        arguments = ["--model", model_folder, "--out", tmp_path / "out", "--dicom", "--patient", archive.ids[0]]
        said = CliRunner().invoke(command, [str(site.key.with_name("site.yaml")), *map(str, arguments)])
        assert said.exit_code == 0 and "1 without objects for the PACS: the PACS has the exam" in said.output
        assert not list((tmp_path / "out" / "dicom").iterdir())
        assert f'"{case.pseudonym}": "film_not_in_pacs"' in (tmp_path / "out" / "predictions.json").read_text()
    finally:
        pacs.store(archive.folder)


def test_a_pacs_that_is_away_is_said(site: SiteFile, archive: Archive, case: Case, scorer: Scorer) -> None:
    archive.pacs.kill()
    try:
        with (
            Originals(site, Deidentifier(site.read_key()), backoff=Backoff(1, first_seconds=0.05)) as originals,
            pytest.raises(SourceError, match="whose record"),
        ):
            originals.of(case)
    finally:
        archive.pacs.start()

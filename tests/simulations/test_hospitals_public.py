"""Public data sets as hospitals: who belongs to whom, who is held out, what is never taken along, what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.ingest import prepare_site
from shared_model.cohort import Cohort
from shared_model.contract import load_contract
from shared_model.errors import CohortError, ConfigError, LeakageError, MammoFedError
from shared_model.imaging import DIGITISED_FILMS
from shared_model.lesion_types import LESION_TYPES
from simulations.hospitals import cbis_ddsm, check_cohort, check_held_out, manifest, mini_mias, sources
from simulations.hospitals.collection import Woman
from simulations.hospitals.partition import check_sizes, partition
from simulations.hospitals.public import write_source
from simulations.lesions import lesion_types
from tests.conftest import write_cohort
from tests.public_sets import (
    PIPELINE,
    SIDE,
    breast,
    case_row,
    manifest_rows,
    settings,
    write_case_film,
    write_cases,
    write_mias,
    write_pgm,
    write_png,
    write_rows,
)


def make(config: dict[str, Any], cache: Path) -> dict[str, Path]:
    return sources(config, cache, pipeline=PIPELINE, workers=1, progress=lambda done, total: None)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def headers(folder: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted((folder / "dicom").rglob("*.dcm"))]


# Women are dealt out, never films.

IDS = st.lists(st.text("PW0123456789_", min_size=1, max_size=8), unique=True, max_size=40)


@given(ids=IDS, sites=st.integers(1, 6), fraction=st.floats(0.05, 0.95), salt=st.text(min_size=1, max_size=5))
def test_a_woman_is_at_one_place_and_stays_there(ids: list[str], sites: int, fraction: float, salt: str) -> None:
    women = [Woman(patient_id=name, label=0, films=()) for name in ids]
    terms = {"sites": sites, "held_out_fraction": fraction, "salt": salt}
    parties = partition(women, **terms)
    assert list(parties) == [f"site_{k + 1:02d}" for k in range(sites)] + ["held_out"]
    assert sorted(w.patient_id for party in parties.values() for w in party) == sorted(ids)
    fewer = partition(women[::2], **terms)
    for name, party in fewer.items():
        assert {w.patient_id for w in party} <= {w.patient_id for w in parties[name]}


def test_what_the_data_set_says_goes_before_the_hash() -> None:
    women = [Woman(patient_id=f"W{k}", label=0, films=(), site="b" if k % 2 else "a", held_out=k < 4)
             for k in range(20)]  # fmt: skip
    parties = partition(women, sites=7, held_out_fraction=0.5, salt="x")
    assert {name: len(party) for name, party in parties.items()} == {"a": 8, "b": 8, "held_out": 4}


def test_a_study_without_enough_women_is_refused_with_its_counts() -> None:
    women = [Woman(patient_id=f"W{k}", label=k % 2, films=(), held_out=k < 20) for k in range(40)]
    check_sizes(partition(women, sites=1, held_out_fraction=0.5, salt="x"), kind="manifest", least=10)
    with pytest.raises(CohortError, match="held_out: 2 women, 1 with cancer"):
        few = partition(women[18:], sites=1, held_out_fraction=0.5, salt="x")
        check_sizes(few, kind="manifest", least=10)
    with pytest.raises(CohortError, match="at least 30 women at each site"):
        check_sizes(partition(women, sites=1, held_out_fraction=0.5, salt="x"), kind="manifest", least=30)


def test_a_part_of_the_held_out_without_both_labels_is_refused_before_any_round(tmp_path: Path) -> None:
    write_cohort(tmp_path / "few", site="held_out", patients=3, seed=1)
    write_cohort(tmp_path / "many", site="held_out", patients=60, seed=1)
    terms: dict[str, Any] = {"salt": "x", "fractions": {"selection": 0.5, "test": 0.5}}
    check_held_out(Cohort.open(tmp_path / "many"), **terms)
    with pytest.raises(CohortError, match="do not have both labels in each part"):
        check_held_out(Cohort.open(tmp_path / "few"), **terms)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_an_impossible_fraction_is_refused(fraction: float) -> None:
    with pytest.raises(CohortError, match="held_out_fraction"):
        partition([], sites=2, held_out_fraction=fraction, salt="x")


@pytest.mark.parametrize("kind", ["cbis_ddsm", "mini_mias", "manifest"])
def test_a_source_must_be_named_and_be_there(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cohort\.source=PATH"):
        check_cohort(settings(kind, tmp_path) | {"cohort": {"kind": kind, "source": None}})
    config = settings(kind, tmp_path / "nowhere")
    check_cohort(config)
    with pytest.raises(ConfigError, match="no such"):
        make(config, tmp_path / "cache")


# mini-MIAS

@pytest.fixture(scope="module")
def mias(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mias")
    write_mias(folder, women=60)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_a_pair_is_a_woman_and_both_her_films_go_together(mias: Path, cache: Path) -> None:
    folders = make(settings("mini_mias", mias), cache)
    assert list(folders) == ["site_01", "site_02", "held_out"]
    seen: set[str] = set()
    for folder in folders.values():
        table = {row["patient_id"]: row["label"] for row in rows(folder / "clinical.csv")}
        films: dict[str, set[str]] = {}
        for ds in headers(folder):
            films.setdefault(ds.PatientID, set()).add(f"{ds.ImageLaterality}_{ds.ViewPosition}")
        assert set(films) == set(table) and all(views == {"L_MLO", "R_MLO"} for views in films.values())
        assert not seen & set(table)
        seen |= set(table)
        assert all(label == str(int((int(name[4:]) - 1) % 3 == 0)) for name, label in table.items())
    assert len(seen) == 60
    again = make(settings("mini_mias", mias), cache)
    assert again == folders and len(list((cache / "public").iterdir())) == 1


def test_its_films_enter_a_site_as_a_hospitals_do(mias: Path, cache: Path, tmp_path: Path) -> None:
    source = make(settings("mini_mias", mias), cache)["site_01"]
    report = prepare_site(
        source=source, destination=tmp_path / "cohort", contract=load_contract(), pipeline=PIPELINE, site="site_01",
        key=bytes(16), workers=1, policy=DIGITISED_FILMS,
    )  # fmt: skip
    assert report.films_prepared == report.films == 2 * report.patients_prepared > 0
    assert report.image_only == report.patients_prepared and report.reasons == {}


def test_y_counts_from_the_bottom(mias: Path, cache: Path) -> None:
    source = make(settings("mini_mias", mias), cache)["site_01"]
    truth = rows(source / "truth.csv")[0]
    scale = SIDE / 1024
    assert int(truth["row0"]) == int((1023 - 425 - 197) * scale) and int(truth["col0"]) == int((535 - 197) * scale)
    assert int(truth["row1"]) <= int((1023 - 425 + 197) * scale) + 1
    assert truth["kind"] == "CIRC-M"


def test_the_list_is_read_in_both_of_its_forms(tmp_path: Path) -> None:
    (tmp_path / "Info.txt").write_text("prose\nmdb001 G CIRC B 535 425 197\nmdb005 F CIRC B 477 133 30\n"
                                       "mdb005 F CIRC B 500 168 26 \nmdb059 F CIRC B *NOTE 3*\nmdb003 D NORM\n")
    (tmp_path / "labels_lesion.csv").write_text(
        "image_id,tissue,abnormality,severity,x_px,y_px_from_bottom,radius_px,note\nmdb001,G,CIRC,B,535,425,197,\n"
        'mdb005,F,CIRC,B,477,133,30,\nmdb005,F,CIRC,B,500,168,26,\nmdb059,F,CIRC,B,,,,"a note,\nin two lines"\n'
        "mdb003,D,NORM,,,,,\n"
    )
    info = mini_mias.read_findings(tmp_path / "Info.txt")
    assert info == mini_mias.read_findings(tmp_path / "labels_lesion.csv")
    assert len(info["mdb005"]) == 2 and info["mdb059"][0].circle is None and info["mdb003"][0].severity == ""


@pytest.mark.parametrize("line", ["mdb001 G CIRC", "mdb001 G NORM B", "mdb001 G CIRC B 5 5 2000", "mdb001"])
def test_a_line_that_cannot_be_understood_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "Info.txt").write_text(f"prose\n{line}\n")
    with pytest.raises(CohortError, match="line 2"):
        mini_mias.read_findings(tmp_path / "Info.txt")


def test_the_format_with_more_films_is_used_for_all(tmp_path: Path) -> None:
    write_mias(tmp_path, women=2)
    for image in (1, 2, 3, 4, 5):
        write_png(tmp_path / f"mdb{image:03d}.png", breast("L"))
    named = mini_mias.inputs(settings("mini_mias", tmp_path)["cohort"])
    assert sorted(named) == ["Info.txt", *(f"mdb{image:03d}.png" for image in (1, 2, 3, 4, 5))]


def test_cancer_in_the_other_breast_counts_though_its_film_is_not_there(tmp_path: Path) -> None:
    write_mias(tmp_path, women=1, lines=["mdb009 D NORM"])
    (tmp_path / "mdb001.pgm").unlink()
    collection = mini_mias.collect(settings("mini_mias", tmp_path)["cohort"], pipeline=PIPELINE, workers=1)
    (woman,) = collection.women
    assert (woman.patient_id, woman.label, [film.view for film in woman.films]) == ("MIAS001", 1, ["L_MLO"])


def test_a_damaged_film_stops_the_study_and_leaves_nothing_half_made(mias: Path, tmp_path: Path) -> None:
    write_mias(tmp_path / "set", women=60)
    film = tmp_path / "set" / "mdb007.pgm"
    film.write_bytes(film.read_bytes()[:-1])
    with pytest.raises(CohortError, match=r"mdb007\.pgm ends before its pixels"):
        make(settings("mini_mias", tmp_path / "set"), tmp_path / "cache")
    assert list((tmp_path / "cache" / "public").iterdir()) == []


CLINICAL = {"patient_id": "MIAS001", "age": "61", "family_history_first_degree": "9", "hrt_current": "1",
            "birads_density": "3", "breast_biopsy_history": "0", "bmi": "-99.0", "leak_radiologist_birads": "5"}


def test_clinical_rows_come_in_by_the_map_and_what_leaks_stays_out(tmp_path: Path) -> None:
    write_rows(tmp_path / "table.csv", [CLINICAL])
    columns = settings("mini_mias", tmp_path)["cohort"]["columns"]
    row = mini_mias.read_clinical(tmp_path / "table.csv", columns)["MIAS001"]
    assert row == {"age": "61", "first_degree_relatives": "9", "hrt": "1", "breast_density": "3", "prior_biopsies": "0",
                   "bmi": "-99.0"}  # fmt: skip
    import pandas as pd

    encoded = load_contract().encode(pd.DataFrame([row], dtype=object), source="test").report.fields
    assert {name for name in row if encoded[name].known} == {"age", "hrt", "breast_density", "prior_biopsies"}
    assert {name for name in row if encoded[name].missing} == {"first_degree_relatives", "bmi"}


@pytest.mark.parametrize(
    ("columns", "error"),
    [({"age": "leak_radiologist_birads"}, LeakageError), ({"birads": "age"}, MammoFedError),
     ({"age": "absent"}, CohortError)],
)  # fmt: skip
def test_a_leak_an_unknown_field_and_an_absent_column_are_refused(
    tmp_path: Path, columns: dict[str, str], error: type[Exception]
) -> None:
    write_rows(tmp_path / "table.csv", [CLINICAL])
    with pytest.raises(error):
        mini_mias.read_clinical(tmp_path / "table.csv", columns)


# CBIS-DDSM

def test_the_tables_are_read_by_woman(tmp_path: Path) -> None:
    calc = {"column": "breast density"}
    write_cases(
        tmp_path,
        mass_train=[case_row("P_00016", "BENIGN", density="2"), case_row("P_00016", "BENIGN_WITHOUT_CALLBACK"),
                    case_row("P_00001", "MALIGNANT", density="0")],
        calc_test=[case_row("P_00016", "MALIGNANT", density="4", **calc)],
    )  # fmt: skip
    cases = cbis_ddsm.read_cases(tmp_path)
    assert set(cases) == {"P_00016", "P_00001"}
    both = cases["P_00016"]
    assert (both.label, both.density, both.published_test) == (1, "4", True), "cancer, denser breast, held out"
    assert (cases["P_00001"].label, cases["P_00001"].density, cases["P_00001"].published_test) == (1, "", False)


@pytest.mark.parametrize(
    ("row", "words"),
    [(case_row("P_00016", "UNPROVEN"), "unknown pathology"), (case_row("Mass_P_1", "BENIGN"), "another form"),
     (case_row("P_00016", "BENIGN", density="7"), "unknown breast density")],
)  # fmt: skip
def test_a_row_that_cannot_be_understood_is_refused(tmp_path: Path, row: dict[str, object], words: str) -> None:
    write_cases(tmp_path, mass_test=[row])
    with pytest.raises(CohortError, match=words):
        cbis_ddsm.read_cases(tmp_path)


def test_without_one_of_the_tables_labels_would_be_wrong(tmp_path: Path) -> None:
    write_cases(tmp_path)
    (tmp_path / "calc_case_description_test_set.csv").unlink()
    with pytest.raises(CohortError, match="calc_case_description_test_set"):
        cbis_ddsm.read_cases(tmp_path)


@pytest.fixture(scope="module")
def cbis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 women: published training and test, one of both, each with two films; crops, a mask, a stranger."""
    folder = tmp_path_factory.mktemp("cbis")
    train = [case_row(f"P_{k:05d}", "MALIGNANT" if k % 2 else "BENIGN") for k in range(28)]
    test = [case_row(f"P_{k:05d}", "MALIGNANT" if k % 2 else "BENIGN", column="breast density") for k in range(27, 40)]
    write_cases(folder, mass_train=train, calc_test=test)
    for k in range(28):
        for view in ("LEFT_CC", "LEFT_MLO"):
            write_case_film(folder / "films", f"Mass-Training_P_{k:05d}_{view}")
    for k in range(27, 40):
        write_case_film(folder / "films", f"Calc-Test_P_{k:05d}_RIGHT_CC")
    write_case_film(folder / "crops", "Mass-Training_P_00001_LEFT_CC_1", description="cropped images")
    write_case_film(folder / "crops", "Mass-Training_P_00002_LEFT_CC_1", description="full mammogram images")
    write_case_film(folder / "crops", "Mass-Training_P_00003_LEFT_CC_2", description="ROI mask images")
    write_case_film(folder / "films", "Mass-Training_P_09999_LEFT_CC")
    return folder


def test_full_mammograms_become_films_of_women(cbis: Path, cache: Path) -> None:
    folders = make(settings("cbis_ddsm", cbis, declared_spacing_mm=3.0), cache)
    tables = {name: {row["patient_id"] for row in rows(folder / "clinical.csv")} for name, folder in folders.items()}
    assert tables["held_out"] == {f"P_{k:05d}" for k in range(27, 40)}, "one row in a test table holds a woman out"
    assert tables["site_01"] | tables["site_02"] == {f"P_{k:05d}" for k in range(27)}
    left_out = {row["what"]: row["why"].split(":")[0] for row in rows(folders["held_out"].parent / "left_out.csv")}
    assert left_out == {
        "crops/Mass-Training_P_00001_LEFT_CC_1.dcm": "not_full_view",
        "crops/Mass-Training_P_00002_LEFT_CC_1.dcm": "not_full_view",
        "crops/Mass-Training_P_00003_LEFT_CC_2.dcm": "not_full_view",
        "films/Mass-Training_P_09999_LEFT_CC.dcm": "no_row",
    }
    woman = [ds for ds in headers(folders["held_out"]) if ds.PatientID == "P_00027"]
    assert len(woman) == 3 and len({ds.StudyInstanceUID for ds in woman}) == 1, "one exam, though upstream says three"


def test_kinds_of_cancers_come_from_the_tables_that_name_them(cbis: Path, cache: Path, mias: Path) -> None:
    folder = make(settings("cbis_ddsm", cbis, declared_spacing_mm=3.0), cache)["held_out"]
    found = lesion_types(folder)
    ill = {row["patient_id"] for row in rows(folder / "clinical.csv") if row["label"] == "1"}
    assert set(found) == ill and found["P_00027"] == "several" and found["P_00029"] == "calcification"
    folder = make(settings("mini_mias", mias), cache)["held_out"]
    ill = {row["patient_id"] for row in rows(folder / "clinical.csv") if row["label"] == "1"}
    assert set(lesion_types(folder)) == ill and set(lesion_types(folder).values()) <= set(LESION_TYPES)


def test_case_names_stay_behind(cbis: Path, cache: Path, tmp_path: Path) -> None:
    folders = make(settings("cbis_ddsm", cbis, declared_spacing_mm=3.0), cache)
    for folder in folders.values():
        for path in (path for path in folder.rglob("*") if path.is_file()):
            data = path.read_bytes()
            assert not any(word in data for word in (b"Training", b"Mass-", b"Calc-", b"-Test", b"2016"))
    table = rows(folders["site_01"] / "clinical.csv")
    assert set(table[0]) == {"patient_id", "label", "exam_date", "breast_density"}
    report = prepare_site(
        source=folders["site_01"], destination=tmp_path / "cohort", contract=load_contract(), pipeline=PIPELINE,
        site="site_01", key=bytes(16), workers=1, policy=DIGITISED_FILMS, declared_spacing_mm=3.0,
    )  # fmt: skip
    assert report.reasons == {} and report.films_prepared == 2 * len(table) and report.rows_prepared == len(table)


def test_two_women_are_no_study(tmp_path: Path) -> None:
    write_cases(tmp_path, mass_test=[case_row("P_00173", "BENIGN"), case_row("P_00820", "MALIGNANT")])
    for woman in ("P_00173", "P_00820"):
        write_case_film(tmp_path, f"Mass-Test_{woman}_LEFT_CC")
    with pytest.raises(CohortError, match=r"too few women for a study.*held_out: 2 women, 1 with cancer"):
        make(settings("cbis_ddsm", tmp_path, declared_spacing_mm=3.0), tmp_path / "cache")


# A manifest

def collect(folder: Path, table: Sequence[dict[str, object]], **values: Any) -> tuple[Woman, ...]:
    write_rows(folder / "films.csv", table)
    config = settings("manifest", folder / "films.csv", **values)["cohort"]
    return manifest.collect(config, pipeline=PIPELINE, workers=1).women


def test_png_pgm_and_dicom_become_films_of_the_manifests_patients(tmp_path: Path) -> None:
    table = manifest_rows(tmp_path, women=3)
    write_pgm(tmp_path / "other.pgm", breast("L"))
    write_case_film(tmp_path, "Mass-Test_P_00001_LEFT_CC")
    table[0]["path"], table[2]["path"] = "other.pgm", "Mass-Test_P_00001_LEFT_CC.dcm"
    table[2]["view"] = "CC"
    women = collect(tmp_path, [row | {"age": 50} for row in table])
    assert len(list(write_source(tmp_path / "source", list(women), pipeline=PIPELINE))) == 3
    films = headers(tmp_path / "source")
    assert [ds.PatientID for ds in films] == ["W000", "W000", "W001", "W001", "W002", "W002"]
    assert "2016" not in str(films[2]) and "Mass" not in str(films[2])
    report = prepare_site(
        source=tmp_path / "source", destination=tmp_path / "cohort", contract=load_contract(), pipeline=PIPELINE,
        site="north", key=bytes(16), workers=1, policy=DIGITISED_FILMS,
    )  # fmt: skip
    assert report.reasons == {} and (report.films_prepared, report.patients_prepared, report.positives) == (6, 3, 1)
    assert report.image_only == 0


def test_sites_of_the_manifest_are_the_sites_of_the_study(tmp_path: Path) -> None:
    table = manifest_rows(tmp_path, women=45)
    for row in table:
        row["site"] = ("north", "south", "held_out")[int(str(row["patient_id"])[1:]) // 15]
    write_rows(tmp_path / "films.csv", table)
    folders = make(settings("manifest", tmp_path / "films.csv"), tmp_path / "cache")
    assert {name: len(rows(folder / "clinical.csv")) for name, folder in folders.items()} == {
        "north": 15, "south": 15, "held_out": 15,
    }  # fmt: skip
    recipe = json.loads((folders["north"].parent / "recipe.json").read_text())
    assert "films.csv" not in json.dumps(recipe), "where the data set lies does not count"


def change(**values: object) -> Any:
    def apply(table: list[dict[str, object]]) -> None:
        table[0].update(values)

    return apply


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (change(label=0), "disagree on `label`"), (change(label="yes"), "disagree on `label`"),
        (change(site="b"), "disagree on `site`"), (change(patient_id=""), "patient_id is empty"),
        (change(laterality="B"), "laterality or view"), (change(view="ML"), "laterality or view"),
        (change(path="../secret.png"), "leads out of the manifest's folder"),
        (change(path="/etc/passwd"), "leads out of the manifest's folder"),
        (change(path="link.png"), "leads out of the manifest's folder"),
        (change(path="gone.png"), "no such image"), (change(path="a\0b"), "no such image"),
        (change(path="films.csv"), "no PNG, PGM or readable DICOM"),
        (change(spacing_mm=""), "no pixel spacing"), (change(spacing_mm="nan"), "impossible spacing_mm"),
        (change(exam_date="last year"), "exam_date is no date"), (change(age=51), "disagree on `age`"),
        (lambda table: [row.update(site="Not a Site") for row in table], "impossible name of a site"),
    ],
)  # fmt: skip
def test_a_manifest_that_contradicts_itself_is_refused_in_words(tmp_path: Path, damage: Any, words: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write_png(tmp_path / "secret.png", breast("L"))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    table = [row | {"site": "a", "age": 50, "exam_date": "2020-01-02"} for row in manifest_rows(folder, women=2)]
    assert len(collect(folder, table)) == 2
    damage(table)
    with pytest.raises(CohortError, match=words) as caught:
        collect(folder, table)
    assert "W000" not in str(caught.value), "messages name lines, not patients"


@pytest.mark.parametrize("column", ["birads", "leak_score", "lesion_size", "x", "image_path"])
def test_a_manifest_with_a_column_that_leaks_is_refused(tmp_path: Path, column: str) -> None:
    table = [row | {column: 1} for row in manifest_rows(tmp_path, women=2)]
    with pytest.raises(LeakageError, match=column):
        collect(tmp_path, table)


def test_a_dicom_header_that_says_otherwise_is_refused(tmp_path: Path) -> None:
    table = manifest_rows(tmp_path, women=1)
    write_case_film(tmp_path, "Mass-Test_P_00001_RIGHT_CC")
    table[0] |= {"path": "Mass-Test_P_00001_RIGHT_CC.dcm", "view": "CC"}
    with pytest.raises(CohortError, match="another laterality; found: R; expected: L"):
        collect(tmp_path, table)


def test_exams_of_one_woman_keep_their_rows(tmp_path: Path) -> None:
    table = [row | {"exam_date": f"20{20 + k}-01-02", "age": 50 + k} for k, row in
             enumerate(manifest_rows(tmp_path, women=1))]  # fmt: skip
    (woman,) = collect(tmp_path, table)
    assert [row["exam_date"] for row in woman.rows] == ["2020-01-02", "2021-01-02"]
    assert [row["age"] for row in woman.rows] == ["50", "51"]


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "column patient_id"), ("patient_id,path,laterality,view,label,label\n", "stands twice"),
     ("patient_id,path,laterality,view,label\na,b\n", "not as many cells"),
     ('patient_id,path,laterality,view,label\n"a', "no CSV"),
     ("patient_id,path,laterality,view,label\n", "names no image"), ("\xff", "no text in UTF-8")],
)  # fmt: skip
def test_a_damaged_manifest_is_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "films.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(CohortError, match=words):
        manifest.collect(settings("manifest", tmp_path / "films.csv")["cohort"], pipeline=PIPELINE, workers=1)

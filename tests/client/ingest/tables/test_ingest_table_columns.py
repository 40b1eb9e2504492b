"""A hospital's own CSV or Parquet becomes canonical rows: maps of columns, codes, units and dates, and no cell told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from client.ingest.tables import Content, CsvSource, ParquetSource, read_source
from client.ingest.tables.dates import Span, age_on, parse_date, parse_fhir_date
from shared_model.contract import load_contract
from shared_model.errors import ConfigError, ContractError, LeakageError

CONTRACT = load_contract()
SECRETS = ("PID-77", "WINTERHALTER", "1961")


class Shifted:
    """Pseudonyms are the id backwards, and every date is one day later."""

    def pseudonym(self, patient_id: str) -> str:
        return patient_id[::-1]

    def date(self, pseudonym: str, yyyymmdd: str) -> str:
        return f"{int(yyyymmdd) + 1:08d}"


def csv_source(folder: Path, text: str, encoding: str = "utf-8", **options: Any) -> CsvSource:
    path = folder / "emr.csv"
    path.write_bytes(text.encode(encoding))
    return CsvSource.model_validate({"kind": "csv", "path": path, "encoding": encoding} | options)


def read(source: CsvSource | ParquetSource) -> Content:
    return read_source(source, contract=CONTRACT, identities=Shifted(), name="clinical source 1")


EXPORT = """MRN;ExamDay;Born;Outcome;Diagnosed;BMI;BMI_DAY;Dichte;Menarche_Months;Notes;Path_Report
PID-77001;03.02.2021;05.06.1961;M;20.02.2021;27,5;01.02.2021;dicht;150;WINTERHALTER;ductal
PID-77002;04.02.2021;;B;;;;fett;;;
"""
OPTIONS: dict[str, Any] = {
    "delimiter": ";", "decimal": ",", "dates": ["%d.%m.%Y"],
    "columns": {"MRN": "patient_id", "ExamDay": "exam_date", "Born": "birth_date", "Outcome": "label",
                "Diagnosed": "label_date", "BMI_DAY": "recorded.bmi", "Dichte": "breast_density",
                "Menarche_Months": "menarche_age"},
    "codes": {"label": {"M": 1, "B": 0}, "breast_density": {"dicht": "c", "fett": "a"}},
    "units": {"menarche_age": "months"}, "drop": {"Path_Report": "the EMR's export view has it always"},
}  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-16"])
def test_an_export_of_a_hospital_is_read_by_its_maps(tmp_path: Path, encoding: str) -> None:
    content = read(csv_source(tmp_path, EXPORT, encoding, **OPTIONS))
    first, second = content.rows
    assert first.pseudonym == "10077-DIP" and first.exam == "20210204" and first.label == "1"
    assert first.label_date == Span("20210221", "20210221") and first.known == {"bmi": "20210202"}
    assert first.cells == {"bmi": "27.5", "breast_density": "c", "menarche_age": "12.5"}
    assert second.label == "0" and second.label_date is None and second.cells["breast_density"] == "a"
    assert [fact.since for fact in content.facts["10077-DIP"]] == ["19610606"]
    assert content.found == 2 and content.ignored == ("Notes",) and "age" in content.fields
    assert content.warnings and "Path_Report" in content.warnings[0]


def test_own_names_need_no_map_and_damaged_rows_cost_only_themselves(tmp_path: Path) -> None:
    text = ("patient_id,label,exam_date,label_date,recorded,Breast Density,bmi\n"
            "PID-77001,1,2021-02-03,2021-03-01,2021-02-01,b,27\n\nPID-77002,1\n,0,2021-02-03,,,b,1\n"
            "PID-77003,0,yesterday,,,b,1\n")  # fmt: skip
    content = read(csv_source(tmp_path, text))
    assert [(row.ordinal, row.recorded, row.bad_date) for row in content.rows] == [
        (1, "20210202", False),
        (4, "", True),
    ]
    assert {(e.ordinal, e.reason) for e in content.left_out} == {(2, "damaged_row"), (3, "no_patient_id")}
    assert content.found == 4 == len(content.rows) + len(content.left_out)


@pytest.mark.parametrize(
    ("text", "options", "error", "words"),
    [
        ("MRN,label\n1,1\n", {}, ContractError, "patient id"),
        ("patient_id,label\n1,1\n", {"columns": {"PID-77": "label"}}, ConfigError, "columns that the table lacks"),
        ("patient_id,x1\n1,1\n", {"columns": {"x1": "shoe"}}, ConfigError, "shoe"),
        ("patient_id,bmi\n1,1\n", {"units": {"bmi": "stones"}}, ConfigError, "lb/in2"),
        ("patient_id,bmi,BMI\n1,1,2\n", {}, ContractError, "two columns stand for `bmi`"),
        ("patient_id,w,bmi\n1,1,2\n", {"columns": {"w": "bmi"}}, ContractError, "two columns stand for `bmi`"),
        ("patient_id,assessment\n1,5\n", {}, LeakageError, "assessment"),
        ("patient_id,BIRADS\n1,5\n", {"columns": {"BIRADS": "prior_screen_result"}}, LeakageError, "BIRADS"),
        ("", {}, ContractError, "empty"),
        ('patient_id,label\n"PID-77001,1\nWINTERHALTER', {}, ContractError, "open quote"),
    ],
)
def test_what_cannot_be_used_is_refused_without_a_cell(
    tmp_path: Path, text: str, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        read(csv_source(tmp_path, text, **options))
    if error is not ConfigError:
        assert not any(secret in str(caught.value) for secret in SECRETS)


def test_a_diagnosis_may_become_the_label_and_nothing_else(tmp_path: Path) -> None:
    content = read(csv_source(tmp_path, "patient_id,pathology\nPID-77001,malignant\n",
                              columns={"pathology": "label"}, codes={"label": {"malignant": 1}}))  # fmt: skip
    assert content.rows[0].label == "1" and content.rows[0].cells == {}


@pytest.mark.parametrize("options", [
    {"codes": {"hrt": {False: "none"}}}, {"dates": ["%y-%m-%d"]}, {"dates": ["%Q%Y"]}, {"drop": {"a": "why"}},
    {"password": "x"},
])  # fmt: skip
def test_options_that_would_be_misread_do_not_load(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        csv_source(tmp_path, "patient_id\n1\n", **options)


def test_parquet_gives_what_csv_gives(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (pip install pyarrow)")
    from datetime import date, datetime

    import pyarrow.parquet as pq

    table = pa.table({
        "MRN": pa.array([77001.0, 77002.0, None]), "exam_date": [date(2021, 2, 3), date(2021, 2, 4), None],
        "recorded": [datetime(2021, 2, 1, 8, 30), None, None], "label": [True, False, None],
        "bmi": [27.5, None, 30.0], "hrt": pa.array(["none", None, "combined"]).dictionary_encode(),
    })  # fmt: skip
    path = tmp_path / "emr.parquet"
    pq.write_table(table, path)
    content = read(ParquetSource(kind="parquet", path=path, columns={"MRN": "patient_id"}, dates=("%d.%m.%Y",)))
    assert [(r.pseudonym, r.exam, r.recorded, r.label) for r in content.rows] == [
        ("10077", "20210204", "20210202", "1"), ("20077", "20210205", "", "0")
    ]  # fmt: skip
    assert content.rows[0].cells == {"bmi": "27.5", "hrt": "none"}
    assert [e.reason for e in content.left_out] == ["no_patient_id"]
    for damage in (path.read_bytes()[:-20], b"PAR1WINTERHALTER", b""):
        path.write_bytes(damage)
        with pytest.raises(ContractError, match="Parquet") as caught:
            read(ParquetSource(kind="parquet", path=path))
        assert "WINTERHALTER" not in str(caught.value)
    pq.write_table(pa.table({"patient_id": ["a"], "bmi": [[1, 2]]}), path)
    with pytest.raises(ContractError, match="nested"):
        read(ParquetSource(kind="parquet", path=path))


def test_dates_are_days_months_or_years() -> None:
    assert parse_date(" 2021-02-03 ", ("%Y-%m-%d",)) == Span("20210203", "20210203")
    assert parse_date("02/2020", ("%d.%m.%Y", "%m/%Y")) == Span("20200201", "20200229")
    assert parse_fhir_date("1961") == Span("19610101", "19611231")
    assert parse_fhir_date("2021-02-03T23:59:59.5+02:00") == Span("20210203", "20210203")
    for nonsense in ("0001-01-01", "2021-13", "2021-02-30", "2021-2-3", "9999", "", "２０２１", None, 2021):
        assert parse_fhir_date(nonsense) is None
    assert parse_date("1000-01-01", ("%Y-%m-%d",)) is None
    assert age_on("19610501", "20210502") == 60 and age_on("19610501", "20210429") == 59

"""One row a woman as of her exam: the table of who gets which label, and that nothing of after the read gets in."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.ingest.joining import REASONS, SIMPLE, JoinPolicy, JoinResult, join
from client.ingest.pseudonyms import Pseudonyms
from client.ingest.quarantine import REASONS as OLD_REASONS
from client.ingest.quarantine import Quarantine
from client.ingest.table import encode_women, read_table
from client.ingest.tables.dates import Span
from client.ingest.tables.facts import Content, Fact, LeftOut, Row
from shared_model.contract import load_contract

CONTRACT = load_contract()
E = "20210601"
ordinals = itertools.count(1)


def row(exam: str = E, label: str | None = "0", *, recorded: str = "", on: str = "", bad: bool = False,
        known: dict[str, str] | None = None, **cells: str) -> Row:  # fmt: skip
    """A row of the woman `w`; on: YYYYMMDD or YYYY of its label_date."""
    span = None if not on else Span(on, on) if len(on) == 8 else Span(on + "0101", on + "1231")
    return Row(next(ordinals), "w", exam=exam, bad_date=bad, recorded=recorded, label=label, label_date=span,
               cells=cells, known=known or {})  # fmt: skip


def source(*rows: Row, **more: Any) -> Content:
    return Content(more.pop("name", "csv"), rows=rows, found=len(rows), **more)


def joined(*contents: Content, exams: tuple[str, ...] = (E,), **policy: Any) -> JoinResult:
    return join({"w": exams} if exams else {}, contents, contract=CONTRACT, policy=JoinPolicy(**policy))


def outcome(*contents: Content, exams: tuple[str, ...] = (E,), **policy: Any) -> tuple[str, int] | str:
    result = joined(*contents, exams=exams, **policy)
    woman = result.women.get("w")
    return result.refused["w"] if woman is None else (woman.exam, woman.label)


CANCER = {"diagnoses": {"w": [Span("20211001", "20211001")]}, "facts": {"w": []}}


@pytest.mark.parametrize(
    ("rows", "more", "policy", "expected"),
    [
        ([row(label="1")], {}, {}, (E, 1)),
        ([row(label="0.0")], {}, {}, (E, 0)),
        ([row(label="")], {}, {}, "no_label"),
        ([row(label="2")], {}, {}, "bad_label"),
        ([row(label=None)], {}, {}, "no_label"),
        ([row(label="1"), row(label="0")], {}, {}, "conflicting_rows"),
        ([row(label="1"), row(label="1")], {}, {}, (E, 1)),
        # the day of the diagnosis
        ([row(label="1", on=E)], {}, {}, (E, 1)),
        ([row(label="1", on="20220601")], {}, {}, (E, 1)),
        ([row(label="1", on="20220602")], {}, {}, "late_cancer"),
        ([row(label="1", on="20220602")], {}, {"after_follow_up": "negative"}, (E, 0)),
        ([row(label="1", on="20220602")], {}, {"follow_up_days": 400}, (E, 1)),
        ([row(label="1", on="20210531")], {}, {}, "prevalent_cancer"),
        ([row(label="1", on="20210531")], {}, {"prevalent": "accept"}, (E, 1)),
        ([row(label="1", on="2021")], {}, {}, "unclear_label_date"),
        ([row(label="1", on="2020")], {}, {}, "prevalent_cancer"),
        # a cancer that another row or source tells of
        ([row("20190601", "1"), row()], {}, {}, "prevalent_cancer"),
        ([row("20190601", "1"), row()], {}, {"prevalent": "accept"}, (E, 0)),
        ([row(label=None)], CANCER, {}, (E, 1)),
        ([], CANCER, {}, (E, 1)),
        ([row()], CANCER, {}, "conflicting_labels"),
        ([], CANCER, {"follow_up_days": 30}, "no_label"),
        # negatives
        ([row(on="20211201")], {}, {"least_follow_up_days": 365}, "short_follow_up"),
        ([row(on="20220701")], {}, {"least_follow_up_days": 365}, (E, 0)),
        ([], {"facts": {"w": []}, "clear_until": {"w": "20230101"}}, {}, (E, 0)),
        ([], {"facts": {"w": []}, "clear_until": {"w": "20220101"}}, {}, "short_follow_up"),
        ([], CANCER | {"clear_until": {"w": "20230101"}}, {"follow_up_days": 30}, "late_cancer"),
        ([], {"facts": {"w": []}}, {}, "no_label"),
        # dates that are not there
        ([row("", bad=True)], {}, {}, "no_label"),
        ([row("")], {}, {}, "no_label"),
        ([row("")], {}, {"undated": "accept"}, (E, 0)),
        # exams that do not meet
        ([row("20210604")], {}, {}, "no_label"),
        ([row("20210604")], {}, {"match_days": 7}, (E, 0)),
        ([row("20210604"), row("20210602", "1")], {}, {"match_days": 7}, (E, 1)),
    ],
)  # fmt: skip
def test_the_label_of_an_exam(
    rows: list[Row], more: dict[str, Any], policy: dict[str, Any], expected: tuple[str, int] | str
) -> None:
    assert outcome(source(*rows, **more), **policy) == expected


@pytest.mark.parametrize(
    ("exams", "rows", "policy", "expected"),
    [
        (("20200101", E), [row("20200101", "1"), row()], {"prevalent": "accept"}, (E, 0)),
        (("20200101", E), [row("20200101", "0")], {}, ("20200101", 0)),
        (("20200101", E), [row("20200101", "0")], {"earlier_exams": False}, "no_label"),
        # a woman who had cancer in 2020: the exam that found it, not the control of the treated breast
        (("20200101", E), [row("20200101", "1"), row()], {}, ("20200101", 1)),
        (("",), [row()], {}, "undated_exam"),
        (("",), [row("20200101", "1"), row()], {"undated": "accept"}, ("", 0)),
        (("", E), [row()], {}, (E, 0)),
        ((), [row("20200101", "1"), row("20190101")], {}, ("20200101", 1)),
        ((), [row("")], {}, "undated_row"),
        ((), [row("", recorded=E)], {}, "undated_row"),
        ((), [row("")], {"undated": "accept"}, ("", 0)),
    ],
)  # fmt: skip
def test_which_exam(
    exams: tuple[str, ...], rows: list[Row], policy: dict[str, Any], expected: tuple[str, int] | str
) -> None:
    assert outcome(source(*rows), exams=exams, **policy) == expected


def cells_of(*contents: Content, **policy: Any) -> dict[str, str]:
    return dict(joined(*contents, **policy).women["w"].cells)


def test_what_was_written_after_the_exam_is_not_used() -> None:
    assert cells_of(source(row(recorded=E, bmi="27"))) == {"bmi": "27"}
    late = joined(source(row(recorded="20210602", bmi="27", hrt="?")))
    assert late.women["w"].cells == {} and late.women["w"].label == 0 and late.notes == {"too_late": 1}
    one = joined(source(row(bmi="27", hrt="none", known={"bmi": "20210602", "hrt": "20190101"})))
    assert one.women["w"].cells == {} and one.notes == {"too_late": 1, "stale": 1}
    after = joined(source(row(), row("20210701", "1", bmi="30")), exams=(E,), follow_up_days=10)
    assert after.women["w"].cells == {} and [e.reason for e in after.left_out] == ["row_after_exam"]
    fact = Fact("bmi", "latest", "30", "20210602", "20210602")
    told = joined(source(row(), facts={"w": [fact]}))
    assert told.women["w"].cells == {} and told.notes == {"too_late": 1}


def test_earlier_rows_fill_in_what_lasts_and_only_for_so_long() -> None:
    old = row("20200801", None, bmi="30", age="58", palpable_lump="yes", menarche_age="12")
    older = row("20200701", None, bmi="31", brca="no")
    ancient = row("20180101", None, prs_z="1")
    now = row(bmi="unknown", age="")
    result = joined(source(ancient, old, now, older))
    assert result.women["w"].cells == {"bmi": "30", "age": "", "menarche_age": "12", "brca": "no"}
    assert len(result.women["w"].rows) == 3 and [e.reason for e in result.left_out] == ["row_without_exam"]
    assert cells_of(source(old, now), max_age_of_row_days=0) == {"bmi": "unknown", "age": ""}


def test_the_first_source_that_knows_is_believed() -> None:
    emr = source(row(bmi="27", brca="?", age=""), name="emr")
    asked = source(row("", None, recorded="20210501", bmi="29", brca="no", hrt="none"), name="questionnaire")
    facts = source(name="fhir", facts={"w": [Fact("age", "birth", "", "", "19600101"),
                                             Fact("hrt", "current", "combined", "20200101", "20200101")]})  # fmt: skip
    result = joined(emr, asked, facts)
    assert result.women["w"].cells == {"bmi": "27", "brca": "no", "age": "61", "hrt": "none"}
    assert result.notes == {"disagreement": 2} and result.left_out == ()
    assert result.women["w"].rows[0][0] == 0 and result.women["w"].rows[1][0] == 1
    assert outcome(emr, source(row(label="1"), name="second")) == "conflicting_labels"
    table = encode_women(result, [emr, asked, facts], contract=CONTRACT, source="sources")
    assert table.rows["w"].features is not None and table.rows["w"].exam == E and table.found == 2


@pytest.mark.parametrize(("age", "expected"), [("95", "89"), ("89", "89"), ("60", "60"), ("250", "250"), ("?", "?")])
def test_ages_above_89_are_one(age: str, expected: str) -> None:
    assert cells_of(source(row(age=age))) == {"age": expected}
    assert cells_of(source(row(age=age)), cap_age=False) == {"age": age}
    assert cells_of(source(row(), facts={"w": [Fact("age", "birth", "", "", "19200101")]})) == {"age": "89"}
    two = [Fact("age", "birth", "", "", "19200101"), Fact("age", "birth", "", "", "19600101")]
    assert cells_of(source(row(), facts={"w": two})) == {}  # which of the two?


def test_reasons_of_rows_are_the_importers() -> None:
    rows = [
        row("", bad=True),
        row(""),
        row("20210701"),
        row("20200101"),
        row("20210101"),
        row(),
        row(),
        row(recorded=""),
    ]
    result = joined(source(*rows, left_out=(LeftOut("csv", "row", 99, "", "damaged_row"),)), exams=(E, "20210101"))
    assert sorted(e.reason for e in result.left_out) == sorted(
        ["damaged_row", "bad_date", "undated_row", "row_after_exam", "row_without_exam", "older_row", "repeated_row",
         "repeated_row"]
    )  # fmt: skip
    stale = joined(source(row(), row("", None, recorded="20190101", bmi="20")))
    assert [e.reason for e in stale.left_out] == ["stale_row"]
    shared = REASONS.keys() & OLD_REASONS.keys()
    assert shared >= {"no_label", "bad_label", "older_row", "repeated_row", "conflicting_rows", "no_patient_id"}


dates = st.sampled_from(["", "20190601", "20210101", E, "20210603", "20230101"])
rows_of = st.builds(
    lambda exam, label, recorded, on, bad, bmi: row(
        exam, label, recorded=recorded, on=on, bad=bad and not exam, bmi=bmi),
    dates, st.sampled_from(["0", "1", "", "x", None]), dates, dates, st.booleans(), st.sampled_from(["27", "", "?"]),
)  # fmt: skip
policies = st.builds(
    JoinPolicy, max_age_of_row_days=st.sampled_from([0, 365]), match_days=st.sampled_from([0, 7]),
    undated=st.sampled_from(["refuse", "accept"]), earlier_exams=st.booleans(),
    prevalent=st.sampled_from(["exclude", "accept"]), after_follow_up=st.sampled_from(["exclude", "negative"]),
)  # fmt: skip


@settings(max_examples=150)
@given(
    lists=st.lists(st.lists(rows_of, max_size=4), min_size=1, max_size=2), exams=st.sets(dates, max_size=3),
    policy=policies,
)  # fmt: skip
def test_every_row_is_used_or_has_a_reason_and_no_cell_is_of_after_the_exam(
    lists: list[list[Row]], exams: set[str], policy: JoinPolicy
) -> None:
    contents = [source(*rows, name=str(number)) for number, rows in enumerate(lists)]
    result = join({"w": exams} if exams else {}, contents, contract=CONTRACT, policy=policy)
    used = [key for woman in result.women.values() for key in woman.rows]
    set_aside = [(int(entry.source), entry.ordinal) for entry in result.left_out]
    everything = [(number, r.ordinal) for number, rows in enumerate(lists) for r in rows]
    assert sorted(used + set_aside) == sorted(everything)
    assert {entry.reason for entry in result.left_out} <= REASONS.keys()
    assert set(result.refused.values()) <= REASONS.keys() and not result.women.keys() & result.refused.keys()
    if (woman := result.women.get("w")) is not None and woman.exam:
        assert not exams or woman.exam in exams
        by_key = {(number, r.ordinal): r for number, rows in enumerate(lists) for r in rows}
        gave = [by_key[key] for key in woman.rows if by_key[key].cells["bmi"] == "27"]
        if woman.cells.get("bmi") == "27":
            assert any(not r.recorded or r.recorded <= woman.exam for r in gave)


OLD_STYLE = """patient_id,label,exam_date,age,Breast Density,shoe
a,0,2020-01-01,50,b,1
a,1,2021-01-01,51,c,1
a,1,2021-01-01,52,c,1
b,,2021-01-01,40,b,1
c,0,2021-01-01,,,1
d,1,,95,2,1
d,0,nonsense,44,2,1
e,0,2021-01-01,60,b,1
e,1,2020-01-01,59,b,1
f,1
,1,2021-01-01,60,b,1
g,1,2021-01-01,60,b,1
g,,2021-01-01,60,b,1
"""


def test_a_plain_clinical_csv_is_read_as_before(tmp_path: Path) -> None:
    """Golden values of the importer before there were other sources."""
    path = tmp_path / "clinical.csv"
    path.write_text(OLD_STYLE)
    quarantine = Quarantine()
    names = Pseudonyms(b"k" * 32)
    table = read_table(path, contract=CONTRACT, pseudonyms=names, quarantine=quarantine)
    assert {p: (r.ordinal, r.label, r.features is not None) for p, r in table.rows.items()} == {
        names.of("a"): (3, 1, True), names.of("c"): (5, 0, False), names.of("e"): (8, 0, True)
    }  # fmt: skip
    assert set(table.refused) == {names.of("b"), names.of("d"), names.of("g")} and table.found == 13
    assert table.ignored == ("shoe",) == tuple(table.fields["ignored_columns"])  # type: ignore[arg-type]
    assert quarantine.reasons() == {
        "row.conflicting_rows": 4, "row.damaged_row": 1, "row.no_label": 1, "row.no_patient_id": 1, "row.older_row": 2,
        "row.repeated_row": 1,
    }  # fmt: skip
    assert SIMPLE.max_age_of_row_days == 0


def test_no_date_or_id_is_in_what_a_person_sees() -> None:
    result = joined(source(row(label="x"), row("20200101", "1")), exams=(E,))
    assert E not in str([(e.reason, e.ordinal, e.source) for e in result.left_out])

"""The data contract: its file, its columns, its encoding. Every rule of the README has a test here."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from shared_model.contract import Contract, load_contract
from shared_model.contract.describe import README, markdown_table, refresh
from shared_model.contract.schema import column_key, token_of
from shared_model.errors import ContractError, LeakageError

YAML = Path(README).with_name("clinical.yaml")
FIELDS = {
    "age",
    "menarche_age",
    "first_birth_age",
    "first_degree_relatives",
    "prior_biopsies",
    "atypia",
    "breast_density",
    "hrt",
    "bmi",
    "menopausal",
    "brca",
    "prs_z",
    "palpable_lump",
    "nipple_discharge",
    "years_since_screen",
    "prior_screen_result",
}


@pytest.fixture(scope="module")
def contract() -> Contract:
    return load_contract()


def encode_one(contract: Contract, field: str, cell: object) -> dict[str, float]:
    """Features of one cell by part name."""
    encoded = contract.encode(pd.DataFrame({field: [cell]}, dtype=object), source="t.csv")
    return {contract.feature_names[i].split(".")[1]: float(encoded.values[0, i]) for i in contract.groups[field]}


# --- the file


def test_the_shipped_contract_has_the_sixteen_fields_each_complete(contract: Contract) -> None:
    assert {field.name for field in contract.fields} == FIELDS
    for field in contract.fields:
        assert field.description and field.source and field.known_before_read
        if field.kind == "number":
            assert field.unit and field.range and field.winsor
        else:
            assert len(field.vocabulary) >= 2


def test_feature_names_and_groups_cover_every_column_once(contract: Contract) -> None:
    assert len(set(contract.feature_names)) == contract.n_features
    flat = [i for field in contract.fields for i in contract.groups[field.name]]
    assert flat == list(range(contract.n_features))
    assert all(
        contract.feature_names[i].startswith(f"{name}.") for name, group in contract.groups.items() for i in group
    )
    assert all(contract.feature_names[group[-1]].endswith(".missing") for group in contract.groups.values())


def test_the_readme_shows_the_contract_as_it_is(contract: Contract) -> None:
    text = README.read_text(encoding="utf-8")
    assert markdown_table(contract) in text, "run: python -m shared_model.contract.describe"
    assert refresh(text, contract) == text


def test_density_codes_are_those_of_dicom(contract: Contract) -> None:
    concepts = pytest.importorskip("pydicom.sr._concepts_dict").concepts["SCT"]
    names = {code: name for entry in concepts.values() for code, (name, _) in entry.items()}
    words = {"a": "Almost entirely fat", "b": "fibroglandular", "c": "Heterogeneously dense", "d": "Extremely dense"}
    codes = contract.field("breast_density").level_codes
    assert {level: word in names[codes[level]] for level, word in words.items()} == dict.fromkeys(words, True)
    assert "breast" in names[contract.field("palpable_lump").codes.snomed[0]].lower()
    assert "ipple discharge" in names[contract.field("nipple_discharge").codes.snomed[0]]
    assert "amily history" in names[contract.field("first_degree_relatives").codes.snomed[0]]


def test_the_hash_ignores_layout_and_sees_content(contract: Contract, tmp_path: Path) -> None:
    text = YAML.read_text(encoding="utf-8")
    same = tmp_path / "same.yaml"
    same.write_text("# another comment\n" + yaml.safe_dump(yaml.safe_load(text), sort_keys=False), encoding="utf-8")
    assert load_contract(same).sha256 == contract.sha256
    other = tmp_path / "other.yaml"
    other.write_text(text.replace("center: 55", "center: 56"), encoding="utf-8")
    assert load_contract(other).sha256 != contract.sha256


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("schema: 1", "schema: 2", "schema"),
        ("kind: flag\n    description: The woman", "kind: flags\n    description: The woman", "fields.9.kind"),
        ("unit: years\n    description: Age on", "units: years\n    description: Age on", "units"),
        ("range: [18, 120]", "range: [40, 120]", "range"),
        ("winsor: [30, 90]", "winsor: [90, 30]", "winsor"),
        ("scale: 10", "scale: 0", "scale"),
        ("center: 55", "center: .nan", "center"),
        ("center: 55", "center: 5", "reference"),
        ("reference: b", "reference: e", "reference"),
        ("name: bmi", "name: age", "unique"),
        ("name: bmi", "name: label", "unique"),
        ("name: bmi", "name: birads_assessment", "deny-list"),
        ("known_before_read: true", "known_before_read: false", "known before the read"),
        ('a: ["1", ', 'a: ["2", ', "two things"),
        ("levels: [a, b, c, d]", "levels: [a, b, c, no]", "levels"),
        ("accepts: {nulliparous:", "accepts: {nullipara:", "do not exist"),
        ('snomed: ["60621009"]', 'snomed: ["BMI"]', "snomed"),
    ],
)
def test_an_inconsistent_contract_is_refused_with_the_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = YAML.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "c.yaml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ContractError, match=message) as caught:
        load_contract(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "not YAML"),
        (b"a: [1", "not YAML"),
        (b"", "no valid contract"),
        (b"- 1\n- 2\n", "no valid contract"),
        (b"a: &x [1]\nb: *x\n", "alias"),
        (b"schema: 1\nschema: 1\n", "stands twice"),
        (b"fields:\n  - {name: a, name: b}\n", "stands twice"),
        (b"a: !!python/object/apply:os.system ['true']\n", "not YAML"),
        (b"[" * 500_000 + b"]" * 500_000, "nested too deeply"),
        (b"".join(b" " * n + b"a:\n" for n in range(300)), "nested too deeply"),
        (b"a: " + b"x" * (1 << 20), "too large"),
    ],
    ids=[
        "bytes",
        "broken",
        "empty",
        "list",
        "alias",
        "repeated",
        "repeated-inner",
        "code",
        "deep",
        "deep-block",
        "large",
    ],
)
def test_hostile_yaml_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ContractError, match=message):
        load_contract(path)


def test_a_contract_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"cannot read the contract .*nowhere\.yaml"):
        load_contract(tmp_path / "nowhere.yaml")


def test_unknown_field_name_is_an_error(contract: Contract) -> None:
    with pytest.raises(ContractError, match="no such clinical field"):
        contract.field("shoe_size")


def test_the_contract_needs_no_torch() -> None:
    code = "import sys, shared_model.contract as c; c.load_contract(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- columns


def test_unknown_columns_are_returned_and_ignored(contract: Contract) -> None:
    header = ["patient_id", "label", "exam_date", "Age", "Breast Density", "hair_colour", "notes"]
    assert contract.check_columns(header, source="clinical.csv") == ("hair_colour", "notes")


@pytest.mark.parametrize("missing", ["patient_id", "label"])
def test_a_missing_required_column_is_named_with_the_file(contract: Contract, missing: str) -> None:
    header = [name for name in ("patient_id", "label", "age") if name != missing]
    with pytest.raises(ContractError) as caught:
        contract.check_columns(header, source="site/clinical.csv")
    text = str(caught.value)
    assert f"`{missing}`" in text and "site/clinical.csv" in text and "to do:" in text
    assert not isinstance(caught.value, LeakageError)


def test_required_columns_keep_their_spelling(contract: Contract) -> None:
    with pytest.raises(ContractError, match="`Patient ID` has an unexpected spelling"):
        contract.check_columns(["Patient ID", "label"], source="t.csv")


@pytest.mark.parametrize(
    "pair", [("age", "Age"), ("breast_density", "breast density"), ("age", "age.1"), ("bmi", "bmi")]
)
def test_two_columns_for_one_field_are_refused(contract: Contract, pair: tuple[str, str]) -> None:
    with pytest.raises(ContractError, match="two columns stand for"):
        contract.check_columns(["patient_id", "label", *pair], source="t.csv")
    with pytest.raises(ContractError, match="two columns stand for"):
        contract.encode(pd.DataFrame([[1, 2]], columns=list(pair)), source="t.csv")


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ("leak_radiologist_birads", "leak"),
        ("BI-RADS", "assessment"),
        ("birads", "assessment"),
        ("assess_c", "assessment"),
        ("assessment", "assessment"),
        ("BIRADS assessment", "assessment"),
        ("subtlety", "subtlety"),
        ("pathology", "diagnosis"),
        ("Pathology Classification/ Follow up", "diagnosis"),
        ("CaTypeO", "diagnosis"),
        ("cancer_c", "diagnosis"),
        ("severity", "diagnosis"),
        ("classification", "diagnosis"),
        ("subtype", "diagnosis"),
        ("malignant", "diagnosis"),
        ("mass shape", "lesion"),
        ("mass_margins", "lesion"),
        ("calc type", "lesion"),
        ("calc distribution", "lesion"),
        ("abnormality type", "lesion"),
        ("lesion_size_mm", "lesion"),
        ("Findings", "lesion"),
        ("margin", "lesion"),
        ("x", "image"),
        ("radius", "image"),
        ("bbox", "image"),
        ("roi_area", "image"),
        ("image file path", "file names"),
        ("cropped image file path", "file names"),
        ("Image_name", "file names"),
        ("filename", "file names"),
        ("chemotherapy", "because of this read"),
        ("recalled", "because of this read"),
    ],
)
def test_the_deny_list_refuses_with_the_reason(contract: Contract, column: str, reason: str) -> None:
    with pytest.raises(LeakageError) as caught:
        contract.check_columns(["patient_id", "label", column], source="clinical.csv")
    text = str(caught.value)
    assert f"`{column}`" in text and "clinical.csv" in text and reason in text and "to do:" in text
    with pytest.raises(LeakageError):
        contract.encode(pd.DataFrame({column: [1]}), source="clinical.csv")


@pytest.mark.parametrize(
    "column",
    [
        "birads_density",
        "family_history_breast_cancer",
        "famhx_c",
        "prior_pathology",
        "relatives_with_cancer",
        "profile",
        "exam_time",
        "massage",
        "compfilm_c",
        "prvmam_c",
        "ethnicity",
        "height_cm",
    ],
)
def test_the_deny_list_lets_innocent_columns_pass(contract: Contract, column: str) -> None:
    assert contract.check_columns(["patient_id", "label", column], source="t.csv") == (column,)


def test_no_field_of_the_contract_is_denied(contract: Contract) -> None:
    header = ["patient_id", "label", "exam_date", *(field.name for field in contract.fields)]
    assert contract.check_columns(header, source="t.csv") == ()


def test_column_names_are_compared_without_case_and_signs() -> None:
    assert column_key(" Breast density (ACR) ") == "breast_density_acr"
    assert column_key("BI-RADS") == "bi_rads"


# --- cells


@pytest.mark.parametrize("cell", ["B", "b", " b ", 2, 2.0, "2", "2.0", "02", np.int64(2), np.float32(2), "Scattered"])
def test_density_is_read_as_letter_number_or_words(contract: Contract, cell: object) -> None:
    assert encode_one(contract, "breast_density", cell) == {"a": 0, "b": 1, "c": 0, "d": 0, "missing": 0}


@pytest.mark.parametrize("cell", ["yes", "Y", "1", 1, 1.0, True, np.True_, "TRUE", "positive"])
def test_a_yes_is_a_yes(contract: Contract, cell: object) -> None:
    assert encode_one(contract, "palpable_lump", cell) == {"yes": 1, "missing": 0}


@pytest.mark.parametrize("cell", ["no", "N", "0", 0, 0.0, -0.0, False, np.False_, "false", "negative"])
def test_a_no_is_a_no_and_no_missing_value(contract: Contract, cell: object) -> None:
    assert encode_one(contract, "palpable_lump", cell) == {"yes": 0, "missing": 0}


@pytest.mark.parametrize(
    "cell",
    [None, math.nan, pd.NA, pd.NaT, np.float32("nan"), "", "  ", "NA", "n/a", "?", "Unknown", "-99", -99.0, "nan", "_"],
)
def test_not_known_is_zero_and_flagged(contract: Contract, cell: object) -> None:
    for field in contract.fields:
        features = encode_one(contract, field.name, cell)
        assert features.pop("missing") == 1
        assert set(features.values()) == {0.0}


def test_numbers_are_scaled_by_the_contracts_constants(contract: Contract) -> None:
    assert encode_one(contract, "age", "65")["value"] == pytest.approx(1.0)
    assert encode_one(contract, "bmi", 24.5)["value"] == pytest.approx(-0.5)
    assert encode_one(contract, "menarche_age", " 12.8 ")["value"] == 0.0
    assert encode_one(contract, "first_degree_relatives", "2.0")["value"] == 2.0
    assert encode_one(contract, "prs_z", "-1e-1")["value"] == pytest.approx(-0.1)


def test_an_extreme_value_is_winsorised_and_counted(contract: Contract) -> None:
    encoded = contract.encode(pd.DataFrame({"age": ["95", "25", "60"]}), source="t.csv")
    assert encoded.values[:, 0].tolist() == pytest.approx([3.5, -2.5, 0.5])
    assert encoded.report.fields["age"].winsorised == 2
    assert encoded.report.fields["age"].known == 3


@pytest.mark.parametrize(
    ("field", "cell"),
    [
        ("age", "200"),
        ("age", "-5"),
        ("age", "1e999"),
        ("age", math.inf),
        ("age", "-inf"),
        ("bmi", "950"),
        ("menarche_age", 40),
        ("first_degree_relatives", "1.5"),
        ("prior_biopsies", -2),
        ("first_birth_age", 5),
        ("prs_z", 55),
    ],
)
def test_an_impossible_value_empties_the_field_and_is_counted(contract: Contract, field: str, cell: object) -> None:
    features = encode_one(contract, field, cell)
    assert features.pop("missing") == 1 and set(features.values()) == {0.0}
    counts = contract.encode(pd.DataFrame({field: [cell]}, dtype=object), source="t.csv").report.fields[field]
    assert (counts.impossible, counts.unmapped, counts.known, counts.first_bad_row) == (1, 0, 0, 1)


@pytest.mark.parametrize(
    ("field", "cell"),
    [
        ("age", "fifty"),
        ("age", "50 years"),
        ("age", "5_0"),
        ("age", "٥٠"),
        ("age", "0x30"),
        ("bmi", "27,5"),
        ("breast_density", "3$2"),
        ("breast_density", "0"),
        ("breast_density", "e"),
        ("hrt", "7"),
        ("atypia", "2"),
        ("prior_screen_result", "1"),
        ("age", "9" * 500),
    ],
)
def test_an_unreadable_value_empties_the_field_and_is_counted(contract: Contract, field: str, cell: object) -> None:
    assert encode_one(contract, field, cell)["missing"] == 1
    counts = contract.encode(pd.DataFrame({field: [cell]}, dtype=object), source="t.csv").report.fields[field]
    assert (counts.unmapped, counts.impossible, counts.known) == (1, 0, 0)


@pytest.mark.parametrize("cell", ["nulliparous", "98", 98, 98.0, "Nullip"])
def test_a_woman_without_births_has_a_level_of_her_own(contract: Contract, cell: object) -> None:
    assert encode_one(contract, "first_birth_age", cell) == {"value": 0, "nulliparous": 1, "missing": 0}
    assert encode_one(contract, "first_birth_age", 99) == {"value": 0, "nulliparous": 0, "missing": 1}


def test_an_age_of_99_is_an_age_but_999_is_not_known(contract: Contract) -> None:
    assert encode_one(contract, "age", "99") == {"value": 3.5, "missing": 0}
    assert encode_one(contract, "age", "999") == {"value": 0, "missing": 1}
    assert encode_one(contract, "menarche_age", 9)["missing"] == 0


def test_none_is_a_level_where_the_contract_says_so(contract: Contract) -> None:
    assert encode_one(contract, "hrt", "none")["none"] == 1
    assert encode_one(contract, "prior_screen_result", "none")["never"] == 1
    assert encode_one(contract, "years_since_screen", "never") == {"value": 0, "never": 1, "missing": 0}


def test_present_means_that_some_field_is_known(contract: Contract) -> None:
    frame = pd.DataFrame({"age": ["50", "", "300"], "hrt": ["", "", "seven"]})
    assert contract.encode(frame, source="t.csv").present.tolist() == [True, False, False]


def test_a_whole_column_that_is_absent_is_missing_and_reported(contract: Contract) -> None:
    encoded = contract.encode(pd.DataFrame({"age": [50, 60]}), source="t.csv")
    assert set(encoded.report.absent_columns) == FIELDS - {"age"}
    brca = encoded.report.fields["brca"]
    assert (brca.missing, brca.absent, encoded.report.fields["age"].absent) == (2, True, False)
    assert encoded.values[:, list(contract.groups["brca"])].tolist() == [[0, 1], [0, 1]]


def test_report_names_the_first_bad_row_and_holds_no_cell(contract: Contract) -> None:
    frame = pd.DataFrame({"age": ["50", "secret-cell", "400"], "patient_id": ["Jane Doe"] * 3})
    report = contract.encode(frame, source="t.csv").report
    assert report.fields["age"].first_bad_row == 2
    assert "secret" not in str(report.as_dict()) and "Jane" not in str(report.as_dict())


def test_the_reference_patient_is_known_in_every_field(contract: Contract) -> None:
    reference = contract.reference()
    assert reference.dtype == np.float32 and reference.shape == (contract.n_features,)
    assert all(reference[group[-1]] == 0 for group in contract.groups.values())
    by_name = dict(zip(contract.feature_names, reference.tolist(), strict=True))
    assert by_name["age.value"] == 0 and by_name["breast_density.b"] == 1 and by_name["brca.yes"] == 0


def test_an_empty_table_encodes_to_no_rows(contract: Contract) -> None:
    encoded = contract.encode(pd.DataFrame({"age": []}), source="t.csv")
    assert encoded.values.shape == (0, contract.n_features) and encoded.present.shape == (0,)


def test_tokens_spell_equal_numbers_equally() -> None:
    assert {token_of(c) for c in (2, 2.0, "2", "2.0", " 02 ", "2.", "+2", "0.2e1", np.int8(2))} == {"2"}
    assert token_of("1" * 60) == "1" * 60 and token_of(1e300) == "1e+300"

"""FHIR R4 files become facts with the day the record held them; hostile or broken ones cost only themselves."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.ingest.as_of import cells_as_of
from client.ingest.tables import Content, FhirSource, read_fhir
from client.ingest.tables import json_stream as stream
from client.ingest.tables.fhir_rules import RuleBook, shipped_rules
from client.ingest.tables.json_stream import JsonFaultError, resources_of
from shared_model.contract import load_contract
from shared_model.errors import ConfigError, ContractError

CONTRACT = load_contract()
EXAM = "20210601"
ROLE, SCT, LOINC = "http://terminology.hl7.org/CodeSystem/v3-RoleCode", "http://snomed.info/sct", "http://loinc.org"
ICD, ATC = "http://hl7.org/fhir/sid/icd-10", "http://www.whocc.no/atc"
WOMAN = {"reference": "Patient/p1"}


class Same:
    """Pseudonyms and dates as they are, marked."""

    def pseudonym(self, patient_id: str) -> str:
        return f"pseudo-{patient_id}" if patient_id else ""

    def date(self, pseudonym: str, yyyymmdd: str) -> str:
        assert pseudonym.startswith("pseudo-") and len(yyyymmdd) == 8
        return yyyymmdd


def concept(system: str, code: str) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code, "display": "WINTERHALTER"}]}


def patient(**more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Patient",
        "id": "p1",
        "birthDate": "1961-05-05",
        "identifier": [{"system": "urn:mrn", "value": "MRN1"}],
        "name": [{"family": "WINTERHALTER"}],
    } | more


def observation(code: dict[str, Any], when: str, **value: Any) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "status": "final",
        "code": code,
        "subject": WOMAN,
        "effectiveDateTime": when,
    } | value


def condition(code: dict[str, Any], recorded: str | None, **more: Any) -> dict[str, Any]:
    return {"resourceType": "Condition", "code": code, "subject": WOMAN, "recordedDate": recorded} | more


def procedure(code: str, when: str, **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Procedure",
        "status": "completed",
        "code": concept(SCT, code),
        "subject": WOMAN,
        "performedDateTime": when,
    } | more


def medication(atc: str, start: str, end: str | None = None, **more: Any) -> dict[str, Any]:
    period = {"start": start} | ({"end": end} if end else {})
    return {
        "resourceType": "MedicationStatement",
        "status": "active",
        "subject": WOMAN,
        "effectivePeriod": period,
        "medicationCodeableConcept": concept(ATC, atc),
    } | more


def relative(role: str, when: str, *, ill: bool, **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "FamilyMemberHistory",
        "status": "completed",
        "patient": WOMAN,
        "date": when,
        "relationship": concept(ROLE, role),
        "condition": [{"code": concept(ICD, "C50.9" if ill else "C18.0")}],
    } | more


def bundle(*resources: dict[str, Any]) -> str:
    return json.dumps({"resourceType": "Bundle", "type": "collection", "entry": [{"resource": r} for r in resources]})


def read(folder: Path, *resources: dict[str, Any], **options: Any) -> Content:
    folder.mkdir(exist_ok=True)
    (folder / "one.json").write_text(bundle(*resources))
    source = FhirSource.model_validate({"kind": "fhir", "path": folder} | options)
    return read_fhir(source, contract=CONTRACT, identities=Same(), name="fhir")


def cells(folder: Path, *resources: dict[str, Any], exam: str = EXAM, **options: Any) -> dict[str, str]:
    content = read(folder, patient(), *resources, **options)
    return cells_as_of(content.facts["pseudo-MRN1"], exam, complete=content.complete)[0]


BMI, PARITY = concept(LOINC, "39156-5"), concept(LOINC, "11977-6")


def kg_m2(value: object) -> dict[str, Any]:
    return {"valueQuantity": {"value": value, "code": "kg/m2"}}


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ([], {}),
        ([observation(BMI, "2021-01-01", **kg_m2(27.5)), observation(BMI, "2020-01-01", **kg_m2(30))], {"bmi": "27.5"}),
        ([observation(BMI, "2021-06-01", **kg_m2(27))], {"bmi": "27"}),
        ([observation(BMI, "2021-06-02", **kg_m2(27))], {}),  # after the exam
        ([observation(BMI, "2021-05-01", issued="2021-06-03T08:00:00Z", **kg_m2(27))], {}),  # known after
        ([observation(BMI, "2021", **kg_m2(27))], {}),  # some day of the year, perhaps after
        ([observation(BMI, "2010-01-01", **kg_m2(27))], {}),  # long ago
        ([observation(BMI, "2021-01-01", valueQuantity={"value": 27, "code": "[lb_av]/[in_i]2"})], {}),
        ([observation(BMI, "2021-01-01", valueQuantity={"value": 27, "code": "kg/m2", "comparator": "<"})], {}),
        ([observation(BMI, "2021-01-01", **kg_m2(27)) | {"status": "entered-in-error"}], {}),
        ([observation(BMI, "2021-01-01", **kg_m2(1e300))], {}),
        ([observation(BMI, "2021-01-01", focus=[{"reference": "RelatedPerson/1"}], **kg_m2(27))], {}),
        ([observation(concept(LOINC, "42798-9"), "2021-06-01", valueQuantity={"value": 13, "unit": "a"})],
         {"menarche_age": "13"}),
        ([observation(concept(LOINC, "89221-6"), "2021-01-01",
                      component=[{"code": concept(LOINC, "42798-9"), "valueInteger": 12}])], {"menarche_age": "12"}),
        ([observation(PARITY, "2021-01-01", valueInteger=0)], {"first_birth_age": "nulliparous"}),
        ([observation(PARITY, "2021-01-01", valueInteger=2)], {}),
        ([observation(concept("urn:local", "D"), "2020-01-01", valueCodeableConcept=concept(SCT, "129718006"))],
         {"breast_density": "c"}),
        ([observation(concept("urn:local", "D"), "2021-06-01", valueCodeableConcept=concept(SCT, "129718006"))], {}),
        ([observation(concept(SCT, "307429007"), "2021-01-01", valueBoolean=True)], {"menopausal": "yes"}),
        ([observation(concept(SCT, "307429007"), "2021-01-01", valueBoolean=False)], {}),
        ([condition(concept(SCT, "6660000"), "2019-01-01")], {"atypia": "yes"}),
        ([condition(concept(SCT, "6660000"), "2021-06-01")], {}),
        ([condition(concept(SCT, "6660000"), None, onsetDateTime="2019-01-01")], {}),
        ([condition(concept(SCT, "6660000"), "2019-01-01", verificationStatus=concept("x", "refuted"))], {}),
        ([condition(concept(SCT, "412734009"), "2019-01-01")], {"brca": "yes"}),
        ([condition(concept(SCT, "89164003"), "2021-05-20")], {"palpable_lump": "yes"}),
        ([condition(concept(SCT, "89164003"), "2019-05-20")], {}),  # two years ago
        ([condition(concept(SCT, "89164003"), "2021-03-20", abatementDateTime="2021-04-01")], {}),
        ([procedure("122548005", "2019-01-01"), procedure("122548005", "2019-01-01"),
          procedure("44578009", "2020-01-01T10:00:00Z"), procedure("122548005", "2021-06-01")],
         {"prior_biopsies": "2"}),
        ([procedure("122548005", "2019-01-01", status="preparation")], {}),
        ([procedure("24623002", "2019-06-01"), procedure("24623002", "2021-06-01")], {"years_since_screen": "2.0"}),
        ([medication("G03CA03", "2018-01-01")], {"hrt": "estrogen"}),
        ([medication("G03CA03", "2018-01-01"), medication("G03FA01", "2019-01-01")], {"hrt": "combined"}),
        ([medication("G03CA03", "2018-01-01", "2020-01-01")], {}),
        ([medication("G03CA03", "2018-01-01", status="stopped")], {}),
        ([medication("G03CA03", "2018-01-01", dateAsserted="2022-01-01")], {}),
        ([medication("G03AA07", "2018-01-01")], {}),  # a contraceptive
        ([relative("MTH", "2020-01-01", ill=True), relative("NMTH", "2021-01-01", ill=True),
          relative("SIS", "2020-01-01", ill=True, name="Berta"), relative("SIS", "2020-05-01", ill=True, name="berta"),
          relative("DAU", "2020-01-01", ill=False), relative("AUNT", "2020-01-01", ill=True)],
         {"first_degree_relatives": "2"}),
        ([relative("MTH", "2020-01-01", ill=False)], {"first_degree_relatives": "0"}),
        ([relative("MTH", "2022-01-01", ill=True)], {}),
    ],
)  # fmt: skip
def test_each_rule_as_of_the_exam(tmp_path: Path, resources: list[dict[str, Any]], expected: dict[str, str]) -> None:
    assert cells(tmp_path / "fhir", *resources) == {"age": "60"} | expected


def test_silence_means_no_only_on_the_sites_word(tmp_path: Path) -> None:
    complete = ["prior_biopsies", "atypia", "hrt", "years_since_screen", "first_degree_relatives"]
    assert cells(tmp_path / "fhir", complete=complete) == {
        "age": "60", "prior_biopsies": "0", "atypia": "no", "hrt": "none", "years_since_screen": "never",
        "first_degree_relatives": "0",
    }  # fmt: skip
    (tmp_path / "fhir" / "two.json").write_text(bundle(patient())[:-9])  # cut off: what did it hold?
    content = read(tmp_path / "fhir", patient(), complete=complete, negatives={"until": date(2024, 1, 1)})
    assert content.complete == {} and content.clear_until == {} and len(content.left_out) == 1
    assert content.left_out[0].reason == "not_fhir" and "cannot be read" in content.warnings[0]


def test_a_site_opens_the_exams_own_day_and_adds_codes(tmp_path: Path) -> None:
    lump = condition(concept(SCT, "89164003"), "2021-06-01")
    assert cells(tmp_path / "fhir", lump, same_day=["palpable_lump"])["palpable_lump"] == "yes"
    prs = {"field": "prs_z", "resource": "Observation", "how": "latest", "codes": ["lab PRS313"], "units": {"1": 1},
           "source": "the laboratory's own code list, 2023"}  # fmt: skip
    told = observation(concept("urn:lab", "PRS313"), "2021-01-01", valueQuantity={"value": 1.5})
    assert cells(tmp_path / "fhir", told, rules=[prs], systems={"lab": "urn:lab"})["prs_z"] == "1.5"
    assert cells(tmp_path / "fhir", condition(concept(SCT, "6660000"), None, onsetDateTime="2019-01-01"),
                 onset_as_recorded=True)["atypia"] == "yes"  # fmt: skip
    for wrong in ({"rules": [prs]}, {"rules": [prs | {"field": "shoe"}], "systems": {"lab": "u"}},
                  {"same_day": ["prs_z"]}, {"complete": ["prs_z"]}):  # fmt: skip
        with pytest.raises(ConfigError):
            read(tmp_path / "fhir", patient(), **wrong)


def test_diagnoses_make_labels_when_asked(tmp_path: Path) -> None:
    ill = [condition(concept(ICD, "C50.4"), "2021-07-01", onsetDateTime="2021-06"),
           condition(concept(ICD, "D05.1"), "2022-07-01"), condition(concept(ICD, "C51.0"), "2022-07-01")]  # fmt: skip
    assert read(tmp_path / "fhir", patient(), *ill).diagnoses == {}
    found = read(tmp_path / "fhir", patient(), *ill, labels="diagnoses", negatives={"until": date(2024, 1, 1)})
    assert [(s.first, s.last) for s in found.diagnoses["pseudo-MRN1"]] == [
        ("20210601", "20210630"), ("20220701", "20220701")
    ]  # fmt: skip
    assert found.clear_until == {"pseudo-MRN1": "20240101"}


def test_who_it_is(tmp_path: Path) -> None:
    two = [{"system": "urn:other", "value": "X"}, {"system": "urn:mrn", "value": " MRN1 "}]
    bmi = observation(BMI, "2021-01-01", **kg_m2(27))

    def women(*resources: dict[str, Any], **options: Any) -> set[str]:
        return {
            p
            for p, facts in read(tmp_path / "f", *resources, **options).facts.items()
            if any(fact.field == "bmi" for fact in facts)
        }

    assert women(patient(identifier=two), bmi) == set()  # which of the two?
    assert women(bmi, patient(identifier=two), identifier_system="urn:mrn") == {"pseudo-MRN1"}
    assert women(patient(identifier=[*two[:1], two[1] | {"type": concept("v2-0203", "MR")}]), bmi) == {"pseudo-MRN1"}
    for reference in ("https://ehr.example/fhir/Patient/p1", "Patient/p1/_history/3"):
        assert women(patient(), bmi | {"subject": {"reference": reference}}) == {"pseudo-MRN1"}
    for nobody in ({"reference": "Patient/p2"}, {"reference": "Group/p1"}, {"display": "WINTERHALTER"}, "p1", None):
        assert women(patient(), bmi | {"subject": nobody}) == set()
    logical = bmi | {"subject": {"identifier": {"system": "urn:mrn", "value": "MRN9"}}}
    assert women(patient(), logical) == set()
    assert women(patient(), logical, identifier_system="urn:mrn") == {"pseudo-MRN9"}
    other = patient(identifier=[{"system": "urn:mrn", "value": "MRN2"}])
    found = read(tmp_path / "f", patient(), other, bmi)
    assert found.facts == {} and found.counts["two_patients"] == 1


def test_bundles_single_resources_and_ndjson_say_the_same(tmp_path: Path) -> None:
    resources = [patient(), observation(BMI, "2021-01-01", **kg_m2(27))]
    (tmp_path / "a").mkdir()
    for number, resource in enumerate(resources):
        (tmp_path / "a" / f"{number}.json").write_text(json.dumps(resource, indent=2))
    (tmp_path / "b.ndjson").write_text("\n".join(map(json.dumps, resources)) + "\n\n")
    (tmp_path / "c.json").write_bytes(b"\xef\xbb\xbf" + bundle(*resources).encode())
    urn = {"resourceType": "Bundle", "entry": [
        {"fullUrl": "urn:uuid:1", "resource": {k: v for k, v in patient().items() if k != "id"}},
        {"resource": resources[1] | {"subject": {"reference": "urn:uuid:1"}}}, {"request": {"method": "DELETE"}},
    ]}  # fmt: skip
    (tmp_path / "d.json").write_text(json.dumps(dict(reversed(urn.items()))))
    sources = [FhirSource(kind="fhir", path=tmp_path / name) for name in ("a", "b.ndjson", "c.json", "d.json")]
    said = [read_fhir(source, contract=CONTRACT, identities=Same(), name="x").facts for source in sources]
    assert len(said[0]["pseudo-MRN1"]) == 2 and all(one == said[0] for one in said)


@pytest.mark.parametrize("text", [
    "", "{", "[]", "null", "<html>WINTERHALTER</html>", '{"resourceType": "Bundle", "entry": [{"resource": {}}]}',
    '{"resourceType": "Bundle", "entry": [1]}', '{"a": 1}', '{"resourceType": 1}', "[" * 100_000,
    '{"a":' * 100_000, '{"resourceType": "Patient", "x": NaN}', '{"resourceType": "Patient"} x',
    '{"resourceType": "Patient", "resourceType": "Patient"}', '{"resourceType": "Patient", "x": ' + "9" * 6000 + "}",
    '{"resourceType": "Patient" "x": 1}', '{"resourceType": "Bundle", "entry": [{} {}]}',
])  # fmt: skip
def test_what_is_no_fhir_is_set_aside_by_its_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    content = read(tmp_path, patient(), observation(BMI, "2021-01-01", **kg_m2(27)))
    assert [entry.reason for entry in content.left_out] == ["not_fhir"]
    assert len(content.facts["pseudo-MRN1"]) == 2  # the other file is read


def test_no_file_at_all_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to("/etc/passwd")
    with pytest.raises(ContractError, match="no FHIR file"):
        read_fhir(FhirSource(kind="fhir", path=tmp_path), contract=CONTRACT, identities=Same(), name="fhir")


def test_a_bundle_is_read_in_pieces_and_an_endless_resource_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_CHUNK", 7)
    many = [observation(BMI, "2021-01-01", note=[{"text": "é" * n}]) for n in range(40)]
    (tmp_path / "a.json").write_text(bundle(*many), encoding="utf-8")
    assert [resource for _, resource in resources_of(tmp_path / "a.json")] == many
    monkeypatch.setattr(stream, "MAX_RESOURCE", 1000)
    (tmp_path / "b.json").write_text(bundle(patient(), patient(photo="x" * 3000)))
    given_out = []
    with pytest.raises(JsonFaultError, match="too large"):
        for _, resource in resources_of(tmp_path / "b.json"):
            given_out.append(resource)
    assert given_out == [patient()]
    (tmp_path / "c.ndjson").write_text(json.dumps(patient(photo="x" * 3000)))
    with pytest.raises(JsonFaultError, match="too large"):
        list(resources_of(tmp_path / "c.ndjson"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(
        ["", "final", "2021-01-01", "Patient/p1", "kg/m2", SCT, LOINC, "39156-5", "C50.9"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["coding", "system", "code", "value", "reference", "start", "end", "valueQuantity"]),
        inner, max_size=4), max_leaves=8,
)  # fmt: skip
WHOLE = [patient(), observation(BMI, "2021-01-01", **kg_m2(27)), condition(concept(ICD, "C50.4"), "2021-07-01"),
         procedure("122548005", "2019-01-01"), medication("G03CA03", "2018-01-01"),
         relative("SIS", "2020-01-01", ill=True)]  # fmt: skip


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, len(WHOLE) - 1), data=st.data())
def test_no_element_of_a_wrong_type_gets_through_as_a_crash(tmp_path: Path, which: int, data: st.DataObject) -> None:
    resource = dict(WHOLE[which])
    keys = data.draw(st.lists(st.sampled_from(sorted(set(resource) - {"resourceType"})), min_size=1, max_size=3))
    resource |= {key: data.draw(json_values) for key in keys}
    content = read(tmp_path, resource, *WHOLE, labels="diagnoses", complete=["prior_biopsies"])
    assert not content.left_out
    for facts in content.facts.values():
        cells_as_of(facts, EXAM, complete=content.complete)


def test_the_table_of_codes_is_the_contracts() -> None:
    book = RuleBook(CONTRACT)
    assert set(book.fields) == {f.name for f in CONTRACT.fields} - {"prs_z", "prior_screen_result"}
    for rule in shipped_rules().rules:
        if rule.field == "diagnosis":
            continue
        field = CONTRACT.field(rule.field)
        for cell in (*rule.values.values(), *rule.numbers.values()):
            assert cell in field.vocabulary
        shipped = {text.split(" ")[1] for text in (*rule.codes, *rule.values)}
        assert rule.same_day is False or rule.field not in ("breast_density", "prior_biopsies", "atypia")
        assert shipped
    contracts = {code for field in CONTRACT.fields for code in (*field.codes.snomed, *field.level_codes.values())}
    ours = {text.split(" ")[1] for rule in shipped_rules().rules for text in (*rule.codes, *rule.values)}
    assert contracts - ours == {"129715009", "429740004"}  # density by its value; relatives by who they are

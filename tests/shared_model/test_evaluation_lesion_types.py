"""Each kind of cancer against all women without cancer: figures, suppression, and whose cohort may say it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from client.ingest.lesions import read_lesion_types
from client.privacy.disclosure import disclosed
from client.trainer.models import WarmModels
from client.trainer.site import Site
from shared_model.cohort import Cohort, CohortWriter
from shared_model.contract import load_contract
from shared_model.errors import CohortError, ContractError, LeakageError
from shared_model.evaluation.auc import roc_auc
from shared_model.evaluation.subgroups import subgroup_members, subgroup_table
from shared_model.lesion_types import LESION_TYPE, NO_CANCER, lesion_attribute
from shared_model.readings import READINGS
from tests.conftest import make_study, write_cohort

LABELS = np.array([1] * 40 + [0] * 60)
SCORES = np.random.default_rng(4).normal(size=100) + LABELS


def kinds(masses: int, calcifications: int) -> list[str | None]:
    known = ["mass"] * masses + ["calcification"] * calcifications
    return [*known, *[None] * (40 - len(known)), *[NO_CANCER] * 60]


def table(values: list[str | None]) -> dict[str, dict[str, Any]]:
    frame = pd.DataFrame({LESION_TYPE: values}, dtype=object)
    return {row["level"]: row for row in subgroup_table(LABELS, SCORES, frame, confidence=0.95, threshold=0.5)}


def test_each_kind_is_judged_against_all_women_without_cancer() -> None:
    rows = table(kinds(25, 15))
    assert list(rows) == ["calcification", "mass"]
    assert [(row["n"], row["positives"]) for row in rows.values()] == [(75, 15), (85, 25)]
    masses = np.r_[0:25, 40:100]
    assert rows["mass"]["auc"] == roc_auc(LABELS[masses], SCORES[masses])
    assert rows["mass"]["sensitivity"] == np.mean(SCORES[:25] > 0.5)
    # The same women without cancer at the one threshold in each row, so the same specificity.
    assert {row["specificity"] for row in rows.values()} == {np.mean(SCORES[40:] <= 0.5)}


def test_cancers_that_nobody_typed_are_a_row_of_their_own() -> None:
    assert table(kinds(15, 13))["unknown"]["positives"] == 12
    assert table(kinds(0, 0)) == {}


def test_a_few_that_nobody_typed_do_not_hide_the_smallest_kind() -> None:
    rows = table(kinds(25, 12))
    assert list(rows) == ["calcification", "mass"] and not any(row.get("suppressed") for row in rows.values())


@pytest.mark.parametrize(("masses", "calcifications", "shown"), [(31, 9, []), (20, 9, ["mass"]), (30, 10, None)])
def test_few_cancers_are_not_shown_though_the_women_without_are_many(
    masses: int, calcifications: int, shown: list[str] | None
) -> None:
    rows = table(kinds(masses, calcifications))
    found = [level for level, row in rows.items() if not row.get("suppressed")]
    assert found == (["calcification", "mass"] if shown is None else shown)
    assert all(set(row) == {"name", "level", "suppressed"} for row in rows.values() if row.get("suppressed"))


def test_disclosure_control_counts_cancers_too() -> None:
    report = {"subgroups": list(table(kinds(25, 15)).values())}
    assert disclosed(report, below=15, totals=False) == report
    assert all(row.get("suppressed") for row in disclosed(report, below=16, totals=False)["subgroups"])


def test_a_replacement_is_judged_by_the_same_groups() -> None:
    members = subgroup_members(LESION_TYPE, list(kinds(25, 15)))
    assert {level: int(who.sum()) for level, who in members.items()} == {"calcification": 75, "mass": 85}


def test_a_benign_lesion_is_no_kind_of_cancer() -> None:
    assert lesion_attribute(0, "mass") == NO_CANCER and lesion_attribute(1, None) is None


@pytest.fixture
def opened() -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def open_one(*arguments: Any) -> Site:
        sites.append(Site(*arguments, WarmModels()))
        return sites[-1]

    yield open_one
    for site in sites:
        site.close()


def test_a_site_that_trains_may_not_hold_it_and_an_evaluator_may(tmp_path: Path, opened: Callable[..., Site]) -> None:
    study = make_study(tmp_path)
    for party in ("site-01", "evaluator"):
        config = study.config(party)
        typed = tmp_path / f"{party}-typed"
        write_typed(typed, site=config.site)
        changed = config.model_copy(update={"cohort": typed, "state": tmp_path / f"{party}-state"})
        if party == "evaluator":
            assert LESION_TYPE in opened(changed).cohort.attribute_names
            continue
        with pytest.raises(CohortError, match="which kind of lesion"):
            opened(changed)


@pytest.mark.parametrize("name", READINGS)
def test_a_site_that_trains_may_not_hold_radiologists_decisions(
    tmp_path: Path, opened: Callable[..., Site], name: str
) -> None:
    study = make_study(tmp_path)
    write_typed(tmp_path / "read", site="site-01", attribute=name)
    changed = study.config("site-01").model_copy(update={"cohort": tmp_path / "read", "state": tmp_path / "state"})
    with pytest.raises(CohortError, match="what radiologists decided"):
        opened(changed)


def test_no_tensor_of_a_cohort_depends_on_it(tmp_path: Path) -> None:
    write_typed(tmp_path / "typed", site="s")
    write_cohort(tmp_path / "plain", site="s", patients=30, seed=1)
    typed, plain = (Cohort.open(tmp_path / name) for name in ("typed", "plain"))
    one, two = (cohort.batch(list(range(30))) for cohort in (typed, plain))
    for name in ("pixels_BVCHW", "view_mask_BV", "clinical_BF", "clinical_mask_B", "labels_B"):
        assert getattr(one, name).equal(getattr(two, name)), name
    assert typed.content_sha256 != plain.content_sha256


def write_typed(folder: Path, *, site: str, attribute: str = LESION_TYPE) -> None:
    """The women of `write_cohort` with their lesions, or with another attribute of that value."""
    add = CohortWriter.add

    def with_lesion(self: CohortWriter, pseudonym: str, views: Any, clinical: Any, label: int, attributes: Any) -> None:
        add(self, pseudonym, views, clinical, label, {**attributes, attribute: lesion_attribute(label, "mass")})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CohortWriter, "add", with_lesion)
        write_cohort(folder, site=site, patients=30, seed=1)


def test_a_clinical_table_with_such_a_column_is_refused() -> None:
    with pytest.raises(LeakageError, match="lesion_type"):
        load_contract().check_columns(["patient_id", "label", LESION_TYPE], source="clinical.csv")


class Backwards:
    def pseudonym(self, patient_id: str) -> str:
        return patient_id[::-1]


def test_the_file_of_an_evaluator_is_read_and_its_faults_are_named(tmp_path: Path) -> None:
    path = tmp_path / "lesions.csv"
    path.write_text("patient_id,lesion_type\nAB,mass\nCD,\nEF, Calcification \n")
    assert read_lesion_types(path, Backwards()) == {"BA": "mass", "FE": "calcification"}
    for text, words in (
        ("patient_id,kind\n", "other columns"), ("patient_id,lesion_type\nAB,tumour\n", "row 1: no such kind"),
        ("patient_id,lesion_type\nAB,mass\nAB,mass\n", "row 2: a woman stands twice"),
        ("patient_id,lesion_type\n,mass\n", "row 1: not a patient id"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(ContractError, match=words):
            read_lesion_types(path, Backwards())
    path.unlink()
    with pytest.raises(ContractError, match="cannot be read"):
        read_lesion_types(path, Backwards())

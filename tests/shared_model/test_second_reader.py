"""A model beside radiologists: each rule by hand, paired intervals that hold, and a column that no model can get."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from client.privacy.disclosure import disclosed
from client.privacy.egress_reports import check_report
from shared_model.contract import load_contract
from shared_model.errors import LeakageError
from shared_model.evaluation import Scores
from shared_model.evaluation.report import test_report
from shared_model.evaluation.second_reader import paired_gain, second_reader
from shared_model.evaluation.subgroups import subgroup_table
from shared_model.protocol import EvaluationTerms
from shared_model.readings import ARBITER, READER, READINGS
from tests.conftest import BASE

Y = [1, 1, 1, 1, 0, 0, 0, 0]
FIRST, MODEL, SECOND = [1, 1, 0, 0, 1, 0, 0, 0], [1, 0, 1, 0, 0, 1, 0, 0], [1, 0, 1, 1, 0, 0, 0, 1]


def rules(**about: Any) -> dict[str, dict[str, Any]]:
    values = {"threshold": 0.5, "arbiter": SECOND, "prevalence": 0.01, "confidence": 0.95} | about
    found = second_reader(Y, values.pop("reader", FIRST), MODEL, **values)
    assert found is not None
    return {row["rule"]: row for row in found["rules"]}


def test_each_rule_recalls_whom_it_says() -> None:
    found = rules()
    shares = {name: (row["sensitivity"], row["specificity"]) for name, row in found.items()}
    assert shares == {
        "reader": (0.5, 0.75), "model": (0.5, 0.75), "either": (0.75, 0.5), "both": (0.25, 1.0),
        "arbitrated": (0.5, 1.0), "two_readers": (1.0, 0.5),
    }  # fmt: skip
    assert (found["arbitrated"]["sensitivity_gain"], found["arbitrated"]["specificity_gain"]) == (0.0, 0.25)
    assert set(rules(arbiter=None)) == {"reader", "model", "either", "both"}


def test_work_is_counted_at_the_prevalence_not_in_the_enriched_women() -> None:
    """Half of the women of either class are disputed: 500 of 1,000. Recalls of the reader: 1 % x 50 % + 99 % x 25 %."""
    found = rules()
    assert found["arbitrated"]["arbitrations"] == pytest.approx(500) and found["either"]["arbitrations"] is None
    assert [found[name]["reads"] for name in ("reader", "model", "both", "arbitrated", "two_readers")] == [
        1000, 0, 1000, pytest.approx(1500), 2000]  # fmt: skip
    assert found["reader"]["recalls"] == pytest.approx(1000 * (0.01 * 0.5 + 0.99 * 0.25))
    assert found["reader"]["found"] == pytest.approx(5)


def test_women_whom_nobody_read_are_left_out_and_counted() -> None:
    blind = second_reader(Y, [np.nan, *FIRST[1:]], MODEL, threshold=0.5, arbiter=[*SECOND[:7], np.nan], prevalence=0.01,
                          confidence=0.95)  # fmt: skip
    assert blind is not None and (blind["n"], blind["positives"], blind["left_out"]) == (6, 3, 2)
    nobody = [np.nan] * 8
    assert second_reader(Y, nobody, MODEL, threshold=0.5, prevalence=0.01, confidence=0.95) is None
    for wrong in ([2.0] * 8, [1.0]):
        with pytest.raises(ValueError, match="decisions"):
            second_reader(Y, wrong, MODEL, threshold=0.5, prevalence=0.01, confidence=0.95)


def test_the_paired_interval_covers_and_uses_the_pairing() -> None:
    rng, hits, widths = np.random.default_rng(0), 0, []
    for _ in range(600):
        shared, one, two = rng.random((3, 60))
        a, b = (shared < 0.7) & (one < 0.95), (shared < 0.7) & (two < 0.8)
        found = paired_gain(a, b, confidence=0.95)
        hits += found.low <= 0.7 * 0.15 <= found.high
        widths.append(found.high - found.low)
    assert 0.93 < hits / 600 < 0.985
    loose = [paired_gain(a, b, confidence=0.95) for a, b in rng.random((200, 2, 60)) < np.array([[[0.665], [0.56]]])]
    assert np.mean(widths) < 0.8 * np.mean([found.high - found.low for found in loose])
    same = paired_gain([1, 0, 1], [1, 0, 1], confidence=0.95)
    assert same.value == 0 and same.low <= 0 <= same.high


def women(n: int = 300) -> tuple[Scores, pd.DataFrame]:
    rng = np.random.default_rng(1)
    y = (rng.random(n) < 0.3).astype(np.uint8)
    fused = rng.normal(y * 1.5, 1)
    chance = np.where(y == 1, 0.85, 0.1)
    read = {name: np.where(rng.random(n) < chance, "yes", "no").astype(object) for name in READINGS}
    read[READER][:7] = None
    return Scores(y, fused, fused, fused, np.full((n, 2), 0.5)), pd.DataFrame(read)


def test_the_report_has_it_and_it_leaves_the_evaluator_alone() -> None:
    scores, attributes = women()
    terms = EvaluationTerms(**BASE["evaluation"] | {"bootstrap": 0})
    document = test_report(scores, {"fused": 0.8}, 1.0, terms, attributes)
    part = document["evidence"]["second_reader"]
    assert (part["n"], part["left_out"], len(part["rules"])) == (293, 7, 6)
    assert check_report(json.dumps(document), "test") == document
    assert "evidence" not in disclosed(document, below=5, totals=True)  # a hospital says nothing of its radiologists
    assert document["subgroups"] == []  # what was decided at this read makes no group of women
    for changed, thresholds in ((attributes.drop(columns=READER), {"fused": 0.8}), (attributes, {})):
        document = test_report(scores, thresholds, 1.0, terms, changed)
        assert "second_reader" not in document["evidence"]
    alone = test_report(scores, {"fused": 0.8}, 1.0, terms, attributes.drop(columns=ARBITER))["evidence"]
    assert [row["rule"] for row in alone["second_reader"]["rules"]] == ["reader", "model", "either", "both"]


@pytest.mark.parametrize("name", READINGS)
def test_a_reading_cannot_become_a_model_input(name: str) -> None:
    contract = load_contract()
    assert name not in contract.groups
    with pytest.raises(LeakageError, match="this very read"):
        contract.check_columns(["patient_id", "label", "age", name], source="clinical.csv")
    with pytest.raises(LeakageError, match="this very read"):
        contract.encode(pd.DataFrame({"age": [50], name: ["yes"]}), source="clinical.csv")
    scores, attributes = women()
    assert subgroup_table(scores.labels, scores.fused, attributes, confidence=0.95) == []

"""Every report that the evaluation can make has the shape that may leave, and nothing beside it does."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from client.privacy.disclosure import disclosed
from client.privacy.egress_reports import check_report
from shared_model.errors import EgressError
from shared_model.evaluation import Scores
from shared_model.evaluation.report import selection_report, test_report
from shared_model.protocol import Protocol


def women(n: int, positives: int, *, seed: int = 0) -> Scores:
    rng = np.random.default_rng(seed)
    labels = np.zeros(n, dtype=np.uint8)
    labels[:positives] = 1
    image, clinical = (rng.normal(labels * 1.0, 1.0, n) for _ in range(2))
    return Scores(labels, image + clinical, image, clinical, np.full((n, 2), 0.5))


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("thresholds", [{}, {"fused": 0.5, "image": 0.0, "clinical": -1e3, "rule_out": -0.5}])
@pytest.mark.parametrize(("n", "positives"), [(400, 120), (40, 3), (12, 0), (12, 12), (2, 1)])
def test_whatever_the_women_are_the_test_report_may_leave(
    small_protocol: Callable[..., Protocol], n: int, positives: int, thresholds: dict[str, float], reference: bool
) -> None:
    scores, terms = women(n, positives), small_protocol().evaluation.model_copy(update={"bootstrap": 20})
    attributes = pd.DataFrame({"age_years": np.linspace(40, 79, n), "vendor": ["V1", "V2"] * (n // 2)})
    document = test_report(scores, thresholds, 1.3, terms, attributes, scores.image if reference else None)
    assert check_report(json.dumps(document), "test") == document
    for part in (document, document["evidence"], *document["evidence"]["models"].values()):
        wrong = json.loads(json.dumps(document))
        where = wrong
        for key in _path(document, part):
            where = where[key]
        where["patient"] = "0123456789abcdef"
        with pytest.raises(EgressError, match="may not leave"):
            check_report(json.dumps(wrong), "test")


def _path(document: dict[str, object], part: object) -> list[str]:
    if part is document:
        return []
    evidence = document["evidence"]
    assert isinstance(evidence, dict)
    if part is evidence:
        return ["evidence"]
    return ["evidence", "models", next(name for name, row in evidence["models"].items() if row is part)]


def test_the_selection_report_may_leave(small_protocol: Callable[..., Protocol]) -> None:
    document = selection_report(women(50, 10), small_protocol().evaluation)
    assert check_report(json.dumps(document), "selection") == document


def test_of_a_hospitals_own_women_no_bands_and_curves_leave(small_protocol: Callable[..., Protocol]) -> None:
    scores = women(100, 40)
    document = test_report(scores, {"fused": 0.0}, 1.0, small_protocol().evaluation, pd.DataFrame(index=range(100)))
    assert "evidence" not in disclosed(document, below=5, totals=True)
    assert "evidence" in disclosed(document, below=5, totals=False)

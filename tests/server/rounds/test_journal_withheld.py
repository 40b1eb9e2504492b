"""What the journal keeps of women: no small count of a site or of the evaluator, in documents, numbers and words."""

from __future__ import annotations

import doctest
import json
import math
from pathlib import Path
from typing import Any

import pytest

from server.rounds import withheld
from server.rounds.events import Event
from server.rounds.journal import Journal, Participation
from server.rounds.states import RoundStep, StudyStep

SHARES = {"auc": 0.9, "sensitivity": 0.67, "sensitivity_low": 0.2, "specificity": 0.8, "specificity_high": 0.9}


def kept(document: dict[str, Any], *, of_site: bool = True, noised: bool = False) -> dict[str, Any]:
    return withheld.document(document, of_site=of_site, noised=noised)


def group(level: str, n: int, positives: int, *, name: str = "vendor") -> dict[str, Any]:
    return {"name": name, "level": level, "n": n, "positives": positives, **SHARES}


def test_the_examples_are_true() -> None:
    found = doctest.testmod(withheld)
    assert found.attempted and not found.failed


@pytest.mark.parametrize(("n", "positives"), [(40, 4), (40, 36), (40, 0), (4, 2), (9, 4)])
def test_a_hospital_s_exact_document_of_few_women_is_not_kept(n: int, positives: int) -> None:
    assert kept({"n": n, "positives": positives, "models": {"fused": SHARES}}) == {"suppressed": True}


def test_a_hospital_of_enough_women_keeps_its_figures_without_curves() -> None:
    curves = {"roc": [[0, 0], [0.2, 1]], "calibration": [[0.1, 0.2, 9]]}
    document = {"n": 40, "positives": 5, "models": {"fused": SHARES | curves}, "evidence": {"models": {}}}
    assert kept(document) == {"n": 40, "positives": 5, "models": {"fused": SHARES}}


def test_what_noise_protects_keeps_its_shares_and_loses_small_counts() -> None:
    assert kept({"n": 21.3, "positives": 3.8, **SHARES}, noised=True) == {"n": 21.3, "positives": None, **SHARES}
    assert kept({"n": 3.1, "positives": -0.4, **SHARES}, noised=True) == {"n": None, "positives": None, **SHARES}
    assert kept({"n": 21.3, "positives": 8.8, **SHARES}, noised=True) == {"n": 21.3, "positives": 8.8, **SHARES}


def test_the_evaluator_keeps_its_shares_too() -> None:
    document = {"n": 40, "positives": 4, "auc": {"fused": 0.9}, "thresholds": {"fused": -1.5}, "temperature": 1.1}
    assert kept(document, of_site=False) == document | {"positives": None}


def test_a_subgroup_of_few_women_says_only_that_it_is_there() -> None:
    rows = [group("A", 4, 1), group("B", 30, 10), group("C", 20, 9), group("D", 25, 12)]
    found = kept({"n": 79, "positives": 32, "subgroups": rows})["subgroups"]
    assert found[0] == {"name": "vendor", "level": "A", "suppressed": True}
    # 32 less the others would be the first one's cancers: the least of the others goes, too
    assert found[2]["positives"] is None and found[2]["sensitivity"] is None
    assert (found[1], found[3]) == (rows[1], rows[3])


def test_a_subgroup_of_few_cancers_loses_them_and_what_is_a_share_of_them() -> None:
    rows = [group("A", 30, 3), group("B", 30, 2), group("C", 30, 27), group("a", 60, 30, name="density")]
    few, fewer, many, other = kept({"n": 90, "positives": 32, "subgroups": rows})["subgroups"]
    for row in (few, fewer):
        assert (row["n"], row["positives"], row["sensitivity"], row["sensitivity_low"]) == (30, None, None, None)
        assert row["specificity"] == 0.8 and row["auc"] == 0.9
    assert (many["positives"], many["specificity"], many["specificity_high"]) == (None, None, None)
    assert many["sensitivity"] == 0.67
    assert other == rows[3]


def test_points_of_a_calibration_curve_are_put_together_until_each_is_of_enough_women() -> None:
    points = [[0.1, 0.0, 2], [0.2, 0.5, 2], [0.3, 1.0, 4], [0.5, 0.4, 10], [0.9, 1.0, 3]]
    document = {"n": 21, "positives": 10, "models": {"fused": {"calibration": points}}}
    first, last = kept(document, of_site=False)["models"]["fused"]["calibration"]
    assert first == [pytest.approx(0.225), pytest.approx(0.625), 8]
    assert last == [pytest.approx(7.7 / 13), pytest.approx(7 / 13), 13]
    document["models"]["fused"]["calibration"] = [[0.1, 0.0, 2], [0.4, 0.5, 2]]
    assert kept(document, of_site=False)["models"]["fused"]["calibration"] == []


@pytest.mark.parametrize(("points", "expected"), [
    ([], []),
    ([[0.1, math.nan, 0], [0.2, 0.5, 6]], [[0.2, 0.5, 6]]),
    ([[0.1, 0.5, 6], [0.2, math.nan, 0], [0.4, 1.0, 2]], [[0.175, 0.625, 8]]),
    ([[0.1, 0.0, 4], [0.3, 1.0, 4], [0.5, 0.5, 8]], [[0.2, 0.5, 8], [0.5, 0.5, 8]]),
])  # fmt: skip
def test_no_woman_is_lost_where_points_are_put_together(points: list[Any], expected: list[Any]) -> None:
    document = {"n": 40, "positives": 10, "models": {"fused": {"calibration": points}}}
    found = kept(document, of_site=False)["models"]["fused"]["calibration"]
    assert [list(map(float, point)) for point in found] == [pytest.approx(point) for point in expected]


def test_a_risk_band_of_few_women_keeps_its_place_alone() -> None:
    band = {"name": "low", "from": 0.0, "to": 0.02, "stated": 0.01, "rate": 0.1, "rate_low": 0.0, "rate_high": 0.2}
    bands = [band | {"n": 0, "positives": 0}, band | {"n": 30, "positives": 3}]
    none, few = kept({"n": 90, "positives": 32, "bands": bands}, of_site=False)["bands"]
    assert none == dict.fromkeys(none) | {"name": "low", "from": 0.0, "to": 0.02}
    assert few == bands[1] | {"positives": None}


@pytest.mark.parametrize(("said", "written"), [
    ("found: 0 positives of 31", "found: fewer than 5 positives"),
    ("found: 31 positives of 31", "found: all but fewer than 5 positives"),
    ("3 of 60 patients have no films", "fewer than 5 patients have no films"),
    ("2 such patients, 1 test woman", "fewer than 5 such patients, fewer than 5 test woman"),
    ("40 patients; 3 of 4 sites; 2 rounds", "40 patients; 3 of 4 sites; 2 rounds"),
    ("1,004 women, 12.3 women, round-0004 women", "1,004 women, 12.3 women, round-0004 women"),
    ("Three women were left; no positives", "fewer than 5 women were left; fewer than 5 positives"),
    ("nine women of the twelve", "all but fewer than 5 women"),
    ("four out of sixty patients, 28 of the 31 women", "fewer than 5 patients, all but fewer than 5 women"),
    ("two of 31 test women, none of the patients", "fewer than 5 test women, fewer than 5 patients"),
    ("seven women at one of two sites, forty-three women", "seven women at one of two sites, forty-three women"),
])  # fmt: skip
def test_words_lose_small_numbers_of_women(said: str, written: str) -> None:
    assert withheld.words(said) == written


def test_every_way_into_the_journal_goes_through_it(tmp_path: Path) -> None:
    """Told counts of 3 by event, reason, number and document; the file has none of them, nor has the observer."""
    heard: list[Event] = []
    with Journal(tmp_path / "journal.sqlite", heard.append) as journal:
        with journal.study_step(StudyStep.START):
            journal.event(Event(time=1.0, kind="alarm", text="failed: 3 positives of 31", site="north",
                                data={"positives": 3.0, "why": "3 women", "seconds": 3.0}))  # fmt: skip
        with journal.round_step(1, 1, RoundStep.OPEN, weights_before="a"):
            row = Participation(site="north", outcome="failed", reason="code 20: 3 women", asked=1, seconds=3.0,
                                bytes_up=0, bytes_down=0)  # fmt: skip
            journal.participation(1, 1, row)
            journal.metrics(1, "site", "north", {"n": 3.0, "positives_fused": 3.0, "auc": 0.9})
            told = journal.report(1, "site", "south", weights="a", document={"n": 40, "positives": 3}, seconds=1.0,
                                  bytes_up=1, bytes_down=1)  # fmt: skip
            assert not told
            assert journal.report(1, "selection", "evaluator", weights="a", document={"n": 40, "positives": 3},
                                  seconds=1.0, bytes_up=1, bytes_down=1)  # fmt: skip
        assert journal.rows("SELECT text, data FROM events") == [
            ("failed: fewer than 5 positives", json.dumps({"why": "fewer than 5 women", "seconds": 3.0}))
        ]
        assert heard[0].text == "failed: fewer than 5 positives" and "positives" not in heard[0].data
        assert journal.rows("SELECT reason FROM participation") == [("code 20: fewer than 5 women",)]
        assert journal.rows("SELECT site, name, value FROM metrics ORDER BY site") == [
            ("evaluator", "n", 40.0), ("north", "auc", 0.9)
        ]  # fmt: skip
        documents = dict(journal.rows("SELECT site, document FROM reports"))
        assert json.loads(documents["south"]) == {"suppressed": True}
        assert json.loads(documents["evaluator"]) == {"n": 40, "positives": None}

"""What an answer says of few women, of a composite cohort, and of many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.reporting.answer import answer
from server.reporting.data_words import data_kind, data_words
from server.reporting.evidence_answer import headline
from server.reporting.facts import read_facts
from server.reporting.smallness import how_little
from shared_model.evaluation.gain import LEAST, too_few
from simulations.baselines.evidence import evidence
from tests.handmade_run import write_run_dir
from tests.simulations.baselines.test_baselines_evidence import population


def test_counts_width_and_what_one_woman_moves() -> None:
    words = how_little(26, 6, 0.311, 0.780, kind="", confidence=0.95)
    for part in ("6 women with cancer and 20 without", "0.47 wide", "move the AUC by 0.17", "guesses is within",
                 "no evidence for or against"):  # fmt: skip
        assert part in words
    assert "guesses" not in how_little(26, 20, 0.62, 0.97, kind="", confidence=0.95)
    clear = how_little(50, 20, 0.8, 0.97, kind="", confidence=0.95)  # a clear result is not called no evidence
    assert "Read the intervals" in clear and "no evidence" not in clear
    assert "no evidence" in how_little(26, 6, 0.8, 0.97, kind="", confidence=0.95)  # of so few nothing is clear
    assert "by 0.17" in how_little(26, 20, 0.62, 0.97, kind="", confidence=0.95)  # the fewer kind counts


def test_many_women_need_no_excuse_unless_they_are_no_evidence() -> None:
    many: Any = (2000, 500, 0.85, 0.88)
    assert how_little(*many, kind="synthetic", confidence=0.95) == ""
    assert "screening" in how_little(*many, kind="cbis_ddsm", confidence=0.95)
    assert "move the AUC" not in how_little(*many, kind="cbis_ddsm", confidence=0.95)


@pytest.mark.parametrize("bounds", [(None, None), (0.5, 0.5)])
def test_no_interval_is_said_and_not_subtracted(bounds: tuple[float | None, float | None]) -> None:
    assert "no interval" in how_little(12, 1, *bounds, kind="", confidence=0.95)


def test_rows_joined_to_mini_mias_are_other_womens() -> None:
    assert data_kind({"kind": "mini_mias", "clinical": None}) == "mini_mias"
    composite = data_words(data_kind({"kind": "mini_mias", "clinical": "x.csv"}))
    assert "different women" in composite.badge + composite.caution and "different women" in composite.little
    assert data_kind({"kind": "manifest", "clinical": "x.csv"}) == "manifest" and data_kind({}) == ""


def test_a_study_says_it_second_and_does_not_claim_a_gain(tmp_path: Path) -> None:
    write_run_dir(tmp_path)
    facts = read_facts(tmp_path)
    assert not any(sentence.startswith("How little") for sentence in answer(facts.summary, facts.protocol))
    held_out = dict(facts.held_out) | {"n": 30, "positives": 5}
    summary = dict(facts.summary) | {"metrics": {**facts.summary["metrics"], "held_out": held_out}}
    first, second, third, *_ = answer(summary, facts.protocol, data="mini_mias_composite")
    assert first.endswith("on 30 held-out women, 5 with cancer.")
    assert second.startswith("How little this can show") and "different women" in second
    assert "too few women to judge it" in third


def test_hospitals_of_few_women_are_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulations.baselines.evidence.REPLICATES", 20)
    found = evidence("unit", "mini_mias_composite", [population(3, held_out=26, own=20)], specificity=0.85)
    first, little, alone, price, *_ = headline(found)
    assert "cannot be judged" in first and little.startswith("How little") and "different women" in little
    assert alone.startswith("Whether it beats what a hospital has alone cannot be judged")
    assert "north (20 own test women, 6 with cancer)" in alone and "2 have too few women to judge" in price
    assert too_few(20, LEAST - 1) and too_few(20, 21 - LEAST) and not too_few(2 * LEAST, LEAST)

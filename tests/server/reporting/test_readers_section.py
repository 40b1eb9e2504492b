"""The report's second-reader section: every rule with its n, invented radiologists called so, "not done" without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from shared_model.evaluation.second_reader import second_reader
from shared_model.protocol import Protocol
from tests.handmade_run import protocol_values, summary_values
from tests.server.reporting.test_report import Page, report_of


def words(folder: Path, part: Any = None) -> str:
    metrics = summary_values(Protocol.create(protocol_values()))["metrics"]
    held_out = metrics["held_out"]
    evidence = held_out["evidence"] | ({} if part is None else {"second_reader": part})
    page = Page(report_of(folder, metrics=metrics | {"held_out": held_out | {"evidence": evidence}}))
    return page.text.partition("The model as second reader")[2].partition("How it learned")[0]


def test_every_rule_stands_with_its_women_and_its_work(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    reader, arbiter = ((rng.random(400) < np.where(y == 1, 0.8, 0.1)).astype(float) for _ in range(2))
    reader[:9] = np.nan
    part = second_reader(y, reader, rng.normal(y * 1.5, 1), threshold=1.0, arbiter=arbiter, prevalence=0.006,
                         confidence=0.95)  # fmt: skip
    assert part is not None
    text = words(tmp_path, part)
    assert "391 held-out women whom a radiologist read" in text and "9 others were read by nobody" in text
    assert "Invented radiologists" in text and "no claim is made" in text
    assert text.index("Radiologist alone") < text.index("Two radiologists, either recalls")
    row = next(row for row in part["rules"] if row["rule"] == "arbitrated")
    assert f"{100 * row['sensitivity']:.0f} %" in text.replace("\u00a0", " ") and f"{row['arbitrations']:.0f}" in text


def test_without_readings_it_is_not_done(tmp_path: Path) -> None:
    assert "Not done: the evaluator's cohort has no radiologist's decisions" in words(tmp_path)

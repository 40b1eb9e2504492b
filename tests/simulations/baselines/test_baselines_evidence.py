"""The evidence of made-up scores with known gains, of tiny and one-sided populations, and its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.reporting import write_evidence_report
from server.reporting.evidence_answer import headline
from server.reporting.evidence_page import render_evidence
from shared_model.errors import StorageError
from shared_model.evaluation.auc import paired_delong, roc_auc
from shared_model.evaluation.calibration import calibration
from shared_model.evaluation.recalibration import fit_platt
from simulations.baselines.evidence import evidence
from simulations.baselines.jobs import Job
from simulations.baselines.scores import HELD_OUT, PartyScores
from simulations.baselines.site_matrix import recalibrated_matrix
from simulations.baselines.trained import Trained

SITES, SEEDS = ("north", "south"), (1, 2, 3)


def scores(labels: np.ndarray, noise: np.ndarray, gain: float) -> PartyScores:
    fused = gain * labels - 1 + noise
    return PartyScores(labels=labels.astype(np.uint8), fused=fused, image=0.6 * fused, clinical=0.3 * fused)


def trained(name: str, seed: int, women: dict[str, tuple[np.ndarray, np.ndarray]], gain: float, *, epsilon: float = 0.0,
            rng: np.random.Generator) -> Trained:  # fmt: skip
    arm, baseline, *site = name.split("/")
    job = Job(seed=seed, arm=arm, baseline=baseline, parties=SITES, score="fused", overrides=(),
              site=site[0] if site else None)  # fmt: skip
    row = {"epsilon": epsilon, "delta": 1e-5, "budget": 8.0}
    summary: dict[str, Any] = {
        "privacy": dict.fromkeys(SITES, row) if epsilon else {}, "protocol_sha256": "ab" * 32,
        "model": {"round": 3, "sha256": "cd" * 32}, "versions": {"torch": "2.13.0"},
        "participation": {"north": {"contributed": 3}},
        "metrics": {"held_out": {"subgroups": [
            {"name": "inputs", "level": "table", "n": 40, "positives": 9, "auc": 0.6, "auc_low": 0.5, "auc_high": 0.69},
            {"name": "inputs", "level": "both", "n": 400, "positives": 120, "auc": 0.9, "auc_low": 0.85,
             "auc_high": 0.95},
            {"name": "vendor", "level": "X", "suppressed": True},
        ]}},
    }  # fmt: skip
    found = {party: scores(y, common + 0.3 * rng.normal(size=len(y)), gain) for party, (y, common) in women.items()}
    return Trained(job=job, scores=found, thresholds={} if baseline == "public_only" else {"fused": 0.3},
                   temperature=1.1, summary=summary)  # fmt: skip


def population(seed: int, *, held_out: int = 600, own: int = 300, positives: float = 0.3) -> dict[str, Trained]:
    rng = np.random.default_rng(seed)
    women = {}
    for party, n in ((HELD_OUT, held_out), *((site, own) for site in SITES)):
        y = (np.arange(n) < round(positives * n)).astype(np.uint8)
        women[party] = (y, rng.normal(size=n))
    gains = {
        "plain/federated": 1.8, "plain/image_only": 1.2, "plain/public_only": 0.8, "plain/local/north": 1.8,
        "plain/local/south": 1.0, "noised/federated": 1.4, "noised/local/north": 1.2, "noised/local/south": 0.6,
    }  # fmt: skip
    return {name: trained(name, seed, women, gain, epsilon=8.0 if name.startswith("noised") else 0.0, rng=rng)
            for name, gain in gains.items()}  # fmt: skip


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simulations.baselines.evidence.REPLICATES", 50)
        found = evidence("unit", "synthetic", [population(s) for s in SEEDS], specificity=0.85)
    text = json.dumps(found, allow_nan=False)
    return json.loads(text)


def test_differences_are_those_of_the_scores(document: dict[str, Any]) -> None:
    assert [p["n"] for p in document["populations"]] == [600] * 3
    plain = document["arms"]["plain"]
    pair = plain["pairs"]["federated_vs_public_only"]
    gaps = []
    for seed in SEEDS:
        p = population(seed)
        one, two = p["plain/federated"], p["plain/public_only"]
        gaps.append(paired_delong(one.labels(HELD_OUT), one.logits(HELD_OUT), two.logits(HELD_OUT), confidence=0.95))
    assert min(g.value for g in gaps) <= pair["difference"] <= max(g.value for g in gaps)
    assert pair["difference_low"] < pair["difference"] < pair["difference_high"] and pair["n"] == 1800
    assert 0 < plain["pairs"]["federated_vs_image_only"]["fewer_recalls"] < 1
    assert plain["matrix"]["federated"]["north"] == pytest.approx(
        np.mean([roc_auc(population(s)["plain/federated"].labels("north"),
                         population(s)["plain/federated"].logits("north")) for s in SEEDS])
    )  # fmt: skip
    moved, own = plain["recalibrated"], population(1)["plain/federated"]
    assert set(moved) == {"as it is", *SITES} and all(set(row) == set(SITES) for row in moved.values())
    assert moved["south"]["north"] < moved["as it is"]["north"]  # the scores were not calibrated, and alike everywhere
    line = fit_platt(own.labels("south"), own.logits("south") / own.temperature)
    one = recalibrated_matrix([own])["south"]["north"]
    fit = calibration(own.labels("north"), line(own.logits("north") / own.temperature), confidence=0.95)
    assert one == fit.adaptive_ece
    counts = plain["counts"]
    assert counts["from_counts"]["difference"] == pytest.approx(counts["from_scores"]["difference"], abs=0.01)
    assert document["price"]["noised"]["difference"] > 0


def test_a_hospital_alone_is_compared_without_noise_even_where_the_arm_has_it(document: dict[str, Any]) -> None:
    plain, noised = document["arms"]["plain"]["sites"]["south"], document["arms"]["noised"]["sites"]["south"]
    assert noised["models"]["local"] == plain["models"]["local"]
    assert noised["pairs"]["shared_vs_local_noised"]["difference"] > noised["pairs"]["shared_vs_local"]["difference"]
    assert "local_noised" not in plain["models"]


def test_the_answer_says_where_and_for_whom(document: dict[str, Any]) -> None:
    first, alone, price, whom = headline(document)
    assert first.startswith("Trained without privacy, the shared model beats the initial public weights")
    assert "1,800 held-out women (540 with cancer) of 3 populations" in first
    assert "south" in alone
    assert "epsilon 8.00 (delta 1e-05" in price and "trained without noise" in price and "same privacy" in price
    assert "table alone, no films: AUC 0.600" in whom and "n = 120 (27 with cancer)" in whom


def test_page_holds_every_part_and_nothing_from_outside(document: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "evidence.json").write_text(json.dumps(document))
    page = write_evidence_report(tmp_path).read_text()
    for words in ("0.94 against 0.88", "54", "0.958", "Trained at", "TRIPOD+AI 2024", "CLAIM 2024", "Model card",
                  "Datasheet of each hospital", "Synthetic data", "suppressed: fewer than can be shown", "not done",
                  "Without moving a score", "Risk bands", "Recalibrated at", 'aria-labelledby="forest-title',
                  "Not done: the evaluator's cohort has no radiologist's decisions"):  # fmt: skip
        assert words in page, words
    assert "<script" not in page and "http://" not in page.replace("http://www.w3.org", "")
    assert page == render_evidence(document)
    (tmp_path / "evidence.json").write_text('{"evidence_version": 2, "arms": {}}')
    with pytest.raises(StorageError, match="not the evidence"):
        write_evidence_report(tmp_path)


@pytest.mark.parametrize("positives", [0.0, 0.1, 1.0])
def test_tiny_and_one_sided_populations_have_a_page_too(positives: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulations.baselines.evidence.REPLICATES", 20)
    found = evidence("unit", "mini_mias", [population(3, held_out=12, own=10, positives=positives)], specificity=0.85)
    text = json.loads(json.dumps(found, allow_nan=False))
    assert "Public data: mini-MIAS" in render_evidence(text)

"""Jobs of a comparison, what their scores say, and the tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared_model.cohort import Cohort, split_indices
from shared_model.errors import ConfigError, StorageError
from shared_model.evaluation.auc import roc_auc
from simulations.baselines.answers import markdown, tables
from simulations.baselines.comparison import binormal, compare, kept_share, mean_and_spread, together
from simulations.baselines.jobs import BASELINES, Arm, Job, expand, merged, with_objective
from simulations.baselines.pooled import pool_cohorts
from simulations.baselines.scores import FILE, HELD_OUT, PartyScores, read_scores, write_scores
from simulations.composition import compose_config
from tests.conftest import write_cohort

SITES = ("site_01", "site_02")
ARMS = {
    "none": Arm(overrides=("privacy=none",), baselines=tuple(BASELINES)),
    "epsilon_8": Arm(overrides=("privacy=patient", "privacy.epsilon=8"), baselines=tuple(BASELINES)),
}


def jobs() -> list[Job]:
    return expand(seed=3, sites=SITES, arms=ARMS, overrides=["study=smoke", "seed=1"])


def test_every_arm_meets_every_baseline_and_what_nothing_changes_runs_once() -> None:
    names = {job.name for job in jobs()}
    common = ["federated", "pooled", "local/site_01", "local/site_02", "image_only", "clinical_only"]
    assert names == {f"{arm}/{name}" for arm in ARMS for name in common} | {"none/logistic", "none/public_only"}
    by_name = {job.name: job for job in jobs()}
    assert by_name["none/pooled"].parties == ("pooled",) and by_name["none/local/site_02"].parties == ("site_02",)
    assert {by_name[f"none/{n}"].score for n in ("image_only", "clinical_only", "federated")} == {
        "image", "clinical", "fused",
    }  # fmt: skip
    assert "seed=3" in by_name["none/federated"].overrides and "seed=1" not in by_name["none/federated"].overrides


def test_long_jobs_come_first() -> None:
    order = [job.baseline for job in jobs()]
    assert order.index("federated") < order.index("local") and order[-1] in ("logistic", "public_only")


def test_an_unknown_baseline_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"unknown.*oracle"):
        expand(seed=1, sites=SITES, arms={"study": Arm.of({"baselines": ["oracle"]}, ())}, overrides=[])


def test_the_last_override_of_a_key_holds() -> None:
    assert merged(["privacy=patient", "rounds=3", "privacy=none"]) == ("privacy=none", "rounds=3")


@pytest.mark.parametrize("privacy", ["none", "patient"])
@pytest.mark.parametrize("objective", ["image", "clinical"])
def test_a_baseline_has_the_study_s_budget(privacy: str, objective: Any) -> None:
    config = compose_config([f"privacy={privacy}"])
    own = with_objective(config, objective)
    assert {phase["objective"] for phase in own["training"]["phases"]} == {objective}
    assert own["evaluation"]["score"] == objective
    for before, after in zip(config["training"]["phases"], own["training"]["phases"], strict=True):
        assert {k: v for k, v in before.items() if k != "objective"} == {
            k: v for k, v in after.items() if k != "objective"
        }


# --- scores ----------------------------------------------------------------------------------------------


def party(seed: int, *, women: int = 300, image: float = 1.0, clinical: float = 0.8, noise: float = 0.0) -> PartyScores:
    """Conditionally independent binormal scores; `seed` fixes the women, so that all jobs score the same ones."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(women) < 0.3).astype(np.uint8)
    one = rng.standard_normal(women) + image * labels
    two = rng.standard_normal(women) + clinical * labels
    blur = noise * np.random.default_rng(seed + 99).standard_normal(women)
    return PartyScores(labels=labels, fused=image * one + clinical * two + blur, image=one, clinical=two)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Scores of all jobs: federated good, local worse, privacy a little worse."""
    for job in jobs():
        home = tmp_path / job.name
        home.mkdir(parents=True)
        noise = {"local": 6.0, "federated": 0.0, "pooled": 0.05}.get(job.baseline, 0.0)
        noise += 0.4 if job.arm == "epsilon_8" else 0.0
        found = {HELD_OUT: party(1, women=1500, noise=noise)} | {
            site: party(10 + i, women=600, noise=noise) for i, site in enumerate(SITES)
        }
        write_scores(home / FILE, found)
    return tmp_path


def test_scores_come_back_as_they_were_and_damage_is_said(folder: Path) -> None:
    path = folder / "none/federated" / FILE
    np.testing.assert_array_equal(read_scores(path)[HELD_OUT].fused, party(1, women=1500).fused)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(StorageError, match="cannot be read"):
        read_scores(path)
    with pytest.raises(StorageError, match="cannot be read"):
        read_scores(folder / "nowhere.npz")


def test_the_document_says_what_the_scores_say(folder: Path) -> None:
    document = compare(jobs(), folder)
    test = party(1, women=1500)
    arm = document["arms"]["none"]
    assert document["seed"] == 3 and document["women"] == {"n": 1500, "positives": int(test.labels.sum())}
    fused, image = roc_auc(test.labels, test.fused), roc_auc(test.labels, test.image)
    assert fused is not None and image is not None
    assert arm["federated_minus_image_only"]["difference"] == pytest.approx(fused - image)
    assert arm["federated_minus_image_only"]["low"] > 0 and arm["federated_minus_image_only"]["p"] < 0.01
    assert abs(arm["federated_minus_pooled"]["difference"]) < 0.01
    assert set(arm["federated_minus_local"]) == set(SITES)
    assert all(gap["low"] > 0 for gap in arm["federated_minus_local"].values())
    assert abs(fused - arm["binormal"]) < 0.015  # the scores are conditionally independent and binormal
    private = document["arms"]["epsilon_8"]
    assert private["federated_minus_public_only"]["difference"] < arm["federated_minus_public_only"]["difference"]


def test_the_tables_show_every_arm_and_every_question(folder: Path) -> None:
    one, two = compare(jobs(), folder), {**compare(jobs(), folder), "seed": 4}
    aucs, questions, *sites = tables([one, two])
    assert aucs.heads == ("model", "none", "epsilon_8") and "seeds 3, 4" in aucs.title
    assert next(row[0] for row in aucs.rows).startswith("initial weights") and len(aucs.rows) == 7
    said = {row[0]: row for row in questions.rows}
    assert said["none: federated minus image_only"][6] == "2 of 2"
    assert float(said["none: federated minus image_only"][5]) < 0.01
    cost = said["none minus epsilon_8, federated"]
    assert float(cost[2]) > 0
    kept = said["epsilon_8: share kept of what hospitals added over the initial weights"]
    assert 0 < float(kept[2]) < 1
    assert [table.title.split(":")[0] for table in sites] == ["none", "epsilon_8"]
    text = markdown(aucs)
    assert text.count("\n|---|") == 1 and "| federated, images + clinical |" in text


def test_many_arms_are_lines_and_not_columns(folder: Path) -> None:
    document = compare(jobs(), folder)
    many = {f"arm_{i}": document["arms"]["none"] for i in range(7)}
    rows = {f"{arm}/federated": document["jobs"]["none/federated"] for arm in many}
    table = tables([{**document, "arms": many, "jobs": rows}])[0]
    assert table.heads == ("arm", "federated, images + clinical")
    assert [row[0] for row in table.rows] == list(many)


def test_binormal_prediction_and_shares() -> None:
    assert binormal(0.88, 0.75) == pytest.approx(0.912, abs=0.001)  # research notes, fusion arithmetic
    assert binormal(0.8, 0.5) == pytest.approx(0.8)
    assert kept_share(0.8, 0.85, 0.75) == pytest.approx(0.5) and kept_share(0.8, 0.7, 0.75) is None
    assert mean_and_spread([0.5, None, 0.7]) == pytest.approx((0.6, 0.1414), abs=1e-4)
    assert mean_and_spread([None]) is None
    assert together([{"difference": 0.1, "low": None, "high": None}]) is None
    one = {"difference": 0.02, "low": 0.0, "high": 0.04}
    value, low, high = together([one, one]) or (0.0, 0.0, 0.0)
    assert value == pytest.approx(0.02) and high - low == pytest.approx(0.04 / np.sqrt(2))


# --- the pooled control ----------------------------------------------------------------------------------


def test_pooled_women_keep_their_split_their_films_and_their_rows(tmp_path: Path) -> None:
    for seed, site in enumerate(SITES):
        write_cohort(tmp_path / site, site=site, patients=25, seed=seed)
    pooled = Cohort.open(pool_cohorts([tmp_path / site for site in SITES], tmp_path / "pooled"))
    assert len(pooled) == 50
    fractions = {"train": 0.5, "test": 0.5}
    whole = split_indices(pooled, salt="x", fractions=fractions)
    trained = {pooled.pseudonyms[row] for row in whole["train"]}
    for site in SITES:
        own = Cohort.open(tmp_path / site)
        for part, rows in split_indices(own, salt="x", fractions=fractions).items():
            assert all((own.pseudonyms[row] in trained) == (part == "train") for row in rows)
        for row in range(len(own)):
            there = pooled.pseudonyms.index(own.pseudonyms[row])
            one, two = own.batch([row]), pooled.batch([there])
            assert (one.pixels_BVCHW == two.pixels_BVCHW).all() and (one.clinical_BF == two.clinical_BF).all()
            assert one.labels_B == two.labels_B and (one.view_mask_BV == two.view_mask_BV).all()
    assert pool_cohorts([tmp_path / "gone"], tmp_path / "pooled") == tmp_path / "pooled"  # made once

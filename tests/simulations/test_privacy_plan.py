"""The plan of a privacy budget: the index is the noise that arrives, and what is foretold comes from the table."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from client.privacy.randomness import SecureRandomness
from mammofed import cli
from shared_model.errors import ConfigError, PrivacyError, StorageError
from shared_model.evaluation.auc import roc_auc
from simulations.composition import compose_study
from simulations.privacy_plan import measure
from simulations.privacy_plan.command import budget_of, plan_budget, sure
from simulations.privacy_plan.measured import Group, Measured, groups_of, read_table
from simulations.privacy_plan.noise import index_of

TABLE = Measured(
    groups=tuple(Group(index=index, patients=1000, epsilon=1.0, rounds=24, losses=losses) for index, losses in (
        (0.1, (0.001, 0.003)), (0.4, (0.010, 0.014)), (1.0, (0.030, 0.050)), (3.0, (0.10, 0.20)))),
    gain=0.08, command="measured for a test", made="2026-11-26", held_out=100,
)  # fmt: skip


# --- the index -------------------------------------------------------------------------------------------


def test_the_index_is_the_noise_of_the_averaged_weights() -> None:
    """K sites, T steps, nobody's gradient but noise: the average's spread, over rate and C, is the index."""
    sizes, sigma, rate, steps, width = [120.0, 40.0, 240.0], 2.0, 0.25, 12, 20_000
    total = np.zeros(width)
    for size in sizes:
        noise = sum(SecureRandomness().normal(width, std=sigma).numpy().astype(np.float64) for _ in range(steps))
        total += size / sum(sizes) * noise / (rate * size)
    assert total.std() == pytest.approx(index_of(sigma=sigma, sample_rate=rate, steps=steps, sizes=sizes), rel=0.03)


def test_more_women_less_index_more_sites_more() -> None:
    terms: dict[str, Any] = {"sigma": 2.0, "sample_rate": 0.125, "steps": 192}
    one = index_of(sizes=[400.0] * 4, **terms)
    assert index_of(sizes=[800.0] * 4, **terms) == pytest.approx(one / 2)
    assert index_of(sizes=[100.0] * 16, **terms) == pytest.approx(2 * one)
    assert index_of(sizes=[700.0, 300.0, 400.0, 200.0], **terms) == pytest.approx(one)  # of sizes only the sum counts


# --- the table -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("index", "mean", "bound"), [
    (0.05, 0.002, "at most"), (0.1, 0.002, ""), (0.2, 0.007, ""), (0.4, 0.012, ""), (3.0, 0.15, ""),
    (9.0, 0.15, "at least"),
])  # fmt: skip
def test_a_loss_is_interpolated_and_never_beyond_what_was_measured(index: float, mean: float, bound: str) -> None:
    loss = TABLE.loss(index)
    assert loss.mean == pytest.approx(mean, abs=1e-9) and loss.bound == bound
    assert loss.low <= loss.mean <= loss.high


def test_a_loss_never_falls_as_noise_grows_even_where_the_measured_ones_do() -> None:
    odd = Group(index=0.7, patients=1, epsilon=1.0, rounds=1, losses=(0.002, 0.004))
    uneven = replace(TABLE, groups=(*TABLE.groups[:2], odd, *TABLE.groups[2:]))
    losses = [uneven.loss(float(index)).mean for index in np.geomspace(0.1, 3.0, 50)]
    assert losses == sorted(losses)


def test_the_index_for_a_loss_is_the_greatest_that_holds_it() -> None:
    index = TABLE.index_for(0.012)
    assert index is not None and 0.39 < index <= 0.4
    assert TABLE.index_for(0.001) is None


def test_rows_that_asked_for_the_same_are_one_group_in_order_of_noise() -> None:
    row = {"patients": 600, "epsilon": 2.0, "rounds": 24, "noise_index": 1.0, "auc": 0.8, "auc_without_noise": 0.85}
    groups = groups_of([row, {**row, "auc": 0.83}, {**row, "epsilon": 8.0, "noise_index": 0.5}])
    assert [(group.epsilon, len(group.losses)) for group in groups] == [(8.0, 1), (2.0, 2)]
    assert groups[1].losses == pytest.approx((0.05, 0.02))


def test_the_shipped_table_says_where_it_comes_from_and_spans_useful_and_useless() -> None:
    table = read_table()
    assert "simulations.privacy_plan.measure" in table.command and table.held_out >= 1000
    assert sum(len(group.losses) for group in table.groups) >= 20
    least, most = table.groups[0], table.groups[-1]
    assert table.loss(least.index).mean < 0.01 < table.gain < table.loss(most.index).mean


@pytest.mark.parametrize("text", ["", "{}", '{"rows": 3}', "[1]"])
def test_a_damaged_table_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(StorageError, match="absent or damaged"):
        read_table(tmp_path / "t.json")


# --- the plan --------------------------------------------------------------------------------------------


def planned(patients: int, *overrides: str, sites: int = 4) -> Any:
    config = {**compose_study(["privacy=patient", *overrides]), "sites": sites}
    return budget_of(config, patients=patients, limit=0.02, table=TABLE)


def test_the_noise_keeps_epsilon_and_a_woman_at_two_sites_has_more_but_not_twice_as_much() -> None:
    budget = planned(1800, "rounds=20", "privacy.epsilon=3")
    assert 2.9 < budget.epsilon <= 3.0 < budget.twice < 6.0
    assert budget.sizes == (450,) * 4 and budget.steps == (160,) and budget.batch == pytest.approx(56.25)
    assert budget.index == pytest.approx(budget.sigmas[0] * math.sqrt(4 * 160) / (0.125 * 1800))


def test_what_is_needed_suffices_and_much_less_does_not() -> None:
    small = planned(200, "rounds=20", "privacy.epsilon=2")
    assert small.loss is not None and small.loss.mean > 0.02 and small.needed is not None
    enough = planned(small.needed + 40, "rounds=20", "privacy.epsilon=2")  # sizes are rounded to ten
    assert enough.loss is not None and enough.loss.mean <= 0.0205
    fewer = planned(small.needed // 2, "rounds=20", "privacy.epsilon=2")
    assert fewer.loss is not None and fewer.loss.mean > 0.02


def test_a_recipe_that_was_not_measured_gets_no_figure() -> None:
    budget = planned(1800, "training=features", "rounds=20")
    assert budget.loss is None and budget.needed is None and budget.useful


@pytest.mark.parametrize(("arguments", "words"), [
    (["--patients", "1800", "--rounds", "20", "--epsilon", "3"], ("epsilon 3.00", "Worth it", "synthetic women")),
    (["--patients", "120", "--rounds", "20", "--epsilon", "0.3"], ("No: noise would take", "More women, more epsilon")),
    (["--patients", "1800", "training=adapters"], ("No estimate of AUC",)),
])  # fmt: skip
def test_the_command_says_yes_no_or_that_it_does_not_know(arguments: list[str], words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli, ["privacy", "plan", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    for word in words:
        assert word in " ".join(result.output.split())


def test_the_same_as_json(tmp_path: Path) -> None:
    budget = plan_budget(patients=1800, sites=4, overrides=["rounds=20"], json_path=tmp_path / "plan.json",
                         console=Console(quiet=True))  # fmt: skip
    assert json.loads((tmp_path / "plan.json").read_text())["index"] == budget.index


@pytest.mark.parametrize(("patients", "overrides", "error", "words"), [
    (3, [], ConfigError, "fewer than there are sites"),
    (100, ["privacy=none"], ConfigError, "spends no budget"),
    (100, ["privacy.epsilon=0.0001"], PrivacyError, "too small for any useful training"),
])  # fmt: skip
def test_what_cannot_be_planned_is_refused(
    patients: int, overrides: list[str], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        plan_budget(patients=patients, sites=4, overrides=overrides, console=Console(quiet=True))


@pytest.mark.parametrize(("epsilon", "share"), [(0.0, 0.5), (1.0, 0.731), (3.0, 0.953), (8.0, 0.9997)])
def test_epsilon_in_words_is_bayes(epsilon: float, share: float) -> None:
    assert sure(epsilon) == pytest.approx(share, abs=5e-4)


# --- what the ethics board reads -------------------------------------------------------------------------

PATIENTS = (Path(__file__).parents[2] / "client" / "PATIENTS.md").read_text(encoding="utf-8")


def test_the_board_s_table_of_epsilon_is_right() -> None:
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) of 100 \|", PATIENTS, re.M)
    assert [int(epsilon) for epsilon, _ in rows] == [0, 1, 3, 8]
    assert all(float(share) == pytest.approx(100 * sure(float(epsilon)), abs=0.5) for epsilon, share in rows)
    assert float(rows[-1][1]) == pytest.approx(100 * sure(8.0), abs=0.005)


def test_the_board_s_figure_for_a_woman_at_two_hospitals_is_the_command_s() -> None:
    assert "`--patients 1800 --rounds 20`: 4.4)" in PATIENTS
    assert planned(1800, "rounds=20", "privacy.epsilon=3").twice == pytest.approx(4.4, abs=0.05)


def test_every_command_on_the_board_s_page_exists() -> None:
    named = set(re.findall(r"`mammofed privacy (\w+)", PATIENTS))
    assert named == {"plan", "audit"}
    for name in named:
        result = CliRunner().invoke(cli, ["privacy", name, "--help"], catch_exceptions=False)
        assert result.exit_code == 0 and "Example:" in result.output


# --- how the table is made -------------------------------------------------------------------------------


def test_the_table_is_measured_row_by_row_and_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "POPULATION", ("sites=2", "patients=60", "held_out=40"))
    monkeypatch.setattr(measure, "RUNS", ((1.0, 8.0), (0.5, 2.0)))
    monkeypatch.setattr(measure, "CHECKS", ())
    monkeypatch.setattr(measure, "ROUNDS", 2)
    judged: list[bytes] = []
    monkeypatch.setattr(measure, "roc_auc", lambda y, scores: judged.append(scores.tobytes()) or roc_auc(y, scores))
    arguments = ["--output", str(tmp_path / "t.json"), "--cache", str(tmp_path / "cache"), "--seeds", "5"]
    assert measure.main(arguments) == 0
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert [(row["epsilon"], row["repeat"]) for row in rows] == [(8.0, 0), (8.0, 1), (2.0, 0), (2.0, 1)]
    assert len(set(judged)) == len(judged) == 1 + 2 + 4  # at the start, without noise, and new noise in each repeat
    assert read_table(tmp_path / "t.json").held_out == 40
    document = json.loads((tmp_path / "t.json").read_text())
    (tmp_path / "t.json").write_text(json.dumps({**document, "rows": rows[:3]}))
    assert measure.main(arguments) == 0
    assert json.loads((tmp_path / "t.json").read_text())["rows"][:3] == rows[:3]
    assert capsys.readouterr().out.count("noise_index") == 5

"""What a design says of given scores, in its document, in sentences and on its page; no training here."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from server.cli import report
from server.reporting.design_answer import abstentions, headline, next_steps
from server.reporting.design_page import DESIGN_NAME, write_design_report
from shared_model.errors import StorageError
from shared_model.evaluation.auc import roc_auc
from shared_model.evaluation.multiple import holm
from shared_model.evaluation.operating import operating_point
from simulations.baselines.scores import HELD_OUT, PartyScores
from simulations.composition import compose_config
from simulations.designs.price import Price
from simulations.designs.results import Judged, results
from simulations.designs.roll import NamedRun, Roll
from simulations.designs.table import tell

SITES = ("site_01", "site_02", "site_03")
FREE = Price(sigmas=(0.0,), mechanisms=(), releases=dict.fromkeys(SITES, 2), one=None, together=None, granted=None,
             delta=None)  # fmt: skip
PAID = Price(sigmas=(2.0,), mechanisms=((2.0, 0.1, 4),), releases=dict.fromkeys(SITES, 2), one=4.0,
             together=dict.fromkeys(SITES, 6.0), granted=8.0, delta=1e-5)  # fmt: skip


def scores(seed: int, n: int, *, shift: float = 0.0) -> PartyScores:
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 4 == 0).astype(np.uint8)
    logits = rng.normal(size=(3, n)) + np.array([[2.0], [1.5], [0.5]]) * labels + shift
    return PartyScores(labels=labels, fused=logits[0], image=logits[1], clinical=logits[2])


def judged(name: str, test: Mapping[str, int], *, seed: int, missed: int = 0, shift: float = 0.0) -> Judged:
    women = {site: [f"{site}-{name if site in test else ''}{i}" for i in range(n)] for site, n in test.items()}
    train = {site: [f"{site}-t{i}" for i in range(50)] for site in SITES if site not in test or name.startswith("fold")}
    found = {site: scores(seed + place, n, shift=shift) for place, (site, n) in enumerate(sorted(test.items()))}
    summary = {"rounds_planned": 5, "protocol_sha256": "0" * 64,
               "participation": {site: {"contributed": 5 - missed} for site in train}}  # fmt: skip
    return Judged(run=NamedRun(name=name, train=train, test=women), scores={**found, HELD_OUT: scores(seed + 50, 80)},
                  threshold=1.0 + shift, temperature=1.5, chosen=4, summary=summary)  # fmt: skip


def document(kind: str, runs: list[Judged], price: Price = FREE, *overrides: str, **roll: Any) -> dict[str, Any]:
    config = compose_config(["study=smoke", f"design={kind}", *overrides])
    plan = Roll(kind=kind, runs=tuple(one.run for one in runs), price=price, **roll)
    spent = {} if price.granted is None else dict(zip(SITES, (5.9, 6.0, 5.8), strict=True))
    return results(config, plan, runs, spent=spent, selection=(31, 9))


def test_folds_of_models_with_other_scales_are_not_ranked_against_each_other(tmp_path: Path) -> None:
    test = dict.fromkeys(SITES, 80)
    plain, moved = (
        document("cross_validation", [judged(f"fold_{k}", test, seed=10 * k, shift=shift * k) for k in range(3)])
        for shift in (0.0, 9.0)
    )  # fmt: skip
    assert plain["folds"] == moved["folds"] and plain["sites"] == moved["sites"]
    keys = ("sensitivity", "specificity", "accuracy")  # each woman at the threshold of her own run
    assert [plain["pooled"][key] for key in keys] == [moved["pooled"][key] for key in keys]
    assert not {"auc", "roc", "average_precision"} & set(plain["pooled"]) and plain["pooled"]["n"] == 720
    first = judged("fold_0", test, seed=0)
    point = operating_point(first.labels(), first.logits(), threshold=1.0, confidence=0.95)
    assert plain["runs"][0]["sensitivity"] == point.sensitivity.value
    assert plain["folds"]["image"]["difference"] == pytest.approx(
        plain["folds"]["fused"]["mean"] - plain["folds"]["image"]["mean"])
    (tmp_path / DESIGN_NAME).write_text(json.dumps(plain))
    page = write_design_report(tmp_path).read_text()
    assert "720 women, 180 with cancer, each tested once" in page and "LeDell" in page and "SD over folds" in page
    assert page.count("<svg") == 3 and "31 women, 9 with cancer" in page and "NaN" not in page


def test_a_hospital_left_out_stands_beside_the_model_that_had_it() -> None:
    full = judged("all_sites", dict.fromkeys(SITES, 40), seed=1)
    runs = [full]
    for place, site in enumerate(SITES):
        one = judged(f"without_{site}", {site: 120}, seed=20 * (place + 1))
        women = [*full.run.test[site], *(f"{site}-{i}" for i in range(80))]
        runs.append(replace(one, run=replace(one.run, test={site: women})))
    found = document("leave_one_site_out", runs, PAID, "design.reference=true")
    assert [row["site"] for row in found["sites"]] == list(SITES) and found["women"]["tested"] == 360
    for row, one in zip(found["sites"], runs[1:], strict=True):
        site = row["site"]
        assert row["n"] == 120 and row["shared"]["n"] == 40  # all of its women; those whom neither trained on
        assert row["shared"]["without"] == roc_auc(full.labels(site), one.logits(site)[:40])
        assert row["shared"]["with"] == roc_auc(full.labels(site), full.logits(site))
    assert {r["site"]: r["shared"]["p_adjusted"] for r in found["sites"]} == holm(
        {r["site"]: r["shared"]["p"] for r in found["sites"]})
    found["sites"][1] |= {"specificity": 0.75, "specificity_low": 0.7, "specificity_high": 0.8}
    assert "site_02 75 %" in " ".join(next_steps(found))  # though all women together are as wanted
    low, high = found["across"]["new_site"]
    assert low < found["across"]["auc_low"] < found["across"]["auc_high"] < high
    words = " ".join(headline(found))
    assert "A further hospital may expect an AUC between" in words
    assert "a woman trains in up to 2 of 4 trainings and has spent epsilon 6.00 at most (ledger of site_02" in words
    assert "one training alone 4.00" in words


def test_years_split_the_tested_women_and_synthetic_ones_do_not_change() -> None:
    one = judged("until_2022", {"site_01": 100, "site_02": 60}, seed=4)
    years = {name: 2020.5 + place % 3 for place, name in enumerate(one.women())}
    found = document("temporal", [one], FREE, "design.until=2022", years=years, unknown={"site_01": 3, "site_02": 0})
    periods = found["periods"]
    assert [(row["year"], row["period"]) for row in periods["years"]] == [
        (2020, "earlier"), (2021, "earlier"), (2022, "later")]
    assert periods["later"]["n"] == 53 and periods["earlier"]["n"] == 107
    late = np.array([years[name] >= 2022 for name in one.women()])
    assert periods["later"]["auc"] == roc_auc(one.labels()[late], one.logits()[late])
    words = " ".join(headline(found))
    assert "3 women without a known year are in neither part" in words and "a difference here is chance" in words
    given = document("temporal", [one], FREE, "design.until=2022", "design.years=some.csv", years=years)
    assert "is chance" not in " ".join(headline(given))


def test_what_to_do_next_follows_from_what_was_found() -> None:
    test = {"site_01": 200, "site_02": 60}
    weak = document("cross_validation", [judged(f"fold_{k}", test, seed=k, missed=2) for k in range(2)])
    weak["pooled"] |= {"specificity": 0.7, "specificity_low": 0.65, "specificity_high": 0.75}
    steps = " ".join(next_steps(weak))
    assert "threshold for 85 % specificity does not carry over (all women 70 %)" in steps
    assert "design=leave_one_site_out" in steps
    assert abstentions(weak) == 12 and "Sites missed 12 rounds in all" in steps
    good = document("cross_validation", [judged(f"fold_{k}", test, seed=k) for k in range(2)])
    good["pooled"] |= {"specificity": 0.85, "specificity_low": 0.80, "specificity_high": 0.9}
    assert "does not carry over" not in " ".join(next_steps(good)) and abstentions(good) == 0
    good["pooled"] |= {"calibration_slope_low": 1.1, "calibration_slope_high": 1.2}
    assert "Probabilities do not carry over" in " ".join(next_steps(good))

    good["pooled"] |= {"calibration_slope": 1.15, "before": {
        "calibration_slope": 1.05, "calibration_intercept": 1.2, "calibration_intercept_low": 1.1,
        "calibration_intercept_high": 1.3}}  # fmt: skip
    assert "slope was 1.05 and the intercept +1.20: all scores are too low" in " ".join(next_steps(good))
    for other in ({"calibration_intercept_low": -0.1}, {"calibration_slope": 1.3}):  # no shift, or no worse for it
        changed = {**good, "pooled": {**good["pooled"], "before": {**good["pooled"]["before"], **other}}}
        assert "all scores" not in " ".join(next_steps(changed))


def test_the_terminal_says_it_within_eighty_columns_and_report_makes_the_page_again(tmp_path: Path) -> None:
    folds = [judged(f"fold_{k}", dict.fromkeys(SITES, 60), seed=k) for k in range(2)]
    found = document("cross_validation", folds, PAID)
    out = io.StringIO()
    tell(found, run_dir=tmp_path, report=tmp_path / "report.html", console=Console(file=out, width=80))
    table = [line for line in out.getvalue().splitlines() if line.startswith(" fold")]
    assert len(table) == 2 and "…" not in out.getvalue() and "all folds" in out.getvalue()
    (tmp_path / DESIGN_NAME).write_text(json.dumps(found))
    done = CliRunner().invoke(report, [str(tmp_path)])
    assert done.exit_code == 0 and "All releases add up" in (tmp_path / "report.html").read_text()
    for text in ("{}", json.dumps({**found, "design_version": 99}), json.dumps({**found, "design": "guessing"})):
        (tmp_path / DESIGN_NAME).write_text(text)
        with pytest.raises(StorageError, match="no result of a design"):
            write_design_report(tmp_path)

"""The report's section on hospitals' own women: figures with their n, how they left, "not done" where nothing did."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.reporting.facts import read_facts
from server.reporting.joint_words import joint_part, joint_sentence
from server.rounds.summary import validator
from shared_model.evaluation.auc import Interval
from shared_model.evaluation.joint import joint_histogram
from shared_model.evaluation.joint_report import How, joint_document
from shared_model.evaluation.meta import pooled_share
from shared_model.protocol import Protocol
from tests.handmade_run import protocol_values, summary_values
from tests.server.reporting.test_report import Page, report_of


def joint_values(how: How, *, stds: tuple[float, ...] = ()) -> dict[str, Any]:
    rng = np.random.default_rng(2)
    y = rng.integers(0, 2, 500)
    one, two = rng.normal(y * 1.4, 1), rng.normal(y * 0.7, 1)
    tables = {"public": joint_histogram(y, one, two, bins=16)}
    if how == "masked":
        tables["image"] = joint_histogram(y, one, one - 0.2, bins=16)
    return joint_document(tables, how=how, sites=4, noise_stds=stds, confidence=0.95)


def section(folder: Path, *, joint: Any = None, sites: Any = None) -> tuple[str, str]:
    """The section's words, and the whole page."""
    metrics = summary_values(Protocol.create(protocol_values(private=True)))["metrics"]
    changes = {"joint": joint} | ({} if sites is None else {"sites": sites})
    page = report_of(folder, metrics=metrics | changes)
    words = Page(page).text.partition("Hospitals' own women, without moving a score")[2]
    return words.partition("Subgroups of the held-out women")[0], page


def test_the_masked_sum_is_printed_with_its_women_bins_and_tests(tmp_path: Path) -> None:
    document = joint_values("masked")
    summary = summary_values(Protocol.create(protocol_values(private=True)))
    assert not list(validator().iter_errors(summary | {"metrics": summary["metrics"] | {"joint": document}}))
    words, page = section(tmp_path, joint=document, sites={})
    assert "Each of 4 hospitals" in words and "16 x 16 bins" in words and "No epsilon covers that sum" in words
    assert f"{document['n']:.0f} women, {document['positives']:.0f} with cancer" in words
    for row in document["models"].values():
        assert f"{row['auc']:.3f} ({row['auc_low']:.3f} to {row['auc_high']:.3f})" in words
    assert f"{document['pairs']['fused_vs_image']['difference']:.3f}" in words and "fused against films alone" in words
    assert "with a secure sum no hospital's own result leaves it" in words
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert 'aria-labelledby="joint-calibration-title' in page and "that is noise" not in words
    assert 'aria-labelledby="joint-roc-title' in page and len(ids) == len(set(ids))


def test_the_answer_opens_with_them_and_the_passport_states_them(tmp_path: Path) -> None:
    document = joint_values("masked")
    protocol = Protocol.create(protocol_values(private=True))
    summary = summary_values(protocol)
    metrics = summary["metrics"] | {"joint": document}
    said = joint_sentence(summary | {"metrics": metrics}, protocol)
    row = document["models"]["fused"]
    assert said.startswith("On the own test women of 4 hospitals together (some 500, 2")
    bounds = f"(95 % interval {row['auc_low']:.3f} to {row['auc_high']:.3f})"
    assert f"the fused model reaches {row['auc']:.3f} {bounds}" in said
    assert f"began with {document['models']['public']['auc']:.3f}" in said and "no epsilon covers" in said
    assert said in " ".join(Page(report_of(tmp_path / "sum", metrics=metrics)).text.split())
    part = joint_part(read_facts(tmp_path / "sum"))
    assert part is not None and (part.how, part.epsilon, part.n) == ("masked", None, 500)
    assert part.positives == 10 * round(document["positives"] / 10) and set(part.models) == {"fused", "public", "image"}
    assert joint_sentence(summary, protocol) == ""
    few = {"how": "masked", "sites": 3, "bins": 16, "withheld": "fewer than 10 women with or without cancer in the sum"}
    report_of(tmp_path / "few", metrics=summary["metrics"] | {"joint": few})
    part = joint_part(read_facts(tmp_path / "few"))
    assert part is not None and part.withheld == few["withheld"] and not part.models and part.n is None


def test_intervals_that_reach_the_end_are_said_to_be_there_and_of_no_weight(tmp_path: Path) -> None:
    row = {"n": 18.0, "positives": 11.0, "auc": 0.6, "auc_low": 0.14, "auc_high": 1.0}
    sites = {"east": row, "west": row}
    words, _ = section(tmp_path / "one", sites=sites)
    assert "Hospital by hospital: not done, because each hospital's AUC has an interval that reaches 0 or 1" in words
    words, _ = section(tmp_path / "none", sites={})
    assert "Hospital by hospital: not done, because no hospital released a result" in words


def test_the_noised_sum_says_its_noise(tmp_path: Path) -> None:
    document = joint_values("noised", stds=(3.0,) * 4)
    words, _ = section(tmp_path, joint=document)
    assert "widened for it. Pooled AUCs" in words
    assert "standard deviation 6.00" in words and "likewise" in words and "No epsilon covers" not in words
    assert f"{100 * document['pairs']['fused_vs_public']['noise_share']:.0f} %" in words.replace("\u00a0", " ")
    assert document["pairs"]["fused_vs_public"]["noise_share"] > 0.2


def test_too_few_women_and_no_joint_metrics_are_said_in_words(tmp_path: Path) -> None:
    few = {"how": "masked", "sites": 3, "bins": 16, "withheld": "fewer than 10 women with or without cancer in the sum"}
    assert "nothing is shown of them: fewer than 10 women" in section(tmp_path / "few", joint=few)[0]
    words, page = section(tmp_path / "none")
    assert "All hospitals together: not done." in words and "such tables are not added up to an AUC" in words
    assert "Site by site" in words and "baselines=[local]" in words and "joint-roc" not in page


def test_hospitals_are_put_together_by_random_effects_and_who_is_left_out_is_named(tmp_path: Path) -> None:
    sites = {name: {"n": 60.2, "positives": 12.0, "auc": auc, "auc_low": auc - 0.1, "auc_high": auc + 0.08}
             for name, auc in (("east", 0.78), ("north", 0.86), ("south", 0.81))}  # fmt: skip
    found = pooled_share([Interval(r["auc"], r["auc_low"], r["auc_high"]) for r in sites.values()], confidence=0.95)
    assert found is not None and found.new_site is not None
    words, page = section(tmp_path, sites=sites | {"west": {"n": 9.0, "auc": 0.99, "auc_low": 0.9, "auc_high": 1.0}})
    assert f"at 3 hospitals is {found.mean.value:.3f} ({found.mean.low:.3f}" in words
    assert f"expected between {found.new_site[0]:.3f} and {found.new_site[1]:.3f}" in words
    assert "reaches 0 or 1: west" in words and "east n = 60, north n = 60, south n = 60, west n = 9" in words
    assert 'aria-labelledby="forest-title' in page and "west (n = 9)" in page and "a further hospital" in page


def test_paired_differences_of_hospitals_without_noise_are_put_together(tmp_path: Path) -> None:
    row = {"n": 60, "positives": 12, "models": {"fused": {"auc": 0.8, "auc_low": 0.7, "auc_high": 0.88}}}
    sites = {name: row | {"comparisons": {"fused_vs_image": {"difference": gap, "low": gap - 0.05, "high": gap + 0.05,
                                                             "p": 0.2}}}
             for name, gap in (("east", 0.02), ("north", 0.04))}  # fmt: skip
    words, _ = section(tmp_path, sites=sites)
    assert "At 2 hospitals together, fused against films alone: difference in AUC 0.030" in words


@pytest.mark.parametrize("sites", [{}, {"north": {"n": 61.4, "auc": 0.88, "auc_low": 0.7, "auc_high": 0.95}}])
def test_one_hospital_or_none_is_not_put_together(tmp_path: Path, sites: Any) -> None:
    words, page = section(tmp_path, sites=sites)
    assert ("One hospital alone" if sites else "Hospital by hospital: not done") in words and "forest-title" not in page

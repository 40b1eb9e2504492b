"""Non-inferiority of a new model overall, at sites and in subgroups; drift of clinical tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shared_model.cohort import Cohort, CohortWriter
from shared_model.contract import load_contract
from shared_model.errors import CohortError
from shared_model.evaluation.auc import paired_delong
from shared_model.evaluation.drift import drift_of
from shared_model.evaluation.replacement import Verdict, at_sites, difference_of, on_the_same_women
from shared_model.protocol import ReplacementTerms

TERMS = ReplacementTerms(study="old", passport_sha256="a" * 64, model_sha256="b" * 64, margin=0.02, group_margin=0.05,
                         least_positives=20, epsilon_before=0.0)  # fmt: skip
N = 1200


def noise(seed: int, n: int = N) -> np.ndarray:  # type: ignore[type-arg]
    """Of its own seed: what a test draws does not depend on which tests drew before it."""
    return np.random.default_rng(seed).normal(size=n)


LABELS = (np.arange(N) % 3 == 0).astype(np.uint8)
OLD = noise(3) + 1.4 * LABELS
SAME = OLD + 0.05 * noise(4)
EVERYBODY = {"all": np.ones(N, dtype=bool)}


def judge(new: np.ndarray, groups: dict[str, np.ndarray] | None = None) -> Verdict:  # type: ignore[type-arg]
    return Verdict(on_the_same_women(LABELS, new, OLD, groups or {}, terms=TERMS, confidence=0.95))


def test_a_model_as_good_replaces_and_one_that_is_worse_does_not() -> None:
    good, worse = judge(SAME), judge(OLD * 0.5 + 0.7 * noise(5))
    assert good.replaces and good.comparisons[0].verdict == "not inferior"
    assert not worse.replaces and worse.comparisons[0].verdict == "not shown"
    gap = paired_delong(LABELS, SAME, OLD, confidence=0.95)
    row = good.comparisons[0]
    assert (row.difference, row.low, row.high) == (gap.value, gap.low, gap.high)


def test_uncertainty_alone_is_enough_to_say_no() -> None:
    few = np.arange(N) < 60
    verdict = Verdict(on_the_same_women(LABELS[few], OLD[few] + 0.6 * noise(6, 60), OLD[few], {},
                                        terms=TERMS, confidence=0.95))  # fmt: skip
    assert verdict.comparisons[0].low is not None and verdict.comparisons[0].low < -TERMS.margin
    assert not verdict.replaces


def test_one_subgroup_that_lost_is_enough_to_say_no() -> None:
    group = np.arange(N) < 240
    new = np.where(group, noise(7), SAME + 0.4 * LABELS)  # better overall, useless in the group
    verdict = judge(new, {"density d": group, "density a": ~group})
    assert {c.name: c.verdict for c in verdict.comparisons if c.where == "subgroup"} == {
        "density a": "not inferior", "density d": "not shown",
    }  # fmt: skip
    assert not verdict.replaces


def test_a_small_subgroup_is_named_and_tells_no_figure() -> None:
    verdict = judge(SAME, {"vendor E": np.arange(N) < 30})
    (row,) = (c for c in verdict.comparisons if c.where == "subgroup")
    assert row.verdict == "not judged" and (row.n, row.positives, row.difference) == (None, None, None)
    assert verdict.replaces


def site(auc: float, reach: float, positives: float = 60.0) -> dict[str, float | None]:
    return {"auc": auc, "auc_low": auc - reach, "auc_high": auc + reach, "n": 200.0, "positives": positives}


def test_sites_are_compared_by_what_they_released() -> None:
    rows = at_sites(
        {"a": site(0.85, 0.02), "b": site(0.80, 0.02), "c": site(0.85, 0.02, 5.0), "d": {"auc": None}},
        {"a": site(0.85, 0.02), "b": site(0.85, 0.02), "c": site(0.85, 0.02), "d": site(0.85, 0.02)},
        ["d", "c", "b", "a", "e"], terms=TERMS,
    )  # fmt: skip
    assert {r.name: r.verdict for r in rows} == {
        "a": "not inferior", "b": "not shown", "c": "not judged", "d": "not judged", "e": "not judged",
    }  # fmt: skip


def test_the_interval_of_a_difference_is_that_of_two_symmetric_ones() -> None:
    value, low, high = difference_of((0.9, 0.87, 0.93), (0.8, 0.76, 0.84))
    assert value == pytest.approx(0.1) and (low, high) == (pytest.approx(0.05), pytest.approx(0.15))


def table(path: Path, *, women: int = 400, seed: int = 0, **changes: float) -> Cohort:
    """Random rows of the contract. changes: added to a field's first column; `missing_<field>`: share without it."""
    contract, random = load_contract(), np.random.default_rng(seed)
    with CohortWriter(path, site="north", contract_sha256=contract.sha256, pipeline_sha256="1" * 64, height=32,
                      width=32, n_features=contract.n_features) as writer:  # fmt: skip
        for number in range(women):
            row = np.zeros(contract.n_features, dtype=np.float32)
            for name, columns in contract.groups.items():
                if random.random() < changes.get(f"missing_{name}", 0.1):
                    row[columns[-1]] = 1.0
                elif len(columns) == 2:
                    row[columns[0]] = random.normal() + changes.get(name, 0.0)
                else:
                    row[columns[int(random.integers(len(columns) - 1))]] = 1.0
            writer.add(f"{seed:04x}{number:012x}", {}, row, int(number % 4 == 0), {})
    return Cohort.open(path)


def test_equal_cohorts_have_no_drift_and_equally_drawn_ones_that_of_chance(tmp_path: Path) -> None:
    first, second = table(tmp_path / "a"), table(tmp_path / "b", seed=1)
    assert all(row.index == pytest.approx(0.0) for row in drift_of(first, first, load_contract()))
    rows = drift_of(first, second, load_contract())
    assert {row.field for row in rows} == {*load_contract().groups, "label"}
    assert not any(row.shifted for row in rows)
    assert np.mean([row.index for row in rows]) == pytest.approx(np.mean([row.chance for row in rows]), rel=0.6)
    assert all(sum(row.first) == pytest.approx(1) and sum(row.second) == pytest.approx(1) for row in rows)


def test_a_shifted_number_and_a_field_that_vanished_are_named(tmp_path: Path) -> None:
    contract = load_contract()
    number = next(f.name for f in contract.fields if f.kind == "number")
    gone = next(name for name, columns in contract.groups.items() if len(columns) > 2)
    changed = table(tmp_path / "b", seed=1, **{number: 1.5, f"missing_{gone}": 0.9})
    rows = drift_of(table(tmp_path / "a"), changed, contract)
    assert {row.field for row in rows if row.shifted} == {number, gone}
    (row,) = (row for row in rows if row.field == gone)
    assert row.missing[0] < 0.2 and row.missing[1] > 0.8


def test_the_formula_by_hand(tmp_path: Path) -> None:
    first, second = table(tmp_path / "a", women=40), table(tmp_path / "b", women=80, seed=1)
    (row,) = (row for row in drift_of(first, second, load_contract()) if row.field == "label")
    p, q = np.array([30.5, 10.5]) / 41, np.array([60.5, 20.5]) / 81
    assert row.index == pytest.approx(float(((p - q) * np.log(p / q)).sum()))
    assert row.chance == pytest.approx(1 / 40 + 1 / 80)


def test_cohorts_of_another_contract_are_refused(tmp_path: Path) -> None:
    with CohortWriter(tmp_path / "c", site="n", contract_sha256="0" * 64, pipeline_sha256="1" * 64, height=32, width=32,
                      n_features=3) as writer:  # fmt: skip
        writer.add("00", {}, np.zeros(3, dtype=np.float32), 1, {})
    with pytest.raises(CohortError, match="cannot be compared"):
        drift_of(Cohort.open(tmp_path / "c"), table(tmp_path / "a", women=4), load_contract())

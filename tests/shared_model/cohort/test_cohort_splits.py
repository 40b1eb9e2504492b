"""Splits and folds: disjoint, complete, about right in size, and the same for a patient whoever else arrives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_model.cohort import Cohort, assign_fold, assign_split, folds, split_indices, stratified_folds
from shared_model.errors import CohortError

NAMES = st.lists(st.from_regex(r"\A[a-z0-9]{1,12}\Z"), min_size=1, max_size=60, unique=True)
FRACTIONS = {"train": 0.7, "metrics": 0.1, "test": 0.2}
MANY = [f"{n:016x}" for n in range(20_000)]
FROZEN_SPLITS = ["train", "train", "train", "train", "train", "test", "train", "train"]
FROZEN_FOLDS = [1, 2, 2, 1, 1, 1, 1, 2, 4, 1, 4, 1]


def test_known_patients_stay_where_the_first_release_put_them() -> None:
    """These answers are frozen: changing the hash would move held-out women into training."""
    assert [assign_split(f"p{n}", salt="study", fractions=FRACTIONS) for n in range(8)] == FROZEN_SPLITS
    assert [assign_fold(f"p{n}", k=5, salt="study") for n in range(12)] == FROZEN_FOLDS


@settings(max_examples=60)
@given(NAMES, st.text(min_size=1, max_size=8))
def test_a_split_looks_at_the_patient_alone(names: list[str], salt: str) -> None:
    fractions = {"a": 0.5, "b": 0.3, "c": 0.2}
    once = {name: assign_split(name, salt=salt, fractions=fractions) for name in names}
    assert set(once.values()) <= set(fractions)
    turned = dict(reversed(list(fractions.items())))
    assert {name: assign_split(name, salt=salt, fractions=turned) for name in reversed(names)} == once


def test_shares_are_about_right() -> None:
    found = [assign_split(name, salt="s", fractions=FRACTIONS) for name in MANY]
    for name, share in FRACTIONS.items():
        deviation = (share * (1 - share) / len(MANY)) ** 0.5
        assert abs(found.count(name) / len(MANY) - share) < 4 * deviation


def test_folds_are_about_equal_and_independent_of_splits() -> None:
    split = np.array([assign_split(name, salt="s", fractions={"a": 0.5, "b": 0.5}) == "a" for name in MANY])
    fold = np.array([assign_fold(name, k=5, salt="s") for name in MANY])
    for k in range(5):
        assert abs((fold == k).mean() - 0.2) < 4 * (0.16 / len(MANY)) ** 0.5
        assert abs(split[fold == k].mean() - 0.5) < 4 * (0.25 / (len(MANY) / 5)) ** 0.5


def test_another_salt_gives_an_independent_split() -> None:
    one = np.array([assign_split(n, salt="one", fractions={"a": 0.5, "b": 0.5}) == "a" for n in MANY])
    two = np.array([assign_split(n, salt="two", fractions={"a": 0.5, "b": 0.5}) == "a" for n in MANY])
    assert abs((one == two).mean() - 0.5) < 0.02


def test_salt_and_pseudonym_do_not_run_into_each_other() -> None:
    one = [assign_fold(f"a{n}", k=1000, salt="s") for n in range(200)]
    two = [assign_fold(f"{n}", k=1000, salt="sa") for n in range(200)]
    assert one != two


def test_split_indices_cover_the_cohort_once(cohort: Cohort) -> None:
    parts = split_indices(cohort, salt="s", fractions=FRACTIONS)
    assert set(parts) == set(FRACTIONS)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(cohort)))
    for name, positions in parts.items():
        assert positions.dtype == np.int64 and (np.diff(positions) > 0).all()
        for position in positions:
            assert assign_split(cohort.pseudonyms[position], salt="s", fractions=FRACTIONS) == name


def test_nobody_changes_sides_when_patients_arrive(kit: Any, write: Callable[..., Cohort]) -> None:
    small = write([kit.patient(n) for n in range(10)], name="small")
    large = write([kit.patient(n) for n in range(40)], name="large")

    def sides(cohort: Cohort) -> dict[str, str]:
        parts = split_indices(cohort, salt="s", fractions=FRACTIONS)
        return {cohort.pseudonyms[p]: name for name, positions in parts.items() for p in positions}

    assert {name: sides(large)[name] for name in small.pseudonyms} == sides(small)


def test_a_share_of_everything_or_nothing() -> None:
    assert {assign_split(n, salt="s", fractions={"all": 1.0, "none": 0.0}) for n in MANY[:500]} == {"all"}
    assert assign_split("p", salt="s", fractions={"z": 1.0}) == "z"


@pytest.mark.parametrize(
    "fractions",
    [{}, {"a": 0.5}, {"a": 0.7, "b": 0.4}, {"a": 1.5, "b": -0.5}, {"a": float("nan"), "b": 1.0}, {"a": float("inf")}],
    ids=str,
)
def test_shares_that_do_not_add_up_are_refused(fractions: dict[str, float]) -> None:
    with pytest.raises(CohortError, match="sum to 1"):
        assign_split("p", salt="s", fractions=fractions)


def test_a_salt_is_needed() -> None:
    with pytest.raises(CohortError, match="salt"):
        assign_split("p", salt="", fractions={"a": 1.0})
    with pytest.raises(CohortError, match="salt"):
        assign_fold("p", k=5, salt="")


def test_seven_shares_leave_no_gap() -> None:
    fractions = {f"s{n}": 1 / 7 for n in range(7)}
    assert {assign_split(n, salt="s", fractions=fractions) for n in MANY[:2000]} == set(fractions)


# --- folds


def labels_of(n: int, share: float) -> np.ndarray:
    return (np.random.default_rng(1).random(n) < share).astype(np.int64)


def test_folds_hold_each_class_and_stay_as_patients_arrive() -> None:
    labels = labels_of(1000, 0.2)
    before = folds(MANY[:600], labels[:600], k=5, salt="s")
    after = folds(MANY[:1000], labels, k=5, salt="s")
    assert np.array_equal(before, after[:600])
    for k in range(5):
        here = after == k
        assert abs(labels[here].mean() - labels.mean()) < 4 * (0.16 / here.sum()) ** 0.5
        assert abs(here.mean() - 0.2) < 4 * (0.16 / 1000) ** 0.5


def test_a_corrected_label_moves_nobody() -> None:
    labels = labels_of(400, 0.3)
    assert np.array_equal(folds(MANY[:400], labels, k=4, salt="s"), folds(MANY[:400], 1 - labels, k=4, salt="s"))


def test_a_fold_without_positives_is_refused_with_a_way_out() -> None:
    labels = np.zeros(100, int)
    labels[:3] = 1
    with pytest.raises(CohortError, match="no patient with label 1") as caught:
        folds(MANY[:100], labels, k=5, salt="s")
    assert "stratified_folds" in str(caught.value)


def test_a_site_without_positives_has_folds() -> None:
    assert set(folds(MANY[:100], np.zeros(100, int), k=5, salt="s").tolist()) == set(range(5))


@settings(max_examples=80)
@given(NAMES, st.integers(2, 6), st.data())
def test_stratified_folds_deal_each_class_evenly(names: list[str], k: int, data: st.DataObject) -> None:
    labels = data.draw(st.lists(st.integers(0, 1), min_size=len(names), max_size=len(names)))
    dealt = stratified_folds(names, labels, k=k, salt="s", previous={})
    assert ((dealt >= 0) & (dealt < k)).all()
    for label in (0, 1):
        counts = np.bincount(dealt[np.array(labels) == label], minlength=k)
        assert counts.max() - counts.min() <= 1
    order = data.draw(st.permutations(range(len(names))))
    turned = stratified_folds([names[i] for i in order], [labels[i] for i in order], k=k, salt="s", previous={})
    assert np.array_equal(dealt[order], turned)


@settings(max_examples=80)
@given(NAMES, st.integers(2, 5), st.data())
def test_stratified_folds_keep_their_patients_and_level_out(names: list[str], k: int, data: st.DataObject) -> None:
    labels = data.draw(st.lists(st.integers(0, 1), min_size=len(names), max_size=len(names)))
    known = data.draw(st.integers(0, len(names)))
    before = stratified_folds(names[:known], labels[:known], k=k, salt="s", previous={})
    kept = dict(zip(names, before.tolist(), strict=False))
    after = stratified_folds(names, labels, k=k, salt="s", previous=kept)
    assert np.array_equal(after[:known], before)
    for label in (0, 1):
        counts = np.bincount(after[np.array(labels) == label], minlength=k)
        assert counts.max() - counts.min() <= 1


def test_stratified_folds_do_not_favour_the_first_fold() -> None:
    sizes = np.zeros(5)
    for salt in range(200):
        sizes += np.bincount(stratified_folds(MANY[:6], [1] * 6, k=5, salt=str(salt), previous={}), minlength=5)
    assert abs(sizes / sizes.sum() - 0.2).max() < 0.05


@pytest.mark.parametrize(
    ("names", "labels", "k", "previous"),
    [
        (["a", "a"], [0, 1], 2, {}),
        (["a", "b"], [0], 2, {}),
        (["a", "b"], [0, 2], 2, {}),
        (["a", "b"], [0, 1], 1, {}),
        (["a", "b"], [0, 1], 2, {"a": 2}),
        (["a", "b"], [0, 1], 2, {"a": -1}),
    ],
)
def test_wrong_fold_input_is_refused(names: list[str], labels: list[int], k: int, previous: dict[str, int]) -> None:
    with pytest.raises(CohortError):
        stratified_folds(names, labels, k=k, salt="s", previous=previous)
    if not previous:
        with pytest.raises(CohortError):
            folds(names, labels, k=k, salt="s")

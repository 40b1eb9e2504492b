"""Splits patients into parts that stay what they are as patients arrive; used by trainer, evaluator and baselines.

A part depends on the patient's pseudonym and a public salt only, never on other patients, labels or order: a woman who
was held out stays held out when the cohort is prepared again with more women. Privacy rests on it too: a site spends
one budget on training patients and another on metrics patients, which is right only while nobody changes sides.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shared_model.errors import CohortError

if TYPE_CHECKING:
    from shared_model.cohort.cohort import Cohort


def _uniform(pseudonym: str, *, salt: str, purpose: str) -> float:
    """A number in [0, 1) from SHA-256; the purpose keeps folds and splits with one salt independent of each other."""
    digest = hashlib.sha256(f"mammofed {purpose} 1\0{salt}\0{pseudonym}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)


def assign_split(pseudonym: str, *, salt: str, fractions: Mapping[str, float]) -> str:
    """The part of one patient.

    Args:
        pseudonym: of the patient.
        salt: public text; another salt gives an independent split.
        fractions: name -> share in [0, 1], summing to 1. Parts are laid out in order of their names, so the order of
            the mapping does not matter; changing a share moves patients.

    Raises:
        CohortError: shares do not sum to 1, or the salt is empty.

    >>> assign_split("0f3a", salt="study", fractions={"train": 0.8, "test": 0.2})
    'train'
    """
    return _part(_uniform(pseudonym, salt=salt, purpose="split"), _edges(salt, fractions))


def split_indices(cohort: Cohort, *, salt: str, fractions: Mapping[str, float]) -> dict[str, NDArray[np.int64]]:
    """Positions of each part's patients in the cohort, ascending. Each patient is in exactly one; a part may be empty.

    Raises:
        CohortError: as :func:`assign_split`.
    """
    edges = _edges(salt, fractions)
    found: dict[str, list[int]] = {name: [] for name in fractions}
    for position, pseudonym in enumerate(cohort.pseudonyms):
        found[_part(_uniform(pseudonym, salt=salt, purpose="split"), edges)].append(position)
    return {name: np.array(positions, dtype=np.int64) for name, positions in found.items()}


def assign_fold(pseudonym: str, *, k: int, salt: str) -> int:
    """The fold 0..k-1 of one patient, from her pseudonym alone."""
    _check_folds(k, salt)
    return int(_uniform(pseudonym, salt=salt, purpose="fold") * k)


def folds(
    pseudonyms: Sequence[str], labels: Sequence[int] | NDArray[np.integer], *, k: int, salt: str
) -> NDArray[np.int64]:
    """Fold 0..k-1 of each patient: equal in expectation in size and share of positives, and stable as patients arrive.

    A rule without memory that never moves a patient can look at nothing but that patient, so sizes scatter like coin
    tosses; where that is too much, keep the folds and use :func:`stratified_folds`. Labels do not decide the fold (a
    woman whose label is corrected stays where she is), they are checked: each fold must hold each class that occurs.

    Raises:
        CohortError: a fold would lack a class, a patient occurs twice, k < 2, or the salt is empty.
    """
    _check_folds(k, salt)
    label_N = _checked_labels(pseudonyms, labels)
    fold_N = np.array([assign_fold(p, k=k, salt=salt) for p in pseudonyms], dtype=np.int64)
    for value in np.unique(label_N):
        counts = np.bincount(fold_N[label_N == value], minlength=k)
        if counts.min() == 0:
            raise CohortError(
                f"fold {int(counts.argmin())} of {k} would hold no patient with label {int(value)}",
                found=f"{int(counts.sum())} such patients", expected="each class in each fold",
                remedy="use fewer folds, or `stratified_folds`, which deals patients out evenly",
            )  # fmt: skip
    return fold_N


def stratified_folds(
    pseudonyms: Sequence[str],
    labels: Sequence[int] | NDArray[np.integer],
    *,
    k: int,
    salt: str,
    previous: Mapping[str, int],
) -> NDArray[np.int64]:
    """Fold 0..k-1 of each patient, each class dealt out evenly (counts differ by at most one when `previous` is empty).

    Patients in `previous` (pseudonym -> fold, as kept from the last call) stay; the others go, in order of their salted
    hash, to the fold that holds fewest of their class. Keep the result and pass it back when patients have arrived.

    Raises:
        CohortError: a previous fold is not in 0..k-1, a patient occurs twice, k < 2, or the salt is empty.
    """
    _check_folds(k, salt)
    label_N = _checked_labels(pseudonyms, labels)
    fold_N = np.full(len(pseudonyms), -1, dtype=np.int64)
    counts_LK = np.zeros((2, k), dtype=np.int64)
    for position, pseudonym in enumerate(pseudonyms):
        if pseudonym in previous:
            fold_N[position] = previous[pseudonym]
            if not 0 <= fold_N[position] < k:
                raise CohortError("a previous fold is outside 0..k-1", found=int(fold_N[position]), expected=f"k = {k}")
            counts_LK[label_N[position], fold_N[position]] += 1
    hashes = [_uniform(p, salt=salt, purpose="fold") for p in pseudonyms]
    for position in sorted(np.flatnonzero(fold_N < 0).tolist(), key=lambda p: (hashes[p], pseudonyms[p])):
        counts_K = counts_LK[label_N[position]]
        # Among equally empty folds another hash decides, or fold 0 would always be the larger one.
        candidates = np.flatnonzero(counts_K == counts_K.min())
        tie = _uniform(pseudonyms[position], salt=salt, purpose="fold tie")
        fold_N[position] = candidates[int(tie * len(candidates))]
        counts_K[fold_N[position]] += 1
    return fold_N


def _edges(salt: str, fractions: Mapping[str, float]) -> list[tuple[float, str]]:
    """Upper edges of the parts in [0, 1] in order of their names."""
    good = all(math.isfinite(f) and 0.0 <= f <= 1.0 for f in fractions.values())
    if not salt or not good or abs(sum(fractions.values()) - 1.0) > 1e-9:
        raise CohortError(
            "a split needs a salt and shares that sum to 1", found=dict(fractions),
            expected="for example {train: 0.8, test: 0.2}", remedy="correct the cohort's split settings",
        )  # fmt: skip
    edges, upper = [], 0.0
    for name in sorted(name for name, share in fractions.items() if share > 0):
        upper += fractions[name]
        edges.append((upper, name))
    edges[-1] = (1.0, edges[-1][1])  # rounding must not leave a gap below 1
    return edges


def _part(uniform: float, edges: list[tuple[float, str]]) -> str:
    return next(name for upper, name in edges if uniform < upper)


def _check_folds(k: int, salt: str) -> None:
    if k < 2 or not salt:
        raise CohortError("folds need k of at least 2 and a salt", found=f"k = {k}", remedy="correct the fold settings")


def _checked_labels(pseudonyms: Sequence[str], labels: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
    label_N = np.asarray(labels)
    n = len(pseudonyms)
    if len(set(pseudonyms)) != n or label_N.shape != (n,) or not np.isin(label_N, (0, 1)).all():
        raise CohortError("folds need each patient once, with a label of 0 or 1")
    return label_N.astype(np.int64)

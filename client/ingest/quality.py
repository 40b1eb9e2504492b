"""Rules over a whole cohort and over women together: what no single row or film can show; called by the importer.

Each rule is a line of `RULES` with its reason in words. Rules of single rows are in `join_policy.REASONS`, those of
films in `shared_model/imaging/reasons.py`, those of columns in the data contract's deny-list.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from client.ingest.as_of import OLDEST_AGE
from client.ingest.summary import Shown, Summary, levels_of
from shared_model.cohort import VIEWS, Cohort
from shared_model.contract import Contract
from shared_model.evaluation.auc import roc_auc

RULES: dict[str, str] = {
    "age_conflict": "the age in the table is not the age in the films' header: the row may be another woman's; "
                    "check the ids, or correct the age",
    "shared_films": "the same film stands under two patient ids, of one woman or two: she would be counted and split "
                    "twice, or it is not hers; merge the ids, or correct PatientID",
    "two_cohorts": "the same woman or film is in both cohorts, so that what is held out would have been trained on; "
                   "exclude her from one",
    "prevalence": "the share of women with cancer is not what a cohort of this kind has; check the labels",
    "missingness": "a field is not known of most women; check the export and the column map",
    "missing_tells": "a field is known far more often of women with cancer (or without), so that whether it is known "
                     "tells the outcome: it may have been filled in after the read",
    "field_tells": "a field by itself tells the outcome better than any risk factor can, so it may be a leak under "
                   "another name; say where its column comes from",
    "drift": "the distribution has changed since the last import; check machines, codes and the export",
}  # fmt: skip

AGE_TOLERANCE = 2  # years; ages are completed years at days that may be weeks apart, and headers are typed by hand
PREVALENCE = (0.002, 0.6)  # screening finds 5 to 6 cancers in 1,000 women; enriched case-control sets reach a half
MISSING = 0.5
MISSING_DIFFERENCE = 0.25
# A risk factor reaches 0.6 to 0.7, a palpable lump 0.65; the reader's own BI-RADS of the same exam has 0.92 (BCSC).
TELLING_AUC = 0.85
PSI_LIMIT = 0.1  # the usual first mark of the population stability index (Siddiqi, Credit Risk Scorecards, 2006)


def age_conflict(table_years: float | None, film_years: float | None, *, tolerance: int = AGE_TOLERANCE) -> bool:
    """Whether two ages of a woman at one exam cannot both be right; ages above 89 are one."""
    if table_years is None or film_years is None:
        return False
    return abs(min(table_years, OLDEST_AGE) - min(film_years, OLDEST_AGE)) > tolerance


def shared_women(films: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """Pseudonyms of all who have a film in common with another id. All of them have to go: of two rows of one woman, or
    two women of one film, nobody can say which is right.

    Args:
        films: pseudonym -> what her films can be told by, digests of pixels.

    >>> sorted(shared_women({"p": frozenset({"f1"}), "q": frozenset({"f1", "f3"}), "r": frozenset({"f2"})}))
    ['p', 'q']
    """
    owners: dict[str, list[str]] = defaultdict(list)
    for pseudonym, hers in films.items():
        for film in hers:
            owners[film].append(pseudonym)
    return frozenset(name for listed in owners.values() if len(listed) > 1 for name in listed)


def shared_patients(first: Cohort, second: Cohort) -> tuple[str, ...]:
    """Pseudonyms in `first` of women who are in `second` too: by pseudonym (one key), or by an equal view (any key).

    Both cohorts have to be of one pipeline; with two keys nothing but the pixels can be compared.
    """
    theirs = set(second.pseudonyms)
    views = {digest for _, digest in view_digests(second)}
    found = {pseudonym for pseudonym, digest in view_digests(first) if digest in views}
    return tuple(sorted(found | (theirs & set(first.pseudonyms))))


def view_digests(cohort: Cohort) -> Iterable[tuple[str, str]]:
    """(pseudonym, SHA-256 of the pixels) of every view, read one at a time."""
    pixels_MCHW = cohort._pixels_MCHW
    for row, pseudonym in enumerate(cohort.pseudonyms):
        for at in cohort.view_index[row, : len(VIEWS)].tolist():
            if at >= 0:
                yield pseudonym, hashlib.sha256(pixels_MCHW[at].tobytes()).hexdigest()


@dataclass(frozen=True)
class Finding:
    """A rule that the cohort breaks. subject: the field, "" for the cohort. words: with numbers that may be shown."""

    rule: str
    subject: str
    words: str

    def __str__(self) -> str:
        return f"{self.subject + ': ' if self.subject else ''}{self.words}; {RULES[self.rule]}"


def findings(cohort: Cohort, summary: Summary, *, contract: Contract) -> list[Finding]:
    """What is wrong with a cohort as a whole. Shares are of published counts; the two rules that look at labels by
    field give rounded numbers of groups of at least the threshold."""
    found = [*_prevalence(summary), *_missingness(summary)]
    for field in contract.fields:
        _, levels_N = levels_of(cohort, contract, field)
        found += _telling(field.name, levels_N, cohort, contract, summary.threshold)
    return found


def _prevalence(summary: Summary) -> Iterable[Finding]:
    table = summary.table("label")
    share = table.share("with cancer") if table else None
    if share is not None and not PREVALENCE[0] <= share <= PREVALENCE[1]:
        yield Finding("prevalence", "", f"{share:.1%} of {table.total if table else 0} women have cancer, expected "
                                        f"{PREVALENCE[0]:.1%} to {PREVALENCE[1]:.0%}")  # fmt: skip


def _missingness(summary: Summary) -> Iterable[Finding]:
    for table in summary.tables:
        if table.name.startswith("field.") and (share := table.share("missing")) is not None and share > MISSING:
            yield Finding("missingness", table.name.removeprefix("field."), f"not known of {share:.0%} of the women")


def _telling(
    name: str, levels_N: NDArray[np.int64], cohort: Cohort, contract: Contract, threshold: int
) -> Iterable[Finding]:
    """Does the field, or whether it is known, tell the label? Only groups of at least the threshold are looked at."""
    label_N = cohort.labels.astype(bool)
    known_N = levels_N >= 0
    known, without = [known_N[label_N == side] for side in (True, False)]
    if min(len(known), len(without)) < threshold:
        return
    difference = float(known.mean() - without.mean())
    if abs(difference) > MISSING_DIFFERENCE:
        yield Finding("missing_tells", name, f"known of {_tenth(known.mean())} of the women with cancer and of "
                                             f"{_tenth(without.mean())} of the others")  # fmt: skip
    if min((known_N & label_N).sum(), (known_N & ~label_N).sum()) < threshold:
        return
    auc = max(roc_auc(label_N[known_N], score) or 0.0 for score in _scores(name, levels_N, cohort, contract, known_N))
    if auc > TELLING_AUC:
        yield Finding("field_tells", name, f"AUC {auc:.2f} by itself, expected at most {TELLING_AUC}")


def _scores(
    name: str, levels_N: NDArray[np.int64], cohort: Cohort, contract: Contract, known_N: NDArray[np.bool_]
) -> Iterable[NDArray[np.floating]]:
    """Numbers as they are, both ways; levels by their share of cancers (of at most seven levels, so hardly fitted)."""
    field = contract.field(name)
    if field.kind == "number":
        value = cohort.clinical[known_N, contract.groups[name][0]]
        yield value
        yield -value
        return
    levels, label = levels_N[known_N], cohort.labels[known_N].astype(float)
    sums = np.bincount(levels, weights=label)
    sizes = np.maximum(np.bincount(levels), 1)
    yield (sums / sizes)[levels]


def _tenth(share: float) -> str:
    return f"about {round(share * 10) * 10} %"


def drift(previous: Summary, present: Summary) -> list[Finding]:
    """What has changed between two imports, from published counts alone.

    A table has drifted where its population stability index, sum of (q - p) ln(q / p) over its rows, is above the usual
    0.1 and above what chance gives (p < 0.001; the index times 1 / (1/n + 1/m) is chi-squared with k - 1 degrees).
    """
    found = []
    for table in present.tables:
        before = previous.table(table.name)
        if table.name in ("films", "rows", "patients") or before is None or not (before.total and table.total):
            continue
        index, chance, words = _stability(before, table)
        if index > max(PSI_LIMIT, chance):
            subject = table.name.removeprefix("field.")
            found.append(Finding("drift", subject, f"stability index {index:.2f}, above {max(PSI_LIMIT, chance):.2f}; "
                                                   f"largest change: {words}"))  # fmt: skip
    return found


def _stability(before: Shown, after: Shown) -> tuple[float, float, str]:
    """(index, what chance gives, the row that changed most). Hidden rows are taken together, as what is left."""
    assert before.total and after.total
    old, new = dict(before.rows), dict(after.rows)
    shown = [label for label in dict.fromkeys([*old, *new])
             if old.get(label, 0) is not None and new.get(label, 0) is not None]  # fmt: skip
    counts = [(label, old.get(label, 0) or 0, new.get(label, 0) or 0) for label in shown]
    rest = (before.total - sum(c[1] for c in counts), after.total - sum(c[2] for c in counts))
    counts += [("the others", *rest)] if any(rest) else []
    k = len(counts)
    shares = [(label, (p + 0.5) / (before.total + k / 2), (q + 0.5) / (after.total + k / 2)) for label, p, q in counts]
    index = sum((q - p) * float(np.log(q / p)) for _, p, q in shares)
    label, p, q = max(shares, key=lambda share: abs(share[2] - share[1]))
    noise = float(chi2.ppf(0.999, max(k - 1, 1))) * (1 / before.total + 1 / after.total)
    return index, noise, f"{label} from {p:.0%} to {q:.0%}"

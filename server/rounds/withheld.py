"""What the journal does not keep: small counts of women, in numbers, documents and words. Called by the journal alone.

Every number and every word that is written passes here, whatever the other party's own disclosure control let out, so
that no page, writer, report or copy of the file has to hide anything. A count is small below `LEAST_WOMEN`, nought
among them. It is written as null, and:

* A hospital's exact document of few women with or without cancer is not kept at all (`{"suppressed": true}`): with one
  cancer even its AUC is one woman's rank. One that was noised under privacy keeps its rates and loses the counts.
* A hospital's curves (`roc`, `calibration`, `evidence`), whose every step is a woman, are not kept.
* A cell of few women (a subgroup, a risk band) says only that it exists. A subgroup with few cancers, or few without,
  loses that count and what is a share of it; where that is one of several, so does the next smallest, or the total
  would give it away.
* Of the evaluator's women, whom the coordinator has itself and chooses a model by, shares stay; points of a calibration
  curve are put together until each stands for enough.
* In words, `3 of 31 women` and `three women` become `fewer than 5 women`.

Nothing that the loop or a resume computes with is a count of women: weights and sizes of sites are the protocol's,
rounded and public; of `selection` it needs AUC, thresholds and temperature.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

Document = dict[str, Any]
Value = TypeVar("Value", bound=float | str)

LEAST_WOMEN: Final = 5  # as in a site's own policy by default (`suppress_below`)
COUNTS: Final = ("n", "positives")
CURVES: Final = ("roc", "calibration", "evidence", "decision", "bands")
SUPPRESSED: Final[Mapping[str, bool]] = {"suppressed": True}
_PLACE: Final = ("name", "level", "from", "to")  # what says which cell it is
_WHO: Final = (r"((?:such |training |test )?(?:women|woman|patients?|positives?|negatives?|cancers?|cases|"
               r"exams?|examinations?))\b")  # fmt: skip
_SPELLED: Final[Mapping[str, int]] = {
    "no": 0, "none": 0, "zero": 0, "a single": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6,
    "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12,
}  # fmt: skip
_COUNT: Final = rf"(\d{{1,9}}|{'|'.join(_SPELLED)})"
_OF: Final = " (?:out )?of (?:the )?"
_IN_WORDS: Final = re.compile(rf"(?<![\w.,-]){_COUNT}(?:{_OF}([\w-]+))? {_WHO}(?:{_OF}{_COUNT}\b)?", re.IGNORECASE)


def is_small(count: object) -> bool:
    """Whether a number of women may not be written.

    >>> [is_small(count) for count in (0, 4.2, 5, None)]
    [True, True, False, False]
    """
    return isinstance(count, (int, float)) and not isinstance(count, bool) and count < LEAST_WOMEN


def numbers(values: Mapping[str, Value]) -> dict[str, Value]:
    """Named numbers without counts that are small; others as they are."""
    return {name: value for name, value in values.items() if not (name.split("_")[0] in COUNTS and is_small(value))}


def flat(document: Mapping[str, Any]) -> dict[str, float]:
    """The finite scalars of an evaluation document as flat names: `auc_fused` from `{"auc": {"fused": x}}` and from
    `{"models": {"fused": {"auc": x}}}`; curves and tables stay in the document."""
    values: dict[str, float] = {}
    for name, value in document.items():
        if isinstance(value, Mapping) and name == "models":
            for model, row in value.items():
                if isinstance(row, Mapping):
                    values |= {f"{key}_{model}": v for key, v in row.items()}
        elif isinstance(value, Mapping):
            values |= {f"{name}_{key}": v for key, v in value.items()}
        else:
            values[name] = value
    return {k: float(v) for k, v in values.items() if is_number(v)}


def is_number(value: object) -> bool:
    """Whether a JSON value is a finite number (a bool is none)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def words(text: str) -> str:
    """Words of another party, or of an error, without small numbers of women.

    >>> words("the selection split needs both; found 2 positives of 31, 3 of 4 sites")
    'the selection split needs both; found fewer than 5 positives, 3 of 4 sites'
    >>> words("Three women of the twelve were prepared, all of them at one of two sites")
    'fewer than 5 women were prepared, all of them at one of two sites'
    """
    return _IN_WORDS.sub(_in_words, text)


def _in_words(found: re.Match[str]) -> str:
    count, who, whole = _read(found[1]), found[3], _read(found[2] or found[4])
    if is_small(count):
        return f"fewer than {LEAST_WOMEN} {who}"
    rest = None if whole is None or count is None else whole - count
    return f"all but fewer than {LEAST_WOMEN} {who}" if is_small(rest) else found[0]


def _read(count: str | None) -> int | None:
    """A number in digits or letters; None of another word."""
    return int(count) if count and count.isdecimal() else _SPELLED.get((count or "").lower())


def document(found: Mapping[str, Any], *, of_site: bool, noised: bool) -> Document:
    """An evaluation document (`shared_model.evaluation`) as the journal keeps it.

    Args:
        of_site: of a hospital's women, not the evaluator's.
        noised: made from counts with noise of differential privacy in them.
    """
    few_positives, few_negatives = _few(found)
    if of_site and not noised and (few_positives or few_negatives):
        return dict(SUPPRESSED)
    return _mapping(found, of_site=of_site)


def _mapping(found: Mapping[str, Any], *, of_site: bool) -> Document:
    kept: Document = {}
    few = any(_few(found))
    for name, value in found.items():
        if (name in COUNTS and is_small(value)) or (few and name == "positives"):
            kept[name] = None
        elif of_site and name in CURVES:
            continue
        elif name == "calibration" and _is_list(value):
            kept[name] = _pooled(value)
        elif isinstance(value, Mapping):
            kept[name] = _mapping(value, of_site=of_site)
        elif _is_list(value) and value and all(isinstance(row, Mapping) for row in value):
            kept[name] = _cells(value, of_site=of_site)
        else:
            kept[name] = value
    return kept


def _cells(rows: Sequence[Mapping[str, Any]], *, of_site: bool) -> list[Document]:
    """Rows that each stand for some of the women, by attribute."""
    kept = [_cell(row, of_site=of_site) for row in rows]
    for attribute in dict.fromkeys(str(row.get("name")) for row in rows if "level" in row):
        group = [place for place, row in enumerate(rows) if str(row.get("name")) == attribute]
        told = [place for place in group if kept[place].get("positives") is not None]
        if len(group) - len(told) == 1 and told:
            least = min(told, key=lambda place: (rows[place]["positives"], place))
            kept[least] = _without_positives(kept[least], few_positives=True, few_negatives=True)
    return kept


def _cell(row: Mapping[str, Any], *, of_site: bool) -> Document:
    if is_small(row.get("n")):
        place = {name: row[name] for name in _PLACE if name in row}
        return {**place, **SUPPRESSED} if "level" in row else {**dict.fromkeys(row), **place}
    few_positives, few_negatives = _few(row)
    kept = _mapping(row, of_site=of_site)
    if "level" not in row or not (few_positives or few_negatives):
        return kept
    return _without_positives(kept, few_positives=few_positives, few_negatives=few_negatives)


def _without_positives(row: Document, *, few_positives: bool, few_negatives: bool) -> Document:
    shares = [share for share, few in (("sensitivity", few_positives), ("specificity", few_negatives)) if few]
    return {name: None if name == "positives" or name.split("_")[0] in shares else value
            for name, value in row.items()}  # fmt: skip


def _few(row: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether there are few women with and few without cancer, as far as the row says how many."""
    n, positives = row.get("n"), row.get("positives")
    if not isinstance(positives, (int, float)):
        return is_small(n), is_small(n)
    return is_small(positives), isinstance(n, (int, float)) and is_small(n - positives)


def _pooled(points: Iterable[Sequence[float]]) -> list[list[float]]:
    """Points (stated, observed, women), ascending, put together until each is of enough women; none of too few."""
    kept: list[list[float]] = []
    for point in points:
        few = bool(kept) and is_small(kept[-1][2])
        kept.append(_merged(kept.pop(), point) if few else list(point))
    if len(kept) > 1 and is_small(kept[-1][2]):  # nothing comes after it: with the one before
        last = kept.pop()
        kept.append(_merged(kept.pop(), last))
    return [point for point in kept if not is_small(point[2])]


def _merged(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Two points of a calibration curve as one; a point of nobody, whose values may be NaN, adds nothing."""
    if not one[2] or not other[2]:
        return list(one if one[2] else other)
    whole = one[2] + other[2]
    return [*((a * one[2] + b * other[2]) / whole for a, b in zip(one[:2], other[:2], strict=True)), whole]


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple))

"""The label of one exam, from what rows say of it and from the days of diagnoses; called by joining. No I/O.

A reason (a key of `join_policy.REASONS`) is returned in place of a label where the exam has none that can be trusted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from client.ingest.join_policy import JoinPolicy
from client.ingest.tables.dates import Span, days_after, days_between
from client.ingest.tables.facts import Row

LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}
Place = Literal["before", "within", "after", "unclear"]


def diagnoses_of(rows: Iterable[Row]) -> list[Span]:
    """Days of cancer that rows tell: of the diagnosis, or of the exam that found it."""
    return [
        row.label_date or Span(row.exam, row.exam) for row in rows
        if row.label is not None and LABELS.get(row.label) == 1 and (row.label_date or row.exam)
    ]  # fmt: skip


def label_of(
    exam: str, own: Sequence[Sequence[Row]], *, diagnoses: Iterable[Span], clear_until: str, policy: JoinPolicy
) -> int | str:
    """0, 1 or a reason.

    Args:
        exam: its day, "" where it is not known (then what rows state is taken as it stands).
        own: rows of this exam, by source. diagnoses: all days of cancer of the woman, from rows and facts.
        clear_until: last day up to which a source would hold a diagnosis; "" where no source says so.
    """
    label = _stated(own)
    if isinstance(label, str):
        return label
    if not exam:
        return "no_label" if label is None else label
    dates = [row.label_date for rows in own for row in rows if row.label_date is not None]
    end = days_after(exam, policy.follow_up_days)
    places = {_place(span, exam, end) for span in diagnoses}
    if policy.prevalent == "exclude" and "before" in places:
        return "prevalent_cancer"
    if label == 1:
        return _positive({_place(span, exam, end) for span in dates}, policy)
    if label == 0:
        return _negative(exam, dates, places, policy)
    return _from_diagnoses(end, places, clear_until, policy)


def _stated(own: Sequence[Sequence[Row]]) -> int | str | None:
    """What the rows say: a label, nothing, or a reason."""
    labels: set[int] = set()
    for rows in own:
        values = {LABELS.get(row.label, row.label) for row in rows if row.label is not None}
        if len(values) > 1:
            return "conflicting_rows"
        for value in values:
            if isinstance(value, int):
                labels.add(value)
            elif value:
                return "bad_label"
    if len(labels) > 1:
        return "conflicting_labels"
    return next(iter(labels), None)


def _positive(places: Collection[Place], policy: JoinPolicy) -> int | str:
    if "unclear" in places:
        return "unclear_label_date"
    if "after" in places:
        return 0 if policy.after_follow_up == "negative" else "late_cancer"
    return 1


def _negative(exam: str, dates: Sequence[Span], places: Collection[Place], policy: JoinPolicy) -> int | str:
    if policy.prevalent == "exclude" and "within" in places:
        return "conflicting_labels"
    if policy.prevalent == "exclude" and "unclear" in places:
        return "unclear_label_date"
    followed = max((span.last for span in dates), default="")
    return "short_follow_up" if followed and days_between(exam, followed) < policy.least_follow_up_days else 0


def _from_diagnoses(end: str, places: Collection[Place], clear_until: str, policy: JoinPolicy) -> int | str:
    """No row says anything: a diagnosis in the follow-up says 1, its absence 0 where a source would hold one."""
    if "within" in places:
        return 1
    if "unclear" in places:
        return "unclear_label_date"
    if not clear_until:
        return "no_label"
    if "after" in places and policy.after_follow_up == "exclude":
        return "late_cancer"
    return 0 if clear_until >= end else "short_follow_up"


def _place(span: Span, exam: str, end: str) -> Place:
    """Where a diagnosis lies: before the exam, within its follow-up, after it, or unclear for want of its day."""
    if span.last < exam:
        return "before"
    if span.first > end:
        return "after"
    return "within" if span.first >= exam and span.last <= end else "unclear"

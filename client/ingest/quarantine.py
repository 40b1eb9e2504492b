"""Everything of a source that is not in the cohort, with its reason; filled by the importer's steps, written once.

A film or row is named by its ordinal (films: in the order of their paths; rows: data rows of the table) and its
patient's pseudonym. No message, list or report holds a name, an id, a UID or a file name.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from shared_model.errors import ImagingError

Kind = Literal["film", "row", "patient"]
COLUMNS = ("kind", "ordinal", "pseudonym", "reason", "words")

REASONS: dict[str, str] = {
    "older_exam": "an exam before the latest one of this woman; a cohort holds one exam of each; nothing to do",
    "repeat_view": "repeated in the same exam; the latest film of a view is used; nothing to do",
    "duplicate_uid": "the same film is there twice; the first is used; remove the copy",
    "conflicting_uid": "several different films carry one SOPInstanceUID, so none can be trusted; export them again",
    "no_row": "films without a row in clinical.csv, so without a label; add the row",
    "no_label": "the row has no label; set label to 0 or 1",
    "bad_label": "the label is neither 0 nor 1; correct it",
    "no_patient_id": "the row has no patient_id; set it",
    "damaged_row": "the row has another number of cells than the header line; correct quotes and separators",
    "older_row": "an exam before the latest one of this woman; nothing to do",
    "repeated_row": "the row stands twice, or an earlier version of it; the last one is used; remove the other",
    "conflicting_rows": "rows of one exam date have different labels; remove the wrong one",
    "nothing_usable": "neither a usable film nor a known clinical field; see the reasons of her films",
    "not_prepared": "the patient was quarantined, and this with her; see her own reason",
}
"""Reasons of the importer; those of films are in shared_model/imaging."""


@dataclass(frozen=True)
class Entry:
    """One thing that was set aside."""

    kind: Kind
    ordinal: int
    pseudonym: str
    reason: str
    words: str


class Quarantine:
    """The list of what was set aside."""

    def __init__(self) -> None:
        self._entries: dict[tuple[Kind, int, str], Entry] = {}

    def add(self, kind: Kind, ordinal: int, pseudonym: str, reason: str) -> None:
        """Set something aside for a reason of REASONS. A patient has the ordinal 0: her pseudonym says who she is."""
        self._put(Entry(kind, ordinal, pseudonym, reason, REASONS[reason]))

    def add_film(self, ordinal: int, pseudonym: str, error: ImagingError) -> None:
        """Set aside a film that imaging refused."""
        self._put(Entry("film", ordinal, pseudonym, error.reason, str(error)))

    def _put(self, entry: Entry) -> None:
        key = (entry.kind, entry.ordinal, entry.pseudonym if entry.kind == "patient" else "")
        assert key not in self._entries, f"{entry.kind} {entry.ordinal} is set aside twice"
        self._entries[key] = entry

    def count(self, kind: Kind) -> int:
        """How many of a kind were set aside."""
        return sum(entry.kind == kind for entry in self._entries.values())

    def reasons(self) -> dict[str, int]:
        """Counts by `kind.reason`, sorted."""
        counts = Counter(f"{entry.kind}.{entry.reason}" for entry in self._entries.values())
        return dict(sorted(counts.items()))

    def to_csv(self) -> str:
        """The list as CSV, films first, in order."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        order = {"film": 0, "row": 1, "patient": 2}
        for entry in sorted(self._entries.values(), key=lambda e: (order[e.kind], e.ordinal, e.pseudonym)):
            writer.writerow([entry.kind, entry.ordinal or "", entry.pseudonym, entry.reason, entry.words])
        return stream.getvalue()

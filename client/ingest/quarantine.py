"""Everything of a source that is not in the cohort, with its reason; filled by the importer's steps, written once.

A film, row or file is named by its ordinal (films: in the order of sources and paths; rows and files: through all
clinical sources in their order) and its patient's pseudonym. No message, list or report holds a name, an id, a UID or a
file name.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from client.ingest.join_policy import REASONS as JOIN_REASONS
from client.ingest.quality import RULES
from shared_model.errors import ImagingError

Kind = Literal["film", "row", "file", "patient"]
COLUMNS = ("kind", "ordinal", "pseudonym", "reason", "words")

REASONS: dict[str, str] = {
    **JOIN_REASONS,
    **{name: RULES[name] for name in ("age_conflict", "shared_films")},
    "older_exam": "an exam before the one of this woman that is used; a cohort holds one exam of each; nothing to do",
    "later_exam": "an exam after the one that is used, and without a label of its own; nothing to do, or add its row",
    "repeat_view": "repeated in the same exam; the latest film of a view is used; nothing to do",
    "duplicate_uid": "the same film is there twice; the first is used; remove the copy",
    "conflicting_uid": "several different films carry one SOPInstanceUID, so none can be trusted; export them again",
    "same_picture": "two views of this woman show the very same picture, so one has a wrong label; correct laterality "
                    "or view and export again",
    "no_row": "films without a clinical row, so without a label; add the row",
    "excluded": "the woman objected; nothing of her is used (`mammofed site exclude --undo` takes it back)",
    "nothing_usable": "neither a usable film nor a known clinical field; see the reasons of her films",
    "not_prepared": "the woman is in quarantine, and this with her; see her own reason",
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

    def copy(self) -> Quarantine:
        """The same entries, to go on from."""
        other = Quarantine()
        other._entries = dict(self._entries)
        return other

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

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All that was set aside, in the order in which it was."""
        return tuple(self._entries.values())

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
        order = {"film": 0, "row": 1, "file": 2, "patient": 3}
        for entry in sorted(self._entries.values(), key=lambda e: (order[e.kind], e.ordinal, e.pseudonym)):
            writer.writerow([entry.kind, entry.ordinal or "", entry.pseudonym, entry.reason, entry.words])
        return stream.getvalue()

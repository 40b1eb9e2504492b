"""Reads the kinds of cancers of an evaluator's women, `lesion_types` of its site.yaml; called by the import.

A CSV of two columns, patient_id and lesion_type, one row a woman. It is no clinical table: nothing of it becomes a
model input. It goes into the cohort as an attribute by which the evaluator's women make subgroups.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from client.ingest.tables.delimited import CsvSource, records_of
from shared_model.errors import ContractError
from shared_model.lesion_types import LESION_TYPE, LESION_TYPES

COLUMNS = ("patient_id", LESION_TYPE)


class Names(Protocol):
    """Who is who."""

    def pseudonym(self, patient_id: str) -> str:
        """Of a patient id."""


def read_lesion_types(path: Path, names: Names) -> dict[str, str]:
    """Kind of cancer by pseudonym. A row with an empty kind says that nobody typed it.

    Raises:
        ContractError: the file cannot be read, lacks a column, names a woman twice, or a kind that there is not.
    """
    records = records_of(CsvSource(kind="csv", path=path), name=path.name)
    header = [cell.strip() for cell in next(records, [])]
    if tuple(header) != COLUMNS:
        raise ContractError(f"{path.name}: other columns than the kinds of lesions have", found=len(header),
                            expected=",".join(COLUMNS), remedy="correct the header line")  # fmt: skip
    found: dict[str, str] = {}
    for number, cells in enumerate(records, start=1):
        if len(cells) != len(COLUMNS) or not cells[0].strip():
            raise ContractError(f"{path.name}, row {number}: not a patient id and a kind of lesion")
        kind, pseudonym = cells[1].strip().lower(), names.pseudonym(cells[0].strip())
        if kind not in ("", *LESION_TYPES):
            raise ContractError(f"{path.name}, row {number}: no such kind of lesion", found=kind[:40],
                                expected=", ".join(LESION_TYPES), remedy="map it, or leave the cell empty")  # fmt: skip
        if pseudonym in found:
            raise ContractError(f"{path.name}, row {number}: a woman stands twice", expected="one row a woman",
                                remedy="write `several` where her cancers differ in kind")  # fmt: skip
        found[pseudonym] = kind
    return {pseudonym: kind for pseudonym, kind in found.items() if kind}

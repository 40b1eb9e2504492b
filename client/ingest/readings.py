"""Reads what radiologists decided of an evaluator's women, `readings` of its site.yaml; called by the import.

A CSV: patient_id, radiologist_recall and, where a second one read, radiologist_2_recall; one row a woman, yes or no,
empty where nobody read. It is no clinical table: nothing of it becomes a model input.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from client.ingest.tables.delimited import CsvSource, records_of
from shared_model.errors import ContractError
from shared_model.readings import NO, READER, READINGS, YES

Readings = dict[str, dict[str, str]]
COLUMNS = ("patient_id", *READINGS)
SPELLINGS = {"yes": YES, "1": YES, "y": YES, "no": NO, "0": NO, "n": NO, "": ""}


def read_readings(path: Path, pseudonym: Callable[[str], str]) -> Readings:
    """Decisions by pseudonym and attribute; a woman whom nobody read is not there.

    Raises:
        ContractError: the file cannot be read, lacks a column, names a woman twice, or a decision is none.
    """
    records = records_of(CsvSource(kind="csv", path=path), name=path.name)
    header = [cell.strip() for cell in next(records, [])]
    if tuple(header) not in (COLUMNS, COLUMNS[:2]):
        raise ContractError(f"{path.name}: other columns than readings have", found=f"{len(header)} columns",
                            expected=f"patient_id,{READER} or {','.join(COLUMNS)}",
                            remedy="correct the header line")  # fmt: skip
    found: Readings = {}
    for number, cells in enumerate(records, start=1):
        if len(cells) != len(header) or not cells[0].strip():
            raise ContractError(f"{path.name}, row {number}: not a patient id and decisions")
        decisions = [SPELLINGS.get(cell.strip().lower()) for cell in cells[1:]]
        if None in decisions:
            raise ContractError(f"{path.name}, row {number}: not a decision", expected="yes, no or an empty cell",
                                remedy="a recall is yes; an assessment has to be mapped before")  # fmt: skip
        name = pseudonym(cells[0].strip())
        if name in found:
            raise ContractError(f"{path.name}, row {number}: a woman stands twice", expected="one row a woman",
                                remedy="keep the reading of the exam that has the label")  # fmt: skip
        found[name] = {what: said for what, said in zip(header[1:], decisions, strict=True) if said}
    return {name: decisions for name, decisions in found.items() if decisions}

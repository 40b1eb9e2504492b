"""Reads a site's clinical.csv into one encoded row for each patient; called by prepare.

Cells are never repeated in a message: whatever stands in the table may be a name.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from client.ingest.pseudonyms import Pseudonyms
from client.ingest.quarantine import Quarantine
from shared_model.contract import CLINICAL_COLUMNS, Contract
from shared_model.errors import ContractError

MAX_TABLE_BYTES = 1 << 28  # a million women with every field have some 100 MB
SOURCE = "clinical.csv"
_LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}


@dataclass(frozen=True)
class Row:
    """One patient's clinical row. features: float32 [F], None where no field is known. ordinal: data row from 1."""

    ordinal: int
    label: int
    features: NDArray[np.float32] | None


@dataclass(frozen=True)
class Table:
    """What the table gave. rows: by pseudonym, usable ones. refused: pseudonyms whose rows were all set aside.

    found: data rows in the file. fields: the contract's counts. ignored: columns that the contract does not know.
    """

    rows: Mapping[str, Row] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()
    found: int = 0
    fields: dict[str, object] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Line:
    ordinal: int
    cells: list[str]
    pseudonym: str
    exam: str


def read_table(path: Path, *, contract: Contract, pseudonyms: Pseudonyms, quarantine: Quarantine) -> Table:
    """Read, check and encode the table; one row is kept for each patient, the others are set aside with a reason.

    Raises:
        ContractError: the table cannot be read, or patient_id or label is missing.
        LeakageError: a column tells the outcome of the read.
    """
    header, records = _records(path)
    _check_header(header)
    ignored = contract.check_columns(header, source=SOURCE)
    place = {name: header.index(name) for name in CLINICAL_COLUMNS if name in header}
    by_patient: dict[str, list[_Line]] = defaultdict(list)
    for ordinal, cells in enumerate(records, start=1):
        if len(cells) != len(header):
            quarantine.add("row", ordinal, "", "damaged_row")
            continue
        pseudonym = pseudonyms.of(cells[place["patient_id"]].strip())
        if not pseudonym:
            quarantine.add("row", ordinal, "", "no_patient_id")
            continue
        exam = _iso(cells[place["exam_date"]]) if "exam_date" in place else ""
        by_patient[pseudonym].append(_Line(ordinal, cells, pseudonym, exam))
    kept: dict[str, tuple[_Line, int]] = {}
    for pseudonym, lines in by_patient.items():
        chosen = _choose(lines, place["label"], quarantine)
        if chosen is not None:
            kept[pseudonym] = chosen
    lines = [line for line, _ in kept.values()]
    encoded = contract.encode(pd.DataFrame([line.cells for line in lines], columns=header, dtype=object), source=SOURCE)
    rows = {
        pseudonym: Row(line.ordinal, label, values if known else None)
        for (pseudonym, (line, label)), values, known in zip(
            kept.items(), encoded.values, encoded.present, strict=True
        )
    }
    return Table(rows, frozenset(by_patient.keys() - rows.keys()), len(records), encoded.report.as_dict(), ignored)


def _records(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header line and data rows; blank lines do not count."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_TABLE_BYTES + 1)
    except OSError as error:
        raise ContractError(f"{SOURCE} cannot be read: {error.strerror}", expected="a table with one row a patient",
                            remedy=f"put {SOURCE} into the source folder") from None  # fmt: skip
    if len(data) > MAX_TABLE_BYTES:
        raise ContractError(f"{SOURCE} is too large", expected=f"at most {MAX_TABLE_BYTES} bytes")
    try:
        lines = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        records = [cells for cells in lines if cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ContractError(f"{SOURCE} is not a CSV file in UTF-8", found=type(error).__name__,
                            remedy="export it as comma-separated UTF-8; look for an open quote") from None  # fmt: skip
    if not records:
        raise ContractError(f"{SOURCE} is empty", expected="a header line and one row a patient")
    return [name.strip() for name in records[0]], records[1:]


def _check_header(header: list[str]) -> None:
    """The contract would show the columns that it found; without a header line these are a patient."""
    missing = [name for name in ("patient_id", "label") if name not in header]
    if missing:
        raise ContractError(
            f"{SOURCE}: column {' and '.join(missing)} is missing", found=f"{len(header)} other columns",
            expected="a first line with the names patient_id, label and the contract's fields, separated by commas",
            remedy=f"add the column, or correct the header line of {SOURCE}",
        )  # fmt: skip


def _choose(lines: list[_Line], label_at: int, quarantine: Quarantine) -> tuple[_Line, int] | None:
    """The row of the latest exam and its label, or None; what is not chosen is set aside."""
    latest = max(line.exam for line in lines)
    current = [line for line in lines if line.exam == latest]
    for line in lines:
        if line.exam != latest:
            quarantine.add("row", line.ordinal, line.pseudonym, "older_row")
    labels = {line.cells[label_at].strip() for line in current}
    reason = None
    if len({_LABELS.get(text, text) for text in labels}) > 1:
        reason = "conflicting_rows"
    elif not labels & _LABELS.keys():
        reason = "no_label" if labels == {""} else "bad_label"
    if reason is not None:
        for line in current:
            quarantine.add("row", line.ordinal, line.pseudonym, reason)
        return None
    for line in current[:-1]:
        quarantine.add("row", line.ordinal, line.pseudonym, "repeated_row")
    return current[-1], _LABELS[labels.pop()]


def _iso(text: str) -> str:
    """The date as YYYY-MM-DD, or "" (older than all) where it is none."""
    try:
        return date.fromisoformat(text.strip()).isoformat()
    except ValueError:
        return ""

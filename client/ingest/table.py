"""From clinical sources to one encoded row for each woman; called by prepare.

`read_table` reads the clinical.csv of a folder, the simplest case: one source, whose rows are as of the exam that they
name. `encode_women` encodes what `joining.join` made of any sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from client.ingest.joining import SIMPLE, JoinResult, join
from client.ingest.pseudonyms import Pseudonyms
from client.ingest.quarantine import Quarantine
from client.ingest.tables.columns import Plan, gather
from client.ingest.tables.delimited import CsvSource, records_of
from client.ingest.tables.facts import Content, Plain
from shared_model.contract import CLINICAL_COLUMNS, Contract
from shared_model.errors import ContractError

SOURCE = "clinical.csv"
NOTES = {
    "too_late": "cells or facts were known only after the exam and were not used",
    "stale": "cells or facts were too old to tell of the exam and were not used",
    "disagreement": "cells of two sources differ; the source that stands first in the site's file was believed",
}
"""What the join noted, in words that follow a count."""


@dataclass(frozen=True)
class Row:
    """One patient's clinical row. features: float32 [F], None where no field is known. ordinal: data row from 1, 0
    where no row but facts alone told of her. exam: day of the exam that it is of (YYYYMMDD), "" where there is none.
    ordinals: of all rows that were used for it."""

    ordinal: int
    label: int
    features: NDArray[np.float32] | None
    exam: str = ""
    ordinals: tuple[int, ...] = ()


@dataclass(frozen=True)
class Table:
    """What the clinical sources gave. rows: by pseudonym, usable ones. refused: pseudonym -> why none of her rows
    can be used.

    found: data rows in the files. fields: the contract's counts. ignored: columns that the contract does not know.
    warnings: of the sources, in words.
    """

    rows: Mapping[str, Row] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    found: int = 0
    fields: dict[str, object] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def read_table(path: Path, *, contract: Contract, pseudonyms: Pseudonyms, quarantine: Quarantine) -> Table:
    """Read, check and encode the table; one row is kept for each patient, the others are set aside with a reason.

    Raises:
        ContractError: the table cannot be read, or patient_id or label is missing.
        LeakageError: a column tells the outcome of the read.
    """
    source = CsvSource(kind="csv", path=path)
    records = records_of(source, name=SOURCE)
    first = next(records, None)
    if first is None:
        raise ContractError(f"{SOURCE} is empty", expected="a header line and one row a patient")
    header = [name.strip() for name in first]
    _check_header(header)
    plan = Plan(header, source, contract, source=SOURCE, own=CLINICAL_COLUMNS)
    content = gather(plan, records, Plain(pseudonyms))
    result = join({}, [content], contract=contract, policy=SIMPLE)
    for entry in result.left_out:
        quarantine.add("row", entry.ordinal, entry.pseudonym, entry.reason)
    return encode_women(result, [content], contract=contract, source=SOURCE)


def encode_women(result: JoinResult, contents: Sequence[Content], *, contract: Contract, source: str) -> Table:
    """The joined rows as features; ordinals count through all sources, in their order."""
    offsets = np.cumsum([0, *(content.found for content in contents)]).tolist()
    fields = {name for content in contents for name in content.fields}
    fields |= {name for woman in result.women.values() for name in woman.cells}
    names = [field.name for field in contract.fields if field.name in fields]
    cells = [[woman.cells.get(name, "") for name in names] for woman in result.women.values()]
    ignored = tuple(dict.fromkeys(name for content in contents for name in content.ignored))
    encoded = contract.encode(pd.DataFrame(cells, columns=names, dtype=object), source=source)
    report = replace(encoded.report, ignored_columns=ignored)
    rows = {}
    for (pseudonym, woman), values, known in zip(result.women.items(), encoded.values, encoded.present, strict=True):
        used = tuple(offsets[number] + ordinal for number, ordinal in woman.rows)
        rows[pseudonym] = Row(used[0] if used else 0, woman.label, values if known else None, woman.exam, used)
    warnings = tuple(text for content in contents for text in content.warnings)
    warnings += tuple(f"{count} {NOTES[name]}" for name, count in sorted(result.notes.items()) if count)
    return Table(rows, dict(result.refused), offsets[-1], report.as_dict(), ignored, warnings)


def _check_header(header: list[str]) -> None:
    """The contract would show the columns that it found; without a header line these are a patient."""
    missing = [name for name in ("patient_id", "label") if name not in header]
    if missing:
        raise ContractError(
            f"{SOURCE}: column {' and '.join(missing)} is missing", found=f"{len(header)} other columns",
            expected="a first line with the names patient_id, label and the contract's fields, separated by commas",
            remedy=f"add the column, or correct the header line of {SOURCE}",
        )  # fmt: skip

"""Reads small CSV and text files of public data sets, bounded; called by the modules of the data sets.

Cells are not repeated in messages: a manifest may be somebody's own patients. Column names and line numbers are.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from shared_model.bounded import read_at_most
from shared_model.errors import CohortError

MAX_TABLE_BYTES = 1 << 26  # the largest table of CBIS-DDSM has 1 MB, a manifest of a million rows some 60


@dataclass(frozen=True)
class Line:
    """One data row. number: of its last line in the file, as an editor counts. cells: by column, stripped."""

    number: int
    cells: dict[str, str]


def read_text(path: Path) -> str:
    """The file as text.

    Raises:
        CohortError: it cannot be read, is larger than MAX_TABLE_BYTES, or is no UTF-8.
    """
    data = read_at_most(path, MAX_TABLE_BYTES, error=CohortError, remedy="check the path and permissions")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CohortError(f"{path} is no text in UTF-8", remedy="save it as comma-separated UTF-8") from None


def read_csv(path: Path, *, required: Collection[str]) -> tuple[list[str], list[Line]]:
    """(columns, data rows); quoted cells may hold line breaks, blank lines do not count.

    Raises:
        CohortError: as :func:`read_text`; no CSV; a required column is missing or one stands twice; a row has another
            number of cells than the header.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(path, header, required)
        lines = []
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise CohortError(f"{path} line {reader.line_num}: not as many cells as the header line",
                                  found=len(cells), expected=len(header), remedy="correct the commas")  # fmt: skip
            lines.append(Line(reader.line_num, dict(zip(header, (cell.strip() for cell in cells), strict=True))))
    except csv.Error as error:
        raise CohortError(f"{path} line {reader.line_num}: no CSV ({error})",
                          remedy="export it as comma-separated UTF-8; look for an open quote") from None  # fmt: skip
    return header, lines


def _check_header(path: Path, header: list[str], required: Collection[str]) -> None:
    missing = [name for name in required if name not in header]
    if missing:
        raise CohortError(f"{path}: column {', '.join(missing)} is missing", found=f"{len(header)} columns",
                          expected=", ".join(required), remedy="correct the header line")  # fmt: skip
    if len(set(header)) < len(header):
        raise CohortError(f"{path}: a column stands twice", remedy="remove one of them from the header line")

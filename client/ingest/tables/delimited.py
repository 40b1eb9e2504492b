"""Reads a CSV file record by record, bounded and strict; called by sources, and by table for simulated folders."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Literal

from client.ingest.settings import SitePath
from client.ingest.tables.columns import OWN_COLUMNS, Plan, TableOptions, gather
from client.ingest.tables.facts import Content, Identities
from shared_model.contract import Contract
from shared_model.errors import ContractError

MAX_TABLE_BYTES = 1 << 28  # a million women with every field have some 100 MB
MAX_CELL = 1 << 16  # signs; a longer cell is an open quote


class CsvSource(TableOptions):
    """A delimited text file with a header line. encoding: as the hospital exports it; a byte-order mark may lead it."""

    kind: Literal["csv"]
    path: SitePath
    delimiter: Literal[",", ";", "\t", "|"] = ","
    encoding: Literal["utf-8", "latin-1", "cp1252", "utf-16"] = "utf-8"


def read_csv(
    source: CsvSource, *, contract: Contract, identities: Identities, name: str, own: tuple[str, ...] = OWN_COLUMNS
) -> Content:
    """Every record of the file as a row.

    Args:
        name: how messages name the file. own: columns besides the contract's fields that need no map.

    Raises:
        ContractError: the file cannot be read, is too large, no CSV, empty, or lacks a column that it needs.
        LeakageError: a column tells the outcome of the read.
        ConfigError: the options name what the file or the contract lacks.
    """
    records = records_of(source, name=name)
    header = [cell.strip() for cell in next(records, [])]
    if not header:
        raise ContractError(f"{name} is empty", expected="a header line and one row a patient")
    return gather(Plan(header, source, contract, source=name, own=own), records, identities)


def records_of(source: CsvSource, *, name: str) -> Iterator[list[str]]:
    """The records, header line first; blank lines do not count.

    Raises:
        ContractError: as above.
    """
    encoding = "utf-8-sig" if source.encoding == "utf-8" else source.encoding
    previous = csv.field_size_limit(MAX_CELL)  # of the whole process, so it is given back
    try:
        with source.path.open("rb") as binary:
            size = binary.seek(0, io.SEEK_END)
            if size > MAX_TABLE_BYTES:
                raise ContractError(f"{name} is too large", found=f"{size} bytes",
                                    expected=f"at most {MAX_TABLE_BYTES} bytes",
                                    remedy="split the export, or send it as Parquet")  # fmt: skip
            binary.seek(0)
            with io.TextIOWrapper(binary, encoding=encoding, newline="") as text:
                for cells in csv.reader(text, delimiter=source.delimiter, strict=True):
                    if cells:
                        yield cells
    except OSError as error:
        raise ContractError(f"{name} cannot be read: {error.strerror}", expected="a table with one row a patient",
                            remedy=f"put {name} where the site's file says") from None  # fmt: skip
    except (UnicodeError, csv.Error) as error:
        raise ContractError(f"{name} is not a CSV file in {source.encoding.upper()}", found=type(error).__name__,
                            remedy=f"export it as {_named(source.delimiter)}-separated {source.encoding.upper()}; "
                                   "or set encoding and delimiter in site.yaml; look for an open quote"
                            ) from None  # fmt: skip
    finally:
        csv.field_size_limit(previous)


def _named(delimiter: str) -> str:
    return {",": "comma", ";": "semicolon", "\t": "tab"}.get(delimiter, "bar")

"""Reads a Parquet file in batches; called by sources. pyarrow is imported when there is such a source."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime
from typing import Any, Literal

from client.ingest.settings import SitePath
from client.ingest.tables.columns import Plan, TableOptions, gather
from client.ingest.tables.facts import Content, Identities
from shared_model.contract import Contract
from shared_model.errors import ContractError

MAX_FILE_BYTES = 1 << 30
MAX_ROWS = 5_000_000
MAX_GROUP_BYTES = 1 << 30  # of one row group, uncompressed, as its own footer says
_BATCH = 4096


class ParquetSource(TableOptions):
    """An Apache Parquet file of flat columns. Typed dates need no format."""

    kind: Literal["parquet"]
    path: SitePath


def read_parquet(source: ParquetSource, *, contract: Contract, identities: Identities, name: str) -> Content:
    """Every record of the file as a row.

    Raises:
        ContractError: the file cannot be read, is too large or no flat Parquet table, or lacks a column.
        LeakageError: a column tells the outcome of the read.
        ConfigError: the options name what the file or the contract lacks.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if "%Y-%m-%d" not in source.dates:
        source = source.model_copy(update={"dates": (*source.dates, "%Y-%m-%d")})  # how typed dates are written below
    try:
        with source.path.open("rb") as stream:
            _check_size(stream.seek(0, 2), name)
            stream.seek(0)
            file = pq.ParquetFile(stream)
            _check_content(file.metadata, file.schema_arrow, name)
            plan = Plan(file.schema_arrow.names, source, contract, source=name)
            return gather(plan, _records(file), identities)
    except OSError as error:
        if isinstance(error, pa.ArrowException) or error.strerror is None:
            raise _no_parquet(name, error) from None
        raise ContractError(f"{name} cannot be read: {error.strerror}", expected="a Parquet file",
                            remedy=f"put {name} where the site's file says") from None  # fmt: skip
    except pa.ArrowException as error:
        raise _no_parquet(name, error) from None


def _no_parquet(name: str, error: BaseException) -> ContractError:
    return ContractError(f"{name} is not a Parquet file that can be read", found=type(error).__name__,
                         remedy="export it again")  # fmt: skip


def _check_size(size: int, name: str) -> None:
    if size > MAX_FILE_BYTES:
        raise ContractError(f"{name} is too large", found=f"{size} bytes", expected=f"at most {MAX_FILE_BYTES} bytes",
                            remedy="split the export")  # fmt: skip


def _check_content(metadata: Any, schema: Any, name: str) -> None:
    groups = [metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)]
    if metadata.num_rows > MAX_ROWS or max(groups, default=0) > MAX_GROUP_BYTES:
        raise ContractError(f"{name} is too large", found=f"{metadata.num_rows} rows",
                            expected=f"at most {MAX_ROWS} rows and {MAX_GROUP_BYTES} bytes a row group",
                            remedy="split the export")  # fmt: skip
    import pyarrow as pa

    if nested := [field.name for field in schema if pa.types.is_nested(field.type)]:
        raise ContractError(f"{name} has nested columns", found=f"{len(nested)} of {len(schema.names)} columns",
                            expected="one value a cell", remedy="flatten the export")  # fmt: skip


def _records(file: Any) -> Iterator[list[str]]:
    for batch in file.iter_batches(batch_size=_BATCH):
        columns = [column.to_pylist() for column in batch.columns]
        for cells in zip(*columns, strict=True):
            yield [_text(cell) for cell in cells]


def _text(cell: object) -> str:
    """A typed value as a CSV export would write it; an id of a numeric column (float, because of gaps) has no `.0`."""
    if cell is None or cell != cell:
        return ""
    if isinstance(cell, datetime):
        return cell.date().isoformat()
    if isinstance(cell, date):
        return cell.isoformat()
    if isinstance(cell, bool):
        return str(int(cell))
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1e15:
        return str(int(cell))
    if isinstance(cell, bytes):
        return cell.decode("utf-8", "replace")
    return str(cell)

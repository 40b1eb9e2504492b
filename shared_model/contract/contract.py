"""The data contract as the importer and the models use it: check a table's columns, encode its rows."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import ValidationError

from shared_model.bounded import read_at_most
from shared_model.contract.encoding import Encoded, EncodingReport, FieldCounts, encode_column
from shared_model.contract.schema import (
    CLINICAL_COLUMNS,
    REQUIRED_COLUMNS,
    ClinicalField,
    ContractFile,
    column_key,
)
from shared_model.errors import ContractError, LeakageError
from shared_model.plain_yaml import check_plain

if TYPE_CHECKING:
    import pandas as pd

MAX_CONTRACT_BYTES = 1 << 20  # the shipped contract has 12 KB
_REPEATED = re.compile(r"(.+)\.\d+")  # how pandas renames a repeated column


class Contract:
    """A versioned data contract. Read it with :func:`load_contract`.

    version: of the content, `major.minor.patch`. fields: in the order of the features. feature_names: F names
    `field.part`. groups: field name -> its feature columns.

    >>> contract = load_contract()
    >>> contract.feature_names[:2]
    ('age.value', 'age.missing')
    """

    def __init__(self, content: ContractFile) -> None:
        self._content = content
        self.version = content.version
        self.fields: tuple[ClinicalField, ...] = content.fields
        self.feature_names: tuple[str, ...] = tuple(n for field in self.fields for n in field.feature_names)
        self.n_features = len(self.feature_names)
        self._columns = {*CLINICAL_COLUMNS, *(field.name for field in self.fields)}
        self._spellings = {field.name: content.spellings(field) for field in self.fields}

    @cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of the content as canonical JSON: comments and layout of the YAML do not count, all else does."""
        content = self._content.model_dump(mode="json", by_alias=True)
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @cached_property
    def groups(self) -> Mapping[str, tuple[int, ...]]:
        """Field name -> indices of its feature columns; every column is in exactly one group."""
        found: dict[str, tuple[int, ...]] = {}
        start = 0
        for field in self.fields:
            found[field.name] = tuple(range(start, start + len(field.feature_names)))
            start += len(field.feature_names)
        return found

    def field(self, name: str) -> ClinicalField:
        """The field of that name.

        Raises:
            ContractError: there is none.
        """
        for field in self.fields:
            if field.name == name:
                return field
        raise ContractError("no such clinical field", found=name, expected=[field.name for field in self.fields])

    def check_columns(self, columns: Sequence[object], *, source: str) -> tuple[str, ...]:
        """Checks a table's header before a row is read; returns the columns that the contract does not know.

        Those are ignored and belong into the import report. `source` names the file in errors.

        Raises:
            LeakageError: a column tells the outcome of the read.
            ContractError: patient_id or label is missing, or two columns stand for one field.
        """
        by_key = self._by_key(columns, source=source)
        for name in REQUIRED_COLUMNS:
            if name not in by_key:
                raise ContractError(
                    f"{source}: column `{name}` is missing",
                    found=[_shown(c) for c in columns][:40],
                    expected=f"columns {', '.join(REQUIRED_COLUMNS)} and any of the contract's fields",
                    remedy=f"add the column `{name}` to {source} or correct its header line",
                )
        return tuple(str(column) for key, column in by_key.items() if key not in self._columns)

    def encode(self, frame: pd.DataFrame, *, source: str) -> Encoded:
        """Encodes N rows into float32 [N, F]: scaled value or one-hot level, 0 where not known, and missing flags.

        Column order and index of `frame` do not matter; cells may be text or numbers. A field without a column is all
        missing. An impossible or unreadable cell empties its field, not the woman, and is counted in the report.

        Raises:
            LeakageError: a column tells the outcome of the read.
            ContractError: two columns stand for one field.
        """
        by_key = self._by_key(list(frame.columns), source=source)
        rows = len(frame)
        parts: list[NDArray[np.float32]] = []
        counts: dict[str, FieldCounts] = {}
        known = np.zeros(rows, dtype=bool)
        for field in self.fields:
            column = frame[by_key[field.name]] if field.name in by_key else None
            features, count = encode_column(column, field, self._spellings[field.name], rows=rows)
            parts.append(features)
            counts[field.name] = count
            known |= features[:, -1] == 0.0
        ignored = tuple(str(column) for key, column in by_key.items() if key not in self._columns)
        report = EncodingReport(source=source, rows=rows, fields=counts, ignored_columns=ignored)
        return Encoded(values=np.concatenate(parts, axis=1), present=known, report=report)

    def reference(self) -> NDArray[np.float32]:
        """float32 [F]: a public reference patient with every field known (numbers at their reference, flags no,
        categories at their reference level); the baseline of explanations."""
        import pandas as pd  # as in `encode_column`

        row = {f.name: "no" if f.kind == "flag" else f.reference_value if f.kind == "number" else f.reference
               for f in self.fields}  # fmt: skip
        encoded: NDArray[np.float32] = self.encode(pd.DataFrame([row], dtype=object), source="reference").values[0]
        return encoded

    def _by_key(self, columns: Sequence[object], *, source: str) -> dict[str, object]:
        """Comparable name -> column, after refusing leaks and repeated fields."""
        denied = [(c, reason) for c in columns if (reason := self._content.denial(column_key(c))) is not None]
        if denied:
            raise LeakageError(
                f"{source}: " + ", and ".join(f"column `{_shown(c)}` is refused: {why}" for c, why in denied[:10]),
                expected="columns that were known before this exam was read",
                remedy=f"export {source} without {'these columns' if len(denied) > 1 else 'this column'}",
            )
        by_key: dict[str, object] = {}
        for column in columns:
            if column_key(column) in CLINICAL_COLUMNS and column != column_key(column):
                raise ContractError(
                    f"{source}: column `{_shown(column)}` has an unexpected spelling", expected=column_key(column),
                    remedy="rename it",
                )  # fmt: skip
            repeated = _REPEATED.fullmatch(str(column))
            key = column_key(repeated[1] if repeated and column_key(repeated[1]) in self._columns else column)
            if key in by_key and key in self._columns:
                raise ContractError(
                    f"{source}: two columns stand for `{key}`",
                    found=[_shown(by_key[key]), _shown(column)],
                    expected="one column for each field",
                    remedy=f"remove or rename one of them in {source}",
                )
            by_key.setdefault(key, column)
        return by_key


def load_contract(path: Path | None = None) -> Contract:
    """Reads a contract; without a path the one that this release ships.

    Raises:
        ContractError: the file cannot be read, is too large, is no plain YAML (aliases and repeated keys are refused:
            the one can expand without bound, the other hides a line), or is inconsistent; names every fault.
    """
    if path is None:
        source = "shared_model/contract/clinical.yaml"
        data = resources.files("shared_model.contract").joinpath("clinical.yaml").read_bytes()
    else:
        source = str(path)
        data = _read(path)
    try:
        text = data.decode()
        check_plain(text, source=source, error=ContractError)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ContractError(f"{source} is not YAML: {' '.join(str(error).split())[:300]}") from None
    try:
        # JSON mode of the strict check takes YAML's lists as tuples and still refuses `no` read as false.
        return Contract(ContractFile.model_validate_json(json.dumps(values)))
    except (ValidationError, TypeError, ValueError) as error:
        faults = str(error)
        if isinstance(error, ValidationError):
            faults = "; ".join(
                f"{'.'.join(str(part) for part in e['loc']) or 'contract'}: {e['msg'].removeprefix('Value error, ')}"
                for e in error.errors(include_url=False)
            )
        raise ContractError(f"{source} is no valid contract: {faults}", remedy="correct the named entries") from None


def _read(path: Path) -> bytes:
    return read_at_most(path, MAX_CONTRACT_BYTES, error=ContractError, what=f"the contract {path}",
                        remedy="give the path of a contract")  # fmt: skip


def _shown(column: object) -> str:
    """A column name short enough for a message."""
    text = str(column)
    return text if len(text) <= 60 else text[:57] + "..."

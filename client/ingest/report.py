"""What a preparation did, in counts; made by the importer, shown by the CLI and written beside the cohort."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path

from shared_model.errors import CohortError, StorageError

MAX_REPORT_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class PreparationReport:
    """Counts of one preparation. For films, rows and patients: found = prepared + quarantined (checked).

    patients: women with a film or a row; found = prepared + quarantined. image_only, table_only: prepared without a
    known clinical field, or without a film. shrunk: films shown at a coarser spacing than configured because the breast
    would not fit; enlarged: films coarser than the canvas. reasons: counts by `kind.reason`. fields: of the clinical
    table by field (missing, impossible, winsorised, unmapped). warnings: in words, what a person should look at.
    """

    site: str
    films: int
    films_prepared: int
    films_quarantined: int
    rows: int
    rows_prepared: int
    rows_quarantined: int
    patients: int
    patients_prepared: int
    patients_quarantined: int
    positives: int
    image_only: int
    table_only: int
    shrunk: int
    enlarged: int
    reasons: dict[str, int]
    fields: dict[str, object]
    warnings: tuple[str, ...]
    contract_sha256: str
    pipeline_sha256: str
    content_sha256: str | None
    seconds: float
    schema_version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        for name in ("films", "rows", "patients"):
            found, prepared, set_aside = (getattr(self, name + part) for part in ("", "_prepared", "_quarantined"))
            assert found == prepared + set_aside, f"{name}: {found} found, {prepared} prepared, {set_aside} set aside"

    def to_json(self) -> str:
        """Indented JSON, keys in the order of the fields."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, destination: Path) -> PreparationReport:
        """The report that lies beside a cohort.

        Raises:
            CohortError: absent, damaged or of another version.
        """
        path = destination.with_name(destination.name + ".report.json")
        try:
            with path.open("rb") as stream:
                values = json.loads(stream.read(MAX_REPORT_BYTES))
            if values.pop("schema_version") != 1:
                raise ValueError("another version")
            return cls(**{**values, "warnings": tuple(map(str, values["warnings"]))})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError) as error:
            raise CohortError(f"{path} cannot be read", found=type(error).__name__,
                              expected="what an import wrote", remedy="import again") from None  # fmt: skip


def write_beside(destination: Path, *, report: PreparationReport, quarantine_csv: str) -> None:
    """Write `<cohort>.report.json` and `<cohort>.quarantine.csv` beside the cohort's folder, each whole or not at all.

    Raises:
        StorageError: the disk refuses.
    """
    for suffix, text in ((".report.json", report.to_json()), (".quarantine.csv", quarantine_csv)):
        write_whole_text(destination.with_name(destination.name + suffix), text)


def write_whole_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all.

    Raises:
        StorageError: the disk refuses.
    """
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.rename(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise StorageError(f"{path} could not be written: {error.strerror}",
                           remedy="make room or check the disk, then prepare again") from None  # fmt: skip

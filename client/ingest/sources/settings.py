"""What all sources of films share in a site's file: paths, periods, patients, TLS, the other side's address."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from client.ingest.settings import Settings, SitePath
from shared_model.bounded import read_at_most
from shared_model.errors import ConfigError

MAX_LIST_BYTES = 64 << 20
WILDCARDS = re.compile(r"[*?\\\x00-\x1f]")  # PS3.4 C.2.2.2.4: they would match other women's studies


def _ae_title(title: str) -> str:
    """PS3.5 6.2, VR AE: 1 to 16 characters of ISO 646 without backslash and controls; outer spaces mean nothing."""
    title = title.strip(" ")
    if not re.fullmatch(r"[\x20-\x5b\x5d-\x7e]{1,16}", title):
        raise ValueError("an AE title has 1 to 16 printable ASCII characters and no backslash")
    return title


AeTitle = Annotated[str, AfterValidator(_ae_title)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Studies(Settings):
    """Which studies are asked for.

    from, to: days of the study, both included. patients: a CSV file whose column `patient_id` (or only column) names
    the women, or null for all. The archive is asked month by month, because archives cut long answers.
    """

    model_config = ConfigDict(populate_by_name=True)

    first: date = Field(alias="from")
    last: date = Field(alias="to")
    patients: SitePath | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Studies:
        if self.first > self.last:
            raise ValueError("from lies after to")
        return self

    def months(self) -> Iterator[tuple[date, date]]:
        """The period in pieces of one calendar month at most, in order."""
        start = self.first
        while start <= self.last:
            following = (start.replace(day=1) + timedelta(days=32)).replace(day=1)
            yield start, min(self.last, following - timedelta(days=1))
            start = following

    def patient_ids(self) -> list[str] | None:
        """The ids to ask for, each once, in the file's order; None for all women.

        Raises:
            ConfigError: the file is absent, too large, no CSV, empty, or an id holds a wildcard.
        """
        return None if self.patients is None else read_ids(self.patients)


def read_ids(path: Path) -> list[str]:
    """The ids of a CSV file; see :class:`Studies`."""
    data = read_at_most(path, MAX_LIST_BYTES, error=ConfigError, what=f"the list of patients {path}")
    try:
        rows = [row for row in csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"the list of patients {path} is not a CSV file in UTF-8",
                          found=type(error).__name__) from None  # fmt: skip
    header = [cell.strip() for cell in rows[0]] if rows else []
    if "patient_id" in header:
        column, rows = header.index("patient_id"), rows[1:]
    elif len(header) == 1:
        column = 0
    else:
        raise ConfigError(f"the list of patients {path} has no column patient_id", found=f"{len(header)} columns",
                          expected="a column patient_id, or one id a line")  # fmt: skip
    ids = list(dict.fromkeys(filter(None, (row[column].strip() for row in rows if len(row) > column))))
    if not ids:
        raise ConfigError(f"the list of patients {path} is empty", expected="at least one id")
    for number, text in enumerate(ids, start=1):
        if WILDCARDS.search(text) or len(text) > 64:
            raise ConfigError(
                f"id {number} of {path} cannot be asked for", expected="at most 64 characters, none of * ? \\",
                remedy="correct the list; the id itself is not shown here",
            )  # fmt: skip
    return ids


class Tls(Settings):
    """Transport security of DICOM (PS3.15 B.9, BCP 195), with certificates on both sides.

    ca: PEM of who signs the other side's certificate. certificate, key: our own, PEM, the key not encrypted.
    server_name: the name in the PACS's certificate where it is not the host's; null: the host's.
    """

    ca: SitePath
    certificate: SitePath
    key: SitePath
    server_name: str | None = Field(default=None, min_length=1, max_length=253)


class Peer(Settings):
    """A DICOM application entity that we call. timeout_seconds: longest silence before a call counts as lost."""

    host: str = Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9._:-]+$")
    port: Port
    called_ae: AeTitle
    calling_ae: AeTitle = "MAMMOFED"
    tls: Tls | None = None
    timeout_seconds: float = Field(default=60.0, gt=0, le=3600)


class Patience(Settings):
    """How long a source is waited for.

    quiet_seconds: a study counts as complete once the archive has announced the same films for so long.
    retries: how often a lost connection, or a study that came incomplete, is tried again within one import.
    """

    quiet_seconds: float = Field(default=5.0, ge=0, le=3600)
    retries: int = Field(default=5, ge=0, le=20)

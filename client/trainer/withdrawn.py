"""Which studies a site has left for good; written by `site withdraw`, read before anything is served or approved.

    <trainer>/withdrawn/<study>.json    by name: no later protocol of that name is approved or served either
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared_model.errors import ConfigError, ProtocolError
from shared_model.private_files import make_private_folder, read_private, write_private

FOLDER: Final = "withdrawn"
MOST_REASON: Final = 300
_STUDY: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


class Mark(BaseModel):
    """One study that was left. time: UTC, ISO 8601. reason: the hospital's own words; they stay here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: str = Field(pattern=f"^{_STUDY.pattern}$")
    time: str = Field(max_length=40)
    reason: str = Field(max_length=MOST_REASON)


def mark_withdrawn(trainer: Path, study: str, *, reason: str) -> Mark:
    """Leave a study, durably; the first time and reason stay when it is left again.

    Raises:
        ConfigError: no name of a study. StorageError: the disk refuses.
    """
    if not _STUDY.fullmatch(study):
        raise ConfigError("no name of a study", found=study[:64], expected="lower-case letters, digits, - and _")
    found = withdrawn(trainer, study)
    if found is not None:
        return found
    mark = Mark(study=study, time=datetime.now(UTC).isoformat(timespec="seconds"), reason=reason[:MOST_REASON])
    make_private_folder(trainer / FOLDER)
    write_private(_path(trainer, study), mark.model_dump_json().encode())
    return mark


def withdrawn(trainer: Path, study: str) -> Mark | None:
    """The mark of a study that this site has left; None: it has not.

    Raises:
        ConfigError: the mark is damaged: then the site has left, whatever it says.
    """
    if not _STUDY.fullmatch(study) or not _path(trainer, study).exists():
        return None
    try:
        return Mark.model_validate_json(read_private(_path(trainer, study)))
    except ValidationError:
        raise ConfigError(f"the mark that this site has left {study} is damaged",
                          remedy=f"restore {FOLDER}/{study}.json from a backup") from None  # fmt: skip


def check_not_withdrawn(trainer: Path, study: str) -> None:
    """Refuse a study that this site has left.

    Raises:
        ProtocolError: it has.
    """
    if (found := withdrawn(trainer, study)) is not None:
        raise ProtocolError(f"this site has withdrawn from {study} for good", found=f"on {found.time[:10]}",
                            remedy="a study under another name, if both sides want one")  # fmt: skip


def _path(trainer: Path, study: str) -> Path:
    return trainer / FOLDER / f"{study}.json"

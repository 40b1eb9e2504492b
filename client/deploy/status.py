"""status.json of the courier: what a person at the site needs to know; written by presence, read by `site status`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from shared_model.errors import StorageError
from shared_model.private_files import read_private

STALE_S = 120.0  # presence writes at least once a minute while it lives


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LogStatus(_Part):
    """Of one of the site's audit logs: up to where the coordinator's log is recorded in it, and what is wrong."""

    recorded: int = 0
    words: str = ""


class StudyStatus(_Part):
    """The last event of a study."""

    number: int
    time: float
    round: int = 0
    severity: Literal["info", "warning", "error"] = "info"
    words: str = ""
    ended: bool = False


class CourierStatus(_Part):
    """How the courier is.

    time: when this was written; heard: when the coordinator answered last, None: never; seconds since 1970.
    stage, days_left, certificate: of the certificate; words: the line in one sentence; notices: what to look after.
    clock_ahead: this machine's clock less the coordinator's, seconds. offered: SHA-256 of protocols that name the site.
    """

    schema_version: Literal[1] = 1
    site: str
    time: float
    stage: str
    days_left: float | None = None
    certificate: str = ""
    connected: bool = False
    words: str
    notices: tuple[str, ...] = ()
    heard: float | None = None
    clock_ahead: float | None = None
    coordinator: str = ""
    coordinator_release: str = ""
    offered: tuple[str, ...] = ()
    studies: dict[str, StudyStatus] = {}
    logs: dict[str, LogStatus] = {}

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The file; None where presence has not run yet.

        Raises:
            StorageError: damaged, or unreadable.
        """
        if not path.exists():
            return None
        try:
            return cls.model_validate_json(read_private(path))
        except ValidationError:
            raise StorageError(f"{path} is damaged", remedy="start `mammofed site join`: it writes it anew") from None

    def is_stale(self, now: float) -> bool:
        """Whether presence no longer runs, by the look of it."""
        return not 0 <= now - self.time <= STALE_S

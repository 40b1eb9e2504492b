"""Who is there: heartbeats in memory, and in `present.json` for `mammofed server status`; kept by the control service.

Nothing depends on the file: after a restart of the coordinator it is whole again within one heartbeat.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from shared_model.certificates import Member, Role
from shared_model.control import (
    MAX_MEMBERS,
    MAX_PROTOCOLS,
    MAX_REPLY_BYTES,
    BeatRequest,
    Document,
    TrainerState,
    Words,
    plain,
)  # fmt: skip
from shared_model.private_files import read_private, write_private
from shared_model.protocol import Name, Sha256

FILE = "present.json"


class Sign(Document):
    """A member's last sign of life. time: the coordinator's clock; clock_ahead: the member's less that, in seconds.

    approved, declined: SHA-256 of protocols. words: what is wrong, empty when all is well.
    """

    role: Role
    time: float
    clock_ahead: float
    release: Annotated[str, Field(max_length=40)]
    trainer: TrainerState
    approved: tuple[Sha256, ...] = Field(default=(), max_length=MAX_PROTOCOLS)
    declined: tuple[Sha256, ...] = Field(default=(), max_length=MAX_PROTOCOLS)
    words: Words = ""


class Present(Document):
    """present.json. time: when it was written."""

    schema_version: Literal[1] = 1
    time: float
    members: dict[Name, Sign] = Field(max_length=MAX_MEMBERS)

    @classmethod
    def read(cls, path: Path) -> Present:
        """The file.

        Raises:
            StorageError: absent or unreadable. ControlError: damaged.
        """
        return cls.decode(read_private(path, limit=MAX_REPLY_BYTES))


class Roll:
    """Heartbeats of all members; safe between threads.

    Args:
        path: of `present.json`.
        clock: the coordinator's, seconds since 1970.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock, self._lock = path, clock, threading.Lock()
        self._signs: dict[str, Sign] = {}
        self._changed = False

    def seen(self, member: Member, beat: BeatRequest, *, offered: Collection[str], words: str = "") -> None:
        """Note a sign of life.

        Args:
            offered: SHA-256 of protocols; of others nothing is kept, so that no site fills the file.
            words: what is wrong with it.
        """
        now = self._clock()
        approved = tuple(sha256 for sha256 in dict.fromkeys(beat.approved) if sha256 in offered)
        declined = tuple(sha256 for sha256 in dict.fromkeys(beat.declined) if sha256 in offered)
        trainer = TrainerState(up=beat.trainer.up, device=plain(beat.trainer.device), key=beat.trainer.key)
        sign = Sign(role=member.role, time=now, clock_ahead=beat.time - now, release=plain(beat.release),
                    trainer=trainer, approved=approved, declined=declined, words=words[:400])  # fmt: skip
        with self._lock:
            self._signs[member.site] = sign
            self._changed = True

    def forget(self, site: str) -> None:
        """A member that left or was revoked."""
        with self._lock:
            self._changed = self._signs.pop(site, None) is not None or self._changed

    def present(self) -> dict[str, Sign]:
        """The last sign of each member."""
        with self._lock:
            return dict(self._signs)

    def write(self) -> None:
        """Write the file if anything has changed; called once a second.

        Raises:
            StorageError: the disk refuses; the next call tries again.
        """
        with self._lock:
            if not self._changed:
                return
            document = Present(time=self._clock(), members=dict(self._signs))
            self._changed = False
        try:
            write_private(self._path, document.encode())
        except BaseException:
            with self._lock:
                self._changed = True
            raise

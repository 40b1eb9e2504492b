"""The protocol in a run directory, read to be looked at: also one that another version of MammoFed froze.

Called by `reading`. A protocol of an earlier version has fewer fields, so that the model made of it today hashes to
something else. Whether a file was changed is therefore judged by the file's own values, and whether it is the run's by
the hash in the journal.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from server.monitor.rows import Rows
from shared_model.errors import MammoFedError
from shared_model.protocol import Protocol

NAME: Final = "protocol.json"
MOST: Final = 300  # characters of a fault: a protocol has many fields that may be wrong
SHORT: Final = 12  # digits of a hash that people compare


@dataclass(frozen=True, kw_only=True)
class Kept:
    """protocol: None where it says nothing for sure. sha256: that it was frozen under. fault: why there is none, in
    words; empty: it is not written yet. elsewhere: frozen by another version, which alone goes on with it."""

    protocol: Protocol | None = None
    sha256: str = ""
    fault: str = ""
    elsewhere: bool = False

    def beside(self, rows: Rows | None) -> Kept:
        """The same, held against what the journal says it was written under."""
        recorded = rows.meta.get("protocol_sha256") if rows is not None else None
        if self.protocol is not None and recorded is not None and recorded != self.sha256:
            return Kept(fault=f"{NAME} is another protocol than this journal was written under: it has the hash "
                        f"{self.sha256[:SHORT]}, the journal names {str(recorded)[:SHORT]}")  # fmt: skip
        if self.protocol is None and not self.fault and rows is not None and rows.started is not None:
            return Kept(fault=f"there is no {NAME}")
        return self


def read_kept(run_dir: Path) -> Kept:
    """The protocol of a run directory; nothing is raised for one that is damaged."""
    path = run_dir / NAME
    try:
        status = path.stat()
    except OSError:
        return Kept()
    try:
        protocol, sha256 = _read(path, status.st_mtime_ns, status.st_size)
    except MammoFedError as error:
        words = error.problem.replace(str(path), NAME)[:MOST]
        hashes = f": it hashes to {str(error.found)[:SHORT]} and says {str(error.expected)[:SHORT]}"
        return Kept(fault=words + (hashes if error.found and error.expected else ""))
    return Kept(protocol=protocol, sha256=sha256, elsewhere=sha256 != protocol.sha256)


@lru_cache(maxsize=64)
def _read(path: Path, stamp: int, size: int) -> tuple[Protocol, str]:
    return Protocol.read_kept(path)

"""Ledgers of schema 1 and 2, one JSON document replaced as a whole; read here, and written by no release any more."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from client.privacy.accountant import Account

Record = dict[str, Any]
GROUPS = ("train", "metrics")


def parse_legacy(data: bytes) -> list[Record]:
    """Entries of an old ledger, oldest first.

    Raises:
        ValueError, KeyError, TypeError, RecursionError, PrivacyError: damaged. A ledger that cannot be read is never
            taken for an empty one.
    """
    document = json.loads(data)
    version, entries = document["schema_version"], list[Record](document["entries"])
    if version not in (1, 2):
        raise ValueError(f"schema version {version}")
    # One flipped bit makes a sigma of 1 one of 9, and the epsilon a fraction of what was spent.
    if ("sha256" in document) != (version == 2) or (version == 2 and document["sha256"] != _checksum(entries)):
        raise ValueError("its checksum is not that of its entries")
    for position, record in enumerate(entries, start=1):
        if record["id"] != position or record["group"] not in GROUPS or record["state"] not in ("reserved", "settled"):
            raise ValueError(f"entry {position} is inconsistent")
        Account.from_lists([[record["noise_multiplier"], record["sample_rate"], record["steps"]]])
    return entries


def _checksum(entries: list[Record]) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()

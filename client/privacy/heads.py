"""The ledger's head as fields of an entry in the trainer's audit log, which the coordinator records; for `SiteRecord`.

An older copy of the ledger that was put back together with its anchor is told by this: the log goes on without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import ValidationError

from client.privacy.chain import RESTORE, Head
from client.privacy.ledger import Ledger
from shared_model.audit.entries import Value
from shared_model.errors import StorageError

LOG, SEQUENCE, SHA256 = "ledger", "ledger_sequence", "ledger_sha256"


def head_fields(ledger: Ledger | None) -> dict[str, Value]:
    """How far the ledger reaches; nothing before its first entry."""
    head = None if ledger is None else ledger.head()
    return {} if head is None else {LOG: head.log, SEQUENCE: head.sequence, SHA256: head.sha256}


def heads(fields: Iterable[Mapping[str, Value]]) -> list[Head]:
    """The heads in entries of an audit log, oldest first.

    Raises:
        StorageError: one is of a wrong form.
    """
    try:
        return [Head(log=entry[LOG], sequence=entry[SEQUENCE], sha256=entry[SHA256])  # type: ignore[arg-type]
                for entry in fields if LOG in entry]  # fmt: skip
    except (KeyError, ValidationError):
        raise StorageError("the audit log has a head of the ledger in a wrong form", remedy=RESTORE) from None


def last_head(fields: Iterable[Mapping[str, Value]]) -> Head | None:
    """The last of them; None where there is none."""
    found = heads(fields)
    return found[-1] if found else None

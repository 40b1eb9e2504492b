"""The audit log that each party keeps: append-only, hash-chained JSON lines whose signed heads the others record.

Used by the coordinator, the trainer and the courier. One entry is one line of canonical JSON:

    {"fields":{...},"kind":"round_closed","previous":"<64 hex>","salt":"<32 hex>","sequence":7,
     "sha256":"<64 hex>","time":"2026-11-26T05:00:00.000000Z"}                                    (in one line)

    content = SHA-256 of the same JSON without `previous` and `sha256`
    sha256  = SHA-256 of  "mammofed audit entry 1" 00 || previous (32 bytes) || content (32 bytes)

`previous` is the `sha256` of the line before, which covers all of it; 64 zeros in the first line. What that finds, and
by whom:

* a changed byte, a missing, added or moved line: by anybody, from the file alone (:func:`verify`);
* lines cut off at the end, or a history written anew by the log's owner, keys and all: by whoever holds a head that
  was signed before (:class:`SignedHead`). Heads go out with every round; the receiver recomputes the chain from the
  head that it recorded last, over hashes alone (:class:`Statement`), and finds a rewriting at the next exchange.

A head and a statement tell nothing of what is in the log: every entry is salted with 128 random bits.
"""

from shared_model.audit.entries import Entry, Value
from shared_model.audit.heads import Head, SignedHead, Statement
from shared_model.audit.log import AuditLog
from shared_model.audit.verify import Verified, verify

__all__ = ["AuditLog", "Entry", "Head", "SignedHead", "Statement", "Value", "Verified", "verify"]

"""Which patients an entry of the ledger is about: salted fingerprints of sets, and who is in which; used by the ledger.

A patient is 64 bits of HMAC-SHA-256 of her pseudonym under the ledger's own salt. Two patients who share them (one in
3e-12 among 10,000) are taken for one who is in the sets of both, so an accident counts too much and never too little.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

PART: Final = 4096  # patients in one line of the ledger: 44 KB

Digests = NDArray[np.uint64]  # [N], ascending, unique


@dataclass(frozen=True)
class Pattern:
    """Patients who are in exactly these sets. count: how many of those asked about."""

    sets: frozenset[str]
    count: int


def digests(pseudonyms: Iterable[str], *, salt: bytes) -> Digests:
    """What stands for patients in this ledger, and in no other: without `salt` nobody can tell who it is."""
    words = (hmac.digest(salt, pseudonym.encode(), "sha256")[:8] for pseudonym in pseudonyms)
    return np.unique(np.frombuffer(b"".join(words), dtype="<u8")).astype(np.uint64)


def fingerprint(patients: Digests) -> str:
    """Name of a set: equal for equal sets, whatever the order."""
    return hashlib.sha256(patients.astype("<u8").tobytes()).hexdigest()


def to_parts(patients: Digests) -> Iterator[str]:
    """Base64 texts of at most `PART` patients each."""
    for start in range(0, len(patients), PART):
        yield base64.b64encode(patients[start : start + PART].astype("<u8").tobytes()).decode("ascii")


def from_parts(parts: Iterable[str]) -> Digests:
    """The set that :func:`to_parts` wrote.

    Raises:
        ValueError: no such texts, or not in order.
    """
    try:
        data = b"".join(base64.b64decode(part, validate=True) for part in parts)
    except binascii.Error:
        raise ValueError("a set of patients is no base64") from None
    found = np.frombuffer(data, dtype="<u8").astype(np.uint64)
    if np.any(found[1:] <= found[:-1]):
        raise ValueError("a set of patients is not in order")
    return found


def patterns(of: Digests, sets: Mapping[str, Digests]) -> list[Pattern]:
    """The patients of a set by the sets that each is in; all of a kind have spent alike.

    O(N log N) for each set; a hospital has a handful of sets (one for each import of its cohort), thousands of patients
    and as many kinds as imports.
    """
    if not len(of):
        return []
    names = list(sets)
    if not names:
        return [Pattern(frozenset(), len(of))]
    inside = np.column_stack([np.isin(of, sets[name], assume_unique=True) for name in names])
    kinds, counts = np.unique(inside, axis=0, return_counts=True)
    return [Pattern(frozenset(name for name, there in zip(names, kind, strict=True) if there), int(count))
            for kind, count in zip(kinds, counts, strict=True)]  # fmt: skip

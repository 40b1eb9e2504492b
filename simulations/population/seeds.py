"""Random generators and identifiers that depend only on (seed, hospital, woman, purpose), never on order or workers."""

from __future__ import annotations

import hashlib

import numpy as np


def label_key(text: str) -> int:
    """A word as a 32-bit key."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def generator(seed: int, *keys: int) -> np.random.Generator:
    """An independent generator for `keys` (SeedSequence spawn keys)."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=keys)))


def uid(*parts: object) -> str:
    """A DICOM UID under 2.25 (PS3.5 B.2) from the first 128 bits of the SHA-256 of `parts`."""
    digest = hashlib.sha256("/".join(str(p) for p in parts).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"

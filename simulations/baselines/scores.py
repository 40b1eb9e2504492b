"""Scores of each job's chosen model on women that it never trained on: the coordinator's `test` and each site's own.

Only a simulator can put them side by side: it owns all parties' folders. In a federation a site's scores stay there.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared_model.errors import StorageError

FILE = "scores.npz"
HELD_OUT = "held_out"
MAX_BYTES = 256 << 20  # ten million women
PARTS = ("labels", "fused", "image", "clinical")


@dataclass(frozen=True, kw_only=True)
class PartyScores:
    """Logits of one party's test women: labels uint8 [N]; fused, image, clinical float64 [N]."""

    labels: NDArray[np.uint8]
    fused: NDArray[np.float64]
    image: NDArray[np.float64]
    clinical: NDArray[np.float64]


def write_scores(path: Path, scores: Mapping[str, PartyScores]) -> None:
    """Write all parties' scores, all or nothing."""
    arrays = {f"{party}/{part}": getattr(found, part) for party, found in scores.items() for part in PARTS}
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, **arrays)
    temporary.replace(path)


def read_scores(path: Path) -> dict[str, PartyScores]:
    """Read them back.

    Raises:
        StorageError: absent, too large or damaged.
    """
    again = "run the comparison again: it makes what is missing"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise StorageError(f"{path} is too large", expected=f"at most {MAX_BYTES} bytes", remedy=again)
        with np.load(path, allow_pickle=False) as archive:
            parties = sorted({name.rsplit("/", 1)[0] for name in archive.files})
            return {
                party: PartyScores(**{part: archive[f"{party}/{part}"] for part in PARTS}) for party in parties
            }
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StorageError(f"{path} cannot be read: {type(error).__name__}", remedy=again) from None

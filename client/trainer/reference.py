"""The evaluator's scores of the initial weights on `test`, kept for the paired comparison with the chosen model.

One NumPy file (float64 [N], logits) with its own SHA-256 behind it: a changed byte would shift a confidence interval,
and nobody would see it. Written and read by `evaluate` alone; it never leaves the evaluator.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared_model.errors import StorageError
from shared_model.private_files import read_private, write_private

MAX_BYTES: Final = 64 << 20  # eight million women
DIGEST_BYTES: Final = hashlib.sha256().digest_size


def keep_reference(path: Path, scores: NDArray[np.float64]) -> None:
    """Write the scores, durably and whole or not at all.

    Raises:
        StorageError: the disk refuses.
    """
    stream = io.BytesIO()
    np.save(stream, np.asarray(scores, dtype=np.float64), allow_pickle=False)
    data = stream.getvalue()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError("the evaluator cannot keep its reference scores", found=error.strerror,
                           remedy="free some space, then resume the study") from None  # fmt: skip
    write_private(path, data + hashlib.sha256(data).digest())


def read_reference(path: Path, *, women: int) -> NDArray[np.float64]:
    """The scores of `women` women, as they were written.

    Raises:
        StorageError: unreadable, changed, or of other women.
    """
    data = read_private(path, limit=MAX_BYTES)
    body, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise StorageError(
            "the evaluator's reference scores are damaged", found="another SHA-256 than was written",
            remedy=f"restore {path.name}; without that file the comparison with the initial weights is left out",
        )  # fmt: skip
    scores = np.load(io.BytesIO(body), allow_pickle=False)
    if scores.shape != (women,):
        raise StorageError(
            "the evaluator's reference scores are of another cohort", found=f"{len(scores)} women", expected=women,
            remedy="give the evaluator the cohort that it began with",
        )  # fmt: skip
    return np.asarray(scores, dtype=np.float64)

"""Which patients enter which step; called by `local`. Private training: Poisson. Otherwise: shuffled mini-batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from client.privacy.randomness import Randomness

Rows = NDArray[np.int64]


def poisson_batches(indices: Rows, *, sample_rate: float, steps: int, randomness: Randomness) -> Iterator[Rows]:
    """`steps` independent Poisson samples of `indices`; some may be empty and count all the same.

    Each patient enters each step with probability q by herself. The accountant's amplification holds for this only:
    batches of a shuffled list leak up to four times more at the same noise (arXiv:2411.10614).
    """
    for _ in range(steps):
        yield indices[randomness.poisson_sample(len(indices), rate=sample_rate)]


def shuffled_batches(indices: Rows, *, sample_rate: float, steps: int, randomness: Randomness) -> Iterator[Rows]:
    """`steps` mini-batches of round(q n) patients (at least 1), pass after pass over a freshly shuffled list."""
    size = max(1, round(sample_rate * len(indices)))
    queue: Rows = np.empty(0, dtype=np.int64)
    for _ in range(steps):
        while len(queue) < size and len(indices):
            queue = np.concatenate([queue, indices[randomness.permutation(len(indices))]])
        yield queue[:size]
        queue = queue[size:]


def oversample_positives(indices: Rows, labels: NDArray[np.uint8]) -> Rows:
    """Repeat women with cancer a whole number of times, until they are about as many as the others.

    Args:
        indices: positions of training patients in the cohort.
        labels: 0 or 1 of the whole cohort.

    Only without privacy: a repeated woman is clipped once per copy. A site without positives is left as it is.
    """
    positive = indices[labels[indices] == 1]
    if len(positive) == 0:
        return indices
    copies = max(1, round((len(indices) - len(positive)) / len(positive)))
    return np.concatenate([indices, np.repeat(positive, copies - 1)])

"""What an audit measures with: generators that keep a record or are silent, and women made up for the purpose.

They stand where `train_round` takes a generator and a cohort. Nothing in the product knows of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.privacy.randomness import CPU, Randomness, SecureRandomness
from client.training.features import Films
from shared_model.cohort.batch import PatientBatch


class Silent(SecureRandomness):
    """No noise: what leaves is the exact clipped sum. Says that it is secret, or training would refuse it."""

    def normal(self, count: int, *, std: float, device: torch.device = CPU) -> Tensor:
        """Zeros."""
        return torch.zeros(count, device=device)


@dataclass
class Recorder:
    """Passes the product's own generator on, and writes down what was asked of it.

    noise: (count, std) of each call. samples: (population, rate, members) of each Poisson sample.
    """

    inner: Randomness
    noise: list[tuple[int, float]] = field(default_factory=list)
    samples: list[tuple[int, float, NDArray[np.int64]]] = field(default_factory=list)

    @property
    def secret(self) -> bool:
        """As the inner one."""
        return self.inner.secret

    def normal(self, count: int, *, std: float, device: torch.device = CPU) -> Tensor:
        """The inner one's noise."""
        self.noise.append((count, std))
        return self.inner.normal(count, std=std, device=device)

    def poisson_sample(self, population: int, *, rate: float) -> NDArray[np.int64]:
        """The inner one's sample."""
        members = self.inner.poisson_sample(population, rate=rate)
        self.samples.append((population, rate, members))
        return members

    def permutation(self, population: int) -> NDArray[np.int64]:
        """The inner one's order."""
        return self.inner.permutation(population)

    def generator(self) -> torch.Generator:
        """The inner one's generator."""
        return self.inner.generator()


class Women:
    """Women in memory, as a cohort. `seen` lists the positions that training asked for, in order."""

    def __init__(self, batch: PatientBatch) -> None:
        self._all = batch
        self.seen: list[int] = []

    def __len__(self) -> int:
        return len(self._all)

    @property
    def labels(self) -> NDArray[np.uint8]:
        """0 or 1 per woman; 0 where the label cannot be read."""
        return np.asarray(np.nan_to_num(self._all.labels_B.numpy()), dtype=np.uint8)

    def batch(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> PatientBatch:
        """Tensors of the women at these positions."""
        rows = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        self.seen += rows.tolist()
        a = self._all
        return PatientBatch(a.pixels_BVCHW[rows], a.view_mask_BV[rows], a.clinical_BF[rows], a.clinical_mask_B[rows],
                            a.labels_B[rows])  # fmt: skip

    def rows(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> PatientBatch:
        """The same without pixels."""
        whole = self.batch(indices)
        return replace(whole, pixels_BVCHW=torch.empty(len(whole), whole.view_mask_BV.shape[1], 0, 0, 0))

    @property
    def all(self) -> PatientBatch:
        """Everybody."""
        return self._all


def taken(cohort: Films, indices: Sequence[int] | NDArray[np.int64]) -> Women:
    """Some of a cohort's women, copied into memory."""
    return Women(cohort.batch(indices))


def unreadable(count: int, like: PatientBatch) -> Women:
    """Women whose label is no number: their gradients are none, so that all that leaves is noise.

    Training must leave such a woman out (her NaN would else make every weight NaN, and show that she is there).
    """
    return Women(PatientBatch(
        torch.zeros(count, *like.pixels_BVCHW.shape[1:]), torch.zeros(count, like.view_mask_BV.shape[1]).bool(),
        torch.zeros(count, like.clinical_BF.shape[1]), torch.ones(count).bool(), torch.full((count,), torch.nan),
    ))  # fmt: skip


def joined(parts: Sequence[PatientBatch]) -> Women:
    """All women of the parts, in order."""
    pixels, views, table, table_mask, labels = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("pixels_BVCHW", "view_mask_BV", "clinical_BF", "clinical_mask_B", "labels_B")
    )
    return Women(PatientBatch(pixels, views, table, table_mask, labels))

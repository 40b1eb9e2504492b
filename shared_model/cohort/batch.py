"""Tensors of some patients, as the model takes them; made by the cohort, used by training, evaluation and explanation.

Shape letters: B patients, V = 4 views (L_CC, L_MLO, R_CC, R_MLO), C = 2 channels, H W pixels, F clinical features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shared_model.cohort.views import VIEWS

__all__ = ["VIEWS", "OtherInput", "PatientBatch"]


@dataclass(frozen=True)
class OtherInput:
    """A further modality of B patients (see `shared_model.fusion.modalities`). values: float32 [B, ...], zeros where it
    is missing. mask_B: bool, True where the patient has it."""

    values: Tensor
    mask_B: Tensor


@dataclass(frozen=True)
class PatientBatch:
    """B patients.

    pixels_BVCHW: float32 in [0, 1]; zeros where a view is missing.
    view_mask_BV: bool, True where the view exists.
    clinical_BF: float32, encoded by the contract (scaled value * known, one-hot levels, missing flags).
    clinical_mask_B: bool, True where the patient has a clinical row.
    labels_B: float32 in {0, 1}.
    others: further modalities by name, where the site has some (`shared_model.cohort.others`).
    """

    pixels_BVCHW: Tensor
    view_mask_BV: Tensor
    clinical_BF: Tensor
    clinical_mask_B: Tensor
    labels_B: Tensor
    others: Mapping[str, OtherInput] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.labels_B.shape[0])

    @property
    def modality_mask_B2(self) -> Tensor:
        """float32 in {0, 1}: column 0 image present, column 1 clinical row present."""
        return torch.stack([self.view_mask_BV.any(1), self.clinical_mask_B], dim=1).float()

    def patient(self, index: int) -> PatientBatch:
        """The batch of one patient (B = 1)."""
        return self.select(slice(index, index + 1))

    def select(self, chosen: slice | Tensor) -> PatientBatch:
        """The patients in a slice or at int64 positions."""
        return self.each(lambda tensor: tensor[chosen])

    def each(self, change: Callable[[Tensor], Tensor]) -> PatientBatch:
        """The batch with every tensor changed in the same way (moved, pinned, cut along B)."""
        return PatientBatch(
            change(self.pixels_BVCHW), change(self.view_mask_BV), change(self.clinical_BF),
            change(self.clinical_mask_B), change(self.labels_B),
            {name: OtherInput(change(one.values), change(one.mask_B)) for name, one in self.others.items()},
        )  # fmt: skip

    def to(self, device: torch.device) -> PatientBatch:
        """The same patients on another device."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

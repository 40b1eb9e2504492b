"""Tensors of some patients, as the model takes them; made by the cohort, used by training, evaluation and explanation.

Shape letters: B patients, V = 4 views (L_CC, L_MLO, R_CC, R_MLO), C = 2 channels, H W pixels, F clinical features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shared_model.cohort.views import VIEWS

__all__ = ["VIEWS", "PatientBatch"]


@dataclass(frozen=True)
class PatientBatch:
    """B patients.

    pixels_BVCHW: float32 in [0, 1]; zeros where a view is missing.
    view_mask_BV: bool, True where the view exists.
    clinical_BF: float32, encoded by the contract (scaled value * known, one-hot levels, missing flags).
    clinical_mask_B: bool, True where the patient has a clinical row.
    labels_B: float32 in {0, 1}.
    """

    pixels_BVCHW: Tensor
    view_mask_BV: Tensor
    clinical_BF: Tensor
    clinical_mask_B: Tensor
    labels_B: Tensor

    def __len__(self) -> int:
        return int(self.labels_B.shape[0])

    @property
    def modality_mask_B2(self) -> Tensor:
        """float32 in {0, 1}: column 0 image present, column 1 clinical row present."""
        return torch.stack([self.view_mask_BV.any(1), self.clinical_mask_B], dim=1).float()

    def patient(self, index: int) -> PatientBatch:
        """The batch of one patient (B = 1)."""
        part = slice(index, index + 1)
        return PatientBatch(
            self.pixels_BVCHW[part], self.view_mask_BV[part], self.clinical_BF[part], self.clinical_mask_B[part],
            self.labels_B[part],
        )  # fmt: skip

    def to(self, device: torch.device) -> PatientBatch:
        """The same patients on another device."""
        return PatientBatch(
            *(t.to(device, non_blocking=True) for t in (
                self.pixels_BVCHW, self.view_mask_BV, self.clinical_BF, self.clinical_mask_B, self.labels_B,
            ))
        )  # fmt: skip

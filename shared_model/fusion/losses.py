"""Loss of one patient, from that patient and public constants alone; used by every gradient engine and pre-training.

Nothing here averages over the batch or weighs by what the batch holds: then one patient would move the others'
gradients and clipping would not bound what she contributes. Engines sum or average the result themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from shared_model.cohort.batch import PatientBatch
from shared_model.fusion.config import Objective
from shared_model.fusion.model import FusionOutput
from shared_model.protocol import LossTerms


def patient_loss_B(output: FusionOutput, batch: PatientBatch, *, terms: LossTerms, objective: Objective) -> Tensor:
    """Loss [B], dimensionless, at least 0.

    `image`: of the image logit alone, 0 for a patient without films (the table neither helps nor disturbs).
    `clinical`: of the clinical logit alone, 0 for a patient without a clinical row.
    `fusion`: of the fused logit, plus `terms.auxiliary` times the losses of the image and clinical logits where that
        modality is there: they keep either branch from being carried by the other.
    """
    labels_B = batch.labels_B
    present_B2 = batch.modality_mask_B2
    image_B = present_B2[:, 0] * logit_loss(output.image_logit_B, labels_B, terms=terms)
    if objective == "image":
        return image_B
    table_B = present_B2[:, 1] * logit_loss(output.clinical_logit_B, labels_B, terms=terms)
    if objective == "clinical":
        return table_B
    return logit_loss(output.logit_B, labels_B, terms=terms) + terms.auxiliary * (image_B + table_B)


def logit_loss(logit: Tensor, label: Tensor, *, terms: LossTerms) -> Tensor:
    """Element-wise weighted cross-entropy or focal loss (Lin et al. 2017, arXiv 1708.02002, eq. 5) of a logit."""
    if terms.kind == "bce":
        weight = torch.as_tensor(terms.pos_weight, dtype=logit.dtype, device=logit.device)
        return functional.binary_cross_entropy_with_logits(logit, label, pos_weight=weight, reduction="none")
    signed = (2 * label - 1) * logit
    balance = terms.focal_alpha * label + (1 - terms.focal_alpha) * (1 - label)
    # (1 - p_t)^gamma as exp(gamma log(1 - p_t)): its gradient stays finite at p_t = 1 for every gamma.
    modulation = torch.exp(terms.focal_gamma * functional.logsigmoid(-signed))
    return balance * modulation * -functional.logsigmoid(signed)

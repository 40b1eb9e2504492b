"""What the score would be without the films, and without the table; shown beside the gate, used by case reports.

The gate says how much of the sum each modality gets, not what it brought: it did not follow the change of the logit
when a modality was removed (rank correlation -0.01). So both are shown.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from shared_model.cohort.batch import PatientBatch
from shared_model.fusion import FusionModel


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Of one woman, in logits. full: all that is there. without: modality -> logit with it masked out, None where it is
    missing or the only one. gate: modality -> weight in [0, 1]. prior: with nothing. views: view -> logit without that
    film, None where it is the only one."""

    full: float
    without: dict[str, float | None]
    gate: dict[str, float]
    prior: float
    views: dict[str, float | None]

    def effect(self, name: str) -> float | None:
        """What a modality or a view adds to the logit, given all the rest."""
        other = (self.without | self.views).get(name)
        return None if other is None else self.full - other


@torch.no_grad()
def leave_out(model: FusionModel, woman: PatientBatch) -> Ablation:
    """Score one woman (B = 1) with everything, without each modality, and without each film."""
    from shared_model.cohort.views import VIEWS

    model.eval()
    output = model(woman)
    full = float(output.logit_B[0])
    films, table = bool(woman.view_mask_BV.any()), bool(woman.clinical_mask_B[0])
    no_films = replace(woman, view_mask_BV=torch.zeros_like(woman.view_mask_BV))
    no_table = replace(woman, clinical_mask_B=torch.zeros_like(woman.clinical_mask_B))
    both = films and table
    without: dict[str, float | None] = {
        "image": float(model(no_films).logit_B[0]) if both else None,
        "clinical": float(model(no_table).logit_B[0]) if both else None,
    }
    views: dict[str, float | None] = {}
    for index in woman.view_mask_BV[0].nonzero().flatten().tolist():
        mask = woman.view_mask_BV.clone()
        mask[0, index] = False
        lone = not bool(mask.any())
        views[VIEWS[index]] = None if lone else float(model(replace(woman, view_mask_BV=mask)).logit_B[0])
    gate = {"image": float(output.gate_B2[0, 0]), "clinical": float(output.gate_B2[0, 1])}
    return Ablation(full=full, without=without, gate=gate, prior=model.prior_logit, views=views)

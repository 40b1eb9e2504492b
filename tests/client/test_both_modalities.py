"""What a trained model rests on: giving women other women's films, or other women's tables, costs it AUC."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from client.training.local import randomness_for, train_round
from shared_model.cohort.batch import PatientBatch
from shared_model.evaluation.auc import auc_interval
from shared_model.fusion import FusionModel

Make = Callable[..., Any]
TRAINED_ON, TESTED = 120, 200


def with_two_signals(plain: PatientBatch, seed: int) -> PatientBatch:
    """Films brighter and a first field higher where there is cancer, each with noise of its own: neither is enough."""
    g, ill = torch.Generator().manual_seed(seed), plain.labels_B
    bright = 0.5 + 0.25 * ill + 0.2 * torch.randn(len(ill), generator=g)
    pixels = bright.view(-1, 1, 1, 1, 1) + 0.1 * torch.randn(plain.pixels_BVCHW.shape, generator=g)
    clinical = torch.randn(plain.clinical_BF.shape, generator=g)
    clinical[:, 0] += 1.2 * ill
    every = torch.ones_like(plain.view_mask_BV), torch.ones_like(plain.clinical_mask_B)
    return PatientBatch(pixels, every[0], clinical, every[1], ill)


def auc(model: FusionModel, women: PatientBatch) -> float:
    model.eval()
    with torch.no_grad():
        found = auc_interval(women.labels_B.numpy(), model(women).logit_B.numpy(), confidence=0.95).value
    assert found is not None
    return found


def test_permuting_either_modality_hurts(
    tiny_model: Make, memory_patients: Make, patients: Make, small_protocol: Make
) -> None:
    phase = {"name": "fusion", "rounds": 3, "objective": "fusion", "learning_rate": 0.01, "encoder_rate": 0.3}
    protocol = small_protocol(private=False, training__steps_per_round=15, training__optimizer="adamw",
                              training__phases=[phase])  # fmt: skip
    model, cohort = tiny_model(zeros=True), memory_patients(TRAINED_ON)
    cohort = replace(cohort, all=with_two_signals(cohort.all, 1))
    for number in (1, 2, 3):
        train_round(model=model, cohort=cohort, indices=range(TRAINED_ON), protocol=protocol, site="a",
                    round_number=number, device=torch.device("cpu"),
                    randomness=randomness_for(protocol, site="a", round_number=number))  # fmt: skip
    women = with_two_signals(patients(TESTED, seed=2), 3)
    others = torch.randperm(TESTED, generator=torch.Generator().manual_seed(4))
    whole = auc(model, women)  # 0.84; with others' films 0.69, with others' tables 0.65
    assert whole > 0.75
    assert auc(model, replace(women, pixels_BVCHW=women.pixels_BVCHW[others])) < whole - 0.05
    assert auc(model, replace(women, clinical_BF=women.clinical_BF[others])) < whole - 0.05

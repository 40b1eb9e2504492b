"""Shared by the tests of a site: a small study, a real (tiny) fusion model, and patients held in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from shared_model.cohort.batch import PatientBatch
from shared_model.fusion import FusionConfig, FusionModel, build_model
from shared_model.protocol import Protocol

F, H, W = 12, 40, 32


@dataclass(frozen=True)
class MemoryPatients:
    """A cohort in memory: what `train_round` needs of the real one."""

    all: PatientBatch

    def __len__(self) -> int:
        return len(self.all)

    @property
    def labels(self) -> np.ndarray[Any, Any]:
        return self.all.labels_B.numpy().astype(np.uint8)

    def batch(self, indices: Sequence[int]) -> PatientBatch:
        rows = torch.as_tensor(indices, dtype=torch.int64)
        a = self.all
        return PatientBatch(a.pixels_BVCHW[rows], a.view_mask_BV[rows], a.clinical_BF[rows], a.clinical_mask_B[rows],
                            a.labels_B[rows])  # fmt: skip

    def rows(self, indices: Sequence[int]) -> PatientBatch:
        whole = self.batch(indices)
        return replace(whole, pixels_BVCHW=torch.empty(len(whole), 4, 0, 0, 0))


def make_patients(count: int, *, seed: int = 0, height: int = H, width: int = W, features: int = F) -> PatientBatch:
    """Ragged bags, women without films and women without a table row; both labels."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(count, 4, generator=g) < 0.75
    mask[0] = True
    if count > 3:
        mask[1] = torch.tensor([True, False, False, False])
        mask[2] = False  # table only
    table = torch.rand(count, generator=g) < 0.8
    table = table | ~mask.any(1)
    if count > 3:
        table[3], mask[3] = False, torch.tensor([False, True, True, False])
    labels = (torch.arange(count) % 3 == 0).float()
    pixels = torch.rand(count, 4, 2, height, width, generator=g) + 0.3 * labels.view(-1, 1, 1, 1, 1)
    pixels = pixels * mask.view(count, 4, 1, 1, 1)
    clinical = torch.randn(count, features, generator=g) * table.unsqueeze(1)
    return PatientBatch(pixels, mask, clinical, table, labels)


def make_model(fusion: str = "gated", *, seed: int = 1, zeros: bool = False) -> FusionModel:
    """A tiny fusion model; unless `zeros`, no layer is left at zero, so that every gradient path is alive."""
    config = FusionConfig(size="tiny", fusion=fusion, n_clinical=F, height=H, width=W)  # type: ignore[arg-type]
    model = build_model(config, seed=seed, prevalence=0.3)
    if not zeros:
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                if not p.any():
                    p.copy_(0.1 * torch.randn(p.shape, generator=g))
    return model


def make_protocol(*, private: bool = True, **changes: Any) -> Protocol:
    """A small study of two sites. `changes`: dotted names with `__`, e.g. training__steps_per_round=3."""
    values: dict[str, Any] = {
        "study": "unit", "release": "0.1.0", "seed": 7,
        "contract": {"version": "1", "sha256": "0" * 64, "n_features": F},
        "pipeline": {"sha256": "1" * 64, "height": H, "width": W, "spacing_mm": 4.0},
        "model": {"size": "tiny", "fusion": "gated"},
        "initial_weights": {"sha256": "2" * 64, "origin": "random", "recipe": "test"},
        "loss": {"kind": "bce", "prevalence": 0.3, "pos_weight": 2.0, "focal_gamma": 2.0, "focal_alpha": 0.5,
                 "auxiliary": 0.5},
        "training": {
            "engine": "loop" if private else "batch", "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0,
            "sample_rate": 0.25, "steps_per_round": 4, "decay": "constant", "gradient_clip": 1.0, "proximal_mu": 0.0,
            "ema_decay": 0.0, "precision": "fp32", "oversampling": "none",
            "phases": [{"name": "image", "rounds": 2, "objective": "image", "learning_rate": 0.05, "encoder_rate": 1.0},
                       {"name": "fusion", "rounds": 3, "objective": "fusion", "learning_rate": 0.05,
                        "encoder_rate": 0.1}],
            "augmentation": {"enabled": False, "rotation_degrees": 5.0, "shift": 0.02, "scale": 0.02,
                             "vertical_flip": 0.5, "elastic": 0.01, "intensity": 0.1, "view_dropout": 0.1,
                             "modality_dropout": 0.1, "feature_dropout": 0.1},
        },
        "privacy": {"mode": "patient" if private else "none", "clip": 1.0, "noise_multiplier": 1.0 if private else 0.0,
                    "epsilon": 8.0, "delta": 1e-5, "metrics": "none", "metrics_noise_multiplier": 5.0,
                    "metrics_bins": 16},
        "federation": {"strategy": "fedavg", "server_learning_rate": 1.0, "server_beta_1": 0.9, "server_beta_2": 0.99,
                       "server_tau": 1e-3, "sites": [{"name": "a", "patients": 40, "weight": 1.0},
                                                     {"name": "b", "patients": 20, "weight": 1.0}],
                       "sites_per_round": 2, "quorum": 1, "deadline_s": 60.0, "attempts": 1},
        "evaluation": {"selection_rule": "last", "every": 1, "specificity": 0.85, "confidence": 0.95, "bootstrap": 0,
                       "collapse_auc": 0.5},
    }  # fmt: skip
    for name, value in changes.items():
        place, *path = name.split("__")
        target = values
        for part in [place, *path][:-1]:
            target = target[part]
        target[[place, *path][-1]] = value
    return Protocol.create(values)


@pytest.fixture
def patients() -> Callable[..., PatientBatch]:
    return make_patients


@pytest.fixture
def memory_patients() -> Callable[..., MemoryPatients]:
    return lambda *args, **kwargs: MemoryPatients(make_patients(*args, **kwargs))


@pytest.fixture
def tiny_model() -> Callable[..., FusionModel]:
    return make_model


@pytest.fixture
def small_protocol() -> Callable[..., Protocol]:
    return make_protocol


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)

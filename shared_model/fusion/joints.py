"""The four ways to join image and table, behind one call; used by the fusion model.

Each gives the *evidence*: log odds beyond the public prior. With one modality alone the evidence is exactly that
modality's own, and at initialisation (last layers zero) the joint evidence is exactly the image's, so that a study
starts at what its pre-trained image branch knows. Letters: B patients, D embedding width, F clinical features.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared_model.fusion.attention import ViewBag, masked_softmax
from shared_model.fusion.config import FusionConfig


@dataclass(frozen=True)
class Evidence:
    """What a joint reads: tokens are zero and evidences are 0 where `present_B2` (bool: image, clinical) says no."""

    image_BD: Tensor
    clinical_BD: Tensor
    image_B: Tensor
    clinical_B: Tensor
    present_B2: Tensor
    views_BVD: Tensor
    view_mask_BV: Tensor
    row_BF: Tensor

    @property
    def both_B(self) -> Tensor:
        """float 1 where image and table are both there."""
        return self.present_B2.all(dim=1).to(self.image_B.dtype)


class Joint(nn.Module):
    """Base of the joints."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Joined evidence [B] and gate [B, 2], whose present entries sum to 1."""


def _equal_gate(present_B2: Tensor) -> Tensor:
    return masked_softmax(torch.zeros_like(present_B2, dtype=torch.float32), present_B2)


class _Head(nn.Module):
    """Two-layer perceptron [B, n] -> [B]; its last layer starts at zero (see `model.build_model`)."""

    def __init__(self, inward: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inward, hidden)
        self.final = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.final(functional.silu(self.hidden(x))).squeeze(-1)  # type: ignore[no-any-return]


class GatedJoint(Joint):
    """Two-token gated attention (default): evidence = 2 (g_i e_i + g_c e_c) + joint([g_i z_i ; g_c z_c]).

    The gate says per patient how much image and table counted; the factor 2 lets two equal voices add up, as the log
    odds of conditionally independent findings do. With one modality: its gate is 1, the factor 1, the joint term gone.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__(config)
        spec = config.spec
        self.gate_hidden = nn.Linear(2 * spec.embedding, spec.attention)
        self.gate_final = nn.Linear(spec.attention, 2)
        self.head = _Head(2 * spec.embedding, spec.attention)

    def forward(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        tokens = torch.cat([evidence.image_BD, evidence.clinical_BD], dim=1)
        score_B2 = self.gate_final(torch.tanh(self.gate_hidden(tokens)))
        gate_B2 = masked_softmax(score_B2, evidence.present_B2)
        image, table = gate_B2[:, 0], gate_B2[:, 1]
        both = evidence.both_B
        weighed = torch.cat([image.unsqueeze(1) * evidence.image_BD, table.unsqueeze(1) * evidence.clinical_BD], dim=1)
        voices = (1 + both) * (image * evidence.image_B + table * evidence.clinical_B)
        return voices + both * self.head(weighed), gate_B2


class EarlyJoint(Joint):
    """Early: the raw clinical row beside the pooled image token into one perceptron."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__(config)
        self.head = _Head(config.spec.embedding + config.n_clinical, config.spec.hidden)

    def forward(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        both = evidence.both_B
        joined = self.head(torch.cat([evidence.image_BD, evidence.row_BF], dim=1))
        return evidence.image_B + (1 - both) * evidence.clinical_B + both * joined, _equal_gate(evidence.present_B2)


class MidJoint(Joint):
    """Mid: the clinical token scales and shifts the view descriptors (FiLM, arXiv 1709.07871) before pooling.

    The bag is its own: hooks lose the per-sample gradient of a layer that was called twice but used once, as the image
    branch's bag would be in an image phase.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__(config)
        self.film = nn.Linear(config.spec.embedding, 2 * config.spec.embedding)
        self.bag = ViewBag(config.spec.embedding, config.spec.attention)
        self.head = _Head(config.spec.embedding, config.spec.attention)

    def forward(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        scale, shift = self.film(evidence.clinical_BD).unsqueeze(1).chunk(2, dim=-1)
        pooled_BD, _ = self.bag(evidence.views_BVD * (1 + scale) + shift, evidence.view_mask_BV)
        both = evidence.both_B
        joined = both * self.head(pooled_BD)
        return evidence.image_B + (1 - both) * evidence.clinical_B + joined, _equal_gate(evidence.present_B2)


class LateJoint(Joint):
    """Late: the evidences add up; no parameter of its own."""

    def forward(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        return evidence.image_B + evidence.clinical_B, _equal_gate(evidence.present_B2)


JOINTS: dict[str, type[Joint]] = {
    "gated": GatedJoint, "early": EarlyJoint, "mid": MidJoint, "late": LateJoint,
}  # fmt: skip

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
class OtherEvidence:
    """What a joint reads of a further modality; zeros where it is missing."""

    token_BD: Tensor
    evidence_B: Tensor
    present_B: Tensor


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
    others: tuple[OtherEvidence, ...] = ()

    @property
    def both_B(self) -> Tensor:
        """float 1 where image and table are both there."""
        return self.present_B2.all(dim=1).to(self.image_B.dtype)

    @property
    def present_BM(self) -> Tensor:
        """bool [B, M]: image, clinical, then the further modalities."""
        return torch.cat([self.present_B2, *(one.present_B.unsqueeze(1) for one in self.others)], dim=1)

    @property
    def evidences(self) -> list[Tensor]:
        """M evidences [B], in that order."""
        return [self.image_B, self.clinical_B, *(one.evidence_B for one in self.others)]

    @property
    def tokens(self) -> list[Tensor]:
        """M tokens [B, D], in that order."""
        return [self.image_BD, self.clinical_BD, *(one.token_BD for one in self.others)]


class Joint(nn.Module):
    """Base of the joints."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Joined evidence [B] and gate [B, M] (image, clinical, further ones), whose present entries sum to 1."""


def _equal_gate(present_BM: Tensor) -> Tensor:
    return masked_softmax(torch.zeros_like(present_BM, dtype=torch.float32), present_BM)


class _Head(nn.Module):
    """Two-layer perceptron [B, n] -> [B]; its last layer starts at zero (see `model.build_model`)."""

    def __init__(self, inward: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inward, hidden)
        self.final = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.final(functional.silu(self.hidden(x))).squeeze(-1)  # type: ignore[no-any-return]


class GatedJoint(Joint):
    """Gated attention over M tokens (default; M is 2): evidence = n sum(g_m e_m) + joint([g_m z_m]).

    n is how many modalities a patient has. The gate says per patient how much each counted; the factor n lets equal
    voices add up, as the log odds of conditionally independent findings do. With one modality: its gate is 1, the
    factor 1, the joint term gone. A further modality (`modalities`) is one token more and nothing else.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__(config)
        spec = config.spec
        tokens = 2 + len(config.others)
        self.gate_hidden = nn.Linear(tokens * spec.embedding, spec.attention)
        self.gate_final = nn.Linear(spec.attention, tokens)
        self.head = _Head(tokens * spec.embedding, spec.attention)

    def forward(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        tokens = torch.cat(evidence.tokens, dim=1)
        score_BM = self.gate_final(torch.tanh(self.gate_hidden(tokens)))
        present_BM = evidence.present_BM
        gate_BM = masked_softmax(score_BM, present_BM)
        weights = gate_BM.unbind(dim=1)
        weighed = torch.cat([g.unsqueeze(1) * z for g, z in zip(weights, evidence.tokens, strict=True)], dim=1)
        count_B = present_BM.sum(dim=1).to(gate_BM.dtype)
        total_B = torch.zeros_like(evidence.image_B)
        for weight_B, evidence_B in zip(weights, evidence.evidences, strict=True):
            total_B = total_B + weight_B * evidence_B
        several_B = (count_B > 1).to(gate_BM.dtype)
        return count_B * total_B + several_B * self.head(weighed), gate_BM


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
        joined = evidence.image_B + evidence.clinical_B
        for one in evidence.others:
            joined = joined + one.evidence_B
        return joined, _equal_gate(evidence.present_BM)


JOINTS: dict[str, type[Joint]] = {
    "gated": GatedJoint, "early": EarlyJoint, "mid": MidJoint, "late": LateJoint,
}  # fmt: skip

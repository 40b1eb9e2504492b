"""Attention over what a patient has: views of her exam and the two modalities; used by the fusion model.

Hand-written from Linear, because ready-made attention layers mix patients in per-sample gradients (opacus issue 650).
A masked entry gets weight exactly 0 and the entry that is left alone exactly 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def masked_softmax(score: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis among the entries where `mask` (bool, same shape) holds; all zero where none does."""
    filled = score.masked_fill(~mask, torch.finfo(score.dtype).min)
    return filled.softmax(dim=-1) * mask.to(score.dtype)


class ViewBag(nn.Module):
    """Gated attention over the present views (Ilse et al. 2018): descriptors [B, V, D] -> image token [B, D]."""

    def __init__(self, embedding: int, attention: int) -> None:
        super().__init__()
        self.gates = nn.Linear(embedding, 2 * attention)
        self.score = nn.Linear(attention, 1)

    def forward(self, views_BVD: Tensor, mask_BV: Tensor) -> tuple[Tensor, Tensor]:
        """Token [B, D] and the weights of the views [B, V], which sum to 1 (to 0 without any view)."""
        content, gate = self.gates(views_BVD).chunk(2, dim=-1)
        score_BV = self.score(torch.tanh(content) * torch.sigmoid(gate)).squeeze(-1)
        weights_BV = masked_softmax(score_BV, mask_BV)
        return (views_BVD * weights_BV.unsqueeze(-1)).sum(dim=1), weights_BV


class ClinicalEncoder(nn.Module):
    """Encoded clinical row [B, F] -> clinical token [B, D]. LayerNorm, never BatchNorm."""

    def __init__(self, features: int, hidden: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Linear(features, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.second = nn.Linear(hidden, embedding)

    def forward(self, clinical_BF: Tensor) -> Tensor:
        return functional.silu(self.second(functional.silu(self.norm(self.first(clinical_BF)))))

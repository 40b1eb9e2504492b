"""Films -> view descriptors: a residual GroupNorm network with attention and top-k pooling; used by the fusion model.

Only Conv2d, GroupNorm and Linear: layers whose per-sample gradients are exact. No BatchNorm, because it mixes patients.
Letters: N films, C channels, h w cells of the feature map, D embedding width.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared_model.fusion.config import IMAGE_CHANNELS, STEM_STRIDE, SizeSpec

TOP_SHARE = 0.04  # of the cells; spreads the gradient, so that class activation maps point (plain maximum: they do not)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with the largest number of groups up to 8 that divides `channels`."""
    groups = next(g for g in range(8, 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside an averaging shortcut: [N, C, h, w] -> [N, C', ceil(h/stride), ceil(w/stride)]."""

    def __init__(self, inward: int, outward: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.first = nn.Conv2d(inward, outward, 3, stride, 1, bias=False)
        self.first_norm = group_norm(outward)
        self.second = nn.Conv2d(outward, outward, 3, 1, 1, bias=False)
        self.second_norm = group_norm(outward)
        self.shortcut = nn.Conv2d(inward, outward, 1, bias=False)

    def forward(self, x_NChw: Tensor) -> Tensor:
        y = functional.silu(self.first_norm(self.first(x_NChw)))
        y = self.second_norm(self.second(y))
        kept = x_NChw if self.stride == 1 else functional.avg_pool2d(x_NChw, self.stride, ceil_mode=True)
        return functional.silu(y + self.shortcut(kept))


class SpatialPooling(nn.Module):
    """Feature map -> descriptor: gated attention over the cells beside the mean of each channel's top 4 % of cells.

    Gated attention as in Ilse et al. 2018 (arXiv 1802.04712), eq. 9.
    """

    def __init__(self, channels: int, attention: int, embedding: int) -> None:
        super().__init__()
        self.gates = nn.Linear(channels, 2 * attention)  # tanh and sigmoid halves in one matrix product
        self.score = nn.Linear(attention, 1)
        self.project = nn.Linear(2 * channels, embedding)

    def forward(self, x_NChw: Tensor) -> Tensor:
        cells_NCL = x_NChw.flatten(2)
        content, gate = self.gates(cells_NCL.transpose(1, 2)).chunk(2, dim=-1)
        weight_NL1 = self.score(torch.tanh(content) * torch.sigmoid(gate)).softmax(dim=1)
        attended_NC = torch.bmm(cells_NCL, weight_NL1).squeeze(2)
        k = max(1, math.ceil(TOP_SHARE * cells_NCL.shape[2]))
        top_NC = cells_NCL.topk(k, dim=2, sorted=False).values.mean(dim=2)
        return functional.silu(self.project(torch.cat([attended_NC, top_NC], dim=1)))


class ViewEncoder(nn.Module):
    """One film -> one descriptor: pixels [N, 2, H, W] in [0, 1] -> [N, D].

    `blocks` is the layer to explain: its output is the feature map [N, C, H/stride, W/stride].
    """

    def __init__(self, spec: SizeSpec) -> None:
        super().__init__()
        first = spec.channels[0]
        self.stem = nn.Conv2d(IMAGE_CHANNELS, first, 5, STEM_STRIDE, 2, bias=False)
        self.stem_norm = group_norm(first)
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(inward, outward, stride)
                for (inward, outward), stride in zip(pairwise(spec.channels), spec.strides, strict=True)
            )
        )
        self.pooling = SpatialPooling(spec.channels[-1], spec.attention, spec.embedding)

    def features(self, pixels_NCHW: Tensor) -> Tensor:
        """The feature map [N, C, h, w]."""
        x = self.stem(pixels_NCHW)
        if torch.is_grad_enabled() and self.stem_norm.weight.requires_grad and not x.requires_grad:
            # Under `adapters` the norms learn and the convolutions do not. torch 2.13 on the CPU dies (SIGSEGV) in the
            # backward pass of a channels-last GroupNorm when the gradient of its input is not wanted.
            x = x.contiguous()
        x = functional.silu(self.stem_norm(x))
        return self.blocks(x)  # type: ignore[no-any-return]

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        return self.pooling(self.features(pixels_NCHW))  # type: ignore[no-any-return]

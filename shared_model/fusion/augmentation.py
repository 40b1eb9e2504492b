"""Augmentation inside one patient, on tensors, from an explicit generator; used by training and pre-training.

Every film gets its own small rotation, shift, scale, vertical flip, elastic deformation and change of greys. A film is
never mirrored horizontally: prepared films have the chest wall on the left, and mirroring would undo that (a vertical
flip keeps it). Nothing is mixed between patients, so that with differential privacy one patient is still one patient.
All random numbers are drawn in shapes that do not depend on what a patient has.
Letters: B patients, V views, N present films, H W pixels, F clinical features, G = 6 x 5 control points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from shared_model.cohort.batch import PatientBatch
from shared_model.errors import ConfigError
from shared_model.fusion.config import Objective
from shared_model.protocol import AugmentationTerms

CONTROL_POINTS = (6, 5)  # rows, columns: a wavelength of some 4 cm, far above any lesion, so that none is destroyed


def augment(
    batch: PatientBatch,
    *,
    terms: AugmentationTerms,
    generator: torch.Generator,
    objective: Objective = "fusion",
    fields: Sequence[Sequence[int]] = (),
    encoded: bool = False,
) -> PatientBatch:
    """A changed copy of the patients.

    Args:
        batch: the patients; not changed.
        terms: rotation_degrees and scale, shift: greatest change either way (degrees; share of the size; share of each
            side). vertical_flip: probability. elastic: greatest displacement, as a share of each side. intensity:
            greatest change of log gamma and of gain of the percentile channel. view_dropout: probability that a film is
            left out (one always stays). modality_dropout: probability, for each of image and table, that a patient who
            has both goes without it (never without both). feature_dropout: probability that a field is made unknown.
        generator: of the patients' site and round; its device is where numbers are drawn.
        objective: in a phase of one branch no modality is dropped: a patient without it would teach nothing.
        fields: for each clinical field its columns, the missing flag last (`Contract.groups`); empty: every column is
            taken for a field of its own without a flag.
        encoded: the pixels are descriptors of films: those are left out or kept, and not changed.

    Raises:
        ConfigError: modality_dropout above 0.5.
    """
    if not terms.enabled or len(batch) == 0:
        return batch
    if terms.modality_dropout > 0.5:
        raise ConfigError("augmentation.modality_dropout is too large", found=terms.modality_dropout, expected="<= 0.5")
    draw = _Draw(generator, batch.pixels_BVCHW.device)
    B, V = batch.view_mask_BV.shape
    view_mask_BV = _drop_views(batch.view_mask_BV, draw.uniform(B, V), terms.view_dropout)
    image_B, table_B = _drop_modalities(batch, draw.uniform(B), terms.modality_dropout, objective)
    view_mask_BV = view_mask_BV & image_B.unsqueeze(1)
    pixels_BVCHW = batch.pixels_BVCHW if encoded else _change_films(batch.pixels_BVCHW, view_mask_BV, draw, terms)
    clinical_BF = _drop_features(batch.clinical_BF, draw, terms.feature_dropout, fields)
    return replace(batch, pixels_BVCHW=pixels_BVCHW, view_mask_BV=view_mask_BV, clinical_BF=clinical_BF,
                   clinical_mask_B=batch.clinical_mask_B & table_B)  # fmt: skip


class _Draw:
    """Uniform numbers from one generator, put on one device."""

    def __init__(self, generator: torch.Generator, device: torch.device) -> None:
        self.generator, self.device = generator, device

    def uniform(self, *shape: int) -> Tensor:
        """In [0, 1)."""
        return torch.rand(shape, generator=self.generator, device=self.generator.device).to(self.device)

    def symmetric(self, *shape: int) -> Tensor:
        """In [-1, 1)."""
        return 2 * self.uniform(*shape) - 1


def _drop_views(mask_BV: Tensor, draw_BV: Tensor, share: float) -> Tensor:
    # The present view with the greatest number always stays, so that dropping views never drops the image.
    luck_BV = draw_BV.masked_fill(~mask_BV, -1.0)
    return mask_BV & ((luck_BV >= share) | (luck_BV == luck_BV.amax(dim=1, keepdim=True)))


def _drop_modalities(
    batch: PatientBatch, draw_B: Tensor, share: float, objective: Objective
) -> tuple[Tensor, Tensor]:
    both_B = batch.view_mask_BV.any(dim=1) & batch.clinical_mask_B
    if objective != "fusion":
        both_B = torch.zeros_like(both_B)
    return ~(both_B & (draw_B >= 1 - share)), ~(both_B & (draw_B < share))


def _change_films(pixels_BVCHW: Tensor, view_mask_BV: Tensor, draw: _Draw, terms: AugmentationTerms) -> Tensor:
    """Every film of the mask changed in its own way, zeros elsewhere."""
    count = view_mask_BV.numel()
    pose, flip = draw.symmetric(count, 4), draw.uniform(count)
    bend, greys = draw.symmetric(count, 2, *CONTROL_POINTS), draw.symmetric(count, 2)
    flat_N = view_mask_BV.flatten().nonzero().squeeze(1)
    empty = torch.zeros_like(pixels_BVCHW)
    if len(flat_N) == 0:
        return empty
    films_NCHW = pixels_BVCHW.flatten(0, 1).index_select(0, flat_N)
    height, width = films_NCHW.shape[2:]
    grid_NHW2 = _grid(height, width, terms, pose[flat_N], flip[flat_N], bend[flat_N])
    films_NCHW = functional.grid_sample(films_NCHW, grid_NHW2, align_corners=False)  # bilinear, air outside
    if terms.intensity > 0:
        films_NCHW = _change_greys(films_NCHW, greys[flat_N] * terms.intensity)
    return empty.flatten(0, 1).index_copy(0, flat_N, films_NCHW).view_as(pixels_BVCHW)


def _grid(H: int, W: int, terms: AugmentationTerms, pose: Tensor, flip: Tensor, bend: Tensor) -> Tensor:
    """Where each pixel of the changed films is taken from: [N, H, W, 2] in [-1, 1]."""
    angle = pose[:, 0] * math.radians(terms.rotation_degrees)
    size = 1 + pose[:, 1] * terms.scale
    upright = torch.where(flip < terms.vertical_flip, -1.0, 1.0)
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    aspect = H / W  # normalised coordinates are stretched; a rotation must not be
    shift_x, shift_y = 2 * terms.shift * pose[:, 2], 2 * terms.shift * pose[:, 3]
    theta_N23 = torch.stack(
        [
            torch.stack([cos, -sin * aspect, shift_x], dim=1),
            torch.stack([upright * sin / aspect, upright * cos, shift_y], dim=1),
        ],
        dim=1,
    )
    grid_NHW2 = functional.affine_grid(theta_N23, [len(pose), 1, H, W], align_corners=False)
    if terms.elastic > 0:
        rows_HG, columns_GW = _spline(H, CONTROL_POINTS[0]), _spline(W, CONTROL_POINTS[1]).T
        bent_N2HW = rows_HG.to(bend) @ bend @ columns_GW.to(bend)
        grid_NHW2 = grid_NHW2 + 2 * terms.elastic * bent_N2HW.permute(0, 2, 3, 1)
    return grid_NHW2


@lru_cache(maxsize=16)
def _spline(size: int, points: int) -> Tensor:
    """Uniform cubic B-spline basis [size, points]: rows sum to at most 1, so that a displacement keeps its bound."""
    position = torch.linspace(0, points - 1, size).unsqueeze(1)
    distance = (position - torch.arange(points)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp_min(0) ** 3 / 6
    return torch.where(distance < 1, near, far)


def _change_greys(films_NCHW: Tensor, greys_N2: Tensor) -> Tensor:
    """Gamma and gain of the first, the percentile channel: equalisation takes out of the other what a detector does."""
    gamma, gain = torch.exp(greys_N2[:, 0]).view(-1, 1, 1), 1 + greys_N2[:, 1].view(-1, 1, 1)
    # The clamp keeps 0 (air) at 0: pow of 0 is 0 for every gamma.
    percentile = (films_NCHW[:, 0].clamp(0, 1).pow(gamma) * gain).clamp(0, 1)
    return torch.cat([percentile.unsqueeze(1), films_NCHW[:, 1:]], dim=1)


def _drop_features(clinical_BF: Tensor, draw: _Draw, share: float, fields: Sequence[Sequence[int]]) -> Tensor:
    B, F = clinical_BF.shape
    if share == 0:
        return clinical_BF
    if not fields:
        return clinical_BF * (draw.uniform(B, F) >= share)
    dropped = clinical_BF.clone()
    gone_BG = draw.uniform(B, len(fields)) < share
    for index, columns in enumerate(fields):
        unknown = clinical_BF.new_zeros(len(columns))
        unknown[-1] = 1.0
        rows = gone_BG[:, index].unsqueeze(1)
        dropped[:, list(columns)] = torch.where(rows, unknown, dropped[:, list(columns)])
    return dropped

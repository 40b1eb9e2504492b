"""Trains the image branch on public films with outlined signs, one-cycle AdamW; used by `mammofed pretrain`.

Public collections of mammograms come with outlines, so public films do too. They teach at three levels: the patient
(as the phase objective `image` does), the film, and the cell of the feature map. From patients' labels alone the same
films teach far less.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from shared_model.cohort.batch import PatientBatch
from shared_model.fusion import FusionModel, augment
from shared_model.fusion.config import IMAGE_CHANNELS
from shared_model.protocol import AugmentationTerms
from simulations.pretraining.films import PublicCohort

WARM_UP = 0.2  # share of the steps in which the learning rate rises


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a set of public weights is trained; goes into its card.

    epochs. batch: patients. learning_rate: peak of AdamW's one cycle. weight_decay. gradient_clip: greatest L2 norm.
    film_weight, cell_weight: of the losses of films and of cells beside the patients' loss. cell_positive: weight of a
    cell inside an outline (some one in a hundred is).
    """

    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    gradient_clip: float
    film_weight: float
    cell_weight: float
    cell_positive: float
    augmentation: AugmentationTerms


def train_image_branch(
    model: FusionModel,
    cohort: PublicCohort,
    recipe: Recipe,
    *,
    seed: int,
    progress: Callable[[int, float], None] | None = None,
) -> None:
    """Train `model`'s image branch in place; the rest of it is left alone. The same bits for the same seed and machine.

    progress: called with (epoch from 1, mean loss) after each epoch.
    """
    names = set(model.trainable_parameters("image"))
    marker = _marker(model, seed)
    trained = [p for name, p in model.named_parameters() if name in names] + list(marker.parameters())
    optimizer = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    batches = math.ceil(len(cohort) / recipe.batch)
    order_rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    model.train()
    for epoch in range(recipe.epochs):
        order, total = order_rng.permutation(len(cohort)), 0.0
        for step, rows in enumerate(np.array_split(order, batches)):
            rate = one_cycle((epoch * batches + step) / (recipe.epochs * batches)) * recipe.learning_rate
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch, outlines = _augmented(cohort, rows, recipe.augmentation, generator)
            loss = _loss(model, marker, batch, outlines, recipe)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trained, recipe.gradient_clip)
            optimizer.step()
            total += float(loss.detach()) * len(rows)
        if progress is not None:
            progress(epoch + 1, total / len(cohort))
    model.eval()


def _marker(model: FusionModel, seed: int) -> nn.Conv2d:
    """The cells' own head; it is thrown away after pre-training."""
    channels = model.config.spec.channels[-1]
    marker = nn.Conv2d(channels, 1, 1)
    generator = torch.Generator().manual_seed(seed + 1)
    nn.init.normal_(marker.weight, std=1 / math.sqrt(channels), generator=generator)
    if marker.bias is not None:
        nn.init.constant_(marker.bias, -4.0)  # nearly every cell is empty
    return marker


def _augmented(
    cohort: PublicCohort, rows: NDArray[np.integer], terms: AugmentationTerms, generator: torch.Generator
) -> tuple[PatientBatch, Tensor]:
    """Patients and outlines, moved alike: the outline goes through augmentation as a third channel."""
    batch = cohort.batch(rows)
    pixels = torch.cat([batch.pixels_BVCHW, cohort.outlines(rows)], dim=2)
    batch = augment(replace(batch, pixels_BVCHW=pixels), terms=terms, generator=generator, objective="image")
    films = batch.pixels_BVCHW
    return replace(batch, pixels_BVCHW=films[:, :, :IMAGE_CHANNELS]), films[:, :, IMAGE_CHANNELS:]


def _loss(model: FusionModel, marker: nn.Conv2d, batch: PatientBatch, outlines: Tensor, recipe: Recipe) -> Tensor:
    """Patients' cross-entropy plus those of present films and of their cells, weighed by the recipe."""
    B, V = batch.view_mask_BV.shape
    flat_N = batch.view_mask_BV.flatten().nonzero().squeeze(1)
    outline_N1HW = outlines.flatten(0, 1)[flat_N]
    features = model.encoder.features(batch.pixels_BVCHW.flatten(0, 1)[flat_N])
    position_BV = torch.arange(V).expand(B, V)
    described_ND = model.encoder.pooling(features) + model.view_embedding(position_BV.flatten()[flat_N])
    views_BVD = described_ND.new_zeros(B * V, described_ND.shape[1]).index_copy(0, flat_N, described_ND).view(B, V, -1)
    image_BD, _ = model.bag(views_BVD, batch.view_mask_BV)
    patient = _cross_entropy(model.image_head(image_BD).squeeze(1) + model.prior_logit, batch.labels_B)
    shown_N = outline_N1HW.flatten(1).amax(dim=1).round()
    film = _cross_entropy(model.image_head(described_ND).squeeze(1) + model.prior_logit, shown_N)
    # Twice the covered share, so that a cell that is half inside counts as inside.
    cells = (features.shape[2], features.shape[3])
    inside = (2 * functional.adaptive_avg_pool2d(outline_N1HW, cells)).clamp(max=1)
    weight = torch.tensor(recipe.cell_positive)
    cell = functional.binary_cross_entropy_with_logits(marker(features), inside, pos_weight=weight)
    return patient + recipe.film_weight * film + recipe.cell_weight * cell


def _cross_entropy(logit: Tensor, label: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logit, label)


def one_cycle(progress: float) -> float:
    """Learning rate as a share of its peak at `progress` in [0, 1]: up by a cosine, then down to nearly nothing."""
    if progress < WARM_UP:
        return 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * progress / WARM_UP))
    return 1e-3 + (1 - 1e-3) * 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))

"""The reference engine: per-patient gradients by Opacus' layer hooks, clipped and summed by us (`engine=opacus`).

Opacus prepares the gradients only. Clipping is ours because Opacus takes norms in the precision of the activations (one
patient then contributes up to 1.01 C under bf16) and lets one non-finite patient make every parameter NaN.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from opacus import GradSampleModule
from torch import Tensor, nn

from client.training.engines import (
    ONE_SIZE,
    ClippedSum,
    PatientLoss,
    Precision,
    autocast,
    filled,
    fold_views,
    parts,
    trainable,
)
from shared_model.cohort.batch import PatientBatch
from shared_model.errors import PrivacyError

# Patients whose gradients are held at a time (B x P numbers), and pixels of theirs: on a GPU passes have one size.
PHYSICAL = {"cpu": 8, "cuda": 16}
PHYSICAL_PIXELS = 1 << 23


@dataclass(frozen=True, kw_only=True)
class OpacusEngine:
    """Per-sample gradients of all patients of a part at once; views one after another, so that a row is a patient.

    Folding views into the batch would make a layer see B*V rows: Opacus then fails or, where all trained layers see
    them, silently clips each film instead of each patient (sensitivity V times C).
    """

    precision: Precision = "fp32"

    def clipped_sum(self, model: nn.Module, batch: PatientBatch, *, clip: float, loss: PatientLoss) -> ClippedSum:
        """See :class:`client.training.engines.GradientEngine`.

        Raises:
            PrivacyError: a layer's gradients do not belong to one patient each.
        """
        parameters = trainable(model)
        sums = [torch.zeros_like(p) for p in parameters]
        device = batch.labels_B.device
        finite, size = 0, PHYSICAL.get(device.type, PHYSICAL["cpu"])
        if device.type in ONE_SIZE:
            _, V, _, H, W = batch.pixels_BVCHW.shape
            size = min(size, max(1, PHYSICAL_PIXELS // (V * H * W)))
        with _hooked(model) as hooked:
            for part in parts(batch, size):
                count = len(part)
                if device.type in ONE_SIZE:
                    part = part.select(filled(torch.arange(count, device=device), size))
                with autocast(device, self.precision):
                    output = hooked(part)
                    value = loss(output, part).sum()
                    # Opacus pairs backward with forward calls by counting: a call that the loss does not use would
                    # shift the pairs. Zero times every output gives each call its turn.
                    anchor = sum(0.0 * t.sum() for t in output if t.requires_grad)
                    (value + anchor).backward()
                rows = [row[:count] for row in _per_patient(hooked, parameters, len(part))]
                finite += _add_clipped(sums, rows, clip)
        return ClippedSum(sums, finite)


@contextmanager
def _hooked(model: nn.Module) -> Iterator[GradSampleModule]:
    """The model with hooks for the time of one batch; it leaves as it came (views folded again, nothing attached)."""
    fold_views(model, False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Opacus warns about hooks on layers whose input needs no gradient
        hooked = GradSampleModule(model, batch_first=True, loss_reduction="sum", strict=True)
        try:
            yield hooked
        finally:
            hooked.to_standard_module()
            for module in model.modules():  # what Opacus leaves behind when a pass was interrupted
                module.__dict__.pop("activations", None)
                module.__dict__.pop("max_batch_len", None)
            for parameter in model.parameters():
                parameter.grad = None
            fold_views(model, True)


def _per_patient(hooked: GradSampleModule, parameters: Sequence[nn.Parameter], count: int) -> list[Tensor]:
    """float32 [B, P_i] per trained parameter, freed from the parameters."""
    leftover = [name for name, m in hooked._module.named_modules() if getattr(m, "activations", None)]
    if leftover:
        raise PrivacyError("per-patient gradients are not exact: layers ran without a backward pass",
                           found=leftover[:5], remedy="use training.engine=loop")  # fmt: skip
    rows = []
    for parameter in parameters:
        sample = getattr(parameter, "grad_sample", None)
        parameter.grad = None
        parameter.__dict__["grad_sample"] = None  # freed, and ready for the next part
        if sample is None:
            sample = torch.zeros(count, parameter.numel(), device=parameter.device)
        if not isinstance(sample, Tensor) or sample.shape[0] != count:
            raise PrivacyError("per-patient gradients are not exact: a layer saw other rows than patients",
                               found=type(sample).__name__ if not isinstance(sample, Tensor) else sample.shape[0],
                               expected=f"{count} rows", remedy="use training.engine=loop")  # fmt: skip
        rows.append(sample.reshape(count, -1).float())
    return rows


def _add_clipped(sums: list[Tensor], rows: Sequence[Tensor], clip: float) -> int:
    """Add the clipped rows of all finite patients in float32; how many they were."""
    norm_B = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(r, dim=1) for r in rows]), dim=0)
    finite_B = torch.isfinite(norm_B)
    factor_B = torch.where(finite_B, clip / norm_B.clamp(min=clip), 0.0)
    for total, row in zip(sums, rows, strict=True):
        kept = row if bool(finite_B.all()) else row.masked_fill(~finite_B.unsqueeze(1), 0.0)  # 0 x NaN would be NaN
        total += torch.mv(kept.t(), factor_B).view(total.shape)
    return int(finite_B.sum())


"""Gradients of one step: clipped per-patient sums for private training, mini-batch sums for the rest; used by `local`.

The privacy unit is the patient. Every private engine gives the same sum, over the patients of a batch, of the
patient's own gradient scaled down to norm C (Abadi et al. 2016, arXiv:1607.00133), computed and summed in float32.

Letters: B patients, V views, C channels, H W pixels. `clip` is C of the literature, the norm bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple
from typing import Protocol as Interface

import torch
from torch import Tensor, nn

from client.training.norm import fast_norms
from shared_model.cohort.batch import PatientBatch
from shared_model.fusion import FusionOutput

Precision = Literal["fp32", "bf16"]
PatientLoss = Callable[[FusionOutput, PatientBatch], Tensor]  # -> [B], each a function of that patient alone


class ClippedSum(NamedTuple):
    """Sum of clipped per-patient gradients, float32, aligned with :func:`trainable`; `finite` patients went in.

    `finite` depends on the patients: it must not leave the site.
    """

    sums: list[Tensor]
    finite: int


class GradientEngine(Interface):
    """What every private engine does."""

    def clipped_sum(self, model: nn.Module, batch: PatientBatch, *, clip: float, loss: PatientLoss) -> ClippedSum:
        """Sum over patients of g * min(1, clip / |g|); a patient whose gradient is not finite counts zero."""
        ...


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that the phase trains, in the model's order."""
    return [p for p in model.parameters() if p.requires_grad]


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """bfloat16 products for `bf16`; weights, gradients and norms stay float32 in every case.

    On a GPU `fp32` leaves torch's default as it is: convolutions round their factors to TF32.
    """
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


@contextmanager
def repeatable() -> Iterator[None]:
    """On a GPU, convolutions whose sums have one order: what is repeated gives the same bits, as it does on a CPU."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


def fold_views(model: nn.Module, folded: bool) -> None:
    """Whether the model encodes all films as one batch; only models that know the switch are touched."""
    if hasattr(model, "fold_views"):
        setattr(model, "fold_views", folded)  # noqa: B010  (mypy takes any attribute of a module for a tensor)


class BatchSum(NamedTuple):
    """Sum of the batch's gradients, aligned with :func:`trainable`, and the sum of its losses."""

    sums: list[Tensor]
    loss: float


@dataclass(frozen=True, kw_only=True)
class BatchGradient:
    """Ordinary mini-batch gradients, without privacy: views folded, in micro-batches that stay in the cache."""

    precision: Precision = "fp32"

    def gradient_sum(self, model: nn.Module, batch: PatientBatch, *, loss: PatientLoss) -> BatchSum:
        """Gradient of the summed loss; not finite when a patient's is not."""
        fold_views(model, True)
        parameters = trainable(model)
        sums = [torch.zeros_like(p) for p in parameters]
        total = 0.0
        device = batch.labels_B.device
        with autocast(device, self.precision), fast_norms(model, device, self.precision):
            for part in micro_batches(batch):
                value = loss(model(part), part).sum()
                total += float(value.detach())
                if value.requires_grad:
                    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
                    used = [(s, g) for s, g in zip(sums, gradients, strict=True) if g is not None]
                    torch._foreach_add_([s for s, _ in used], [g for _, g in used])
        return BatchSum(sums, total)


# Pixels of a micro-batch per device: what still lies in the cache on a CPU, what fills a GPU.
MICRO_PIXELS = {"cpu": 1 << 21, "cuda": 1 << 25}
MICRO_MOST = {"cpu": 8, "cuda": 256}  # patients


def micro_batches(batch: PatientBatch) -> Iterator[PatientBatch]:
    """Consecutive parts of a batch, as many patients each as run fastest; depends on shapes and device only."""
    _, V, _, H, W = batch.pixels_BVCHW.shape
    kind = batch.labels_B.device.type if batch.labels_B.device.type in MICRO_PIXELS else "cpu"
    most = MICRO_MOST[kind] if H > 1 else len(batch)  # descriptors are small: all at once
    return parts(batch, max(1, min(most, MICRO_PIXELS[kind] // (V * H * W))))


def parts(batch: PatientBatch, size: int) -> Iterator[PatientBatch]:
    """Consecutive parts of at most `size` patients, as views of the batch's memory."""
    for start in range(0, len(batch), size):
        yield select(batch, slice(start, start + size))


def select(batch: PatientBatch, chosen: slice | Tensor) -> PatientBatch:
    """The patients in a slice or at int64 positions."""
    return batch.select(chosen)


# Devices that take their kernels by the number of rows, each with a rounding of its own (4e-3 with TF32, 2e-3 in
# bfloat16): there passes have one size, so that no patient's gradient depends on how many others were drawn, as the
# bound on a patient's weight assumes.
ONE_SIZE = ("cuda",)


def filled(members: Tensor, size: int) -> Tensor:
    """The positions, and the first of them again until there are `size`."""
    return torch.cat([members, members[:1].expand(size - len(members))])

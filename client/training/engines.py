"""Gradients of one step: clipped per-patient sums for private training, mini-batch sums for the rest; used by `local`.

The privacy unit is the patient. Every private engine gives the same sum, over the patients of a batch, of the patient's own
gradient scaled down to norm C (Abadi et al. 2016, arXiv:1607.00133), computed and summed in float32.

Letters: B patients, V views, C channels, H W pixels. `clip` is C of the literature, the norm bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple
from typing import Protocol as Interface

import torch
from torch import Tensor, nn

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
    """bfloat16 products for `bf16`; weights, gradients and norms stay float32 in every case."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def fold_views(model: nn.Module, folded: bool) -> None:
    """Whether the model encodes all films as one batch; only models that know the switch are touched."""
    if hasattr(model, "fold_views"):
        setattr(model, "fold_views", folded)  # noqa: B010  (mypy takes any attribute of a module for a tensor)


@dataclass(frozen=True, kw_only=True)
class LoopEngine:
    """One autograd pass per patient, on the films that she has: any layer, ragged bags, memory of one patient.

    On the CPU it is faster than per-sample gradients by hooks, because it never stores B gradients and four films
    already fill the matrix products (research: dp_performance.md, section 4).

    workers: patients in work at a time, by threads (autograd releases the interpreter lock). Sums are added in worker
        order, so the result depends on `workers` only by rounding.
    """

    precision: Precision = "fp32"
    workers: int = 1

    def clipped_sum(self, model: nn.Module, batch: PatientBatch, *, clip: float, loss: PatientLoss) -> ClippedSum:
        """See :class:`GradientEngine`."""
        fold_views(model, True)  # one patient at a time: folding her films mixes nobody
        count, parameters = len(batch), trainable(model)
        workers = max(1, min(self.workers, count))

        def work(first: int) -> ClippedSum:
            with autocast(batch.labels_B.device, self.precision):
                return _patients(model, parameters, batch, range(first, count, workers), clip, loss)

        if workers == 1:
            return work(0)
        with ThreadPoolExecutor(workers) as pool:
            parts = list(pool.map(work, range(workers)))
        for part in parts[1:]:
            torch._foreach_add_(parts[0].sums, part.sums)
        return ClippedSum(parts[0].sums, sum(part.finite for part in parts))


def _patients(
    model: nn.Module, parameters: Sequence[nn.Parameter], batch: PatientBatch, members: range, clip: float,
    loss: PatientLoss,
) -> ClippedSum:  # fmt: skip
    sums = [torch.zeros_like(p) for p in parameters]
    finite = 0
    for index in members:
        patient = batch.patient(index)
        value = loss(model(patient), patient).sum()
        if not value.requires_grad:  # nothing of hers reaches the trained parameters: her gradient is zero
            finite += 1
            continue
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        finite += _add_clipped(sums, gradients, clip)
    return ClippedSum(sums, finite)


def _add_clipped(sums: list[Tensor], gradients: Sequence[Tensor | None], clip: float) -> int:
    """Add one patient's gradient, scaled to norm `clip` at most; 1, or 0 where it is not finite and was left out."""
    given: list[Tensor] = [g for g in gradients if g is not None]
    if len(given) < len(sums):
        sums = [s for s, g in zip(sums, gradients, strict=True) if g is not None]
    norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(given))))
    if not norm < float("inf"):  # also NaN: one such patient would make every parameter NaN, and show that she is there
        return 0
    torch._foreach_add_(sums, given, alpha=min(1.0, clip / norm) if norm > 0 else 1.0)
    return 1


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
        with autocast(batch.labels_B.device, self.precision):
            for part in micro_batches(batch):
                value = loss(model(part), part).sum()
                total += float(value.detach())
                if value.requires_grad:
                    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
                    used = [(s, g) for s, g in zip(sums, gradients, strict=True) if g is not None]
                    torch._foreach_add_([s for s, _ in used], [g for _, g in used])
        return BatchSum(sums, total)


# Pixels of a micro-batch per device: what still lies in the cache on a CPU, what fills a GPU.
MICRO_PIXELS = {"cpu": 4 * 4 * 128 * 128, "cuda": 64 * 4 * 512 * 256}


def micro_batches(batch: PatientBatch) -> Iterator[PatientBatch]:
    """Consecutive parts of a batch, as many patients each as run fastest; depends on shapes and device only."""
    _, V, _, H, W = batch.pixels_BVCHW.shape
    return parts(batch, max(1, MICRO_PIXELS.get(batch.labels_B.device.type, MICRO_PIXELS["cpu"]) // (V * H * W)))


def parts(batch: PatientBatch, size: int) -> Iterator[PatientBatch]:
    """Consecutive parts of at most `size` patients, as views of the batch's memory."""
    for start in range(0, len(batch), size):
        part = slice(start, start + size)
        yield PatientBatch(
            batch.pixels_BVCHW[part], batch.view_mask_BV[part], batch.clinical_BF[part], batch.clinical_mask_B[part],
            batch.labels_B[part],
        )  # fmt: skip

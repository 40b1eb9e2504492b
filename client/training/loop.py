"""The `loop` engine: patients' gradients by autograd, one at a time or in small groups with a row each.

What `local` takes unless the protocol says `opacus`, on CPU and GPU; it takes any layer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from client.training.engines import (
    ONE_SIZE,
    ClippedSum,
    PatientLoss,
    Precision,
    autocast,
    filled,
    fold_views,
    select,
    trainable,
)
from client.training.norm import fast_norms
from client.training.rows import RowGradients, row_gradients, unknown_layers
from shared_model.cohort.batch import PatientBatch
from shared_model.errors import PrivacyError

# About so many pixels to a group: beyond, it leaves a CPU's cache and saves nothing; a GPU must be filled.
GROUP_PIXELS = {"cpu": 900_000, "cuda": 1 << 23}
GROUP_MOST = {"cpu": 6, "cuda": 16}  # patients: eight would save a CPU another 3 % of time for a third more memory
GROUP_ENCODED = 128  # the same where films are descriptors: the rows of the small layers that remain are short
# Relative difference of a row and its patient's gradient: beyond, float64 decides. A row of another patient gives about
# 1, float32 1e-6 and TF32 6e-3 for models as they are trained; for one that noise threw far off float32 gave 1e-2.
AGREEMENT = {"cpu": 1e-3, "cuda": 5e-2}
EXACT_AGREEMENT = 1e-6


Item = TypeVar("Item")
Result = TypeVar("Result")


class Group(NamedTuple):
    """Patients of a batch, by position, with `films` films each, in a pass of `size` patients."""

    members: Tensor
    films: int
    size: int

    def value(self, model: nn.Module, batch: PatientBatch, loss: PatientLoss) -> Callable[[], Tensor]:
        """The pass: the sum of the losses of `size` patients, members first."""
        return functools.partial(_value, model, select(batch, filled(self.members, self.size)), loss)


class LoopEngine:
    """Patients' own gradients, on the films that they have: any layer, ragged bags, memory of a few patients.

    Faster than per-sample gradients by hooks: it never stores the whole batch's gradients and computes nothing that is
    not used (`simulations/benchmarks/dp_engines.py` measures it). In float32 on a CPU or a CUDA GPU, patients with
    equally many films go in groups (`rows`); with bf16, elsewhere, or with layers that `rows` has no rule for, each
    goes alone. Both ways give the same sum (tests), and a group of each engine is checked against autograd.

    Args:
        workers: threads, each with patients of its own (autograd releases the interpreter lock). Sums are added in
            worker order, so the result depends on `workers` only by rounding.
        grouped: False takes every patient alone.
    """

    def __init__(self, *, precision: Precision = "fp32", workers: int = 1, grouped: bool = True) -> None:
        self.precision, self.workers, self.grouped = precision, workers, grouped
        self._checked = -1

    def clipped_sum(self, model: nn.Module, batch: PatientBatch, *, clip: float, loss: PatientLoss) -> ClippedSum:
        """See :class:`client.training.engines.GradientEngine`.

        Raises:
            PrivacyError: a row is not its patient's gradient; nothing is returned then.
        """
        fold_views(model, True)  # films of one batch stay films: no layer but the bag lets them meet
        parameters = trainable(model)
        groups = list(self._groups(model, batch))
        alone = [int(group.members) for group in groups if group.size == 1]
        together = [group for group in groups if group.size > 1]
        sums, finite = self._one_by_one(model, parameters, batch, alone, clip, loss)
        if together:
            self._check(model, parameters, batch, together, loss)
            with row_gradients(model, parameters) as recorder:
                flat, counted = self._in_groups(model, recorder, batch, together, clip, loss)
            torch._foreach_add_(sums, [flat[recorder.columns[p]].view(p.shape) for p in parameters])
            finite += counted
        return ClippedSum(sums, finite)

    def _groups(self, model: nn.Module, batch: PatientBatch) -> Iterator[Group]:
        """All patients, once each; more than one together only where that is exact and pays."""
        kind = batch.labels_B.device.type
        possible = self.grouped and self.precision == "fp32" and kind in GROUP_MOST
        if not possible or unknown_layers(model):
            yield from (Group(torch.tensor([member]), 0, 1) for member in range(len(batch)))
            return
        films_B = batch.view_mask_BV.sum(1)
        height, width = batch.pixels_BVCHW.shape[-2:]
        most = GROUP_ENCODED if getattr(model, "encoded", False) else GROUP_MOST[kind]
        for films in sorted(set(films_B.tolist())):
            size = min(most, max(1, round(GROUP_PIXELS[kind] / (max(films, 1) * height * width))))
            members: Tensor = (films_B == films).nonzero().squeeze(1)
            if kind in ONE_SIZE:
                yield from (Group(chosen, films, size) for chosen in members.split(size))  # type: ignore[no-untyped-call]
                continue
            for chosen in members.tensor_split(math.ceil(len(members) / size)):  # of equal size: one left over is slow
                yield Group(chosen, films, len(chosen))

    def _one_by_one(
        self, model: nn.Module, parameters: Sequence[nn.Parameter], batch: PatientBatch, members: Sequence[int],
        clip: float, loss: PatientLoss,
    ) -> ClippedSum:  # fmt: skip
        device = parameters[0].device

        def work(share: Sequence[int]) -> ClippedSum:
            sums, finite = [torch.zeros_like(p) for p in parameters], 0
            with autocast(device, self.precision):
                for member in share:
                    finite += _add_clipped(sums, _gradient(model, parameters, batch.patient(member), loss), clip)
            return ClippedSum(sums, finite)

        with fast_norms(model, device, self.precision):
            results = self._spread(work, members)
        for result in results[1:]:
            torch._foreach_add_(results[0].sums, result.sums)
        return ClippedSum(results[0].sums, sum(result.finite for result in results))

    def _in_groups(
        self, model: nn.Module, recorder: RowGradients, batch: PatientBatch, groups: Sequence[Group], clip: float,
        loss: PatientLoss,
    ) -> tuple[Tensor, int]:  # fmt: skip
        def work(share: Sequence[Group]) -> tuple[Tensor, int]:
            total_P, finite = torch.zeros(recorder.width, device=batch.labels_B.device), 0
            for group in share:
                rows_BP = recorder.rows(group.size, group.films, group.value(model, batch, loss))
                finite += _add_clipped_rows(total_P, rows_BP[: len(group.members)], clip)
            return total_P, finite

        results = self._spread(work, groups)
        total_P = results[0][0]
        for other_P, _ in results[1:]:
            total_P += other_P
        return total_P, sum(finite for _, finite in results)

    def _spread(self, work: Callable[[Sequence[Item]], Result], items: Sequence[Item]) -> list[Result]:
        """Run `work` on a share of the items in each worker; results in worker order."""
        workers = max(1, min(self.workers, len(items)))
        if workers == 1:
            return [work(items)]
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(work, [items[first::workers] for first in range(workers)]))

    def _check(
        self, model: nn.Module, parameters: Sequence[nn.Parameter], batch: PatientBatch, groups: Sequence[Group],
        loss: PatientLoss,
    ) -> None:  # fmt: skip
        """The last row of a group must be its patient's gradient, as autograd alone gives it.

        Once per engine, and again when there is a better group to tell by: patients whose rows could be exchanged, and
        films, without which no convolution runs.
        """
        group = max(groups, key=lambda one: (len(one.members) > 1, one.films, len(one.members)))
        worth = 2 * (len(group.members) > 1) + (group.films > 0)
        if worth <= self._checked:
            return
        gap = _gap(model, parameters, batch, group, loss)
        if gap is None:
            return  # nothing to compare with; the next batch is checked
        if not gap <= AGREEMENT[batch.labels_B.device.type]:
            with _in_float64(model):
                gap = _gap(model, parameters, batch.each(_double), group, loss)
            if gap is None or not gap <= EXACT_AGREEMENT:
                raise PrivacyError(
                    "gradients of a group are not those of its patients", found=f"relative difference {gap}",
                    expected=f"at most {EXACT_AGREEMENT}", remedy="use training.engine=opacus, and tell the developers",
                )  # fmt: skip
        self._checked = worth


def _gap(
    model: nn.Module, parameters: Sequence[nn.Parameter], batch: PatientBatch, group: Group, loss: PatientLoss
) -> float | None:
    """Relative difference of the last member's row and her gradient by autograd; None where that is not finite."""
    alone = _gradient(model, parameters, batch.patient(int(group.members[-1])), loss)
    known = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, alone, strict=True)]
    wanted_P = torch.cat([g.flatten() for g in known])
    if not bool(torch.isfinite(wanted_P).all()):
        return None
    with row_gradients(model, parameters) as recorder:
        rows_BP = recorder.rows(group.size, group.films, group.value(model, batch, loss))
    return float((rows_BP[len(group.members) - 1] - wanted_P).norm()) / max(float(wanted_P.norm()), 1e-6)


@contextmanager
def _in_float64(model: nn.Module) -> Iterator[None]:
    """The model's own tensors, for a moment: from float32 and back they keep every bit."""
    model.double()
    try:
        yield
    finally:
        model.float()


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _value(model: nn.Module, batch: PatientBatch, loss: PatientLoss) -> Tensor:
    return loss(model(batch), batch).sum()


def _gradient(
    model: nn.Module, parameters: Sequence[nn.Parameter], patient: PatientBatch, loss: PatientLoss
) -> Sequence[Tensor | None]:
    value = _value(model, patient, loss)
    if not value.requires_grad:  # nothing of hers reaches the trained parameters: her gradient is zero
        return [None] * len(parameters)
    return torch.autograd.grad(value, parameters, allow_unused=True)


def _add_clipped(sums: list[Tensor], gradients: Sequence[Tensor | None], clip: float) -> int:
    """Add one patient's gradient, scaled to norm `clip` at most; 1, or 0 where it is not finite and was left out."""
    given = [g for g in gradients if g is not None]
    if not given:
        return 1
    if len(given) < len(sums):
        sums = [s for s, g in zip(sums, gradients, strict=True) if g is not None]
    norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(given))))
    if not norm < float("inf"):  # also NaN: one such patient would make every parameter NaN, and show that she is there
        return 0
    torch._foreach_add_(sums, given, alpha=clip / max(norm, clip))
    return 1


def _add_clipped_rows(total_P: Tensor, rows_BP: Tensor, clip: float) -> int:
    """The same for the rows of a group; how many were finite."""
    norm_B = torch.linalg.vector_norm(rows_BP, dim=1)
    finite_B = torch.isfinite(norm_B)
    if not bool(finite_B.all()):
        rows_BP = rows_BP.masked_fill(~finite_B.unsqueeze(1), 0.0)  # 0 x NaN would be NaN
    factor_B = torch.where(finite_B, clip / norm_B.clamp(min=clip), 0.0)
    total_P.addmv_(rows_BP.t(), factor_B)
    return int(finite_B.sum())

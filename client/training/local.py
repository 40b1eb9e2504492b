"""One site's training of one round; called by the trainer after the ledger has reserved the round's privacy.

The public entry is :func:`train_round`. It draws patients, sums their gradients, adds noise and steps, as often as
`steps_per_round` says, and changes the model in place. It decides nothing about budgets and writes nothing.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.privacy.randomness import Randomness, SecureRandomness, SeededRandomness
from client.training.checks import check_training
from client.training.engines import BatchGradient, GradientEngine, PatientLoss, repeatable, trainable
from client.training.features import EncodedCohort, FeatureCache, Films, TableOnly
from client.training.loop import LoopEngine
from client.training.sampling import Rows, oversample_positives, poisson_batches, shuffled_batches
from client.training.update import Update, add_noise, clip_by_norm, select_parameters
from shared_model.cohort.batch import PatientBatch
from shared_model.errors import CohortError, TrainerError
from shared_model.fusion import FusionModel, augment, patient_loss_B
from shared_model.protocol import Protocol

LOAD_BYTES = 128 << 20  # pixels in memory at a time, whatever the size of a Poisson batch


@dataclass(frozen=True)
class RoundResult:
    """What a round did. steps: optimiser steps. loss: mean training loss, None with privacy (it is not noised).
    seconds: wall clock; load_s: of them, reading and encoding patients and bringing them to the device (on a GPU, which
    works while the CPU goes on, that is the CPU's time)."""

    steps: int
    loss: float | None
    seconds: float
    load_s: float = 0.0


def randomness_for(protocol: Protocol, *, site: str, round_number: int) -> Randomness:
    """Secret randomness with privacy, otherwise a pure function of (seed, site, round)."""
    if protocol.private:
        return SecureRandomness()
    return SeededRandomness(seed=protocol.seed, site=site, round_number=round_number)


@repeatable()
def train_round(
    *,
    model: FusionModel,
    cohort: Films,
    indices: Sequence[int] | NDArray[np.integer[Any]],
    protocol: Protocol,
    site: str,
    round_number: int,
    device: torch.device,
    randomness: Randomness,
    workers: int = 1,
    fields: Sequence[Sequence[int]] = (),
    features: FeatureCache | None = None,
    correction: Mapping[str, NDArray[np.float32]] | None = None,
) -> RoundResult:
    """Train `model` in place on the patients at `indices`.

    Args:
        model: global weights in; on `device` afterwards.
        indices: positions of the site's training patients in `cohort`.
        site: name in the protocol; gives the *public* expected batch.
        round_number: 1..R.
        randomness: :func:`randomness_for`; secret with privacy.
        workers: patients in work at a time with engine `loop` (threads).
        fields: columns of each clinical field (`Contract.groups`), for dropping whole fields in augmentation.
        features: of `cohort`, kept from round to round; None encodes the films of a `features` phase anew.
        correction: SCAFFOLD's c - c_i by parameter name, see :class:`client.training.update.Update`.

    Raises:
        PrivacyError, ConfigError: see :func:`client.training.checks.check_training`; nothing was trained.
        CohortError: no training patient.
        TrainerError: without privacy, a gradient that is not finite.
    """
    started = time.monotonic()
    check_training(protocol, model, randomness)
    rows: Rows = np.asarray(indices, dtype=np.int64)
    if len(rows) == 0:
        raise CohortError("no training patient at this site", found=0, expected="at least 1",
                          remedy="check the cohort's split")  # fmt: skip
    objective = protocol.training.phase(round_number).objective
    model.to(device)
    opened = time.monotonic()
    source = _source(model, cohort, rows, protocol, round_number, device, features)
    opened_s = time.monotonic() - opened
    if device.type == "cpu":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.train()
    select_parameters(model, protocol, round_number)
    loss: PatientLoss = functools.partial(patient_loss_B, terms=protocol.loss, objective=objective)
    update = Update(model, protocol, round_number, correction=correction)
    loader = _Loader(source, protocol, round_number, device, randomness, fields)
    run = _private if protocol.private else _ordinary
    model.encoded = source is not cohort
    try:
        mean_loss = run(model, rows, loader, update, loss, protocol, site, randomness, workers, round_number)
    finally:
        model.encoded = False  # other sites of the process use this very model next
    update.finish()
    model.requires_grad_(True)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    model.eval()
    return RoundResult(protocol.steps(round_number), mean_loss, time.monotonic() - started, opened_s + loader.seconds)


def _source(
    model: FusionModel, cohort: Films, rows: Rows, protocol: Protocol, round_number: int, device: torch.device,
    features: FeatureCache | None,
) -> Films | EncodedCohort | TableOnly:  # fmt: skip
    """Where the phase's patients come from: their films, descriptors of them, or the table alone."""
    phase = protocol.training.phase(round_number)
    if phase.objective == "clinical":
        return TableOnly(cohort, model.config.spec.embedding)
    if phase.scope in ("linear", "features"):
        cache = features or FeatureCache(cohort, load_bytes=LOAD_BYTES)
        return cache.encoded(model, rows, device=device)
    return cohort


def make_engine(protocol: Protocol, *, workers: int) -> GradientEngine:
    """The private engine that the protocol fixes."""
    if protocol.training.engine == "opacus":
        from client.training.hooks import OpacusEngine  # 1.5 s of import that the loop engine does not need

        return OpacusEngine(precision=protocol.training.precision)
    return LoopEngine(precision=protocol.training.precision, workers=workers)


def _private(
    model: FusionModel, rows: Rows, loader: _Loader, update: Update, loss: PatientLoss, protocol: Protocol, site: str,
    randomness: Randomness, workers: int, round_number: int,
) -> None:  # fmt: skip
    """DP-SGD (Abadi et al. 2016) with patients as examples. Returns nothing: no loss leaves this function."""
    clip, std = protocol.privacy.clip, protocol.noise_multiplier(round_number) * protocol.privacy.clip
    engine = make_engine(protocol, workers=workers)
    expected = protocol.expected_batch(site, round_number)
    for members in poisson_batches(
        rows, sample_rate=protocol.sample_rate(round_number), steps=protocol.steps(round_number), randomness=randomness
    ):
        sums = [torch.zeros_like(p) for p in trainable(model)]
        for batch in loader.batches(members):
            torch._foreach_add_(sums, engine.clipped_sum(model, batch, clip=clip, loss=loss).sums)
        # Also for an empty batch: a step left out would tell that nobody was drawn.
        add_noise(sums, std=std, randomness=randomness)
        # A public constant: the true size of the batch is the patients' secret.
        torch._foreach_div_(sums, expected)
        update.step(sums)


def _ordinary(
    model: FusionModel, rows: Rows, loader: _Loader, update: Update, loss: PatientLoss, protocol: Protocol, site: str,
    randomness: Randomness, workers: int, round_number: int,
) -> float:  # fmt: skip
    """Mini-batch training without privacy; returns the mean loss per patient drawn."""
    terms = protocol.training
    engine = BatchGradient(precision=terms.precision)
    if terms.oversampling == "positives":
        rows = oversample_positives(rows, loader.cohort.labels)
    total, drawn = 0.0, 0
    for members in shuffled_batches(
        rows, sample_rate=protocol.sample_rate(round_number), steps=protocol.steps(round_number), randomness=randomness
    ):
        sums = [torch.zeros_like(p) for p in trainable(model)]
        for batch in loader.batches(members):
            part = engine.gradient_sum(model, batch, loss=loss)
            torch._foreach_add_(sums, part.sums)
            total += part.loss
        drawn += len(members)
        torch._foreach_div_(sums, float(len(members)))
        _check_finite(sums, total)
        clip_by_norm(sums, bound=terms.gradient_clip)
        update.step(sums)
    return total / drawn


def _check_finite(gradients: list[Tensor], loss: float) -> None:
    if not (math.isfinite(loss) and all(bool(torch.isfinite(n)) for n in torch._foreach_norm(gradients))):
        raise TrainerError(
            "training without privacy met a gradient that is not finite", found=f"loss {loss}",
            expected="finite numbers", remedy="check the cohort's values, or lower the learning rate",
        )  # fmt: skip


class _Loader:
    """Batches of patients on the device, augmented, in pieces of bounded memory. seconds: spent on fetching them."""

    def __init__(
        self, cohort: Films | EncodedCohort | TableOnly, protocol: Protocol, round_number: int, device: torch.device,
        randomness: Randomness, fields: Sequence[Sequence[int]],
    ) -> None:  # fmt: skip
        self.cohort, self._device, self._fields = cohort, device, fields
        self._terms = protocol.training.augmentation
        self._objective = protocol.training.phase(round_number).objective
        self._generator = randomness.generator()
        self._encoded = isinstance(cohort, EncodedCohort | TableOnly)
        pixels = 4 * 2 * protocol.pipeline.height * protocol.pipeline.width
        self._size = max(1, LOAD_BYTES // (4 * pixels))
        self.seconds = 0.0

    def batches(self, members: Rows) -> Iterator[PatientBatch]:
        """The patients at `members`, in order; nothing for an empty sample."""
        for start in range(0, len(members), self._size):
            began = time.monotonic()
            batch = self._move(self.cohort.batch(members[start : start + self._size].tolist()))
            self.seconds += time.monotonic() - began
            yield augment(
                batch, terms=self._terms, generator=self._generator, objective=self._objective, fields=self._fields,
                encoded=self._encoded,
            )  # fmt: skip

    def _move(self, batch: PatientBatch) -> PatientBatch:
        if self._device.type != "cuda":
            return batch
        return batch.each(lambda tensor: tensor.pin_memory()).to(self._device)

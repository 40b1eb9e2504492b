"""A third modality: registered, gated, trained and protected by the trainer as it is; without one nothing changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.training.engines import trainable
from client.training.hooks import OpacusEngine
from client.training.local import randomness_for, train_round
from client.training.loop import LoopEngine
from shared_model.cohort.batch import OtherInput, PatientBatch
from shared_model.errors import ConfigError
from shared_model.fusion import FusionConfig, FusionModel, build_model, patient_loss_B
from shared_model.fusion.modalities import Modality, forget, register
from tests.client.conftest import F, H, W, make_patients, make_protocol

WIDTH = 6  # numbers of the made-up third modality


class Ultrasound(nn.Module):
    def __init__(self, embedding: int) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, embedding)

    def forward(self, values: Tensor) -> Tensor:
        return torch.tanh(self.project(values))


@pytest.fixture
def ultrasound() -> Iterator[None]:
    register("ultrasound", Modality(build=lambda config: Ultrasound(config.spec.embedding), shape=(WIDTH,)))
    yield
    forget("ultrasound")


def model_of(*others: str, fusion: str = "gated", alive: bool = True) -> FusionModel:
    config = FusionConfig(size="tiny", fusion=fusion, n_clinical=F, height=H, width=W, others=others)  # type: ignore[arg-type]
    model = build_model(config, seed=1, prevalence=0.3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if alive and not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def with_third(batch: PatientBatch, *, seed: int = 5) -> PatientBatch:
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(len(batch), generator=g) < 0.6
    mask[2] = True
    values = torch.randn(len(batch), WIDTH, generator=g) + batch.labels_B.unsqueeze(1)
    return replace(batch, others={"ultrasound": OtherInput(values * mask.unsqueeze(1), mask)})


@dataclass(frozen=True)
class Cohort:
    """What a cohort with a third modality would hand out."""

    all: PatientBatch

    def __len__(self) -> int:
        return len(self.all)

    @property
    def labels(self) -> np.ndarray[Any, Any]:
        return self.all.labels_B.numpy().astype(np.uint8)

    def batch(self, indices: Sequence[int]) -> PatientBatch:
        return self.all.select(torch.as_tensor(np.asarray(indices), dtype=torch.int64))

    def rows(self, indices: Sequence[int]) -> PatientBatch:
        whole = self.batch(indices)
        return replace(whole, pixels_BVCHW=torch.empty(len(whole), 4, 0, 0, 0))


def test_the_gate_has_a_third_entry_that_is_zero_where_it_is_missing(ultrasound: None) -> None:
    batch, model = with_third(make_patients(12)), model_of("ultrasound").eval()
    output = model(batch)
    mask = batch.others["ultrasound"].mask_B
    assert output.other_gate_BK.shape == (12, 1)
    assert torch.equal(output.other_gate_BK[:, 0] > 0, mask)
    whole = torch.cat([output.gate_B2, output.other_gate_BK], dim=1).sum(dim=1)
    torch.testing.assert_close(whole, torch.ones(12))


def test_a_woman_without_it_is_scored_as_by_a_batch_without_it(ultrasound: None) -> None:
    batch, model = with_third(make_patients(12)), model_of("ultrasound").eval()
    alone = model(replace(batch, others={}))
    missing = ~batch.others["ultrasound"].mask_B
    torch.testing.assert_close(model(batch).logit_B[missing], alone.logit_B[missing])
    assert not torch.allclose(model(batch).logit_B[~missing], alone.logit_B[~missing])


@pytest.mark.parametrize("fusion", ["gated", "late"])
def test_a_new_modality_starts_by_saying_nothing(ultrasound: None, fusion: str) -> None:
    """Its head starts at zero: with the third token the evidence is the images' until something is learnt."""
    batch = with_third(make_patients(8))
    model = model_of("ultrasound", fusion=fusion, alive=False).eval()
    only = ~batch.others["ultrasound"].mask_B
    torch.testing.assert_close(model(batch).image_logit_B, model(replace(batch, others={})).image_logit_B)
    torch.testing.assert_close(model(batch).logit_B[only], model(replace(batch, others={})).logit_B[only])


@pytest.mark.parametrize("private", [False, True])
def test_the_trainer_trains_it_untouched(ultrasound: None, private: bool) -> None:
    cohort, model = Cohort(with_third(make_patients(30))), model_of("ultrasound")
    protocol = make_protocol(private=private)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train_round(
        model=model, cohort=cohort, indices=range(len(cohort)), protocol=protocol, site="a", round_number=3,  # type: ignore[arg-type]
        device=torch.device("cpu"), randomness=randomness_for(protocol, site="a", round_number=3),
    )  # fmt: skip
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {"others.ultrasound.encoder.project.weight", "others.ultrasound.other_head.weight"} <= changed


def test_per_patient_gradients_of_it_are_exact(ultrasound: None) -> None:
    """Both private engines give the clipped sum that one patient at a time gives, the third branch included."""
    batch, model, protocol = with_third(make_patients(9)), model_of("ultrasound"), make_protocol()

    def loss(output: Any, part: PatientBatch) -> Tensor:
        return patient_loss_B(output, part, terms=protocol.loss, objective="fusion")

    wanted = [torch.zeros_like(p) for p in trainable(model)]
    for index in range(len(batch)):
        alone = batch.patient(index)
        gradients = torch.autograd.grad(loss(model(alone), alone).sum(), trainable(model), allow_unused=True)
        known = [torch.zeros_like(p) if g is None else g for p, g in zip(trainable(model), gradients, strict=True)]
        norm = torch.stack([g.norm() for g in known]).norm()
        for total, gradient in zip(wanted, known, strict=True):
            total += gradient / max(1.0, float(norm) / 0.5)
    for engine in (LoopEngine(), OpacusEngine()):
        found = engine.clipped_sum(model, batch, clip=0.5, loss=loss).sums
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_without_others_the_model_is_what_it_was() -> None:
    """Names, shapes and numbers of the two-token gate, as the formula of two tokens gives them."""
    model, batch = model_of().eval(), make_patients(10)
    assert not [name for name, _ in model.named_parameters() if name.startswith("others")]
    output = model(batch)
    assert output.other_gate_BK.shape == (10, 0)
    image, table = output.gate_B2.unbind(1)
    prior = model.prior_logit
    both = (image > 0) & (table > 0)
    voices = (1 + both.float()) * (image * (output.image_logit_B - prior) + table * (output.clinical_logit_B - prior))
    torch.testing.assert_close(output.logit_B[~both], prior + voices[~both])


def test_what_cannot_be_is_refused(ultrasound: None) -> None:
    with pytest.raises(ConfigError, match="there already"):
        register("ultrasound", Modality(build=lambda config: nn.Identity(), shape=()))
    with pytest.raises(ConfigError, match="registered"):
        model_of("mri")
    with pytest.raises(ConfigError, match="films and table only"):
        model_of("ultrasound", fusion="mid")
    narrow = {"ultrasound": OtherInput(torch.zeros(4, WIDTH - 1), torch.ones(4, dtype=torch.bool))}
    with pytest.raises(ConfigError, match="another shape"):
        model_of("ultrasound")(replace(make_patients(4), others=narrow))

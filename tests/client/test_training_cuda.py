"""Training on a GPU against the CPU: engines, sensitivity, noise, a whole round. Needs CUDA: `pytest -m cuda`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from client.privacy.randomness import SecureRandomness
from client.training.engines import BatchGradient, GradientEngine, PatientLoss, parts, repeatable
from client.training.features import FeatureCache
from client.training.hooks import OpacusEngine
from client.training.local import randomness_for, train_round
from client.training.loop import LoopEngine
from client.training.norm import group_norm
from shared_model.cohort.batch import PatientBatch
from shared_model.fusion import FusionConfig, build_model, patient_loss_B
from shared_model.fusion.config import Size

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]
CUDA = torch.device("cuda")
Make = Callable[..., Any]
engines = pytest.mark.parametrize(
    "engine", [LoopEngine, functools.partial(LoopEngine, grouped=False), OpacusEngine], ids=["loop", "alone", "opacus"]
)


@pytest.fixture
def loss(small_protocol: Make) -> PatientLoss:
    return functools.partial(patient_loss_B, terms=small_protocol().loss, objective="fusion")


@pytest.fixture(autouse=True)
def as_in_a_round() -> Iterator[None]:
    with repeatable():
        yield


@pytest.fixture
def float32() -> Iterator[None]:
    """Convolutions as exact as the CPU's; what a study does is torch's default, TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().double().cpu().flatten() for t in tensors])


@pytest.mark.parametrize("engine", ["loop", "opacus"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_round_on_a_gpu(
    tiny_model: Make, memory_patients: Make, small_protocol: Make, engine: str, precision: str
) -> None:
    protocol = small_protocol(training__engine=engine, training__precision=precision,
                              training__augmentation__enabled=True)  # fmt: skip
    model = tiny_model()
    train_round(model=model, cohort=memory_patients(20), indices=range(20), protocol=protocol, site="a", round_number=3,
                device=CUDA, randomness=SecureRandomness())  # fmt: skip
    assert all(p.is_cuda and bool(torch.isfinite(p).all()) for p in model.parameters())


def test_without_privacy_a_round_is_repeatable_to_the_bit(
    tiny_model: Make, memory_patients: Make, small_protocol: Make
) -> None:
    protocol = small_protocol(private=False, training__augmentation__enabled=True)
    found = []
    for _ in range(3):
        model = tiny_model()
        train_round(model=model, cohort=memory_patients(20), indices=range(20), protocol=protocol, site="a",
                    round_number=3, device=CUDA,
                    randomness=randomness_for(protocol, site="a", round_number=3))  # fmt: skip
        found.append(flat(list(model.parameters())))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@engines
@pytest.mark.usefixtures("float32")
def test_the_clipped_sum_is_the_cpus(
    engine: Callable[..., GradientEngine], tiny_model: Make, patients: Make, loss: PatientLoss
) -> None:
    wanted = flat(LoopEngine(grouped=False).clipped_sum(tiny_model().train(), patients(8), clip=0.1, loss=loss).sums)
    found = flat(engine().clipped_sum(tiny_model().to(CUDA).train(), patients(8).to(CUDA), clip=0.1, loss=loss).sums)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4


@pytest.mark.usefixtures("float32")
def test_the_sum_without_privacy_is_the_cpus(tiny_model: Make, patients: Make, loss: PatientLoss) -> None:
    wanted = flat(BatchGradient().gradient_sum(tiny_model().train(), patients(8), loss=loss).sums)
    found = flat(BatchGradient().gradient_sum(tiny_model().to(CUDA).train(), patients(8).to(CUDA), loss=loss).sums)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4


@engines
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_patient_contributes_more_than_the_bound(
    engine: Callable[..., GradientEngine], precision: str, tiny_model: Make, patients: Make, loss: PatientLoss
) -> None:
    model, batch, clip = tiny_model().to(CUDA).train(), patients(8).to(CUDA), 0.01
    scaled = replace(batch, pixels_BVCHW=batch.pixels_BVCHW * 20.0, clinical_BF=batch.clinical_BF * 20.0)
    runner = engine(precision=precision)
    norms = [
        float(flat(runner.clipped_sum(model, one, clip=clip, loss=loss).sums).norm()) for one in parts(scaled, 1)
    ]
    assert 0.99 * clip < max(norms) <= 1.0001 * clip


@engines
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("size", "height", "width"), [("tiny", 32, 32), ("small", 224, 224), ("medium", 512, 256)])
def test_leaving_one_patient_out_moves_the_sum_by_the_bound_at_most(
    engine: Callable[..., GradientEngine], precision: str, size: Size, height: int, width: int, loss: PatientLoss
) -> None:
    """Adjacency itself: what the others contribute must not depend on who is with them, whatever kernel is taken."""
    config = FusionConfig(size=size, fusion="gated", n_clinical=6, height=height, width=width)
    model = build_model(config, seed=0, prevalence=0.3).to(CUDA).train()
    g, count, clip = torch.Generator().manual_seed(0), 21, 0.05
    there = torch.rand(count, 4, generator=g) < 0.8
    there[:, 0] = True  # bags of one to four films
    batch = PatientBatch(
        torch.rand(count, 4, 2, height, width, generator=g) * there[:, :, None, None, None], there,
        torch.randn(count, 6, generator=g), there[:, 0], (torch.arange(count) % 3 == 0).float(),
    ).to(CUDA)  # fmt: skip
    runner = engine(precision=precision)
    everybody = flat(runner.clipped_sum(model, batch, clip=clip, loss=loss).sums)
    for left_out in range(4):
        rest = batch.select(torch.tensor([i for i in range(count) if i != left_out], device=CUDA))
        moved = everybody - flat(runner.clipped_sum(model, rest, clip=clip, loss=loss).sums)
        hers = flat(runner.clipped_sum(model, batch.select(slice(left_out, left_out + 1)), clip=clip, loss=loss).sums)
        assert float(moved.norm()) <= 1.0001 * clip
        assert float((moved - hers).norm()) <= 1e-4 * clip


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_engines_group_norm_is_group_norm(layout: torch.memory_format) -> None:
    g = torch.Generator().manual_seed(0)
    norm, shape = nn.GroupNorm(4, 8), (3, 8, 40, 30)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(8, generator=g))
        norm.bias.copy_(torch.randn(8, generator=g))
    x, upstream = 3.0 + torch.randn(shape, generator=g), torch.randn(shape, generator=g)
    x64 = x.double().requires_grad_()
    exact = nn.GroupNorm(4, 8).double()
    exact.load_state_dict(norm.state_dict())
    wanted = torch.autograd.grad((exact(x64) * upstream).sum(), [x64, exact.weight, exact.bias])
    norm, given = norm.to(CUDA), x.to(CUDA).to(memory_format=layout).requires_grad_()
    found = torch.autograd.grad((group_norm(given, norm) * upstream.to(CUDA)).sum(), [given, norm.weight, norm.bias])
    for f, w in zip(found, wanted, strict=True):
        assert float((f.double().cpu() - w).norm() / w.norm()) < 1e-5


def test_a_film_s_descriptor_does_not_depend_on_who_else_is_encoded(tiny_model: Make, memory_patients: Make) -> None:
    model, cohort = tiny_model().to(CUDA), memory_patients(21)
    found = []
    for chosen in (np.arange(21), np.arange(0, 21, 2), np.arange(3)):
        cache = FeatureCache(cohort, load_bytes=1 << 20)
        found.append(cache.encoded(model, chosen, device=CUDA).batch([0, 2]).pixels_BVCHW)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_noise_made_on_the_gpu_is_normal_and_never_the_same() -> None:
    source = SecureRandomness()
    noise, other = (source.normal(3_000_001, std=2.5, device=CUDA) for _ in range(2))
    assert noise.is_cuda and noise.dtype == torch.float32 and not torch.equal(noise, other)
    numbers = noise.double().cpu().numpy() / 2.5
    assert stats.kstest(numbers[:1_000_000], "norm").pvalue > 1e-8
    assert abs(np.mean(numbers)) < 6 / np.sqrt(numbers.size)
    assert abs(np.mean(numbers**2) - 1) < 6 * np.sqrt(2 / numbers.size)
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 6 / np.sqrt(numbers.size)

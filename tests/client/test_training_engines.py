"""Per-patient gradients: every clipped sum is that of one-at-a-time autograd, and nobody contributes more than C."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from client.training import hooks, loop, rows
from client.training import norm as norm_module
from client.training.engines import BatchGradient, GradientEngine, PatientLoss, parts, trainable
from client.training.hooks import OpacusEngine
from client.training.loop import LoopEngine
from client.training.norm import group_norm
from shared_model.cohort.batch import PatientBatch
from shared_model.errors import PrivacyError
from shared_model.fusion import FusionModel, FusionOutput, patient_loss_B
from shared_model.fusion.config import Fusion
from shared_model.protocol import Protocol

ENGINES: dict[str, Callable[..., GradientEngine]] = {
    "loop": LoopEngine, "loop-alone": functools.partial(LoopEngine, grouped=False),
    "loop-2-workers": functools.partial(LoopEngine, workers=2), "opacus": OpacusEngine,
}  # fmt: skip
engines = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES.keys())
conv = rows._conv


def loss_of(protocol: Protocol, objective: str = "fusion") -> PatientLoss:
    return functools.partial(patient_loss_B, terms=protocol.loss, objective=objective)  # type: ignore[arg-type]


def one_at_a_time(model: nn.Module, batch: PatientBatch, loss: PatientLoss, clip: float) -> list[Tensor]:
    """The definition: each patient's gradient by autograd alone, norm in float64, clipped, summed in float64."""
    parameters = trainable(model)
    total = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    for patient in parts(batch, 1):
        value = loss(model(patient), patient).sum()
        if not value.requires_grad:
            continue
        gradients = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
        norm = torch.cat([g.double().flatten() for g in gradients]).norm()
        for t, g in zip(total, gradients, strict=True):
            t += g.double() * min(1.0, clip / float(norm)) if norm > 0 else g.double()
    return total


def norm_of(tensors: list[Tensor]) -> float:
    return float(torch.cat([t.double().flatten() for t in tensors]).norm())


def distance(found: list[Tensor], wanted: list[Tensor]) -> float:
    return norm_of([f.double() - w for f, w in zip(found, wanted, strict=True)]) / norm_of(wanted)


@engines
@pytest.mark.parametrize("objective", ["image", "fusion"])
@pytest.mark.parametrize("fusion", get_args(Fusion))
def test_clipped_sum_equals_one_at_a_time(
    engine: Callable[..., GradientEngine], fusion: str, objective: str, tiny_model: Callable[..., FusionModel],
    patients: Callable[..., PatientBatch], small_protocol: Callable[..., Protocol],
) -> None:  # fmt: skip
    """Ragged bags, a woman with one film, one without films, one without a table row; clipped or not."""
    model, batch = tiny_model(fusion).train(), patients(10)
    loss = loss_of(small_protocol(), objective)
    for clip in (0.05, 1.0, 1e4):
        found = engine().clipped_sum(model, batch, clip=clip, loss=loss)
        assert found.finite == 10
        assert all(t.dtype == torch.float32 for t in found.sums)
        assert distance(found.sums, one_at_a_time(model, batch, loss, clip)) < 1e-5


@engines
def test_every_parameter_takes_part(
    engine: Callable[..., GradientEngine], tiny_model: Callable[..., FusionModel],
    patients: Callable[..., PatientBatch], small_protocol: Callable[..., Protocol],
) -> None:  # fmt: skip
    model = tiny_model().train()
    sums = engine().clipped_sum(model, patients(10), clip=1.0, loss=loss_of(small_protocol())).sums
    assert len(sums) == len(list(model.parameters())) and all(bool(t.any()) for t in sums)


@engines
def test_frozen_parameters_stay_out_of_the_norm(
    engine: Callable[..., GradientEngine], tiny_model: Callable[..., FusionModel],
    patients: Callable[..., PatientBatch], small_protocol: Callable[..., Protocol],
) -> None:  # fmt: skip
    model, batch = tiny_model().train(), patients(6)
    model.encoder.requires_grad_(False)
    loss = loss_of(small_protocol())
    found = engine().clipped_sum(model, batch, clip=0.05, loss=loss)
    assert len(found.sums) == len(trainable(model)) < len(list(model.parameters()))
    assert distance(found.sums, one_at_a_time(model, batch, loss, 0.05)) < 1e-5


@engines
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("scale", [1.0, 20.0, 1e4])
def test_no_patient_contributes_more_than_the_bound(
    engine: Callable[..., GradientEngine], precision: str, scale: float, tiny_model: Callable[..., FusionModel],
    patients: Callable[..., PatientBatch], small_protocol: Callable[..., Protocol],
) -> None:  # fmt: skip
    """Sensitivity, as the accountant takes it: a patient alone, with inputs out of all proportion, weighs C at most."""
    model, batch, clip = tiny_model().train(), patients(8), 0.01
    loss = loss_of(small_protocol())
    scaled = replace(batch, pixels_BVCHW=batch.pixels_BVCHW * scale, clinical_BF=batch.clinical_BF * scale)
    runner = engine(precision=precision)
    norms = [norm_of(runner.clipped_sum(model, one, clip=clip, loss=loss).sums) for one in parts(scaled, 1)]
    assert max(norms) <= 1.0001 * clip
    assert max(norms) > 0.99 * clip  # the bound was really at work


@engines
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_leaving_one_patient_out_moves_the_sum_by_the_bound_at_most(
    engine: Callable[..., GradientEngine], precision: str, tiny_model: Callable[..., FusionModel],
    patients: Callable[..., PatientBatch], small_protocol: Callable[..., Protocol],
) -> None:  # fmt: skip
    """Adjacency itself, inside a batch: catches films clipped one by one and losses that couple patients."""
    model, batch, clip = tiny_model().train(), patients(7), 0.05
    loss, runner = loss_of(small_protocol()), engine(precision=precision)
    everybody = runner.clipped_sum(model, batch, clip=clip, loss=loss).sums
    for left_out in range(7):
        rest = torch.tensor([i for i in range(7) if i != left_out])
        without = batch.select(rest)
        others = runner.clipped_sum(model, without, clip=clip, loss=loss).sums
        moved = norm_of([a.double() - b.double() for a, b in zip(everybody, others, strict=True)])
        # bf16: the others' own gradients change a little with the shapes of the matrix products, in hooks only
        assert moved <= clip * 1.0001


@engines
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_a_patient_that_is_not_finite_counts_zero(
    engine: Callable[..., GradientEngine], poison: float, tiny_model: Callable[..., FusionModel],
    patients: Callable[..., PatientBatch], small_protocol: Callable[..., Protocol],
) -> None:  # fmt: skip
    model, batch = tiny_model().train(), patients(5)
    loss = loss_of(small_protocol())
    batch.pixels_BVCHW[4] = poison
    batch.view_mask_BV[4] = True
    batch.clinical_BF[4] = poison
    batch.clinical_mask_B[4] = True
    found = engine().clipped_sum(model, batch, clip=0.1, loss=loss)
    healthy = one_at_a_time(model, next(parts(batch, 4)), loss, 0.1)
    assert found.finite == 4
    assert distance(found.sums, healthy) < 1e-5


@engines
def test_an_empty_batch_gives_zeros(
    engine: Callable[..., GradientEngine], tiny_model: Callable[..., FusionModel],
    patients: Callable[..., PatientBatch], small_protocol: Callable[..., Protocol],
) -> None:  # fmt: skip
    nobody = next(parts(patients(2), 2))
    nobody = nobody.select(slice(0, 0))
    found = engine().clipped_sum(tiny_model().train(), nobody, clip=1.0, loss=loss_of(small_protocol()))
    assert found.finite == 0 and not any(bool(t.any()) for t in found.sums)


@engines
def test_a_patient_without_films_has_no_gradient_in_an_image_phase(
    engine: Callable[..., GradientEngine], tiny_model: Callable[..., FusionModel],
    patients: Callable[..., PatientBatch], small_protocol: Callable[..., Protocol],
) -> None:  # fmt: skip
    table_only = patients(4).select(slice(2, 3))
    found = engine().clipped_sum(tiny_model().train(), table_only, clip=1.0, loss=loss_of(small_protocol(), "image"))
    assert found.finite == 1 and not any(bool(t.any()) for t in found.sums)


def test_folded_views_under_hooks_would_break_the_bound(
    tiny_model: Callable[..., FusionModel], patients: Callable[..., PatientBatch],
    small_protocol: Callable[..., Protocol], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Why the engine unfolds: rows that are films instead of patients are refused, not clipped one by one."""
    monkeypatch.setattr("client.training.hooks.fold_views", lambda model, folded: None)
    with pytest.raises(PrivacyError, match="other rows than patients"):
        OpacusEngine().clipped_sum(tiny_model().train(), patients(6), clip=1.0, loss=loss_of(small_protocol()))


def test_the_hooks_leave_the_model_as_it_was(
    tiny_model: Callable[..., FusionModel], patients: Callable[..., PatientBatch],
    small_protocol: Callable[..., Protocol],
) -> None:
    model = tiny_model().train()
    names = set(model.state_dict())
    for poisoned in (False, True):
        def loss(output: object, batch: PatientBatch, poisoned: bool = poisoned) -> Tensor:
            if poisoned:
                raise RuntimeError("interrupted")
            return loss_of(small_protocol())(output, batch)  # type: ignore[arg-type]

        if poisoned:
            with pytest.raises(RuntimeError, match="interrupted"):
                OpacusEngine().clipped_sum(model, patients(3), clip=1.0, loss=loss)
        else:
            OpacusEngine().clipped_sum(model, patients(3), clip=1.0, loss=loss)
        assert model.fold_views and set(model.state_dict()) == names
        assert all(p.grad is None and not hasattr(p, "grad_sample") for p in model.parameters())
        assert not any("activations" in m.__dict__ or m._forward_hooks or m._backward_hooks for m in model.modules())
    sums = OpacusEngine().clipped_sum(model, patients(5), clip=0.1, loss=loss_of(small_protocol())).sums
    assert distance(sums, one_at_a_time(model, patients(5), loss_of(small_protocol()), 0.1)) < 1e-5


class AnyLayer(nn.Module):
    """Layers that hooks do not know: a bare parameter, attention, a recurrent net; bags of any number of films."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.reduce = nn.Linear(2 * 6 * 5, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.recurrent = nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, 1)

    def forward(self, batch: PatientBatch) -> tuple[Tensor]:
        films = self.reduce(nn.functional.adaptive_avg_pool2d(batch.pixels_BVCHW.flatten(0, 1), (6, 5)).flatten(1))
        query = self.token.expand(len(batch), 1, 8)
        mask = ~batch.view_mask_BV & batch.view_mask_BV.any(1, keepdim=True)
        attended, _ = self.attention(query, films.unflatten(0, (len(batch), 4)), films.unflatten(0, (len(batch), 4)),
                                     key_padding_mask=mask)  # fmt: skip
        states, _ = self.recurrent(attended)
        return (self.head(states[:, -1]).squeeze(1),)


def test_the_loop_takes_any_layer(patients: Callable[..., PatientBatch]) -> None:
    torch.manual_seed(0)
    model, batch = AnyLayer(), patients(6)

    def loss(output: object, batch: PatientBatch) -> Tensor:
        (logit_B,) = output  # type: ignore[misc]
        return nn.functional.softplus((1 - 2 * batch.labels_B) * logit_B)

    for clip in (0.01, 10.0):
        found = LoopEngine().clipped_sum(model, batch, clip=clip, loss=loss).sums
        assert distance(found, one_at_a_time(model, batch, loss, clip)) < 1e-5


@pytest.mark.parametrize("trained", ["norm", "first", "view_embedding", "clinical", "image_head"])
def test_groups_are_exact_for_any_choice_of_trained_layers(
    trained: str, tiny_model: Callable[..., FusionModel], patients: Callable[..., PatientBatch],
    small_protocol: Callable[..., Protocol],
) -> None:  # fmt: skip
    """Also where the first trained layer is a norm behind frozen convolutions, or sits in one branch only."""
    model, batch, loss = tiny_model().train(), patients(12), loss_of(small_protocol())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    found = LoopEngine().clipped_sum(model, batch, clip=0.05, loss=loss)
    assert found.finite == 12
    assert distance(found.sums, one_at_a_time(model, batch, loss, 0.05)) < 1e-5


@pytest.mark.parametrize("engine", [LoopEngine, OpacusEngine])
def test_passes_of_one_size_as_on_a_gpu_change_no_sum(
    engine: Callable[..., GradientEngine], tiny_model: Callable[..., FusionModel],
    patients: Callable[..., PatientBatch], small_protocol: Callable[..., Protocol], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What fills a pass up to its size is computed and dropped."""
    for module in (loop, hooks):
        monkeypatch.setattr(module, "ONE_SIZE", ("cpu",))
    model, given = tiny_model().train(), loss_of(small_protocol())
    sizes: dict[int, set[int]] = {}  # of passes, by films a patient; hooks take all four views of everybody

    def loss(output: FusionOutput, batch: PatientBatch) -> Tensor:
        films = set(batch.view_mask_BV.sum(1).tolist()) if engine is LoopEngine else {4}
        assert len(films) == 1
        sizes.setdefault(films.pop(), set()).add(len(batch))
        return given(output, batch)

    for count in (0, 1, 5, 13):
        batch = patients(13).select(slice(0, count))
        found = engine().clipped_sum(model, batch, clip=0.05, loss=loss)
        assert found.finite == count
        if count:
            assert distance(found.sums, one_at_a_time(model, batch, given, 0.05)) < 1e-5
    checked = {1} if engine is LoopEngine else set()  # whom the engine looks at alone, to compare a group with
    assert sizes and all(len(found - checked) == 1 for found in sizes.values())


def test_the_group_that_is_checked_has_films_and_rows_that_could_be_exchanged(
    tiny_model: Callable[..., FusionModel], patients: Callable[..., PatientBatch],
    small_protocol: Callable[..., Protocol], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A fault in convolutions alone, which a woman without films, or one who is alone in her group, cannot show."""
    monkeypatch.setattr(loop, "ONE_SIZE", ("cpu",))
    monkeypatch.setattr(rows, "_conv", lambda module, given, gradient, weight, bias: conv(
        module, given.flip(0), gradient, weight, bias))  # fmt: skip
    batch = full_bags(patients(7))
    batch.view_mask_BV[0] = False
    with pytest.raises(PrivacyError, match="gradients of a group are not those of its patients"):
        LoopEngine().clipped_sum(tiny_model().train(), batch, clip=0.05, loss=loss_of(small_protocol()))


def test_groups_leave_the_model_as_it_was(
    tiny_model: Callable[..., FusionModel], patients: Callable[..., PatientBatch],
    small_protocol: Callable[..., Protocol],
) -> None:  # fmt: skip
    model = tiny_model().train()
    model.image_head.requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]

    def interrupted(output: object, batch: PatientBatch) -> Tensor:
        raise RuntimeError("interrupted")

    LoopEngine().clipped_sum(model, patients(8), clip=0.1, loss=loss_of(small_protocol()))
    with pytest.raises(RuntimeError, match="interrupted"):
        LoopEngine().clipped_sum(model, patients(8), clip=0.1, loss=interrupted)
    assert [p.requires_grad for p in model.parameters()] == before
    assert not any("forward" in module.__dict__ for module in model.modules())


def full_bags(batch: PatientBatch) -> PatientBatch:
    return replace(batch, view_mask_BV=torch.ones_like(batch.view_mask_BV))


def test_rows_in_another_order_than_the_patients_are_refused(
    tiny_model: Callable[..., FusionModel], patients: Callable[..., PatientBatch],
    small_protocol: Callable[..., Protocol],
) -> None:  # fmt: skip
    """A model that lays films out view by view would hand each patient films of others: found before any noise."""
    model = tiny_model().train()

    def view_by_view(pixels_BVCHW: Tensor, view_mask_BV: Tensor) -> Tensor:
        films = model.encoder(pixels_BVCHW.transpose(0, 1).flatten(0, 1))
        return films.unflatten(0, (4, len(view_mask_BV))).transpose(0, 1)

    model.encode = view_by_view  # type: ignore[method-assign]
    with pytest.raises(PrivacyError, match="not those of its patients"):
        LoopEngine().clipped_sum(model, full_bags(patients(6)), clip=0.1, loss=loss_of(small_protocol()))


def test_weights_used_behind_a_layers_back_are_noticed(
    tiny_model: Callable[..., FusionModel], patients: Callable[..., PatientBatch],
    small_protocol: Callable[..., Protocol],
) -> None:  # fmt: skip
    model = tiny_model().train()

    def penalised(output: object, batch: PatientBatch) -> Tensor:
        return loss_of(small_protocol())(output, batch) + model.image_head.weight.square().sum()  # type: ignore[arg-type]

    with pytest.raises(PrivacyError, match="not those of its patients"):
        LoopEngine().clipped_sum(model, full_bags(patients(6)), clip=0.1, loss=penalised)


@pytest.mark.parametrize("fusion", get_args(Fusion))
def test_where_float32_cannot_tell_float64_does(
    fusion: Fusion, tiny_model: Callable[..., FusionModel], patients: Callable[..., PatientBatch],
    small_protocol: Callable[..., Protocol], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A model that noise threw far off: rows and autograd differ by 1e-2 in float32, and no patient is mistaken."""
    gaps: list[float | None] = []
    measure = loop._gap
    monkeypatch.setattr(loop, "AGREEMENT", {"cpu": 0.0})
    monkeypatch.setattr(loop, "_gap", lambda *given: gaps.append(measure(*given)) or gaps[-1])
    model, batch, loss = tiny_model(fusion=fusion).train(), full_bags(patients(7)), loss_of(small_protocol())
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=g))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    LoopEngine().clipped_sum(model, batch, clip=0.1, loss=loss)
    in_float32, in_float64 = gaps
    assert in_float32 is not None and in_float64 is not None and in_float64 < 1e-9 < in_float32
    assert all(p.dtype == torch.float32 and torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_random_layers_and_unknown_ones_go_one_at_a_time(tiny_model: Callable[..., FusionModel]) -> None:
    from client.training.rows import unknown_layers

    assert unknown_layers(tiny_model()) == []
    assert unknown_layers(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))) == ["1"]
    assert unknown_layers(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, dilation=2))) == ["0", "1"]
    assert unknown_layers(nn.Sequential(nn.Conv2d(4, 4, 3, padding_mode="reflect"), nn.PReLU())) == ["0", "1"]
    assert set(unknown_layers(AnyLayer())) >= {"", "attention", "recurrent"}


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (5, 2, 2), (1, 2, 0)])
def test_a_convolution_of_all_patients_at_once_as_on_a_gpu_has_each_ones_gradient(
    kernel: int, stride: int, padding: int
) -> None:
    g, patients, films = torch.Generator().manual_seed(0), 3, 2
    layer = nn.Conv2d(4, 6, kernel, stride, padding)
    given = torch.randn(patients, films, 4, 17, 13, generator=g)
    output = layer(given.flatten(0, 1)).unflatten(0, (patients, films))
    upstream = torch.randn(output.shape, generator=g)
    wanted = [torch.autograd.grad((o * u).sum(), layer.weight, retain_graph=True)[0]
              for o, u in zip(output, upstream, strict=True)]  # fmt: skip
    found = torch.zeros(patients, *layer.weight.shape)
    with torch.no_grad():
        rows._conv_at_once(layer, given, upstream, found)
    assert distance(list(found), wanted) < 1e-5


@pytest.mark.parametrize("shape", [(3, 8, 40, 30), (2, 16, 33, 35), (1, 8, 5, 7)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("gpu", [False, True])
def test_the_fast_group_norm_is_group_norm(
    shape: tuple[int, ...], layout: torch.memory_format, gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against torch's own in float64, forward and backward; `gpu`: by the formula that a GPU takes."""
    if gpu:
        monkeypatch.setattr(norm_module, "_by_cells", norm_module._whole)
        layout = torch.contiguous_format
    g = torch.Generator().manual_seed(0)
    norm = nn.GroupNorm(4, shape[1])
    with torch.no_grad():
        norm.weight.copy_(torch.randn(shape[1], generator=g))
        norm.bias.copy_(torch.randn(shape[1], generator=g))
    x = (3.0 + torch.randn(shape, generator=g)).to(memory_format=layout).requires_grad_()
    upstream = torch.randn(shape, generator=g)
    y = group_norm(x, norm)
    found = torch.autograd.grad((y * upstream).sum(), [x, norm.weight, norm.bias])
    exact = nn.GroupNorm(4, shape[1]).double()
    exact.load_state_dict({k: v.double() for k, v in norm.state_dict().items()})
    x64 = x.detach().double().requires_grad_()
    y64 = exact(x64)
    wanted = torch.autograd.grad((y64 * upstream).sum(), [x64, exact.weight, exact.bias])
    torch.testing.assert_close(y.double(), y64, rtol=1e-5, atol=1e-5)
    for f, w in zip(found, wanted, strict=True):
        assert distance([f], [w]) < 1e-5


def test_mini_batches_give_the_sum_of_all_gradients(
    tiny_model: Callable[..., FusionModel], patients: Callable[..., PatientBatch],
    small_protocol: Callable[..., Protocol], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model, batch, loss = tiny_model().train(), patients(7), loss_of(small_protocol())
    wanted = one_at_a_time(model, batch, loss, float("inf"))
    total = float(loss(model(batch), batch).sum().detach())
    for pixels in (1, 3 * 4 * 40 * 32, 1 << 30):
        monkeypatch.setattr("client.training.engines.MICRO_PIXELS", {"cpu": pixels})
        found = BatchGradient().gradient_sum(model, batch, loss=loss)
        assert distance(found.sums, wanted) < 1e-5 and found.loss == pytest.approx(total, rel=1e-5)


def test_bf16_stays_near_fp32(
    tiny_model: Callable[..., FusionModel], patients: Callable[..., PatientBatch],
    small_protocol: Callable[..., Protocol],
) -> None:
    model, batch, loss = tiny_model().train(), patients(6), loss_of(small_protocol())
    exact = LoopEngine().clipped_sum(model, batch, clip=0.1, loss=loss).sums
    coarse = LoopEngine(precision="bf16").clipped_sum(model, batch, clip=0.1, loss=loss).sums
    assert all(t.dtype == torch.float32 for t in coarse)
    assert 1e-5 < distance(coarse, [t.double() for t in exact]) < 0.2

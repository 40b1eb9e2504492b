"""The fusion model: masks that are exact, equal paths, per-patient gradients, weights as arrays."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from opacus import GradSampleModule
from opacus.validators import ModuleValidator

from shared_model.cohort.batch import PatientBatch
from shared_model.errors import ConfigError, WeightsError
from shared_model.fusion import (
    SIZES,
    FusionConfig,
    FusionModel,
    arrays_of,
    build_model,
    load_arrays,
    load_image_branch,
    patient_loss_B,
)
from shared_model.protocol import LossTerms

F, H, W = 10, 48, 40
MODES = ("gated", "early", "mid", "late")
LOSS = LossTerms(kind="bce", prevalence=0.25, pos_weight=2.0, focal_gamma=2.0, focal_alpha=0.7, auxiliary=0.5)


def make_model(fusion: str = "gated", *, seed: int = 0, lively: bool = True) -> FusionModel:
    """A tiny model; `lively` shakes the layers that start at zero, so that every path carries something."""
    config = FusionConfig(size="tiny", fusion=fusion, n_clinical=F, height=H, width=W)  # type: ignore[arg-type]
    model = build_model(config, seed=seed, prevalence=0.25)
    if lively:
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def make_batch(views: list[list[int]], table: list[int], *, seed: int = 0) -> PatientBatch:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.tensor(views, dtype=torch.bool)
    pixels = torch.rand(len(views), 4, 2, H, W, generator=generator) * mask[:, :, None, None, None]
    rows = torch.randn(len(views), F, generator=generator)
    labels = (torch.rand(len(views), generator=generator) > 0.5).float()
    return PatientBatch(pixels, mask, rows, torch.tensor(table, dtype=torch.bool), labels)


MIXED = ([[1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]], [1, 1, 0, 1, 1, 0])


@pytest.mark.parametrize("fusion", MODES)
def test_folded_and_unfolded_views_give_the_same_output(fusion: str) -> None:
    model, batch = make_model(fusion), make_batch(*MIXED)
    folded = model(batch)
    model.fold_views = False
    for one, other in zip(folded, model(batch), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fusion", MODES)
@pytest.mark.parametrize("fold", [True, False])
def test_reduced_precision_keeps_masks_exact_and_scores_close(fusion: str, fold: bool) -> None:
    model, batch = make_model(fusion), make_batch(*MIXED)
    exact = model(batch)
    model.fold_views = fold
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(batch)
    assert torch.equal(rough.gate_B2 == 0, exact.gate_B2 == 0)
    assert torch.equal(rough.view_weights_BV == 0, exact.view_weights_BV == 0)
    torch.testing.assert_close(rough.logit_B.float(), exact.logit_B, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("fusion", MODES)
def test_missing_parts_have_weight_exactly_zero(fusion: str) -> None:
    model, batch = make_model(fusion), make_batch(*MIXED)
    output = model(batch)
    assert (output.view_weights_BV[~batch.view_mask_BV] == 0).all()
    torch.testing.assert_close(output.view_weights_BV.sum(1), batch.view_mask_BV.any(1).float())
    present = batch.modality_mask_B2
    assert (output.gate_B2[present == 0] == 0).all()
    alone = present.sum(1) == 1
    assert (output.gate_B2[alone] == present[alone]).all()
    torch.testing.assert_close(output.gate_B2.sum(1), (present.sum(1) > 0).float())


@pytest.mark.parametrize("fusion", MODES)
def test_one_modality_alone_speaks_for_itself(fusion: str) -> None:
    model, batch = make_model(fusion), make_batch(*MIXED)
    output, prior = model(batch), model.prior_logit
    image, table = batch.modality_mask_B2.bool().T
    assert torch.equal(output.logit_B[image & ~table], output.image_logit_B[image & ~table])
    assert torch.equal(output.logit_B[table & ~image], output.clinical_logit_B[table & ~image])
    nothing = ~image & ~table
    assert torch.equal(output.logit_B[nothing], torch.full((int(nothing.sum()),), prior))
    assert torch.equal(output.image_logit_B[~image], torch.full((int((~image).sum()),), prior))
    assert torch.equal(output.clinical_logit_B[~table], torch.full((int((~table).sum()),), prior))


@pytest.mark.parametrize("fusion", MODES)
def test_what_is_missing_cannot_be_seen(fusion: str) -> None:
    """Rubbish in the slots of missing films and rows, even NaN, changes nothing."""
    model, batch = make_model(fusion), make_batch(*MIXED)
    pixels, rows = batch.pixels_BVCHW.clone(), batch.clinical_BF.clone()
    pixels[~batch.view_mask_BV] = float("nan")
    rows[~batch.clinical_mask_B] = float("nan")
    spoilt = PatientBatch(pixels, batch.view_mask_BV, rows, batch.clinical_mask_B, batch.labels_B)
    for one, other in zip(model(batch), model(spoilt), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("fusion", MODES)
def test_present_parts_count(fusion: str) -> None:
    """A model that ignores one input would pass every other test."""
    model, batch = make_model(fusion), make_batch([[1, 1, 1, 1]] * 4, [1] * 4)
    logit = model(batch).logit_B
    other_films = PatientBatch(
        batch.pixels_BVCHW.roll(1, 0), batch.view_mask_BV, batch.clinical_BF, batch.clinical_mask_B, batch.labels_B
    )
    other_rows = PatientBatch(
        batch.pixels_BVCHW, batch.view_mask_BV, batch.clinical_BF.roll(1, 0), batch.clinical_mask_B, batch.labels_B
    )
    assert (model(other_films).logit_B - logit).abs().min() > 1e-4
    assert (model(other_rows).logit_B - logit).abs().min() > 1e-4


@pytest.mark.parametrize("fusion", MODES)
def test_at_first_the_fused_logit_is_the_image_logit(fusion: str) -> None:
    output = make_model(fusion, lively=False)(make_batch([[1, 1, 1, 1], [1, 0, 0, 0]], [1, 1]))
    assert torch.equal(output.logit_B, output.image_logit_B)
    assert output.logit_B.unique().numel() == 2


@pytest.mark.parametrize("fusion", MODES)
@pytest.mark.parametrize("subset", [s for n in (1, 2, 3) for s in itertools.combinations(range(4), n)])
def test_a_patient_alone_with_only_her_views(fusion: str, subset: tuple[int, ...]) -> None:
    """A ragged engine may hand over one woman with just her films; the answer is the one she gets in a full batch."""
    model = make_model(fusion)
    views = [int(v in subset) for v in range(4)]
    batch = make_batch([[1, 1, 1, 1], views], [1, 1])
    expected = model(batch)
    alone = batch.patient(1)
    index = torch.tensor([subset])
    for fold in (True, False):
        model.fold_views = fold
        got = model.forward_tensors(
            alone.pixels_BVCHW[:, list(subset)], alone.view_mask_BV[:, list(subset)], alone.clinical_BF,
            alone.modality_mask_B2, index,
        )  # fmt: skip
        torch.testing.assert_close(got.logit_B, expected.logit_B[1:], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got.view_weights_BV[0], expected.view_weights_BV[1, list(subset)])


def test_views_without_their_positions_are_refused() -> None:
    model, batch = make_model(), make_batch([[1, 1, 1, 1]], [1])
    with pytest.raises(ConfigError, match="view positions"):
        model.forward_tensors(
            batch.pixels_BVCHW[:, :2], batch.view_mask_BV[:, :2], batch.clinical_BF, batch.modality_mask_B2
        )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fusion", MODES)
def test_every_layer_has_exact_per_sample_gradients(size: str, fusion: str) -> None:
    spec = SIZES[size]  # type: ignore[index]
    config = FusionConfig(size=size, fusion=fusion, n_clinical=F, height=spec.height, width=spec.width)  # type: ignore[arg-type]
    model = build_model(config, seed=0, prevalence=0.2)
    assert ModuleValidator.validate(model, strict=False) == []
    assert list(model.buffers()) == []
    own = [n for m in model.modules() if not isinstance(m, torch.nn.Conv2d | torch.nn.Linear | torch.nn.Embedding
           | torch.nn.GroupNorm | torch.nn.LayerNorm) for n, _ in m.named_parameters(recurse=False)]  # fmt: skip
    assert own == [], "a bare parameter would see only its owner's first input"


def _alone(model: FusionModel, batch: PatientBatch, objective: str) -> list[dict[str, torch.Tensor]]:
    gradients = []
    parameters = dict(model.named_parameters())
    for index in range(len(batch)):
        one = batch.patient(index)
        loss = patient_loss_B(model(one), one, terms=LOSS, objective=objective).sum()  # type: ignore[arg-type]
        parts = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
        gradients.append(dict(zip(parameters, parts, strict=True)))
    return gradients


@pytest.mark.parametrize("fusion", MODES)
@pytest.mark.parametrize("objective", ["image", "fusion"])
def test_hooks_give_each_patients_own_gradient(fusion: str, objective: str) -> None:
    model, batch = make_model(fusion), make_batch(MIXED[0][:5], MIXED[1][:5])
    expected = _alone(model, batch, objective)
    model.fold_views = False
    hooked = GradSampleModule(model, loss_reduction="sum")
    patient_loss_B(hooked(batch), batch, terms=LOSS, objective=objective).sum().backward()  # type: ignore[arg-type]
    seen = 0
    for name, parameter in hooked._module.named_parameters():
        sample = parameter.grad_sample
        if sample is None:
            assert all(one[name].abs().max() == 0 for one in expected), name
            continue
        seen += 1
        sample = sum(sample) if isinstance(sample, list) else sample
        assert sample.shape[0] == len(batch), name
        for index, one in enumerate(expected):
            torch.testing.assert_close(sample[index], one[name], rtol=1e-4, atol=1e-5)
    assert seen >= 20


def test_the_missing_get_no_gradient() -> None:
    model = make_model()
    batch = make_batch([[0, 0, 0, 0], [1, 1, 1, 1]], [1, 0])
    table_only, films_only = _alone(model, batch, "fusion")
    image = set(model.image_parameters())
    assert all(table_only[name].abs().max() == 0 for name in image)
    assert all(films_only[name].abs().max() == 0 for name in films_only if name.startswith("clinical"))
    assert any(films_only[name].abs().max() > 0 for name in image)


def test_groups_of_parameters() -> None:
    model = make_model()
    names = {name for name, _ in model.named_parameters()}
    low, high = set(model.encoder_parameters()), set(model.fusion_parameters())
    assert low | high == names
    assert not low & high
    assert set(model.image_parameters()) - low == {"image_head.weight", "image_head.bias"}
    assert model.trainable_parameters("image") == model.image_parameters()
    resting = {"image_direct.weight", "image_direct.bias"}  # the image's head can say all that these can
    assert set(model.trainable_parameters("fusion")) == names - resting
    straight = {"clinical_direct.weight", "clinical_direct.bias"}
    assert set(model.trainable_parameters("fusion", "linear")) == resting | straight
    assert set(model.trainable_parameters("image", "linear")) == resting
    assert set(model.trainable_parameters("clinical", "linear")) == straight


def test_same_seed_same_bits_and_global_generator_untouched() -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    one, two, three = (arrays_of(make_model(seed=s, lively=False)) for s in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not np.array_equal(one["encoder.stem.weight"], three["encoder.stem.weight"])


def test_arrays_round_trip_and_are_copies() -> None:
    model, other = make_model(seed=1), make_model(seed=2)
    arrays = arrays_of(model)
    load_arrays(other, arrays)
    batch = make_batch(*MIXED)
    assert torch.equal(model(batch).logit_B, other(batch).logit_B)
    arrays["encoder.stem.weight"][:] = 0
    assert model.encoder.stem.weight.abs().max() > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.pop("image_head.bias"), "missing"),
        (lambda a: a.update(extra=np.zeros(1, np.float32)), "unknown"),
        (lambda a: a.update({"image_head.weight": np.zeros((1, 1), np.float32)}), "image_head.weight"),
        (lambda a: a.update({"image_head.weight": a["image_head.weight"].astype(np.float64)}), "float64"),
        (lambda a: a["image_head.weight"].fill(np.nan), "finite"),
    ],
)
def test_wrong_weights_are_refused_and_change_nothing(change: object, words: str) -> None:
    model = make_model(seed=1)
    before = arrays_of(model)
    arrays = {name: array + 1 for name, array in before.items()}
    change(arrays)  # type: ignore[operator]
    with pytest.raises(WeightsError, match=words):
        load_arrays(model, arrays)
    assert all(np.array_equal(before[name], array) for name, array in arrays_of(model).items())


def test_the_image_branch_alone_can_be_loaded_into_any_fusion_mode() -> None:
    source = make_model("gated", seed=5, lively=False)
    arrays = {name: array for name, array in arrays_of(source).items() if name in set(source.image_parameters())}
    batch = make_batch([[1, 1, 1, 1], [1, 0, 0, 1]], [1, 1])
    expected = source(batch).image_logit_B
    for fusion in MODES:
        model = make_model(fusion, seed=9, lively=False)
        load_image_branch(model, arrays)
        output = model(batch)
        assert torch.equal(output.image_logit_B, expected)
        assert torch.equal(output.logit_B, expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"size": "huge"}, "size"), ({"fusion": "none"}, "fusion"), ({"n_clinical": 0}, "n_clinical"),
     ({"height": 24}, "too small")],
)  # fmt: skip
def test_wrong_configuration_is_refused(change: dict[str, object], words: str) -> None:
    values: dict[str, object] = {"size": "tiny", "fusion": "gated", "n_clinical": F, "height": H, "width": W}
    with pytest.raises(ConfigError, match=words):
        FusionConfig(**{**values, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "cells"), [("tiny", (14, 11)), ("small", (16, 12)), ("medium", (32, 16)), ("full", (32, 16))]
)
def test_feature_maps_are_fine_enough_to_point(size: str, cells: tuple[int, int]) -> None:
    spec = SIZES[size]  # type: ignore[index]
    config = FusionConfig(size=size, fusion="late", n_clinical=F, height=spec.height, width=spec.width)  # type: ignore[arg-type]
    encoder = build_model(config, seed=0, prevalence=0.2).encoder
    with torch.no_grad():
        features = encoder.blocks(torch.zeros(1, spec.channels[0], spec.height // 2, spec.width // 2))
    assert tuple(features.shape[2:]) == cells

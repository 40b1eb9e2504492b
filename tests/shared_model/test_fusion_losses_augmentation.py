"""Losses are functions of one patient; augmentation keeps to its patient, its side and its bounds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared_model.cohort.batch import PatientBatch
from shared_model.errors import ConfigError
from shared_model.fusion import FusionConfig, augment, build_model, patient_loss_B
from shared_model.fusion.losses import logit_loss
from shared_model.protocol import AugmentationTerms, LossTerms

F, H, W = 9, 56, 40
CONFIG = FusionConfig(size="tiny", fusion="gated", n_clinical=F, height=H, width=W)
BCE = LossTerms(kind="bce", prevalence=0.25, pos_weight=3.0, focal_gamma=2.0, focal_alpha=0.7, auxiliary=0.5)
FOCAL = BCE.model_copy(update={"kind": "focal"})
STILL = AugmentationTerms(
    enabled=True, rotation_degrees=0, shift=0, scale=0, vertical_flip=0, elastic=0, intensity=0, view_dropout=0,
    modality_dropout=0, feature_dropout=0,
)  # fmt: skip
STRONG = AugmentationTerms(
    enabled=True, rotation_degrees=15, shift=0.05, scale=0.1, vertical_flip=0.5, elastic=0.03, intensity=0.2,
    view_dropout=0.4, modality_dropout=0.3, feature_dropout=0.2,
)  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_batch(patients: int = 6, *, seed: int = 0) -> PatientBatch:
    g = generator(seed)
    mask = torch.rand(patients, 4, generator=g) > 0.3
    mask[0], mask[1] = True, False
    pixels = torch.rand(patients, 4, 2, H, W, generator=g) * mask[:, :, None, None, None]
    table = torch.rand(patients, generator=g) > 0.3
    labels = (torch.rand(patients, generator=g) > 0.5).float()
    return PatientBatch(pixels, mask, torch.randn(patients, F, generator=g), table, labels)


def full_batch(patients: int, pixels: Tensor | None = None) -> PatientBatch:
    films = torch.rand(patients, 4, 2, H, W, generator=generator(3)) if pixels is None else pixels
    yes = torch.ones(patients, dtype=torch.bool)
    return PatientBatch(films, yes[:, None].expand(-1, 4), torch.ones(patients, F), yes, torch.zeros(patients))


@given(logit=st.floats(-40, 40), label=st.sampled_from([0.0, 1.0]), gamma=st.sampled_from([0.0, 0.5, 2.0]))
@settings(max_examples=60)
def test_losses_are_the_published_formulas(logit: float, label: float, gamma: float) -> None:
    terms = FOCAL.model_copy(update={"focal_gamma": gamma})
    z = torch.tensor(logit, dtype=torch.float64, requires_grad=True)
    y = torch.tensor(label, dtype=torch.float64)
    true = 1 / (1 + math.exp(-logit if label else logit))  # p_t
    false = 1 / (1 + math.exp(logit if label else -logit))  # 1 - p_t, without cancellation
    alpha = 0.7 if label else 0.3
    focal = logit_loss(z, y, terms=terms)
    assert focal.item() == pytest.approx(-alpha * false**gamma * math.log(true), rel=1e-9, abs=1e-12)
    assert torch.isfinite(torch.autograd.grad(focal, z)[0])
    bce = logit_loss(z, y, terms=BCE)
    assert bce.item() == pytest.approx(-(3.0 if label else 1.0) * math.log(true), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("terms", [BCE, FOCAL])
@pytest.mark.parametrize("objective", ["image", "fusion"])
def test_a_patients_loss_depends_on_nobody_else(terms: LossTerms, objective: str) -> None:
    model = build_model(CONFIG, seed=0, prevalence=0.3)
    batch = some_batch()
    together = patient_loss_B(model(batch), batch, terms=terms, objective=objective)  # type: ignore[arg-type]
    for index in range(len(batch)):
        one = batch.patient(index)
        alone = patient_loss_B(model(one), one, terms=terms, objective=objective)  # type: ignore[arg-type]
        torch.testing.assert_close(alone, together[index : index + 1], rtol=1e-5, atol=1e-6)
    assert (together >= 0).all()


def test_auxiliary_terms_vanish_with_their_modality() -> None:
    model = build_model(CONFIG, seed=0, prevalence=0.3)
    batch = some_batch()
    output, labels = model(batch), batch.labels_B
    fused, image, table = (logit_loss(z, labels, terms=BCE) for z in output[:3])
    present = batch.modality_mask_B2
    got = patient_loss_B(output, batch, terms=BCE, objective="fusion")
    torch.testing.assert_close(got, fused + 0.5 * (present[:, 0] * image + present[:, 1] * table))
    only = patient_loss_B(output, batch, terms=BCE, objective="image")
    torch.testing.assert_close(only, present[:, 0] * image)
    assert only[1] == 0, "the second patient has no film"


def test_without_change_the_films_stay_as_they_are() -> None:
    batch = some_batch()
    same = augment(batch, terms=STILL, generator=generator())
    torch.testing.assert_close(same.pixels_BVCHW, batch.pixels_BVCHW, rtol=0, atol=1e-5)
    assert torch.equal(same.view_mask_BV, batch.view_mask_BV)
    assert torch.equal(same.clinical_BF, batch.clinical_BF)
    off = augment(batch, terms=STRONG.model_copy(update={"enabled": False}), generator=generator())
    assert off is batch


def test_the_same_generator_gives_the_same_films_and_the_input_is_untouched() -> None:
    batch = some_batch()
    before = batch.pixels_BVCHW.clone()
    one, two, three = (augment(batch, terms=STRONG, generator=generator(s)) for s in (1, 1, 2))
    assert torch.equal(one.pixels_BVCHW, two.pixels_BVCHW)
    assert not torch.equal(one.pixels_BVCHW, three.pixels_BVCHW)
    assert torch.equal(batch.pixels_BVCHW, before)
    assert torch.equal(one.labels_B, batch.labels_B)


def test_numbers_drawn_do_not_depend_on_what_patients_have() -> None:
    """So the generator's state says nothing about the data, and a changed neighbour changes nobody else's films."""
    batch, g, h = some_batch(), generator(4), generator(4)
    poorer = replace(batch, view_mask_BV=batch.view_mask_BV.clone())
    poorer.view_mask_BV[0] = False
    one, two = augment(batch, terms=STRONG, generator=g), augment(poorer, terms=STRONG, generator=h)
    assert torch.equal(g.get_state(), h.get_state())
    torch.testing.assert_close(one.pixels_BVCHW[2:], two.pixels_BVCHW[2:])
    assert torch.equal(one.view_mask_BV[2:], two.view_mask_BV[2:])


@given(seed=st.integers(0, 2**31), share=st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=20)
def test_dropping_keeps_a_film_and_a_modality(seed: int, share: float) -> None:
    batch = some_batch(12, seed=seed % 17)
    terms = STILL.model_copy(update={"view_dropout": share, "modality_dropout": min(share, 0.5)})
    got = augment(batch, terms=terms, generator=generator(seed))
    assert not (got.view_mask_BV & ~batch.view_mask_BV).any()
    had, have = batch.modality_mask_B2, got.modality_mask_B2
    assert (have.sum(1) >= had.sum(1).clamp(max=1)).all()
    assert (have <= had).all()
    assert (got.pixels_BVCHW[~got.view_mask_BV] == 0).all()
    image = augment(batch, terms=terms, generator=generator(seed), objective="image")
    assert torch.equal(image.modality_mask_B2, had)
    if share == 1.0:
        assert got.view_mask_BV.sum(1).max() <= 1


def test_shares_are_what_the_terms_say() -> None:
    films = torch.zeros(2000, 4, 2, 1, 1).expand(-1, -1, -1, 8, 8)
    batch = full_batch(2000, films)
    terms = STILL.model_copy(update={"view_dropout": 0.1, "modality_dropout": 0.15, "feature_dropout": 0.2})
    got = augment(batch, terms=terms, generator=generator(5))
    gone = 1 - got.modality_mask_B2.mean(0)
    assert gone[0].item() == pytest.approx(0.15, abs=0.03)
    assert gone[1].item() == pytest.approx(0.15, abs=0.03)
    kept = got.view_mask_BV[got.view_mask_BV.any(1)].float().mean().item()
    assert kept == pytest.approx(0.9, abs=0.02)
    assert got.clinical_BF.mean().item() == pytest.approx(0.8, abs=0.02)
    with pytest.raises(ConfigError, match="modality_dropout"):
        augment(batch, terms=STILL.model_copy(update={"modality_dropout": 0.6}), generator=generator())


def test_a_dropped_field_becomes_unknown_as_a_whole() -> None:
    batch = full_batch(400)
    fields = ((0, 1, 2), (3, 4), (5, 6, 7, 8))
    got = augment(batch, terms=STILL.model_copy(update={"feature_dropout": 0.5}), generator=generator(), fields=fields)
    for columns in fields:
        part = got.clinical_BF[:, list(columns)]
        unknown = torch.tensor([0.0] * (len(columns) - 1) + [1.0])
        dropped = (part == unknown).all(1)
        assert (dropped | (part == 1).all(1)).all()
        assert 0.4 < dropped.float().mean() < 0.6


def _dot(row: int, column: int) -> Tensor:
    films = torch.zeros(64, 4, 2, H, W)
    films[..., row - 1 : row + 2, column - 1 : column + 2] = 1
    return films


def _centre(films: Tensor) -> tuple[Tensor, Tensor]:
    """Centre of mass of each film, (row, column) in pixels."""
    mass = films.sum((-2, -1))
    rows = (films.sum(-1) * torch.arange(H)).sum(-1) / mass
    return rows, (films.sum(-2) * torch.arange(W)).sum(-1) / mass


def test_a_flip_is_vertical_and_never_mirrors_the_chest_wall() -> None:
    batch = full_batch(64, _dot(10, 6))
    got = augment(batch, terms=STILL.model_copy(update={"vertical_flip": 0.5}), generator=generator())
    rows, columns = _centre(got.pixels_BVCHW)
    torch.testing.assert_close(columns, torch.full_like(columns, 6.0), rtol=0, atol=1e-3)
    up, down = (rows - 10).abs() < 1e-3, (rows - (H - 1 - 10)).abs() < 1e-3
    assert (up | down).all()
    assert 0.3 < down.float().mean() < 0.7
    both = STRONG.model_copy(update={"view_dropout": 0.0, "modality_dropout": 0.0, "intensity": 0.0})
    _, columns = _centre(augment(batch, terms=both, generator=generator()).pixels_BVCHW)
    assert columns.max() < W / 2, "even the strongest augmentation leaves the chest wall on its side"


@pytest.mark.parametrize(
    ("change", "bound"),
    [
        ({"shift": 0.1}, math.hypot(0.1 * H, 0.1 * W)),
        ({"elastic": 0.05}, math.hypot(0.05 * H, 0.05 * W)),
        ({"rotation_degrees": 10.0}, 2 * math.sin(math.radians(5)) * 16),
        ({"scale": 0.2}, 0.2 / 0.8 * 16),
    ],
)
def test_displacements_keep_their_bounds_and_happen(change: dict[str, float], bound: float) -> None:
    row, column = int((H - 1) / 2) - 12, int((W - 1) / 2) - 10  # some 15.6 pixels from the centre
    got = augment(full_batch(64, _dot(row, column)), terms=STILL.model_copy(update=change), generator=generator())
    rows, columns = _centre(got.pixels_BVCHW)
    moved = torch.hypot(rows - row, columns - column)
    assert moved.max() <= bound + 0.75
    assert moved.mean() > 0.2 * bound


def test_a_rotation_is_rigid_on_films_that_are_not_square() -> None:
    films = torch.zeros(64, 4, 2, H, W)
    films[..., 26:30, 10:30] = 1  # a bar, 4 by 20
    terms = STILL.model_copy(update={"rotation_degrees": 45.0})
    got = augment(full_batch(64, films), terms=terms, generator=generator())
    area = got.pixels_BVCHW.sum((-2, -1))
    assert (area - 80).abs().max() < 3


def test_greys_change_in_the_percentile_channel_alone_and_air_stays_black() -> None:
    batch = full_batch(16)
    batch.pixels_BVCHW[..., :5] = 0
    got = augment(batch, terms=STILL.model_copy(update={"intensity": 0.3}), generator=generator()).pixels_BVCHW
    torch.testing.assert_close(got[:, :, 1], batch.pixels_BVCHW[:, :, 1], rtol=0, atol=1e-5)
    assert (got[:, :, 0] - batch.pixels_BVCHW[:, :, 0]).abs().mean() > 0.02
    assert got[:, :, 0, :, :4].abs().max() < 1e-4
    assert got.min() >= 0
    assert got.max() <= 1 + 1e-6
    assert torch.isfinite(got).all()


def test_an_empty_batch_passes() -> None:
    batch = some_batch()
    none = PatientBatch(*(t[:0] for t in (
        batch.pixels_BVCHW, batch.view_mask_BV, batch.clinical_BF, batch.clinical_mask_B, batch.labels_B)))  # fmt: skip
    assert len(augment(none, terms=STRONG, generator=generator())) == 0


def test_patients_without_any_film_pass() -> None:
    batch = some_batch()
    bare = replace(batch, view_mask_BV=torch.zeros_like(batch.view_mask_BV))
    got = augment(bare, terms=STRONG, generator=generator())
    assert not got.view_mask_BV.any()
    assert (got.pixels_BVCHW == 0).all()

"""Heat maps, Shapley values and ablations against what they are by definition."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch.nn import functional

from shared_model.cohort.batch import PatientBatch
from shared_model.errors import ConfigError
from shared_model.explanation import METHODS, factor_shares, heat_maps, leave_out
from shared_model.explanation import shapley as shapley_module
from shared_model.fusion import FusionModel
from tests.client.conftest import F, H, W, make_model, make_patients

GROUPS = {"a": (0, 1), "b": (2,), "c": (3, 4, 5), "d": (6, 7), "e": tuple(range(8, F))}
REFERENCE = np.zeros(F, np.float32)


@pytest.fixture(scope="module")
def model() -> FusionModel:
    return make_model().eval()


@pytest.fixture(scope="module")
def women() -> PatientBatch:
    return make_patients(6)


def by_hand(model: FusionModel, batch: PatientBatch, *, averaged: bool) -> NDArray[np.float32]:
    """Grad-CAM (averaged) or HiResCAM of each film of one woman, from autograd alone."""
    kept: list[torch.Tensor] = []
    hook = model.encoder.blocks.register_forward_hook(lambda _, __, out: kept.append(out))
    logit = model(batch).logit_B.sum()
    hook.remove()
    (gradient,) = torch.autograd.grad(logit, kept)
    weight = gradient.mean(dim=(2, 3), keepdim=True) if averaged else gradient
    cells = (weight * kept[0]).sum(dim=1, keepdim=True).relu()
    found: NDArray[np.float32] = functional.interpolate(cells, size=(H, W), mode="bilinear")[:, 0].detach().numpy()
    return found


@pytest.mark.parametrize(("method", "averaged"), [("gradcam", True), ("hirescam", False)])
def test_activation_maps_are_their_formulas(
    model: FusionModel, women: PatientBatch, method: str, averaged: bool
) -> None:
    woman = women.patient(0)
    maps = heat_maps(model, woman, method=method)[0]  # type: ignore[arg-type]
    np.testing.assert_allclose(maps[woman.view_mask_BV[0].numpy()], by_hand(model, woman, averaged=averaged), rtol=1e-4,
                               atol=1e-7)  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_maps_have_a_film_each_and_nothing_where_there_is_none(
    model: FusionModel, women: PatientBatch, method: str
) -> None:
    maps = heat_maps(model, women, method=method)  # type: ignore[arg-type]
    assert maps.shape == (6, 4, H, W) and maps.dtype == np.float32 and maps.min() >= 0
    assert not maps[~women.view_mask_BV.numpy()].any()
    assert maps[0].max() > 0


@pytest.mark.parametrize("method", ["hirescam", "gradcam", "integrated_gradients"])
def test_a_womans_map_does_not_depend_on_the_others(model: FusionModel, women: PatientBatch, method: str) -> None:
    together = heat_maps(model, women, method=method)  # type: ignore[arg-type]
    for index in range(len(women)):
        alone = heat_maps(model, women.patient(index), method=method)[0]  # type: ignore[arg-type]
        np.testing.assert_allclose(together[index], alone, rtol=1e-3, atol=1e-6)


def test_a_woman_without_films_has_an_empty_map(model: FusionModel, women: PatientBatch) -> None:
    assert not heat_maps(model, women.patient(2)).any()


@pytest.mark.parametrize("method", METHODS)
def test_random_weights_change_the_map(women: PatientBatch, method: str) -> None:
    """Adebayo et al. 2018 (arXiv 1810.03292): a map that survives other weights explains the film and not the model."""
    woman = women.patient(0)
    first = heat_maps(make_model(seed=1), woman, method=method)[0]  # type: ignore[arg-type]
    other = heat_maps(make_model(seed=9), woman, method=method)[0]  # type: ignore[arg-type]
    assert abs(float(spearmanr(first.ravel(), other.ravel()).statistic)) < 0.7


def test_the_model_is_left_as_it_was(women: PatientBatch) -> None:
    model = make_model().train()
    model.fold_views = False
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    heat_maps(model, women.patient(0))
    assert model.training and not model.fold_views
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())


def test_an_unknown_method_is_refused(model: FusionModel, women: PatientBatch) -> None:
    with pytest.raises(ConfigError, match="method"):
        heat_maps(model, women, method="attention")  # type: ignore[arg-type]


def test_shapley_values_are_the_mean_over_all_orders(model: FusionModel, women: PatientBatch) -> None:
    woman = women.patient(0)
    found = factor_shares(model, woman, groups=GROUPS, reference_F=REFERENCE)
    assert found is not None and found.exact

    def score(known: frozenset[str]) -> float:
        row = torch.zeros(F)
        for name in known:
            row[list(GROUPS[name])] = woman.clinical_BF[0, list(GROUPS[name])]
        with torch.no_grad():
            return float(model(replace(woman, clinical_BF=row.unsqueeze(0))).logit_B[0])

    wanted = dict.fromkeys(GROUPS, 0.0)
    for order in itertools.permutations(GROUPS):
        for place, name in enumerate(order):
            step = score(frozenset(order[: place + 1])) - score(frozenset(order[:place]))
            wanted[name] += step / math.factorial(len(GROUPS))
    for name, value in wanted.items():
        assert found.shares[name] == pytest.approx(value, abs=2e-5)


@pytest.mark.parametrize("fusion", ["gated", "early", "mid", "late"])
def test_shapley_values_add_up_in_every_fusion(women: PatientBatch, fusion: str) -> None:
    model = make_model(fusion)
    for index in (0, 1, 2):
        found = factor_shares(model, women.patient(index), groups=GROUPS, reference_F=REFERENCE)
        if found is not None:
            assert found.gap < 1e-5
            with torch.no_grad():
                assert found.full == pytest.approx(float(model(women.patient(index)).logit_B[0]), abs=1e-5)


def test_a_factor_that_is_as_in_the_reference_shares_nothing(model: FusionModel, women: PatientBatch) -> None:
    woman = women.patient(0)
    row = woman.clinical_BF.clone()
    row[0, [2]] = 0.0
    found = factor_shares(model, replace(woman, clinical_BF=row), groups=GROUPS, reference_F=REFERENCE)
    assert found is not None and found.shares["b"] == 0.0


def test_no_clinical_row_no_shares(model: FusionModel, women: PatientBatch) -> None:
    assert factor_shares(model, women.patient(3), groups=GROUPS, reference_F=REFERENCE) is None


def test_many_groups_are_sampled_and_agree(
    model: FusionModel, women: PatientBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = factor_shares(model, women.patient(0), groups=GROUPS, reference_F=REFERENCE)
    monkeypatch.setattr(shapley_module, "EXACT_GROUPS", 2)
    sampled = factor_shares(model, women.patient(0), groups=GROUPS, reference_F=REFERENCE)
    assert exact is not None and sampled is not None and not sampled.exact and sampled.gap < 1e-4
    for name in GROUPS:
        assert sampled.shares[name] == pytest.approx(exact.shares[name], abs=0.05)


def test_groups_must_be_the_models(model: FusionModel, women: PatientBatch) -> None:
    with pytest.raises(ConfigError, match="factors"):
        factor_shares(model, women.patient(0), groups={"a": (0,)}, reference_F=REFERENCE)


def test_leaving_out_is_scoring_without(model: FusionModel, women: PatientBatch) -> None:
    woman = women.patient(0)
    found = leave_out(model, woman)
    with torch.no_grad():
        nothing = torch.zeros_like(woman.clinical_BF)
        no_table = replace(woman, clinical_mask_B=torch.tensor([False]), clinical_BF=nothing)
        assert found.without["clinical"] == pytest.approx(float(model(no_table).logit_B[0]), abs=1e-6)
        assert found.full == pytest.approx(float(model(woman).logit_B[0]), abs=1e-6)
    assert found.effect("image") is not None and len(found.views) == 4
    assert sum(found.gate.values()) == pytest.approx(1.0)


def test_what_is_the_only_thing_cannot_be_left_out(model: FusionModel, women: PatientBatch) -> None:
    table_only = leave_out(model, women.patient(2))
    assert table_only.without == {"image": None, "clinical": None} and table_only.views == {}
    one_film = leave_out(model, women.patient(1))
    assert list(one_film.views.values()) == [None]

"""The pointing game and its intervals on maps made by hand; the default method on synthetic women nobody trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shared_model.contract import load_contract
from shared_model.explanation import DEFAULT_METHOD, localise
from shared_model.explanation.localisation import LesionFilm
from shared_model.explanation.randomisation import rank_correlation, with_random_encoder
from shared_model.fusion import FusionConfig, build_model, load_public_weights
from shared_model.imaging import Box
from simulations.hospitals import default_hospitals
from simulations.localisation import default_pipeline, measure, subjects
from simulations.population import generate

BREAST: NDArray[np.bool_] = np.ones((40, 30), bool)


def film(woman: str, at: tuple[int, int], box: Box, *, side: bool = True) -> LesionFilm:
    heat = np.zeros((40, 30), np.float32)
    heat[at] = 2.0
    heat[0, 0] = 0.5
    return LesionFilm(woman=woman, map_HW=heat, breast_HW=BREAST, box=box, right_side=side)


def test_a_hit_is_a_hit_within_the_tolerance() -> None:
    box = (10.0, 10.0, 15.0, 15.0)
    hit, near, far = (12, 12), (10, 17), (30, 25)
    found = [localise([film("w", at, box)], method="m", spacing_mm=1.0, tolerance_mm=mm).pointing.value
             for at, mm in ((hit, 0.0), (near, 0.0), (near, 3.0), (far, 3.0))]  # fmt: skip
    assert found == [1.0, 0.0, 1.0, 0.0]


def test_women_count_and_not_films() -> None:
    """Two missed films of one woman and a hit of another: a half, and not a third."""
    box = (10.0, 10.0, 15.0, 15.0)
    films = [film("a", (30, 25), box), film("a", (30, 25), box), film("b", (12, 12), box)]
    found = localise(films, method="m", spacing_mm=1.0)
    assert (found.women, found.films, found.pointing.value) == (2, 3, 0.5)
    assert found.pointing.low <= 0.5 <= found.pointing.high


def test_energy_and_chance_are_shares() -> None:
    found = localise([film("a", (12, 12), (10.0, 10.0, 15.0, 15.0))], method="m", spacing_mm=1.0, tolerance_mm=0.0)
    assert found.energy.value == pytest.approx(2.0 / 2.5)
    assert found.chance == found.energy_chance == pytest.approx(25 / 1200)
    assert found.inside == found.pointing, "without a tolerance they are one thing"


def test_an_empty_map_and_a_box_below_a_pixel() -> None:
    empty = LesionFilm(woman="a", map_HW=np.zeros((40, 30), np.float32), breast_HW=BREAST, box=(3.2, 3.2, 3.4, 3.4),
                       right_side=False)  # fmt: skip
    found = localise([empty], method="m", spacing_mm=1.0, tolerance_mm=0.0)
    assert found.pointing.value == 0.0 and found.energy.value == 0.0 and found.chance == pytest.approx(1 / 1200)
    with pytest.raises(ValueError, match="lesion"):
        localise([], method="m", spacing_mm=1.0)


def test_maps_in_another_order_correlate_and_a_flat_one_orders_nothing() -> None:
    rng = np.random.default_rng(0)
    one = rng.random((40, 30)).astype(np.float32)
    flat = np.zeros_like(one)
    assert rank_correlation([one], [one**3], [BREAST]) == pytest.approx(1.0), "ranks, not values"
    assert rank_correlation([one, one], [-one, flat], [BREAST, BREAST]) == pytest.approx(-0.5)
    outside = BREAST.copy()
    outside[20:] = False
    other = one.copy()
    other[20:] = rng.random((20, 30))
    assert rank_correlation([one], [other], [outside]) == pytest.approx(1.0), "only within the breast"
    with pytest.raises(ValueError, match="film"):
        rank_correlation([], [], [])


def test_random_weights_are_of_the_view_encoder_alone_and_the_model_keeps_its_own() -> None:
    config = FusionConfig(size="tiny", fusion="gated", n_clinical=8, height=112, width=84)
    model = build_model(config, seed=0, prevalence=0.25)
    before = {name: p.clone() for name, p in model.named_parameters()}
    other = dict(with_random_encoder(model).named_parameters())
    changed = {name for name, p in before.items() if not p.equal(other[name])}
    assert changed and all(name.startswith("encoder.") for name in changed)
    assert all(p.equal(before[name]) for name, p in model.named_parameters())


@pytest.mark.slow
def test_the_default_points_to_masses_of_women_whom_nobody_trained_on(tmp_path: Path) -> None:
    """Public weights are the view encoder of every model that is trained with privacy by default; their maps point to
    masses: at least in half of the films at the lower 95 % bound, on at least 100 women; other weights do not."""
    population = default_hospitals(sites=1, patients=1, held_out=120, seed=77, film_height=160, film_width=128,
                                   film_spacing_mm=1.25, conspicuity=5.0, calcification_share=0.0)  # fmt: skip
    ill = replace(population, held_out=replace(population.held_out, prevalence=0.97))
    source = generate(ill, tmp_path, workers=2)[ill.held_out.name]
    contract, pipeline = load_contract(), default_pipeline(height=112, width=84, spacing_mm=1.75)
    women = list(subjects(source, pipeline=pipeline, contract=contract, limit=200))
    config = FusionConfig(size="tiny", fusion="gated", n_clinical=contract.n_features, height=112, width=84)
    model = build_model(config, seed=0, prevalence=0.25)
    (random,) = measure(model, women, spacing_mm=1.75, methods=[DEFAULT_METHOD])
    load_public_weights(model, "tiny")
    (found,) = measure(model, women, spacing_mm=1.75, methods=[DEFAULT_METHOD])
    assert found.women >= 100
    assert found.pointing.low >= 0.5 and found.pointing.low > found.chance
    assert found.side.low > 0.7
    assert random.pointing.high < found.pointing.low

"""Films of synthetic women: geometry, lesions, detector, seeds."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from shared_model.errors import ConfigError
from simulations.hospitals import default_hospitals
from simulations.hospitals.defaults import vendors
from simulations.population.anatomy import Body, draw_body, draw_breast, film_grid, texture
from simulations.population.film import Film, render
from simulations.population.lesions import Finding, draw_finding, mirrored, project
from simulations.population.seeds import generator
from simulations.population.specs import Population, Vendor
from simulations.population.women import draw_woman, render_view

FILM_MM = (200.0, 160.0)
VENDOR = vendors(1.25)[0]
BODY = Body(size=0.7, thickness_cm=5.5, gland_share=0.1, exponent_shift=0.0, softness=0.6)
MASS = Finding(
    kind="mass_malignant", side="L", contrast=1.0, radius_mm=8.0, spiculation=0.8, edge_mm=1.0, flecks=0, spread_mm=0.0,
    fleck_mm=0.0, along=0.5, across=0.5,
)  # fmt: skip
FLECKS = replace(MASS, kind="calcification_malignant", radius_mm=0.0, flecks=12, spread_mm=4.0, fleck_mm=0.5)


def film(*, seed: int = 0, vendor: Vendor = VENDOR, finding: Finding | None = None, view: str = "L_CC") -> Film:
    grid = film_grid(FILM_MM, vendor.spacing_mm)
    return render(generator(seed), grid, vendor, BODY, finding, view=view, conspicuity=5.0)


def population(**changes: object) -> Population:
    settings: dict[str, object] = {
        "sites": 4, "patients": 40, "held_out": 10, "seed": 5, "film_height": 80, "film_width": 64,
        "film_spacing_mm": 2.5, "conspicuity": 5.0,
    }  # fmt: skip
    return default_hospitals(**(settings | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("view", ["L_CC", "L_MLO", "R_CC", "R_MLO"])
def test_breast_touches_its_chest_wall_and_no_other_edge_column(view: str) -> None:
    pixels = film(view=view).pixels
    tissue = pixels > 0
    wall, far = (0, -1) if view[0] == "L" else (-1, 0)
    assert tissue[:, wall].mean() > 0.4
    assert not tissue[:, far].any()
    assert 0.15 < tissue.mean() < 0.75


def test_greys_fit_the_bits_and_air_is_the_end_of_the_scale() -> None:
    for vendor in vendors(1.25):
        pixels = film(vendor=replace(vendor, marker=False)).pixels
        top = 2**vendor.bits - 1
        assert pixels.dtype == np.uint16 and pixels.max() <= top
        assert pixels[2, pixels.shape[1] - 3] == (top if vendor.monochrome1 else 0)
        assert len(np.unique(pixels)) > 200


def test_monochrome1_is_the_exact_inverse() -> None:
    inverted = film(vendor=replace(VENDOR, monochrome1=True)).pixels
    np.testing.assert_array_equal(4095 - inverted.astype(int), film().pixels)


def test_film_covers_the_same_area_at_each_pitch() -> None:
    for vendor in vendors(1.25):
        rows, columns = film(vendor=vendor).pixels.shape
        assert rows * vendor.spacing_mm == pytest.approx(200, abs=vendor.spacing_mm)
        assert columns * vendor.spacing_mm == pytest.approx(160, abs=vendor.spacing_mm)


def test_marker_stands_in_air_and_reads_the_view() -> None:
    marked = replace(VENDOR, marker=True)
    for view in ("L_MLO", "R_MLO"):
        difference = film(vendor=marked, view=view).pixels != film(view=view).pixels
        rows, columns = np.nonzero(difference)
        assert rows.max() < 12 and 20 < difference.sum() < 150
        assert (columns.min() > 100) if view[0] == "L" else (columns.max() < 28)


@pytest.mark.parametrize("finding", [MASS, FLECKS], ids=["mass", "flecks"])
@pytest.mark.parametrize("view", ["CC", "MLO"])
def test_box_holds_what_the_lesion_adds(finding: Finding, view: str) -> None:
    grid = film_grid(FILM_MM, 1.25)
    for seed in range(10):
        rng = generator(seed)
        breast = draw_breast(rng, grid, BODY, view=view)
        added, (row0, column0, row1, column1) = project(rng, grid, breast, finding, conspicuity=5.0)
        assert added[row0:row1, column0:column1].sum() > 0.9 * added.sum() > 0
        row, column = np.unravel_index(np.argmax(added), added.shape)
        assert row0 <= row < row1 and column0 <= column < column1
        assert (row1 - row0) * (column1 - column0) < 0.15 * added.size
        assert not added[~breast.inside].any()


def test_lesion_is_brighter_where_the_box_says() -> None:
    """On stored values: the breast of the film with the lesion, against the same breast without."""
    with_lesion, without = film(finding=MASS), film(finding=replace(MASS, contrast=0.0))
    assert with_lesion.box is not None and with_lesion.box == without.box
    row0, column0, row1, column1 = with_lesion.box
    assert np.argmax(with_lesion.pixels) != np.argmax(without.pixels)
    row, column = np.unravel_index(np.argmax(with_lesion.pixels), with_lesion.pixels.shape)
    assert row0 <= row < row1 and column0 <= column < column1


def test_box_is_in_stored_pixels_also_of_the_right_breast() -> None:
    left, right = film(finding=MASS, view="L_CC"), film(finding=replace(MASS, side="R"), view="R_CC")
    assert left.box is not None and right.box is not None
    np.testing.assert_array_equal(right.pixels[:, ::-1], left.pixels)
    assert right.box == mirrored(left.box, 128)
    assert mirrored(mirrored(left.box, 128), 128) == left.box


def test_finding_shows_on_its_own_side_only() -> None:
    assert film(finding=MASS, view="R_CC").box is None
    np.testing.assert_array_equal(film(finding=MASS, view="R_CC").pixels, film(view="R_CC").pixels)


def test_texture_has_the_exponent_that_was_asked_for() -> None:
    grid = film_grid((256.0, 256.0), 1.0)
    for exponent in (2.3, 3.2):
        power = np.mean([
            np.abs(np.fft.fft2(texture(generator(s), grid, exponent=exponent, angle_deg=0.0, anisotropy=1.0))) ** 2
            for s in range(8)
        ], axis=0)  # fmt: skip
        f = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256)[None])
        band = (f > 0.02) & (f < 0.4)
        slope = np.polyfit(np.log(f[band]), np.log(power[band]), 1)[0]
        assert slope == pytest.approx(-exponent, abs=0.05)


def test_denser_women_have_more_gland() -> None:
    grid = film_grid(FILM_MM, 1.25)
    shares = []
    for density in range(4):
        values = []
        for seed in range(12):
            rng = generator(seed, density)
            breast = draw_breast(rng, grid, draw_body(rng, density=density, bmi=27), view="CC")
            values.append(breast.gland[breast.inside].mean())
        shares.append(float(np.mean(values)))
    assert shares == sorted(shares)
    assert shares[3] > 1.8 * shares[0]


def test_dense_tissue_hides_cancers() -> None:
    drawn = partial(draw_finding, label=1, calcification_share=0.32)
    contrast = [
        np.mean([f.contrast for seed in range(200) if (f := drawn(generator(seed), density=density))])
        for density in range(4)
    ]
    assert contrast == sorted(contrast, reverse=True)
    assert contrast[3] < 0.65 * contrast[0]


def test_kinds_of_findings_follow_the_label() -> None:
    cancers = [draw_finding(generator(seed, 1), label=1, density=1, calcification_share=0.32) for seed in range(600)]
    healthy = [draw_finding(generator(seed, 2), label=0, density=1, calcification_share=0.32) for seed in range(600)]
    assert {f.kind for f in cancers if f} == {"mass_malignant", "calcification_malignant"} and None not in cancers
    assert np.mean([f is None for f in healthy]) == pytest.approx(0.73, abs=0.06)
    assert {f.kind for f in healthy if f} == {"mass_benign", "radial_scar", "calcification_benign"}


def test_a_woman_depends_on_seed_site_and_number_alone() -> None:
    small, large = population(), population(patients=400)
    for spec_small, spec_large in zip(small.hospitals, large.hospitals, strict=True):
        # Only the number of women differs, so the first ones are the same
        one, two = draw_woman(small, spec_small, 3), draw_woman(large, spec_large, 3)
        assert one == two
        view = one.views[0] if one.views else "L_CC"
        first, again = (render_view(p, s, 3, one, view) for p, s in ((small, spec_small), (large, spec_large)))
        np.testing.assert_array_equal(first.pixels, again.pixels)
    other = population(seed=6)
    assert draw_woman(other, other.hospitals[0], 3) != draw_woman(small, small.hospitals[0], 3)


def test_conspicuity_scales_the_lesion_and_nothing_else() -> None:
    faint, bright = (population(conspicuity=kappa) for kappa in (2.0, 8.0))
    women = [draw_woman(faint, faint.hospitals[1], i) for i in range(20)]
    assert women == [draw_woman(bright, bright.hospitals[1], i) for i in range(20)]
    clear = next(i for i, w in enumerate(women) if w.finding is None and len(w.views) == 4)
    films = [render_view(p, p.hospitals[1], clear, women[clear], "L_CC").pixels for p in (faint, bright)]
    np.testing.assert_array_equal(*films)


def test_impossible_vendor_and_hospital_are_refused() -> None:
    with pytest.raises(ConfigError, match="bits 8-16"):
        replace(VENDOR, bits=20)
    with pytest.raises(ConfigError, match="prevalence"):
        replace(population().held_out, prevalence=1.5)
    with pytest.raises(ConfigError, match="unique"):
        replace(population(), held_out=population().hospitals[0])

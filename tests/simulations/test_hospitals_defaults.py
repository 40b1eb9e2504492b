"""Default hospitals: profiles, sizes, the unseen vendor."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_model.errors import ConfigError
from simulations.hospitals import default_hospitals
from simulations.hospitals.defaults import site_sizes
from simulations.population.specs import Population


def hospitals(sites: int = 4, patients: int = 1000, held_out: int = 400) -> Population:
    return default_hospitals(
        sites=sites, patients=patients, held_out=held_out, seed=0, film_height=160, film_width=128,
        film_spacing_mm=1.25,
        conspicuity=5.0,
    )  # fmt: skip


@settings(max_examples=60)
@given(st.integers(1, 200), st.integers(0, 5000))
def test_sizes_sum_to_the_total_and_nobody_is_empty(sites: int, more: int) -> None:
    sizes = site_sizes(sites + more, sites)
    assert len(sizes) == sites and sum(sizes) == sites + more and min(sizes) >= 1


def test_four_sites_have_the_shares_of_their_profiles() -> None:
    for size, share in zip(site_sizes(10_000, 4), (0.35, 0.25, 0.20, 0.20), strict=True):
        assert size == pytest.approx(10_000 * share, abs=3)


def test_sites_differ_in_people_detector_and_records() -> None:
    sites = hospitals().hospitals
    for values in ([s.prevalence for s in sites], [s.age_mean for s in sites], [s.vendors[0].name for s in sites]):
        assert len(set(values)) == 4
    assert {s.missing_columns for s in sites} == {(), ("prs_z",), ("menarche_age",)}
    assert min(s.prevalence for s in sites) < 0.2 < 0.3 < max(s.prevalence for s in sites)


def test_held_out_women_meet_every_vendor_and_one_that_no_site_has() -> None:
    study = hospitals(sites=9)
    of_sites = {v.name for s in study.hospitals for v in s.vendors}
    of_held_out = {v.name for v in study.held_out.vendors}
    assert of_held_out - of_sites == {"E"} and of_sites < of_held_out
    assert study.held_out.missing_columns == ()


def test_vendors_differ_in_bits_photometry_display_pitch_and_syntax() -> None:
    makers = hospitals().held_out.vendors
    assert {v.bits for v in makers} == {10, 12, 14, 16} and {v.monochrome1 for v in makers} == {True, False}
    assert {v.voi for v in makers} == {"LINEAR", "SIGMOID", "LUT"}
    assert {v.transfer_syntax for v in makers} == {"explicit", "implicit", "rle", "jpegls"}
    assert len({v.spacing_mm for v in makers}) >= 4


@pytest.mark.parametrize("sites", [1, 3, 4, 11, 120])
def test_any_number_of_sites_cycles_the_profiles(sites: int) -> None:
    study = hospitals(sites=sites, patients=sites * 20)
    names = [s.name for s in study.hospitals]
    assert names == sorted(names) and all(re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", n) for n in names)
    for i in range(4, sites):
        assert study.hospitals[i].prevalence == study.hospitals[i - 4].prevalence


@pytest.mark.parametrize(("sites", "patients", "held_out"), [(0, 10, 10), (5, 4, 10), (2, 10, 0)])
def test_impossible_sizes_are_refused(sites: int, patients: int, held_out: int) -> None:
    with pytest.raises(ConfigError, match="patients >= sites"):
        hospitals(sites, patients, held_out)

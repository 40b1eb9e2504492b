"""Default hospitals: four profiles that differ in people, detector and records, repeated for any number of sites.

The profiles are not identically distributed on purpose: prevalence 15-35 % (enriched, as in a case-control cohort;
the figures of a study hold for such a cohort and must be re-weighted for screening), mean age 50-61, a site with
dense breasts, a site without polygenic scores, one without menarche. The held-out women are a mixture over all four
vendors and a fifth that no site has.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared_model.errors import ConfigError
from simulations.population.specs import HospitalSpec, Population, Vendor

HELD_OUT = "held_out"
CALCIFICATION_SHARE = 0.32  # of `cohort=synthetic` (VICTRE-like, research notes 8.2), for callers that do not choose


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One kind of hospital; `share` of the women of a study with one site of each kind."""

    share: float
    prevalence: float
    age_mean: float
    density_shift: float
    lump_rates: tuple[float, float]
    missing_columns: tuple[str, ...]
    vendor: int


PROFILES = (
    Profile(
        share=0.35,
        prevalence=0.22,
        age_mean=52,
        density_shift=0.1,
        lump_rates=(0.44, 0.095),
        missing_columns=(),
        vendor=0,
    ),
    Profile(
        share=0.25,
        prevalence=0.35,
        age_mean=58,
        density_shift=-0.2,
        lump_rates=(0.52, 0.125),
        missing_columns=(),
        vendor=1,
    ),
    Profile(
        share=0.20,
        prevalence=0.15,
        age_mean=50,
        density_shift=0.5,
        lump_rates=(0.42, 0.075),
        missing_columns=("prs_z",),
        vendor=2,
    ),
    Profile(
        share=0.20,
        prevalence=0.28,
        age_mean=61,
        density_shift=-0.1,
        lump_rates=(0.48, 0.115),
        missing_columns=("menarche_age",),
        vendor=3,
    ),
)


def vendors(spacing_mm: float) -> tuple[Vendor, ...]:
    """Vendors A-D of the sites and E, which only held-out women meet; pitches vary around `spacing_mm`."""
    return (
        Vendor(
            name="A",
            bits=12,
            monochrome1=False,
            photons=9000,
            psf_px=0.5,
            gamma=1.0,
            equalisation=0.5,
            voi="LINEAR",
            spacing_mm=spacing_mm,
            transfer_syntax="explicit",
            manufacturer="SYNTH A",
            model="Aurora",
            marker=False,
        ),
        Vendor(
            name="B",
            bits=14,
            monochrome1=True,
            photons=6000,
            psf_px=0.8,
            gamma=0.8,
            equalisation=0.4,
            voi="SIGMOID",
            spacing_mm=spacing_mm,
            transfer_syntax="rle",
            manufacturer="SYNTH B",
            model="Borealis",
            marker=True,
        ),
        Vendor(
            name="C",
            bits=12,
            monochrome1=False,
            photons=3500,
            psf_px=1.0,
            gamma=1.25,
            equalisation=0.6,
            voi="LINEAR",
            spacing_mm=0.9 * spacing_mm,
            transfer_syntax="jpegls",
            manufacturer="SYNTH C",
            model="Corona",
            marker=True,
        ),
        Vendor(
            name="D",
            bits=10,
            monochrome1=True,
            photons=5000,
            psf_px=0.7,
            gamma=1.0,
            equalisation=0.3,
            voi="SIGMOID",
            spacing_mm=1.1 * spacing_mm,
            transfer_syntax="implicit",
            manufacturer="SYNTH D",
            model="Diurna",
            marker=False,
        ),
        Vendor(
            name="E",
            bits=16,
            monochrome1=False,
            photons=7000,
            psf_px=0.6,
            gamma=0.9,
            equalisation=0.7,
            voi="LUT",
            spacing_mm=0.8 * spacing_mm,
            transfer_syntax="explicit",
            manufacturer="SYNTH E",
            model="Eclipse",
            marker=True,
        ),
    )


def default_hospitals(
    *,
    sites: int,
    patients: int,
    held_out: int,
    seed: int,
    film_height: int,
    film_width: int,
    film_spacing_mm: float,
    conspicuity: float,
    calcification_share: float = CALCIFICATION_SHARE,
) -> Population:
    """A study's hospitals: `sites` of them with `patients` women together, and `held_out` women of the coordinator.

    Args:
        film_height, film_width, film_spacing_mm: pixels and mm of vendor A; the others cover the same area at their
        pitch. conspicuity, calcification_share: see Population.

    Raises:
        ConfigError: fewer women than sites, or no held-out women.
    """
    if sites < 1 or patients < sites or held_out < 1:
        raise ConfigError(
            "hospitals: impossible sizes",
            found=f"sites={sites} patients={patients} held_out={held_out}",
            expected="sites >= 1, patients >= sites, held_out >= 1",
        )
    makers = vendors(film_spacing_mm)
    sizes = site_sizes(patients, sites)
    digits = max(2, len(str(sites)))
    return Population(
        hospitals=tuple(_site(f"site_{i + 1:0{digits}d}", sizes[i], i, makers) for i in range(sites)),
        held_out=_spec(
            HELD_OUT,
            held_out,
            makers,
            prevalence=0.25,
            age_mean=55,
            density_shift=0.1,
            lump_rates=(0.46, 0.105),
            missing_columns=(),
        ),
        seed=seed,
        film_mm=(film_height * film_spacing_mm, film_width * film_spacing_mm),
        conspicuity=conspicuity,
        calcification_share=calcification_share,
    )


def site_sizes(patients: int, sites: int) -> list[int]:
    """Women a site: in proportion to the profiles' shares, at least one each, in all `patients` (largest remainder)."""
    shares = [PROFILES[i % len(PROFILES)].share for i in range(sites)]
    exact = [(patients - sites) * share / sum(shares) for share in shares]
    sizes = [1 + int(part) for part in exact]
    by_remainder = sorted(range(sites), key=lambda i: (int(exact[i]) - exact[i], i))
    for i in by_remainder[: patients - sum(sizes)]:
        sizes[i] += 1
    return sizes


def _site(name: str, size: int, position: int, makers: tuple[Vendor, ...]) -> HospitalSpec:
    profile = PROFILES[position % len(PROFILES)]
    return _spec(
        name,
        size,
        (makers[profile.vendor],),
        prevalence=profile.prevalence,
        age_mean=profile.age_mean,
        density_shift=profile.density_shift,
        lump_rates=profile.lump_rates,
        missing_columns=profile.missing_columns,
    )


def _spec(
    name: str,
    size: int,
    makers: tuple[Vendor, ...],
    *,
    prevalence: float,
    age_mean: float,
    density_shift: float,
    lump_rates: tuple[float, float],
    missing_columns: tuple[str, ...],
) -> HospitalSpec:
    """A hospital with what all have in common: how often values, views and whole modalities are missing."""
    return HospitalSpec(
        name=name,
        patients=size,
        prevalence=prevalence,
        age_mean=age_mean,
        density_shift=density_shift,
        vendors=makers,
        missing_columns=missing_columns,
        missing_rate=0.05,
        missing_view_rate=0.10,
        unilateral_rate=0.03,
        image_only_rate=0.02,
        table_only_rate=0.02,
        lump_rates=lump_rates,
    )

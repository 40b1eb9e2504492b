"""What defines synthetic hospitals: detector vendors, profiles, the population; read by every other module here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared_model.errors import ConfigError

Voi = Literal["LINEAR", "SIGMOID", "LUT"]
Syntax = Literal["explicit", "implicit", "rle", "jpegls"]


@dataclass(frozen=True, kw_only=True)
class Vendor:
    """A mammography system, from quanta to stored grey values.

    name: one letter or word, for tables. bits: bits stored, 8-16. monochrome1: stored inverted (air is the largest
    value). photons: mean quanta a pixel behind 1.6 attenuation lengths (a compressed fatty breast of some 3.5 cm).
    psf_px: standard deviation of the detector's Gaussian blur, detector pixels. gamma: exponent of the presentation
    curve. equalisation: share of the thickness signal that processing removes, [0, 1). voi: how the recommended
    display is stated. spacing_mm: pixel pitch. transfer_syntax: how pixels are stored. marker: the film carries a
    burned-in view label (letters such as "LCC", never an identity).
    """

    name: str
    bits: int
    monochrome1: bool
    photons: float
    psf_px: float
    gamma: float
    equalisation: float
    voi: Voi
    spacing_mm: float
    transfer_syntax: Syntax
    manufacturer: str
    model: str
    marker: bool

    def __post_init__(self) -> None:
        if not 8 <= self.bits <= 16 or self.spacing_mm <= 0 or self.photons <= 0 or not 0 <= self.equalisation < 1:
            raise ConfigError("vendor: impossible detector", found=self,
                              expected="bits 8-16, spacing_mm > 0, photons > 0, equalisation in [0, 1)")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class HospitalSpec:
    """Who comes to a hospital and what its records lack.

    name: as in the protocol. patients: women. prevalence: of cancer, enriched as in a case-control cohort, (0, 1).
    age_mean: years. density_shift: added to the latent density, standard deviations.
    vendors: one for a site; several are drawn with equal chance for each woman.
    missing_columns: fields that the table does not have at all. missing_rate: of each other value, at random.
    missing_view_rate: women without one of the four views. unilateral_rate: women with one breast filmed.
    image_only_rate: women whose clinical fields are all empty. table_only_rate: women without films.
    lump_rates: P(palpable lump | cancer), P(palpable lump | none).
    """

    name: str
    patients: int
    prevalence: float
    age_mean: float
    density_shift: float
    vendors: tuple[Vendor, ...]
    missing_columns: tuple[str, ...]
    missing_rate: float
    missing_view_rate: float
    unilateral_rate: float
    image_only_rate: float
    table_only_rate: float
    lump_rates: tuple[float, float]

    def __post_init__(self) -> None:
        if self.patients < 1 or not 0 < self.prevalence < 1 or not self.vendors:
            raise ConfigError(f"hospital {self.name}: impossible profile",
                              found=(self.patients, self.prevalence, len(self.vendors)),
                              expected="patients >= 1, prevalence in (0, 1), at least one vendor")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Population:
    """All women of a study.

    seed: fixes every woman. film_mm: height and width of the detector. conspicuity: kappa, by which lesions are made
    more visible than physics would at these coarse pixels (1 is physical; research: 5 gives an oracle AUC of
    0.80-0.84). calcification_share: of the cancers, those that show as calcifications; the others are masses.
    """

    hospitals: tuple[HospitalSpec, ...]
    held_out: HospitalSpec
    seed: int
    film_mm: tuple[float, float]
    conspicuity: float
    calcification_share: float

    def __post_init__(self) -> None:
        if not 0 <= self.calcification_share <= 1:
            raise ConfigError("population: calcification_share must be a share", found=self.calcification_share,
                              expected="in [0, 1]")  # fmt: skip
        names = [spec.name for spec in self.all]
        if len(set(names)) != len(names):
            raise ConfigError("hospitals: names must be unique", found=names)

    @property
    def all(self) -> tuple[HospitalSpec, ...]:
        """Hospitals in order, the held-out women last."""
        return (*self.hospitals, self.held_out)

"""The imaging pipeline's parameters and their hash; composed from configs/, used by every step."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Literal

from shared_model.errors import ConfigError

PIPELINE_VERSION = 1
"""Raised whenever the same film and the same parameters would give other pixels (a golden test notices)."""


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """How a DICOM film becomes a two-channel tensor.

    height, width: canvas H x W in pixels.
    spacing_mm: edge of a canvas pixel in the patient, in millimetres. A breast that is larger than the canvas is
        shown at a coarser spacing, which the view states: no tissue is ever cut away.
    percentiles: (low, high) in [0, 100]; greys of the breast mapped to 0 and 1 in channel 0. Two robust ends instead of
        minimum and maximum, because one dead or one calcification pixel would otherwise set the contrast of the film.
    denoise: `none` or `median` (3 x 3, on stored pixels). Off by default: a microcalcification is a few native pixels
        wide and a median takes it away; area averaging already suppresses quantum noise.
    max_pixels: greatest rows x columns that is decoded; max_bytes: greatest file that is read.
    """

    height: int
    width: int
    spacing_mm: float
    percentiles: tuple[float, float]
    denoise: Literal["none", "median"]
    max_pixels: int
    max_bytes: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "percentiles", (float(self.percentiles[0]), float(self.percentiles[1])))
        low, high = self.percentiles
        faults = {
            "height": not 16 <= self.height <= 8192,
            "width": not 16 <= self.width <= 8192,
            "spacing_mm": not (math.isfinite(self.spacing_mm) and 0.01 <= self.spacing_mm <= 20.0),
            "percentiles": not 0.0 <= low < high <= 100.0,
            "denoise": self.denoise not in ("none", "median"),
            "max_pixels": not 1024 <= self.max_pixels <= 1 << 30,
            "max_bytes": not 1024 <= self.max_bytes <= 1 << 34,
        }
        wrong = [name for name, fault in faults.items() if fault]
        if wrong:
            raise ConfigError(
                f"imaging pipeline: {', '.join(wrong)} out of range",
                found={name: getattr(self, name) for name in wrong},
                expected="H, W in 16..8192 px; spacing 0.01..20 mm; 0 <= low < high <= 100; denoise none or median; "
                "max_pixels 1024..2^30; max_bytes 1024..2^34",
                remedy="correct configs/imaging",
            )

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of what decides pixels: the parameters (limits left out) and PIPELINE_VERSION."""
        values = asdict(self) | {"version": PIPELINE_VERSION}
        # The limits decide which films are refused, not how an admitted one looks: a site may set them to its memory.
        del values["max_pixels"], values["max_bytes"]
        return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def terms(self) -> dict[str, object]:
        """Values for `PipelineTerms` of the protocol."""
        return {"sha256": self.sha256, "height": self.height, "width": self.width, "spacing_mm": float(self.spacing_mm)}

"""What a site lets in of films that the standard leaves open; read by admission. The defaults are the careful answers.

No part of the pipeline's hash: a policy decides which films are refused, not how an admitted one looks.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from shared_model.errors import ConfigError

RULES_VERSION = 1
"""Raised whenever the same film under the same policy would be judged otherwise: importers then read films again."""

BurnedIn = Literal["quarantine", "look"]
Choice = Literal["quarantine", "accept"]


@dataclass(frozen=True, kw_only=True)
class AdmissionPolicy:
    """A site's own rules for films.

    burned_in: `quarantine` takes only films whose BurnedInAnnotation is NO; `look` also takes those that say YES or
        nothing (scanned films have no such element) and leaves it to the pixels: what stands beside the breast is cut
        off with the air, and text that reaches the breast is looked for and refused, as it is under either choice.
    secondary_capture: Secondary Capture objects with Modality MG, which digitised films (CBIS-DDSM) are, and screen
        captures of anything too. A screen save that says so is refused under either choice.
    derived: images of the mammography classes that call themselves SECONDARY in ImageType, made from other images.
    synthetic_2d: two-dimensional images that were computed from a tomosynthesis.
    """

    burned_in: BurnedIn = "quarantine"
    secondary_capture: Choice = "quarantine"
    derived: Choice = "quarantine"
    synthetic_2d: Choice = "quarantine"

    def __post_init__(self) -> None:
        for field in fields(self):
            allowed = get_args(BurnedIn if field.name == "burned_in" else Choice)
            if getattr(self, field.name) not in allowed:
                raise ConfigError(
                    f"admission policy: {field.name} has an unknown value", found=getattr(self, field.name),
                    expected=" or ".join(allowed), remedy="correct the site's policy",
                )  # fmt: skip


DIGITISED_FILMS = AdmissionPolicy(burned_in="look", secondary_capture="accept")
"""For collections of scanned films, whose headers say little."""

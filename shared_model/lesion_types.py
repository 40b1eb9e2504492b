"""The kind of a woman's cancer, by which an evaluator's women make subgroups: vocabulary and the one rule. No torch.

It exists only where a cancer was found, so it tells the label: the data contract refuses it in a clinical table, and no
tensor of a cohort holds it. It travels as an attribute beside the tensors, in the cohort of an *evaluator* alone; the
trainer of a site refuses a cohort that has it, for a site trains on its women.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

LESION_TYPE: Final = "lesion_type"  # name of the attribute
LesionType = Literal["mass", "calcification", "distortion", "asymmetry", "several", "other"]
LESION_TYPES: Final[tuple[LesionType, ...]] = get_args(LesionType)
NO_CANCER: Final = "no cancer"  # value of a woman whose label is 0: the women that each type is compared with


def lesion_attribute(label: int, lesion: str | None) -> str | None:
    """The attribute's value. label: 0 or 1. lesion: of a woman with cancer, None where nobody typed it; of a woman
    without cancer it does not count, whatever benign lesion she has.

    >>> lesion_attribute(0, "mass")
    'no cancer'
    """
    return lesion if label else NO_CANCER


def together(lesions: set[str]) -> str | None:
    """One type for a woman with these: `several` where they differ.

    >>> together({"mass", "calcification"})
    'several'
    """
    return next(iter(lesions)) if len(lesions) == 1 else "several" if lesions else None

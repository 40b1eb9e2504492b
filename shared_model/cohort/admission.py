"""Checks one patient before the cohort writer keeps anything of her; called by `CohortWriter.add` only.

Messages say which patient by ordinal and pseudonym, and never show a value of hers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from numbers import Integral, Real

import numpy as np
from numpy.typing import NDArray

from shared_model.cohort.layout import CHANNELS, PSEUDONYM_PATTERN
from shared_model.cohort.views import VIEWS
from shared_model.errors import CohortError

Attributes = Mapping[str, str | float | None]
MAX_TEXT = 64  # signs in an attribute: a vendor or a level has fewer, free text (and with it a name) has more


def naming(ordinal: int, pseudonym: object) -> str:
    """How messages name a patient. What is no pseudonym may be an identity, so it is not shown."""
    good = isinstance(pseudonym, str) and re.fullmatch(PSEUDONYM_PATTERN, pseudonym)
    return f"patient {ordinal} ({pseudonym if good else 'no valid pseudonym'})"


def check_identity(where: str, pseudonym: object, views: Mapping[str, object], label: object) -> None:
    """Raises CohortError for a bad pseudonym, an unknown view or a label other than the integers 0 and 1."""
    if not isinstance(pseudonym, str) or not re.fullmatch(PSEUDONYM_PATTERN, pseudonym):
        raise CohortError(where, expected="1 to 64 letters, digits, - or _", remedy="pseudonymise patients first")
    if unknown := sorted(set(views) - set(VIEWS)):
        raise CohortError(f"{where}: unknown view", found=unknown, expected=list(VIEWS))
    if not isinstance(label, (Integral, np.bool_)) or int(label) not in (0, 1):
        raise CohortError(
            f"{where}: wrong label", found=f"{type(label).__name__} outside 0 and 1", expected="the integer 0 or 1",
            remedy="quarantine patients whose label is not known",
        )  # fmt: skip


def checked_clinical(where: str, clinical: NDArray[np.float32], n_features: int) -> NDArray[np.float32]:
    """A copy of the row, little-endian float32 [F]. Raises CohortError for another shape or no numbers."""
    row_F = np.array(clinical, dtype="<f4")
    if row_F.shape != (n_features,) or not np.isfinite(row_F).all():
        raise CohortError(
            f"{where}: wrong clinical row", found=f"shape {row_F.shape}, finite: {bool(np.isfinite(row_F).all())}",
            expected=f"shape ({n_features},), finite", remedy="encode it by the data contract",
        )  # fmt: skip
    return row_F


def checked_pixels(where: str, view: str, pixels_CHW: NDArray[np.float32], *, height: int, width: int) -> bytes:
    """The view as little-endian float16 bytes, C order. Raises CohortError unless it is float [2, H, W] in [0, 1]."""
    pixels = np.asarray(pixels_CHW)
    expected = (CHANNELS, height, width)
    if pixels.shape != expected or pixels.dtype.kind != "f":
        raise CohortError(
            f"{where}: view {view} has a wrong shape or type", found=f"{pixels.dtype} {pixels.shape}",
            expected=f"floats {expected}", remedy="prepare it by the imaging pipeline of this cohort",
        )  # fmt: skip
    if not (pixels.min() >= 0.0 and pixels.max() <= 1.0):  # false for NaN too
        raise CohortError(f"{where}: view {view} has values outside [0, 1], or no numbers", expected="[0, 1]")
    return np.ascontiguousarray(pixels, dtype="<f2").tobytes()


def checked_attributes(where: str, attributes: Mapping[str, object]) -> dict[str, str | float]:
    """Known attributes in order of their names, as plain Python values; None means not known and is left out."""
    kept: dict[str, str | float] = {}
    for name, value in sorted(attributes.items()):
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name):
            raise CohortError(f"{where}: wrong name of an attribute", expected="lower-case letters, digits and _")
        truth = isinstance(value, bool)  # a Real to Python, but a yes is no number
        if isinstance(value, str) and len(value) <= MAX_TEXT:
            kept[name] = str(value)
        elif not truth and isinstance(value, Real) and math.isfinite(value):
            kept[name] = int(value) if isinstance(value, Integral) else float(value)
        elif value is not None:
            raise CohortError(
                f"{where}: wrong attribute `{name}`", found=type(value).__name__,
                expected=f"text of at most {MAX_TEXT} signs, a finite number or None",
            )  # fmt: skip
    return kept

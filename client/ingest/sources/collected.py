"""What one collection from a source did, in counts, and the reasons for what it did not bring; made by gather."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Progress = Callable[[int, int], None]
"""Called with (studies dealt with, studies found)."""

LEFT_OUT: dict[str, str] = {
    "for_processing": "a raw For Processing image; the For Presentation image of the same exposure is used",
    "tomosynthesis": "a tomosynthesis volume; two-dimensional views are used",
    "not_mammography": "an object of another kind than a mammogram, in a series of modality MG",
}
"""Films that the archive announced and that were not asked for, because no model can use them."""

FAILED: dict[str, str] = {
    "not_delivered": "announced and not sent; the next import asks again",
    "too_large": "larger than the limit; raise it if the film is genuine",
    "unsupported_syntax": "sent in a transfer syntax that is not read; let the archive send Explicit VR or JPEG 2000",
    "damaged": "the object cannot be parsed, or its UIDs are not those that were announced",
    "other_modality": "the object's own header says that it is no mammogram",
    "not_deidentified": "the header could not be de-identified; nothing of it was stored",
}
"""Films that were asked for and are not in the store."""

PERMANENT = frozenset({"too_large", "damaged", "other_modality", "not_deidentified"})
"""The film came whole and will be the same the next time: it is noted and not asked for again."""


@dataclass(frozen=True, kw_only=True)
class Collected:
    """Counts of one collection. films = new + present + all that was left out + all that failed (checked).

    studies: found with mammograms in them. incomplete: of these, not (yet) whole in the store.
    films: announced by the archive; new: stored now; present: stored by an earlier import.
    """

    studies: int = 0
    incomplete: int = 0
    films: int = 0
    new: int = 0
    present: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = self.new + self.present + sum(self.left_out.values()) + sum(self.failed.values())
        assert self.films == parts, f"{self.films} films announced, {parts} accounted for"
        assert self.left_out.keys() <= LEFT_OUT.keys() and self.failed.keys() <= FAILED.keys()

    def __add__(self, other: Collected) -> Collected:
        return Collected(
            studies=self.studies + other.studies, incomplete=self.incomplete + other.incomplete,
            films=self.films + other.films, new=self.new + other.new, present=self.present + other.present,
            left_out=dict(Counter(self.left_out) + Counter(other.left_out)),
            failed=dict(Counter(self.failed) + Counter(other.failed)),
        )  # fmt: skip

    def words(self) -> str:
        """One line for a person, without anything of a patient."""
        parts = [f"{self.studies} studies", f"{self.films} films announced"]
        parts += [f"{self.new} new", f"{self.present} present"]
        parts += [f"{count} left out ({reason})" for reason, count in sorted(self.left_out.items())]
        parts += [f"{count} failed ({reason})" for reason, count in sorted(self.failed.items())]
        return ", ".join([*parts, f"{self.incomplete} studies incomplete"])
